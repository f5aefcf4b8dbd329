"""URIs as they may be shown and as they travel."""

from __future__ import annotations

import re

__all__ = ["display_uri", "holds_secret", "is_remote", "local_path", "url_holds_secret"]

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_USERINFO = re.compile(r"(://)[^/@\s]*@")
_QUERY = re.compile(r"[?#][^:]*")
_SECRET_NAME = re.compile(r"secret|password|passwd|token|credential|(^|_)key($|_)|sas|auth", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
_SIGNATURE = re.compile(r"^sig$|signature", re.IGNORECASE)
_PARAMETER = re.compile(r"[?&]([^=&#]+)=[^&#]")
_NOT_SECRET = {"anon", "google_default", "cloud", "cache", "browser", ""}


def is_remote(uri: str) -> bool:
    """Tell whether a string is a URL for fsspec rather than a path of this machine."""
    return bool(_SCHEME.match(uri)) and not uri.startswith("file://")


def local_path(uri: str) -> str:
    """Return the path that a ``file://`` URL or a plain path names."""
    return uri.removeprefix("file://")


def display_uri(uri: str) -> str:
    """Return a URI that is safe in messages: no user, no password, no query, no fragment."""
    if not is_remote(uri):
        return uri
    return _QUERY.sub("", _USERINFO.sub(r"\1", uri))


def holds_secret(options: object, name: str = "") -> bool:
    """Tell whether storage options hold a literal secret, by the names that fsspec's filesystems give to them."""
    if isinstance(options, dict):
        return any(holds_secret(value, str(key)) for key, value in options.items())
    if isinstance(options, list | tuple):
        return any(holds_secret(value, name) for value in options)
    return isinstance(options, str | bytes) and bool(_SECRET_NAME.search(name)) and options not in _NOT_SECRET


def url_holds_secret(uri: str) -> bool:
    """Tell whether a URL holds a password, or a query that grants access: a signature, a token, a key."""
    if not is_remote(uri):
        return False
    names = _PARAMETER.findall(uri)
    return bool(_PASSWORD.search(uri)) or any(_SECRET_NAME.search(n) or _SIGNATURE.search(n) for n in names)
