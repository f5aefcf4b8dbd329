"""Who is asking: the headers that prove it, made where they are used and sent only where they may go.

Each function makes a `Credentials`. *Recipes* say where a secret comes from (an environment variable, a function, the
platform) and travel to other processes, which follow them for themselves. *Literals* hold a secret and stay here,
unless ``travel=True``.

A secret must not show: not by ``repr``, in a log, or in a traceback that prints local variables. So no frame of this
module that an exception can pass holds one in the open. Secrets are wrapped on arrival and the arguments deleted,
helpers that look inside return what is wrong instead of raising it, and errors of other libraries are replaced outside
of the ``except`` block, for their frames hold the tokens they handled.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import re
import threading
import time
import uuid
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MethodType
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeAlias
from urllib.parse import urlsplit

from microtome.errors import CredentialsError, MissingDependencyError, OptionError

__all__ = [
    "Credentials",
    "SecretHeaders",
    "basic",
    "bearer",
    "default",
    "google",
    "headers",
    "none",
    "refusal_remedy",
    "resolve",
    "service_account",
]

CLOUD_PLATFORM = ("https://www.googleapis.com/auth/cloud-platform",)
"""The scope that all services of Google Cloud take; what may be done is decided by IAM."""
KEPT = 32
"""Recipes of which a process keeps what came of them; a task brings a copy that must not start over."""
WAITS = (1.0, 2.0)
"""Seconds to wait before a token is asked for again, after a failure that may pass."""
RECENT = 10.0
"""Seconds in which a token that is still good is not renewed again."""

_GOOGLE_HOST = re.compile(r"([a-z0-9_-]+\.)*googleapis\.com")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2
_HEADER_VALUE = re.compile(r"[ -~\xa0-\xff]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OAUTH_CODE = re.compile(
    r"\b(invalid_grant|invalid_client|invalid_scope|invalid_rapt|rapt_required|unauthorized_client|access_denied)\b"
)


# --- what does not show ---------------------------------------------------------------------------------------------


def _refuse_pickle(what: str) -> NoReturn:
    raise CredentialsError(
        f"{what} holds a secret, which does not leave this process in a pickle. Remedy: let workers find it themselves "
        "(microtome.credentials.bearer(env=...), basic(user, env=...), default()), or pass travel=True"
    )


class Secret:
    """A text that only `reveal` shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __format__(self, spec: str) -> str:
        return format("<secret>", spec)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        _refuse_pickle("this object")


class _Masked(str):
    """A header's value: a str to those who send it, ``<secret>`` to those who print the locals of a frame.

    HTTP clients copy headers into dicts of their own, so it is the value that has to mask itself.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    def __getitem__(self, key: Any) -> str:
        return _Masked(str.__getitem__(self, key))  # rich cuts long strings before it prints them

    def __reduce__(self) -> NoReturn:
        _refuse_pickle("this header")


class SecretHeaders(dict[str, str]):
    """Headers of which only the names show: ``<headers: Authorization>``.

    ``|`` with other headers gives `SecretHeaders` again. Each is a dict of its own: to change it changes no other.

    Attributes
    ----------
    generation
        Which making these are; `Credentials.refresh` knows by it whether newer ones have been made since.
    """

    __slots__ = ("generation",)

    def __init__(self, items: Mapping[str, str] | Iterable[tuple[str, str]] = (), *, generation: int = 0) -> None:
        super().__init__()
        self.generation = generation
        for name, value in dict(items).items():
            self[name] = value

    def __setitem__(self, name: str, value: str) -> None:
        super().__setitem__(name, value if type(value) is _Masked else _Masked(value))

    def update(self, *args: Any, **kwargs: str) -> None:
        """Take over other headers; their values no longer show either."""
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def copy(self) -> SecretHeaders:
        """Return a copy, of the same generation."""
        return SecretHeaders(self, generation=self.generation)

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> SecretHeaders:
        return self.copy()

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged = self.copy()
        merged.update(other)
        return merged

    def __ror__(self, other: Any) -> Any:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged = SecretHeaders(other, generation=self.generation)
        merged.update(self)
        return merged

    def __ior__(self, other: Any) -> SecretHeaders:  # type: ignore[override]
        self.update(other)
        return self

    def __repr__(self) -> str:
        return f"<headers: {', '.join(self) or 'none'}>"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        _refuse_pickle(repr(self))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        _refuse_pickle(repr(self))


_SALT = os.urandom(32)
_generations = itertools.count(1)


def _digest(*parts: object) -> str:
    """Name what the parts say without saying it: nobody outside of this process can try guesses against it."""
    digest = blake2b(key=_SALT, digest_size=16)
    for part in parts:
        data = (part.reveal() if isinstance(part, Secret) else str(part)).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _sealed(value: object, strip: str | None = None) -> Secret | None:
    """Wrap a str, or bytes, without the white space around it; None for other things."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return Secret(str(value).strip(strip)) if isinstance(value, str) else None


