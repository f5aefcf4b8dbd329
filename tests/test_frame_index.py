"""Where frames are: every rung of the ladder, tables that lie, files that are cut.

Oracle: the place of every item is known, for these files are put together here, byte by byte; tifffile reads the TIFF
half of the DICOM-TIFF files.
"""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.encaps import generate_frames

import microtome as mt
from microtome.dicom.frame_index import build_index
from microtome.dicom.header import read_instance
from microtome.errors import CorruptFrameError, MissingFrameError, OpenError
from microtome.storage.source import LocalSource
from microtome.testing import make_slide

PIXEL_DATA = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
DELIMITER = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
FRAME = 16


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data) + len(data) % 2) + data + b"\0" * (len(data) % 2)


@dataclass
class File:
    """A file in its pieces: header, codestreams, and the pixels of the whole picture."""

    header: bytes
    streams: list[bytes]
    pixels: np.ndarray
    starts: list[int] = field(default_factory=list)
    """Where the first item of each frame went, once written."""
    end: int = 0

    def write(self, path: Path, table: str = "", fragments: int = 1, preamble: bytes = b"", edit=lambda table: table):
        """Write it with a table: "" for none, "bot", or "eot"; ``edit`` makes its offsets lie."""
        frames = []
        for stream in self.streams:
            cuts = [len(stream) * n // fragments // 2 * 2 for n in range(fragments)] + [len(stream)]
            frames.append(b"".join(item(stream[a:b]) for a, b in pairwise(cuts)))
        offsets = np.cumsum([0] + [len(f) for f in frames[:-1]])
        told = np.asarray(edit(offsets.copy()))
        bot = item((told % 2**32).astype("<u4").tobytes() if table == "bot" else b"")
        extended = b""
        if table == "eot":
            lengths = np.array([len(s) for s in self.streams], "<u8").tobytes()
            for tag, value in ((b"\xe0\x7f\x01\x00", told.astype("<u8").tobytes()), (b"\xe0\x7f\x02\x00", lengths)):
                extended += tag + b"OV\0\0" + struct.pack("<I", len(value)) + value
        header = preamble.ljust(128, b"\0") + self.header[128:] if preamble else self.header
        front = header + extended + PIXEL_DATA + bot
        self.starts = [len(front) + int(n) for n in offsets]
        data = front + b"".join(frames)
        self.end = len(data)
        path.write_bytes(data + DELIMITER)


@lru_cache
def made(codec: str, across: int, down: int) -> tuple[bytes, tuple[bytes, ...], np.ndarray]:
    """Header, codestreams and pixels of a slide of make_slide."""
    with tempfile.TemporaryDirectory() as folder:
        slide = make_slide(
            folder, width=FRAME * across, height=FRAME * down, frame=FRAME, codec=codec, levels=1, associated=False,
            offsets="empty", seed=3,
        )  # fmt: skip
        (path,) = slide.files
        data = path.read_bytes()
        streams = tuple(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=across * down))
        pixels = mt.open_slide(path)["level0"].image.values
    if codec != "jpeg":
        np.testing.assert_array_equal(pixels, slide.pixels(0))
    assert data.count(PIXEL_DATA) == 1
    return data[: data.index(PIXEL_DATA)], streams, pixels


def grid(codec: str = "rle", across: int = 4, down: int = 3) -> File:
    header, streams, pixels = made(codec, across, down)
    return File(header, list(streams), pixels)


def index_of(path: Path, below: str = ""):
    instance = read_instance(LocalSource(str(path), path.stat().st_size))
    return build_index(instance, instance.record.outline, below)


def values(path: Path) -> np.ndarray:
    return mt.open_slide(path, chunks=None)["level0"].image.values


RUNGS = {"eot": "extended offset table", "bot": "basic offset table", "": "item headers"}


@pytest.mark.parametrize("table", RUNGS)
def test_each_rung_finds_every_frame(tmp_path, table):
    file, path = grid(), tmp_path / "a.dcm"
    file.write(path, table)
    index = index_of(path)
    assert index.rung == RUNGS[table]
    assert index.starts.tolist() == file.starts
    for frame, stream in enumerate(file.streams):
        offset, length = index.span(frame)
        assert path.read_bytes()[offset : offset + length] == item(stream)
    np.testing.assert_array_equal(values(path), file.pixels)


@pytest.mark.parametrize("table", RUNGS)
def test_sixteen_bytes_a_frame_at_most(tmp_path, table):
    file, path = grid(across=20, down=20), tmp_path / "a.dcm"
    file.write(path, table)
    index = index_of(path)
    assert index.starts.nbytes + index.spans.nbytes <= 16 * 400
    assert not [v for v in vars(index).values() if isinstance(v, list | dict | tuple)]


