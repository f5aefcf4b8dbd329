"""The frame cache: bounded, each frame fetched once, right after forks; prefetch and read-ahead; the decoded cache."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
import tracemalloc
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import microtome as mt
from microtome.errors import AuthenticationError, RequestError
from microtome.lazy.decoded import decoded_frames
from microtome.storage import cache as cache_
from microtome.storage.cache import EncodedFrame, FrameCache
from microtome.storage.credentials import none
from microtome.storage.dicomweb import gathering as gathering_
from microtome.storage.dicomweb import service
from microtome.storage.dicomweb.gathering import Gathering
from microtome.storage.dicomweb.surroundings import frames_around
from microtome.storage.workers import Workers
from microtome.testing import DICOMwebServer, Fault, Request, SyntheticSlide, make_slide

TILE, ACROSS, DOWN = 64, 16, 12


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    folder = tmp_path_factory.mktemp("cached") / "slide"
    return make_slide(folder, width=ACROSS * TILE, height=DOWN * TILE, frame=TILE, levels=2, seed=11)


@pytest.fixture(scope="module")
def pixels(slide: SyntheticSlide) -> Any:
    return mt.open_slide(slide.folder, chunks=None)["level0"].image.values


@pytest.fixture(scope="module")
def running(slide: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(slide.folder) as server:
        yield server


@pytest.fixture
def server(running: DICOMwebServer) -> Iterator[DICOMwebServer]:
    running.reset()
    yield running
    running.fault, running.latency = None, 0.0
    assert running.failures == []


@pytest.fixture(autouse=True)
def empty(new_to_servers: None) -> Iterator[None]:
    mt.cache.reset_statistics()
    with mt.config.set(http_timeout=5, http_retries=1):
        yield


def image(server: DICOMwebServer, **options: Any) -> Any:
    lazy = mt.open_slide(server.series_urls()[0], chunks=None, **options)["level0"].image
    server.reset()
    return lazy


def fetched(server: DICOMwebServer) -> Counter[int]:
    """How often each frame was asked for."""
    return Counter(n for r in server.requests for n in r.frames)


def requests(server: DICOMwebServer) -> list[Request]:
    return [r for r in server.requests if r.frames]


def together(calls: int, call: Callable[[], Any]) -> list[Any]:
    """Call from so many threads, which begin at the same time."""
    barrier = threading.Barrier(calls)

    def one() -> Any:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(calls) as threads:
        futures: list[Future[Any]] = [threads.submit(one) for _ in range(calls)]
        return [future.result(60) for future in futures]


# -- the cache itself


def frame(size: int) -> EncodedFrame:
    return EncodedFrame(bytes(size), "1.2")


def test_least_recently_used_goes_first() -> None:
    cache = FrameCache()
    with mt.config.set(frame_cache_bytes=3 * 1200):
        for key in "abc":
            cache.deliver({key: frame(1000)}, cache.claim([key])[1])
        assert cache.claim("a")[0]
        cache.deliver({"d": frame(1000)}, cache.claim("d")[1])
        assert cache.holds("abcd") == set("acd")
        counts = cache.statistics()
        assert (counts.frames, counts.bytes, counts.evicted) == (3, 3600, 1)
        cache.deliver({"e": frame(3000)}, cache.claim("e")[1])
        assert cache.holds("abcde") == set("e")
        cache.deliver({"f": frame(4000)}, cache.claim("f")[1])  # larger than all of the cache
        assert cache.holds("ef") == set("e")
        assert cache.statistics().bytes == 3200
        cache.discard("ex")
        assert cache.statistics().bytes == 0


def test_claims() -> None:
    cache = FrameCache()
    _, mine, _ = cache.claim("ab")
    _, none_left, coming = cache.claim("abc")
    assert set(none_left) == {"c"}
    assert set(coming) == set("ab")
    cache.deliver({"a": frame(10)}, mine)
    cache.give_up(mine)
    assert coming["a"].result("a") == frame(10)
    assert coming["b"].result("b") is None
    assert set(cache.claim("b")[1]) == {"b"}
    counts = cache.statistics(reset=True)
    assert (counts.hits, counts.misses, counts.received) == (2, 4, 10)
    assert cache.statistics() == mt.cache.Statistics(frames=1, bytes=210)


# -- bounds


@pytest.mark.parametrize("limit", [0, 1, 20_000, 1 << 30])
def test_bounded(limit: int, server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server)
    with mt.config.set(frame_cache_bytes=limit, frames_per_request=8):
        for _ in range(2):
            for y in range(0, DOWN * TILE, 100):
                np.testing.assert_array_equal(lazy[y : y + 100].values, pixels[y : y + 100])
                counts = mt.cache.statistics()
                assert counts.bytes <= limit
                assert counts.received >= counts.bytes - 200 * counts.frames
    assert (counts.evicted > 0) == (limit == 20_000)
    assert bool(counts.frames) == (limit > 1)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Reading a level piece by piece takes memory for a piece, not for the level."""
    made = make_slide(tmp_path / "s", width=2048, height=4096, frame=256, levels=1, codec="native", associated=False)
    with DICOMwebServer(made.folder) as server, mt.config.set(frame_cache_bytes=1 << 20, frames_per_request=8):
        lazy = image(server)
        lazy[:256, :256].compute()
        tracemalloc.start()
        try:
            for y in range(0, 4096, 256):
                lazy[y : y + 256].compute()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # A row of frames is 1.5 MB: the pixels, and, as the server is in this process, a few copies on their way.
        assert peak < 18 << 20 < lazy.nbytes


