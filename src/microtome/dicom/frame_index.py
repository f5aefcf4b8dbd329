"""Where each frame of an instance is in its file.

Frames of native pixel data lie at computed places. Encapsulated frames are found by the first of these that tells the
truth (PS3.5 A.4): the Extended Offset Table, the Basic Offset Table, the tile offsets of a DICOM-TIFF file (PS3.10
7.1), the item headers themselves. A table is believed only as far as an item tag stands where it points: some offsets
are checked when it is loaded, each one again when its frame is read. One that lies is dropped for the next.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.dicom.dual_tiff import tiff_tile_offsets
from microtome.dicom.instance import Instance
from microtome.dicom.part10 import EXTENDED_LENGTHS, EXTENDED_OFFSETS, UNDEFINED, Element, Outline
from microtome.errors import CorruptFrameError, MissingFrameError
from microtome.storage import Source

__all__ = ["EncapsulatedIndex", "FrameIndex", "NativeIndex", "StaleOffsetError", "build_index", "cut_short"]

ITEM = b"\xfe\xff\x00\xe0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0"
_item_length = struct.Struct("<I").unpack_from
_SAMPLES = 64
MAX_FRAGMENTS = 4096
# First bytes of the codestreams that may be cut into several fragments: a fragment that begins so begins a frame.
_STREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\0\0\0\x0c")


class StaleOffsetError(Exception):
    """No item tag stands where an offset table says. Never leaves this library: the next rung is tried."""


class NativeIndex:
    """Frames of native pixel data, one behind the other, on bit boundaries where a sample is one bit."""

    rung = "native"

    def __init__(self, instance: Instance, outline: Outline) -> None:
        element = outline.pixel_data
        assert element is not None
        self._start = element.offset
        self._bits = instance.format.native_bits
        self._unit = 16 if instance.format.byte_swapped else 8  # words that are swapped are not to be cut
        self._end = min(element.offset + element.length, outline.source.size)
        self.count = instance.frames

    def span(self, frame: int) -> tuple[int, int]:
        """Return offset and length of the bytes that hold a frame."""
        first, unit = frame * self._bits, self._unit
        start, stop = first // unit * unit // 8, -(-(first + self._bits) // unit) * unit // 8
        if self._start + stop > self._end:
            raise MissingFrameError("the file ends before it")
        return self._start + start, stop - start

    def spans_of(self, frames: list[int]) -> list[tuple[int, int]]:
        """Return the spans of frames."""
        return [self.span(frame) for frame in frames]

    def payload(self, data: memoryview) -> memoryview:
        """Return the codestream in the bytes of a span."""
        return data

    def bit_offset(self, frame: int) -> int:
        """Return the bit of the span's first byte at which the frame begins."""
        return frame * self._bits % self._unit


class EncapsulatedIndex:
    """Frames in items: where the first item header of each is, and how many bytes its items take."""

    def __init__(self, rung: str, starts: npt.NDArray[np.int64], spans: npt.NDArray[np.uint32], count: int) -> None:
        self.rung = rung
        self.starts = starts
        self.spans = spans
        self.count = count

    def span(self, frame: int) -> tuple[int, int]:
        """Return offset and length of the bytes that hold a frame, item headers included."""
        if frame >= len(self.starts):
            raise MissingFrameError("the file ends before it")
        return int(self.starts[frame]), int(self.spans[frame])

    def spans_of(self, frames: list[int]) -> list[tuple[int, int]]:
        """Return the spans of frames in ascending order."""
        first, stop = frames[0], frames[-1] + 1
        if stop > len(self.starts):
            raise MissingFrameError("the file ends before it")
        # Those of a unit follow each other, unless some of them are kept decoded.
        which: Any = slice(first, stop) if stop - first == len(frames) else frames
        return list(zip(self.starts[which].tolist(), self.spans[which].tolist(), strict=True))

    def payload(self, data: memoryview) -> memoryview:
        """Return the codestream in the bytes of a span.

        Raises
        ------
        StaleOffsetError
            The bytes are no items.
        """
        size = len(data)
        if size < 8 or data[:4] != ITEM:
            raise StaleOffsetError
        length: int = _item_length(data, 4)[0]
        if 8 + length == size:
            return data[8:]
        pieces = []
        pos = 0
        while pos + 8 <= size and data[pos : pos + 4] == ITEM:
            length = _item_length(data, pos + 4)[0]
            if pos + 8 + length > size:
                raise StaleOffsetError
            pieces.append(data[pos + 8 : pos + 8 + length])
            pos += 8 + length
        if pos < size and data[pos : pos + 4] != SEQUENCE_END:
            raise StaleOffsetError
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def bit_offset(self, frame: int) -> int:
        """Return 0: encapsulated frames begin on a byte."""
        return 0


