"""How much of a rectangle is tissue, exactly by area."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import MissingDependencyError, OptionError
from microtome.ops.masks.polygons import Polygon

__all__ = ["fractions", "polygon_fractions"]

Floats = npt.NDArray[np.float64]
_AT_A_TIME = 1 << 17


def fractions(
    mask: npt.NDArray[np.bool_], tops: npt.ArrayLike, lefts: npt.ArrayLike, height: float, width: float
) -> Floats:
    """Return the area fraction of rectangles that lies under a mask, pixels being squares.

    Parameters
    ----------
    mask
        (h, w) bool.
    tops, lefts
        (n,) top left corners of the rectangles, in pixels of the mask counted from its top left corner; not necessarily
        whole, not necessarily inside.
    height, width
        Size of every rectangle, in the same unit.

    Returns
    -------
    (n,) float64 in [0, 1]. What lies outside the mask is not tissue.

    Raises
    ------
    OptionError
        The mask is not two-dimensional or not bool; sizes are not positive; corners are not finite or not pairs.

    Notes
    -----
    The integral of the mask from the corner to (y, x) is bilinear between the corners of pixels, so four values of a
    summed-area table (Crow 1984, doi:10.1145/800031.808600), interpolated, give an exact area for whole and broken
    borders alike.
    """
    rows, columns = _corners(tops, lefts, height, width)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise OptionError(f"a mask of {mask.dtype} and shape {mask.shape}: (h, w) bool is expected")
    h, w = mask.shape
    if 0 in mask.shape:
        return np.zeros(len(rows))
    small = mask.size < 1 << 31
    table = np.zeros((h + 1, w + 1), np.int32 if small else np.int64)
    np.cumsum(mask, axis=0, dtype=table.dtype, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    flat = table.ravel()
    out = np.empty(len(rows))
    for at in range(0, len(rows), _AT_A_TIME):
        part = slice(at, at + _AT_A_TIME)
        y0, x0 = rows[part], columns[part]
        top, bottom = _place(y0, h), _place(y0 + height, h)
        left, right = _place(x0, w), _place(x0 + width, w)
        area = _integral(flat, w + 1, bottom, right) - _integral(flat, w + 1, top, right)
        area -= _integral(flat, w + 1, bottom, left) - _integral(flat, w + 1, top, left)
        out[part] = area
    out /= height * width
    return np.clip(out, 0, 1, out=out)


def _corners(tops: npt.ArrayLike, lefts: npt.ArrayLike, height: float, width: float) -> tuple[Floats, Floats]:
    rows, columns = np.asarray(tops, np.float64), np.asarray(lefts, np.float64)
    if rows.ndim != 1 or rows.shape != columns.shape:
        raise OptionError(f"tops of shape {rows.shape} and lefts of shape {columns.shape}: two (n,) lists are expected")
    if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
        raise OptionError("tops or lefts are not finite: they do not say where a rectangle lies")
    if not (0 < height < np.inf and 0 < width < np.inf):
        raise OptionError(f"rectangles of {height} by {width}: finite sizes above zero are expected")
    return rows, columns


def _place(at: Floats, size: int) -> tuple[npt.NDArray[np.intp], Floats]:
    """The pixel that a border runs through, and how far into it."""
    inside = np.clip(at, 0, size)
    pixel = np.minimum(inside.astype(np.intp), size - 1)
    return pixel, inside - pixel


def _integral(
    table: npt.NDArray[Any], stride: int, y: tuple[npt.NDArray[np.intp], Floats], x: tuple[npt.NDArray[np.intp], Floats]
) -> Floats:
    """Bilinear interpolation of the summed-area table."""
    at = y[0] * stride + x[0]
    upper, lower = table.take(at), table.take(at + stride)
    upper = upper + (table.take(at + 1) - upper) * x[1]
    lower = lower + (table.take(at + stride + 1) - lower) * x[1]
    both: Floats = upper + (lower - upper) * y[1]
    return both


def polygon_fractions(
    polygons: Iterable[Polygon], tops: npt.ArrayLike, lefts: npt.ArrayLike, height: float, width: float
) -> Floats:
    """Return the area fraction of rectangles that lies in the union of polygons, without rasterising.

    Parameters
    ----------
    polygons
        Coordinates in the unit of the rectangles. Outlines that cross themselves are taken by the even-odd rule.
    tops, lefts
        (n,) top left corners (y, x) of the rectangles.
    height, width
        Size of every rectangle.

    Returns
    -------
    (n,) float64 in [0, 1].

    Raises
    ------
    MissingDependencyError
        shapely is not installed; `rasterise` and `fractions` do without it.
    OptionError
        As `fractions` does.
    """
    rows, columns = _corners(tops, lefts, height, width)
    try:
        shapely = importlib.import_module("shapely")
    except ImportError as e:
        raise MissingDependencyError(
            'exact areas of polygons need shapely. Remedy: pip install "microtome[shapes]", or rasterise the polygons'
        ) from e
    shapes = []
    for polygon in polygons:
        rings = [shapely.make_valid(shapely.Polygon(ring), method="linework") for ring in polygon.rings]
        whole = rings[0]
        for hole in rings[1:]:
            whole = whole.symmetric_difference(hole)  # the even-odd rule, as `rasterise` has it
        shapes.append(whole)
    out = np.zeros(len(rows))
    union = shapely.union_all(shapes)
    if union.is_empty or not len(rows):
        return out
    boxes = shapely.box(columns, rows, columns + width, rows + height)
    shapely.prepare(union)
    inside = shapely.contains_properly(union, boxes)
    out[inside] = 1
    border = ~inside & shapely.intersects(union, boxes)
    out[border] = shapely.area(shapely.intersection(boxes[border], union)) / (height * width)
    return np.clip(out, 0, 1, out=out)
