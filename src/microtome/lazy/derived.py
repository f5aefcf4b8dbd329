"""Arrays that are computed from neighbouring pixels of another lazy array: resampled, recoloured, padded.

What is computed is the window that the subclass makes; the indexing is here. A derived array of a derived array is one
more window: patches of a recoloured, resampled level are read in one plan.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from microtome.lazy.axis import Run, normalize
from microtome.lazy.base import LazyArray, Plans, contiguous

if TYPE_CHECKING:
    from microtome.lazy.recipe import OpenSlide
    from microtome.lazy.window import Window

__all__ = ["DerivedArray"]

Pixels = npt.NDArray[Any]
APART = 256
"""Pixels between two that are wanted, above which those between are not computed: about a frame."""
SPARSE = 16
"""Pixels of a rectangle for each that is wanted, above which pixels are computed one by one."""
PIECE = 1024
"""Extent of what is held at a time for pixels that are picked: a few MB."""


class DerivedArray(LazyArray):
    """Pixels computed from a part of another lazy array.

    Parameters
    ----------
    source
        Where pixels come from.
    key
        Which part of it: one element an axis, along ``y`` and ``x`` slices of step 1. An integer drops its axis.
    sizes
        Extents that differ from those of the part, by axis: of ``y`` and ``x``, or of ``c``.
    dtype
        Of this array.
    """

    whole_channels = False
    """Whether all channels of the part are needed for any of the result."""

    def __init__(self, source: LazyArray, key: tuple[Any, ...], sizes: dict[str, int], dtype: np.dtype[Any]) -> None:
        self.source = source
        self.node = source.node
        self.key = key
        part = {d: np.arange(n)[k] for d, k, n in zip(source.dims, key, source.shape, strict=True)}
        shape = {d: len(a) for d, a in part.items() if a.ndim} | sizes
        self.dims = tuple(shape)
        self.shape = tuple(shape.values())
        self.dtype = dtype

    @property
    @abstractmethod
    def parameters(self) -> tuple[Any, ...]:
        """What, beside the source and the part of it, makes the pixels what they are; its repr names them."""

    @abstractmethod
    def derive(self, key: tuple[Any, ...], keep: bool) -> Window:
        """Return the window that computes all of this array, from a part of the source."""

    @property
    def token(self) -> str:
        """Names the pixels."""
        key = [k if isinstance(k, slice) else np.asarray(k).tolist() for k in self.key]
        parts = (type(self).__name__, self.source.token, key, self.parameters)
        return blake2b(repr(parts).encode(), digest_size=12).hexdigest()

    @property
    def opened(self) -> OpenSlide:
        """The slide that the pixels come from, opened in this process."""
        return self.source.opened

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shape} {self.dtype} of {self.source!r}>"

    def below(self, key: tuple[Any, ...], *later: str) -> tuple[Any, ...]:
        """Return the part of the source under a part of this array; along axes ``later``, all that this array shows."""
        ours = dict(zip(self.dims, key, strict=True))
        return tuple(
            k if d in later else _compose(k, n, ours.get(d))
            for d, k, n in zip(self.source.dims, self.key, self.source.shape, strict=True)
        )

    def fill(self, key: tuple[Any, ...]) -> Pixels:
        """Return the value (channels,) that stands for pixels beyond the edge of a part."""
        return self.source.fill(self.below(key, "y", "x"))

    def window(self, key: tuple[Any, ...], keep: bool = False) -> Window:
        """Return a part prepared for many reads."""
        from microtome.lazy.parts import PartWindow

        ours = dict(zip(self.dims, key, strict=True))
        window = self.derive(self.below(key, "y", "x", *(["c"] if self.whole_channels else [])), keep)
        sizes = dict(zip(self.dims, self.shape, strict=True))
        rows, columns = (range(sizes[d])[ours[d]] for d in ("y", "x"))
        channels = ours.get("c", slice(None)) if self.whole_channels else slice(None)
        whole = (len(rows), len(columns)) == window.size and _all(channels, sizes.get("c", 1))
        return window if whole else PartWindow(window, rows.start, columns.start, len(rows), len(columns), channels)

    def block(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels under one integer, slice or index array an axis, combined as by ``numpy.ix_``."""
        window, ys, xs = self._spans(key)
        if len(ys) == len(xs) == 1 and ys[0].whole and xs[0].whole:
            pixels = window.read(0, 0, *window.size, None)
        else:
            height, width = (sum(len(span.picks) for span in spans) for spans in (ys, xs))
            pixels = np.empty(window.shape(height, width), self.dtype)
            ahead: tuple[Any, ...] = (slice(None),) * window.axis
            for y, x in itertools.product(ys, xs):
                part = window.read(y.start, x.start, y.stop - y.start, x.stop - x.start, None)
                pixels[(*ahead, y.target[:, np.newaxis], x.target)] = part[(*ahead, y.picks[:, np.newaxis], x.picks)]
        at = dict(zip(self.dims, key, strict=True))
        for axis, dim in ((window.axis + 1, "x"), (window.axis, "y")):
            if _single(at[dim]):
                pixels = pixels[(slice(None),) * axis + (0,)]
        return pixels

    def _bounded(self, key: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Any]]:
        """Return a key whose rows and columns are neighbours, and what selects from its pixels those asked for.

        The latter has an element for each axis that the former leaves; None for all.
        """
        bounded: list[Any] = []
        rest: list[Any] = []
        for dim, k, n in zip(self.dims, key, self.shape, strict=True):
            if dim in ("y", "x"):
                low, high, wanted = _bounds(k, n)
                bounded.append(slice(low, high, 1))
                rest.append(None if contiguous(k) else 0 if _single(k) else wanted)
                continue
            bounded.append(_listed(k, n))
            if not _single(k):
                rest.append(None)
        return tuple(bounded), rest

    def _spans(self, key: tuple[Any, ...]) -> tuple[Window, list[_Span], list[_Span]]:
        """Return a window, and the spans of its rows and columns that hold the pixels under a key."""
        at = dict(zip(self.dims, key, strict=True))
        picked = not all(contiguous(at[d]) or _single(at[d]) for d in ("y", "x"))
        spans: dict[str, list[_Span]] = {}
        bounded: list[Any] = []
        for dim, k, n in zip(self.dims, key, self.shape, strict=True):
            if dim in ("y", "x"):
                low, high, wanted = _bounds(k, n)
                bounded.append(slice(low, high, 1))
                spans[dim] = _cut(wanted) if picked else [_Span(0, high - low, wanted, wanted)]
            else:
                bounded.append(_listed(k, n))
        return self.window(tuple(bounded)), spans["y"], spans["x"]

    def points(self, key: tuple[Any, ...]) -> Pixels:
        """Return the pixels at points: index arrays broadcast together, their axes first, then those of slices."""
        at = dict(zip(self.dims, key, strict=True))
        sizes = dict(zip(self.dims, self.shape, strict=True))
        arrays = {d: _indices(k, sizes[d]) for d, k in at.items() if not isinstance(k, slice)}
        shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
        if not {"y", "x"} <= arrays.keys():
            return self._lines(at, arrays)
        # Planes and channels that no point shows are not read.
        found = {d: np.unique(a, return_inverse=True) for d, a in arrays.items() if d not in ("y", "x")}
        some = {d: found[d][0] if d in found else _listed(k, sizes[d]) for d, k in at.items()}
        window = self.window(tuple((some | dict.fromkeys(("y", "x"), slice(None)))[d] for d in self.dims))
        ys, xs = (np.broadcast_to(arrays[d], shape) for d in ("y", "x"))
        places, which = np.unique(ys * sizes["x"] + xs, return_inverse=True)
        pixels = _read_points(window, places // sizes["x"], places % sizes["x"])
        axes = [d for d in self.dims if d not in ("y", "x")]
        picked = [d for d in axes if d in arrays]
        pixels = pixels.transpose(0, *(1 + axes.index(d) for d in picked + [d for d in axes if d not in arrays]))
        chosen = (np.broadcast_to(found[d][1].reshape(arrays[d].shape), shape) for d in picked)
        result: Pixels = pixels[(which.reshape(shape), *chosen)]
        return result

    def _lines(self, at: dict[str, Any], arrays: dict[str, npt.NDArray[np.int64]]) -> Pixels:
        """Return the pixels at points along some axes, of all that is selected along others."""
        found = {d: np.unique(a, return_inverse=True) for d, a in arrays.items()}
        pixels = self.block(tuple(found[d][0] if d in found else k for d, k in at.items()))
        order = sorted(range(len(self.dims)), key=lambda i: self.dims[i] not in arrays)
        result: Pixels = pixels.transpose(order)[tuple(found[d][1].reshape(a.shape) for d, a in arrays.items())]
        return result

    def plans(self, key: tuple[Any, ...]) -> Plans:
        """Return what `block` would read."""
        window, ys, xs = self._spans(key)
        by_size: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for y, x in itertools.product(ys, xs):
            by_size.setdefault((y.stop - y.start, x.stop - x.start), []).append((y.start, x.start))
        return [plan for size, corners in by_size.items() for plan in window.plans(corners, *size)]


def _read_points(window: Window, ys: npt.NDArray[np.int64], xs: npt.NDArray[np.int64]) -> Pixels:
    """Return (points, ...) the pixels of a window at points, each another: dense ones are read together.

    xarray makes points of all pixels of an image of which planes and channels are selected in pairs.
    """
    lead, tail = window.shape(1, 1)[: window.axis], window.shape(1, 1)[window.axis + 2 :]
    pixels = np.empty((len(ys), *lead, *tail), window.dtype)
    tiles = ys // APART * (window.size[1] // APART + 1) + xs // APART
    order = np.argsort(tiles, kind="stable")
    alone = []
    ahead: tuple[Any, ...] = (slice(None),) * window.axis
    for some in np.split(order, np.flatnonzero(np.diff(tiles[order])) + 1) if len(order) else []:
        top, left = int(ys[some].min()), int(xs[some].min())
        height, width = int(ys[some].max()) - top + 1, int(xs[some].max()) - left + 1
        if height * width > SPARSE * len(some):
            alone.append(some)
            continue
        box = window.read(top, left, height, width, None)
        pixels[some] = np.moveaxis(box[(*ahead, ys[some] - top, xs[some] - left)], window.axis, 0)
    if alone:
        some = np.concatenate(alone)
        corners = list(zip(ys[some].tolist(), xs[some].tolist(), strict=True))
        pixels[some] = window.read_many(corners, 1, 1, None).reshape(len(some), *lead, *tail)
    return pixels


class _Span(NamedTuple):
    """Neighbouring pixels along an axis of a window, of which some are wanted."""

    start: int
    stop: int
    picks: npt.NDArray[np.int64]
    """Those that are wanted, counted from the first."""
    target: npt.NDArray[np.int64]
    """Where they go in the result."""

    @property
    def whole(self) -> bool:
        """Whether its pixels are the result, as they are."""
        return np.array_equal(self.picks, np.arange(self.stop - self.start)) and np.array_equal(self.picks, self.target)


def _cut(wanted: npt.NDArray[np.int64]) -> list[_Span]:
    """Return the spans that hold pixels along an axis, in any order.

    What is far apart is read by itself, and what would be long in pieces: of every hundredth pixel of a large image,
    not all between are held at once.
    """
    if not wanted.size:
        return [_Span(0, 0, wanted, wanted)]
    order = np.argsort(wanted, kind="stable")
    ordered = wanted[order]
    ends = np.flatnonzero((np.diff(ordered) > APART) | np.diff(ordered // PIECE).astype(bool)) + 1
    spans = []
    for places in np.split(order, ends):
        first, last = int(wanted[places[0]]), int(wanted[places[-1]])
        spans.append(_Span(first, last + 1, wanted[places] - first, places))
    return spans


def _bounds(k: Any, size: int) -> tuple[int, int, npt.NDArray[np.int64]]:
    """Return the first and one-past-last pixel under a key along an axis, and which of those between they are."""
    wanted = np.arange(size)[k] if isinstance(k, slice) else np.atleast_1d(_indices(k, size))
    low, high = (int(wanted.min()), int(wanted.max()) + 1) if wanted.size else (0, 0)
    return low, high, wanted - low


def _listed(k: Any, size: int) -> Any:
    """Return a key as it is, unless it is a slice that is reversed or has steps: of that the numbers."""
    return np.arange(size)[k] if isinstance(k, slice) and not contiguous(k) else k


def _single(k: Any) -> bool:
    return not isinstance(k, slice) and np.ndim(k) == 0


def _indices(k: Any, size: int) -> npt.NDArray[np.int64]:
    values = normalize(np.atleast_1d(k).ravel(), size)[0]
    numbers = np.arange(*values) if isinstance(values, Run) else values
    return numbers.reshape(np.shape(k))


def _all(k: Any, size: int) -> bool:
    return isinstance(k, slice) and k.indices(size) == (0, size, 1)


def _compose(first: Any, size: int, second: Any) -> Any:
    """Return the key that selects by one key, and by another of what that leaves."""
    if second is None or isinstance(first, int | np.integer):
        return first
    if isinstance(first, slice) and isinstance(second, slice):
        numbers = range(size)[first][second]
        if numbers.step > 0:
            return slice(numbers.start, max(numbers.start, numbers.stop), numbers.step)
    picked = np.arange(size)[first][second]
    return int(picked) if np.ndim(picked) == 0 else picked
