"""Who may ask: the names under which the server may be called, and credentials."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import threading
from collections import Counter
from collections.abc import Collection

from microtome.errors import OptionError
from microtome.testing.dicomweb.message import Refusal

__all__ = ["Gate", "is_loopback"]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach a server bound to this host."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class Gate:
    """Lets requests in, or raises the refusal to answer.

    Parameters
    ----------
    host
        To which the server is bound.
    allowed_hosts
        More names under which it may be called.
    basic
        (user, password), or None.
    tokens
        Accepted bearer tokens, looked at anew for each request; or None.
    lifetime
        Requests that a token is good for; None for ever.
    """

    def __init__(
        self,
        host: str,
        allowed_hosts: Collection[str],
        basic: tuple[str, str] | None,
        tokens: Collection[str] | None,
        lifetime: int | None,
    ) -> None:
        if lifetime is not None and tokens is None:
            raise OptionError("token_lifetime counts requests with a token: give tokens as well")
        self._names = {"localhost", host.lower(), *(name.lower() for name in allowed_hosts)}
        self._loopback = is_loopback(host)
        self._basic, self._tokens, self._lifetime = basic, tokens, lifetime
        self._used: Counter[str] = Counter()
        self._lock = threading.Lock()

    def check_host(self, header: str | None) -> None:
        """Refuse to be called by a foreign name: a page of its owner would read slides by DNS rebinding."""
        if not header:
            raise Refusal(400, "no Host header")
        name = header.lower()
        if not name.endswith("]"):
            name = name.rpartition(":")[0] if ":" in name.rpartition("]")[2] else name
        address = _address(name)
        if name in self._names or (address is not None and (address.is_loopback or not self._loopback)):
            return
        raise Refusal(421, "this server does not answer to that host name")

    def check(self, header: str | None) -> None:
        """Refuse unless the Authorization header is valid, or none is needed."""
        if self._basic is None and self._tokens is None:
            return
        scheme, _, value = (header or "").partition(" ")
        value = value.strip()
        if scheme.lower() == "bearer" and self._tokens is not None and self._good_token(value):
            return
        if scheme.lower() == "basic" and self._basic is not None and self._good_password(value):
            return
        challenge = 'Basic realm="dicomweb", charset="UTF-8"'
        if self._tokens is not None:
            challenge = 'Bearer realm="dicomweb"' + (', error="invalid_token"' if header else "")
        words = "these credentials are not valid" if header else "credentials are needed"
        raise Refusal(401, words, {"WWW-Authenticate": challenge})

    def _good_token(self, value: str) -> bool:
        known = [hmac.compare_digest(value.encode(), token.encode()) for token in list(self._tokens or ())]
        if not any(known):
            return False
        with self._lock:
            self._used[value] += 1
            return self._lifetime is None or self._used[value] <= self._lifetime

    def _good_password(self, value: str) -> bool:
        assert self._basic is not None
        try:
            given = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, ":".join(self._basic).encode())
