"""From what a user names (a file, a folder, a glob, a list, a URL) to files with size and fingerprint."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microtome.errors import MissingDependencyError, OptionError, SlideNotFoundError
from microtome.storage.dicomweb.address import is_dicomweb
from microtome.storage.source import FsspecSource, LocalSource, Source
from microtome.storage.uri import display_uri, is_remote, local_path

__all__ = ["FileEntry", "Target", "list_files"]

MAX_FILES = 20_000
_IDENTITY_KEYS = ("ETag", "etag", "md5Hash", "md5", "mtime", "LastModified", "last_modified", "updated", "created")

Target = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


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
        Changes when the file changes: ETag where the store has one, else the time of modification.
    """

    uri: str
    size: int
    identity: str
    _fs: Any = field(default=None, repr=False, compare=False)
    _path: str = field(default="", repr=False, compare=False)

    def source(self) -> Source:
        """Return the bytes of this file; nothing is opened yet."""
        if self._fs is None:
            return LocalSource(self.uri, self.size)
        return FsspecSource(self._fs, self._path, self.size, self.uri)


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


def list_files(names: Sequence[str], storage_options: Mapping[str, Any] | None = None) -> list[FileEntry]:
    """List the files under some URIs, in order of their names, folders to any depth.

    Raises
    ------
    SlideNotFoundError
        Nothing is there, or more than 20,000 files.
    MissingDependencyError
        The filesystem of a URL needs a package that is not installed.
    """
    found: dict[str, FileEntry] = {}
    for name in names:
        entries = _remote(name, storage_options or {}) if is_remote(name) else _local(name)
        for entry in entries:
            found.setdefault(entry.uri, entry)
            if len(found) > MAX_FILES:
                raise SlideNotFoundError(
                    f"{display_uri(name)}: more than {MAX_FILES} files are here; name the folder of one slide"
                )
    return [found[uri] for uri in sorted(found)]


def _entry(path: str, st: os.stat_result) -> FileEntry:
    return FileEntry(path, st.st_size, str(st.st_mtime_ns))


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


def _remote(uri: str, storage_options: Mapping[str, Any]) -> Iterable[FileEntry]:
    import fsspec

    shown = display_uri(uri)
    try:
        fs, path = fsspec.core.url_to_fs(uri, **storage_options)
    except ImportError as e:
        scheme = uri.split(":", 1)[0]
        extra = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "http": "http", "https": "http"}.get(scheme)
        remedy = f"pip install 'microtome[{extra}]'" if extra else f"install the fsspec filesystem for {scheme!r}"
        raise MissingDependencyError(f"{shown}: {e}. Remedy: {remedy}") from e
    except ValueError as e:
        raise SlideNotFoundError(f"{shown}: {e}") from e
    try:
        if glob.has_magic(path):
            infos = list(fs.glob(path, detail=True).values())
        elif fs.isfile(path):
            infos = [fs.info(path)]
        else:
            infos = list(fs.find(path, detail=True).values())
    except (OSError, ValueError) as e:
        raise SlideNotFoundError(f"{shown}: cannot be listed ({type(e).__name__})") from e
    files = [i for i in infos if i.get("type", "file") == "file" and i.get("size")]
    if not files:
        raise SlideNotFoundError(f"{shown}: nothing is there")
    protocol = uri.split("://", 1)[0]
    chain = uri[uri.index("::") :] if "::" in uri else ""
    for info in files:
        name = str(info["name"])
        full = name if "://" in name else f"{protocol}://{name.lstrip('/') if protocol != 'memory' else name}{chain}"
        identity = "|".join(str(info[k]) for k in _IDENTITY_KEYS if info.get(k))
        yield FileEntry(full, int(info["size"]), identity or str(info["size"]), fs, name)
