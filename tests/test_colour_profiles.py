"""Colour profiles, conversions between them, and pseudo-colour, against LittleCMS by Pillow and against formulas."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageColor

from microtome.errors import OptionError
from microtome.ops.colour import (
    PROFILE_NAMES,
    ColourTransform,
    Pseudocolour,
    auto_windows,
    colour_of_wavelength,
    default_colours,
    parse_colour,
    profile_bytes,
    profile_description,
    pseudocolour,
)
from microtome.ops.colour import transform as transform_module

INTENTS = ("perceptual", "relative", "saturation", "absolute")


def profile(data: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(data))


def by_pillow(
    pixels: np.ndarray, source: bytes, target: bytes, intent: int = 0, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> np.ndarray:
    built = ImageCms.buildTransform(profile(source), profile(target), "RGB", "RGB", ImageCms.Intent(intent), flags)
    image = Image.fromarray(pixels.reshape(1, -1, 3))
    return np.asarray(ImageCms.applyTransform(image, built)).reshape(pixels.shape)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int64) - b.astype(np.int64)).max())


def elements(data: bytes) -> dict[bytes, tuple[int, int, int]]:
    """Where the entry of an element is in the tag table, where the element is, and its size."""
    found = {}
    for entry in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12):
        place, size = np.frombuffer(data[entry + 4 : entry + 12], ">u4")
        found[data[entry : entry + 4]] = entry, int(place), int(size)
    return found


def exchanged(data: bytes, first: bytes, second: bytes) -> bytes:
    """The profile with two elements under each other's names."""
    a, b = elements(data)[first][0], elements(data)[second][0]
    changed = bytearray(data)
    changed[a : a + 4], changed[b : b + 4] = second, first
    return bytes(changed)


@pytest.fixture(scope="session")
def colours() -> np.ndarray:
    """Random colours, dark colours, greys, and the corners of the cube."""
    rng = np.random.default_rng(7)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    corners = np.stack(np.meshgrid([0, 255], [0, 255], [0, 255]), -1).reshape(-1, 3).astype(np.uint8)
    many, dark = (rng.integers(0, high, (20_000, 3), dtype=np.uint8) for high in (256, 20))
    return np.concatenate([many, dark, greys, corners])


@pytest.fixture(scope="session")
def photo(real: Path) -> np.ndarray:
    """A frame of H&E, (512, 2048, 3)."""
    return np.asarray(Image.open(real / "photos/opentile_frame_2048x512.jpg").convert("RGB"))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("srgb", "compact_sRGB-v4"),
        ("srgb", "compact_sRGB-v2-magic"),
        ("srgb", "compact_sRGB-v2-micro"),
        ("srgb", "wsitools_srgb"),
        ("srgb", "google_profile"),
        ("adobe_rgb", "compact_AdobeCompat-v2"),
        ("display_p3", "compact_DisplayP3-v4"),
        ("display_p3", "ezwsi_displayp3"),
        ("romm_rgb", "compact_ProPhoto-v4"),
    ],
)
def test_built_profiles_do_as_published_ones(name: str, file: str, real: Path, colours: np.ndarray) -> None:
    published, ours = (real / f"icc/{file}.icc").read_bytes(), profile_bytes(name)
    for source in ("compact_sRGB-v4", "compact_DisplayP3-v4"):
        other = (real / f"icc/{source}.icc").read_bytes()
        for intent in (0, 1, 2):
            assert (
                difference(by_pillow(colours, other, ours, intent), by_pillow(colours, other, published, intent)) <= 1
            )
            assert (
                difference(by_pillow(colours, ours, other, intent), by_pillow(colours, published, other, intent)) <= 1
            )


