"""The readers of overlapping patches that are compared: each reads all patches of a region, as fast as it can.

``groups(region)`` yields (places, pixels) until all patches of the region have been seen; each reader is written the
way its own documentation recommends for speed, keeps open whatever it can keep open, and has a cache of decoded frames
wherever it knows one. With two threads, readers without a way of their own are called from two threads, each of which
reads half of the rows of patches.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from contenders import FrameTable, decoder_buffer, finest_instance, paste
from places import Place

SIZE, STRIDE = 224, 112
Corner = tuple[int, int]


def corners(region: Place) -> list[Corner]:
    """Row and column of every patch of a region, row by row."""
    rows = range(region.y, region.y + region.height - SIZE + 1, STRIDE)
    columns = range(region.x, region.x + region.width - SIZE + 1, STRIDE)
    return [(y, x) for y in rows for x in columns]


def side(patches: int) -> int:
    """The side of a region with so many patches along it."""
    return SIZE + (patches - 1) * STRIDE


class PatchReader(ABC):
    """A reader of patches of level 0.

    Parameters
    ----------
    folder
        The slide's instances.
    threads
        How many threads it may use.
    """

    name: ClassVar[str]
    ours: ClassVar[bool] = False
    #: rows of patches that it reads of a region; None for all: the others take several times as long
    rows: ClassVar[int | None] = 12

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    @abstractmethod
    def groups(self, region: Place) -> Iterator[tuple[list[Corner], Any]]:
        """Read all patches of a region, some at a time."""

    def part(self, region: Place) -> Place:
        """The part of a region that this reader reads."""
        height = region.height if self.rows is None else min(region.height, side(self.rows))
        return region._replace(height=height)

    def timed(self, region: Place) -> float:
        """Seconds a patch for a region."""
        region = self.part(region)
        start = perf_counter()
        read = sum(len(places) for places, _ in self.groups(region))
        seconds = perf_counter() - start
        assert read == len(corners(region))
        return seconds / read

    def pixels(self, region: Place) -> dict[Corner, np.ndarray]:
        """The patches of a small region."""
        seen: dict[Corner, np.ndarray] = {}
        for places, pixels in self.groups(region):
            seen |= {tuple(place): np.array(patch) for place, patch in zip(places, pixels, strict=True)}
        return seen

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class _OneByOne(PatchReader):
    """Readers that are asked for one patch at a time."""

    @abstractmethod
    def patch(self, y: int, x: int) -> np.ndarray:
        """Read a patch."""

    def _read(self, places: list[Corner]) -> list[np.ndarray]:
        last: list[np.ndarray] = []
        patch = self.patch
        keep = len(places) < 100  # all of them are looked at; of more, each is dropped when it is read
        for y, x in places:
            pixels = patch(y, x)
            if keep:
                last.append(pixels)
        return last if keep else [pixels] * len(places)

    def groups(self, region: Place) -> Iterator[tuple[list[Corner], Any]]:
        places = corners(region)
        if self._pool is None:
            yield places, self._read(places)
            return
        rows = sorted({y for y, _ in places})
        middle = rows[len(rows) // 2]
        halves = [[p for p in places if p[0] < middle], [p for p in places if p[0] >= middle]]
        yield from zip(halves, self._pool.map(self._read, halves), strict=True)


class Ceiling(_OneByOne):
    """What the machine gives: each frame read and decoded once and kept for good, each patch pasted from them."""

    name = "ceiling"
    rows = None

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import imagecodecs

        self._table = FrameTable(folder)
        self._decode = imagecodecs.jpeg8_decode
        self._file = os.open(self._table.path, os.O_RDONLY)
        self._kept: dict[int, np.ndarray] = {}

    def groups(self, region: Place) -> Iterator[tuple[list[Corner], Any]]:
        self._kept = {}
        return super().groups(region)

    def patch(self, y: int, x: int) -> np.ndarray:
        table, kept = self._table, self._kept
        side = table.frame
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        for index, row, column in table.under(y, x, SIZE, SIZE):
            frame = kept.get(index)
            if frame is None:
                data = os.pread(self._file, table.lengths[index], table.offsets[index])
                frame = kept[index] = self._decode(data, out=decoder_buffer((side, side, 3)))
            paste(out, frame, row - y, column - x)
        return out

    def close(self) -> None:
        super().close()
        os.close(self._file)


class _Ours(PatchReader):
    ours = True
    rows = None
    chunks: ClassVar[str | None] = None

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import dask

        import microtome

        self._settings = microtome.config.set
        self._dask = dask
        self.image = microtome.open_slide(str(folder), chunks=self.chunks)["level0"].image

    def crop(self, region: Place) -> Any:
        self._settings(decode_threads=self.threads)
        return self.image[region.y : region.y + region.height, region.x : region.x + region.width]


class OursDask(_Ours):
    """``image.wsi.patches(224, 112)``, computed chunk by chunk in Dask's threads; what is computed is dropped."""

    name = "wsi.patches, Dask"
    chunks = "auto"

    def groups(self, region: Place) -> Iterator[tuple[list[Corner], Any]]:
        patches = self.crop(region).wsi.patches(SIZE, STRIDE)
        places = list(zip((patches.row.values + region.y).tolist(), (patches.column.values + region.x).tolist()))  # noqa: B905
        scheduler = "threads" if self.threads > 1 else "synchronous"
        with self._dask.config.set(scheduler=scheduler, num_workers=self.threads):
            if len(places) < 100:
                yield places, patches.image.values
                return
            data = patches.image.data
            chunks = (data.chunks[0], (1,), (1,), (1,))
            data.map_blocks(first_pixels, dtype=data.dtype, chunks=chunks, meta=data._meta).compute()
            yield places, None


