"""What is measured: one function a work, each returning lines of the table."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import buckets
import clusters
import isolated
import network
import operations
import slides
from contenders import OURS, PEERS, Ceiling, Contender, FrameTable, OursDask, WsiDicom
from peers_ezwsi import EzWsi
from places import Place, Places
from report import Figure, ratios, reason, say


@dataclass
class Run:
    """What the works share: options, and the places not read yet."""

    slide_of: Callable[[str], Path]
    rounds: int
    ours: bool = True
    peers: bool = True
    quick: bool = False
    _places: Places | None = None

    @property
    def places(self) -> Places:
        if self._places is None:
            table = FrameTable(self.slide_of("pyramid"))
            self._places = Places(table.height, table.width, table.frame)
        return self._places

    def contenders(self) -> list[type[Contender]]:
        return [Ceiling, *(OURS if self.ours else []), *([*PEERS, EzWsi] if self.peers else [])]


# -- pixels: a race ---------------------------------------------------------------------------------------------------


def enter(kinds: list[type[Contender]], folder: Path, threads: int, places: Places) -> list[Contender]:
    """Open the contenders, and see that they agree about the pixels of one place.

    A peer that cannot be opened is left out, with its reason. One of ours that cannot, or pixels that differ by more
    than two decoders of the same JPEG may, end the run.
    """
    (trial,) = places.patches(1)
    agreed: np.ndarray | None = None
    ready: list[Contender] = []
    for kind in kinds:
        try:
            contender = kind(folder, threads)
            pixels = np.asarray(contender.region(*trial))
        except Exception as error:
            if kind is Ceiling or kind in OURS:
                raise
            say(f"without {kind.name}: {reason(error)}")
            continue
        if agreed is None:
            agreed = pixels.astype(np.int16)
        if pixels.shape != agreed.shape or pixels.dtype != np.uint8 or abs(pixels - agreed).mean() > 1:
            raise AssertionError(f"{kind.name} sees other pixels than {ready[0].name} at {trial}")
        if kind in OURS and not np.array_equal(pixels, agreed):
            raise AssertionError(f"{kind.name} is not exact at {trial}")
        ready.append(contender)
    return ready


SHARES = 4


def race(
    contenders: list[Contender], draw: Callable[[int], list[Place]], rounds: int, batch: int, slow_batch: int
) -> dict[str, list[float]]:
    """Seconds a read, per contender and round.

    In each round every contender reads places of its own, in up to `SHARES` shares, one contender after the other, so
    that a machine that slows down slows all of them; who begins changes each time. Slow contenders sit out two rounds
    in three.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    turn = 0
    for number in range(rounds):
        at_work = [c for c in contenders if not (c.slow and number % 3)]
        sums = dict.fromkeys((c.name for c in at_work), 0.0)
        counts = {c.name: slow_batch if c.slow else batch for c in at_work}
        places = {name: draw(count) for name, count in counts.items()}
        for share in range(min(SHARES, batch)):
            turn += 1
            first = turn % len(at_work)
            gc.collect()
            for contender in at_work[first:] + at_work[:first]:
                mine = places[contender.name][share::SHARES]
                if mine:
                    sums[contender.name] += contender.timed(mine)
        for contender in contenders:
            name = contender.name
            seconds[name].append(sums[name] / counts[name] if name in sums else math.nan)
    return seconds


@dataclass(frozen=True)
class Aim:
    """The least share of the ceiling for each of ours, and the least ratio to wsidicom."""

    share: dict[str, float]
    wsidicom: float | None = None


def pixels(run: Run, work: str, threads: int, draw: str, batch: int, slow_batch: int, aim: Aim) -> list[Figure]:
    contenders = enter(run.contenders(), run.slide_of("pyramid"), threads, run.places)
    seconds = race(contenders, getattr(run.places, draw), run.rounds, batch, slow_batch)
    figures = []
    for contender in contenders:
        name = contender.name
        took = [s for s in seconds[name] if s == s]
        line: dict[str, Any] = {"work": work, "reader": name, "value": f"{1e3 * median(took):.2f} ms"}
        if threads > 1 and not contender.threaded:
            line["note"] = "1 thread"
        if name != Ceiling.name:
            pairs = [(c, s) for c, s in zip(seconds[Ceiling.name], seconds[name], strict=True) if s == s]
            line["ratio"] = ratios([c for c, _ in pairs], [s for _, s in pairs])
            line["to"] = "of the ceiling"
            if name in aim.share:
                line |= {"target": f"≥ {aim.share[name]:.2f}", "reached": line["ratio"][0] >= aim.share[name]}
        figures.append(Figure(**line))
    if aim.wsidicom:
        for name in aim.share:
            for rival in (c.name for c in contenders if c.name.startswith(WsiDicom.name)):
                if name in seconds:
                    ratio = ratios(seconds[rival], seconds[name])
                    figures.append(
                        Figure(work, name, "", ratio, f"× {rival}", f"≥ {aim.wsidicom:g}", ratio[0] >= aim.wsidicom)
                    )
    for contender in contenders:
        contender.close()
    return figures