def test_connections_are_bounded(server: DICOMwebServer, pixels: Any) -> None:
    with mt.config.set(requests_per_server=3, frames_per_request=2), ThreadPoolExecutor(16) as threads:
        lazy = image(server)
        server.latency = 0.002
        places = [(y, x) for y in range(0, DOWN * TILE, 90) for x in range(0, ACROSS * TILE, 90)]
        got = list(threads.map(lambda p: lazy[p[0] : p[0] + 90, p[1] : p[1] + 90].values, places))
    for (y, x), part in zip(places, got, strict=True):
        np.testing.assert_array_equal(part, pixels[y : y + 90, x : x + 90])
    assert 1 <= server.connections <= 3
    assert len({r.connection for r in server.requests}) <= 4  # that of opening may have been before the log began
    assert max(len(r.frames) for r in requests(server)) <= 2
    assert set(fetched(server).values()) == {1}


@pytest.mark.parametrize("most", [1, 7, 64])
def test_frames_of_a_request(most: int, server: DICOMwebServer, pixels: Any) -> None:
    with mt.config.set(frames_per_request=most):
        lazy = image(server)
        np.testing.assert_array_equal(lazy.values, pixels)
    assert max(len(r.frames) for r in requests(server)) <= most
    assert len(requests(server)) <= max(ACROSS * DOWN / most + 1, mt.config.get().requests_per_server)
    assert sum(fetched(server).values()) == ACROSS * DOWN
    for request in requests(server):
        assert list(request.frames) == sorted(request.frames)


# -- in flight


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("read_ahead", ["none", "requests", "latency"])
def test_each_frame_is_fetched_once(lists: bool, read_ahead: str, server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server, read_ahead=read_ahead)
    server.fault = None if lists else lambda r: Fault(status=400) if len(r.frames) > 1 else None
    lazy[:10, :80].compute()
    wait_for_background()
    server.reset()
    mt.cache.clear()
    server.latency = 0.02
    for got in together(12, lambda: lazy[70:400, 70:500].values):
        np.testing.assert_array_equal(got, pixels[70:400, 70:500])
    wait_for_background()
    answered = Counter(n for r in server.requests if r.status == 200 for n in r.frames)
    assert set(answered.values()) == {1}


