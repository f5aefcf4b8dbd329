"""A long list of files in the few bytes that a Dask task may carry.

Names that follow a pattern shrink by compression. Names made of UIDs do not: of those travel their folders, a short
hash of each, and a long one of all. The process that opens them lists the folders and keeps the files whose hashes are
there; the long hash tells that it has the very same list.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain, combinations, islice, product
from typing import Any

from microtome.storage.uri import is_remote

__all__ = ["PackedNames", "pack"]

BUDGET = 2400
"""Bytes for the names."""
SHORT, LONG = (3, 8), 16
TRIES = 4096


def pack(names: Sequence[str]) -> Sequence[str]:
    """Return names as they are, or in a form that pickles to few bytes where there are many.

    The order of the names is kept, except of those that do not shrink: these come back sorted. Of more than some 800 of
    those, all the files of their folders must be named, or more bytes are taken than the budget allows.
    """
    if isinstance(names, PackedNames) or sum(map(len, names)) <= BUDGET // 2:
        return names
    text = zlib.compress("\0".join(names).encode("utf-8", "surrogateescape"), 9)
    if len(text) <= BUDGET or any(map(is_remote, names)):
        return PackedNames("text", text, len(names), names[0])
    unique = sorted(set(names))
    folders = sorted({os.path.dirname(name) for name in unique})  # noqa: PTH120 (names are strings)
    head = _digest("\0".join(unique), LONG)
    listed = zlib.compress("\0".join(folders).encode("utf-8", "surrogateescape"), 9)
    width = min(SHORT[1], BUDGET // len(unique))
    if width < SHORT[0]:
        if sorted(_files(folders)) == unique:
            return PackedNames("folders", (head, listed), len(names), names[0])
        return PackedNames("text", text, len(names), names[0])
    hashes = b"".join(sorted(_digest(name, width) for name in unique))
    return PackedNames("hashes", (head, listed, width, hashes), len(names), names[0])


class PackedNames(Sequence[str]):
    """Names in a form that pickles to few bytes. Going through them may list folders."""

    def __init__(self, form: str, content: Any, count: int, first: str) -> None:
        self._state = form, content, count, first

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedNames, self._state

    def __len__(self) -> int:
        return self._state[2]

    def __getitem__(self, index: Any) -> Any:
        return self._state[3] if index == 0 else tuple(self)[index]  # the first is for messages: nothing is listed

    def __iter__(self) -> Iterator[str]:
        form, content, _, _ = self._state
        if form == "text":
            return iter(_texts(content))
        head, folders = content[0], _texts(content[1])
        if form == "folders":
            return iter(sorted(_files(folders)))
        width, hashes = content[2:]
        wanted = Counter(hashes[i : i + width] for i in range(0, len(hashes), width))
        found: dict[bytes, list[str]] = {digest: [] for digest in wanted}
        for name in _files(folders):
            names = found.get(_digest(name, width))
            if names is not None:
                names.append(name)
        # Another file may share a short hash: the long one tells which is meant. Where none fits, files are gone, and
        # whoever opens the others finds that out by their fingerprint.
        choices = (combinations(names, min(wanted[digest], len(names))) for digest, names in found.items())
        lists = (sorted(chain(*chosen)) for chosen in islice(product(*choices), TRIES))
        some = next(lists)
        if _digest("\0".join(some), LONG) == head:
            return iter(some)
        return iter(next((names for names in lists if _digest("\0".join(names), LONG) == head), some))


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).digest()


def _texts(data: bytes) -> list[str]:
    return zlib.decompress(data).decode("utf-8", "surrogateescape").split("\0")


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
