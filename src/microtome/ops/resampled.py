"""A lazy array on another grid: any part of it is computed from the pixels under it, the same wherever it is cut."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from microtome import config
from microtome.lazy import pool
from microtome.lazy.base import LazyArray, Plans
from microtome.lazy.buffers import empty
from microtome.lazy.derived import DerivedArray
from microtome.lazy.window import Corners, Window, WindowOnWindow
from microtome.ops.resampling import AxisGrid, resample

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ResampledArray", "resampled_block"]

Pixels = npt.NDArray[Any]
SOURCE_BYTES = 16 << 20
"""Source pixels held at a time by one thread."""


class ResampledArray(DerivedArray):
    """Pixels of an image on another grid.

    Parameters
    ----------
    source, key
        The image.
    y, x
        The grid, in pixels of the image.
    """

    def __init__(self, source: LazyArray, key: tuple[Any, ...], y: AxisGrid, x: AxisGrid) -> None:
        super().__init__(source, key, {"y": y.count, "x": x.count}, source.dtype)
        self.y = y
        self.x = x

    def __reduce__(self) -> tuple[Any, ...]:
        return ResampledArray, (self.source, self.key, self.y, self.x)

    @property
    def parameters(self) -> tuple[Any, ...]:
        """The grid."""
        return self.y, self.x

    def derive(self, key: tuple[Any, ...], keep: bool) -> Window:
        """Return the window that computes all of this array, from a part of the source."""
        return ResampledWindow(self.source.window(key, True), self.y, self.x)

    def coverage(self, key: tuple[Any, ...]) -> tuple[LazyArray, tuple[Any, ...]]:
        """Return the array that says which pixels are real, and which part of it: as the pixel at their centre is."""
        ours = dict(zip(self.dims, key, strict=True))
        covered, below = self.source.coverage(self.key)
        y, x = (AxisGrid(g.size, g.count, g.scale, g.offset, nearest=True) for g in (self.y, self.x))
        result = ResampledArray(covered, below, y, x)
        return result, tuple(ours[d] for d in result.dims)


class ResampledWindow(WindowOnWindow):
    """A window on another grid over a window."""

    def __init__(self, window: Window, y: AxisGrid, x: AxisGrid) -> None:
        super().__init__(window, (y.count, x.count))
        self._y, self._x = y, x

    def read(self, y: int, x: int, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return a region."""
        if out is None:
            out = empty(self.shape(height, width), self.dtype)
        if not out.size:
            return out
        parts = self._parts(y, x, height, width)
        result = out

        def work(part: tuple[int, int, int, int]) -> None:
            top, bottom, left, right = part
            rows, columns = slice(top - y, bottom - y), slice(left - x, right - x)
            place = result[(slice(None),) * self.axis + (rows, columns)]
            row, end_row = self._y.support(top, bottom)
            column, end_column = self._x.support(left, right)
            if bottom - top == 1 and self._bytes(end_row - row, end_column - column) > 2 * SOURCE_BYTES:
                place[...] = self._in_strips(top, left, right)
                return
            pixels = self._window.read(row, column, end_row - row, end_column - column, None)
            place[...] = self._resample(pixels, (top, bottom), (left, right), (row, column))

        if len(parts) == 1:
            work(parts[0])
        else:
            pool.run(work, parts, config.get().decode_threads)
        return out

    def read_many(self, corners: Corners, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return regions of one size; source regions are read together, as many as memory is meant for."""
        if out is None:
            out = empty((len(corners), *self.shape(height, width)), self.dtype)
        if not out.size:
            return out
        places, tall, wide = self._sources(corners, height, width)
        each = self._bytes(tall, wide)
        if each > SOURCE_BYTES // 2:
            for n, corner in enumerate(corners):
                self.read(*corner, height, width, out[n])
            return out
        step = max(1, SOURCE_BYTES // max(each, 1))
        for start in range(0, len(corners), step):
            pixels = self._window.read_many(places[start : start + step], tall, wide, None)
            for n, (y, x) in enumerate(corners[start : start + step]):
                out[start + n] = self._resample(pixels[n], (y, y + height), (x, x + width), places[start + n])
        return out

    def plans(self, corners: Corners, height: int, width: int) -> Plans:
        """Return what `read_many` would read."""
        if not corners or not height or not width:
            return []
        places, tall, wide = self._sources(corners, height, width)
        return self._window.plans(places, tall, wide)

    def _resample(
        self, pixels: Pixels, rows: tuple[int, int], columns: tuple[int, int], origin: tuple[int, int]
    ) -> Pixels:
        if pixels.ndim > self.axis + 2:
            return resample(pixels, self._y, self._x, rows, columns, origin)
        return resample(pixels[..., np.newaxis], self._y, self._x, rows, columns, origin)[..., 0]

    def _in_strips(self, top: int, left: int, right: int) -> Pixels:
        """Return a row of which each pixel is the mean of more than memory is meant for: of strips, added up."""
        row, end_row = self._y.support(top, top + 1)
        column, end_column = self._x.support(left, right)
        if self._y.method != "area":  # one or two rows of the source, which can only be wide
            pixels = self._window.read(row, column, end_row - row, end_column - column, None)
            return self._resample(pixels, (top, top + 1), (left, right), (row, column))
        low, high = self._y.edges(top, top + 1).tolist()
        rows = np.arange(row, end_row)
        weights = np.minimum(rows + 1, high) - np.maximum(rows, low)
        step = max(1, SOURCE_BYTES // self._bytes(1, end_column - column))
        total: Any = 0.0
        ahead: tuple[Any, ...] = (slice(None),) * self.axis
        for a in range(row, end_row, step):
            b = min(a + step, end_row)
            strip = self._window.read(a, column, b - a, end_column - column, None)
            weight = weights[a - row : b - row]
            whole = np.flatnonzero(weight == 1)  # all but the first and the last
            inner = strip[(*ahead, slice(whole[0], whole[-1] + 1) if whole.size else slice(0))]
            total = total + np.add.reduce(inner, axis=self.axis, dtype=np.float64)
            for n in np.flatnonzero(weight != 1).tolist():
                total = total + weight[n] * strip[(*ahead, n)]
        line = np.expand_dims(total / (high - low), self.axis)
        tail = () if line.ndim > self.axis + 2 else (np.newaxis,)
        mean = resample(line[(..., *tail)], AxisGrid(1, 1, 1.0), self._x, (0, 1), (left, right), (0, column))
        mean = mean[..., 0] if tail else mean
        return np.floor(mean + 0.5) if self.dtype.kind in "iu" else mean

    def _bytes(self, height: int, width: int) -> int:
        return int(np.prod(self.shape(height, width), dtype=np.int64)) * self.dtype.itemsize

    def _sources(self, corners: Corners, height: int, width: int) -> tuple[list[tuple[int, int]], int, int]:
        """Return corners of source regions of one size that hold what each region needs."""
        rows = [self._y.support(y, y + height) for y, _ in corners]
        columns = [self._x.support(x, x + width) for _, x in corners]
        tall, wide = (max((b - a for a, b in spans), default=0) for spans in (rows, columns))
        places = [
            (min(top, self._y.size - tall), min(left, self._x.size - wide))
            for (top, _), (left, _) in zip(rows, columns, strict=True)
        ]
        return places, tall, wide

    def _parts(self, y: int, x: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Cut a region into parts whose source pixels fit into memory meant for them: first row, end row, columns."""
        row, end_row = self._y.support(y, y + height)
        column, end_column = self._x.support(x, x + width)
        area = max(1.0, SOURCE_BYTES / self._bytes(1, 1))
        side = area**0.5
        tall, wide = end_row - row, end_column - column
        if tall * wide <= area:
            return [(y, y + height, x, x + width)]
        # About square; what is narrow is cut across only, and what cannot be cut one way is cut more the other way.
        across = min(width, max(1, round(wide / max(side, area / tall))))
        down = min(height, max(1, math.ceil(tall * (wide / across) / area)))
        across = min(width, max(across, math.ceil(wide * (tall / down) / area)))
        cuts_y = [y + height * i // down for i in range(down + 1)]
        cuts_x = [x + width * i // across for i in range(across + 1)]
        return [
            (top, bottom, left, right)
            for top, bottom in itertools.pairwise(cuts_y)
            for left, right in itertools.pairwise(cuts_x)
        ]


def resampled_block(array: ResampledArray) -> Mapping[str, int]:
    """Return the extent of a Dask block of a resampled array: it and what it is computed from are of a good size."""
    from microtome.lazy.blocks import block_shape

    sizes = dict(zip(array.dims, array.shape, strict=True))
    planes = {d: 1 for d in array.dims if d in ("z", "path")}
    shrink = max(1.0, array.y.scale) * max(1.0, array.x.scale)
    least = 64
    frame = planes | {"y": least, "x": least} | ({"c": max(1, sizes["c"])} if "c" in sizes else {})
    # Blocks cost their source pixels rather than their own: four times as many of these as of a block that is read.
    return block_shape(sizes, frame, "y", "x", array.dtype.itemsize, max(1.0, shrink / 4))
