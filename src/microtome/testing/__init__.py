"""Synthetic slides of any size, and servers of DICOMweb and of byte ranges, for demos, benchmarks and tests.

::

    recipe ──> sources ──> encode ──> writer ──> part10 ──> dicomweb, ranges
    options    pixels      frames     instances  bytes      servers over files, which know nothing of the others
               (tissue)               (dataset)

Nothing but numpy is imported before the first slide is made, and nothing of the server before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.testing.slide import SyntheticSlide, make_slide

if TYPE_CHECKING:
    from microtome.testing.dicomweb import DICOMwebServer, Fault, FaultRule, Request
    from microtome.testing.ranges import RangeServer

__all__ = ["DICOMwebServer", "Fault", "FaultRule", "RangeServer", "Request", "SyntheticSlide", "make_slide"]


def __getattr__(name: str) -> Any:
    """Import the servers when they are asked for."""
    if name in ("DICOMwebServer", "Fault", "FaultRule", "Request"):
        from microtome.testing import dicomweb

        return getattr(dicomweb, name)
    if name == "RangeServer":
        from microtome.testing.ranges import RangeServer

        return RangeServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
