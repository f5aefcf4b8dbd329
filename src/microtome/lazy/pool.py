"""One pool of threads a process, shared by all reads.

The thread that reads takes part itself, and takes helpers only while the process has threads to spare: inside a busy
Dask worker every task decodes in its own thread. A read never waits for a thread, so reads cannot block each other.

Threads that wait for servers are more than those that should decode: what they got is decoded by so many at a time.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from microtome import config
from microtome.storage.limits import Places

T = TypeVar("T")

__all__ = ["decoding", "run"]


class _Pool:
    """The executor, and the number of threads at work on frames, whether they are its own or Dask's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0
        self.busy = 0

    def enter(self, limit: int | None = None) -> bool:
        """Count a thread as busy; with a limit, only if fewer are."""
        with self.lock:
            if limit is not None and self.busy >= limit:
                return False
            self.busy += 1
            return True

    def leave(self) -> None:
        with self.lock:
            self.busy -= 1

    def submit(self, call: Callable[[], None], size: int) -> Future[None]:
        with self.lock:
            if self.executor is None or self.size < size:
                if self.executor is not None:
                    self.executor.shutdown(wait=False)
                self.executor = ThreadPoolExecutor(size, thread_name_prefix="microtome")
                self.size = size
            return self.executor.submit(call)


_pool = _Pool()


def _forget() -> None:
    # Threads do not survive a fork, and the lock may have been held by one of them.
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _decoders() -> tuple[int, int]:
    threads = config.get().decode_threads
    return threads, threads


_decoding = Places(_decoders)


def decoding() -> AbstractContextManager[bool]:
    """Hold a place among the threads that decode; nothing may be waited for meanwhile."""
    return _decoding.take()


def run(work: Callable[[T], None], items: Sequence[T], threads: int) -> None:
    """Call ``work`` on every item, in this thread and, while fewer than ``threads`` are busy, in others.

    The first error is raised, when all threads have stopped.
    """
    if threads <= 1:
        for item in items:
            work(item)
        return
    _Run(_pool, work, items, threads).finish()


class _Run(Generic[T]):
    """The items of one read, drained by the thread that reads and its helpers.

    No part of it refers back to it: a result must not stay in memory until the garbage collector finds a cycle.
    """

    def __init__(self, pool: _Pool, work: Callable[[T], None], items: Sequence[T], threads: int) -> None:
        self.pool = pool
        self.work = work
        self.queue = deque(items)
        self.threads = threads
        self.helpers: list[Future[None]] = []

    def drain(self) -> None:
        """Work until the queue is empty; an error empties it."""
        try:
            while self.queue:
                try:
                    item = self.queue.popleft()
                except IndexError:
                    return
                self.call_help()
                self.work(item)
        except BaseException:
            self.queue.clear()
            raise
        finally:
            self.pool.leave()

    def call_help(self) -> None:
        # Asked anew at every item: a thread may have become free since the last.
        pool = self.pool
        if self.queue and pool.busy < self.threads and len(self.helpers) < self.threads and pool.enter(self.threads):
            self.helpers.append(pool.submit(self.drain, self.threads))

    def finish(self) -> None:
        """Drain in this thread, wait for the helpers, raise the first error."""
        self.pool.enter()
        errors = []
        try:
            self.drain()
        finally:
            # Helpers may add helpers for as long as one runs.
            while self.helpers:
                helper = self.helpers.pop()
                if helper.cancel():
                    self.pool.leave()
                elif (error := helper.exception()) is not None:
                    errors.append(error)
        if errors:
            raise errors[0]
