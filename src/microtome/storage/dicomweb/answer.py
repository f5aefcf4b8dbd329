"""The answer to a request, whose body may still be on its way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from microtome import config
from microtome.errors import ProtocolError

__all__ = ["Answer", "CutShortError"]

_CHUNK = 1 << 18
_SLOWEST = 64
"""Bytes a second, over the time limit: a server that sends less has stalled."""


class CutShortError(ProtocolError):
    """An answer ended before it was complete: worth another try. Only seen outside if every try ended so."""


@dataclass(slots=True)
class Answer:
    """An answer whose body may not have been read yet."""

    url: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    _raw: Any = field(repr=False)
    received: int = 0
    """Bytes of the body so far, as they came over the wire or, where they came compressed, unpacked."""

    @property
    def content_type(self) -> str:
        """The Content-Type, empty where there is none."""
        return self.headers.get("content-type", "")

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises
        ------
        CutShortError
            The server sends next to nothing for longer than ``config.get().http_timeout``.
        """
        limit = config.get().http_timeout
        waited, before = 0.0, self.received
        while True:
            began = time.monotonic()
            data = self._raw.read1(_CHUNK, decode_content=True)
            waited += time.monotonic() - began  # what is done with the bytes takes its time, too
            self.received += len(data)
            if waited > limit:
                if self.received - before < _SLOWEST * limit:
                    raise CutShortError(f"{self.url}: the server sent {self.received - before} bytes in {limit} s")
                waited, before = 0.0, self.received
            if not data:
                return
            yield data

    def body(self, limit: int | None = None) -> bytes:
        """Return the whole body.

        Raises
        ------
        ProtocolError
            It is longer than ``limit`` bytes.
        """
        pieces = []
        for data in self.chunks():
            pieces.append(data)
            if limit is not None and self.received > limit:
                raise ProtocolError(f"{self.url}: the answer is longer than {limit} bytes", self.status)
        return b"".join(pieces)
