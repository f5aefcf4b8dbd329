"""Settings for the workers of a cluster."""

from __future__ import annotations

from typing import Any

from microtome import config
from microtome.errors import MissingDependencyError, OptionError

__all__ = ["configure"]

PLUGIN = "microtome"
"""Name of the plugin: a cluster has one, the last."""


def configure(client: Any, *, shared_requests_per_server: int | None = None, **settings: int | str) -> None:
    """Set microtome's settings on every worker of a cluster, and on those that join it or restart later.

    Each call takes the place of the one before: what it does not name is as it was before the first.

    Parameters
    ----------
    client
        ``distributed.Client`` of the cluster.
    shared_requests_per_server
        The most requests under way at a time to one server or bucket, by all workers together, so that many workers do
        not overwhelm it. Each request then asks the scheduler first, which takes some milliseconds. A worker that dies
        holds its share for ``distributed.scheduler.locks.lease-timeout`` of Dask's configuration, 30 s. Requests of the
        client's own process, such as those that open a slide, are not counted. Default: no limit but those of each
        worker, ``requests_per_server`` and ``requests``.
    **settings
        Fields of `microtome.config.Settings`. Where workers are threads of the client's process, they are its settings,
        until the cluster is closed.

    Raises
    ------
    OptionError
        A name that is no setting, a number that is too small, or a client that is asynchronous.
    MissingDependencyError
        distributed is not installed.

    Examples
    --------
    >>> import microtome as mt
    >>> mt.cluster.configure(client, shared_requests_per_server=16, frame_cache_bytes=1 << 30)  # doctest: +SKIP
    """
    checked = config.check(settings)
    shared = shared_requests_per_server
    if shared is not None:
        shared = config.whole("shared_requests_per_server", shared)
    try:
        from microtome.cluster.workers import Configured
    except ImportError:
        raise MissingDependencyError("clusters need distributed. Remedy: pip install 'microtome[cluster]'") from None
    if getattr(client, "asynchronous", False):
        raise OptionError("the client is asynchronous: this waits for the workers, and needs one that is not")
    client.register_plugin(Configured(checked, shared), name=PLUGIN)
