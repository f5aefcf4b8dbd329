"""What a server says about an error, without anything that the request had told it: secrets, and who the patient is."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Collection, Iterable
from urllib.parse import quote, quote_plus, unquote

from microtome.storage.dicomweb.answer import Answer

__all__ = ["server_words", "words_of"]

MAX_WORDS = 4 << 10
"""Bytes of an error page that are read."""
MAX_SHOWN = 300

_MESSAGE = re.compile(r'"(?:Details|Message|message|error|description|detail)"\s*:\s*("(?:[^"\\]|\\.)*")')
_MARKUP = re.compile(r"<(script|style|title)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_SCHEMES = {"basic", "bearer"}
_SHORTEST = 2
"""Characters of what is hidden; shorter things tell nothing, and are in every word."""


def server_words(answer: Answer, told: Iterable[str]) -> str:
    """Return the body of an error in a line, empty where it says nothing.

    Parameters
    ----------
    answer
        Its body has not been read.
    told
        What must not be shown, in whatever form the server gives it back.
    """
    data = b""
    try:
        for chunk in answer.chunks():
            data += chunk
            if len(data) > MAX_WORDS:
                break
    except Exception:  # the status says enough
        return ""
    return words_of(data[:MAX_WORDS], told, cut=len(data) > MAX_WORDS)


def words_of(data: bytes, told: Iterable[str], *, cut: bool) -> str:
    """Return an error's body in a line, as `server_words` does; ``cut`` tells whether there is more of it."""
    text = data.decode("utf-8", "replace")
    found = _MESSAGE.findall(text)
    if found:
        text = "; ".join(dict.fromkeys(_unquoted(word) for word in found))
    forms = {form for secret in told for form in _forms(secret)}
    text = _hidden(text, forms, cut and not found)
    # Once more: what was marked up or escaped in parts is seen for what it is now.
    text = _hidden(html.unescape(_MARKUP.sub(" ", text)), forms)
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _unquoted(word: str) -> str:
    try:
        return str(json.loads(word))
    except ValueError:
        return word


def _hidden(text: str, forms: Collection[str], cut: bool = False) -> str:
    if not forms:
        return text
    longest_first = sorted(forms, key=len, reverse=True)
    text = re.sub("|".join(map(_pattern, longest_first)), "…", text, flags=re.IGNORECASE)
    if cut:  # in the middle of one of them, perhaps
        lowered = text.lower()
        ends = (n for form in forms for n in range(min(len(form), len(text)), 0, -1) if lowered.endswith(form[:n]))
        text = text[: len(text) - max(ends, default=0)]
    return text


def _pattern(form: str) -> str:
    """Match a form wherever it stands; a short one, which may be a part of any word, as a word only."""
    return rf"\b{form}\b" if len(form) < 4 and form.isalnum() else re.escape(form)


def _forms(secret: str) -> set[str]:
    """Return a value, and the words of it, as a server may give them back."""
    plain = {secret, unquote(secret), _MARKUP.sub(" ", secret).strip()}
    plain |= {word for value in plain for word in re.split(r"[\s^=*?\\,;:]+", value)} | _decoded(secret)
    forms = set(plain)
    for value in plain:
        forms |= {quote(value), quote(value, safe=""), quote_plus(value), html.escape(value), html.escape(value, False)}
        forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
        forms.add(base64.b64encode(value.encode("utf-8", "replace")).decode().rstrip("="))
    return {form.lower() for form in forms if len(form) >= _SHORTEST} - _SCHEMES


def _decoded(secret: str) -> set[str]:
    """Return user and password of a value that is the base64 of them (RFC 7617)."""
    try:
        text = base64.b64decode(secret.encode("ascii"), validate=True).decode("utf-8")
    except ValueError:
        return set()
    user, colon, password = text.partition(":")
    return {text, user, password} if colon and text.isprintable() else set()
