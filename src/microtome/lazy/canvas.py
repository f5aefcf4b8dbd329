"""Where decoded frames are pasted: regions, points, or the map of what is covered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from microtome.errors import CorruptFrameError
from microtome.lazy.plan import Job, PointJob

__all__ = ["Canvas", "PointCanvas", "RegionCanvas"]

Pixels = npt.NDArray[Any]


class Canvas(Protocol):
    """A result that takes the pixels of frames."""

    def whole(self, job: Any, shape: tuple[int, ...]) -> Pixels | None:
        """Return the place of a job if a frame of this shape may be decoded straight into it."""
        ...

    def shows_all(self, job: Any, shape: tuple[int, ...]) -> bool:
        """Tell whether a job shows all of a frame of this shape."""
        ...

    def put(self, job: Any, pixels: Pixels) -> None:
        """Paste pixels (rows, columns, channels) of a frame."""
        ...

    def put_all(self, jobs: Sequence[Any], pixels: Pixels) -> None:
        """Paste pixels of a frame into all the places they go to."""
        ...

    def fill(self, job: Any, value: Pixels) -> None:
        """Paste a value (channels,) in place of a frame that is missing."""
        ...


class RegionCanvas:
    """Rectangles, or rows and columns: an array (..., y, x, channels) whose leading axes are slots."""

    def __init__(self, view: Pixels, channels: slice | npt.NDArray[np.int64] | None) -> None:
        self._view = view
        self._channels = channels

    def whole(self, job: Job, shape: tuple[int, ...]) -> Pixels | None:
        """Return the place of a job if a frame of this shape may be decoded straight into it."""
        _, y, x = job
        if y.need != shape[0] or x.need != shape[1]:
            return None
        if self._channels is not None or not self.shows_all(job, shape):
            return None
        place: Pixels = self._view[job.slot][y.target, x.target]
        return place if place.shape == shape and place.flags.c_contiguous else None

    def shows_all(self, job: Job, shape: tuple[int, ...]) -> bool:
        """Tell whether a job shows all of a frame of this shape."""
        y, x = job.y.source, job.x.source
        return type(y) is slice and type(x) is slice and y == slice(0, shape[0]) and x == slice(0, shape[1])

    def put(self, job: Job, pixels: Pixels) -> None:
        """Paste pixels (rows, columns, channels) of a frame."""
        slot, y, x = job
        rows, columns, _ = pixels.shape
        if rows < y.need or columns < x.need:
            raise CorruptFrameError(
                f"decodes to {rows} x {columns} pixels, where at least {y.need} x {x.need} lie inside the matrix"
            )
        if self._channels is not None:
            pixels = pixels[..., self._channels]
        if type(y.target) is slice and type(x.target) is slice:
            place: Any = (*slot, y.target, x.target)
            self._view[place] = pixels[y.source, x.source]
        else:
            self._view[slot][_cross(y.target, x.target)] = pixels[_cross(y.source, x.source)]

    def put_all(self, jobs: Sequence[Job], pixels: Pixels) -> None:
        """Paste pixels of a frame into all the places they go to: many, where patches overlap."""
        view: Any = self._view
        rows, columns, _ = pixels.shape
        plain = self._channels is None
        for job in jobs:
            slot, (_, to_y, from_y, tall), (_, to_x, from_x, wide) = job
            if plain and tall <= rows and wide <= columns and type(to_y) is slice and type(to_x) is slice:
                view[(*slot, to_y, to_x)] = pixels[from_y, from_x]
            else:
                self.put(job, pixels)

    def fill(self, job: Job, value: Pixels) -> None:
        """Paste a value (channels,) in place of a frame that is missing."""
        value = value if self._channels is None else value[self._channels]
        self._view[job.slot][_cross(job.y.target, job.x.target)] = value


def _cross(y: slice | npt.NDArray[np.int64], x: slice | npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Return an index that selects rows ``y`` and, in each, columns ``x``."""
    if isinstance(y, slice) or isinstance(x, slice):
        return y, x
    return y[:, np.newaxis], x


class PointCanvas:
    """Scattered points: an array (points, channels)."""

    def __init__(self, view: Pixels) -> None:
        self._view = view

    def whole(self, job: PointJob, shape: tuple[int, ...]) -> Pixels | None:
        """Return None: points are no frame."""
        return None

    def shows_all(self, job: PointJob, shape: tuple[int, ...]) -> bool:
        """Return False: points are no frame."""
        return False

    def put(self, job: PointJob, pixels: Pixels) -> None:
        """Paste pixels (rows, columns, channels) of a frame."""
        try:
            self._view[job.target] = pixels[job.y, job.x]
        except IndexError:
            raise CorruptFrameError(
                f"decodes to {pixels.shape[0]} x {pixels.shape[1]} pixels, where more lie inside the matrix"
            ) from None

    def put_all(self, jobs: Sequence[PointJob], pixels: Pixels) -> None:
        """Paste pixels of a frame into all the places they go to."""
        for job in jobs:
            self.put(job, pixels)

    def fill(self, job: PointJob, value: Pixels) -> None:
        """Paste a value (channels,) in place of a frame that is missing."""
        self._view[job.target] = value
