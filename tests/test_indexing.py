"""Any indexing of any image equals NumPy's on the image read whole, and reads only the frames that it must."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import xarray as xr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import microtome as mt
from microtome.errors import OptionError, SelectionError
from microtome.storage import LocalSource
from microtome.testing import SyntheticSlide, make_slide
from oracles import covered_by_frames

# More examples, and others each time, for whoever hunts for bugs.
EXAMPLES = os.environ.get("MICROTOME_EXAMPLES")
few = settings(
    deadline=None, max_examples=int(EXAMPLES or 25), derandomize=not EXAMPLES, database=None,
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip

SLIDES: dict[str, dict[str, Any]] = {
    "full": {"width": 300, "height": 211, "frame": (48, 64), "codec": "jpeg-lossless", "levels": 2},
    "sparse": {
        "width": 300, "height": 260, "frame": 32, "codec": "rle", "levels": 1, "tiling": "sparse", "drop": 0.8,
        "shuffle": True,
    },
    "unaligned": {
        "width": 250, "height": 230, "frame": (20, 24), "codec": "native", "levels": 1, "tiling": "sparse-unaligned",
        "drop": 0.9, "shuffle": True, "offsets": "empty",
    },
    "stack": {
        "width": 130, "height": 97, "frame": 32, "codec": "deflated-frame", "levels": 1,
        "paths": ("DAPI", "FITC", "Cy5"), "focal_planes": 4, "dtype": "uint16",
    },
    "colours": {
        "width": 70, "height": 61, "frame": 32, "codec": "native", "levels": 1, "rgb_paths": 2, "focal_planes": 3,
    },
    "pixel": {"width": 1, "height": 1, "frame": 16, "codec": "native", "levels": 1},
}  # fmt: skip
PASTED = ("sparse", "unaligned")


class Sample:
    """A slide, its trees, and its finest level as NumPy has it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.slide: SyntheticSlide = make_slide(folder, associated=False, **SLIDES[name])
        self.lazy = mt.open_slide(folder, chunks=None)["level0"].image
        self.dask = mt.open_slide(folder)["level0"].image
        self.truth = xr.DataArray(self.lazy.values, dims=self.lazy.dims)
        self.folder = folder


_samples: dict[str, Sample] = {}


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    for name in SLIDES:
        _samples[name] = Sample(name, tmp_path_factory.mktemp(name))
    yield
    _samples.clear()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(file, offset, length) of everything that is read from here on."""
    seen: list[tuple[str, int, int]] = []
    original = LocalSource.read

    def read(self: LocalSource, offset: int, length: int) -> bytes:
        seen.append((self.uri, offset, length))
        return original(self, offset, length)

    monkeypatch.setattr(LocalSource, "read", read)
    return seen


def pixel_data_start(file: Path) -> int:
    """Where the first byte of the first frame lies, by pydicom."""
    with pydicom.dcmread(file, stop_before_pixels=True) as ds, file.open("rb") as f:
        data = f.read()
        at = data.rindex(b"\xe0\x7f\x10\x00O") + 12
        if ds.file_meta.TransferSyntaxUID.is_encapsulated:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return at


def expected_pixels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a sparse level 0 and their coverage, pasted frame after frame from the positions that pydicom reads."""
    slide = _samples[name].slide
    covered = covered_by_frames(slide.files[0], slide.level_shapes[0])
    return np.where(covered[..., None], slide.pixels(0), 255), covered


# Selections ---------------------------------------------------------------------------------------------------------


def slices(size: int) -> st.SearchStrategy[slice]:
    bound = st.none() | st.integers(-size - 3, size + 3)
    step = st.none() | st.integers(1, size + 2) | st.integers(-size - 2, -1)
    # xarray takes a slice that begins before the first element and goes backwards for all of them, over any array
    # that is not NumPy's.
    return st.builds(slice, bound, bound, step).filter(lambda k: not ((k.step or 1) < 0 and (k.start or 0) < -size))


def indices(size: int) -> st.SearchStrategy[int]:
    return st.integers(-size, size - 1)


