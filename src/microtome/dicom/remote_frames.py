"""The encoded frames of a file in a bucket or on a server: in few large reads, through the frame cache.

Its frame index costs requests, up to reading the whole file: it is kept on disk as well, for other processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from copy import copy

from microtome.dicom.frame_index import (
    EncapsulatedIndex,
    FrameIndex,
    NativeIndex,
    StaleOffsetError,
    build_index,
    cut_short,
)
from microtome.dicom.instance import Instance, Read
from microtome.dicom.part10 import Outline
from microtome.errors import MissingFrameError, RequestError
from microtome.storage import cache as cache_
from microtome.storage import sidecar
from microtome.storage.cache import EncodedFrame, Flight
from microtome.storage.ranges import Merged, merge
from microtome.storage.reading_ahead import ReadingAhead

__all__ = ["RemoteFrames"]

Payload = bytes | memoryview | None


class RemoteFrames:
    """The frames of a file, found by its frame index, which is made when first needed."""

    remote = True
    lists = False

    def __init__(self, instance: Instance, outline: Outline, ahead: ReadingAhead) -> None:
        self.uri = ahead.uri
        self.frame_bytes = -(-ahead.size // instance.frames)
        self._instance = instance
        self._outline = outline
        self._ahead = ahead
        self._source = ahead.source
        self._index: FrameIndex | None = None
        self._cut: tuple[FrameIndex, bool] | None = None
        self._lock = threading.Lock()

    def _key(self, frame: int) -> Hashable:
        return self._source.key, frame

    # -- the index ---------------------------------------------------------------------------------------------------

    @property
    def index(self) -> FrameIndex:
        """Where the frames are."""
        if self._index is None:
            with self._lock:
                if self._index is None:
                    self._index = self._kept() or self._built()
                    self._ahead.keep(0, 0)  # its tables are in the index now
        return self._index

    def _built(self, below: str = "") -> FrameIndex:
        asked = self._ahead.asked
        index = build_index(self._instance, self._outline, below)
        if isinstance(index, EncapsulatedIndex) and self._ahead.asked > asked:  # it is not to be had for nothing
            sidecar.store(self._source.identity, index.arrays())
        return index

    def _kept(self) -> FrameIndex | None:
        """Return the index that another process made, or this one before."""
        if self._outline.is_native:
            return None
        arrays = sidecar.load(self._source.identity)
        if arrays is None:
            return None
        return EncapsulatedIndex.of_arrays(arrays, self._instance.frames, self._source.size)

    def _next_rung(self, bad: FrameIndex) -> None:
        """Replace an index that has turned out to lie by one from further down the ladder."""
        with self._lock:
            if self._index is bad:
                sidecar.remove(self._source.identity)
                self._index = self._built(below=bad.rung)

    # -- frames ------------------------------------------------------------------------------------------------------

    def payloads(self, frames: list[int], once: bool = False) -> tuple[list[Payload], None]:
        """Return the codestream of each frame; None for one that the file ends before."""

        def fetch(claimed: dict[Hashable, Flight], again: bool) -> dict[Hashable, EncodedFrame]:
            return self._fetch(claimed, keep=not once)

        got = cache_.frame_cache().get(map(self._key, frames), fetch)
        found = [got.get(self._key(frame)) for frame in frames]
        return [None if frame is None else frame.data for frame in found], None

    def _fetch(self, claimed: dict[Hashable, Flight], keep: bool = True) -> dict[Hashable, EncodedFrame]:
        """Fetch frames that this caller has claimed; those that the file ends before are left out."""
        cache = cache_.frame_cache()
        frames: list[int] = sorted(key[1] for key in claimed)  # type: ignore[index]
        got: dict[Hashable, EncodedFrame] = {}
        why: RequestError | None = None
        try:
            while frames:
                index = self.index
                try:
                    found = self._read(index, frames)
                except StaleOffsetError:
                    self._next_rung(index)
                    continue
                got = {self._key(n): EncodedFrame(bytes(data), "") for n, data in found.items()}
                cache.deliver(got, claimed, keep)
                break
        except RequestError as e:
            why = copy(e)
            raise
        finally:
            cache.give_up(claimed, why)
        return got

    def _read(self, index: FrameIndex, frames: Sequence[int]) -> dict[int, memoryview]:
        """Read frames; those that the file ends before are left out."""
        spans = _spans(index, frames)
        numbers = list(spans)
        reads = merge(list(spans.values()))
        found: dict[int, memoryview] = {}
        for read, data in zip(reads, self._timed([(r.offset, r.length) for r in reads]), strict=True):
            view = memoryview(data)
            for member in read.members:
                frame = numbers[member]
                offset, length = spans[frame]
                piece = view[offset - read.offset : offset - read.offset + length]
                if len(piece) == length:
                    found[frame] = index.payload(piece)
                elif not self._ends_before(index):
                    raise StaleOffsetError
        return found

    def _timed(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        cache = cache_.frame_cache()
        began = time.perf_counter()
        for _ in ranges:
            cache.sent()
        try:
            return self._source.read_many(ranges)
        finally:
            cache.took(time.perf_counter() - began)

    def _ends_before(self, index: FrameIndex) -> bool:
        """Tell whether a frame runs out of the file because the file is cut, rather than because a table lies."""
        if isinstance(index, NativeIndex) or index.rung == "item headers":
            return True
        cut = self._cut
        if cut is None or cut[0] is not index:  # it takes requests to find out: once for all frames
            cut = self._cut = index, cut_short(index, self._source)
        return cut[1]

    def bit_offset(self, frame: int) -> int:
        """Return the bit at which a frame begins, where samples of one bit follow each other without gaps."""
        return self.index.bit_offset(frame)

    def _missing(self, frames: Sequence[int]) -> list[int]:
        held = cache_.frame_cache().holds(map(self._key, frames))
        return [frame for frame in frames if self._key(frame) not in held]

    def reads(self, frames: list[int]) -> list[Read]:
        """Return the reads that frames of a unit take; none of those in the cache."""
        missing = self._missing(frames)
        if not missing:
            return []
        reads: list[Merged] = merge(list(_spans(self.index, missing).values()))
        return [Read(self.uri, read.offset, read.length) for read in reads]

    def prefetch(self, frames: list[int]) -> int:
        """Fetch frames that are not in the frame cache into it; return how many these were."""
        claimed = cache_.frame_cache().claim(map(self._key, self._missing(frames)), ahead=True)[1]
        return len(self._fetch(claimed)) if claimed else 0

    def discard(self, frames: list[int]) -> None:
        """Forget frames that turned out not to decode: they may come whole the next time."""
        cache_.frame_cache().discard(map(self._key, frames))


def _spans(index: FrameIndex, frames: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return where frames are; those that the file ends before are left out."""
    try:
        return dict(zip(frames, index.spans_of(list(frames)), strict=True))
    except MissingFrameError:
        spans = {}
        for frame in frames:
            try:
                spans[frame] = index.span(frame)
            except MissingFrameError:
                continue
        return spans