def test_adobe_rgb_has_no_linear_part_near_black(real: Path, colours: np.ndarray) -> None:
    # Adobe RGB (1998) states a plain power. The v4 file of Compact-ICC-Profiles adds a slope limit, so it differs
    # from the v2 file beside it by 4; ours goes with the standard.
    srgb, v2, v4 = (
        (real / f"icc/compact_{name}.icc").read_bytes() for name in ("sRGB-v4", "AdobeCompat-v2", "AdobeCompat-v4")
    )
    assert difference(by_pillow(colours, srgb, v2), by_pillow(colours, srgb, v4)) > 1
    bright = colours[colours.min(1) > 40]
    assert difference(by_pillow(bright, srgb, profile_bytes("adobe_rgb")), by_pillow(bright, srgb, v4)) <= 1
    for element in (b"rXYZ", b"gXYZ", b"bXYZ"):
        _, place, size = elements(v2)[element]
        _, ours, _ = elements(profile_bytes("adobe_rgb"))[element]
        assert profile_bytes("adobe_rgb")[ours : ours + size] == v2[place : place + size]


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_built_profiles_are_valid(name: str) -> None:
    data = profile_bytes(name)
    opened = profile(data).profile
    assert opened.is_matrix_shaper
    assert opened.version == pytest.approx(4.2)
    assert opened.device_class == "mntr"
    assert int.from_bytes(data[:4], "big") == len(data) < 600
    assert profile_description(data).replace(" ", "_").lower().startswith(name.split("_")[0])
    sums = np.sum([opened.red_colorant[0], opened.green_colorant[0], opened.blue_colorant[0]], 0)
    np.testing.assert_array_equal(sums, np.array([0xF6D6, 0x10000, 0xD32D]) / 65536)
    for _, place, size in elements(data).values():
        assert place % 4 == 0
        assert place + size <= len(data)


def test_curves_of_profiles_are_those_of_the_standards() -> None:
    # A pixel of one grey in two spaces: linear light is equal, so decoding one and encoding the other must agree.
    def srgb(v: np.ndarray) -> np.ndarray:
        return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)

    inverses: dict[str, Any] = {
        "adobe_rgb": lambda v: v ** (256 / 563),
        "romm_rgb": lambda v: np.where(v < 1 / 512, 16 * v, v ** (1 / 1.8)),
        "display_p3": lambda v: np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055),
    }
    greys = np.repeat(np.arange(0, 65536, 97, np.uint16)[:, None], 3, 1)
    for name, inverse in inverses.items():
        converted = ColourTransform(profile_bytes("srgb"), profile_bytes(name), "relative")(greys)
        expected = 65535 * inverse(srgb(greys / 65535))
        # ROMM's white is adapted, rounded to 16 bit; near black the plain power is steep
        bright = greys[:, 0] > 2000
        assert np.abs(converted - expected)[bright].max() < 20
        assert np.abs(converted - expected).max() < 200


def test_built_profiles_are_the_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib; from microtome.ops.colour import *\n"
        "print([hashlib.sha256(profile_bytes(n)).hexdigest() for n in PROFILE_NAMES])\n"
        "print(ColourTransform(profile_bytes('srgb'), profile_bytes('romm_rgb')).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    here = [hashlib.sha256(profile_bytes(n)).hexdigest() for n in PROFILE_NAMES]
    digest = ColourTransform(profile_bytes("srgb"), profile_bytes("romm_rgb")).digest
    assert done.stdout.splitlines() == [str(here), digest]


def test_profiles_come_from_paths_and_bytes(real: Path, tmp_path: Path) -> None:
    path = real / "icc/google_profile.icc"
    data = path.read_bytes()
    assert profile_bytes(path) == profile_bytes(str(path)) == profile_bytes(data) == data
    assert profile_bytes(data + b"\0") == data  # as DICOM pads values
    assert profile_bytes(bytearray(data)) == data  # type: ignore[arg-type]
    preference = (real / "icc/ezwsi_sRGB_v4_ICC_preference.icc").read_bytes()
    assert profile_bytes(preference) == preference


