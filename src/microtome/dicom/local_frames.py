"""The encoded frames of a file of this machine: read when they are needed, for the operating system keeps them."""

from __future__ import annotations

import itertools
import threading

from microtome.dicom.frame_index import FrameIndex, NativeIndex, StaleOffsetError, build_index, cut_short
from microtome.dicom.instance import Instance, Read
from microtome.dicom.part10 import Outline
from microtome.errors import MissingFrameError

__all__ = ["LocalFrames"]


class LocalFrames:
    """The frames of a file, found by its frame index, which is made when first needed."""

    remote = False
    lists = False

    def __init__(self, instance: Instance, outline: Outline) -> None:
        self.uri = outline.source.uri
        self.frame_bytes = -(-outline.source.size // instance.frames)
        self._instance = instance
        self._outline = outline
        self._source = outline.source
        self._index: FrameIndex | None = None
        self._lock = threading.Lock()

    @property
    def index(self) -> FrameIndex:
        """Where the frames are."""
        if self._index is None:
            with self._lock:
                if self._index is None:
                    self._index = build_index(self._instance, self._outline)
        return self._index

    def _next_rung(self, bad: FrameIndex) -> None:
        """Replace an index that has turned out to lie by one from further down the ladder."""
        with self._lock:
            if self._index is bad:
                self._index = build_index(self._instance, self._outline, below=bad.rung)

    def payloads(self, frames: list[int], once: bool = False) -> tuple[list[bytes | memoryview | None], None]:
        """Return the codestream of each frame; None for one that the file ends before."""
        while True:
            index = self.index
            try:
                return self._read(index, frames), None
            except StaleOffsetError:
                self._next_rung(index)

    def _read(self, index: FrameIndex, frames: list[int]) -> list[bytes | memoryview | None]:
        try:
            spans = index.spans_of(frames)
        except MissingFrameError:
            return [self._read_one(index, frame) for frame in frames]
        payloads: list[bytes | memoryview | None] = []
        for first, stop in _runs(spans):
            low, size = spans[first][0], spans[stop - 1][0] + spans[stop - 1][1] - spans[first][0]
            data = memoryview(self._source.read(low, size))
            if len(data) == size:
                payloads += [index.payload(data[start - low : start - low + n]) for start, n in spans[first:stop]]
            else:
                payloads += [self._read_one(index, frame) for frame in frames[first:stop]]
        return payloads

    def _read_one(self, index: FrameIndex, frame: int) -> memoryview | None:
        try:
            offset, length = index.span(frame)
        except MissingFrameError:
            return None
        data = memoryview(self._source.read(offset, length))
        if len(data) < length:
            # Either the file is cut, or the table lies.
            if isinstance(index, NativeIndex) or index.rung == "item headers" or cut_short(index, self._source):
                return None
            raise StaleOffsetError
        return index.payload(data)

    def bit_offset(self, frame: int) -> int:
        """Return the bit at which a frame begins, where samples of one bit follow each other without gaps."""
        return self.index.bit_offset(frame)

    def reads(self, frames: list[int]) -> list[Read]:
        """Return the reads that frames of a unit take."""
        spans = self.index.spans_of(frames)
        return [
            Read(self.uri, spans[first][0], spans[stop - 1][0] + spans[stop - 1][1] - spans[first][0])
            for first, stop in _runs(spans)
        ]

    def prefetch(self, frames: list[int]) -> int:
        """Do nothing: the operating system keeps what was read of files."""
        return 0

    def discard(self, frames: list[int]) -> None:
        """Do nothing, for the same reason."""


def _runs(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (first, stop) of spans that lie one behind the other, so that one read takes them."""
    if spans[-1][0] + spans[-1][1] - spans[0][0] == sum(n for _, n in spans):
        return [(0, len(spans))]
    cuts = [i for i in range(1, len(spans)) if spans[i - 1][0] + spans[i - 1][1] != spans[i][0]]
    return list(itertools.pairwise([0, *cuts, len(spans)]))
