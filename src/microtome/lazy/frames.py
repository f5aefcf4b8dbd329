"""The frames of one file: its bytes, its frame index and its decoder, each made when first needed."""

from __future__ import annotations

import threading
from typing import Any

import numpy.typing as npt

from microtome import config
from microtome.dicom.decoding import FrameDecoder
from microtome.dicom.frame_index import FrameIndex, NativeIndex, StaleOffsetError, build_index, cut_short
from microtome.dicom.instance import Instance
from microtome.errors import CorruptFrameError, FrameError, MissingFrameError
from microtome.lazy.buffers import scratch
from microtome.lazy.canvas import Canvas
from microtome.lazy.plan import Unit

__all__ = ["FrameFile"]


class FrameFile:
    """Reads and decodes the frames of an instance, from any thread."""

    def __init__(self, instance: Instance) -> None:
        fmt = instance.format
        self.instance = instance
        self.source = instance.outline.source
        self.shape = (fmt.rows, fmt.columns, fmt.channels)
        self.dtype = fmt.dtype
        self._shared_words = fmt.bits_allocated == 1 or fmt.byte_swapped  # frames may share a byte, or a word
        self._index: FrameIndex | None = None
        self._decoder: FrameDecoder | None = None
        self._lock = threading.Lock()

    @property
    def index(self) -> FrameIndex:
        """Where the frames are."""
        if self._index is None:
            with self._lock:
                if self._index is None:
                    self._index = build_index(self.instance)
        return self._index

    def _next_rung(self, bad: FrameIndex) -> None:
        """Replace an index that has turned out to lie by one from further down the ladder."""
        with self._lock:
            if self._index is bad:
                self._index = build_index(self.instance, below=bad.rung)

    @property
    def decoder(self) -> FrameDecoder:
        """What decodes the frames."""
        if self._decoder is None:
            self._decoder = FrameDecoder(self.instance.format)
        return self._decoder

    def ranges(self, frames: list[int]) -> list[tuple[int, int]]:
        """Return (offset, length) of each read that frames of a unit take."""
        spans = self.index.spans_of(frames)
        together = _joined(spans)
        return [together] if together else spans

    def paste(self, unit: Unit, canvas: Canvas, fill: npt.NDArray[Any] | None) -> None:
        """Read, decode and paste the frames of a unit.

        Parameters
        ----------
        unit
            Frames of this file.
        canvas
            Where they go.
        fill
            Value (channels,) in place of frames that are missing; None where that is an error.
        """
        shape = self.shape
        decode = self.decoder.decode
        buffer = scratch(shape, self.dtype)
        for frame, jobs, payload in zip(unit.frames, unit.jobs, self._payloads(unit), strict=True):
            if payload is None:
                if fill is None:
                    raise MissingFrameError(self._message(frame, "the file ends before it"))
                for job in jobs:
                    canvas.fill(job, fill)
                continue
            try:
                place = canvas.whole(jobs[0], shape) if len(jobs) == 1 else None
                out = place if place is not None else buffer
                if out is None:
                    self._check_size(payload)
                pixels = decode(payload, out, self.index.bit_offset(frame) if self._shared_words else 0)
                if pixels is not place:
                    for job in jobs:
                        canvas.put(job, pixels)
            except FrameError as e:
                raise type(e)(self._message(frame, str(e))) from e

    def _check_size(self, payload: memoryview) -> None:
        """Refuse a frame so large that its bytes can hardly hold it."""
        rows, columns, _ = self.shape
        if rows * columns > max(1 << 28, len(payload) << 12):
            raise CorruptFrameError(f"claims {rows} x {columns} pixels in {len(payload)} bytes")

    def _payloads(self, unit: Unit) -> list[memoryview | None]:
        """Return the codestream of each frame of a unit; None for one that the file ends before."""
        while True:
            index = self.index
            try:
                return self._read(index, unit.frames)
            except StaleOffsetError:
                self._next_rung(index)

    def _read(self, index: FrameIndex, frames: list[int]) -> list[memoryview | None]:
        try:
            spans = index.spans_of(frames)
        except MissingFrameError:
            return [self._read_one(index, frame) for frame in frames]
        together = _joined(spans)
        if together is not None:
            low, size = together
            data = memoryview(self.source.read(low, size))
            if len(data) == size:
                return [index.payload(data[start - low : start - low + n]) for start, n in spans]
        return [self._read_one(index, frame) for frame in frames]

    def _read_one(self, index: FrameIndex, frame: int) -> memoryview | None:
        try:
            offset, length = index.span(frame)
        except MissingFrameError:
            return None
        data = memoryview(self.source.read(offset, length))
        if len(data) < length:
            # Either the file is cut, or the table lies.
            if isinstance(index, NativeIndex) or index.rung == "item headers" or cut_short(index, self.source):
                return None
            raise StaleOffsetError
        return index.payload(data)

    def _message(self, frame: int, why: str) -> str:
        i = self.instance
        return f"{i.uri}: frame {frame + 1} of {i.frames} ({i.format.transfer_syntax or 'no transfer syntax'}): {why}"


def _joined(spans: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Return (offset, length) of the one read that spans take; None where a table has put neighbours apart."""
    low, high = spans[0][0], spans[-1][0] + spans[-1][1]
    return (low, high - low) if high - low == sum(n for _, n in spans) else None


def threads_for(file: FrameFile) -> int:
    """Return how many threads may work on reads of a file: as many as decode, or as many as wait for a store."""
    settings = config.get()
    return max(settings.io_threads, settings.decode_threads) if file.source.remote else settings.decode_threads
