"""Where the levels of a slide lie: spacings, offsets from level 0's corner, and the slide coordinate system.

All offsets are in mm from the top left corner of level 0's total pixel matrix, along its rows and columns.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from microtome.dicom.pyramid import Level, Slide
from microtome.errors import GeometryWarning
from microtome.model import PixelSpacing

__all__ = ["Alignment", "Geometry", "Placement", "place"]

Alignment = Literal["spacing", "extent"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a level lies.

    Parameters
    ----------
    spacing
        Between its pixels; None where undefined.
    y, x
        Of its top left corner, in mm from level 0's.
    """

    spacing: PixelSpacing | None
    y: float = 0.0
    x: float = 0.0


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where everything lies.

    Parameters
    ----------
    placements
        By the path of the node.
    corner
        Slide coordinates (X, Y) in mm of level 0's top left corner, or None where not stated.
    orientation
        Image Orientation (Slide): direction of a row, then of a column; or None.
    """

    placements: dict[str, Placement]
    corner: tuple[float, float] | None
    orientation: tuple[float, ...] | None


def place(slide: Slide, alignment: Alignment) -> Geometry:
    """Work out where the levels lie from what the file states.

    Level origins come stated in three ways: one origin for all; the centres of their first pixels, which differ by half
    the difference of the spacings; and offsets that are real. The first two are one corner.

    Parameters
    ----------
    slide
        The pyramid.
    alignment
        ``spacing`` believes the stated spacings; ``extent`` spreads each level over level 0's extent.
    """
    placements = {f"associated/{level.name}": Placement(level.head.spacing) for level in slide.associated}
    if not slide.levels:
        return Geometry(placements, None, None)
    finest = slide.levels[0].head
    centres = False
    for level in slide.levels:
        spacing = _spacing(level, slide.levels[0], alignment)
        y, x, half = _offset(level, slide.levels[0])
        centres |= half
        placements[level.name] = Placement(spacing, y, x)
    corner = finest.origin
    if corner and centres and finest.orientation and finest.spacing:
        row, column = finest.orientation[:2], finest.orientation[3:5]
        half_x, half_y = finest.spacing.column / 2, finest.spacing.row / 2
        corner = (
            corner[0] - row[0] * half_x - column[0] * half_y,
            corner[1] - row[1] * half_x - column[1] * half_y,
        )
    return Geometry(placements, corner, finest.orientation)


def _spacing(level: Level, finest: Level, alignment: Alignment) -> PixelSpacing | None:
    stated, base = level.head.spacing, finest.head.spacing
    if stated is None or base is None or level is finest:
        return stated
    extent = (finest.head.rows * base.row, finest.head.columns * base.column)
    if alignment == "extent":
        return PixelSpacing(extent[0] / level.head.rows, extent[1] / level.head.columns)
    off = (
        abs(level.head.rows * stated.row - extent[0]) / stated.row,
        abs(level.head.columns * stated.column - extent[1]) / stated.column,
    )
    # Rounding to whole pixels, or to whole frames of level 0, is worth less than this.
    if max(off) > 1.5 and max(off[0] / level.head.rows, off[1] / level.head.columns) > 0.002:
        warnings.warn(
            f"{level.head.uri}: the stated spacing puts the edge of {level.name} {max(off):.1f} of its pixels away "
            "from level 0's; alignment='extent' trusts the extents instead",
            GeometryWarning,
            stacklevel=2,
        )
    return stated


def _offset(level: Level, finest: Level) -> tuple[float, float, bool]:
    """Return the offset (y, x) of a level's corner from level 0's, and whether the origins are stated as centres."""
    here, base = level.head, finest.head
    if here.origin is None or base.origin is None or base.orientation is None or level is finest:
        return 0.0, 0.0, False
    apart = (here.origin[0] - base.origin[0], here.origin[1] - base.origin[1])
    row, column = base.orientation[:2], base.orientation[3:5]
    x = apart[0] * row[0] + apart[1] * row[1]
    y = apart[0] * column[0] + apart[1] * column[1]
    if here.spacing is None or base.spacing is None:
        return y, x, False
    # A tenth of a fine pixel is far above the rounding of decimal strings, and far below any offset that is meant.
    near_y, near_x = base.spacing.row / 10, base.spacing.column / 10
    if abs(y) <= near_y and abs(x) <= near_x:
        return 0.0, 0.0, False
    half_y = (here.spacing.row - base.spacing.row) / 2
    half_x = (here.spacing.column - base.spacing.column) / 2
    if abs(y - half_y) <= near_y and abs(x - half_x) <= near_x:
        return 0.0, 0.0, True
    return y, x, False
