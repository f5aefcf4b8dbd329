"""One axis of a resampling: which part of the source an output pixel shows.

Everything here is a function of an output pixel's number along the whole axis, never of the tile it is computed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError, SelectionError

__all__ = ["SNAP", "AxisGrid", "Method"]

Method = Literal["area", "linear", "nearest"]

SNAP = 1e-6
"""Positions this near to a border of source pixels (in source pixels) lie on it: a size divided by a count and
multiplied again is not quite a whole number, and a sliver of a pixel would count its NaN."""


@dataclass(frozen=True, slots=True)
class AxisGrid:
    """One axis of a resampling: output pixel ``i`` shows ``[offset + i * scale, offset + (i + 1) * scale)``.

    Positions are in source pixels; source pixel ``k`` is the interval ``[k, k + 1)``.

    Attributes
    ----------
    size
        Source pixels along the axis.
    count
        Output pixels.
    scale
        Source pixels per output pixel: above 1 coarser, below 1 finer.
    offset
        Where output pixel 0 begins; may be negative or fractional.
    nearest
        Whether an output pixel is a copy of one source pixel, for masks and labels. Else it is the mean over its
        interval where ``scale`` is above 1, and a linear interpolation at its centre where it is not.

    Raises
    ------
    OptionError
        The scale is not above 0, a number is not finite, or a size is negative.
    """

    size: int
    count: int
    scale: float
    offset: float = 0.0
    nearest: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale > 0):
            raise OptionError(
                f"an axis cannot be resampled with scale {self.scale} and offset {self.offset}: the scale is source "
                "pixels per output pixel and must be above 0, and both must be finite"
            )
        if self.size < 0 or self.count < 0:
            raise OptionError(f"an axis of {self.size} pixels cannot be resampled to {self.count}: neither is negative")

    @property
    def method(self) -> Method:
        """How output pixels are made; a shift by whole pixels is a copy, so that it is "nearest" whatever was asked."""
        if self.nearest or (self.scale == 1 and float(self.offset).is_integer()):
            return "nearest"
        return "area" if self.scale > 1 else "linear"

    def edges(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Return the ``stop - start + 1`` borders of outputs ``start`` to ``stop``, clipped to the source."""
        return np.clip(_snap(self.offset + np.arange(start, stop + 1, dtype=np.float64) * self.scale), 0, self.size)

    def centres(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Return where between the centres of source pixels those of outputs lie, clamped to the first and the last."""
        centres = _snap(self.offset + (np.arange(start, stop, dtype=np.float64) + 0.5) * self.scale - 0.5)
        return np.clip(centres, 0, max(self.size - 1, 0))

    def picks(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the source pixel that contains the centre of each output; on a border, the one to its right."""
        centres = _snap(self.offset + (np.arange(start, stop, dtype=np.float64) + 0.5) * self.scale)
        return np.clip(np.floor(centres), 0, max(self.size - 1, 0)).astype(np.int64)

    def support(self, start: int, stop: int) -> tuple[int, int]:
        """Return the source pixels that outputs ``start`` to ``stop`` need.

        Parameters
        ----------
        start, stop
            First and one-past-last output pixel.

        Returns
        -------
        tuple of int
            First and one-past-last source pixel, within 0 to `size`. At least one pixel, unless there are no outputs
            or no source; outputs that lie wholly outside the source need its nearest pixel.

        Raises
        ------
        SelectionError
            The outputs are not within 0 to `count`.
        """
        if not 0 <= start <= stop <= self.count:
            raise SelectionError(f"outputs {start} to {stop} of an axis were asked for, which has {self.count}")
        if start == stop or self.size == 0:
            return (0, 0)
        method, shift = self.method, -0.5 if self.method == "linear" else 0.0
        inset = 0.0 if method == "area" else 0.5
        low = _snap_one(self.offset + (start + inset) * self.scale + shift)
        high = _snap_one(self.offset + (stop - inset) * self.scale + shift)
        first = min(max(math.floor(low), 0), self.size - 1)
        end = math.ceil(high) if method == "area" else math.floor(high) + 1
        if method == "linear" and high % 1:
            end += 1
        return first, min(max(end, first + 1), self.size)


def _snap_one(position: float) -> float:
    whole = round(position)
    return whole if abs(position - whole) <= SNAP else position


def _snap(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    whole = np.rint(positions)
    return np.where(np.abs(positions - whole) <= SNAP, whole, positions)
