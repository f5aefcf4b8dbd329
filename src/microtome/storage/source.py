"""One file as ranges of bytes.

A source is cheap to make and holds at most one file descriptor, opened when first read. `read` may be called from any
thread and after a fork: local files use positioned reads, which share no file position.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Hashable, Sequence
from typing import Protocol

from microtome.errors import SlideNotFoundError

__all__ = ["BytesSource", "LocalSource", "Source"]


class Source(Protocol):
    """Bytes of one file, by range."""

    uri: str
    """Where the file is, safe to show."""
    size: int
    """Length in bytes."""
    remote: bool
    """Whether a read costs a round trip: then few large reads beat many small ones."""
    identity: str
    """Names these bytes in every process, and changes when they change; empty where that is not known."""
    key: Hashable
    """Names these bytes, and the way to them, in this process."""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where the file ends first."""
        ...

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, length), each as `read` would; several are in flight at a time."""
        ...


class LocalSource:
    """A file of this machine, read with ``pread``."""

    remote = False
    identity = ""
    key: Hashable = ()

    def __init__(self, path: str, size: int) -> None:
        self.uri = path
        self.size = size
        self._fd = -1
        self._lock = threading.Lock()

    def _open(self) -> int:
        with self._lock:
            if self._fd < 0:
                try:
                    fd = os.open(self.uri, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                except OSError as e:
                    raise SlideNotFoundError(f"{self.uri}: cannot be read ({e.strerror})") from e
                weakref.finalize(self, os.close, fd)
                self._fd = fd
        return self._fd

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where the file ends first."""
        fd = self._fd if self._fd >= 0 else self._open()
        # A buffer of the stated length is allocated before the read: never more than the file holds.
        length = min(length, max(self.size - offset, 0))
        data = os.pread(fd, length, offset)
        if len(data) == length or offset + len(data) >= self.size:
            return data
        # Linux returns at most 2 GiB from one call.
        pieces = [data]
        got = len(data)
        while data and got < length:
            data = os.pread(fd, length - got, offset + got)
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, length)."""
        return [self.read(offset, length) for offset, length in ranges]


class BytesSource:
    """Bytes held in memory, in place of a file whose bytes cannot be read by range."""

    remote = False
    identity = ""
    key: Hashable = ()

    def __init__(self, data: bytes, uri: str) -> None:
        self.uri = uri
        self.size = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where they end first."""
        return self._data[offset : offset + length]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, length)."""
        return [self.read(offset, length) for offset, length in ranges]
