"""A DICOMweb service as this process knows it: its session, and what it has been found able to do."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from microtome import config
from microtome.errors import ProtocolError, RequestError
from microtome.storage.credentials import Credentials
from microtome.storage.dicomweb.address import on_service
from microtome.storage.dicomweb.multipart import media_type, split_parts, stream_first_part
from microtome.storage.dicomweb.session import Answer, CutShortError, Session

__all__ = ["Capabilities", "Service", "service"]

T = TypeVar("T")
R = TypeVar("R")

JSON = "application/dicom+json"
PAGE = 100
"""Results asked for in one page of a search."""
MAX_PAGE_BYTES = 64 << 20
MAX_BULK = 64 << 20
"""Bytes of bulk data: profiles and palettes are under one."""


@dataclass(slots=True)
class Capabilities:
    """What a server was found able to do; None where that is not known yet.

    Parameters
    ----------
    lists
        Whether it answers a request for several frames.
    original
        Whether it knows ``transfer-syntax=*``.
    exact
        Whether it sends frames under the transfer syntax they are stored in, when asked for that.
    failing
        Paths of instances whose frames it fails to send as they are stored, although it can decode them.
    """

    lists: bool | None = None
    original: bool | None = None
    exact: bool | None = None
    failing: set[str] = field(default_factory=set)


class Service:
    """A server, whoever uses it in this process: slides that share it share connections and what is known of it.

    Parameters
    ----------
    root
        URL of the service.
    credentials
        What requests are signed with.
    allow_hosts
        See `Session`.
    """

    def __init__(self, root: str, credentials: Credentials, allow_hosts: tuple[str, ...]) -> None:
        self.root = root
        self.key = (root, credentials.identity)
        self.session = Session(root, credentials, allow_hosts)
        self.capabilities = Capabilities()
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._inside = threading.local()

    def url(self, path: str) -> str:
        """Return the URL of a path below the root."""
        return f"{self.root}/{path}" if path else self.root

    def documents(self, path: str, read: Callable[[Iterable[bytes], str], T]) -> T:
        """Retrieve JSON (PS3.18 10.4.1.1.2) and read it as it arrives."""
        return self._json(self.url(path), (), lambda answer: read(answer.chunks(), answer.url))

    def _json(self, url: str, query: Sequence[tuple[str, str]], read: Callable[[Answer], T]) -> T:
        def ask(accept: str) -> T:
            return self.session.request("GET", url, accept=accept, query=tuple(query), read=read)

        try:
            return ask(JSON)
        except RequestError as e:
            if e.status != 406:
                raise
        return ask("application/json")

    def search(
        self, path: str, query: Sequence[tuple[str, str]] = (), limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Search by QIDO-RS (PS3.18 10.6), page by page.

        Parameters
        ----------
        path
            ``studies``, ``series``, ``studies/{uid}/series``, ...
        query
            Attributes and their values, and ``includefield``.
        limit
            The most results to return.
        """
        url = self.url(path)
        seen: set[str] = set()
        offset = 0
        while True:
            page = PAGE if limit is None else min(PAGE, limit - len(seen))
            paging = [("limit", str(page))] + ([("offset", str(offset))] if offset else [])
            found, more = self._json(url, [*query, *paging], _read_page)
            fresh = {_mark(item): item for item in found}
            for mark in seen & fresh.keys():
                del fresh[mark]
            fresh = dict(list(fresh.items())[:page]) if limit is not None else fresh
            yield from fresh.values()
            seen |= fresh.keys()
            offset += len(found)
            # Servers may send fewer than were asked for and say that there are more; others know no pages at all.
            if not fresh or len(found) > page or (len(found) < page and not more) or len(seen) == limit:
                return

    def bulk(self, uri: str, base: str) -> bytes:
        """Retrieve bulk data (PS3.18 10.4.1.1.5) by the URI that a document at ``base`` states.

        Raises
        ------
        RequestError
            It is not there, or it is on another host.
        """
        url = on_service(uri, base, self.root)
        self.session.may_fetch(url)

        def read(answer: Answer) -> bytes:
            kind = media_type(answer.content_type)
            body = answer.body(MAX_BULK)
            if not kind.name.startswith("multipart/"):
                return body
            parts = split_parts(body, kind.parameters.get("boundary", ""), answer.url)
            if len(parts) != 1:
                raise ProtocolError(f"{answer.url}: {len(parts)} parts, where one value was asked for")
            return bytes(parts[0].body)

        errors = []
        for accept in (
            'multipart/related; type="application/octet-stream"; transfer-syntax=*',
            "application/octet-stream; transfer-syntax=*",
            "application/octet-stream",
        ):
            try:
                return self.session.request("GET", url, accept=accept, read=read)
            except RequestError as e:
                if e.status not in (400, 406, 415):
                    raise
                errors.append(e)
        raise errors[0]

    def instance(self, path: str, read: Callable[[Iterator[bytes]], T], *, start: int = 0, end: int | None = None) -> T:
        """Retrieve an instance as a Part 10 file, as it is stored, and read it as it arrives.

        Parameters
        ----------
        path
            Of the instance.
        read
            What is made of its bytes; it need not take them all.
        start, end
            The bytes wanted. Servers may send all of the file nevertheless; then the others are passed over.
        """
        asked = {} if not start and end is None else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}

        def read_answer(answer: Answer) -> T:
            kind = media_type(answer.content_type)
            chunks = answer.chunks()
            if kind.name.startswith("multipart/"):
                chunks = stream_first_part(chunks, kind.parameters.get("boundary", ""), answer.url)
            return read(_cut(chunks, start, end) if asked and answer.status != 206 else chunks)

        errors = []
        for accept in (
            'multipart/related; type="application/dicom"; transfer-syntax=*',
            "application/dicom; transfer-syntax=*",
            "application/dicom",
        ):
            try:
                return self.session.request("GET", self.url(path), accept=accept, headers=asked, read=read_answer)
            except RequestError as e:
                if e.status not in (400, 406, 415):
                    raise
                errors.append(e)
        raise errors[0]

    def parallel(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Call on every item, as many at a time as there are connections; raise the first error when all have ended."""
        if len(items) < 2 or getattr(self._inside, "worker", False):
            return [call(item) for item in items]
        futures = [self._submit(call, item) for item in items]
        errors = [e for e in (f.exception() for f in futures) if e is not None]
        if errors:
            raise errors[0]
        return [f.result() for f in futures]

    def background(self, call: Callable[[T], R], item: T) -> None:
        """Call on an item when a thread is free; nobody waits, and errors are nobody's."""
        self._submit(call, item)

    def _submit(self, call: Callable[[T], R], item: T) -> Any:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(config.get().http_connections, "microtome-fetch")
            executor = self._executor

        def work() -> R:
            self._inside.worker = True
            return call(item)

        return executor.submit(work)


def _cut(chunks: Iterable[bytes], start: int, end: int | None) -> Iterator[bytes]:
    """Yield a range of a stream."""
    at = 0
    for chunk in chunks:
        piece = chunk[max(start - at, 0) : None if end is None else max(end - at, 0)]
        at += len(chunk)
        if piece:
            yield piece
        if end is not None and at >= end:
            return


def _read_page(answer: Answer) -> tuple[list[dict[str, Any]], bool]:
    body = answer.body(MAX_PAGE_BYTES)
    if answer.status == 204 or not body.strip():
        return [], False
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        kind = answer.content_type or "no content type"
        raise CutShortError(f"{answer.url}: the answer ({kind}) is no JSON, or cut short") from None
    items = found if isinstance(found, list) else [found]
    if not all(isinstance(item, dict) for item in items):
        raise ProtocolError(f"{answer.url}: the answer is JSON, and no list of DICOM attributes")
    return items, answer.headers.get("warning", "").startswith("299")


def _mark(item: dict[str, Any]) -> str:
    """Return what tells a result from others: the UIDs of its instance, series and study."""
    return "/".join(value(item, tag) for tag in ("00080018", "0020000E", "0020000D")).strip("/") or json.dumps(item)


def value(item: dict[str, Any], tag: str) -> str:
    """Return the first value of an attribute of DICOM JSON as text; empty where there is none."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    if isinstance(first, dict):
        first = first.get("Alphabetic", "")
    return "" if first is None else str(first)


_services: dict[tuple[Any, ...], Service] = {}
_lock = threading.Lock()


def _forget() -> None:
    # Connections and threads do not survive a fork, and the lock may have been held by such a thread.
    global _lock
    _lock = threading.Lock()
    _services.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def service(root: str, credentials: Credentials, allow_hosts: Iterable[str] = ()) -> Service:
    """Return the service at a URL for these credentials, the same one for all who ask in this process."""
    hosts = tuple(sorted(allow_hosts))
    key = (root, credentials.identity, hosts)
    with _lock:
        if key not in _services:
            _services[key] = Service(root, credentials, hosts)
        return _services[key]
