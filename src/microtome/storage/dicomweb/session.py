"""Requests to one server: a bounded pool of connections, credentials, retries, time limits, errors without secrets."""

from __future__ import annotations

import email.utils
import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urljoin, urlsplit

from microtome import config
from microtome.errors import AuthenticationError, NotOnServerError, ProtocolError, RequestError
from microtome.storage import credentials as credentials_
from microtome.storage.dicomweb.address import origin, same_origin

if TYPE_CHECKING:
    import requests

    from microtome.storage.credentials import Credentials, SecretHeaders

__all__ = ["Answer", "CutShortError", "Query", "Session"]

T = TypeVar("T")
Query = Mapping[str, str] | tuple[tuple[str, str], ...]

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
MAX_WORDS = 4 << 10
"""Bytes of an error page that are read for the server's own words."""
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for a longer pause is not waited for."""
_BACKOFF, _LONGEST_BACKOFF = 0.25, 8.0
_CHUNK = 1 << 18
_SLOWEST = 64
"""Bytes a second, over the time limit: a server that sends less has stalled."""


class CutShortError(ProtocolError):
    """An answer ended before it was complete: worth another try. Only seen outside if every try ended so."""


@dataclass(slots=True)
class _Failure:
    """Why a try failed."""

    why: str
    again: bool
    status: int | None = None
    wait: float | None = None
    kind: type[RequestError] = RequestError


@dataclass(slots=True)
class Answer:
    """An answer whose body may not have been read yet."""

    url: str
    status: int
    headers: Mapping[str, str]
    _raw: Any = field(repr=False)
    received: int = 0
    """Bytes of the body so far, as they came over the wire or, where they came compressed, unpacked."""

    @property
    def content_type(self) -> str:
        """The Content-Type, empty where there is none."""
        return self.headers.get("content-type", "")

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises
        ------
        CutShortError
            The server sends next to nothing for longer than ``config.get().http_timeout``.
        """
        limit = config.get().http_timeout
        since, before = time.monotonic(), 0
        while data := self._raw.read1(_CHUNK, decode_content=True):
            self.received += len(data)
            now = time.monotonic()
            if now - since > limit:
                if self.received - before < _SLOWEST * limit:
                    raise CutShortError(f"the server sent {self.received - before} bytes in {limit} s")
                since, before = now, self.received
            yield data

    def body(self, limit: int | None = None) -> bytes:
        """Return the whole body.

        Raises
        ------
        ProtocolError
            It is longer than ``limit`` bytes.
        """
        pieces = []
        for data in self.chunks():
            pieces.append(data)
            if limit is not None and self.received > limit:
                raise ProtocolError(f"{self.url}: the answer is longer than {limit} bytes")
        return b"".join(pieces)


