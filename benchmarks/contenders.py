"""The readers that are compared: one small class each, all with the same method.

``region(y, x, height, width)`` returns ``(height, width, 3)`` uint8 of level 0. Each is written the way its own
documentation recommends for speed, and keeps open whatever it can keep open.
"""

from __future__ import annotations

import math
import os
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from places import Place


class Contender(ABC):
    """A reader of one slide, timed by :func:`works.race`.

    Parameters
    ----------
    folder
        The slide's instances.
    threads
        How many threads a read may use. Readers that know no threads use one: ``threaded`` is False.
    """

    name: ClassVar[str]
    threaded: ClassVar[bool] = True
    #: read fewer places a round: this reader takes some ten times as long as the others
    slow: ClassVar[bool] = False

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads

    @abstractmethod
    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """Read a rectangle of level 0."""

    def timed(self, places: list[Place]) -> float:
        """Seconds for reading all *places* one after another."""
        region = self.region
        start = perf_counter()
        for y, x, height, width in places:
            region(y, x, height, width)
        return perf_counter() - start

    def close(self) -> None:  # noqa: B027 (not every reader holds anything)
        """Let go of files and threads."""


def finest_instance(folder: Path) -> Path:
    """The file in *folder* that holds level 0 (not a concatenation)."""
    import pydicom

    def width(path: Path) -> int:
        head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ImageType", "TotalPixelMatrixColumns"])
        return int(head.TotalPixelMatrixColumns) if "VOLUME" in head.ImageType else 0

    return max(sorted(folder.glob("*.dcm")), key=width)