def first_pixels(block: np.ndarray) -> np.ndarray:
    """What is left of a chunk of patches that was computed and dropped."""
    return block[:, :1, :1, :1].copy()


class OursRead(_Ours):
    """``image.wsi.read`` of the patches of a chunk at a time, in the order that `wsi.patches` gives them."""

    name = "wsi.read"
    group: ClassVar[int] = 111

    def groups(self, region: Place) -> Iterator[tuple[list[Corner], Any]]:
        crop = self.crop(region)
        patches = crop.wsi.patches(SIZE, STRIDE, chunks=None)
        rows, columns = patches.row.values, patches.column.values
        read = crop.wsi.read
        for start in range(0, len(rows), self.group):
            y, x = rows[start : start + self.group], columns[start : start + self.group]
            pixels = read(y, x, SIZE, SIZE)
            yield list(zip((y + region.y).tolist(), (x + region.x).tolist(), strict=True)), pixels


class WsiDicom(_OneByOne):
    """wsidicom at its best: arrays, and its cache of decoded frames (100 MB by default)."""

    name = "wsidicom"

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import wsidicom

        self._slide = wsidicom.WsiDicom.open(folder)

    def patch(self, y: int, x: int) -> np.ndarray:
        return self._slide.read_region((x, y), 0, (SIZE, SIZE), as_array=True)

    def close(self) -> None:
        super().close()
        self._slide.close()


class OpenSlide(_OneByOne):
    """OpenSlide 4 with a cache as large as wsidicom's: its own holds 32 MB, a row of frames of this region hardly."""

    name = "openslide"

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import openslide

        self._slide = openslide.OpenSlide(finest_instance(folder))
        self._slide.set_cache(openslide.OpenSlideCache(128 << 20))

    def patch(self, y: int, x: int) -> np.ndarray:
        return np.asarray(self._slide.read_region((x, y), 0, (SIZE, SIZE)))[..., :3]

    def close(self) -> None:
        super().close()
        self._slide.close()


class _InAChild(PatchReader):
    """Readers in a process of their own, which takes the times; one thread."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, 1)
        self._reader = self.start(str(finest_instance(folder)))

    @abstractmethod
    def start(self, file: str) -> Any:
        """Start the process."""

    def _places(self, region: Place) -> list[Place]:
        return [Place(y, x, SIZE, SIZE) for y, x in corners(region)]

    def groups(self, region: Place) -> Iterator[tuple[list[Corner], Any]]:
        for place in self._places(region):
            yield [(place.y, place.x)], [self._reader.region(place)]

    def timed(self, region: Place) -> float:
        places = self._places(self.part(region))
        seconds: float = self._reader.timed(places)
        return seconds / len(places)

    def close(self) -> None:
        super().close()
        self._reader.close()


class EzWsi(_InAChild):
    """EZ-WSI's LocalDicomSlide. It keeps no decoded frame of one patch for the next."""

    name = "EZ-WSI"
    rows = 3

    def start(self, file: str) -> Any:
        from peers_ezwsi import Reader

        return Reader(file)


class Histolab(_InAChild):
    """histolab's Slide.extract_tile, through OpenSlide 4, which opens the DICOM file for it."""

    name = "histolab"
    rows = 3

    def start(self, file: str) -> Any:
        from peers_histolab import Reader

        return Reader(file)


OURS: list[type[PatchReader]] = [OursRead, OursDask]
PEERS: list[type[PatchReader]] = [WsiDicom, OpenSlide, EzWsi, Histolab]
