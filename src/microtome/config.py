"""Settings of this process: how many threads, how much memory.

``set(decode_threads=4)`` changes a setting for good, ``with set(decode_threads=4): ...`` for the block. Each starts
from an environment variable, ``MICROTOME_`` and its name in capitals.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields

from platformdirs import user_cache_dir

from microtome.errors import OptionError

__all__ = ["Settings", "check", "get", "set"]


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers_threads() -> int:
    """Return how many threads the Dask workers in this process have for tasks; 0 where there are none."""
    worker = sys.modules.get("distributed.worker")
    if worker is None:
        return 0
    while True:
        try:
            # Known to the process, not only to a thread that runs a task: threads of ours work for tasks as well.
            workers = list(worker.Worker._instances)
        except RuntimeError:  # one more has just come
            continue
        return sum(w.state.nthreads for w in workers if w.status.name in ("running", "paused"))


class _Threads:
    """The setting ``decode_threads``: as long as it is 0, what there is for this process."""

    def __get__(self, settings: Settings | None, owner: type[Settings]) -> int:
        if settings is None:
            return 0  # the default of the field
        return settings.__dict__["decode_threads"] or _workers_threads() or _cpus()

    def __set__(self, settings: Settings, value: int) -> None:
        settings.__dict__["decode_threads"] = value


@dataclass
class Settings:
    """What can be set.

    Parameters
    ----------
    decode_threads
        Threads that decode frames, over all reads of the process together. Default, or 0: the threads that Dask workers
        in this process have for tasks; where there are none, the processors that it may use.
    io_threads
        Threads that read from remote stores, over all reads of the process together. Default: 16.
    block_bytes
        Size aimed at for a Dask block, in bytes of pixels.
    inflate_bytes
        The most that a deflated data set may inflate to; it is held in memory whole, for it has no random access.
    requests
        Requests under way at a time, over all servers and buckets. Default: 32.
    requests_per_server
        Requests under way at a time to one server or bucket; a web server sees as many connections. Default: 16. For
        all workers of a cluster together, see `microtome.cluster`.
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
    open_slides
        Slides that the process keeps open between reads by Dask tasks and of patches of cohorts; each takes up to a
        few MB. More are of use where patches of many slides are read in any order. Default: 32.
    cache_dir
        Folder in which it is kept where the frames of remote files are, so that no other process has to find out:
        numbers only, under names that tell nothing. Default: ``microtome`` in the user's cache folder; empty for none.
    cache_dir_bytes
        The most that is kept there, in bytes. Default: 1 GiB.
    """

    decode_threads: int = _Threads()  # type: ignore[assignment]
    io_threads: int = 16
    block_bytes: int = 16 << 20
    inflate_bytes: int = 256 << 20
    requests: int = 32
    requests_per_server: int = 16
    http_timeout: int = 30
    http_retries: int = 5
    frames_per_request: int = 256
    frame_cache_bytes: int = 256 << 20
    decoded_cache_bytes: int = 0
    overlap_cache_bytes: int = 64 << 20
    open_slides: int = 32
    cache_dir: str = field(default_factory=lambda: user_cache_dir("microtome", appauthor=False))
    cache_dir_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for f in fields(self):
            text = os.environ.get(f"MICROTOME_{f.name.upper()}")
            if text is not None:
                setattr(self, f.name, _valid(f.name, text))


_MAY_BE_ZERO = ("decode_threads", "http_retries", "frame_cache_bytes", "decoded_cache_bytes", "overlap_cache_bytes")


def _valid(name: str, value: object) -> int | str:
    """Return the value of a setting as it is kept."""
    if name != "cache_dir":
        return whole(name, value)
    if not isinstance(value, str | os.PathLike):
        raise OptionError(f"setting {name} must be a folder, or empty for none, not {value!r}")
    folder = os.fsdecode(value)
    return os.path.abspath(os.path.expanduser(folder)) if folder else ""  # noqa: PTH100, PTH111


def whole(name: str, value: object) -> int:
    """Return the value of a setting as a number.

    Raises
    ------
    OptionError
        It is none, or too small.
    """
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


def check(settings: Mapping[str, object]) -> dict[str, int | str]:
    """Return settings as they would be set.

    Parameters
    ----------
    settings
        Values by names of fields of `Settings`.

    Raises
    ------
    OptionError
        A name that is no setting, or a number that is too small.
    """
    unknown = settings.keys() - {f.name for f in fields(Settings)}
    if unknown:
        known = ", ".join(f.name for f in fields(Settings))
        raise OptionError(f"no setting {', '.join(sorted(unknown))}: there are {known}")
    return {name: _valid(name, value) for name, value in settings.items()}


def set(**settings: int | str | os.PathLike[str]) -> AbstractContextManager[Settings]:
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
    checked = check(settings)
    before = {name: _settings.__dict__[name] for name in checked}  # as it was set, not what that comes to
    for name, value in checked.items():
        setattr(_settings, name, value)
    return _restoring(before)


@contextmanager
def _restoring(before: dict[str, int | str]) -> Iterator[Settings]:
    try:
        yield _settings
    finally:
        for name, value in before.items():
            setattr(_settings, name, value)
