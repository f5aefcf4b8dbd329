"""Slides of a DICOMweb server: a search over its series (QIDO-RS, PS3.18 10.6)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microtome.errors import RequestError
from microtome.finding.matching import agree, check_keyword

if TYPE_CHECKING:
    from microtome.storage.credentials import Credentials
    from microtome.storage.dicomweb.address import Address
    from microtome.storage.dicomweb.service import Service

__all__ = ["search_server"]

_ESCAPED = re.compile(r"[^0-9A-Za-z_.~!$'()*,/:;?@-]")


def search_server(
    url: str,
    credentials: Credentials,
    allow_hosts: Sequence[str],
    limit: int | None,
    wanted: Mapping[str, str],
    tags: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row for each series that agrees.

    Parameters
    ----------
    url
        Of a service, a study or a series.
    credentials, allow_hosts, limit
        See `microtome.find_slides`.
    wanted
        What must agree, by keyword.
    tags
        The attributes to tell, by keyword.

    Raises
    ------
    RequestError
        The server cannot be reached, or refuses.
    """
    from microtome.storage.dicomweb.address import parse_address
    from microtome.storage.dicomweb.qido import values
    from microtome.storage.dicomweb.service import service

    address = parse_address(url)
    server = service(address.root, credentials, allow_hosts)
    path = f"studies/{address.study}/series" if address.study else "series"
    wanted = {"Modality": "SM"} | dict(wanted)
    known = {keyword: check_keyword(keyword) for keyword in wanted}
    rows: list[dict[str, Any]] = []
    for item in _search(server, path, wanted, tags) if limit != 0 else ():
        row = _row(item, address, tags)
        # Servers exist that pass over what they cannot search for: nobody shall get another patient's slide.
        agrees = (agree(values(item, known[k]), k, text, all_told=False) for k, text in wanted.items())
        if row and all(agrees):
            rows.append(row)
        if len(rows) == limit:
            break
    return rows


def _search(server: Service, path: str, wanted: Mapping[str, str], tags: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    found = False
    for item in _ask(server, path, wanted, tags):
        found = True
        yield item
    # Servers exist (Orthanc) that take the escapes of a URL literally, and so find nothing that has a space or a ^ in
    # it: they are asked for any character in its place. What they find is looked at more closely, as always.
    loose = {keyword: text if "\\" in text else _ESCAPED.sub("?", text) for keyword, text in wanted.items()}
    if not found and loose != wanted:
        with contextlib.suppress(RequestError):  # one that knows no such pattern had nothing the first time
            yield from _ask(server, path, loose, tags)


def _ask(server: Service, path: str, wanted: Mapping[str, str], tags: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Search, with what is to be told of each series; servers that know none of it tell what they do."""
    filters = [*wanted.items()]
    try:
        yield from server.search(path, [*filters, *(("includefield", keyword) for keyword in tags)])
    except RequestError as e:
        if e.status != 400:
            raise
        refusal = e
    else:
        return
    try:
        yield from server.search(path, filters)
    except RequestError:
        raise refusal from None


def _row(item: dict[str, Any], address: Address, tags: Mapping[str, str]) -> dict[str, Any]:
    """Return what is told of a series; nothing where it cannot be opened."""
    from microtome.storage.dicomweb.address import UID, Address
    from microtome.storage.dicomweb.service import value

    study = value(item, "0020000D").strip(" \0") or address.study
    series = value(item, "0020000E").strip(" \0")
    if not (re.fullmatch(UID, study) and re.fullmatch(UID, series)) or address.series not in ("", series):
        return {}
    known = {keyword: value(item, tag) for keyword, tag in tags.items()}
    return {"url": Address(address.root, study, series).url, "study_uid": study, "series_uid": series, **known}
