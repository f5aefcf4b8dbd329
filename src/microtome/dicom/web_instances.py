"""From the URL of a study, series or instance on a DICOMweb server to the instances of its slides."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microtome.dicom.header import make_instance
from microtome.dicom.instance import Instance
from microtome.dicom.json_stream import JsonInstance, read_json_instances
from microtome.dicom.web_frames import WebOptions, WebRecord
from microtome.errors import (
    AmbiguousSlideError,
    CorruptHeaderError,
    NotOnServerError,
    OpenError,
    OptionError,
    RequestError,
    SlideNotFoundError,
)
from microtome.storage.dicomweb.address import UID, Address
from microtome.storage.dicomweb.service import PAGE, Service, value

__all__ = ["Metadata", "read_web_instances"]

Metadata = str | bytes | os.PathLike[str] | Sequence[Mapping[str, Any]]

_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_AVAILABLE_SYNTAX, _SYNTAX = "00083002", "00020010"
_PALETTES = tuple(
    f"{colour}PaletteColorLookupTable{what}" for colour in ("Red", "Green", "Blue") for what in ("Data", "Descriptor")
) + tuple(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue"))
MAX_SERIES = 32
"""Series of a study whose metadata are read to find a pyramid."""


def read_web_instances(
    service: Service,
    address: Address,
    *,
    series: str | None = None,
    metadata: Metadata | None = None,
    options: WebOptions = WebOptions(),  # noqa: B008 (frozen)
) -> Iterator[tuple[str, Instance | OpenError]]:
    """Yield URL and instance, or what is wrong with it, of each instance at an address.

    A series costs one request, a study one more; a series of unknown transfer syntax two. Pixels are not asked for.

    Parameters
    ----------
    service, address
        Where to look.
    series
        Series or pyramid that is wanted, if the user said.
    metadata
        DICOM JSON of the instances, in place of the server's.
    options
        How frames will be fetched.

    Raises
    ------
    SlideNotFoundError
        Nothing is there.
    AmbiguousSlideError
        A study holds several series of slides, and it was not said which is wanted.
    RequestError
        The server cannot be asked, or refuses.
    """
    if metadata is not None:
        found = [i for i in _given(metadata) if _belongs(i, address)]
        if not found:
            raise OptionError(f"{address.url}: metadata= holds no instance of what this URL names")
    else:
        try:
            found = [i for place in _series(service, address, series) for i in _fetch(service, place)]
        except NotOnServerError as e:
            why = str(e).removeprefix(f"{address.url}/metadata: ")
            raise SlideNotFoundError(f"{address.url}: the server does not have it ({why})") from None
        if not found:
            raise SlideNotFoundError(f"{address.url}: the server has no instances there")
        _learn_transfer_syntaxes(service, address, found)
    for item in found:
        place = _place(item, address)
        try:
            yield place.url, _instance(service, place, item, options)
        except OpenError as e:
            yield place.url, e


def _instance(service: Service, place: Address, item: JsonInstance, options: WebOptions) -> Instance:
    if not place.instance:
        raise CorruptHeaderError(f"{place.url}: metadata without a SOP Instance UID")
    record = WebRecord(service, place, item.attributes, item.positions, _transfer_syntax(item.attributes), options)
    ds = record.dataset(_PALETTES if value(item.attributes, "00280004") == "PALETTE COLOR" else ())

    def positions(frames: int) -> Any:
        if item.positions is not None and len(item.positions.row) != frames:
            raise CorruptHeaderError(
                f"{place.url}: {frames} frames are stated, and functional groups for {len(item.positions.row)}"
            )
        return item.positions

    return make_instance(ds, record, record.transfer_syntax, positions)


def _transfer_syntax(attributes: Mapping[str, Any]) -> str:
    """Return the transfer syntax that is stored, where a server states that one alone."""
    for tag in (_SYNTAX, _AVAILABLE_SYNTAX):
        element = attributes.get(tag)
        values = element.get("Value") if isinstance(element, Mapping) else None
        if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str):
            return values[0].strip()
    return ""


def _learn_transfer_syntaxes(service: Service, address: Address, found: Sequence[JsonInstance]) -> None:
    """Add transfer syntaxes, where metadata state none, from a search: servers that tell them tell them there.

    Done for a series only, where it is the second request. Without it they are known from the first frame on.
    """
    unknown = {value(i.attributes, _INSTANCE): i.attributes for i in found if not _transfer_syntax(i.attributes)}
    if not address.series or not unknown or service.capabilities.syntaxes is False:
        return
    try:
        items = list(service.search(f"{replace(address, instance='').path}/instances", limit=PAGE))
    except RequestError:
        items = []
    stated = {value(item, _INSTANCE): syntax for item in items if (syntax := _transfer_syntax(item))}
    service.capabilities.syntaxes = bool(stated)
    for uid in unknown.keys() & stated.keys():
        unknown[uid][_AVAILABLE_SYNTAX] = {"vr": "UI", "Value": [stated[uid]]}


def _place(item: JsonInstance, address: Address) -> Address:
    def uid(tag: str, default: str) -> str:
        text = value(item.attributes, tag).strip()
        return text if re.fullmatch(UID, text) else default

    return Address(
        address.root,
        uid(_STUDY, address.study),
        uid(_SERIES, address.series),
        uid(_INSTANCE, address.instance),
    )


def _belongs(item: JsonInstance, address: Address) -> bool:
    """Tell whether an instance is below an address; what it does not state, it agrees with."""
    place = _place(item, address)
    pairs = ((address.study, place.study), (address.series, place.series), (address.instance, place.instance))
    return all(not wanted or wanted == stated for wanted, stated in pairs)


def _given(metadata: Metadata) -> list[JsonInstance]:
    """Read metadata that the user has: text, a file, or objects."""
    if isinstance(metadata, str) and metadata.lstrip("\ufeff \t\r\n")[:1] in ("[", "{"):
        data = metadata.encode()
    elif isinstance(metadata, bytes):
        data = metadata
    elif isinstance(metadata, str | os.PathLike):
        try:
            data = Path(metadata).read_bytes()
        except OSError as e:
            raise OptionError(f"metadata={os.fspath(metadata)!r}: cannot be read ({e.strerror or e})") from None
    else:
        try:
            data = json.dumps(list(metadata)).encode()
        except (TypeError, ValueError):
            raise OptionError(
                "metadata= is DICOM JSON: the text that slide.wsi.to_json() returns, a file with it, or its objects"
            ) from None
    return list(read_json_instances([data], "metadata="))


def _series(service: Service, address: Address, wanted: str | None) -> list[Address]:
    """Return the series to look at: the one that is named, or the only ones of slides in the study."""
    if address.series:
        return [address]
    path = f"{address.path}/series" if address.study else "series"
    query = [("Modality", "SM")] if not address.study else []
    query += [("includefield", field) for field in ("SeriesDescription", "NumberOfSeriesRelatedInstances")]
    try:
        found = list(service.search(path, query, limit=PAGE))
    except RequestError as e:
        if e.status not in (400, 405, 501) or not address.study:
            raise
        return [address]  # no search here; the metadata of the study tell as much
    slides = [item for item in found if value(item, _MODALITY) in ("SM", "")]
    places = [Address(address.root, value(i, _STUDY) or address.study, value(i, _SERIES)) for i in slides]
    named = [place for place in places if place.series == wanted]
    if named or len(places) < 2:
        return named or places
    if wanted is not None:
        return places[:MAX_SERIES]
    lines = "".join(
        f"\n  {place.series}: {value(item, '0008103E') or 'no description'}, "
        f"{value(item, '00201209') or 'unknown number of'} instances"
        for place, item in list(zip(places, slides, strict=True))[:20]
    )
    raise AmbiguousSlideError(
        f"{address.url}: holds {len(places)} series of slides; choose one with series=:{lines}",
        tuple(place.series for place in places),
    )


def _fetch(service: Service, address: Address) -> list[JsonInstance]:
    """Return the metadata of all instances at an address: in one answer, else in one an instance."""

    def read(chunks: Iterable[bytes], where: str) -> list[JsonInstance]:
        return list(read_json_instances(chunks, where))

    try:
        return service.documents(f"{address.path}/metadata", read)
    except RequestError as e:
        # Servers exist that know only the metadata of instances, or give up on those of many.
        if address.instance or e.status not in (400, 403, 404, 405, 406, 413, 500, 501, 503, 504):
            raise
        failure = e
    try:
        items = list(service.search(f"{address.path}/instances"))
    except RequestError:
        items = []
    paths = [
        address.child(series=value(item, _SERIES), instance=uid).path
        for item in items
        if (uid := value(item, _INSTANCE))
    ]
    if not paths:
        raise failure
    answers = service.workers.parallel(lambda path: service.documents(f"{path}/metadata", read), paths)
    return [instance for answer in answers for instance in answer]
