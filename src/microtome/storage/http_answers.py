"""Answers over HTTP through the connections of fsspec's HTTP filesystem: redirects, time limits, refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from microtome.storage.dicomweb.address import origin, same_origin
from microtome.storage.dicomweb.words import words_of
from microtome.storage.filesystems import time_limit
from microtome.storage.refusals import Failure, RefusedError, of_status
from microtome.storage.retrying import retry_after

if TYPE_CHECKING:
    from aiohttp import ClientResponse

__all__ = ["HttpAnswer", "is_page", "mark_of", "mark_of_store", "plain_tag", "refused"]

MAX_REDIRECTS = 5
_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})+")
_MARKS = (
    "generation", "ETag", "etag", "md5Hash", "md5", "CRC", "mtime", "LastModified", "Last-Modified", "last_modified",
    "updated", "created", "date_time",
)  # fmt: skip
_PAGES = ("text/html", "application/xhtml+xml")
_WORDS = 4 << 10
"""Bytes of an error page that are read."""


class HttpAnswer:
    """An answer over HTTP: redirects are followed, to other origins without anything that the user gave for this one.

    Parameters
    ----------
    fs
        An HTTPFileSystem.
    method, url, headers
        Of the request.
    """

    def __init__(self, fs: Any, method: str, url: str, headers: Mapping[str, str]) -> None:
        self._fs, self._method, self._url, self._headers = fs, method, url, headers
        self._response: Any = None

    async def __aenter__(self) -> ClientResponse:
        import yarl

        fs, url = self._fs, self._url
        for _ in range(MAX_REDIRECTS + 1):
            # What is encoded already stays as it is: a signature may be of it.
            address = yarl.URL(url, encoded=fs.encoded or bool(_ENCODED.fullmatch(url)))
            options = {"timeout": time_limit(), **fs.kwargs, "allow_redirects": False}
            options["headers"] = {**fs.kwargs.get("headers", {}), **self._headers}
            session = await fs.set_session()
            response = await session.request(self._method, address, **options)
            self._response = response
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response  # type: ignore[no-any-return]
            response.release()
            target = urljoin(str(address), location)
            scheme = origin(target)[0]
            if scheme not in ("http", "https") or (scheme == "http" and url.startswith("https")):
                raise RefusedError(Failure("leads to what is no encrypted web server", status=response.status))
            if not same_origin(target, url):
                fs = type(fs)()
            url = target
        raise RefusedError(Failure("too many redirects", status=response.status))

    async def __aexit__(self, *_: object) -> None:
        self._response.release()  # which ends the connection if there is more to come


def mark_of(headers: Mapping[str, str], like: str = "") -> str:
    """Return what changes when a file changes: its ETag, else its time of modification, else nothing.

    To be compared with another mark, ``like``, it must be of the same kind.
    """
    if like:
        return headers.get("Last-Modified", "") if _is_date(like) else plain_tag(headers.get("ETag", ""))
    return plain_tag(headers.get("ETag", "")) or headers.get("Last-Modified", "")


def mark_of_store(info: Mapping[str, Any]) -> str:
    """Return what changes when a file changes, of what a filesystem says of it."""
    return plain_tag(next((str(info[key]) for key in _MARKS if info.get(key)), ""))


def _is_date(mark: str) -> bool:
    """Tell whether a mark is a time of modification, of which others may have the same."""
    return mark.endswith(" GMT")


def plain_tag(tag: str) -> str:
    """Return an ETag without what says that it is a weak one, and without quotes."""
    return tag.removeprefix("W/").strip('"')


async def refused(answer: ClientResponse) -> Failure:
    """Return the failure of an answer with a status that is none of success, with the server's words."""
    told = list(_told(answer))
    try:
        body = await answer.content.read(_WORDS)
    except Exception:  # the status says enough
        body = b""
    words = words_of(body, told, cut=len(body) == _WORDS)
    return of_status(answer.status, words, retry_after(answer.headers.get("Retry-After", "")))


def _told(answer: ClientResponse) -> Iterator[str]:
    """Yield what a server was told and might repeat."""
    request = answer.request_info
    yield from request.url.query.values()
    yield from (text for text in (request.url.user, request.url.password) if text)
    for name, value in request.headers.items():
        if name.lower() not in ("host", "accept", "accept-encoding", "range", "user-agent"):
            yield value
            yield value.rpartition(" ")[2]


def is_page(answer: ClientResponse) -> bool:
    """Tell whether an answer is a page for people."""
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _PAGES
