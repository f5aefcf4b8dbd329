"""Slides on a server: readers against each other, and against what the network gives.

Unlike with files, all readers read the same random places in a round: what they keep of earlier rounds is thrown away
(only EZ-WSI, preloaded, keeps its level), and the servers read from memory. Slides are opened anew each time, which is
not timed.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import web_readers as readers
from contenders import Ceiling
from places import Place
from report import Figure, ratios, reason, say
from web_orthanc import Orthanc
from web_readers import WebReader
from web_servers import NOTHING, Counts, Embedded

if TYPE_CHECKING:
    from works import Run

PATCH, REGION = 224, 4096
PATCHES = 200
FEW = 3
"""Rounds where nothing is aimed at."""


class Sample(NamedTuple):
    """One reading: seconds a place, and what it asked of the server."""

    seconds: float
    places: int
    asked: Counts


Samples = list[Sample | None]


@dataclass
class Field:
    """A server, and the readers that have agreed about its pixels."""

    server: Embedded | Orthanc
    folder: Path
    readers: dict[str, WebReader] = field(default_factory=dict)
    ours: Counts = NOTHING
    """What all of ours have asked, opening slides included."""
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    def __post_init__(self) -> None:
        self.ceiling = Ceiling(self.folder, 1)

    def draw(self, count: int, side: int) -> list[Place]:
        """Random places, wherever they lie on the grid of frames."""
        height, width = self.ceiling.table.height, self.ceiling.table.width
        inside = self._random.randrange
        return [Place(inside(height - side), inside(width - side), side, side) for _ in range(count)]

    def frames(self, places: list[Place]) -> int:
        """How many frames are under some places."""
        return len({frame for place in places for frame in self.ceiling.table.under(*place)})

    def enter(self, kinds: Sequence[type[WebReader]]) -> None:
        """Open the readers, and see that they show what the file shows; a peer that cannot be opened is left out."""
        (trial,) = self.draw(1, PATCH)
        expected = self.ceiling.region(*trial).astype(np.int16)
        for kind in kinds:
            ours = issubclass(kind, readers.Ours)
            before = self.server.counts()
            try:
                reader = kind(self.server.series(kind.dialect), self.folder)
                if kind.prepared:
                    reader.beforehand = self.server.counts() - before
                reader.open()
                if isinstance(reader, readers.Bare):
                    reader.timed([trial])  # it has no pixels to show
                    self.readers[kind.name] = reader
                    continue
                pixels = np.asarray(reader.region(trial))
            except Exception as error:
                if ours or kind is readers.Bare:
                    raise
                say(f"{self.server.name}: without {kind.name}: {reason(error)}")
                continue
            if pixels.shape != expected.shape or abs(pixels - expected).mean() > 1:
                raise AssertionError(f"{kind.name} sees other pixels than the file at {trial}")
            if ours:
                self.ours += self.server.counts() - before
                if not np.array_equal(pixels, expected):
                    raise AssertionError(f"{kind.name} is not exact at {trial}")
            self.readers[kind.name] = reader

    def turn(self, reader: WebReader, places: list[Place]) -> Sample:
        """Let a reader open the slide anew, and read."""
        gc.collect()
        before = self.server.counts()
        reader.open()
        opened = self.server.counts()
        seconds = reader.timed(places)
        after = self.server.counts()
        if isinstance(reader, readers.Ours):
            self.ours += after - before
        return Sample(seconds / len(places), len(places), after - opened + reader.beforehand)

    def race(self, names: list[str], rounds: int, count: int, side: int) -> tuple[dict[str, Samples], list[int]]:
        """Samples of each reader and round, None where it sat out; and the frames of each round.

        Who begins changes each time.
        """
        samples: dict[str, Samples] = {name: [] for name in names if name in self.readers}
        frames = []
        for number in range(rounds):
            places = self.draw(count, side)
            frames.append(self.frames(places))
            order = list(samples)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                reader = self.readers[name]
                rests = reader.slow and number % 3
                samples[name].append(None if rests else self.turn(reader, places[: reader.most]))
        return samples, frames

    def close(self) -> None:
        for reader in self.readers.values():
            reader.close()
        self.ceiling.close()
        self.server.close()


def slower(these: Samples, those: Samples) -> tuple[float, float, float]:
    """How many times as long as *those* did *these* take a place, in the rounds of both."""
    both = [(a.seconds, b.seconds) for a, b in zip(these, those, strict=True) if a and b]
    return ratios([a for a, _ in both], [b for _, b in both])


def faster(these: Samples, those: Samples) -> tuple[float, float, float]:
    return slower(those, these)


def taken(samples: Samples) -> list[Sample]:
    return [sample for sample in samples if sample]


def traffic(samples: Samples) -> str:
    """What a reading asked of the server, as a note."""
    took = taken(samples)
    requests, connections, size = (median(sample.asked[i] for sample in took) for i in range(3))
    return f"{some(requests, 'request')}, {some(connections, 'new connection')}, {amount(size)}"


def some(count: float, what: str) -> str:
    return f"{count:,.0f} {what}" if count == 1 else f"{count:,.0f} {what}s"


def amount(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


@dataclass
class Lines:
    """Makes lines of the table for one work; where nothing is aimed at, no targets, and no lines that only have one."""

    work: str
    aimed: bool
    figures: list[Figure] = field(default_factory=list)

    def add(self, reader: str, value: str = "", note: str = "", **more: Any) -> None:
        if not self.aimed:
            more.pop("target", None)
            more.pop("reached", None)
        self.figures.append(Figure(self.work, reader, value, note=note, **more))

    def at_least(self, reader: str, ratio: tuple[float, float, float], to: str, least: float) -> None:
        self.add(reader, ratio=ratio, to=to, target=f"≥ {least:g}", reached=ratio[0] >= least)

    def at_most(self, reader: str, ratio: tuple[float, float, float], to: str, most: float) -> None:
        self.add(reader, ratio=ratio, to=to, target=f"≤ {most:g}", reached=ratio[0] <= most)

    def requests(self, reader: str, samples: Samples, most: float, why: str = "") -> None:
        asked = max(sample.asked.requests for sample in taken(samples))
        if self.aimed:
            self.add(reader, f"{some(asked, 'request')} at most", why, target=f"≤ {most:.0f}", reached=asked <= most)


def patches(place: Field, rounds: int, lines: Lines) -> None:
    """200 random patches at once."""
    aside = (readers.Bare.name, readers.WsiDicomWebPillow.name)
    samples, frames = place.race([name for name in place.readers if name not in aside], rounds, PATCHES, PATCH)
    ours, preloaded = readers.OursRead.name, readers.EzWsiPreloaded.name
    for name, mine in samples.items():
        rate = 1 / median(sample.seconds for sample in taken(mine))
        few = taken(mine)[0].places
        note = traffic(mine) + (f" for {few} patches" if few < PATCHES else "")
        lines.add(name, f"{rate:.0f} patches/s", note)
    if preloaded in samples and ours in samples:
        lines.at_least(ours, faster(samples[ours], samples[preloaded]), f"× {preloaded}", 1.2)
        both = zip(samples[ours], samples[preloaded], strict=True)
        sizes = [(a.asked.bytes, b.asked.bytes) for a, b in both if a and b]
        lines.at_most(ours, ratios(*zip(*sizes, strict=True)), f"of the bytes of {preloaded}", 0.2)
    if ours in samples:
        lines.requests(ours, samples[ours], 16, f"for {median(frames):.0f} frames")
        for name in (readers.OursDask.name, readers.OursPrefetch.name):
            lines.at_most(name, slower(samples[name], samples[ours]), f"× the time of {ours}", 1.5)


def region(place: Field, rounds: int, lines: Lines) -> None:
    """A whole region."""
    sized = [kind.name for kind in readers.LISTS]
    ours, rivals = readers.OursRead.name, [kind.name for kind in (readers.WsiDicomWeb, readers.WsiDicomWebPillow)]
    samples, frames = place.race([ours, *sized, *rivals], rounds, 1, REGION)
    for name, mine in samples.items():
        lines.add(name, f"{1e3 * median(sample.seconds for sample in taken(mine)):.0f} ms", traffic(mine))
    for rival in rivals:
        if ours in samples and rival in samples:
            lines.at_least(ours, faster(samples[ours], samples[rival]), f"× {rival}", 5)
    if ours in samples:
        lines.requests(ours, samples[ours], min(frames) / 32, f"for {min(frames)} frames")


def one(place: Field, rounds: int, lines: Lines) -> None:
    """One patch of a slide that has just been opened."""
    ours, bare = readers.OursRead.name, readers.Bare.name
    samples, _ = place.race([bare, ours, readers.EzWsi.name, readers.WsiDicomWeb.name], 2 * rounds, 1, PATCH)
    for name, mine in samples.items():
        lines.add(name, f"{1e3 * median(sample.seconds for sample in taken(mine)):.1f} ms", traffic(mine))
    if ours in samples:
        lines.at_most(ours, slower(samples[ours], samples[bare]), f"× the {bare}", 1.5)
        lines.requests(ours, samples[ours], 2, "after opening")


def works(place: Field, where: str, rounds: int, aimed: bool) -> Iterator[Figure]:
    plans: list[tuple[str, Callable[[Field, int, Lines], None]]] = [
        (f"{PATCHES} patches", patches), (f"region {REGION}²", region), ("one patch, cold", one),
    ]  # fmt: skip
    for work, measure in plans:
        lines = Lines(f"{work}, {where}", aimed)
        measure(place, rounds, lines)
        yield from lines.figures


@contextmanager
def field_of(server: Embedded | Orthanc, folder: Path, kinds: list[type[WebReader]]) -> Iterator[Field]:
    place = Field(server, folder)
    try:
        place.enter(kinds)
        yield place
    finally:
        place.close()


def network(run: Run) -> list[Figure]:
    """A slide on our server with latencies, and on Orthanc."""
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    folder = run.slide_of("web")
    few = min(run.rounds, FEW)
    figures: list[Figure] = []
    kinds = [readers.Bare, *(readers.OURS if run.ours else []), *(readers.PEERS if run.peers else [])]
    with field_of(server := Embedded(folder), folder, kinds) as place:
        for latency in (30, 0, 100):
            server.delay(latency / 1e3)
            aimed = latency == 30
            figures += works(place, f"{latency} ms", run.rounds if aimed else few, aimed)
        if run.ours:
            figures.append(connections(place.ours))
    if run.ours:
        kinds += readers.LISTS
    try:
        orthanc = Orthanc(folder)
    except (RuntimeError, OSError) as error:
        say(f"without Orthanc: {reason(error)}")
        return figures
    with field_of(orthanc, folder, kinds) as place:
        figures += works(place, f"Orthanc {orthanc.version}", few, False)
    return figures


def connections(asked: Counts) -> Figure:
    """How many connections all readings of ours took together."""
    import microtome

    most = microtome.config.get().requests_per_server
    return Figure(
        "TCP connections, all latencies", "microtome", f"{asked.connections}", target=f"≤ {most}",
        reached=asked.connections <= most, note=f"{asked.requests:,} requests, {amount(asked.bytes)}",
    )  # fmt: skip
