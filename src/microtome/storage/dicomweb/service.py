"""A DICOMweb service as this process knows it: its session, and what it has been found able to do."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from microtome.errors import MicrotomeError, NotOnServerError, ProtocolError, RequestError
from microtome.storage.credentials import Credentials
from microtome.storage.dicomweb.address import on_service
from microtome.storage.dicomweb.multipart import media_type, split_parts, stream_first_part
from microtome.storage.dicomweb.qido import PAGE, Pairs, read_page, value
from microtome.storage.dicomweb.qido import search as search_pages
from microtome.storage.dicomweb.session import Answer, CutShortError, Session
from microtome.storage.workers import Workers

__all__ = ["PAGE", "Capabilities", "Service", "negotiate", "service", "value"]

T = TypeVar("T")

JSON = "application/dicom+json"
_IN_PARTS = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_SINGLE = ("application/dicom; transfer-syntax=*", "application/dicom")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
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
    single
        Whether it sends an instance as such, rather than as the one part of a multipart answer.
    page
        The most results that it has sent in one page of a search.
    syntaxes
        Whether its searches tell the transfer syntax of instances.
    failing
        Paths of instances whose frames it fails to send as they are stored, although it can decode them.
    """

    lists: bool | None = None
    original: bool | None = None
    exact: bool | None = None
    single: bool | None = None
    page: int = 2
    syntaxes: bool | None = None
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
        self.workers = Workers()

    def url(self, path: str) -> str:
        """Return the URL of a path below the root."""
        return f"{self.root}/{path}" if path else self.root

    def documents(self, path: str, read: Callable[[Iterable[bytes], str], T]) -> T:
        """Retrieve JSON (PS3.18 10.4.1.1.2) and read it as it arrives.

        Raises
        ------
        ProtocolError
            Something else comes, or the answer is cut short each time.
        MicrotomeError
            What ``read`` raises of an answer that is not.
        """

        def read_answer(answer: Answer) -> T:
            kind = media_type(answer.content_type).name
            if answer.status == 204:
                raise NotOnServerError(f"{answer.url}: the server has no content there", answer.status)
            if kind in ("text/html", "text/xml", "application/xml", "application/dicom+xml"):
                raise ProtocolError(f"{answer.url}: {kind} came in place of {JSON}", answer.status)
            chunks = _Watched(answer.chunks())
            try:
                found = read(chunks, answer.url)
            except MicrotomeError as e:
                if not chunks.ended or isinstance(e, CutShortError):
                    raise
                # Where a connection ends the answer, only its own end tells whether it is whole.
                raise CutShortError(str(e)) from None
            if chunks.ended and not answer.received:
                raise CutShortError(f"{answer.url}: an empty answer came in place of {JSON}")
            return found

        return self._json(self.url(path), (), read_answer)

    def _json(self, url: str, query: Pairs, read: Callable[[Answer], T]) -> T:
        def ask(accept: str) -> T:
            return self.session.request("GET", url, accept=accept, query=tuple(query), read=read)

        try:
            return ask(JSON)
        except RequestError as e:
            if e.status != 406:
                raise
        return ask("application/json")

    def search(self, path: str, query: Pairs = (), limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Search by QIDO-RS (PS3.18 10.6), page by page.

        Parameters
        ----------
        path
            ``studies``, ``series``, ``studies/{uid}/series``, ...
        query
            Attributes and their values, and ``includefield``.
        limit
            The most results to return; one request is made for a hundred or fewer.
        """
        url = self.url(path)
        return search_pages(lambda pairs: self._json(url, pairs, _read_page), query, limit, self.capabilities)

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
            try:
                parts = split_parts(body, kind.parameters.get("boundary", ""), answer.url)
            except ProtocolError as e:
                raise CutShortError(str(e)) from None
            if len(parts) != 1:
                raise ProtocolError(f"{answer.url}: {len(parts)} parts, where one value was asked for")
            return bytes(parts[0].body)

        forms = (
            'multipart/related; type="application/octet-stream"; transfer-syntax=*',
            "application/octet-stream; transfer-syntax=*",
            "application/octet-stream",
        )
        return negotiate(forms, lambda accept: self.session.request("GET", url, accept=accept, read=read))

    def instance(self, path: str, read: Callable[[Iterator[bytes]], T], *, start: int = 0, end: int | None = None) -> T:
        """Retrieve an instance as a Part 10 file, as it is stored, and read it as it arrives.

        Parameters
        ----------
        path
            Of the instance.
        read
            What is made of its bytes; it need not take them all. Where the answer is cut short, it is called again.
        start, end
            The bytes wanted; a negative start counts from the end of the file. Servers may send all of the file
            nevertheless; then the others are passed over.
        """
        whole = not start and end is None
        if end is not None and end <= start:
            return read(iter(()))

        def read_answer(answer: Answer) -> T:
            kind = media_type(answer.content_type)
            chunks = answer.chunks()
            if kind.name.startswith("multipart/"):
                chunks = _first_part(chunks, kind.parameters.get("boundary", ""), answer.url)
            if answer.status == 206:
                _check_range(answer, start, end)
                return read(chunks)
            return read(chunks if whole else _cut(chunks, start, end))

        def ask(accept: str) -> T:
            # A range of an answer in parts would be one of the parts and what is between them.
            single = accept in _SINGLE
            span = f"{start}-{'' if end is None else end - 1}" if start >= 0 else str(start)
            ranged = {"Range": f"bytes={span}", "Accept-Encoding": "identity"} if single and not whole else {}
            if not single and self.capabilities.single is None and not whole:
                self.capabilities.single = False  # these forms were asked for before
            try:
                got = self.session.request("GET", self.url(path), accept=accept, headers=ranged, read=read_answer)
            except RequestError as e:
                if e.status == 416 and ranged:  # the file ends before the range begins
                    return read(iter(()))
                raise
            if single:
                self.capabilities.single = True
            return got

        in_parts_first = whole or self.capabilities.single is False
        return negotiate((_IN_PARTS, *_SINGLE) if in_parts_first else (*_SINGLE, _IN_PARTS), ask)


def negotiate(forms: Sequence[str], ask: Callable[[str], T]) -> T:
    """Ask for one form after the other until one is not refused."""
    errors = []
    for form in forms:
        try:
            return ask(form)
        except RequestError as e:
            if e.status not in (400, 406, 415):
                raise
            errors.append(e)
    raise errors[0]


class _Watched:
    """A stream that knows whether it has ended."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.ended = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        self.ended = True


def _first_part(chunks: Iterable[bytes], boundary: str, where: str) -> Iterator[bytes]:
    try:
        yield from stream_first_part(chunks, boundary, where)
    except ProtocolError as e:
        raise CutShortError(str(e)) from None


def _cut(chunks: Iterable[bytes], start: int, end: int | None) -> Iterator[bytes]:
    """Yield a range of a stream."""
    if start < 0:
        kept = bytearray()
        for chunk in chunks:
            kept += chunk
            if len(kept) > -2 * start + len(chunk):  # not each time: what is kept is moved
                del kept[:start]
        yield bytes(kept[start:])
        return
    at = 0
    for chunk in chunks:
        piece = chunk[max(start - at, 0) : None if end is None else max(end - at, 0)]
        at += len(chunk)
        if piece:
            yield piece
        if end is not None and at >= end:
            return


def _check_range(answer: Answer, start: int, end: int | None) -> None:
    """Refuse another range than the one that was asked for (RFC 9110 14.4)."""
    stated = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    total = int(stated[3]) if stated and stated[3] != "*" else None
    first = start if start >= 0 else None if total is None else max(total + start, 0)
    ends = [n for n in (end, total) if n is not None]
    if not stated or int(stated[1]) != first or (ends and int(stated[2]) + 1 != min(ends)):
        raise ProtocolError(f"{answer.url}: the server sends another range than the one that was asked for", 206)


def _read_page(answer: Answer) -> tuple[list[dict[str, Any]], bool]:
    body = answer.body(MAX_PAGE_BYTES)
    kind = answer.content_type or "no content type"
    try:
        items = [] if answer.status == 204 else read_page(body)
    except ProtocolError as e:
        raise ProtocolError(f"{answer.url}: {e} ({kind})", answer.status) from None
    except ValueError:
        raise CutShortError(f"{answer.url}: the answer ({kind}) is cut short") from None
    return items, answer.headers.get("warning", "").startswith("299")


KEPT = 64
"""Services that a process remembers: a server for some credentials is one."""
_services: dict[tuple[Any, ...], Service] = {}
_lock = threading.Lock()


def _forget() -> None:
    # The lock may have been held by a thread that is not here; services renew themselves, and know what they knew.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def service(root: str, credentials: Credentials, allow_hosts: Iterable[str] = ()) -> Service:
    """Return the service at a URL for these credentials, the same one for all who ask in this process."""
    hosts = tuple(sorted(allow_hosts))
    key = (root, credentials.identity, hosts)
    with _lock:
        known = _services.pop(key) if key in _services else Service(root, credentials, hosts)
        _services[key] = known  # the most recently asked for is the last; who holds one that goes keeps it
        if len(_services) > KEPT:
            del _services[next(iter(_services))]
    return known
