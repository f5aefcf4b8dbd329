"""A DICOMweb server as an fsspec filesystem: studies, series and instances are folders and files.

========================================================  =======================================================
path                                                      is
========================================================  =======================================================
``studies``                                               a folder of studies
``studies/{uid}/series``                                  a folder of series
``studies/{uid}/series/{uid}/instances``                  a folder of instances
``studies/{uid}/series/{uid}/instances/{uid}``            a file: the instance as Part 10; `ls` shows its parts
``.../instances/{uid}/frames/{n}``                        a file: an encoded frame, from 1
``.../instances/{uid}/metadata``, ``.../bulkdata/...``,   files: what the server answers
``.../rendered``, ``.../frames/{n}/rendered``,
``.../series/{uid}/metadata``, ``studies/{uid}/metadata``
========================================================  =======================================================
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from microtome.errors import CredentialsError, OptionError, ProtocolError, RequestError
from microtome.storage import credentials as credentials_
from microtome.storage.dicomweb.address import UID, parse_address, split_url
from microtome.storage.dicomweb.answer import Answer
from microtome.storage.dicomweb.frames import InstanceFrames
from microtome.storage.dicomweb.resources import LEVELS, Resource, resource
from microtome.storage.dicomweb.service import Service, negotiate, service, value
from microtome.storage.dicomweb.stow import Piece, store

__all__ = ["DICOMwebFileSystem"]

_URL = re.compile(r"^(dicomweb(\+https?)?|https?)://", re.IGNORECASE)
_NO_HOST = re.compile(r"^dicomweb://(?=studies(?:/|$))", re.IGNORECASE)
_OF_FSSPEC = {"asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "use_listings_cache"}
_PICTURES = ("image/png", "image/jpeg")
_NO_SEARCH = (400, 404, 405, 501)
_SPOOLED = 64 << 20
"""Bytes of an instance held in memory; a longer one goes to the disk."""


class DICOMwebFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A DICOMweb server as a filesystem: ``fsspec.filesystem("dicomweb", url="https://host/dicomWeb")``.

    Also ``fsspec.open("dicomweb+https://host/dicomWeb/studies/...")``. Reads go through the frame cache and the
    connections that slides of the same server use. May be used from any thread; pickles to how it was made.

    Parameters
    ----------
    url
        Of the service.
    credentials
        What a function of `microtome.credentials` returns, or a function that returns headers.
    allow_hosts
        Other hosts that redirects and bulk data may lead to; they never see the credentials.

    Raises
    ------
    OptionError
        An option that it does not have, or a URL with a secret in it.
    """

    protocol = ("dicomweb", "dicomweb+https", "dicomweb+http")
    root_marker = ""
    # fsspec tells instances apart by the repr of their options, which of two functions may be the same. There is
    # nothing to be saved: what costs is kept by `service`.
    cachable = False

    def __init__(
        self, url: str = "", credentials: Any = None, allow_hosts: Sequence[str] = (), **storage_options: Any
    ) -> None:
        unknown = storage_options.keys() - _OF_FSSPEC
        if unknown:
            raise OptionError(
                f"{', '.join(sorted(unknown))}: not known here; the options are url, credentials, allow_hosts"
            )
        if not url:
            raise OptionError("url= is needed: the DICOMweb service, such as https://host/dicomWeb")
        super().__init__(**storage_options)
        self.root = parse_address(url).root
        self.credentials = credentials_.resolve(credentials)
        self.allow_hosts = (allow_hosts,) if isinstance(allow_hosts, str) else tuple(allow_hosts)

    @property
    def service(self) -> Service:
        """The server as this process knows it; another object after a fork."""
        return service(self.root, self.credentials, self.allow_hosts)

    @property
    def fsid(self) -> str:
        """Name of the server."""
        return f"dicomweb-{self.root}"

    @property
    def _recipe(self) -> tuple[Any, ...]:
        return (self.root, self.credentials, self.allow_hosts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DICOMwebFileSystem) and self._recipe == other._recipe

    def __hash__(self) -> int:
        return hash(self._recipe)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._recipe

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("microtome.dicomweb", *self._recipe)

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        """Describe the filesystem in a form that JSON can hold.

        Raises
        ------
        CredentialsError
            It has credentials.
        """
        if self.credentials != credentials_.none():
            raise CredentialsError(
                f"{self.root}: credentials have no form in JSON, which is no place for secrets; make the filesystem "
                "without, and give credentials= where it is used"
            )
        kind = type(self)
        name = f"{kind.__module__}:{kind.__name__}"
        return {
            "cls": name, "protocol": self.protocol[0], "args": [], "url": self.root, "allow_hosts": [*self.allow_hosts],
        }  # fmt: skip

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        text = _NO_HOST.sub("", stringify_path(path))
        return (split_url(text)[1] if _URL.match(text) else text).strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        return {"url": split_url(path)[0]} if _URL.match(path) and not _NO_HOST.match(path) else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return the full URL of a path."""
        return f"dicomweb+{self.root}/{self._strip_protocol(name)}".rstrip("/")

    def _named(self, path: Any) -> Resource:
        found = resource(self._strip_protocol(path))
        if found.kind == "nothing":
            raise self._missing(found.path)
        return found

    def _missing(self, path: str) -> FileNotFoundError:
        # What follows is no part of any path here, and may be a key.
        return FileNotFoundError(f"{self.root}/{re.split('[?#]', path, maxsplit=1)[0]}: there is no such thing here")

    # -- listing -----------------------------------------------------------------------------------------------------

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
            metadata = json.loads(self._document(f"{named.owner}/metadata"))
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

    # -- reading -----------------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes of a file, or a range of them.

        A range of an instance is asked for as such; of a server that sends all of it, no more is read than that.
        """
        named = self._named(path)
        if named.is_folder:
            raise IsADirectoryError(f"{self.root}/{named.path}: is a folder")
        if named.kind == "frame":
            got = self._frames([named])[named.path]
            if isinstance(got, Exception):
                raise got
            return got[start:end]
        if named.kind != "instance":
            return self._document(named.path)[start:end]
        first = start or 0
        if (end is not None and end < 0) or (first < 0 and end is not None):  # the length decides, and is not known
            with self._open(named.path) as file:
                left, right, _ = slice(start, end).indices(file.size)
                file.seek(left)
                data: bytes = file.read(max(right - left, 0))
                return data
        return b"".join(self.service.instance(named.path, list, start=first, end=end))

    def _document(self, path: str) -> bytes:
        named = resource(path)
        if named.kind == "metadata":
            return self.service.documents(path, lambda chunks, where: b"".join(chunks))
        if named.kind == "picture":
            ask = self.service.session.request
            url = self.service.url(path)
            return negotiate(_PICTURES, lambda accept: ask("GET", url, accept=accept, read=_read_picture))
        return self.service.bulk(self.service.url(path), self.root)

    def _frames(self, wanted: Sequence[Resource]) -> dict[str, bytes | Exception]:
        """Fetch frames, those of an instance in as few requests as there may be; of each, its bytes or why not."""
        instances: dict[str, list[Resource]] = {}
        for named in wanted:
            instances.setdefault(named.owner, []).append(named)

        def fetch(instance: str) -> dict[str, bytes | Exception]:
            numbers = sorted({named.frame for named in instances[instance]})
            try:
                got = _Frames(self.service, instance, transfer_syntax="", frames=numbers[-1]).get(numbers)
            except RequestError as e:
                return {named.path: e for named in instances[instance]}
            return {
                named.path: got[named.frame].data if named.frame in got else self._missing(named.path)
                for named in instances[instance]
            }

        found: dict[str, bytes | Exception] = {}
        for part in self.service.workers.parallel(fetch, list(instances)):
            found |= part
        return found

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """Return the bytes of files: many frames of an instance by one request, several instances side by side."""
        paths = self.expand_path(path, recursive=recursive)
        if isinstance(path, str) and paths == [self._strip_protocol(path)] and not recursive:
            return self.cat_file(paths[0], **kwargs)
        if recursive or (isinstance(path, str) and has_magic(path)):
            paths = [p for p in paths if not resource(p).is_folder]
        starts, ends = kwargs.get("start"), kwargs.get("end")
        return _settled(paths, self._ranges(paths, [starts] * len(paths), [ends] * len(paths)), on_error)

    def cat_ranges(
        self, paths: list[str], starts: Any, ends: Any, max_gap: int | None = None, on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:  # fmt: skip
        """Return ranges of files; each frame is fetched once, and with others of its instance."""
        names = [self._strip_protocol(path) for path in paths]
        first = list(starts) if isinstance(starts, Sequence) else [starts] * len(names)
        last = list(ends) if isinstance(ends, Sequence) else [ends] * len(names)
        if not len(names) == len(first) == len(last):
            raise ValueError("paths, starts and ends are lists of one length")
        found = self._ranges(names, first, last)
        if on_error == "raise":
            _settled(names, found, on_error)
        return found

    def _ranges(self, paths: list[str], starts: list[int | None], ends: list[int | None]) -> list[Any]:
        """Return ranges of files, or what is wrong with each."""
        frames = {named.path: named for named in map(resource, paths) if named.kind == "frame"}
        whole = self._frames(list(frames.values()))

        def fetch(wanted: tuple[str, int | None, int | None]) -> Any:
            path, start, end = wanted
            got = whole.get(path)
            try:
                if got is None:
                    return self.cat_file(path, start, end)
            except Exception as e:  # told to the caller, or raised by it
                return e
            return got if isinstance(got, Exception) else got[start:end]

        return self.service.workers.parallel(fetch, list(zip(paths, starts, ends, strict=True)))

    def _open(
        self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True, cache_options: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        if mode != "rb":
            raise OptionError("files of a DICOMweb server are opened for reading; put and pipe store instances")
        named = self._named(path)
        if named.kind != "instance":
            return _sized(io.BytesIO(self.cat_file(named.path)))

        def spool(chunks: Iterator[bytes]) -> Any:
            file = tempfile.SpooledTemporaryFile(max_size=_SPOOLED)  # noqa: SIM115 (returned open)
            try:
                for chunk in chunks:
                    file.write(chunk)
            except BaseException:
                file.close()
                raise
            return _sized(file)

        return self.service.instance(named.path, spool)

    # -- storing -----------------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Store an instance, given as Part 10 bytes, under ``studies`` or ``studies/{uid}`` (STOW-RS)."""
        self.store([bytes(value)], path)

    def put(self, lpath: Any, rpath: str = "studies", recursive: bool = False, **kwargs: Any) -> None:
        """Store files of this machine under ``studies`` or ``studies/{uid}`` (STOW-RS).

        Parameters
        ----------
        lpath
            A file, a pattern, or several; a folder with ``recursive=True``: of what is in it, Part 10 files are taken.
        rpath
            Where they are stored.
        """
        from fsspec.implementations.local import LocalFileSystem

        names = LocalFileSystem().expand_path(lpath)
        files: list[Piece] = []
        for name in map(Path, names):
            if not name.is_dir():
                files.append(name)
            elif recursive:
                files += sorted(p for p in name.rglob("*") if p.is_file() and _is_part10(p))
            else:
                raise IsADirectoryError(f"{name}: is a folder; recursive=True stores the files in it")
        if not files:
            raise FileNotFoundError(f"{', '.join(names)}: no DICOM files are there")
        self.store(files, rpath)

    def put_file(self, lpath: str, rpath: str = "studies", **kwargs: Any) -> None:
        """Store one file."""
        self.store([Path(lpath)], rpath)

    def store(self, instances: Sequence[Piece], path: str = "studies") -> list[str]:
        """Store instances, several in a request; return what the server says it stored.

        Parameters
        ----------
        instances
            Part 10 bytes, or paths of files.
        path
            ``studies``, or ``studies/{uid}`` for a study they must belong to.

        Raises
        ------
        RequestError
            One of them is refused.
        """
        named = resource(self._strip_protocol(path)) if isinstance(path, str) else None
        if named is None or (named.path != "studies" and (named.kind, len(named.uids)) != ("folder", 1)):
            raise OptionError("instances are stored under 'studies' or 'studies/{uid}'")
        return store(self.service, instances, *named.uids)


class _Frames(InstanceFrames):
    """Frames as bytes. Nobody has looked whether they are whole, or decoded on the way: slides do not share these."""

    def _key(self, number: int) -> Any:
        return ("bytes", self.service.key, self.path, number)


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(name: str) -> dict[str, Any]:
    return {"name": name, "size": None, "type": "file"}


def _sized(file: Any) -> Any:
    """Rewind a file, and say its size, which users of fsspec ask for."""
    file.size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return file


def _settled(paths: list[str], found: list[Any], on_error: str) -> dict[str, Any]:
    errors = [e for e in found if isinstance(e, Exception)]
    if errors and on_error == "raise":
        raise errors[0]
    pairs = zip(paths, found, strict=True)
    return {path: got for path, got in pairs if on_error == "return" or not isinstance(got, Exception)}


def _read_picture(answer: Answer) -> bytes:
    if not answer.content_type.lower().startswith("image/"):
        kind = answer.content_type or "no content type"
        raise ProtocolError(f"{answer.url}: {kind} came in place of a picture", answer.status)
    return answer.body()


def _is_part10(file: Path) -> bool:
    with file.open("rb") as f:
        return f.read(132)[128:] == b"DICM"
