"""`find_slides`: which slides a DICOMweb server has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microtome.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

    from microtome.storage.credentials import Credentials

__all__ = ["find_slides"]

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
        Text may hold ``*`` and ``?``. Values are in no error and no log.

    Returns
    -------
    pandas.DataFrame
        One row a series: ``url``, which `microtome.open_slide` takes, ``study_uid``, ``series_uid``, then attributes by
        keyword: those searched for, and PatientID, AccessionNumber, StudyDate, StudyDescription, SeriesDescription,
        ContainerIdentifier, NumberOfSeriesRelatedInstances. What a server does not tell is empty.

    Raises
    ------
    OptionError
        A keyword that DICOM does not have.
    RequestError
        The server cannot be reached, or refuses.
    """
    import pandas as pd

    from microtome.storage.credentials import resolve
    from microtome.storage.dicomweb.address import parse_address
    from microtome.storage.dicomweb.service import service

    tags = {keyword: _tag(keyword) for keyword in dict.fromkeys((*attributes, *_COLUMNS))}
    address = parse_address(url)
    server = service(address.root, resolve(credentials), allow_hosts)
    query = [("Modality", "SM"), *((keyword, str(wanted)) for keyword, wanted in attributes.items())]
    query += [("includefield", keyword) for keyword in tags if keyword not in attributes]
    path = f"{address.path.split('/series')[0]}/series" if address.study else "series"
    rows: list[dict[str, Any]] = []
    for item in server.search(path, query):
        row = _row(item, address.root, address.study, tags)
        # Servers exist that pass over what they cannot search for: nobody shall get another patient's slide.
        if row and all(_agrees(row[keyword], str(wanted)) for keyword, wanted in attributes.items()):
            rows.append(row)
        if limit is not None and len(rows) >= limit:
            break
    columns = ["url", "study_uid", "series_uid", *tags]
    return pd.DataFrame(rows, columns=columns)


def _tag(keyword: str) -> str:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise OptionError(f"{keyword} is no keyword of DICOM; attributes are named as in PatientID, AccessionNumber")
    return f"{tag:08X}"


def _row(item: dict[str, Any], root: str, study: str, tags: Mapping[str, str]) -> dict[str, Any]:
    from microtome.storage.dicomweb.address import Address
    from microtome.storage.dicomweb.service import value

    if value(item, "00080060") not in ("SM", ""):
        return {}
    place = Address(root, value(item, "0020000D") or study, value(item, "0020000E"))
    if not place.study or not place.series:
        return {}
    known = {keyword: value(item, tag) for keyword, tag in tags.items()}
    return {"url": place.url, "study_uid": place.study, "series_uid": place.series, **known}


def _agrees(found: str, wanted: str) -> bool:
    """Tell whether a value is what was asked for; one that is not told, or asked for by a pattern, is the server's."""
    return not found or any(c in wanted for c in "*?-\\,") or found.strip().casefold() == wanted.strip().casefold()
