"""Patches of many slides as one lazy array: reading some of them touches their slides only.

A Dask task carries the recipe of one slide and the places of its own patches, so no task, and no process that only
builds tasks, has a slide open.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome import config
from microtome.errors import OptionError
from microtome.lazy import pool
from microtome.lazy.array import SlideArray
from microtome.lazy.base import LazyArray, Plans
from microtome.lazy.chunked import lazy_variable
from microtome.lazy.derived import DerivedArray
from microtome.lazy.unwrap import View, remember_chunked
from microtome.ops.patches.array import PatchArray, PatchReader, thin
from microtome.storage.uri import is_remote

__all__ = ["JoinedPatches", "closed", "joined_variable"]

Pixels = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


def closed(array: LazyArray) -> Any:
    """Return an array of the same pixels that holds no open slide: it is opened when read, and shared then."""
    result = copy.copy(array)  # made from what would be pickled; nothing is
    if isinstance(result, DerivedArray):
        result.source = closed(result.source)
    return result


class JoinedPatches(LazyArray):
    """Patches of several images, one image after the other: (patch, ..., y, x[, c]).

    Parameters
    ----------
    parts
        Those of each image, of one size, dtype and number of channels.
    """

    planar = False

    def __init__(self, parts: Sequence[PatchArray]) -> None:
        self.parts = tuple(parts)
        first = self.parts[0]
        if any((p.dims, p.shape[1:], p.dtype) != (first.dims, first.shape[1:], first.dtype) for p in self.parts):
            raise OptionError("patches of one size, type and number of channels can be joined, no others")
        self.node = first.node
        self.dims = first.dims
        self.dtype = first.dtype
        self.ends = np.cumsum([len(part.origins) for part in self.parts])
        self.shape = (int(self.ends[-1]), *first.shape[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedPatches, (self.parts,)

    @property
    def token(self) -> str:
        """Names the pixels."""
        tokens = [part.token for part in self.parts]
        return blake2b(repr(tokens).encode(), digest_size=12).hexdigest()

    @property
    def opened(self) -> NoReturn:
        """There is no one slide."""
        self._refuse()

    def window(self, key: tuple[Any, ...], keep: bool = False) -> NoReturn:
        """There is no one image."""
        self._refuse()

    def fill(self, key: tuple[Any, ...]) -> NoReturn:
        """There is no one image."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise OptionError(
            f"these are patches of {len(self.parts)} slides, which have no one profile or place: do to the images what "
            "is to be done before they are cut, by cohort.patches(..., image=...)"
        )

    def coverage(self, key: tuple[Any, ...]) -> tuple[LazyArray, tuple[Any, ...]]:
        """Return the array that says which pixels are real, and which part of it that is; opens all slides."""
        covered = [closed(part).coverage(key) for part in self.parts]
        return JoinedPatches([closed(array) for array, _ in covered]), covered[0][1]

    def groups(self, numbers: Indices) -> Iterator[tuple[int, Indices, Indices]]:
        """Yield, for each part that has some of the patches, its number, which ones they are, and theirs in it."""
        which = np.searchsorted(self.ends, numbers, side="right")
        order = np.argsort(which, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(which[order])) + 1) if len(order) else []:
            part = int(which[places[0]])
            yield part, places, numbers[places] - (self.ends[part] - len(self.parts[part].origins))

    def block(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels under one integer, slice or index array an axis, combined as by ``numpy.ix_``."""
        numbers = _numbers(key[0], self.shape[0])
        groups = list(self.groups(np.atleast_1d(numbers)))
        inner = [_length(k, n) for k, n in zip(key[1:], self.shape[1:], strict=True)]
        pixels = np.empty((numbers.size, *(n for n in inner if n is not None)), self.dtype)

        def read(group: tuple[int, Indices, Indices]) -> None:
            part, places, local = group
            pixels[places] = closed(self.parts[part]).block((local, *key[1:]))

        pool.run(read, groups, self._threads())
        return pixels if numbers.ndim else pixels[0]

    def points(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels at points: index arrays broadcast together, their axes first, then those of slices."""
        shape = np.broadcast_shapes(*(np.shape(k) for k in key if not isinstance(k, slice)))
        if isinstance(key[0], slice):
            # One behind the other along the axis of patches, which is the first behind those of the points.
            found = [closed(self.parts[n]).points((local, *key[1:])) for n, local in self._runs(key[0])]
            return np.concatenate(found, axis=len(shape))
        key = tuple(k if isinstance(k, slice) else thin(np.asarray(k)) for k in key)
        numbers = _numbers(key[0], self.shape[0])
        # Points of one part at a time. Where patches change along one axis only, the others stay as they are, so that
        # points that are whole patches are read as such.
        along = [axis - numbers.ndim + len(shape) for axis, n in enumerate(numbers.shape) if n > 1]
        axis = along[0] if len(along) == 1 else None
        if axis is None:
            spread = [k if isinstance(k, slice) else np.broadcast_to(k, shape).ravel() for k in (numbers, *key[1:])]
            flat = self._points_along(spread, np.broadcast_to(numbers, shape).ravel(), 0, (int(np.prod(shape)),))
            return flat.reshape(*shape, *flat.shape[1:])
        return self._points_along([numbers, *key[1:]], numbers.reshape(-1), axis, shape)

    def _points_along(self, key: list[Any], line: Indices, axis: int, shape: tuple[int, ...]) -> Pixels:
        """Return pixels at points of a broadcast shape along one axis of which patches change."""
        behind = len(shape) - axis
        slices = [_length(k, n) for k, n in zip(key, self.shape, strict=True) if isinstance(k, slice)]
        pixels = np.empty((*shape, *(n for n in slices if n is not None)), self.dtype)
        for part, places, local in self.groups(line):
            some: list[Any] = [
                k if isinstance(k, slice) or np.ndim(k) < behind or np.shape(k)[-behind] == 1
                else np.take(k, places, axis=np.ndim(k) - behind)
                for k in key
            ]  # fmt: skip
            some[0] = local.reshape((-1,) + (1,) * (behind - 1))
            pixels[(slice(None),) * axis + (places,)] = closed(self.parts[part]).points(tuple(some))
        return pixels

    def _runs(self, wanted: slice) -> list[tuple[int, slice]]:
        """Return the patches of a slice, in its order, as slices of parts."""
        numbers = _numbers(wanted, self.shape[0])
        step = wanted.indices(self.shape[0])[2]
        found = []
        for part, _, local in self.groups(numbers):
            stop = int(local[-1]) + step
            found.append((part, slice(int(local[0]), stop if stop >= 0 else None, step)))
        return found[:: 1 if step > 0 else -1] or [(0, slice(0, 0, 1))]

    def plans(self, key: tuple[Any, ...]) -> Plans:
        """Return what `block` would read."""
        numbers = np.atleast_1d(_numbers(key[0], self.shape[0]))
        return [plan for n, _, local in self.groups(numbers) for plan in closed(self.parts[n]).plans((local, *key[1:]))]

    def _threads(self) -> int:
        settings = config.get()
        return settings.io_threads if _remote(self.parts[0]) else settings.decode_threads


def _remote(array: LazyArray) -> bool:
    while isinstance(array, DerivedArray):
        array = array.source
    return isinstance(array, SlideArray) and (array.ref.recipe.web or is_remote(array.ref.recipe.names[0]))


def _numbers(k: Any, size: int) -> Indices:
    if isinstance(k, slice):
        return np.arange(*k.indices(size))
    numbers = np.asarray(k, np.int64)
    return np.where(numbers < 0, numbers + size, numbers)


def _length(k: Any, size: int) -> int | None:
    """Return how many elements a key selects along an axis; None where it drops it."""
    if isinstance(k, slice):
        return len(range(*k.indices(size)))
    return len(k) if np.ndim(k) else None


class _Group(NamedTuple):
    """Patches of one slide that a Dask task reads."""

    reader: PatchReader
    origins: Indices
    first: int
    """Number of the first one, among those of all slides."""


class _GroupReader:
    """What a Dask task does for its group; it carries nothing."""

    def __init__(self, whole: JoinedPatches | None = None) -> None:
        self.whole = whole  # which stays alive, and known, for as long as the Dask array is

    def __reduce__(self) -> tuple[Any, ...]:
        return _GroupReader, ()

    def __call__(self, groups: npt.NDArray[Any]) -> Pixels:
        """Return the pixels of a group, which is alone in its array."""
        reader, origins, first = groups[0]
        fresh = PatchReader(View(closed(reader.view.array), reader.view.key), reader.size, reader.value)
        return fresh(np.column_stack([origins, np.arange(first, first + len(origins))]))


def joined_variable(patched: JoinedPatches, chunk: int | None) -> xr.Variable:
    """Return patches of many slides as a variable: a Dask array, at most ``chunk`` of one slide a task, or lazy."""
    if chunk is None:
        return lazy_variable(patched, patched.dims)
    from dask import array

    da: Any = array

    groups: list[_Group] = []
    for part, end in zip(patched.parts, patched.ends.tolist(), strict=True):
        reader = PatchReader(View(part.source, part.key), part.extent, part.value)
        count = len(part.origins)
        # Without any patch, there is one task that makes none.
        starts = range(0, count, chunk) if patched.shape[0] else range(1 - len(groups))
        groups += [_Group(reader, part.origins[at : at + chunk], end - count + at) for at in starts]
    together = np.empty(len(groups), object)
    for n, group in enumerate(groups):
        together[n] = group
    name = f"microtome-patches-{patched.token}-{chunk}"
    inner = patched.shape[1:]
    patches = da.map_blocks(
        _GroupReader(patched),
        da.from_array(together, chunks=1, name=f"{name}-places"),
        dtype=patched.dtype,
        new_axis=list(range(1, 1 + len(inner))),
        chunks=(tuple(len(group.origins) for group in groups), *((n,) for n in inner)),
        meta=np.empty((0,) * patched.ndim, patched.dtype),
        name=name,
    )
    remember_chunked(patches.name, patched)
    return xr.Variable(patched.dims, patches)
