"""Neighbouring pixels of a lazy array, prepared for many reads: what `wsi.read` uses in hot loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from microtome.lazy.axis import Axis, Run, length
from microtome.lazy.buffers import empty

if TYPE_CHECKING:
    from microtome.lazy.array import SlideArray

__all__ = ["Window"]

Pixels = npt.NDArray[Any]


class Window:
    """Part of a lazy array: planes and channels, and a rectangle of their pixels.

    Parameters
    ----------
    array
        The lazy array; its pixels, not its coverage.
    key
        One element an axis; along ``y`` and ``x`` slices of step 1, of which the first pixel is the window's.
    """

    def __init__(self, array: SlideArray, key: tuple[Any, ...]) -> None:
        axes, _, dropped = array.select(key)
        self._array = array
        self._reader = reader = array.reader
        y, x = axes["y"], axes["x"]
        assert isinstance(y, Run)
        assert isinstance(x, Run)
        self._top, self._left = y.start, x.start
        self._planes = reader.planes(axes["z"], axes["path"])
        self._stack = (length(axes["z"]), length(axes["path"]))
        self._channels = reader.channel_key(axes["c"])
        self._count = length(axes["c"]) if reader.colour else self._stack[1]
        self._lead = tuple(length(axes[d]) for d in ("z", "path") if d in array.dims and d not in dropped)
        self._tail = () if "c" in dropped else (self._count,)
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
            y += self._top
            x += self._left
            full = out.reshape(self._full(height, width))
            self._reader.read(
                self._planes, [(Run(y, y + height), Run(x, x + width))], self._reader.view(full), self._channels
            )
        return out

    def read_many(self, corners: Sequence[tuple[int, int]], height: int, width: int, out: Pixels | None) -> Pixels:
        """Return regions of one size, the region first; frames that they share are decoded once."""
        if out is None:
            out = empty((len(corners), *self.shape(height, width)), self.dtype)
        if out.size and len(corners) == 1:
            self.read(*corners[0], height, width, out[0])
        elif out.size:
            full = out.reshape(len(corners), *self._full(height, width))
            regions = self._regions(corners, height, width)
            self._reader.read(self._planes, regions, self._reader.view(full), self._channels)
        return out

    def prefetch(self, corners: Sequence[tuple[int, int]], height: int, width: int) -> int:
        """Fetch the frames under regions into the frame cache; return how many."""
        if not corners or not height or not width:
            return 0
        reader = self._reader
        return reader.prefetch(reader.plan(self._planes, self._regions(corners, height, width)))

    def _regions(self, corners: Sequence[tuple[int, int]], height: int, width: int) -> list[tuple[Axis, Axis]]:
        top, left = self._top, self._left
        return [(Run(top + y, top + y + height), Run(left + x, left + x + width)) for y, x in corners]

    def _full(self, height: int, width: int) -> tuple[int, int, int, int, int]:
        z, paths = self._stack
        return z, paths if self._reader.colour else 1, height, width, self._count


def contiguous(k: Any) -> bool:
    """Tell whether a key selects neighbouring pixels in their order."""
    return isinstance(k, slice) and k.step in (None, 1)
