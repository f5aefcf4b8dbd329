"""multipart/related answers (RFC 2046 5.1, RFC 2387): of known bytes into parts, or as a stream of the one part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from microtome.errors import ProtocolError

__all__ = ["MediaType", "Part", "media_type", "split_parts", "stream_first_part"]

MAX_HEADERS = 16 << 10
"""Bytes of the headers of a part."""
MAX_AFTER = 64 << 10
"""Bytes that are read after a part for the connection to be of further use."""

_PARAMETER = re.compile(r';\s*([^=;\s]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))')


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
    parameters: dict[str, str] = {}
    for name, quoted, bare in _PARAMETER.findall(value):
        text = bare.strip().strip('"') if bare else re.sub(r"\\(.)", r"\1", quoted).strip()
        parameters.setdefault(name.lower(), text)
    return MediaType(value.split(";", 1)[0].strip().lower(), parameters)


def split_parts(data: bytes, boundary: str, where: str, expected: int = 0) -> list[Part]:
    """Split the body of a multipart answer.

    Parameters
    ----------
    data
        The whole body.
    boundary
        As the answer's Content-Type states it; where it states none, the first line of the body tells.
    where
        For messages.
    expected
        How many parts there should be. Behind so many, servers exist that write the last delimiter like the others.

    Raises
    ------
    ProtocolError
        The body ends before its closing delimiter, or is no multipart of this boundary.
    """
    delimiter = _delimiter(data, boundary, where)
    view = memoryview(data)
    parts: list[Part] = []
    pos = _first_delimiter(data, delimiter)
    if pos < 0:
        raise ProtocolError(f"{where}: the answer is no multipart of the boundary that its header states")
    while True:
        pos += len(delimiter)
        if data.startswith(b"--", pos) or (len(parts) == expected > 0 and not data[pos:].strip()):
            return parts
        headers, start = _headers(data, pos, delimiter, where)
        end = _part_end(data, start, headers, delimiter)
        if end < 0:
            raise ProtocolError(f"{where}: the answer is cut short: part {len(parts) + 1} has no end")
        parts.append(Part(headers, view[start:end]))
        pos = end + 2


def stream_first_part(chunks: Iterable[bytes], boundary: str, where: str) -> Iterator[bytes]:
    """Yield the body of the first part of a multipart answer as it arrives, whatever its size.

    Raises
    ------
    ProtocolError
        The answer ends before the part does, or has none.
    """
    source = filter(None, chunks)
    data, delimiter, at = b"", b"", -1
    while at < 0 or data.find(b"\r\n\r\n", at) < 0:
        piece = next(source, b"")
        if not piece or len(data) > 2 * MAX_HEADERS:
            raise ProtocolError(f"{where}: the answer is cut short, or no multipart of its boundary")
        data += piece
        if not delimiter and (boundary or b"\r\n" in data.lstrip(b"\r\n")):
            delimiter = _delimiter(data, boundary, where)
        at = _first_delimiter(data, delimiter) if delimiter else -1
    headers, start = _headers(data, at + len(delimiter), delimiter, where)
    stated, passed = _length(headers), 0
    ending = b"\r\n" + delimiter
    data = data[start:]
    if stated is None and data.startswith(delimiter):
        raise ProtocolError(f"{where}: a part has no body, and no end")
    # With a length, whatever looks like the end before it is none.
    while (end := data.find(ending, 0 if stated is None else max(stated - passed, 0))) < 0:
        keep = len(ending) - 1
        if len(data) > keep:
            passed += len(data) - keep
            yield data[:-keep]
            data = data[-keep:]
        piece = next(source, b"")
        if not piece:
            raise ProtocolError(f"{where}: the answer is cut short")
        data += piece
    if stated is not None and passed + end != stated:
        raise ProtocolError(f"{where}: a part does not end where its Content-Length says")
    if end:
        yield data[:end]
    after = len(data) - end
    for piece in source:  # a connection is of use again when its answer is read to the end
        after += len(piece)
        if after > MAX_AFTER:
            return


def _delimiter(data: bytes, boundary: str, where: str) -> bytes:
    if boundary:
        return b"--" + boundary.encode("latin-1", "replace")
    line = data[:MAX_HEADERS].lstrip(b"\r\n").split(b"\r\n", 1)[0].rstrip()
    if not line.startswith(b"--") or not 2 < len(line) <= 72:
        raise ProtocolError(f"{where}: the answer claims to be multipart, and has no boundary")
    return line


def _first_delimiter(data: bytes, delimiter: bytes) -> int:
    """Return where the first line that is a delimiter begins; -1 if there is none."""
    if data.startswith(delimiter):
        return 0
    found = data.find(b"\r\n" + delimiter)
    return found + 2 if found >= 0 else -1


def _headers(data: bytes, pos: int, delimiter: bytes, where: str) -> tuple[dict[str, str], int]:
    """Return the headers behind a delimiter, and where the body begins."""
    line = data.find(b"\r\n", pos, pos + 256)
    if line < 0 or data[pos:line].strip(b" \t"):
        raise ProtocolError(f"{where}: the answer is cut short, or a boundary stands inside a part")
    end = data.find(b"\r\n\r\n", line, line + MAX_HEADERS)
    if end < 0 or data.find(b"\r\n" + delimiter, line, end) >= 0:
        raise ProtocolError(f"{where}: the answer is cut short in the headers of a part")
    return _parse_headers(data[line + 2 : end]), end + 4


@lru_cache(maxsize=256)
def _parse_headers(block: bytes) -> dict[str, str]:
    # The parts of an answer share their headers, if no length is among them: nobody may change what is returned.
    headers: dict[str, str] = {}
    lines = block.decode("latin-1")
    if "\r\n " in lines or "\r\n\t" in lines:  # a header that goes on in the next line
        lines = re.sub(r"\r\n[ \t]+", " ", lines)
    for text in lines.split("\r\n"):
        name, colon, value = text.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers


def _length(headers: dict[str, str]) -> int | None:
    length = headers.get("content-length", "")
    return int(length) if re.fullmatch("[0-9]{1,15}", length) else None


def _part_end(data: bytes, start: int, headers: dict[str, str], delimiter: bytes) -> int:
    """Return where the body of a part ends; -1 if it has no end, or another one than its Content-Length states."""
    ending = b"\r\n" + delimiter
    length = _length(headers)
    if length is not None:
        return start + length if data.startswith(ending, start + length) else -1
    if data.startswith(delimiter, start):  # a part without body and without the line break in front of the delimiter
        return -1
    return data.find(ending, start)
