"""The readers of a slide on a server: one small class each, all with the same methods.

`open` leaves nothing in any cache; `region` and `timed` read rectangles of level 0. What a reader keeps beyond that, a
connection for example, it keeps as its documentation recommends.
"""

from __future__ import annotations

import http.client
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

import peers_ezwsi
from contenders import FrameTable
from places import Place
from web_servers import NOTHING, Counts


class WebReader(ABC):
    """A reader of one series.

    Parameters
    ----------
    url
        Of the series.
    folder
        The same slide on the disk.
    """

    name: ClassVar[str]
    dialect: ClassVar[str] = "standard"
    #: takes many times as long as the others: it sits out two rounds in three
    slow: ClassVar[bool] = False
    #: the most patches a round
    most: ClassVar[int] = 200
    #: what it asks of the server when it is made is a part of every reading's traffic, though not of its time
    prepared: ClassVar[bool] = False
    beforehand: Counts = NOTHING

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    @abstractmethod
    def open(self) -> None:
        """Open the slide anew."""

    @abstractmethod
    def region(self, place: Place) -> np.ndarray:
        """Read a rectangle, (height, width, 3)."""

    def timed(self, places: list[Place]) -> float:
        """Seconds for reading rectangles, one after another."""
        start = perf_counter()
        for place in places:
            self.region(place)
        return perf_counter() - start

    def close(self) -> None:  # noqa: B027 (not every reader holds anything)
        """Let go of processes and threads."""


