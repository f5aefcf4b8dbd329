"""`find_slides`: which slides a DICOMweb server has."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microtome.errors import OptionError, RequestError

if TYPE_CHECKING:
    import pandas as pd

    from microtome.storage.credentials import Credentials
    from microtome.storage.dicomweb.address import Address
    from microtome.storage.dicomweb.service import Service

__all__ = ["find_slides"]

_ESCAPED = re.compile(r"[^0-9A-Za-z_.~!$'()*,/:;?@-]")

_COLUMNS = (
    "PatientID", "AccessionNumber", "StudyDate", "StudyDescription", "SeriesDescription", "ContainerIdentifier",
    "NumberOfSeriesRelatedInstances",
)  # fmt: skip


def find_slides(
    url: str,
    *,
    credentials: Credentials | Callable[[], Mapping[str, str]] | None = None,
    allow_hosts: Sequence[str] = (),
    limit: int | None = None,
    **attributes: str,
) -> pd.DataFrame:
    """List the slides of a DICOMweb server, by a search over its series of modality SM (QIDO-RS, PS3.18 10.6).

    Parameters
    ----------
    url
        Of the service (``https://host/dicomWeb``), or of a study.
    credentials, allow_hosts
        See `microtome.open_slide`.
    limit
        The most slides to list.
    **attributes
        What must agree, by DICOM keyword: ``AccessionNumber="A-17"``, ``PatientID="P1"``, ``StudyDate="20260101-"``.
        Text may hold ``*`` and ``?``, dates may be ranges. Values are in no error and no log.

    Returns
    -------
    pandas.DataFrame
        One row a series: ``url``, which `microtome.open_slide` takes, ``study_uid``, ``series_uid``, then attributes by
        keyword: those searched for, and PatientID, AccessionNumber, StudyDate, StudyDescription, SeriesDescription,
        ContainerIdentifier, NumberOfSeriesRelatedInstances. What a server does not tell is empty.

    Raises
    ------
    OptionError
        A keyword that DICOM does not have, or a limit below zero.
    RequestError
        The server cannot be reached, or refuses.
    """
    import pandas as pd

    from microtome.storage.credentials import resolve
    from microtome.storage.dicomweb.address import parse_address
    from microtome.storage.dicomweb.service import service

    if limit is not None and limit < 0:
        raise OptionError(f"limit={limit}: it is the most slides to list, or None")
    tags = {keyword: _tag(keyword) for keyword in dict.fromkeys((*attributes, *_COLUMNS))}
    wanted = {keyword: str(value).strip() for keyword, value in ({"Modality": "SM"} | attributes).items()}
    address = parse_address(url)
    server = service(address.root, resolve(credentials), allow_hosts)
    path = f"studies/{address.study}/series" if address.study else "series"
    rows = []
    for item in _search(server, path, wanted, tags) if limit != 0 else ():
        row = _row(item, address, tags)
        # Servers exist that pass over what they cannot search for: nobody shall get another patient's slide.
        if row and all(_agrees(item, keyword, value) for keyword, value in wanted.items()):
            rows.append(row)
        if len(rows) == limit:
            break
    return pd.DataFrame(rows, columns=["url", "study_uid", "series_uid", *tags])


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


def _tag(keyword: str) -> str:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise OptionError(f"{keyword} is no keyword of DICOM; attributes are named as in PatientID, AccessionNumber")
    return f"{tag:08X}"


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


def _agrees(item: dict[str, Any], keyword: str, wanted: str) -> bool:
    """Tell whether a series is what was asked for (PS3.4 C.2.2.2); what is not told of it is the server's to know."""
    from pydicom.datadict import dictionary_VR

    from microtome.storage.dicomweb.qido import values

    found = [text.strip(" \0") for text in values(item, _tag(keyword))]
    found = [text for text in found if text]
    if not found or not wanted:
        return True
    kind = dictionary_VR(keyword)
    return any(_matches(text, wanted, kind) for text in found)


def _matches(found: str, wanted: str, kind: str) -> bool:
    if kind == "UI":
        return found in re.split(r"[\\,]", wanted)
    if kind in ("DA", "DT", "TM") and "-" in wanted:
        low, _, high = wanted.partition("-")
        return found[: len(low)] >= low and (not high or found[: len(high)] <= high)
    if kind in ("DS", "IS", "SS", "US", "SL", "UL", "FL", "FD"):
        try:
            return float(found) == float(wanted)
        except ValueError:
            return False
    # Names and codes in capitals or not: servers differ, and have already chosen.
    pattern = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in wanted)
    return re.fullmatch(pattern, found, re.DOTALL | re.IGNORECASE) is not None
