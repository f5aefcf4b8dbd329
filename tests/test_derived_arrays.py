"""Arrays that are computed from others, lazily: NumPy's indexing, reads, what is read, what travels to processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import microtome as mt
from microtome.errors import OptionError, SelectionError
from microtome.lazy import derived
from microtome.lazy.base import LazyArray
from microtome.lazy.recipe import forget_open_slides
from microtome.lazy.unwrap import unwrap
from microtome.ops import resampled
from microtome.ops.mapped import map_pixels
from microtome.storage import LocalSource
from microtome.testing import SyntheticSlide, make_slide

EXAMPLES = os.environ.get("MICROTOME_EXAMPLES")
few = settings(
    deadline=None, max_examples=int(EXAMPLES or 8), derandomize=not EXAMPLES, database=None,
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
LIMIT = 4096
SPACING = 0.0005


@dataclass(frozen=True)
class Negative:
    """255 - x of each of some channels: the plainest function of pixels."""

    channels: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the result."""
        return np.dtype(np.uint8)

    def bind(self, source: LazyArray | None, key: tuple[Any, ...]) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
        """Return the function."""
        return lambda pixels: (255 - pixels[..., : self.channels]).astype(self.dtype)


def negative(image: xr.DataArray, channels: int = 3) -> xr.DataArray:
    return map_pixels(image, Negative(channels), ["r", "g", "b"][:channels], "RGB")


def everything(image: xr.DataArray) -> xr.DataArray:
    return negative(image.wsi.region(-30, -20, 150, 190).wsi.resize(3 * SPACING)).wsi.region(-2, 9, 50, 60)


SLIDES: dict[str, dict[str, Any]] = {
    "full": {"width": 300, "height": 211, "frame": (48, 64), "codec": "jpeg-lossless", "levels": 2},
    "stack": {
        "width": 130, "height": 97, "frame": 32, "codec": "deflated-frame", "levels": 1,
        "paths": ("DAPI", "FITC", "Cy5"), "focal_planes": 4, "dtype": "uint16",
    },
    "colours": {
        "width": 70, "height": 61, "frame": 32, "codec": "native", "levels": 1, "rgb_paths": 2, "focal_planes": 3,
    },
}  # fmt: skip
KINDS: dict[str, tuple[str, Callable[[xr.DataArray], xr.DataArray]]] = {
    "coarser": ("full", lambda image: image.wsi.resize(2.5 * SPACING)),
    "finer": ("full", lambda image: image[20:90, 30:99].wsi.resize(0.7 * SPACING)),
    "crop": ("full", lambda image: image[11:200, 7:290].wsi.resize(1.3 * SPACING)[3:90, 5:99]),
    "region": ("full", lambda image: image.wsi.region(-30, 250, 100, 90, fill=(1, 2, 3))),
    "mapped": ("full", lambda image: negative(image, 2)),
    "everything": ("full", lambda image: everything(image)),
    "stack": ("stack", lambda image: image.wsi.resize(2.5 * SPACING)),
    "some planes": ("stack", lambda image: image.isel(z=[3, 1], c=slice(2, None, -2)).wsi.resize(2 * SPACING)),
    "colours": ("colours", lambda image: image.wsi.resize(1.5 * SPACING)),
    "coverage": ("full", lambda image: image.wsi.region(-9, 20, 40, 300).wsi.resize(2 * SPACING).wsi.coverage()),
}  # fmt: skip


INDEXED = [k for k in KINDS if k not in ("coarser", "finer", "mapped")]  # which are parts of the others


class Sample:
    """A derived image, lazy and as Dask array, and all its pixels."""

    def __init__(self, name: str, folders: dict[str, Path]) -> None:
        slide, make = KINDS[name]
        self.make = make  # from a level
        self.folder = folders[slide]
        self.lazy = self.open(None)
        self.dask = self.open({"y": 64, "x": 50})
        self.truth = xr.DataArray(self.lazy.values, dims=self.lazy.dims)

    def open(self, chunks: Any) -> xr.DataArray:
        return self.make(mt.open_slide(self.folder, chunks=chunks)["level0"].image)


_samples: dict[str, Sample] = {}
_slides: dict[str, SyntheticSlide] = {}


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folders = {}
    for name, options in SLIDES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        _slides[name] = make_slide(folders[name], associated=False, **options)
    for name in KINDS:
        _samples[name] = Sample(name, folders)
    yield
    _samples.clear()
    _slides.clear()


