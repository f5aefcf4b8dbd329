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
    http_connections
        TCP connections to one server. Default: 8.
    http_timeout
        Seconds that a server may take to connect, or to send nothing. Default: 30.
    http_retries
        How often a request is repeated that failed for a reason that may pass. Default: 5; 0 for never.
    frames_per_request
        The most frames asked of a DICOMweb server in one request. Default: 256.
    frame_cache_bytes
        Encoded frames from servers that the process keeps, in bytes. Default: 256 MiB; 0 for none.
    decoded_cache_bytes
        Decoded frames that the process keeps, in bytes, for programs that show the same place again and again.
        Default: 0.
    overlap_cache_bytes
        Decoded frames that the process keeps, in bytes, while patches or resampled blocks are read, because their
        neighbours show the rest of them. Default: 64 MiB; 0 for none.
    """

    decode_threads: int = 0
    io_threads: int = 16
    block_bytes: int = 16 << 20
    inflate_bytes: int = 256 << 20
    http_connections: int = 8
    http_timeout: int = 30
    http_retries: int = 5
    frames_per_request: int = 256
    frame_cache_bytes: int = 256 << 20
    decoded_cache_bytes: int = 0
    overlap_cache_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for f in fields(self):
            text = os.environ.get(f"MICROTOME_{f.name.upper()}")
            if text is not None:
                setattr(self, f.name, _whole(f.name, text))
        self.decode_threads = self.decode_threads or _cpus()


_MAY_BE_ZERO = ("http_retries", "frame_cache_bytes", "decoded_cache_bytes", "overlap_cache_bytes")


def _whole(name: str, value: object) -> int:
    least = 0 if name in _MAY_BE_ZERO else 1
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < least:
        raise OptionError(f"setting {name} must be a whole number of at least {least}, not {value!r}")
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
        A name that is no setting, or a number that is too small.
    """
    unknown = settings.keys() - {f.name for f in fields(Settings)}
    if unknown:
        known = ", ".join(f.name for f in fields(Settings))
        raise OptionError(f"no setting {', '.join(sorted(unknown))}: there are {known}")
    before = {name: getattr(_settings, name) for name in settings}
    for name, value in settings.items():
        setattr(_settings, name, _whole(name, value))
    return _restoring(before)


@contextmanager
def _restoring(before: dict[str, int]) -> Iterator[Settings]:
    try:
        yield _settings
    finally:
        for name, value in before.items():
            setattr(_settings, name, value)
