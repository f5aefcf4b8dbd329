"""Lazy arrays as variables, and as Dask arrays under names that nothing else has."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import xarray as xr
from dask.base import tokenize
from xarray.core.indexing import LazilyIndexedArray

from microtome import config
from microtome.lazy.base import LazyArray
from microtome.lazy.unwrap import remember_chunked, unwrap

__all__ = ["in_blocks", "lazy_variable", "to_dask"]


def lazy_variable(array: LazyArray, dims: Sequence[Hashable], key: tuple[Any, ...] | None = None) -> xr.Variable:
    """Return a variable that shows a lazy array, or a part of it.

    Parameters
    ----------
    array
        What to show.
    dims
        A name for each of its axes.
    key
        One element an axis; None for all.
    """
    variable = xr.Variable(dims, LazilyIndexedArray(array))
    return variable if key is None else variable.isel(dict(zip(dims, key, strict=True)))


def to_dask(variable: xr.Variable, array: LazyArray, chunks: Mapping[Any, Any], part: str = "") -> xr.Variable:
    """Return a variable as a Dask array, each task of which carries what it shows.

    Parameters
    ----------
    variable
        Shows ``array``, or a part of it.
    array
        Names the pixels.
    chunks
        Extent of a block along each dimension.
    part
        Names the part, where it is one.
    """
    name_only = xr.Dataset({"image": variable}).chunk(
        chunks, name_prefix="microtome-", token=array.token + part, inline_array=True
    )
    chunked: xr.Variable = name_only["image"].variable
    if not part:
        data: Any = chunked.data
        remember_chunked(data.name, array)
    return chunked


def in_blocks(variable: xr.Variable) -> xr.Variable:
    """Return a variable that shows a lazy array as a Dask array: for work that would else read all of it at once.

    Any other variable is returned as it is.
    """
    view = None if hasattr(variable._data, "__dask_graph__") else unwrap(variable)
    if view is None:
        return variable
    spread = ["patch"] if "patch" in variable.dims else [d for d in variable.dims if d in ("y", "x", "row", "column")]
    each = variable.dtype.itemsize * math.prod(n for d, n in variable.sizes.items() if d not in spread)
    extent = max(1, int((config.get().block_bytes / max(each, 1)) ** (1 / max(len(spread), 1))))
    return to_dask(variable, view.array, dict.fromkeys(spread, extent), f"-{tokenize(view.key)}")
