"""A long list of files in the few bytes that a Dask task may carry.

Names that follow a pattern shrink by compression. Names made of UIDs do not: of those travel their folders, and a hash
of each. The process that opens them lists the folders and keeps the files whose hashes are there; should these be
others than were named, the fingerprint of the slide tells.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

from microtome.storage.uri import is_remote

__all__ = ["PackedNames", "pack"]

BUDGET = 2400
"""Bytes for the names."""
DIGEST = 6
"""Bytes of a hash: among 20,000 files, two of one hash are a chance in a million."""


def pack(names: Sequence[str]) -> Sequence[str]:
    """Return names as they are, or in a form that pickles to few bytes where there are many.

    The order of the names is kept, except of those that do not shrink: these come back sorted. Of more than 400 of
    those, all the files of their folders must be named, or more bytes are taken than the budget allows.
    """
    if isinstance(names, PackedNames) or sum(map(len, names)) <= BUDGET // 2:
        return names
    text = _compress(names)
    unique = sorted(set(names))
    form: tuple[str, bytes, bytes] = ("text", text, b"")
    if len(text) > BUDGET and not any(map(is_remote, names)):
        folders = sorted({os.path.dirname(name) for name in unique})  # noqa: PTH120 (names are strings)
        if len(unique) * DIGEST <= BUDGET:
            form = ("hashes", _compress(folders), b"".join(map(_digest, unique)))
        elif sorted(_files(folders)) == unique:
            form = ("folders", _compress(folders), b"")
    return PackedNames(*form, len(names), names[0])


class PackedNames(Sequence[str]):
    """Names in a form that pickles to few bytes. Going through them may list folders."""

    def __init__(self, form: str, texts: bytes, hashes: bytes, count: int, first: str) -> None:
        self._state = form, texts, hashes, count, first

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedNames, self._state

    def __len__(self) -> int:
        return self._state[3]

    def __getitem__(self, index: Any) -> Any:
        return self._state[4] if index == 0 else tuple(self)[index]  # the first is for messages: nothing is listed

    def __iter__(self) -> Iterator[str]:
        form, packed, hashes, _, _ = self._state
        texts = zlib.decompress(packed).decode("utf-8", "surrogateescape").split("\0")
        if form == "text":
            return iter(texts)
        files = sorted(_files(texts))
        if form == "folders":
            return iter(files)
        wanted = {hashes[i : i + DIGEST] for i in range(0, len(hashes), DIGEST)}
        return (name for name in files if _digest(name) in wanted)


def _compress(texts: Sequence[str]) -> bytes:
    return zlib.compress("\0".join(texts).encode("utf-8", "surrogateescape"), 9)


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=DIGEST).digest()


def _files(folders: Sequence[str]) -> list[str]:
    """Return the files that lie in some folders; none where there is no folder any more."""
    found: list[str] = []
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                found += [e.path for e in entries if e.is_file()]
        except OSError:
            continue
    return found
