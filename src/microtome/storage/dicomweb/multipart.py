"""multipart/related answers (RFC 2046 5.1, RFC 2387): of known bytes into parts, or as a stream of the one part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.message import Message
from functools import lru_cache
from typing import NamedTuple

from microtome.errors import ProtocolError

__all__ = ["MediaType", "Part", "media_type", "split_parts", "stream_first_part"]

MAX_HEADERS = 16 << 10
"""Bytes of the headers of a part."""


class MediaType(NamedTuple):
    """A content type: its name in lower case, and its parameters by their names in lower case."""

    name: str
    parameters: dict[str, str]


class Part(NamedTuple):
    """One part: its headers by their names in lower case, and its body."""

    headers: dict[str, str]
    body: memoryview


@lru_cache(maxsize=256)
def media_type(value: str) -> MediaType:
    """Take the value of a Content-Type header apart; quoted parameters may hold any character."""
    message = Message()
    message["content-type"] = value.replace("\r", " ").replace("\n", " ")
    pairs = message.get_params(failobj=[], unquote=True)
    name = value.split(";", 1)[0].strip().lower()
    return MediaType(name, {key.lower(): text.strip() for key, text in pairs[1:]})


def split_parts(data: bytes, boundary: str, where: str) -> list[Part]:
    """Split the body of a multipart answer.

    Parameters
    ----------
    data
        The whole body.
    boundary
        As the answer's Content-Type states it; where it states none, the first line of the body tells.
    where
        For messages.

    Raises
    ------
    ProtocolError
        The body ends before its closing delimiter, or is no multipart of this boundary.
    """
    delimiter = _delimiter(data, boundary, where)
    view = memoryview(data)
    parts: list[Part] = []
    pos = 0 if data.startswith(delimiter) else data.find(b"\r\n" + delimiter) + 2
    if pos == 1:
        raise ProtocolError(f"{where}: the answer is no multipart of the boundary that its header states")
    while True:
        pos += len(delimiter)
        if data.startswith(b"--", pos):
            return parts
        pos = _line_end(data, pos, where)
        headers, start = _headers(data, pos, where)
        end = _part_end(data, start, headers, delimiter)
        if end < 0:
            raise ProtocolError(f"{where}: the answer is cut short: part {len(parts) + 1} has no end")
        parts.append(Part(headers, view[start:end]))
        pos = end + 2


def _delimiter(data: bytes, boundary: str, where: str) -> bytes:
    if boundary:
        return b"--" + boundary.encode("latin-1", "replace")
    line = data[:MAX_HEADERS].lstrip(b"\r\n").split(b"\r\n", 1)[0].rstrip()
    if not line.startswith(b"--") or not 2 < len(line) <= 72:
        raise ProtocolError(f"{where}: the answer claims to be multipart, and has no boundary")
    return line


def _line_end(data: bytes, pos: int, where: str) -> int:
    """Return where the line behind a delimiter ends; only white space may stand there."""
    end = data.find(b"\r\n", pos, pos + 256)
    if end < 0 or data[pos:end].strip():
        raise ProtocolError(f"{where}: the answer is cut short, or a boundary stands inside a part")
    return end + 2


def _headers(data: bytes, pos: int, where: str) -> tuple[dict[str, str], int]:
    if data.startswith(b"\r\n", pos):
        return {}, pos + 2
    end = data.find(b"\r\n\r\n", pos, pos + MAX_HEADERS)
    if end < 0:
        raise ProtocolError(f"{where}: the answer is cut short in the headers of a part")
    headers: dict[str, str] = {}
    for line in data[pos:end].decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers, end + 4


def _part_end(data: bytes, start: int, headers: dict[str, str], delimiter: bytes) -> int:
    """Return where the body of a part ends; -1 if it has no end, or another one than its Content-Length states."""
    ending = b"\r\n" + delimiter
    length = headers.get("content-length", "")
    if length.isdecimal() and len(length) < 16:
        end = start + int(length)
        return end if data.startswith(ending, end) else -1
    if data.startswith(delimiter, start):  # a part without body and without the line break in front of the delimiter
        return -1
    return data.find(ending, start)


def stream_first_part(chunks: Iterable[bytes], boundary: str, where: str) -> Iterator[bytes]:
    """Yield the body of the first part of a multipart answer as it arrives, whatever its size.

    Raises
    ------
    ProtocolError
        The answer ends before the part does.
    """
    source = iter(chunks)
    data = b""
    delimiter = b""
    while True:
        piece = next(source, b"")
        data += piece
        if not delimiter and (len(data) > 128 or not piece):
            delimiter = _delimiter(data, boundary, where)
        at = data.find(delimiter) if delimiter else -1
        if at >= 0:
            head = data.find(b"\r\n\r\n", at)
            if head >= 0:
                break
        if not piece or len(data) > 2 * MAX_HEADERS:
            raise ProtocolError(f"{where}: the answer has no part of a multipart")
    _, start = _headers(data, _line_end(data, at + len(delimiter), where), where)
    ending = b"\r\n" + delimiter
    data = data[start:]
    while True:
        end = data.find(ending)
        if end >= 0:
            yield data[:end]
            return
        keep = len(ending) - 1
        if len(data) > keep:
            yield data[:-keep]
            data = data[-keep:]
        piece = next(source, b"")
        if not piece:
            raise ProtocolError(f"{where}: the answer is cut short")
        data += piece
