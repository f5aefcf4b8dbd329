"""Leases of a cluster: so many requests to a server at a time, by all workers together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Semaphore

from microtome.errors import OptionError, RequestError

__all__ = ["Leases"]

ASK_AGAIN = "5s"
"""How long a worker asks for a lease before it asks anew: what a worker that died had asked for ends with that."""


class _Semaphore(Semaphore):
    """A semaphore that does not refresh a lease that is just being given back: the scheduler would know it for ever."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._turn = asyncio.Lock()
        super().__init__(*args, **options)

    async def _refresh_leases(self) -> None:
        async with self._turn:
            await super()._refresh_leases()

    async def _release(self, lease_id: str) -> Any:
        async with self._turn:
            return await super()._release(lease_id)


class Leases:
    """The leases that a worker asks its scheduler for, from any thread but that of its event loop.

    Parameters
    ----------
    most
        Leases that there are for each server.
    worker
        Who asks.
    """

    def __init__(self, most: int, worker: Any) -> None:
        self._most = most
        self._worker = worker
        self._lock = threading.Lock()
        self._semaphores: dict[str, _Semaphore] = {}

    def _semaphore(self, server: str) -> _Semaphore:
        with self._lock:
            semaphore = self._semaphores.get(server)
            if semaphore is None:
                # The number is part of the name: another call of `configure` may set another.
                name = f"microtome-{self._most}-requests-{server}"
                semaphore = self._semaphores[server] = _Semaphore(
                    self._most, name, scheduler_rpc=self._worker.scheduler, loop=self._worker.loop
                )
            return semaphore

    def close(self) -> None:
        """Keep no lease any longer; called by the event loop."""
        with self._lock:
            for semaphore in self._semaphores.values():
                refreshing = getattr(semaphore, "refresh_callback", None)  # there is none where leases last for ever
                if refreshing is not None:
                    refreshing.stop()
            self._semaphores.clear()

    @contextmanager
    def lease(self, server: str) -> Iterator[None]:
        """Hold a lease for a request.

        Raises
        ------
        OptionError
            This is the thread of the worker's event loop.
        RequestError
            The scheduler cannot be asked.
        """
        semaphore = self._semaphore(server)
        if semaphore.asynchronous:
            raise OptionError(
                "a coroutine reads in the thread of the worker's event loop, which everything on the worker waits for; "
                "let it read in a thread: await asyncio.to_thread(...)"
            )
        self._acquire(semaphore, server)
        try:
            yield
        finally:
            semaphore.release()

    def _acquire(self, semaphore: _Semaphore, server: str) -> None:
        try:
            while not semaphore.acquire(ASK_AGAIN):
                pass
        except (OSError, RuntimeError) as e:
            why = type(e).__name__
        else:
            return
        raise RequestError(
            f"{server}: the scheduler cannot be asked for a place among the requests of all workers ({why}); "
            "is the worker being closed?"
        )
