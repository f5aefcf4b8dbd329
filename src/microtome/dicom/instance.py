"""One DICOM instance of a slide, as far as reading its pixels needs it."""

from __future__ import annotations

from dataclasses import dataclass, field

from microtome.dicom.functional_groups import FramePositions
from microtome.dicom.part10 import Outline
from microtome.model import FrameFormat, OpticalPath, PixelSpacing

__all__ = ["Concatenation", "Instance"]


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Which piece of a larger instance this one is (PS3.3 C.7.6.16.2.2.4)."""

    uid: str
    offset: int
    """Frames in front of this piece."""
    number: int
    total: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """What the header of one file says, made comparable.

    ``rows`` and ``columns`` are the total pixel matrix. ``spacing``, ``origin`` (mm, slide coordinates) and
    ``orientation`` (direction of a row, direction of a column) are None where the file does not state them.
    """

    uri: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    pyramid_uid: str
    image_type: tuple[str, ...]
    flavor: str
    rows: int
    columns: int
    frames: int
    format: FrameFormat
    focal_planes: int | None
    plane_spacing: float | None
    z_offset: float | None
    paths: tuple[OpticalPath, ...]
    extended_depth_of_field: bool
    organization: str
    positions: FramePositions | None
    concatenation: Concatenation | None
    spacing: PixelSpacing | None
    origin: tuple[float, float] | None
    orientation: tuple[float, ...] | None
    absent_lab: tuple[int, int, int] | None
    outline: Outline = field(repr=False)

    @property
    def tile_rows(self) -> int:
        """Rows of a nominal frame."""
        return self.format.rows

    @property
    def tile_columns(self) -> int:
        """Columns of a nominal frame."""
        return self.format.columns
