"""One file as ranges of bytes.

A source is cheap to make and holds at most one file descriptor, opened when first read. `read` may be called from any
thread and after a fork: local files use positioned reads, which share no file position.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from microtome.errors import SlideNotFoundError
from microtome.storage.uri import display_uri

__all__ = ["BytesSource", "FsspecSource", "LocalSource", "Source"]


class Source(Protocol):
    """Bytes of one file, by range."""

    uri: str
    """Where the file is, safe to show."""
    size: int
    """Length in bytes."""
    remote: bool
    """Whether a read costs a round trip: then few large reads beat many small ones."""
    identity: str
    """Names these bytes, and the way to them; changes when they change. Empty where bytes are cheap to read again."""

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


_turns: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()


def _turn(fs: Any) -> AbstractContextManager[Any]:
    """Return what a read of a filesystem holds: of one that is not asynchronous, one thread at a time reads.

    Such filesystems may share a file position between threads, as archives do.
    """
    if fs.async_impl:
        return nullcontext()
    return _turns.setdefault(fs, threading.Lock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.clear)  # a lock may have been held by a thread that is not here


class FsspecSource:
    """A file of any filesystem that fsspec knows and that can read ranges."""

    remote = True

    def __init__(self, fs: Any, path: str, size: int, uri: str, identity: str = "") -> None:
        self.uri = display_uri(uri)
        self.size = size
        self.identity = identity
        self._fs = fs
        self._path = path

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where the file ends first."""
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        try:
            with _turn(self._fs):
                data: bytes = self._fs.cat_file(self._path, start=offset, end=end)
        except FileNotFoundError as e:
            raise SlideNotFoundError(f"{self.uri}: is no longer there") from e
        return data

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, length)."""
        return [self.read(offset, length) for offset, length in ranges]


class BytesSource:
    """Bytes held in memory, in place of a file whose bytes cannot be read by range."""

    remote = False
    identity = ""

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
