"""Slides on Dask clusters: every scheduler, every kind of source; what travels, how often slides are opened, limits."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import xarray as xr

import microtome as mt
from microtome.errors import (
    AuthenticationError,
    CredentialsError,
    MissingFrameError,
    OptionError,
    RequestError,
    SlideNotFoundError,
)
from microtome.lazy.recipe import forget_open_slides
from microtome.storage import limits
from microtome.testing import SyntheticSlide, make_slide
from microtome.testing.dicomweb import DICOMwebServer, Fault
from secrets_search import find_secret, whole_traceback

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore::ResourceWarning")]

LIMIT = 4096
WIDTH, HEIGHT, FRAME = 700, 600, 64
CHUNKS = {"y": 128, "x": 192}
FIRST, SECOND = "Zk3qP9vXw7LmTb5RhYc2", "Hd8sFj4NuGa6WeKo1QiV"
QUIET: dict[str, Any] = {
    "distributed.worker.daemon": True,
    "distributed.comm.timeouts.connect": "90s",  # processes start slowly on a busy machine
    "distributed.scheduler.locks.lease-timeout": "2s",
    "distributed.scheduler.locks.lease-validation-interval": "500ms",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("slide"), width=WIDTH, height=HEIGHT, frame=FRAME, codec="jpeg-ls")


@contextmanager
def started(workers: int, threads: int, **options: Any) -> Iterator[Any]:
    with (
        dask.config.set(QUIET),
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=threads, dashboard_address=":0", silence_logs=50, **options
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def pair() -> Iterator[Any]:
    """Two processes of one thread."""
    with started(2, 1) as client:
        yield client


@pytest.fixture(scope="module")
def many() -> Iterator[Any]:
    """Three processes of four threads, which stand for machines with a resource each."""
    with started(3, 4, resources={"microtome": 1}) as client:
        yield client


@pytest.fixture(scope="module")
def threaded() -> Iterator[Any]:
    """Two workers in this process, of two threads each."""
    with started(2, 2, processes=False) as client:
        yield client


def on(client: Any, lazy: Any) -> Any:
    """What something lazy comes to on a cluster."""
    return client.compute(lazy).result(timeout=60)


def opened(uri: Any, **options: Any) -> xr.DataTree:
    return mt.open_slide(uri, chunks=CHUNKS, **options)


# Sources ------------------------------------------------------------------------------------------------------------


class Tokens:
    """Tokens that a server accepts: those that have been issued, in whatever process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __iter__(self) -> Iterator[str]:
        return iter([path.name for path in self.folder.iterdir()])

    def __len__(self) -> int:
        return len(list(self.folder.iterdir()))

    def __contains__(self, token: object) -> bool:
        return token in list(self)

    @property
    def issuing(self) -> Callable[[], str]:
        """A function that issues a token, and that travels."""
        folder = str(self.folder)

        def issue() -> str:
            import uuid
            from pathlib import Path

            token = uuid.uuid4().hex
            (Path(folder) / token).touch()
            return token

        return issue


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return Tokens(tmp_path_factory.mktemp("issued") / "tokens")


@pytest.fixture(scope="module")
def web(made: SyntheticSlide, tokens: Tokens) -> Iterator[DICOMwebServer]:
    """A server whose tokens are good for ten requests."""
    with DICOMwebServer(made.folder, tokens=tokens, token_lifetime=10) as server:
        yield server


@pytest.fixture(params=["disk", "zip", "gs", "web"])
def source(
    request: pytest.FixtureRequest, made: SyntheticSlide, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, dict[str, Any]]:
    """Where the slide is, and options to open it with."""
    if request.param == "disk":
        return made.folder, {}
    if request.param == "zip":
        path = tmp_path_factory.mktemp("zip") / "slide.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in made.files:
                archive.write(file, file.name)
        return f"zip://::{path}", {}
    if request.param == "gs":
        store = request.getfixturevalue("stores")["gs"]
        return store.put(made.folder), {"storage_options": store.storage_options}
    server, tokens = request.getfixturevalue("web"), request.getfixturevalue("tokens")
    return server.series_urls()[0], {"credentials": mt.credentials.bearer(tokens.issuing)}