def patches(run: Run) -> list[Figure]:
    """Unaligned 256 px patches, one thread."""
    aim = Aim({"wsi.read": 0.92, ".values": 0.85}, wsidicom=2)
    return pixels(run, "patch 256², 1 thread", 1, "patches", 16, 4, aim)


def frames(run: Run) -> list[Figure]:
    """Single frames, one thread."""
    return pixels(run, "frame, 1 thread", 1, "frames", 32, 8, Aim({"wsi.read": 0.90, ".values": 0.65}))


def region(run: Run) -> list[Figure]:
    """Regions of 4096 x 4096 px at unaligned places, two threads."""
    aim = Aim({"wsi.read": 0.90, ".values": 0.90, ".values, Dask": 0.90}, wsidicom=3)
    return pixels(run, "region 4096², 2 threads", 2, "regions", 1, 1, aim)


# -- opening ----------------------------------------------------------------------------------------------------------


def opening(run: Run) -> list[Figure]:
    """Open 163,539 frames with Dask arrays; the blocks a level has; what one patch costs beside decoding."""
    folder = run.slide_of("large")
    figures: list[Figure] = []
    if run.ours:
        import microtome

        took = []
        for _ in range(run.rounds + 1):
            gc.collect()
            start = perf_counter()
            slide = microtome.open_slide(str(folder))
            took.append(perf_counter() - start)
        warm = median(took[1:])
        figures.append(
            Figure(
                "open 163,539 frames, warm", "open_slide", f"{1e3 * warm:.0f} ms", target="≤ 200 ms",
                reached=warm <= 0.2, note=f"first opening {1e3 * took[0]:.0f} ms",
            )
        )  # fmt: skip
        levels = [node.image.data for name, node in slide.children.items() if name.startswith("level")]
        most = max(levels, key=lambda data: data.npartitions)
        figures.append(
            Figure(
                "blocks of a level, most", "open_slide", f"{most.npartitions:,}", target="≤ 10,000",
                reached=most.npartitions <= 10_000, note=f"{len(levels)} levels, blocks {most.chunksize}",
            )
        )  # fmt: skip
        figures.append(patch_latency(run, folder))
    if run.peers:
        figures += [opened_by_peer(kind, folder, run.rounds) for kind in PEERS if kind.name != "wsidicom, Pillow"]
    return figures


def patch_latency(run: Run, folder: Path) -> Figure:
    """One patch through Dask at the default chunks, less what the ceiling needs for another one."""
    ceiling, dask = enter([Ceiling, OursDask], folder, 1, spots := large_places(folder))
    seconds = race([ceiling, dask], spots.patches, 2 * run.rounds, 6, 6)
    over = [1e3 * (a - b) for a, b in zip(seconds[dask.name], seconds[ceiling.name], strict=True)]
    for contender in (ceiling, dask):
        contender.close()
    return Figure(
        "one-patch compute less decoding", ".values, Dask", f"{median(over):.1f} ms", target="≤ 8 ms",
        reached=median(over) <= 8, note=f"range {min(over):.1f}–{max(over):.1f} ms",
    )  # fmt: skip


def large_places(folder: Path) -> Places:
    table = FrameTable(folder)
    return Places(table.height, table.width, table.frame)


def opened_by_peer(kind: type[Contender], folder: Path, rounds: int) -> Figure:
    took = []
    for _ in range(min(rounds, 3) + 1):
        gc.collect()
        start = perf_counter()
        try:
            contender = kind(folder, 1)
        except Exception as error:
            return Figure("open 163,539 frames, warm", kind.name, "failed", note=reason(error))
        took.append(perf_counter() - start)
        contender.close()
    return Figure(
        "open 163,539 frames, warm", kind.name, f"{1e3 * median(took[1:]):.0f} ms", note=NOTES.get(kind.name, "")
    )


NOTES = {"openslide": "level 0", "highdicom": "level 0", "pydicom": "header of level 0"}


def sparse(run: Run) -> list[Figure]:
    """Open a concatenation of sparse tiles with an item each and no offset table, and read one patch."""
    folder, warm = run.slide_of("sparse"), run.slide_of("pyramid")
    figures = []
    readers = [("microtome", run.ours), ("wsidicom", run.peers), ("highdicom", run.peers)]
    for name, wanted in readers:
        if not wanted:
            continue
        work = "open sparse frames, read a patch"
        try:
            answers = [isolated.run(f"sparse_{name}", folder, warm) for _ in range(3 if name == "microtome" else 1)]
        except RuntimeError as error:
            if name == "microtome":
                raise
            figures.append(Figure(work, name, "failed", note=reason(error)))
            continue
        seconds = median(a["seconds"] for a in answers)
        aim: dict[str, Any] = {"target": "≤ 1 s", "reached": seconds <= 1} if name == "microtome" else {}
        note = f"opening alone {median(a['opened'] for a in answers):.2f} s; patch mean {answers[0]['mean']:.1f}"
        figures.append(Figure(work, name, f"{seconds:.2f} s", note=note, **aim))
    return figures


# -- small and bounded ------------------------------------------------------------------------------------------------