def damaged(real: Path, how: str) -> Any:
    good = (real / "icc/compact_sRGB-v4.icc").read_bytes()
    return {
        "empty": b"",
        "short": good[:100],
        "cut": good[:-20],
        "text": b"x" * 5000,
        "grey": (real / "icc/compact_sGrey-v4.icc").read_bytes(),
        "cmyk": good[:16] + b"CMYK" + good[20:],
        "link": good[:12] + b"link" + good[16:],
        "large": good + bytes(9 << 20),
        "table": good[:128] + b"\xff" * 40 + good[168:],
        "unknown": "no_such_space",
        "missing": real / "icc/missing.icc",
        "folder": real / "icc",
        "zero": "a\0b",
        "photo": real / "photos/stardist_histo.jpg",
        "number": 5,
    }[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("empty", "0 bytes"),
        ("short", "100 bytes"),
        ("cut", "cut short"),
        ("text", "acsp"),
        ("grey", "GRAY"),
        ("cmyk", "CMYK"),
        ("link", "link"),
        ("large", "at most"),
        ("table", "damaged"),
        ("unknown", "names are srgb, adobe_rgb, display_p3, romm_rgb"),
        ("missing", "No such file"),
        ("folder", "not a file"),
        ("zero", "no such file"),
        ("photo", "acsp"),
        ("number", "not int"),
    ],
)
def test_what_is_no_profile_is_refused(how: str, says: str, real: Path) -> None:
    with pytest.raises(OptionError, match=says):
        profile_bytes(damaged(real, how))


@pytest.mark.parametrize("how", ["empty", "cut", "text", "grey", "cmyk", "table", "unknown"])
def test_transforms_refuse_what_is_no_profile(how: str, real: Path) -> None:
    for source, target in ((damaged(real, how), profile_bytes("srgb")), (profile_bytes("srgb"), damaged(real, how))):
        with pytest.raises(OptionError, match="profile"):
            ColourTransform(source, target)


def test_profiles_damaged_inside_are_refused(real: Path) -> None:
    good = (real / "icc/compact_sRGB-v2-magic.icc").read_bytes()
    _, place, _ = elements(good)[b"rTRC"]
    with pytest.raises(OptionError, match="LittleCMS"):
        ColourTransform(good[:place] + b"junk" + good[place + 4 :], profile_bytes("srgb"))
    # a scanner's profile without tables from colours to RGB is no target
    scanner = (real / "icc/3dhistech_fluor.icc").read_bytes()
    one_way = scanner.replace(b"B2A0", b"zzz0", 1).replace(b"B2A1", b"zzz1", 1)
    ColourTransform(one_way, profile_bytes("srgb"))
    with pytest.raises(OptionError, match="direction"):
        ColourTransform(profile_bytes("srgb"), one_way)


@pytest.mark.parametrize("intent", INTENTS)
@pytest.mark.parametrize(
    "file",
    ["pydicom_crayons", "google_profile", "3dhistech_fluor", "compact_AdobeCompat-v2", "ezwsi_ISO22028-2_ROMM-RGB"],
)
def test_transforms_are_those_of_pillow(file: str, intent: Any, real: Path, colours: np.ndarray) -> None:
    source, target = (real / f"icc/{file}.icc").read_bytes(), profile_bytes("srgb")
    converted = ColourTransform(source, target, intent)(colours)
    assert converted.dtype == np.uint8
    assert difference(converted, by_pillow(colours, source, target, INTENTS.index(intent))) == 0


def test_large_arrays_are_converted_as_small_ones(real: Path, photo: np.ndarray) -> None:
    # These go another way; and a band of Pillow's ends inside.
    large = np.concatenate([photo, photo[:7, ::-1]])
    for file in ("compact_AdobeCompat-v2", "3dhistech_fluor"):
        source, target = (real / f"icc/{file}.icc").read_bytes(), profile_bytes("srgb")
        convert = ColourTransform(source, target)
        whole = convert(large)
        assert difference(whole, by_pillow(large, source, target)) <= 1
        assert difference(whole[100:140], convert(large[100:140])) <= 1
        assert difference(whole, large) > 10


def test_swapped_primaries_swap_the_colours_of_a_photo(photo: np.ndarray) -> None:
    # A slide whose profile says that its first channel is blue: converted to sRGB, red and blue change places.
    source = exchanged(profile_bytes("srgb"), b"rXYZ", b"bXYZ")
    converted = ColourTransform(source, profile_bytes("srgb"))(photo)
    assert difference(converted, photo[..., ::-1]) <= 1
    assert np.abs(converted.astype(int) - photo).mean() > 10


def test_the_crayons_profile_is_srgb(real: Path, photo: np.ndarray, colours: np.ndarray) -> None:
    # Its name promises other colours; its primaries and curves are those of sRGB to four digits.
    convert = ColourTransform((real / "icc/pydicom_crayons.icc").read_bytes(), profile_bytes("srgb"))
    assert difference(convert(photo), photo) == 0
    assert difference(convert(colours), colours) <= 2