# Work ---------------------------------------------------------------------------------------------------------------


def twice(block: Any) -> Any:
    return block.astype(np.uint16) * 2


def edges(block: Any) -> Any:
    return block.astype(np.int16) - np.roll(block, 1, axis=1)


def works(tree: xr.DataTree) -> dict[str, Any]:
    """Lazy results by name, of everything that is done to slides."""
    image = tree["level0"].image
    ours = tree.wsi.at(0.0013)
    return {
        "pixels": image,
        "coarse": tree["level2"].image,
        "crop": image[77:301, 100:555:3],
        "mean": image.astype(float).mean(("y", "x")),
        "histogram": da.histogram(image.data, bins=16, range=(0, 256))[0],
        "map_blocks": image.data.map_blocks(twice, dtype=np.uint16),
        "map_overlap": image.data.map_overlap(edges, depth={0: 1, 1: 1}, boundary="reflect", dtype=np.int16),
        "rechunk": image.data.rechunk((90, 170, 1)),
        "apply_ufunc": xr.apply_ufunc(twice, image, dask="parallelized", output_dtypes=[np.uint16]),
        "xr.map_blocks": xr.map_blocks(twice, image, template=image.astype(np.uint16)),
        "at": ours,
        "to_profile": image.wsi.to_profile("display_p3"),
        "patches": image.wsi.patches(96, 64, chunks=20).image,
        "patches at": ours.wsi.patches(50, chunks=9).image,
        "tissue_mask": tree.wsi.tissue_mask(),
    }


@pytest.fixture(scope="module")
def expected(made: SyntheticSlide) -> dict[str, Any]:
    """The same of source pixels; of what microtome computes, as it does in one thread from disk."""
    pixels = made.pixels(0)
    tree = opened(made.folder)
    with dask.config.set(scheduler="synchronous"), mt.config.set(decode_threads=1):
        here = {name: np.asarray(lazy) for name, lazy in works(tree).items()}
        whole = da.from_array(pixels, chunks=(128, 192, 3))
        here["map_overlap"] = whole.map_overlap(edges, depth={0: 1, 1: 1}, boundary="reflect", dtype=np.int16).compute()
    corners = [(r, c) for r, c in zip(*(tree["level0"].image.wsi.patches(96, 64)[n] for n in ("row", "column")))]  # noqa: B905
    return here | {
        "pixels": pixels,
        "coarse": made.pixels(2),
        "crop": pixels[77:301, 100:555:3],
        "mean": pixels.mean((0, 1)),
        "histogram": np.histogram(pixels, bins=16, range=(0, 256))[0],
        "map_blocks": twice(pixels),
        "rechunk": pixels,
        "apply_ufunc": twice(pixels),
        "xr.map_blocks": twice(pixels),
        "patches": np.stack([pixels[int(r) : int(r) + 96, int(c) : int(c) + 96] for r, c in corners]),
    }


def check(name: str, got: Any, expected: dict[str, Any]) -> None:
    if name == "mean":
        np.testing.assert_allclose(got, expected[name])
    else:
        np.testing.assert_array_equal(got, expected[name], err_msg=name)


