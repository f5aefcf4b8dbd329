"""A rectangle of an image, which may run off its edges: `wsi.region`."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError, SelectionError, SpacingUndefinedError
from microtome.lazy.base import plane_dims
from microtome.lazy.chunked import lazy_variable, to_dask
from microtome.lazy.parts import PaddedArray, padded
from microtome.lazy.unwrap import View, unwrap
from microtome.ops.grids import evenly, spacing_if_defined

__all__ = ["fill_values", "first_pixel", "region"]

LEAST = 512
"""Extent of a block along rows and columns, at the least."""


def region(
    image: xr.DataArray,
    y: float,
    x: float,
    height: int,
    width: int,
    *,
    unit: Literal["pixel", "mm"] = "pixel",
    fill: Any = None,
    require_inside: bool = False,
) -> xr.DataArray:
    """Return a rectangle of an image; see `ImageAccessor.region`."""
    dims = plane_dims(image.dims)
    if not set(dims) <= set(image.dims):
        raise OptionError(f"an image has dimensions y and x; this one has {', '.join(map(str, image.dims))}")
    if not (_whole(height) and _whole(width) and min(height, width) >= 0):
        raise OptionError(f"height={height!r}, width={width!r}: they are whole numbers of pixels, 0 or more")
    height, width = int(height), int(width)
    top, left = first_pixel(image, y, x, unit)
    rows, columns = image.sizes[dims[0]], image.sizes[dims[1]]
    spans = {dims[0]: (top, height, rows), dims[1]: (left, width, columns)}
    if all(first >= 0 and first + count <= size for first, count, size in spans.values()):
        return image.isel({d: slice(first, first + count) for d, (first, count, _) in spans.items()})
    if require_inside:
        raise SelectionError(
            f"rows {top} to {top + height} and columns {left} to {left + width} are not inside an image of "
            f"{rows} x {columns} pixels; without require_inside what lies outside is filled"
        )
    variable = _padded(image, dims, (top, left, height, width), fill)
    coords = {n: c for n, c in image.coords.items() if not set(c.dims) & set(dims)}
    for dim, (first, count, _) in spans.items():
        for name in image.coords:
            if image.coords[name].dims == (dim,) and name in (dim, f"{dim}_pixel"):
                coords[name] = _extended(image, str(name), dim, first, count)
    return xr.DataArray(variable, coords=coords, name=image.name, attrs=image.attrs)


def first_pixel(image: xr.DataArray, y: float, x: float, unit: str) -> tuple[int, int]:
    """Return the row and column of a place, given in pixels or in mm from level 0's corner (the nearest pixel edge).

    Raises
    ------
    OptionError
        Pixels that are no whole numbers, or an unknown unit.
    SpacingUndefinedError
        A place in mm on an image that has none.
    """
    if unit == "pixel":
        if not (_whole(y) and _whole(x)):
            raise OptionError(f"y={y!r}, x={x!r}: pixels are whole numbers; a place in mm is given with unit='mm'")
        return int(y), int(x)
    if unit != "mm":
        raise OptionError(f"unit={unit!r}: it is 'pixel' or 'mm'")
    spacing = spacing_if_defined(image) if {"y", "x"} <= image.sizes.keys() else None
    if spacing is None or not image.sizes["y"] or not image.sizes["x"]:
        raise SpacingUndefinedError("this image has no place in mm: give the place in pixels")
    evenly(image, "y", spacing.row)
    evenly(image, "x", spacing.column)
    if not (_finite(y) and _finite(x)):
        raise OptionError(f"y={y!r}, x={x!r}: a place in mm is two finite numbers")
    at = []
    for dim, mm, place in (("y", spacing.row, y), ("x", spacing.column, x)):
        low = float(image.coords[dim].variable[0].values) - mm / 2
        at.append(round((place - low) / mm))
    return at[0], at[1]


def fill_values(image: xr.DataArray, view: View | None, fill: Any) -> npt.NDArray[Any]:
    """Return the value of each channel beyond the edges of an image.

    Parameters
    ----------
    image
        Any image.
    view
        What it shows of a lazy array.
    fill
        One value, or one a channel; None for what the slide has where it has no frame, 0 where it says nothing.

    Raises
    ------
    OptionError
        It is no pixel of this image.
    """
    channels = image.sizes.get("c", 1)
    if fill is None:
        value: Any = view.array.fill(view.key) if view is not None else np.zeros(1, image.dtype)
        return np.broadcast_to(np.asarray(value), (channels,)).copy()
    try:
        wanted = np.atleast_1d(np.asarray(fill))
    except ValueError:  # ragged
        wanted = np.empty(0)
    if wanted.dtype.kind not in "bfiu" or wanted.shape not in ((1,), (channels,)) or not _fits(wanted, image.dtype):
        raise OptionError(f"fill={fill!r} is no pixel of {channels} channels of {image.dtype}")
    return np.broadcast_to(wanted.astype(image.dtype), (channels,)).copy()


def _fits(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether values are pixels of a dtype: of floats to its precision, of others to the bit."""
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
    if dtype.kind == "f":
        return bool(np.all(np.isfinite(cast) == np.isfinite(values)))
    return bool(np.all(cast == values))


