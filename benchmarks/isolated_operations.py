"""Operations that need a process of their own, for their peak memory; see isolated.py."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

from isolated import Answer, Peak


def patches(folder: str, side: str) -> Answer:
    """Compute all patches of a square of level 0, chunk by chunk, with two threads.

    The dataset is made before: its coordinates take memory for each patch, and no pixels.
    """
    import dask

    import microtome
    from patch_readers import SIZE, STRIDE, first_pixels

    microtome.config.set(decode_threads=2)
    image = microtome.open_slide(folder)["level0"].image

    def compute(extent: int, at: int) -> tuple[float, Peak, Any]:
        data = image[at : at + extent, at : at + extent].wsi.patches(SIZE, STRIDE).image.data
        touched = data.map_blocks(
            first_pixels, dtype=data.dtype, chunks=(data.chunks[0], (1,), (1,), (1,)), meta=data._meta
        )
        peak, start = Peak(), time.perf_counter()
        with dask.config.set(scheduler="threads", num_workers=2):
            touched.compute()
        return time.perf_counter() - start, peak, data

    compute(1024, 0)[1].stop()  # what is loaded and made once
    seconds, peak, data = compute(int(side), 2048)
    return {
        "peak": peak.stop(), "seconds": seconds, "patches": data.shape[0], "chunks": int(data.npartitions),
        "chunk": data.dtype.itemsize * math.prod(data.chunksize) / 1e6,
    }  # fmt: skip


def tissue(folder: str, quality: str) -> Answer:
    """Make the tissue mask of a slide with two threads; the libraries it needs are loaded before."""
    import dask
    import skimage.filters
    import skimage.morphology  # noqa: F401

    import microtome

    start = time.perf_counter()
    slide = microtome.open_slide(folder)
    opened = time.perf_counter() - start
    peak = Peak()
    start = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=2):
        mask = slide.wsi.tissue_mask(quality=quality).compute()
    seconds = time.perf_counter() - start
    return {
        "peak": peak.stop(), "opened": opened, "seconds": seconds, "shape": list(mask.shape),
        "tissue": float(mask.values.mean()), "picture": mask.size * 3 / 1e6,
    }  # fmt: skip


JOBS: dict[str, Callable[..., Answer]] = {"patches": patches, "tissue": tissue}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))