@pytest.mark.usefixtures("new_to_servers")
@pytest.mark.parametrize(
    ("source", "kind"),
    [("disk", "pair"), ("gs", "pair"), ("web", "pair"), ("zip", "threaded"), ("web", "threaded")],
    indirect=["source"],
)
def test_everything_on_every_cluster(
    source: Any, kind: str, expected: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    uri, options = source
    client = request.getfixturevalue(kind)
    lazy = works(opened(uri, **options))
    futures = {name: client.compute(one) for name, one in lazy.items()}
    for name, future in futures.items():
        check(name, future.result(timeout=60), expected)


@pytest.mark.parametrize("source", ["disk", "web"], indirect=True)
def test_spawned_processes(source: Any, expected: dict[str, Any]) -> None:
    uri, options = source
    lazy = works(opened(uri, **options))
    some = ["pixels", "map_overlap", "at", "to_profile", "patches", "tissue_mask"]
    with dask.config.set({"multiprocessing.context": "spawn", "num_workers": 2, "scheduler": "processes"}):
        results = dask.compute(*(lazy[name] for name in some))
    for name, got in zip(some, results, strict=True):
        check(name, got, expected)


def test_persisted_images_stay_on_workers(made: SyntheticSlide, pair: Any) -> None:
    image = opened(made.folder)["level0"].image
    kept = pair.persist(image)
    with pair.as_current():
        distributed.wait(kept, timeout=60)
    assert sum(map(len, pair.has_what().values())) >= image.data.npartitions
    np.testing.assert_array_equal(on(pair, kept[100:200]), made.pixels(0)[100:200])
    np.testing.assert_array_equal(on(pair, kept.mean()), made.pixels(0).mean())


def test_tokens_expire_in_mid_run(
    made: SyntheticSlide, web: DICOMwebServer, tokens: Tokens, pair: Any, new_to_servers: None
) -> None:
    tree = opened(web.series_urls()[0], credentials=mt.credentials.bearer(tokens.issuing), fill=1)
    pair.run(mt.cache.clear)
    web.reset()
    before = len(tokens)
    with mt.config.set(frames_per_request=4):
        mt.cluster.configure(pair, frames_per_request=4)
        np.testing.assert_array_equal(on(pair, tree["level0"].image), made.pixels(0))
        mt.cluster.configure(pair)
    statuses = [request.status for request in web.requests]
    assert statuses.count(401) >= 2  # beside each worker's first, which it calls for unasked
    assert len(tokens) >= before + 3
    assert set(statuses) == {200, 401}


def test_tokens_come_from_each_workers_environment(made: SyntheticSlide, pair: Any, new_to_servers: None) -> None:
    name, accepted = "MICROTOME_TEST_TOKEN", [FIRST]

    def set_token(token: str | None) -> None:
        import os

        os.environ.pop("MICROTOME_TEST_TOKEN", None)
        if token is not None:
            os.environ["MICROTOME_TEST_TOKEN"] = token

    with DICOMwebServer(made.folder, tokens=accepted) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, accepted[0])
        image = opened(server.series_urls()[0], credentials=mt.credentials.bearer(env=name))["level0"].image
        with pytest.raises(CredentialsError, match="where workers are started"):
            on(pair, image[:100])
        pair.run(set_token, accepted[0])
        np.testing.assert_array_equal(on(pair, image[:90]), made.pixels(0)[:90])
        accepted[0] = SECOND
        with pytest.raises(AuthenticationError, match=name) as caught:
            on(pair, image[100:200])
        shown = whole_traceback(caught.value) + repr(pickle.dumps(caught.value))
        assert not find_secret(shown, FIRST)
        pair.run(set_token, accepted[0])
        np.testing.assert_array_equal(on(pair, image[110:200]), made.pixels(0)[110:200])
        pair.run(set_token, None)


# What travels -------------------------------------------------------------------------------------------------------


def test_tasks_are_small(source: Any) -> None:
    uri, options = source
    lazy_results = works(opened(uri, **options))
    del lazy_results["xr.map_blocks"]  # whose tasks carry coordinates and a Dataset: they are xarray's
    for name, lazy in lazy_results.items():
        (optimized,) = dask.optimize(getattr(lazy, "data", lazy))
        for key, task in dict(optimized.__dask_graph__()).items():
            assert len(cloudpickle.dumps(task)) <= LIMIT, (name, key)


