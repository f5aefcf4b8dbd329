"""One total pixel matrix from one instance, or from the parts of a concatenation."""

from __future__ import annotations

import itertools
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from microtome.dicom.instance import Instance
from microtome.dicom.tiling import FullTiling, Tiling, sparse_tiling
from microtome.errors import CorruptHeaderError, FrameOrderWarning, GeometryWarning, IncompleteSlideWarning
from microtome.model import OpticalPath

__all__ = ["FrameOrder", "Matrix", "Part", "build_matrix"]

FrameOrder = Literal["row", "column"]
MAX_PLANES = 1 << 12
"""Focal planes of all optical paths together."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One file of a matrix: its frames are ``first`` to ``first + instance.frames`` of the matrix."""

    instance: Instance
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A stack of planes of one geometry.

    Parameters
    ----------
    parts
        In order of their frames; frames between them are lost.
    tiling
        Which frame lies where.
    z
        Focal offset of each focal plane in µm; None where not stated.
    paths
        The optical paths; at least one.
    """

    parts: tuple[Part, ...]
    tiling: Tiling
    z: tuple[float | None, ...]
    paths: tuple[OpticalPath, ...]

    @property
    def head(self) -> Instance:
        """The first part; what it says of geometry and format holds for all."""
        return self.parts[0].instance

    def locate(self, frame: int) -> tuple[int, int] | None:
        """Return the part of a frame and its number there, or None where its part is lost."""
        at = bisect_right(self.parts, frame, key=lambda part: part.first) - 1
        if at < 0:
            return None
        local = frame - self.parts[at].first
        return (at, local) if local < self.parts[at].instance.frames else None


def build_matrix(instances: Sequence[Instance], frame_order: FrameOrder | None, associated: bool = False) -> Matrix:
    """Assemble the instances of one concatenation, or a single instance.

    Parameters
    ----------
    instances
        The parts there are, in any order.
    frame_order
        For files that do not state how their frames are ordered: by rows (DICOM's order) or by columns of tiles.
    associated
        Whether it is a label or the like, of which the first frame alone counts.

    Raises
    ------
    CorruptHeaderError
        Parts contradict each other, or the number of frames fits no tiling.
    """
    parts = _order_parts(instances)
    head = parts[0].instance
    for part in parts[1:]:
        other = part.instance
        if (other.rows, other.columns, other.format) != (head.rows, head.columns, head.format):
            raise CorruptHeaderError(
                f"{other.uri}: is a part of the concatenation that {head.uri} belongs to, and differs from it in "
                "size or pixel format"
            )
    full = FullTiling(head.rows, head.columns, head.tile_rows, head.tile_columns, 1)
    if associated and head.frames == 1:
        parts, full = (Part(head, 0),), replace(full, tile_rows=max(full.tile_rows, 1))
        if full.frames == 1:
            return Matrix(parts, full, (None,), head.paths[:1] or (OpticalPath(""),))
    stated = all(p.instance.positions is not None and p.instance.positions.stated for p in parts)
    if stated and (head.organization != "TILED_FULL" or _contradict(parts, full)):
        return _sparse(parts, full)
    return _full(parts, full, frame_order)


def _order_parts(instances: Sequence[Instance]) -> tuple[Part, ...]:
    if len(instances) == 1 and instances[0].concatenation is None:
        return (Part(instances[0], 0),)
    numbered = sorted(
        instances, key=lambda i: (i.concatenation.offset, i.concatenation.number) if i.concatenation else (0, 0)
    )
    offsets = [i.concatenation.offset if i.concatenation else 0 for i in numbered]
    if len(numbered) > 1 and not any(offsets):  # offsets left out: the parts follow their numbers
        offsets = [sum(i.frames for i in numbered[:n]) for n in range(len(numbered))]
    parts = tuple(Part(instance, offset) for instance, offset in zip(numbered, offsets, strict=True))
    for before, after in itertools.pairwise(parts):
        if before.first + before.instance.frames > after.first:
            raise CorruptHeaderError(
                f"{after.instance.uri} and {before.instance.uri}: both claim frame {after.first + 1} of a concatenation"
            )
    return parts


def _lost(parts: tuple[Part, ...]) -> bool:
    """Tell whether parts of a concatenation are missing."""
    end = 0
    for part in parts:
        if part.first != end:
            return True
        end += part.instance.frames
    concatenation = parts[0].instance.concatenation
    return bool(concatenation and concatenation.total and concatenation.total > len(parts))


def _contradict(parts: tuple[Part, ...], full: FullTiling) -> bool:
    """Tell whether positions that TILED_FULL need not state say otherwise than its order; they are then believed."""
    down, across = full.grid
    for part in parts:
        positions = part.instance.positions
        assert positions is not None
        number = (np.arange(part.instance.frames) + part.first) % (down * across)
        tile_row, tile_column = np.divmod(number, across)
        if np.any(positions.row != tile_row * full.tile_rows) or np.any(
            positions.column != tile_column * full.tile_columns
        ):
            warnings.warn(
                f"{part.instance.uri}: TILED_FULL is stated, and frame positions that contradict its order; "
                "the positions are used",
                GeometryWarning,
                stacklevel=2,
            )
            return True
    return False


def _sparse(parts: tuple[Part, ...], full: FullTiling) -> Matrix:
    """Assemble a matrix whose frames state their places."""
    head = parts[0].instance
    positions = [p.instance.positions for p in parts if p.instance.positions is not None]
    row = np.concatenate([p.row for p in positions])
    column = np.concatenate([p.column for p in positions])
    frame = np.concatenate([np.arange(p.instance.frames, dtype=np.int32) + p.first for p in parts]).astype(np.int32)
    z_stated = np.round(np.nan_to_num(np.concatenate([p.z for p in positions])), 9)
    z_values, z_index = np.unique(z_stated, return_inverse=True)
    identifiers = list(dict.fromkeys(i for p in positions for i in p.paths))
    if identifiers:
        by_identifier = {path.identifier: path for path in head.paths}
        # Declared order first, so that levels agree whichever path their first frame shows.
        identifiers.sort(key=lambda i: list(by_identifier).index(i) if i in by_identifier else len(by_identifier))
        paths = tuple(by_identifier.get(i, OpticalPath(i)) for i in identifiers)
        remap = [np.array([identifiers.index(i) for i in p.paths] or [0], np.int16)[p.path] for p in positions]
        path_index = np.concatenate(remap)
    else:
        paths = head.paths[:1] or (OpticalPath(""),)
        path_index = np.zeros(len(row), np.int16)
    _check_planes(head, len(z_values), len(paths))
    full = replace(full, planes=len(paths) * len(z_values))
    plane = (path_index * len(z_values) + z_index).astype(np.int16)
    lost = _lost(parts)
    if lost:
        _warn_lost(head)
    last = parts[-1]
    tiling = sparse_tiling(full, row, column, plane, frame, frames=last.first + last.instance.frames, lost=lost)
    slim = tuple(Part(replace(p.instance, positions=None), p.first) for p in parts)
    return Matrix(slim, tiling, _z_micrometres(z_values.tolist(), head.plane_spacing), paths)


def _z_micrometres(values: list[float], spacing: float | None) -> tuple[float | None, ...]:
    """Return Z offsets in µm. DICOM states them so (C.8.12.6.1); writers exist that state mm, as all else is stated.

    Which it is shows where the spacing between planes, always mm, is stated as well.
    """
    step = min((b - a for a, b in itertools.pairwise(values)), default=0.0)
    factor = 1000.0 if spacing and step and abs(step - spacing) < abs(step - spacing * 1000) else 1.0
    return tuple(round(v * factor, 9) for v in values)


def _full(parts: tuple[Part, ...], full: FullTiling, frame_order: FrameOrder | None) -> Matrix:
    """Assemble a matrix whose frames follow TILED_FULL's order, stated or assumed."""
    head = parts[0].instance
    last = parts[-1]
    frames = last.first + last.instance.frames
    lost = _lost(parts)
    paths = head.paths or (OpticalPath(""),)
    planes, paths = _planes(head, full.frames, frames, paths, lost)
    _check_planes(head, planes, len(paths))
    full = replace(full, planes=planes * len(paths), column_major=frame_order == "column")
    if lost or frames < full.frames:
        _warn_lost(head)
    if head.organization != "TILED_FULL" and frame_order is None and min(full.grid) > 1:
        warnings.warn(
            f"{head.uri}: does not state where its frames lie; they are taken to follow the rows of tiles. If the "
            "picture is scrambled, its writer followed the columns: open it with frame_order='column' "
            "(or with frame_order='row' to keep this order without this warning)",
            FrameOrderWarning,
            stacklevel=2,
        )
    base = head.z_offset or 0.0
    z: tuple[float | None, ...]
    if planes == 1:
        z = (head.z_offset,)
    elif head.plane_spacing:
        z = tuple(round(base + k * head.plane_spacing * 1000, 9) for k in range(planes))
    else:
        z = (None,) * planes
    slim = tuple(Part(replace(p.instance, positions=None), p.first) for p in parts)
    return Matrix(slim, full, z, paths)


def _planes(
    head: Instance, tiles: int, frames: int, paths: tuple[OpticalPath, ...], lost: bool
) -> tuple[int, tuple[OpticalPath, ...]]:
    """Return the number of focal planes and the optical paths that the frames are of."""
    stated = head.focal_planes or 1
    expected = tiles * stated * len(paths)
    if frames == expected or lost:
        return stated, paths
    if frames == tiles * stated:  # paths that are described, and not stored one by one
        return stated, paths[:1]
    if head.focal_planes is None and frames % (tiles * len(paths)) == 0:
        return frames // (tiles * len(paths)), paths
    if frames < expected:
        return stated, paths
    raise CorruptHeaderError(
        f"{head.uri}: has {frames} frames, where a matrix of {head.rows} x {head.columns} in frames of "
        f"{head.tile_rows} x {head.tile_columns}, {stated} focal planes and {len(paths)} optical paths has {expected}"
    )


def _check_planes(head: Instance, planes: int, paths: int) -> None:
    """Refuse a number of planes that only damage can explain: each takes memory, whether it has frames or not."""
    if planes * paths > MAX_PLANES:
        raise CorruptHeaderError(
            f"{head.uri}: {planes} focal planes of {paths} optical paths are stated; no slide has more than "
            f"{MAX_PLANES} together"
        )


def _warn_lost(head: Instance) -> None:
    warnings.warn(
        f"{head.uri}: frames of its matrix are lost (a part of a concatenation, or fewer frames than tiles); reading "
        "one raises, unless the slide is opened with missing='fill'",
        IncompleteSlideWarning,
        stacklevel=2,
    )
