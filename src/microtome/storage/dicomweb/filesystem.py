"""A DICOMweb server as an fsspec filesystem: studies, series and instances are folders and files.

========================================================  =======================================================
path                                                      is
========================================================  =======================================================
``studies``                                               a folder of studies
``studies/{uid}/series``                                  a folder of series
``studies/{uid}/series/{uid}/instances``                  a folder of instances
``studies/{uid}/series/{uid}/instances/{uid}``            a file: the instance as Part 10; also a folder of its parts
``.../instances/{uid}/frames/{n}``                        a file: an encoded frame, from 1
``.../instances/{uid}/metadata``, ``.../bulkdata/...``,   files: what the server answers
``.../rendered``, ``.../series/{uid}/metadata``
========================================================  =======================================================
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

from microtome.errors import NotOnServerError, OptionError, RequestError
from microtome.storage import credentials as credentials_
from microtome.storage.dicomweb.address import is_dicomweb, parse_address
from microtome.storage.dicomweb.frames import InstanceFrames
from microtome.storage.dicomweb.service import JSON, Service, service, value
from microtome.storage.dicomweb.session import Answer
from microtome.storage.dicomweb.stow import Piece, store

__all__ = ["DICOMwebFileSystem"]

_UID = r"[0-9.]{1,64}"
_STUDY = f"studies/(?P<study>{_UID})"
_SERIES = f"{_STUDY}/series/(?P<series>{_UID})"
_INSTANCE = re.compile(f"(?P<path>{_SERIES}/instances/(?P<instance>{_UID}))(?:/(?P<rest>.+))?")
_FRAME = re.compile(r"frames/([1-9][0-9]{0,8})")
# What is searched for what a folder holds: (folder, search, UID of its entries, are they files).
_FOLDERS = [
    (re.compile("studies"), "studies", "0020000D", False),
    (re.compile(f"{_STUDY}(?:/series)?"), "studies/{study}/series", "0020000E", False),
    (re.compile(f"{_SERIES}(?:/instances)?"), "studies/{study}/series/{series}/instances", "00080018", True),
]
_SPOOLED = 64 << 20


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
    """

    protocol = ("dicomweb", "dicomweb+https", "dicomweb+http")
    root_marker = ""

    def __init__(
        self, url: str = "", credentials: Any = None, allow_hosts: Sequence[str] = (), **storage_options: Any
    ) -> None:
        super().__init__(**storage_options)
        if not url:
            raise OptionError("url= is needed: the DICOMweb service, such as https://host/dicomWeb")
        self.root = parse_address(url).root
        self.credentials = credentials_.resolve(credentials)
        self.allow_hosts = tuple(allow_hosts)

    @property
    def service(self) -> Service:
        """The server as this process knows it; another object after a fork."""
        return service(self.root, self.credentials, self.allow_hosts)

    @property
    def fsid(self) -> str:
        """Name of the server."""
        return f"dicomweb-{self.root}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        text = str(path)
        if is_dicomweb(text):
            root = parse_address(text.split("?")[0]).root
            text = re.sub(r"^dicomweb(\+https?)?://", lambda m: (m.group(1) or "+https")[1:] + "://", text)
            text = text[len(root) :] if text.startswith(root) else text
        return text.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        return {"url": parse_address(path).root} if is_dicomweb(path) else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return the full URL of a path."""
        return f"dicomweb+{self.root}/{self._strip_protocol(name)}"

    # -- listing -----------------------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a folder by QIDO-RS; of an instance, its parts."""
        entries = list(self._entries(self._strip_protocol(path)))
        return entries if detail else [entry["name"] for entry in entries]

    def _entries(self, path: str) -> Iterator[dict[str, Any]]:
        if not path:
            yield _folder("studies")
            return
        for pattern, search, uid, files in _FOLDERS:
            match = pattern.fullmatch(path)
            if match:
                query = search.format(**match.groupdict())
                items = list(self.service.search(query))
                if not items and match.groupdict():
                    self._must_exist(path, match.groupdict())
                for item in items:
                    name = f"{query}/{value(item, uid)}"
                    yield _file(name) if files else _folder(name)
                return
        match = _INSTANCE.fullmatch(path)
        if match is None or match["rest"] not in (None, "frames"):
            raise FileNotFoundError(path)
        if match["rest"] == "frames":
            yield from (_file(f"{path}/{n + 1}") for n in range(self._frames(match["path"])))
            return
        self._frames(match["path"])  # whether it is there at all
        yield _folder(f"{path}/frames")
        yield _file(f"{path}/metadata")
        yield _file(f"{path}/rendered")

    def _must_exist(self, path: str, uids: Mapping[str, str]) -> None:
        """Tell a folder that is empty from one that is not there."""
        query = [("StudyInstanceUID", uids["study"])]
        if "series" in uids:
            query.append(("SeriesInstanceUID", uids["series"]))
        if not list(self.service.search("series" if "series" in uids else "studies", query, limit=1)):
            raise FileNotFoundError(f"{self.root}/{path}")

    def _frames(self, path: str) -> int:
        """Return the number of frames of an instance."""
        series, _, uid = path.rsplit("/", 2)
        query = [("SOPInstanceUID", uid), ("includefield", "NumberOfFrames")]
        for item in self.service.search(f"{series}/instances", query, limit=1):
            stated = value(item, "00280008")
            if stated.isdecimal():
                return int(stated)
            from_metadata = self._json(path)
            return int(value(from_metadata, "00280008") or 1)
        raise FileNotFoundError(f"{self.root}/{path}")

    def _json(self, path: str) -> dict[str, Any]:
        import json

        found = json.loads(self._document(f"{path}/metadata"))
        return found[0] if isinstance(found, list) and found else {}

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Say what a path is; sizes are not known before something is fetched, and None."""
        path = self._strip_protocol(path)
        if path in ("", "studies"):
            return _folder(path)
        for pattern, _, _, _ in _FOLDERS[1:]:
            match = pattern.fullmatch(path)
            if match:
                self._must_exist(path, match.groupdict())
                return _folder(path)
        match = _INSTANCE.fullmatch(path)
        if match is None:
            if re.fullmatch(f"{_STUDY}(/series/{_UID})?/(metadata|rendered)", path):
                return _file(path)
            raise FileNotFoundError(f"{self.root}/{path}")
        frames = self._frames(match["path"])
        frame = _FRAME.fullmatch(match["rest"] or "")
        if frame and int(frame[1]) > frames:
            raise FileNotFoundError(f"{self.root}/{path}")
        return _folder(path) if match["rest"] == "frames" else _file(path)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """List the instances below a path by one search; everything else as fsspec does."""
        path = self._strip_protocol(path)
        match = re.fullmatch(f"(studies)?|{_STUDY}(/series(/{_UID}(/instances)?)?)?", path)
        if match is None or maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        below = re.sub(r"/?(studies|series|instances)$", "", path)
        found = {}
        for item in self.service.search(f"{below}/instances" if below else "instances"):
            study, series, uid = (value(item, tag) for tag in ("0020000D", "0020000E", "00080018"))
            given = parse_address(f"{self.root}/{below}") if below else None
            study = study or (given.study if given else "")
            series = series or (given.series if given else "")
            name = f"studies/{study}/series/{series}/instances/{uid}"
            found[name] = _file(name)
        return found if detail else sorted(found)

    # -- reading -----------------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes of a file, or a range of them."""
        path = self._strip_protocol(path)
        match = _INSTANCE.fullmatch(path)
        if match and match["rest"] is None:
            if (start or 0) < 0 or (end or 0) < 0:
                return b"".join(self.service.instance(path, list))[start:end]
            return b"".join(self.service.instance(path, list, start=start or 0, end=end))
        if match and _FRAME.fullmatch(match["rest"]):
            return self._cat_frames([path])[path][start:end]
        return self._document(path)[start:end]

    def _document(self, path: str) -> bytes:
        accept = "image/png" if path.endswith("/rendered") else "*/*"
        if path.endswith("/metadata"):
            accept = JSON
        elif "/bulkdata/" in path:
            return self.service.bulk(self.service.url(path), self.root)
        elif not path.endswith("/rendered"):
            raise FileNotFoundError(f"{self.root}/{path}")
        return self.service.session.request("GET", self.service.url(path), accept=accept, read=Answer.body)

    def _cat_frames(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Fetch frames, those of an instance in as few requests as there may be."""
        wanted: dict[str, dict[int, str]] = {}
        for path in paths:
            match = _INSTANCE.fullmatch(path)
            assert match
            number = _FRAME.fullmatch(match["rest"])
            assert number
            wanted.setdefault(match["path"], {})[int(number[1])] = path
        found: dict[str, bytes] = {}
        for instance, numbers in wanted.items():
            frames = InstanceFrames(self.service, instance, transfer_syntax="", frames=max(numbers))
            got = frames.get(sorted(numbers))
            found |= {numbers[number]: frame.data for number, frame in got.items()}
        missing = [path for numbers in wanted.values() for path in numbers.values() if path not in found]
        if missing:
            raise NotOnServerError(f"{self.root}/{missing[0]}: the server does not have this frame", 404)
        return found

    def _is_frame(self, path: str) -> bool:
        match = _INSTANCE.fullmatch(path)
        return bool(match and _FRAME.fullmatch(match["rest"] or ""))

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """Return the bytes of files: many frames of an instance by one request."""
        if isinstance(path, str) or recursive:
            return super().cat(path, recursive=recursive, on_error=on_error, **kwargs)
        paths = [self._strip_protocol(p) for p in path]
        frames = [p for p in paths if self._is_frame(p)]
        try:
            got: dict[str, Any] = dict(self._cat_frames(frames))
        except RequestError:
            if on_error == "raise":
                raise
            got = {}
        result: dict[str, Any] = {}
        for p in dict.fromkeys(paths):
            try:
                result[p] = got[p] if p in got else self.cat_file(p, **kwargs)
            except Exception as e:
                if on_error == "raise":
                    raise
                if on_error == "return":
                    result[p] = e
        return result

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Return ranges of files; each frame is fetched once, and with others of its instance."""
        stripped = [self._strip_protocol(p) for p in paths]
        first = [starts] * len(stripped) if isinstance(starts, int) or starts is None else list(starts)
        last = [ends] * len(stripped) if isinstance(ends, int) or ends is None else list(ends)
        if not len(stripped) == len(first) == len(last):
            raise ValueError("paths, starts and ends are lists of one length")
        whole = self.cat([p for p in dict.fromkeys(stripped) if self._is_frame(p)], on_error=on_error)
        result: list[Any] = []
        for path, start, end in zip(stripped, first, last, strict=True):
            try:
                data = whole[path] if path in whole else self.cat_file(path, start, end)
                result.append(data[start:end] if path in whole and isinstance(data, bytes) else data)
            except Exception as e:
                if on_error == "raise":
                    raise
                result.append(e)
        return result

    def _open(
        self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True, cache_options: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        if mode != "rb":
            raise OptionError("files of a DICOMweb server are opened for reading; put and pipe store instances")
        path = self._strip_protocol(path)
        match = _INSTANCE.fullmatch(path)
        if match is None or match["rest"] is not None:
            return io.BytesIO(self.cat_file(path))

        def spool(chunks: Iterator[bytes]) -> Any:
            file = tempfile.SpooledTemporaryFile(max_size=_SPOOLED)  # noqa: SIM115 (returned open)
            for chunk in chunks:
                file.write(chunk)
            file.seek(0)
            return file

        return self.service.instance(path, spool)

    # -- storing -----------------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Store an instance, given as Part 10 bytes, under ``studies`` or ``studies/{uid}`` (STOW-RS)."""
        self.store([bytes(value)], path)

    def put(self, lpath: Any, rpath: str = "studies", recursive: bool = False, **kwargs: Any) -> None:
        """Store files of this machine, or a folder of them, under ``studies`` or ``studies/{uid}`` (STOW-RS)."""
        names = [lpath] if isinstance(lpath, str | Path) else list(lpath)
        files: list[Piece] = []
        for name in map(Path, names):
            if name.is_dir():
                if not recursive:
                    raise IsADirectoryError(f"{name}: is a folder; recursive=True stores the files in it")
                files += sorted(p for p in name.rglob("*") if p.is_file())
            else:
                files.append(name)
        self.store(files, rpath)

    def put_file(self, lpath: str, rpath: str = "studies", **kwargs: Any) -> None:
        """Store one file."""
        self.put(lpath, rpath)

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
        match = re.fullmatch(f"studies(?:/(?P<study>{_UID}))?", self._strip_protocol(path))
        if match is None:
            raise OptionError(f"{path}: instances are stored under 'studies' or 'studies/{{uid}}'")
        return store(self.service, instances, match["study"] or "")


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(name: str) -> dict[str, Any]:
    return {"name": name, "size": None, "type": "file"}