def _read_env(name: str, strip: str | None = None) -> Secret:
    return Secret(os.environ.get(name, "").strip(strip))


def _token_flaw(token: Secret) -> str:
    text = token.reveal()
    if not text:
        return "is empty"
    if " " in text:
        return "holds a blank; it is the token alone, without the word 'Bearer'"
    return "" if text.isascii() and text.isprintable() else "holds a control character, or one outside of ASCII"


def _user_flaw(user: Secret) -> str:
    if ":" in user.reveal():
        return "holds a colon, which ends user names (RFC 7617)"
    return _password_flaw(user)


def _password_flaw(password: Secret) -> str:
    text = password.reveal()
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeError:
        return "holds what is no character"
    return "holds a control character" if _CONTROL.search(text) else ""


def _bearer_headers(token: Secret) -> SecretHeaders:
    return SecretHeaders({"Authorization": f"Bearer {token.reveal()}"})


def _basic_headers(user: Secret, password: Secret) -> SecretHeaders:
    pair = f"{user.reveal()}:{password.reveal()}".encode("utf-8", "surrogateescape")
    return SecretHeaders({"Authorization": "Basic " + base64.b64encode(pair).decode("ascii")})


def _read_headers(mapping: object) -> tuple[SecretHeaders, str]:
    """Return the headers that a mapping holds, and what is wrong with them: values do not show in that."""
    result = SecretHeaders()
    if not isinstance(mapping, Mapping):
        return result, f"is a {type(mapping).__name__}, not a mapping of header names to values"
    for name, value in dict(mapping).items():
        text = _sealed(value)
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            return result, "has a name that no HTTP header has"
        if text is None:
            return result, f"has a {type(value).__name__} as {name}, not a str"
        result[name] = text.reveal()
    return result, _headers_flaw(result)


def _headers_flaw(made: SecretHeaders) -> str:
    for name, value in made.items():
        if not _HEADER_NAME.fullmatch(name):
            return "has a name that no HTTP header has"
        if not _HEADER_VALUE.fullmatch(value):
            return f"has a line break, another control character, or one outside of Latin-1 in {name}"
    return ""


# --- where they may go ----------------------------------------------------------------------------------------------


class _Destination(NamedTuple):
    """What of a URL decides: the rest may name patients, and is not shown."""

    scheme: str
    host: str
    port: int | None
    userinfo: bool
    loopback: bool

    @classmethod
    def of(cls, url: str) -> _Destination | None:
        """Parse a URL; None if another parser could see another host in it."""
        try:
            parts = urlsplit(url)
            given, port = parts.hostname or "", parts.port
        except ValueError:
            return None
        if _CONTROL.search(url) or not given or re.search(r"[\s\\]", parts.netloc):
            return None
        # As it is written: that of 'localhost.' and '127.0.0.1.' is asked of a name server.
        address = _address(given)
        loopback = given == "localhost" or address == IPv6Address("::1")
        loopback = loopback or (isinstance(address, IPv4Address) and address.packed[0] == 127)
        return cls(parts.scheme, _plain_host(given), port, "@" in parts.netloc, loopback)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port is not None else "")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _plain_host(host: str) -> str:
    """Bring names of one host into one form: the dot that ends a fully qualified name does not make it another."""
    host = host.lower()
    if address := _address(host[1:-1] if host.startswith("[") and host.endswith("]") else host):
        return str(address)
    return host if _address(host.removesuffix(".")) else host.removesuffix(".")


