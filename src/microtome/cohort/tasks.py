"""What is done to one slide, in a thread or on a worker: whatever goes wrong with it, an answer comes back."""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import dask

from microtome.errors import MicrotomeError, OptionError
from microtome.storage.forks import renew_in_forks

__all__ = ["Job", "Outcome", "Payload", "perform", "perform_pickled", "pickled"]

Job = Callable[[Any], Any]
"""What is done: a function of what tells one slide from the others."""


class Outcome(NamedTuple):
    """What came of a slide."""

    value: Any = None
    error: str = ""
    """``"Class: message"``; empty where all went well."""
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Outcome:
        """Return the outcome of an error: text only, for the class may be known to the worker alone."""
        text = str(error)
        name = type(error).__name__
        return cls(None, f"{name}: {text}" if text else name, "".join(traceback.format_exception(error)))


class Payload:
    """A job as bytes: it travels as they are, and is made of them where it arrives.

    Parameters
    ----------
    data
        Its pickle.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return Payload, (self.data,)

    @cached_property
    def job(self) -> Job:
        """What is done."""
        job: Job = pickle.loads(self.data)
        return job


def pickled(thing: Any) -> bytes:
    """Pickle what goes to a worker.

    Raises
    ------
    OptionError
        It cannot be pickled, or holds a secret.
    CredentialsError
        It holds a secret.
    """
    import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(thing)
    except MicrotomeError:
        raise
    except Exception as e:
        reason = type(e).__name__
    else:
        return data
    # Outside, so that no traceback shows what would not be pickled.
    raise OptionError(
        f"the function, or what it is given, cannot be sent to the workers ({reason} when it was pickled); open files, "
        "locks and connections are made inside the function"
    )


class _ComputingHere:
    """Dask computes in the thread that asks, while any task of ours runs in this process.

    A task of a cluster that computes on the same cluster waits for threads that wait likewise. Dask's settings are
    those of the process, so the first task that begins changes them, and the last that ends changes them back.
    """

    def __init__(self) -> None:
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Begin anew, in a forked process."""
        self._lock = threading.Lock()
        self._count = 0
        self._setting: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._setting = dask.config.set(scheduler="synchronous")
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if self._count == 0:
                    self._setting.__exit__(None, None, None)


_computing_here = _ComputingHere()


def perform(job: Job, item: Any) -> Outcome:
    """Do what is to be done to a slide."""
    try:
        with _computing_here():
            return Outcome(job(item))
    except (Exception, SystemExit) as e:  # a function that gives up on a slide does not end the program
        return Outcome.of(e)


def perform_pickled(item: bytes, payload: Payload) -> bytes:
    """Do the same on a worker, and return the outcome as bytes: Dask need not know how its value is pickled."""
    import cloudpickle

    try:
        outcome = perform(payload.job, pickle.loads(item))
        data: bytes = cloudpickle.dumps(outcome)
    except Exception as e:
        data = pickle.dumps(Outcome.of(e))
    return data