def test_sixteen_bits_are_as_exact_as_eight(real: Path, colours: np.ndarray) -> None:
    target = profile_bytes("srgb")
    for file in ("compact_DisplayP3-v4", "compact_AdobeCompat-v2", "3dhistech_fluor"):
        source = (real / f"icc/{file}.icc").read_bytes()
        convert = ColourTransform(source, target)
        wide = convert(colours.astype(np.uint16) * 257)
        assert wide.dtype == np.uint16
        # without the coarser tables that LittleCMS otherwise puts in place of those of a profile
        exact = by_pillow(colours, source, target, flags=ImageCms.Flags.NOOPTIMIZE)
        assert np.abs(wide / 257 - exact).max() < 1
        big_endian = convert((colours.astype(np.uint16) * 257).astype(">u2"))
        np.testing.assert_array_equal(big_endian, wide)


def test_shapes_and_outputs(real: Path, colours: np.ndarray) -> None:
    convert = ColourTransform((real / "icc/compact_AdobeCompat-v2.icc").read_bytes(), profile_bytes("srgb"))
    block = colours[:24_000].reshape(2, 100, 120, 3)
    expected = by_pillow(block, convert.source, convert.target)
    np.testing.assert_array_equal(convert(block), expected)
    np.testing.assert_array_equal(convert(block[:, ::-3, 5:90:2]), expected[:, ::-3, 5:90:2])
    np.testing.assert_array_equal(convert(block[0, 0, 0]), expected[0, 0, 0])
    assert convert(block[:, :0]).shape == (2, 0, 120, 3)
    kept = block.copy()
    out = np.zeros_like(block)
    assert convert(block, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(block, kept)
    wider = np.zeros((2, 100, 120, 4), np.uint8)
    convert(block, out=wider[..., :3])
    np.testing.assert_array_equal(wider[..., :3], expected)
    assert not wider[..., 3].any()
    memory = np.concatenate([block.ravel(), np.zeros(3, np.uint8)])
    convert(memory[:-3].reshape(-1, 3), out=memory[3:].reshape(-1, 3))  # onto itself, one pixel further
    np.testing.assert_array_equal(memory[3:], expected.ravel())
    same = block.copy()
    convert(same, out=same)
    np.testing.assert_array_equal(same, expected)
    wide = block.astype(np.uint16) * 257
    expected16 = convert(wide)
    convert(wide, out=wide)
    np.testing.assert_array_equal(wide, expected16)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 3), np.float32),
        np.zeros((4, 3), np.int16),
        np.zeros((4, 3), np.uint32),
        np.array(3, np.uint8),
    ],
)
def test_what_is_not_rgb_is_refused(pixels: np.ndarray) -> None:
    convert = ColourTransform(profile_bytes("srgb"), profile_bytes("display_p3"))
    with pytest.raises(OptionError, match="colour transforms take RGB"):
        convert(pixels)


def test_other_arguments_are_refused() -> None:
    srgb = profile_bytes("srgb")
    with pytest.raises(OptionError, match="perceptual, relative, saturation, absolute"):
        ColourTransform(srgb, srgb, "vivid")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="out is"):
        ColourTransform(srgb, srgb)(np.zeros((4, 3), np.uint8), out=np.zeros((4, 3), np.uint16))


