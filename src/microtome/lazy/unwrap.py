"""From a variable back to the lazy array under it, and the part of it that the variable shows.

The only place that looks into xarray's and Dask's wrappers. What cannot be unwrapped is no error: it is computed as any
array is.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from dask.base import compute
from xarray.core.indexing import (
    CopyOnWriteArray,
    ImplicitToExplicitIndexingAdapter,
    LazilyIndexedArray,
    MemoryCachedArray,
)

from microtome.lazy.base import LazyArray, Plans, contiguous, plane_dims, probing, recording
from microtome.lazy.window import Window

__all__ = ["View", "crop_plans", "remember_chunked", "requests", "unwrap"]

_WRAPPERS = (CopyOnWriteArray, ImplicitToExplicitIndexingAdapter, MemoryCachedArray)
_chunked: weakref.WeakValueDictionary[str, LazyArray] = weakref.WeakValueDictionary()


class View(NamedTuple):
    """Part of a lazy array: one integer, slice of step 1, or other indexer along each of its axes."""

    array: LazyArray
    key: tuple[Any, ...]

    @property
    def neighbours(self) -> bool:
        """Whether the view shows neighbouring pixels of an image."""
        return self.array.planar and all(
            contiguous(k) for d, k in zip(self.array.dims, self.key, strict=True) if d in ("y", "x")
        )

    def shown_as(self, dims: Sequence[Hashable]) -> bool:
        """Whether a variable of these dimensions has the axes of the view, in their order."""
        plane = dict(zip(("y", "x"), plane_dims(dims), strict=True))
        shown = (d for d, k in zip(self.array.dims, self.key, strict=True) if not isinstance(k, int | np.integer))
        return [plane.get(d, d) for d in shown] == list(dims)

    def window(self, keep: bool = False) -> Window | None:
        """Return the view prepared for reading, where it shows neighbouring pixels; else None."""
        return self.array.window(self.key, keep) if self.neighbours else None


def remember_chunked(name: str, array: LazyArray) -> None:
    """Note that the Dask array of this name has the lazy array under it."""
    first = _chunked.setdefault(name, array)
    if first is not array:
        # The slide was opened before. The name must be known for as long as either array lives: keep the one it names.
        array.twin = first


def unwrap(variable: xr.Variable) -> View | None:
    """Return what a variable shows of a lazy array; None where it shows something else."""
    data: Any = variable._data
    if hasattr(data, "__dask_graph__"):
        return _unwrap_dask(variable)
    key: tuple[Any, ...] | None = None
    while not isinstance(data, LazyArray):
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
    """Return a key whose slices say where they begin and end, and go forwards; what does not is an index array."""
    return tuple(_forwards(k, n) for k, n in zip(key, shape, strict=True))


def _forwards(k: Any, size: int) -> Any:
    if isinstance(k, slice):
        return slice(*k.indices(size)) if (k.step or 1) > 0 else np.arange(size)[k]
    if isinstance(k, np.ndarray) and k.ndim == 1 and k.size and k[0] >= 0 and (np.diff(k) == 1).all():
        return slice(int(k[0]), int(k[-1]) + 1, 1)
    return k


def _unwrap_dask(variable: xr.Variable) -> View | None:
    """Unwrap a Dask array that is one of ours, or slices of it.

    Slicing leaves no record that could be trusted: it may have reversed or reordered pixels. So the array is asked, one
    axis at a time, which pixels of the source it shows, by computing it on pixel numbers instead of pixels.
    """
    data: Any = variable._data
    source = _sliced_from(data)
    if source is None:
        return None
    if _chunked.get(data.name) is source:
        return View(source, tuple(slice(0, n, 1) for n in source.shape))
    names = dict(zip(("y", "x"), plane_dims(variable.dims), strict=True))
    dims = [names.get(d, d) for d in source.dims]
    if not set(variable.dims) <= set(dims):
        return None
    key: list[Any] = []
    if 0 in data.shape:  # no pixel, so any place will do; repeated ones may be more than the source has
        sizes = dict(zip(variable.dims, variable.shape, strict=True))
        for dim, n in zip(dims, source.shape, strict=True):
            count = sizes.get(dim)
            key.append(0 if count is None else slice(0, count, 1) if count <= n else np.zeros(count, np.int64))
        return View(source, tuple(key))
    for axis, dim in enumerate(dims):
        line = data[tuple(slice(None) if d == dim else slice(0, 1) for d in variable.dims)]
        with probing(axis):
            numbers = np.asarray(line.compute(scheduler="synchronous")).ravel()
        if dim not in variable.dims:
            key.append(int(numbers[0]))
        elif np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers))):
            key.append(slice(int(numbers[0]), int(numbers[0]) + len(numbers), 1))
        else:
            key.append(numbers)
    return View(source, tuple(key))


def _sliced_from(data: Any) -> LazyArray | None:
    """Return the lazy array under a Dask array that has nothing but slicing on top."""
    layers, name = data.dask.layers, data.name
    for _ in range(len(layers)):
        source = _chunked.get(name)
        if source is not None:
            return source
        below = data.dask.dependencies.get(name, ())
        if not str(name).startswith("getitem") or len(below) != 1:
            return None
        (name,) = below
    return None


def requests(data: Any) -> Plans:
    """Return what computing a Dask array of ours, or a crop of it, would read; nothing is read."""
    with recording() as plans:
        # Block by block: what each answers is the memory of one pixel, what is made of all of them would not be.
        together: Any = compute
        together(*data.to_delayed().ravel(), scheduler="synchronous")
    return plans


def crop_plans(variable: xr.Variable) -> Plans | None:
    """Return what reading a variable takes; None where it is no view of a lazy array."""
    data: Any = variable._data
    if hasattr(data, "__dask_graph__"):
        return requests(data) if _sliced_from(data) is not None else None
    view = unwrap(variable)
    return None if view is None else view.array.plans(view.key)
