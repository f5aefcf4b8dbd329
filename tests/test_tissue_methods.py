"""Tissue detection against outlines drawn by hand, composites whose truth is known, and other people's rules."""

from __future__ import annotations

import importlib
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from microtome.errors import MissingDependencyError, OptionError, SpacingUndefinedError
from microtome.ops.masks import read_polygons
from microtome.ops.opencv import luminance
from microtome.ops.tissue import DEFAULT, METHODS, detect
from microtome.ops.tissue.sampling import block_means
from microtome.ops.tissue.shapes import grow, local_sum
from tissue_pictures import SHAPES, TRUTH, Picture, composites, photographs

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def pictures(real: Path) -> list[Picture]:
    return photographs(real, full=False) + composites(real)


def test_default_is_right_on_every_picture(pictures: list[Picture]) -> None:
    failed = []
    for picture in pictures:
        found = detect(picture.pixels, spacing_mm=picture.spacing_mm)
        if picture.dice(found) < 0.9:
            failed.append(f"{picture.name}: Dice {picture.dice(found):.3f}")
        for kind in picture.marks:
            if picture.false_positives(found, kind) > 0.01:
                failed.append(f"{picture.name}: {kind} {picture.false_positives(found, kind):.3f}")
    assert not failed
    assert {kind for picture in pictures for kind in picture.marks} == {"Pen", "Border"}
    assert len(pictures) == 19


def test_default_is_the_best_method(pictures: list[Picture]) -> None:
    worst, mean = {}, {}
    small = [p for p in pictures if p.tissue.size < 1_000_000]
    for method in METHODS:
        dice = [p.dice(detect(p.pixels, method, spacing_mm=p.spacing_mm)) for p in small]
        worst[method], mean[method] = min(dice), np.mean(dice)
    assert max(worst, key=worst.__getitem__) == DEFAULT
    assert max(mean, key=mean.__getitem__) == DEFAULT


