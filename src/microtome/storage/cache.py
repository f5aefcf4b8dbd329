"""The frame cache: encoded frames from servers, once for the process. `microtome.cache` shows it and clears it.

One cache serves all slides. It is bounded in bytes (``config.get().frame_cache_bytes``) and forgets what was used least
recently; only whole frames enter it. A frame that is on its way is not fetched again: who asks for it waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

from microtome import config
from microtome.errors import RequestError
from microtome.storage.forks import renew_in_forks
from microtome.storage.lru import BytesLru

__all__ = ["EncodedFrame", "Statistics", "clear", "reset_statistics", "statistics"]

_OVERHEAD = 200
"""Bytes that a frame takes beside its own."""


class EncodedFrame(NamedTuple):
    """A frame as a server sent it."""

    data: bytes
    transfer_syntax: str
    """Empty where the server does not say."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the frame cache has done since the process began, or since the statistics were reset.

    Parameters
    ----------
    hits
        Frames that were here when asked for, or on their way.
    misses
        Frames that had to be fetched. Those fetched before anybody asked for them, by a prefetch or by reading ahead,
        are no misses, and hits when they are read.
    requests
        Requests for frames sent to servers, those that were sent once more included.
    received
        Bytes of frames that came.
    seconds
        Time that requests for frames took, added up over those that ran side by side.
    frames, bytes
        What the cache holds now.
    evicted
        Frames that had to make room.
    """

    hits: int = 0
    misses: int = 0
    requests: int = 0
    received: int = 0
    seconds: float = 0.0
    evicted: int = 0
    frames: int = 0
    bytes: int = 0


class Flight:
    """Frames that somebody has set out to fetch, for those who wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frames: dict[Hashable, EncodedFrame] = {}
        self._why: RequestError | None = None
        self._over = False

    def land(self, frames: Mapping[Hashable, EncodedFrame]) -> None:
        """Hand over frames that came."""
        with self._changed:
            self._frames.update(frames)
            self._changed.notify_all()

    def end(self, why: RequestError | None) -> None:
        """Say that no more will come, and why, if that holds for those who wait as well."""
        with self._changed:
            self._over, self._why = True, why
            self._changed.notify_all()

    def result(self, key: Hashable) -> EncodedFrame | RequestError | None:
        """Wait for a frame; return it, or why it does not come to anybody, or None if it does not come this way."""
        with self._changed:
            while key not in self._frames and not self._over:
                self._changed.wait()
            return self._frames.get(key, self._why)


