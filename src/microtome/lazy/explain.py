"""What a read would take, said without reading a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microtome.errors import FrameError
from microtome.lazy.array import SlideArray

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, repr=False)
class Explanation:
    """What reading a selection takes.

    Parameters
    ----------
    frames
        Frames to be decoded. One that several Dask blocks need counts for each.
    reads
        (file, offset, length) of each read, in order.
    pixels
        Bytes of the result.
    lost
        Frames that should be there and are not.
    """

    frames: int
    reads: tuple[tuple[str, int, int], ...]
    pixels: int
    lost: int = 0

    @property
    def bytes(self) -> int:
        """Bytes to be read."""
        return sum(length for _, _, length in self.reads)

    def __repr__(self) -> str:
        files = len({uri for uri, _, _ in self.reads})
        text = (
            f"{self.frames} frames in {len(self.reads)} reads of {self.bytes:,} bytes from {files} "
            f"file{'s' * (files != 1)}, for {self.pixels:,} bytes of pixels"
        )
        return text + (f"; {self.lost} frames are lost" if self.lost else "")


def explain(asked: Sequence[tuple[SlideArray, tuple[Any, ...]]], pixels: int) -> Explanation:
    """Explain what keys ask of lazy arrays. Offset tables are read where they are not known yet; pixels are not."""
    frames = lost = 0
    reads: list[tuple[str, int, int]] = []
    for array, key in asked:
        if any(isinstance(k, np.ndarray) and k.ndim != 1 for k in key):
            continue
        plan = array.plan(key)
        lost += len(plan.lost)
        for unit in plan.units:
            file = array.reader.files[unit.matrix][unit.part]
            try:
                reads += [(file.source.uri, offset, length) for offset, length in file.ranges(unit.frames)]
                frames += len(unit.frames)
            except FrameError:
                lost += len(unit.frames)
    return Explanation(frames, tuple(reads), pixels, lost)
