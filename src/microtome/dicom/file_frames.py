"""Instances in files: their metadata, and the encoded frames that the frame index finds."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from microtome.dicom.dataset import lenient, parse_dataset
from microtome.dicom.frame_index import FrameIndex, NativeIndex, StaleOffsetError, build_index, cut_short
from microtome.dicom.functional_groups import FramePositions, parse_positions
from microtome.dicom.instance import Instance, Read
from microtome.dicom.json_positions import positions_to_json
from microtome.dicom.part10 import PER_FRAME_GROUPS, Outline
from microtome.errors import MissingFrameError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["FileFrames", "FileRecord"]


class FileRecord:
    """An instance that is a file."""

    def __init__(self, outline: Outline) -> None:
        self.outline = outline
        self.uri = outline.source.uri
        self._frames: FileFrames | None = None

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

    def frames(self, instance: Instance) -> FileFrames:
        """Return what reads the frames of the file; one, whose index serves those who decode them smaller, too."""
        if self._frames is None:
            self._frames = FileFrames(instance, self.outline)
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


class FileFrames:
    """The frames of a file, found by its frame index, which is made when first needed."""

    lists = False

    def __init__(self, instance: Instance, outline: Outline) -> None:
        self.uri = outline.source.uri
        self.remote = outline.source.remote
        self._instance = instance
        self._outline = outline
        self._source = outline.source
        self._index: FrameIndex | None = None
        self._lock = threading.Lock()

    @property
    def index(self) -> FrameIndex:
        """Where the frames are."""
        if self._index is None:
            with self._lock:
                if self._index is None:
                    self._index = build_index(self._instance, self._outline)
        return self._index

    def _next_rung(self, bad: FrameIndex) -> None:
        """Replace an index that has turned out to lie by one from further down the ladder."""
        with self._lock:
            if self._index is bad:
                self._index = build_index(self._instance, self._outline, below=bad.rung)

    def payloads(self, frames: list[int]) -> tuple[list[bytes | memoryview | None], None]:
        """Return the codestream of each frame; None for one that the file ends before."""
        while True:
            index = self.index
            try:
                return self._read(index, frames), None
            except StaleOffsetError:
                self._next_rung(index)

    def _read(self, index: FrameIndex, frames: list[int]) -> list[bytes | memoryview | None]:
        try:
            spans = index.spans_of(frames)
        except MissingFrameError:
            return [self._read_one(index, frame) for frame in frames]
        payloads: list[bytes | memoryview | None] = []
        for first, stop in _runs(spans):
            low, size = spans[first][0], spans[stop - 1][0] + spans[stop - 1][1] - spans[first][0]
            data = memoryview(self._source.read(low, size))
            if len(data) == size:
                payloads += [index.payload(data[start - low : start - low + n]) for start, n in spans[first:stop]]
            else:
                payloads += [self._read_one(index, frame) for frame in frames[first:stop]]
        return payloads

    def _read_one(self, index: FrameIndex, frame: int) -> memoryview | None:
        try:
            offset, length = index.span(frame)
        except MissingFrameError:
            return None
        data = memoryview(self._source.read(offset, length))
        if len(data) < length:
            # Either the file is cut, or the table lies.
            if isinstance(index, NativeIndex) or index.rung == "item headers" or cut_short(index, self._source):
                return None
            raise StaleOffsetError
        return index.payload(data)

    def bit_offset(self, frame: int) -> int:
        """Return the bit at which a frame begins, where samples of one bit follow each other without gaps."""
        return self.index.bit_offset(frame)

    def reads(self, frames: list[int]) -> list[Read]:
        """Return the reads that frames of a unit take."""
        spans = self.index.spans_of(frames)
        return [
            Read(self.uri, spans[first][0], spans[stop - 1][0] + spans[stop - 1][1] - spans[first][0])
            for first, stop in _runs(spans)
        ]

    def prefetch(self, frames: list[int]) -> int:
        """Do nothing: the operating system keeps what was read of files."""
        return 0

    def discard(self, frames: list[int]) -> None:
        """Do nothing, for the same reason."""


def _runs(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (first, stop) of spans that lie one behind the other, so that one read takes them."""
    if spans[-1][0] + spans[-1][1] - spans[0][0] == sum(n for _, n in spans):
        return [(0, len(spans))]
    cuts = [i for i in range(1, len(spans)) if spans[i - 1][0] + spans[i - 1][1] != spans[i][0]]
    return list(itertools.pairwise([0, *cuts, len(spans)]))
