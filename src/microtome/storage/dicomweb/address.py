"""Where a DICOMweb service is, and which of its resources a URL names (PS3.18 8.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from microtome.errors import OptionError, RequestError

__all__ = ["Address", "is_dicomweb", "parse_address"]

_SCHEME = re.compile(r"^dicomweb(?:\+(https?))?://", re.IGNORECASE)
_STUDY = re.compile(r"/studies(?=/[0-9][0-9.]*(?:/|$))")
_UID = re.compile(r"[0-9.]{1,64}")
_STORE = re.compile(
    r"^(?:https?://[^/]+/v1[a-z0-9]*/)?projects/[^/]+/locations/[^/]+/datasets/[^/]+/dicomStores/[^/]+", re.IGNORECASE
)
_GOOGLE = "https://healthcare.googleapis.com/v1/"


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
    if _SCHEME.match(url) or _STORE.match(url):
        return True
    return url.lower().startswith(("http://", "https://")) and bool(_STUDY.search(urlsplit(url).path))


def parse_address(url: str) -> Address:
    """Take the URL of a service, study, series, instance, or of anything below, apart.

    Raises
    ------
    OptionError
        It holds a user name, a query or a fragment, or UIDs that are none.
    """
    scheme = _SCHEME.match(url)
    if scheme:
        url = f"{(scheme.group(1) or 'https').lower()}://{url[scheme.end() :]}"
    elif url.startswith("projects/"):
        url = _GOOGLE + url
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise OptionError("a DICOMweb service is named by a URL such as https://host/dicomWeb; this one has no host")
    if "@" in parts.netloc:
        raise OptionError(
            f"{parts.scheme}://{parts.hostname}: the URL holds a user name or password; leave them out, and pass "
            "credentials=microtome.credentials.basic(user, password)"
        )
    if parts.query or parts.fragment:
        raise OptionError(
            f"{parts.scheme}://{parts.netloc}{parts.path}: a query or fragment has no meaning in the URL of a slide; "
            "pass keys as credentials=microtome.credentials.headers({...})"
        )
    path = parts.path.rstrip("/")
    found = _STUDY.search(path)
    root, rest = (path[: found.start()], path[found.start() + 1 :]) if found else (path, "")
    root = root.removesuffix("/studies")
    store = _STORE.match(f"{parts.scheme}://{parts.netloc}{root}")
    if store and not root.lower().endswith("/dicomweb"):
        root += "/dicomWeb"
    base = urlunsplit((parts.scheme.lower(), parts.netloc.lower(), root, "", ""))
    return _resource(base, rest)


def _resource(root: str, rest: str) -> Address:
    uids = {"studies": "", "series": "", "instances": ""}
    words = iter(unquote(rest).split("/")) if rest else iter(())
    for name in uids:
        word = next(words, None)
        if word != name:  # what lies below, such as frames or metadata, does not matter here
            break
        uid = next(words, None)
        if uid is None:
            break
        if not _UID.fullmatch(uid):
            raise OptionError(f"{root}: {uid[:70]!r} is no UID of {name}")
        uids[name] = uid
    return Address(root, uids["studies"], uids["series"], uids["instances"])


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower().rstrip("."), parts.port or (443 if scheme == "https" else 80)


def same_origin(url: str, root: str) -> bool:
    """Tell whether a URL is of the origin of a service, or of its encrypted twin."""
    (scheme, host, port), (own, own_host, own_port) = origin(url), origin(root)
    if (scheme, host, port) == (own, own_host, own_port):
        return True
    return host == own_host and (own, own_port, scheme, port) == ("http", 80, "https", 443)


def on_service(uri: str, base: str, root: str) -> str:
    """Return the URL at which something that a server names by URI is fetched.

    Servers make URIs from the Host header, or from the name they know themselves by: where the path is one of a study,
    it is looked up below the service's own root, whatever host the URI names.

    Parameters
    ----------
    uri
        As the server states it (BulkDataURI, RetrieveURL); relative ones are relative to ``base``.
    base
        URL of the answer that holds it.
    root
        The service.

    Raises
    ------
    RequestError
        It is no URI of a web server, such as ``file://``.
    """
    url = urljoin(base + "/", uri)
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise RequestError(f"{base}: refers to a URI of scheme {parts.scheme!r}, which is not followed")
    found = _STUDY.search(parts.path)
    if found:
        query = f"?{parts.query}" if parts.query else ""
        return f"{root}{parts.path[found.start() :]}{query}"
    return url
