"""One remote file as ranges of bytes, through a filesystem of fsspec: several at a time, tried again, checked."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Any, NoReturn

from microtome import config
from microtome.errors import OptionError
from microtome.storage import limits
from microtome.storage.fetching import Wanted, fetch
from microtome.storage.filesystems import is_a, of_this_process
from microtome.storage.forks import renew_in_forks
from microtome.storage.refusals import Failure, attempt
from microtome.storage.retrying import LONGEST_WAIT, backoff
from microtome.storage.uri import server_name, unsigned
from microtome.storage.workers import Workers

__all__ = ["FsspecSource", "asked", "in_parallel"]


def _place(server: str) -> AbstractContextManager[object]:
    """Return what is held during a request to a server, by the name that `server_name` gives; nothing without one."""
    return limits.request(server) if server else nullcontext()


class _Turns:
    """Locks of filesystems that one thread at a time may read."""

    def __init__(self) -> None:
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Begin anew: a lock may have been held by a thread that is not here."""
        self._of: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
        self._copying = threading.Lock()

    def __call__(self, fs: Any) -> AbstractContextManager[Any]:
        """Return what a read of a filesystem holds.

        Those that are not asynchronous may share a file position between threads, as archives do. Those that keep
        copies read a copy that another thread has not finished.
        """
        if is_a(fs, "CachingFileSystem"):
            return self._copying
        return nullcontext() if type(fs).async_impl else self._of.setdefault(fs, threading.Lock())


_turn = _Turns()
in_parallel = Workers().parallel
"""Calls on many items, as many at a time as requests to a server may be under way."""


def asked(call: Any, where: str, server: str = "") -> Any:
    """Call what sends a request, and again while it fails for a reason that may pass; return what it returns.

    Parameters
    ----------
    call
        Takes nothing.
    where
        What it is about, for errors; safe to show.
    server
        Among whose requests it takes a place.

    Raises
    ------
    RequestError, SlideChangedError
        It failed.
    """
    tries = 0
    while True:
        with _place(server):
            outcome = attempt(call)
        if not isinstance(outcome, Failure):
            return outcome
        tries += 1
        if not outcome.again or tries > config.get().http_retries or (outcome.wait or 0) > LONGEST_WAIT:
            break
        # A kept connection that the server has closed meanwhile is no sign of trouble: the next try is at once.
        broken = tries == 1 and outcome.status is None and outcome.wait is None
        time.sleep(0 if broken else max(outcome.wait or 0, backoff(tries)))
    raise outcome.error(where, tries)


def _way(fs: Any) -> object:
    """Return what stands for a filesystem in keys: for this very object, and so for whom it asks.

    Another one with the same options may ask for somebody else, whom the environment named meanwhile. This is no
    reference to the filesystem, which would keep its connections open.
    """
    try:
        return fs._microtome_way
    except AttributeError:
        fs._microtome_way = object()  # two threads at a time: their frames are kept twice
        return fs._microtome_way


class FsspecSource:
    """A file of any filesystem that fsspec knows and that can read ranges.

    Parameters
    ----------
    fs, path
        The filesystem, and the path in it.
    size
        In bytes.
    uri
        In full, as it is opened.
    shown
        The same as it may be shown.
    mark
        What changes when the file changes; empty if that is not known.
    """

    remote = True

    def __init__(self, fs: Any, path: str, size: int, uri: str, shown: str, mark: str = "") -> None:
        self.uri = shown
        self.size = size
        endpoint = fs.storage_options.get("endpoint_url") or ""
        told = repr((unsigned(uri), endpoint, size, mark)).encode()
        self.identity = blake2b(told, digest_size=20).hexdigest() if mark else ""
        # Without a mark the same name may soon be another file, of which nothing is known that was learnt before.
        self.key: Hashable = (_way(fs), path, size, mark) if mark else (path, object())
        self._server = server_name(uri)
        self._fs = fs
        self._pid = os.getpid()
        self._path = path
        self._mark = mark

    def __reduce__(self) -> NoReturn:
        raise OptionError(f"{self.uri}: an open file does not leave this process; what was opened does, by its recipe")

    def _filesystem(self) -> Any:
        if self._pid != os.getpid():
            self._fs = of_this_process(self._fs, self._pid)
            self._pid = os.getpid()
        return self._fs

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where the file ends first.

        Raises
        ------
        RequestError
            The server cannot be reached, or refuses; `ProtocolError` where it sends something else than these bytes.
        SlideChangedError
            The file is another one than that which was listed.
        """
        stop = min(offset + length, self.size)
        if offset >= stop:
            return b""
        fs = self._filesystem()
        wanted = Wanted(self._path, offset, stop, self.size, self._mark)

        def request() -> bytes:
            with _turn(fs):
                return fetch(fs, wanted)

        data: bytes = asked(request, f"{self.uri}: bytes {offset}-{stop - 1}", self._server)
        return data

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, length), each as `read` would; several are in flight at a time."""
        if not type(self._fs).async_impl:
            return [self.read(offset, length) for offset, length in ranges]
        return in_parallel(lambda r: self.read(*r), ranges)
