"""Secrets in what may be seen: text is searched for a secret in the forms that it takes on its way.

A test that searches tracebacks keeps its secrets in module constants: what it has in local variables is found.
"""

from __future__ import annotations

import base64
import json
import traceback
from urllib.parse import quote, quote_plus

__all__ = ["find_secret", "whole_traceback"]


def find_secret(text: str, secret: str) -> list[str]:
    """Name the forms in which a text holds a secret: as it is, in base64 (alone or inside of something longer, such as
    ``user:password``), percent-escaped, JSON-escaped, in hexadecimal, or its beginning or end."""
    return [form for form, needles in _forms(secret).items() if any(needle in text for needle in needles)]


def _forms(secret: str) -> dict[str, set[str]]:
    data = secret.encode("utf-8")
    every = "".join(f"%{byte:02X}" for byte in data)
    percent = {quote(secret, safe=safe) for safe in ("", "/", "/:", "~")} | {quote_plus(secret), every}
    json_text = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    forms = {
        "plain": {secret, repr(secret)[1:-1], repr(data)[2:-1]},
        "base64": set().union(*(_inside_base64(data, before, base64.b64encode) for before in range(3))),
        "base64, urlsafe": set().union(
            *(_inside_base64(data, before, base64.urlsafe_b64encode) for before in range(3))
        ),
        "percent-escaped": percent | {_lower_escapes(p) for p in percent},
        "JSON-escaped": json_text | {t.replace("/", "\\/") for t in json_text},
        "hexadecimal": {data.hex(), data.hex().upper()},
    }
    if len(secret) >= 24:  # as reprlib and rich cut long strings
        forms["cut off"] = {secret[:12], secret[-12:]}
    return {form: {needle for needle in needles if needle} for form, needles in forms.items()}


def _inside_base64(data: bytes, before: int, encode: object) -> set[str]:
    """Return what base64 has of bytes that stand after others, without the characters that neighbours share."""
    text = encode(b"\0" * before + data).decode("ascii").rstrip("=")  # type: ignore[operator]
    whole = (before + len(data)) * 8 // 6
    return {text[-(-before * 8 // 6) : whole]}


def _lower_escapes(text: str) -> str:
    parts = text.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


def whole_traceback(error: BaseException) -> str:
    """Return all that an exception can show: frames with local variables, arguments, notes and attributes, and the same
    of all exceptions that it came of, also of those that are suppressed."""
    texts = []
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        texts += traceback.TracebackException.from_exception(one, capture_locals=True).format(chain=False)
        texts += [str(one), repr(one), repr(one.args), repr(vars(one)), *getattr(one, "__notes__", [])]
        waiting += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]
    return "\n".join(texts)
