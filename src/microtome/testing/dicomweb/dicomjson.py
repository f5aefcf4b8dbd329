"""Data sets as DICOM JSON (PS3.18 F), with URIs in place of large binary values."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement

__all__ = ["BASE", "BINARY", "INLINE", "bulk_value", "to_json", "without_binary"]

BASE = "@base@"
"""Stands for the address of the services in URIs until a request tells it."""

INLINE = 64
"""Bytes of a binary value up to which it is part of the JSON."""

BINARY = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")

_WHOLE = ("IS", "SL", "SS", "SV", "UL", "US", "UV")
_REAL = ("DS", "FD", "FL")


def to_json(ds: Dataset, path: str, first: int = 0, last: int = 0x7FDFFFFF) -> dict[str, Any]:
    """Convert the elements from one tag to another; those that pydicom cannot make sense of are left out.

    Parameters
    ----------
    ds
        The data set.
    path
        Of bulk data of its elements, below the services.
    first, last
        Tags.
    """
    out = {}
    for tag in sorted(ds.keys()):
        if not first <= tag <= last:
            continue
        key = f"{tag:08X}"
        try:
            out[key] = _element(ds[tag], f"{path}/{key}")
        except Exception:  # whatever pydicom raises for broken values: a server leaves them out
            continue
    return out


def _element(e: DataElement, path: str) -> dict[str, Any]:
    vr, value = str(e.VR)[:2], e.value
    if vr == "SQ":
        items = [to_json(item, f"{path}/{i}", last=0xFFFFFFFF) for i, item in enumerate(value)]
        return {"vr": vr, "Value": items} if items else {"vr": vr}
    if value is None or (isinstance(value, str | bytes | MultiValue | list) and len(value) == 0):
        return {"vr": vr}
    if vr in BINARY:
        data = bytes(value)
        if len(data) > INLINE:
            return {"vr": vr, "BulkDataURI": f"{BASE}/{path}"}
        return {"vr": vr, "InlineBinary": base64.b64encode(data).decode()}
    values = list(value) if isinstance(value, MultiValue | list) else [value]
    return {"vr": vr, "Value": [_value(vr, v) for v in values]}


def _value(vr: str, value: Any) -> Any:
    if value is None or value == "":
        return None
    if vr in _WHOLE:
        return int(value)
    if vr in _REAL:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{number} has no form in JSON")
        return number
    if vr == "AT":
        return f"{int(value):08X}"
    if vr == "PN":
        groups = ("Alphabetic", "Ideographic", "Phonetic")
        return {name: text for name, text in zip(groups, str(value).split("="), strict=False) if text}
    return str(value)


def without_binary(ds: dict[str, Any]) -> dict[str, Any]:
    """The same without binary values, at any depth."""
    out = {}
    for tag, element in ds.items():
        if element["vr"] in BINARY:
            continue
        if element["vr"] == "SQ" and "Value" in element:
            element = {"vr": "SQ", "Value": [without_binary(item) for item in element["Value"]]}
        out[tag] = element
    return out


def bulk_value(ds: Dataset, steps: list[str]) -> bytes | None:
    """The binary value under a path of tags and numbers of items; None if there is none."""
    try:
        for tag, item in zip(steps[:-1:2], steps[1::2], strict=True):
            ds = ds[int(tag, 16)].value[int(item)]
        element = ds[int(steps[-1], 16)]
    except (KeyError, IndexError, ValueError, TypeError):
        return None
    return bytes(element.value) if isinstance(element.value, bytes) and str(element.VR)[:2] in BINARY else None
