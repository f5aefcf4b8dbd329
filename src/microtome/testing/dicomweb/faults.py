"""What can go wrong with one answer, and with which."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from urllib.parse import unquote

from microtome.testing.dicomweb.message import Answer, FileRange, Part, Piece, Request, size

__all__ = ["Fault", "FaultRule", "Rules"]

_ERROR_PAGE = b"<!DOCTYPE html><html><body><h1>Proxy error</h1></body></html>"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; kinds combine.

    Parameters
    ----------
    status, headers, body
        In place of the answer. Without a status, the headers are added to the true answer.
    html
        A page for people in place of the answer, with status 200 unless another is given.
    delay
        Seconds before the answer.
    drop_parts, duplicate_parts
        Numbers, from 0, of parts that are left out or sent twice.
    reverse_parts
        The last part comes first.
    truncate_part
        (part, n): it loses its last n bytes; the multipart body stays well-formed.
    content_location, part_lengths
        Whether parts have these headers; None for what the dialect does.
    wrong_boundary
        The header names another boundary than the body uses.
    damage
        Position of a byte of the body, as it is sent, that is flipped; negative ones count from its end.
    chunked
        Transfer-Encoding: chunked.
    connection_close
        No length is stated; the end of the connection is the end of the body.
    reset_after, close_after
        Bytes of the body after which the connection is reset, or closed as if all were well.
    stall_after, stall
        Bytes of the body after which nothing comes for so many seconds.
    drip
        Bytes per second.
    whole
        The range that is asked for is ignored.
    fewer
        Bytes by which the answer is shorter than the range asked for; its headers say so.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    html: bool = False
    delay: float = 0.0
    drop_parts: tuple[int, ...] = ()
    duplicate_parts: tuple[int, ...] = ()
    reverse_parts: bool = False
    truncate_part: tuple[int, int] | None = None
    content_location: bool | None = None
    part_lengths: bool | None = None
    wrong_boundary: bool = False
    damage: int | None = None
    chunked: bool = False
    connection_close: bool = False
    reset_after: int | None = None
    close_after: int | None = None
    stall_after: int | None = None
    stall: float = 0.0
    drip: float | None = None
    whole: bool = False
    fewer: int = 0

    def replaced(self, answer: Answer) -> Answer:
        """The answer, or what comes in place of it."""
        if self.html:
            return Answer([_ERROR_PAGE], "text/html; charset=utf-8", self.status or 200, dict(self.headers))
        if self.status is not None:
            return Answer([self.body], "text/plain; charset=utf-8", self.status, dict(self.headers))
        return replace(answer, headers={**answer.headers, **self.headers})

    def parts(self, parts: list[Part]) -> list[Part]:
        """The parts that are sent."""
        out = []
        for i, part in enumerate(parts):
            if self.truncate_part is not None and i == self.truncate_part[0]:
                part = replace(part, data=tuple(_shortened(list(part.data), self.truncate_part[1])))
            out += [part] * (0 if i in self.drop_parts else 2 if i in self.duplicate_parts else 1)
        return out[::-1] if self.reverse_parts else out

    def damaged(self, body: list[Piece]) -> list[Piece]:
        """The body with a byte flipped."""
        data = bytearray(b"".join(c for p in body for c in ([p] if isinstance(p, bytes) else p.chunks())))
        if self.damage is not None and -len(data) <= self.damage < len(data):
            data[self.damage] ^= 0xFF
        return [bytes(data)]


@dataclass(frozen=True)
class FaultRule:
    """Which requests a fault befalls.

    Parameters
    ----------
    path
        Pattern of the path, as of :mod:`fnmatch`, without ``%`` escapes; ``*`` matches ``/`` as well.
    fault
        What goes wrong.
    times
        Which of the requests that match, counted from 1; None for all of them.
    method
        GET or HEAD; None for either.
    ranged
        Whether a range is asked for; None for either.
    """

    path: str
    fault: Fault
    times: Collection[int] | None = None
    method: str | None = None
    ranged: bool | None = None

    def matches(self, request: Request) -> bool:
        """Whether a request is of those that are counted."""
        if self.method not in (None, request.method) or self.ranged not in (None, request.range is not None):
            return False
        return fnmatchcase(unquote(request.path), self.path)


class Rules:
    """The fault of each request by rules, of which the first that applies counts.

    Parameters
    ----------
    rules
        In order.
    """

    def __init__(self, rules: Sequence[FaultRule]) -> None:
        self._rules, self._seen = tuple(rules), [0] * len(rules)
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Fault | None:
        """Count a request, and return its fault."""
        found = None
        with self._lock:
            for i, rule in enumerate(self._rules):
                if rule.matches(request):
                    self._seen[i] += 1
                    if found is None and (rule.times is None or self._seen[i] in rule.times):
                        found = rule.fault
        return found


def _shortened(pieces: list[Piece], by: int) -> list[Piece]:
    keep = max(size(pieces) - by, 0)
    out: list[Piece] = []
    for piece in pieces:
        n = min(size([piece]), keep)
        keep -= n
        out.append(piece[:n] if isinstance(piece, bytes) else FileRange(piece.path, piece.start, piece.start + n))
    return out