def test_groups_of_patches_carry_their_own_places_only(made: SyntheticSlide) -> None:
    tree = opened(made.folder)
    rng = np.random.default_rng(0)
    origins = rng.integers(0, 400, (20_000, 2))
    patches = tree["level0"].image.wsi.patches(224, origins=origins, order="given").image
    groups = dict(patches.data.__dask_graph__())
    assert len(groups) > 150
    assert max(len(cloudpickle.dumps(task)) for task in groups.values()) <= LIMIT


def test_huge_images_have_small_graphs(tmp_path: Path) -> None:
    def grey(level: int, path: int, plane: int, y0: int, x0: int, h: int, w: int) -> Any:
        return np.full((h, w, 3), 7, np.uint8)

    small = make_slide(tmp_path, width=30_000, height=30_000, frame=512, pixels=grey, levels=1, associated=False)
    tree = mt.open_slide(small.folder)
    image = tree["level0"].image
    assert image.data.npartitions > 100
    for lazy in (image, tree.wsi.at(0.0006), image.wsi.to_profile("display_p3")):
        assert len(cloudpickle.dumps(lazy.data)) < LIMIT + 100 * lazy.data.npartitions
    crop = image[100:400, 200:500].data
    graph = crop.__dask_graph__()
    (optimized,) = dask.optimize(crop)
    assert len(dict(optimized.__dask_graph__())) <= 2
    assert len(graph.layers) <= 2


