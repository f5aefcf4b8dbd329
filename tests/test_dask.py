"""Dask: names, blocks, what travels, every scheduler and every process; and plain xarray's ways in."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import fsspec
import numpy as np
import pytest
import xarray as xr
from fsspec.implementations.memory import MemoryFileSystem

import microtome as mt
from microtome.errors import NotASlideError, OptionError, SlideChangedError, SlideNotFoundError
from microtome.lazy.array import SlideArray
from microtome.lazy.blocks import MAX_BLOCKS, block_shape
from microtome.lazy.recipe import forget_open_slides
from microtome.lazy.unwrap import unwrap
from microtome.testing import SyntheticSlide, make_slide

LIMIT = 4096
SECRET = "hunter2-AKIAXYZZY"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("slide"), width=600, height=500, frame=64, codec="deflated-frame")


def small_blocks(uri: Any, **options: Any) -> xr.DataTree:
    return mt.open_slide(uri, chunks={"y": 128, "x": 192}, **options)


def array_of(image: xr.DataArray) -> SlideArray:
    view = unwrap(image.variable)
    assert view is not None
    return view.array


def names(tree: xr.DataTree) -> dict[str, str]:
    return {node.path: node.dataset["image"].data.name for node in tree.subtree if "image" in node.dataset}


# Names --------------------------------------------------------------------------------------------------------------


def test_names_differ_between_nodes(made: SyntheticSlide) -> None:
    found = names(mt.open_slide(made.folder))
    assert len(set(found.values())) == len(found) == len(made.level_shapes) + 3


def test_images_of_one_shape_keep_their_pixels(tmp_path: Path) -> None:
    """The overview repeats the shape of a level, which a token made of the shape would mix up."""
    overview = mt.open_slide(make_slide(tmp_path / "a", width=32, height=32, frame=32).folder)[
        "associated/overview"
    ].image
    rows, columns = overview.shape[:2]
    level = make_slide(tmp_path / "b", width=columns, height=rows, frame=32, codec="native", levels=1)
    tree = mt.open_slide(level.folder)
    assert tree["level0"].image.shape == tree["associated/overview"].image.shape
    one, other = dask.compute(tree["level0"].image.data, tree["associated/overview"].image.data)
    np.testing.assert_array_equal(one, level.pixels(0))
    assert not np.array_equal(one, other)


def test_names_stay_the_same(made: SyntheticSlide) -> None:
    first = names(mt.open_slide(made.folder))
    assert names(mt.open_slide(made.folder)) == first
    assert names(mt.open_slide(str(made.folder) + "/", storage_options={})) == first
    forget_open_slides()
    assert names(mt.open_slide(f"file://{made.folder}")) == first


def test_a_second_opening_leaves_the_first_as_it_is(made: SyntheticSlide) -> None:
    """Dask arrays of both openings have one name: what is known by it must outlive either."""
    first, second = mt.open_slide(made.folder)["level0"].image, mt.open_slide(made.folder)["level0"].image
    second.wsi.explain()
    del second
    gc.collect()
    assert first[3:50].wsi.explain().frames == 10
    third = mt.open_slide(made.folder)["level0"].image
    del first
    gc.collect()
    assert third[3:50].wsi.explain().frames == 10
    assert third.wsi.coverage()[:3].values.all()


def test_names_change_with_options(made: SyntheticSlide) -> None:
    default = mt.open_slide(made.folder)["level0"].image.data.name
    others = [
        mt.open_slide(made.folder, **options)["level0"].image.data.name  # type: ignore[arg-type]
        for options in (
            {"fill": 0}, {"fill": 7}, {"fill": (1, 2, 3)}, {"missing": "fill"}, {"alignment": "extent"},
            {"frame_order": "row"}, {"chunks": {"y": 128, "x": 64}}, {"chunks": {}},
        )
    ]  # fmt: skip
    assert len({default, *others}) == len(others) + 1


def test_names_change_with_files(tmp_path: Path, made: SyntheticSlide) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.folder, copy)
    first = names(mt.open_slide(copy))
    assert set(first.values()).isdisjoint(names(mt.open_slide(made.folder)).values())  # other files
    file = copy / made.files[0].name
    os.utime(file, ns=(1, 1))
    second = names(mt.open_slide(copy))
    with file.open("ab") as f:
        f.write(b"\0\0")
    os.utime(file, ns=(1, 1))
    third = names(mt.open_slide(copy))
    for one, other in ((first, second), (second, third), (first, third)):
        assert one["/level0"] != other["/level0"]


def test_tokenizing_reads_nothing(made: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    from dask.base import tokenize

    array = array_of(mt.open_slide(made.folder, chunks=None)["level0"].image)
    monkeypatch.setattr(SlideArray, "__getitem__", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(SlideArray, "block", lambda *_: pytest.fail("read"))
    assert tokenize(array) == tokenize(pickle.loads(pickle.dumps(array)))


# Blocks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 100_000, 16 << 20])
def test_blocks_are_whole_frames(made: SyntheticSlide, block_bytes: int) -> None:
    with mt.config.set(block_bytes=block_bytes):
        tree = mt.open_slide(made.folder)
    for n in range(len(made.level_shapes)):
        image = tree[f"level{n}"].image
        for dim in ("y", "x"):
            size = image.sizes[dim]
            assert all(c % 64 == 0 for c in image.chunksizes[dim][:-1])
            assert image.chunksizes[dim][0] % 64 == 0 or image.chunksizes[dim] == (size,)
        assert image.chunksizes["c"] == (3,)


def test_empty_chunks_are_frames(made: SyntheticSlide) -> None:
    image = mt.open_slide(made.folder, chunks={})["level0"].image
    assert image.chunksizes["y"] == (64,) * 7 + (52,)
    assert image.encoding["preferred_chunks"] == {"y": 64, "x": 64, "c": 3}


@pytest.mark.parametrize("sizes", [(1, 1), (100, 1 << 22), (1 << 22, 1 << 22), (80_000, 100_000)])
@pytest.mark.parametrize("frame", [16, 256, 1024])
@pytest.mark.parametrize("planes", [1, 40])
def test_never_more_than_10000_blocks(sizes: tuple[int, int], frame: int, planes: int) -> None:
    extents = {"z": planes, "y": sizes[0], "x": sizes[1], "c": 3}
    shape = block_shape(extents, {"z": 1, "y": frame, "x": frame, "c": 3}, "y", "x", 1)
    blocks = 1
    for dim, n in extents.items():
        assert 1 <= shape[dim] <= n
        assert shape[dim] == n or shape[dim] % {"z": 1, "c": 3}.get(dim, frame) == 0
        blocks *= -(-n // shape[dim])
    assert blocks <= MAX_BLOCKS == 10_000


def test_huge_slide_has_few_blocks(tmp_path: Path) -> None:
    """160,000 frames; their pixels are a hole in the file."""
    small = make_slide(
        tmp_path, width=64, height=64, frame=16, codec="native", levels=1, paths=("a",), associated=False
    )
    data = small.files[0].read_bytes()
    for tag in (b"\x48\x00\x06\x00UL\x04\x00", b"\x48\x00\x07\x00UL\x04\x00"):
        at = data.index(tag) + 8
        data = data[:at] + (6400).to_bytes(4, "little") + data[at + 4 :]
    at = data.index(b"\x28\x00\x08\x00IS\x02\x00")
    data = data[: at + 6] + b"\x06\x00160000" + data[at + 10 :]
    at = data.rindex(b"\xe0\x7f\x10\x00O") + 8
    start, size = at + 4, 6400 * 6400
    with small.files[0].open("wb") as f:
        f.write(data[:at] + size.to_bytes(4, "little"))
        f.truncate(start + size)
    begin = time.perf_counter()
    image = mt.open_slide(tmp_path)["level0"].image
    assert time.perf_counter() - begin < 5
    assert image.shape == (6400, 6400, 1)
    assert image.data.npartitions <= MAX_BLOCKS
    assert image.attrs["frames"] == 160_000
    assert not image[6000:6020, 6000:6010].values.any()


# What travels -------------------------------------------------------------------------------------------------------


def check_travels(target: Any, **options: Any) -> None:
    array = array_of(mt.open_slide(target, **options)["level0"].image)
    for dumps in (pickle.dumps, cloudpickle.dumps):
        assert len(dumps(array)) <= LIMIT
    there = pickle.loads(pickle.dumps(array))
    forget_open_slides()
    corner = slice(0, 40), slice(0, 50), slice(None)
    np.testing.assert_array_equal(there.block(corner), array.block(corner))


def test_a_folder_travels(tmp_path: Path) -> None:
    deep = tmp_path / ("long-name-of-a-study" * 10) / ("series" * 30) / ("x" * 200)
    make_slide(deep, width=100, height=90, frame=32, codec="native")
    check_travels(deep, missing="fill", fill=(1, 2, 3))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    folder = tmp_path_factory.mktemp("a-study-of-many-parts-with-a-long-name")
    return make_slide(folder, width=640, height=480, frame=32, codec="native", levels=1, parts=300, associated=False)


def test_a_list_of_files_travels(parts: SyntheticSlide) -> None:
    assert len(parts.files) == 300
    check_travels(list(parts.files))


def test_a_list_of_uids_travels(parts: SyntheticSlide, tmp_path: Path) -> None:
    """Names as archives give them: nothing in them repeats but the root of the UIDs."""
    rng = np.random.default_rng(0)
    files = []
    for file in parts.files:
        new = tmp_path / f"1.2.826.0.1.3680043.8.498.{int.from_bytes(rng.bytes(14), 'big')}.dcm"
        new.hardlink_to(file)
        files.append(new)
    check_travels(files)


def test_so_do_thousands_of_names(tmp_path: Path) -> None:
    from microtome.lazy.names import pack

    rng = np.random.default_rng(0)
    folders = [tmp_path / f"{n}-\udcff" for n in range(3)]  # names need not be text
    for folder in folders:
        folder.mkdir()
    files = sorted(f"{rng.choice(folders)}/{rng.bytes(16).hex()}" for _ in range(3000))
    for file in files:
        Path(file).touch()
    for some in (files[:3], files[:300], files[100:500], files):
        sent = pickle.dumps(pack(some))
        assert len(sent) < LIMIT - 800
        there = pickle.loads(sent)
        assert list(there) == some
        assert len(there) == len(some)
        assert there[0] == some[0]
        assert len(pickle.dumps(pack(there))) == len(sent)
    half = pickle.loads(pickle.dumps(pack(files[::2])))  # neither few nor all: more bytes, and right
    assert list(half) == files[::2]
    sent = pickle.dumps(pack(files[:400]))
    Path(files[5]).unlink()
    assert files[5] not in list(pickle.loads(sent))
    remote = [f"s3://bucket/{rng.bytes(16).hex()}" for _ in range(300)]
    assert list(pickle.loads(pickle.dumps(pack(remote)))) == remote


def test_graphs_carry_it_once_a_block(made: SyntheticSlide) -> None:
    image = small_blocks(made.folder)["level0"].image
    tasks = image.data.npartitions
    assert tasks == 16
    assert len(cloudpickle.dumps(image.data)) < LIMIT + 600 * tasks


# Schedulers and processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_local_schedulers(made: SyntheticSlide, scheduler: str) -> None:
    tree = small_blocks(made.folder)
    for n in range(len(made.level_shapes)):
        np.testing.assert_array_equal(tree[f"level{n}"].image.compute(scheduler=scheduler).values, made.pixels(n))


@pytest.mark.timeout(100)
def test_processes(made: SyntheticSlide) -> None:
    image = small_blocks(made.folder)["level0"].image
    with dask.config.set({"multiprocessing.context": "spawn", "num_workers": 2}):
        got = image.compute(scheduler="processes")
    np.testing.assert_array_equal(got.values, made.pixels(0))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.worker.daemon": True, "distributed.scheduler.worker-saturation": 1.1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.timeout(100)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_distributed(made: SyntheticSlide, cluster: Any) -> None:
    image = small_blocks(made.folder)["level0"].image
    np.testing.assert_array_equal(cluster.compute(image.data).result(timeout=60), made.pixels(0))
    mean = image.astype(float).mean(("y", "x"))
    np.testing.assert_allclose(cluster.compute(mean.data).result(timeout=60), made.pixels(0).mean((0, 1)))


@pytest.mark.timeout(100)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_changed_file_is_noticed_by_workers(made: SyntheticSlide, cluster: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.folder, copy)
    image = small_blocks(copy)["level0"].image
    os.utime(copy / made.files[0].name, ns=(5, 5))
    with pytest.raises(SlideChangedError, match="open it again"):
        cluster.compute(image.data).result(timeout=60)


def test_a_changed_file_is_noticed(made: SyntheticSlide, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.folder, copy)
    array = array_of(mt.open_slide(copy)["level0"].image)
    sent = pickle.dumps(array)
    del array
    forget_open_slides()
    os.utime(copy / made.files[0].name, ns=(5, 5))
    with pytest.raises(SlideChangedError):
        pickle.loads(sent).block((slice(0, 1), slice(0, 1), slice(None)))
    shutil.rmtree(copy)
    with pytest.raises(SlideNotFoundError):
        pickle.loads(sent).block((slice(0, 1), slice(0, 1), slice(None)))


def in_child(work: Any, seconds: float = 30) -> None:
    """Call something in a forked process, which must end in time and well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the child hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunks", [None, "auto", {"y": 128, "x": 128}])