FrameIndex = NativeIndex | EncapsulatedIndex


def build_index(instance: Instance, outline: Outline, below: str = "") -> FrameIndex:
    """Find the frames of an instance by the first rung of the ladder that holds.

    Parameters
    ----------
    instance
        The instance.
    outline
        Its file; of encapsulated pixel data a table is read, or the item headers.
    below
        Name of the rung that has turned out to lie: only those below it are tried.

    Raises
    ------
    CorruptFrameError
        No rung holds.
    """
    element = outline.pixel_data
    assert element is not None
    if element.length != UNDEFINED:
        return NativeIndex(instance, outline)
    source = outline.source
    if element.offset + 8 > source.size:  # cut in front of the first item
        return EncapsulatedIndex("item headers", np.empty(0, np.int64), np.empty(0, np.uint32), instance.frames)
    table = _basic_table(source, element)
    first = element.offset + 8 + table[1]
    rungs: list[tuple[str, Callable[[], EncapsulatedIndex | None]]] = [
        ("extended offset table", lambda: _extended(instance, outline, first)),
        ("basic offset table", lambda: _basic(instance, source, element, table, first)),
        ("TIFF tile offsets", lambda: _tiff(instance, outline)),
        ("item headers", lambda: _walk(instance, source, first)),
    ]
    names = [name for name, _ in rungs]
    for _, rung in rungs[names.index(below) + 1 if below else 0 :]:
        index = rung()
        if index is not None and (index.rung == "item headers" or _holds(index, source)):
            return index
    raise CorruptFrameError(f"{instance.uri}: no item of its encapsulated pixel data can be found")


def _basic_table(source: Source, element: Element) -> tuple[bytes, int]:
    """Return tag and length of the first item, which is the Basic Offset Table."""
    head = source.read(element.offset, 8)
    if len(head) < 8 or head[:4] != ITEM:
        raise CorruptFrameError(f"{source.uri}: its encapsulated pixel data do not begin with an item")
    return head[:4], _item_length(head, 4)[0]


def _holds(index: EncapsulatedIndex, source: Source) -> bool:
    """Tell whether item tags stand where a table points, at the first, the last and some frames between.

    Offsets behind the end of the file hold: that is what a cut file looks like, and reading such a frame finds it out.
    """
    count = len(index.starts)
    if count == 0 or bool(np.any(index.starts < 0)):
        return False
    picked = np.unique(np.linspace(0, count - 1, min(count, 8 if source.remote else _SAMPLES)).astype(np.int64))
    inside = 0
    for start in index.starts[picked]:
        if start + 8 > source.size:
            continue
        inside += 1
        if source.read(int(start), 4) != ITEM:
            return False
    return inside > 0


def cut_short(index: EncapsulatedIndex, source: Source) -> bool:
    """Tell whether the items run into the end of the file: what a table has behind it is then lost, and no lie."""
    inside = index.starts[index.starts + 8 <= source.size]
    last = int(inside.max()) if len(inside) else source.size
    return source.read(last, 4) == ITEM and _end_of_items(source, last) + 8 > source.size