def test_names_are_the_same_in_every_process(made: SyntheticSlide) -> None:
    code = """
import sys
import microtome as mt
tree = mt.open_slide(sys.argv[1], chunks={"y": 128, "x": 192})
image, ours = tree["level0"].image, tree.wsi.at(0.0013)
for lazy in (image, ours, image.wsi.to_profile("display_p3"), image.wsi.patches(96, 64, chunks=20).image,
             ours.wsi.patches(50, chunks=9).image, tree.wsi.tissue_mask(), image.mean()):
    print(lazy.data.name)
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(made.folder)],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout.split()
        for seed in (1, 2)
    ]  # fmt: skip
    assert len(set(runs[0])) == 7
    assert runs[0] == runs[1]
    assert opened(made.folder)["level0"].image.data.name == runs[0][0]


# How often slides are opened ----------------------------------------------------------------------------------------


def openings(server: DICOMwebServer) -> int:
    return sum(request.path.endswith("/metadata") for request in server.requests)


def test_each_process_opens_a_slide_once(made: SyntheticSlide, many: Any, new_to_servers: None) -> None:
    with DICOMwebServer(made.folder, latency=0.05) as server:
        image = opened(server.series_urls()[0])["level0"].image
        at_first = openings(server)
        for _ in range(2):
            np.testing.assert_array_equal(on(many, image), made.pixels(0))  # 20 tasks, 12 at once
        assert openings(server) == 4 * at_first


def refs_of(*images: xr.DataArray) -> list[bytes]:
    from microtome.lazy.unwrap import unwrap

    views = [unwrap(image.variable) for image in images]
    return [pickle.dumps(view.array) for view in views if view is not None]


def test_a_slow_opening_blocks_no_other_slide(made: SyntheticSlide, new_to_servers: None) -> None:
    corner = slice(0, 9), slice(0, 9), slice(None)
    answer, asked = threading.Event(), threading.Event()

    def slow(request: Any) -> None:
        asked.set()
        answer.wait(30)

    with DICOMwebServer(made.folder) as server, ThreadPoolExecutor(3) as threads:
        slide = mt.open_slide(server.series_urls()[0], chunks=None)["level0"].image
        sent = refs_of(slide, mt.open_slide(made.folder, chunks=None)["level0"].image)
        del slide
        forget_open_slides()
        try:
            server.fault = slow
            waits = [threads.submit(lambda: pickle.loads(sent[0]).block(corner)) for _ in range(2)]
            assert asked.wait(10)
            np.testing.assert_array_equal(
                threads.submit(lambda: pickle.loads(sent[1]).block(corner)).result(10), made.pixels(0)[:9, :9]
            )
            assert not any(wait.done() for wait in waits)
        finally:
            answer.set()
        for wait in waits:
            np.testing.assert_array_equal(wait.result(10), made.pixels(0)[:9, :9])


def test_those_who_wait_for_an_opening_meet_its_error(made: SyntheticSlide, new_to_servers: None) -> None:
    with DICOMwebServer(made.folder) as server, ThreadPoolExecutor(8) as threads:
        slide = mt.open_slide(server.series_urls()[0], chunks=None)["level0"].image
        (sent,) = refs_of(slide)
        del slide
        forget_open_slides()
        server.reset()
        all_are_there = threading.Barrier(8)
        server.fault = lambda request: Fault(status=404, delay=0.3)

        def read() -> BaseException | None:
            all_are_there.wait(10)
            try:
                pickle.loads(sent).block((slice(0, 9), slice(0, 9), slice(None)))
            except SlideNotFoundError as e:
                return e
            return None

        errors = [future.result() for future in [threads.submit(read) for _ in range(8)]]
        assert all(errors)
        assert len({id(e) for e in errors}) == 8  # a traceback is that of one thread
        assert len(server.requests) <= 2  # of the one that opens it, which asks and asks otherwise
        server.fault = None
        np.testing.assert_array_equal(
            pickle.loads(sent).block((slice(0, 9), slice(0, 9), slice(None))), made.pixels(0)[:9, :9]
        )


def test_filters_of_warnings_are_as_before(made: SyntheticSlide, tmp_path: Path) -> None:
    import warnings

    sent = []
    for n in range(8):
        shutil.copytree(made.folder, tmp_path / str(n))
        sent += refs_of(mt.open_slide(tmp_path / str(n), chunks=None)["level0"].image)
    forget_open_slides()
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(lambda s=s: pickle.loads(s).reader) for s in sent]:
            future.result()
    assert warnings.filters == before


# Errors -------------------------------------------------------------------------------------------------------------


def test_memory_is_that_of_a_process(made: SyntheticSlide, pair: Any) -> None:
    memory = fsspec.filesystem("memory")
    try:
        for file in made.files:
            memory.pipe(f"/test-clusters/slide/{file.name}", file.read_bytes())
        image = opened("memory://test-clusters/slide")["level0"].image
        np.testing.assert_array_equal(image, made.pixels(0))
        with pytest.raises(SlideNotFoundError, match="memory://"):
            on(pair, image)
    finally:
        memory.rm("/test-clusters", recursive=True)


def test_errors_arrive_as_they_are_raised(
    made: SyntheticSlide, tokens: Tokens, pair: Any, tmp_path: Path, new_to_servers: None
) -> None:
    with DICOMwebServer(made.folder, tokens=tokens) as server:
        image = opened(server.series_urls()[0], credentials=mt.credentials.bearer(tokens.issuing))["level0"].image
        server.fault = lambda request: Fault(status=410) if "/frames/" in request.path else None
        with pytest.raises(MissingFrameError, match="frame") as caught:
            on(pair, image)
        shown = whole_traceback(caught.value) + repr(pickle.dumps(caught.value))
        assert not any(find_secret(shown, token) for token in tokens)
        server.fault = lambda request: Fault(status=403) if "/frames/" in request.path else None
        with pytest.raises(AuthenticationError) as refused:
            on(pair, image[:70])
        assert refused.value.status == 403
        assert not any(find_secret(whole_traceback(refused.value), token) for token in tokens)
    folder = tmp_path / "cut"
    shutil.copytree(made.folder, folder)
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size * 2 // 3)
    with pytest.raises(MissingFrameError, match=largest.name):
        on(pair, opened(folder)["level0"].image)


# Workers that come and go -------------------------------------------------------------------------------------------


def nanny_pids(client: Any) -> list[int]:
    return [nanny.pid for nanny in client.cluster.workers.values()]


def wait_until(true: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_worker_that_dies(made: SyntheticSlide, pair: Any, new_to_servers: None) -> None:
    with DICOMwebServer(made.folder, latency=0.1) as server:
        image = opened(server.series_urls()[0])["level0"].image
        server.reset()
        future = pair.compute(image)
        wait_until(lambda: len(server.requests) > 12)
        os.kill(nanny_pids(pair)[0], signal.SIGKILL)
        np.testing.assert_array_equal(future.result(timeout=60), made.pixels(0))
    pair.wait_for_workers(2, timeout=90)


def test_workers_that_come_and_go(made: SyntheticSlide, new_to_servers: None) -> None:
    with DICOMwebServer(made.folder, latency=0.05) as server, started(0, 1) as client:
        mt.cluster.configure(client, frames_per_request=3)
        client.cluster.adapt(minimum=1, maximum=2, interval="100ms", wait_count=2, target_duration="200ms")
        image = opened(server.series_urls()[0])["level0"].image
        seen = set()
        future = client.compute(image.data.map_blocks(slowly, dtype=np.uint8))
        while not future.done():
            seen.add(len(client.scheduler_info()["workers"]))
            time.sleep(0.02)
        np.testing.assert_array_equal(future.result(timeout=60), made.pixels(0))
        assert max(seen) > 1
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 1)
        assert set(client.run(lambda: mt.config.get().frames_per_request).values()) == {3}
        np.testing.assert_array_equal(on(client, image), made.pixels(0))


def slowly(block: Any) -> Any:
    time.sleep(0.2)
    return block


# Threads and settings -----------------------------------------------------------------------------------------------


def threads_here() -> tuple[int, int]:
    """What the setting is in a thread of the task, and in one that is nobody's."""
    with ThreadPoolExecutor(1) as executor:
        other = executor.submit(lambda: mt.config.get().decode_threads).result()
    return mt.config.get().decode_threads, other