def test_fork(made: SyntheticSlide, threads: int, chunks: Any) -> None:
    expected = made.pixels(0)
    with mt.config.set(decode_threads=threads):
        image = mt.open_slide(made.folder, chunks=chunks)["level0"].image
        accessor = image.wsi
        np.testing.assert_array_equal(image.values, expected)  # now there are threads, which the child will not have
        np.testing.assert_array_equal(accessor.read(0, 0, 500, 600), expected)

        def child() -> None:
            np.testing.assert_array_equal(accessor.read(0, 0, 500, 600), expected)
            np.testing.assert_array_equal(image.compute(scheduler="synchronous").values, expected)
            np.testing.assert_array_equal(image.wsi.read(3, 4, 200, 300), expected[3:203, 4:304])
            np.testing.assert_array_equal(mt.open_slide(made.folder, chunks=None)["level0"].image.values, expected)

        in_child(child)
        np.testing.assert_array_equal(image.values, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_while_others_read(made: SyntheticSlide) -> None:
    """Locks that other threads hold at the moment of the fork stay locked in the child."""
    expected = made.pixels(0)
    image = mt.open_slide(made.folder, chunks=None)["level0"].image
    stop = False

    def busy() -> None:
        while not stop:
            mt.open_slide(made.folder, chunks=None)["level0"].image.wsi.read(0, 0, 300, 300)

    with mt.config.set(decode_threads=2), ThreadPoolExecutor(2) as executor:
        running = [executor.submit(busy) for _ in range(2)]
        try:
            for _ in range(8):
                time.sleep(0.05)
                in_child(lambda: np.testing.assert_array_equal(image.wsi.read(0, 0, 500, 600), expected))
        finally:
            stop = True
        for future in running:
            future.result(timeout=30)


@pytest.mark.parametrize("decode_threads", [1, 2, 5])
def test_many_threads_read_one_slide(made: SyntheticSlide, decode_threads: int) -> None:
    expected = made.pixels(0)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, (400, 500), (200, 2)).tolist()
    with mt.config.set(decode_threads=decode_threads):
        lazy, blocks = (
            mt.open_slide(made.folder, chunks=None)["level0"].image,
            small_blocks(made.folder)["level0"].image,
        )

        def check(n: int) -> bool:
            y, x = corners[n]
            if n % 4 == 0:
                got = blocks[y : y + 90, x : x + 95].values
            elif n % 4 == 1:
                got = lazy[y : y + 90, x : x + 95].values
            else:
                got = lazy.wsi.read(y, x, 90, 95)
            return bool(np.array_equal(got, expected[y : y + 90, x : x + 95]))

        with ThreadPoolExecutor(8) as executor:
            assert all(executor.map(check, range(len(corners))))


