"""The slides that a process has open: once each, whoever needs them, and as long as tasks may come back to them."""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar

from microtome import config
from microtome.storage.forks import renew_in_forks

__all__ = ["OpenOnce"]

T = TypeVar("T")


class OpenOnce(Generic[T]):
    """Open things by their names, from any thread.

    Threads that need the same thing wait for the one that opens it; those that need another do not.
    """

    def __init__(self) -> None:
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Forget all: files and connections are those of another process, and so are the threads that open some."""
        self._lock = threading.Lock()
        self._open: weakref.WeakValueDictionary[str, T] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._opening: dict[str, Future[T | None]] = {}

    def add(self, name: str, opened: T) -> None:
        """Know something that is open, as long as somebody holds it."""
        with self._lock:
            self._open[name] = opened

    def get(self, name: str, open_it: Callable[[], T]) -> T:
        """Return what has this name, and keep it open for those who come back to it.

        Whoever waits for another thread to open it meets the error that this one meets: a server that does not answer
        would else be waited for once a thread.
        """
        while True:
            with self._lock:
                opened = self._open.get(name)
                if opened is not None:
                    self._keep(name, opened)
                    return opened
                opening = self._opening.get(name)
                if opening is None:
                    mine = self._opening[name] = Future()
                    break
            error = opening.exception()
            if error is not None:
                raise copy.copy(error)
            opened = opening.result()
            if opened is not None:
                return opened
        try:
            with _quiet():
                opened = open_it()
            with self._lock:
                self._open[name] = opened
                self._keep(name, opened)
        except BaseException as e:
            self._opening.pop(name, None)
            if isinstance(e, Exception):
                mine.set_exception(e)
            else:
                mine.set_result(None)  # interrupted from the keyboard: another thread tries
            raise
        self._opening.pop(name, None)
        mine.set_result(opened)
        return opened

    def _keep(self, name: str, opened: T) -> None:
        self._kept[name] = opened
        self._kept.move_to_end(name)
        while len(self._kept) > config.get().open_slides:
            self._kept.popitem(last=False)


class _Quiet:
    """No warnings while any thread opens again what was opened before: they were given then.

    Filters of warnings are those of the process: the first thread changes them, and the last changes them back.
    """

    def __init__(self) -> None:
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Begin anew: threads that opened something are not in a forked process."""
        self._lock = threading.Lock()
        self._count = 0
        self._filters: warnings.catch_warnings[None] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._count += 1
            if self._filters is None:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if self._count == 0 and self._filters is not None:
                    self._filters.__exit__(None, None, None)
                    self._filters = None


_quiet = _Quiet()