class FrameTable:
    """Level 0 of a TILED_FULL file with an Extended Offset Table, opened once: where each frame's bytes are."""

    def __init__(self, folder: Path) -> None:
        import pydicom

        self.path = finest_instance(folder)
        with self.path.open("rb") as file:
            head = pydicom.dcmread(file, stop_before_pixels=True)
            at = file.tell()  # at the tag of Pixel Data: 12 bytes, then the Basic Offset Table as an item
            bot_length = struct.unpack("<I", file.read(20)[16:])[0]
        base = at + 20 + bot_length
        offsets = np.frombuffer(head.ExtendedOffsetTable, "<u8").astype(np.int64) + base + 8  # 8: the item's own header
        self.offsets = offsets.tolist()
        self.lengths = np.frombuffer(head.ExtendedOffsetTableLengths, "<u8").tolist()
        self.height, self.width = int(head.TotalPixelMatrixRows), int(head.TotalPixelMatrixColumns)
        self.frame = int(head.Rows)
        self.columns = -(-self.width // self.frame)

    def under(self, y: int, x: int, height: int, width: int) -> list[tuple[int, int, int]]:
        """The frames a rectangle touches: (index, row, column of its first pixel in the matrix)."""
        f = self.frame
        return [
            (r * self.columns + c, r * f, c * f)
            for r in range(y // f, (y + height - 1) // f + 1)
            for c in range(x // f, (x + width - 1) // f + 1)
        ]


def decoder_buffer(shape: tuple[int, int, int]) -> np.ndarray:
    """An array that libjpeg-turbo writes a third faster than most.

    Rows at multiples of 32 bytes make it write past the processor's cache, from where the pixels are fetched again at
    once. Allocators return either kind of address, so that a whole process is fast or slow by chance: this takes the
    chance out.
    """
    size = math.prod(shape)
    memory = np.empty(size + 32, np.uint8)
    start = (16 - memory.ctypes.data) % 32
    return memory[start : start + size].reshape(shape)


def paste(out: np.ndarray, frame: np.ndarray, top: int, left: int) -> None:
    """Copy the part of *frame* that lies inside *out*, its first pixel being at (*top*, *left*) of it."""
    side = frame.shape[0]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + side, out.shape[0]), min(left + side, out.shape[1])
    out[y0:y1, x0:x1] = frame[y0 - top : y1 - top, x0 - left : x1 - left]


class Ceiling(Contender):
    """What the machine gives: one positioned read a frame, imagecodecs, a paste; no layer in between.

    The offsets are at hand; the threads are kept, each takes the next frame when it is done with one, and decodes into
    a buffer of its own. A read of exactly one frame returns what the decoder made, without a copy.
    """

    name = "ceiling"

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import imagecodecs

        self.table = FrameTable(folder)
        self._decode = imagecodecs.jpeg8_decode
        self._file = os.open(self.table.path, os.O_RDONLY)
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self._mine = threading.local()

    def _drain(self, out: np.ndarray, frames: Iterator[tuple[int, int, int]], y: int, x: int) -> None:
        file, decode, pread = self._file, self._decode, os.pread
        offsets, lengths = self.table.offsets, self.table.lengths
        try:
            scratch = self._mine.scratch
        except AttributeError:
            scratch = self._mine.scratch = decoder_buffer((self.table.frame, self.table.frame, 3))
        for index, row, column in frames:
            decode(pread(file, lengths[index], offsets[index]), out=scratch)
            paste(out, scratch, row - y, column - x)

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        table, f = self.table, self.table.frame
        if height == width == f and y % f == x % f == 0:
            index = y // f * table.columns + x // f
            data = os.pread(self._file, table.lengths[index], table.offsets[index])
            return self._decode(data, out=decoder_buffer((f, f, 3)))
        out = np.empty((height, width, 3), np.uint8)
        frames = iter(table.under(y, x, height, width))  # shared: each thread takes the next one
        others = []
        if self._pool is not None:
            others = [self._pool.submit(self._drain, out, frames, y, x) for _ in range(self.threads - 1)]
        self._drain(out, frames, y, x)
        for other in others:
            other.result()
        return out

    def close(self) -> None:
        os.close(self._file)
        if self._pool is not None:
            self._pool.shutdown()


class _Ours(Contender):
    chunks: ClassVar[str | None] = None

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import dask

        import microtome

        microtome.config.set(decode_threads=threads)
        dask.config.set(scheduler="threads" if threads > 1 else "synchronous", num_workers=threads)
        self.image = microtome.open_slide(str(folder), chunks=self.chunks)["level0"].image


class OursRead(_Ours):
    """``image.wsi.read(...)``: the direct way."""

    name = "wsi.read"

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        self.region = self.image.wsi.read  # type: ignore[method-assign]

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        raise NotImplementedError  # bound in __init__: nothing of ours is between the timer and the library


class OursValues(_Ours):
    """``image[...].values`` of xarray's lazy arrays."""

    name = ".values"

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        return self.image[y : y + height, x : x + width].values


class OursDask(OursValues):
    """``image[...].values`` through Dask at the default chunks."""

    name = ".values, Dask"
    chunks = "auto"


class WsiDicom(Contender):
    """wsidicom at its best: arrays rather than Pillow images, and an executor it keeps."""

    name = "wsidicom"

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import wsidicom

        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._slide = wsidicom.WsiDicom.open(folder, read_executor=self._pool)

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        return self._slide.read_region((x, y), 0, (width, height), threads=self.threads, as_array=True)

    def close(self) -> None:
        self._slide.close()
        if self._pool is not None:
            self._pool.shutdown()


class WsiDicomPillow(Contender):
    """wsidicom as its documentation shows it: a Pillow image, made an array, and threads of its own for each read."""

    name = "wsidicom, Pillow"

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import wsidicom

        self._slide = wsidicom.WsiDicom.open(folder)

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        return np.asarray(self._slide.read_region((x, y), 0, (width, height), threads=self.threads))

    def close(self) -> None:
        self._slide.close()


class OpenSlide(Contender):
    """OpenSlide 4. It knows no threads of its own: a large region is read as bands of whole frame rows."""

    name = "openslide"

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import openslide

        path = finest_instance(folder)
        self._slide = openslide.OpenSlide(path)
        self._frame = int(self._slide.properties["openslide.level[0].tile-height"])
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _band(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        return np.asarray(self._slide.read_region((x, y), 0, (width, height)))[..., :3]

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        if self._pool is None or height < 2 * self.threads * self._frame:
            return self._band(y, x, height, width)
        inner = [(y + height * i // self.threads) // self._frame * self._frame for i in range(1, self.threads)]
        cuts = [y, *inner, y + height]
        out = np.empty((height, width, 3), np.uint8)

        def fill(a: int, b: int) -> None:
            out[a - y : b - y] = self._band(a, x, b - a, width)

        list(self._pool.map(fill, cuts[:-1], cuts[1:]))
        return out

    def close(self) -> None:
        self._slide.close()
        if self._pool is not None:
            self._pool.shutdown()


class HighDicom(Contender):
    """highdicom's lazy image."""

    name = "highdicom"
    threaded = False
    slow = True

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        import highdicom

        self._image: Any = highdicom.imread(finest_instance(folder), lazy_frame_retrieval=True)

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        return self._image.get_total_pixel_matrix(
            y, y + height, x, x + width, as_indices=True, dtype=np.uint8, apply_icc_profile=False
        )


class PyDicom(Contender):
    """pydicom's frame iterator over an open file, pasted as the ceiling does."""

    name = "pydicom"
    threaded = False
    slow = True

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        self._table = FrameTable(folder)
        self._file = self._table.path.open("rb")

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        from pydicom.pixels import iter_pixels

        out = np.empty((height, width, 3), np.uint8)
        frames = self._table.under(y, x, height, width)
        self._file.seek(0)
        pixels = iter_pixels(self._file, indices=[index for index, _, _ in frames])
        for (_, row, column), frame in zip(frames, pixels, strict=True):
            paste(out, frame, row - y, column - x)
        return out

    def close(self) -> None:
        self._file.close()


OURS: list[type[Contender]] = [OursRead, OursValues, OursDask]
PEERS: list[type[Contender]] = [WsiDicom, WsiDicomPillow, OpenSlide, HighDicom, PyDicom]
