"""What goes wrong when a filesystem of fsspec is asked, as errors of ours: what, where and why, without secrets.

Messages of filesystems hold URLs with signatures, and their tracebacks headers. Neither is passed on: `attempt` makes a
`Failure` of what was raised, and the error is raised by a frame that never saw it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from microtome.errors import (
    AuthenticationError,
    MicrotomeError,
    NotOnServerError,
    OptionError,
    ProtocolError,
    RequestError,
    SlideChangedError,
)
from microtome.storage.dicomweb.transport import failure_words
from microtome.storage.retrying import AGAIN

__all__ = ["Failure", "RefusedError", "attempt", "of_status"]

T = TypeVar("T")

_CODE = re.compile(r"(?!\d+$)\w{1,60}")
_CREDENTIALS = re.compile(
    r"NoCredentials|PartialCredentials|ProfileNotFound|CredentialRetrieval|RefreshError|DefaultCredentials|"
    r"GoogleAuthError|TokenRetrieval|SSOToken"
)
_CONNECTION = re.compile(r"Connection|Disconnected|HTTPClientError")
_REMEDY = "pass credentials, or ask as nobody, by storage_options=, or let the environment name them"
_WORDS = {
    401: "wants other credentials",
    403: "refuses access",
    404: "is not there",
    410: "is no longer there",
    429: "is asked too often",
    503: "is busy",
}
_PASSING_CODES = frozenset({"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed.

    Parameters
    ----------
    why
        In words that may be shown.
    again
        Whether the reason may pass.
    status
        HTTP status of the answer, if there was one.
    kind
        Class of the error.
    wait
        Seconds that the server asks to wait first.
    """

    why: str
    again: bool = False
    status: int | None = None
    kind: type[MicrotomeError] = RequestError
    wait: float | None = None

    def error(self, where: str, tries: int = 1) -> MicrotomeError:
        """Return the error, about ``where``, which may be shown, after so many tries."""
        status = f"HTTP {self.status}" if self.status is not None else ""
        told = ": ".join(text for text in (where, status, self.why) if text)
        if tries > 1:
            told += f" ({tries} tries)"
        if issubclass(self.kind, AuthenticationError):
            told += f". Remedy: {_REMEDY}"
        return self.kind(told, self.status) if issubclass(self.kind, RequestError) else self.kind(told)


class RefusedError(Exception):
    """An answer that is not what was asked for. Never leaves this library."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.why)
        self.failure = failure


def attempt(call: Callable[[], T]) -> T | Failure:
    """Call, and return what it returns; or why it failed. Errors of ours, of filesystems of ours, are raised."""
    try:
        return call()
    except RefusedError as e:
        return e.failure
    except MicrotomeError:
        raise
    except Exception as e:
        return _failure(e)


def of_status(status: int, words: str = "", wait: float | None = None) -> Failure:
    """Return the failure that the status of an answer is, with the words of the server if it has any."""
    words = words or _WORDS.get(status, "no reason is given")
    if status in (401, 403, 407):
        return Failure(words, status=status, kind=AuthenticationError)
    if status in (404, 410):
        return Failure(words, status=status, kind=NotOnServerError)
    return Failure(words, again=status in AGAIN, status=status, wait=wait)


def _failure(e: Exception) -> Failure:
    # By their names, for the packages that they are of may not be here.
    names = [kind.__name__ for kind in type(e).__mro__]
    if "content-encoding" in str(getattr(e, "message", "")):
        why = "the answer came compressed, which was not asked for. Remedy: copy it first, by simplecache::https://…"
        return Failure(why, kind=ProtocolError)
    status = _status(e)
    if status is not None:
        return of_status(status, _code(e))
    if isinstance(e, FileNotFoundError):
        if isinstance(e.__cause__, Exception) and not isinstance(e.__cause__, FileNotFoundError) and not _response(e):
            return _failure(e.__cause__)  # so fsspec says whatever a web server answers
        return Failure("is not there", kind=NotOnServerError)
    if isinstance(e, FileExistsError):  # so gcsfs says that a generation is another
        return Failure("changed since it was listed", kind=SlideChangedError)
    if isinstance(e, PermissionError):
        return Failure(_code(e) or "refuses access", kind=AuthenticationError)
    if any(map(_CREDENTIALS.search, names)):
        return Failure(f"no credentials were found that work ({type(e).__name__})", kind=AuthenticationError)
    if any("SSL" in name or "Certificate" in name for name in names):
        return Failure(f"no encrypted connection can be made ({failure_words(e)})")
    if isinstance(e, TimeoutError) or any("Timeout" in name for name in names):
        return Failure("the server sent nothing for too long", again=True)
    if any("Payload" in name or "IncompleteRead" in name or "ResponseStreaming" in name for name in names):
        return Failure("the answer is cut short", again=True, kind=ProtocolError)
    if isinstance(e, ConnectionError) or any(map(_CONNECTION.search, names)):
        return Failure(f"the connection failed: {failure_words(e)}", again=True)
    if isinstance(e, TypeError) and "argument" in str(e):  # some take options when they are first used
        return Failure("its filesystem takes no such storage_options", kind=OptionError)
    if code := _code(e):
        return Failure(f"the store answers {code}", again=code in _PASSING_CODES)
    if isinstance(e, OSError) and isinstance(e.errno, int) and e.errno:
        return Failure(f"cannot be read ({os.strerror(e.errno)})")  # not its own words: they may be a server's
    return Failure(f"cannot be read ({type(e).__name__})")


def _response(e: BaseException) -> dict[str, object]:
    """Return what botocore keeps of an answer."""
    for error in (e, e.__cause__):
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _status(e: Exception) -> int | None:
    """Return the status of the answer that a library made an exception of."""
    about = _response(e).get("ResponseMetadata")
    value = about.get("HTTPStatusCode") if isinstance(about, dict) else None
    for name in ("status", "code", "status_code"):
        value = getattr(e, name, None) if value is None else value
    if isinstance(value, int | str) and str(value).isdecimal() and 400 <= int(value) < 600:
        return int(value)
    return 403 if isinstance(e, OSError) and str(e).startswith("Forbidden") else None  # so gcsfs says it


def _code(e: Exception) -> str:
    """Return the code by which S3 names an error, ``InvalidAccessKeyId``: a word that tells nothing of the request."""
    about = _response(e).get("Error")
    code = about.get("Code") if isinstance(about, dict) else None
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""
