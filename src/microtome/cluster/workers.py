"""What runs on workers: a plugin that applies settings to its process, and has requests ask for leases."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from distributed import WorkerPlugin

from microtome import config
from microtome.cluster.leases import Leases
from microtome.storage import limits
from microtome.storage.forks import renew_in_forks

__all__ = ["Configured"]


class _Layer:
    """What one call of `configure` has set in this process, for one or more workers of it."""

    def __init__(self, settings: Mapping[str, int | str]) -> None:
        self.settings = settings
        self.leases: dict[Any, Leases | None] = {}


class _Process:
    """The settings of this process, which those of the last call that a worker of it knows are laid over.

    Workers may be threads of one process. They come and go one by one, and so does what a call has set.
    """

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._before: AbstractContextManager[Any] | None = None
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Begin with a lock of one's own; settings stay, but workers are those of another process."""
        self._lock = threading.Lock()

    def enter(self, run: str, settings: Mapping[str, int | str], worker: Any, leases: Leases | None) -> None:
        with self._lock:
            layer = self._layers.setdefault(run, _Layer(settings))
            layer.leases[worker] = leases
            self._apply()

    def leave(self, run: str, worker: Any) -> None:
        with self._lock:
            layer = self._layers.get(run)
            leases = None if layer is None else layer.leases.pop(worker, None)
            if layer is not None and not layer.leases:
                del self._layers[run]
            self._apply()
        if leases is not None:
            leases.close()

    def _apply(self) -> None:
        if self._before is not None:
            self._before.__exit__(None, None, None)
            self._before = None
        last = next(reversed(self._layers.values()), None)
        if last is None:
            limits.share(None)
            return
        self._before = config.set(**last.settings)
        self._before.__enter__()
        # Any worker that is there will do: they ask the same scheduler.
        leases = next(reversed(last.leases.values()))
        limits.share(None if leases is None else leases.lease)


_process = _Process()


class Configured(WorkerPlugin):
    """Settings of a call of `configure`, on a worker.

    Parameters
    ----------
    settings
        For the process.
    shared
        Requests under way at a time to one server, by all workers; None for no such limit.
    """

    def __init__(self, settings: Mapping[str, int | str], shared: int | None) -> None:
        self.settings = dict(settings)
        self.shared = shared
        self.run = uuid.uuid4().hex

    def setup(self, worker: Any) -> None:
        """Begin on a worker."""
        leases = None if self.shared is None else Leases(self.shared, worker)
        _process.enter(self.run, self.settings, worker.id, leases)

    def teardown(self, worker: Any) -> None:
        """End on a worker."""
        _process.leave(self.run, worker.id)