@pytest.fixture(params=[(256, 1024), (3, 16)], ids=["", "pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that are picked are read together, and in small pieces."""
    monkeypatch.setattr(derived, "APART", request.param[0])
    monkeypatch.setattr(derived, "PIECE", request.param[1])


def array_of(image: xr.DataArray) -> LazyArray:
    view = unwrap(image.variable)
    assert view is not None
    return view.array


# Indexing ----------------------------------------------------------------------------------------------------------


def slices(size: int) -> st.SearchStrategy[slice]:
    bound = st.none() | st.integers(-size, size + 3)
    return st.builds(slice, bound, bound, st.none() | st.integers(1, size + 2) | st.integers(-size - 2, -1))


def indices(size: int) -> st.SearchStrategy[int]:
    return st.integers(-size, size - 1)


def along(dim: str, size: int) -> st.SearchStrategy[Any]:
    """One indexer of any kind but points."""
    if not size:
        return st.just(slice(None))
    arrays = st.lists(indices(size), max_size=9).map(lambda v: np.array(v, np.int32))
    masks = st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)
    return (
        slices(size) | indices(size) | indices(size).map(np.int64) | arrays | masks
        | arrays.map(lambda a: xr.DataArray(a, dims=f"{dim}_"))
    )  # fmt: skip


@st.composite
def outer(draw: st.DrawFn, sizes: dict[str, int]) -> dict[str, Any]:
    return {d: draw(along(d, n)) for d, n in sizes.items() if draw(st.booleans())}


@st.composite
def points(draw: st.DrawFn, sizes: dict[str, int], least: int) -> dict[str, Any]:
    """Points along two or more dimensions, in a line or a table, perhaps broadcast; slices along others."""
    dims = draw(st.lists(st.sampled_from([d for d in sizes if sizes[d]]), min_size=2, unique=True))
    shape = draw(st.sampled_from([(5,), (1,), (2, 3), (0,)][: 3 if least else 4]))
    names = ("p", "q")[: len(shape)]
    result: dict[str, Any] = {}
    for dim in dims:
        used, own = (names[-1:], shape[-1:]) if len(shape) > 1 and draw(st.booleans()) else (names, shape)
        count = int(np.prod(own))
        values = draw(st.lists(indices(sizes[dim]), min_size=count, max_size=count))
        result[dim] = xr.DataArray(np.array(values, np.int64).reshape(own), dims=used)
    for dim in sizes.keys() - dims:
        if draw(st.booleans()):
            result[dim] = draw(slices(sizes[dim]) | indices(sizes[dim]))
    return result


def check_same(got: xr.DataArray, expected: xr.DataArray, what: object) -> None:
    assert got.dims == expected.dims, what
    assert got.shape == expected.shape, what
    assert got.values.dtype == expected.dtype
    np.testing.assert_array_equal(got.values, expected.values, err_msg=str(what))


@pytest.mark.parametrize("tree", ["lazy", "dask"])
@pytest.mark.parametrize("name", INDEXED)
@pytest.mark.filterwarnings("ignore:Slicing with an out-of-order index:dask.array.core.PerformanceWarning")
class TestLikeNumPy:
    @pytest.mark.usefixtures("pieces")
    @few
    @given(data=st.data())
    def test_outer(self, name: str, tree: str, data: st.DataObject) -> None:
        image, expected = getattr(_samples[name], tree), _samples[name].truth
        key = data.draw(outer({str(d): n for d, n in expected.sizes.items()}))
        check_same(image.isel(key), expected.isel(key), key)

    @few
    @given(data=st.data())
    def test_points(self, name: str, tree: str, data: st.DataObject) -> None:
        image, expected = getattr(_samples[name], tree), _samples[name].truth
        key = data.draw(points({str(d): n for d, n in expected.sizes.items()}, tree == "dask"))
        check_same(image.isel(key), expected.isel(key), key)

    @few
    @given(data=st.data())
    def test_one_after_the_other(self, name: str, tree: str, data: st.DataObject) -> None:
        image, expected = getattr(_samples[name], tree), _samples[name].truth
        keys = []
        for _ in range(2):
            keys.append(data.draw(outer({str(d): n for d, n in expected.sizes.items()})))
            keys[-1] = {d: k for d, k in keys[-1].items() if not isinstance(k, xr.DataArray)}
            image, expected = image.isel(keys[-1]), expected.isel(keys[-1])
        check_same(image, expected, keys)


@pytest.mark.parametrize("tree", ["lazy", "dask"])
@pytest.mark.parametrize("name", KINDS)
def test_out_of_bounds(name: str, tree: str) -> None:
    image = getattr(_samples[name], tree)
    rows, columns = image.sizes["y"], image.sizes["x"]
    for key in ({"y": rows}, {"x": -columns - 1}, {"y": [0, rows]}):
        with pytest.raises(IndexError):
            image.isel(key).values  # noqa: B018
    outside = {"y": xr.DataArray([0, rows], dims="p"), "x": xr.DataArray([0, 0], dims="p")}
    with pytest.raises(IndexError):
        image.isel(outside).values  # noqa: B018


# Reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", ["lazy", "dask"])
@pytest.mark.parametrize("name", INDEXED)
@few
@given(data=st.data())
def test_read(name: str, tree: str, data: st.DataObject) -> None:
    image, truth = getattr(_samples[name], tree), _samples[name].truth
    for _ in range(data.draw(st.integers(0, 2))):
        sizes = truth.sizes
        crop = {
            d: slice(data.draw(st.integers(0, n)), data.draw(st.integers(0, n))) for d, n in sizes.items() if d in "yx"
        }
        others = {
            d: data.draw(indices(n) | slices(n))
            for d, n in sizes.items()
            if d not in "yx" and n and data.draw(st.booleans())
        }
        image, truth = image.isel(crop | others), truth.isel(crop | others)
    rows, columns = truth.sizes["y"], truth.sizes["x"]
    h, w = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    places = st.tuples(st.integers(0, rows - h), st.integers(0, columns - w))
    y, x = data.draw(places)
    expected = truth.isel(y=slice(y, y + h), x=slice(x, x + w)).values
    got = image.wsi.read(y, x, h, w)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    out = np.full(expected.shape, 77).astype(expected.dtype)
    assert image.wsi.read(y, x, h, w, out=out) is out
    np.testing.assert_array_equal(out, expected)
    corners = data.draw(st.lists(places, max_size=5))
    ys, xs = [y for y, _ in corners], [x for _, x in corners]
    many = np.full((len(corners), *expected.shape), 77).astype(expected.dtype)
    assert image.wsi.read(np.array(ys, int), np.array(xs, int), h, w, out=many) is many
    for n, (y, x) in enumerate(corners):
        np.testing.assert_array_equal(many[n], truth.isel(y=slice(y, y + h), x=slice(x, x + w)).values)


def test_reads_without_meaning() -> None:
    image = _samples["coarser"].lazy
    with pytest.raises(SelectionError, match="not inside an image of 84 x 120"):
        image.wsi.read(80, 0, 10, 10)
    with pytest.raises(OptionError):
        image.wsi.read(0, 0, 10, 10, out=np.empty((10, 10, 3), np.float32))


@pytest.mark.parametrize("codec", ["native", "jpeg-lossless", "deflated-frame", "rle"])
def test_pixels_are_the_same_the_second_time(tmp_path: Path, codec: str) -> None:
    """Frames that were shown in part are kept decoded, the others are read again: which leaves gaps between them."""
    slide = make_slide(tmp_path, width=500, height=400, frame=64, codec=codec, levels=1, associated=False)
    for chunks in (None, {"y": 128, "x": 128}):
        image = mt.open_slide(tmp_path, chunks=chunks)["level0"].image.wsi.resize(2 * SPACING)
        a = slide.pixels(0).astype(int)
        mean = (a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2] + 2) // 4
        for _ in range(3):
            np.testing.assert_array_equal(image.values, mean)
            np.testing.assert_array_equal(image.wsi.read(30, 10, 150, 200), mean[30:180, 10:210])


