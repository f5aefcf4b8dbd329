"""Requests to one server: credentials, redirects, retries, time limits, errors without secrets."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urljoin

from microtome import config
from microtome.errors import AuthenticationError, NotOnServerError, ProtocolError, RequestError
from microtome.storage import credentials as credentials_
from microtome.storage import limits, retrying
from microtome.storage.dicomweb.address import origin, same_origin
from microtome.storage.dicomweb.answer import Answer, CutShortError
from microtome.storage.dicomweb.transport import Sign, failure_words, make_http, proxies_for
from microtome.storage.dicomweb.words import server_words
from microtome.storage.forks import renew_in_forks

if TYPE_CHECKING:
    import requests

    from microtome.storage.credentials import Credentials, SecretHeaders

__all__ = ["Answer", "CutShortError", "Query", "Session", "is_of_server"]

T = TypeVar("T")
Query = Mapping[str, str] | tuple[tuple[str, str], ...]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Of a query, these say nothing of a patient, and a server's words about them are of use.
_PUBLIC = frozenset({"limit", "offset", "includefield", "fuzzymatching", "Modality"})
MAX_REDIRECTS = 5
_SHORT = 64 << 10
"""Bytes of a body that are rather read than the connection given up."""


def is_of_server(error: RequestError) -> bool:
    """Tell whether an error says nothing of what was asked: whatever had been asked, it would have met it."""
    if error.status is None:
        return not isinstance(error, ProtocolError)
    return isinstance(error, AuthenticationError) or error.status in retrying.AGAIN - {500}


@dataclass(slots=True)
class _Failure:
    """Why a try failed."""

    why: str
    again: bool
    status: int | None = None
    wait: float | None = None
    kind: type[RequestError] = RequestError
    used: SecretHeaders | None = field(default=None, repr=False)
    """What the request was signed with."""


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
        renew_in_forks(self)

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
        sending: Callable[[], None] | None = None,
        accepted: Collection[int] = (),
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
        sending
            Called whenever a request is sent: for each try, and each redirect.
        accepted
            Statuses beyond 299 whose answers ``read`` reads, too.

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
            outcome = self._try(method, url, accept, read, query, headers or {}, body, sending, accepted)
            if not isinstance(outcome, _Failure):
                return outcome
            if outcome.status == 401 and not refreshed and outcome.used is not None:
                refreshed = True
                if self.credentials.refresh(outcome.used):
                    continue
            refreshed = outcome.status == 401  # credentials may expire once more while a server is waited for
            tries += 1
            allowed = min(retries, 2) if outcome.status == 500 else retries
            repeatable = idempotent or outcome.status in (429, 503)
            if not outcome.again or not repeatable or tries > allowed or (outcome.wait or 0) > retrying.LONGEST_WAIT:
                break
            if outcome.wait is not None:
                self._not_before = max(self._not_before, time.monotonic() + outcome.wait)
            # A kept connection that the server has closed meanwhile is no sign of trouble: the next try is at once.
            self._pause(0 if tries == 1 and outcome.status is None else retrying.backoff(tries))
        raise self._error(where, outcome, tries)

    def _sign(self, url: str) -> SecretHeaders | None:
        return self.credentials.headers_for(url) if same_origin(url, self.root) else None

    def _pause(self, seconds: float) -> None:
        told = self._not_before - time.monotonic()
        if told > seconds:
            seconds = told + random.uniform(0, retrying.BACKOFF)  # all who wait would come back at once
        if seconds > 0:
            time.sleep(seconds)

    def _error(self, where: str, failure: _Failure, tries: int) -> RequestError:
        again = f" ({tries} tries)" if tries > 1 else ""
        status = f"HTTP {failure.status}" if failure.status is not None else ""
        text = f"{where}: {': '.join(t for t in (status, failure.why) if t)}{again}"
        if failure.status in (401, 403):
            remedy = credentials_.refusal_remedy(self.credentials, failure.status)
            return AuthenticationError(f"{text}. {remedy[:1].upper()}{remedy[1:]}", failure.status)
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
        sending: Callable[[], None] | None,
        accepted: Collection[int],
    ) -> T | _Failure:
        import requests
        import urllib3

        http = self._connections()
        settings = config.get()
        # A server that accepts connections may still be slow to answer; one that does not is found out sooner.
        seconds = (min(settings.http_timeout, 10), settings.http_timeout)
        redirects = 0
        try:
            while True:
                # Each hop has a place at its own server, and gives it back before it looks for another.
                with limits.request(_server(url)):
                    used = self._sign(url)  # now, for credentials may have expired while a place was waited for
                    signed = Sign(used)
                    if sending is not None:
                        sending()
                    response = http.request(
                        method, url, params=None if redirects else _encoded(query), data=body() if body else None,
                        headers={"Accept": accept, **headers}, auth=signed, stream=True, allow_redirects=False,
                        timeout=seconds, proxies=proxies_for(url),
                    )  # fmt: skip
                    with response:
                        target = self._redirected(response, url)
                        if isinstance(target, _Failure):
                            return target
                        answer = Answer(url.split("?")[0], response.status_code, _lower(response), response.raw)
                        if target is None or redirects >= MAX_REDIRECTS:
                            if 200 <= answer.status < 300 or answer.status in accepted:
                                return read(answer)
                            return self._refused(answer, query, signed, used)
                        redirects += 1
                        url = target
                        _finish(answer)
        except CutShortError as e:
            return _Failure(str(e).removeprefix(f"{url.split('?')[0]}: "), again=True, kind=ProtocolError)
        except urllib3.exceptions.DecodeError:
            return _Failure("the answer came compressed, and is damaged", again=True, kind=ProtocolError)
        except requests.exceptions.SSLError as e:
            return _Failure(f"no encrypted connection can be made ({failure_words(e)})", again=False)
        except requests.exceptions.ProxyError as e:
            return _Failure(f"the proxy that the environment names failed ({failure_words(e)})", again=True)
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            return _Failure(f"the server sent nothing for {settings.http_timeout} s", again=True)
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as e:
            if isinstance(e, RequestError):
                raise
            return _Failure(f"the connection failed: {failure_words(e)}", again=True)

    def _redirected(self, response: requests.Response, url: str) -> str | _Failure | None:
        """Return where an answer leads to; None where it leads nowhere."""
        location = response.headers.get("location", "")
        if response.status_code not in _REDIRECTS or not location:
            return None
        try:
            target = urljoin(url, location)
        except ValueError:  # whose message quotes the location
            target = ""
        host = origin(target)[1]
        if not host:
            return _Failure("leads to something that is no web server", again=False, status=response.status_code)
        if not same_origin(target, self.root) and host not in self._allowed:
            return _Failure(
                f"leads to another origin, of the host {host}, which is not followed; to allow it, without "
                f"credentials, pass storage_options={{'allow_hosts': [{host!r}]}}",
                again=False,
                status=response.status_code,
            )
        return target

    def _refused(self, answer: Answer, query: Query, signed: Sign, used: SecretHeaders | None) -> _Failure:
        told = [value for name, value in _pairs(query) if name not in _PUBLIC]
        words = server_words(answer, [*told, *signed.secrets()])
        wait = retrying.retry_after(answer.headers.get("retry-after", ""))
        if wait is not None and wait > retrying.LONGEST_WAIT:
            words = f"asks to wait {wait:.0f} s; {words}"
        if answer.status in _REDIRECTS:
            words = f"too many redirects; {words}"
        why = words.rstrip("; ") or "no reason is given"
        return _Failure(why, answer.status in retrying.AGAIN, answer.status, wait, used=used)

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

    def _connections(self) -> requests.Session:
        if self._http is None:
            with self._lock:
                if self._http is None:
                    self._http = make_http()
        return self._http

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            if self._http is not None:
                self._http.close()
                self._http = None

    def renew(self) -> None:
        """Leave connections to the process that opened them."""
        self._lock = threading.Lock()
        self._http = None


def _server(url: str) -> str:
    """Return the name under which requests to a server are counted."""
    scheme, host, port = origin(url)
    return f"{scheme}://{host}:{port}"


def _finish(answer: Answer) -> None:
    """Read what is left of a short body, for the connection to be used again."""
    length = answer.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 6 and int(length) <= _SHORT:
        for _ in answer.chunks():
            pass


def _encoded(query: Query) -> str:
    # Only what must be escaped is: Orthanc takes a search for escaped characters literally.
    return urlencode(_pairs(query), safe="!$'()*,/:;?@", quote_via=quote)


def _pairs(query: Query) -> list[tuple[str, str]]:
    return list(query.items()) if isinstance(query, Mapping) else list(query)


def _lower(response: requests.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
