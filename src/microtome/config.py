"""Settings of this process: how many threads, how much memory.

``set(decode_threads=4)`` changes a setting for good, ``with set(decode_threads=4): ...`` for the block. Each starts
from an environment variable, ``MICROTOME_`` and its name in capitals.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields

from microtome.errors import OptionError

__all__ = ["Settings", "get", "set"]


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(slots=True)
class Settings:
    """What can be set.

    Parameters
    ----------
    decode_threads
        Threads that decode frames, over all reads of the process together. Default: the processors it may use.
    io_threads
        Reads in flight on a remote store. Default: 16.
    block_bytes
        Size aimed at for a Dask block, in bytes of pixels.
    inflate_bytes
        The most that a deflated data set may inflate to; it is held in memory whole, for it has no random access.
    """

    decode_threads: int = 0
    io_threads: int = 16
    block_bytes: int = 16 << 20
    inflate_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for f in fields(self):
            text = os.environ.get(f"MICROTOME_{f.name.upper()}")
            if text is not None:
                setattr(self, f.name, _positive(f.name, text))
        self.decode_threads = self.decode_threads or _cpus()


def _positive(name: str, value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise OptionError(f"setting {name} must be a whole number of at least 1, not {value!r}")
    return number


_settings = Settings()


def get() -> Settings:
    """Return the settings in force."""
    return _settings


def set(**settings: int) -> AbstractContextManager[Settings]:
    """Change settings, for good or, as a context manager, for a block.

    Parameters
    ----------
    **settings
        Fields of `Settings`.

    Raises
    ------
    OptionError
        A name that is no setting, or a number below 1.
    """
    unknown = settings.keys() - {f.name for f in fields(Settings)}
    if unknown:
        known = ", ".join(f.name for f in fields(Settings))
        raise OptionError(f"no setting {', '.join(sorted(unknown))}: there are {known}")
    before = {name: getattr(_settings, name) for name in settings}
    for name, value in settings.items():
        setattr(_settings, name, _positive(name, value))
    return _restoring(before)


@contextmanager
def _restoring(before: dict[str, int]) -> Iterator[Settings]:
    try:
        yield _settings
    finally:
        for name, value in before.items():
            setattr(_settings, name, value)
