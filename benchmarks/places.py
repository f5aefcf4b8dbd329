"""Places on level 0 to read, each of them once in the whole run.

Every reader here may keep frames it has decoded, and so may the operating system: a place read twice measures a cache.
Level 0 is cut into a zone of large cells, one region each, and a zone of 2 x 2-frame cells, one unaligned patch or four
single frames each. Cells are handed out in a shuffled order, and never again.
"""

from __future__ import annotations

import random
from typing import NamedTuple


class Place(NamedTuple):
    """A rectangle of level 0 in pixels."""

    y: int
    x: int
    height: int
    width: int


class Places:
    """Draws places that nothing else in this run has read.

    Parameters
    ----------
    height, width, frame
        Level 0 in pixels, and the side of its frames.
    patch, region
        Sides of what :meth:`patches` and :meth:`regions` hand out. A patch is not larger than a frame.
    bands
        How many rows of region cells to set aside.
    """

    def __init__(
        self,
        height: int,
        width: int,
        frame: int,
        *,
        patch: int = 256,
        region: int = 4096,
        bands: int = 7,
        seed: int = 7,
    ) -> None:
        self.frame, self.patch, self.region = frame, patch, region
        self._random = random.Random(seed)
        across = region // frame + 1  # an unaligned region touches so many frames each way
        rows, columns = height // frame, width // frame  # whole frames only
        bands = min(bands, rows // across - 1)
        if bands < 1:
            raise SystemExit(f"level 0 of {height} x {width} px is too small for regions of {region} px")
        self._regions = [(r * across, c * across) for r in range(bands) for c in range(columns // across)]
        self._cells = [(r, c) for r in range(bands * across, rows - 1, 2) for c in range(0, columns - 1, 2)]
        self._random.shuffle(self._regions)
        self._random.shuffle(self._cells)
        self._frames: list[Place] = []

    def _inside(self, row: int, column: int, side: int) -> Place:
        # never on a frame boundary: 1 <= shift < frame
        dy, dx = (self._random.randrange(1, self.frame) for _ in range(2))
        return Place(row * self.frame + dy, column * self.frame + dx, side, side)

    def _take(self, cells: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
        if count > len(cells):
            raise SystemExit(f"{count} more places are needed and {len(cells)} are left: run fewer rounds")
        taken, cells[:] = cells[:count], cells[count:]
        return taken

    def patches(self, count: int) -> list[Place]:
        """Unaligned patches, 2 x 2 frames under each."""
        return [self._inside(r, c, self.patch) for r, c in self._take(self._cells, count)]

    def regions(self, count: int) -> list[Place]:
        """Unaligned regions."""
        return [self._inside(r, c, self.region) for r, c in self._take(self._regions, count)]

    def frames(self, count: int) -> list[Place]:
        """Single whole frames."""
        f = self.frame
        missing = -(-(count - len(self._frames)) // 4)
        if missing > 0:
            for r, c in self._take(self._cells, missing):
                self._frames += [Place((r + i) * f, (c + j) * f, f, f) for i in (0, 1) for j in (0, 1)]
            self._random.shuffle(self._frames)
        taken, self._frames = self._frames[:count], self._frames[count:]
        return taken
