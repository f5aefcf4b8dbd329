"""The read planner: from a selection to the frames it touches, grouped into reads.

A plan is made without reading a byte, and can be printed and compared. Its units are runs of frames that lie one behind
the other in a file: one read each. Every frame is in one unit, with all the places its pixels go to.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from microtome.dicom.matrix import Matrix
from microtome.dicom.pyramid import Level, Plane
from microtome.dicom.tiling import ABSENT, FullTiling, SparseTiling
from microtome.lazy.axis import Axis, Hit, Run, hits_at, tile_hits

T = TypeVar("T")

__all__ = ["Grouping", "Job", "Plan", "PointJob", "Unit", "plan_points", "plan_regions"]

LOCAL_RUN = 8
"""Frames in one read of a local file: enough to save calls, few enough to share work between threads."""
REMOTE_BYTES = 4 << 20
"""Bytes of frames that are asked of a remote file together, about: they take about as long as a request waits."""
REMOTE_RUN = 1024
"""Such frames, at the most."""
REMOTE_GAP = 4
"""Frames between two of these: they are worth reading over where they are small."""
LIST_LEAST = 32
"""Frames in one request, where there are so many: more requests side by side would cost more than they save."""
LISTS_ABREAST = 4
"""Requests of one read that are worth having at a time: more of them, and shorter, were slower on all servers tried."""


class Grouping(NamedTuple):
    """How frames make units."""

    run: int
    """The most frames of a unit."""
    lists: bool = False
    """Whether a unit may hold any frames of a file, rather than neighbours: requests to a server do."""
    abreast: int = 1
    """Lists that are worth having at a time."""
    gap: int = 0
    """The most frames between neighbours of a unit that are none of it."""


class Job(NamedTuple):
    """Pixels of a frame that go to a rectangle (or its pixels at some rows and columns) of the result."""

    slot: tuple[int, ...]
    """Which plane (and, for batches, which region) of the result."""
    y: Hit
    x: Hit


class PointJob(NamedTuple):
    """Pixels of a frame that go to scattered points of the result."""

    target: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]


class Unit(NamedTuple):
    """Frames of one file that are read at once: one behind the other, or a list in ascending order."""

    matrix: int
    part: int
    frames: list[int]
    jobs: list[list[Any]]


class Plan(NamedTuple):
    """What it takes to read a selection."""

    units: list[Unit]
    lost: list[tuple[int, int, Any]]
    """(matrix, frame, job) of frames that should be there and are not; frame ABSENT where it is unknown which."""
    complete: bool
    """Whether frames cover every selected pixel, so that none needs a fill."""
    overlapping: bool = False
    """Whether tiles may overlap, so that frames must be pasted in order."""

    @property
    def frames(self) -> int:
        """Number of frames to be read."""
        return sum(len(unit.frames) for unit in self.units)


class _Collector:
    """Turns frames and the places of their pixels into units.

    Parameters
    ----------
    level
        Where the frames are.
    grouping
        How frames make units.
    repeated
        Whether frames come several times, in any order: then they are gathered first, and sorted.
    """

    def __init__(self, level: Level, grouping: Grouping, repeated: bool) -> None:
        self.level = level
        self.run, self.lists, self.abreast, self.gap = grouping
        self.lost: list[tuple[int, int, Any]] = []
        self.complete = True
        self.units: list[Unit] = []
        self.last = (-1, -1, -1)
        self.gathered: dict[tuple[int, int], list[Any]] | None = defaultdict(list) if repeated else None
        self.listed: dict[tuple[int, int], list[tuple[int, list[Any]]]] = {}

    def add(self, matrix: int, frame: int, job: Any) -> None:
        if self.gathered is None:
            self.append(matrix, frame, [job])
        else:
            self.gathered[matrix, frame].append(job)

    def append(self, matrix: int, frame: int, jobs: list[Any]) -> None:
        """Append a frame to the last unit if it lies behind its frames, or nearly so, else begin a unit."""
        place = _locate(self.level.matrices[matrix], frame)
        if place is None:
            self.lost.extend((matrix, frame, job) for job in jobs)
            self.complete = False
            return
        part, local = place
        if self.lists:
            self.listed.setdefault((matrix, part), []).append((local, jobs))
            return
        near = self.last[:2] == (matrix, part) and 0 < local - self.last[2] <= 1 + self.gap
        if near and len(self.units[-1].frames) < self.run:
            self.units[-1].frames.append(local)
            self.units[-1].jobs.append(jobs)
        else:
            self.units.append(Unit(matrix, part, [local], [jobs]))
        self.last = (matrix, part, local)

    def append_row(self, matrix: int, frames: Sequence[int], slot: tuple[int, ...], y: Hit, x_hits: list[Hit]) -> bool:
        """Append a row of tiles as a unit if its frames are neighbours in one file and few; else do nothing."""
        count = len(frames)
        if (
            self.gathered is not None
            or self.lists
            or self.gap  # rows are joined
            or not isinstance(frames, range)
            or frames.step != 1
            or count != len(x_hits)
            or not 1 < count <= self.run
        ):
            return False
        place = _locate(self.level.matrices[matrix], frames[0])
        end = _locate(self.level.matrices[matrix], frames[-1])
        if place is None or end is None or place[0] != end[0]:
            return False
        part, local = place
        self.units.append(Unit(matrix, part, list(range(local, local + count)), [[Job(slot, y, x)] for x in x_hits]))
        self.last = (matrix, part, local + count - 1)
        return True

    def absent(self, matrix: int, job: Any) -> None:
        self.complete = False
        tiling = self.level.matrices[matrix].tiling
        if isinstance(tiling, SparseTiling) and tiling.lost:
            self.lost.append((matrix, ABSENT, job))

    def plan(self) -> Plan:
        for (matrix, frame), jobs in sorted(self.gathered.items()) if self.gathered else ():
            self.append(matrix, frame, jobs)
        for (matrix, part), found in self.listed.items():
            self.units += [
                Unit(matrix, part, [frame for frame, _ in piece], [jobs for _, jobs in piece])
                for piece in _evenly(sorted(found, key=lambda pair: pair[0]), self.run, self.abreast)
            ]
        return Plan(self.units, self.lost, self.complete, self.level.overlapping)


def _evenly(items: list[T], most: int, abreast: int) -> list[list[T]]:
    """Cut a list into pieces of one size, as many as may be fetched at a time unless they would become small."""
    count = max(-(-len(items) // most), min(abreast, len(items) // LIST_LEAST), 1)
    cuts = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(cuts)]


def _locate(matrix: Matrix, frame: int) -> tuple[int, int] | None:
    if len(matrix.parts) == 1 and not matrix.parts[0].first:
        return (0, frame) if frame < matrix.parts[0].instance.frames else None
    return matrix.locate(frame)


def plan_regions(
    level: Level,
    planes: Sequence[tuple[tuple[int, ...], Plane | None]],
    regions: Sequence[tuple[Axis, Axis]],
    grouping: Grouping,
) -> Plan:
    """Plan the reading of one or several regions.

    Parameters
    ----------
    level
        Where the frames are.
    planes
        (slot, plane) of each plane that is read; the plane None where no instance shows it.
    regions
        Rows and columns of each region. With several, a region's number leads the slot of its jobs, and a frame that
        several regions share is read once.
    grouping
        How frames make units.
    """
    batch = len(regions) > 1
    collect = _Collector(level, grouping, repeated=batch)
    cuts = _Cuts()
    for number, (ys, xs) in enumerate(regions):
        for slot, plane in planes:
            where = (number, *slot) if batch else slot
            if plane is None:
                collect.complete = False
            elif level.matrices[plane.matrix].tiling.aligned:
                _aligned(collect, plane, where, ys, xs, cuts)
            else:
                _unaligned(collect, plane, where, ys, xs)
    return collect.plan()


class _Cuts:
    """How axes are cut by tiles, remembered within one plan: regions of a grid share their rows and columns."""

    def __init__(self) -> None:
        self.runs = cache(tile_hits)

    def hits(self, axis: Axis, tile: int) -> list[Hit]:
        return self.runs(axis, tile) if isinstance(axis, Run) else tile_hits(axis, tile)


def _aligned(collect: _Collector, plane: Plane, slot: tuple[int, ...], ys: Axis, xs: Axis, cuts: _Cuts) -> None:
    tiling = collect.level.matrices[plane.matrix].tiling
    x_hits = cuts.hits(xs, tiling.tile_columns)
    if not x_hits:
        return
    first, stop = x_hits[0].tile, x_hits[-1].tile + 1
    gathered, matrix = collect.gathered, plane.matrix
    for y in cuts.hits(ys, tiling.tile_rows):
        frames = tiling.run(plane.number, y.tile, first, stop)
        if gathered is not None:
            for x in x_hits:
                frame = frames[x.tile - first]
                if frame != ABSENT:
                    gathered[matrix, frame].append(Job(slot, y, x))
                else:
                    collect.absent(matrix, Job(slot, y, x))
            continue
        if collect.append_row(plane.matrix, frames, slot, y, x_hits):
            continue
        for x in x_hits:
            frame = frames[x.tile - first]
            if frame == ABSENT:
                collect.absent(plane.matrix, Job(slot, y, x))
            else:
                collect.add(plane.matrix, frame, Job(slot, y, x))


def _bounds(axis: Axis) -> tuple[int, int]:
    if isinstance(axis, Run):
        return axis.start, axis.stop
    return (int(axis.min()), int(axis.max()) + 1) if len(axis) else (0, 0)


def _unaligned(collect: _Collector, plane: Plane, slot: tuple[int, ...], ys: Axis, xs: Axis) -> None:
    tiling = collect.level.matrices[plane.matrix].tiling
    assert isinstance(tiling, SparseTiling)
    collect.complete = False  # what overlapping tiles leave uncovered is not worth working out
    if tiling.lost:
        collect.lost.append((plane.matrix, ABSENT, None))
    for frame, row, column in tiling.touching(plane.number, *_bounds(ys), *_bounds(xs)):
        y = hits_at(ys, row, tiling.tile_rows, tiling.rows)
        x = hits_at(xs, column, tiling.tile_columns, tiling.columns)
        if y is not None and x is not None:
            collect.add(plane.matrix, frame, Job(slot, y, x))


def plan_points(
    level: Level,
    planes: dict[tuple[int, int], Plane],
    z: npt.NDArray[np.int64],
    path: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    x: npt.NDArray[np.int64],
    grouping: Grouping,
) -> Plan:
    """Plan the reading of scattered points: the frames under them, each once.

    Parameters
    ----------
    level
        Where the frames are.
    planes
        By (z, path) index.
    z, path, y, x
        One element a point.
    grouping
        How frames make units.
    """
    collect = _Collector(level, grouping, repeated=True)
    slots = np.unique(np.stack([z, path]), axis=1) if len(z) else np.empty((2, 0), np.int64)
    for k, p in slots.T.tolist():
        chosen = np.flatnonzero((z == k) & (path == p))
        plane = planes.get((k, p))
        if plane is None:
            collect.complete = False
            continue
        tiling = level.matrices[plane.matrix].tiling
        if tiling.aligned:
            frames = _frames_at(tiling, plane.number, y[chosen], x[chosen])
            _group(collect, plane.matrix, frames, chosen, y % tiling.tile_rows, x % tiling.tile_columns)
        else:
            assert isinstance(tiling, SparseTiling)
            _points_off_grid(collect, plane, tiling, chosen, y, x)
    return collect.plan()


def _frames_at(
    tiling: FullTiling | SparseTiling, plane: int, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    down, across = tiling.grid
    tile_row, tile_column = y // tiling.tile_rows, x // tiling.tile_columns
    if isinstance(tiling, SparseTiling):
        assert tiling.table is not None
        frames: npt.NDArray[np.int64] = tiling.table[plane, tile_row, tile_column].astype(np.int64)
        return frames
    if tiling.column_major:
        return plane * down * across + tile_column * down + tile_row
    return (plane * down + tile_row) * across + tile_column


def _group(
    collect: _Collector,
    matrix: int,
    frames: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    x: npt.NDArray[np.int64],
) -> None:
    """Group points by frame; ``y`` and ``x`` are within the frame, one element a point of the whole selection."""
    order = np.argsort(frames, kind="stable")
    cuts = np.flatnonzero(np.diff(frames[order])) + 1
    for group in np.split(order, cuts) if len(order) else ():
        points = target[group]
        job = PointJob(points, y[points], x[points])
        frame = int(frames[group[0]])
        if frame == ABSENT:
            collect.absent(matrix, job)
        else:
            collect.add(matrix, frame, job)


def _points_off_grid(
    collect: _Collector,
    plane: Plane,
    tiling: SparseTiling,
    chosen: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    x: npt.NDArray[np.int64],
) -> None:
    frames = np.full(len(chosen), ABSENT, np.int64)
    inner_y, inner_x = np.zeros(len(y), np.int64), np.zeros(len(x), np.int64)
    for i, point in enumerate(chosen.tolist()):
        row, column = int(y[point]), int(x[point])
        tiles = tiling.touching(plane.number, row, row + 1, column, column + 1)
        if tiles:
            frames[i], top, left = tiles[-1]  # the highest frame is on top
            inner_y[point], inner_x[point] = row - top, column - left
    _group(collect, plane.matrix, frames, chosen, inner_y, inner_x)