# What would be read ------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(offset, length) of everything that is read from here on."""
    seen: list[tuple[int, int]] = []
    original = LocalSource.read

    def read(self: LocalSource, offset: int, length: int) -> bytes:
        seen.append((offset, length))
        return original(self, offset, length)

    monkeypatch.setattr(LocalSource, "read", read)
    return seen


def frames_under(rows: tuple[float, float], columns: tuple[float, float], frame: tuple[int, int]) -> int:
    """How many frames lie under source pixels, by the place of the first and the last of them."""
    count = 1
    for (low, high), extent in zip((rows, columns), frame, strict=True):
        count *= int(np.ceil(high)) - 1 - int(low) >= 0 and (int(np.ceil(high)) - 1) // extent - int(low) // extent + 1
    return count


@pytest.mark.parametrize(
    "key", [np.s_[:], np.s_[3:20, 40:41], np.s_[0:1, 0:1], np.s_[83:, 119:], np.s_[5:5], np.s_[10, 12:50]]
)
@pytest.mark.parametrize("chunks", [None, "auto"])
def test_explain_counts_frames(reads: list[tuple[int, int]], chunks: Any, key: Any) -> None:
    """Of one plan; blocks of Dask count those on their borders again."""
    image = _samples["coarser"].open(chunks)
    image.wsi.explain()  # offset tables
    assert image.shape == (84, 120, 3)
    shown = image[key]
    reads.clear()
    explained = shown.wsi.explain()
    assert not reads
    rows, columns = (
        (np.arange(n)[k] if isinstance(k, slice) else np.array([k]))
        for n, k in zip((84, 120), (key if isinstance(key, tuple) else (key, slice(None))), strict=True)
    )
    expected = 0
    if rows.size and columns.size:
        expected = frames_under(
            (2.5 * rows[0], 2.5 * (rows[-1] + 1)), (2.5 * columns[0], 2.5 * (columns[-1] + 1)), (48, 64)
        )
    assert explained.frames == expected
    assert explained.pixels == shown.nbytes
    with mt.config.set(decoded_cache_bytes=0, overlap_cache_bytes=0):
        shown.values  # noqa: B018
    if isinstance(key, tuple) and expected:
        assert sum(n for _, n in reads) == explained.bytes


