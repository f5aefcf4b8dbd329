"""The pixels of patches as lazy and as Dask arrays: read a group at a time, so that frames they share are decoded once.

A Dask task carries the recipe of the image, and the places of its own patches with their numbers. By the numbers,
`unwrap` finds out which patches a selection shows: a dataset in chunks leads back to the lazy array, which reads any
other groups of patches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.core.indexing import BasicIndexer

from microtome.lazy.base import LazyArray, Plans
from microtome.lazy.chunked import lazy_variable
from microtome.lazy.derived import DerivedArray
from microtome.lazy.parts import PaddedWindow
from microtome.lazy.unwrap import View, remember_chunked, unwrap
from microtome.lazy.window import Window

__all__ = ["PatchArray", "PatchReader", "dask_patches", "lazy_patches", "thin"]

Pixels = npt.NDArray[Any]
Origins = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


class PatchArray(DerivedArray):
    """Patches of an image: (patch, ..., y, x[, c]).

    Parameters
    ----------
    source, key
        The image.
    origins
        (patches, 2): row and column of the top left pixel of each, inside the image or not.
    size
        Rows and columns of a patch.
    value
        Value of each channel beyond the edges of the image.
    """

    planar = False
    numbers: Indices | None = None
    """Which ones of a larger array's patches these are; None where they are nobody's."""

    def __init__(
        self,
        source: LazyArray,
        key: tuple[Any, ...],
        origins: Origins,
        size: tuple[int, int],
        value: tuple[Any, ...],
    ) -> None:
        super().__init__(source, key, {"y": size[0], "x": size[1]}, source.dtype)
        self.dims = ("patch", *self.dims)
        self.shape = (len(origins), *self.shape)
        self.origins = origins
        self.extent = size
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return PatchArray, (self.source, self.key, self.origins, self.extent, self.value)

    @property
    def parameters(self) -> tuple[Any, ...]:
        """The places, the size and the fill."""
        from dask.base import tokenize

        return tokenize(self.origins), self.extent, self.value

    def coverage(self, key: tuple[Any, ...]) -> tuple[LazyArray, tuple[Any, ...]]:
        """Return the array that says which pixels are real, and which part of it that is; beyond the edges none are."""
        ours = dict(zip(self.dims, key, strict=True))
        covered, below = self.source.coverage(self.key)
        result = PatchArray(covered, below, self.origins, self.extent, (False,))
        return result, tuple(ours[d] for d in result.dims)

    def derive(self, key: tuple[Any, ...], keep: bool) -> Window:
        """Return the window of the whole image, with the planes and channels of a part of the source."""
        window = self.source.window(key, keep)
        value = np.asarray(self.value, self.dtype)
        if len(value) > 1:
            axis = self.source.dims.index("c")
            numbers = np.arange(self.source.shape[axis])
            own = numbers[self.key[axis]].tolist()
            value = value[[own.index(n) for n in np.atleast_1d(numbers[key[axis]]).tolist()]]
        return PaddedWindow(window, 0, 0, window.size, value)

    def _padded(self, key: tuple[Any, ...]) -> Window:
        """Return the window of the whole image, with the planes and channels of a key."""
        return self.derive(self.below(key, "y", "x"), keep=True)

    def _corners(self, patches: Any, top: int, left: int) -> list[tuple[int, int]]:
        chosen = self.origins[patches].reshape(-1, 2)
        return [(row + top, column + left) for row, column in chosen.tolist()]

    def _numbered(self, key: tuple[Any, ...], axis: int) -> Pixels:
        """Return the number of each selected pixel along an axis; of patches, in the larger array."""
        numbers = super()._numbered(key, axis)
        if axis or self.numbers is None:
            return numbers
        own = self.numbers[key[0]]
        return np.broadcast_to(own.reshape(own.shape + (1,) * (numbers.ndim - own.ndim)), numbers.shape)

    def _bounds(self, key: tuple[Any, ...]) -> tuple[slice, slice, tuple[Any, ...], list[Any]]:
        """Return rows and columns of patches that hold those of a key, a key of these, and what selects from them."""
        bounded, rest = self._bounded(key)
        at = dict(zip(self.dims, bounded, strict=True))
        return at["y"], at["x"], bounded, rest

    def block(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels under one integer, slice or index array an axis, combined as by ``numpy.ix_``."""
        rows, columns, bounded, rest = self._bounds(key)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        corners = self._corners(bounded[0], rows.start, columns.start)
        pixels = self._padded(bounded).read_many(corners, height, width, None)
        if np.ndim(bounded[0]) == 0 and not isinstance(bounded[0], slice):
            pixels = pixels[0]
        for axis in reversed(range(len(rest))):
            if rest[axis] is not None:
                pixels = pixels[(slice(None),) * axis + (rest[axis],)]
        return pixels

    def points(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels at points: index arrays broadcast together, their axes first, then those of slices."""
        at = dict(zip(self.dims, key, strict=True))
        sizes = dict(zip(self.dims, self.shape, strict=True))
        arrays = {d: np.asarray(k) for d, k in at.items() if not isinstance(k, slice)}
        shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
        arrays = {d: thin(a) for d, a in arrays.items()}
        spread = {d: [i - a.ndim + len(shape) for i, n in enumerate(a.shape) if n != 1] for d, a in arrays.items()}
        if len({i for axes in spread.values() for i in axes}) == sum(map(len, spread.values())):
            return self._crossed(at, arrays, shape, spread)
        unique = {d: np.unique(np.arange(sizes[d])[a], return_inverse=True) for d, a in arrays.items()}
        if {"patch", "y", "x"} <= arrays.keys() and math.prod(len(u) for u, _ in unique.values()) > math.prod(shape):
            return self._scattered(at, arrays)
        pixels = self.block(tuple(unique[d][0] if d in arrays else k for d, k in at.items()))
        order = sorted(range(len(self.dims)), key=lambda i: self.dims[i] not in arrays)
        result: Pixels = pixels.transpose(order)[tuple(inverse for _, inverse in unique.values())]
        return result

    def _crossed(
        self,
        at: dict[str, Any],
        arrays: dict[str, npt.NDArray[Any]],
        shape: tuple[int, ...],
        spread: dict[str, list[int]],
    ) -> Pixels:
        """Return pixels at points that are some patches, by all of some rows, and so on: xarray selects so, mostly.

        ``spread`` names the axes of the result along which each index array runs.
        """
        pixels = self.block(tuple(arrays[d].ravel() if d in arrays else k for d, k in at.items()))
        sizes: list[int] = []
        places: list[int] = []
        for d, n in zip(self.dims, pixels.shape, strict=True):
            axes = spread.get(d, [len(shape) + len(places)])
            sizes += [shape[i] for i in axes] if d in arrays else [n]
            places += axes
        rest = [n for d, n in zip(self.dims, pixels.shape, strict=True) if d not in arrays]
        return pixels.reshape(sizes).transpose(np.argsort(places)).reshape(*shape, *rest)

    def _scattered(self, at: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Pixels:
        """Return single pixels of patches: they are patches of one pixel, elsewhere."""
        spread = {d: a.ravel() for d, a in zip(arrays, np.broadcast_arrays(*arrays.values()), strict=True)}
        shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
        sizes = dict(zip(self.dims, self.shape, strict=True))
        inner = [np.arange(sizes[d])[spread[d]] for d in ("y", "x")]
        places = self.origins[spread["patch"]] + np.stack(inner, axis=1)
        single = PatchArray(self.source, self.key, places, (1, 1), self.value)
        pixels = single.block((slice(None),) * self.ndim)
        down = self.dims.index("y")
        pixels = pixels.reshape(*pixels.shape[:down], *pixels.shape[down + 2 :])
        rest = [d for d in self.dims if d not in ("patch", "y", "x")]
        order = [d for d in rest if d in arrays] + [d for d in rest if d not in arrays]
        pixels = pixels.transpose(0, *(1 + rest.index(d) for d in order))
        pixels = pixels[(np.arange(len(places)), *(spread[d] for d in order if d in arrays))]
        pixels = pixels[(slice(None), *(at[d] for d in order if d not in arrays))]
        result: Pixels = pixels.reshape(*shape, *pixels.shape[1:])
        return result

    def plans(self, key: tuple[Any, ...]) -> Plans:
        """Return what `block` would read."""
        rows, columns, bounded, _ = self._bounds(key)
        corners = self._corners(bounded[0], rows.start, columns.start)
        return self._padded(bounded).plans(corners, rows.stop - rows.start, columns.stop - columns.start)


def thin(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return index numbers, once along axes where they stay the same: xarray writes all of them out."""
    for axis, n in enumerate(numbers.shape):
        first = numbers.take([0] if n else [], axis)
        if n > 1 and (first == numbers.take([-1], axis)).all() and (first == numbers).all():
            numbers = first
    return numbers


class PatchReader:
    """What a Dask task does for its patches; it carries the image's recipe, and its own places only.

    Parameters
    ----------
    view
        The image.
    size, value
        See `PatchArray`.
    """

    def __init__(self, view: View, size: tuple[int, int], value: tuple[Any, ...]) -> None:
        self.view = view
        self.size = size
        self.value = value
        self.whole: PatchArray | None = None  # which stays alive, and known, for as long as the Dask array is

    def __reduce__(self) -> tuple[Any, ...]:
        return PatchReader, (self.view, self.size, self.value)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        empty = PatchArray(*self.view, np.empty((0, 2), np.int64), self.size, self.value)
        return ("microtome-patches", empty.token)

    def __call__(self, places: npt.NDArray[np.int64]) -> Pixels:
        """Return the pixels of patches: (patches, 3), row, column and number of each."""
        array = PatchArray(*self.view, places[:, :2], self.size, self.value)
        array.numbers = places[:, 2]
        pixels: Pixels = array[BasicIndexer((slice(None),) * array.ndim)]
        return pixels


def dask_patches(patched: PatchArray, chunk: int) -> Any:
    """Return patches as a Dask array, ``chunk`` of them a task."""
    from dask import array

    da: Any = array

    reader = PatchReader(View(patched.source, patched.key), patched.extent, patched.value)
    reader.whole = patched
    numbered = np.column_stack([patched.origins, np.arange(len(patched.origins))])
    places = da.from_array(numbered, chunks=(chunk, 3))
    inner = patched.shape[1:]
    patches = da.map_blocks(
        reader,
        places,
        dtype=patched.dtype,
        drop_axis=1,
        new_axis=list(range(1, 1 + len(inner))),
        chunks=(places.chunks[0], *((n,) for n in inner)),
        meta=np.empty((0,) * patched.ndim, patched.dtype),
        name=f"microtome-patches-{patched.token}-{chunk}",
    )
    remember_chunked(patches.name, patched)
    return patches


def lazy_patches(image: xr.DataArray) -> xr.DataArray | None:
    """Return patches without Dask, which read just what is selected; None where they are computed.

    Parameters
    ----------
    image
        The image of a dataset of patches, or a selection of it, in chunks or not.
    """
    view = unwrap(image.variable)
    if view is None or view.array.dims[:1] != ("patch",):
        return None
    variable = lazy_variable(view.array, view.array.dims, view.key)
    return image.copy(data=variable._data) if variable.dims == image.dims else None