# Secrets ------------------------------------------------------------------------------------------------------------


class Locked(MemoryFileSystem):
    """A store that wants a key."""

    protocol = "locked"
    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        assert options["secret"] == SECRET

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("locked://").strip("/")


@pytest.fixture
def locked(made: SyntheticSlide) -> Iterator[xr.DataTree]:
    fsspec.register_implementation("locked", Locked, clobber=True)
    fs = Locked(secret=SECRET)
    for file in made.files:
        fs.pipe(f"/slide/{file.name}", file.read_bytes())
    yield small_blocks("locked://slide", storage_options={"secret": SECRET})
    Locked.store.clear()


def test_secrets_do_not_travel(locked: xr.DataTree, made: SyntheticSlide) -> None:
    image = locked["level0"].image
    np.testing.assert_array_equal(image.values, made.pixels(0))  # in this process they work
    array = array_of(image)
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with pytest.raises(OptionError, match="secret") as caught:
            dumps(array)
        assert SECRET not in str(caught.value)
        with pytest.raises((OptionError, TypeError)) as caught:  # Dask wraps what went wrong
            dumps(image.data)
        assert SECRET not in str(caught.value)


def test_secrets_are_not_shown(locked: xr.DataTree) -> None:
    image = locked["level0"].image
    array = array_of(image)
    shown = [repr(locked), str(locked), locked._repr_html_(), repr(image), repr(image.data), image.data._repr_html_()]
    shown += [repr(array), str(array), array.token, repr(array.ref), repr(array.ref.recipe)]
    shown += [str(image.attrs), str(locked.attrs)]
    shown += [repr(key) for key in dict(image.data.dask)] + [repr(image.data.dask), repr(image[0:5].wsi.explain())]
    shown += [repr(dask.base.tokenize(array)), repr(array.opened.slide), repr(array.reader.files[0][0].source)]
    assert not any(SECRET in text for text in shown)


