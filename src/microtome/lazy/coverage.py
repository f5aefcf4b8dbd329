"""Which pixels of an image are real, as an array like the image."""

from __future__ import annotations

from typing import Any

import xarray as xr
from dask.base import tokenize

from microtome.errors import OptionError
from microtome.lazy.base import plane_dims
from microtome.lazy.chunked import lazy_variable, to_dask
from microtome.lazy.unwrap import View

__all__ = ["coverage"]


def coverage(image: xr.DataArray, view: View | None) -> xr.DataArray:
    """Return the coverage of a view, with the coordinates of its image, chunked as the image is."""
    if view is None:
        raise OptionError(
            "this array is not a part of a slide, nor computed by one of our operations: its coverage is that of what "
            "it is made from"
        )
    covered, key = view.array.coverage(view.key)
    names = dict(zip(("y", "x"), plane_dims(image.dims), strict=True))
    variable = lazy_variable(covered, [names.get(d, d) for d in covered.dims], key)
    coords = {name: c for name, c in image.coords.items() if set(c.dims) <= set(variable.dims) and name != "c"}
    if "c" in variable.dims and "c" in image.coords:
        coords["c"] = image.coords["c"]
    if image.chunks is not None:
        chunks: dict[Any, Any] = {d: n for d, n in image.chunksizes.items() if d in variable.dims}
        variable = to_dask(variable, covered, chunks, tokenize(key))
    return xr.DataArray(variable, coords=coords, name="coverage")
