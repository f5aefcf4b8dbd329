"""Objects that begin anew in a forked process: connections, threads, and locks that these held, are not there."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Renewed", "renew_in_forks"]


class Renewed(Protocol):
    """What `renew_in_forks` takes."""

    def renew(self) -> None:
        """Forget connections, threads and locks; called in the new process."""
        ...


_known: weakref.WeakSet[Renewed] = weakref.WeakSet()


def renew_in_forks(thing: Renewed) -> None:
    """Have an object renewed in every process that is forked off from now on."""
    _known.add(thing)


def _renew() -> None:
    for thing in list(_known):
        thing.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