def test_workers_decode_with_their_own_threads(pair: Any, many: Any, threaded: Any) -> None:
    for client, threads in ((pair, 1), (many, 4)):
        assert client.submit(threads_here, pure=False).result(timeout=90) == (threads, threads)
        mt.cluster.configure(client, decode_threads=3)
        assert client.submit(threads_here, pure=False).result(timeout=90) == (3, 3)
        mt.cluster.configure(client)
        assert client.submit(threads_here, pure=False).result(timeout=90) == (threads, threads)
    assert threaded.submit(threads_here, pure=False).result(timeout=90) == (4, 4)  # two workers of two
    with mt.config.set(decode_threads=7):
        assert threaded.submit(threads_here, pure=False).result(timeout=90) == (7, 7)


def test_threads_are_those_of_the_processors_without_workers() -> None:
    code = (
        "import dask, distributed, microtome as mt\n"
        "alone = mt.config.get().decode_threads\n"
        "if __name__ == '__main__':\n"
        "    with distributed.LocalCluster(n_workers=1, threads_per_worker=11, processes=False, "
        "dashboard_address=None) as c:\n"
        "        inside = mt.config.get().decode_threads\n"
        "    print(alone, inside, mt.config.get().decode_threads)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env={k: v for k, v in os.environ.items() if k != "MICROTOME_DECODE_THREADS"},
    )  # fmt: skip
    alone = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert done.stdout.split() == [str(alone), "11", str(alone)]


def peak_of_decoding(image: xr.DataArray) -> int:
    """How many threads decode at a time while a task reads."""
    from microtome.lazy.frames import InstanceReader

    lock, now, peak = threading.Lock(), [0], [0]
    paste = InstanceReader._paste

    def counted(self: Any, *arguments: Any) -> None:
        with lock:
            now[0] += 1
            peak[0] = max(peak[0], now[0])
        time.sleep(0.005)
        paste(self, *arguments)
        with lock:
            now[0] -= 1

    InstanceReader._paste = counted  # type: ignore[method-assign]
    try:
        image.compute(scheduler="synchronous")
    finally:
        InstanceReader._paste = paste  # type: ignore[method-assign]
    return peak[0]


