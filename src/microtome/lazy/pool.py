"""One pool of threads a process, shared by all reads.

The thread that reads takes part itself, and takes helpers only while the process has threads to spare: inside a busy
Dask worker every task decodes in its own thread. A read never waits for a thread, so reads cannot block each other.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

__all__ = ["run"]


class _Pools:
    """Executors by size, and the number of threads at work."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0
        self.busy = 0

    def borrow(self, wanted: int, limit: int) -> int:
        """Count this thread and up to ``wanted`` helpers as busy; return how many helpers there are."""
        with self.lock:
            helpers = max(0, min(wanted, limit - self.busy - 1))
            self.busy += helpers + 1
        return helpers

    def give_back(self, count: int) -> None:
        with self.lock:
            self.busy -= count

    def get(self, size: int) -> ThreadPoolExecutor:
        with self.lock:
            if self.executor is None or self.size < size:
                if self.executor is not None:
                    self.executor.shutdown(wait=False)
                self.executor = ThreadPoolExecutor(size, thread_name_prefix="microtome")
                self.size = size
            return self.executor


_pools = _Pools()


def _forget() -> None:
    # Threads do not survive a fork, and the lock may have been held by one of them.
    global _pools
    _pools = _Pools()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run(work: Callable[[T], None], items: Sequence[T], threads: int) -> None:
    """Call ``work`` on every item, in this thread and up to ``threads - 1`` others. The first error is raised."""
    pools = _pools
    helpers = pools.borrow(len(items) - 1, threads) if threads > 1 and len(items) > 1 else 0
    if not helpers:
        try:
            for item in items:
                work(item)
        finally:
            if threads > 1 and len(items) > 1:
                pools.give_back(1)
        return
    queue = deque(items)

    def drain() -> None:
        while True:
            try:
                item = queue.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException:
                queue.clear()
                raise

    futures: list[Future[None]] = []
    try:
        executor = pools.get(threads)
        futures = [executor.submit(drain) for _ in range(helpers)]
        drain()
    finally:
        queue.clear()
        running = [f for f in futures if not f.cancel()]
        errors = [f.exception() for f in running]
        pools.give_back(helpers + 1)
    for error in errors:
        if error is not None:
            raise error
