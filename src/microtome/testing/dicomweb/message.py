"""What a request asks and what is answered: plain values between the services and the wire."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Answer", "FileRange", "Part", "Piece", "Refusal", "Request", "size"]

_CHUNK = 1 << 20


@dataclass
class Request:
    """One request, as the log of the server keeps it.

    Parameters
    ----------
    method
        GET, HEAD, POST, ...
    path
        As it was sent, without the query.
    query
        Name to values; a name may be given several times.
    accept, range
        Headers, or None.
    status
        Of the answer; 0 while there is none.
    sent
        Bytes of the body handed to the network so far, framing of chunks left out.
    frames
        Frame numbers in the path.
    authorized
        Whether there was an Authorization header, valid or not.
    connection
        Number of the TCP connection, from 1 since the last reset.
    headers
        All of the headers, names in lower case, without Authorization.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    accept: str | None = None
    range: str | None = None
    status: int = 0
    sent: int = 0
    frames: tuple[int, ...] = ()
    authorized: bool = False
    connection: int = 0
    headers: dict[str, str] = field(default_factory=dict, repr=False)


class Refusal(Exception):  # noqa: N818 (an answer, not an accident)
    """A request that is answered with an error.

    Parameters
    ----------
    status
        HTTP status.
    words
        For the client; names no file and no folder.
    headers
        To send along.
    """

    def __init__(self, status: int, words: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(words)
        self.status, self.words, self.headers = status, words, headers or {}


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file that are read when they are sent."""

    path: Path
    start: int
    stop: int

    def chunks(self) -> Iterator[bytes]:
        """Read them, about a megabyte at a time."""
        with self.path.open("rb", buffering=0) as f:
            f.seek(self.start)
            left = self.stop - self.start
            while left > 0 and (data := f.read(min(left, _CHUNK))):
                left -= len(data)
                yield data


Piece = bytes | FileRange


def size(pieces: list[Piece]) -> int:
    """Bytes in all pieces."""
    return sum(len(p) if isinstance(p, bytes) else p.stop - p.start for p in pieces)


@dataclass(frozen=True)
class Part:
    """One part of a multipart/related body.

    Parameters
    ----------
    media
        Its Content-Type.
    data
        Its bytes.
    location
        Its Content-Location.
    """

    media: str
    data: tuple[Piece, ...]
    location: str


@dataclass
class Answer:
    """What is answered, before it is put into bytes: so faults can take parts away.

    Parameters
    ----------
    body
        Bytes; unused where there are parts.
    media
        Content-Type; with parts, the type of these.
    status, headers
        Of HTTP.
    parts
        Of a multipart/related body, or None.
    compressible
        Whether gzip is worth while.
    ranged
        Whether byte ranges may be asked for.
    """

    body: list[Piece] = field(default_factory=list)
    media: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[Part] | None = None
    compressible: bool = False
    ranged: bool = False
