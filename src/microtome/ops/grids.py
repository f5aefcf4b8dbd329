"""Where the pixels of an image are to lie: grids by spacing, by shape, or like those of another image.

A grid by spacing is anchored at level 0's corner, whatever part of a level is resampled: a crop has the pixels of the
whole. Of a level, the pixels of such a grid are those that lie on it entirely; of a crop, those whose centres do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError, SpacingUndefinedError
from microtome.lazy.datasets import axis_coordinate
from microtome.model import PixelSpacing
from microtome.ops.levels import spacing_of
from microtome.ops.resampling import AxisGrid

__all__ = [
    "Grid",
    "Place",
    "clean",
    "evenly",
    "grid_by_shape",
    "grid_by_spacing",
    "grid_like",
    "is_stored",
    "place_of",
    "spacing_if_defined",
]

ALMOST = 1e-6
"""Fraction of a pixel by which edges may miss each other: spacings are stated in a few digits."""
UNEVEN = 1e-3
"""Fraction of a pixel by which a coordinate may be off an even one."""


@dataclass(frozen=True)
class Place:
    """Where an image lies, along one axis.

    Parameters
    ----------
    size
        Pixels of the whole image.
    start, stop
        Those that are shown.
    spacing
        In mm; NaN where undefined.
    low
        Place of the first pixel's outer edge in mm; NaN where undefined.
    """

    size: int
    start: int
    stop: int
    spacing: float
    low: float


@dataclass(frozen=True)
class Grid:
    """One axis of a result.

    Parameters
    ----------
    axis
        The result's pixels in pixels of the source.
    coordinate
        Their centres in mm; None where undefined.
    before, after
        Pixels of the result that lie beyond the source, and are filled.
    """

    axis: AxisGrid
    coordinate: npt.NDArray[np.float64] | None
    before: int = 0
    after: int = 0


def evenly(image: xr.DataArray, dim: str, spacing: float) -> None:
    """Check that the coordinate of an image increases evenly along an axis.

    Raises
    ------
    OptionError
        Its pixels are reversed, repeated, or have others between them: it is no grid.
    """
    values = image.coords[dim].values
    if len(values) > 1 and np.abs(np.diff(values) - spacing).max() > UNEVEN * spacing:
        raise OptionError(
            f"the coordinate {dim} of this image does not increase evenly (it was reversed, or rows or columns were "
            f"picked): where its pixels lie is no grid; resample the image it was made from, or, if it is only "
            f"reversed, image.sortby({dim!r})"
        )


def place_of(image: xr.DataArray, dim: str, start: int, size: int, spacing: float) -> Place:
    """Return where an image lies that shows the pixels of an axis from ``start`` on, of ``size`` that there are."""
    count = image.sizes[dim]
    if dim in image.coords and not math.isnan(spacing):
        evenly(image, dim, spacing)
    coordinate = image.coords[dim].variable if dim in image.coords and not math.isnan(spacing) else None
    low = math.nan
    if coordinate is not None and count:
        low = float(coordinate[0].values) - (start + 0.5) * spacing
    elif coordinate is not None:
        low = 0.0
    return Place(size, start, start + count, spacing, low)


def spacing_if_defined(image: xr.DataArray) -> PixelSpacing | None:
    """Return the spacing of an image; None where it is undefined."""
    try:
        return spacing_of(image)
    except SpacingUndefinedError:
        return None


def grid_by_spacing(place: Place, spacing: float, nearest: bool) -> Grid:
    """Return the grid of a spacing in mm."""
    high = place.low + place.size * place.spacing
    whole = place.start == 0 and place.stop == place.size
    first = math.ceil(place.low / spacing - ALMOST)
    end = math.floor(high / spacing + ALMOST)
    if not whole:
        shown_low = place.low + place.start * place.spacing
        shown_high = place.low + place.stop * place.spacing
        first = max(first, math.ceil(shown_low / spacing - 0.5 - ALMOST))
        end = min(end, math.ceil(shown_high / spacing - 0.5 - ALMOST))
    if end <= first:  # smaller than a pixel: the one it lies on, or none of nothing
        middle = place.low + (place.start + place.stop) / 2 * place.spacing
        first = math.floor(middle / spacing)
        end = first + (1 if place.stop > place.start else 0)
    axis = AxisGrid(
        place.size, end - first, spacing / place.spacing, (first * spacing - place.low) / place.spacing, nearest
    )
    return Grid(axis, axis_coordinate(0.0, spacing, end - first, first))


def grid_by_shape(place: Place, count: int, nearest: bool) -> Grid:
    """Return the grid of so many pixels over what is shown."""
    shown = place.stop - place.start
    if count < 0 or (count > 0) != (shown > 0):
        raise OptionError(f"{shown} pixels cannot be resampled to {count}")
    scale = shown / count if count else 1.0
    axis = AxisGrid(place.size, count, scale, float(place.start), nearest)
    if math.isnan(place.low):
        return Grid(axis, None)
    return Grid(axis, axis_coordinate(place.low + place.start * place.spacing, scale * place.spacing, count))


def grid_like(place: Place, other: xr.DataArray, dim: str, spacing: float, nearest: bool) -> Grid:
    """Return the grid of another image."""
    coordinate: Any = other.coords[dim].values
    count = len(coordinate)
    if not count:
        return Grid(AxisGrid(place.size, 0, spacing / place.spacing, 0.0, nearest), coordinate)
    low = float(coordinate[0]) - spacing / 2
    scale, offset = spacing / place.spacing, (low - place.low) / place.spacing
    centres = offset + (np.arange(count) + 0.5) * scale
    # On the border of two pixels is the right one, as in `AxisGrid.picks`: parts of an image share no pixel.
    inside = np.flatnonzero((centres >= place.start - ALMOST) & (centres < place.stop - ALMOST))
    first, end = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
    axis = AxisGrid(place.size, end - first, scale, offset + first * scale, nearest)
    return Grid(axis, coordinate, first, count - end)


def is_stored(grid: Grid) -> bool:
    """Tell whether a grid is that of the source's own pixels."""
    axis = grid.axis
    shift = axis.offset - round(axis.offset)
    return abs(axis.scale - 1) * max(axis.count, 1) < ALMOST and abs(shift) < ALMOST and round(axis.offset) >= 0


def clean(grid: Grid) -> Grid:
    """Return a grid whose scale and offset are whole numbers where they almost are: those are resampled faster."""
    axis = grid.axis
    scale, offset = axis.scale, axis.offset
    if abs(scale - round(scale)) * axis.count < ALMOST * 10 and round(scale) >= 1:
        scale = float(round(scale))
    if abs(offset - round(offset)) < ALMOST:
        offset = float(round(offset))
    return replace(grid, axis=replace(axis, scale=scale, offset=offset))
