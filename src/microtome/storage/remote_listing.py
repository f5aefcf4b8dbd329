"""Files under a URL, with sizes and marks, in as few requests as its filesystem allows.

Object stores list a prefix with all there is to know of each object. A plain web server is asked for the pages that
list its folders, and for the size of each file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from microtome.errors import NotOnServerError, RequestError, SlideNotFoundError
from microtome.storage.filesystems import filesystem, is_a
from microtome.storage.http_answers import mark_of_store
from microtome.storage.refusals import Failure, RefusedError
from microtome.storage.remote import asked, in_parallel
from microtome.storage.uri import chain, display_uri, server_name
from microtome.storage.web_pages import About, about, links, page

__all__ = ["Found", "list_remote"]

_MAGIC = re.compile(r"[*?[]")
DEEPEST = 32
"""Folders below folders on a web server, which may lead back to where they began."""


class Found(NamedTuple):
    """A file.

    Parameters
    ----------
    fs, path
        The filesystem, and the path in it.
    uri
        In full: the file is opened by it alone.
    size
        In bytes.
    mark
        What changes when the file changes; empty if the store does not say.
    """

    fs: Any
    path: str
    uri: str
    size: int
    mark: str


def list_remote(uri: str, storage_options: Mapping[str, Any]) -> Iterator[Found]:
    """Yield the files that a URL names, empty ones left out: a file, a folder to any depth, or a glob.

    Raises
    ------
    SlideNotFoundError
        Nothing is there.
    RequestError
        The server cannot be reached, or refuses.
    MissingDependencyError
        The filesystem needs a package that is not installed.
    """
    where, server = display_uri(uri), server_name(uri)
    found: Iterator[Found]
    try:
        fs, path = filesystem(uri, storage_options)
        inner = fs.fs if is_a(fs, "CachingFileSystem") else fs  # copies are made of what is read
        if is_a(inner, "HTTPFileSystem"):
            outer = "" if inner is fs else _around(uri, path)[0]
            found = (f._replace(fs=fs, uri=f"{outer}{f.uri}") for f in _of_web(inner, path, where, server))
        else:
            found = (f._replace(fs=fs) for f in _of_store(inner, path, uri, where, server))
        any_file = False
        for file in found:
            if file.size:
                any_file = True
                yield file
    except NotOnServerError as e:
        missing = str(e)
    else:
        missing = "" if any_file else f"{where}: nothing is there"
    if missing:
        raise SlideNotFoundError(missing)


# Stores -------------------------------------------------------------------------------------------------------------


def _of_store(fs: Any, path: str, uri: str, where: str, server: str) -> Iterator[Found]:
    outer, before, after = _around(uri, path)

    def look() -> list[dict[str, Any]]:
        fs.invalidate_cache()  # what it has kept may have changed
        try:
            return _infos(fs, path, uri.endswith("/"))
        finally:
            fs.invalidate_cache()

    for info in asked(look, where, server):
        if info.get("type", "file") != "file" or not info.get("size"):
            continue
        name = str(info["name"])
        part = name if "://" in name else f"{before}{name}"
        yield Found(fs, name, f"{outer}{part}{after}", int(info["size"]), mark_of_store(info))


def _infos(fs: Any, path: str, is_folder: bool) -> list[dict[str, Any]]:
    """Return what a store says of files: with one request for a folder, whatever is in it."""
    if _MAGIC.search(path):
        return _matching(fs, path, is_folder)
    if not is_folder and "." in path.rpartition("/")[2]:
        info = _one(fs, path)
        if info.get("type") == "file":
            return [info]
    return list(fs.find(path, detail=True).values())


def _one(fs: Any, path: str) -> dict[str, Any]:
    """Return what a store says of a path."""
    from fsspec.asyn import sync

    if not is_a(fs, "GCSFileSystem"):
        return dict(fs.info(path))
    try:
        return dict(sync(fs.loop, fs._get_object, path))  # its `info` asks up to three times
    except FileNotFoundError:
        return {}


def _matching(fs: Any, pattern: str, is_folder: bool) -> list[dict[str, Any]]:
    """Return what a store says of files that match a pattern, or that have a name which only looks like one."""
    if is_folder:
        found = list(fs.find(pattern, detail=True).values())
        return found or _glob(fs, f"{pattern}/**")
    folder, slash, last = pattern.rpartition("/")
    if not slash or _MAGIC.search(folder) or "**" in last:
        return _glob(fs, pattern) or list(fs.find(pattern, detail=True).values())
    inside = fs.ls(folder, detail=True)
    exact = next((info for info in inside if str(info["name"]).rstrip("/") == pattern), None)
    if exact is None:
        return [info for info in inside if _matches(last, str(info["name"]).rpartition("/")[2])]
    return [exact] if exact.get("type") == "file" else list(fs.find(pattern, detail=True).values())


def _glob(fs: Any, pattern: str) -> list[dict[str, Any]]:
    try:
        return list(fs.glob(pattern, detail=True).values())
    except ValueError:
        why = "is no pattern: ** stands for folders, between slashes"
    raise RefusedError(Failure(why, kind=SlideNotFoundError))


def _matches(pattern: str, name: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern) and (not name.startswith(".") or pattern.startswith("."))


def _around(uri: str, path: str) -> tuple[str, str, str]:
    """Return the parts of a URL before the one with the path, what stands before the path in that, and the rest."""
    parts = chain(uri)
    number = next((n for n, part in enumerate(parts) if "://" in part), 0)
    part = parts[number]
    before = part.rstrip("/").removesuffix(path.rstrip("/"))
    if not before.endswith("://") and ("://" not in before or before == part.rstrip("/")):
        before = f"{part.split('://', 1)[0]}://"
    return "".join(f"{p}::" for p in parts[:number]), before, "".join(f"::{p}" for p in parts[number + 1 :])


# Web servers --------------------------------------------------------------------------------------------------------


def _of_web(fs: Any, url: str, where: str, server: str) -> Iterator[Found]:
    address = urlsplit(url)
    pattern = ""
    if re.search(r"[*[]", address.path):
        path, _, pattern = address.path.rpartition("/")
        if re.search(r"[*[]", path):
            raise SlideNotFoundError(f"{where}: only the last part of a URL of a web server may be a pattern")
        address = address._replace(path=f"{path}/")
    elif not address.path.endswith("/"):
        told: About = asked(lambda: about(fs, url), where, server)
        moved = urlsplit(told.url)
        is_folder = moved[:2] == address[:2] and moved.path == f"{address.path}/"
        if not told.is_page or not (is_folder or "." not in address.path.rpartition("/")[2]):
            yield _web_file(fs, url, told, where)
            return
        address = address._replace(path=f"{address.path}/")
    files = _files_of_pages(fs, urlunsplit(address), server, deep=not pattern)
    if pattern:
        files = [file for file in files if _matches(pattern, unquote(urlsplit(file).path.rpartition("/")[2]))]

    def look(file: str) -> About:
        told: About = asked(lambda: about(fs, file), display_uri(file), server)
        return told

    for file, told in zip(files, in_parallel(look, files), strict=True):
        yield _web_file(fs, file, told, where)


def _files_of_pages(fs: Any, url: str, server: str, *, deep: bool) -> list[str]:
    """Return the URLs of all files in a folder of a web server."""

    def look(folder: str) -> list[str]:
        return links(asked(lambda: page(fs, folder), display_uri(folder), server), folder)

    files: list[str] = []
    folders = [url]
    for _ in range(DEEPEST):
        inside = [link for found in in_parallel(look, folders) for link in found]
        files += [link for link in inside if not urlsplit(link).path.endswith("/")]
        folders = [link for link in inside if urlsplit(link).path.endswith("/")]
        if not deep or not folders:
            return files
    raise RequestError(f"{display_uri(url)}: folders lie in folders without an end")


def _web_file(fs: Any, url: str, told: About, where: str) -> Found:
    if told.size is None:
        raise RequestError(
            f"{where}: the server does not say how long the file is, and so has no ranges of it. Remedy: read it "
            "through a copy that is made when it is opened: simplecache::https://…"
        )
    return Found(fs, url, url, told.size, told.mark)
