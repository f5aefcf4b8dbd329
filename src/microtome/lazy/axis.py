"""What is selected along one axis, and which part of it falls on each tile.

NumPy's integers, slices and index arrays all become one of two forms: a `Run` (every so many-th pixel) or an index
array. Either is cut at the borders of tiles into `Hit`s: where a tile's pixels go, and which of its pixels they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from microtome.errors import SelectionError

__all__ = ["Axis", "Hit", "Run", "hits_at", "length", "normalize", "numbers", "tile_hits"]

Index = npt.NDArray[np.int64]


class Run(NamedTuple):
    """Pixels ``start``, ``start + step``, ... below ``stop``; step at least 1."""

    start: int
    stop: int
    step: int = 1


Axis = Run | Index


class Hit(NamedTuple):
    """The selected pixels that lie on one tile, along one axis."""

    tile: int
    """Number of the tile; where tiles are on no grid, 0."""
    target: slice | Index
    """Where they go in the result."""
    source: slice | Index
    """Which pixels of the tile they are."""
    need: int
    """Pixels that the tile must have for it."""


def normalize(key: Any, size: int) -> tuple[Axis, bool]:
    """Return a selection along an axis of ``size`` pixels, and whether the result is to be reversed.

    Raises
    ------
    SelectionError
        An index outside the axis.
    """
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        if step > 0:
            return Run(start, max(start, stop), step), False
        count = len(range(start, stop, step))
        last = start + (count - 1) * step
        return (Run(last, start + 1, -step), True) if count else (Run(0, 0), False)
    index = np.asarray(key)
    if index.dtype.kind not in "iu":
        raise SelectionError(f"pixels are selected by whole numbers, not {index.dtype}")
    index = index.astype(np.int64)
    if index.size and (index.min() < -size or index.max() >= size):
        raise SelectionError(f"index {index.min()} to {index.max()} is outside an axis of {size} pixels")
    return np.where(index < 0, index + size, index), False


def length(axis: Axis) -> int:
    """Return how many pixels are selected."""
    if isinstance(axis, Run):
        return -(-(axis.stop - axis.start) // axis.step)
    return len(axis)


def numbers(axis: Axis) -> list[int]:
    """Return the selected numbers, one by one."""
    return list(range(*axis)) if isinstance(axis, Run) else axis.tolist()


def tile_hits(axis: Axis, tile: int) -> list[Hit]:
    """Cut a selection at the borders of tiles of ``tile`` pixels."""
    if not isinstance(axis, Run):
        return _index_hits(axis, tile)
    start, stop, step = axis
    if start >= stop:
        return []
    if step == 1:
        first, last = start // tile, (stop - 1) // tile
        if first == last:
            base = first * tile
            return [Hit(first, slice(0, stop - start), slice(start - base, stop - base), stop - base)]
        hits = []
        for number in range(first, last + 1):
            base = number * tile
            a, b = max(start, base), min(stop, base + tile)
            hits.append(Hit(number, slice(a - start, b - start), slice(a - base, b - base), b - base))
        return hits
    hits = []
    at = start
    while at < stop:
        number = at // tile
        hit = _run_hit(axis, number * tile, (number + 1) * tile)
        assert hit is not None
        hits.append(hit._replace(tile=number))
        at = start + hit.target.stop * step  # type: ignore[union-attr]
    return hits


def _run_hit(axis: Run, low: int, high: int) -> Hit | None:
    start, stop, step = axis
    first = max(0, -(-(low - start) // step))
    end = min(-(-(stop - start) // step), -(-(high - start) // step))
    if first >= end:
        return None
    a = start + first * step - low
    b = start + (end - 1) * step - low + 1
    return Hit(0, slice(first, end), slice(a, b, step), b)


def _index_hits(index: Index, tile: int) -> list[Hit]:
    if not len(index):
        return []
    numbers = index // tile
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    hits = []
    for target in np.split(order, cuts):
        number = int(numbers[target[0]])
        source = index[target] - number * tile
        hits.append(Hit(number, target, source, int(source.max()) + 1))
    return hits


def hits_at(axis: Axis, low: int, tile: int, limit: int) -> Hit | None:
    """Return what falls on the tile whose first pixel is ``low``; pixels below 0 and from ``limit`` on do not exist."""
    high = min(low + tile, limit)
    if isinstance(axis, Run):
        return _run_hit(axis, low, high)
    target = np.flatnonzero((axis >= low) & (axis < high))
    if not len(target):
        return None
    source = axis[target] - low
    return Hit(0, target, source, int(source.max()) + 1)
