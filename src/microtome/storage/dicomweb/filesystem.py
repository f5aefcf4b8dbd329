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

import io
import tempfile
from collections.abc import Iterator, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any

from microtome.errors import CredentialsError, OptionError, ProtocolError, RequestError
from microtome.storage import credentials as credentials_
from microtome.storage.dicomweb.address import parse_address, split_url
from microtome.storage.dicomweb.answer import Answer
from microtome.storage.dicomweb.frames import InstanceFrames
from microtome.storage.dicomweb.listings import NO_HOST, URL, ListedFileSystem
from microtome.storage.dicomweb.resources import Resource, resource
from microtome.storage.dicomweb.service import Service, negotiate, service
from microtome.storage.dicomweb.stow import Piece, store

__all__ = ["DICOMwebFileSystem"]

_OF_FSSPEC = {"asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "use_listings_cache"}
_PICTURES = ("image/png", "image/jpeg")
_SPOOLED = 64 << 20
"""Bytes of an instance held in memory; a longer one goes to the disk."""


class DICOMwebFileSystem(ListedFileSystem):
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

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        return {"url": split_url(path)[0]} if URL.match(path) and not NO_HOST.match(path) else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return the full URL of a path."""
        return f"dicomweb+{self.root}/{self._strip_protocol(name)}".rstrip("/")

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
