"""In which order patches come: near ones together, row by row, or shuffled."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["Order", "hilbert", "ordered"]

Order = Literal["place", "rows", "random", "given"]
Indices = npt.NDArray[np.int64]


def ordered(origins: Indices, order: Order, seed: int | None, stride: tuple[int, int]) -> Indices:
    """Return the order in which patches come, as indices.

    Parameters
    ----------
    origins
        (patches, 2), rows and columns.
    order
        ``"place"``: along a Hilbert curve, so that those in one chunk, and in the next, share most of their frames.
        ``"rows"``: by row, then column. ``"random"``: shuffled, by ``seed``. ``"given"``: as they are.
    seed
        For ``"random"``.
    stride
        Distance of places along the curve.

    Raises
    ------
    OptionError
        An unknown order, or a seed for one that needs none.
    """
    if seed is not None and order != "random":
        raise OptionError(f"seed={seed!r} has a meaning for order='random' only, not for {order!r}")
    if order == "given":
        return np.arange(len(origins))
    if order == "rows":
        return np.lexsort((origins[:, 1], origins[:, 0]))
    if order == "random":
        return np.random.default_rng(seed).permutation(len(origins))
    if order != "place":
        raise OptionError(f"order={order!r}: it is 'place', 'rows', 'random' or 'given'")
    if not len(origins):
        return np.arange(0)
    low = origins.min(axis=0)
    curve = hilbert((origins[:, 0] - low[0]) // stride[0], (origins[:, 1] - low[1]) // stride[1])
    return np.lexsort((origins[:, 1], origins[:, 0], curve))


def hilbert(rows: Indices, columns: Indices) -> Indices:
    """Return the distance of places along a Hilbert curve: what is near on it is near in the plane.

    The curve is the one of Skilling, "Programming the Hilbert curve", AIP Conference Proceedings 707 (2004), in two
    dimensions; from the largest quadrant down, each turns its own curve so that the ends meet. Places farther than 2^31
    apart share their distance with their neighbours.
    """
    bits = max(int(max(rows.max(initial=0), columns.max(initial=0))).bit_length(), 1)
    finer = max(bits - 31, 0)
    x, y, bits = columns >> finer, rows >> finer, bits - finer
    distance = np.zeros(len(x), np.int64)
    for level in range(bits - 1, -1, -1):
        side = 1 << level
        right, down = (x & side) > 0, (y & side) > 0
        distance += side * side * ((3 * right) ^ down.astype(np.int64))
        turn = ~down
        flip = turn & right
        x[flip], y[flip] = (2 * side - 1) - x[flip], (2 * side - 1) - y[flip]
        x &= 2 * side - 1
        y &= 2 * side - 1
        x[turn], y[turn] = y[turn], x[turn].copy()
    return distance
