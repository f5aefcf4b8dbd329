"""Which bytes of a body are sent, and in which blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from microtome.testing.dicomweb.message import FileRange, Piece, size

__all__ = ["blocks", "ranged"]


def ranged(header: str | None, body: list[Piece], headers: dict[str, str], fewer: int) -> tuple[int, list[Piece]]:
    """The part of a body that is asked for (RFC 9110 14.2), or less; several ranges at once get it whole."""
    total = size(body)
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", (header or "").replace(" ", ""))
    if not match or match[0] == "bytes=-":
        return 200, body
    if match[1]:
        first, last = int(match[1]), min(int(match[2] or total), total - 1)
        if match[2] and int(match[2]) < first:
            return 200, body
    else:
        first, last = max(total - int(match[2]), 0), total - 1
    if first > last:
        headers["Content-Range"] = f"bytes */{total}"
        return 416, []
    last = max(last - fewer, first)
    headers.setdefault("Content-Range", f"bytes {first}-{last}/{total}")  # a fault may state another
    (piece,) = body
    if isinstance(piece, bytes):
        return 206, [piece[first : last + 1]]
    return 206, [FileRange(piece.path, piece.start + first, piece.start + last + 1)]


def blocks(body: list[Piece], step: int, cuts: set[int]) -> Iterator[bytes]:
    """The body in blocks of at most a size, none of which crosses one of the cuts."""
    at = 0
    for piece in body:
        for chunk in [piece] if isinstance(piece, bytes) else piece.chunks():
            start = 0
            while start < len(chunk):
                stop = min(start + step, len(chunk), *(c - at + start for c in cuts if c > at))
                block = chunk[start:stop] if stop - start < len(chunk) else chunk
                yield block
                at += len(block)
                start = stop
    if at in cuts:  # an end, or a pause, right behind the last byte
        yield b""
