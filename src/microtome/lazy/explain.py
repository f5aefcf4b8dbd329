"""What a read would take, said without reading a pixel."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.dicom.instance import Read
from microtome.errors import FrameError
from microtome.lazy.base import Plans

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, repr=False)
class Explanation:
    """What reading a selection takes.

    Parameters
    ----------
    frames
        Frames to be decoded. One that several Dask blocks need counts for each.
    reads
        (file, offset, length) of each read, in order; of requests to a server the offset is 0, and the length None:
        only the server knows it. Frames in the frame cache need none.
    pixels
        Bytes of the result.
    lost
        Frames that should be there and are not.
    """

    frames: int
    reads: tuple[Read, ...]
    pixels: int
    lost: int = 0

    @property
    def bytes(self) -> int | None:
        """Bytes to be read; None where only a server knows."""
        lengths = [read.length for read in self.reads]
        return None if None in lengths else sum(n for n in lengths if n is not None)

    def __repr__(self) -> str:
        count, size = len(self.reads), self.bytes
        if self.frames and not count:
            what = "no request: all are in the frame cache"
        elif size is None:
            servers = len({read.uri.split("/frames/")[0] for read in self.reads})
            what = f"{count} request{'s' * (count != 1)} to {servers} instance{'s' * (servers != 1)} on a server"
        else:
            files = len({read.uri for read in self.reads})
            what = f"{count} reads of {size:,} bytes from {files} file{'s' * (files != 1)}"
        text = f"{self.frames} frames in {what}, for {self.pixels:,} bytes of pixels"
        return text + (f"; {self.lost} frames are lost" if self.lost else "")


def explain(plans: Plans, pixels: int) -> Explanation:
    """Explain what plans take. Offset tables are read where they are not known yet; pixels are not."""
    frames = lost = 0
    reads: list[Read] = []
    for reader, plan in plans:
        lost += len(plan.lost)
        for unit in plan.units:
            try:
                reads += reader.files[unit.matrix][unit.part].source.reads(unit.frames)
                frames += len(unit.frames)
            except FrameError:
                lost += len(unit.frames)
    return Explanation(frames, tuple(reads), pixels, lost)
