"""multipart/related bodies: writing them for answers, reading them from what is stored."""

from __future__ import annotations

import hashlib

from microtome.testing.dicomweb.message import Part, Piece, Refusal, size

__all__ = ["boundary_for", "read_parts", "write_parts"]


def boundary_for(parts: list[Part]) -> str:
    """A boundary; equal answers have equal ones."""
    seed = "".join(f"{p.location}{size(list(p.data))}" for p in parts)
    return "microtome-" + hashlib.sha256(seed.encode()).hexdigest()[:32]


def write_parts(parts: list[Part], boundary: str, locations: bool, lengths: bool) -> list[Piece]:
    """Put parts into a body (RFC 2046 5.1.1).

    Parameters
    ----------
    parts
        What it holds.
    boundary
        Between them.
    locations, lengths
        Whether each part has a Content-Location, and a Content-Length.
    """
    out: list[Piece] = []
    for i, part in enumerate(parts):
        head = ("\r\n" if i else "") + f"--{boundary}\r\nContent-Type: {part.media}\r\n"
        if locations:
            head += f"Content-Location: {part.location}\r\n"
        if lengths:
            head += f"Content-Length: {size(list(part.data))}\r\n"
        out.append(f"{head}\r\n".encode("latin-1"))
        out += part.data
    out.append(("\r\n" if parts else "").encode() + f"--{boundary}--\r\n".encode("latin-1"))
    return out


def read_parts(body: bytes, boundary: str) -> list[tuple[dict[str, str], bytes]]:
    """Take a body apart: headers, names in lower case, and bytes of each part."""
    mark = b"--" + boundary.encode("latin-1")
    out: list[tuple[dict[str, str], bytes]] = []
    at = body.find(mark)
    while at >= 0:
        start = at + len(mark)
        if body[start : start + 2] == b"--":
            return out
        end = body.find(b"\r\n" + mark, start)
        head, gap, data = body[start : end if end >= 0 else None].partition(b"\r\n\r\n")
        if end < 0 or not gap:
            break
        lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n") if ":" in line)
        out.append(({name.strip().lower(): value.strip() for name, _, value in lines}, data))
        at = end + 2
    raise Refusal(400, "the multipart body has no end, or a part without headers")
