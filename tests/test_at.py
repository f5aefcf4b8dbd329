"""Images on other grids: `wsi.at`, `wsi.resize`, `wsi.like`, `wsi.thumbnail`, against formulas and Pillow."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import microtome as mt
from microtome.errors import LevelNotFoundError, OptionError, SpacingUndefinedError
from microtome.model import PixelSpacing
from microtome.ops import resampled
from microtome.storage import LocalSource
from microtome.testing import SyntheticSlide, make_slide
from oracles import as_image, assemble, covered_by_frames

EXAMPLES = os.environ.get("MICROTOME_EXAMPLES")
few = settings(
    deadline=None, max_examples=int(EXAMPLES or 12), derandomize=not EXAMPLES, database=None,
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip

SPACING = 0.0005
FACTORS = (2.5, 3.0, 1.3, 0.7)


# Truth: dense matrices, straight from the definition ---------------------------------------------------------------


def area_weights(size: int, count: int, scale: float, offset: float = 0.0) -> np.ndarray:
    """(count, size): how much of each source pixel lies in each output's interval, of what lies in the source."""
    edges = np.clip(offset + np.arange(count + 1) * scale, 0, size)
    k = np.arange(size)
    overlap = np.minimum(edges[1:, None], k + 1) - np.maximum(edges[:-1, None], k)
    weights = np.clip(overlap, 0, None)
    return weights / weights.sum(1, keepdims=True)


def linear_weights(size: int, count: int, scale: float, offset: float = 0.0) -> np.ndarray:
    """(count, size): a triangle over each output's centre, clamped to the outermost centres."""
    centres = np.clip(offset + (np.arange(count) + 0.5) * scale - 0.5, 0, size - 1)
    return np.clip(1 - np.abs(centres[:, None] - np.arange(size)), 0, None)


def resampled_by_formula(pixels: np.ndarray, y: tuple[int, float, float], x: tuple[int, float, float]) -> np.ndarray:
    """Unrounded means or interpolations of (..., h, w, c); an axis is (count, scale, offset)."""
    weights = [
        (area_weights if scale > 1 else linear_weights)(size, count, scale, offset)
        for size, (count, scale, offset) in zip(pixels.shape[-3:-1], (y, x), strict=True)
    ]
    return np.einsum("ph,...hwc,qw->...pqc", weights[0], pixels.astype(float), weights[1], optimize=True)


def check_near(got: np.ndarray, exact: np.ndarray, tolerance: float = 0.6) -> None:
    """Integers lie within half of the exact value; the kernel documents 0.1 more for fractions that are not small."""
    assert got.shape == exact.shape
    if got.size:
        assert np.abs(got - exact).max() <= tolerance


def whole_count(size: int, scale: float) -> int:
    return math.floor(size / scale + 1e-6)


# Slides ------------------------------------------------------------------------------------------------------------


def ramp(level: int, path: int, plane: int, y0: int, x0: int, h: int, w: int) -> np.ndarray:
    """16 bit pixels that are a ramp in mm, exactly, on every level: 2 grey a row and a column of level 0."""
    y = (2 * np.arange(y0, y0 + h) + 1) * 2**level  # centres, in halves of level 0's pixels
    x = (2 * np.arange(x0, x0 + w) + 1) * 2**level
    return np.stack(np.broadcast_arrays(y[:, None], x[None], y[:, None] + x[None]), axis=-1).astype(np.uint16)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SyntheticSlide]:
    made = {}
    for name, spacing in (("square", SPACING), ("tall", (0.0005, 0.00025)), ("wide", (0.0003, 0.0005))):
        made[name] = make_slide(
            tmp_path_factory.mktemp(name), width=301, height=259, frame=(48, 64), codec="native", dtype="uint16",
            pixels=ramp, levels=3, spacing=spacing, associated=False,
        )  # fmt: skip
    return made


