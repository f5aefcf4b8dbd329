"""Where each frame of an instance is in its file.

Frames of native pixel data lie at computed places. Encapsulated frames are found by the first of these that tells the
truth (PS3.5 A.4): the Extended Offset Table, the Basic Offset Table, the tile offsets of a DICOM-TIFF file (PS3.10
7.1), the item headers themselves. A table is believed only as far as an item tag stands where it points: some offsets
are checked when it is loaded, each one again when its frame is read. One that lies is dropped for the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.dicom.dual_tiff import tiff_tile_offsets
from microtome.dicom.elements import UNDEFINED, Element
from microtome.dicom.instance import Instance
from microtome.dicom.items import ITEM, end_of_items, item_length, walk
from microtome.dicom.part10 import EXTENDED_LENGTHS, EXTENDED_OFFSETS, Outline
from microtome.errors import CorruptFrameError, MissingFrameError
from microtome.storage import Source
from microtome.storage.reading_ahead import ReadingAhead

__all__ = ["EncapsulatedIndex", "FrameIndex", "NativeIndex", "StaleOffsetError", "build_index", "cut_short"]

SEQUENCE_END = b"\xfe\xff\xdd\xe0"
_SAMPLES = 64
RUNGS = ("extended offset table", "basic offset table", "TIFF tile offsets", "item headers")
"""Of the ladder, from the top."""


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

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the index as arrays of numbers."""
        return {"rung": np.array(RUNGS.index(self.rung)), "starts": self.starts, "spans": self.spans}

    @classmethod
    def of_arrays(cls, arrays: dict[str, npt.NDArray[Any]], count: int, size: int) -> EncapsulatedIndex | None:
        """Return the index of ``count`` frames that arrays hold; None where they hold none for a file of this size."""
        rung, starts, spans = (arrays.get(name, np.empty(0)) for name in ("rung", "starts", "spans"))
        if rung.shape != () or rung.dtype.kind != "i" or not 0 <= rung < len(RUNGS):
            return None
        if starts.dtype != np.int64 or spans.dtype != np.uint32 or starts.ndim != 1 or starts.shape != spans.shape:
            return None
        walked = RUNGS[int(rung)] == RUNGS[-1]  # which finds fewer where the file is cut, and none behind its end
        if len(starts) > count or (len(starts) < count and not walked):
            return None
        # Each alone first: the sum of large ones may wrap.
        if len(starts) and (starts.min() < 0 or (walked and (starts.max() > size or (starts + spans).max() > size))):
            return None
        return cls(RUNGS[int(rung)], starts, spans, count)

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
        length: int = item_length(data, 4)[0]
        if 8 + length == size:
            return data[8:]
        pieces = []
        pos = 0
        while pos + 8 <= size and data[pos : pos + 4] == ITEM:
            length = item_length(data, pos + 4)[0]
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
    ladder: tuple[Callable[[], EncapsulatedIndex | None], ...] = (
        lambda: _extended(instance, outline, first),
        lambda: _basic(instance, source, element, table, first),
        lambda: _tiff(instance, outline),
        lambda: _walked(instance, source, first),
    )
    for rung in ladder[RUNGS.index(below) + 1 if below else 0 :]:
        index = rung()
        if index is not None and (index.rung == "item headers" or _holds(index, source)):
            return index
    raise CorruptFrameError(f"{instance.uri}: no item of its encapsulated pixel data can be found")


def _basic_table(source: Source, element: Element) -> tuple[bytes, int]:
    """Return tag and length of the first item, which is the Basic Offset Table."""
    head = source.read(element.offset, 8)
    if len(head) < 8 or head[:4] != ITEM:
        raise CorruptFrameError(f"{source.uri}: its encapsulated pixel data do not begin with an item")
    return head[:4], item_length(head, 4)[0]


def _holds(index: EncapsulatedIndex, source: Source) -> bool:
    """Tell whether item tags stand where a table points, at the first, the last and some frames between.

    Offsets behind the end of the file hold: that is what a cut file looks like, and reading such a frame finds it out.
    A table of a remote file is believed: a look at it costs as much as to find out by reading a frame.
    """
    count = len(index.starts)
    if count == 0 or bool(np.any(index.starts < 0)):
        return False
    if source.remote:
        return bool(np.any(index.starts + 8 <= source.size))
    picked = np.unique(np.linspace(0, count - 1, min(count, _SAMPLES)).astype(np.int64))
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
    return source.read(last, 4) == ITEM and end_of_items(source, last) + 8 > source.size


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
    ends = np.append(starts[1:], end_of_items(source, int(starts[-1])))
    spans = ends - starts
    if np.any(spans < 8) or np.any(spans > UNDEFINED):
        return None
    return EncapsulatedIndex(rung, starts, spans.astype(np.uint32), len(starts))


def _walked(instance: Instance, source: Source, first: int) -> EncapsulatedIndex:
    starts, spans = walk(instance, source, first)
    return EncapsulatedIndex("item headers", np.array(starts, np.int64), np.array(spans, np.uint32), instance.frames)


def _tiff(instance: Instance, outline: Outline) -> EncapsulatedIndex | None:
    source = ReadingAhead(outline.source) if outline.source.remote else outline.source
    found = tiff_tile_offsets(source, outline.preamble, instance.frames)
    if found is None:
        return None
    offsets, counts = found
    if np.any(offsets < 8) or np.any(counts > UNDEFINED - 9):
        return None
    return EncapsulatedIndex(
        "TIFF tile offsets", offsets.astype(np.int64) - 8, (counts + counts % 2 + 8).astype(np.uint32), instance.frames
    )
