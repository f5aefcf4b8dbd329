"""Slides on Dask clusters: how work scales with workers, and a cohort of a thousand slides.

Clusters are local ones, whose schedulers have processes of their own. What burns the processor is measured beside tasks
that burn as much of it without us: what these lose, Dask loses.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

import isolated
import isolated_clusters as work
import slides
from bucket_servers import Ranges
from buckets import settings
from places import Place
from report import Figure, ratios
from web_servers import Child, Embedded

if TYPE_CHECKING:
    from works import Run

LATENCY = 0.1
MANY = 8
FETCHES, SIDE = 96, 512
FEW = 2


class Cluster:
    """Workers of one thread each, and a client of theirs."""

    def __init__(self, workers: int) -> None:
        from distributed import Client

        self._child = Child(sys.executable, Path(__file__).with_name("isolated_clusters.py"), "cluster", workers, 1)
        self.address: str = self._child.first["address"]
        self.client = Client(self.address, set_as_default=False)
        self.client.wait_for_workers(workers)

    def seconds(self, compute: Callable[[Any], Any]) -> tuple[float, Any]:
        """How long something takes for the client, the workers knowing nothing of earlier times, and what it gives."""
        self.client.run(work.forget)
        gc.collect()
        start = perf_counter()
        result = compute(self.client)
        return perf_counter() - start, result

    def scheduling(self) -> float:
        """Seconds that the process of the scheduler has taken of the processor."""
        import psutil

        return sum(psutil.Process(self._child.pid).cpu_times()[:2])

    def close(self) -> None:
        self.client.close()
        self._child.close()


@contextmanager
def started(*workers: int) -> Iterator[list[Cluster]]:
    made: list[Cluster] = []
    try:
        for count in workers:
            made.append(Cluster(count))
        yield made
    finally:
        for one in made:
            one.close()


def race(both: list[Cluster], compute: Callable[[Any], Any], rounds: int) -> tuple[list[list[float]], list[Any]]:
    """Seconds of each cluster and round, and what came of it; who begins changes each time."""
    seconds: list[list[float]] = [[] for _ in both]
    results = []
    for number in range(rounds):
        for i in [0, 1] if number % 2 else [1, 0]:
            took, result = both[i].seconds(compute)
            seconds[i].append(took)
            results.append(result)
    return seconds, results


def scaling(what: str, reader: str, seconds: list[list[float]], to: str, least: float | None, note: str) -> Figure:
    ratio = ratios(seconds[0], seconds[1])
    aim: dict[str, Any] = {"target": f"≥ {least:g}", "reached": ratio[0] >= least} if least else {}
    return Figure(what, reader, f"{median(seconds[1]):.2f} s", ratio, to, note=note, **aim)


def burning(run: Run) -> list[Figure]:
    """Statistics of tissue, by blocks: two workers of one thread each against one."""
    import dask.array as da

    import microtome

    image = microtome.open_slide(str(run.slide_of("web"))).wsi.at(spacing=0.0007)
    data = image.data
    blocks = {"chunks": ((1,) * data.numblocks[0], (1,) * data.numblocks[1], (5,)), "dtype": np.float64}
    ours = data.map_blocks(work.statistics, meta=np.empty((0, 0, 0)), **blocks)
    count = data.numblocks[0] * data.numblocks[1]
    figures = []
    rounds = min(run.rounds, FEW)
    with started(1, 2) as both:
        for cluster in both:
            cluster.client.run(work.warm, image)
        seconds, results = race(both, lambda client: client.compute(ours).result(), rounds)
        if not all(np.array_equal(result, results[0]) for result in results):
            raise AssertionError("two workers see other tissue than one")
        whole = results[0].sum((0, 1))
        note = f"{median(seconds[0]):.2f} s with one; {count} blocks, {whole[1] / whole[0]:.0%} tissue"
        what, to = "tissue statistics, 2 workers x 1 thread", "× 1 worker"
        figures.append(scaling(what, "wsi.at, map_blocks", seconds, to, 1.5, note))
        share = median(seconds[0]) / count
        empty = da.zeros(data.shape, chunks=data.chunks, dtype=np.uint8)
        bare = empty.map_blocks(work.burn, seconds=share, meta=np.empty((0, 0, 0)), **blocks)
        seconds, _ = race(both, lambda client: client.compute(bare).result(), rounds)
        note = f"{median(seconds[0]):.2f} s with one; {count} tasks that burn {1e3 * share:.0f} ms each"
        figures.append(scaling(what, "Dask without us", seconds, to, None, note))
    return figures


def fetching(run: Run) -> list[Figure]:
    """Frames into the cache, and no further: eight workers against one."""
    import microtome

    folder = run.slide_of("web")
    inside = random.Random(11).randrange
    figures = []
    dicomweb, ranges = Embedded(folder), Ranges(folder, LATENCY)
    dicomweb.delay(LATENCY)
    try:
        with started(1, MANY) as both:
            for name, server in (("DICOMweb", dicomweb), ("ranges", ranges)):
                image = microtome.open_slide(server.series("standard"), chunks=None)["level0"].image
                height, width = image.shape[:2]
                spots = [Place(inside(height - SIDE), inside(width - SIDE), SIDE, SIDE) for _ in range(FETCHES)]
                for cluster in both:
                    cluster.client.run(work.warm, image)

                def compute(client: Any, image: Any = image, spots: list[Place] = spots) -> list[int]:
                    return client.gather(client.map(partial(work.fetch, image), spots, pure=False))

                before = server.counts()
                seconds, results = race(both, compute, 1 if run.quick else 2)
                asked = server.counts() - before
                frames = sum(results[0])
                if not frames:
                    raise AssertionError(f"nothing was fetched from {name}")
                note = f"{median(seconds[0]):.1f} s with one; {frames} frames for {FETCHES} tasks, "
                note += f"{asked.requests / len(results):.0f} requests, {asked.bytes / len(results) / 1e6:.0f} MB"
                figures.append(
                    scaling(f"fetching, {1e3 * LATENCY:.0f} ms, {MANY} workers", name, seconds, "× 1 worker", 6, note)
                )
    finally:
        dicomweb.close()
        ranges.close()
    return figures


def cohort(run: Run) -> list[Figure]:
    """A thousand slides as one: times, the memory of the client, and what the scheduler does for each."""
    folder = slides.cohort()
    with started(2) as (cluster,):
        before = cluster.scheduling()
        answer = isolated.run("cohort", cluster.address, folder, script="isolated_clusters.py")
        scheduling = cluster.scheduling() - before
    n, took = answer["slides"], answer["seconds"]
    if answer["failed"] or n != slides.COHORT_SIZE:
        raise AssertionError(f"{answer['failed']} slides of {n} failed")
    what = f"cohort of {n:,} slides, 2 workers"
    figures = [
        Figure(what, f"cohort: {step}", f"{took[step]:.2f} s", note=f"{1e3 * took[step] / n:.1f} ms a slide")
        for step in ("open", "summary", "map", "patches")
    ]
    note = f"{answer['patches']:,} patches; reading one {1e3 * took['a patch']:.0f} ms"
    return [
        *figures,
        Figure(
            what, "client", f"{answer['resident']:.0f} MB at most", target="≤ 200 MB",
            reached=answer["resident"] <= 200, note=f"{answer['above']:.0f} MB above import microtome; {note}",
        ),
        Figure(what, "scheduler", f"{1e3 * scheduling / n:.1f} ms a slide", note="processor time of all four steps"),
    ]  # fmt: skip


def clusters(run: Run) -> list[Figure]:
    """Slides on clusters, and cohorts."""
    if not run.ours:
        return []
    with settings():
        return [*burning(run), *fetching(run), *cohort(run)]
