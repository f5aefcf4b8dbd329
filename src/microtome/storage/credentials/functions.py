"""The functions that users call: what is given is wrapped at once, so that no error shows it.

An exception passes the frames of these functions, and tracebacks may print local variables. So arguments that may be
secrets are deleted before anything is raised.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

from microtome.errors import CredentialsError, OptionError
from microtome.storage.credentials.base import Credentials, Nobody
from microtome.storage.credentials.destinations import host_names
from microtome.storage.credentials.google_auth import SCOPES, Google, load_account, load_default
from microtome.storage.credentials.keeping import mark, name_of
from microtome.storage.credentials.secrets import Secret
from microtome.storage.credentials.sources import Called, FromEnv, Literal
from microtome.storage.credentials.values import basic_headers, bearer_headers, read_headers, sealed, user_flaw

__all__ = ["basic", "bearer", "default", "google", "headers", "none", "refusal_remedy", "resolve", "service_account"]

_Token: TypeAlias = "str | bytes | Callable[[], str | bytes]"


def default(*, hosts: Iterable[str] = (), scopes: Iterable[str] = SCOPES) -> Credentials:
    """Google's application default credentials: whatever this machine, or the user who is logged in, has.

    They are looked for at the first use, in each process anew; so they travel.

    Parameters
    ----------
    hosts
        Exact names of hosts, besides ``googleapis.com`` and those below it, that may have the tokens: a proxy.
    scopes
        OAuth scopes to ask for.

    Raises
    ------
    OptionError
        A host that is no host name.
    """
    asked = _scopes(scopes)
    remedy = (
        "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS with the path of a key file, or "
        "a service account attached to the machine"
    )
    load = partial(load_default, asked)
    return Google("default", {}, load, remedy, hosts=host_names(hosts), scopes=asked)


def service_account(
    file_or_dict: str | os.PathLike[str] | Mapping[str, Any],
    *,
    hosts: Iterable[str] = (),
    scopes: Iterable[str] = SCOPES,
    travel: bool = False,
) -> Credentials:
    """Return the credentials of a service account of Google Cloud.

    Parameters
    ----------
    file_or_dict
        Path of its key file, which is read at the first use and travels as a path; or what that file holds, which is a
        secret and does not travel.
    hosts, scopes
        As of `default`.
    travel
        Let the key itself travel in pickles, where it was given.

    Raises
    ------
    OptionError
        No path and no key, or a host that is no host name.
    """
    account, flaw = _read_account(file_or_dict)
    del file_or_dict
    if flaw:
        raise OptionError(f"service_account: {flaw}. It takes the path of a JSON key file, or the mapping it holds")
    is_key, asked = account.reveal().startswith("{"), _scopes(scopes)
    shown: dict[str, Any] = {"masked": "secret", "travel": travel} if is_key else {"shown": repr(account.reveal())}
    remedy = "is the key of this service account valid, and the clock of this machine right?"
    return Google(
        "service_account", {"file_or_dict": account}, partial(load_account, account, asked),
        remedy if is_key else f"is the file there, also for workers, and readable; {remedy}",
        hosts=host_names(hosts), scopes=asked, **shown,
    )  # fmt: skip


def _read_account(given: object) -> tuple[Secret[str], str]:
    """Return a path, or a key as JSON, and what is wrong; a key that is given as text is not taken for a path."""
    nothing = Secret("")
    if isinstance(given, str | bytes | os.PathLike):
        given = os.fsdecode(given)
        if not given.lstrip().startswith("{"):
            if not given.strip() or "\n" in given or "-----BEGIN" in given:
                return nothing, "this is neither a path nor a key as JSON"
            return Secret(os.path.abspath(os.path.expanduser(given))), ""
        try:
            given = json.loads(given)
        except ValueError:
            return nothing, "this is a text that starts like JSON and is none"
    if not isinstance(given, Mapping):
        return nothing, f"this is a {type(given).__name__}"
    lacking = {"client_email", "private_key", "token_uri"} - given.keys()
    if lacking:
        return nothing, f"the mapping has no {', '.join(sorted(lacking))}"
    try:
        return Secret(json.dumps(dict(given), sort_keys=True)), ""
    except (TypeError, ValueError):
        return nothing, "the mapping holds what JSON cannot"


def bearer(
    token: _Token | None = None, *, env: str | None = None, travel: bool = False, hosts: Iterable[str] | None = None
) -> Credentials:
    """Return a token that is sent as ``Authorization: Bearer`` (RFC 6750).

    Parameters
    ----------
    token
        The token, which does not travel; or a function that returns it, which does: it is called at the first use in
        each process, and again when a server refuses what it returned. White space around a token is cut off.
    env
        Name of an environment variable that holds the token, read at each use. It travels as a name.
    travel
        Let a token that was given itself travel in pickles.
    hosts
        Exact names of the hosts that may have it. Default: any, for it is sent to the server that the URL names.

    Raises
    ------
    OptionError
        Not one of ``token`` and ``env``, or not of these types.
    CredentialsError
        A token that is empty or cannot stand in a header.

    Examples
    --------
    >>> bearer(env="DICOMWEB_TOKEN")
    bearer(env='DICOMWEB_TOKEN')
    """
    given: Secret[Any] = Secret(token)
    del token
    env, flaw = _variable(env, given, "a token (a str, or a function that returns one)")
    if flaw:
        raise OptionError(f"bearer: {flaw}")
    names = None if hosts is None else host_names(hosts)
    if names == ():
        raise OptionError("bearer: hosts=() names no host; None allows any")
    if env is not None:
        return FromEnv(env, hosts=names)
    if callable(given.reveal()):
        return Called("bearer", "token", given, hosts=names)
    secret = sealed(given.reveal())
    if secret is None:
        raise OptionError("bearer: a token is a str, or a function that returns one")
    fixed, flaw = bearer_headers(secret)
    if flaw:
        raise CredentialsError(f"bearer: the token {flaw}. Remedy: look at where it comes from")
    advice = "has the token expired? Pass a new one, or a function that makes one: bearer(function)"
    return Literal("bearer", {"token": secret}, advice, fixed, hosts=names, travel=travel)


def google(credentials_object: Any, *, hosts: Iterable[str] = (), travel: bool = False) -> Credentials:
    """Return credentials that google-auth made: impersonated ones, of a workload identity, of Colab.

    Parameters
    ----------
    credentials_object
        A ``google.auth.credentials.Credentials``. It holds secrets and does not travel.
    hosts
        As of `default`.
    travel
        Let it travel in pickles, with its secrets.

    Raises
    ------
    OptionError
        Not such an object, or a host that is no host name.
    """
    given = Secret(credentials_object)
    del credentials_object
    kind = type(given.reveal())
    if issubclass(kind, type) or not all(hasattr(given.reveal(), name) for name in ("apply", "refresh", "valid")):
        raise OptionError(f"google: a google.auth.credentials.Credentials is needed, not a {name_of(kind)}")
    remedy = "make the object that was given to google(...) anew: log in again, or load the key again"
    return Google(
        "google", {"credentials_object": given}, given.reveal, remedy,
        masked=name_of(kind), mark=mark(given.reveal()), hosts=host_names(hosts), travel=travel,
    )  # fmt: skip


def basic(
    user: str | bytes, password: str | bytes | None = None, *, env: str | None = None, travel: bool = False
) -> Credentials:
    """Return a user name and a password, sent as ``Authorization: Basic`` (RFC 7617), in UTF-8.

    Parameters
    ----------
    user
        Name of the user; it shows nowhere, but travels.
    password
        The password, which does not travel.
    env
        Name of an environment variable that holds the password, read at each use. It travels as a name.
    travel
        Let a password that was given itself travel in pickles.

    Raises
    ------
    OptionError
        Not one of ``password`` and ``env``, or not of these types.
    CredentialsError
        A user name with a colon, or either with a control character.
    """
    who, given = sealed(user, "\r\n"), Secret(password)
    del user, password
    env, flaw = _variable(env, given, "a password")
    if flaw:
        raise OptionError(f"basic: {flaw}")
    secret = Secret("") if env else sealed(given.reveal(), "\r\n")
    if who is None or secret is None:
        raise OptionError("basic: user and password are str")
    flaw = user_flaw(who)
    if flaw:
        raise CredentialsError(f"basic: the user name {flaw}. Remedy: look at where it comes from")
    if env is not None:
        return FromEnv(env, who)
    fixed, flaw = basic_headers(who, secret)
    if flaw:
        raise CredentialsError(f"basic: the password {flaw}. Remedy: look at where it comes from")
    advice = "are user name and password right?"
    return Literal("basic", {"user": who, "password": secret}, advice, fixed, travel=travel)


def headers(mapping: Mapping[str, str], *, travel: bool = False) -> Credentials:
    """Return headers of any name, for servers with ways of their own; the names show, the values do not.

    Parameters
    ----------
    mapping
        Names and values of headers. The values do not travel. A function that returns such a mapping does: it is given
        as ``credentials=`` itself.
    travel
        Let the values travel in pickles.

    Raises
    ------
    OptionError
        Not a mapping, or an empty one.
    CredentialsError
        A name or a value that cannot stand in a header.
    """
    usable = isinstance(mapping, Mapping) and bool(mapping)
    fixed, flaw = read_headers(mapping)
    del mapping
    if not usable:
        raise OptionError("headers: a mapping of header names to values is needed; none() is for no headers")
    if flaw:
        raise CredentialsError(f"headers: the mapping {flaw}. Remedy: look at where it comes from")
    names = ", ".join(sorted(fixed))
    plain = Secret({name: str(fixed[name]) for name in sorted(fixed)})
    advice = f"are these headers right, and all that the server wants: {names}?"
    return Literal("headers", {"mapping": plain}, advice, fixed, shown=f"{names}: ", travel=travel)


def none() -> Credentials:
    """Return no credentials, for servers that ask for none.

    Examples
    --------
    >>> dict(none().headers_for("https://example.org"))
    {}
    """
    return Nobody(
        "none", {}, "pass credentials=, e.g. microtome.credentials.default() for Google Cloud, or "
        "microtome.credentials.bearer(env=...) or basic(user, env=...) for other servers",
    )  # fmt: skip


def resolve(value: Credentials | Callable[[], Mapping[str, str]] | None) -> Credentials:
    """Return the credentials that an argument ``credentials=`` means.

    Parameters
    ----------
    value
        None for `none`, credentials for themselves, or a function that returns headers: it is called at the first use
        in each process, and again when a server refuses what it returned.

    Raises
    ------
    OptionError
        Anything else.
    """
    if value is None:
        return none()
    if isinstance(value, Credentials):
        return value
    given: Secret[Any] = Secret(value)
    kind = type(value)
    del value
    name = name_of(kind)
    if not callable(given.reveal()) or issubclass(kind, type) or name.startswith("requests.auth."):
        raise OptionError(
            f"credentials= of type {name}: it takes what default(), service_account(), bearer(), google(), basic(), "
            "headers() or none() of microtome.credentials return, or a function that returns headers"
        )
    return Called("headers", "value", given)


def refusal_remedy(credentials: Credentials, status: int = 401) -> str:
    """Return what a user can do when a server does not take these credentials, for the end of an error's message.

    Parameters
    ----------
    credentials
        What was sent, or `none`.
    status
        What the server answered: 401, it does not know who asks; or 403, it knows and does not allow it.
    """
    if status == 403 and not isinstance(credentials, Nobody):
        return f"{credentials!r} may not read here: ask whoever runs the server for access ({credentials.advice})"
    return credentials.advice


def _scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    return (scopes,) if isinstance(scopes, str) else tuple(scopes)


def _variable(env: object, given: Secret[Any], otherwise: str) -> tuple[str | None, str]:
    """Return the name of a variable, and what is wrong: a token that was given in place of a name must not show."""
    if env is not None and not (isinstance(env, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", env)):
        return None, "env= is the name of an environment variable: letters, digits and underscores"
    if (env is None) == (given.reveal() is None):
        return None, f"either {otherwise} or env=, the name of its variable"
    return env, ""