def test_secrets_in_urls_do_not_travel(made: SyntheticSlide) -> None:
    from microtome.lazy.recipe import Recipe

    urls = (f"s3://key:{SECRET}@bucket/a", f"https://host/a?X-Amz-Signature={SECRET}", f"https://host/a?sig={SECRET}")
    for url in urls:
        recipe = Recipe.make(url)
        assert SECRET not in repr(recipe)
        assert SECRET not in recipe.where
        with pytest.raises(OptionError, match="secret"):
            pickle.dumps(recipe)


# xarray's own ways in ----------------------------------------------------------------------------------------------


def test_engine(made: SyntheticSlide) -> None:
    ours = mt.open_slide(made.folder, chunks=None)
    tree = xr.open_datatree(made.folder, engine="microtome")
    assert tree.groups == ours.groups
    assert tree["level1"].image.chunks is None
    np.testing.assert_array_equal(tree["level1"].image.values, made.pixels(1))
    np.testing.assert_array_equal(tree["level1"].image.values, ours["level1"].image.values)
    groups = xr.open_groups(made.folder, engine="microtome")
    assert set(groups) == set(ours.groups) - {"/associated"}
    xr.testing.assert_identical(groups["/level2"].compute(), ours["level2"].to_dataset().compute())
    ds = xr.open_dataset(made.folder, engine="microtome")
    np.testing.assert_array_equal(ds.image.values, made.pixels(0))
    ds = xr.open_dataset(made.folder, engine="microtome", group="associated/label")
    assert ds.image.dims == ("row", "column", "c")
    ds = xr.open_dataset(made.files[0], engine="microtome", group="/level0", drop_variables="c")
    assert "c" not in ds.variables
    with pytest.raises(OptionError, match="level9"):
        xr.open_dataset(made.folder, engine="microtome", group="level9")


