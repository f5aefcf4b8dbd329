"""Which frame lies where in a total pixel matrix (PS3.3 C.7.6.17.3).

A *plane* is one focal plane of one optical path; planes are numbered as TILED_FULL orders them, focal planes faster
than paths. Frames are numbered from 0 over all parts of a concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ABSENT", "FullTiling", "SparseTiling", "Tiling", "sparse_tiling"]

ABSENT = -1
"""In place of a frame number: no frame covers this tile."""


@dataclass(frozen=True, slots=True)
class FullTiling:
    """Every tile of every plane has a frame, in an order that arithmetic knows."""

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    planes: int
    column_major: bool = False

    aligned = True

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along y and x."""
        return -(-self.rows // self.tile_rows), -(-self.columns // self.tile_columns)

    @property
    def frames(self) -> int:
        """Number of frames there must be."""
        down, across = self.grid
        return down * across * self.planes

    def run(self, plane: int, tile_row: int, first: int, stop: int) -> Sequence[int]:
        """Return the frames of the tiles ``first`` to ``stop`` of a row of tiles."""
        down, across = self.grid
        if self.column_major:
            base = plane * down * across + tile_row
            return range(base + first * down, base + stop * down, down)
        base = (plane * down + tile_row) * across
        return range(base + first, base + stop)


@dataclass(frozen=True, slots=True, eq=False)
class SparseTiling:
    """Tiles where the file says. On a regular grid a table finds them, elsewhere a search over their rows.

    Parameters
    ----------
    rows, columns, tile_rows, tile_columns, planes
        As of `FullTiling`.
    table
        (planes, tiles down, tiles across) frame numbers or ABSENT, where tiles are on the grid; else None.
    row, column, plane, frame
        Where the tiles are not on the grid: one element a frame, sorted by row.
    lost
        Whether frames are lost: then an absent tile may be one of them.
    """

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    planes: int
    frames: int
    table: npt.NDArray[np.int32] | None
    row: npt.NDArray[np.int32]
    column: npt.NDArray[np.int32]
    plane: npt.NDArray[np.int16]
    frame: npt.NDArray[np.int32]
    lost: bool = False

    @property
    def aligned(self) -> bool:
        """Whether all tiles are on the grid."""
        return self.table is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along y and x, where they are on the grid."""
        return -(-self.rows // self.tile_rows), -(-self.columns // self.tile_columns)

    def run(self, plane: int, tile_row: int, first: int, stop: int) -> Sequence[int]:
        """Return the frames of the tiles ``first`` to ``stop`` of a row of tiles on the grid; ABSENT where none is."""
        assert self.table is not None
        numbers: list[int] = self.table[plane, tile_row, first:stop].tolist()
        return numbers

    def touching(self, plane: int, top: int, bottom: int, left: int, right: int) -> list[tuple[int, int, int]]:
        """Return (frame, row, column) of the tiles off the grid that touch a rectangle, in order of their frames.

        Tiles may overlap; pasted in this order, the frame with the higher number is seen.
        """
        a = int(np.searchsorted(self.row, top - self.tile_rows, side="right"))
        b = int(np.searchsorted(self.row, bottom, side="left"))
        column = self.column[a:b]
        hit = (self.plane[a:b] == plane) & (column > left - self.tile_columns) & (column < right)
        found = np.flatnonzero(hit) + a
        found = found[np.argsort(self.frame[found], kind="stable")]
        return list(zip(self.frame[found].tolist(), self.row[found].tolist(), self.column[found].tolist(), strict=True))


Tiling = FullTiling | SparseTiling


def sparse_tiling(
    full: FullTiling,
    row: npt.NDArray[np.int32],
    column: npt.NDArray[np.int32],
    plane: npt.NDArray[np.int16],
    frame: npt.NDArray[np.int32],
    *,
    frames: int,
    lost: bool,
) -> SparseTiling:
    """Index stated positions.

    Parameters
    ----------
    full
        The matrix and its tiles, as if all were there.
    row, column, plane, frame
        One element a frame.
    frames
        Number of frames there should be, lost ones included.
    lost
        Whether some are lost.
    """
    down, across = full.grid
    on_grid = (
        bool(np.all((row >= 0) & (row < full.rows) & (row % full.tile_rows == 0)))
        and bool(np.all((column >= 0) & (column < full.columns) & (column % full.tile_columns == 0)))
        # A table of a huge matrix that holds few tiles would cost more than searching them.
        and down * across * full.planes <= max(1 << 20, 16 * len(row))
    )
    table = None
    if on_grid:
        table = np.full((full.planes, down, across), ABSENT, np.int32)
        np.maximum.at(table, (plane, row // full.tile_rows, column // full.tile_columns), frame)
        row, column, plane, frame = row[:0], column[:0], plane[:0], frame[:0]
    else:
        order = np.argsort(row, kind="stable")
        row, column, plane, frame = row[order], column[order], plane[order], frame[order]
    return SparseTiling(
        full.rows,
        full.columns,
        full.tile_rows,
        full.tile_columns,
        full.planes,
        frames,
        table,
        row,
        column,
        plane,
        frame,
        lost,
    )
