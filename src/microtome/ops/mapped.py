"""A lazy array whose pixels are a function of those of another one, each of its own: colour, stain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.lazy.base import LazyArray, Plans
from microtome.lazy.chunked import in_blocks, lazy_variable, to_dask
from microtome.lazy.derived import DerivedArray
from microtome.lazy.unwrap import View, unwrap
from microtome.lazy.window import Corners, Window, WindowOnWindow
from microtome.ops.provenance import of_computed

__all__ = ["MappedArray", "MappedWindow", "PixelFunction", "map_pixels"]

Pixels = npt.NDArray[Any]


class PixelFunction(Protocol):
    """What is done to pixels; small, for it travels in every task, and its repr says all that it does."""

    @property
    def channels(self) -> int:
        """Of the result."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the result."""
        ...

    def bind(self, source: LazyArray | None, key: tuple[Any, ...]) -> Callable[[Pixels], Pixels]:
        """Return the function (..., y, x, channels) -> the same with the result's channels.

        Parameters
        ----------
        source, key
            The array, and the part of it, whose pixels they are; None where they are nobody's.
        """
        ...


class MappedArray(DerivedArray):
    """Pixels of an image with a function applied to each.

    Parameters
    ----------
    source, key
        The image, with all of its channels.
    function
        What is done to pixels.
    """

    whole_channels = True

    def __init__(self, source: LazyArray, key: tuple[Any, ...], function: PixelFunction) -> None:
        super().__init__(source, key, {"c": function.channels}, function.dtype)
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedArray, (self.source, self.key, self.function)

    @property
    def parameters(self) -> tuple[Any, ...]:
        """The function."""
        return (self.function,)

    def fill(self, key: tuple[Any, ...]) -> Pixels:
        """Return the value (channels,) that stands for pixels beyond the edge of a part."""
        ours = dict(zip(self.dims, key, strict=True))
        # One pixel of one plane: what lies beyond the edge is the same for all.
        one = tuple(
            _first(k, n) if d in ("z", "path") else k
            for d, k, n in zip(self.source.dims, self.below(key, "y", "x", "c"), self.source.shape, strict=True)
        )
        value = self.function.bind(self.source, one)(self.source.fill(one)[np.newaxis, np.newaxis])[0, 0]
        return np.atleast_1d(value[ours["c"]])

    def coverage(self, key: tuple[Any, ...]) -> tuple[LazyArray, tuple[Any, ...]]:
        """Return the array that says which pixels are real, and which part of it: that of the source."""
        covered, below = self.source.coverage(self.below(key, "c"))
        # Of optical paths that became colours, the first one tells.
        return covered, tuple(
            _first(k, n) if d == "c" else k for d, k, n in zip(covered.dims, below, covered.shape, strict=True)
        )

    def derive(self, key: tuple[Any, ...], keep: bool) -> Window:
        """Return the window that computes all of this array, from a part of the source."""
        window = self.source.window(key, keep)
        return MappedWindow(window, self.function.bind(self.source, key), self.function.channels, self.dtype)


class MappedWindow(WindowOnWindow):
    """A window with a function applied to its pixels."""

    def __init__(
        self, window: Window, function: Callable[[Pixels], Pixels], channels: int, dtype: np.dtype[Any]
    ) -> None:
        super().__init__(window, window.size)
        self._function = function
        self._channels = channels
        self.dtype = dtype

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of a region."""
        return (*self._window.shape(height, width)[:-1], self._channels)

    def read(self, y: int, x: int, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return a region."""
        return self._apply(self._window.read(y, x, height, width, None), out)

    def read_many(self, corners: Corners, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return regions of one size."""
        return self._apply(self._window.read_many(corners, height, width, None), out)

    def _apply(self, pixels: Pixels, out: Pixels | None) -> Pixels:
        if not pixels.size:
            return np.empty((*pixels.shape[:-1], self._channels), self.dtype) if out is None else out
        result = self._function(pixels)
        if out is None:
            return np.ascontiguousarray(result)
        out[...] = result
        return out

    def plans(self, corners: Corners, height: int, width: int) -> Plans:
        """Return what `read_many` would read."""
        return self._window.plans(corners, height, width)


def map_pixels(
    image: xr.DataArray, function: PixelFunction, channels: Sequence[str], photometric: str | None
) -> xr.DataArray:
    """Return an image with a function applied to its pixels: lazy where the image is.

    Parameters
    ----------
    image
        Has a dimension ``c``.
    function
        What is done. Where the image is no view of a slide, it is bound to nothing.
    channels
        Labels of the channels of the result.
    photometric
        Photometric Interpretation of the result; None where it has none.
    """
    order = [d for d in image.dims if d != "c"] + ["c"]
    view = unwrap(image.variable)
    if view is not None and view.neighbours and list(image.dims) == order and _shows_channels(view):
        array = MappedArray(view.array, view.key, function)
        variable = lazy_variable(array, image.dims)
        if image.chunks is not None:
            chunks = {d: max(n) for d, n in image.chunksizes.items()} | {"c": len(channels)}
            variable = to_dask(variable, array, chunks)
    else:
        variable = _map_data(image.variable.transpose(*order), function, len(channels)).transpose(*image.dims)
    coords: dict[Any, Any] = {n: c for n, c in image.coords.items() if "c" not in c.dims}
    coords["c"] = xr.Variable("c", np.array(channels))
    attrs = of_computed(image.attrs)
    for name in ("photometric_interpretation", "bits_stored"):
        attrs.pop(name, None)
    if photometric is not None:
        attrs |= {"photometric_interpretation": photometric, "bits_stored": function.dtype.itemsize * 8}
    return xr.DataArray(variable, coords=coords, name=image.name, attrs=attrs)


def _first(k: Any, size: int) -> int:
    """Return the first number that a key selects."""
    return int(np.atleast_1d(np.arange(size)[k])[0])


def _shows_channels(view: View) -> bool:
    return not isinstance(dict(zip(view.array.dims, view.key, strict=True)).get("c", 0), int | np.integer)


def _map_data(variable: xr.Variable, function: PixelFunction, channels: int) -> xr.Variable:
    """Apply a function to an array (..., c) that is no view of a slide: Dask stays Dask."""
    view = unwrap(variable)
    work = function.bind(None, ()) if view is None else function.bind(view.array, view.key)
    data: Any = in_blocks(variable)._data
    if hasattr(data, "__dask_graph__"):
        data = data.rechunk({data.ndim - 1: -1})
        chunks = (*data.chunks[:-1], (channels,))
        result = data.map_blocks(
            work, dtype=function.dtype, chunks=chunks, meta=np.empty((0,) * data.ndim, function.dtype)
        )
    else:
        pixels = variable.values
        result = work(pixels) if pixels.size else np.empty((*pixels.shape[:-1], channels), function.dtype)
    return xr.Variable(variable.dims, result)
