"""Slides in buckets that are opened in a fresh process: ``python isolated_buckets.py JOB ARGUMENT...``."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable

from isolated import Answer


def opening(url: str, warm: str) -> Answer:
    """Open a slide, and read one pixel of each level, for which the place of a frame has to be known."""
    import fsspec

    import microtome

    microtome.open_slide(warm, chunks=None)["level0"].image.wsi.read(0, 0, 1, 1)
    fsspec.filesystem("http").loop  # noqa: B018 (its thread is started here)
    start = time.perf_counter()
    slide = microtome.open_slide(url, chunks=None)
    opened = time.perf_counter() - start
    levels = [node for name, node in slide.children.items() if name.startswith("level")]
    start = time.perf_counter()
    for level in levels:
        level.image.wsi.read(0, 0, 1, 1)
    return {"opened": opened, "read": time.perf_counter() - start, "instances": len(levels)}


JOBS: dict[str, Callable[..., Answer]] = {"opening": opening}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))
