"""Searches by QIDO-RS (PS3.18 10.6), page by page, and what an attribute of DICOM JSON holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from microtome.errors import ProtocolError, RequestError

if TYPE_CHECKING:
    from microtome.storage.dicomweb.service import Capabilities

__all__ = ["PAGE", "Pairs", "read_page", "search", "value", "values"]

Item = dict[str, Any]
Pairs = Sequence[tuple[str, str]]

PAGE = 100
"""Results asked for in one page of a search."""
EVERYTHING = 10_000
"""Results asked for where a server knows no further pages."""
MAX_PAGES = 10_000
_NO_SUCH_PAGE = (400, 404, 416, 501)


def search(
    ask: Callable[[Pairs], tuple[list[Item], bool]], query: Pairs, limit: int | None, capabilities: Capabilities
) -> Iterator[Item]:
    """Yield the results of a search, each once.

    A page that is shorter than asked for may be the last, or all that the server sends at once: not all of them say so.
    It is taken for the last where the server is known to send longer ones. Else the next is asked for, unless the
    ``limit`` is one page at most: then one request is all that the caller wants to spend.

    Parameters
    ----------
    ask
        Returns a page, and whether the server says that there are more.
    query
        Attributes and their values, and ``includefield``.
    limit
        The most results.
    capabilities
        Of the server; what is learned of its pages is noted there.

    Raises
    ------
    ProtocolError
        There is no end of pages.
    """
    seen: set[str] = set()
    offset, size, more = 0, PAGE, True
    for _ in range(MAX_PAGES):
        left = None if limit is None else limit - len(seen)
        if left is not None and left < 1:
            return
        asked = size if left is None or size == EVERYTHING else min(size, left)
        paging = [("limit", str(asked))] + ([("offset", str(offset))] if offset else [])
        try:
            found, more = ask([*query, *paging])
            if not found:
                return
        except RequestError as e:
            if not offset or e.status not in _NO_SUCH_PAGE:
                raise
            found = []
        fresh: dict[str, Item] = {}
        for item in found:
            mark = _mark(item)
            if mark not in seen:
                fresh.setdefault(mark, item)
        yield from islice(fresh.values(), left)
        seen |= fresh.keys()
        if not fresh:  # offset means nothing to this server, or a page behind the last one is an error
            if size == EVERYTHING or len(found) > asked:
                return
            offset, size = 0, EVERYTHING
            continue
        offset += len(found)
        last = len(found) < min(asked, capabilities.page) or (limit is not None and limit <= PAGE)
        capabilities.page = max(capabilities.page, len(found))
        if last and not more:
            return
    raise ProtocolError(f"the server still sends results after {MAX_PAGES} pages of a search")


def read_page(body: bytes) -> list[Item]:
    """Take the results of a page apart.

    Raises
    ------
    ValueError
        It is JSON, and cut short.
    ProtocolError
        It is something else.
    """
    text = body.strip(b"\xef\xbb\xbf \t\r\n")
    if not text:
        return []
    if text[:1] not in b"[{":
        raise ProtocolError("the answer is no JSON")
    try:
        found = json.loads(text)
    except RecursionError:
        raise ProtocolError("the answer is nested too deep") from None
    items = found if isinstance(found, list) else [found]
    if not all(isinstance(item, dict) for item in items):
        raise ProtocolError("the answer is JSON, and no list of DICOM attributes")
    return items


def _mark(item: Item) -> str:
    """Return what tells a result from others: the UIDs of its instance, series and study."""
    uids = [value(item, tag) for tag in ("00080018", "0020000E", "0020000D")]
    return "/".join(uids) if any(uids) else json.dumps(item, sort_keys=True)


def values(item: Item, tag: str) -> list[str]:
    """Return the values of an attribute of DICOM JSON as text: names of persons as written in Latin letters."""
    element = item.get(tag)
    held = element.get("Value") if isinstance(element, dict) else None
    texts = [v.get("Alphabetic") if isinstance(v, dict) else v for v in held] if isinstance(held, list) else []
    return [str(text) for text in texts if text is not None]


def value(item: Item, tag: str) -> str:
    """Return the first value of an attribute of DICOM JSON as text; empty where there is none."""
    return next(iter(values(item, tag)), "")
