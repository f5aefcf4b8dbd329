"""Slides in buckets: requests, bytes and times, over a server of byte ranges with a latency, and over emulators.

What is read, and how it is raced, is as for servers (network.py). Slides are opened anew each time, which is not timed
but where the reader's name says so. Opening by itself is measured in fresh processes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import bucket_readers as readers
import isolated
from bucket_servers import S3, Emulator, Gcs, Ranges
from network import Field, Lines, Samples, amount, faster, taken, traffic
from places import Place
from report import Figure, ratios, reason, say
from web_readers import OursRead, WebReader
from web_servers import Counts

if TYPE_CHECKING:
    from works import Run

PATCH, PATCHES, REGION = 256, 100, 2048
LATENCY = 0.03
BANDWIDTH = 100e6
"""Bytes a second and connection, as of stores; between processes of one machine a download costs next to nothing."""
FEW = 3
"""Rounds where nothing is aimed at."""
STORES: list[type[Emulator]] = [Gcs, S3]


@dataclass
class BucketField(Field):
    """A bucket, and the readers that have agreed about its pixels."""

    sizes: list[int] = field(default_factory=list)
    """Bytes of the frames of each round."""

    def frames(self, places: list[Place]) -> int:
        table = self.ceiling.table
        under = {frame for place in places for frame, _, _ in table.under(*place)}
        self.sizes.append(sum(table.lengths[frame] for frame in under))
        return len(under)

    def race_sized(
        self, names: list[str], rounds: int, count: int, side: int
    ) -> tuple[dict[str, Samples], list[Counts]]:
        """Samples as of `race`, and the frames and bytes that lie under the places of each round."""
        self.sizes.clear()
        samples, frames = self.race(names, rounds, count, side)
        return samples, [Counts(n, 0, size) for n, size in zip(frames, self.sizes, strict=True)]


@contextmanager
def field_of(server: Ranges | Emulator, folder: Path, kinds: Sequence[type[WebReader]]) -> Iterator[BucketField]:
    place = BucketField(server, folder)  # type: ignore[arg-type]
    try:
        place.enter(kinds)
        yield place
    finally:
        place.close()


def economy(lines: Lines, reader: str, samples: Samples, under: list[Counts], most: tuple[float, float]) -> None:
    """Requests to the frames that were wanted, and bytes to theirs."""
    both = [(s.asked, wanted) for s, wanted in zip(samples, under, strict=True) if s]
    requests = ratios([a.requests for a, _ in both], [w.requests for _, w in both])
    size = ratios([a.bytes for a, _ in both], [w.bytes for _, w in both])
    lines.at_most(reader, requests, "requests to frames", most[0])
    lines.at_most(reader, size, "bytes to those of the frames", most[1])


def patches(place: BucketField, rounds: int, lines: Lines) -> None:
    """Random patches: at once, one by one, and from threads."""
    samples, under = place.race_sized(list(place.readers), rounds, PATCHES, PATCH)
    for name, mine in samples.items():
        few = taken(mine)[0].places
        note = traffic(mine) + (f" for {few} patches" if few < PATCHES else "")
        lines.add(name, f"{1 / median(s.seconds for s in taken(mine)):.0f} patches/s", note)
    for kind in readers.OURS if lines.aimed else []:
        if kind is not readers.OursFromNothing and kind.name in samples:
            economy(lines, kind.name, samples[kind.name], under, (0.6, 1.3))
    rivals = {OursRead.name: readers.WSIDICOM, readers.OursFromNothing.name: [readers.Download]}
    for name, kinds in rivals.items():
        for rival in (kind.name for kind in kinds):
            if name in samples and rival in samples:
                lines.at_least(name, faster(samples[name], samples[rival]), f"× {rival}", 3)


def narrow(place: BucketField, rounds: int, lines: Lines) -> None:
    """The same from nothing, against a download, where bytes take the time that they take from a store."""
    ours, rival = readers.OursFromNothing.name, readers.Download.name
    samples, _ = place.race_sized([ours, rival], rounds, PATCHES, PATCH)
    for name, mine in samples.items():
        lines.add(name, f"{1 / median(s.seconds for s in taken(mine)):.0f} patches/s", traffic(mine))
    if ours in samples and rival in samples:
        lines.at_least(ours, faster(samples[ours], samples[rival]), f"× {rival}", 3)


def region(place: BucketField, rounds: int, lines: Lines) -> None:
    """A whole region."""
    names = [kind.name for kind in (readers.Bare, OursRead, readers.WsiDicom, readers.WsiDicomBlocks)]
    samples, under = place.race_sized(names, rounds, 1, REGION)
    for name, mine in samples.items():
        lines.add(name, f"{1e3 * median(s.seconds for s in taken(mine)):.0f} ms", traffic(mine))
    if OursRead.name in samples:
        economy(lines, OursRead.name, samples[OursRead.name], under, (0.6, 1.3))


def opening(run: Run, name: str, what: str) -> list[Figure]:
    """The first opening of a slide, and the second, which finds the index of its frames in the cache on disk."""
    folder, work = run.slide_of(name), f"open {what}, {1e3 * LATENCY:.0f} ms"
    figures = []
    server = Ranges(folder, LATENCY)
    try:
        for turn in ("first", "second"):
            before, paths = server.counts(), server.paths()
            answer = isolated.run("opening", server.url, run.slide_of("single"), script="isolated_buckets.py")
            asked, paths = server.counts() - before, server.paths() - paths
            # One of them is for the frame that was read. The page of the folder is no instance.
            each = [count - 1 for path, count in paths.items() if not path.endswith("/")]
            most = 2 if turn == "second" else 4 if name == "bucket" else None
            aim = {"target": f"≤ {most}", "reached": max(each) <= most} if most else {}
            note = f"{sum(each) / len(each):.1f} on average, of {len(each)} instances; {amount(asked.bytes)}; "
            note += f"open_slide {1e3 * answer['opened']:.0f} ms, a pixel of each level {1e3 * answer['read']:.0f} ms"
            figures.append(Figure(work, f"{turn} time", f"{max(each)} requests an instance at most", note=note, **aim))
    finally:
        server.close()
    return figures


@contextmanager
def settings() -> Iterator[None]:
    """What is cached on disk goes to a folder of this run; emulators are asked without detours."""
    with tempfile.TemporaryDirectory(prefix="microtome-") as cache:
        os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "MICROTOME_CACHE_DIR": cache}
        os.environ |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "AWS_DEFAULT_REGION": "us-east-1"}
        import microtome

        with microtome.config.set(cache_dir=cache):
            yield


def buckets(run: Run) -> list[Figure]:
    """A slide over ranges of bytes with a latency, how it is opened, and the same over emulators without latency."""
    figures: list[Figure] = []
    few = min(run.rounds, FEW)
    kinds = [readers.Bare, *(readers.OURS if run.ours else []), *(readers.PEERS if run.peers else [])]
    with settings():
        folder = run.slide_of("bucket")
        with field_of(server := Ranges(folder, LATENCY), folder, kinds) as place:
            where = f"{1e3 * LATENCY:.0f} ms"
            for work, measure in ((f"{PATCHES} patches", patches), (f"region {REGION}²", region)):
                lines = Lines(f"{work}, {where}", aimed=True)
                measure(place, run.rounds, lines)
                figures += lines.figures
            server.limit(BANDWIDTH)
            lines = Lines(f"{PATCHES} patches, {where}, {amount(BANDWIDTH)}/s", aimed=True)
            narrow(place, few, lines)
            figures += lines.figures
        if not run.ours:
            return figures
        for name, what in (("bucket", "with an offset table"), ("unindexed", "without one")):
            figures += opening(run, name, what)
        folder = run.slide_of("web")
        for store in STORES:
            try:
                emulator = store(folder)
            except Exception as error:
                say(f"without {store.name}: {reason(error)}")
                continue
            with field_of(emulator, folder, readers.OURS) as place:
                lines = Lines(f"{PATCHES} patches, {store.name}", aimed=False)
                patches(place, few, lines)
                figures += lines.figures
    return figures
