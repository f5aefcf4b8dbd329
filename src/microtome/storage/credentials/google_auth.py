"""Credentials that google-auth makes and renews, kept from hosts that are not Google's.

Its errors, records and reprs hold the tokens that it handled. So its errors are replaced outside of ``except`` blocks,
and its objects are in no local variable.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from microtome.errors import CredentialsError, MissingDependencyError
from microtome.storage.credentials.keeping import Keeping, Kept, differ
from microtome.storage.credentials.secrets import Secret, SecretHeaders

__all__ = ["SCOPES", "Google", "load_account", "load_default"]

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
"""The scope that all services of Google Cloud take; what may be done is decided by IAM.

No narrower one beside it: a login that was not granted each scope that is asked for is refused (``invalid_scope``), and
``gcloud auth application-default login`` does not ask for those of single services.
"""
WAITS = (1.0, 2.0)
"""Seconds to wait before a token is asked for again, after a failure that may pass."""
RECENT = 10.0
"""Seconds in which a token that is still good is not renewed again."""

_GOOGLE_HOST = re.compile(r"([a-z0-9_-]+\.)*googleapis\.com")
_OAUTH_CODE = re.compile(
    r"\b(invalid_grant|invalid_client|invalid_scope|invalid_rapt|rapt_required|unauthorized_client|access_denied)\b"
)


class _Trouble(NamedTuple):
    """Why something of google-auth failed, in words that hold no secret."""

    why: str
    passing: bool


def _hide_tokens(record: logging.LogRecord) -> bool:
    """Keep what google-auth sends out of its records for debugging: it masks some tokens, but not signed assertions."""
    for name in ("httpRequest", "httpResponse"):
        logged = getattr(record, name, None)
        if isinstance(logged, dict):
            setattr(record, name, {key: logged[key] for key in ("method", "url", "status") if key in logged})
    return True


def _google_auth() -> Any:
    try:
        import google.auth
        import google.auth.exceptions
        import google.auth.transport.requests
        import google.oauth2.service_account
    except ImportError:
        raise MissingDependencyError(
            "credentials of Google Cloud need google-auth and requests. Remedy: pip install 'microtome[google]'"
        ) from None
    logging.getLogger("google.auth.transport.requests").addFilter(_hide_tokens)
    return google


def _trying(action: Callable[[], Any]) -> tuple[Any, _Trouble | None]:
    """Return what an action returns, or why it fails."""
    known = _google_auth().auth.exceptions
    try:
        return action(), None
    except Exception as e:
        # Messages repeat what token servers say, so only what OAuth itself defines is taken from them.
        code = _OAUTH_CODE.search(str(e))
        name = type(e).__name__ + (f": {code[0]}" if code else "")
        if isinstance(e, known.TransportError) or isinstance(e.__cause__, known.TransportError):
            return None, _Trouble(f"the server that gives tokens cannot be reached ({name})", True)
        if isinstance(e, known.RefreshError):
            return None, _Trouble(f"the token cannot be renewed ({name})", bool(getattr(e, "retryable", False)))
        return None, _Trouble(f"no usable credentials are found ({name})", False)


def _renewable(given: Any) -> bool:
    """Tell whether an object of google-auth is more than a token that was handed over alone."""
    return getattr(given, "refresh_token", "") is not None or getattr(given, "refresh_handler", None) is not None


class Google(Keeping):
    """Credentials of google-auth; it knows when their tokens expire. To load them may raise anything."""

    def __init__(
        self, kind: str, arguments: dict[str, Secret[Any]], load: Callable[[], Any], remedy: str,
        *, scopes: tuple[str, ...] = SCOPES, **options: Any,
    ) -> None:  # fmt: skip
        role = "has this account a role that may read here, e.g. roles/healthcare.dicomViewer?"
        super().__init__(kind, arguments, f"{remedy}; and {role}", scopes=() if scopes == SCOPES else scopes, **options)
        self._load, self._remedy = load, remedy

    def _host_problem(self, host: str) -> str:
        if _GOOGLE_HOST.fullmatch(host) or host in (self._hosts or ()):
            return ""
        return (
            "tokens of Google Cloud go to googleapis.com and the hosts below it only. "
            f"Remedy: hosts=[{host!r}], if it is a proxy that is to be trusted with them"
        )

    def _fail(self, trouble: _Trouble) -> NoReturn:
        remedy = "look at the network and its proxy, then try again" if trouble.passing else self._remedy
        raise CredentialsError(f"{self!r}: {trouble.why}. Remedy: {remedy}")

    def _renew(self, kept: Kept, *, urgent: bool) -> None:
        for wait in (*WAITS, None) if urgent else (None,):
            _, trouble = _trying(lambda: kept.google.refresh(_google_auth().auth.transport.requests.Request()))
            if trouble is None or not trouble.passing or wait is None:
                break
            time.sleep(wait)
        kept.renewed = time.monotonic()
        if trouble is None and getattr(kept.google, "token", None) is None:
            trouble = _Trouble("the server that gives tokens gave none", False)
        if trouble is not None and (urgent or not trouble.passing):
            kept.google = None  # so that a new login, or a new key file, is found
            self._fail(trouble)

    def _applied(self, kept: Kept) -> SecretHeaders:
        made = SecretHeaders()
        _, trouble = _trying(lambda: kept.google.apply(made))
        if trouble is not None:
            self._fail(trouble)
        if "authorization" in made:
            made["Authorization"] = made.pop("authorization")
        return (kept.headers if kept.headers == made else kept.keep(made)).copy()

    def _make(self) -> SecretHeaders:
        kept = self._mine()
        with kept.lock:
            if kept.google is None:
                kept.google, trouble = _trying(self._load)
                if trouble is not None:
                    self._fail(trouble)
            if not kept.google.valid:
                # google-auth calls a token invalid some minutes before it expires: time in which a failure may pass.
                good = getattr(getattr(kept.google, "token_state", None), "name", "INVALID") != "INVALID"
                if not good or time.monotonic() - kept.renewed > RECENT:
                    self._renew(kept, urgent=not good)
            return self._applied(kept)

    def refresh(self, stale: SecretHeaders) -> bool:
        """Ask for a new token, unless there is one already."""
        kept = self._mine()
        with kept.lock:
            made = self._make()
            # Others who hold the object may have renewed it: then its headers are of a new generation already.
            if made.generation == stale.generation:
                if not _renewable(kept.google):
                    return False
                self._renew(kept, urgent=True)
                made = self._applied(kept)
            return differ(made, stale)


def load_default(scopes: tuple[str, ...]) -> Any:
    """Return what google-auth finds on this machine."""
    return _google_auth().auth.default(scopes=scopes)[0]


def load_account(account: Secret[str], scopes: tuple[str, ...]) -> Any:
    """Return what google-auth makes of the path of a key file, or of a key as JSON."""
    maker = _google_auth().oauth2.service_account.Credentials
    if account.reveal().startswith("{"):
        return maker.from_service_account_info(json.loads(account.reveal()), scopes=scopes)
    return maker.from_service_account_file(account.reveal(), scopes=scopes)
