"""URIs as they may be shown and as they travel."""

from __future__ import annotations

import re

__all__ = [
    "chain",
    "display_uri",
    "holds_secret",
    "is_remote",
    "local_path",
    "names_file",
    "scheme",
    "server_name",
    "unsigned",
    "url_holds_secret",
]

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_USERINFO = re.compile(r"(://)[^/@\s]*@")
_LOGIN = re.compile(r"(://)[^/@\s:]*:[^/@\s]*@")
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SECRET_NAME = re.compile(
    r"secret|password|passwd|passphrase|token|credential|cookie|connection_string|(^|_)key($|_)|sas|auth", re.IGNORECASE
)
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
_SIGNATURE = re.compile(r"^sig$|signature", re.IGNORECASE)
_PARAMETER = re.compile(r"[?&]([^=&#]+)=[^&#]")
_SIGNING = re.compile(
    r"(?<=[?&])(X-(Amz|Goog)-[\w-]+|sig(nature)?|expires|googleaccessid|awsaccesskeyid|key-pair-id|policy|"
    r"s[vtepr]|spr|sip|sk[a-z]+|token)=[^&#:]*&?",
    re.IGNORECASE,
)
_NOT_SECRET = {"anon", "google_default", "cloud", "cache", "browser", ""}
_FILE_OF_SECRETS = re.compile(r"(/|~|[A-Za-z]:[\\/])(?!/)|.*\.(json|pem|p12)$")
_NAMED = frozenset({"gs", "gcs", "s3", "s3a", "memory", "zip", "tar", "libarchive", "dir"})
"""Filesystems whose names may hold ``?`` and ``#``, and are no queries."""
_HERE = frozenset({"file", "local", "memory", "zip", "tar", "libarchive", "dir", "data"})
_PORTS = {"http": 80, "https": 443}


def is_remote(uri: str) -> bool:
    """Tell whether a string is a URL for fsspec rather than a path of this machine."""
    return bool(_SCHEME.match(uri)) and not uri.startswith("file://")


def local_path(uri: str) -> str:
    """Return the path that a ``file://`` URL or a plain path names."""
    return uri.removeprefix("file://")


def chain(uri: str) -> list[str]:
    """Return the parts of a chained URL, ``zip://*.dcm::gs://bucket/slides.zip``, the outermost first."""
    return uri.split("::")


def scheme(part: str) -> str:
    """Return the filesystem that a part of a chained URL names; empty where it is a path."""
    if "://" in part:
        return part.split("://", 1)[0].lower()
    return part if _PLAIN.fullmatch(part) else ""


def server_name(uri: str) -> str:
    """Return the name under which requests for a URL are counted: that of its bucket, or of the server.

    Empty where all is on this machine.
    """
    last = chain(uri)[-1]
    kind = scheme(last)
    if not kind or kind in _HERE:
        return ""
    host = _USERINFO.sub(r"\1", last).split("://", 1)[-1].split("/", 1)[0].split("?")[0].lower()
    if kind in _PORTS and ":" not in host.rpartition("]")[2]:
        host += f":{_PORTS[kind]}"
    return f"{kind}://{host}"


def display_uri(uri: str) -> str:
    """Return a URI that is safe in messages: no user, no password, no query, no fragment."""
    if not is_remote(uri):
        return uri
    parts = []
    for number, part in enumerate(chain(uri)):
        if scheme(part) in _NAMED:
            parts.append(_LOGIN.sub(r"\1", part))
        elif scheme(part) or number == 0:
            parts.append(_QUERY.sub("", _USERINFO.sub(r"\1", part)))
        elif part.startswith("/") and "?" not in part and "&" not in part:
            parts.append(part)
        else:
            parts.append("…")  # the rest of a query, perhaps
    return "::".join(parts)


def holds_secret(options: object, name: str = "") -> bool:
    """Tell whether storage options hold a literal secret, by the names that fsspec's filesystems give to them.

    The path of a file that holds one is none, nor is a number. An object of another library, such as credentials of
    google-auth, is one: what it holds is not known, and it would travel with it.
    """
    if isinstance(options, dict):
        return any(holds_secret(value, str(key)) for key, value in options.items())
    if isinstance(options, list | tuple):
        return any(holds_secret(value, name) for value in options)
    if not _SECRET_NAME.search(name.replace("-", "_")) or isinstance(options, int | float | None):
        return False
    if isinstance(options, str):
        return options not in _NOT_SECRET and not names_file(options)
    return True


def names_file(option: str) -> bool:
    """Tell whether an option of a filesystem is the path of a file rather than a secret itself."""
    return bool(_FILE_OF_SECRETS.match(option))


def unsigned(uri: str) -> str:
    """Return a URL without user and password, and without what signs it: for the same file that is another each time.

    The rest of a query stays, for it may say which file is meant.
    """
    return _SIGNING.sub("", _USERINFO.sub(r"\1", uri)).rstrip("?&")


def url_holds_secret(uri: str) -> bool:
    """Tell whether a URL holds a password, or a query that grants access: a signature, a token, a key."""
    if not is_remote(uri):
        return False
    names = _PARAMETER.findall(uri)
    return bool(_PASSWORD.search(uri)) or any(_SECRET_NAME.search(n) or _SIGNATURE.search(n) for n in names)