def _whole(value: Any) -> bool:
    return _finite(value) and value == int(value)


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _padded(image: xr.DataArray, dims: tuple[str, str], rectangle: tuple[int, int, int, int], fill: Any) -> xr.Variable:
    view = unwrap(image.variable)
    value = fill_values(image, view, fill)
    top, left, height, width = rectangle
    if view is not None and view.neighbours and view.shown_as(image.dims):
        array = PaddedArray(view.array, view.key, rectangle, tuple(value.tolist()))
        variable = lazy_variable(array, image.dims)
        if image.chunks is None:
            return variable
        # A crop may have tiny blocks, which would be very many of a large rectangle.
        chunks = {d: max(*c, LEAST if d in dims else 1) for d, c in image.chunksizes.items()}
        return to_dask(variable, array, chunks)
    rows, columns = image.sizes[dims[0]], image.sizes[dims[1]]
    inside = {
        dims[0]: slice(min(max(top, 0), rows), min(max(top + height, 0), rows)),
        dims[1]: slice(min(max(left, 0), columns), min(max(left + width, 0), columns)),
    }
    part = image.variable.isel(inside)
    before = {dims[0]: max(0, min(-top, height)), dims[1]: max(0, min(-left, width))}
    pads = {d: (before[d], n - before[d] - part.sizes[d]) for d, n in ((dims[0], height), (dims[1], width))}
    if "c" not in image.dims or (value == value[0]).all():
        return padded(part, pads, value[0])
    planes = [padded(part.isel(c=[n]), pads, v) for n, v in enumerate(value)]
    joined: xr.Variable = xr.concat([xr.DataArray(v) for v in planes], "c").variable
    return joined.transpose(*image.dims)


def _extended(image: xr.DataArray, name: str, dim: str, first: int, count: int) -> xr.Variable:
    """Return a coordinate that goes on beyond an image as it runs inside; inside it is the image's own."""
    own = image.coords[name].variable
    values = own.values
    step: Any
    if len(values) > 1:
        step = (values[-1] - values[0]) / (len(values) - 1)  # negative where the image is reversed
    elif name.endswith("_pixel"):
        step = 1
    else:
        spacing = spacing_if_defined(image)
        step = (spacing.row if dim == "y" else spacing.column) if spacing is not None else float("nan")
    if values.dtype.kind == "i":
        step = round(step)
    start = values[0] if len(values) else 0 if name.endswith("_pixel") else step / 2
    result = start + np.arange(first, first + count) * step
    low, high = min(max(first, 0), len(values)), min(max(first + count, 0), len(values))
    result[low - first : high - first] = values[low:high]
    return xr.Variable(dim, result, own.attrs)
