"""One DICOM instance of a slide, as far as reading its pixels needs it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from microtome.dicom.functional_groups import FramePositions
from microtome.model import FrameFormat, OpticalPath, PixelSpacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Concatenation", "FrameSource", "Instance", "Read", "Record"]


class Read(NamedTuple):
    """One read of a file, or one request to a server."""

    uri: str
    offset: int
    length: int | None
    """None where the server alone knows."""


class FrameSource(Protocol):
    """The encoded frames of an instance, numbered from 0. May be used from any thread."""

    uri: str
    """Where the instance is, safe to show."""
    remote: bool
    """Whether a read costs a round trip: then few large reads beat many small ones."""
    lists: bool
    """Whether one read takes any frames; else only neighbours."""
    frame_bytes: int
    """Bytes of an encoded frame, about; 0 where that is not known."""

    def payloads(
        self, frames: list[int], once: bool = False
    ) -> tuple[list[bytes | memoryview | None], list[str] | None]:
        """Return the bytes of each frame, None for one that is missing; and the transfer syntax of each.

        The syntaxes are None where they are all that of the instance's format. With ``once``, frames of a file are not
        put into the frame cache: they are part of more than it holds.
        """
        ...

    def bit_offset(self, frame: int) -> int:
        """Return the bit of its payload at which a frame begins."""
        ...

    def reads(self, frames: list[int]) -> list[Read]:
        """Return what it takes to read frames now; nothing is read."""
        ...

    def prefetch(self, frames: list[int]) -> int:
        """Fetch frames into the frame cache, where that is of use; return how many."""
        ...

    def discard(self, frames: list[int]) -> None:
        """Forget what is kept of frames that turned out not to decode."""
        ...


class Record(Protocol):
    """Where an instance was found: what more can be learnt of it there."""

    @property
    def uri(self) -> str:
        """Where it is, safe to show."""
        ...

    def dataset(self, bulk: Collection[str] = ()) -> Dataset:
        """Return its metadata, without pixels and per-frame groups.

        Parameters
        ----------
        bulk
            Keywords of large values that are needed too, where these are kept apart from the others.
        """
        ...

    def json(self) -> dict[str, Any]:
        """Return its metadata as DICOM JSON (PS3.18 F), per-frame positions and the transfer syntax included.

        The items of per-frame groups are an iterator in place of an array.
        """
        ...

    def frames(self, instance: Instance) -> FrameSource:
        """Return what reads its frames."""
        ...


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
    """What the header of one instance says, made comparable.

    ``rows`` and ``columns`` are the total pixel matrix. ``spacing``, ``origin`` (mm, slide coordinates) and
    ``orientation`` (direction of a row, direction of a column) are None where the instance does not state them.
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
    record: Record = field(repr=False)

    @property
    def tile_rows(self) -> int:
        """Rows of a nominal frame."""
        return self.format.rows

    @property
    def tile_columns(self) -> int:
        """Columns of a nominal frame."""
        return self.format.columns
