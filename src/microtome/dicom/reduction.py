"""A level as if it were stored at 1/2, 1/4 or 1/8 of its size: the same frames, each decoded smaller.

Everything above the frames takes it for a level: the read planner, `LevelReader`, whatever counts its pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from microtome.dicom.decoding.reduced import FACTORS
from microtome.dicom.instance import Instance
from microtome.dicom.matrix import Matrix, Part
from microtome.dicom.pyramid import Level
from microtome.dicom.tiling import SparseTiling, Tiling
from microtome.errors import OptionError
from microtome.model import FrameFormat, PixelSpacing

__all__ = ["reduced_level"]


def reduced_level(level: Level, factor: int) -> Level | None:
    """Return a level whose frames are decoded at 1/``factor`` of their size.

    Its total pixel matrix has floor(rows / factor) x floor(columns / factor) pixels: a last block of fewer rows or
    columns than ``factor`` is left out, because what a frame holds beyond the edge of the matrix would be mixed into
    it. So the level ends up to ``factor - 1`` pixels before the one it is made from; its corner is the same corner, and
    its spacing is ``factor`` times as large. At 1/2 and 1/4 the last pixels before the edge may still show a little of
    what is beyond: a low frequency belongs to a whole block of 8 x 8 pixels.

    Parameters
    ----------
    level
        As stored.
    factor
        2, 4 or 8.

    Returns
    -------
    Level or None
        None where blocks would be cut by more than the edge of the matrix (tiles that are not on a grid and may
        overlap; several tiles of a size that ``factor`` does not divide), where the matrix is smaller than one block,
        and where the level is a reduced one already. It is then read in full.

    Raises
    ------
    OptionError
        There is no such factor.
    """
    if factor not in FACTORS:
        raise OptionError(f"factor={factor!r}: levels are reduced by one of {FACTORS}")
    matrices = []
    for matrix in level.matrices:
        reduced = _reduced_matrix(matrix, int(factor))
        if reduced is None:
            return None
        matrices.append(reduced)
    return replace(level, matrices=tuple(matrices))


def _reduced_matrix(matrix: Matrix, factor: int) -> Matrix | None:
    tiling = matrix.tiling
    rows, columns = tiling.rows // factor, tiling.columns // factor
    if not tiling.aligned or not rows or not columns or matrix.head.format.unreduced is not None:
        return None
    down, across = tiling.grid
    if (down > 1 and tiling.tile_rows % factor) or (across > 1 and tiling.tile_columns % factor):
        return None
    tile_rows, tile_columns = -(-tiling.tile_rows // factor), -(-tiling.tile_columns // factor)
    grid = -(-rows // tile_rows), -(-columns // tile_columns)
    if grid != tiling.grid:  # so few rows or columns of the last tiles lie inside the matrix that no block is left
        tiling = _cropped(tiling, *grid)
    tiling = replace(tiling, rows=rows, columns=columns, tile_rows=tile_rows, tile_columns=tile_columns)
    # Where the tiles that are left are not all of the frames, no row of tiles is a run of frames.
    organization = matrix.head.organization if grid == (down, across) else "TILED_SPARSE"
    parts = tuple(
        Part(_reduced_instance(part.instance, rows, columns, organization, factor), part.first) for part in matrix.parts
    )
    return replace(matrix, parts=parts, tiling=tiling)


def _cropped(tiling: Tiling, down: int, across: int) -> SparseTiling:
    """Return a tiling on a grid without its last tiles, whose frames keep their numbers."""
    if isinstance(tiling, SparseTiling):
        assert tiling.table is not None
        return replace(tiling, table=np.ascontiguousarray(tiling.table[:, :down, :across]))
    numbers = np.arange(tiling.frames, dtype=np.int32)
    rows, columns = tiling.grid
    if tiling.column_major:
        table = numbers.reshape(tiling.planes, columns, rows).swapaxes(1, 2)
    else:
        table = numbers.reshape(tiling.planes, rows, columns)
    nothing = np.empty(0, np.int32)
    return SparseTiling(
        tiling.rows,
        tiling.columns,
        tiling.tile_rows,
        tiling.tile_columns,
        tiling.planes,
        tiling.frames,
        np.ascontiguousarray(table[:, :down, :across]),
        nothing,
        nothing,
        nothing.astype(np.int16),
        nothing,
    )


def _reduced_instance(instance: Instance, rows: int, columns: int, organization: str, factor: int) -> Instance:
    spacing = instance.spacing
    return replace(
        instance,
        rows=rows,
        columns=columns,
        format=_reduced_format(instance.format, factor),
        organization=organization,
        spacing=None if spacing is None else PixelSpacing(spacing.row * factor, spacing.column * factor),
    )


def _reduced_format(fmt: FrameFormat, factor: int) -> FrameFormat:
    return replace(fmt, rows=-(-fmt.rows // factor), columns=-(-fmt.columns // factor), reduction=factor, unreduced=fmt)
