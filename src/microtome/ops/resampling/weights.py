"""How much each source pixel counts for each output pixel along one axis: exactly, or as whole numbers.

Whole numbers make sums exact in floating point, so that no order of additions, no block size and no matrix product
changes a result. They come from moving the borders of outputs to the nearest ``1 / denominator`` of a source pixel: by
nothing where scale and offset are fractions with a small denominator (2, 2.5, 10 / 3), else by less than one part in
thousands of the output pixel. Neighbouring outputs share the moved border.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from microtome.ops.resampling.axis import SNAP, AxisGrid

__all__ = ["Weights", "axis_weights", "exact_denominator", "fine_denominator", "largest_total"]

_MOST_EXACT = 256
"""The largest denominator that is tried for an exact fraction."""


class Weights(NamedTuple):
    """The weights of consecutive source pixels for each of n outputs."""

    first: npt.NDArray[np.int64]
    """The first source pixel of each output, ``(n,)``."""
    table: npt.NDArray[np.float64]
    """Weights of pixels ``first``, ``first + 1``, ...: ``(n, taps)``; 0 behind the last that counts."""
    total: npt.NDArray[np.float64]
    """Their sums, ``(n,)``, above 0: weights are not normalised."""


def axis_weights(grid: AxisGrid, start: int, stop: int, denominator: int = 0) -> Weights:
    """Return the weights of outputs ``start`` to ``stop``: in source pixels, or of 1 / denominator of them if given."""
    method, unit = grid.method, float(denominator or 1)
    if method == "nearest":
        first = grid.picks(start, stop)
        table = np.ones((len(first), 1))
    elif method == "linear":
        centres = grid.centres(start, stop)
        first = np.floor(centres).astype(np.int64)
        right = (centres - first) * unit
        right = np.rint(right) if denominator else right
        table = np.stack([unit - right, right], axis=1)
    else:
        edges = grid.edges(start, stop)
        left, right = edges[:-1], edges[1:]
        first = np.minimum(np.floor(left), grid.size - 1).astype(np.int64)
        units = np.ones(len(first))
        if denominator:
            # what is cut short by the end of the source has room for finer weights
            units = denominator * np.maximum(np.floor(grid.scale / np.maximum(right - left, 1)), 1)
            left, right = np.rint(left * units), np.rint(right * units)
        # what is outside the source shows its nearest pixel
        left, right = np.where(right <= left, (first * units, (first + 1) * units), (left, right))[..., None]
        pixels = (first[:, None] + np.arange(int((np.ceil(edges[1:]) - first).max(initial=1)))) * units[:, None]
        table = np.maximum(np.minimum(right, pixels + units[:, None]) - np.maximum(left, pixels), 0)
    return Weights(first, table, table.sum(axis=1))


def exact_denominator(grid: AxisGrid, limit: int) -> int:
    """Return the smallest denominator of exact weights whose sums are at most ``limit``; 0 where none is small."""
    if grid.method == "nearest":
        return 1
    origin = grid.offset if grid.method == "area" else grid.offset + grid.scale / 2 - 0.5
    tried = np.arange(1, min(limit / max(grid.scale, 1), _MOST_EXACT) + 1)
    error = np.abs(tried * grid.scale - np.rint(tried * grid.scale)) * grid.count
    error += np.abs(tried * origin - np.rint(tried * origin))
    exact = tried[error <= tried * SNAP]
    return int(exact[0]) if len(exact) else 0


def fine_denominator(grid: AxisGrid, limit: int) -> int:
    """Return the denominator of the finest weights whose sums are at most ``limit``; 0 for scales above that."""
    return 1 if grid.method == "nearest" else int((limit - 1) / max(grid.scale, 1))


def largest_total(grid: AxisGrid, denominator: int) -> int:
    """Return a bound for the sums of whole weights of any output."""
    method = grid.method
    if method == "nearest":
        return 1
    return math.ceil(grid.scale * denominator - SNAP * denominator) if method == "area" else denominator
