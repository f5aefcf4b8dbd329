"""The bytes of a DICOM file: a header, the places of its frames, and the frames one after the other.

pydicom writes the header; what there are thousands of is written here. pydicom refuses the transfer syntaxes that it
does not know, of which JPEG XL is one, and takes seconds over ten thousand functional groups.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.testing.dataset import IMPLEMENTATION, SOP_CLASS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["FrameStore", "Places", "write_file"]

IMPLICIT, BIG, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"

Ints = npt.NDArray[np.int64]


class FrameStore:
    """The distinct frames of a level as they lie in a file; in memory while they are few, else in a temporary file.

    Parameters
    ----------
    encapsulated
        Whether a frame is stored as items.
    fragments
        Items for each frame.
    """

    def __init__(self, encapsulated: bool, fragments: int) -> None:
        self._encapsulated, self._fragments = encapsulated, fragments
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=32 << 20)  # noqa: SIM115 (closed by close)
        self._starts: list[int] = []
        self._sizes: list[int] = []
        self._lengths: list[int] = []
        self._end = 0

    def add(self, frame: bytes) -> int:
        """Store a frame, and say its number."""
        stored = b"".join(self._cut(frame)) if self._encapsulated else frame
        self._file.seek(self._end)
        self._file.write(stored)
        self._starts.append(self._end)
        self._sizes.append(len(stored))
        self._lengths.append(len(frame))
        self._end += len(stored)
        return len(self._starts) - 1

    def _cut(self, frame: bytes) -> Iterator[bytes]:
        """Items of an even length, as equal as can be."""
        size = -(-len(frame) // self._fragments)
        size += size % 2
        for at in range(0, max(len(frame), 1), size):
            piece = frame[at : at + size]
            piece += b"\0" * (len(piece) % 2)
            yield b"\xfe\xff\x00\xe0" + struct.pack("<I", len(piece)) + piece

    def sizes(self, which: Ints) -> Ints:
        """Bytes that each of these frames takes in the file, tags and padding included."""
        return np.array(self._sizes, np.int64)[which]

    def lengths(self, which: Ints) -> Ints:
        """Bytes of each of these frames, without tags and padding."""
        return np.array(self._lengths, np.int64)[which]

    def stream(self, which: Ints) -> Iterator[bytes]:
        """Read the frames, in this order, about a megabyte at a time."""
        batch, size = [], 0
        for i in which.tolist():
            self._file.seek(self._starts[i])
            batch.append(self._file.read(self._sizes[i]))
            size += self._sizes[i]
            if size > 1 << 20:
                yield b"".join(batch)
                batch, size = [], 0
        yield b"".join(batch)

    def close(self) -> None:
        """Forget the frames."""
        self._file.close()


@dataclass(frozen=True)
class Places:
    """Where each frame of a sparse tiling belongs; one entry a frame in every array.

    Parameters
    ----------
    rows, columns
        Of the top left pixel in the total pixel matrix, from 0.
    x, y
        Of the same pixel in the slide coordinate system, in mm.
    z
        Height of the focal plane, in µm.
    index
        (frames, 4) dimension index values.
    paths
        Optical path identifiers, or None where all frames share one.
    """

    rows: Ints
    columns: Ints
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    z: npt.NDArray[np.float64]
    index: Ints
    paths: list[str] | None


def _encode(ds: Dataset, syntax: str) -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(out, ds)
    return bytes(out.getvalue())


def _preamble(ds: Dataset, syntax: str) -> bytes:
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(SOP_CLASS), ds.SOPInstanceUID
    meta.TransferSyntaxUID, meta.ImplementationClassUID = UID(syntax), UID(IMPLEMENTATION)
    meta.ImplementationVersionName = "MICROTOME"
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = False, True
    write_file_meta_info(out, meta, enforce_standard=True)
    return b"\0" * 128 + b"DICM" + bytes(out.getvalue())


def _element(tag: int, vr: str, length: int, syntax: str) -> bytes:
    """Head of an element whose explicit form has a length of four bytes."""
    order = ">" if syntax == BIG else "<"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    return head + (b"" if syntax == IMPLICIT else vr.encode() + b"\0\0") + struct.pack(order + "I", length)


def _per_frame(places: Places, syntax: str) -> bytes:
    """Per-Frame Functional Groups Sequence: one item is made by pydicom, and its copies are filled column by column."""
    from pydicom.dataset import Dataset

    count, order = len(places.rows), ">" if syntax == BIG else "<"
    decimals = {"X": "-1.1111111111111", "Y": "-2.2222222222222", "Z": "-3.3333333333333"}
    numbers = [0x0A0B0C01 + i for i in range(6)]
    position, content, path, item, outer = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    for axis, mark in decimals.items():
        setattr(position, f"{axis}OffsetInSlideCoordinateSystem", mark)
    position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = numbers[:2]
    content.DimensionIndexValues = numbers[2:]
    item.PlanePositionSlideSequence, item.FrameContentSequence = [position], [content]
    if places.paths is not None:
        path.OpticalPathIdentifier = "@" * 16
        item.OpticalPathIdentificationSequence = [path]
    outer.PerFrameFunctionalGroupsSequence = [item]
    template = _encode(outer, syntax)[8 if syntax == IMPLICIT else 12 :]

    table = np.tile(np.frombuffer(template, np.uint8), (count, 1))

    def fill(mark: bytes, values: npt.NDArray[Any]) -> None:
        at = template.index(mark)
        table[:, at : at + len(mark)] = np.ascontiguousarray(values).view(np.uint8).reshape(count, len(mark))

    # Text of 16 characters: both DS and SH may end in spaces.
    for axis, axis_values in zip("XYZ", (places.x, places.y, places.z), strict=True):
        fill(decimals[axis].encode(), np.array([b"%-16.9g" % v for v in axis_values.tolist()], "S16"))
    whole = (places.columns + 1, places.rows + 1, *places.index.T)
    for number, column in zip(numbers, whole, strict=True):
        fill(struct.pack(order + "I", number), column.astype(order + "u4"))
    if places.paths is not None:
        fill(b"@" * 16, np.array([f"{name:16s}".encode() for name in places.paths], "S16"))
    return _element(0x52009230, "SQ", table.size, syntax) + table.tobytes()


def _pixel_data(ds: Dataset, syntax: str, store: FrameStore, which: Ints, offsets: str | None) -> Iterator[bytes]:
    """Everything in group 7FE0."""
    sizes = store.sizes(which)
    if offsets is None:
        size = int(sizes.sum())
        if size + size % 2 >= 2**32 - 1:
            raise OptionError("more than 4 GB of native pixels do not fit into one element; use more parts, or a codec")
        words = ds.BitsAllocated > 8 or syntax == IMPLICIT
        yield _element(0x7FE00010, "OW" if words else "OB", size + size % 2, syntax)
        yield from store.stream(which)
        yield b"\0" * (size % 2)
        return
    starts = np.concatenate([[0], np.cumsum(sizes[:-1])]) if len(sizes) else np.zeros(0, np.int64)
    table = b""
    if offsets == "eot":
        # Lengths with the padding, as pydicom writes them: wsidicom takes odd ones for damage.
        for tag, values in ((0x7FE00001, starts), (0x7FE00002, sizes - 8)):
            yield _element(tag, "OV", 8 * len(values), syntax) + values.astype("<u8").tobytes()
    elif offsets == "bot":
        if starts[-1] >= 2**32:
            raise OptionError("frames start beyond 4 GB, where a Basic Offset Table ends; use offsets='eot'")
        table = starts.astype("<u4").tobytes()
    yield _element(0x7FE00010, "OB", 0xFFFFFFFF, syntax)
    yield b"\xfe\xff\x00\xe0" + struct.pack("<I", len(table)) + table
    yield from store.stream(which)
    yield b"\xfe\xff\xdd\xe0\0\0\0\0"


def write_file(
    path: Path, ds: Dataset, syntax: str, store: FrameStore, which: Ints, *, offsets: str | None, places: Places | None
) -> None:
    """Write one instance.

    Parameters
    ----------
    path
        Of the file.
    ds
        Everything before the per-frame functional groups.
    syntax
        Transfer syntax UID.
    store, which
        The distinct frames, and for each frame of the instance which of them it is.
    offsets
        "eot", "bot" or "empty"; None for native pixels.
    places
        Of the frames of a sparse tiling, or None.

    Raises
    ------
    OptionError
        The pixels do not fit into the element or under the offset table chosen.
    """

    def body() -> Iterator[bytes]:
        yield _encode(ds, syntax)
        if places is not None:
            yield _per_frame(places, syntax)
        yield from _pixel_data(ds, syntax, store, which, offsets)

    with path.open("wb") as f:
        f.write(_preamble(ds, syntax))
        if syntax == DEFLATED:
            deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
            f.writelines(map(deflate.compress, body()))
            end = deflate.flush()
            # An odd file would break the rule of even lengths (PS3.5 A.5).
            f.write(end + b"\0" * (f.tell() % 2 != len(end) % 2))
        else:
            f.writelines(body())
