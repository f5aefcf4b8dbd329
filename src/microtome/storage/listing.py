"""From what a user names (a file, a folder, a glob, a list, a URL) to files with size and fingerprint."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from microtome.errors import OptionError, SlideNotFoundError
from microtome.storage.dicomweb.address import is_dicomweb
from microtome.storage.entry import FileEntry
from microtome.storage.remote_listing import list_remote
from microtome.storage.uri import display_uri, is_remote, local_path

__all__ = ["MAX_FILES", "FileEntry", "Target", "list_files", "normalize"]

MAX_FILES = 20_000
"""Of one slide."""

Target = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def normalize(target: Target) -> tuple[str, ...]:
    """Return what the user named as full URIs: the form that travels to other processes."""
    if isinstance(target, str | os.PathLike):
        names: Iterable[str | os.PathLike[str]] = [target]
    else:
        names = target
    result = []
    for name in names:
        text = os.fspath(name)
        if not isinstance(text, str) or not text:
            raise OptionError(f"a path or URL is needed, not {name!r}")
        elsewhere = is_remote(text) or is_dicomweb(text)
        result.append(text if elsewhere else os.path.abspath(os.path.expanduser(local_path(text))))
    if not result:
        raise SlideNotFoundError("no files were named: the list is empty")
    return tuple(result)


def list_files(
    names: Sequence[str], storage_options: Mapping[str, Any] | None = None, limit: int | None = None
) -> list[FileEntry]:
    """List the files under some URIs, in order of their names, folders to any depth.

    Parameters
    ----------
    names
        Files, folders, globs or URLs, in full.
    storage_options
        For fsspec.
    limit
        The most files there may be; None for any number.

    Raises
    ------
    SlideNotFoundError
        Nothing is there, or more than the limit.
    RequestError
        A store cannot be reached, or refuses.
    MissingDependencyError
        The filesystem of a URL needs a package that is not installed.
    """
    found: dict[str, FileEntry] = {}
    shown: Counter[str] = Counter()
    for name in names:
        for entry in _remote(name, storage_options or {}) if is_remote(name) else _local(name):
            if entry.uri in found:
                continue
            shown[entry.shown] += 1
            if shown[entry.shown] > 1:  # they differ in a query, which is not shown
                entry = replace(entry, shown=f"{entry.shown} ({shown[entry.shown]})")
            found[entry.uri] = entry
            if limit is not None and len(found) > limit:
                raise SlideNotFoundError(
                    f"{display_uri(name)}: more than {limit} files are here; name the folder of one slide"
                )
    return [found[uri] for uri in sorted(found)]


def _entry(path: str, st: os.stat_result) -> FileEntry:
    return FileEntry(path, st.st_size, str(st.st_mtime_ns), path)


def _remote(uri: str, storage_options: Mapping[str, Any]) -> Iterable[FileEntry]:
    for found in list_remote(uri, storage_options):
        yield FileEntry(found.uri, found.size, found.mark, display_uri(found.uri), found.fs, found.path)


def _local(path: str) -> Iterable[FileEntry]:
    try:
        if os.path.isdir(path):
            yield from _folder(path)
            return
        if not os.path.exists(path) and glob.has_magic(path):
            paths = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
            if not paths:
                raise SlideNotFoundError(f"{path}: no file matches this pattern")
            yield from (_entry(p, os.stat(p)) for p in paths)
            return
        yield _entry(path, os.stat(path))
    except OSError as e:
        if isinstance(e, SlideNotFoundError):
            raise
        raise SlideNotFoundError(f"{path}: {e.strerror or e}") from e


def _folder(path: str) -> Iterable[FileEntry]:
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _folder(entry.path)
            elif entry.is_file():
                yield _entry(entry.path, entry.stat())
