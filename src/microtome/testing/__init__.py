"""Synthetic slides of any size and a DICOMweb server, for demos, benchmarks and tests: ours and yours.

::

    recipe ──> sources ──> encode ──> writer ──> part10 ──> dicomweb
    options    pixels      frames     instances  bytes      a server over files, which knows nothing of the others
               (tissue)               (dataset)

Nothing but numpy is imported before the first slide is made, and nothing of the server before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.testing.slide import SyntheticSlide, make_slide

if TYPE_CHECKING:
    from microtome.testing.dicomweb import DICOMwebServer, Fault, Request

__all__ = ["DICOMwebServer", "Fault", "Request", "SyntheticSlide", "make_slide"]


def __getattr__(name: str) -> Any:
    """Import the server when it is asked for."""
    if name in ("DICOMwebServer", "Fault", "Request"):
        from microtome.testing import dicomweb

        return getattr(dicomweb, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
