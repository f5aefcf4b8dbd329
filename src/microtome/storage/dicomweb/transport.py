"""HTTP as this library uses it: connections, where they lead, what is signed, and why they failed, in words."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import requests

    from microtome.storage.credentials import SecretHeaders

__all__ = ["Sign", "failure_words", "make_http", "proxies_for"]


MOST_CONNECTIONS = 256
"""To a host; how many are used, the limits of requests decide."""


def make_http() -> requests.Session:
    """Return a pool of connections."""
    from http.cookiejar import DefaultCookiePolicy

    import requests
    from requests.adapters import HTTPAdapter

    class Http(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """Return None: even where it follows no redirect, requests would read all of its body, however long."""

    logging.getLogger("urllib3.connectionpool").addFilter(_filter)
    session = Http()
    adapter = HTTPAdapter(pool_connections=4, pool_maxsize=MOST_CONNECTIONS, max_retries=0, pool_block=True)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # a service of resources has no sessions
    session.headers["User-Agent"] = "microtome"
    return session


def proxies_for(url: str) -> dict[str, str]:
    """Return what keeps requests to this machine from a proxy that the environment names for others.

    It would see the credentials, which go over plain HTTP only because they do not leave the machine.
    """
    host = urlsplit(url).hostname or ""
    return {"no_proxy": host} if _is_loopback(host) else {}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".") == "localhost"


class Sign:
    """Adds secret headers to a request at the last moment; no frame of ours holds them in a plain mapping.

    requests lets no ``~/.netrc`` overrule what it does.
    """

    def __init__(self, headers: SecretHeaders | None) -> None:
        self._headers = headers

    def __call__(self, request: Any) -> Any:
        """Sign a request."""
        request.headers.update(self._headers or {})
        return request

    def secrets(self) -> list[str]:
        """Return what must not be shown."""
        return [word for value in (self._headers or {}).values() for word in (value, value.rpartition(" ")[2])]


_WORDS = {
    "RemoteDisconnected": "the server closed it without an answer",
    "IncompleteRead": "the server closed it in the middle of the answer",
    "BadStatusLine": "the answer is no HTTP",
    "InvalidChunkLength": "the chunks of the answer are damaged",
}


def failure_words(error: BaseException) -> str:
    """Return why the network failed, in the system's words; those of other errors may quote the request."""
    queue: list[Any] = [error]
    for e in queue:
        if isinstance(e, OSError) and isinstance(e.errno, int) and e.strerror:
            return e.strerror
        queue += [x for x in (*e.args, e.__cause__, e.__context__, getattr(e, "reason", None)) if _new(x, queue)]
    names = [type(e).__name__ for e in queue]
    return next((_WORDS[name] for name in names if name in _WORDS), names[-1])


def _new(error: Any, seen: list[Any]) -> bool:
    return isinstance(error, BaseException) and not any(error is s for s in seen) and len(seen) < 16


class _QueryFilter(logging.Filter):
    """Takes queries out of what urllib3 logs of each request: they may hold the name of a patient."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                a.split("?")[0] + "?…" if isinstance(a, str) and "?" in a and "/" in a else a for a in record.args
            )
        return True


_filter = _QueryFilter()