def _table(source: Source, offset: int, length: int, dtype: str) -> npt.NDArray[Any]:
    data = source.read(offset, length)
    return np.frombuffer(data, dtype, len(data) // np.dtype(dtype).itemsize)


def _extended(instance: Instance, outline: Outline, first: int) -> EncapsulatedIndex | None:
    source, located = outline.source, outline.located
    offsets, lengths = located.get(EXTENDED_OFFSETS), located.get(EXTENDED_LENGTHS)
    wanted = instance.frames * 8
    if offsets is None or lengths is None or offsets.length != wanted or lengths.length != wanted:
        return None
    starts = _table(source, offsets.offset, wanted, "<u8").astype(np.int64) + first
    sizes = _table(source, lengths.offset, wanted, "<u8")
    if len(starts) != instance.frames or len(sizes) != instance.frames or sizes.max() > UNDEFINED - 9:
        return None
    return EncapsulatedIndex(
        "extended offset table", starts, (sizes + sizes % 2 + 8).astype(np.uint32), instance.frames
    )


def _basic(
    instance: Instance, source: Source, element: Element, table: tuple[bytes, int], first: int
) -> EncapsulatedIndex | None:
    if table[1] != instance.frames * 4:
        return None
    offsets = _table(source, element.offset + 8, table[1], "<u4").astype(np.int64)
    if len(offsets) != instance.frames:
        return None
    # Offsets are 32 bits: in a file over 4 GiB they wrap, each time the next one is smaller.
    offsets += np.concatenate([[0], np.cumsum(np.diff(offsets) < 0)]) << 32
    return _from_starts("basic offset table", offsets + first, source)


def _from_starts(rung: str, starts: npt.NDArray[np.int64], source: Source) -> EncapsulatedIndex | None:
    """Make an index of ascending starts: a frame ends where the next begins, the last where its items do."""
    ends = np.append(starts[1:], _end_of_items(source, int(starts[-1])))
    spans = ends - starts
    if np.any(spans < 8) or np.any(spans > UNDEFINED):
        return None
    return EncapsulatedIndex(rung, starts, spans.astype(np.uint32), len(starts))


def _end_of_items(source: Source, pos: int) -> int:
    """Return where the run of items at ``pos`` ends; behind the end of the file if it is cut."""
    end = pos
    for start, length, _ in _items(source, pos):
        end = start + 8 + length
    return max(end, pos + 8)


def _tiff(instance: Instance, outline: Outline) -> EncapsulatedIndex | None:
    found = tiff_tile_offsets(outline.source, outline.preamble, instance.frames)
    if found is None:
        return None
    offsets, counts = found
    if np.any(offsets < 8) or np.any(counts > UNDEFINED - 9):
        return None
    return EncapsulatedIndex(
        "TIFF tile offsets", offsets.astype(np.int64) - 8, (counts + counts % 2 + 8).astype(np.uint32), instance.frames
    )


def _items(source: Source, pos: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield start, length and first bytes of each item from ``pos`` on, the one that a cut file breaks off included.

    A local file is asked for each header alone; a remote one for large pieces, and only where a header is.
    """
    step = 1 << 22 if source.remote else 20
    base, data = pos, b""
    while pos + 8 <= source.size:
        at = pos - base
        if at + 20 > len(data):
            base, data, at = pos, source.read(pos, step), 0
        if data[at : at + 4] != ITEM:
            return
        length: int = _item_length(data, at + 4)[0]
        yield pos, length, data[at + 8 : at + 20]
        pos += 8 + length


def _walk(instance: Instance, source: Source, first: int) -> EncapsulatedIndex:
    """Find the frames by their item headers alone."""
    starts: list[int] = []
    spans: list[int] = []
    streams: list[bool] = []
    end = first
    for start, length, head in _items(source, first):
        end = start + 8 + length
        if end > source.size:
            break
        if len(starts) > MAX_FRAGMENTS * instance.frames:
            raise CorruptFrameError(f"{instance.uri}: more than {MAX_FRAGMENTS} fragments a frame")
        starts.append(start)
        spans.append(8 + length)
        streams.append(head.startswith(_STREAM_STARTS) or _begins_rle(head))
    cut = end + 8 > source.size  # there is no room for the delimiter that ends the items
    if len(starts) > instance.frames or (cut and any(streams) and not all(streams)):
        starts, spans = _join_fragments(instance, starts, spans, streams, cut)
    if cut and starts and not _whole(source, starts[-1], spans[-1]):
        del starts[-1], spans[-1]
    if max(spans, default=0) > UNDEFINED:
        raise CorruptFrameError(f"{instance.uri}: a frame of {max(spans)} bytes is more than any decoder takes")
    return EncapsulatedIndex("item headers", np.array(starts, np.int64), np.array(spans, np.uint32), instance.frames)


def _whole(source: Source, start: int, span: int) -> bool:
    """Tell whether the items in front of a cut hold all of a frame: JPEG streams of every kind end with a marker."""
    if source.read(start + 8, 2) not in (b"\xff\xd8", b"\xff\x4f"):
        return True
    return source.read(start + span - 3, 3).rstrip(b"\0").endswith(b"\xff\xd9")


def _begins_rle(head: bytes) -> bool:
    """Tell whether bytes begin an RLE header (PS3.5 G.3): 1 to 15 segments, the first behind the 64 byte header."""
    return head[1:8] == b"\0\0\0\x40\0\0\0" and 1 <= head[0] <= 15


def _join_fragments(
    instance: Instance, starts: list[int], spans: list[int], streams: list[bool], cut: bool
) -> tuple[list[int], list[int]]:
    """Join the fragments of frames: those that begin a codestream begin a frame."""
    begins = [i for i, begin in enumerate(streams) if begin] if instance.frames > 1 else [0]
    expected = len(begins) <= instance.frames if cut else len(begins) == instance.frames
    if not expected or begins[:1] != [0]:
        raise CorruptFrameError(
            f"{instance.uri}: {len(starts)} fragments hold {instance.frames} frames, no offset table says which belong "
            "together, and their first bytes do not tell"
        )
    ends = [*begins[1:], len(starts)]
    return [starts[i] for i in begins], [sum(spans[i:j]) for i, j in zip(begins, ends, strict=True)]
