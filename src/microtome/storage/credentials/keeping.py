"""What a process keeps: what was made of a recipe, for all copies of it that tasks bring, until it is renewed."""

from __future__ import annotations

import itertools
import os
import threading
import uuid
import weakref
from collections import OrderedDict
from types import MethodType
from typing import Any

from microtome.storage.credentials.base import Credentials
from microtome.storage.credentials.secrets import SecretHeaders

__all__ = ["Keeping", "Kept", "differ", "mark", "name_of"]

KEPT = 32
"""Recipes of which a process keeps what came of them; a task brings a copy that must not start over."""

_generations = itertools.count(1)


class Kept:
    """What a process made of a recipe."""

    __slots__ = ("google", "headers", "lock", "pid", "renewed")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.headers: SecretHeaders | None = None
        self.google: Any = None
        self.renewed = float("-inf")

    def keep(self, made: SecretHeaders) -> SecretHeaders:
        """Keep new headers."""
        made.generation = next(_generations)
        self.headers = made
        return made


_keeping = threading.Lock()
_kept: OrderedDict[str, Kept] = OrderedDict()


def _after_fork() -> None:
    global _keeping
    _keeping = threading.Lock()  # it may have been held by a thread that is not here
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Keeping(Credentials):
    """Credentials that are made at the first use and again after `refresh`."""

    _here: Kept | None = None

    def _mine(self) -> Kept:
        kept = self._here
        if kept is None or kept.pid != os.getpid():
            with _keeping:
                kept = self._here = _kept.setdefault(self.identity, Kept())
                _kept.move_to_end(self.identity)
                while len(_kept) > KEPT:
                    _kept.popitem(last=False)
        return kept


def differ(new: SecretHeaders, stale: SecretHeaders) -> bool:
    """Tell whether new headers are worth asking again."""
    return any(stale.get(name) != value for name, value in new.items())


_marks: dict[tuple[int, str], tuple[weakref.ref[Any], str]] = {}


def mark(thing: object, known: str = "") -> str:
    """Return a name that no other object has or had; ``id`` is given again when an object is gone.

    Copies that come by pickle bring the mark of the first, so that all tasks of a worker share what one of them made.
    """
    owner, part = (thing.__self__, thing.__func__.__qualname__) if isinstance(thing, MethodType) else (thing, "")
    key = (id(owner), part)
    held = _marks.get(key)
    if held is not None and held[0]() is owner:
        return held[1]
    known = known or uuid.uuid4().hex
    try:
        reference = weakref.ref(owner, lambda gone: _marks.pop(key, None))
    except TypeError:  # it cannot be recognised again: then it equals itself only
        return known
    _marks[key] = (reference, known)
    return known


def name_of(thing: Any) -> str:
    """Return the name of a function or of the class of an object: a ``partial`` may hold a password, a repr show it."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}".removeprefix("builtins.")
