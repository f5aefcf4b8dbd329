"""The lazy array: what xarray indexes, and what a Dask task carries."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from xarray.backends import BackendArray
from xarray.core.indexing import ExplicitIndexer, VectorizedIndexer

from microtome.lazy.axis import Axis, Run, length, normalize
from microtome.lazy.buffers import empty
from microtome.lazy.plan import Grouping, Plan, plan_points
from microtome.lazy.reader import LevelReader
from microtome.lazy.recipe import OpenSlide, SlideRef, forget_open_slides, resolve
from microtome.lazy.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Kind", "SlideArray", "probing", "recording"]

Kind = Literal["image", "coverage"]
Pixels = npt.NDArray[Any]
AXES = ("z", "path", "y", "x", "c")
_local = threading.local()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_open_slides)


@contextmanager
def recording() -> Iterator[list[tuple[SlideArray, tuple[Any, ...]]]]:
    """Let arrays note what this thread asks of them, and answer with zeros, instead of reading."""
    notes: list[tuple[SlideArray, tuple[Any, ...]]] = []
    before, _local.probe = getattr(_local, "probe", None), notes
    try:
        yield notes
    finally:
        _local.probe = before


@contextmanager
def probing(axis: int) -> Iterator[None]:
    """Let arrays answer this thread with the numbers of pixels along one of their axes, instead of pixels."""
    before, _local.probe = getattr(_local, "probe", None), axis
    try:
        yield
    finally:
        _local.probe = before


class SlideArray(BackendArray):
    """Pixels of one image of a slide, or which of them are real, by NumPy's and xarray's rules of indexing.

    Reads exactly the frames under a selection. Pickles to a reference; the slide is opened again where it is read.

    Parameters
    ----------
    ref
        Which slide.
    node
        Path of the image in the tree.
    kind
        Pixels, or whether a frame covers them.
    dims
        Of ``z``, ``path``, ``y``, ``x``, ``c``, in this order.
    shape, dtype
        Of the array.
    opened
        The slide, where this process has it open.
    """

    def __init__(
        self,
        ref: SlideRef,
        node: str,
        kind: Kind,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        opened: OpenSlide | None = None,
    ) -> None:
        self.ref = ref
        self.node = node
        self.kind = kind
        self.dims = dims
        self.shape = shape
        self.dtype = dtype
        self._opened = opened
        self._reader = opened.reader(node) if opened else None
        self._pid = os.getpid()
        self._window: Window | None = None
        self.twin: SlideArray | None = None
        """An equal array of an earlier opening, which this one keeps alive; see `remember_chunked`."""

    @classmethod
    def of(cls, opened: OpenSlide, node: str, kind: Kind = "image") -> SlideArray:
        """Return the array of a node of an open slide."""
        reader = opened.reader(node)
        z, paths, rows, columns, samples = reader.shape
        sizes = {"z": z, "path": paths, "y": rows, "x": columns, "c": samples if reader.colour else paths}
        drop = {d for d in ("z", "path") if sizes[d] == 1 or (d == "path" and not reader.colour)}
        if kind == "coverage" and reader.colour:
            drop.add("c")
        dims = tuple(d for d in sizes if d not in drop)
        dtype = reader.dtype if kind == "image" else np.dtype(bool)
        return cls(opened.ref, node, kind, dims, tuple(sizes[d] for d in dims), dtype, opened)

    def __reduce__(self) -> tuple[Any, ...]:
        return SlideArray, (self.ref, self.node, self.kind, self.dims, self.shape, self.dtype)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("microtome", self.token)

    @property
    def token(self) -> str:
        """Names the pixels: the same in every process, another for other files, options, nodes, or ways to them."""
        return f"{self.ref.token}-{self.node}-{self.kind}"

    def __repr__(self) -> str:
        return f"<microtome {self.kind} of {self.node} {self.shape} {self.dtype}>"

    @property
    def opened(self) -> OpenSlide:
        """The slide, opened in this process."""
        if self._opened is None or self._pid != os.getpid():
            self._opened = resolve(self.ref)
            self._reader = self._opened.reader(self.node)
            self._pid = os.getpid()
        return self._opened

    @property
    def reader(self) -> LevelReader:
        """What reads the pixels."""
        if self._reader is None or self._pid != os.getpid():
            self._reader = self.opened.reader(self.node)
        return self._reader

    def __getitem__(self, key: ExplicitIndexer) -> Pixels:
        probe = getattr(_local, "probe", None)
        if isinstance(probe, list):
            probe.append((self, key.tuple))
            return _zeros(self, key)
        if probe is not None:
            return _numbered(self, key.tuple, probe)
        if isinstance(key, VectorizedIndexer):
            return self._points(key.tuple)
        return self.block(key.tuple)

    def select(self, key: tuple[Any, ...]) -> tuple[dict[str, Axis], set[str], set[str]]:
        """Return what is selected along each axis, which axes are reversed, and which are dropped."""
        axes: dict[str, Axis] = dict.fromkeys(AXES, Run(0, 1))
        reverse: set[str] = set()
        dropped = set(axes) - set(self.dims)
        for dim, k, size in zip(self.dims, key, self.shape, strict=True):
            if isinstance(k, slice):
                axes[dim], backwards = normalize(k, size)
                if backwards:
                    reverse.add(dim)
            elif isinstance(k, np.ndarray) and k.ndim:
                axes[dim], _ = normalize(k, size)
            else:
                axes[dim], _ = normalize(np.atleast_1d(k), size)
                dropped.add(dim)
        if not self.reader.colour:
            axes["path"], axes["c"] = axes["c"], Run(0, 1)
        elif self.kind == "coverage":
            axes["c"] = Run(0, 1)
        return axes, reverse, dropped

    def _rectangle(self, key: tuple[Any, ...]) -> tuple[int, int, int, int] | None:
        """Return row, column, height and width of a key that selects a rectangle of all planes; else None."""
        at = []
        for dim, k, n in zip(self.dims, key, self.shape, strict=True):
            if type(k) is not slice or k.step not in (None, 1):
                return None
            start, stop = k.start or 0, n if k.stop is None else k.stop
            if dim in ("y", "x"):
                if not 0 <= start <= stop <= n:
                    return None
                at += [start, stop - start]
            elif start != 0 or stop < n:
                return None
        return at[0], at[2], at[1], at[3]

    def block(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels under one integer, slice or index array an axis, combined as by ``numpy.ix_``."""
        rectangle = self._rectangle(key) if self.kind == "image" else None
        if rectangle is not None:  # what nearly every read is, the shortest way
            window = self._window
            if window is None or not window.current:
                window = self._window = Window(self, (slice(None),) * self.ndim)
            return window.read(*rectangle, None)
        axes, reverse, dropped = self.select(key)
        reader = self.reader
        planes = reader.planes(axes["z"], axes["path"])
        z, paths, channels = length(axes["z"]), length(axes["path"]), length(axes["c"])
        stack = (z, paths) if reader.colour else (z, 1)
        shape = (*stack, length(axes["y"]), length(axes["x"]), channels if reader.colour else paths)
        full = empty(shape, self.dtype)
        if self.kind == "coverage":
            full[...] = False
            reader.cover(planes, axes["y"], axes["x"], reader.view(full))
        elif full.size:
            reader.read(planes, [(axes["y"], axes["x"])], reader.view(full), reader.channel_key(axes["c"]))
        index: list[Any] = [0 if d in dropped else slice(None, None, -1 if d in reverse else None) for d in AXES]
        if not reader.colour:
            index[1] = 0  # optical paths are along c
        result: Pixels = full[tuple(index)]
        return result

    def _points(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels at points: index arrays broadcast together, their axes first, then those of slices."""
        reader = self.reader
        arrays = {d: np.asarray(k) for d, k in zip(self.dims, key, strict=True) if not isinstance(k, slice)}
        shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
        slices = {
            d: range(*k.indices(n)) for d, k, n in zip(self.dims, key, self.shape, strict=True) if isinstance(k, slice)
        }
        # Colour channels come with a frame: selected afterwards, not looked up one by one.
        whole_colour = reader.colour and "c" in slices and self.kind == "image"
        spread = [d for d in slices if not (d == "c" and whole_colour)]
        full = shape + tuple(len(slices[d]) for d in spread)
        index: dict[str, npt.NDArray[np.int64]] = {}
        for d, n in zip(self.dims, self.shape, strict=True):
            if d in arrays:
                values = normalize(arrays[d].ravel(), n)[0]
                assert not isinstance(values, Run)
                a = values.reshape(arrays[d].shape)
                a = a.reshape((1,) * (len(shape) - a.ndim) + a.shape + (1,) * len(spread))
            elif d in spread:
                a = np.asarray(slices[d], np.int64).reshape(
                    (1,) * len(shape) + tuple(-1 if s == d else 1 for s in spread)
                )
            else:
                continue
            index[d] = np.broadcast_to(a, full).ravel()
        count = int(np.prod(full, dtype=np.int64))
        zero = np.zeros(count, np.int64)
        path = index.get("path" if reader.colour else "c", zero)
        place = (index.get("z", zero), path, index["y"], index["x"])
        if self.kind == "coverage":
            covered = np.zeros(count, np.bool_)
            plan = plan_points(reader.level, reader.level.planes, *place, Grouping(1))
            for unit in plan.units:
                for jobs in unit.jobs:
                    covered[jobs[0].target] = True
            return covered.reshape(full)
        pixels = reader.read_points(*place)
        if whole_colour:
            return pixels[:, slices["c"]].reshape(*full, len(slices["c"]))
        if reader.colour:
            pixels = np.take_along_axis(pixels, index["c"][:, np.newaxis], axis=1)
        return pixels.reshape(full)

    def plan(self, key: tuple[Any, ...]) -> Plan:
        """Plan what `block` would read."""
        axes, _, _ = self.select(key)
        return self.reader.plan(self.reader.planes(axes["z"], axes["path"]), [(axes["y"], axes["x"])])


def _numbered(array: SlideArray, key: tuple[Any, ...], axis: int) -> Pixels:
    """Return the number of each selected pixel along an axis, in the shape of the selection."""
    picked = [np.arange(n)[k] for k, n in zip(key, array.shape, strict=True)]
    shape = tuple(len(p) for p in picked if p.ndim)
    if not picked[axis].ndim:
        return np.full(shape, picked[axis])
    ahead = sum(p.ndim for p in picked[:axis])
    numbers = picked[axis].reshape((-1,) + (1,) * (len(shape) - ahead - 1))
    return np.broadcast_to(numbers, shape)


def _zeros(array: SlideArray, key: ExplicitIndexer) -> Pixels:
    """Return zeros of the shape of a selection, in the memory of one."""
    arrays = [k for k in key.tuple if isinstance(k, np.ndarray)]
    slices = [len(range(*k.indices(n))) for k, n in zip(key.tuple, array.shape, strict=True) if isinstance(k, slice)]
    if isinstance(key, VectorizedIndexer):
        shape = (*np.broadcast_shapes(*(a.shape for a in arrays)), *slices)
    else:
        sizes = [
            len(range(*k.indices(n))) if isinstance(k, slice) else len(k)
            for k, n in zip(key.tuple, array.shape, strict=True)
            if isinstance(k, slice | np.ndarray)
        ]
        shape = tuple(sizes)
    return np.broadcast_to(np.zeros((), array.dtype), shape)
