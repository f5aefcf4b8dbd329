"""How many requests are under way at a time: to one server, and over all servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["request"]


@contextmanager
def request(server: str) -> Iterator[None]:
    """Hold a place among the requests under way, waiting until one is free.

    Parameters
    ----------
    server
        Which server, as ``scheme://host:port``, or ``gs://bucket``.
    """
    yield