def pickles(run: Run) -> list[Figure]:
    """The largest pickled task of one block, for every level of several slides."""
    if not run.ours:
        return []
    import cloudpickle
    import dask

    import microtome

    folders = {name: run.slide_of(name) for name in ("pyramid", "large", "sparse")} | slides.real_slides()
    figures = []
    for name, folder in folders.items():
        sizes = []
        for level, node in microtome.open_slide(str(folder)).children.items():
            if level.startswith("level"):
                first = node.image.data
                first = first[(slice(0, 1),) * first.ndim]
                graph = dict(dask.optimize(first)[0].__dask_graph__())
                sizes.append(max(len(cloudpickle.dumps(task)) for task in graph.values()))
        figures.append(
            Figure(
                "pickle of one task", name, f"{max(sizes):,} B", target="≤ 4,096 B", reached=max(sizes) <= 4096,
                note=f"{len(sizes)} levels",
            )
        )  # fmt: skip
    return figures


def memory(run: Run) -> list[Figure]:
    """Peak memory of a full read of level 0 by blocks."""
    if not run.ours:
        return []
    answer = isolated.run("memory", run.slide_of("pyramid"))
    most = 2 * answer["block"] + 150
    return [
        Figure(
            "full read of level 0 by blocks", "image.max(), Dask", f"{answer['peak']:.0f} MB above the import",
            target=f"≤ {most:.0f} MB", reached=answer["peak"] <= most,
            note=f"{answer['gigabytes']:.1f} GB in {answer['seconds']:.1f} s, "
            f"{answer['blocks']} blocks of {answer['block']:.0f} MB, 2 workers",
        )
    ]  # fmt: skip


def importing(run: Run) -> list[Figure]:
    """What ``import microtome`` costs beside ``import xarray``."""
    if not run.ours:
        return []
    isolated.run("imports", "microtome")  # once for the byte code
    both = [
        (isolated.run("imports", "microtome"), isolated.run("imports", "xarray")) for _ in range(max(run.rounds, 5))
    ]
    ours, theirs = (median(pair[i]["seconds"] for pair in both) for i in (0, 1))
    loaded = both[0][0]["loaded"]
    return [
        Figure(
            "import microtome, beyond xarray", "python", f"{1e3 * (ours - theirs):.0f} ms", target="≤ 150 ms",
            reached=ours - theirs <= 0.15 and not loaded,
            note=f"{1e3 * ours:.0f} and {1e3 * theirs:.0f} ms; too early: {', '.join(loaded) or 'nothing'}",
        )
    ]  # fmt: skip


# -- the choice of the default block ----------------------------------------------------------------------------------


def blocks(run: Run) -> list[Figure]:
    """Block sizes against each other: a region, one patch, and a whole reduction. Not part of the ordinary run."""
    import dask

    import microtome

    folder = run.slide_of("pyramid")
    dask.config.set(scheduler="threads", num_workers=2)
    microtome.config.set(decode_threads=2)
    figures = []
    sides = [512, 1024, 1536, 2048, 3072, 4096, 6144]
    images = {n: microtome.open_slide(str(folder), chunks={"y": n, "x": n})["level0"].image for n in sides}
    images[0] = microtome.open_slide(str(folder))["level0"].image
    took: dict[str, dict[int, list[float]]] = {w: {n: [] for n in images} for w in ("region", "patch", "reduce")}
    for turn in range(min(run.rounds, 4)):
        for n, image in images.items():
            tasks = {
                "region": [image[p.y : p.y + p.height, p.x : p.x + p.width] for p in run.places.regions(1)],
                "patch": [image[p.y : p.y + p.height, p.x : p.x + p.width] for p in run.places.patches(8)],
                "reduce": [image[: image.shape[0] // 4].max()] if turn < 2 else [],
            }
            for work, reads in tasks.items():
                start = perf_counter()
                for read in reads:
                    _ = read.values
                if reads:
                    took[work][n].append((perf_counter() - start) / len(reads))
    for n, image in images.items():
        data = image.data
        values = ", ".join(f"{work} {1e3 * median(took[work][n]):.1f} ms" for work in took)
        size = math.prod(data.chunksize) / 1e6
        figures.append(Figure("Dask blocks", f"{n or 'default'}", values, note=f"{data.npartitions} of {size:.1f} MB"))
    return figures


ORDINARY: dict[str, Callable[[Run], list[Figure]]] = {
    "patches": patches,
    "frames": frames,
    "region": region,
    "open": opening,
    "sparse": sparse,
    "pickle": pickles,
    "memory": memory,
    "import": importing,
    "network": network.network,
    "buckets": buckets.buckets,
    "clusters": clusters.clusters,
    "operations": operations.operations,
}
#: parts of "operations" and "clusters", to be run alone
PARTS: dict[str, Callable[[Run], list[Figure]]] = {
    "overlapping": operations.overlapping,
    "burning": clusters.burning,
    "fetching": clusters.fetching,
    "cohort": clusters.cohort,
    "resampling": operations.resampling,
    "tissue": operations.tissue,
}
WORKS = ORDINARY | PARTS | {"blocks": blocks}
