"""Decoded frames that the process keeps if told to: for programs that show the same place again and again."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import numpy.typing as npt

from microtome import config
from microtome.storage.lru import BytesLru

__all__ = ["DecodedFrames", "decoded_frames"]

Key = tuple[int, int]


class DecodedFrames:
    """A least-recently-used cache of pixels, bounded by ``config.get().decoded_cache_bytes``. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: BytesLru[tuple[weakref.ref[Any], npt.NDArray[Any]]] = BytesLru()

    @property
    def bytes(self) -> int:
        """Bytes of the pixels that are kept."""
        return self._frames.bytes

    def get(self, key: Key, owner: Any) -> npt.NDArray[Any] | None:
        """Return the pixels of a frame of an owner; None where they are not kept."""
        with self._lock:
            entry = self._frames.get(key)
        # Another owner may have come to live at the same address.
        return entry[1] if entry is not None and entry[0]() is owner else None

    def put(self, key: Key, owner: Any, pixels: npt.NDArray[Any]) -> None:
        """Keep the pixels of a frame, which nobody changes any more."""
        with self._lock:
            self._frames.put(key, (weakref.ref(owner), pixels), pixels.nbytes, config.get().decoded_cache_bytes)


_cache = DecodedFrames()


def _forget() -> None:
    global _cache
    _cache = DecodedFrames()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def decoded_frames() -> DecodedFrames:
    """Return the cache of this process."""
    return _cache