class FrameCache:
    """A least-recently-used cache of encoded frames, and the frames on their way to it. Safe between threads."""

    def __init__(self) -> None:
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Begin anew: a lock may be held, and flights awaited, by threads of another process."""
        self._lock = threading.Lock()
        self._frames: BytesLru[EncodedFrame] = BytesLru()
        self._flights: dict[Hashable, Flight] = {}
        self._counts = Statistics()

    def claim(
        self, keys: Iterable[Hashable], ahead: bool = False
    ) -> tuple[dict[Hashable, EncodedFrame], dict[Hashable, Flight], dict[Hashable, Flight]]:
        """Sort frames into those that are here, those that the caller must fetch, and those on their way.

        What must be fetched is the caller's until it calls `deliver` or `give_up`: others wait for it. Frames that
        nobody asked for yet (``ahead``) are neither hits nor misses.
        """
        here: dict[Hashable, EncodedFrame] = {}
        mine: dict[Hashable, Flight] = {}
        coming: dict[Hashable, Flight] = {}
        flight = Flight()
        with self._lock:
            for key in keys:
                frame = self._frames.get(key)
                if frame is not None:
                    here[key] = frame
                elif key in self._flights:
                    coming[key] = self._flights[key]
                else:
                    self._flights[key] = mine[key] = flight
            if not ahead:
                self._count(hits=len(here) + len(coming), misses=len(mine))
        return here, mine, coming

    def get(
        self,
        keys: Iterable[Hashable],
        fetch: Callable[[dict[Hashable, Flight], bool], Mapping[Hashable, EncodedFrame]],
        again: bool = False,
    ) -> dict[Hashable, EncodedFrame]:
        """Return frames that are here, that others bring, and that are fetched now.

        Parameters
        ----------
        keys
            Of the frames; those that nobody can bring are left out.
        fetch
            Fetches frames that this caller has claimed, then delivers or gives up all of them; also told whether it is
            not the first to try.
        again
            Whether this caller has asked for them before: no statistics are kept of it.

        Raises
        ------
        RequestError
            What ``fetch`` raised, here or where a frame was awaited from.
        """
        got: dict[Hashable, EncodedFrame] = {}
        wanted = list(keys)
        while wanted:
            here, mine, coming = self.claim(wanted, ahead=again)
            got |= here
            if mine:
                got |= fetch(mine, again)
            wanted = []
            for key, flight in coming.items():
                landed = flight.result(key)
                if isinstance(landed, RequestError):
                    raise copy(landed)  # what it is raised with is its own
                if landed is None:  # who was to fetch it could not, and has told why to whoever asked there
                    wanted.append(key)
                else:
                    got[key] = landed
            again = True
        return got

    def holds(self, keys: Iterable[Hashable]) -> set[Hashable]:
        """Return those keys whose frames are here or on their way; no statistics are kept of it."""
        with self._lock:
            return {key for key in keys if key in self._frames or key in self._flights}

    def deliver(
        self, frames: Mapping[Hashable, EncodedFrame], flights: Mapping[Hashable, Flight], keep: bool = True
    ) -> None:
        """Store frames that were fetched, and hand them to those who wait for the flights that were claimed.

        Without ``keep`` they are handed over only: those of a read that is larger than the cache would push out all
        that is in it, and each other.
        """
        limit = config.get().frame_cache_bytes
        evicted = 0
        with self._lock:
            for key, frame in frames.items():
                if self._flights.get(key) is flights[key]:
                    del self._flights[key]
                if keep:
                    evicted += self._frames.put(key, frame, len(frame.data) + _OVERHEAD, limit)
            self._count(received=sum(len(f.data) for f in frames.values()), evicted=evicted)
        for flight in set(flights.values()):
            flight.land({key: frame for key, frame in frames.items() if flights[key] is flight})

    def give_up(self, flights: Mapping[Hashable, Flight], why: RequestError | None = None) -> None:
        """Tell those who wait that frames that were claimed do not come this way.

        Parameters
        ----------
        flights
            The claim, those that were delivered included.
        why
            What those who wait would meet as well; without it, they fetch the frames themselves.
        """
        with self._lock:
            for key, flight in flights.items():
                if self._flights.get(key) is flight:
                    del self._flights[key]
        for flight in set(flights.values()):
            flight.end(why)

    def discard(self, keys: Iterable[Hashable]) -> None:
        """Forget frames that turned out to be bad."""
        with self._lock:
            for key in keys:
                self._frames.pop(key)

    def sent(self) -> None:
        """Count a request for frames."""
        with self._lock:
            self._count(requests=1)

    def took(self, seconds: float) -> None:
        """Count the time from a request for frames to its answer, tries that failed included."""
        with self._lock:
            self._count(seconds=seconds)

    def _count(self, **more: float) -> None:
        counts = self._counts
        self._counts = replace(counts, **{name: getattr(counts, name) + n for name, n in more.items()})

    def statistics(self, *, reset: bool = False) -> Statistics:
        """Return the statistics, and begin them anew."""
        with self._lock:
            counts = replace(self._counts, frames=len(self._frames), bytes=self._frames.bytes)
            if reset:
                self._counts = Statistics()
        return counts

    def clear(self) -> None:
        """Forget all frames."""
        with self._lock:
            self._frames.clear()


_cache = FrameCache()


def frame_cache() -> FrameCache:
    """Return the cache of this process."""
    return _cache


def statistics() -> Statistics:
    """Return what the frame cache has done since the process began or `reset_statistics` was called.

    >>> import microtome as mt
    >>> mt.cache.statistics().hits >= 0
    True
    """
    return _cache.statistics()


def reset_statistics() -> Statistics:
    """Return the statistics, and begin them anew; frames stay."""
    return _cache.statistics(reset=True)


def clear() -> None:
    """Forget all encoded frames; statistics stay."""
    _cache.clear()
