"""Windows on a part of a window, and on more than a window: beyond its edges is a fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.lazy.base import LazyArray, Plans
from microtome.lazy.buffers import empty
from microtome.lazy.derived import DerivedArray
from microtome.lazy.window import Corners, Window, WindowOnWindow

__all__ = ["PaddedArray", "PaddedWindow", "PartWindow", "padded"]

Pixels = npt.NDArray[Any]


class PartWindow(WindowOnWindow):
    """A rectangle, and some channels, of another window."""

    def __init__(self, window: Window, top: int, left: int, height: int, width: int, channels: Any) -> None:
        super().__init__(window, (height, width))
        self._top, self._left = top, left
        self._channels = None if isinstance(channels, slice) and channels == slice(None) else channels

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of a region."""
        shape = self._window.shape(height, width)
        return shape if self._channels is None else (*shape[:-1], *np.arange(shape[-1])[self._channels].shape)

    def read(self, y: int, x: int, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return a region."""
        if self._channels is None:
            return self._window.read(y + self._top, x + self._left, height, width, out)
        return _into(out, self._window.read(y + self._top, x + self._left, height, width, None)[..., self._channels])

    def read_many(self, corners: Corners, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return regions of one size."""
        if self._channels is None:
            return self._window.read_many(self._moved(corners), height, width, out)
        return _into(out, self._window.read_many(self._moved(corners), height, width, None)[..., self._channels])

    def plans(self, corners: Corners, height: int, width: int) -> Plans:
        """Return what `read_many` would read."""
        return self._window.plans(self._moved(corners), height, width)

    def _moved(self, corners: Corners) -> Corners:
        return [(y + self._top, x + self._left) for y, x in corners]


def padded(variable: xr.Variable, pads: Mapping[Any, tuple[int, int]], value: Any) -> xr.Variable:
    """Return a variable that is no view of a slide with a fill before and after its pixels: Dask stays Dask."""
    if not any(n for pair in pads.values() for n in pair):
        return variable
    if variable.size:
        result: xr.Variable = variable.pad(pads, constant_values=value)
        return result
    shape = [n + sum(pads.get(d, (0, 0))) for d, n in zip(variable.dims, variable.shape, strict=True)]
    data: Any = np
    if variable.chunks is not None:  # of which Dask pads none that are empty
        from dask import array

        data = array
    return xr.Variable(variable.dims, data.full(shape, value, dtype=variable.dtype), variable.attrs)


def _into(out: Pixels | None, pixels: Pixels) -> Pixels:
    if out is None:
        return np.ascontiguousarray(pixels)
    out[...] = pixels
    return out


class PaddedWindow(WindowOnWindow):
    """A window that goes on beyond the edges of another one, with a fill.

    What a region costs does not depend on how far it runs off: at most a region of its size, inside, is read.

    Parameters
    ----------
    window
        The pixels inside.
    top, left
        Rows and columns of fill before them; negative where this window begins inside.
    size
        Rows and columns of this window.
    fill
        Value (channels,) beyond the edges.
    """

    def __init__(self, window: Window, top: int, left: int, size: tuple[int, int], fill: Pixels) -> None:
        super().__init__(window, size)
        self._top, self._left = top, left
        self._fill = fill

    def read(self, y: int, x: int, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return a region."""
        if out is None:
            out = empty(self.shape(height, width), self.dtype)
        self.read_many([(y, x)], height, width, out[np.newaxis])
        return out

    def read_many(self, corners: Corners, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return regions of one size."""
        if out is None:
            out = empty((len(corners), *self.shape(height, width)), self.dtype)
        if not out.size:
            return out
        moved = self._all_inside(corners, height, width)
        if moved is not None:
            return self._window.read_many(moved, height, width, out)
        places = self._places(corners, height, width)
        inside = [p for p in places if p is not None]
        tall, wide = self._inner(corners, height, width)
        read = self._window.read_many([p[:2] for p in inside], tall, wide, None)
        out[...] = self._fill if out.ndim > self.axis + 3 else self._fill[0]
        number = 0
        ahead = (slice(None),) * self.axis
        for n, place in enumerate(places):
            if place is None:
                continue
            _, _, dy, dx = place
            to_y, from_y = _overlap(dy, height, tall)
            to_x, from_x = _overlap(dx, width, wide)
            out[n][(*ahead, to_y, to_x)] = read[number][(*ahead, from_y, from_x)]
            number += 1
        return out

    def plans(self, corners: Corners, height: int, width: int) -> Plans:
        """Return what `read_many` would read."""
        moved = self._all_inside(corners, height, width)
        if moved is not None:
            return self._window.plans(moved, height, width)
        places = self._places(corners, height, width)
        return self._window.plans([p[:2] for p in places if p is not None], *self._inner(corners, height, width))

    def _all_inside(self, corners: Corners, height: int, width: int) -> Corners | None:
        """Return the corners in the window below, where no region runs off it: of most groups of patches none does."""
        if not corners:
            return None
        rows, columns = self._window.size
        top, left = self._top, self._left
        ys, xs = zip(*corners, strict=True)
        if min(ys) < top or min(xs) < left or max(ys) + height > rows + top or max(xs) + width > columns + left:
            return None
        return corners if not top and not left else [(y - top, x - left) for y, x in corners]

    def _inner(self, corners: Corners, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns that are read for each region: what the one with the most of them has inside."""
        shown = [
            (_inside(y - self._top, height, rows), _inside(x - self._left, width, columns))
            for rows, columns in [self._window.size]
            for y, x in corners
        ]
        shown = [(tall, wide) for tall, wide in shown if tall and wide]
        return max((tall for tall, _ in shown), default=0), max((wide for _, wide in shown), default=0)

    def _places(self, corners: Corners, height: int, width: int) -> list[tuple[int, int, int, int] | None]:
        """Return for each region the row and column inside that are read for it, and where they lie in the region.

        None where nothing of it is inside.
        """
        rows, columns = self._window.size
        tall, wide = self._inner(corners, height, width)
        places: list[tuple[int, int, int, int] | None] = []
        for y, x in corners:
            y, x = y - self._top, x - self._left
            if not _inside(y, height, rows) or not _inside(x, width, columns):
                places.append(None)
                continue
            row, column = min(max(y, 0), rows - tall), min(max(x, 0), columns - wide)
            places.append((row, column, row - y, column - x))
        return places


def _inside(first: int, extent: int, size: int) -> int:
    """Return how many of ``extent`` pixels from ``first`` on are among ``size``."""
    return max(0, min(first + extent, size) - max(first, 0))


def _overlap(offset: int, extent: int, inner: int) -> tuple[slice, slice]:
    """Return where pixels go, and which they are, of ``inner`` pixels that begin at ``offset`` of ``extent``."""
    start, stop = max(offset, 0), min(offset + inner, extent)
    return slice(start, stop), slice(start - offset, stop - offset)


class PaddedArray(DerivedArray):
    """A rectangle of an image that may run off its edges.

    Parameters
    ----------
    source, key
        The image: all of it, whatever part the rectangle shows.
    rectangle
        Row and column of the first pixel, height and width; in pixels of the image, inside or not.
    value
        Value of each channel beyond the edges.
    """

    whole_channels = True

    def __init__(
        self,
        source: LazyArray,
        key: tuple[Any, ...],
        rectangle: tuple[int, int, int, int],
        value: tuple[Any, ...],
    ) -> None:
        self.rectangle = rectangle
        self.value = value
        super().__init__(source, key, {"y": rectangle[2], "x": rectangle[3]}, source.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return PaddedArray, (self.source, self.key, self.rectangle, self.value)

    @property
    def parameters(self) -> tuple[Any, ...]:
        """The rectangle, and the fill."""
        return (*self.rectangle, self.value)

    def fill(self, key: tuple[Any, ...]) -> Pixels:
        """Return the value (channels,) that stands for pixels beyond the edge."""
        value = np.asarray(self.value, self.dtype)
        if "c" in self.dims:  # one may stand for all
            value = np.broadcast_to(value, self.shape[self.dims.index("c")])[key[self.dims.index("c")]]
        return np.atleast_1d(value)

    def coverage(self, key: tuple[Any, ...]) -> tuple[LazyArray, tuple[Any, ...]]:
        """Return the array that says which pixels are real, and which part of it: beyond the edge none is."""
        ours = dict(zip(self.dims, key, strict=True))
        covered, below = self.source.coverage(self.key)
        result = PaddedArray(covered, below, self.rectangle, (False,))
        return result, tuple(ours[d] for d in result.dims)

    def derive(self, key: tuple[Any, ...], keep: bool) -> Window:
        """Return the window that computes all of this array, from a part of the source."""
        top, left, height, width = self.rectangle
        window = self.source.window(key, keep)
        return PaddedWindow(window, -top, -left, (height, width), np.asarray(self.value, self.dtype))