def test_explain_counts_what_steps_need() -> None:
    image = mt.open_slide(_samples["coarser"].folder, chunks=None)["level0"].image.wsi.resize(0.5 * SPACING)
    assert image.shape == (422, 600, 3)
    some = image[[0, 421], :][:, [0, 1]]  # further apart than what is read together
    assert some.wsi.explain().frames == 2
    np.testing.assert_array_equal(some.values, image.values[[0, 421], :2])
    assert image[[5, 3, 5], 7].wsi.explain().frames == 1


@pytest.mark.parametrize("tree", ["lazy", "dask"])
@pytest.mark.parametrize("name", [k for k in KINDS if k != "coverage"])
def test_nothing_is_read_before_it_is_asked_for(name: str, tree: str, reads: list[tuple[int, int]]) -> None:
    sample = _samples[name]
    chunks = None if tree == "lazy" else {"y": 64, "x": 50}
    level = mt.open_slide(sample.folder, chunks=chunks)["level0"].image
    level.wsi.explain()  # offset tables
    reads.clear()
    image = sample.make(level)
    image.wsi.explain()
    image.isel(y=slice(3, 9), x=slice(2, 20)).wsi.explain()
    image.wsi.coverage()
    image.wsi.prefetch()  # of files nothing is kept
    repr(image)
    cloudpickle.dumps(image.data if tree == "dask" else array_of(image))
    dask.base.tokenize(image.data) if tree == "dask" else None
    assert not reads


@pytest.mark.parametrize("name", [k for k in KINDS if k != "coverage"])
@pytest.mark.parametrize("tree", ["lazy", "dask"])
def test_coverage_has_the_grid_of_its_image(name: str, tree: str) -> None:
    image = getattr(_samples[name], tree)
    covered = image.wsi.coverage()
    assert covered.dtype == bool
    assert (covered.chunks is None) == (image.chunks is None)
    for d in covered.dims:
        assert covered.sizes[d] == image.sizes[d]
    if name not in ("region", "everything"):
        assert covered.values.all()
        return
    inside = [(image[d] > 0) & (image[d] < n * SPACING) for d, n in (("y", 211), ("x", 300))]
    expected = (inside[0] & inside[1]).values
    if name == "everything":  # pixels that lay entirely on the rectangle that was resampled
        ends = [image[d] + 1.5 * SPACING for d in ("y", "x")]
        expected &= ((ends[0] < 120.01 * SPACING) & (ends[1] < 170.01 * SPACING)).values
    np.testing.assert_array_equal(covered.values, expected)
    np.testing.assert_array_equal(covered[5:9, ::-1].values, expected[5:9, ::-1])


# What travels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_recipes_travel(name: str) -> None:
    sample = _samples[name]
    array = array_of(sample.lazy)
    for module in (pickle, cloudpickle):
        sent = module.dumps(array)
        # The class of `Negative` is this module's: cloudpickle sends names of modules that can be imported.
        assert len(sent) <= LIMIT
        there = pickle.loads(sent)
        assert there.token == array.token
        assert (there.dims, there.shape, there.dtype) == (array.dims, array.shape, array.dtype)
        assert dask.base.tokenize(there) == dask.base.tokenize(array)
        forget_open_slides()
        key = tuple(slice(0, 5) for _ in array.dims)
        np.testing.assert_array_equal(there.block(key), array.block(key))


