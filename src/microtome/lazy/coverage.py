"""Which pixels of an image are real, as an array like the image."""

from __future__ import annotations

from typing import Any

import xarray as xr
from xarray.core.indexing import LazilyIndexedArray

from microtome.errors import OptionError
from microtome.lazy.array import SlideArray
from microtome.lazy.unwrap import View

__all__ = ["coverage"]


def coverage(image: xr.DataArray, view: View | None) -> xr.DataArray:
    """Return the coverage of a view, with the coordinates of its image, chunked as the image is."""
    if view is None:
        raise OptionError(
            "this array is not a part of a slide as it is stored: its coverage is that of what it is made from"
        )
    source = view.array
    covered = SlideArray.of(source.opened, source.node, "coverage")
    key = dict(zip(source.dims, view.key, strict=True))
    names = {"y": "row", "x": "column"} if "row" in image.dims else {}
    variable = xr.Variable([names.get(d, d) for d in covered.dims], LazilyIndexedArray(covered))
    variable = variable.isel({names.get(d, d): key[d] for d in covered.dims})
    coords = {name: c for name, c in image.coords.items() if set(c.dims) <= set(variable.dims) and name != "c"}
    if "c" in variable.dims and "c" in image.coords:
        coords["c"] = image.coords["c"]
    result = xr.DataArray(variable, coords=coords, name="coverage")
    if image.chunks is None:
        return result
    chunks: dict[Any, Any] = {d: n for d, n in image.chunksizes.items() if d in variable.dims}
    data: Any = result.chunk(chunks, name_prefix="microtome-", token=f"{covered.token}{view.key}", inline_array=True)
    chunked: xr.DataArray = data
    return chunked
