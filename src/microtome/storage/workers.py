"""Threads that wait for a server: for many requests at a time, and for those that nobody waits for.

Whoever has many things to ask takes part itself, and waits for nothing that has not begun: threads that wait for each
other, and for a place among the workers, cannot block each other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from microtome import config
from microtome.storage.forks import renew_in_forks

__all__ = ["Workers"]

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """As many threads as there may be requests to a server."""

    def __init__(self) -> None:
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Leave the threads to the process that started them."""
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._executor: ThreadPoolExecutor | None = None
        self._size = 0

    def parallel(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Call on every item, as many at a time as there may be requests.

        After an error no more calls begin; when those under way have ended, the error of the first item is raised.
        """
        if len(items) < 2 or getattr(self._inside, "worker", False):
            return [call(item) for item in items]
        share = _Share(call, items)
        helpers = [self._submit(share.work) for _ in range(min(len(items), config.get().requests_per_server) - 1)]
        share.work()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
        if share.errors:
            raise share.errors[min(share.errors)]
        return [share.results[i] for i in range(len(items))]

    def background(self, call: Callable[[], object]) -> None:
        """Call when a thread is free; nobody waits, and errors are nobody's."""
        self._submit(call)

    def _submit(self, call: Callable[[], object]) -> Future[None]:
        def work() -> None:
            self._inside.worker = True
            call()

        size = config.get().requests_per_server
        with self._lock:
            if self._executor is None or self._size < size:
                if self._executor is not None:
                    self._executor.shutdown(wait=False)
                self._executor, self._size = ThreadPoolExecutor(size, "microtome-fetch"), size
            return self._executor.submit(work)


class _Share(Generic[T, R]):
    """What is left to do of some calls, and what came of the others."""

    def __init__(self, call: Callable[[T], R], items: Sequence[T]) -> None:
        self._call = call
        self._left: deque[tuple[int, Any]] = deque(enumerate(items))
        self.results: dict[int, R] = {}
        self.errors: dict[int, BaseException] = {}

    def work(self) -> None:
        """Call until nothing is left, or an error stops all."""
        while True:
            try:
                number, item = self._left.popleft()
            except IndexError:
                return
            try:
                self.results[number] = self._call(item)
            except BaseException as e:
                self._left.clear()
                self.errors[number] = e
                return