def test_transforms_travel_and_compare(real: Path) -> None:
    source = (real / "icc/google_profile.icc").read_bytes()
    convert = ColourTransform(source, profile_bytes("display_p3"))
    padded = ColourTransform(source + b"\0", profile_bytes("display_p3"))
    other = ColourTransform(source, profile_bytes("display_p3"), "absolute")
    assert convert == padded
    assert hash(convert) == hash(padded)
    assert convert.digest == padded.digest != other.digest
    assert len(repr(convert)) < 200
    again = pickle.loads(pickle.dumps(convert))
    assert again == convert
    pixels = np.arange(300, dtype=np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(again(pixels), convert(pixels))
    assert len(pickle.dumps(ColourTransform(profile_bytes("adobe_rgb"), profile_bytes("srgb")))) < 2000


def test_transforms_are_built_once_and_forgotten_in_order(monkeypatch: pytest.MonkeyPatch, real: Path) -> None:
    built: list[str] = []

    def build(wanted: ColourTransform) -> Any:
        built.append(wanted.digest)
        return transform_module._build(wanted)

    monkeypatch.setattr(transform_module, "_kept", transform_module._Kept(build))
    monkeypatch.setattr(transform_module, "_KEPT", 2)
    pixels = np.zeros((4, 3), np.uint8)
    names = ("adobe_rgb", "display_p3", "romm_rgb")
    first, second, third = (ColourTransform(profile_bytes(n), profile_bytes("srgb")) for n in names)
    assert built == [first.digest, second.digest, third.digest]
    for _ in range(3):
        ColourTransform(third.source, third.target)(pixels)
    second(pixels)
    assert len(built) == 3
    first(pixels)  # was forgotten
    assert built[3:] == [first.digest]


def test_one_transform_in_many_threads(real: Path, photo: np.ndarray) -> None:
    source, target = (real / "icc/3dhistech_fluor.icc").read_bytes(), profile_bytes("srgb")
    convert = ColourTransform(source, target)
    rows = [photo[i : i + 32] for i in range(0, 512, 32)]
    expected = [by_pillow(part, source, target) for part in rows]
    transform_module._kept.renew()  # all begin by building it
    with ThreadPoolExecutor(8) as threads:
        for got, wanted in zip(threads.map(convert, rows * 2), expected * 2, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_convert_while_their_parent_holds_the_lock() -> None:
    code = """
import os, numpy as np
from microtome.ops.colour import *
from microtome.ops.colour import transform
convert = ColourTransform(profile_bytes("display_p3"), profile_bytes("srgb"))
pixels = np.arange(255, dtype=np.uint8).reshape(-1, 3)
expected = convert(pixels)
transform._kept.lock.acquire()
child = os.fork()
if not child:
    os._exit(0 if (convert(pixels) == expected).all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "0"


def blended(channels: np.ndarray, windows: Any, colours: Any) -> np.ndarray:
    """Additive blending by its formula."""
    total = np.zeros((*channels.shape[:-1], 3))
    for c, ((low, high), colour) in enumerate(zip(windows, colours, strict=True)):
        light = np.clip((channels[..., c].astype(np.float64) - low) / (high - low), 0, 1)
        total += np.nan_to_num(light)[..., None] * np.array(colour)
    return np.clip(total, 0, 255)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i2", "<u4", "<i8", "<f4", "<f8", "?", "<f2"])
def test_pseudocolour_is_its_formula(dtype: str) -> None:
    rng = np.random.default_rng(3)
    kind = np.dtype(dtype)
    if kind.kind in "ui":
        top = min(np.iinfo(kind).max, 70_000)
        channels = rng.integers(max(np.iinfo(kind).min, -70_000), top, (300, 300, 4), endpoint=True).astype(kind)
    else:
        top = 1
        channels = (
            (rng.normal(0.5, 0.5, (300, 300, 4)) > 0.5).astype(kind)
            if kind.kind == "b"
            else (rng.normal(0.5, 0.5, (300, 300, 4)).astype(kind))
        )
    windows = ((0.1 * top, 0.7 * top), (0, top), (0.9 * top, 0.2 * top), (-top, 0.5 * top))
    colours = ((255, 0, 0), (13, 200, 0), (0, 90, 255), (70, 70, 70))
    result = pseudocolour(channels, windows, colours)
    exact = blended(channels, windows, colours)
    assert result.shape == (300, 300, 3)
    assert result.dtype == np.uint8
    assert np.abs(result - exact).max() <= 0.501
    np.testing.assert_array_equal(pseudocolour(channels[::-2, 3:7], windows, colours), result[::-2, 3:7])
    out = np.zeros((300, 300, 4), np.uint8)
    Pseudocolour(windows, colours)(channels, out=out[..., :3])
    np.testing.assert_array_equal(out[..., :3], result)


def test_pseudocolour_of_what_is_no_number() -> None:
    channels = np.array([[np.nan], [np.inf], [-np.inf], [0.5]], np.float32)
    result = pseudocolour(channels, [(0, 1)], ["white"])
    np.testing.assert_array_equal(result[:, 0], [0, 255, 0, 128])
    assert pseudocolour(np.zeros((0, 5, 2), np.uint16), [(0, 1)] * 2, ["red", "green"]).shape == (0, 5, 3)
    black = pseudocolour(np.full((2, 1), 9, np.uint8), [(0, 9)], ["black"])
    assert not black.any()


@pytest.mark.parametrize(
    ("windows", "colours", "says"),
    [
        ([(0, 1)], ["red", "blue"], "1 windows and 2 colours"),
        ([], [], "0 windows"),
        ([(3, 3), (0, 1)], ["red", "blue"], "no window"),
        ([(0, np.inf), (0, 1)], ["red", "blue"], "no window"),
        ([(0, 1), (0, 1)], ["red", "reddish"], "'reddish' is no colour"),
        ([(0, 1), (0, 1)], ["red", (1, 2)], "is no colour"),
        ([(0, 1), (0, 1)], ["red", (1, 2, 256)], "is no colour"),
        ([(0, 1)] * 3, ["red"] * 3, "must have 3"),
    ],
)
def test_pseudocolour_refuses(windows: Any, colours: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        pseudocolour(np.zeros((4, 4, 2), np.uint8), windows, colours)


def test_pseudocolours_travel_small() -> None:
    call = Pseudocolour(((0, 4000),) * 5, default_colours(5))
    again = pickle.loads(pickle.dumps(call))
    assert again == call
    assert hash(again) == hash(call)
    assert len(pickle.dumps(call)) < 1000
    with pytest.raises(OptionError, match="real numbers"):
        Pseudocolour(((0, 1),), ("red",))(np.zeros((3, 1), complex))  # type: ignore[arg-type]


def test_windows_are_percentiles() -> None:
    rng = np.random.default_rng(5)
    sample = rng.integers(0, 60_000, (200, 100, 2)).astype(np.uint16)
    windows = auto_windows(sample, (1, 99))
    for c, window in enumerate(windows):
        assert window == pytest.approx(tuple(np.percentile(sample[..., c], [1, 99])))
    spots = np.zeros((400, 400, 3), np.float32)
    spots[5, 5, 0] = 7
    spots[..., 1] = 3
    spots[0, :9] = np.nan
    spots[..., 2] = 2e9
    low_high = auto_windows(spots)
    assert low_high[0] == (0, 7)
    shown = pseudocolour(spots[10:12], low_high, ["red", "green", "blue"])
    assert not shown.any()  # channels of one value are black
    assert auto_windows(np.array([[False], [True]]))[0][1] > 0.9
    for bad in (np.zeros((0, 3)), np.full((4, 1), np.nan)):
        with pytest.raises(OptionError):
            auto_windows(bad)
    with pytest.raises(OptionError, match="percentiles"):
        auto_windows(sample, (99, 1))


def test_colours_by_name_number_and_wavelength() -> None:
    for name in ("red", "#00ff00", "cyan", "hsl(120, 100%, 50%)", "#abc"):
        assert parse_colour(name) == ImageColor.getrgb(name)[:3]
    assert parse_colour("green") == (0, 255, 0)
    assert parse_colour(np.array([1, 2, 3])) == (1, 2, 3)  # type: ignore[arg-type]
    assert default_colours(1) == ((255, 255, 255),)
    assert len(set(default_colours(24))) == 24
    with pytest.raises(OptionError):
        default_colours(0)
    for count in (2, 5):
        assert default_colours(9)[:count] == default_colours(count)
    # DAPI, FITC, Cy3, Texas Red, Cy5, Cy7: which component leads
    for nm, leading in ((461, 2), (519, 1), (615, 0), (670, 0), (780, 0)):
        colour = colour_of_wavelength(nm)
        assert int(np.argmax(colour)) == leading
        assert colour[leading] == 255
    red, green, blue = colour_of_wavelength(575)  # yellow
    assert min(red, green) > 200
    assert blue < 60
    for bad in (0, -5, float("nan")):
        with pytest.raises(OptionError, match="wavelength"):
            colour_of_wavelength(bad)
