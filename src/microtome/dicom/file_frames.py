"""Instances in files: their metadata, and what reads their frames."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from microtome.dicom.dataset import lenient, parse_dataset
from microtome.dicom.functional_groups import FramePositions, parse_positions
from microtome.dicom.instance import FrameSource, Instance
from microtome.dicom.json_positions import positions_to_json
from microtome.dicom.local_frames import LocalFrames
from microtome.dicom.part10 import PER_FRAME_GROUPS, Outline
from microtome.dicom.remote_frames import RemoteFrames
from microtome.storage.reading_ahead import ReadingAhead

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["FileRecord", "with_positions"]


class FileRecord:
    """An instance that is a file."""

    def __init__(self, outline: Outline) -> None:
        self.outline = outline
        self.uri = outline.source.uri
        self._frames: FrameSource | None = None

    def dataset(self, bulk: Collection[str] = ()) -> Dataset:
        """Return the metadata of the file; large values stand among the others."""
        return parse_dataset(self.outline)

    def positions(self, frames: int) -> FramePositions | None:
        """Return where each frame lies; None where the file does not say."""
        located = self.outline.located.get(PER_FRAME_GROUPS)
        if located is None:
            return None
        data = self.outline.source.read(located.offset, located.length)
        positions = parse_positions(data, self.outline.encoding, frames, self.uri)
        return positions if positions.telling else None

    def json(self) -> dict[str, Any]:
        """Return the metadata of the file as DICOM JSON."""
        ds = self.dataset()
        with lenient():
            attributes: dict[str, Any]
            try:
                attributes = ds.to_json_dict()
            except Exception:  # then without what cannot be written, and also without what breaks the rules of its VR
                attributes = ds.to_json_dict(suppress_invalid_tags=True)
        frames = int(ds.get("NumberOfFrames") or 1)
        return with_positions(attributes, self.outline.transfer_syntax, self.positions(frames))

    def frames(self, instance: Instance) -> FrameSource:
        """Return what reads the frames of the file; one, whose index serves those who decode them smaller, too."""
        if self._frames is None:
            source = self.outline.source
            if isinstance(source, ReadingAhead):
                self._frames = RemoteFrames(instance, self.outline, source)
            else:
                self._frames = LocalFrames(instance, self.outline)
        return self._frames


def with_positions(
    attributes: dict[str, Any], transfer_syntax: str, positions: FramePositions | None
) -> dict[str, Any]:
    """Return DICOM JSON with the transfer syntax, as servers state it, and with the positions of frames.

    These are an iterator in place of an array, for there may be hundreds of thousands: `instances_to_json` writes it.
    """
    result = dict(attributes)
    if transfer_syntax:
        result["00083002"] = {"vr": "UI", "Value": [transfer_syntax]}
    if positions is not None:
        result["52009230"] = {"vr": "SQ", "Value": positions_to_json(positions)}
    return dict(sorted(result.items()))
