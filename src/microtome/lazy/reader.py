"""Reads the pixels of one level: plans, lets frames be pasted, and says what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from microtome.dicom.absent import absent_value
from microtome.dicom.pyramid import Level, Plane
from microtome.dicom.tiling import ABSENT
from microtome.errors import MissingFrameError, OptionError
from microtome.lazy import pool
from microtome.lazy.axis import Axis, length
from microtome.lazy.canvas import Canvas, PointCanvas, RegionCanvas
from microtome.lazy.frames import FrameFile, threads_for
from microtome.lazy.plan import LOCAL_RUN, REMOTE_RUN, Plan, Unit, plan_points, plan_regions

__all__ = ["LevelReader", "Missing"]

Pixels = npt.NDArray[Any]
Missing = Literal["raise", "fill"]


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
        self.files = [[FrameFile(part.instance) for part in matrix.parts] for matrix in level.matrices]
        self.dtype = fmt.dtype
        self.channels = fmt.channels
        self.colour = fmt.channels == 3
        self.shape = (len(level.z), len(level.paths), level.head.rows, level.head.columns, fmt.channels)
        """(z, path, y, x, samples)"""
        self._fill_option = fill
        self._run = REMOTE_RUN if self.files[0][0].source.remote else LOCAL_RUN

    @cached_property
    def fill(self) -> Pixels:
        """Value of pixels that no frame covers, one a channel."""
        value = absent_value(self.level) if self._fill_option is None else self._fill_option
        wanted = np.atleast_1d(np.asarray(value))
        info = np.iinfo(self.dtype)
        if wanted.shape not in ((1,), (self.channels,)) or np.any(wanted < info.min) or np.any(wanted > info.max):
            raise OptionError(f"fill={value!r} is no pixel of {self.channels} channels of {self.dtype}")
        return np.broadcast_to(wanted.astype(self.dtype), (self.channels,)).copy()

    def plan(self, zs: Sequence[int], paths: Sequence[int], regions: Sequence[tuple[Axis, Axis]]) -> Plan:
        """Plan the reading of regions of some planes; see `plan_regions`."""
        get = self.level.planes.get
        planes: list[tuple[tuple[int, ...], Plane | None]] = [
            ((i, j), get((z, p))) for i, z in enumerate(zs) for j, p in enumerate(paths)
        ]
        return plan_regions(self.level, planes, regions, self._run)

    def read(
        self,
        zs: Sequence[int],
        paths: Sequence[int],
        regions: Sequence[tuple[Axis, Axis]],
        view: Pixels,
        channels: slice | npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Read regions into ``view``: ([region,] z, path, y, x, channel), the first axis only where there are several.

        Raises
        ------
        FrameError
            A frame is missing (and ``missing`` is not fill), damaged, or of an unknown kind.
        """
        plan = self.plan(zs, paths, regions)
        if not plan.complete:
            view[...] = self.fill if channels is None else self.fill[channels]
        self._execute(plan, RegionCanvas(view, channels))

    def read_points(
        self,
        z: npt.NDArray[np.int64],
        path: npt.NDArray[np.int64],
        y: npt.NDArray[np.int64],
        x: npt.NDArray[np.int64],
    ) -> Pixels:
        """Return the pixels at scattered points, (points, channels)."""
        out = np.empty((len(y), self.channels), self.dtype)
        plan = plan_points(self.level, self.level.planes, z, path, y, x, self._run)
        if not plan.complete:
            out[...] = self.fill
        self._execute(plan, PointCanvas(out))
        return out

    def covered(self, zs: Sequence[int], paths: Sequence[int], ys: Axis, xs: Axis) -> npt.NDArray[np.bool_]:
        """Return which pixels a frame covers, (z, path, y, x); nothing is read."""
        out = np.zeros((len(zs), len(paths), length(ys), length(xs), 1), np.bool_)
        canvas = RegionCanvas(out, None)
        for unit in self.plan(zs, paths, [(ys, xs)]).units:
            for jobs in unit.jobs:
                for job in jobs:
                    canvas.fill(job, np.ones(1, np.bool_))
        return out[..., 0]

    def _execute(self, plan: Plan, canvas: Canvas) -> None:
        if plan.lost and self.missing == "raise":
            self._raise_lost(plan)
        fill = self.fill if self.missing == "fill" else None
        files = self.files

        def work(unit: Unit) -> None:
            files[unit.matrix][unit.part].paste(unit, canvas, fill)

        units = plan.units
        if len(units) == 1:
            work(units[0])
            return
        # Overlapping tiles are pasted in order of their frames, whatever the number of threads.
        pool.run(work, units, 1 if plan.overlapping else threads_for(files[0][0]))

    def _raise_lost(self, plan: Plan) -> None:
        matrix, frame, _ = plan.lost[0]
        head = self.level.matrices[matrix].head
        which = f"frame {frame + 1}" if frame != ABSENT else "a frame, it cannot be known which,"
        raise MissingFrameError(
            f"{head.uri}: {which} of {self.level.name} is lost: a part of its concatenation or the end of a file is "
            "missing. Find the missing file, or open the slide with missing='fill'"
        )
