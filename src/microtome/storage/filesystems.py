"""Filesystems of URLs, as fsspec makes them; what is missing for one, and how long its server is waited for."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

from microtome import config
from microtome.errors import MissingDependencyError, OptionError, SlideNotFoundError
from microtome.storage.forks import renew_in_forks
from microtome.storage.refusals import Failure, attempt
from microtome.storage.uri import chain, display_uri, names_file, scheme

__all__ = ["filesystem", "is_a", "of_this_process"]

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
    options = dict(storage_options)
    for name in {"s3", "s3a"}.intersection(schemes):
        inner = options if name == schemes[0] else options.setdefault(name, {})
        if isinstance(inner, Mapping) and "config_kwargs" not in inner:
            patched = {**inner, "config_kwargs": _of_botocore()}
            options = patched if inner is options else {**options, name: patched}
    for value in _tokens(options):
        if names_file(value) and not os.path.exists(os.path.expanduser(value)):
            raise OptionError(f"{shown}: storage_options name a file of credentials that is not here")
    made = attempt(lambda: fsspec.core.url_to_fs(uri, **options))
    if isinstance(made, Failure):
        raise made.error(shown)
    fs, path = made
    _used.here.add(fs)
    _wait_no_longer(fs)
    return fs, str(path)


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


def _of_botocore() -> dict[str, Any]:
    """Return settings in place of botocore's own, which tries five times each time that others try."""
    seconds = config.get().http_timeout
    return {
        "connect_timeout": min(seconds, 10),
        "read_timeout": seconds,
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 64,  # the limits of requests decide
    }


def _wait_no_longer(fs: Any) -> None:
    """Have a filesystem give up as early as others do, and leave it to us to try again."""
    if is_a(fs, "S3FileSystem"):
        fs.retries = 1
    elif is_a(fs, "GCSFileSystem") and fs.requests_timeout is None:
        import aiohttp

        seconds = config.get().http_timeout
        fs.requests_timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(seconds, 10), sock_read=seconds)


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
    _wait_no_longer(made)
    return made
