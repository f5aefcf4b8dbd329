"""What all lazy arrays share: NumPy's and xarray's indexing, and answering what a read would take."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from xarray.backends import BackendArray
from xarray.core.indexing import ExplicitIndexer, VectorizedIndexer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microtome.lazy.plan import Plan
    from microtome.lazy.reader import LevelReader
    from microtome.lazy.recipe import OpenSlide
    from microtome.lazy.window import Window

__all__ = ["LazyArray", "Plans", "contiguous", "plane_dims", "probing", "recording"]

Pixels = npt.NDArray[Any]
Plans = list[tuple["LevelReader", "Plan"]]
"""What is to be read: plans, and what carries them out."""
_local = threading.local()


@contextmanager
def recording() -> Iterator[Plans]:
    """Let arrays note what this thread would have them read, and answer with zeros, instead of reading."""
    notes: Plans = []
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


class LazyArray(BackendArray, ABC):
    """Pixels that are read, or computed from what is read, when they are asked for; pickles to a recipe.

    Subclasses set ``dims``, ``shape`` and ``dtype``.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    node: str
    """Path in the tree of the image that the pixels come from."""
    planar = True
    """Whether it is an image, of which windows can be made."""
    twin: Any = None
    """An equal array of an earlier opening, which this one keeps alive; see `remember_chunked`."""

    @property
    @abstractmethod
    def token(self) -> str:
        """Names the pixels: the same in every process, another for other pixels or ways to them."""

    @property
    @abstractmethod
    def opened(self) -> OpenSlide:
        """The slide that the pixels come from, opened in this process."""

    @abstractmethod
    def block(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels under one integer, slice or index array an axis, combined as by ``numpy.ix_``."""

    @abstractmethod
    def points(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels at points: index arrays broadcast together, their axes first, then those of slices."""

    @abstractmethod
    def plans(self, key: tuple[Any, ...]) -> Plans:
        """Return what `block` would read."""

    @abstractmethod
    def window(self, key: tuple[Any, ...], keep: bool = False) -> Window:
        """Return a part prepared for many reads.

        Parameters
        ----------
        key
            One element an axis; along ``y`` and ``x`` slices of step 1, of which the first pixel is the window's.
        keep
            Whether decoded frames are kept that reads show a part of only: for reads whose neighbours show the rest.
        """

    @abstractmethod
    def coverage(self, key: tuple[Any, ...]) -> tuple[LazyArray, tuple[Any, ...]]:
        """Return the array that says which pixels of a part are real, and which part of it that is."""

    @abstractmethod
    def fill(self, key: tuple[Any, ...]) -> Pixels:
        """Return the value (channels,) that stands for pixels beyond the edge of a part."""

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("microtome", self.token)

    def __getitem__(self, key: ExplicitIndexer) -> Pixels:
        probe = getattr(_local, "probe", None)
        if isinstance(probe, list):
            if not any(isinstance(k, np.ndarray) and k.ndim != 1 for k in key.tuple):
                probe += self.plans(key.tuple)
            return self._zeros(key)
        if probe is not None:
            return self._numbered(key.tuple, probe)
        if isinstance(key, VectorizedIndexer):
            return self.points(key.tuple)
        return self.block(key.tuple)

    def _numbered(self, key: tuple[Any, ...], axis: int) -> Pixels:
        """Return the number of each selected pixel along an axis, in the shape of the selection."""
        picked = [np.arange(n)[k] for k, n in zip(key, self.shape, strict=True)]
        shape = tuple(len(p) for p in picked if p.ndim)
        if not picked[axis].ndim:
            return np.full(shape, picked[axis])
        ahead = sum(p.ndim for p in picked[:axis])
        numbers = picked[axis].reshape((-1,) + (1,) * (len(shape) - ahead - 1))
        return np.broadcast_to(numbers, shape)

    def _zeros(self, key: ExplicitIndexer) -> Pixels:
        """Return zeros of the shape of a selection, in the memory of one."""
        arrays = [k for k in key.tuple if isinstance(k, np.ndarray)]
        slices = [len(range(*k.indices(n))) for k, n in zip(key.tuple, self.shape, strict=True) if isinstance(k, slice)]
        if isinstance(key, VectorizedIndexer):
            shape = (*np.broadcast_shapes(*(a.shape for a in arrays)), *slices)
        else:
            sizes = [
                len(range(*k.indices(n))) if isinstance(k, slice) else len(k)
                for k, n in zip(key.tuple, self.shape, strict=True)
                if isinstance(k, slice | np.ndarray)
            ]
            shape = tuple(sizes)
        return np.broadcast_to(np.zeros((), self.dtype), shape)


def plane_dims(dims: Iterable[Hashable]) -> tuple[str, str]:
    """Return the names of rows and columns among dimensions: those of associated images are others."""
    return ("row", "column") if "row" in dims else ("y", "x")


def contiguous(k: Any) -> bool:
    """Tell whether a key selects neighbouring pixels in their order."""
    return isinstance(k, slice) and k.step in (None, 1)
