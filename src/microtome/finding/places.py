"""URIs taken apart as far as folders need it: which one holds some files, and which files lie below it."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from microtome.storage.uri import is_remote, local_path

__all__ = ["Place", "below", "common_folder", "lies_in"]

# What leads to a filesystem, the path in it, and the archive or cache that this is in turn.
_URL = re.compile(r"((?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://)(.*?)(::.*)?", re.DOTALL)
_LAST = "\U0010ffff"


class Place(NamedTuple):
    """A file or a folder.

    Parameters
    ----------
    scheme
        What is in front of the path; empty for a file of this machine.
    rest
        What is behind it: a query, and what a chained URL goes on with.
    path
        Between the two; of a folder, with a slash at its end.
    """

    scheme: str
    rest: str
    path: str

    @classmethod
    def of(cls, uri: str) -> Place:
        """Take the URI of a file apart."""
        found = _URL.fullmatch(uri) if is_remote(uri) else None
        if found is None:
            return cls("", "", local_path(uri))
        scheme, path, chain = found[1], found[2], found[3] or ""
        query = path.find("?") if re.search(r"https?://$", scheme) else -1
        if query >= 0:
            path, chain = path[:query], path[query:] + chain
        return cls(scheme, chain, path)

    @property
    def uri(self) -> str:
        """The URI of it; that of a folder of this machine without the slash."""
        path = self.path
        if not self.scheme and len(path) > 1:
            path = path.removesuffix(os.sep)
        return f"{self.scheme}{path}{self.rest}"


def common_folder(files: Sequence[Place]) -> Place | None:
    """Return the smallest folder that holds some files; None where no URI names it.

    That is so for files on several hosts or in several buckets, and for files whose URLs grant access to each alone.
    """
    scheme, rest = files[0][:2]
    if any(file[:2] != (scheme, rest) for file in files) or rest.startswith("?"):
        return None
    slash = "/" if scheme else os.sep
    paths = [file.path.split(slash)[:-1] for file in files]
    low, high = min(paths), max(paths)  # what these two share, all others share
    shared = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    if not shared and scheme and not rest and not scheme.startswith("memory"):
        return None
    return Place(scheme, rest, slash.join([*paths[0][:shared], ""]))


def below(folder: Place, files: Sequence[Place]) -> slice:
    """Return which of some files lie in a folder, to any depth; the files are in order."""
    path = folder.path
    last = path[:-1] + chr(ord(path[-1]) + 1) if path else _LAST
    return slice(bisect_left(files, folder), bisect_left(files, Place(folder.scheme, folder.rest, last)))


def lies_in(folder: Place, name: str) -> bool:
    """Tell whether a folder is the one that was named, or lies below it."""
    scheme, rest, path = Place.of(name)
    if (scheme, rest) != folder[:2]:
        return False
    slash = "/" if scheme else os.sep
    outer, inner = ((p if not scheme else p.lstrip("/")).rstrip(slash) + slash for p in (path, folder.path))
    return inner.startswith(outer) or outer == slash
