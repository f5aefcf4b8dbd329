"""Decoded frames that the process keeps if told to: for programs that show the same place again and again."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy.typing as npt

from microtome import config

__all__ = ["DecodedFrames", "decoded_frames"]

Key = tuple[int, int]


class DecodedFrames:
    """A least-recently-used cache of pixels, bounded by ``config.get().decoded_cache_bytes``. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: OrderedDict[Key, tuple[weakref.ref[Any], npt.NDArray[Any]]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key, owner: Any) -> npt.NDArray[Any] | None:
        """Return the pixels of a frame of an owner; None where they are not kept."""
        with self._lock:
            entry = self._frames.get(key)
            if entry is None or entry[0]() is not owner:  # another one at the same address
                return None
            self._frames.move_to_end(key)
            return entry[1]

    def put(self, key: Key, owner: Any, pixels: npt.NDArray[Any]) -> None:
        """Keep the pixels of a frame, which nobody changes any more."""
        limit = config.get().decoded_cache_bytes
        with self._lock:
            old = self._frames.pop(key, None)
            self._bytes += pixels.nbytes - (old[1].nbytes if old else 0)
            self._frames[key] = weakref.ref(owner), pixels
            while self._bytes > limit and self._frames:
                _, (_, gone) = self._frames.popitem(last=False)
                self._bytes -= gone.nbytes


_cache = DecodedFrames()


def _forget() -> None:
    global _cache
    _cache = DecodedFrames()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def decoded_frames() -> DecodedFrames:
    """Return the cache of this process."""
    return _cache
