"""From a variable back to the lazy array under it, and the part of it that the variable shows.

The only place that looks into xarray's and Dask's wrappers. What cannot be unwrapped is no error: it is computed as any
array is.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from xarray.core.indexing import (
    CopyOnWriteArray,
    ImplicitToExplicitIndexingAdapter,
    LazilyIndexedArray,
    MemoryCachedArray,
)

from microtome.lazy.array import SlideArray, recording

__all__ = ["View", "remember_chunked", "requests", "unwrap"]

_WRAPPERS = (CopyOnWriteArray, ImplicitToExplicitIndexingAdapter, MemoryCachedArray)
_chunked: weakref.WeakValueDictionary[str, SlideArray] = weakref.WeakValueDictionary()


class View(NamedTuple):
    """Part of a lazy array: one integer, slice of step 1, or other indexer along each of its axes."""

    array: SlideArray
    key: tuple[Any, ...]

    @property
    def window(self) -> tuple[int, int] | None:
        """Row and column of the array at which a view begins that shows neighbouring pixels, else None."""
        starts = []
        for dim in ("y", "x"):
            k = self.key[self.array.dims.index(dim)]
            if not isinstance(k, slice) or k.step not in (None, 1):
                return None
            starts.append(k.start or 0)
        return starts[0], starts[1]


def remember_chunked(name: str, array: SlideArray) -> None:
    """Note that the Dask array of this name has the lazy array under it."""
    _chunked[name] = array


def unwrap(variable: xr.Variable) -> View | None:
    """Return what a variable shows of a lazy array; None where it shows something else."""
    data: Any = variable._data
    if hasattr(data, "__dask_graph__"):
        return _unwrap_dask(data)
    key: tuple[Any, ...] | None = None
    while not isinstance(data, SlideArray):
        if isinstance(data, LazilyIndexedArray):
            if key is not None:
                return None
            key = data.key.tuple
            data = data.array
        elif isinstance(data, _WRAPPERS):
            data = data.array
        else:
            return None
    return View(data, _plain(key or (slice(None),) * data.ndim, data.shape))


def _plain(key: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return a key whose slices say where they begin and end."""
    return tuple(
        slice(*k.indices(n)) if isinstance(k, slice) and (k.step or 1) > 0 else k
        for k, n in zip(key, shape, strict=True)
    )


def _unwrap_dask(data: Any) -> View | None:
    """Unwrap a Dask array that is one of ours, or crops of it; found by asking for its corners."""
    whole = _chunked.get(data.name)
    if whole is not None:
        return View(whole, tuple(slice(0, n, 1) for n in whole.shape))
    if not _only_crops(data) or 0 in data.shape:
        return None
    first = requests(data[(slice(0, 1),) * data.ndim])
    last = requests(data[(slice(-1, None),) * data.ndim])
    if len(first) != 1 or len(last) != 1 or first[0][0].token != last[0][0].token:
        return None
    array, low = first[0]
    _, high = last[0]
    key: list[Any] = []
    shape = list(data.shape)
    for a, b in zip(low, high, strict=True):
        if isinstance(a, int | np.integer):
            if a != b:
                return None
            key.append(int(a))
            continue
        if not isinstance(a, slice) or not isinstance(b, slice) or not shape or b.stop - a.start != shape.pop(0):
            return None
        key.append(slice(a.start, b.stop, 1))
    return View(array, tuple(key)) if not shape else None


def _only_crops(data: Any) -> bool:
    """Tell whether a Dask array is one of ours with nothing but slicing on top."""
    layers, name = data.dask.layers, data.name
    for _ in range(len(layers)):
        if name in _chunked:
            return True
        below = data.dask.dependencies.get(name, ())
        if not str(name).startswith("getitem") or len(below) != 1:
            return False
        (name,) = below
    return False


def requests(data: Any) -> list[tuple[SlideArray, tuple[Any, ...]]]:
    """Return what computing a Dask array of ours, or a crop of it, would ask of lazy arrays; nothing is read.

    Each element is the array and the key asked of it.
    """
    with recording() as notes:
        data.compute(scheduler="synchronous")
    return [(array, _plain(key, array.shape)) for array, key in notes]


def crop_requests(variable: xr.Variable) -> list[tuple[SlideArray, tuple[Any, ...]]] | None:
    """Return what reading a variable would ask of lazy arrays; None where it is no view of one."""
    data: Any = variable._data
    if hasattr(data, "__dask_graph__"):
        return requests(data) if _only_crops(data) else None
    view = unwrap(variable)
    return None if view is None else [(view.array, view.key)]
