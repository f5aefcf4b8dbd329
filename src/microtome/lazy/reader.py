"""Reads the pixels of one level: plans, lets frames be pasted, and says what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from microtome import config
from microtome.dicom.absent import absent_value
from microtome.dicom.pyramid import Level, Plane
from microtome.dicom.tiling import ABSENT
from microtome.errors import MissingFrameError, OptionError
from microtome.lazy import pool
from microtome.lazy.axis import Axis, Run, numbers
from microtome.lazy.canvas import Canvas, PointCanvas, RegionCanvas
from microtome.lazy.frames import InstanceReader, threads_for
from microtome.lazy.plan import (
    LISTS_ABREAST,
    LOCAL_RUN,
    REMOTE_BYTES,
    REMOTE_GAP,
    REMOTE_RUN,
    Grouping,
    Plan,
    Unit,
    plan_points,
    plan_regions,
)

__all__ = ["LevelReader", "Missing"]

Pixels = npt.NDArray[Any]
Missing = Literal["raise", "fill"]
LARGEST_LIST = 64 << 20
"""Bytes that the frames of one request may take, decoded."""
Planes = Sequence[tuple[tuple[int, ...], Plane | None]]


class LevelReader:
    """Pixels of a level, by planes, rows, columns and channels.

    Parameters
    ----------
    level
        What to read.
    missing
        Whether a frame that should be there and is not raises, or is filled.
    fill
        Value of pixels that no frame covers: one number, or one a channel; None for what the file recommends.
    """

    def __init__(self, level: Level, missing: Missing = "raise", fill: float | Sequence[float] | None = None) -> None:
        fmt = level.head.format
        self.level = level
        self.missing = missing
        self.files = [[InstanceReader(part.instance) for part in matrix.parts] for matrix in level.matrices]
        self.dtype = fmt.dtype
        self.channels = fmt.channels
        self.colour = fmt.channels == 3
        self.shape = (len(level.z), len(level.paths), level.head.rows, level.head.columns, fmt.channels)
        """(z, path, y, x, samples)"""
        self._fill_option = fill
        if fill is not None:
            _ = self.fill  # a value that no pixel has is refused now, not when the first tile is found missing
        self._grouping = _grouping(self.files[0][0])

    @cached_property
    def fill(self) -> Pixels:
        """Value of pixels that no frame covers, one a channel."""
        value = absent_value(self.level) if self._fill_option is None else self._fill_option
        wanted = np.atleast_1d(np.asarray(value))
        info = np.iinfo(self.dtype)
        inside = (wanted >= info.min) & (wanted <= info.max) & (wanted % 1 == 0)  # NaN is not
        if wanted.shape not in ((1,), (self.channels,)) or not inside.all():
            raise OptionError(f"fill={value!r} is no pixel of {self.channels} channels of {self.dtype}")
        return np.broadcast_to(wanted.astype(self.dtype), (self.channels,)).copy()

    def planes(self, z: Axis, path: Axis) -> Planes:
        """Return the planes of selected focal offsets and optical paths, with their places in the result."""
        get = self.level.planes.get
        return [((i, j), get((k, p))) for i, k in enumerate(numbers(z)) for j, p in enumerate(numbers(path))]

    def channel_key(self, channels: Axis) -> slice | npt.NDArray[np.int64] | None:
        """Return what selects channels of a decoded frame; None for all of them."""
        if not self.colour:
            return None
        if isinstance(channels, Run):
            return None if channels == Run(0, self.channels) else slice(*channels)
        return channels

    def view(self, full: Pixels) -> Pixels:
        """Return (..., z, path, y, x, sample) as a view of (..., z, path, y, x, c), where grey paths are channels."""
        if self.colour:
            return full
        return np.moveaxis(full[..., 0, :, :, :], -1, -3)[..., np.newaxis]

    def plan(self, planes: Planes, regions: Sequence[tuple[Axis, Axis]]) -> Plan:
        """Plan the reading of regions of some planes; see `plan_regions`."""
        return plan_regions(self.level, planes, regions, self._grouping)

    def read(
        self,
        planes: Planes,
        regions: Sequence[tuple[Axis, Axis]],
        view: Pixels,
        channels: slice | npt.NDArray[np.int64] | None = None,
        keep: bool = False,
    ) -> None:
        """Read regions into ``view``: ([region,] z, path, y, x, sample), the first axis only where there are several.

        With ``keep``, decoded frames are kept of which the regions show a part only.

        Raises
        ------
        FrameError
            A frame is missing (and ``missing`` is not fill), damaged, or of an unknown kind.
        """
        plan = plan_regions(self.level, planes, regions, self._grouping)
        if not plan.complete:
            view[...] = self.fill if channels is None else self.fill[channels]
        self._execute(plan, RegionCanvas(view, channels), keep)

    def read_points(
        self,
        z: npt.NDArray[np.int64],
        path: npt.NDArray[np.int64],
        y: npt.NDArray[np.int64],
        x: npt.NDArray[np.int64],
    ) -> Pixels:
        """Return the pixels at scattered points, (points, channels)."""
        out = np.empty((len(y), self.channels), self.dtype)
        plan = plan_points(self.level, self.level.planes, z, path, y, x, self._grouping)
        if not plan.complete:
            out[...] = self.fill
        self._execute(plan, PointCanvas(out))
        return out

    def cover(self, planes: Planes, ys: Axis, xs: Axis, view: Pixels) -> None:
        """Set pixels of ``view`` (z, path, y, x, sample) that a frame covers to True; nothing is read."""
        canvas = RegionCanvas(view, None)
        covered = np.ones(1, np.bool_)
        for unit in self.plan(planes, [(ys, xs)]).units:
            for jobs in unit.jobs:
                for job in jobs:
                    canvas.fill(job, covered)

    def _execute(self, plan: Plan, canvas: Canvas, keep: bool = False) -> None:
        if plan.lost and self.missing == "raise":
            self._raise_lost(plan)
        fill = self.fill if self.missing == "fill" else None
        files = self.files
        # Overlapping tiles are pasted in order of their frames, whatever the number of threads.
        share = not plan.overlapping
        once = plan.frames * files[0][0].source.frame_bytes > config.get().frame_cache_bytes

        def work(unit: Unit) -> None:
            files[unit.matrix][unit.part].paste(unit, canvas, fill, share, keep, once)

        units = plan.units
        if len(units) == 1:
            work(units[0])
            return
        pool.run(work, units, threads_for(files[0][0]) if share else 1)

    def _raise_lost(self, plan: Plan) -> None:
        matrix, frame, _ = plan.lost[0]
        head = self.level.matrices[matrix].head
        which = f"frame {frame + 1}" if frame != ABSENT else "a frame, it cannot be known which,"
        raise MissingFrameError(
            f"{head.uri}: {which} of {self.level.name} is lost: a part of its concatenation or the end of a file is "
            "missing. Find the missing file, or open the slide with missing='fill'"
        )

    def prefetch(self, plan: Plan) -> int:
        """Fetch the frames of a plan into the frame cache, where that is of use; return how many."""
        fetched = [0]  # appending is safe between threads, adding is not

        def work(unit: Unit) -> None:
            fetched.append(self.files[unit.matrix][unit.part].source.prefetch(unit.frames))

        pool.run(work, plan.units, threads_for(self.files[0][0]))
        return sum(fetched)


def _grouping(reader: InstanceReader) -> Grouping:
    """Return how frames of an instance are grouped: by where it is, and so that memory for a unit is bounded."""
    if not reader.source.remote:
        return Grouping(LOCAL_RUN)
    if not reader.source.lists:
        run = REMOTE_BYTES // max(1, reader.source.frame_bytes)
        return Grouping(max(1, min(run, REMOTE_RUN)), gap=REMOTE_GAP)
    settings = config.get()
    most = max(1, LARGEST_LIST // max(1, reader.instance.format.native_bits // 8))
    return Grouping(min(settings.frames_per_request, most), True, min(LISTS_ABREAST, settings.requests_per_server))
