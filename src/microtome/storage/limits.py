"""How many requests are under way at a time: to one server, over all servers, and on a whole cluster.

A request takes its place among those to its server and among all of the process at once, so that nobody holds the one
and waits for the other. Places go to those who have waited longest; who waits for a busy server stands in nobody's way.
Where processes share a limit, the share is asked for last, by those who have their place here: all wait in one order.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager

from microtome import config
from microtome.storage.forks import renew_in_forks

__all__ = ["Places", "Share", "request", "share"]

Share = Callable[[str], AbstractContextManager[object]]
"""Returns what is held during a request to a server, and waits for it."""
_LOOK_AGAIN = 0.5
"""Seconds after which those who wait look whether the settings allow more than they did."""


class _Waiter:
    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.granted = threading.Event()


class Places:
    """Places for threads, so many for each key and so many over all keys; whoever waited longest is first.

    Parameters
    ----------
    limits
        Returns the number of places of a key and of all keys together, at least 1 each; asked anew each time, so that
        both may change at any time.
    """

    def __init__(self, limits: Callable[[], tuple[int, int]]) -> None:
        self._limits = limits
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Forget holders and waiters: they are threads of another process."""
        self._lock = threading.Lock()
        self._held: Counter[Hashable] = Counter()
        self._waiting: dict[_Waiter, None] = {}  # in order of arrival
        self._mine = threading.local()

    @contextmanager
    def take(self, key: Hashable = None) -> Iterator[bool]:
        """Hold a place, waiting until one is free; say whether it was taken for this.

        A thread that holds one has that one for whatever it does meanwhile: it would wait for itself.
        """
        mine = self._mine
        if getattr(mine, "holds", False):
            yield False
            return
        held = self._enter(key)
        mine.holds = True
        try:
            yield True
        finally:
            mine.holds = False
            if held is self._held:  # not in a process that was forked meanwhile, which knows nothing of this place
                self._leave(key)

    def _enter(self, key: Hashable) -> Counter[Hashable]:
        with self._lock:
            if not self._waiting and self._is_free(key):
                self._held[key] += 1
                return self._held
            waiter = _Waiter(key)
            self._waiting[waiter] = None
            self._grant()
        try:
            while not waiter.granted.wait(_LOOK_AGAIN):
                with self._lock:
                    self._grant()
        except BaseException:  # an interrupt from the keyboard
            with self._lock:
                if waiter in self._waiting:
                    del self._waiting[waiter]
                else:
                    self._give_back(key)
            raise
        return self._held

    def _leave(self, key: Hashable) -> None:
        with self._lock:
            self._give_back(key)

    # Under the lock:

    def _is_free(self, key: Hashable) -> bool:
        of_key, of_all = self._limits()
        return self._held[key] < of_key and self._held.total() < of_all

    def _give_back(self, key: Hashable) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._grant()

    def _grant(self) -> None:
        for waiter in list(self._waiting):
            if self._is_free(waiter.key):
                self._held[waiter.key] += 1
                del self._waiting[waiter]
                waiter.granted.set()


def _of_server_and_all() -> tuple[int, int]:
    settings = config.get()
    return settings.requests_per_server, settings.requests


class _Requests:
    """The places of this process, and what it shares with others."""

    def __init__(self) -> None:
        self.places = Places(_of_server_and_all)
        self.share: Share | None = None
        renew_in_forks(self)

    def renew(self) -> None:
        """Share nothing: what asked for it were threads of another process."""
        self.share = None

    @contextmanager
    def take(self, server: str) -> Iterator[None]:
        with self.places.take(server) as taken:
            share = self.share
            if share is None or not taken:
                yield
                return
            with share(server):
                yield


_requests = _Requests()


def request(server: str) -> AbstractContextManager[None]:
    """Hold a place among the requests under way, waiting until one is free.

    Places are bounded by the settings ``requests_per_server`` and ``requests``. A thread that holds a place needs no
    other for a request that it makes meanwhile.

    Parameters
    ----------
    server
        Which server, as ``scheme://host:port``, or ``gs://bucket``.
    """
    return _requests.take(server)


def share(asked: Share | None) -> None:
    """Have something else held during every request, such as a lease of a cluster; None for nothing."""
    _requests.share = asked