@pytest.mark.parametrize("name", KINDS)
def test_graphs_carry_it_once_a_block(name: str) -> None:
    image = _samples[name].dask
    assert len(cloudpickle.dumps(image.data)) < LIMIT + 900 * image.data.npartitions


def test_names() -> None:
    """Equal images have equal names, whenever they are opened; others have others."""
    names = {name: sample.dask.data.name for name, sample in _samples.items()}
    assert len(set(names.values())) == len(names)
    for name, sample in _samples.items():
        assert sample.open({"y": 64, "x": 50}).data.name == names[name]
    level = mt.open_slide(_samples["coarser"].folder)["level0"].image
    one = [
        level.wsi.region(-5, 0, 9, 9), level.wsi.region(-5, 0, 9, 9, fill=0), level.wsi.region(-4, 0, 9, 9),
        level[1:].wsi.region(-5, 0, 9, 9), negative(level), negative(level, 2), negative(level[1:]),
        level[..., 0].wsi.resize(0.001), level[..., 1].wsi.resize(0.001), level[..., [1, 0]].wsi.resize(0.001),
    ]  # fmt: skip
    assert len({i.data.name for i in one}) == len(one)
    assert level[..., 1].wsi.resize(0.001).data.name == level.isel(c=np.int64(1)).wsi.resize(0.001).data.name


SCRIPT = """
import sys
import microtome as mt
image = mt.open_slide(sys.argv[1])["level0"].image
for part in (image.wsi.resize(0.00125), image.wsi.region(-5, -6, 40, 50), image.isel(c=1).wsi.resize(0.00035)):
    print(part.data.name, int(part.values.astype(int).sum()))
"""


def test_names_and_pixels_are_the_same_in_another_process() -> None:
    folder = _samples["coarser"].folder
    image = mt.open_slide(folder)["level0"].image
    parts = (image.wsi.resize(0.00125), image.wsi.region(-5, -6, 40, 50), image.isel(c=1).wsi.resize(0.00035))
    expected = [f"{part.data.name} {int(part.values.astype(int).sum())}" for part in parts]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=True,
    )
    assert done.stdout.split("\n")[:3] == expected


@pytest.mark.timeout(100)
def test_processes() -> None:
    with dask.config.set({"multiprocessing.context": "spawn", "num_workers": 1}):
        image = _samples["crop"].dask
        np.testing.assert_array_equal(image.compute(scheduler="processes").values, _samples["crop"].truth.values)


@pytest.mark.parametrize("name", KINDS)
def test_threads(name: str) -> None:
    with mt.config.set(decode_threads=3):
        got = _samples[name].dask.compute(scheduler="threads")
    np.testing.assert_array_equal(got.values, _samples[name].truth.values)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("name", ["everything", "stack"])
def test_fork(name: str) -> None:
    """Windows that were made before the fork read in the child."""
    sample = _samples[name]
    accessors = [sample.lazy.wsi, sample.dask.wsi]
    for accessor in accessors:
        accessor.read(0, 0, 10, 10)

    def child() -> None:
        for accessor in accessors:
            got = accessor.read(2, 3, 20, 20)
            np.testing.assert_array_equal(got, sample.truth.isel(y=slice(2, 22), x=slice(3, 23)).values)
        np.testing.assert_array_equal(sample.dask.compute(scheduler="synchronous").values, sample.truth.values)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    code = process.exitcode
    process.kill()
    assert code == 0


# Memory ------------------------------------------------------------------------------------------------------------


def test_picked_pixels_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "PIECE", 64)
    largest: list[int] = []
    original = resampled.ResampledWindow.read

    def read(self: Any, y: int, x: int, height: int, width: int, out: Any) -> Any:
        largest.append(height * width)
        return original(self, y, x, height, width, out)

    monkeypatch.setattr(resampled.ResampledWindow, "read", read)
    image = mt.open_slide(_samples["coarser"].folder, chunks=None)["level0"].image.wsi.resize(0.5 * SPACING)
    whole = image.values
    for key in (np.s_[::50, ::50], np.s_[::-3, ::7], np.s_[:, ::9], np.s_[[400, 3, 200], :]):
        largest.clear()
        np.testing.assert_array_equal(image[key].values, whole[key])
        assert max(largest) <= 64 * 64