class Session:
    """Requests to a service, from any thread.

    Parameters
    ----------
    root
        URL of the service.
    credentials
        What each request is signed with.
    allow_hosts
        Other hosts that redirects and bulk data may lead to; they never see the credentials.
    """

    def __init__(self, root: str, credentials: Credentials, allow_hosts: tuple[str, ...] = ()) -> None:
        self.root = root
        self.credentials = credentials
        self._allowed = frozenset(host.lower() for host in allow_hosts)
        self._lock = threading.Lock()
        self._http: requests.Session | None = None
        self._not_before = 0.0
        self.sent = 0
        """Requests sent so far, those that failed included."""

    def request(
        self,
        method: str,
        url: str,
        *,
        accept: str,
        read: Callable[[Answer], T],
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
        idempotent: bool = True,
    ) -> T:
        """Send a request, and again while it fails for a reason that may pass.

        Parameters
        ----------
        method, url, accept, query, headers
            Of the request; values of ``query`` are never shown.
        read
            Makes a result of a successful answer. What it raises ends the request, except `CutShortError` and errors of
            the connection, after which all is done once more.
        body
            Makes the body of each try.
        idempotent
            Whether the request may be repeated after its body may have reached the server.

        Raises
        ------
        NotOnServerError, AuthenticationError, ProtocolError, RequestError
            With the server's own words.
        """
        names = sorted(dict(query))
        where = url.split("?")[0] + (f" (query: {', '.join(names)})" if names else "")
        retries = config.get().http_retries
        refreshed = False
        tries = 0
        while True:
            self._pause(0)
            used = self._sign(url)
            outcome = self._try(method, url, accept, read, query, headers or {}, body, used)
            if not isinstance(outcome, _Failure):
                return outcome
            if outcome.status == 401 and not refreshed and used is not None:
                refreshed = True
                if self.credentials.refresh(used):
                    continue
            tries += 1
            allowed = min(retries, 2) if outcome.status == 500 else retries
            repeatable = idempotent or outcome.status in (429, 503)
            if not outcome.again or not repeatable or tries > allowed or (outcome.wait or 0) > LONGEST_WAIT:
                break
            if outcome.wait is not None:
                self._not_before = max(self._not_before, time.monotonic() + outcome.wait)
            # A kept connection that the server has closed meanwhile is no sign of trouble: the next try is at once.
            self._pause(0 if tries == 1 and outcome.status is None else _backoff(tries))
        raise self._error(where, outcome, tries)

    def _sign(self, url: str) -> SecretHeaders | None:
        return self.credentials.headers_for(url) if same_origin(url, self.root) else None

    def _pause(self, seconds: float) -> None:
        wait = max(seconds, self._not_before - time.monotonic())
        if wait > 0:
            time.sleep(wait)

    def _error(self, where: str, failure: _Failure, tries: int) -> RequestError:
        again = f" ({tries} tries)" if tries > 1 else ""
        status = f"HTTP {failure.status}" if failure.status is not None else ""
        text = f"{where}: {': '.join(t for t in (status, failure.why) if t)}{again}"
        if failure.status in (401, 403):
            return AuthenticationError(
                f"{text}. {credentials_.refusal_remedy(self.credentials, failure.status)}", failure.status
            )
        if failure.status in (404, 410):
            return NotOnServerError(text, failure.status)
        return failure.kind(text, failure.status)

    # What an exception of requests holds in its traceback (headers, and so secrets) must not be seen: `_try` returns
    # what went wrong in words, and the error is raised by a frame that has never seen the exception.

    def _try(
        self,
        method: str,
        url: str,
        accept: str,
        read: Callable[[Answer], T],
        query: Query,
        headers: Mapping[str, str],
        body: Callable[[], Any] | None,
        used: SecretHeaders | None,
    ) -> T | _Failure:
        import requests
        import urllib3

        http = self._session()
        signed = _Sign(used)
        settings = config.get()
        # A server that accepts connections may still be slow to answer; one that does not is found out sooner.
        limits = (min(settings.http_timeout, 10), settings.http_timeout)
        redirects = 0
        try:
            while True:
                self.sent += 1
                response = http.request(
                    method, url, params=None if redirects else _pairs(query), data=body() if body else None,
                    headers={"Accept": accept, **headers}, auth=signed, stream=True, allow_redirects=False,
                    timeout=limits,
                )  # fmt: skip
                with response:
                    target = self._redirected(response, url)
                    if isinstance(target, _Failure):
                        return target
                    if target is not None and redirects < MAX_REDIRECTS:
                        redirects += 1
                        url = target
                        signed = _Sign(self._sign(url))
                        response.raw.drain_conn()
                        continue
                    answer = Answer(url.split("?")[0], response.status_code, _lower(response), response.raw)
                    if 200 <= answer.status < 300:
                        return read(answer)
                    return self._refused(answer, query, signed)
        except CutShortError as e:
            return _Failure(str(e).removeprefix(f"{url}: "), again=True, kind=ProtocolError)
        except requests.exceptions.SSLError as e:
            return _Failure(f"no encrypted connection can be made ({_reason(e)})", again=False)
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            return _Failure(f"the server did not answer within {settings.http_timeout} s", again=True)
        except (
            requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError,
        ) as e:  # fmt: skip
            if isinstance(e, RequestError):
                raise
            return _Failure(f"the connection failed ({_reason(e)})", again=True)

    def _redirected(self, response: requests.Response, url: str) -> str | _Failure | None:
        """Return where an answer leads to; None where it leads nowhere."""
        location = response.headers.get("location", "")
        if response.status_code not in _REDIRECTS or not location:
            return None
        target = urljoin(url, location)
        host = urlsplit(target).hostname or ""
        if not same_origin(target, self.root) and host.lower() not in self._allowed:
            return _Failure(
                f"leads to another host, {host or 'none'}, which is not followed; to allow it, without credentials, "
                f"pass storage_options={{'allow_hosts': [{host!r}]}}",
                again=False,
                status=response.status_code,
            )
        if not target.lower().startswith(("http://", "https://")):
            return _Failure("leads to something that is no web server", again=False, status=response.status_code)
        return target

    def _refused(self, answer: Answer, query: Query, signed: _Sign) -> _Failure:
        words = _words(answer, [*dict(query).values(), *signed.secrets()])
        wait = _retry_after(answer.headers.get("retry-after", ""))
        if wait is not None and wait > LONGEST_WAIT:
            words = f"asks to wait {wait:.0f} s; {words}"
        if answer.status in _REDIRECTS:
            words = f"too many redirects; {words}"
        return _Failure(words or "no reason is given", answer.status in _AGAIN, answer.status, wait)

    def may_fetch(self, url: str) -> None:
        """Refuse a URL of a host that is neither the service's nor allowed.

        Raises
        ------
        RequestError
            It is of another host.
        """
        host = origin(url)[1]
        if not same_origin(url, self.root) and host not in self._allowed:
            raise RequestError(
                f"{self.root}: refers to another host, {host}, which is not asked; to allow it, without credentials, "
                f"pass storage_options={{'allow_hosts': [{host!r}]}}"
            )

    def _session(self) -> requests.Session:
        if self._http is None:
            with self._lock:
                if self._http is None:
                    self._http = _make_session(config.get().http_connections)
                    _hide_queries()
        return self._http

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            if self._http is not None:
                self._http.close()
                self._http = None