def index_arrays(size: int, least: int = 0) -> st.SearchStrategy[np.ndarray]:
    kinds = st.sampled_from(["int64", "int32", "int16"])
    return st.builds(lambda v, kind: np.array(v, kind), st.lists(indices(size), min_size=least, max_size=12), kinds)


def along(dim: str, size: int, least: int = 0) -> st.SearchStrategy[Any]:
    """One indexer of any kind but points."""
    if not size:
        return st.just(slice(None)) | st.just(slice(0, 0, 3))
    masks = st.lists(st.booleans(), min_size=size, max_size=size).map(np.array).filter(lambda m: m.sum() >= least)
    named = st.builds(lambda a: xr.DataArray(a, dims=f"{dim}_"), index_arrays(size, least))
    return (
        slices(size)
        | indices(size)
        | indices(size).map(np.int32)
        | index_arrays(size, least)
        | index_arrays(size, least).map(lambda a: a.tolist())
        | masks
        | masks.map(lambda m: xr.DataArray(m, dims=dim))
        | named
    )


@st.composite
def outer(draw: st.DrawFn, sizes: dict[str, int]) -> dict[str, Any]:
    dims = draw(st.lists(st.sampled_from(sorted(sizes)), unique=True))
    return {dim: draw(along(dim, sizes[dim])) for dim in dims}


@st.composite
def points(draw: st.DrawFn, sizes: dict[str, int], least: int = 0) -> dict[str, Any]:
    """Points along two or more dimensions, in a line or a table, perhaps broadcast; anything along the others.

    Dask fails over ``least=0`` points of three dimensions and more.
    """
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
            result[dim] = draw(along(dim, sizes[dim], least))
    return result


def check_same(got: xr.DataArray, expected: xr.DataArray, what: object) -> None:
    assert got.dims == expected.dims, what
    assert got.shape == expected.shape, what
    values = got.values
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected.values, err_msg=str(what))


@pytest.mark.parametrize("name", PASTED)
def test_missing_tiles_are_filled(name: str) -> None:
    expected, covered = expected_pixels(name)
    assert 0 < covered.mean() < 1
    np.testing.assert_array_equal(_samples[name].truth.values, expected)


@pytest.mark.parametrize("name", sorted(SLIDES.keys() - set(PASTED)))
def test_whole_level(name: str) -> None:
    sample, options = _samples[name], SLIDES[name]
    planes, paths = options.get("focal_planes", 1), len(options.get("paths", ())) or options.get("rgb_paths", 1)
    whole = sample.truth.values.reshape(
        planes, *([paths] if "path" in sample.truth.dims else []), *sample.truth.shape[-3:]
    )
    for z in range(planes):
        for p in range(paths):
            got = whole[z, p] if "path" in sample.truth.dims else whole[z]
            got = got[..., p : p + 1] if options.get("paths") else got
            np.testing.assert_array_equal(got, sample.slide.pixels(0, plane=z, path=p))