def _host_names(hosts: Iterable[str]) -> tuple[str, ...]:
    names = sorted({_plain_host(str(host)) for host in ([hosts] if isinstance(hosts, str) else hosts)})
    if not all(_HOST.fullmatch(name) or isinstance(_address(name), IPv6Address) for name in names):
        raise OptionError(
            "hosts= are exact names of hosts, without scheme, port, path or wildcard, such as 'proxy.example.org'"
        )
    return tuple(names)


# --- what all have in common ----------------------------------------------------------------------------------------


class Credentials(ABC):
    """What proves to a server who is asking. Made by the functions of this module; never changes.

    Credentials that are equal have equal `identity` and hash, and share in a process what was made of them.
    """

    kind: str = ""
    """Name of the function that makes these."""

    def __init__(self, shown: str, identity: str, public: tuple[Any, ...] = (), *, travels: bool = True) -> None:
        self._shown = shown
        self._identity = identity
        self._public = public
        self._travels = travels

    @property
    def identity(self) -> str:
        """A name for these credentials in this process, for the keys of caches; it tells nothing about them."""
        return self._identity

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
        there = _Destination.of(url)
        del url  # it may hold a password itself
        problem = self._objection(there)
        if problem:
            raise CredentialsError(f"{there or 'this URL'}: {self!r} is not sent there: {problem}")
        made = self._make()
        flaw = _headers_flaw(made)
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
    def _make(self) -> SecretHeaders: ...

    @abstractmethod
    def _recipe(self) -> tuple[Any, ...]:
        """Return what `_again` takes to make equal credentials in another process."""

    @abstractmethod
    def _advice(self) -> str:
        """Say what may be wrong when a server does not know these credentials."""

    def _objection(self, there: _Destination | None) -> str:
        if there is None:
            return "its host can be read in more than one way, or not at all. Remedy: https://host/path"
        if there.userinfo:
            return "the URL has a user or password of its own. Remedy: leave them out, or give them as basic(...)"
        if there.scheme == "http" and not there.loopback:
            return (
                "plain HTTP shows it to everyone on the way, unless to localhost, 127.0.0.0/8 or ::1. Remedy: https://"
            )
        if there.scheme not in ("http", "https"):
            return "it is no HTTP server. Remedy: https://"
        return self._host_objection(there.host)

    def _host_objection(self, host: str) -> str:
        return ""

    def __repr__(self) -> str:
        return self._shown

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credentials) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __copy__(self) -> Credentials:
        return self

    def __deepcopy__(self, memo: object) -> Credentials:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._travels:
            _refuse_pickle(repr(self))
        return _again, self._recipe()

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # Names of tasks are seen by all users of a cluster, and the pixels are the same whoever asks.
        return (f"microtome.credentials.{self.kind}", *self._public)


def _again(function: Callable[..., Credentials], arguments: dict[str, Any], mark: str = "") -> Credentials:
    """Make credentials from a pickle; the mark says which callable of the first process this is a copy of."""
    if mark:
        _mark(next(iter(arguments.values())), mark)
    return function(**arguments)


def _call(name: str, *parts: str, **keywords: object) -> str:
    """Show the call that made some credentials, without what was not given."""
    named = [f"{key}={value!r}" for key, value in keywords.items() if value]
    return f"{name}({', '.join([*parts, *named])})"


def _masked(identity: str) -> str:
    return f"<secret {identity[:12]}>"  # fsspec knows filesystems apart by the repr of their arguments


class _Nobody(Credentials):
    kind = "none"

    def headers_for(self, url: str) -> SecretHeaders:
        return SecretHeaders()

    def _make(self) -> SecretHeaders:
        return SecretHeaders()

    def _recipe(self) -> tuple[Any, ...]:
        return none, {}

    def _advice(self) -> str:
        return (
            "pass credentials=, e.g. microtome.credentials.default() for Google Cloud, or "
            "microtome.credentials.bearer(env=...) or basic(user, env=...) for other servers"
        )


class _HostBound(Credentials):
    """Credentials for certain hosts, if any are named."""

    def __init__(self, *args: Any, hosts: tuple[str, ...] | None = None, travels: bool = True) -> None:
        super().__init__(*args, travels=travels)
        self._hosts = hosts

    def _host_objection(self, host: str) -> str:
        if self._hosts is None or host in self._hosts:
            return ""
        return f"it is for {', '.join(self._hosts)} only. Remedy: hosts=[..., {host!r}], if the server is to be trusted"