def wait_for_background() -> None:
    """Wait until nothing is on its way to the cache any more."""
    deadline = time.monotonic() + 10
    while cache_.frame_cache()._flights and time.monotonic() < deadline:
        time.sleep(0.005)
    for known in list(service._services.values()):
        executor = known.workers._executor
        if executor is not None:
            executor.shutdown(wait=True)
            known.workers._executor = None


def test_who_waits_fetches_what_another_failed_to(server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server)
    failing = [Fault(html=True, delay=0.2)]
    server.fault = lambda r: failing.pop() if r.frames and failing else None

    def read() -> Any:
        try:
            return lazy[:100, :100].values
        except RequestError as e:
            return e

    results = together(8, read)
    assert sum(isinstance(r, RequestError) for r in results) == 1
    for got in results:
        if not isinstance(got, RequestError):
            np.testing.assert_array_equal(got, pixels[:100, :100])


def test_workers_and_callers_do_not_block_each_other(server: DICOMwebServer, pixels: Any) -> None:
    """Large reads fill the threads, and wait for small ones, which need threads: lists are refused in the middle."""
    lazy = image(server)
    server.fault = lambda r: Fault(status=400) if len(r.frames) > 1 else None
    server.latency = 0.003
    with (
        mt.config.set(requests_per_server=2, frames_per_request=4, decode_threads=8),
        ThreadPoolExecutor(16) as threads,
    ):
        futures = []
        for i in range(32):
            y = 40 * (i % 16)
            futures.append((y, threads.submit(lambda y=y, i=i: lazy[y : y + (300 if i % 3 else 30), 0:300].values)))
        for y, future in futures:
            got = future.result(60)
            np.testing.assert_array_equal(got, pixels[y : y + len(got), :300])


def test_parallel_calls_within_parallel_calls() -> None:
    workers = Workers()
    with mt.config.set(requests_per_server=2):

        def inner(i: int) -> int:
            return sum(workers.parallel(lambda j: i * j, range(5)))

        results = together(8, lambda: workers.parallel(inner, range(6)))
        assert results == [[10 * i for i in range(6)]] * 8

        def fail(i: int) -> int:
            if i % 2:
                raise KeyError(i)
            return i

        with pytest.raises(KeyError):
            workers.parallel(fail, range(100))
    workers._executor.shutdown()  # type: ignore[union-attr]


# -- who asks


def test_credentials_do_not_share_frames(slide: SyntheticSlide, pixels: Any) -> None:
    tokens = ["one", "two"]
    with DICOMwebServer(slide.folder, tokens=tokens) as server:
        lazy = {t: image(server, credentials=mt.credentials.bearer(t)) for t in tokens}
        for token in tokens:
            np.testing.assert_array_equal(lazy[token][:64, :64].values, pixels[:64, :64])
        assert fetched(server) == {1: 2}
        again = image(server, credentials=mt.credentials.bearer("one"))
        np.testing.assert_array_equal(again[:64, :64].values, pixels[:64, :64])
        assert fetched(server) == {}
        tokens.remove("two")
        with pytest.raises(AuthenticationError):
            image(server, credentials=mt.credentials.bearer("two"))


# -- statistics


def test_statistics(server: DICOMwebServer) -> None:
    lazy = image(server)
    assert mt.cache.statistics() == mt.cache.Statistics()
    lazy[:64, :128].compute()
    lazy[:64, :192].compute()
    counts = mt.cache.statistics()
    assert (counts.hits, counts.misses, counts.requests, counts.frames, counts.evicted) == (2, 3, 2, 3, 0)
    body = sum(r.sent for r in requests(server))
    assert 0 < counts.received < body
    assert counts.bytes == counts.received + 3 * 200
    assert counts.seconds > 0
    assert lazy.wsi.prefetch() == ACROSS * DOWN - 3
    after = mt.cache.statistics()
    assert (after.hits, after.misses) == (2, 3)
    assert after.requests == len(requests(server))
    lazy.compute()
    assert mt.cache.statistics().hits == 2 + ACROSS * DOWN
    assert mt.cache.reset_statistics().misses == 3
    left = mt.cache.statistics()
    assert (left.hits, left.misses, left.requests, left.seconds, left.frames) == (0, 0, 0, 0.0, ACROSS * DOWN)
    mt.cache.clear()
    assert mt.cache.statistics() == mt.cache.Statistics()


