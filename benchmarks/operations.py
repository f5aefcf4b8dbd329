"""Patches that overlap, resampling, and tissue: array operations against what the machine gives, and against peers."""

from __future__ import annotations

import gc
import random
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

import isolated
from contenders import Ceiling as Frames
from contenders import FrameTable
from patch_readers import OURS, PEERS, Ceiling, OursDask, PatchReader, corners, side
from places import Place
from report import Figure, ratios, reason, say

if TYPE_CHECKING:
    from works import Run

SCRIPT = "isolated_operations.py"

# -- patches that overlap ---------------------------------------------------------------------------------------------

REGION = 6144
"""Side of a region: 2,809 patches over 625 frames, which decoded are twice our cache and wsidicom's."""


class Regions:
    """Regions of level 0, shuffled; no reader gets the same one twice, for it may have kept its frames.

    Readers that share a cache, as ours do, are told apart from themselves by a ``lane``.
    """

    def __init__(self, table: FrameTable) -> None:
        across = -(-REGION // table.frame) + 1
        rows, columns = table.height // table.frame // across, table.width // table.frame // across
        where = random.Random(11)
        self._all = [
            Place(
                r * across * table.frame + where.randrange(1, table.frame),
                c * across * table.frame + where.randrange(1, table.frame),
                REGION,
                REGION,
            )
            for r in range(rows)
            for c in range(columns)
        ]
        where.shuffle(self._all)

    def of(self, turn: int, lane: int, lanes: int) -> Place:
        return self._all[(turn * lanes + lane) % len(self._all)]


def enter(run: Run, threads: int) -> list[PatchReader]:
    """Open the readers, and see that they agree on every pixel of nine patches in the middle of the slide."""
    folder = run.slide_of("pyramid")
    table = FrameTable(folder)
    trial = Place(table.height // 2 + 77, table.width // 2 + 33, side(3), side(3))
    kinds = [Ceiling, *(OURS if run.ours else []), *(PEERS if run.peers else [])]
    agreed: dict[Any, np.ndarray] = {}
    ready: list[PatchReader] = []
    for kind in kinds:
        try:
            reader = kind(folder, threads)
            seen = reader.pixels(trial)
        except Exception as error:
            if kind is Ceiling or kind.ours:
                raise
            say(f"without {kind.name}: {reason(error)}")
            continue
        agreed = agreed or seen
        if seen.keys() != set(corners(trial)):
            raise AssertionError(f"{kind.name} reads other patches than it was asked for")
        for corner, patch in seen.items():
            off = np.abs(patch.astype(np.int16) - agreed[corner])
            if patch.dtype != np.uint8 or (kind.ours and off.any()) or off.mean() > 1:
                raise AssertionError(f"{kind.name} sees other pixels than the ceiling in the patch at {corner}")
        ready.append(reader)
    return ready


def overlapping(run: Run) -> list[Figure]:
    """Patches of 224 px, 112 px apart, over regions of 6144 x 6144 px: with one thread and with two."""
    figures = []
    turn = 0
    regions = Regions(FrameTable(run.slide_of("pyramid")))
    rounds = min(run.rounds, 5)
    for threads in (1, 2):
        readers = enter(run, threads)
        lanes = {reader.name: n for n, reader in enumerate(r for r in readers if r.ours)}
        seconds: dict[str, list[float]] = {reader.name: [] for reader in readers}
        for number in range(rounds):
            first = number % len(readers)
            gc.collect()
            for reader in readers[first:] + readers[:first]:
                region = regions.of(turn, lanes.get(reader.name, 0), max(1, len(lanes)))
                seconds[reader.name].append(reader.timed(region))
            turn += 1
        figures += _overlapping(f"patches 224², stride 112, {_threads(threads)}", readers, seconds, threads)
        for reader in readers:
            reader.close()
    if run.ours:
        figures += overlapping_memory(run)
    return figures


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _overlapping(work: str, readers: list[PatchReader], seconds: dict[str, list[float]], threads: int) -> list[Figure]:
    figures = []
    for reader in readers:
        took = seconds[reader.name]
        line: dict[str, Any] = {"note": "1 thread" if reader.threads < threads else ""}
        if reader.name != Ceiling.name:
            line |= {"ratio": ratios(seconds[Ceiling.name], took), "to": "of the ceiling"}
        if reader.ours:
            line |= {"target": "≥ 0.80", "reached": line["ratio"][0] >= 0.8}
        figures.append(Figure(work, reader.name, f"{1 / median(took):,.0f} patches/s", **line))
    rivals = [reader.name for reader in readers if not reader.ours and reader.name != Ceiling.name]
    if rivals:
        best = min(rivals, key=lambda name: median(seconds[name]))
        for reader in readers:
            if reader.ours:
                ratio = ratios(seconds[best], seconds[reader.name])
                figures.append(Figure(work, reader.name, "", ratio, f"× {best}", "≥ 2", ratio[0] >= 2))
    return figures


def overlapping_memory(run: Run) -> list[Figure]:
    """Peak memory of patches, of a region and of one sixteen times as large: two chunks a worker, and the cache."""
    import microtome

    cache = microtome.config.get().overlap_cache_bytes / 1e6
    figures = []
    for extent in (4096, 16384):
        answer = isolated.run("patches", run.slide_of("pyramid"), extent, script=SCRIPT)
        most = 2 * 2 * answer["chunk"] + cache
        figures.append(
            Figure(
                "peak memory of patches, 2 threads", f"{OursDask.name}, {extent}²", f"{answer['peak']:.0f} MB",
                target=f"≤ {most:.0f} MB", reached=answer["peak"] <= most,
                note=f"{answer['patches']:,} patches in {answer['chunks']} chunks of {answer['chunk']:.0f} MB",
            )
        )  # fmt: skip
    return figures


# -- resampling -------------------------------------------------------------------------------------------------------

FACTORS = (2.0, 2.5, 4.0)


def resampling(run: Run) -> list[Figure]:
    """A level of 8192 x 8192 px on coarser grids, against decoding it and Pillow's box filter."""
    folder = run.slide_of("single")
    figures = []
    for threads in (1, 2):
        for factor in FACTORS:
            figures += _resampled(run, str(folder), Frames(folder, threads), threads, factor)
    return figures


def _resampled(run: Run, folder: str, frames: Frames, threads: int, factor: float) -> list[Figure]:
    import dask
    from PIL import Image

    import microtome

    microtome.config.set(decode_threads=threads)
    dask.config.set(scheduler="threads" if threads > 1 else "synchronous", num_workers=threads)
    height, width = frames.table.height, frames.table.width
    spacing = microtome.open_slide(folder, chunks=None)["level0"].image.wsi.spacing.row * factor

    def pillow() -> np.ndarray:
        whole = Image.fromarray(frames.region(0, 0, height, width))
        rows, columns = int(height / factor), int(width / factor)
        return np.asarray(whole.resize((columns, rows), Image.Resampling.BOX, (0, 0, columns * factor, rows * factor)))

    def decoded() -> np.ndarray:
        return frames.region(0, 0, height, width)

    def ours(chunks: str | None, quality: str) -> np.ndarray:
        # opened anew, so that frames kept of the last turn do not help
        return microtome.open_slide(folder, chunks=chunks).wsi.at(spacing=spacing, quality=quality).values

    readers = {"decode, Pillow BOX": pillow, "decode alone": decoded}
    if run.ours:
        readers |= {
            "at(spacing)": lambda: ours(None, "exact"),
            "at(spacing), Dask": lambda: ours("auto", "exact"),
            "at(spacing), fast": lambda: ours(None, "fast"),
        }
    truth = pillow().astype(np.int16)
    for name in readers:
        if name.startswith("at("):
            seen = readers[name]()
            off = np.abs(seen - truth)
            # Pillow's box takes whole pixels: at 2.5 a pixel is the mean of 2 or 3 a side, and not of 2.5
            most = 8.0 if "fast" in name else 1.0 if factor % 1 == 0 else 4.0
            if seen.shape != truth.shape or off.mean() > most or (factor % 1 == 0 and most == 1 and off.max() > 1):
                raise AssertionError(f"{name}: not the pixels of Pillow at {factor}: {off.mean():.2f} off")
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    names = list(readers)
    for number in range(min(run.rounds, 5)):
        gc.collect()
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _forget()
            start = perf_counter()
            readers[name]()
            seconds[name].append(perf_counter() - start)
    frames_work = f"level of 8192², 1/{factor:g}, {_threads(threads)}"
    figures = []
    for name in names:
        line: dict[str, Any] = {}
        if name != names[0]:
            line = {"ratio": ratios(seconds[name], seconds[names[0]]), "to": "× the time of Pillow"}
        if name in ("at(spacing)", "at(spacing), Dask"):
            line |= {"target": "≤ 1.3", "reached": line["ratio"][0] <= 1.3}
        figures.append(Figure(frames_work, name, f"{1e3 * median(seconds[name]):.0f} ms", **line))
    return figures


def _forget() -> None:
    """Drop the decoded frames that the process keeps."""
    from microtome.lazy.decoded import decoded_frames

    decoded_frames().renew()


# -- tissue -----------------------------------------------------------------------------------------------------------


def tissue(run: Run) -> list[Figure]:
    """The tissue mask of a slide with a full pyramid, and of one that has level 0 only; each in a fresh process."""
    if not run.ours:
        return []
    figures = []
    pyramids = [isolated.run("tissue", run.slide_of("large"), "fast", script=SCRIPT) for _ in range(3)]
    seconds = median(a["seconds"] for a in pyramids)
    figures.append(
        Figure(
            "tissue mask, 100000 × 80000, full pyramid", "tissue_mask()", f"{seconds:.2f} s", target="≤ 2 s",
            reached=seconds <= 2, note=_tissue_note(pyramids[0]),
        )
    )  # fmt: skip
    name, work = ("small0", "40000 × 30000") if run.quick else ("large0", "100000 × 80000")
    folder = run.slide_of(name)
    for quality in ("fast", "exact"):
        answer = isolated.run("tissue", folder, quality, script=SCRIPT)
        # the picture, and what a method makes of it (floats of several planes), beside blocks that two threads read
        most = 16 * answer["picture"] + 200
        figures.append(
            Figure(
                f"tissue mask, {work}, level 0 only", f"tissue_mask(), {quality}", f"{answer['seconds']:.1f} s",
                target=f"≤ {most:.0f} MB", reached=answer["peak"] <= most, note=_tissue_note(answer),
            )
        )  # fmt: skip
    return figures


def _tissue_note(answer: dict[str, Any]) -> str:
    rows, columns = answer["shape"]
    return (
        f"peak {answer['peak']:.0f} MB above opening; mask {columns} × {rows}, {answer['tissue']:.0%} tissue; "
        f"opened in {1e3 * answer['opened']:.0f} ms"
    )


def operations(run: Run) -> list[Figure]:
    """All of these."""
    return overlapping(run) + resampling(run) + tissue(run)