class _Literal(_HostBound):
    """A secret that was given as it is."""

    def __init__(
        self,
        function: Callable[..., Credentials],
        fixed: SecretHeaders,
        arguments: dict[str, Secret],
        shown: str = "",
        *,
        hosts: tuple[str, ...] | None = None,
        travel: bool,
    ) -> None:
        name = function.__name__
        identity = _digest(name, "literal", *itertools.chain(*sorted(arguments.items())), hosts, travel)
        text = _call(name, shown + _masked(identity), hosts=hosts, travel=travel)
        public = (hosts,) if name == "bearer" else tuple(sorted(fixed)) if name == "headers" else ()
        super().__init__(text, identity, public, hosts=hosts, travels=travel)
        self.kind = name
        self._function, self._fixed, self._arguments = function, fixed, arguments

    def _make(self) -> SecretHeaders:
        return self._fixed.copy()

    def _recipe(self) -> tuple[Any, ...]:
        arguments: dict[str, Any] = {name: secret.reveal() for name, secret in self._arguments.items()}
        if self._function is headers:
            arguments = {"mapping": arguments}
        if self._hosts is not None:
            arguments["hosts"] = self._hosts
        return self._function, arguments | {"travel": True}

    def _advice(self) -> str:
        if self.kind == "bearer":
            return "has the token expired? Pass a new one, or a function that makes one: bearer(function)"
        if self.kind == "basic":
            return "are user name and password right?"
        return f"are these headers right, and all that the server wants: {', '.join(self._fixed)}?"


class _FromEnv(_HostBound):
    """A secret that an environment variable holds, read at each use: it may change in the meantime."""

    def __init__(self, env: str, user: Secret | None, hosts: tuple[str, ...] | None = None) -> None:
        self.kind = "bearer" if user is None else "basic"
        identity = _digest(self.kind, "env", env, hosts, user or "")
        who = () if user is None else (f"<user {identity[:12]}>",)
        super().__init__(_call(self.kind, *who, env=env, hosts=hosts), identity, (env, hosts), hosts=hosts)
        self._env, self._user = env, user

    def _make(self) -> SecretHeaders:
        # Blanks may belong to a password; the line break of the file that it was read from does not.
        secret = _read_env(self._env, None if self._user is None else "\r\n")
        flaw = _token_flaw(secret) if self._user is None else _password_flaw(secret)
        if not secret.reveal():
            flaw = f"is {'empty' if self._env in os.environ else 'not set'} in this process"
        if flaw:
            raise CredentialsError(
                f"{self!r}: the environment variable {self._env} {flaw}. Remedy: set it, also where workers are started"
            )
        return _bearer_headers(secret) if self._user is None else _basic_headers(self._user, secret)

    def refresh(self, stale: SecretHeaders) -> bool:
        return _differ(self._make(), stale)

    def _recipe(self) -> tuple[Any, ...]:
        if self._user is not None:
            return basic, {"user": self._user.reveal(), "env": self._env}
        return bearer, {"env": self._env, "hosts": self._hosts}

    def _advice(self) -> str:
        return f"is {self._env} current? The environment variable is read at each use, so it can be set anew"


# --- what is made once and kept -------------------------------------------------------------------------------------


class _Kept:
    """What a process made of a recipe."""

    __slots__ = ("google", "headers", "lock", "pid", "renewed")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.headers: SecretHeaders | None = None
        self.google: Any = None
        self.renewed = float("-inf")


_keeping = threading.Lock()
_kept: OrderedDict[str, _Kept] = OrderedDict()


def _after_fork() -> None:
    global _keeping
    _keeping = threading.Lock()  # it may have been held by a thread that is not here
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _share(identity: str) -> _Kept:
    with _keeping:
        kept = _kept.setdefault(identity, _Kept())
        _kept.move_to_end(identity)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        return kept


class _Keeping(_HostBound):
    """Credentials that are made at the first use and again after `refresh`."""

    _here: _Kept | None = None

    def _mine(self) -> _Kept:
        kept = self._here
        if kept is None or kept.pid != os.getpid():
            kept = self._here = _share(self._identity)
        return kept


