"""Damages slides and opens them; run by test_fuzz in a process of its own, so that a crash, a hang or greed is seen.

``python fuzz_worker.py FOLDER SEED FIRST STOP``: FOLDER gets the slides and the damaged files. Every case prints its
number before it begins, and ``BUG`` with a traceback where anything but an error of microtome comes out.
"""

# ruff: noqa: T201 (printing is what it is for)

from __future__ import annotations

import contextlib
import resource
import signal
import struct
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import microtome as mt
from microtome.errors import MicrotomeError, MicrotomeWarning
from microtome.testing import make_slide

SECONDS = 10
GREED = 1 << 30
"""Bytes of address space above what imports and honest slides take."""

BASE: dict[str, Any] = {"width": 150, "height": 110, "frame": 48, "levels": 2, "associated": False}
SLIDES: dict[str, dict[str, Any]] = {
    "jpeg": {"codec": "jpeg", "associated": True},
    "jpeg-lossless": {"codec": "jpeg-lossless", "offsets": "bot"},
    "jpeg-12": {"codec": "jpeg-12", "dtype": "uint16", "bits_stored": 12, "paths": ("DAPI",)},
    "jpeg-ls": {"codec": "jpeg-ls", "offsets": "empty"},
    "j2k": {"codec": "j2k", "fragments": 3, "offsets": "bot"},
    "j2k-lossless": {"codec": "j2k-lossless", "tiling": "sparse", "drop": 0.5},
    "htj2k-lossless": {"codec": "htj2k-lossless", "edge": "short"},
    "htj2k": {"codec": "htj2k"},
    "jpeg-xl": {"codec": "jpeg-xl"},
    "jpeg-xl-lossless": {"codec": "jpeg-xl-lossless", "dtype": "uint16", "paths": ("DAPI", "FITC"), "focal_planes": 2},
    "rle": {"codec": "rle", "fragments": 2, "offsets": "empty", "tiling": "sparse-unaligned"},
    "deflated-frame": {"codec": "deflated-frame", "offsets": "bot"},
    "encapsulated-native": {"codec": "encapsulated-native"},
    "native": {"codec": "native", "focal_planes": 2, "parts": 2},
    "native-implicit": {"codec": "native-implicit", "tiling": "sparse"},
    "native-bigendian": {"codec": "native-bigendian", "dtype": "uint16", "paths": ("a", "b")},
    "native-deflated": {"codec": "native-deflated"},
    "palette": {"codec": "native", "paths": ("a",)},
}
# (group, element) of what sizes and counts hang on, and its VR.
NUMBERS = {
    (0x0028, 0x0002): "US", (0x0028, 0x0008): "IS", (0x0028, 0x0010): "US", (0x0028, 0x0011): "US",
    (0x0028, 0x0100): "US", (0x0028, 0x0101): "US", (0x0028, 0x0103): "US", (0x0028, 0x0006): "US",
    (0x0048, 0x0006): "UL", (0x0048, 0x0007): "UL", (0x0048, 0x0303): "UL", (0x0048, 0x0302): "UL",
    (0x0028, 0x1101): "US", (0x0028, 0x1201): "OW", (0x0020, 0x9228): "UL", (0x0020, 0x9162): "US",
    (0x0048, 0x021E): "SL", (0x0048, 0x021F): "SL", (0x7FE0, 0x0001): "OV", (0x7FE0, 0x0002): "OV",
}  # fmt: skip
ABSURD = (
    0, 1, 2, 3, 7, 8, 12, 16, 32, 64, 255, 256, 4095, 32767, 32768, 65535, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1,
)  # fmt: skip

Damage = Callable[[bytearray, np.random.Generator], None]


def make(folder: Path, name: str) -> list[Path]:
    """Write a slide once."""
    where = folder / name
    if not where.is_dir():
        make_slide(where, **(BASE | SLIDES[name]))
        if name == "palette":
            for file in where.iterdir():
                add_palette(file)
    return sorted(where.glob("*.dcm"))


def add_palette(file: Path) -> None:
    import pydicom

    ds = pydicom.dcmread(file)
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for n in range(3):
        ds.add_new(0x00281101 + n, "US", [256, 0, 8])
        ds.add_new(0x00281201 + n, "OW", bytes((i * (n + 1)) % 256 for i in range(256)))
    ds.save_as(file)


# Damage. Each changes the bytes of one file in place. ---------------------------------------------------------------


def pixels_begin(data: bytearray) -> int:
    at = max(data.rfind(b"\xe0\x7f\x10\x00"), data.rfind(b"\x7f\xe0\x00\x10"))
    return at if at > 0 else len(data)