@pytest.mark.parametrize("factor", [2, 3])
def test_large_pictures_are_as_right(factor: int, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    # What is large is set so low that the stored pictures are.
    module = importlib.import_module("microtome.ops.tissue.stain")
    chosen = [p for p in pictures if p.spacing_mm == 0.008 and p.tissue.size != 330 * 405] + pictures[5:6]
    assert len(chosen) == 8
    failed = []
    for picture in chosen:
        height, width = (int(-(-side // max(1, int(0.004 / picture.spacing_mm)))) for side in picture.tissue.shape)
        monkeypatch.setattr(module, "LARGE", -(-height // factor) * -(-width // factor))
        found = detect(picture.pixels, spacing_mm=picture.spacing_mm)
        if picture.dice(found) < 0.9:
            failed.append(f"{picture.name}: Dice {picture.dice(found):.3f}")
        for kind in picture.marks:
            if picture.false_positives(found, kind) > 0.01:
                failed.append(f"{picture.name}: {kind} {picture.false_positives(found, kind):.3f}")
    assert not failed


def test_thirty_megapixels_are_right_and_take_little_memory(pictures: list[Picture]) -> None:
    made = [p for p in pictures if p.name.startswith("made")]
    order = [made[(row + column) % len(made)] for row in range(8) for column in range(8)]
    parts = [mosaic([getattr(p, part) for p in order]) for part in ("pixels", "tissue", "ignored")]
    whole = Picture("all", parts[0], 0.008, parts[1], parts[2], {})
    assert whole.tissue.size == 8 * 600 * 8 * 800
    valid = np.ones(whole.tissue.shape, bool)
    valid[2000:2300, 2500:3100] = False
    tracemalloc.start()
    try:
        found = detect(whole.pixels, spacing_mm=0.008, valid=valid)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * whole.tissue.size
    assert not found[~valid].any()
    assert whole.dice(np.where(valid, found, whole.tissue)) > 0.95
    for row in range(8):
        for column in range(8):
            picture = order[8 * row + column]
            part = np.s_[600 * row : 600 * (row + 1), 800 * column : 800 * (column + 1)]
            if valid[part].all():
                assert picture.dice(found[part]) > 0.9, picture.name
            for kind in picture.marks:
                assert picture.false_positives(found[part], kind) <= 0.01, (picture.name, kind)


def mosaic(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.concatenate(parts[i : i + 8], axis=1) for i in range(0, 64, 8)])


def test_a_little_that_is_valid_is_enough(pictures: list[Picture]) -> None:
    picture = next(p for p in pictures if p.name == "made: pens")
    pixels = np.zeros((3000, 4000, 3), np.uint8)
    valid = np.zeros(pixels.shape[:2], bool)
    part = np.s_[1201:1801, 2003:2803]
    pixels[part], valid[part] = picture.pixels, True
    for method in METHODS:
        found = detect(pixels, method, spacing_mm=0.008, valid=valid)
        alone = detect(picture.pixels, method, spacing_mm=0.008)
        assert not found[~valid].any()
        assert (found[part] == alone).mean() > 0.98, method
    assert picture.dice(detect(pixels, spacing_mm=0.008, valid=valid)[part]) > 0.95


def test_grey_photograph_of_an_unstained_slide_shows_no_tissue(real: Path) -> None:
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(real / "slides/ndpi/test3-DAPI-2-(387).ndpi") as slide:
        macro = np.asarray(slide.associated_images["macro"].convert("RGB"))
    assert macro.std() > 30  # a label, a black frame, crosses and dirt
    assert detect(macro).mean() < 0.001


def test_hand_drawn_outlines_are_valid() -> None:
    shapely = pytest.importorskip("shapely")
    names = sorted(path.stem for path in TRUTH.glob("*.geojson"))
    assert len(names) == 9 + len(SHAPES)
    for name in names:
        for feature in json.loads((TRUTH / f"{name}.geojson").read_text())["features"]:
            assert shapely.geometry.shape(feature["geometry"]).is_valid, name
            assert feature["properties"]["classification"]["name"] in ("Tissue", "Pen", "Border", "Ignore*")


def test_composites_are_the_committed_shapes() -> None:
    for name, shapes in SHAPES.items():
        stored = read_polygons(TRUTH / f"made_{name.replace(', ', '_').replace(' ', '_')}.geojson")
        assert [p.name for p in stored] == [kind for kind, _, _ in shapes]
        for polygon, (_, _, outline) in zip(stored, shapes, strict=True):
            assert np.allclose(polygon.shell, outline, atol=0.011)


def test_luminance_is_opencv_s() -> None:
    # cv2.cvtColor(..., cv2.COLOR_RGB2GRAY), OpenCV 5.0
    colours = [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (204, 205, 206),
        (10, 200, 30),
        (123, 45, 67),
        (1, 1, 1),
        (254, 255, 253),
    ]
    assert luminance(np.array(colours, np.uint8)).tolist() == [76, 150, 29, 205, 124, 71, 1, 254]
    cube = np.random.default_rng(0).integers(0, 256, (100_000, 3), np.uint8)
    exact = (cube * np.array([9798, 19235, 3735])).sum(1) / 32768
    assert (luminance(cube) == np.floor(exact + 0.5)).all()


def test_luminance_bounds_are_included() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    kept = detect(ramp, "luminance")[0]
    assert np.flatnonzero(kept).tolist() == list(range(1, 205))
    assert np.flatnonzero(detect(ramp, "luminance", min_luminance=0.5, max_luminance=0.5)[0]).tolist() == [127]
    assert (detect(ramp[..., 0], "luminance")[0] == kept).all()
    assert (detect(ramp[..., :1], "luminance")[0] == kept).all()


def test_luminance_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("skimage", "skimage.filters", "skimage.filters.rank", "skimage.measure", "scipy", "scipy.ndimage"):
        monkeypatch.setitem(sys.modules, module, None)
    picture = np.full((4, 5, 3), 100, np.uint8)
    assert detect(picture, "luminance").all()
    assert detect(picture, lambda p: p[..., 0] > 99).all()
    for method in ("stain", "otsu", "saturation"):
        picture[:2] = 200, 60, 100
        with pytest.raises(MissingDependencyError, match=r"microtome\[tissue\]"):
            detect(picture, method)


def test_otsu_is_scikit_image_s(real: Path) -> None:
    from skimage.filters import threshold_otsu

    pixels = np.asarray(Image.open(real / "photos/skimage_ihc.png").convert("RGB"))
    grey = luminance(pixels)
    assert (detect(pixels, "otsu") == (grey <= threshold_otsu(grey))).all()


def test_saturation_is_scikit_image_s(pictures: list[Picture]) -> None:
    from skimage.filters import rank, threshold_otsu

    pixels = next(p.pixels for p in pictures if p.name == "CMU-1, 8 µm")
    hsv = np.array(Image.fromarray(pixels).convert("HSV"))
    much, light = (rank.median(hsv[..., i].copy(), np.ones((7, 7), np.uint8)) for i in (1, 2))
    inner = np.s_[3:-3, 3:-3]  # beyond its edge a picture is continued, there
    truth = (much > threshold_otsu(much)) & (light > 25)
    assert 0.2 < truth.mean() < 0.8
    assert (detect(pixels, "saturation")[inner] == truth[inner]).mean() > 0.999


@pytest.mark.parametrize("shape", [(3, 40), (40, 2), (31, 37)])
@pytest.mark.parametrize("radius", [1, 1.5, 4, 12])
def test_discs_are_euclidean(shape: tuple[int, int], radius: float) -> None:
    mask = np.zeros(shape, bool)
    mask[[0, 1, -1], [1, -1, 1]] = True
    y, x = np.indices(shape)
    distance = np.min([np.hypot(y - row, x - column) for row, column in np.argwhere(mask)], axis=0)
    assert (grow(mask, radius) == (distance <= radius)).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 70), (130, 9)])
@pytest.mark.parametrize("size", [1, 3, 9, 15])
def test_local_sums_are_sums(shape: tuple[int, int], size: int) -> None:
    values = np.random.default_rng(0).integers(-3000, 3000, shape).astype(np.int16)
    wide = np.pad(values.astype(int), size // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (size, size))
    assert (local_sum(values, size, np.int32) == windows.sum((2, 3))).all()


def test_block_means_are_means() -> None:
    rng = np.random.default_rng(0)
    pixels, valid = rng.integers(0, 256, (1301, 50, 3), np.uint8), rng.random((1301, 50)) < 0.5
    means, seen = block_means(pixels, valid, 3)
    assert means.shape == (434, 17, 3)
    for y, x in [(0, 0), (200, 5), (433, 3), (300, 16), (433, 16)]:
        part = np.s_[3 * y : 3 * y + 3, 3 * x : 3 * x + 3]
        assert np.abs(means[y, x] - pixels[part].mean((0, 1))).max() < 0.6
        assert seen[y, x] == (valid[part].mean() >= 0.5)


@pytest.mark.parametrize("method", list(METHODS))
def test_pixels_that_are_not_there_are_never_tissue(method: str, pictures: list[Picture]) -> None:
    picture = pictures[6]
    valid = np.ones(picture.tissue.shape, bool)
    valid[40:100, 30:80] = False
    found = detect(picture.pixels, method, spacing_mm=0.008, closing_mm=0.2, valid=valid)
    assert not found[~valid].any()
    assert found[valid].any()
    assert not detect(picture.pixels, method, valid=np.zeros_like(valid)).any()
    # What they hold does not matter to what is far from them.
    other = picture.pixels.copy()
    other[~valid] = (0, 0, 0)
    apart = valid.copy()
    apart[20:120, 10:100] = False
    assert (detect(other, method, valid=valid) == detect(picture.pixels, method, valid=valid))[apart].all()


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (1, 1, 3), (1, 40, 3), (3, 2, 3)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_small_and_flat_pictures(method: str, shape: tuple[int, ...], value: int) -> None:
    for spacing in (None, 0.0005, 0.008):
        found = detect(np.full(shape, value, np.uint8), method, spacing_mm=spacing)
        assert found.shape == shape[:2]
        assert found.dtype == bool
        assert not (value == 255 and found.any())
        assert not (value == 0 and found.any())


def discs(dtype: Any, background: float, light: float) -> tuple[Any, Any]:
    y, x = np.mgrid[0:200, 0:300]
    truth = (np.hypot(y - 100, x - 90) < 60) | (np.hypot(y - 80, x - 220) < 40)
    noise = np.random.default_rng(0).normal(0, light / 50, truth.shape)
    return (np.where(truth, light, background) + noise.clip(-background, None)).astype(dtype), truth


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int32])
@pytest.mark.parametrize("method", ["stain", "otsu"])
def test_fluorescence_is_bright_on_dark(dtype: Any, method: str) -> None:
    first, truth = discs(dtype, 10, 200)
    assert (detect(first, method) == truth).mean() > 0.999
    assert (detect(first[..., None], method) == truth).mean() > 0.999
    # A weak channel counts as much as a strong one, and a hot pixel or a NaN decides nothing.
    strong = np.zeros((*truth.shape, 2), np.float32)
    left = truth & (np.arange(300) < 150)
    strong[..., 0], strong[..., 1] = left * 60000.0, (truth & ~left) * 30.0
    strong[0, 0], strong[5, 5] = 1e9, np.nan
    found = detect(strong, method)
    found[0, 0] = False
    assert (found == truth).all()


def test_rgb_fluorescence_is_recognised(real: Path) -> None:
    blue, truth = discs(np.uint8, 3, 200)
    rgb = np.zeros((*truth.shape, 3), np.uint8)
    rgb[..., 2] = blue * (truth & (np.arange(300) < 150))
    assert (detect(rgb) == (truth & (np.arange(300) < 150))).mean() > 0.999
    # A real one: Hoechst-stained nuclei, 16 bit; nuclei are a minority of pixels and brighter than the rest.
    hoechst = tifffile.imread(real / "photos/cp_speckles_hoechst.tif")
    found = detect(hoechst)
    assert 0.02 < found.mean() < 0.5
    assert hoechst[found].min() > hoechst[~found].max() - 1


def test_closing_and_area_are_in_millimetres() -> None:
    grey = np.full((60, 100, 3), 255, np.uint8)
    grey[10:50, 10:40] = grey[10:50, 46:80] = 100  # a gap of 6 pixels
    grey[5, 90] = grey[6, 91] = 100  # two pixels, corner to corner
    plain = detect(grey, "luminance", spacing_mm=0.01)
    assert not plain[30, 42]
    closed = detect(grey, "luminance", spacing_mm=0.01, closing_mm=0.08)
    assert closed[20:40, 10:80].all()
    assert not detect(grey, "luminance", spacing_mm=0.01, closing_mm=0.04)[30, 42]
    assert detect(grey, "luminance", spacing_mm=0.01, min_area_mm2=1.9e-4)[5, 90]
    large = detect(grey, "luminance", spacing_mm=0.01, min_area_mm2=2.1e-4)
    assert not large[:8].any()
    assert large[10:50, 10:40].all()
    for option in ({"closing_mm": 0.1}, {"min_area_mm2": 0.1}):
        with pytest.raises(SpacingUndefinedError, match="spacing"):
            detect(grey, "luminance", **option)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "guess"},
        {"method": lambda p: p},
        {"method": lambda p: np.zeros((2, 2), bool)},
        {"min_luminance": 0.9},
        {"max_luminance": 1.2},
        {"spacing_mm": 0},
        {"spacing_mm": float("nan")},
        {"spacing_mm": 1, "closing_mm": -1},
        {"spacing_mm": 1, "min_area_mm2": float("inf")},
        {"valid": np.ones((2, 2), bool)},
        {"valid": np.ones((6, 6), np.uint8)},
    ],
)
def test_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        detect(np.zeros((6, 6, 3), np.uint8), **options)


def test_refuses_pixels_that_a_method_cannot_judge() -> None:
    for method in ("luminance", "saturation"):
        with pytest.raises(OptionError, match="of 8 bit"):
            detect(np.zeros((6, 6, 2), np.uint16), method)
    for pixels in (np.zeros(6), np.zeros((2, 2, 2, 2)), np.zeros((6, 6), complex), np.zeros((6, 6), object)):
        with pytest.raises(OptionError, match="no picture"):
            detect(pixels)