def _differ(new: SecretHeaders, stale: SecretHeaders) -> bool:
    return any(stale.get(name) != value for name, value in new.items())


_marks: dict[tuple[int, str], tuple[weakref.ref[Any], str]] = {}


def _mark(thing: object, mark: str = "") -> str:
    """Return a name that no other object has or had; ``id`` is given again when an object is gone.

    Copies that come by pickle bring the mark of the first, so that all tasks of a worker share what one of them made.
    """
    owner, part = (thing.__self__, thing.__func__.__qualname__) if isinstance(thing, MethodType) else (thing, "")
    key = (id(owner), part)
    held = _marks.get(key)
    if held is not None and held[0]() is owner:
        return held[1]
    mark = mark or uuid.uuid4().hex
    try:
        reference = weakref.ref(owner, lambda gone: _forget(key, gone))
    except TypeError:  # it cannot be recognised again: then it equals itself only
        return mark
    _marks[key] = (reference, mark)
    return mark


def _forget(key: tuple[int, str], gone: weakref.ref[Any]) -> None:
    if key in _marks and _marks[key][0] is gone:
        del _marks[key]


class _Source:
    """A function of the user, which may be a ``partial`` that holds a password: it shows its name only."""

    __slots__ = ("function", "mark", "name")

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.mark = _mark(function)
        named = function if hasattr(function, "__qualname__") else type(function)
        self.name = f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', '')}"

    def __repr__(self) -> str:
        return f"<callable {self.name}>"

    def token(self) -> tuple[SecretHeaders, str]:
        """Call it for a token; what is wrong is returned."""
        try:
            token = _sealed(self.function())
        except Exception as e:
            return SecretHeaders(), _raised(e)
        if token is None:
            return SecretHeaders(), "does not return a str"
        flaw = _token_flaw(token)
        return (SecretHeaders(), f"returns a token that {flaw}") if flaw else (_bearer_headers(token), "")

    def headers(self) -> tuple[SecretHeaders, str]:
        """Call it for headers; what is wrong is returned."""
        try:
            made, flaw = _read_headers(self.function())
        except Exception as e:
            return SecretHeaders(), _raised(e)
        return made, f"returns what {flaw}" if flaw else ""


def _raised(error: Exception) -> str:
    return f"raises {type(error).__name__}, whose words are not repeated here, for they may hold a secret"


class _Called(_Keeping):
    """What a function of the user returns: a token, or headers."""

    def __init__(self, kind: str, source: _Source, hosts: tuple[str, ...] | None = None) -> None:
        self.kind = kind
        identity = _digest(kind, "callable", source.mark, hosts)
        shown = _call(kind, f"<callable {source.name} {identity[:12]}>", hosts=hosts)
        super().__init__(shown, identity, (source.name, hosts), hosts=hosts)
        self._source = source

    def _fetch(self, kept: _Kept) -> SecretHeaders:
        made, flaw = self._source.token() if self.kind == "bearer" else self._source.headers()
        if flaw:
            raise CredentialsError(f"{self!r}: {self._source!r} {flaw}. Remedy: call it by itself to see what it does")
        made.generation = next(_generations)
        kept.headers = made
        return made

    def _make(self) -> SecretHeaders:
        kept = self._mine()
        with kept.lock:
            return (self._fetch(kept) if kept.headers is None else kept.headers).copy()

    def refresh(self, stale: SecretHeaders) -> bool:
        kept = self._mine()
        with kept.lock:
            made = kept.headers
            if made is None or made.generation == stale.generation:
                made = self._fetch(kept)
            return _differ(made, stale)

    def _recipe(self) -> tuple[Any, ...]:
        if self.kind == "bearer":
            return bearer, {"token": self._source.function, "hosts": self._hosts}, self._source.mark
        return resolve, {"value": self._source.function}, self._source.mark

    def _advice(self) -> str:
        return f"{self._source!r} was asked for new ones, if it has any; are they for this server?"


# --- Google ---------------------------------------------------------------------------------------------------------


class _Trouble(NamedTuple):
    """Why something of google-auth failed, in words that hold no secret."""

    why: str
    passing: bool


