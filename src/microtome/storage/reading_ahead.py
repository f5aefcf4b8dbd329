"""A remote file whose beginning is read piece by piece: what was read is kept, and serves the reads that follow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microtome.storage.source import Source

__all__ = ["ReadingAhead"]

FIRST = 256 << 10
"""Bytes of the first read: they hold the header of most slides, and the offset table behind it."""
LARGEST = 16 << 20
"""Bytes by which reads grow."""
JUMP = 4 << 20
"""Bytes that are read over, so that what is kept has no gap."""
KEPT = 64 << 20
"""Bytes that are kept at the most."""


class ReadingAhead:
    """A source in front of another one, for a header that many small reads walk through.

    It is not safe between threads until `keep` has been called.

    Parameters
    ----------
    source
        The file.
    """

    remote = True

    def __init__(self, source: Source) -> None:
        self.uri = source.uri
        self.size = source.size
        self.identity = source.identity
        self.key: Hashable = source.key
        self.source = source
        self.asked = 0
        """How many reads of the file there were."""
        self._held = 0, bytearray()
        self._step = FIRST
        self._goal = 0
        self._ahead = True

    @property
    def end(self) -> int:
        """Up to where bytes are here."""
        start, data = self._held
        return start + len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where the file ends first."""
        stop = min(offset + length, self.size)
        if offset >= stop:
            return b""
        start, data = self._held
        end = start + len(data)
        if start <= offset and stop <= end:
            return bytes(data[offset - start : stop - start])
        if not self._ahead or offset < start or stop - offset > KEPT:
            self.asked += 1
            return self.source.read(offset, length)
        if offset > max(end + JUMP, self._goal) or stop - start > KEPT:
            start, data, end = offset, bytearray(), offset
        until = max(stop, min(max(end + self._step, self._goal), start + KEPT))
        self._step = min(self._step * 2, LARGEST)
        self.asked += 1
        data += self.source.read(end, until - end)
        self._held = start, data
        return bytes(data[offset - start : stop - start])

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, length); none of them are kept."""
        self.asked += len(ranges)
        return self.source.read_many(ranges)

    def announce(self, stop: int) -> None:
        """Have the next read reach up to ``stop`` at least, if it is not too far: all in front of it will be needed."""
        self._goal = max(self._goal, min(stop, self.size))

    def keep(self, start: int, stop: int) -> None:
        """Forget all but what was read of a range, and keep nothing more: the header is known."""
        self._ahead = False
        base, data = self._held
        first = max(start - base, 0)
        self._held = base + first, data[first : max(stop - base, 0)]
