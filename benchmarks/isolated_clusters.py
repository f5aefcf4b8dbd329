"""Clusters in a process of their own, clients in a fresh one, and what tasks do.

``python isolated_clusters.py cluster WORKERS THREADS`` is a scheduler with its workers, and runs until stdin is closed;
``python isolated_clusters.py JOB ADDRESS ARGUMENT...`` is a client. Workers import this file for its functions.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from isolated import Answer, Peak
from places import Place

# -- what tasks do


def statistics(pixels: np.ndarray) -> np.ndarray:
    """Of a block of pixels, (1, 1, 5): how many, how many of them are tissue, and the sum of the colours of these."""
    red, green, blue = (pixels[..., i] for i in range(3))
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    tissue = (green < 220) & (most - least > 15)
    sums = pixels[tissue].sum(0, dtype=np.float64) if tissue.any() else np.zeros(3)
    return np.array([[[tissue.size, tissue.sum(), *sums]]], np.float64)


def burn(block: np.ndarray, seconds: float) -> np.ndarray:
    """Do nothing of use for so many seconds of processor time, without Python's lock most of the time."""
    until = time.thread_time() + seconds
    work = np.ones(1 << 16)
    while time.thread_time() < until:
        np.sqrt(work, out=work)
    return np.zeros((1, 1, 5))


def fetch(image: Any, place: Place) -> int:
    """Fetch the frames under a place; return how many."""
    return int(image.wsi.prefetch([place.y], [place.x], place.height, place.width))


def forget() -> None:
    """Forget what was fetched and decoded."""
    import microtome

    microtome.cache.clear()


def warm(image: Any) -> None:
    """Import what is needed, and open a slide."""
    image.wsi.read(0, 0, 1, 1)
    forget()


def tissue_of(slide: Any) -> dict[str, float]:
    """Tissue fraction and mean colour of a small slide."""
    pixels, tissue, red, _, _ = statistics(slide["level0"].image.values)[0, 0].tolist()
    return {"tissue": tissue / pixels, "red": red / max(tissue, 1)}


# -- processes


def cluster(workers: str, threads: str) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=int(workers), threads_per_worker=int(threads), processes=True, dashboard_address=None
    ) as here:
        print(json.dumps({"address": here.scheduler_address}), flush=True)
        sys.stdin.read()


def cohort(address: str, folder: str) -> Answer:
    """Open a thousand slides as one, summarize them, map a function over them, and make patches of all."""
    import microtome

    peak = Peak()
    from distributed import Client

    seconds: dict[str, float] = {}

    def timed(what: str, f: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = f()
        seconds[what] = time.perf_counter() - start
        return result

    with Client(address, set_as_default=True):
        folders = [str(path) for path in sorted(Path(folder).iterdir())]
        slides = timed("open", lambda: microtome.open_cohort(folders))
        table = timed("summary", lambda: slides.summary(progress=False))
        mapped = timed("map", lambda: slides.map(tissue_of, progress=False))
        patches = timed("patches", lambda: slides.patches(224, level=0, progress=False))
        one = timed("a patch", lambda: patches.image[len(patches.image) // 2].values)
    failed = int(table["error"].notna().sum() + mapped["error"].notna().sum())
    return {
        "seconds": seconds, "above": peak.stop(), "resident": peak.most / 1e6, "slides": len(table), "failed": failed,
        "patches": len(patches.image), "mean": float(one.mean()),
    }  # fmt: skip


JOBS: dict[str, Callable[..., Answer]] = {"cohort": cohort}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    job, *arguments = sys.argv[1:]
    if job == "cluster":
        cluster(*arguments)
    else:
        print(json.dumps(JOBS[job](*arguments)))
