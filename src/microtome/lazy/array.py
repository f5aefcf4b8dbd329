"""The lazy array: what xarray indexes, and what a Dask task carries."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.lazy.axis import Axis, Run, length, normalize
from microtome.lazy.base import LazyArray, Plans
from microtome.lazy.buffers import empty
from microtome.lazy.plan import Grouping, plan_points
from microtome.lazy.reader import LevelReader
from microtome.lazy.recipe import OpenSlide, SlideRef, resolve
from microtome.lazy.window import SlideWindow

__all__ = ["Kind", "SlideArray"]

Kind = Literal["image", "coverage"]
Pixels = npt.NDArray[Any]
AXES = ("z", "path", "y", "x", "c")


class SlideArray(LazyArray):
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
    factor
        1, or 2, 4 or 8 for frames that are decoded at a part of their size; see `reduced_level`.
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
        factor: int = 1,
    ) -> None:
        self.ref = ref
        self.node = node
        self.kind = kind
        self.dims = dims
        self.shape = shape
        self.dtype = dtype
        self.factor = factor
        self._opened = opened
        self._reader = opened.reduced_reader(node, factor) if opened else None
        self._pid = os.getpid()
        self._window: SlideWindow | None = None

    @classmethod
    def of(cls, opened: OpenSlide, node: str, kind: Kind = "image", factor: int = 1) -> SlideArray:
        """Return the array of a node of an open slide."""
        reader = opened.reduced_reader(node, factor)
        if reader is None:
            raise OptionError(f"{node}: its frames cannot be decoded at 1/{factor} of their size")
        z, paths, rows, columns, samples = reader.shape
        sizes = {"z": z, "path": paths, "y": rows, "x": columns, "c": samples if reader.colour else paths}
        drop = {d for d in ("z", "path") if sizes[d] == 1 or (d == "path" and not reader.colour)}
        if kind == "coverage" and reader.colour:
            drop.add("c")
        dims = tuple(d for d in sizes if d not in drop)
        dtype = reader.dtype if kind == "image" else np.dtype(bool)
        return cls(opened.ref, node, kind, dims, tuple(sizes[d] for d in dims), dtype, opened, factor)

    def reduced(self, factor: int) -> SlideArray | None:
        """Return the array of the same image decoded at 1/``factor`` of its size; None if it cannot be."""
        if self.factor != 1 or self.opened.reduced_reader(self.node, factor) is None:
            return None
        return SlideArray.of(self.opened, self.node, self.kind, factor)

    def __reduce__(self) -> tuple[Any, ...]:
        return SlideArray, (self.ref, self.node, self.kind, self.dims, self.shape, self.dtype, None, self.factor)

    @property
    def token(self) -> str:
        """Names the pixels: the same in every process, another for other files, options, nodes, or ways to them."""
        reduced = f"-{self.factor}" if self.factor > 1 else ""
        return f"{self.ref.token}-{self.node}-{self.kind}{reduced}"

    def __repr__(self) -> str:
        return f"<microtome {self.kind} of {self.node} {self.shape} {self.dtype}>"

    @property
    def opened(self) -> OpenSlide:
        """The slide, opened in this process."""
        if self._opened is None or self._pid != os.getpid():
            self._opened = resolve(self.ref)
            self._reader = self._opened.reduced_reader(self.node, self.factor)
            self._pid = os.getpid()
        return self._opened

    @property
    def reader(self) -> LevelReader:
        """What reads the pixels."""
        reader = self._reader
        if reader is None or self._pid != os.getpid():
            reader = self._reader = self.opened.reduced_reader(self.node, self.factor)
            assert reader is not None
        return reader

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
                window = self._window = SlideWindow(self, (slice(None),) * self.ndim)
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

    def points(self, key: tuple[Any, ...]) -> Pixels:
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

    def plans(self, key: tuple[Any, ...]) -> Plans:
        """Return what `block` would read; of coverage nothing is."""
        if self.kind == "coverage":
            return []
        axes, _, _ = self.select(key)
        reader = self.reader
        return [(reader, reader.plan(reader.planes(axes["z"], axes["path"]), [(axes["y"], axes["x"])]))]

    def window(self, key: tuple[Any, ...], keep: bool = False) -> SlideWindow:
        """Return a part prepared for many reads; see `LazyArray.window`."""
        return SlideWindow(self, key, keep)

    def coverage(self, key: tuple[Any, ...]) -> tuple[LazyArray, tuple[Any, ...]]:
        """Return the array that says which pixels of a part are real, and which part of it that is."""
        covered = SlideArray.of(self.opened, self.node, "coverage", self.factor)
        at = dict(zip(self.dims, key, strict=True))
        return covered, tuple(at[d] for d in covered.dims)

    def fill(self, key: tuple[Any, ...]) -> Pixels:
        """Return the value (channels,) that stands for pixels beyond the edge of a part."""
        if self.kind == "coverage":
            return np.zeros(1, np.bool_)
        at = dict(zip(self.dims, key, strict=True))
        values = np.broadcast_to(self.reader.fill, dict(zip(self.dims, self.shape, strict=True))["c"])
        return np.atleast_1d(values[at["c"]])
