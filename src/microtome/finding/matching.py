"""Which values agree with what is searched for (PS3.4 C.2.2.2), whoever compares them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from microtome.errors import OptionError

__all__ = ["agree", "check_keyword"]


def check_keyword(keyword: str) -> str:
    """Return the tag of an attribute, as eight hexadecimal digits.

    Raises
    ------
    OptionError
        DICOM has no such attribute, or it has no value to compare.
    """
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is not None and dictionary_VR(tag) == "SQ":
        raise OptionError(f"{keyword} is a sequence; slides are searched for by attributes that have a value")
    if tag is None:
        raise OptionError(f"{keyword} is no keyword of DICOM; attributes are named as in PatientID, AccessionNumber")
    return f"{tag:08X}"


def agree(found: Sequence[str], keyword: str, wanted: str, *, all_told: bool) -> bool:
    """Tell whether an attribute is what was asked for.

    Parameters
    ----------
    found
        Its values, as text.
    keyword
        Its name.
    wanted
        What was asked for; nothing, or ``*``, is anything.
    all_told
        Whether an attribute without a value has none. Else it may have one that a server does not tell.
    """
    from pydicom.datadict import dictionary_VR

    values = [text for text in (text.strip(" \0") for text in found) if text]
    if not wanted or (not values and not all_told):
        return True
    kind = dictionary_VR(keyword)
    return any(_matches(text, wanted, kind) for text in values or ("",))


def _matches(found: str, wanted: str, kind: str) -> bool:
    if kind == "UI":
        return found in re.split(r"[\\,]", wanted)
    if kind in ("DA", "DT", "TM") and "-" in wanted:
        low, _, high = wanted.partition("-")
        return bool(found) and found[: len(low)] >= low and (not high or found[: len(high)] <= high)
    if kind in ("DS", "IS", "SS", "US", "SL", "UL", "FL", "FD"):
        try:
            return float(found) == float(wanted)
        except ValueError:
            return False
    # Names and codes in capitals or not: servers differ, and have already chosen.
    pattern = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in wanted)
    return re.fullmatch(pattern, found, re.DOTALL | re.IGNORECASE) is not None
