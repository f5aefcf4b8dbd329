"""Where a secret comes from that is sent as it is: from the caller, from an environment variable, from a function."""

from __future__ import annotations

import os
from typing import Any

from microtome.errors import CredentialsError
from microtome.storage.credentials.base import Credentials
from microtome.storage.credentials.keeping import Keeping, Kept, differ, mark, name_of
from microtome.storage.credentials.secrets import Secret, SecretHeaders
from microtome.storage.credentials.values import basic_headers, bearer_headers, read_headers, sealed

__all__ = ["Called", "FromEnv", "Literal"]


class Literal(Credentials):
    """A secret that was given as it is."""

    def __init__(
        self, kind: str, arguments: dict[str, Secret[Any]], advice: str, fixed: SecretHeaders, **options: Any
    ) -> None:
        super().__init__(kind, arguments, advice, masked="secret", **options)
        self._fixed = fixed

    def _make(self) -> SecretHeaders:
        return self._fixed.copy()


class FromEnv(Credentials):
    """A token, or the password of a user, that an environment variable holds; read at each use, for it may change."""

    def __init__(self, env: str, user: Secret[str] | None = None, **options: Any) -> None:
        advice = f"is {env} current? The environment variable is read at each use, so it can be set anew"
        if user is None:
            super().__init__("bearer", {}, advice, env=env, **options)
        else:
            super().__init__("basic", {"user": user}, advice, masked="user", env=env, **options)
        self._env, self._user = env, user

    def _make(self) -> SecretHeaders:
        # Blanks may belong to a password; the line break of the file that it was read from does not.
        strip = None if self._user is None else "\r\n"
        secret = Secret(os.environ.get(self._env, "").strip(strip))
        made, flaw = bearer_headers(secret) if self._user is None else basic_headers(self._user, secret)
        if not secret.reveal():
            flaw = f"is {'empty' if self._env in os.environ else 'not set'} in this process"
        if flaw:
            raise CredentialsError(
                f"{self!r}: the environment variable {self._env} {flaw}. Remedy: set it, also where workers are started"
            )
        return made

    def refresh(self, stale: SecretHeaders) -> bool:
        """Read the variable again."""
        return differ(self._make(), stale)


class Called(Keeping):
    """What a function of the user returns: a token, or headers."""

    def __init__(self, kind: str, argument: str, function: Secret[Any], **options: Any) -> None:
        name = f"callable {name_of(function.reveal())}"
        advice = f"<{name}> was asked for new ones, if it has any; are they for this server?"
        own = mark(function.reveal())
        super().__init__(kind, {argument: function}, advice, masked=name, mark=own, **options)
        self._function = function

    def _ask(self) -> tuple[SecretHeaders, str]:
        """Call the function; what is wrong is returned."""
        try:
            if self.kind == "headers":
                made, flaw = read_headers(self._function.reveal()())
                return made, flaw and f"returns what {flaw}"
            token = sealed(self._function.reveal()())
        except Exception as e:
            name = type(e).__name__
            return SecretHeaders(), f"raises {name}, whose words are not repeated here, for they may hold a secret"
        if token is None:
            return SecretHeaders(), "does not return a str"
        made, flaw = bearer_headers(token)
        return made, flaw and f"returns a token that {flaw}"

    def _fetch(self, kept: Kept) -> SecretHeaders:
        made, flaw = self._ask()
        if flaw:
            raise CredentialsError(f"{self!r}: the function {flaw}. Remedy: call it by itself to see what it does")
        return kept.keep(made)

    def _make(self) -> SecretHeaders:
        kept = self._mine()
        with kept.lock:
            return (self._fetch(kept) if kept.headers is None else kept.headers).copy()

    def refresh(self, stale: SecretHeaders) -> bool:
        """Call the function again, unless another thread has."""
        kept = self._mine()
        with kept.lock:
            made = kept.headers
            if made is None or made.generation == stale.generation:
                made = self._fetch(kept)
            return differ(made, stale)