def test_a_worker_of_one_thread_decodes_in_one(source: Any, pair: Any, new_to_servers: None) -> None:
    uri, options = source
    image = mt.open_slide(uri, chunks={"y": -1, "x": -1}, fill=2, **options)["level0"].image
    pair.run(mt.cache.clear)
    # Fewer at a time than a token is good for: others would use up one that was just renewed, before its turn comes.
    mt.cluster.configure(pair, frames_per_request=4, requests_per_server=8)
    assert pair.submit(peak_of_decoding, image, pure=False).result(timeout=60) == 1
    mt.cluster.configure(pair)


def test_settings_reach_workers(pair: Any, threaded: Any) -> None:
    def settings() -> tuple[int, int]:
        return mt.config.get().frame_cache_bytes, mt.config.get().frames_per_request

    before = mt.config.get().frame_cache_bytes, mt.config.get().frames_per_request
    for client in (pair, threaded):
        mt.cluster.configure(client, frame_cache_bytes=123, frames_per_request=np.int64(9))
        assert set(client.run(settings).values()) == {(123, 9)}
        mt.cluster.configure(client, frame_cache_bytes=77)  # in place of the call before
        assert set(client.run(settings).values()) == {(77, before[1])}
        mt.cluster.configure(client, frame_cache_bytes=5)
        client.run(lambda: None)
    os.kill(nanny_pids(pair)[0], signal.SIGKILL)
    wait_until(lambda: len(pair.scheduler_info()["workers"]) < 2)
    pair.wait_for_workers(2, timeout=90)
    assert list(pair.run(settings).values()) == [(5, before[1])] * 2
    for client in (pair, threaded):
        mt.cluster.configure(client)
        assert set(client.run(settings).values()) == {before}
    assert settings() == before


def test_settings_go_with_workers_of_this_process() -> None:
    before = mt.config.get().frame_cache_bytes
    with started(2, 1, processes=False) as client:
        mt.cluster.configure(client, frame_cache_bytes=123, shared_requests_per_server=1)
        assert mt.config.get().frame_cache_bytes == 123
        client.cluster.scale(1)
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 1)
        assert mt.config.get().frame_cache_bytes == 123
        assert client.submit(one_request, "https://a:1", pure=False).result(timeout=90)
    assert mt.config.get().frame_cache_bytes == before
    assert limits._requests.share is None


def one_request(server: str) -> bool:
    with limits.request(server):
        return True


def test_what_cannot_be_set(pair: Any) -> None:
    with pytest.raises(OptionError, match="no setting"):
        mt.cluster.configure(pair, threads=3)
    with pytest.raises(OptionError, match="frames_per_request"):
        mt.cluster.configure(pair, frames_per_request=0)
    for wrong in (0, -1, 1.5, "many"):
        with pytest.raises(OptionError, match="shared_requests_per_server"):
            mt.cluster.configure(pair, shared_requests_per_server=wrong)  # type: ignore[arg-type]


# Limits over all workers --------------------------------------------------------------------------------------------


@contextmanager
def shared(client: Any, most: int, **settings: int) -> Iterator[None]:
    mt.cluster.configure(client, shared_requests_per_server=most, **settings)
    try:
        yield
    finally:
        mt.cluster.configure(client)


def test_all_workers_share_a_limit(made: SyntheticSlide, many: Any, new_to_servers: None) -> None:
    with DICOMwebServer(made.folder, latency=0.03) as server:
        image = opened(server.series_urls()[0])["level0"].image
        with shared(many, 4, frames_per_request=2):
            server.reset()
            np.testing.assert_array_equal(on(many, image), made.pixels(0))
            assert 1 < server.peak <= 4
            assert len(server.requests) > 40
        server.reset()
        many.run(mt.cache.clear)
        with shared(many, 100, frames_per_request=2):
            on(many, image)
        assert server.peak > 4  # so that the limit is what kept them back


