"""Where the pixels of a synthetic slide come from: an array, a mosaic that repeats, or a function.

A source knows every pixel of every level exactly and makes only those it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["FunctionSource", "PictureSource", "PixelFunction", "Source", "box_mean"]

Pixels = npt.NDArray[Any]
PixelFunction = Callable[[int, int, int, int, int, int, int], Pixels]


class Source(Protocol):
    """The pixels of every level, path and plane."""

    def region(self, level: int, path: int, plane: int, y: int, x: int, h: int, w: int) -> Pixels:
        """Pixels (h, w, channels) of a region inside the level."""
        ...

    def key(self, level: int, path: int, plane: int, y: int, x: int) -> Hashable:
        """Regions of one size, level, path and plane whose keys are equal hold equal pixels."""
        ...


def box_mean(a: Pixels, factor: int) -> Pixels:
    """Means over boxes of ``factor`` x ``factor`` pixels, halves rounded up.

    Parameters
    ----------
    a
        (rows, columns, channels), integers.
    factor
        Side of a box. Boxes cut by the right and bottom border average what is there.

    Returns
    -------
    ndarray of shape (ceil(rows / factor), ceil(columns / factor), channels), of the type of ``a``
    """
    rows, columns, channels = a.shape
    ny, nx = -(-rows // factor), -(-columns // factor)
    out = np.empty((ny, nx, channels), a.dtype)
    widths = np.minimum(factor, columns - np.arange(nx) * factor)[None, :, None]
    for y in range(0, ny, 64):  # in strips: the sums are several times as large as the pixels
        part = a[y * factor : (y + 64) * factor]
        n = min(64, ny - y)
        total = np.zeros((n, nx, channels), np.int64)
        for i in range(factor):
            for j in range(factor):
                piece = part[i::factor, j::factor]
                total[: piece.shape[0], : piece.shape[1]] += piece
        heights = np.minimum(factor, rows - (y + np.arange(n)) * factor)[:, None, None]
        count = heights * widths
        out[y : y + n] = (total + count // 2) // count
    return out


class PictureSource:
    """A picture whose repetition fills level 0; the coarser levels are its box means.

    Parameters
    ----------
    picture
        ``picture(path, plane)`` gives (rows, columns, channels): the whole of level 0, or a mosaic that repeats.
    shapes
        (rows, columns) of each level.
    downsample
        From each level to the next.
    """

    def __init__(
        self, picture: Callable[[int, int], Pixels], shapes: tuple[tuple[int, int], ...], downsample: int
    ) -> None:
        self._picture, self._shapes, self._downsample = picture, shapes, downsample
        self._made: dict[tuple[int, int, int], Pixels] = {}

    def _tile(self, level: int, path: int, plane: int) -> Pixels:
        """Make the array whose repetition is the level."""
        made = self._made.get((level, path, plane))
        if made is None:
            if level == 0:
                made = self._picture(path, plane)
            else:
                finer, whole = self._tile(level - 1, path, plane), self._shapes[level - 1]
                if finer.shape[:2] != whole and any(n % self._downsample for n in finer.shape[:2]):
                    # Its mean would no longer repeat after a whole number of pixels: lay the level out. That only
                    # happens to coarse levels, which are small.
                    finer = self.region(level - 1, path, plane, 0, 0, *whole)
                made = box_mean(finer, self._downsample)
            self._made[level, path, plane] = made
        return made

    def region(self, level: int, path: int, plane: int, y: int, x: int, h: int, w: int) -> Pixels:
        """Pixels (h, w, channels) of a region inside the level."""
        tile = self._tile(level, path, plane)
        rows, columns = tile.shape[:2]
        y, x = y % rows, x % columns
        if y + h <= rows and x + w <= columns:
            return tile[y : y + h, x : x + w]
        wrapped: Pixels = tile[np.arange(y, y + h) % rows][:, np.arange(x, x + w) % columns]
        return wrapped

    def key(self, level: int, path: int, plane: int, y: int, x: int) -> Hashable:
        """Place of the region in the repeating picture."""
        rows, columns = self._tile(level, path, plane).shape[:2]
        return y % rows, x % columns


class FunctionSource:
    """Every pixel from the user's function ``f(level, path, plane, y0, x0, h, w) -> (h, w, channels)``."""

    def __init__(self, function: PixelFunction, channels: int, dtype: str) -> None:
        self._function, self._channels, self._dtype = function, channels, np.dtype(dtype)

    def region(self, level: int, path: int, plane: int, y: int, x: int, h: int, w: int) -> Pixels:
        """Pixels (h, w, channels) of a region inside the level.

        Raises
        ------
        OptionError
            The function answers with another shape or type.
        """
        got = np.asarray(self._function(level, path, plane, y, x, h, w))
        if got.shape != (h, w, self._channels) or got.dtype != self._dtype:
            raise OptionError(
                f"pixels(...) gave {got.dtype} {got.shape}; {self._dtype} {(h, w, self._channels)} was asked for"
            )
        return got

    def key(self, level: int, path: int, plane: int, y: int, x: int) -> Hashable:
        """Give the place itself: nothing is known to repeat."""
        return y, x
