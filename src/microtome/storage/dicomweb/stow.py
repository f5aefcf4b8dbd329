"""Storing instances by STOW-RS (PS3.18 10.5): several in a request, streamed from where they lie."""

from __future__ import annotations

import json
import os
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
_READ = 1 << 20
_REFERENCED, _FAILED, _SOP, _REASON, _WARNING = "00081199", "00081198", "00081155", "00081197", "00081196"
# PS3.3 C.12.1.1.10 and PS3.4 Annex B and GG.
_REASONS = {
    "272": "processing failure",
    "274": "no such attribute",
    "290": "this kind of object is not supported",
    "292": "not authorized",
    "42752": "out of resources",
    "43264": "the data set does not match its SOP Class",
    "49152": "cannot be understood",
    "49442": "transfer syntax not supported",
}


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
        return _outcome(answer, answer.body(16 << 20))

    return service.session.request(
        "POST",
        service.url(f"studies/{study}" if study else "studies"),
        accept=JSON,
        headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'},
        body=lambda: _Body(batch, boundary),
        read=read,
        idempotent=False,
    )


def _outcome(answer: Answer, body: bytes) -> list[str]:
    if not body.strip():
        return []
    try:
        result: Any = json.loads(body)
    except ValueError:
        kind = answer.content_type or "no content type"
        raise ProtocolError(f"{answer.url}: the answer ({kind}) does not say what was stored", answer.status) from None
    result = result[0] if isinstance(result, list) and result else result
    failed = _items(result, _FAILED)
    if failed:
        which = "; ".join(
            f"{value(item, _SOP) or 'an instance'}: {_REASONS.get(code := value(item, _REASON), f'reason {code}')}"
            for item in failed[:8]
        )
        raise RequestError(f"{answer.url}: {len(failed)} instances were not stored: {which}", answer.status)
    return [value(item, "00081190") or value(item, _SOP) for item in _items(result, _REFERENCED)]


def _items(result: Any, tag: str) -> list[dict[str, Any]]:
    element = result.get(tag) if isinstance(result, dict) else None
    items = element.get("Value") if isinstance(element, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