@pytest.mark.parametrize("tree", ["lazy", "dask"])
@pytest.mark.parametrize("name", SLIDES)
@pytest.mark.filterwarnings("ignore:Slicing with an out-of-order index:dask.array.core.PerformanceWarning")
class TestLikeNumPy:
    @few
    @given(data=st.data())
    def test_outer(self, name: str, tree: str, data: st.DataObject) -> None:
        image, expected = getattr(_samples[name], tree), _samples[name].truth
        key = data.draw(outer(dict(expected.sizes)))
        check_same(image.isel(key), expected.isel(key), key)

    @few
    @given(data=st.data())
    def test_points(self, name: str, tree: str, data: st.DataObject) -> None:
        image, expected = getattr(_samples[name], tree), _samples[name].truth
        key = data.draw(points(dict(expected.sizes), least=tree == "dask"))
        check_same(image.isel(key), expected.isel(key), key)

    @few
    @given(data=st.data())
    def test_one_after_the_other(self, name: str, tree: str, data: st.DataObject) -> None:
        image, expected = getattr(_samples[name], tree), _samples[name].truth
        keys = []
        for _ in range(data.draw(st.integers(2, 3))):
            sizes = {str(d): n for d, n in expected.sizes.items()}
            if not sizes:
                break
            some = outer(sizes)
            if sum(map(bool, sizes.values())) > 1 and (tree == "lazy" or all(sizes.values())):
                some = some | points(sizes, least=tree == "dask")
            key = data.draw(some)
            # Dimensions of points must not take a name that is taken.
            key = {
                d: k for d, k in key.items() if not isinstance(k, xr.DataArray) or not set(k.dims) & (set(sizes) - {d})
            }
            keys.append(key)
            image, expected = image.isel(key), expected.isel(key)
        check_same(image, expected, keys)

    def test_square_brackets(self, name: str, tree: str) -> None:
        image, whole = getattr(_samples[name], tree), _samples[name].truth
        key: tuple[Any, ...] = (Ellipsis, slice(None, None, -3), slice(-1, None, -2), 0)
        np.testing.assert_array_equal(image[key].values, whole.values[key])
        np.testing.assert_array_equal(image[..., 0].values, whole.values[..., 0])
        np.testing.assert_array_equal(image[..., -1:, ::-1].values, whole.values[..., -1:, ::-1])
        assert image[..., 0:0, :, :].values.shape[-3] == 0

    def test_out_of_bounds(self, name: str, tree: str) -> None:
        image = getattr(_samples[name], tree)
        rows, columns = image.sizes["y"], image.sizes["x"]
        for key in ({"y": rows}, {"x": -columns - 1}, {"y": [0, rows]}, {"c": 99}):
            with pytest.raises(IndexError):
                image.isel(key).values  # noqa: B018
        points_outside = {"y": xr.DataArray([0, rows], dims="p"), "x": xr.DataArray([0, 0], dims="p")}
        with pytest.raises(IndexError):
            image.isel(points_outside).values  # noqa: B018