NOISE = np.random.default_rng(7).integers(0, 256, (403, 517, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    """The worst case for seams: no pixel is like its neighbour."""
    return make_slide(tmp_path_factory.mktemp("noise"), pixels=NOISE, frame=64, codec="native", levels=1)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("pyramid"), pixels=NOISE, frame=64, codec="deflated-frame", levels=4)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are read from, from here on."""
    seen: list[str] = []
    original = LocalSource.read

    def read(self: LocalSource, offset: int, length: int) -> bytes:
        seen.append(self.uri)
        return original(self, offset, length)

    monkeypatch.setattr(LocalSource, "read", read)
    return seen


# Where pixels lie --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["square", "tall", "wide"])
@pytest.mark.parametrize(
    "target",
    [0.00125, 0.0015, 0.00065, 0.00035, 0.0071, (0.0015, 0.00037), (0.0003, 0.002)],
)
def test_a_ramp_stays_a_ramp(ramps: dict[str, SyntheticSlide], name: str, target: Any) -> None:
    slide = ramps[name]
    row, column = slide.spacings[0] or (0, 0)
    image = mt.open_slide(slide.folder, chunks=None if name == "wide" else "auto").wsi.at(spacing=target)
    wanted = PixelSpacing.of(target)
    assert image.wsi.spacing.isclose(wanted, 1e-9)
    y, x = image.y.values, image.x.values
    np.testing.assert_allclose(y, (np.arange(len(y)) + 0.5) * wanted.row, rtol=1e-12)
    np.testing.assert_allclose(x, (np.arange(len(x)) + 0.5) * wanted.column, rtol=1e-12)
    down, across = 2 * y[:, None] / row, 2 * x[None] / column
    exact = np.stack(np.broadcast_arrays(down, across, down + across), axis=-1)
    fine = [s is not None and s[0] <= wanted.row and s[1] <= wanted.column for s in slide.spacings]
    level = max(n for n in range(3) if n == 0 or fine[n])
    # A pixel is as grey all over as at its centre: a ramp is a stair. The mean over s stairs of height h, some of
    # them in part, is off the ramp by h / 8s at most; that over whole ones, and what is interpolated, is on it.
    stairs = []
    inside = []
    for at, mm, wide, n in zip(
        (y, x), (row, column), (wanted.row, wanted.column), slide.level_shapes[level], strict=True
    ):
        factor = wide / (mm * 2**level)
        stairs.append(2.0 * 2**level / 8 / factor if factor > 1 + 1e-9 and abs(factor - round(factor)) > 1e-9 else 0.0)
        # Where it is enlarged, a pixel whose centre is beyond the outermost of the level has no neighbour there.
        mm *= 2**level
        inside.append(np.flatnonzero((at >= mm / 2) & (at <= mm * n - mm / 2)))
    error = np.abs(image.values - exact)[np.ix_(*inside)].max((0, 1))
    assert (error <= np.array([stairs[0], stairs[1], sum(stairs)]) + 0.52).all()


@pytest.mark.parametrize("name", ["square", "tall", "wide"])
@pytest.mark.parametrize("factor", [*FACTORS, (2.5, 3.0), (1.3, 0.7)])
def test_within_half_a_grey_of_the_ramp(ramps: dict[str, SyntheticSlide], name: str, factor: Any) -> None:
    """Of pixels that are not rounded; on other grids than those of integers the rounding comes on top."""
    slide = ramps[name]
    level = mt.open_slide(slide.folder)["level0"].image.astype(np.float32)
    row, column = slide.spacings[0] or (0, 0)
    down, across = factor if isinstance(factor, tuple) else (factor, factor)
    image = level.wsi.resize((row * down, column * across))
    exact = 2 * image.y.values[:, None] / row + 2 * image.x.values[None] / column
    assert np.abs(image.values[1:-1, 1:-1, 2] - exact[1:-1, 1:-1]).max() < 0.5


def test_all_of_the_level_is_shown_and_no_more(pyramid: SyntheticSlide) -> None:
    tree = mt.open_slide(pyramid.folder)
    rows, columns = NOISE.shape[:2]
    for factor in (2.5, 3, 1.3, 0.7, 4, 7.3):
        image = tree.wsi.at(spacing=factor * SPACING)
        for size, dim in ((rows, "y"), (columns, "x")):
            end = float(image[dim][-1]) + factor * SPACING / 2
            assert size * SPACING - factor * SPACING < end <= (size + 8) * SPACING  # levels end on a pixel of their own


@pytest.mark.parametrize("factor", [2.0, 4.0, 2.5, 3.0, 6.0, 9.9, 1.0, 0.5])
def test_from_the_nearest_finer_level(pyramid: SyntheticSlide, reads: list[str], factor: float) -> None:
    image = mt.open_slide(pyramid.folder, chunks=None).wsi.at(spacing=factor * SPACING)
    reads.clear()
    image[:3, :3].values  # noqa: B018
    level = max(n for n in range(4) if n == 0 or 2**n <= factor)
    assert set(reads) == {str(pyramid.files[level])}


def test_anisotropic_targets_take_a_level_fine_enough_both_ways(pyramid: SyntheticSlide, reads: list[str]) -> None:
    image = mt.open_slide(pyramid.folder, chunks=None).wsi.at(spacing=(8 * SPACING, 2.5 * SPACING))
    reads.clear()
    image[:3, :3].values  # noqa: B018
    assert set(reads) == {str(pyramid.files[1])}


# Tile-consistency, and whether the numbers are right ---------------------------------------------------------------


def whole_by_formula(factor: float, pixels: np.ndarray = NOISE) -> np.ndarray:
    y, x = ((whole_count(n, factor), factor, 0.0) for n in pixels.shape[:2])
    return resampled_by_formula(pixels, y, x)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(("block_bytes", "source_bytes"), [(1, 1 << 14), (300_000, 1 << 18), (16 << 20, 16 << 20)])
def test_any_chunking(
    noise: SyntheticSlide, factor: float, block_bytes: int, source_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampled, "SOURCE_BYTES", source_bytes)
    exact = whole_by_formula(factor)
    lazy = mt.open_slide(noise.folder, chunks=None).wsi.at(spacing=factor * SPACING)
    whole = lazy.values
    check_near(whole, exact)
    with mt.config.set(block_bytes=block_bytes):
        blocks = mt.open_slide(noise.folder, chunks={"y": 100, "x": 128}).wsi.at(spacing=factor * SPACING)
        assert blocks.data.npartitions > 3 or block_bytes > 1
        np.testing.assert_array_equal(blocks.values, whole)
    for step in (64, 333, 1000):
        np.testing.assert_array_equal(lazy.chunk({"y": step, "x": step}).values, whole)
    rows, columns = whole.shape[:2]
    for image in (lazy, blocks):
        np.testing.assert_array_equal(image.wsi.read(0, 0, rows, columns), whole)
        parts = [whole[y : y + 60, x : x + 51] for y, x in ((0, 31), (7, 0), (70, 100))]
        np.testing.assert_array_equal(image.wsi.read([0, 7, 70], [31, 0, 100], 60, 51), parts)


@pytest.mark.parametrize("chunks", [None, {"y": 100, "x": 64}])
@few
@given(
    factor=st.sampled_from([*FACTORS, 2.0, 0.5]) | st.floats(0.4, 9),
    y=st.tuples(st.integers(0, 402), st.integers(1, 403)),
    x=st.tuples(st.integers(0, 516), st.integers(1, 517)),
)
def test_any_crop(noise: SyntheticSlide, chunks: Any, factor: float, y: tuple[int, int], x: tuple[int, int]) -> None:
    """A crop that is resized has those pixels of the resized level whose centres it shows."""
    level = mt.open_slide(noise.folder, chunks=chunks)["level0"].image
    top, left = y[0], x[0]
    bottom, right = min(top + y[1], 403), min(left + x[1], 517)
    got = level[top:bottom, left:right].wsi.resize(factor * SPACING)
    spans = []
    for low, high, size in ((top, bottom, 403), (left, right, 517)):
        count = whole_count(size, factor)
        centres = (np.arange(count) + 0.5) * factor
        inside = np.flatnonzero((centres >= low - 1e-6) & (centres < high - 1e-6))
        if not inside.size:  # smaller than a pixel: the one on which it lies
            inside = np.array([math.floor((low + high) / 2 / factor)])
        spans.append((len(inside), factor, float(inside[0]) * factor))
    check_near(got.values, resampled_by_formula(NOISE, *spans))
    for dim, (count, _, offset) in zip(("y", "x"), spans, strict=True):
        np.testing.assert_allclose(
            got[dim].values, (offset + (np.arange(count) + 0.5) * factor) * SPACING, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("factor", FACTORS)
def test_parts_make_the_whole(noise: SyntheticSlide, factor: float) -> None:
    level = mt.open_slide(noise.folder)["level0"].image
    whole = level.wsi.resize(factor * SPACING)
    cuts = [0, 100, 117, 250, 403]
    joined = xr.concat([level[a:b].wsi.resize(factor * SPACING) for a, b in itertools.pairwise(cuts)], "y")
    # The last part may show one more, which lies on the level by more than half.
    assert joined.sizes["y"] - whole.sizes["y"] in (0, 1)
    np.testing.assert_array_equal(joined.values[: whole.sizes["y"]], whole.values)
    np.testing.assert_allclose(joined.y[: whole.sizes["y"]], whole.y, rtol=1e-12)


def pillow_box(pixels: np.ndarray, repeat: int, reduce: int) -> np.ndarray:
    """A mean over repeat / reduce pixels by Pillow: each pixel repeated, then a whole number of them averaged."""
    rows, columns = (n * repeat // reduce * reduce for n in pixels.shape[:2])
    large = np.repeat(np.repeat(pixels, repeat, 0), repeat, 1)[:rows, :columns]
    return np.asarray(Image.fromarray(large).reduce(reduce))


@pytest.mark.parametrize(("repeat", "reduce"), [(2, 5), (1, 3), (3, 4), (1, 4)])
def test_pillow_agrees_when_it_is_made_coarser(noise: SyntheticSlide, repeat: int, reduce: int) -> None:
    got = mt.open_slide(noise.folder).wsi.at(spacing=SPACING * reduce / repeat).values
    expected = pillow_box(NOISE, repeat, reduce)
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (got != expected).mean() < 0.2  # Pillow rounds down what is as much as 5 / 9


@pytest.mark.parametrize("factor", [0.7, 0.5, 0.25])
def test_pillow_agrees_when_it_is_made_finer(noise: SyntheticSlide, factor: float) -> None:
    got = mt.open_slide(noise.folder)["level0"].image[:80, :90].wsi.resize(SPACING * factor).values[:100, :110]
    edges = (0, 0, 110 * factor, 100 * factor)
    expected = np.asarray(Image.fromarray(NOISE).resize((110, 100), Image.Resampling.BILINEAR, box=edges))
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_shape_is_all_of_the_image(noise: SyntheticSlide) -> None:
    level = mt.open_slide(noise.folder)["level0"].image
    got = level.wsi.resize(shape=(31, 47))
    check_near(got.values, resampled_by_formula(NOISE, (31, 403 / 31, 0), (47, 517 / 47, 0)))
    part = level[100:200, 60:131].wsi.resize(shape=(30, 20))
    check_near(part.values, resampled_by_formula(NOISE[100:200, 60:131], (30, 100 / 30, 0), (20, 71 / 20, 0)))
    np.testing.assert_allclose(part.y[0], (100 + 100 / 60) * SPACING)
    np.testing.assert_allclose(part.x[-1], (131 - 71 / 40) * SPACING)
    small = level[10:20, 10:20].wsi.resize(shape=(30, 20))
    assert small.shape == (30, 20, 3)


# Ordinary input that is small, empty or strange --------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_empty_crops(noise: SyntheticSlide, chunks: Any) -> None:
    tree = mt.open_slide(noise.folder, chunks=chunks)
    level = tree["level0"].image
    assert level[5:5].wsi.resize(2 * SPACING).values.shape == (0, 258, 3)
    assert level[:, 7:7].wsi.resize(0.3 * SPACING).values.shape == (1343, 0, 3)
    assert level[5:5, 7:7].wsi.resize(2.5 * SPACING).values.shape == (0, 0, 3)
    assert level[5:5].wsi.resize(shape=(0, 4)).values.shape == (0, 4, 3)
    assert level[..., :0].wsi.resize(2 * SPACING).values.shape == (201, 258, 0)
    assert (level + 1)[5:5].wsi.resize(2 * SPACING).values.shape == (0, 258, 3)
    with pytest.raises(OptionError, match="0 pixels cannot be resampled to 3"):
        level[5:5].wsi.resize(shape=(3, 4))
    nothing = tree.isel(y=slice(0, 0), missing_dims="ignore")
    assert nothing.wsi.at(spacing=2 * SPACING).values.shape == (0, 258, 3)
    assert nothing.wsi.thumbnail(10).size == 0
    assert level[:9, :9].wsi.like(level[5:5]).values.shape == (0, 517, 3)


def test_a_crop_that_only_fine_levels_show(pyramid: SyntheticSlide) -> None:
    tree = mt.open_slide(pyramid.folder).sel(y=slice(0, 1.2 * SPACING), x=slice(0, 100 * SPACING))
    assert tree["level2"].image.size == 0
    assert tree.wsi.at(spacing=4 * SPACING).sizes["y"] == 1


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7, 100.0])
def test_a_level_of_one_pixel(tmp_path: Path, factor: float) -> None:
    pixel = np.array([[[12, 200, 77]]], np.uint8)
    make_slide(tmp_path, pixels=pixel, frame=16, codec="native", levels=1, associated=False)
    image = mt.open_slide(tmp_path).wsi.at(spacing=factor * SPACING)
    count = max(1, int(1 / factor))
    np.testing.assert_array_equal(image.values, np.broadcast_to(pixel, (count, count, 3)))
    assert image.attrs["pixel_spacing_mm"] == pytest.approx([factor * SPACING] * 2)


def test_a_real_pyramid_down_to_one_pixel(real: Path) -> None:
    tree = mt.open_slide(real / "dicom" / "gcp_cmu1_pyramid")
    for n in (8, 9, 10, 11):
        level = tree[f"level{n}"].image
        stored = tree.wsi.at(spacing=level.wsi.spacing)
        xr.testing.assert_identical(stored, level)
        finer = level.wsi.resize(level.wsi.spacing.row / 4)
        low, high = level.values.min((0, 1)), level.values.max((0, 1))
        assert finer.sizes["y"] == 4 * level.sizes["y"]
        assert ((finer.values >= low) & (finer.values <= high)).all()
        like = tree["level7"].image.wsi.resize(like=level)
        np.testing.assert_array_equal(like.y, level.y)
        assert like.shape == level.shape
    one = tree.wsi.at(spacing=5.0)
    assert one.shape == (1, 1, 3)
    np.testing.assert_array_equal(one.values, tree["level11"].image.values)
    exact = resampled_by_formula(tree["level6"].image.values, (18, 2.5, 0.0), (13, 2.5, 0.0))
    check_near(tree["level6"].image.wsi.resize(0.031936 * 2.5).values, exact)


def test_undefined_spacing(tmp_path: Path) -> None:
    slide = make_slide(tmp_path, pixels=NOISE[:50, :60], frame=32, codec="native", levels=2, spacing=None)
    tree = mt.open_slide(tmp_path)
    got = tree.wsi.at(shape=(20, 12))
    check_near(got.values, resampled_by_formula(slide.pixels(1), (20, 25 / 20, 0), (12, 30 / 12, 0)))
    assert not {"y", "x", "y_pixel", "x_pixel"} & set(got.coords)
    assert "pixel_spacing_mm" not in got.attrs
    assert tree.wsi.thumbnail(30).shape == (25, 30, 3)
    level = tree["level0"].image
    for call in (
        lambda: tree.wsi.at(spacing=0.001), lambda: tree.wsi.at(magnification="10X"), lambda: tree.wsi.at(like=level),
        lambda: level.wsi.resize(0.001), lambda: level.wsi.resize(like=level), lambda: level.wsi.like(level),
    ):  # fmt: skip
        with pytest.raises(SpacingUndefinedError, match="pixel spacing of this"):
            call()


def test_associated_images(noise: SyntheticSlide) -> None:
    label = mt.open_slide(noise.folder)["associated/label"].image
    got = label.wsi.resize(shape=(40, 30))
    rows, columns = label.shape[:2]
    assert got.dims == ("row", "column", "c")
    assert got.chunks is not None
    check_near(got.values, resampled_by_formula(label.values, (40, rows / 40, 0), (30, columns / 30, 0)))
    np.testing.assert_array_equal(got.wsi.read(3, 4, 10, 11), got.values[3:13, 4:15])


@pytest.mark.parametrize("chunks", [None, "auto"])
@pytest.mark.parametrize("factor", [2.5, 0.7])
def test_stacks_of_planes_and_paths(tmp_path: Path, chunks: Any, factor: float) -> None:
    options: dict[str, Any] = {"width": 90, "height": 70, "frame": 32, "codec": "native", "levels": 1}
    mono = make_slide(tmp_path / "m", paths=("DAPI", "FITC"), focal_planes=3, dtype="uint16", **options)
    colour = make_slide(tmp_path / "c", rgb_paths=2, focal_planes=2, **options)
    y, x = ((whole_count(n, factor), factor, 0.0) for n in (70, 90))
    image = mt.open_slide(tmp_path / "m", chunks=chunks).wsi.at(spacing=factor * SPACING)
    assert image.dims == ("z", "y", "x", "c")
    whole = np.stack([np.concatenate([mono.pixels(0, z, p) for p in range(2)], axis=-1) for z in range(3)])
    exact = resampled_by_formula(whole, y, x)
    check_near(image.values, exact)
    check_near(image.isel(z=1, c=1).values, exact[1, ..., 1])
    np.testing.assert_array_equal(image.z.values, mt.open_slide(tmp_path / "m")["level0"].image.z.values)
    source = mt.open_slide(tmp_path / "m", chunks=chunks)["level0"].image.isel(z=[2, 0], c=1)
    check_near(source.wsi.resize(factor * SPACING).values, exact[[2, 0], ..., 1])
    image = mt.open_slide(tmp_path / "c", chunks=chunks).wsi.at(spacing=factor * SPACING)
    assert image.dims == ("z", "path", "y", "x", "c")
    whole = np.stack([np.stack([colour.pixels(0, z, p) for p in range(2)]) for z in range(2)])
    check_near(image.values, resampled_by_formula(whole, y, x))


def test_real_fluorescence(variants: Path) -> None:
    import tifffile

    channels = np.moveaxis(tifffile.imread(variants / "truth_fluor16.tif"), 0, -1)
    image = mt.open_slide(variants / "fluor16_native")["level0"].image
    spacing = image.wsi.spacing.row
    got = image.wsi.resize(2.5 * spacing)
    y, x = ((whole_count(n, 2.5), 2.5, 0.0) for n in channels.shape[:2])
    check_near(got.values, resampled_by_formula(channels, y, x), 1.0)
    assert list(got.c.values) == list(image.c.values)


def test_a_real_sparse_stack(variants: Path) -> None:
    image = mt.open_slide(variants / "jpeg_zstack_sparse")["level0"].image
    pixels, covered = assemble(sorted((variants / "jpeg_zstack_sparse").glob("L0*.dcm")))
    expected = as_image(pixels)
    spacing = image.wsi.spacing.row
    got = image.wsi.resize(3 * spacing)
    y, x = ((whole_count(n, 3), 3.0, 0.0) for n in expected.shape[1:3])
    check_near(got.values, resampled_by_formula(image.values, y, x))
    assert np.abs(got.values - resampled_by_formula(expected, y, x)).mean() < 0.7
    real = covered[:, 0]
    np.testing.assert_array_equal(got.wsi.coverage().values, real[:, 1::3, 1::3][:, : y[0], : x[0]])


@pytest.mark.parametrize("chunks", [None, {"y": 64, "x": 96}])
@pytest.mark.parametrize("factor", [2.5, 3.0, 0.7])
def test_sparse_slides(tmp_path: Path, chunks: Any, factor: float) -> None:
    slide = make_slide(
        tmp_path, width=300, height=260, frame=32, codec="native", levels=1, tiling="sparse", drop=0.8, shuffle=True
    )
    covered = covered_by_frames(slide.files[0], (260, 300))
    assert 0 < covered.mean() < 1
    pixels = np.where(covered[..., None], slide.pixels(0), 255)
    image = mt.open_slide(tmp_path, chunks=chunks).wsi.at(spacing=factor * SPACING)
    y, x = ((whole_count(n, factor), factor, 0.0) for n in (260, 300))
    check_near(image.values, resampled_by_formula(pixels, y, x))
    rows, columns = (np.floor((np.arange(n) + 0.5) * factor + 1e-6).astype(int) for n in (y[0], x[0]))
    got = image.wsi.coverage()
    np.testing.assert_array_equal(got.values, covered[np.ix_(rows, columns)])
    np.testing.assert_array_equal(got.y, image.y)
    part = image[5:60, 9:70].wsi.coverage()
    np.testing.assert_array_equal(part.values, got.values[5:60, 9:70])


# Nearest neighbours, and grids of others ---------------------------------------------------------------------------


def picks(size: int, count: int, scale: float, offset: float = 0.0) -> np.ndarray:
    return np.clip(np.floor(offset + (np.arange(count) + 0.5) * scale + 1e-6), 0, size - 1).astype(int)


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: da.from_array(a, chunks=(50, 70))])
@pytest.mark.parametrize("factor", [2.5, 3.0, 0.7, 1.0])
def test_masks_are_copies(noise: SyntheticSlide, wrap: Callable[[np.ndarray], Any], factor: float) -> None:
    level = mt.open_slide(noise.folder)["level0"].image
    truth = NOISE[..., 0] > 128
    mask = xr.DataArray(wrap(truth), dims=("y", "x"), coords={d: level[d] for d in ("y", "x")})
    got = mask.wsi.resize(factor * SPACING)
    assert type(got.data) is type(mask.data)
    rows, columns = (picks(n, whole_count(n, factor), factor) for n in truth.shape)
    np.testing.assert_array_equal(got.values, truth[np.ix_(rows, columns)])
    with pytest.raises(OptionError, match="nearest neighbours only"):
        mask.wsi.resize(2 * SPACING, nearest=False)


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_labels_are_copies_on_demand(noise: SyntheticSlide, chunks: Any) -> None:
    image = mt.open_slide(noise.folder, chunks=chunks).wsi.at(spacing=2.5 * SPACING, nearest=True)
    rows, columns = (picks(n, whole_count(n, 2.5), 2.5) for n in NOISE.shape[:2])
    np.testing.assert_array_equal(image.values, NOISE[np.ix_(rows, columns)])


@pytest.mark.parametrize("lazy", [False, True])
def test_like_takes_rows_and_columns_to_the_bit(pyramid: SyntheticSlide, lazy: bool) -> None:
    """Of coordinates that differ by rounding, arithmetic keeps nothing."""
    tree = mt.open_slide(pyramid.folder)
    level = tree["level0"].image
    truth = NOISE[..., 0] > 128
    data = da.from_array(truth, chunks=100) if lazy else truth
    noisy = {d: level[d] * (1 + 1e-15) for d in ("y", "x")}
    mask = xr.DataArray(data, dims=("y", "x"), coords=noisy)
    assert not np.array_equal(mask.y, level.y)
    same = mask.wsi.like(level)
    assert (same & (level[..., 0] >= 0)).shape == truth.shape
    np.testing.assert_array_equal(same.values, truth)
    coarse = tree["level2"].image
    on_it = mask.wsi.like(coarse)
    assert (on_it & (coarse[..., 0] >= 0)).shape == coarse.shape[:2]
    rows, columns = (np.minimum(picks(10**6, n, 4.0), s) for n, s in zip(coarse.shape[:2], (402, 516), strict=True))
    expected = truth[np.ix_(rows, columns)]
    inside = np.ix_(picks(10**6, coarse.sizes["y"], 4.0) < 403, picks(10**6, coarse.sizes["x"], 4.0) < 517)
    np.testing.assert_array_equal(on_it.values[inside], expected[inside])


@pytest.mark.parametrize("chunks", [None, "auto"])
@pytest.mark.parametrize("kind", ["mask", "image"])
def test_like_beyond_the_edges(noise: SyntheticSlide, kind: str, chunks: Any) -> None:
    level = mt.open_slide(noise.folder, chunks=chunks)["level0"].image
    part, wide = level[100:150, 200:260], level.wsi.region(80, 190, 100, 90)
    whole = level.wsi.region(-20, 480, 40, 60)
    if kind == "mask":
        part = xr.full_like(part[..., 0], True, bool)
    got = part.wsi.like(wide)
    np.testing.assert_array_equal(got.y, wide.y)
    expected = np.full(got.shape, False if kind == "mask" else 255, got.dtype)
    expected[20:70, 10:70] = True if kind == "mask" else NOISE[100:150, 200:260]
    np.testing.assert_array_equal(got.values, expected)
    assert not got.wsi.coverage().values[0].any() if kind == "image" else True
    beyond = part.wsi.like(whole)
    assert (beyond.values == (0 if kind == "mask" else 255)).all()
    smooth = part.wsi.resize(like=wide.wsi.resize(2 * SPACING))
    assert smooth.dtype == part.dtype
    half = smooth.values[11:34, 6:34]
    if kind == "image":
        exact = resampled_by_formula(NOISE, (23, 2.0, 102.0), (28, 2.0, 202.0))
        check_near(half, exact)


def test_like_another_slide_of_channels(tmp_path: Path) -> None:
    """What is beyond the edge has as many channels as there are, also where one value stands for all."""
    options: dict[str, Any] = {"frame": 16, "codec": "native", "levels": 1, "paths": ("a", "b", "c")}
    slide = make_slide(tmp_path, width=40, height=30, **options)
    level = mt.open_slide(tmp_path)["level0"].image
    wide = level.wsi.like(level.wsi.region(-5, -6, 50, 60))
    for c in range(3):
        one = wide.isel(c=c).wsi.region(-2, -2, 60, 70)
        np.testing.assert_array_equal(one.values[7:37, 8:48], slide.pixels(0, path=c)[..., 0])
        assert not one.values[:7].any()
    np.testing.assert_array_equal(wide.isel(c=[2, 0]).values[5:35, 6:46, 0], slide.pixels(0, path=2)[..., 0])


# What is returned --------------------------------------------------------------------------------------------------


def test_a_level_that_has_the_grid_is_returned(pyramid: SyntheticSlide) -> None:
    tree = mt.open_slide(pyramid.folder)
    for n in range(4):
        level = tree[f"level{n}"].image
        for image in (
            tree.wsi.at(spacing=SPACING * 2**n), tree.wsi.at(magnification=20 / 2**n), tree.wsi.at(like=level),
            tree.wsi.at(shape=level.shape[:2]), level.wsi.resize(level.wsi.spacing), level.wsi.like(level),
        ):  # fmt: skip
            assert image.data.name == level.data.name
            xr.testing.assert_identical(image.drop_attrs(), level.drop_attrs())


def test_laziness_dtypes_and_coordinates(pyramid: SyntheticSlide, reads: list[str]) -> None:
    for chunks in (None, "auto"):
        tree = mt.open_slide(pyramid.folder, chunks=chunks)
        reads.clear()
        image = tree.wsi.at(spacing=0.0013)
        assert not reads
        image.wsi.explain()  # reads offset tables, once
        reads.clear()
        image.wsi.explain()
        image[3:40:2, ::-1].wsi.coverage()
        assert not reads
        assert (image.chunks is None) == (chunks is None)
        assert image.name == "image"
        assert image.dtype == np.uint8
        assert image.y.attrs["units"] == "mm"
        assert list(image.c.values) == ["r", "g", "b"]
        assert not {"frames", "frame_shape", "sop_instance_uids", "transfer_syntax_uid"} & image.attrs.keys()
        assert image.attrs["pixel_spacing_mm"] == pytest.approx([0.0013, 0.0013])


def test_resampled_twice(noise: SyntheticSlide) -> None:
    image = mt.open_slide(noise.folder).wsi.at(spacing=2 * SPACING)
    once = image.values
    twice = image.wsi.resize(5 * SPACING)
    y, x = ((whole_count(n, 2.5), 2.5, 0.0) for n in once.shape[:2])
    check_near(twice.values, resampled_by_formula(once, y, x))
    part = image[20:90, 31:100].wsi.resize(5 * SPACING)
    np.testing.assert_array_equal(part.values, twice.sel(y=part.y, x=part.x, method="nearest").values)
    assert twice.wsi.explain().frames > 0


@pytest.mark.parametrize("kind", ["dask", "numpy", "float", "transposed", "no channels", "int"])
@pytest.mark.parametrize("factor", [2.5, 0.7])
def test_arrays_that_are_not_ours(noise: SyntheticSlide, kind: str, factor: float) -> None:
    level = mt.open_slide(noise.folder, chunks={"y": 128, "x": 128})["level0"].image
    truth = NOISE.astype(float)
    image = level + 1
    truth = (NOISE + 1).astype(float)
    if kind == "numpy":
        image = image.compute()
    elif kind == "float":
        image, truth = image / np.float32(3), truth / 3
    elif kind == "int":
        image, truth = image.astype(np.int32) - 300, truth - 300
    elif kind == "transposed":
        image = level.transpose("c", "x", "y")
        truth = NOISE.astype(float)
    elif kind == "no channels":
        image, truth = image[..., 1], truth[..., 1:2]
    got = image.wsi.resize(factor * SPACING)
    assert got.dims == image.dims
    assert got.dtype == image.dtype
    assert (got.chunks is None) == (image.chunks is None)
    y, x = ((whole_count(n, factor), factor, 0.0) for n in truth.shape[:2])
    exact = resampled_by_formula(truth, y, x)
    values = got.transpose("y", "x", ...).values.reshape(exact.shape)
    check_near(values, exact, 1e-3 if kind == "float" else 0.6)
    np.testing.assert_allclose(got.y, (np.arange(y[0]) + 0.5) * factor * SPACING)
    part = image.isel(y=slice(50, 200), x=slice(30, 77)).wsi.resize(factor * SPACING)
    # Of what it was a part nobody knows: it has the pixels that lie on it entirely, where they lay.
    first, end = math.ceil(50 / factor - 1e-6), math.floor(200 / factor + 1e-6)
    np.testing.assert_allclose(part.y, got.y[first:end])
    whole = got.isel(y=slice(first, end)).transpose("y", "x", ...)
    whole = whole.sel(x=part.x, method="nearest", tolerance=1e-9)[1:-1, 1:-1]
    np.testing.assert_allclose(part.transpose("y", "x", ...)[1:-1, 1:-1], whole, atol=1 if kind != "float" else 1e-4)


def test_not_ours_is_computed_block_by_block(noise: SyntheticSlide) -> None:
    largest = []

    def look(block: np.ndarray) -> np.ndarray:
        largest.append(block.shape[0] * block.shape[1])
        return block

    level = mt.open_slide(noise.folder, chunks={"y": 64, "x": 64})["level0"].image
    got = level.copy(data=(level + 1).data.map_blocks(look, meta=np.empty((0, 0, 0), np.uint8))).wsi.resize(0.001)
    got[:10, :10].compute(scheduler="synchronous")
    assert sum(largest) <= 4 * 64 * 64


@pytest.mark.parametrize("key", [np.s_[::-1], np.s_[:, ::-1], np.s_[[0, 5, 6, 20]], np.s_[:, [3, 3, 4]]])
def test_what_is_no_grid_is_refused(noise: SyntheticSlide, key: Any) -> None:
    level = mt.open_slide(noise.folder)["level0"].image
    for image in (level[key], level[key].compute()):
        for call in (
            lambda image=image: image.wsi.resize(0.002),
            lambda image=image: image.wsi.resize(shape=(3, 3)),
            lambda image=image: level.wsi.like(image),
        ):
            with pytest.raises(OptionError, match="does not increase evenly"):
                call()
    upright = level[::-1].sortby("y").wsi.resize(0.001)
    np.testing.assert_array_equal(upright.values, level.wsi.resize(0.001).values)


def test_every_second_pixel_is_a_grid(noise: SyntheticSlide) -> None:
    level = mt.open_slide(noise.folder)["level0"].image[::2, ::2]
    got = level.wsi.resize(5 * SPACING)
    # A pixel of it stands for two by two, with its own centre in the middle: it begins half a pixel before the corner.
    check_near(got.values[:80, :103], resampled_by_formula(NOISE[::2, ::2], (80, 2.5, 0.25), (103, 2.5, 0.25)))
    np.testing.assert_allclose(got.y[:80], (np.arange(80) + 0.5) * 5 * SPACING)


# Thumbnails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 64, 65, 129, 130, 500, 9999])
def test_thumbnails(pyramid: SyntheticSlide, reads: list[str], size: int) -> None:
    tree = mt.open_slide(pyramid.folder, chunks=None)
    reads.clear()
    image = tree.wsi.thumbnail(size)
    assert not reads
    longest = min(size, 517)
    assert image.sizes["x"] == longest
    assert image.sizes["y"] == max(1, round(403 * longest / 517))
    got = image.values
    enough = [
        n for n, (rows, columns) in enumerate(pyramid.level_shapes) if columns >= longest and rows >= image.sizes["y"]
    ]
    assert set(reads) == {str(pyramid.files[max(enough)])}
    source = pyramid.pixels(max(enough))
    y, x = ((n, s / n, 0.0) for n, s in zip(got.shape[:2], source.shape[:2], strict=True))
    check_near(got, resampled_by_formula(source, y, x))


def test_pixels_of_thumbnails_are_square(ramps: dict[str, SyntheticSlide]) -> None:
    tree = mt.open_slide(ramps["tall"].folder)
    image = tree.wsi.thumbnail(200)
    height, width = 259 * 0.0005, 301 * 0.00025
    assert image.shape[:2] == (200, round(200 * width / height))
    assert image.wsi.spacing.row == pytest.approx(image.wsi.spacing.column, rel=0.01)


# Memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, "auto"])
@pytest.mark.parametrize("factor", [64.0, 600.0, 20000.0, (2.0, 700.0), (700.0, 2.0)])
def test_a_large_level_alone_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: Any, chunks: Any
) -> None:
    monkeypatch.setattr(resampled, "SOURCE_BYTES", 1 << 18)
    slide = make_slide(tmp_path, width=1500, height=1000, frame=128, codec="native", levels=1, associated=False)
    pixels = slide.pixels(0)
    largest = []
    from microtome.lazy.window import SlideWindow

    original = SlideWindow.read

    def read(self: SlideWindow, y: int, x: int, height: int, width: int, out: Any) -> Any:
        largest.append(height * width * 3)
        return original(self, y, x, height, width, out)

    monkeypatch.setattr(SlideWindow, "read", read)
    down, across = factor if isinstance(factor, tuple) else (factor, factor)
    image = mt.open_slide(tmp_path, chunks=chunks).wsi.at(spacing=(down * SPACING, across * SPACING))
    y, x = ((max(1, whole_count(n, f)), f, 0.0) for n, f in ((1000, down), (1500, across)))
    exact = resampled_by_formula(pixels, y, x)
    check_near(image.values, exact)
    assert largest
    assert max(largest) <= 2 * (1 << 18) + 3 * 128 * 1500 * (max(down, across) < 1000)


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of spacing=, magnification=, shape=, like="),
        ({"spacing": 0.001, "shape": (3, 3)}, "one of spacing=, magnification=, shape=, like="),
        ({"spacing": 0.001, "magnification": 10}, "one of spacing=, magnification=, shape=, like="),
        ({"shape": (-1, 3)}, r"\(rows, columns\), whole numbers"),
        ({"shape": (2.5, 3)}, r"\(rows, columns\), whole numbers"),
        ({"shape": (math.inf, 3)}, r"\(rows, columns\), whole numbers"),
        ({"shape": (math.nan, 3)}, r"\(rows, columns\), whole numbers"),
        ({"shape": 7}, r"\(rows, columns\), whole numbers"),
        ({"shape": ("a", "b")}, r"\(rows, columns\), whole numbers"),
        ({"shape": (1, 2, 3)}, r"\(rows, columns\), whole numbers"),
        ({"shape": (0, 3)}, "cannot be resampled to 0"),
        ({"spacing": 0}, "positive number of mm"),
        ({"spacing": -0.001}, "positive number of mm"),
        ({"spacing": math.nan}, "positive number of mm"),
        ({"spacing": (0.1, 0.1, 0.1)}, "mm"),
        ({"magnification": "large"}, "positive number or text such as '20X'"),
    ],
)
def test_targets_without_meaning(noise: SyntheticSlide, options: dict[str, Any], message: str) -> None:
    tree = mt.open_slide(noise.folder)
    for accessor in (tree.wsi.at, tree["level0"].image.wsi.resize):
        with pytest.raises(OptionError, match=message):
            accessor(**options)


def test_thumbnails_without_meaning(noise: SyntheticSlide) -> None:
    tree = mt.open_slide(noise.folder)
    with pytest.raises(OptionError, match="at least one pixel"):
        tree.wsi.thumbnail(0)
    for call in (xr.DataTree().wsi.thumbnail, lambda: xr.DataTree().wsi.at(spacing=0.001)):
        with pytest.raises(LevelNotFoundError, match="no level"):
            call()


def test_images_without_rows(noise: SyntheticSlide) -> None:
    level = mt.open_slide(noise.folder)["level0"].image
    with pytest.raises(OptionError, match="dimensions y and x"):
        level[3].wsi.resize(0.001)


def test_names(pyramid: SyntheticSlide) -> None:
    """Of equal results they are equal, of others not."""
    one, other = (mt.open_slide(pyramid.folder) for _ in range(2))
    names = [
        one.wsi.at(**target).data.name
        for target in (
            {"spacing": 0.0013}, {"spacing": 0.00131}, {"spacing": 0.0013, "nearest": True},
            {"spacing": (0.0013, 0.0014)}, {"shape": (100, 100)},
        )
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert other.wsi.at(spacing=0.0013).data.name == names[0]


def test_pixels_with_gaps_are_not_read_at_once(tmp_path: Path) -> None:
    make_slide(tmp_path, width=300, height=200, frame=64, codec="native", levels=1)
    level = mt.open_slide(tmp_path, chunks=None)["level0"].image
    strided = level[::2, ::3].wsi.resize(shape=(25, 20))
    assert strided.chunks is not None
    expected = level.values[::2, ::3].reshape(25, 4, 20, 5, 3).mean(axis=(1, 3))
    assert np.abs(strided.values - expected).max() <= 0.5 + 1e-9