def test_requests_that_were_repeated_count(server: DICOMwebServer) -> None:
    failing = [Fault(status=503)]
    lazy = image(server)
    server.fault = lambda r: failing.pop() if failing else None
    lazy[:64, :64].compute()
    assert mt.cache.statistics().requests == len(requests(server)) == 2


# -- processes


def in_fork(call: Callable[[], bool]) -> bool:
    """Call in a forked process, which may take 30 seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads run: this is what is tested
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if call() else 3)
        except BaseException:
            os._exit(4)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("lists", [True, False])
def test_fork(lists: bool, slide: SyntheticSlide, pixels: Any) -> None:
    """A child does not use the connections of its parent, does not wait for its threads, and reads right pixels."""
    with DICOMwebServer(slide.folder) as server:
        server.fault = None if lists else lambda r: Fault(status=400) if len(r.frames) > 1 else None
        lazy = image(server)
        asked = service.service(server.url, none())
        stop = threading.Event()

        def keep_reading() -> None:
            while not stop.is_set():
                lazy[:200, :200].compute()
                mt.cache.clear()

        busy = [threading.Thread(target=keep_reading) for _ in range(6)]
        server.latency = 0.01
        with mt.config.set(requests_per_server=2):
            for thread in busy:
                thread.start()
            try:
                for _ in range(4):
                    assert in_fork(lambda: bool((lazy[100:300, 100:300].values == pixels[100:300, 100:300]).all()))
                    assert in_fork(lambda: len(list(asked.search("studies"))) == 1)
                    assert in_fork(lambda: asked.workers.parallel(lambda i: i, range(9)) == list(range(9)))
            finally:
                stop.set()
                for thread in busy:
                    thread.join(30)
        np.testing.assert_array_equal(lazy.values, pixels)
        assert server.failures == []


def test_spawn(server: DICOMwebServer, pixels: Any) -> None:
    tree = mt.open_slide(server.series_urls()[0], chunks={"y": 256, "x": 256})
    array = tree["level0"].image.data
    with multiprocessing.get_context("spawn").Pool(1) as pool, dask.config.set(pool=pool, scheduler="processes"):
        assert int(array.astype("int64").sum().compute()) == int(pixels.astype("int64").sum())


def test_gathering_is_renewed() -> None:
    gathering: Gathering[int] = Gathering(lambda numbers: {n: n for n in numbers})
    gathering._active = 5
    gathering.renew()
    assert gathering.ask([1, 2], 1, 10) == {1: 1, 2: 2}


def test_an_interrupted_caller_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two who wait together, the first is interrupted, before its turn or when it has just come."""
    for appointed in (False, True):
        go, begun = threading.Event(), threading.Event()

        def fetch(numbers: list[int], go: threading.Event = go, begun: threading.Event = begun) -> dict[int, int]:
            begun.set()
            go.wait(10)
            return {n: n for n in numbers}

        gathering: Gathering[int] = Gathering(fetch)

        class Interrupted(threading.Event):
            def wait(self, timeout: float | None = None, appointed: bool = appointed, go: Any = go) -> bool:
                if appointed:
                    go.set()
                    super().wait(10)
                raise KeyboardInterrupt

        with ThreadPoolExecutor(3) as threads:
            first = threads.submit(gathering.ask, [1], 1, 10)
            assert begun.wait(10)
            with monkeypatch.context() as patch:
                make = gathering_._Turn

                def interrupted(numbers: Any, make: Any = make, event: Any = Interrupted) -> Any:
                    turn = make(numbers)
                    turn.ready = event()
                    return turn

                patch.setattr(gathering_, "_Turn", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    gathering.ask([2], 1, 10)
            third = threads.submit(gathering.ask, [3], 1, 10)
            go.set()
            assert first.result(10) == {1: 1}
            assert third.result(10) == {3: 3}
        assert gathering._active == 0


def test_what_was_fetched_is_freed_at_once() -> None:
    gathering: Gathering[Any] = Gathering(lambda numbers: {n: Tracked() for n in numbers})
    found = gathering.ask([1, 2], 1, 10)
    gone = [weakref.ref(thing) for thing in found.values()]
    gc.disable()
    try:
        del found
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


class Tracked:
    pass


# -- prefetch


def test_prefetch_of_a_level(server: DICOMwebServer, pixels: Any) -> None:
    tree = mt.open_slide(server.series_urls()[0])
    assert tree.wsi.prefetch("level0") == ACROSS * DOWN
    server.reset()
    assert tree.wsi.prefetch("level0") == 0
    np.testing.assert_array_equal(tree["level0"].image.values, pixels)
    assert server.requests == []
    tree["level1"].image.compute()
    assert server.requests != []


def test_prefetch_of_a_region(server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server)
    assert lazy[100:300, 70:140].wsi.prefetch() == 4 * 2
    assert len(requests(server)) == 1
    server.reset()
    np.testing.assert_array_equal(lazy[64:320, 64:192].values, pixels[64:320, 64:192])
    assert server.requests == []


def test_prefetch_of_many_regions(server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server)
    random = np.random.default_rng(1)
    y, x = random.integers(0, DOWN * TILE - 100, 30), random.integers(0, ACROSS * TILE - 100, 30)
    count = lazy.wsi.prefetch(y, x, 100, 100)
    assert count == len(fetched(server)) == sum(fetched(server).values())
    assert len(requests(server)) <= 8
    server.reset()
    got = lazy.wsi.read(y, x, 100, 100)
    for i in range(30):
        np.testing.assert_array_equal(got[i], pixels[y[i] : y[i] + 100, x[i] : x[i] + 100])
    assert server.requests == []


def test_prefetch_of_a_server_that_is_gone(slide: SyntheticSlide) -> None:
    with DICOMwebServer(slide.folder) as server:
        lazy = image(server)
    with pytest.raises(RequestError, match="refused"):
        lazy.wsi.prefetch()


# -- read-ahead


def test_read_ahead_none(server: DICOMwebServer) -> None:
    image(server)[:64, :64].compute()
    assert fetched(server) == {1: 1}


@pytest.mark.parametrize("read_ahead", ["requests", "latency"])
def test_read_ahead_is_the_block_around(read_ahead: str, server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server, read_ahead=read_ahead)
    np.testing.assert_array_equal(lazy[:64, :64].values, pixels[:64, :64])
    if read_ahead == "requests":
        assert len(requests(server)) == 1
    wait_for_background()
    assert set(fetched(server)) == {row * ACROSS + column + 1 for row in range(8) for column in range(8)}
    assert set(fetched(server).values()) == {1}
    counts = mt.cache.statistics()
    assert (counts.hits, counts.misses) == (0, 1)
    server.reset()
    np.testing.assert_array_equal(lazy[:512, :512].values, pixels[:512, :512])
    assert server.requests == []


@pytest.mark.parametrize("read_ahead", ["requests", "latency"])
def test_read_ahead_does_not_load_an_instance(read_ahead: str, server: DICOMwebServer) -> None:
    with mt.config.set(frames_per_request=16):
        image(server, read_ahead=read_ahead)[300:310, 300:310].compute()
        wait_for_background()
    assert len(fetched(server)) == 16
    mt.cache.clear()
    server.reset()
    with mt.config.set(frames_per_request=16):
        image(server, read_ahead=read_ahead)[:600, :600].compute()  # larger than a request: nothing is added
        wait_for_background()
    assert max(len(r.frames) for r in requests(server)) <= 16


def test_read_ahead_of_fewest_requests(server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server, read_ahead="requests")
    for y in range(0, DOWN * TILE, TILE):
        for x in range(0, ACROSS * TILE, TILE):
            np.testing.assert_array_equal(lazy[y : y + TILE, x : x + TILE].values, pixels[y : y + TILE, x : x + TILE])
    assert len(requests(server)) == 4  # blocks of 8 x 8 tiles


def test_bad_neighbours_spoil_nothing(server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server, read_ahead="requests")
    server.fault = lambda r: Fault(html=True) if 2 in r.frames else None
    np.testing.assert_array_equal(lazy[:64, :64].values, pixels[:64, :64])
    with pytest.raises(RequestError, match="text/html"):
        lazy[:64, 64:128].compute()


def test_background_does_not_mind_a_server_that_dies(slide: SyntheticSlide, pixels: Any) -> None:
    with DICOMwebServer(slide.folder) as server:
        lazy = image(server, read_ahead="latency")
        server.fault = lambda r: Fault(delay=0.3) if len(r.frames) > 1 else None
        np.testing.assert_array_equal(lazy[:64, :64].values, pixels[:64, :64])
    wait_for_background()
    np.testing.assert_array_equal(lazy[:64, :64].values, pixels[:64, :64])
    wait_for_background()  # the read has asked for the frames around it once more
    assert not cache_.frame_cache()._flights


@pytest.mark.parametrize("across", [0, 1, 5, 16])
@pytest.mark.parametrize("size", [1, 4, 10, 64])
def test_frames_around(across: int, size: int) -> None:
    for number in (1, 7, 97):
        found = frames_around([number], size=size, across=across, frames=97)
        assert number in found
        assert len(found) <= size
        assert found == sorted(set(found))
        assert found[0] >= 1
        assert found[-1] <= 97


# -- decoded frames


def test_decoded_frames_are_kept(server: DICOMwebServer, pixels: Any) -> None:
    lazy = image(server)
    limit = 20 * TILE * TILE * 3
    with mt.config.set(decoded_cache_bytes=limit):
        got = lazy[:128, :128].values
        np.testing.assert_array_equal(got, pixels[:128, :128])
        got[...] = 0  # what the user has is the user's
        mt.cache.clear()
        server.reset()
        np.testing.assert_array_equal(lazy[10:100, 10:100].values, pixels[10:100, 10:100])
        assert server.requests == []
        np.testing.assert_array_equal(lazy.values, pixels)
        assert decoded_frames().bytes <= limit
        for got in together(8, lambda: lazy[200:500, 300:600].values):
            np.testing.assert_array_equal(got, pixels[200:500, 300:600])
        assert 0 < decoded_frames().bytes <= limit


@pytest.mark.parametrize("codec", ["jpeg", "native"])
@pytest.mark.parametrize("setting", ["decoded_cache_bytes", "overlap_cache_bytes"])
def test_frames_between_kept_ones_are_themselves(tmp_path: Path, codec: str, setting: str) -> None:
    """What is left of a run of frames, when some of it is kept decoded, has gaps: it was read as if it had none."""
    make_slide(tmp_path, width=1024, height=512, frame=64, codec=codec, levels=1)
    image = mt.open_slide(tmp_path, chunks=None)["level0"].image
    whole = image.values
    with mt.config.set(**{setting: 64 << 20}):
        decoded_frames().renew()
        for y, x in ((70, 70), (70, 300), (200, 500), (3, 900)):  # parts of single frames, which are kept
            region = image.wsi.patches(20, origins=[(y, x)], chunks=None).image.values[0]
            np.testing.assert_array_equal(region, whole[y : y + 20, x : x + 20])
        for size in (100, 300):
            patches = image.wsi.patches(size, chunks=None)
            places = zip(patches.row.values, patches.column.values, strict=True)
            for pixels, (row, column) in zip(patches.image.values, places, strict=True):
                np.testing.assert_array_equal(pixels, whole[row : row + size, column : column + size])
        np.testing.assert_array_equal(image.values, whole)
        np.testing.assert_array_equal(image[::3, 5:700].values, whole[::3, 5:700])
