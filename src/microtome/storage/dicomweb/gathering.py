"""Many threads that ask for a few frames each, as Dask tasks do, made into few requests.

As many requests are under way as there are connections. Who comes meanwhile would wait for a connection anyway; when
one is free, all who wait are asked for together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from typing import Generic, TypeVar

from microtome.errors import RequestError
from microtome.storage.dicomweb.session import is_of_server
from microtome.storage.forks import renew_in_forks

F = TypeVar("F")

__all__ = ["Gathering"]


class _Turn(Generic[F]):
    """A caller, and what came of its wait: frames, an error, or a group to ask for."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self.ready = threading.Event()
        self.leads = False
        self.others: list[_Turn[F]] = []
        self.found: dict[int, F] | None = None
        self.error: RequestError | None = None

    def take(self, found: dict[int, F]) -> dict[int, F]:
        return {number: found[number] for number in self.numbers if number in found}


class Gathering(Generic[F]):
    """Asks for frames of one instance.

    Parameters
    ----------
    fetch
        Fetches frames by their numbers; those that it leaves out are not there.
    """

    def __init__(self, fetch: Callable[[list[int]], dict[int, F]]) -> None:
        self._fetch = fetch
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Forget callers, which are threads of another process."""
        self._lock = threading.Lock()
        self._active = 0
        self._waiting: deque[_Turn[F]] = deque()

    def ask(self, numbers: Sequence[int], abreast: int, most: int) -> dict[int, F]:
        """Return frames, asked for alone or with those of other callers.

        Parameters
        ----------
        numbers
            Of the frames.
        abreast
            The most requests at a time.
        most
            The most frames of a request that is made of several callers'.
        """
        turn: _Turn[F] = _Turn(numbers)
        with self._lock:
            free = self._active < abreast
            if free:
                self._active += 1
            else:
                self._waiting.append(turn)
        if not free:
            try:
                turn.ready.wait()
            except BaseException:  # an interrupt from the keyboard: others wait for this turn
                self._leave(turn, most)
                raise
            if turn.found is not None:
                return turn.found
            if turn.error is not None:
                raise turn.error
            if not turn.leads:  # who asked for both failed, perhaps for a reason of its own
                return turn.take(self._fetch(list(numbers)))
        try:
            found = self._fetch(sorted({number for member in (turn, *turn.others) for number in member.numbers}))
            for member in turn.others:
                member.found = member.take(found)
        except RequestError as e:
            if is_of_server(e):
                for member in turn.others:
                    member.error = copy(e)
            raise
        finally:
            self._pass_on(turn, most)
        return turn.take(found)

    def _leave(self, turn: _Turn[F], most: int) -> None:
        """Take a caller out who waits no more."""
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        if turn.leads:
            self._pass_on(turn, most)

    def _pass_on(self, turn: _Turn[F], most: int) -> None:
        """End a turn, and let the next group ask, in the thread of its first."""
        for member in turn.others:
            member.ready.set()
        with self._lock:
            if not self._waiting:
                self._active -= 1
                return
            leader = self._waiting.popleft()
            leader.leads = True
            count = len(leader.numbers)
            while self._waiting and count + len(self._waiting[0].numbers) <= most:
                member = self._waiting.popleft()
                leader.others.append(member)
                count += len(member.numbers)
        leader.ready.set()
