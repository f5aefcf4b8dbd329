"""Polygons -> masks, by the centres of pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops.masks.polygons import Polygon

__all__ = ["rasterise"]

Floats = npt.NDArray[np.float64]
_BUDGET = 1 << 22  # crossings held at a time


def rasterise(
    polygons: Iterable[Polygon],
    shape: tuple[int, int],
    *,
    spacing: tuple[float, float] = (1.0, 1.0),
    offset: tuple[float, float] = (0.0, 0.0),
) -> npt.NDArray[np.bool_]:
    """Return which pixels have their centre in one of the polygons.

    Parameters
    ----------
    polygons
        Their coordinates (x, y) in any unit.
    shape
        Rows and columns of the mask.
    spacing
        Distances of rows and of columns in the same unit: the centre of pixel (i, j) is at
        ``y = offset[0] + (i + 0.5) * spacing[0]``, ``x = offset[1] + (j + 0.5) * spacing[1]``.
    offset
        Place (y, x) of the top left corner of the mask.

    Returns
    -------
    (rows, columns) bool.

    Raises
    ------
    OptionError
        A shape or a spacing that is none.

    Notes
    -----
    Even-odd rule over outline and holes of each polygon; the union of polygons. A centre on a left or upper edge is
    inside, on a right or lower edge outside: polygons that share an edge leave no gap and do not overlap. Crossings are
    computed in float64, for a bounded number of rows and edges at a time: memory is that of the mask and some 200 MB.
    """
    rows, columns = (int(n) for n in shape)
    if rows < 0 or columns < 0:
        raise OptionError(f"shape={shape}: rows and columns cannot be negative")
    if not (np.isfinite(spacing).all() and np.isfinite(offset).all() and min(spacing) > 0):
        raise OptionError(f"spacing={spacing}, offset={offset}: finite numbers, and spacings above zero, are expected")
    mask = np.zeros((rows, columns), np.bool_)
    for polygon in polygons:
        # In units of pixels, with centres at whole numbers.
        rings = [(ring[:, ::-1] - offset) / spacing - 0.5 for ring in polygon.rings]
        _paint(mask, rings)
    return mask


def _paint(mask: npt.NDArray[np.bool_], rings: list[Floats]) -> None:
    """Set the pixels whose centres an odd number of edges has to its left."""
    rows, columns = mask.shape
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, 0) for ring in rings])
    # An edge crosses the rows i with low <= i < high.
    low = np.clip(np.ceil(np.minimum(starts[:, 0], ends[:, 0])), 0, rows).astype(np.int64)
    high = np.clip(np.ceil(np.maximum(starts[:, 0], ends[:, 0])), 0, rows).astype(np.int64)
    crosses = high > low
    if not crosses.any():
        return
    starts, ends, low, high = starts[crosses], ends[crosses], low[crosses], high[crosses]
    top, bottom = int(low.min()), int(high.max())
    left = int(np.clip(np.ceil(min(starts[:, 1].min(), ends[:, 1].min())), 0, columns))
    right = int(np.clip(np.ceil(max(starts[:, 1].max(), ends[:, 1].max())), left, columns))
    if right == left:
        return
    width = right - left + 1
    # From top to bottom, so that an edge that two polygons share is rounded alike in both.
    upward = starts[:, 0] > ends[:, 0]
    starts[upward], ends[upward] = ends[upward], starts[upward]
    step = max(_BUDGET // width, 1)
    for y0 in range(top, bottom, step):
        y1 = min(y0 + step, bottom)
        odd = np.zeros((y1 - y0, width), np.bool_)
        here = np.flatnonzero((low < y1) & (high > y0))
        counts = np.minimum(high[here], y1) - np.maximum(low[here], y0)
        groups = (np.cumsum(counts) - counts) // _BUDGET
        for part in np.split(here, np.flatnonzero(np.diff(groups)) + 1):
            first, last = np.maximum(low[part], y0), np.minimum(high[part], y1)
            count = last - first
            edge = np.repeat(part, count)
            y = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
            a, b = starts[edge], ends[edge]
            x = a[:, 1] + (y - a[:, 0]) * (b[:, 1] - a[:, 1]) / (b[:, 0] - a[:, 0])
            column = np.clip(np.ceil(x), left, right).astype(np.int64) - left
            # Two crossings in one cell cancel: flips are counted, not set.
            flips = np.bincount((y - y0) * width + column, minlength=odd.size).reshape(odd.shape)
            odd ^= (flips & 1).astype(np.bool_)
        inside = np.logical_xor.accumulate(odd, axis=1)[:, :-1]
        mask[y0:y1, left:right] |= inside
