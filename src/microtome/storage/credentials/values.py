"""What may stand in a header. What is wrong is returned, not raised: the frames here hold secrets in the open."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from microtome.storage.credentials.secrets import Secret, SecretHeaders

__all__ = ["basic_headers", "bearer_headers", "headers_flaw", "read_headers", "sealed", "user_flaw"]

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[ -~\xa0-\xff]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _text(value: object, strip: str | None = None) -> object:
    """Return str and bytes as a str without the white space around it, other things as they are."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return str(value).strip(strip) if isinstance(value, str) else value


def sealed(value: object, strip: str | None = None) -> Secret[str] | None:
    """Wrap a str, or bytes, without the white space around it; None for other things."""
    text = _text(value, strip)
    return Secret(text) if isinstance(text, str) else None


def bearer_headers(token: Secret[str]) -> tuple[SecretHeaders, str]:
    """Return the headers that a token is sent in, and what is wrong with it."""
    text = token.reveal()
    flaw = ""
    if not text:
        flaw = "is empty"
    elif " " in text:
        flaw = "holds a blank; it is the token alone, without the word 'Bearer'"
    elif not (text.isascii() and text.isprintable()):
        flaw = "holds a control character, or one outside of ASCII"
    return SecretHeaders({} if flaw else {"Authorization": f"Bearer {text}"}), flaw


def basic_headers(user: Secret[str], password: Secret[str]) -> tuple[SecretHeaders, str]:
    """Return the headers that a user, who has no flaw, is sent in, and what is wrong with the password."""
    flaw = _password_flaw(password)
    if flaw:
        return SecretHeaders(), flaw
    pair = f"{user.reveal()}:{password.reveal()}".encode("utf-8", "surrogateescape")
    return SecretHeaders({"Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}), ""


def user_flaw(user: Secret[str]) -> str:
    """Return what is wrong with the name of a user."""
    return "holds a colon, which ends user names (RFC 7617)" if ":" in user.reveal() else _password_flaw(user)


def _password_flaw(password: Secret[str]) -> str:
    try:
        password.reveal().encode("utf-8", "surrogateescape")
    except UnicodeError:
        return "holds what is no character"
    return "holds a control character" if _CONTROL.search(password.reveal()) else ""


def read_headers(mapping: object) -> tuple[SecretHeaders, str]:
    """Return the headers that a mapping holds, and what is wrong with them."""
    if not isinstance(mapping, Mapping):
        return SecretHeaders(), f"is a {type(mapping).__name__}, not a mapping of header names to values"
    texts: dict[Any, Any] = {name: _text(value) for name, value in mapping.items()}
    flaw = headers_flaw(texts)
    return SecretHeaders({} if flaw else texts), flaw


def headers_flaw(given: Mapping[Any, Any]) -> str:
    """Return what is wrong with headers."""
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return "has a name that no HTTP header has"
        if not isinstance(value, str):
            return f"has a {type(value).__name__} as {name}, not a str"
        if not _VALUE.fullmatch(value):
            return f"has a line break, another control character, or one outside of Latin-1 in {name}"
    return ""
