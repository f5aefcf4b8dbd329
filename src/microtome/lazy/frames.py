"""The frames of one instance: where their bytes come from, and their decoders, made when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy.typing as npt

from microtome import config
from microtome.dicom.decoding import FrameDecoder
from microtome.dicom.decoding.reduced import frame_decoder
from microtome.dicom.instance import Instance
from microtome.errors import CorruptFrameError, FrameError, MissingFrameError
from microtome.lazy import pool
from microtome.lazy.buffers import empty, scratch
from microtome.lazy.canvas import Canvas
from microtome.lazy.decoded import decoded_frames, kept_bytes
from microtome.lazy.plan import Unit

__all__ = ["InstanceReader", "threads_for"]

Pixels = npt.NDArray[Any]
Encoded = tuple[int, list[Any], bytes | memoryview | None, str | None]
"""Number, jobs, bytes and transfer syntax of a frame; None where it is missing, or encoded as its format says."""
SHARED = 8
"""Frames of a longer list are decoded in pieces of so many, by whichever threads are free."""


class InstanceReader:
    """Reads and decodes the frames of an instance, from any thread."""

    def __init__(self, instance: Instance) -> None:
        fmt = instance.format
        self.instance = instance
        self.source = instance.record.frames(instance)
        self.shape = (fmt.rows, fmt.columns, fmt.channels)
        self.dtype = fmt.dtype
        self._shared_words = fmt.bits_allocated == 1 or fmt.byte_swapped  # frames may share a byte, or a word
        self._decoders: dict[str, FrameDecoder] = {}
        self._decoder: FrameDecoder | None = None

    @property
    def decoder(self) -> FrameDecoder:
        """What decodes the frames as they are stored."""
        if self._decoder is None:
            self._decoder = self._decoder_of(self.instance.format.transfer_syntax)
        return self._decoder

    def _decoder_of(self, transfer_syntax: str) -> FrameDecoder:
        """Return what decodes frames of a transfer syntax: a server may send another than is stored."""
        decoder = self._decoders.get(transfer_syntax)
        if decoder is None:
            decoder = frame_decoder(replace(self.instance.format, transfer_syntax=transfer_syntax))
            self._decoders[transfer_syntax] = decoder
        return decoder

    def paste(
        self,
        unit: Unit,
        canvas: Canvas,
        fill: Pixels | None,
        share: bool = True,
        keep: bool = False,
        once: bool = False,
    ) -> None:
        """Read, decode and paste the frames of a unit.

        Parameters
        ----------
        unit
            Frames of this instance.
        canvas
            Where they go.
        fill
            Value (channels,) in place of frames that are missing; None where that is an error.
        share
            Whether frames may be pasted in any order, by several threads.
        keep
            Whether decoded frames are kept that are pasted in part.
        once
            Whether the unit is part of a read of more than the frame cache holds.
        """
        settings = config.get()
        kept = kept_bytes(keep) if share else 0  # kept frames come first, which is no order
        if kept:
            unit = self._paste_decoded(unit, canvas)
            if not unit.frames:
                return
        payloads, syntaxes = self.source.payloads(unit.frames, once)
        frames = list(zip(unit.frames, unit.jobs, payloads, syntaxes or repeat(None), strict=False))

        def paste(some: Sequence[Encoded]) -> None:
            # Of a remote file, threads come here that were enough to wait for a server.
            with pool.decoding() if self.source.remote else nullcontext():
                self._paste(some, canvas, fill, kept)

        if len(frames) <= SHARED or not share:
            paste(frames)
            return
        pieces = [frames[i : i + SHARED] for i in range(0, len(frames), SHARED)]
        pool.run(paste, pieces, settings.decode_threads)

    def _paste(self, frames: Sequence[Encoded], canvas: Canvas, fill: Pixels | None, kept: int) -> None:
        shape = self.shape
        buffer = scratch(shape, self.dtype)
        all_are_kept = config.get().decoded_cache_bytes > 0
        for frame, jobs, payload, syntax in frames:
            if payload is None:
                if fill is None:
                    raise MissingFrameError(
                        self._message(frame, "it is not there: the file ends before it, or is lost")
                    )
                for job in jobs:
                    canvas.fill(job, fill)
                continue
            try:
                place = canvas.whole(jobs[0], shape) if len(jobs) == 1 else None
                keep = kept > 0 and (all_are_kept or len(jobs) > 1 or not canvas.shows_all(jobs[0], shape))
                own = empty(shape, self.dtype) if keep and place is None and buffer is not None else None
                out = place if place is not None else buffer if own is None else own
                if out is None:
                    self._check_size(payload)
                decoder = self.decoder if syntax is None else self._decoder_of(syntax)
                pixels = decoder.decode(payload, out, self.source.bit_offset(frame) if self._shared_words else 0)
                if pixels is not place:
                    canvas.put_all(jobs, pixels)
            except FrameError as e:
                self.source.discard([frame])
                raise type(e)(self._message(frame, str(e))) from e
            if keep:
                decoded_frames().put((id(self), frame), self, pixels if pixels is own else pixels.copy(), kept)

    def _paste_decoded(self, unit: Unit, canvas: Canvas) -> Unit:
        """Paste the frames that were decoded before; return the others."""
        cache = decoded_frames()
        frames, remaining = [], []
        for frame, jobs in zip(unit.frames, unit.jobs, strict=True):
            pixels = cache.get((id(self), frame), self)
            if pixels is None:
                frames.append(frame)
                remaining.append(jobs)
                continue
            canvas.put_all(jobs, pixels)
        return unit._replace(frames=frames, jobs=remaining)

    def _check_size(self, payload: bytes | memoryview) -> None:
        """Refuse a frame so large that its bytes can hardly hold it."""
        rows, columns, _ = self.shape
        if rows * columns > max(1 << 28, len(payload) << 12):
            raise CorruptFrameError(f"claims {rows} x {columns} pixels in {len(payload)} bytes")

    def _message(self, frame: int, why: str) -> str:
        i = self.instance
        syntax = i.format.transfer_syntax or "transfer syntax not stated"
        return f"{i.uri}: frame {frame + 1} of {i.frames} ({syntax}): {why}"


def threads_for(reader: InstanceReader) -> int:
    """Return how many threads may work on reads of an instance: as many as decode, or as many as wait for a store."""
    settings = config.get()
    if not reader.source.remote:
        return settings.decode_threads
    waiting = settings.requests_per_server if reader.source.lists else settings.io_threads
    return max(waiting, settings.decode_threads)
