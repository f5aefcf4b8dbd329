"""Where a DICOMweb service is, and which of its resources a URL names (PS3.18 8.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from microtome.errors import OptionError, RequestError

__all__ = ["UID", "Address", "is_dicomweb", "parse_address", "split_url"]

UID = r"[0-9][0-9.]{0,127}"
"""What is taken for a UID. Stricter rules exist (PS3.5 9.1: 64 characters), and files that do not keep them."""

_SCHEME = re.compile(r"^dicomweb(?:\+(https?))?://", re.IGNORECASE)
_WEB = re.compile(r"^https?://", re.IGNORECASE)
# Of a plain https URL, which may be that of a file in a folder called studies.
_SLIDE = re.compile(rf"/studies/+{UID}(?:/+(?:series|instances|metadata|rendered|bulkdata)(?:/|$)|/*$)")
_STUDY = re.compile(rf"/studies(?=/{UID}(?:/|$))")
_STUDIES = re.compile(r"/studies(?=$|/[^/]*(?:$|/series(?:/|$)))")
_STORE = re.compile(r"(?:^|/)projects/[^/]+/locations/[^/]+/datasets/[^/]+/dicomStores/[^/]+", re.IGNORECASE)
_VERSIONED = re.compile(r"^https?://[^/]+/v1[a-z0-9]*/(?=projects/)", re.IGNORECASE)
_GOOGLE = "https://healthcare.googleapis.com/v1/"
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True, slots=True)
class Address:
    """A resource of a DICOMweb service.

    Parameters
    ----------
    root
        URL of the service, without a slash at its end.
    study, series, instance
        UIDs, empty from the first that is not named.
    """

    root: str
    study: str = ""
    series: str = ""
    instance: str = ""

    @property
    def path(self) -> str:
        """The path of the resource below the root."""
        parts = (("studies", self.study), ("series", self.series), ("instances", self.instance))
        return "/".join(f"{name}/{uid}" for name, uid in parts if uid)

    @property
    def url(self) -> str:
        """The URL of the resource; it holds no secret."""
        return f"{self.root}/{self.path}" if self.study else self.root

    def child(self, *, series: str = "", instance: str = "") -> Address:
        """Return the address of a series or instance below this one."""
        return replace(self, series=series or self.series, instance=instance or self.instance)


def is_dicomweb(url: str) -> bool:
    """Tell whether a string names something on a DICOMweb service rather than a file.

    These do: ``dicomweb+https://...``, any ``http(s)://.../studies/{uid}...``, and the DICOM stores of the Google Cloud
    Healthcare API, with or without host (``projects/.../dicomStores/...``).
    """
    if _SCHEME.match(url) or _STORE.match(url) or (_VERSIONED.match(url) and _STORE.search(url)):
        return True
    return bool(_WEB.match(url) and _SLIDE.search(re.split("[?#]", url, maxsplit=1)[0]))


def split_url(url: str) -> tuple[str, str]:
    """Split a URL into that of the service and the path below it, which begins with ``studies`` or is empty.

    Raises
    ------
    OptionError
        It holds a user name, a query or a fragment, or no host.
    """
    scheme = _SCHEME.match(url)
    rest = url[scheme.end() :] if scheme else url
    if _STORE.match(rest):
        url = _GOOGLE + rest
    elif scheme:
        url = f"{(scheme.group(1) or 'https').lower()}://{rest}"
    if "@" in url:  # wherever it is: a password may hold what ends the name of a host
        raise OptionError(
            "the URL of a DICOMweb server holds a user name or password; leave them out, and pass "
            "credentials=microtome.credentials.basic(user, password)"
        )
    parts = _parsed(url)
    if parts is None:
        raise OptionError("a DICOMweb service is named by a URL such as https://host/dicomWeb; this is none")
    if parts.query or parts.fragment:
        raise OptionError(
            f"{parts.scheme}://{parts.netloc}{parts.path}: a query or fragment has no meaning in the URL of a slide; "
            "pass keys as credentials=microtome.credentials.headers({...})"
        )
    path = parts.path.rstrip("/")
    # The last: what is in front of the service may be called studies, too.
    at = max((m.start() for m in (*_STUDY.finditer(path), *_STUDIES.finditer(path))), default=len(path))
    root, below = path[:at].rstrip("/"), re.sub("/{2,}", "/", path[at + 1 :])
    base = urlunsplit((parts.scheme, parts.netloc.lower(), root, "", ""))
    if _VERSIONED.match(base) and _STORE.search(base) and not root.lower().endswith("/dicomweb"):
        base += "/dicomWeb"
    return base, below


def parse_address(url: str) -> Address:
    """Take the URL of a service, study, series, instance, or of anything below, apart.

    Raises
    ------
    OptionError
        It holds a user name, a query or a fragment, or UIDs that are none.
    """
    root, path = split_url(url)
    uids: list[str] = []
    words = unquote(path).split("/")
    for name, word, uid in zip(("studies", "series", "instances"), words[::2], words[1::2], strict=False):
        if word != name:  # what lies below, such as frames or metadata, does not matter here
            break
        if not re.fullmatch(UID, uid):
            raise OptionError(f"{root}: {uid[:70]!r} is no UID of {name}")
        uids.append(uid)
    return Address(root, *uids)


def _parsed(url: str) -> SplitResult | None:
    """Return the parts of a URL; None where it names no host of a web server."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool((parts.hostname or "").strip(".")) and parts.port != 0
    except ValueError:  # whose message may quote the URL
        return None
    return parts if valid and not _UNSAFE.search(url) else None


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL; of one that names no web server, nothing that another has."""
    parts = _parsed(url)
    if parts is None:
        return "", "", 0
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)


def same_origin(url: str, root: str) -> bool:
    """Tell whether a URL is of the origin of a service, or of its encrypted twin."""
    (scheme, host, port), (own, own_host, own_port) = origin(url), origin(root)
    if not host or host != own_host:
        return False
    return (scheme, port) == (own, own_port) or (own, own_port, scheme, port) == ("http", 80, "https", 443)


def on_service(uri: str, base: str, root: str) -> str:
    """Return the URL at which something that a server names by URI is fetched.

    Servers make URIs from the Host header, or from the name they know themselves by: where the path is one of a study,
    it is looked up below the service's own root, whatever host the URI names.

    Parameters
    ----------
    uri
        As the server states it (BulkDataURI, RetrieveURL); relative ones are relative to ``base`` (RFC 3986 5.2).
    base
        URL of the answer that holds it.
    root
        The service.

    Raises
    ------
    RequestError
        It is no URI of a web server, such as ``file://``.
    """
    try:
        parts = _parsed(urljoin(base, uri))
    except ValueError:
        parts = None
    if parts is None:
        raise RequestError(f"{base}: refers to a URI that is none of a web server, and is not followed")
    found = list(_STUDY.finditer(parts.path))
    query = f"?{parts.query}" if parts.query else ""
    if found:
        return f"{root}{parts.path[found[-1].start() :]}{query}"
    return urlunsplit((parts.scheme, parts.netloc, parts.path, parts.query, ""))
