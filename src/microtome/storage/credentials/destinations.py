"""Where credentials may go: what a URL says of it, and the names of hosts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from microtome.errors import OptionError

__all__ = ["Destination", "host_names"]

_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Destination(NamedTuple):
    """What of a URL decides: the rest may name patients, and is not shown."""

    scheme: str
    host: str
    port: int | None
    userinfo: bool
    loopback: bool

    @classmethod
    def of(cls, url: str) -> Destination | None:
        """Parse a URL; None if another parser could see another host in it."""
        try:
            parts = urlsplit(url)
            given, port = parts.hostname or "", parts.port
        except ValueError:
            return None
        if re.search(r"[\x00-\x1f\x7f]", url) or not given or re.search(r"[\s\\]", parts.netloc):
            return None
        # As it is written: that of 'localhost.' and '127.0.0.1.' is asked of a name server.
        address = str(_address(given))
        loopback = given == "localhost" or address == "::1" or address.startswith("127.")
        return cls(parts.scheme, _plain(given), port, "@" in parts.netloc, loopback)

    @property
    def problem(self) -> str:
        """Why no credentials go there, whoever's they are; empty if nothing is wrong with it."""
        if self.userinfo:
            return "the URL has a user or password of its own. Remedy: leave them out, or give them as basic(...)"
        if self.scheme == "http" and not self.loopback:
            return (
                "plain HTTP shows it to everyone on the way, unless to localhost, 127.0.0.0/8 or ::1. Remedy: https://"
            )
        return "" if self.scheme in ("http", "https") else "it is no HTTP server. Remedy: https://"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port is not None else "")


def host_names(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return the names of ``hosts=`` in the form that `Destination` has them in, each once.

    Raises
    ------
    OptionError
        One is no host name.
    """
    names = sorted({_plain(str(host)) for host in ([hosts] if isinstance(hosts, str) else hosts)})
    if not all(_HOST.fullmatch(name) or _address(name) for name in names):
        raise OptionError(
            "hosts= are exact names of hosts, without scheme, port, path or wildcard, such as 'proxy.example.org'"
        )
    return tuple(names)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _plain(host: str) -> str:
    """Bring names of one host into one form: the dot that ends a fully qualified name does not make it another."""
    host = host.lower()
    if address := _address(host[1:-1] if host.startswith("[") and host.endswith("]") else host):
        return str(address)
    return host if _address(host.removesuffix(".")) else host.removesuffix(".")
