"""Decoded frames that the process keeps: those that neighbouring patches and blocks share; all of them, if told to."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy.typing as npt

from microtome import config
from microtome.storage.forks import renew_in_forks
from microtome.storage.lru import BytesLru

__all__ = ["DecodedFrames", "decoded_frames", "kept_bytes"]

Key = tuple[int, int]


class DecodedFrames:
    """A least-recently-used cache of pixels, bounded in bytes. Safe between threads."""

    def __init__(self) -> None:
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Begin anew: the lock may be held by a thread of another process."""
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

    def put(self, key: Key, owner: Any, pixels: npt.NDArray[Any], limit: int) -> None:
        """Keep the pixels of a frame, which nobody changes any more, in at most ``limit`` bytes with all others."""
        with self._lock:
            self._frames.put(key, (weakref.ref(owner), pixels), pixels.nbytes, limit)


_cache = DecodedFrames()


def decoded_frames() -> DecodedFrames:
    """Return the cache of this process."""
    return _cache


def kept_bytes(shared: bool) -> int:
    """Return how many bytes of decoded frames are kept by a read whose frames others share, or do not; 0 for none."""
    settings = config.get()
    return max(settings.decoded_cache_bytes, settings.overlap_cache_bytes if shared else 0)