class CountingSource(LocalSource):
    """A remote store: every read is a round trip."""

    remote = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path.stat().st_size)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return super().read(offset, length)


@pytest.mark.parametrize("table", RUNGS)
def test_a_remote_file_is_indexed_by_few_reads(tmp_path, table):
    file, path = grid(across=20, down=20), tmp_path / "a.dcm"
    file.write(path, table)
    source = CountingSource(path)
    instance = read_instance(source)
    header = len(source.reads)
    index = build_index(instance, instance.record.outline)
    assert index.starts.tolist() == file.starts
    assert header <= 3
    assert len(source.reads) - header <= 12


def tiff(kind: str, offsets: list[int], lengths: list[int], at: int) -> tuple[bytes, bytes]:
    """Preamble and trailing directory (which will stand at byte ``at``) of a DICOM-TIFF file."""
    big = kind == "BigTIFF"
    count, word, code = ("<Q", "Q", 16) if big else ("<H", "I", 4)
    size = struct.calcsize("<" + word)
    entries = {256: [FRAME * 4], 257: [FRAME * 3], 258: [8], 259: [1], 262: [2], 277: [3], 322: [FRAME], 323: [FRAME]}
    entries |= {324: offsets, 325: lengths}
    length = struct.calcsize(count) + len(entries) * (4 + 2 * size) + size
    directory, behind = struct.pack(count, len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        data = struct.pack(f"<{len(numbers)}{word}", *numbers)
        if len(data) > size:
            data, behind = struct.pack("<" + word, at + length + len(behind)), behind + data
        directory += struct.pack(f"<HH{word}", tag, code, len(numbers)) + data
    directory += struct.pack("<" + word, 0) + behind
    preamble = struct.pack("<2sHHHQ", b"II", 43, 8, 0, at) if big else struct.pack("<2sHI", b"II", 42, at)
    return preamble, directory


def write_tiff(file: File, path: Path, kind: str, offsets=lambda starts: starts) -> None:
    file.write(path)  # the header is as long with a preamble as without
    at = file.end + len(DELIMITER)
    told = [int(n) for n in offsets(np.array(file.starts) + 8)]
    preamble, directory = tiff(kind, told, [len(s) for s in file.streams], at)
    file.write(path, preamble=preamble)
    path.write_bytes(path.read_bytes() + directory)


@pytest.mark.parametrize("kind", ["classic TIFF", "BigTIFF"])
def test_dicom_tiff_offsets(tmp_path, kind):
    file, path = grid("jpeg"), tmp_path / "a.dcm"
    write_tiff(file, path, kind)
    with tifffile.TiffFile(path) as other:
        assert list(other.pages[0].dataoffsets) == [n + 8 for n in file.starts]
    index = index_of(path)
    assert index.rung == "TIFF tile offsets"
    assert index.starts.tolist() == file.starts
    np.testing.assert_array_equal(values(path), file.pixels)


@pytest.mark.parametrize("kind", ["classic TIFF", "BigTIFF"])
@pytest.mark.parametrize("moved", ["tiles", "tiles and directory"])
def test_stale_dicom_tiff_offsets_after_the_header_was_edited(tmp_path, kind, moved):
    """De-identification makes the header longer or shorter, and leaves preamble and directory as they are."""
    file, path = grid("jpeg"), tmp_path / "a.dcm"
    if moved == "tiles":
        write_tiff(file, path, kind, lambda starts: starts - 26)
    else:
        write_tiff(file, path, kind)
        data = path.read_bytes()
        name = b"\x10\x00\x10\x00PN"
        at = data.index(name) + 6
        (length,) = struct.unpack_from("<H", data, at)
        path.write_bytes(data[:at] + struct.pack("<H", length + 26) + b"X" * 26 + data[at + 2 :])
    assert index_of(path).rung == "item headers"
    np.testing.assert_array_equal(values(path), file.pixels)


@pytest.mark.parametrize(
    "preamble", [b"II\x2a\0", b"MM\0\x2a\0\0\0\x08", b"II\x2b\0\x08\0\0\0" + b"\xff" * 8, b"II*\0\x84\0\0\0"]
)
def test_preambles_that_lead_nowhere(tmp_path, preamble):
    file, path = grid("jpeg"), tmp_path / "a.dcm"
    file.write(path, preamble=preamble)
    assert index_of(path).rung == "item headers"
    np.testing.assert_array_equal(values(path), file.pixels)


def change(at: int, by: int):
    def edit(offsets: np.ndarray) -> np.ndarray:
        offsets[at] += by
        return offsets

    return edit


LIES = {
    "all shifted": lambda offsets: offsets + 2,
    "all zero": lambda offsets: offsets * 0,
    "the last one wrong": change(-1, 4),
    "one of many wrong, where nobody samples": change(101, 6),
    "behind the end of the file": change(150, 10**8),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("table", ["bot", "eot"])
def test_tables_that_lie_are_dropped(tmp_path, table, lie):
    file, path = grid(across=15, down=15), tmp_path / "a.dcm"
    file.write(path, table, edit=LIES[lie])
    np.testing.assert_array_equal(values(path), file.pixels)
    image = mt.open_slide(path)["level0"].image
    for frame in (100, 101, 102, 150, 224):
        y, x = (n * FRAME for n in divmod(frame, 15))
        part = slice(y, y + FRAME), slice(x, x + FRAME)
        np.testing.assert_array_equal(image[part].values, file.pixels[part])


@pytest.mark.parametrize("table", ["bot", "eot"])
def test_tables_of_the_wrong_length_are_dropped(tmp_path, table):
    file, path = grid(), tmp_path / "a.dcm"
    file.write(path, table, edit=lambda offsets: offsets[:-1])
    assert index_of(path).rung == "item headers"
    np.testing.assert_array_equal(values(path), file.pixels)


def huge(path: Path, file: File, table: str, big: range, size: int) -> list[int]:
    """Write a file of several GiB that takes no disk: the frames of ``big`` are holes. Return the starts."""
    sizes = [size if n in big else len(s) + len(s) % 2 for n, s in enumerate(file.streams)]
    offsets = np.concatenate([[0], np.cumsum(np.array(sizes[:-1], np.int64) + 8)])
    extended = b""
    if table == "eot":
        for tag, numbers in ((b"\xe0\x7f\x01\x00", offsets), (b"\xe0\x7f\x02\x00", np.array(sizes))):
            value = numbers.astype("<u8").tobytes()
            extended += tag + b"OV\0\0" + struct.pack("<I", len(value)) + value
    bot = item((offsets % 2**32).astype("<u4").tobytes() if table == "bot" else b"")
    front = file.header + extended + PIXEL_DATA + bot
    with path.open("wb") as f:
        f.write(front)
        for n, stream in enumerate(file.streams):
            if n in big:
                f.write(b"\xfe\xff\x00\xe0" + struct.pack("<I", size))
                f.seek(size, 1)
            else:
                f.write(item(stream))
        f.write(DELIMITER)
    return (offsets + len(front)).tolist()


@pytest.mark.parametrize("table", RUNGS)
def test_files_beyond_4_gib(tmp_path, table):
    """32-bit offsets wrap around, here twice; 64-bit ones and the item headers do not."""
    file, path = grid(), tmp_path / "a.dcm"
    starts = huge(path, file, table, range(2, 9), 1_500_000_000)
    assert path.stat().st_size > 9 * 2**30
    assert path.stat().st_blocks * 512 < 2**20, "this filesystem has no holes"
    index = index_of(path)
    assert index.rung == RUNGS[table]
    assert index.starts.tolist() == starts
    image = mt.open_slide(path)["level0"].image
    for frame in (0, 1, 9, 10, 11):
        y, x = (n * FRAME for n in divmod(frame, 4))
        part = slice(y, y + FRAME), slice(x, x + FRAME)
        np.testing.assert_array_equal(image[part].values, file.pixels[part])
    path.unlink()


@pytest.mark.parametrize("codec", ["jpeg", "jpeg-ls", "j2k-lossless", "htj2k-lossless", "jpeg-xl-lossless", "rle"])
@pytest.mark.parametrize("table", ["bot", ""])
@pytest.mark.parametrize("fragments", [2, 5])
def test_several_fragments_a_frame(tmp_path, codec, table, fragments):
    file, path = grid(codec), tmp_path / "a.dcm"
    file.write(path, table, fragments)
    assert index_of(path).starts.tolist() == file.starts
    np.testing.assert_array_equal(values(path), file.pixels)
    np.testing.assert_array_equal(mt.open_slide(path)["level0"].image[20:30, 17:50].values, file.pixels[20:30, 17:50])


def test_fragments_that_nothing_tells_apart(tmp_path):
    file, path = grid("encapsulated-native"), tmp_path / "a.dcm"
    file.streams = [bytes(255 - b for b in s) for s in file.streams]
    file.write(path, "bot", 3)
    np.testing.assert_array_equal(values(path), 255 - file.pixels)
    file.write(path, "", 3)
    with pytest.raises(CorruptFrameError, match="36 fragments hold 12 frames") as e:
        values(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("table", ["bot", ""])
def test_one_frame_in_many_fragments(tmp_path, table):
    file, path = grid("encapsulated-native", 1, 1), tmp_path / "a.dcm"
    file.write(path, table, 7)
    np.testing.assert_array_equal(values(path), file.pixels)


def check_cut(path: Path, file: File, cut: int) -> None:
    """Cut a file at a byte: frames that are wholly there are right, the others missing, one by one and together."""
    whole = path.read_bytes()
    ends = [*file.starts[1:], file.end]
    path.write_bytes(whole[:cut])
    there = [end <= cut for end in ends]
    image = mt.open_slide(path, chunks=None)["level0"].image
    for frame, present in enumerate(there):
        y, x = (n * FRAME for n in divmod(frame, 4))
        part = slice(y, y + FRAME), slice(x, x + FRAME)
        if present:
            np.testing.assert_array_equal(image[part].values, file.pixels[part])
        else:
            with pytest.raises(MissingFrameError, match=f"frame {frame + 1} of 12") as e:
                _ = image[part].values
            assert str(path) in str(e.value)
    filled = mt.open_slide(path, chunks=None, missing="fill")["level0"].image.values
    mask = np.array(there).reshape(3, 4).repeat(FRAME, 0).repeat(FRAME, 1)
    np.testing.assert_array_equal(filled[mask], file.pixels[mask])
    assert (filled[~mask] == 255).all()
    path.write_bytes(whole)


@pytest.mark.parametrize("table", RUNGS)
@pytest.mark.parametrize("fragments", [1, 3])
def test_files_that_are_cut_short(tmp_path, table, fragments):
    if table == "eot" and fragments > 1:
        pytest.skip("the Extended Offset Table is for one fragment a frame (PS3.3 C.7.6.3.1.8)")
    file, path = grid("jpeg"), tmp_path / "a.dcm"
    file.write(path, table, fragments)
    cuts = {file.end, file.end - 1, file.end + 3, file.starts[0]}
    for frame in (0, 1, 5, 10, 11):
        cuts |= {file.starts[frame] + n for n in (0, 3, 8, 9, 200)}
    for cut in sorted(cuts):
        check_cut(path, file, cut)


def test_a_dicom_tiff_that_is_cut_short(tmp_path):
    file, path = grid("jpeg"), tmp_path / "a.dcm"
    write_tiff(file, path, "classic TIFF")
    for cut in (file.end + 8, file.starts[7] + 5, file.starts[0]):
        check_cut(path, file, cut)


def test_native_pixels_that_are_cut_short(tmp_path):
    slide = make_slide(tmp_path, width=64, height=48, frame=FRAME, codec="native", levels=1, associated=False)
    (path,) = slide.files
    size = FRAME * FRAME * 3
    end = path.stat().st_size
    file = File(b"", [], slide.pixels(0), [end - (12 - n) * size for n in range(12)], end)
    for cut in (end, end - 1, end - 3 * size, end - 7 * size + 1, end - 12 * size):
        check_cut(path, file, cut)


@pytest.mark.parametrize("table", RUNGS)
def test_files_that_are_cut_in_front_of_their_pixels(tmp_path, table):
    """Nothing but errors of ours: the file does not open, or its frames are missing."""
    file, path = grid("jpeg"), tmp_path / "a.dcm"
    file.write(path, table)
    whole = path.read_bytes()
    front = file.starts[0]
    for cut in [*range(0, front, 97), *range(front - 70, front)]:
        path.write_bytes(whole[:cut])
        try:
            image = mt.open_slide(path, chunks=None)["level0"].image
        except OpenError as e:
            assert str(path) in str(e)  # noqa: PT017
            continue
        assert cut > len(file.header)
        with pytest.raises(MissingFrameError):
            _ = image[:1, :1].values


def test_fewer_items_than_frames(tmp_path):
    file, path = grid("jpeg"), tmp_path / "a.dcm"
    file.streams = file.streams[:9]
    file.write(path)
    image = mt.open_slide(path, chunks=None)["level0"].image
    np.testing.assert_array_equal(image[:32].values, file.pixels[:32])
    np.testing.assert_array_equal(image[32:, :16].values, file.pixels[32:, :16])
    with pytest.raises(MissingFrameError, match="frame 10 of 12"):
        _ = image[32:, 16:].values


@pytest.mark.parametrize("table", RUNGS)
def test_an_empty_item_is_one_damaged_frame(tmp_path, table):
    file, path = grid(), tmp_path / "a.dcm"
    file.streams[5] = b""
    file.write(path, table)
    image = mt.open_slide(path, chunks=None)["level0"].image
    with pytest.raises(CorruptFrameError, match="frame 6 of 12"):
        _ = image[16:32, 16:32].values
    np.testing.assert_array_equal(image[:16].values, file.pixels[:16])
    np.testing.assert_array_equal(image[32:].values, file.pixels[32:])
