"""Synthetic slides of any size, for demos, benchmarks and tests: ours and yours.

::

    recipe ──> sources ──> encode ──> writer ──> part10
    options    pixels      frames     instances  bytes
               (tissue)               (dataset)

Nothing but numpy is imported before the first slide is made.
"""

from __future__ import annotations

from microtome.testing.slide import SyntheticSlide, make_slide

__all__ = ["SyntheticSlide", "make_slide"]
