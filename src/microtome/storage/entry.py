"""A file that was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from microtome.errors import OptionError
from microtome.storage.archives import member_source
from microtome.storage.remote import FsspecSource
from microtome.storage.source import LocalSource, Source

__all__ = ["FileEntry"]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that was found.

    Parameters
    ----------
    uri
        Where it is, in full.
    size
        In bytes.
    identity
        Changes when the file changes: generation or ETag where the store has one, else a checksum or the time of
        modification. Empty where the store tells none.
    shown
        The URI as it may be shown, and as the source has it; of files listed together no two are shown alike.
    """

    uri: str = field(repr=False)
    size: int
    identity: str
    shown: str
    _fs: Any = field(default=None, repr=False, compare=False)
    _path: str = field(default="", repr=False, compare=False)

    def __reduce__(self) -> NoReturn:
        raise OptionError(f"{self.shown}: a file that was listed does not leave this process; its URI does")

    def source(self) -> Source:
        """Return the bytes of this file; nothing is opened yet."""
        if self._fs is None:
            return LocalSource(self.uri, self.size)
        stored = member_source(self._fs, self._path, self.uri, self.shown)
        if stored is not None:
            return stored
        return FsspecSource(self._fs, self._path, self.size, self.uri, self.shown, self.identity)
