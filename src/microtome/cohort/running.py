"""Many slides, some at a time: on the workers of a cluster, or in threads of this process.

Only so many tasks are under way that no worker waits: neither the scheduler nor this process ever holds thousands.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NoReturn, Protocol, Self

import dask

from microtome import config
from microtome.cohort.progress import progress_bar
from microtome.cohort.tasks import Job, Outcome, Payload, perform, perform_pickled, pickled
from microtome.errors import CohortError, OptionError
from microtome.lazy.recipe import Recipe
from microtome.storage.uri import is_remote

__all__ = ["fail", "opening_threads", "work"]

PER_THREAD = 4
"""Tasks under way for each thread at the most: one that runs, and some that are there when it ends."""
LEAST = 4
"""Tasks under way before a cluster has workers."""
LARGE = 1 << 16
"""Bytes of a job that are not sent with every task."""
KNOWN = 2.0
"""Seconds for which the number of threads of a cluster is believed."""

Tag = tuple[int, int]
"""Number of a slide, and how often it may still be tried again."""


def work(
    job: Job,
    items: Sequence[Any],
    take: Callable[[int, Outcome], None],
    *,
    what: str,
    client: Any,
    progress: bool,
    threads: int,
    retries: int = 0,
) -> None:
    """Do a job to each of some items, in parallel.

    Parameters
    ----------
    job
        Takes an item.
    items
        What tells a slide from the others; pickled for a cluster.
    take
        Called with the number and the outcome of each, as they come, in this thread. What it raises ends the work.
    what
        What is done, for the bar.
    client
        Of a cluster. Default: the active one, unless ``dask.config`` names another scheduler; else threads.
    progress
        Whether to show a bar.
    threads
        How many of these, without a cluster.
    retries
        How often an item that fails is tried again, behind all others.

    Raises
    ------
    OptionError
        The client is asynchronous, or the job cannot be sent to workers.
    """
    client = _active_client(client)
    if client is None and dask.config.get("scheduler", None) in ("synchronous", "sync", "single-threaded"):
        threads = 1
    waiting = deque((n, retries) for n in range(len(items)))
    if not waiting:
        return
    place: _Place = _Threads(job, threads) if client is None else _Cluster(job, client)
    with progress_bar(what, len(items), progress) as done, place:
        while waiting or place.busy:
            room = place.room()
            if waiting and place.busy <= room // 2:  # some at once: each time costs a scheduler as much as a task
                tags = [waiting.popleft() for _ in range(min(room - place.busy, len(waiting)))]
                place.begin(tags, [items[n] for n, _ in tags])
            for (n, left), outcome in place.ended():
                if outcome.error and left:
                    waiting.append((n, left - 1))
                    continue
                done(bool(outcome.error))
                take(n, outcome)


def opening_threads(recipes: Sequence[Recipe]) -> int:
    """Return how many threads are of use where slides are opened and little is computed."""
    settings = config.get()
    remote = any(recipe.web or is_remote(recipe.names[0]) for recipe in recipes[:1])
    return settings.io_threads if remote else settings.decode_threads


def fail(name: str, outcome: Outcome) -> NoReturn:
    """Raise the error of a slide."""
    error = CohortError(f"slide {name!r}: {outcome.error}", {name: outcome.error})
    error.add_note(outcome.traceback)
    raise error


def _active_client(client: Any) -> Any:
    """Return the client of the cluster to work on; None for threads of this process."""
    if client is None:
        distributed = sys.modules.get("distributed")
        if distributed is None or dask.config.get("scheduler", None) not in (None, "distributed", "dask.distributed"):
            return None
        try:
            client = distributed.default_client()
        except ValueError:
            return None
    if client.asynchronous:
        raise OptionError("the client is asynchronous: a cohort waits for its results and needs one that is not")
    return client


class _Place(Protocol):
    """Where jobs are done."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    @property
    def busy(self) -> int:
        """Number of items under way."""
        ...

    def room(self) -> int:
        """Return how many items there may be under way."""
        ...

    def begin(self, tags: Sequence[Tag], items: Sequence[Any]) -> None:
        """Begin with some items."""
        ...

    def ended(self) -> list[tuple[Tag, Outcome]]:
        """Wait until something has ended, and return what has."""
        ...


class _Threads(_Place):
    def __init__(self, job: Job, threads: int) -> None:
        self._job = job
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="microtome-cohort")
        self._under_way: dict[Future[Outcome], Tag] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Who interrupts does not wait for what cannot be stopped.
        self._executor.shutdown(wait=kind is None, cancel_futures=True)

    @property
    def busy(self) -> int:
        return len(self._under_way)

    def room(self) -> int:
        return PER_THREAD * self._threads

    def begin(self, tags: Sequence[Tag], items: Sequence[Any]) -> None:
        for tag, item in zip(tags, items, strict=True):
            self._under_way[self._executor.submit(perform, self._job, item)] = tag

    def ended(self) -> list[tuple[Tag, Outcome]]:
        done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        return [(self._under_way.pop(future), future.result()) for future in done]


class _Cluster(_Place):
    def __init__(self, job: Job, client: Any) -> None:
        self._payload: Any = Payload(pickled(job))
        self._client = client
        self._run = uuid.uuid4().hex
        self._under_way: dict[Any, Tag] = {}
        self._room = 0
        self._asked = -KNOWN

    def __enter__(self) -> Self:
        from distributed import as_completed

        completed: Any = as_completed  # which has no types
        if len(self._payload.data) > LARGE:
            # Sent once, as the result of a task, which another worker can make again when the first one dies. Not so
            # what is small: tasks of little work would all go where it is.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # it is large, and sent once
                key = f"microtome-function-{self._run}"
                self._payload = self._client.submit(Payload, self._payload.data, key=key, pure=False)
        self._done = completed(loop=self._client.loop, with_results=True, raise_errors=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with contextlib.suppress(Exception):  # the cluster may be gone, and this is not what went wrong
                self._client.cancel(list(self._under_way))
        self._under_way.clear()

    @property
    def busy(self) -> int:
        return len(self._under_way)

    def room(self) -> int:
        # Clusters grow and shrink.
        if time.monotonic() >= self._asked + KNOWN:
            self._room = max(LEAST, PER_THREAD * sum(self._client.nthreads().values()))
            self._asked = time.monotonic()
        return self._room

    def begin(self, tags: Sequence[Tag], items: Sequence[Any]) -> None:
        # Pickled here: what must not travel says so to the user.
        data = [pickled(item) for item in items]
        keys = [f"microtome-cohort-{self._run}-{n}-{left}" for n, left in tags]
        futures = self._client.map(perform_pickled, data, payload=self._payload, key=keys, pure=False)
        self._under_way |= zip(futures, tags, strict=True)
        for future in futures:
            self._done.add(future)

    def ended(self) -> list[tuple[Tag, Outcome]]:
        found = [next(self._done)]
        while self._done.has_ready():
            found.append(next(self._done))
        return [(self._under_way.pop(future), _outcome(future, result)) for future, result in found]


def _outcome(future: Any, result: Any) -> Outcome:
    if isinstance(result, bytes):
        outcome: Outcome = pickle.loads(result)
        return outcome
    # The task could not answer: its worker died time and again, or it was cancelled.
    error = result[1] if isinstance(result, tuple) else result
    return Outcome.of(error if isinstance(error, BaseException) else RuntimeError(f"the task is {future.status}"))
