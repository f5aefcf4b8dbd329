"""Storing instances by STOW-RS (PS3.18 10.5): several in a request, streamed from where they lie."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from microtome.errors import ProtocolError, RequestError
from microtome.storage.dicomweb.service import JSON, Service, value
from microtome.storage.dicomweb.session import Answer

__all__ = ["store"]

Piece = bytes | os.PathLike[str]
"""An instance as Part 10 bytes, or the file that holds it."""

REQUEST_BYTES = 64 << 20
"""Bytes aimed at for one request; an instance is never split."""
MAX_ANSWER = 16 << 20
_READ = 1 << 20
_REFERENCED, _FAILED, _SOP, _REASON, _URL = "00081199", "00081198", "00081155", "00081197", "00081190"
# PS3.18 I.2.2, PS3.3 C.14.1.1, and what servers have added.
_REASONS = {
    0x0105: "an attribute is missing",
    0x0110: "the server failed to process it",
    0x0111: "another instance of this UID is there",
    0x0119: "it is not of the SOP Class that it states",
    0x0122: "its SOP Class is not supported",
    0x0124: "not authorized",
    0xB00E: "an instance of this UID is there",
    0xC122: "its transfer syntax is not supported",
    0xC409: "it belongs to another study",
}
_RANGES = {
    0xA7: "the server is out of resources",
    0xA9: "it does not match its SOP Class",
    **dict.fromkeys(range(0xC0, 0xD0), "the server cannot understand it"),
}
SHOWN = 8
"""Instances that an error names."""


def store(service: Service, instances: Sequence[Piece], study: str = "") -> list[str]:
    """Store instances; return the URLs or SOP Instance UIDs of those that the server says it stored.

    Parameters
    ----------
    service
        Where to.
    instances
        Bytes or files.
    study
        UID of the study they must belong to; empty for whichever they state.

    Raises
    ------
    RequestError
        The server refuses one of them; the message names it and the reason.
    """
    stored: list[str] = []
    for batch in _batches(instances):
        stored += _send(service, batch, study)
    return stored


def _size(instance: Piece) -> int:
    return len(instance) if isinstance(instance, bytes) else Path(instance).stat().st_size


def _batches(instances: Sequence[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    total = 0
    for instance in instances:
        size = _size(instance)
        if batch and total + size > REQUEST_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(instance)
        total += size
    if batch:
        yield batch


class _Body:
    """A multipart body of known length, made anew for each try; files are read as it is sent."""

    def __init__(self, batch: Sequence[Piece], boundary: str) -> None:
        self._batch = batch
        self._head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"--{boundary}--\r\n".encode()
        self._length = sum(_size(i) + len(self._head) + 2 for i in batch) + len(self._tail)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        for instance in self._batch:
            yield self._head
            if isinstance(instance, bytes):
                yield instance
            else:
                with Path(instance).open("rb") as file:
                    while data := file.read(_READ):
                        yield data
            yield b"\r\n"
        yield self._tail


def _send(service: Service, batch: Sequence[Piece], study: str) -> list[str]:
    boundary = secrets.token_hex(16)

    def read(answer: Answer) -> list[str]:
        return _outcome(answer, answer.body(MAX_ANSWER), len(batch))

    return service.session.request(
        "POST",
        service.url(f"studies/{study}" if study else "studies"),
        accept=JSON,
        headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'},
        body=lambda: _Body(batch, boundary),
        read=read,
        idempotent=False,
        accepted=(409,),  # its body says why
    )


def _outcome(answer: Answer, body: bytes, sent: int) -> list[str]:
    """Return what was stored, or raise what was not.

    An answer without a body says that all is well by its status.
    """
    try:
        result: Any = json.loads(body) if body.strip() else {}
    except ValueError:
        result = None
    result = result[0] if isinstance(result, list) and result else result
    if not isinstance(result, dict) and answer.status < 300:
        kind = answer.content_type or "no content type"
        raise ProtocolError(f"{answer.url}: the answer ({kind}) does not say what was stored", answer.status)
    failed = _items(result, _FAILED)
    if failed:
        which = "; ".join(f"{value(item, _SOP) or 'one'}: {_reason(value(item, _REASON))}" for item in failed[:SHOWN])
        more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        raise RequestError(f"{answer.url}: {len(failed)} of {sent} instances not stored: {which}{more}", answer.status)
    if answer.status >= 300:
        raise RequestError(f"{answer.url}: HTTP {answer.status}: nothing stored, and no reason given", answer.status)
    return [value(item, _URL) or value(item, _SOP) for item in _items(result, _REFERENCED)]


def _reason(code: str) -> str:
    """Return a Failure Reason in words."""
    if not re.fullmatch("[0-9]{1,5}", code):
        return "no reason given"
    number = int(code)
    return _REASONS.get(number) or _RANGES.get(number >> 8) or f"reason {number:04X}H"


def _items(result: Any, tag: str) -> list[dict[str, Any]]:
    element = result.get(tag) if isinstance(result, dict) else None
    items = element.get("Value") if isinstance(element, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