class Bare(WebReader):
    """What the network gives: one request for the frames under a place, on a connection that is open; no decoding."""

    name = "bare request"

    def __init__(self, url: str, folder: Path) -> None:
        import pydicom

        super().__init__(url, folder)
        self._table = FrameTable(folder)
        head = pydicom.dcmread(self._table.path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        self._parts = urlsplit(f"{url}/instances/{head.SOPInstanceUID}/frames/")
        self._http = http.client.HTTPConnection(self._parts.netloc)

    def open(self) -> None:
        self._http.close()
        self._http.connect()

    def region(self, place: Place) -> np.ndarray:
        raise NotImplementedError("it decodes nothing")

    def timed(self, places: list[Place]) -> float:
        accept = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
        start = perf_counter()
        for place in places:
            numbers = ",".join(str(index + 1) for index, _, _ in self._table.under(*place))
            self._http.request("GET", self._parts.path + numbers, headers=accept)
            answer = self._http.getresponse()
            if answer.status != 200 or not answer.read():
                raise RuntimeError(f"a bare request is answered with {answer.status}")
        return perf_counter() - start

    def close(self) -> None:
        self._http.close()


class Ours(WebReader):
    """What ours have in common: the default settings, and a slide without Dask."""

    def open(self) -> None:
        import microtome

        microtome.cache.clear()
        self.image = microtome.open_slide(self.url, chunks=None)["level0"].image

    def region(self, place: Place) -> np.ndarray:
        return self.image.wsi.read(*place)


class OursRead(Ours):
    """``image.wsi.read`` of many origins."""

    name = "wsi.read"

    def timed(self, places: list[Place]) -> float:
        ys, xs = _origins(places).T
        _, _, height, width = places[0]
        start = perf_counter()
        self.image.wsi.read(ys, xs, height, width)
        return perf_counter() - start


class OursSmallLists(OursRead):
    """The same with other settings than the default ones: 64 frames in a list, 8 lists at a time."""

    name = "wsi.read, 16 a list"
    settings: ClassVar[dict[str, int]] = {"frames_per_request": 16}

    def open(self) -> None:
        import microtome

        with microtome.config.set(**self.settings):
            super().open()

    def timed(self, places: list[Place]) -> float:
        import microtome

        with microtome.config.set(**self.settings):
            return super().timed(places)


class OursLargeLists(OursSmallLists):
    name = "wsi.read, 256 a list"
    settings: ClassVar[dict[str, int]] = {"frames_per_request": 256}


class OursFewLists(OursSmallLists):
    name = "wsi.read, 256, 2 lists"
    settings: ClassVar[dict[str, int]] = {"frames_per_request": 256, "requests_per_server": 2}


class OursDask(Ours):
    """A Dask graph of eight patches a task, in 32 threads."""

    name = "Dask, 32 threads"
    threads: ClassVar[int | None] = 32
    ahead: ClassVar[bool] = False

    def timed(self, places: list[Place]) -> float:
        image, (_, _, height, width) = self.image, places[0]
        origins = _origins(places)
        start = perf_counter()
        if self.ahead:
            image.wsi.prefetch(*origins.T, height, width)
        _patches(image, origins, height, width).compute(scheduler="threads", num_workers=self.threads)
        return perf_counter() - start


class OursPrefetch(OursDask):
    """The same graph with Dask's default number of threads, after a prefetch, which is timed, too."""

    name = "prefetch, Dask"
    threads = None
    ahead = True


def _origins(places: list[Place]) -> np.ndarray:
    return np.array([(place.y, place.x) for place in places])


def _patches(image: Any, origins: np.ndarray, height: int, width: int) -> Any:
    """Patches as a Dask array (n, height, width, 3), eight in a chunk."""
    import dask.array as da

    tasks = da.from_array(origins, chunks=(8, 2))
    return tasks.map_blocks(
        lambda block: image.wsi.read(block[:, 0], block[:, 1], height, width),
        dtype=image.dtype,
        chunks=(tasks.chunks[0], (height,), (width,), (3,)),
        drop_axis=1,
        new_axis=(1, 2, 3),
        meta=np.empty((0, 0, 0, 0), image.dtype),
    )


class EzWsi(WebReader):
    """EZ-WSI without a cache, in its own process."""

    name = "EZ-WSI"
    dialect = "google"
    slow = True
    most = 20
    cache: ClassVar[str] = "none"

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self._reader = peers_ezwsi.Reader(url, self.cache)

    def open(self) -> None:
        self._reader.reopen()

    def region(self, place: Place) -> np.ndarray:
        return self._reader.region(place)

    def timed(self, places: list[Place]) -> float:
        return self._reader.timed(places)

    def close(self) -> None:
        self._reader.close()


class EzWsiCache(EzWsi):
    """EZ-WSI with its cache as it comes: the first miss fetches the instance."""

    name = "EZ-WSI, cache"
    most = 200
    cache = "on"


class EzWsiPreloaded(EzWsi):
    """EZ-WSI with level 0 in its cache, once for all rounds."""

    name = "EZ-WSI, preloaded"
    slow = False
    most = 200
    cache = "preloaded"
    prepared = True

    def open(self) -> None:
        """Nothing: what was preloaded stays."""


class WsiDicomWeb(WebReader):
    """wsidicom's web client at its best: arrays rather than Pillow images, and an executor it keeps."""

    name = "wsidicom"
    most = 20
    threads: ClassVar[int] = 2  # more are no faster: it decodes in the threads that wait

    def __init__(self, url: str, folder: Path) -> None:
        import requests
        from wsidicom import WsiDicomWebClient

        super().__init__(url, folder)
        self._root, _, path = url.partition("/studies/")
        self._study, _, self._series = path.partition("/series/")
        self._session = requests.Session()
        self._session.trust_env = False
        self._client = WsiDicomWebClient.create_client(self._root, auth=self._session)
        self._pool = ThreadPoolExecutor(self.threads)
        self._slide: Any = None

    def open(self) -> None:
        import wsidicom

        if self._slide is not None:
            self._slide.close()
        self._slide = wsidicom.WsiDicom.open_web(self._client, self._study, self._series, read_executor=self._pool)

    def region(self, place: Place) -> np.ndarray:
        y, x, height, width = place
        threads = self.threads if height * width > 1 << 20 else 1  # a patch in one request, not one each thread
        return self._slide.read_region((x, y), 0, (width, height), threads=threads, as_array=True)

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
        self._session.close()
        self._pool.shutdown()


class WsiDicomWebPillow(WsiDicomWeb):
    """wsidicom as its documentation shows it: a Pillow image, made an array."""

    name = "wsidicom, Pillow"

    def region(self, place: Place) -> np.ndarray:
        y, x, height, width = place
        return np.asarray(self._slide.read_region((x, y), 0, (width, height), threads=1))


OURS: list[type[WebReader]] = [OursRead, OursDask, OursPrefetch]
LISTS: list[type[WebReader]] = [OursSmallLists, OursLargeLists, OursFewLists]
PEERS: list[type[WebReader]] = [EzWsi, EzWsiCache, EzWsiPreloaded, WsiDicomWeb, WsiDicomWebPillow]
