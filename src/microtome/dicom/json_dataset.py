"""From the attributes of an instance in DICOM JSON (PS3.18 F.2) to a pydicom data set.

Servers write what pydicom refuses to read, and one such element must not cost the slide: it is left out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from microtome.dicom.dataset import lenient
from microtome.dicom.elements import MAX_DEPTH
from microtome.errors import CorruptHeaderError, OptionError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["dataset_from_json"]

_TAG = re.compile("[0-9A-Fa-f]{8}")


def dataset_from_json(
    attributes: dict[str, Any],
    where: str,
    fetch: Callable[[str], bytes] | None = None,
    bulk: Collection[str] = (),
) -> Dataset:
    """Return the attributes of an instance as a pydicom data set.

    An element that makes no sense is left out, and nothing else with it: a value that does not fit its value
    representation, a key that is no tag, anything of the groups 0000 and 0002. A value representation that is missing,
    does not exist or takes a sequence for something else is looked up in the dictionary of pydicom.

    Parameters
    ----------
    attributes
        An object of DICOM JSON (PS3.18 F.2): tag -> ``{"vr": ..., "Value": [...]}``.
    where
        Names the document in errors.
    fetch
        Returns the bulk data of a URI as stated; called once a URI, before anything is made of the attributes. What it
        raises passes through.
    bulk
        Keywords or tags of the elements whose bulk data are fetched, at any depth: "ICCProfile". All others that refer
        to bulk data have an empty value.

    Raises
    ------
    CorruptHeaderError
        Sequences are nested too deeply.
    OptionError
        One of ``bulk`` is neither a keyword nor a tag.
    """
    wanted = frozenset(map(_tag, bulk))
    fetched: dict[str, bytes] = {}
    if fetch is not None and wanted:
        for uri in _bulk_uris(attributes, wanted, where):
            if uri not in fetched:
                fetched[uri] = fetch(uri)
    with lenient():
        return _Converter(where, wanted, fetched).dataset(attributes)


def _tag(name: str) -> int:
    from pydicom.datadict import tag_for_keyword

    tag = int(name, 16) if _TAG.fullmatch(name) else tag_for_keyword(name)
    if tag is None:
        raise OptionError(f"bulk={name!r} is neither a keyword nor a tag of eight hexadecimal digits")
    return tag


def _bulk_uri(element: dict[str, Any]) -> str | None:
    """Return where the value of an element is, if not in it; some servers put the URI into an array."""
    if element.get("Value") is not None or element.get("InlineBinary") is not None:
        return None
    uri = element.get("BulkDataURI")
    if isinstance(uri, list) and len(uri) == 1:
        uri = uri[0]
    return uri if isinstance(uri, str) and uri else None


def _bulk_uris(item: dict[str, Any], wanted: frozenset[int], where: str, depth: int = 0) -> Iterator[str]:
    _check_depth(depth, where)
    for key, element in item.items():
        if not isinstance(element, dict) or not _TAG.fullmatch(key):
            continue
        uri = _bulk_uri(element)
        if uri is not None:
            if int(key, 16) in wanted:
                yield uri
            continue
        for nested in _as_list(element.get("Value")):
            if isinstance(nested, dict):
                yield from _bulk_uris(nested, wanted, where, depth + 1)


def _check_depth(depth: int, where: str) -> None:
    if depth > MAX_DEPTH:
        raise CorruptHeaderError(f"{where}: sequences are nested more than {MAX_DEPTH} deep")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


_WHOLE = frozenset("IS SL SS SV UL US UV".split())  # noqa: SIM905
_REAL = frozenset("DS FD FL".split())  # noqa: SIM905
_TEXT = frozenset("AE AS CS DA DT LO LT SH ST TM UC UI UR UT".split())  # noqa: SIM905
_BINARY = frozenset("OB OD OF OL OV OW UN".split())  # noqa: SIM905
_ALL = _WHOLE | _REAL | _TEXT | _BINARY | {"AT", "PN", "SQ"}


class _Converter:
    """Makes pydicom elements of JSON ones; its methods share what was fetched."""

    def __init__(self, where: str, wanted: frozenset[int], fetched: dict[str, bytes]) -> None:
        self.where = where
        self.wanted = wanted
        self.fetched = fetched

    def dataset(self, item: dict[str, Any], depth: int = 0) -> Dataset:
        from pydicom.dataset import Dataset

        _check_depth(depth, self.where)
        ds = Dataset()
        for key, element in item.items():
            if not isinstance(element, dict) or not _TAG.fullmatch(key) or key[:4] in ("0000", "0002"):
                continue
            try:
                self.add(ds, int(key, 16), element, depth)
            except CorruptHeaderError:
                raise
            except Exception:  # pydicom raises whatever the value leads it to
                continue
        return ds

    def add(self, ds: Dataset, tag: int, element: dict[str, Any], depth: int) -> None:
        from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
        from pydicom.tag import BaseTag

        values = _as_list(element.get("Value"))
        vr = _vr(tag, element.get("vr"), values)
        data: bytes | None = None
        uri = _bulk_uri(element)
        if uri is not None:
            data = self.fetched.get(uri) if tag in self.wanted else None
        elif element.get("InlineBinary") is not None:
            data = _binary(element["InlineBinary"])
        if data is not None:
            if vr == "SQ":
                raise TypeError("a sequence is no binary data")
            if vr in _BINARY and vr != "UN":
                ds.add(DataElement(BaseTag(tag), vr, data))
            else:  # of unknown VR: as in implicit little endian, PS3.5 6.2.2
                raw = RawDataElement(BaseTag(tag), vr, len(data), data, 0, vr == "UN", True)
                ds.add(convert_raw_data_element(raw))
        elif vr == "SQ":
            items = [self.dataset(_object(value), depth + 1) for value in values]
            ds.add(DataElement(BaseTag(tag), vr, items))
        elif not values:
            ds.add(DataElement(BaseTag(tag), vr, empty_value_for_VR(vr)))
        else:
            converted = [_convert(value, vr) for value in values]
            ds.add(DataElement(BaseTag(tag), vr, converted[0] if len(converted) == 1 else converted))


def _vr(tag: int, stated: Any, values: list[Any]) -> str:
    """Return the value representation of an element: the stated one if that can be, else what the dictionary knows."""
    from pydicom.datadict import dictionary_VR

    vr = stated.strip().upper() if isinstance(stated, str) else ""
    try:
        known = dictionary_VR(tag)
    except KeyError:  # a private element
        known = "SQ" if values and isinstance(values[0], dict) else "LO" if values else ""
        if vr in _ALL and vr != "UN":
            return vr
    if vr not in _ALL or (vr == "UN" and values) or (vr != "UN" and (vr == "SQ") != (known == "SQ")):
        vr = known
    if " or " in vr:  # "US or SS or OW"
        negative = any(isinstance(v, int | float) and v < 0 for v in values)
        vr = "OW" if not values and "OW" in vr else "SS" if negative else "US"
    if vr not in _ALL:
        raise ValueError("no value representation")
    return vr


def _object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError("an item is an object")
    return value


def _binary(value: Any) -> bytes:
    """Return inline binary data; some servers put them into an array, or break them into lines."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise TypeError("inline binary data are a string")
    return base64.b64decode("".join(value.split()), validate=True)


def _convert(value: Any, vr: str) -> Any:
    """Return one value as pydicom takes it; raises what the caller leaves the element out for."""
    if value is None:
        return "" if vr in _TEXT or vr in ("PN", "DS", "IS") else None
    if vr == "PN":
        if isinstance(value, dict):
            parts = [value.get(k) or "" for k in ("Alphabetic", "Ideographic", "Phonetic")]
            return "=".join(parts).rstrip("=")
        return _text(value)
    if vr in _BINARY:
        raise TypeError("binary data are not in Value")
    text = _text(value)
    if vr in _TEXT or vr == "DS":
        return text
    if vr == "AT":
        return int(text, 16)
    if vr in _REAL:
        return float(text)
    number = float(text) if "." in text else int(text)
    if number != int(number):
        raise ValueError("a whole number is due")
    return int(number)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a string or a number is due")
    return str(value)
