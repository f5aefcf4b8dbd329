"""The readers of a slide in a bucket: as those of servers, with the same methods.

What they are given is a URL of fsspec's, of the folder of the slide's instances. Peers read it as their documentation
says, each with the best settings that were found for it.
"""

from __future__ import annotations

import http.client
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

import web_readers
from contenders import FrameTable
from contenders import OpenSlide as LocalOpenSlide
from places import Place
from web_readers import WebReader

THREADS, CONNECTIONS = 8, 32


class Bare(web_readers.Bare):
    """What the network gives: neighbouring frames in one range, on connections that are open; no decoding."""

    name = "bare ranges"

    def __init__(self, url: str, folder: Path) -> None:
        WebReader.__init__(self, url, folder)
        self._table = FrameTable(folder)
        self._file = urlsplit(url + self._table.path.name)
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._http = [http.client.HTTPConnection(self._file.netloc) for _ in range(CONNECTIONS)]

    def open(self) -> None:
        for connection in self._http:
            connection.close()
            connection.connect()

    def timed(self, places: list[Place]) -> float:
        start = perf_counter()
        spans = list(self._spans(places))
        list(self._pool.map(self._fetch, self._http, (spans[i::CONNECTIONS] for i in range(CONNECTIONS))))
        return perf_counter() - start

    def _spans(self, places: list[Place]) -> list[tuple[int, int]]:
        """First byte and last of each run of neighbouring frames, the head of the first one's item included."""
        offsets, lengths = self._table.offsets, self._table.lengths
        spans: list[tuple[int, int]] = []
        for index in sorted({frame for place in places for frame, _, _ in self._table.under(*place)}):
            first, last = offsets[index] - 8, offsets[index] + lengths[index] - 1
            if spans and first - spans[-1][1] <= 2:
                spans[-1] = spans[-1][0], last
            else:
                spans.append((first, last))
        return spans

    def _fetch(self, connection: http.client.HTTPConnection, spans: list[tuple[int, int]]) -> None:
        for first, last in spans:
            connection.request("GET", self._file.path, headers={"Range": f"bytes={first}-{last}"})
            answer = connection.getresponse()
            if answer.status != 206 or len(answer.read()) != last + 1 - first:
                raise RuntimeError(f"a bare range is answered with {answer.status}")

    def close(self) -> None:
        for connection in self._http:
            connection.close()
        self._pool.shutdown()


class OursFromNothing(web_readers.OursRead):
    """``open_slide``, and then ``image.wsi.read`` of many origins: opening is a part of the time."""

    name = "open_slide, wsi.read"

    def open(self) -> None:
        import microtome

        microtome.cache.clear()

    def region(self, place: Place) -> np.ndarray:
        super().open()
        return super().region(place)

    def timed(self, places: list[Place]) -> float:
        start = perf_counter()
        super().open()
        opened = perf_counter() - start
        return opened + super().timed(places)


class OursOneByOne(web_readers.Ours):
    """``image.wsi.read`` of one patch after another."""

    name = "wsi.read, one by one"


class OursThreads(web_readers.Ours):
    """The same from eight threads."""

    name = f"wsi.read, {THREADS} threads"

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self._pool = ThreadPoolExecutor(THREADS)

    def timed(self, places: list[Place]) -> float:
        start = perf_counter()
        list(self._pool.map(self.region, places))
        return perf_counter() - start

    def close(self) -> None:
        self._pool.shutdown()


class WsiDicom(WebReader):
    """wsidicom over fsspec, which reads ahead 5 MB a read: of the settings tried, the fastest where bytes cost nothing.

    Eight threads are no faster, here and below: reads of a stream wait for each other.
    """

    name = "wsidicom"
    slow = True
    most = 50
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self._slide: Any = None

    def open(self) -> None:
        import wsidicom

        self.close()
        self._slide = wsidicom.WsiDicom.open(self.url, file_options=self.options)

    def region(self, place: Place) -> np.ndarray:
        y, x, height, width = place
        return self._slide.read_region((x, y), 0, (width, height), threads=1, as_array=True)

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
        self._slide = None


class WsiDicomBlocks(WsiDicom):
    """The same, with a cache of small blocks: of the settings tried, the fastest of those that read few bytes."""

    name = "wsidicom, blocks"
    most = 40
    options: ClassVar[dict[str, Any]] = {"cache_type": "blockcache", "block_size": 1 << 16}


class WsiDicomThreads(WsiDicomBlocks):
    """The same from eight threads."""

    name = f"wsidicom, {THREADS} threads"
    most = 24

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self._pool = ThreadPoolExecutor(THREADS)

    def timed(self, places: list[Place]) -> float:
        start = perf_counter()
        list(self._pool.map(self.region, places))
        return perf_counter() - start


class Download(WebReader):
    """The whole pyramid is downloaded by fsspec, and read by OpenSlide."""

    name = "download, openslide"
    slow = True

    def open(self) -> None:
        """Nothing: what is timed begins with the download."""

    def timed(self, places: list[Place]) -> float:
        import fsspec

        start = perf_counter()
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as here:
            fs, path = fsspec.url_to_fs(self.url)
            files = fs.find(path)
            fs.get(files, [f"{here}/{Path(file).name}" for file in files])
            slide = LocalOpenSlide(Path(here), 1)
            for place in places:
                self._last = slide.region(*place)
            slide.close()
            return perf_counter() - start  # the files are not yet removed

    def region(self, place: Place) -> np.ndarray:
        self.timed([place])
        return self._last


OURS: list[type[WebReader]] = [web_readers.OursRead, OursFromNothing, OursOneByOne, OursThreads]
WSIDICOM: list[type[WebReader]] = [WsiDicom, WsiDicomBlocks, WsiDicomThreads]
PEERS: list[type[WebReader]] = [*WSIDICOM, Download]