@pytest.mark.parametrize("name", SLIDES)
@few
@given(data=st.data())
def test_any_chunks(name: str, data: st.DataObject) -> None:
    sample = _samples[name]
    sizes = {str(d): n for d, n in sample.truth.sizes.items()}
    chunks = {d: data.draw(st.integers(max(1, n // 6), n + 5)) for d, n in sizes.items() if data.draw(st.booleans())}
    image = mt.open_slide(sample.folder, chunks=chunks)["level0"].image
    check_same(image, sample.truth, chunks)
    window = {"y": data.draw(slices(sizes["y"])), "x": data.draw(slices(sizes["x"]))}
    check_same(image.isel(window), sample.truth.isel(window), (chunks, window))


# wsi.read ----------------------------------------------------------------------------------------------------


@st.composite
def windows(draw: st.DrawFn, sizes: dict[str, int]) -> tuple[int, int, int, int]:
    y, x = draw(st.integers(0, sizes["y"])), draw(st.integers(0, sizes["x"]))
    return y, x, draw(st.integers(0, sizes["y"] - y)), draw(st.integers(0, sizes["x"] - x))


@st.composite
def crops(draw: st.DrawFn, sizes: dict[str, int]) -> dict[str, Any]:
    """What may be cut off and selected and still leaves ``y`` and ``x``."""
    key: dict[str, Any] = {}
    for dim, n in sizes.items():
        if draw(st.booleans()):
            some = slices(n)
            if dim not in ("y", "x"):
                some = some | indices(n) | index_arrays(n)
            elif draw(st.integers(0, 3)):
                some = st.builds(slice, st.integers(0, n), st.none() | st.integers(0, n))
            if n:
                key[dim] = draw(some)
    return key


@pytest.mark.parametrize("tree", ["lazy", "dask"])
@pytest.mark.parametrize("name", SLIDES)
@pytest.mark.filterwarnings("ignore:Slicing with an out-of-order index:dask.array.core.PerformanceWarning")
class TestRead:
    @few
    @given(data=st.data())
    def test_equals_slicing(self, name: str, tree: str, data: st.DataObject) -> None:
        image, truth = getattr(_samples[name], tree), _samples[name].truth
        keys = []
        for _ in range(data.draw(st.integers(0, 2))):
            keys.append(data.draw(crops({str(d): n for d, n in truth.sizes.items()})))
            image, truth = image.isel(keys[-1]), truth.isel(keys[-1])
        y, x, h, w = data.draw(windows({str(d): n for d, n in truth.sizes.items()}))
        expected = truth.isel(y=slice(y, y + h), x=slice(x, x + w)).values
        got = image.wsi.read(np.int64(y), x, h, w)
        np.testing.assert_array_equal(got, expected, err_msg=str((keys, y, x, h, w)))
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        out = np.full(expected.shape, 77, expected.dtype)
        assert image.wsi.read(y, x, h, w, out=out) is out
        np.testing.assert_array_equal(out, expected)

    @few
    @given(data=st.data())
    def test_batch(self, name: str, tree: str, data: st.DataObject) -> None:
        image, truth = getattr(_samples[name], tree), _samples[name].truth
        key = data.draw(crops({str(d): n for d, n in truth.sizes.items()}))
        image, truth = image.isel(key), truth.isel(key)
        h, w = (data.draw(st.integers(0, min(90, truth.sizes[d]))) for d in ("y", "x"))
        count = data.draw(st.integers(0, 5))
        y0 = np.array(
            data.draw(st.lists(st.integers(0, truth.sizes["y"] - h), min_size=count, max_size=count)), np.int32
        )
        x0 = np.array(
            data.draw(st.lists(st.integers(0, truth.sizes["x"] - w), min_size=count, max_size=count)), np.int64
        )
        parts = [truth.isel(y=slice(y, y + h), x=slice(x, x + w)).values for y, x in zip(y0, x0, strict=True)]
        expected = (
            np.stack(parts) if parts else np.empty((0, *truth.isel(y=slice(0, h), x=slice(0, w)).shape), truth.dtype)
        )
        got = image.wsi.read(y0, x0, h, w)
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got, expected, err_msg=str((key, y0, x0, h, w)))
        out = np.full(expected.shape, 77, expected.dtype)
        assert image.wsi.read(y0.tolist(), x0.tolist(), h, w, out=out) is out
        np.testing.assert_array_equal(out, expected)

    def test_outside(self, name: str, tree: str) -> None:
        image = getattr(_samples[name], tree)
        rows, columns = image.sizes["y"], image.sizes["x"]
        for window in (
            (-1, 0, 1, 1),
            (0, -1, 1, 1),
            (rows, 0, 1, 1),
            (0, columns, 1, 1),
            (0, 0, rows + 1, 1),
            (0, 0, 1, -1),
        ):
            with pytest.raises(SelectionError):
                image.wsi.read(*window)
        with pytest.raises(SelectionError):
            image.wsi.read([0, rows], [0, 0], 1, 1)
        with pytest.raises(SelectionError):
            image.wsi.read([0.5], [0], 1, 1)

    def test_wrong_out(self, name: str, tree: str) -> None:
        image = getattr(_samples[name], tree)
        good = image.wsi.read(0, 0, 1, 1)
        strided = np.empty((*good.shape[:-1], 2 * good.shape[-1]), good.dtype)[..., ::2]
        for out in (
            np.empty((*good.shape, 1), good.dtype),
            good.astype("f4"),
            strided if strided.size > 1 else good[..., :0],
        ):
            with pytest.raises(OptionError, match="C-contiguous"):
                image.wsi.read(0, 0, 1, 1, out=out)


def test_columns_and_rows_need_not_come_in_pairs() -> None:
    sample = _samples["full"]
    got = sample.lazy.wsi.read([0, 10, 20], 7, 30, 40)
    expected = np.stack([sample.truth.values[y : y + 30, 7:47] for y in (0, 10, 20)])
    np.testing.assert_array_equal(got, expected)


# What is read -------------------------------------------------------------------------------------------------------


def frames_under(sample: Sample, ys: Any, xs: Any) -> set[tuple[int, int]]:
    h, w = sample.lazy.attrs["frame_shape"]
    rows, columns = (np.atleast_1d(np.arange(sample.truth.sizes[d])[k]) for d, k in (("y", ys), ("x", xs)))
    return {(y // h, x // w) for y in rows for x in columns}


@pytest.fixture
def fresh() -> Sample:
    """A slide whose offset tables have not been read yet."""
    sample = object.__new__(Sample)
    sample.__dict__.update(_samples["full"].__dict__)
    sample.lazy = mt.open_slide(sample.folder, chunks=None)["level0"].image
    sample.dask = mt.open_slide(sample.folder)["level0"].image
    return sample


SELECTIONS = {
    "crop": (slice(40, 120), slice(100, 200)),
    "row": (3, slice(None)),
    "steps": (slice(None, None, 150), slice(5, None, 130)),
    "backwards": (slice(200, 10, -97), slice(None, None, -200)),
    "empty": (slice(0, 0), slice(None)),
    "whole": (slice(None), slice(None)),
    "lists": ([0, 200, 1, 0], [299, 3]),
}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("tree", ["lazy", "dask"])
def test_explained_is_what_is_read(fresh: Sample, tree: str, selection: str, reads: list[tuple[str, int, int]]) -> None:
    ys, xs = SELECTIONS[selection]
    part = getattr(fresh, tree).isel(y=ys, x=xs)
    file = str(fresh.slide.files[0])
    first = pixel_data_start(fresh.slide.files[0])
    explanation = part.wsi.explain()
    # Item tags are looked at, to see whether the offset table tells the truth: 8 bytes, never pixels.
    assert all(offset < first or length <= 8 for _, offset, length in reads)
    reads.clear()
    part.values  # noqa: B018
    done = [r for r in reads if r[0] == file]
    assert sorted(explanation.reads) == sorted(done)
    assert explanation.bytes == sum(length for _, _, length in done)
    if tree == "lazy" or selection not in ("backwards", "lists"):  # Dask reads whole blocks for those
        assert explanation.frames == len(frames_under(fresh, ys, xs))
    assert explanation.pixels == part.nbytes
    assert explanation.lost == 0
    assert f"{explanation.frames} frames" in str(explanation)


@pytest.mark.parametrize("name", ["sparse", "unaligned", "stack", "colours"])
@few
@given(data=st.data())
def test_explained_is_what_is_read_of_any_crop(name: str, data: st.DataObject) -> None:
    sample = _samples[name]
    part = sample.lazy.isel(data.draw(crops({str(d): n for d, n in sample.truth.sizes.items()})))
    explanation = part.wsi.explain()
    with pytest.MonkeyPatch.context() as patch:
        seen: list[tuple[str, int, int]] = []
        original = LocalSource.read
        patch.setattr(LocalSource, "read", lambda s, o, n: (seen.append((s.uri, o, n)), original(s, o, n))[1])
        part.values  # noqa: B018
    if 0 not in part.shape:
        assert sorted(explanation.reads) == sorted(seen)


def test_explain_what_is_computed() -> None:
    image = _samples["full"].dask
    for derived in (image + 1, image.astype(float).mean("y"), image.compute()[0:3]):
        with pytest.raises(OptionError, match="explain"):
            derived.wsi.explain()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 x 256 frames."""
    folder = tmp_path_factory.mktemp("wide")
    make_slide(
        folder, width=8192, height=8192, frame=32, codec="native", levels=1, associated=False,
        pixels=lambda level, path, plane, y, x, h, w: (np.arange(y, y + h)[:, None] * 7 + np.arange(x, x + w) * 3)
        .astype(np.uint8)[..., None],
        paths=("DAPI",),
    )  # fmt: skip
    return folder


def test_scattered_points_read_only_their_frames(wide: Path, reads: list[tuple[str, int, int]]) -> None:
    image = mt.open_slide(wide, chunks=None)["level0"].image
    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 8192, (2, 10_000))
    reads.clear()
    got = image.isel(y=xr.DataArray(y, dims="p"), x=xr.DataArray(x, dims="p")).values
    np.testing.assert_array_equal(got[:, 0], (y * 7 + x * 3).astype(np.uint8))
    frames = np.unique(y // 32 * 256 + x // 32)
    assert sum(length for _, _, length in reads) == len(frames) * 32 * 32


def test_large_steps_skip_frames(wide: Path, reads: list[tuple[str, int, int]]) -> None:
    image = mt.open_slide(wide, chunks=None)["level0"].image
    reads.clear()
    got = image[::2000, ::-3000].values
    y, x = np.arange(8192)[::2000], np.arange(8192)[::-3000]
    np.testing.assert_array_equal(got[..., 0], (y[:, None] * 7 + x * 3).astype(np.uint8))
    assert sum(length for _, _, length in reads) == len(y) * len(x) * 32 * 32


def test_batch_reads_shared_frames_once(wide: Path, reads: list[tuple[str, int, int]]) -> None:
    image = mt.open_slide(wide, chunks=None)["level0"].image
    reads.clear()
    y0, x0 = np.meshgrid(np.arange(0, 32, 4), np.arange(0, 32, 4), indexing="ij")
    got = image.wsi.read(y0.ravel(), x0.ravel(), 32, 32)
    expected = ((y0[..., None, None] + np.arange(32)[:, None]) * 7 + (x0[..., None, None] + np.arange(32)) * 3).astype(
        np.uint8
    )
    np.testing.assert_array_equal(got.reshape(8, 8, 32, 32), expected)
    assert sum(length for _, _, length in reads) == 4 * 32 * 32


# Coverage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", ["lazy", "dask"])
@pytest.mark.parametrize("name", SLIDES)
@few
@given(data=st.data())
def test_coverage(name: str, tree: str, data: st.DataObject) -> None:
    image, truth = getattr(_samples[name], tree), _samples[name].truth
    rows, columns = truth.sizes["y"], truth.sizes["x"]
    covered = expected_pixels(name)[1] if name in PASTED else np.ones((rows, columns), bool)
    dims = [d for d in truth.dims if d != "c" or name == "stack"]
    expected = xr.DataArray(covered, dims=("y", "x")).expand_dims({d: truth.sizes[d] for d in dims if d not in "yx"})
    key = {d: data.draw(slices(truth.sizes[d])) for d in ("y", "x")}
    if tree == "dask":  # a Dask array that was strided is no longer seen to be part of a slide
        key = {d: slice(*sorted((abs(k.start or 0), abs(k.stop or 0)))) for d, k in key.items()}
        if 0 in image.isel(key).shape:
            return
    part = image.isel(key)
    got = part.wsi.coverage()
    assert got.dtype == bool
    assert set(got.dims) == set(dims)
    assert (got.chunks is None) == (tree == "lazy")
    np.testing.assert_array_equal(got.transpose(*dims).values, expected.isel(key).transpose(*dims).values)
    assert set(got.coords) == {c for c in part.coords if c != "c" or "c" in dims}


@pytest.mark.parametrize("tree", ["lazy", "dask"])
def test_coverage_reads_nothing(tree: str, reads: list[tuple[str, int, int]]) -> None:
    image = getattr(_samples["sparse"], tree)
    covered = image[10:200, 30:].wsi.coverage()
    np.testing.assert_array_equal(covered.values, expected_pixels("sparse")[1][10:200, 30:])
    assert covered[3, 5].values == expected_pixels("sparse")[1][13, 35]
    points = covered.isel(y=xr.DataArray([0, 5, 189], dims="p"), x=xr.DataArray([0, 200, 7], dims="p"))
    np.testing.assert_array_equal(points.values, expected_pixels("sparse")[1][[10, 15, 199], [30, 230, 37]])
    assert not reads


def test_coverage_of_what_is_computed() -> None:
    with pytest.raises(OptionError, match="coverage"):
        (_samples["full"].dask + 1).wsi.coverage()
