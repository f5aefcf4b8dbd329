"""Images on other grids: `wsi.at`, `wsi.resize`, `wsi.like`, `wsi.thumbnail`.

Our own lazy arrays become lazy arrays that read what they need; other Dask arrays are computed block by block, others
at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr

from microtome.errors import OptionError, SpacingUndefinedError
from microtome.lazy.array import SlideArray
from microtome.lazy.base import LazyArray, plane_dims
from microtome.lazy.chunked import in_blocks, lazy_variable, to_dask
from microtome.lazy.parts import PaddedArray, padded
from microtome.lazy.unwrap import View, unwrap
from microtome.model import PixelSpacing, SpacingLike
from microtome.ops.grids import (
    Grid,
    Place,
    clean,
    evenly,
    grid_by_shape,
    grid_by_spacing,
    grid_like,
    is_stored,
    place_of,
    spacing_if_defined,
)
from microtome.ops.levels import spacing_of, target_spacing
from microtome.ops.provenance import of_computed
from microtome.ops.resampled import ResampledArray, resampled_block
from microtome.ops.resampling import AxisGrid, resample

__all__ = ["Quality", "resize", "target_of"]

Quality = Literal["exact", "fast"]


def resize(
    image: xr.DataArray,
    *,
    spacing: PixelSpacing | None = None,
    shape: tuple[int, int] | None = None,
    like: xr.DataArray | None = None,
    nearest: bool | None = None,
    quality: Quality = "exact",
) -> xr.DataArray:
    """Return an image on another grid; see `ImageAccessor.resize`. One of spacing, shape and like is given."""
    if quality not in ("exact", "fast"):
        raise OptionError(f"quality={quality!r}: it is 'exact' or 'fast'")
    dims = plane_dims(image.dims)
    if not set(dims) <= set(image.dims):
        raise OptionError(f"an image has dimensions y and x; this one has {', '.join(map(str, image.dims))}")
    nearest = image.dtype == np.bool_ if nearest is None else nearest
    if image.dtype == np.bool_ and not nearest:
        raise OptionError("an image of bool is resampled by nearest neighbours only: convert it to float to average it")
    view = unwrap(image.variable)
    view = view if view is not None and view.neighbours and view.shown_as(image.dims) else None
    places = _places(image, dims, view)
    grids = [clean(g) for g in _grids(places, spacing, shape, like, dims, nearest)]
    if all(is_stored(g) and not g.before and not g.after for g in grids):
        spans = {d: _span(g, p) for d, g, p in zip(dims, grids, places, strict=True)}
        if all(s.start >= 0 and s.stop <= image.sizes[d] for d, s in spans.items()):
            return _relabelled(image.isel(spans), dims, like)
    y, x = grids
    if view is not None:
        variable = _from_view(image, view, y, x, quality == "fast" and not nearest)
    else:
        variable = _from_data(image, dims, y, x)
    return _labelled(image, variable, dims, grids, like)


def _places(image: xr.DataArray, dims: tuple[str, str], view: View | None) -> list[Place]:
    """Return where an image lies along its rows and columns: of a view, in all of its array."""
    spacing = spacing_if_defined(image) if dims == ("y", "x") else None
    mm = (spacing.row, spacing.column) if spacing is not None else (float("nan"),) * 2
    places = []
    for dim, name, value in zip(dims, ("y", "x"), mm, strict=True):
        start, size = 0, image.sizes[dim]
        if view is not None:
            axis = view.array.dims.index(name)
            start, size = view.key[axis].indices(view.array.shape[axis])[0], view.array.shape[axis]
        places.append(place_of(image, dim, start, size, value))
    return places


def _grids(
    places: list[Place],
    spacing: PixelSpacing | None,
    shape: tuple[int, int] | None,
    like: xr.DataArray | None,
    dims: tuple[str, str],
    nearest: bool,
) -> list[Grid]:
    if shape is not None:
        rows, columns = shape
        return [grid_by_shape(place, int(n), nearest) for place, n in zip(places, (rows, columns), strict=True)]
    if any(np.isnan(place.spacing) for place in places):
        raise SpacingUndefinedError(
            "the pixel spacing of this image is not stated in its file: it can be resampled to a shape, not to a "
            "spacing or to the grid of another image"
        )
    if spacing is not None:
        return [
            grid_by_spacing(place, mm, nearest) for place, mm in zip(places, (spacing.row, spacing.column), strict=True)
        ]
    assert like is not None
    theirs = spacing_of(like)
    evenly(like, "y", theirs.row)
    evenly(like, "x", theirs.column)
    return [
        grid_like(place, like, dim, mm, nearest)
        for place, dim, mm in zip(places, dims, (theirs.row, theirs.column), strict=True)
    ]


def _relabelled(stored: xr.DataArray, dims: tuple[str, str], like: xr.DataArray | None) -> xr.DataArray:
    """Return stored pixels with the coordinates of the image they are to be like: to the bit, or they do not join."""
    if like is None:
        return stored
    noisy = [d for d in dims if not np.array_equal(stored.coords[d].values, like.coords[d].values)]
    result: xr.DataArray = stored.assign_coords({d: like.coords[d].variable for d in noisy})
    return result


def _span(grid: Grid, place: Place) -> slice:
    first = round(grid.axis.offset) - place.start
    return slice(first, first + grid.axis.count)


def _from_view(image: xr.DataArray, view: View, y: Grid, x: Grid, fast: bool) -> xr.Variable:
    """Return the variable of a view on another grid, in blocks if the image is."""
    if fast:
        view, y, x = _reduced(view, y, x)
    key = tuple(
        slice(0, n, 1) if d in ("y", "x") else k
        for d, k, n in zip(view.array.dims, view.key, view.array.shape, strict=True)
    )
    resampled = ResampledArray(view.array, key, y.axis, x.axis)
    array: LazyArray = resampled
    if y.before or y.after or x.before or x.after:
        everything = tuple(slice(0, n, 1) for n in resampled.shape)
        rectangle = (-y.before, -x.before, y.axis.count + y.before + y.after, x.axis.count + x.before + x.after)
        channels = dict(zip(resampled.dims, resampled.shape, strict=True)).get("c", 1)
        value = tuple(np.broadcast_to(resampled.fill(everything), channels).tolist())
        array = PaddedArray(resampled, everything, rectangle, value)
    variable = lazy_variable(array, image.dims)
    if image.chunks is None:
        return variable
    names = dict(zip(("y", "x"), plane_dims(image.dims), strict=True))
    return to_dask(variable, array, {names.get(d, d): n for d, n in resampled_block(resampled).items()})


def _reduced(view: View, y: Grid, x: Grid) -> tuple[View, Grid, Grid]:
    """Return a view of frames decoded at a part of their size, and grids in its pixels; else what was given."""
    if not isinstance(view.array, SlideArray):
        return view, y, x
    for factor in (8, 4, 2):
        if all(_pays(factor, g.axis.scale) for g in (y, x)):
            array = view.array.reduced(factor)
            if array is not None:
                sizes = dict(zip(array.dims, array.shape, strict=True))
                grids = [
                    clean(replace(g, axis=replace(g.axis, size=sizes[d], scale=g.axis.scale / factor,
                                                  offset=g.axis.offset / factor)))
                    for d, g in (("y", y), ("x", x))
                ]  # fmt: skip
                return View(array, view.key), grids[0], grids[1]
    return view, y, x


def _pays(factor: int, scale: float) -> bool:
    """Tell whether frames may be decoded at 1/``factor``: what is left to be averaged is a whole number, or many."""
    ratio = scale / factor
    return ratio >= 2 or (ratio >= 1 - 1e-9 and abs(ratio - round(ratio)) < 1e-6)


def _from_data(image: xr.DataArray, dims: tuple[str, str], y: Grid, x: Grid) -> xr.Variable:
    """Return the variable of any other array on another grid: Dask stays Dask."""
    order: list[Hashable] = [d for d in image.dims if d not in (*dims, "c")] + list(dims)
    order += ["c"] if "c" in image.dims else []
    data: Any = in_blocks(image.variable).transpose(*order).data
    tail = () if "c" in image.dims else (np.newaxis,)
    data = data[(..., *tail)] if tail else data
    if hasattr(data, "__dask_graph__"):
        result = _blockwise(data, y.axis, x.axis)
    else:
        result = resample(np.asarray(data), y.axis, x.axis, (0, y.axis.count), (0, x.axis.count))
    result = result[..., 0] if tail else result
    pad: dict[Hashable, tuple[int, int]] = {d: (g.before, g.after) for d, g in zip(dims, (y, x), strict=True)}
    variable = padded(xr.Variable(order, result), pad, image.dtype.type(0))
    return variable.transpose(*image.dims)


def _blockwise(data: Any, y: AxisGrid, x: AxisGrid) -> Any:
    """Resample a Dask array (..., y, x, c), a task for each block of the result."""
    from dask import array

    da: Any = array
    if not (y.count and x.count):
        shape = (*data.shape[:-3], y.count, x.count, data.shape[-1])
        return da.zeros(shape, dtype=data.dtype, chunks=(*data.chunks[:-3], (y.count,), (x.count,), data.chunks[-1]))

    def cuts(axis: AxisGrid, extent: int) -> list[tuple[int, int]]:
        step = max(1, int(max(extent, 1) / max(axis.scale, 1e-9)))
        return [(a, min(a + step, axis.count)) for a in range(0, axis.count, step)] or [(0, 0)]

    rows, columns = (cuts(axis, max(data.chunks[n])) for axis, n in ((y, -3), (x, -2)))
    blocks = []
    for top, bottom in rows:
        row, end_row = y.support(top, bottom)
        line = []
        for left, right in columns:
            column, end_column = x.support(left, right)
            part = data[..., row:end_row, column:end_column, :]
            part = part.rechunk({part.ndim - 3: -1, part.ndim - 2: -1})
            work = partial(resample, y=y, x=x, rows=(top, bottom), columns=(left, right), origin=(row, column))
            chunks = (*part.chunks[:-3], (bottom - top,), (right - left,), part.chunks[-1])
            line.append(
                part.map_blocks(work, dtype=data.dtype, chunks=chunks, meta=np.empty((0,) * part.ndim, data.dtype))
            )
        blocks.append(da.concatenate(line, axis=-2))
    return da.concatenate(blocks, axis=-3)


def _labelled(
    image: xr.DataArray,
    variable: xr.Variable,
    dims: tuple[str, str],
    grids: Sequence[Grid],
    like: xr.DataArray | None,
) -> xr.DataArray:
    """Return a variable with the coordinates of its grid, and those of the image that are still true."""
    coords: dict[Hashable, Any] = {
        name: c for name, c in image.coords.items() if not set(c.dims) & set(dims) and name not in dims
    }
    for dim, grid in zip(dims, grids, strict=True):
        if grid.coordinate is not None:
            source = like.coords[dim] if like is not None else image.coords[dim]
            coords[dim] = xr.Variable(dim, grid.coordinate, source.attrs)
    result = xr.DataArray(variable, coords=coords, name=image.name)
    result.attrs = of_computed(image.attrs)
    if all(g.coordinate is not None for g in grids) and dims == ("y", "x"):
        spacing = _spacing(image, grids, like)
        result.attrs["pixel_spacing_mm"] = [spacing.row, spacing.column]
    return result


def _spacing(image: xr.DataArray, grids: Sequence[Grid], like: xr.DataArray | None) -> PixelSpacing:
    if like is not None:
        return spacing_of(like)
    stored = spacing_if_defined(image)
    assert stored is not None
    return PixelSpacing(stored.row * grids[0].axis.scale, stored.column * grids[1].axis.scale)


def target_of(
    spacing: SpacingLike | None,
    magnification: str | float | None,
    shape: tuple[int, int] | None,
    like: xr.DataArray | None,
) -> Mapping[str, Any]:
    """Return the one target that was given, for `resize`.

    Raises
    ------
    OptionError
        None was given, or several.
    """
    given = [v is not None for v in (spacing, magnification, shape, like)]
    if sum(given) != 1:
        raise OptionError("one of spacing=, magnification=, shape=, like= says what grid is wanted")
    if shape is not None:
        return {"shape": _checked_shape(shape)}
    if like is not None:
        return {"like": like}
    return {"spacing": target_spacing(spacing, magnification)}


def _checked_shape(shape: Any) -> tuple[int, int]:
    try:
        rows, columns = shape
        if rows != int(rows) or columns != int(columns) or min(rows, columns) < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"shape={shape!r}: it is (rows, columns), whole numbers of pixels") from None
    return int(rows), int(columns)