def _make_session(connections: int) -> requests.Session:
    from http.cookiejar import DefaultCookiePolicy

    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    adapter = HTTPAdapter(pool_connections=4, pool_maxsize=connections, max_retries=0, pool_block=True)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # a service of resources has no sessions
    session.headers["User-Agent"] = "microtome"
    return session


class _Sign:
    """Adds secret headers to a request at the last moment; no frame of ours holds them in a plain mapping.

    requests lets no ``~/.netrc`` overrule what it does.
    """

    def __init__(self, headers: SecretHeaders | None) -> None:
        self._headers = headers

    def __call__(self, request: Any) -> Any:
        request.headers.update(self._headers or {})
        return request

    def secrets(self) -> list[str]:
        """Return what must not be shown."""
        return [word for value in (self._headers or {}).values() for word in (value, value.rpartition(" ")[2])]


def _pairs(query: Query) -> list[tuple[str, str]]:
    return list(query.items()) if isinstance(query, Mapping) else list(query)


def _lower(response: requests.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _backoff(tries: int) -> float:
    longest: float = min(_BACKOFF * 2**tries, _LONGEST_BACKOFF)
    return random.uniform(longest / 2, longest)


def _retry_after(value: str) -> float | None:
    """Return the seconds of a Retry-After header, which states them or a date (RFC 9110 10.2.3)."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value[:9])
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, date.timestamp() - time.time())


def _reason(error: BaseException) -> str:
    """Return why the network failed, in the system's words; those of other errors may quote the request."""
    queue: list[Any] = [error]
    for e in queue:
        if isinstance(e, OSError) and isinstance(e.errno, int) and e.strerror:
            return e.strerror
        queue += [x for x in (*e.args, e.__cause__, e.__context__, getattr(e, "reason", None)) if _new(x, queue)]
    return type(queue[-1]).__name__


def _new(error: Any, seen: list[Any]) -> bool:
    return isinstance(error, BaseException) and not any(error is s for s in seen) and len(seen) < 16


def _words(answer: Answer, secrets: list[str]) -> str:
    """Return what a server says about an error in a line, without anything that the request had told it."""
    try:
        data = b""
        for chunk in answer.chunks():
            data += chunk
            if len(data) >= MAX_WORDS:
                break
    except Exception:  # the status says enough
        return ""
    text = data[:MAX_WORDS].decode("utf-8", "replace")
    found = re.findall(r'"(?:Details|Message|message|error|description|detail)"\s*:\s*("(?:[^"\\]|\\.)*")', text)
    if found:
        text = "; ".join(dict.fromkeys(_unquoted(word) for word in found))
    text = re.sub(r"<(script|style|title)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    for secret in sorted({form for s in secrets for form in _forms(s)}, key=len, reverse=True):
        text = text.replace(secret, "…")
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:299] + "…"


def _unquoted(word: str) -> str:
    try:
        return str(json.loads(word))
    except ValueError:
        return word


def _forms(secret: str) -> list[str]:
    """Return a value as a server may echo it."""
    bare = secret.strip("*?")
    forms = {secret, bare, quote(secret), quote(secret, safe=""), unquote(secret), json.dumps(secret)[1:-1]}
    return [form for form in forms if len(form) > 1]


class _QueryFilter(logging.Filter):
    """Takes queries out of what urllib3 logs of each request: they may hold the name of a patient."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                a.split("?")[0] + "?…" if isinstance(a, str) and "?" in a and "/" in a else a for a in record.args
            )
        return True


_filter = _QueryFilter()


def _hide_queries() -> None:
    logging.getLogger("urllib3.connectionpool").addFilter(_filter)