@pytest.mark.parametrize("chunks", [{}, {"y": 128, "x": 192}, "auto"])
def test_engine_with_chunks(made: SyntheticSlide, chunks: Any) -> None:
    ds = xr.open_dataset(made.folder, engine="microtome", chunks=chunks, group="level0")
    assert ds.image.chunks is not None
    if chunks == {}:
        assert ds.image.chunksizes["y"] == (64,) * 7 + (52,)
    np.testing.assert_array_equal(ds.image.compute(scheduler="threads").values, made.pixels(0))
    if chunks != "auto":
        tree = xr.open_datatree(made.folder, engine="microtome", chunks=chunks)
        for n in range(3):
            np.testing.assert_array_equal(tree[f"level{n}"].image.values, made.pixels(n))


def test_engine_takes_our_options(made: SyntheticSlide) -> None:
    tree = xr.open_datatree(made.folder, engine="microtome", fill=3, missing="fill", alignment="extent")
    np.testing.assert_array_equal(tree["level0"].image[:5].values, made.pixels(0)[:5])
    with pytest.raises(OptionError, match="alignment"):
        xr.open_datatree(made.folder, engine="microtome", alignment="perhaps")


def test_guess(made: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.lazy.engine import MicrotomeBackendEntrypoint

    guess = MicrotomeBackendEntrypoint().guess_can_open
    assert guess(made.folder)
    assert guess(str(made.files[0]))
    assert guess(f"file://{made.folder}")
    (tmp_path / "a.txt").write_text("no slide")
    (tmp_path / "some.zarr").mkdir()
    (tmp_path / "some.zarr" / "zarr.json").write_text("{}")
    for no in (tmp_path, tmp_path / "a.txt", tmp_path / "some.zarr", tmp_path / "absent", 5, b"bytes", made):
        assert not guess(no)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_, **__: pytest.fail("the network was asked"))
    for url in ("gs://bucket/slide", "https://host/slide.dcm", "s3://bucket/slide"):
        assert not guess(url)
    ds = xr.open_dataset(made.files[0])  # no engine named
    np.testing.assert_array_equal(ds.image.values, made.pixels(0))


