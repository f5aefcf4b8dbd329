"""Neighbouring pixels of a lazy array, prepared for many reads: what `wsi.read`, patches and derived arrays use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from microtome.lazy.axis import Axis, Run, length
from microtome.lazy.base import Plans
from microtome.lazy.buffers import empty

if TYPE_CHECKING:
    from microtome.lazy.array import SlideArray

__all__ = ["Corners", "SlideWindow", "Window", "WindowOnWindow"]

Pixels = npt.NDArray[Any]
Corners = Sequence[tuple[int, int]]


class Window(Protocol):
    """Part of a lazy array: planes and channels, and a rectangle of their pixels."""

    dtype: np.dtype[Any]
    size: tuple[int, int]
    """Rows and columns."""
    axis: int
    """Which axis of a region is its rows."""

    @property
    def current(self) -> bool:
        """Whether the window may still be used: its process has not been forked since."""
        ...

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of a region."""
        ...

    def read(self, y: int, x: int, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return a region, ``y`` and ``x`` counted from the window's first pixel; ``out`` is filled if given."""
        ...

    def read_many(self, corners: Corners, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return regions of one size, the region first; frames that they share are decoded once."""
        ...

    def plans(self, corners: Corners, height: int, width: int) -> Plans:
        """Return what `read_many` would read."""
        ...


class WindowOnWindow:
    """What windows on a window have of it.

    Parameters
    ----------
    window
        The window below.
    size
        Rows and columns of this one.
    """

    def __init__(self, window: Window, size: tuple[int, int]) -> None:
        self._window = window
        self.size = size
        self.dtype = window.dtype
        self.axis = window.axis

    @property
    def current(self) -> bool:
        """Whether the window may still be used: its process has not been forked since."""
        return self._window.current

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of a region."""
        return self._window.shape(height, width)


class SlideWindow:
    """A window on the pixels of a slide, or on which of them are real.

    Parameters
    ----------
    array
        The lazy array.
    key
        One element an axis; along ``y`` and ``x`` slices of step 1, of which the first pixel is the window's.
    keep
        Whether decoded frames are kept that reads show a part of only: for reads whose neighbours show the rest.
    """

    def __init__(self, array: SlideArray, key: tuple[Any, ...], keep: bool = False) -> None:
        axes, _, dropped = array.select(key)
        self._array = array
        self._reader = reader = array.reader
        self._keep = keep
        y, x = axes["y"], axes["x"]
        assert isinstance(y, Run)
        assert isinstance(x, Run)
        self._top, self._left = y.start, x.start
        self.size = (length(y), length(x))
        self._planes = reader.planes(axes["z"], axes["path"])
        self._stack = (length(axes["z"]), length(axes["path"]))
        self._coverage = array.kind == "coverage"
        self._channels = None if self._coverage else reader.channel_key(axes["c"])
        self._count = length(axes["c"]) if reader.colour else self._stack[1]
        self._lead = tuple(length(axes[d]) for d in ("z", "path") if d in array.dims and d not in dropped)
        self._tail = () if "c" in dropped else (self._count,)
        self.axis = len(self._lead)
        self.dtype = array.dtype

    @property
    def current(self) -> bool:
        """Whether the window may still be used: its process has not been forked since."""
        return self._array.reader is self._reader

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of a region."""
        return (*self._lead, height, width, *self._tail)

    def read(self, y: int, x: int, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return a region, ``y`` and ``x`` counted from the window's first pixel; ``out`` is filled if given."""
        if out is None:
            out = empty(self.shape(height, width), self.dtype)
        if out.size:
            self._read(self._regions([(y, x)], height, width), out.reshape(self._full(height, width)))
        return out

    def read_many(self, corners: Corners, height: int, width: int, out: Pixels | None) -> Pixels:
        """Return regions of one size, the region first; frames that they share are decoded once."""
        if out is None:
            out = empty((len(corners), *self.shape(height, width)), self.dtype)
        if out.size and len(corners) == 1:
            self.read(*corners[0], height, width, out[0])
        elif out.size:
            full = out.reshape(len(corners), *self._full(height, width))
            self._read(self._regions(corners, height, width), full)
        return out

    def _read(self, regions: list[tuple[Axis, Axis]], full: Pixels) -> None:
        if self._coverage:
            full[...] = False
            for n, (ys, xs) in enumerate(regions):
                self._reader.cover(self._planes, ys, xs, self._reader.view(full if len(regions) == 1 else full[n]))
        else:
            keep = self._keep or len(regions) > 1  # the next group of patches may show the rest
            self._reader.read(self._planes, regions, self._reader.view(full), self._channels, keep)

    def plans(self, corners: Corners, height: int, width: int) -> Plans:
        """Return what `read_many` would read."""
        if not corners or not height or not width or self._coverage:
            return []
        return [(self._reader, self._reader.plan(self._planes, self._regions(corners, height, width)))]

    def _regions(self, corners: Corners, height: int, width: int) -> list[tuple[Axis, Axis]]:
        top, left = self._top, self._left
        return [(Run(top + y, top + y + height), Run(left + x, left + x + width)) for y, x in corners]

    def _full(self, height: int, width: int) -> tuple[int, int, int, int, int]:
        z, paths = self._stack
        return z, paths if self._reader.colour else 1, height, width, self._count
