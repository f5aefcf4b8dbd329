"""What all credentials have in common: they are the call that made them, and check where they are sent.

From the call come their repr, their identity, their name in Dask's keys, and their pickle, which makes the call again.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import Any

from microtome.errors import CredentialsError
from microtome.storage.credentials.destinations import Destination
from microtome.storage.credentials.secrets import Secret, SecretHeaders, refuse_pickle
from microtome.storage.credentials.values import headers_flaw

__all__ = ["Credentials", "Nobody"]

_SALT = os.urandom(32)


def _digest(*parts: object) -> str:
    """Name what the parts say without saying it: nobody outside of this process can try guesses against it."""
    digest = blake2b(key=_SALT, digest_size=16)
    for part in parts:
        data = str(part.reveal() if isinstance(part, Secret) else part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


class Credentials(ABC):
    """What proves to a server who is asking. Made by the functions of `microtome.credentials`; never changes.

    Credentials that are equal have equal `identity` and hash, and share in a process what was made of them.

    Attributes
    ----------
    kind
        Name of the function that makes these.
    identity
        A name for these credentials in this process, for the keys of caches; it tells nothing about them.
    advice
        What may be wrong when a server does not know them.
    """

    # The call that made them: kind(shown<masked>, **options). Arguments are its secrets, options what it has besides.
    # Of objects of the user, a mark says which they are. travel is None where there is no secret to keep here.
    def __init__(
        self,
        kind: str,
        arguments: dict[str, Secret[Any]],
        advice: str,
        *,
        shown: str = "",
        masked: str = "",
        mark: str = "",
        hosts: tuple[str, ...] | None = None,
        travel: bool | None = None,
        **options: Any,
    ) -> None:
        self.kind, self.advice = kind, advice
        self._arguments, self._shown, self._masked, self._mark = arguments, shown, masked, mark
        self._hosts, self._travel = hosts, travel
        self._options = {name: value for name, value in {**options, "hosts": hosts}.items() if value}
        secrets = [mark] if mark else arguments.values()
        self.identity = _digest(kind, shown, masked, *secrets, *self._options.items(), travel)

    def headers_for(self, url: str) -> SecretHeaders:
        """Return what to add to a request.

        Parameters
        ----------
        url
            Where the request goes, in full: ask anew for each redirect.

        Raises
        ------
        CredentialsError
            They must not go there: plain HTTP beyond this machine, or another host than theirs; or they cannot be had.
        MissingDependencyError
            google-auth is needed and not installed.
        """
        there = Destination.of(url)
        del url  # it may hold a password itself
        problem = self._problem(there)
        if problem:
            raise CredentialsError(f"{there or 'this URL'}: {self!r} is not sent there: {problem}")
        made = self._make()
        flaw = headers_flaw(made)
        if flaw:
            raise CredentialsError(f"{there}: {self!r} {flaw}: it is not sent. Remedy: look at where it comes from")
        return made

    def refresh(self, stale: SecretHeaders) -> bool:
        """Make new headers after a server answered 401 to some; of any number of threads, one does.

        Parameters
        ----------
        stale
            The headers that the server refused, as `headers_for` returned them (other headers may have been merged in).

        Returns
        -------
        bool
            Whether `headers_for` now returns others, so that it is worth to ask again.

        Raises
        ------
        CredentialsError
            New ones cannot be had.
        """
        return False

    @abstractmethod
    def _make(self) -> SecretHeaders:
        """Return headers of the caller's own."""

    def _problem(self, there: Destination | None) -> str:
        if there is None:
            return "its host can be read in more than one way, or not at all. Remedy: https://host/path"
        return there.problem or self._host_problem(there.host)

    def _host_problem(self, host: str) -> str:
        if self._hosts is None or host in self._hosts:
            return ""
        return f"it is for {', '.join(self._hosts)} only. Remedy: hosts=[..., {host!r}], if the server is to be trusted"

    def __repr__(self) -> str:
        # fsspec knows filesystems apart by the repr of their arguments, so what is masked is told apart.
        shown = self._shown + (f"<{self._masked} {self.identity[:12]}>" if self._masked else "")
        options = {**self._options, "travel": True} if self._travel else self._options
        named = [f"{name}={value!r}" for name, value in options.items()]
        return f"{self.kind}({', '.join([shown, *named] if shown else named)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credentials) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __copy__(self) -> Credentials:
        return self

    def __deepcopy__(self, memo: object) -> Credentials:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._travel is False:
            refuse_pickle(repr(self))
        arguments = {name: secret.reveal() for name, secret in self._arguments.items()}
        travel = {"travel": True} if self._travel else {}
        return _again, (self.kind, arguments | self._options | travel, self._mark)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # Names of tasks are seen by all users of a cluster, and the pixels are the same whoever asks.
        return (f"microtome.credentials.{self.kind}", self._shown, self._masked, *self._options.items())


def _again(kind: str, arguments: dict[str, Any], known: str) -> Credentials:
    """Make credentials from a pickle; the mark says which object of the first process this holds a copy of."""
    from microtome.storage.credentials import functions, keeping

    if known:
        keeping.mark(next(iter(arguments.values())), known)
    # A function that returns headers is given as credentials= itself.
    made: Credentials = getattr(functions, "resolve" if "value" in arguments else kind)(**arguments)
    return made


class Nobody(Credentials):
    """Nothing is sent, so it may be sent anywhere."""

    def _problem(self, there: Destination | None) -> str:
        return ""

    def _make(self) -> SecretHeaders:
        return SecretHeaders()
