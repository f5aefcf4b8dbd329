"""Files and folders of a plain web server: what it says of a URL, and the links of the pages that list folders."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from microtome.errors import NotOnServerError, ProtocolError
from microtome.storage.http_answers import HttpAnswer, is_page, mark_of, refused
from microtome.storage.refusals import Failure, RefusedError, of_status
from microtome.storage.retrying import retry_after

__all__ = ["About", "about", "links", "page"]

LONGEST_PAGE = 64 << 20
"""Bytes of a page of links."""
_TOTAL = re.compile(r"bytes 0-\d+/(\d{1,19})")


class About(NamedTuple):
    """What a web server says of a URL.

    Parameters
    ----------
    url
        Where it led.
    size
        In bytes; None if it does not say.
    mark
        ETag, else time of modification; empty if it says neither.
    is_page
        Whether it is a page for people.
    """

    url: str
    size: int | None
    mark: str
    is_page: bool


def about(fs: Any, url: str) -> About:
    """Ask about a URL by HEAD, and where that is refused by GET of a byte: a signed URL may be good for GET only.

    Raises
    ------
    RefusedError
        The server refuses.
    Exception
        Whatever the filesystem raises.
    """
    from fsspec.asyn import sync

    found: About = sync(fs.loop, _about, fs, url)
    return found


async def _about(fs: Any, url: str) -> About:
    async with HttpAnswer(fs, "HEAD", url, {"Accept-Encoding": "identity"}) as answer:
        length = answer.headers.get("Content-Length", "")
        if answer.status == 200 and (length.isdecimal() or is_page(answer)):
            size = int(length) if length.isdecimal() else None
            return About(str(answer.url), size, mark_of(answer.headers), is_page(answer))
        if answer.status in (404, 410, 429, 503):
            raise RefusedError(of_status(answer.status, wait=retry_after(answer.headers.get("Retry-After", ""))))
    async with HttpAnswer(fs, "GET", url, {"Range": "bytes=0-0", "Accept-Encoding": "identity"}) as answer:
        if answer.status == 416:  # there is no first byte
            return About(str(answer.url), 0, mark_of(answer.headers), False)
        if answer.status not in (200, 206):
            raise RefusedError(await refused(answer))
        found = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
        length = found[1] if found else answer.headers.get("Content-Length", "") if answer.status == 200 else ""
        size = int(length) if length.isdecimal() else None
        return About(str(answer.url), size, mark_of(answer.headers), is_page(answer))


def page(fs: Any, url: str) -> str:
    """Return a page that lists a folder.

    Raises
    ------
    RefusedError
        There is none.
    Exception
        Whatever the filesystem raises.
    """
    from fsspec.asyn import sync

    text: str = sync(fs.loop, _page, fs, url)
    return text


async def _page(fs: Any, url: str) -> str:
    async with HttpAnswer(fs, "GET", url, {}) as answer:
        if answer.status != 200:
            raise RefusedError(await refused(answer))
        if not is_page(answer):
            raise RefusedError(Failure("is no page that lists a folder", kind=NotOnServerError))
        data = bytearray()
        async for piece in answer.content.iter_any():
            data += piece
            if len(data) > LONGEST_PAGE:
                raise RefusedError(Failure("the page that lists the folder has no end", kind=ProtocolError))
        return data.decode("utf-8", "replace")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def links(text: str, url: str) -> list[str]:
    """Return the URLs of what is in a folder, in order; those of folders have a path that ends with a slash.

    Parameters
    ----------
    text
        The page that lists it.
    url
        Of the folder; its path ends with a slash. A query, such as a signature, is put to each link.
    """
    parser = _Links()
    parser.feed(text)
    folder = urlsplit(url)
    found = set()
    for link in parser.found:
        try:
            target = urlsplit(urljoin(url, link.strip()))
        except ValueError:
            continue
        if target[:2] != folder[:2] or not target.path.startswith(folder.path):
            continue
        inside = target.path.removeprefix(folder.path)
        name = inside.rstrip("/")
        # Links such as ?C=M;O=D sort the page anew.
        if name and "/" not in name and not unquote(name).startswith(".") and not target.query:
            found.add(urlunsplit((*target[:3], folder.query, "")))
    return sorted(found)