class _HideTokens(logging.Filter):
    """Keep what google-auth sends out of its records for debugging: it masks some tokens, but not signed assertions."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name in ("httpRequest", "httpResponse"):
            logged = getattr(record, name, None)
            if isinstance(logged, dict):
                setattr(record, name, {key: logged[key] for key in ("method", "url", "status") if key in logged})
        return True


_hide_tokens = _HideTokens()


def _google_auth() -> Any:
    try:
        import google.auth
        import google.auth.exceptions
        import google.auth.transport.requests
        import google.oauth2.service_account
    except ImportError:
        found = None
    else:
        found = google
        logging.getLogger("google.auth.transport.requests").addFilter(_hide_tokens)
    if found is None:
        raise MissingDependencyError(
            "credentials of Google Cloud need google-auth and requests. Remedy: pip install 'microtome[google]'"
        )
    return found


def _transport() -> Any:
    """Return what google-auth asks for tokens with; made for each, for that is once an hour."""
    return _google_auth().auth.transport.requests.Request()


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


class _Google(_Keeping):
    """Credentials of google-auth; it knows when their tokens expire."""

    reload: ClassVar[bool] = True

    def __init__(self, *args: Any, hosts: tuple[str, ...], travels: bool = True) -> None:
        super().__init__(*args, hosts=hosts, travels=travels)

    @abstractmethod
    def _load(self) -> Any:
        """Return the object of google-auth; may raise anything."""

    @abstractmethod
    def _remedy(self) -> str: ...

    def _host_objection(self, host: str) -> str:
        if _GOOGLE_HOST.fullmatch(host) or host in (self._hosts or ()):
            return ""
        return (
            "tokens of Google Cloud go to googleapis.com and the hosts below it only. "
            f"Remedy: hosts=[{host!r}], if it is a proxy that is to be trusted with them"
        )

    def _fail(self, trouble: _Trouble) -> NoReturn:
        remedy = "look at the network and its proxy, then try again" if trouble.passing else self._remedy()
        raise CredentialsError(f"{self!r}: {trouble.why}. Remedy: {remedy}")

    # google-auth's object stays in kept.google and is no local variable, for its repr may show anything.

    def _renew(self, kept: _Kept, *, urgent: bool) -> None:
        for wait in (*WAITS, None) if urgent else (None,):
            _, trouble = _trying(lambda: kept.google.refresh(_transport()))
            if trouble is None or not trouble.passing or wait is None:
                break
            time.sleep(wait)
        kept.renewed = time.monotonic()
        if trouble is None and getattr(kept.google, "token", None) is None:
            trouble = _Trouble("the server that gives tokens gave none", False)
        if trouble is not None and (urgent or not trouble.passing):
            if self.reload:
                kept.google = None  # so that a new login, or a new key file, is found
            self._fail(trouble)

    def _applied(self, kept: _Kept) -> SecretHeaders:
        made = SecretHeaders()
        _, trouble = _trying(lambda: kept.google.apply(made))
        if trouble is not None:
            self._fail(trouble)
        if "authorization" in made:
            made["Authorization"] = made.pop("authorization")
        if kept.headers is None or kept.headers != made:
            made.generation = next(_generations)
            kept.headers = made
        return kept.headers.copy()

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
        kept = self._mine()
        with kept.lock:
            made = self._make()
            # Others who hold the object may have renewed it: then its headers are of a new generation already.
            if made.generation == stale.generation:
                if not _renewable(kept.google):
                    return False
                self._renew(kept, urgent=True)
                made = self._applied(kept)
            return _differ(made, stale)

    def _advice(self) -> str:
        return f"{self._remedy()}; and has this account a role that may read here, e.g. roles/healthcare.dicomViewer?"


class _Default(_Google):
    kind = "default"

    def __init__(self, hosts: tuple[str, ...], scopes: tuple[str, ...]) -> None:
        other = scopes if scopes != CLOUD_PLATFORM else ()
        super().__init__(
            _call("default", hosts=hosts, scopes=other), _digest("default", hosts, scopes), (hosts, scopes), hosts=hosts
        )
        self._scopes = scopes

    def _load(self) -> Any:
        return _google_auth().auth.default(scopes=self._scopes)[0]

    def _recipe(self) -> tuple[Any, ...]:
        return default, {"hosts": self._hosts, "scopes": self._scopes}

    def _remedy(self) -> str:
        return (
            "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS with the path of a key file, or "
            "a service account attached to the machine"
        )


class _ServiceAccount(_Google):
    kind = "service_account"

    def __init__(
        self, path: str, key: Secret | None, hosts: tuple[str, ...], scopes: tuple[str, ...], travel: bool
    ) -> None:
        identity = _digest("service_account", path, key or "", hosts, scopes, key and travel)
        other = scopes if scopes != CLOUD_PLATFORM else ()
        text = repr(path) if key is None else _masked(identity)
        shown = _call("service_account", text, hosts=hosts, scopes=other, travel=key and travel)
        super().__init__(shown, identity, (path, hosts, scopes), hosts=hosts, travels=travel or key is None)
        self._path, self._key, self._scopes = path, key, scopes

    def _load(self) -> Any:
        maker = _google_auth().oauth2.service_account.Credentials
        if self._key is None:
            return maker.from_service_account_file(self._path, scopes=self._scopes)
        return maker.from_service_account_info(json.loads(self._key.reveal()), scopes=self._scopes)

    def _recipe(self) -> tuple[Any, ...]:
        account: Any = self._path if self._key is None else json.loads(self._key.reveal())
        arguments = {"file_or_dict": account, "hosts": self._hosts, "scopes": self._scopes}
        return service_account, arguments | ({} if self._key is None else {"travel": True})

    def _remedy(self) -> str:
        file = "is the file there, also for workers, and readable; " if self._key is None else ""
        return f"{file}is the key of this service account valid, and the clock of this machine right?"


class _Given(_Google):
    kind = "google"
    reload = False

    def __init__(self, given: Any, hosts: tuple[str, ...], travel: bool) -> None:
        self._mark = _mark(given)
        identity = _digest("google", self._mark, hosts, travel)
        name = f"{type(given).__module__}.{type(given).__qualname__}"
        shown = _call("google", f"<{name} {identity[:12]}>", hosts=hosts, travel=travel)
        super().__init__(shown, identity, (name, hosts), hosts=hosts, travels=travel)
        self._given = _Object(given)

    def _load(self) -> Any:
        return self._given.value

    def _recipe(self) -> tuple[Any, ...]:
        arguments = {"credentials_object": self._given.value, "hosts": self._hosts, "travel": True}
        return google, arguments, self._mark

    def _remedy(self) -> str:
        return "make the object that was given to google(...) anew: log in again, or load the key again"


class _Object:
    """Something whose repr may show more than it should."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