def flip_header(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 6)):
        data[rng.integers(128, pixels_begin(data))] = rng.integers(256)


def flip_pixels(data: bytearray, rng: np.random.Generator) -> None:
    start = min(pixels_begin(data), len(data) - 1)
    for _ in range(rng.integers(1, 30)):
        data[rng.integers(start, len(data))] = rng.integers(256)


def flip_stream_headers(data: bytearray, rng: np.random.Generator) -> None:
    """Damage the first bytes of frames, where codestreams keep their sizes."""
    at = pixels_begin(data)
    starts = []
    while (at := data.find(b"\xfe\xff\x00\xe0", at + 1)) >= 0:
        starts.append(at + 8)
    for start in starts or [min(pixels_begin(data), len(data) - 1)]:
        for _ in range(rng.integers(1, 4)):
            place = min(start + int(rng.integers(0, rng.choice([24, 120]))), len(data) - 1)
            data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(0, len(data)) :]


def truncate_pixels(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(min(pixels_begin(data), len(data) - 1), len(data)) :]


def huge_length(data: bytearray, rng: np.random.Generator) -> None:
    """Let an element, an item or a fragment claim more than there is."""
    marks = [b"SQ\0\0", b"OB\0\0", b"OW\0\0", b"UN\0\0", b"OV\0\0", b"\xfe\xff\x00\xe0", b"UT\0\0"]
    mark = marks[rng.integers(len(marks))]
    places = []
    at = 0
    while (at := data.find(mark, at + 1)) >= 0:
        places.append(at + 4)
    if places:
        place = places[rng.integers(len(places))]
        value = rng.choice([0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x80000000, 1 << 24, 9, 1, 0])
        data[place : place + 4] = struct.pack("<I", int(value))


def absurd_number(data: bytearray, rng: np.random.Generator) -> None:
    """Replace the values of some numbers that sizes hang on, where they stand."""
    found = []
    for (group, element), vr in NUMBERS.items():
        for order in "<>":
            at = data.find(struct.pack(order + "HH", group, element))
            if at >= 0:
                found.append((at, order, vr))
    for _ in range(rng.integers(1, 4)):
        if not found:
            return
        at, order, vr = found[rng.integers(len(found))]
        explicit = data[at + 4 : at + 6] == vr.encode()
        long = vr in ("OW", "OV")
        form, place = ("I", 8) if long and explicit else ("H", 6) if explicit else ("I", 4)
        (length,) = struct.unpack_from(order + form, data, at + place)
        start = at + (12 if long and explicit else 8)
        length = min(length, len(data) - start)
        if vr == "IS":
            value = str(rng.choice(ABSURD)).encode()[:length].ljust(length)
        elif long:
            value = rng.bytes(min(8, length)) + bytes(data[start + 8 : start + length])
        else:
            width = {"US": 2, "UL": 4, "SL": 4}[vr]
            number = int(rng.choice(ABSURD)) & ((1 << 8 * width) - 1)
            value = struct.pack(order + {2: "H", 4: "I"}[width], number) + bytes(data[start + width : start + length])
        data[start : start + len(value)] = value


def other_syntax(data: bytearray, rng: np.random.Generator) -> None:
    """State another transfer syntax, cut where it is too long."""
    at = data.find(b"1.2.840.10008.1.2")
    end = data.find(b"\x02\x00", at)
    if at < 0 or end < 0:
        return
    numbers = (50, 51, 70, 80, 90, 91, 94, 100, 110, 201, 203)
    all_of_them = ["", ".1", ".2", ".5", ".1.99", ".8.1", ".1.98", *(f".4.{n}" for n in numbers)]
    other = b"1.2.840.10008.1.2" + all_of_them[rng.integers(len(all_of_them))].encode()
    data[at:end] = other[: end - at].ljust(end - at, b"\0")


def scramble_offsets(data: bytearray, rng: np.random.Generator) -> None:
    """Change offset tables: the extended one, and what follows the start of the pixel data."""
    at = data.find(b"\xe0\x7f\x01\x00OV")
    places = [at + 12] if at > 0 else []
    at = data.find(b"\xe0\x7f\x02\x00OV")
    places += [at + 12] if at > 0 else []
    start = pixels_begin(data) + 12
    if start + 8 < len(data):
        places += [start + 8, start + 4]
    for place in places:
        for _ in range(3):
            spot = min(place + 4 * int(rng.integers(0, 8)), len(data) - 8)
            value = int(rng.choice([0, 2, 8, 0xFFFFFFFF, 0x80000000, rng.integers(1 << 16)]))
            data[spot : spot + 4] = struct.pack("<I", value)


