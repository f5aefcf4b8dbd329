"""Files in zip archives that are stored as they are: ranges of the archive, wherever that is.

Python's own reading of a member begins at its start each time, and takes one thread at a time.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Hashable, Sequence
from typing import Any

from microtome.errors import ProtocolError
from microtome.storage.filesystems import is_a
from microtome.storage.forks import renew_in_forks
from microtome.storage.http_answers import mark_of_store
from microtome.storage.remote import FsspecSource, asked
from microtome.storage.source import LocalSource, Source
from microtome.storage.uri import server_name

__all__ = ["member_source"]

_LOCAL_HEADER = 30
_MAGIC = b"PK\x03\x04"
_ENCRYPTED = 1


def member_source(fs: Any, path: str, uri: str, shown: str) -> Source | None:
    """Return the bytes of a file in a zip archive; None where it is none, or compressed, or nothing reads its archive.

    Parameters
    ----------
    fs, path
        The filesystem, and the path in it.
    uri
        In full, as it is opened.
    shown
        The same as it may be shown.
    """
    if not is_a(fs, "ZipFileSystem"):
        return None
    about = fs.zip.NameToInfo.get(path)
    if about is None or about.compress_type != zipfile.ZIP_STORED or about.flag_bits & _ENCRYPTED:
        return None
    inner = getattr(fs.fo, "fs", None)
    where, size = getattr(fs.fo, "path", None), getattr(fs.fo, "size", None)
    if inner is None or not isinstance(where, str) or not isinstance(size, int):
        return None
    if is_a(inner, "LocalFileSystem"):
        return _Member(LocalSource(where, size), about.header_offset, about.file_size, shown)
    details = getattr(fs.fo, "details", {})
    if not mark_of_store(details):  # of a bucket it is known
        details = fs.fo.details = asked(lambda: inner.info(where), shown, server_name(uri))
    archive = FsspecSource(inner, where, size, uri, shown, mark_of_store(details))
    return _Member(archive, about.header_offset, about.file_size, shown)


class _Member:
    """A range of an archive.

    Parameters
    ----------
    archive
        Its bytes.
    header
        Where the local header of the file begins.
    size
        Of the file, in bytes.
    uri
        As it may be shown.
    """

    def __init__(self, archive: Source, header: int, size: int, uri: str) -> None:
        self.uri = uri
        self.size = size
        self.remote = archive.remote
        self.identity = f"{archive.identity}|{header}" if archive.identity else ""
        self.key: Hashable = (archive.key, header)
        self._archive = archive
        self._header = header
        self._start: int | None = None
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Begin anew: a thread that is not here may have held the lock."""
        self._lock = threading.Lock()

    def _begin(self) -> int:
        """Return where the file begins: behind a header whose length no directory tells (APPNOTE.TXT 4.3.7)."""
        with self._lock:
            if self._start is None:
                head = self._archive.read(self._header, _LOCAL_HEADER)
                if len(head) < _LOCAL_HEADER or head[:4] != _MAGIC:
                    raise ProtocolError(f"{self.uri}: the archive does not hold it where its directory says")
                lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
                self._start = self._header + _LOCAL_HEADER + lengths
            return self._start

    def _clipped(self, offset: int, length: int) -> tuple[int, int]:
        start = self._begin()
        return start + offset, max(min(length, self.size - offset), 0)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where the file ends first."""
        return self._archive.read(*self._clipped(offset, length))

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, length)."""
        return self._archive.read_many([self._clipped(*r) for r in ranges])
