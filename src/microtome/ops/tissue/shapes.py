"""Shapes of masks: discs, connected regions and their sizes, sums over squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.ops.tissue.extra import need

__all__ = ["close", "fill_small", "grow", "local_sum", "open_", "regions", "remove_small", "spread_within"]

Bools = npt.NDArray[np.bool_]

_ROWS = 64  # at a time: intermediate results stay in the cache of the processor
_SHIFTS = 100.0  # pixels: up to this radius shifting is faster than a distance transform


def regions(mask: Bools, *, corners: bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]]:
    """Return connected regions by number, 0 where there is none, and their pixels; whether corners connect is told."""
    structure = np.ones((3, 3), np.bool_) if corners else None
    labels, count = need("scipy.ndimage", "tissue detection").label(mask, structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return labels, sizes


def remove_small(mask: Bools, limit: float) -> Bools:
    """Return the mask without regions of fewer than ``limit`` pixels; corners connect."""
    labels, sizes = regions(mask, corners=True)
    large = sizes >= limit
    large[0] = False
    kept: Bools = large[labels]
    return kept


def fill_small(mask: Bools, limit: float) -> Bools:
    """Return the mask with enclosed holes of fewer than ``limit`` pixels filled; corners do not connect holes.

    A hole that touches the border of the picture is not enclosed: nothing says where it ends.
    """
    labels, sizes = regions(np.pad(~mask, 1, constant_values=True), corners=False)
    small = sizes < limit
    small[[0, labels[0, 0]]] = False
    holes: Bools = small[labels]
    return mask | holes[1:-1, 1:-1]


def grow(mask: Bools, radius: float) -> Bools:
    """Return the pixels whose centres are within ``radius`` pixels of the mask."""
    if radius < 1 or not mask.any() or mask.all():
        return mask.copy()
    if radius > _SHIFTS:
        distance = need("scipy.ndimage", "tissue detection").distance_transform_edt(~mask)
        near: Bools = distance <= radius
        return near
    # A disc is rows of different widths: each is the mask, widened, and moved up and down.
    reach = int(radius)
    widths = [int(np.sqrt(radius * radius - dy * dy)) for dy in range(reach + 1)]
    wide, grown = mask.copy(), np.zeros_like(mask)
    for width in range(widths[0] + 1):
        if width:
            wide[:, width:] |= mask[:, :-width]
            wide[:, :-width] |= mask[:, width:]
        for dy in (dy for dy, w in enumerate(widths[: len(mask)]) if w == width):
            grown[dy:] |= wide[: len(wide) - dy]
            grown[: len(wide) - dy] |= wide[dy:]
    return grown


def close(mask: Bools, radius: float) -> Bools:
    """Return the mask closed by a disc: gaps of up to ``2 radius`` pixels bridged.

    Outside the picture nothing is tissue and nothing is glass: the picture is continued by its outermost pixels, so
    that its border neither grows nor shrinks.
    """
    if radius < 1:
        return mask.copy()
    pad = int(np.ceil(radius)) + 1
    wide = grow(np.pad(mask, pad, mode="edge"), radius)
    closed = ~grow(~wide, radius)
    return closed[pad:-pad, pad:-pad] | mask


def open_(mask: Bools, radius: float) -> Bools:
    """Return the mask opened by a disc: parts narrower than ``2 radius`` pixels removed."""
    return ~close(~mask, radius)


def spread_within(mask: Bools, limits: Bools, steps: int) -> Bools:
    """Return the mask and what is within ``steps`` steps of it, along rows and columns and on ``limits``."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    spread = mask.copy()
    if not rows.size:
        return spread
    # Ink is seldom everywhere: only the box that it can reach is looked at.
    box = tuple(slice(max(0, int(at[0]) - steps), int(at[-1]) + steps + 1) for at in (rows, columns))
    part, free = spread[box], limits[box]
    for _ in range(steps):
        wide = part.copy()
        wide[1:] |= part[:-1]
        wide[:-1] |= part[1:]
        wide[:, 1:] |= part[:, :-1]
        wide[:, :-1] |= part[:, 1:]
        part |= wide & free
    return spread


def local_sum(values: npt.NDArray[Any], size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the sum over a square of ``size`` pixels around each, the picture continued by its outermost pixels.

    Parameters
    ----------
    values
        (h, w) of whole numbers or bool.
    size
        Odd.
    dtype
        Of the sums: an integer that holds the largest of them. What is in between may overflow.
    """
    height, width = values.shape
    wide = np.pad(values.astype(dtype, copy=False), size // 2, mode="edge")
    sums = np.empty((height, width), dtype)
    for first in range(0, height, _ROWS):
        down = _sums_down(wide[first : first + _ROWS + size - 1], size)
        sums[first : first + _ROWS] = _sums_down(down.T, size).T
    return sums


def _sums_down(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Return sums of ``size`` rows that follow each other, made of sums of 1, 2, 4 ... rows."""
    count = len(values) - size + 1
    sums = np.zeros((count, values.shape[1]), values.dtype, "F" if values.flags.f_contiguous else "C")
    power, width, start = values, 1, 0
    while True:
        if size & width:
            sums += power[start : start + count]
            start += width
        if 2 * width > size:
            return sums
        power = power[:-width] + power[width:]
        width *= 2