def move_bytes(data: bytearray, rng: np.random.Generator) -> None:
    """Cut some bytes out, or put some in."""
    at, count = int(rng.integers(132, len(data))), int(rng.choice([1, 2, 4, 8, 100]))
    if rng.random() < 0.5:
        del data[at : at + count]
    else:
        data[at:at] = rng.bytes(count)


DAMAGES: tuple[Damage, ...] = (
    flip_header, flip_pixels, flip_stream_headers, flip_stream_headers, truncate, truncate_pixels, huge_length,
    absurd_number, absurd_number, absurd_number, other_syntax, scramble_offsets, move_bytes,
)  # fmt: skip


def use(target: Path) -> Counter[str]:
    """Open a slide and read a bit of everything; count what came of it."""
    result: Counter[str] = Counter()
    try:
        slide = mt.open_slide(target)
        lazy = mt.open_slide(target, chunks=None)
    except MicrotomeError as e:
        str(e)
        return Counter([type(e).__name__])
    len(slide.wsi.levels)
    repr(slide)
    for node in lazy.subtree:
        if "image" not in node.dataset:
            continue
        image = node.dataset["image"]
        y, x = ("row", "column") if "row" in image.dims else ("y", "x")
        rows, columns = image.sizes[y], image.sizes[x]
        others = {d: 0 for d in image.dims if d not in (y, x, "c")}
        regions: list[dict[str, Any]] = [
            {y: slice(0, 60), x: slice(0, 70)},
            {y: slice(max(0, rows - 50), rows), x: slice(max(0, columns - 50), columns)},
            {y: slice(0, 200, 40), x: slice(0, 200, 40)},
        ]
        for region in regions:
            with_others = others | region
            part = image.isel(with_others)
            try:
                if y == "y":
                    str(part.wsi.explain())
                part.values  # noqa: B018
            except MicrotomeError as e:
                result[type(e).__name__] += 1
            else:
                result["read"] += 1
        if y == "y":
            try:
                mt_dask = slide[node.path].dataset["image"]
                mt_dask.isel(others | {y: slice(0, 20), x: slice(0, 20)}).compute(scheduler="synchronous")
                corner = image.wsi.read(0, 0, 1, 1) if image.size < 1 << 40 and not others else None
                del corner
                image.isel({y: slice(0, 64), x: slice(0, 64)} | others).wsi.coverage().values  # noqa: B018
            except MicrotomeError as e:
                result[type(e).__name__] += 1
    return result


def run_case(folder: Path, number: int, seed: int) -> Counter[str]:
    rng = np.random.default_rng([seed, number])
    names = sorted(SLIDES)
    name = names[number % len(names)]
    files = make(folder, name)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    for old in work.iterdir():
        old.unlink()
    damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
    victim = int(rng.integers(len(files)))
    data = bytearray(files[victim].read_bytes())
    for _ in range(1 + (rng.random() < 0.2)):
        if len(data) > 200:
            damage(data, rng)
    alone = rng.random() < 0.5
    for i, file in enumerate(files):
        if i == victim or not alone:
            (work / file.name).write_bytes(data if i == victim else file.read_bytes())
    print(number, name, damage.__name__, flush=True)
    return use(work)


class Hang(BaseException):
    """Not an Exception, so that nobody catches it by accident."""


def main() -> int:
    folder, seed, first, stop = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    mt.config.set(decode_threads=1)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", MicrotomeWarning)
    warnings.filterwarnings("ignore", module="pydicom")
    warnings.filterwarnings("ignore", category=ResourceWarning)
    for name in sorted(SLIDES):  # imports and honest slides first: what they take is no greed
        make(folder, name)
        print(name, dict(use(folder / name)), flush=True)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + GREED, -1))

    def alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    total: Counter[str] = Counter()
    bugs = 0
    for number in range(first, stop):
        signal.alarm(SECONDS)
        try:
            total += run_case(folder, number, seed)
        except (Exception, Hang):
            bugs += 1
            print(f"BUG in case {number}", flush=True)
            traceback.print_exc(file=sys.stdout)
        finally:
            signal.alarm(0)
        with contextlib.suppress(MicrotomeError):
            from microtome.lazy.recipe import forget_open_slides

            forget_open_slides()
    print("TOTAL", dict(total), "bugs", bugs, "peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, "MiB")
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