def test_millimetres(made: SyntheticSlide) -> None:
    tree = mt.open_slide(made.folder)
    part = tree.sel(y=slice(0.05, 0.15), x=slice(0.1, 0.2))
    for n, (row, column) in enumerate(s for s in made.spacings if s is not None):
        image, whole = part[f"level{n}"].image, tree[f"level{n}"].image
        limits = ("y", 0.05, 0.15), ("x", 0.1, 0.2)
        y, x = (np.flatnonzero((whole[d].values >= a) & (whole[d].values <= b)) for d, a, b in limits)
        np.testing.assert_array_equal(image.values, made.pixels(n)[np.ix_(y, x)])
        assert abs(image.sizes["y"] * row - 0.1) < 1.01 * row
        assert abs(image.sizes["x"] * column - 0.1) < 1.01 * column
        np.testing.assert_array_equal(image.y.values, whole.y.values[y])  # sliced, not worked out anew
    for name in ("label", "overview", "thumbnail"):
        xr.testing.assert_identical(part[f"associated/{name}"].to_dataset(), tree[f"associated/{name}"].to_dataset())
    again = part.sel(y=slice(0.06, 0.07))["level0"].image
    np.testing.assert_array_equal(again.values, tree["level0"].image.sel(y=slice(0.06, 0.07), x=slice(0.1, 0.2)).values)


def test_reductions(made: SyntheticSlide) -> None:
    tree = small_blocks(made.folder)
    np.testing.assert_allclose(tree["level0"].image.mean(("y", "x")).compute(), made.pixels(0).mean((0, 1)))
    assert tree["level0"].image.max().compute() == made.pixels(0).max()
    assert (tree["level1"].image[:, ::-2] > 100).sum().compute() == (made.pixels(1)[:, ::-2] > 100).sum()


# Where slides are ---------------------------------------------------------------------------------------------------


def check_pixels(tree: xr.DataTree, made: SyntheticSlide) -> None:
    for n in range(len(made.level_shapes)):
        np.testing.assert_array_equal(tree[f"level{n}"].image.values, made.pixels(n))
    assert tree["associated/label"].image.values.std() > 0
    region = tree["level0"].image.wsi.read([0, 100], [3, 200], 150, 170)
    np.testing.assert_array_equal(region[1], made.pixels(0)[100:250, 200:370])


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_remote_and_chained_urls(made: SyntheticSlide, tmp_path: Path, chunks: Any) -> None:
    memory = fsspec.filesystem("memory")
    try:
        for file in made.files:
            memory.pipe(f"/test-dask/slide/{file.name}", file.read_bytes())
        check_pixels(mt.open_slide("memory://test-dask/slide", chunks=chunks), made)
        check_pixels(mt.open_slide("memory://test-dask/slide/*.dcm", chunks=chunks), made)
        check_pixels(mt.open_slide([f"memory://test-dask/slide/{f.name}" for f in made.files], chunks=chunks), made)
        one = mt.open_slide(f"memory://test-dask/slide/{made.files[0].name}", chunks=chunks)
        np.testing.assert_array_equal(one["level0"].image.values, made.pixels(0))
    finally:
        memory.rm("/test-dask", recursive=True)
    check_pixels(mt.open_slide(f"file://{made.folder}", chunks=chunks), made)
    with zipfile.ZipFile(tmp_path / "slide.zip", "w") as z:
        for file in made.files:
            z.write(file, f"inside/{file.name}")
    check_pixels(mt.open_slide(f"zip://inside::{tmp_path}/slide.zip", chunks=chunks), made)
    check_pixels(mt.open_slide(f"zip://::{tmp_path}/slide.zip", chunks=chunks), made)


