"""`find_slides`: a table of the slides that are somewhere, whatever it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microtome.errors import NotOnServerError, OptionError, SlideNotFoundError

if TYPE_CHECKING:
    import pandas as pd

    from microtome.storage import Target
    from microtome.storage.credentials import Credentials

__all__ = ["find_slides"]

_COLUMNS = (
    "PatientID", "AccessionNumber", "StudyDate", "StudyDescription", "SeriesDescription", "ContainerIdentifier",
)  # fmt: skip
_COUNT = "NumberOfSeriesRelatedInstances"
# Servers answer these (PS3.4 C.3.4, PS3.18 10.6.3), and no file holds them.
_ONLY_SERVERS = re.compile(
    r"NumberOf\w+Related\w+|ModalitiesInStudy|SOPClassesInStudy|InstanceAvailability|RetrieveURL"
)
_PLAIN_WEB = re.compile(r"https?://", re.IGNORECASE)
_ONLY_FILES = re.compile(r"\*|(?:/|\.[A-Za-z][A-Za-z0-9]{1,4})\?")
# An index page, or a file.
_MAY_BE_FILES = re.compile(r"(?:/|\.[A-Za-z][A-Za-z0-9]{1,4})$")


def find_slides(
    url: Target,
    *,
    storage_options: Mapping[str, Any] | None = None,
    credentials: Credentials | Callable[[], Mapping[str, str]] | None = None,
    allow_hosts: Sequence[str] = (),
    limit: int | None = None,
    progress: bool = False,
    **attributes: str,
) -> pd.DataFrame:
    """List the slides of a DICOMweb server, a bucket, an archive or a folder; no pixel is read.

    A server is asked, by a search over its series of modality SM (QIDO-RS, PS3.18 10.6). Of files the headers are read:
    all below the folder, ``io_threads`` of them (see `microtome.config`) at a time.

    Parameters
    ----------
    url
        Of a DICOMweb service (``https://host/dicomWeb``), or of a study. Or a folder (to any depth), a file, a glob, or
        any of these as a URL that fsspec knows: ``gs://bucket/prefix/``. Or a list of these. A URL such as
        ``https://host/slides/`` may be either; it is taken for a page of links if no DICOMweb service answers there, or
        if ``storage_options`` are given.
    storage_options
        For the fsspec filesystem of a URL; see `microtome.open_slide`.
    credentials, allow_hosts
        For a DICOMweb server; see `microtome.open_slide`.
    limit
        The most slides to list. All files are looked at all the same, for those of one slide may be anywhere.
    progress
        Whether to show on a terminal or in a notebook how many files have been read.
    **attributes
        What must agree, by DICOM keyword: ``AccessionNumber="A-17"``, ``PatientID="P1"``, ``StudyDate="20260101-"``.
        Text may hold ``*`` and ``?``, dates may be ranges. Values are in no error and no log.

    Returns
    -------
    pandas.DataFrame
        One row a slide: ``url``, which `microtome.open_slide` takes, ``study_uid``, ``series_uid``, then attributes by
        keyword: those searched for, and PatientID, AccessionNumber, StudyDate, StudyDescription, SeriesDescription,
        ContainerIdentifier. What is not told is empty.

        Of a server a slide is a series, and there is NumberOfSeriesRelatedInstances. Of files ``url`` is the smallest
        folder that holds those of the slide, or the file where it is one, and there are ``series``, what `open_slide`
        needs as well where the folder holds several slides, else empty; ``rows``, ``columns`` and ``spacing`` (between
        rows, in mm; NaN where it is not stated) of the finest level; ``levels``, ``instances`` and ``bytes``. Series of
        labels and overviews alone are no slides.

    Raises
    ------
    OptionError
        A keyword that DICOM does not have, a limit below zero, or an option that has no meaning here.
    SlideNotFoundError
        Nothing is there: no file at all. Where there are files, and no slides among them, the table is empty.
    RequestError
        The server cannot be reached, or refuses.

    Warns
    -----
    IncompleteSlideWarning
        Files cannot be read, or slides cannot be told from others, and are left out.
    """
    import pandas as pd

    from microtome.finding.folders import MEASURES, find_in_files
    from microtome.finding.matching import check_keyword
    from microtome.finding.servers import search_server
    from microtome.storage.credentials import resolve
    from microtome.storage.listing import normalize

    if limit is not None and limit < 0:
        raise OptionError(f"limit={limit}: it is the most slides to list, or None")
    tags = {keyword: check_keyword(keyword) for keyword in dict.fromkeys((*attributes, *_COLUMNS, _COUNT))}
    wanted = {keyword: str(value).strip() for keyword, value in attributes.items()}
    stores = dict(storage_options or {})
    allow_hosts = (*allow_hosts, *stores.pop("allow_hosts", ()))
    given = stores.pop("credentials", None) if credentials is None else credentials
    kinds = _kinds(normalize(url), stores, for_web=given is not None or bool(allow_hosts))
    files = [name for name, kind in kinds.items() if kind == "files"]
    rows: list[dict[str, Any]] = []
    searched = False
    refusal = None
    nothing_there = False
    for name in (name for name, kind in kinds.items() if kind != "files"):
        left = None if limit is None else limit - len(rows)
        try:
            rows += search_server(name, resolve(given), allow_hosts, left, wanted, tags)
            searched = True
        except NotOnServerError as e:
            if kinds[name] == "web":
                raise
            refusal = e
            files.append(name)
    keywords = [keyword for keyword in tags if keyword != _COUNT]
    if files:
        _check_files_tell(attributes)
        left = None if limit is None else limit - len(rows)
        try:
            rows += find_in_files(files, stores, left, wanted, keywords, progress)
        except SlideNotFoundError:
            if refusal is None or len(files) > 1:
                raise
            nothing_there = True
    if nothing_there and refusal is not None:
        raise refusal
    columns = ["url", "study_uid", "series_uid", *(tags if searched or not files else keywords)]
    table = pd.DataFrame(rows, columns=[*columns, *(MEASURES if files else ())])
    if searched and files:
        table[["series", _COUNT]] = table[["series", _COUNT]].fillna("")
    return table


def _kinds(names: Sequence[str], stores: Mapping[str, Any], *, for_web: bool) -> dict[str, str]:
    """Return what each name is of: the ``"web"``, a DICOMweb service; ``"files"``; or ``"either"``.

    Raises
    ------
    OptionError
        Options were given that have a meaning for none.
    """
    from microtome.storage.dicomweb.address import is_dicomweb

    kinds = {}
    for name in names:
        plain = not is_dicomweb(name)
        if plain and (stores or not _PLAIN_WEB.match(name) or _ONLY_FILES.search(name)):
            kinds[name] = "files"
        else:
            kinds[name] = "either" if plain and not for_web and _MAY_BE_FILES.search(name) else "web"
    if for_web and set(kinds.values()) == {"files"}:
        raise OptionError(
            "credentials= and allow_hosts= are for DICOMweb servers; how other stores are reached is said by "
            "storage_options="
        )
    if stores and "files" not in kinds.values():
        raise OptionError(
            f"storage_options {', '.join(map(repr, sorted(stores)))} have no meaning for a DICOMweb server: there is "
            "'allow_hosts'; credentials are passed as credentials="
        )
    return kinds


def _check_files_tell(attributes: Mapping[str, str]) -> None:
    for keyword in attributes:
        if _ONLY_SERVERS.fullmatch(keyword):
            raise OptionError(
                f"{keyword} is told by servers only, no file holds it; the table of files has 'instances'"
            )
