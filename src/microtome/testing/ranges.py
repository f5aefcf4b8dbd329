"""Files over HTTP, by ranges of bytes, as buckets and plain web servers give them; with latency, counts and faults."""

from __future__ import annotations

import html
import os
from collections.abc import Collection, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from microtome.errors import SlideNotFoundError
from microtome.testing.dicomweb.auth import Gate
from microtome.testing.dicomweb.dialects import Dialect
from microtome.testing.dicomweb.faults import FaultRule, Rules
from microtome.testing.dicomweb.message import Answer, FileRange, Refusal, Request
from microtome.testing.dicomweb.serving import Server

__all__ = ["Asked", "Counts", "RangeServer"]

StrPath = str | os.PathLike[str]


class Asked(NamedTuple):
    """One request.

    Parameters
    ----------
    method
        GET or HEAD.
    path
        As it was sent, without the query.
    range
        The header, or None.
    """

    method: str
    path: str
    range: str | None


class Counts:
    """What a server has been asked since it was started, or since `reset`.

    Parameters
    ----------
    server
        The server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def log(self) -> list[Asked]:
        """All requests, oldest first."""
        return [Asked(request.method, request.path, request.range) for request in self._server.requests]

    @property
    def requests(self) -> int:
        """How many there were, of any method."""
        return len(self._server.requests)

    @property
    def ranged(self) -> int:
        """How many asked for a range."""
        return sum(request.range is not None for request in self._server.requests)

    @property
    def bytes(self) -> int:
        """Bytes of all bodies."""
        return self._server.bytes_sent

    @property
    def peak(self) -> int:
        """The most that were under way at a time."""
        return self._server.peak

    @property
    def connections(self) -> int:
        """TCP connections accepted."""
        return self._server.connections

    def reset(self) -> None:
        """Count from zero."""
        self._server.reset()


class RangeServer(Server):
    """A server of the files below a folder: GET and HEAD, whole or a range of bytes, with ETag and Last-Modified.

    A folder is answered with a page of links. Connections are kept alive, and each has a thread; so latency is waited
    for side by side.

    Parameters
    ----------
    folder
        What to serve. Files that appear or change later are served as they are then.
    latency
        Seconds before each answer. May be set while the server runs.
    bandwidth
        Bytes per second of each connection; None for as fast as it goes. May be set while the server runs.
    faults
        What goes wrong with which requests: see :class:`FaultRule`, and the attribute.
    host, port
        Where to listen; port 0 is any free one.
    basic
        (user, password) to ask for.
    tokens
        Accepted bearer tokens. The collection is looked at anew for each request, so tokens may come and go.

    Attributes
    ----------
    counts
        :class:`Counts`.
    requests
        Log of :class:`Request`, which hold more than ``counts.log``: status, bytes sent, headers, query, connection.
    failures
        Tracebacks of errors of the server itself, which clients see as status 500.

    Raises
    ------
    SlideNotFoundError
        The folder is not there.

    Examples
    --------
    >>> with RangeServer("slides", latency=0.03) as server:  # doctest: +SKIP
    ...     slide = mt.open_slide(f"{server.url}/slide/")
    ...     print(server.counts.requests, server.counts.bytes)
    """

    def __init__(
        self,
        folder: StrPath,
        *,
        latency: float = 0.0,
        bandwidth: float | None = None,
        faults: Sequence[FaultRule] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        basic: tuple[str, str] | None = None,
        tokens: Collection[str] | None = None,
    ) -> None:
        gate = Gate(host, (), basic, tokens, None)
        http = Dialect("ranges", gzip=False)
        super().__init__(
            _Files(Path(folder)), host, port, dialect=http, gate=gate, root="", latency=latency, bandwidth=bandwidth
        )
        self.counts = Counts(self)
        self.faults = faults

    @property
    def faults(self) -> Sequence[FaultRule]:
        """What goes wrong with which requests. The requests that match are counted from when this is set."""
        return self._faults

    @faults.setter
    def faults(self, rules: Sequence[FaultRule]) -> None:
        self._faults = tuple(rules)
        self.fault = Rules(self._faults) if self._faults else None


class _Files:
    """Answers from a folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SlideNotFoundError(f"{folder}: there is no such folder to serve")
        self._folder = folder

    def answer(self, request: Request, base: str, body: bytes) -> Answer:
        """Answer a request."""
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, "GET and HEAD", {"Allow": "GET, HEAD"})
        steps = unquote(request.path).split("/")[1:]
        if any(step in (".", "..") or "\0" in step or os.sep in step for step in steps):
            raise Refusal(400, "the path holds what no path of these files does")
        path = self._folder.joinpath(*steps)
        is_folder = path.is_dir()
        if is_folder and steps[-1]:
            raise Refusal(301, "this is a folder", {"Location": f"{request.path}/"})
        if is_folder:
            return Answer([_index(path)], "text/html; charset=utf-8")
        if not path.is_file() or not steps[-1]:
            raise Refusal(404, "there is nothing here")
        about = path.stat()
        tag = f'"{about.st_mtime_ns:x}-{about.st_size:x}"'
        if request.headers.get("if-match", tag) not in (tag, "*"):
            raise Refusal(412, "the file is another one now")
        headers = {"ETag": tag, "Last-Modified": formatdate(about.st_mtime, usegmt=True)}
        return Answer([FileRange(path, 0, about.st_size)], "application/octet-stream", headers=headers, ranged=True)


def _index(folder: Path) -> bytes:
    """A page that links to all that is in a folder."""
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    links = "\n".join(f'<a href="{quote(name)}">{html.escape(name)}</a>' for name in names)
    return f"<!DOCTYPE html>\n<html><body><pre>\n{links}\n</pre></body></html>\n".encode()
