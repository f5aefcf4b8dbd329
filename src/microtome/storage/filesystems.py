"""Filesystems of URLs, as fsspec makes them; what is missing for one, and how long its server is waited for."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from microtome import config
from microtome.errors import MissingDependencyError, OptionError, SlideNotFoundError
from microtome.storage.forks import renew_in_forks
from microtome.storage.refusals import Failure, attempt
from microtome.storage.uri import chain, display_uri, names_file, scheme

__all__ = ["filesystem", "is_a", "of_this_process", "time_limit"]

_WEB = ("http", "https")
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}


def filesystem(uri: str, storage_options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the filesystem of a URL, and the path in it.

    Parameters
    ----------
    uri
        Any URL that fsspec knows, chained ones as well.
    storage_options
        For the outermost filesystem; of others by their names.

    Raises
    ------
    MissingDependencyError
        It needs a package that is not installed.
    OptionError
        It knows no such option.
    RequestError
        Its server refuses, or what it is in cannot be read.
    """
    import fsspec

    shown = display_uri(uri)
    schemes = [name for name in map(scheme, chain(uri)) if name]
    for name in schemes:
        missing = _missing(name)
        if missing:
            raise MissingDependencyError(f"{shown}: {missing}")
    options = _with_time_limits(storage_options, schemes)
    for value in _tokens(options):
        if names_file(value) and not os.path.exists(os.path.expanduser(value)):
            raise OptionError(f"{shown}: storage_options name a file of credentials that is not here")
    inside = {name: value for name, value in options.items() if name in schemes[1:]}
    steps = [(uri, options)]
    if len(schemes) > 1:  # what it is in is read when a filesystem is made
        steps.insert(0, ("::".join(chain(uri)[1:]), inside))
    fs = path = None
    for part, given in steps:
        made = attempt(functools.partial(fsspec.core.url_to_fs, part, **_copy(given)))
        if isinstance(made, Failure):
            raise made.error(shown)
        fs, path = made
        _used.here.add(fs)
        _try_once(fs)
    return fs, str(path)


def _copy(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that fsspec may put others to, as it does."""
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in options.items()}


def _tokens(options: Mapping[str, Any]) -> list[str]:
    """Return what Google's filesystem is to find its credentials by."""
    given = [options, *(value for value in options.values() if isinstance(value, Mapping))]
    return [mapping["token"] for mapping in given if isinstance(mapping.get("token"), str)]


def _missing(name: str) -> str:
    """Return why there is no filesystem of a name, and the remedy; empty where there is one."""
    import fsspec

    try:
        fsspec.get_filesystem_class(name)
    except ImportError as e:
        extra = _EXTRAS.get(name)
        remedy = f"pip install 'microtome[{extra}]'" if extra else f"install the fsspec filesystem for {name!r}"
        return f"{e}. Remedy: {remedy}"
    except ValueError:
        raise SlideNotFoundError(f"fsspec knows no filesystem {name!r}, which the URL begins with") from None
    return ""


def _with_time_limits(storage_options: Mapping[str, Any], schemes: Sequence[str]) -> dict[str, Any]:
    """Return options of filesystems that give up when others do.

    They are those of filesystems of ours alone: fsspec shares one between all who use the same options.
    """
    options = dict(storage_options)
    for number, name in enumerate(schemes):
        inner = options if number == 0 else dict(options.get(name, {}))
        if name in ("s3", "s3a"):
            inner.setdefault("config_kwargs", _of_botocore())
        elif name in ("gs", "gcs"):
            inner.setdefault("requests_timeout", time_limit())
        elif name in _WEB and number > 0:  # else requests are ours
            inner["client_kwargs"] = {"timeout": time_limit(), **inner.get("client_kwargs", {})}
        if number > 0 and inner:
            options[name] = inner
    return options


def _of_botocore() -> dict[str, Any]:
    seconds = config.get().http_timeout
    return {
        "connect_timeout": min(seconds, 10),
        "read_timeout": seconds,
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 64,  # the limits of requests decide
    }


def time_limit() -> Any:
    """Return the time limit of aiohttp: none for the whole answer, only for silence."""
    import aiohttp

    seconds = config.get().http_timeout
    return aiohttp.ClientTimeout(total=None, sock_connect=min(seconds, 10), sock_read=seconds)


def _try_once(fs: Any) -> None:
    """Leave it to us to try again: filesystems wait for other things, and for longer, each time that we try."""
    if is_a(fs, "S3FileSystem"):
        fs.retries = 1
    elif is_a(fs, "GCSFileSystem"):
        once = getattr(type(fs)._request, "__wrapped__", None)
        if once is not None:
            fs._request = once.__get__(fs)


def is_a(fs: Any, name: str) -> bool:
    """Tell whether a filesystem is of a class of fsspec's family, which may not be imported."""
    return any(kind.__name__ == name for kind in type(fs).__mro__)


class _Used:
    """Filesystems that were used here.

    A process that is forked off keeps them, and never uses them: to let go of one would be to ask a thread that is not
    there to end its connections.
    """

    def __init__(self) -> None:
        self.here: weakref.WeakSet[Any] = weakref.WeakSet()
        self._kept: list[Any] = []
        renew_in_forks(self)

    def renew(self) -> None:
        """Keep those of the process that this one was forked from."""
        self._kept += list(self.here)
        self.here = weakref.WeakSet()


_used = _Used()


def of_this_process(fs: Any, pid: int) -> Any:
    """Return a filesystem that may be used here: it, or one like it if this process was forked from that it is of.

    Parameters
    ----------
    fs
        The filesystem.
    pid
        The process that it was made in.
    """
    if pid == os.getpid():
        return fs
    made = attempt(lambda: type(fs)(*fs.storage_args, **fs.storage_options))
    if isinstance(made, Failure):
        raise made.error(type(fs).__name__)
    _used.here.add(made)
    _try_once(made)
    return made