def test_remote_slides_travel(made: SyntheticSlide, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "slide.zip", "w") as z:
        for file in made.files:
            z.write(file, file.name)
    check_travels(f"zip://::{tmp_path}/slide.zip")


def test_lists_and_globs(made: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    check_pixels(mt.open_slide(list(made.files)), made)
    check_pixels(mt.open_slide([str(f) for f in reversed(made.files)] * 2), made)
    check_pixels(mt.open_slide(f"{made.folder}/*.dcm"), made)
    check_pixels(mt.open_slide([made.folder]), made)
    monkeypatch.chdir(made.folder)
    check_pixels(mt.open_slide("."), made)
    check_pixels(mt.open_slide(Path("*.dcm")), made)
    with pytest.raises(SlideNotFoundError, match="pattern"):
        mt.open_slide("*.svs")
    for nothing in ([], "absent", "file:///absent"):
        with pytest.raises(SlideNotFoundError):
            mt.open_slide(nothing)
    with pytest.raises(OptionError):
        mt.open_slide([""])


def test_a_relative_path_travels(made: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.folder.parent)
    array = array_of(mt.open_slide(made.folder.name)["level0"].image)
    sent = pickle.dumps(array)
    del array
    forget_open_slides()
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(
        pickle.loads(sent).block((slice(0, 9), slice(0, 9), slice(None))), made.pixels(0)[:9, :9]
    )


def test_other_files_in_the_folder(made: SyntheticSlide, tmp_path: Path) -> None:
    folder = tmp_path / "slide"
    shutil.copytree(made.folder, folder)
    (folder / ".hidden").write_bytes(made.files[0].read_bytes())
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.dcm").write_bytes(b"junk")
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty").touch()
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    below = folder / "below"
    below.mkdir()
    shutil.move(folder / made.files[1].name, below)
    (folder / "copy.dcm").write_bytes(made.files[0].read_bytes())
    tree = mt.open_slide(folder)
    check_pixels(tree, made)
    ignored = dict(tree.wsi.ignored)
    assert {Path(f).name for f in ignored} >= {"notes.txt", "empty"}
    assert not any(".hidden" in f or ".cache" in f for f in ignored)
    assert all(ignored.values())
    only_junk = tmp_path / "junk"
    only_junk.mkdir()
    (only_junk / "a.txt").write_text("nothing")
    (only_junk / "b.txt").write_text("nothing either")
    with pytest.raises(NotASlideError, match="no whole-slide image"):
        mt.open_slide(only_junk)


def test_two_slides_in_a_folder(made: SyntheticSlide, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(made.folder, folder / "one")
    other = make_slide(folder / "two", width=100, height=100, frame=64, codec="native", seed=9)
    with pytest.raises(mt.errors.AmbiguousSlideError, match="series=") as caught:
        mt.open_slide(folder)
    assert len(caught.value.choices) == 2
    assert pickle.loads(pickle.dumps(caught.value)).choices == caught.value.choices
    shapes = {mt.open_slide(folder, series=c)["level0"].image.shape[:2] for c in caught.value.choices}
    assert shapes == {(500, 600), (100, 100)}
    with pytest.raises(mt.errors.OpenError, match=r"9\.9\.9"):
        mt.open_slide(folder, series="9.9.9")
    assert other.folder.exists()