def test_servers_are_limited_each_by_itself(many: Any) -> None:
    a, b = "https://a:1", f"https://{uuid.uuid4().hex}:1"

    def hold(server: str, seconds: float) -> None:
        with limits.request(server):
            time.sleep(seconds)

    with shared(many, 1):
        slow = many.submit(hold, a, 1.5, pure=False)
        time.sleep(0.2)
        many.submit(hold, b, 0.0, pure=False).result(timeout=60)
        assert not slow.done()
        slow.result(timeout=90)


def test_a_dead_worker_blocks_nobody_for_ever(made: SyntheticSlide, pair: Any, new_to_servers: None) -> None:
    def hold() -> int:
        with limits.request("https://held:1"):
            time.sleep(60)
        return 0

    addresses = list(pair.scheduler_info()["workers"])
    with shared(pair, 1):
        pid = pair.run(os.getpid)[addresses[0]]
        held = pair.submit(hold, workers=addresses[0], pure=False, retries=0)
        time.sleep(0.5)
        waits = pair.submit(one_request, "https://held:1", workers=addresses[1], pure=False)
        time.sleep(0.5)
        assert not waits.done()
        held.cancel()
        os.kill(pid, signal.SIGKILL)
        assert waits.result(timeout=20)
        pair.wait_for_workers(2, timeout=90)


def test_waiting_for_a_lease_leaves_the_worker_responsive(pair: Any) -> None:
    (first, second) = list(pair.scheduler_info()["workers"])

    def hold(seconds: float) -> None:
        with limits.request("https://c:1"):
            time.sleep(seconds)

    with shared(pair, 1):
        held = pair.submit(hold, 2.0, workers=first, pure=False)
        time.sleep(0.3)
        waits = pair.submit(hold, 0.0, workers=second, pure=False)
        time.sleep(0.2)
        pair.run(os.getpid, workers=[second])  # answered by its event loop
        assert not held.done()
        assert not waits.done()
        waits.result(timeout=90)


def test_coroutines_are_told_to_use_a_thread(pair: Any) -> None:
    async def blocks() -> None:
        with limits.request("https://d:1"):
            pass

    async def well() -> bool:
        import asyncio

        return await asyncio.to_thread(one_request, "https://d:1")

    with shared(pair, 1):
        with pytest.raises(OptionError, match="to_thread"):
            pair.submit(blocks, pure=False).result(timeout=90)
        assert pair.submit(well, pure=False).result(timeout=90)


def test_who_cannot_ask_the_scheduler_says_so(made: SyntheticSlide) -> None:
    from microtome.cluster.leases import Leases

    with started(1, 1, processes=False) as client:
        (worker,) = client.cluster.workers.values()
        leases = Leases(1, worker)
        with leases.lease("https://e:1"):
            pass
    with pytest.raises(RequestError, match="scheduler"), leases.lease("https://e:1"):
        pytest.fail("a lease of nobody")


def test_resources_limit_tasks(made: SyntheticSlide, many: Any, new_to_servers: None) -> None:
    """The way without microtome's help: tasks that fetch hold a resource of their worker."""
    with DICOMwebServer(made.folder, latency=0.03) as server:
        image = mt.open_slide(server.series_urls()[0], chunks={"y": FRAME, "x": FRAME})["level0"].image
        with dask.annotate(resources={"microtome": 1}):
            future = many.compute(image.data, optimize_graph=False)
        np.testing.assert_array_equal(future.result(timeout=60), made.pixels(0))
        frames = [request for request in server.requests if "/frames/" in request.path]
        assert len(frames) >= 100
        assert 1 < server.peak <= 3