# --- the functions --------------------------------------------------------------------------------------------------

_Token: TypeAlias = "str | bytes | Callable[[], str | bytes]"


def default(*, hosts: Iterable[str] = (), scopes: Iterable[str] = CLOUD_PLATFORM) -> Credentials:
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
    return _Default(_host_names(hosts), _scopes(scopes))


def service_account(
    file_or_dict: str | os.PathLike[str] | Mapping[str, Any],
    *,
    hosts: Iterable[str] = (),
    scopes: Iterable[str] = CLOUD_PLATFORM,
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
    path, key, flaw = _read_account(file_or_dict)
    del file_or_dict
    if flaw:
        raise OptionError(f"service_account: {flaw}. It takes the path of a JSON key file, or the mapping it holds")
    return _ServiceAccount(path, key, _host_names(hosts), _scopes(scopes), travel)


def _read_account(given: object) -> tuple[str, Secret | None, str]:
    """Return a path, or a key, or what is wrong; a key that is given as text is not taken for a path and shown."""
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
    if isinstance(given, bytes):
        given = given.decode("utf-8", "surrogateescape")
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError:
            return "", None, "this is a text that starts like JSON and is none"
    if isinstance(given, str):
        if not given.strip() or "\n" in given or "-----BEGIN" in given:
            return "", None, "this is neither a path nor a key as JSON"
        return os.path.abspath(os.path.expanduser(given)), None, ""
    if not isinstance(given, Mapping):
        return "", None, f"this is a {type(given).__name__}"
    lacking = {"client_email", "private_key", "token_uri"} - given.keys()
    if lacking:
        return "", None, f"the mapping has no {', '.join(sorted(lacking))}"
    try:
        return "", Secret(json.dumps(dict(given), sort_keys=True)), ""
    except (TypeError, ValueError):
        return "", None, "the mapping holds what JSON cannot"


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
    wanted = token is not None
    source = _Source(token) if callable(token) else None
    secret = None if source else _sealed(token)
    del token
    env, flaw = _variable(env)
    if flaw:
        raise OptionError(f"bearer: {flaw}")
    if wanted == (env is not None):
        raise OptionError("bearer: either a token (a str, or a function that returns one) or env=, its variable's name")
    names = None if hosts is None else _host_names(hosts)
    if names == ():
        raise OptionError("bearer: hosts=() names no host; None allows any")
    if env is not None:
        return _FromEnv(env, None, names)
    if source is not None:
        return _Called("bearer", source, names)
    if secret is None:
        raise OptionError("bearer: a token is a str, or a function that returns one")
    flaw = _token_flaw(secret)
    if flaw:
        raise CredentialsError(f"bearer: the token {flaw}. Remedy: look at where it comes from")
    return _Literal(bearer, _bearer_headers(secret), {"token": secret}, hosts=names, travel=travel)


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
    given = _Object(credentials_object)
    del credentials_object
    if isinstance(given.value, type) or not all(hasattr(given.value, name) for name in ("apply", "refresh", "valid")):
        raise OptionError(f"google: a google.auth.credentials.Credentials is needed, not a {_type(given.value)}")
    return _Given(given.value, _host_names(hosts), travel)


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
    who, wanted, secret = _sealed(user, "\r\n"), password is not None, _sealed(password, "\r\n")
    del user, password
    env, flaw = _variable(env)
    if flaw:
        raise OptionError(f"basic: {flaw}")
    if wanted == (env is not None):
        raise OptionError("basic: either a password or env=, the name of its variable")
    if who is None or (wanted and secret is None):
        raise OptionError("basic: user and password are str")
    flaw = _user_flaw(who)
    if flaw:
        raise CredentialsError(f"basic: the user name {flaw}. Remedy: look at where it comes from")
    if env is not None:
        return _FromEnv(env, who)
    assert secret is not None
    flaw = _password_flaw(secret)
    if flaw:
        raise CredentialsError(f"basic: the password {flaw}. Remedy: look at where it comes from")
    return _Literal(basic, _basic_headers(who, secret), {"user": who, "password": secret}, travel=travel)


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
    is_mapping, some = isinstance(mapping, Mapping), bool(mapping)
    fixed, flaw = _read_headers(mapping)
    del mapping
    if not is_mapping or not some:
        raise OptionError("headers: a mapping of header names to values is needed; none() is for no headers")
    if flaw:
        raise CredentialsError(f"headers: the mapping {flaw}. Remedy: look at where it comes from")
    shown = f"{', '.join(fixed)}: "
    return _Literal(headers, fixed, {name: Secret(str(fixed[name])) for name in fixed}, shown, travel=travel)


def none() -> Credentials:
    """Return no credentials, for servers that ask for none.

    Examples
    --------
    >>> dict(none().headers_for("https://example.org"))
    {}
    """
    return _Nobody("none()", _digest("none"))


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
    source, name = _Source(value) if callable(value) and not isinstance(value, type) else None, _type(value)
    del value
    if source is None or name.startswith("requests.auth."):
        raise OptionError(
            f"credentials= of type {name}: it takes what default(), service_account(), bearer(), google(), basic(), "
            "headers() or none() of microtome.credentials return, or a function that returns headers"
        )
    return _Called("headers", source)


def refusal_remedy(credentials: Credentials, status: int = 401) -> str:
    """Return what a user can do when a server does not take these credentials, for the end of an error's message.

    Parameters
    ----------
    credentials
        What was sent, or `none`.
    status
        What the server answered: 401, it does not know who asks; or 403, it knows and does not allow it.
    """
    if status == 403 and not isinstance(credentials, _Nobody):
        return f"{credentials!r} may not read here: ask whoever runs the server for access ({credentials._advice()})"
    return credentials._advice()


def _type(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    return (scopes,) if isinstance(scopes, str) else tuple(scopes)


def _variable(name: str | None) -> tuple[str | None, str]:
    """Return the name of a variable, or what is wrong: a token that was given in place of a name must not show."""
    if name is None or (isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name)):
        return name, ""
    return None, "env= is the name of an environment variable: letters, digits and underscores"
