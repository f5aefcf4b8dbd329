"""What a DICOMweb server has, as folders and files of an fsspec filesystem: searched for, not downloaded."""

from __future__ import annotations

import fnmatch
import json
import re
from abc import abstractmethod
from collections.abc import Iterator
from glob import has_magic
from typing import Any

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from microtome.errors import RequestError
from microtome.storage.dicomweb.address import UID, split_url
from microtome.storage.dicomweb.resources import LEVELS, Resource, resource
from microtome.storage.dicomweb.service import Service, value

__all__ = ["NO_HOST", "URL", "ListedFileSystem"]

URL = re.compile(r"^(dicomweb(\+https?)?|https?)://", re.IGNORECASE)
NO_HOST = re.compile(r"^dicomweb://(?=studies(?:/|$))", re.IGNORECASE)
_NO_SEARCH = (400, 404, 405, 501)


class ListedFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """The part of `DICOMwebFileSystem` that says what is there."""

    root = ""
    """URL of the service."""

    @property
    @abstractmethod
    def service(self) -> Service:
        """The server as this process knows it."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        text = NO_HOST.sub("", stringify_path(path))
        return (split_url(text)[1] if URL.match(text) else text).strip("/")

    def _named(self, path: Any) -> Resource:
        found = resource(self._strip_protocol(path))
        if found.kind == "nothing":
            raise self._missing(found.path)
        return found

    def _missing(self, path: str) -> FileNotFoundError:
        # What follows is no part of any path here, and may be a key.
        return FileNotFoundError(f"{self.root}/{re.split('[?#]', path, maxsplit=1)[0]}: there is no such thing here")

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a folder: what it holds is searched for (QIDO-RS). Of an instance, list its parts; of a file, itself."""
        entries = self._entries(self._named(path))
        return entries if detail else [entry["name"] for entry in entries]

    def _entries(self, named: Resource) -> list[dict[str, Any]]:
        level = len(named.uids)
        if named.kind == "folder":
            self._find_owner(named)
            return [_folder(f"{named.owner}/{LEVELS[level].name}".lstrip("/"))]
        if named.kind == "search":
            found = [value(item, LEVELS[level].tag).strip(" \0") for item in self.service.search(named.path)]
            if not found:
                self._find_owner(named)  # a folder that is empty, or none
            # Nothing that is no UID could be asked for, and it might lead elsewhere as a name of a local file.
            names = [f"{named.path}/{uid}" for uid in found if re.fullmatch(UID, uid)]
            return [_file(name) if level == 2 else _folder(name) for name in names]
        if named.kind == "instance":
            self._find_owner(named)
            return [_folder(f"{named.path}/frames"), _file(f"{named.path}/metadata"), _file(f"{named.path}/rendered")]
        if named.kind == "frames":
            return [_file(f"{named.path}/{n + 1}") for n in range(self._frame_count(named))]
        return [self.info(named.path)]

    def _find_owner(self, named: Resource) -> dict[str, Any]:
        """Return what a search tells of the study, series or instance that is named.

        Raises
        ------
        FileNotFoundError
            It is not there.
        """
        if not named.uids:
            return {}
        level, uid = LEVELS[len(named.uids) - 1], named.uids[-1]
        # Some servers find other things, too: they do not know the filter.
        for item in self.service.search(named.owner.rpartition("/")[0], [(level.keyword, uid)]):
            if value(item, level.tag).strip(" \0") == uid:
                return item
        raise self._missing(named.path)

    def _frame_count(self, named: Resource) -> int:
        found = self._find_owner(named)
        if not value(found, "00280008"):
            metadata = json.loads(self.cat_file(f"{named.owner}/metadata"))
            found = metadata[0] if isinstance(metadata, list) and metadata else {}
        stated = value(found, "00280008")
        return int(stated) if re.fullmatch("[0-9]{1,9}", stated) else 1

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Say what a path is; sizes are None where they are not known before something is fetched."""
        named = self._named(path)
        if named.kind == "bulk":  # nothing but itself tells whether it is there
            return _file(named.path) | {"size": len(self.cat_file(named.path))}
        if named.frame:
            if named.frame > self._frame_count(named):
                raise self._missing(named.path)
        else:
            self._find_owner(named)
        return _folder(named.path) if named.is_folder else _file(named.path)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Tell whether something is there; that a server refuses to say is an error."""
        try:
            self.info(path, **kwargs)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Tell whether a path is a folder that is there."""
        return resource(self._strip_protocol(path)).is_folder and self.exists(path)

    def isfile(self, path: str) -> bool:
        """Tell whether a path is a file that is there."""
        return not resource(self._strip_protocol(path)).is_folder and self.exists(path)

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "omit", **kwargs: Any
    ) -> Iterator[Any]:
        """Walk through folders; what is not there is left out, and a server that refuses to say is an error."""

        def absent(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        yield from super().walk(path, maxdepth, topdown, absent if on_error == "omit" else on_error, **kwargs)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """List the instances below a path, by one search; with ``maxdepth``, by walking through the folders."""
        named = resource(self._strip_protocol(path))
        entries: list[dict[str, Any]] = []
        if maxdepth is not None or named.kind == "frames":
            return super().find(named.path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        if named.is_folder:
            try:
                entries = list(self._instances_below(named, withdirs))
            except RequestError as e:
                if e.status not in _NO_SEARCH:
                    raise
                return super().find(named.path, withdirs=withdirs, detail=detail, **kwargs)
        elif self.exists(named.path):
            entries = [_file(named.path)]
        found = {entry["name"]: entry for entry in sorted(entries, key=lambda entry: str(entry["name"]))}
        return found if detail else list(found)

    def _instances_below(self, named: Resource, folders: bool) -> Iterator[dict[str, Any]]:
        path = f"{named.owner}/instances".lstrip("/")
        for item in self.service.search(path):
            stated = [value(item, level.tag).strip(" \0") for level in LEVELS]
            uids = [*named.uids, *stated[len(named.uids) :]]
            if not all(re.fullmatch(UID, uid) for uid in uids):
                continue
            words = [word for level, uid in zip(LEVELS, uids, strict=True) for word in (level.name, uid)]
            if folders:
                yield from (_folder("/".join(words[:n])) for n in range(len(named.path.split("/")), len(words)))
            yield _file("/".join(words))

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Find what matches a pattern, folder by folder: only those that match are looked into."""
        path = self._strip_protocol(path)
        if "**" in path or not has_magic(path):
            return super().glob(path, maxdepth=maxdepth, **kwargs)
        found: dict[str, dict[str, Any] | None] = {"": None}
        for word in path.split("/"):
            if not has_magic(word):
                found = {f"{name}/{word}".lstrip("/"): None for name in found}
                continue
            matches = re.compile(fnmatch.translate(word)).match
            found = {
                entry["name"]: entry
                for name in found
                for entry in self._listed(name)
                if matches(entry["name"].rpartition("/")[2])
            }
        there = {name: entry or self.info(name) for name, entry in sorted(found.items()) if entry or self.exists(name)}
        return there if kwargs.get("detail") else list(there)

    def _listed(self, path: str) -> list[dict[str, Any]]:
        try:
            return self.ls(path)
        except FileNotFoundError:
            return []


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(name: str) -> dict[str, Any]:
    return {"name": name, "size": None, "type": "file"}
