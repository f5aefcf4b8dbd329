"""QIDO-RS: searching studies, series and instances (PS3.18 10.6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from microtome.testing.dicomweb.archive import Archive, Instance
from microtome.testing.dicomweb.dialects import Dialect
from microtome.testing.dicomweb.dicomjson import BASE, without_binary
from microtome.testing.dicomweb.message import Refusal

__all__ = ["search"]

Item = dict[str, Any]

STUDY = [
    "00080005", "00080020", "00080030", "00080050", "00080090", "00100010", "00100020", "00100030",
    "00100040", "0020000D", "00200010",
]  # fmt: skip
SERIES = [
    "00080005", "00080060", "0008103E", "0020000E", "00200011", "00400244", "00400245",
]  # fmt: skip
INSTANCE = [
    "00080005", "00080016", "00080018", "00080060", "0020000D", "0020000E", "00200013", "00280008",
    "00280010", "00280011", "00280100",
]  # fmt: skip
MODALITIES, RETRIEVE, SYNTAX, STORED_SYNTAX = "00080061", "00081190", "00083002", "00020010"
STUDY_SERIES, STUDY_INSTANCES, SERIES_INSTANCES = "00201206", "00201208", "00201209"
_NO_FILTERS = {"includefield", "limit", "offset", "fuzzymatching", "accept"}


def search(
    archive: Archive,
    dialect: Dialect,
    level: str,
    study: str | None,
    series: str | None,
    query: dict[str, list[str]],
    page: int,
) -> tuple[list[Item], int]:
    """Search.

    Parameters
    ----------
    archive
        Where.
    dialect
        How.
    level
        "studies", "series" or "instances".
    study, series
        UIDs under which is searched.
    query
        Parameters of the request.
    page
        The most results at once.

    Returns
    -------
    tuple
        The results of this page, and how many come after them.
    """
    filters = _filters(query, dialect)
    fields, everything = _fields(query, dialect)
    offset, limit = _whole(query, "offset", 0), min(_whole(query, "limit", page), page)
    found = []
    for item, first in _items(archive, dialect, level, study, series):
        if all(_matches(item.get(tag) or first.get(tag), vr, values) for tag, vr, values in filters):
            found.append((item, first))
    results = []
    for item, first in found[offset : offset + limit]:
        more = first if everything else {tag: first[tag] for tag in fields if tag in first}
        out = dict(sorted((more | item).items()))
        results.append(out if dialect.binary else without_binary(out))
    return results, max(len(found) - offset - len(results), 0)


def _items(
    archive: Archive, dialect: Dialect, level: str, study: str | None, series: str | None
) -> Iterator[tuple[Item, Item]]:
    """What a result holds by default, and the header it comes from."""
    instances = archive.instances(study, series)
    if level == "instances":
        for i in instances:
            item = _of(i, INSTANCE + (STUDY if study is None else []) + (SERIES if series is None else []), i.location)
            if dialect.available_syntax:
                item[SYNTAX] = {"vr": "UI", "Value": [i.stored_syntax]}
            if dialect.stored_syntax:
                item[STORED_SYNTAX] = {"vr": "UI", "Value": [i.stored_syntax]}
            yield item, i.summary
        return
    key: Callable[[Instance], Any] = (lambda i: (i.study, i.series)) if level == "series" else (lambda i: i.study)
    groups: dict[Any, list[Instance]] = {}
    for i in instances:
        groups.setdefault(key(i), []).append(i)
    for group in groups.values():
        first = group[0]
        if level == "series":
            tags = SERIES + ["0020000D"] + (STUDY if study is None else [])
            item = _of(first, tags, f"studies/{first.study}/series/{first.series}")
            item[SERIES_INSTANCES] = _count(len(group))
        else:
            item = _of(first, STUDY, f"studies/{first.study}")
            modalities = sorted({i.first("Modality") or "" for i in group})
            item[MODALITIES] = {"vr": "CS", "Value": modalities}
            item[STUDY_SERIES] = _count(len({i.series for i in group}))
            item[STUDY_INSTANCES] = _count(len(group))
        yield item, first.summary


def _count(n: int) -> Item:
    return {"vr": "IS", "Value": [n]}


def _of(instance: Instance, tags: list[str], path: str) -> Item:
    item = {tag: instance.summary[tag] for tag in tags if tag in instance.summary}
    item[RETRIEVE] = {"vr": "UR", "Value": [f"{BASE}/{path}"]}
    return item


def _whole(query: dict[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [str(default)])[-1]
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Refusal(400, f"{name}={text[:40]!r} is no whole number")
    return int(text)


def _tag(name: str) -> str:
    """The tag of a keyword or of eight hexadecimal digits."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return name.upper()
    tag = tag_for_keyword(name)
    if tag is None:
        raise Refusal(400, f"{name[:64]!r} is neither the keyword of an attribute nor a tag")
    return f"{tag:08X}"


def _fields(query: dict[str, list[str]], dialect: Dialect) -> tuple[list[str], bool]:
    """Tags to include, and whether all are."""
    names = [name for value in query.get("includefield", ()) for name in value.split(",") if name]
    everything = "all" in names and dialect.include_all
    refused = dict(dialect.refused_fields)
    tags = [_tag(name) for name in names if name != "all"] if dialect.include_fields else []
    for tag in tags:
        if tag in refused:
            raise Refusal(400, refused[tag])
    return tags, everything and dialect.include_fields


def _filters(query: dict[str, list[str]], dialect: Dialect) -> list[tuple[str, str, list[str]]]:
    """(tag, VR, values) of which one has to match."""
    refused = dict(dialect.refused_filters)
    out = []
    for name, given in query.items():
        if name in _NO_FILTERS:
            continue
        tag = _tag(name)
        if tag in refused:
            raise Refusal(400, refused[tag])
        try:
            vr = dictionary_VR(int(tag, 16))
        except KeyError:
            vr = "UN"
        values = [v for value in given for v in (re.split(r"[,\\]", value) if vr == "UI" else [value])]
        if any(values):
            out.append((tag, vr, values))
    return out


def _matches(element: Item | None, vr: str, wanted: list[str]) -> bool:
    """Whether a value of an element is among those wanted (PS3.4 C.2.2.2)."""
    if element is None or "Value" not in element:
        return False
    for value in element["Value"]:
        if isinstance(value, dict):  # a person
            value = value.get("Alphabetic", "")
        if any(_matches_one(str(value), vr, text) for text in wanted):
            return True
    return False


def _matches_one(value: str, vr: str, text: str) -> bool:
    if vr in ("DA", "TM", "DT") and "-" in text:
        low, _, high = text.partition("-")
        # A bound without a time of the day includes that day.
        return (not low or value >= low) and (not high or value[: len(high)] <= high)
    if vr in ("UI", "DA", "TM", "DT"):
        return value == text
    if vr in ("IS", "DS", "US", "UL", "SS", "SL", "FL", "FD", "SV", "UV"):
        try:
            return float(value) == float(text)
        except ValueError:
            return False
    pattern = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in text)
    return re.fullmatch(pattern, value, re.DOTALL | (re.IGNORECASE if vr == "PN" else 0)) is not None
