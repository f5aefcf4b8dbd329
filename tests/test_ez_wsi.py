"""The patches of EZ-WSI's DicomPatchGenerator, as EZ-WSI itself made them: see data/ez_wsi/make_positions.py."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microtome as mt
from microtome.errors import MicrotomeWarning, OptionError
from microtome.ops import ez_wsi
from microtome.ops.ez_wsi import luminance
from microtome.ops.opencv import resize_area, resize_cubic

DATA = Path(__file__).parent / "data" / "ez_wsi"
SLIDES = sorted(file for file in DATA.glob("*.json") if file.stem != "opencv")


def array_mask(rows: int, columns: int) -> np.ndarray:
    i, j = np.ogrid[:rows, :columns]
    return (i * 7 + j * 13 + i * j) % 5 < 2


def noise(*shape: int) -> np.ndarray:
    number = np.arange(np.prod(shape), dtype=np.uint64)
    number = (number + 1) * np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (number >> np.uint64(56)).astype(np.uint8).reshape(shape)


def digest(values: np.ndarray) -> str:
    little = np.ascontiguousarray(values, "u1" if values.dtype == np.uint8 else "<i8")
    return hashlib.sha256(little.tobytes()).hexdigest()[:20]


class Slide:
    """A slide as EZ-WSI describes it (``stated``) and as we read it."""

    def __init__(self, path: Path, stated: list[dict[str, Any]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MicrotomeWarning)
            self.tree = mt.open_slide(path, chunks=None)
        self.shapes = [tuple(level["shape"]) for level in stated]
        self.spacings = [tuple(level["spacing"]) for level in stated]
        self.frames = [level["frames"] for level in stated]
        self._pixels: dict[int, np.ndarray] = {}

    def pixels(self, level: int) -> np.ndarray:
        if level not in self._pixels:
            self._pixels[level] = self.tree[f"level{level}"].image.values
        return self._pixels[level]


def resolved(slide: Slide, what: dict[str, Any], smallest: list[float]) -> tuple[int | None, tuple, tuple | None, bool]:
    """Return level, shape and spacing of a source or a mask, and whether it is resized."""
    if "level" not in what:
        n = ez_wsi.level_for_spacing(smallest, what["spacing"])
        return (n, (), None, False) if n is None else (n, slide.shapes[n], slide.spacings[n], False)
    n = what["level"]
    shape, spacing = slide.shapes[n], slide.spacings[n]
    if "shape" in what:
        shape, spacing = ez_wsi.resized_level(shape, spacing, to_shape=tuple(what["shape"]))
    elif "spacing" in what:
        shape, spacing = ez_wsi.resized_level(shape, spacing, to_spacing=tuple(what["spacing"]))
    return n, shape, spacing, shape != slide.shapes[n]


def check(slide: Slide, case: dict[str, Any]) -> str:
    """Compare one case; return which way it went."""
    smallest = [min(pair) for pair in slide.spacings]
    source, shape, spacing, resized = resolved(slide, case["source"], smallest)
    if source is None:
        assert case["error"] == "PixelSpacingLevelNotFoundError"
        return "no source"
    asked = case["mask"] or {}
    mask_n, mask_shape, _, mask_resized = (
        resolved(slide, asked, smallest) if "level" in asked else (None, (), None, False)
    )
    bounds = {k: v for k, v in zip(("min_luminance", "max_luminance"), case["luminance"], strict=True) if v is not None}
    options: dict[str, Any] = {**bounds}
    if "array" in asked:
        options["mask"] = array_mask(*asked["array"])
    used: int | str | None
    try:
        used = ez_wsi.mask_level(
            smallest,
            slide.frames,
            source,
            by_spacing="level" not in case["source"],
            resized=resized,
            resized_spacing=min(spacing) if spacing else None,
            level=mask_n,
            spacing=asked.get("spacing") if "level" not in asked else None,
        )
    except OptionError:
        used = "not found"
    if used == "not found":
        assert case["error"] == "PixelSpacingLevelNotFoundError"
        return "no mask level"  # EZ-WSI looks for one even where a mask is given
    if "array" not in asked:
        own = used is None
        pixels = slide.pixels(source if own else used)
        if own:
            pixels = ez_wsi.resize(pixels, shape)
        elif used == mask_n and mask_resized and not (slide.frames[source] == 1 and "level" in case["source"]):
            pixels = ez_wsi.resize(pixels, mask_shape)
        options["mask_pixels"] = pixels
        if "error" not in case:
            stated = case["mask_level"]
            assert stated == ("resized" if own else [used, *pixels.shape[:2]] if isinstance(stated, list) else used)
    if case.get("error") in ("InvalidPatchDimensionError", "InvalidTissueMaskError"):
        with pytest.raises(OptionError, match=r"do not fit|more than the level has pixels"):
            ez_wsi.patch_origins(shape, case["patch"], case["stride"], **options)
        return "refused"
    found = ez_wsi.patch_origins(shape, case["patch"], case["stride"], **options)
    assert found.dtype == np.int64
    if "error" in case:
        assert case["error"] == "DicomImageMissingRegionError"
        assert found.shape == (0, 2)
        return "none"
    some = found if len(found) <= 8 else found[[0, 1, -1]]
    assert (len(found), some.tolist(), digest(found)) == (case["count"], case["some"], case["hash"])
    return "equal"


@pytest.mark.parametrize("file", SLIDES, ids=lambda file: file.stem)
def test_patches_are_those_of_ez_wsi(file: Path, request: pytest.FixtureRequest) -> None:
    stored = json.loads(file.read_text())
    slide = Slide(request.getfixturevalue(stored["root"]) / stored["path"], stored["levels"])
    table = slide.tree.wsi.levels
    assert list(zip(table["rows"], table["columns"], strict=True)) == slide.shapes
    outcomes = []
    for case in stored["cases"]:
        try:
            outcomes.append(check(slide, case))
        except AssertionError as error:
            raise AssertionError(f"{case}") from error
    assert len(outcomes) == 48
    assert outcomes.count("equal") >= 8


def dataset(slide: Slide, case: dict[str, Any]) -> Any:
    """Return the patches of a stored case by the method that users call."""
    source, asked = case["source"], case["mask"] or {}
    options: dict[str, Any] = {"level": source["level"]} if "level" in source else {"spacing": source["spacing"]}
    if "shape" in source:
        options["shape"] = tuple(source["shape"])
    if "array" in asked:
        options["mask"] = array_mask(*asked["array"])
    elif asked:
        options["mask_level"] = asked.get("level", asked.get("spacing"))
    bounds = zip(("min_luminance", "max_luminance"), case["luminance"], strict=True)
    options |= {name: value for name, value in bounds if value is not None}
    return slide.tree.wsi.ez_wsi_patches(case["patch"], case["stride"], **options, chunks=None)


@pytest.mark.parametrize("stem", ["cmu1_jpeg_bot", "gcp_cmu1_pyramid", "google_camelyon"])
def test_slides_are_cut_as_ez_wsi_cuts_them(stem: str, request: pytest.FixtureRequest) -> None:
    (file,) = (file for file in SLIDES if file.stem == stem)
    stored = json.loads(file.read_text())
    slide = Slide(request.getfixturevalue(stored["root"]) / stored["path"], stored["levels"])
    cut = 0
    for case in stored["cases"]:
        resized_by_spacing = "spacing" in case["source"] and "level" in case["source"]
        resized_mask = case["mask"] and "level" in case["mask"] and len(case["mask"]) > 1
        # EZ-WSI looks for a mask level in vain, and fails, where an array is given, too
        in_vain = case.get("error") == "PixelSpacingLevelNotFoundError" and case["mask"] and "array" in case["mask"]
        if resized_by_spacing or resized_mask or in_vain:
            continue
        if case.get("error") not in (None, "DicomImageMissingRegionError"):
            with pytest.raises((OptionError, mt.errors.LevelNotFoundError)):
                dataset(slide, case)
            continue
        patches = dataset(slide, case)
        found = np.stack([patches.row.values, patches.column.values], axis=1)
        if "error" in case:
            assert patches.sizes["patch"] == 0
            continue
        assert (len(found), digest(found)) == (case["count"], case["hash"]), case
        if "shape" not in case["source"] and "level" in case["source"]:
            pixels = slide.pixels(case["source"]["level"])
            row, column = found[-1]
            inside = pixels[max(row, 0) : row + case["patch"], max(column, 0) : column + case["patch"]]
            shown = patches.image.isel(patch=-1).values
            top, left = max(-row, 0), max(-column, 0)
            assert np.array_equal(shown[top : top + inside.shape[0], left : left + inside.shape[1]], inside)
        cut += 1
    assert cut >= 5


def test_all_slides_have_stored_patches() -> None:
    assert len(SLIDES) == 12


@pytest.fixture(scope="module")
def opencv() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((DATA / "opencv.json").read_text())
    return stored


def test_every_colour_has_opencvs_luminance(opencv: dict[str, Any]) -> None:
    grey = hashlib.sha256()
    green, blue = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    for red in range(256):
        grey.update(luminance(np.dstack([np.full_like(green, red), green, blue])).tobytes())
    assert grey.hexdigest()[:20] == opencv["grey"]


def test_luminance_of_grey_pixels_is_themselves() -> None:
    grey = noise(5, 7)
    assert np.array_equal(luminance(grey), grey)
    assert np.array_equal(luminance(grey[..., None]), grey)
    for wrong in (noise(5, 7, 4), noise(5), noise(5, 7, 3).astype(np.uint16)):
        with pytest.raises(OptionError, match="uint8"):
            luminance(wrong)


def test_resizing_by_area_is_opencvs_to_the_last_bit(opencv: dict[str, Any]) -> None:
    assert len(opencv["area"]) == 240
    for shape, target, expected in opencv["area"]:
        made = resize_area(noise(*shape), tuple(target))
        assert made.shape == (*target, *shape[2:])
        assert digest(made) == expected, (shape, target)


@pytest.mark.parametrize(("shape", "target"), [((17, 23), (5, 9)), ((40, 31), (39, 1)), ((30, 21), (10, 7))])
def test_resizing_by_area_is_the_mean_over_areas(shape: tuple[int, int], target: tuple[int, int]) -> None:
    def cover(size: int, count: int) -> list[list[Fraction]]:
        step = Fraction(size, count)
        return [
            [max(Fraction(0), min(step * (n + 1), k + 1) - max(step * n, k)) / step for k in range(size)]
            for n in range(count)
        ]

    pixels = noise(*shape)
    made = resize_area(pixels, target)
    for i, down in enumerate(cover(shape[0], target[0])):
        for j, across in enumerate(cover(shape[1], target[1])):
            mean = sum(w * v * int(pixels[a, b]) for a, w in enumerate(down) for b, v in enumerate(across) if w and v)
            assert abs(float(mean) - int(made[i, j])) <= 0.51


def test_resizing_by_cubic_interpolation_is_opencvs_but_for_halves(opencv: dict[str, Any]) -> None:
    for shape, expected in opencv["cubic"]:
        wanted = np.array(expected)
        made = resize_cubic(noise(*shape), wanted.shape)
        differ = np.abs(made.astype(int) - wanted)
        assert differ.max() <= 1
        assert np.count_nonzero(differ) <= 0.02 * differ.size
    assert np.array_equal(resize_cubic(noise(4, 6), (4, 6)), noise(4, 6))


def test_resize_takes_cubic_where_an_axis_grows() -> None:
    pixels = noise(20, 20, 3)
    assert np.array_equal(ez_wsi.resize(pixels, (21, 3)), resize_cubic(pixels, (21, 3)))
    assert np.array_equal(ez_wsi.resize(pixels, (20, 3)), resize_area(pixels, (20, 3)))
    assert not np.array_equal(resize_cubic(pixels, (21, 3)), resize_area(pixels, (21, 3)))


@pytest.mark.parametrize(
    ("patch", "stride", "size", "grey"), [(50, 20, (203, 171), (31, 60)), (9, 8, (100, 90), (7, 5))]
)
def test_overlapping_patches_have_the_mean_of_their_pixels(
    patch: int, stride: int, size: tuple[int, int], grey: tuple[int, int]
) -> None:
    pixels = noise(*grey)
    made = ez_wsi.stride_mask(pixels, size, patch, stride)
    assert made.shape == tuple((whole - patch) // stride + 1 for whole in size)
    windows = [max(1, math.floor(Fraction(patch * g, w))) for g, w in zip(grey, size, strict=True)]
    for i, j in np.ndindex(made.shape):
        y, x = (math.floor(Fraction(n * stride * g, w)) for n, g, w in zip((i, j), grey, size, strict=True))
        inside = pixels[y : y + windows[0], x : x + windows[1]]
        assert inside.shape == tuple(windows)
        assert made[i, j] == int(inside.sum(dtype=int)) // inside.size


def test_patches_no_larger_than_strides_stand_in_the_middle_of_their_cells() -> None:
    pixels = np.full((10, 12), 255, np.uint8)
    pixels[2, 3] = pixels[9, 0] = 100
    # one pixel of the mask is a stride; 30 // 2 - 15 // 2 is 8
    origins = ez_wsi.patch_origins((300, 360), 15, 30, mask_pixels=pixels)
    assert origins.tolist() == [[2 * 30 + 8, 3 * 30 + 8], [9 * 30 + 8, 0 + 8]]
    assert ez_wsi.patch_origins((300, 360), 30, mask_pixels=pixels).tolist() == [[60, 90], [270, 0]]


def test_bounds_of_luminance_are_inclusive_and_rounded_down() -> None:
    pixels = np.array([[0, 1, 203, 204, 205, 255]], np.uint8)

    def columns(**bounds: float) -> list[int]:
        return (ez_wsi.patch_origins((10, 60), 10, mask_pixels=pixels, **bounds)[:, 1] // 10).tolist()

    assert columns() == [1, 2, 3]
    assert columns(min_luminance=0) == [0, 1, 2, 3]
    assert columns(min_luminance=0.8, max_luminance=1) == [3, 4, 5]
    assert columns(max_luminance=0.799) == [1, 2]  # 203.7
    assert columns(min_luminance=0.3, max_luminance=0.7) == []


def test_masks_of_bools_make_strides_of_their_own() -> None:
    mask = np.zeros((3, 4), np.bool_)
    mask[0, 1] = mask[2, 3] = True
    # strides 101 // 3 = 33 and 90 // 4 = 22; luminance and stride count for nothing
    origins = ez_wsi.patch_origins((101, 90), 10, 7, mask=mask, max_luminance=0.1)
    assert origins.tolist() == [[0 + 11, 22 + 6], [66 + 11, 66 + 6]]
    assert ez_wsi.patch_origins((101, 90), 40, mask=mask).tolist() == [[0, 22], [66, 66]]  # the last one runs off
    assert ez_wsi.patch_origins((101, 90), 30, mask=mask).tolist() == [[0 + 1, 22], [66 + 1, 66]]
    assert ez_wsi.patch_origins((101, 90), 30, mask=~mask | mask).shape == (12, 2)


def test_what_makes_no_sense_is_refused() -> None:
    grey, mask = noise(10, 10), np.ones((4, 4), np.bool_)
    with pytest.raises(OptionError, match="give one of them"):
        ez_wsi.patch_origins((100, 100), 10)
    with pytest.raises(OptionError, match="give one of them"):
        ez_wsi.patch_origins((100, 100), 10, mask=mask, mask_pixels=grey)
    with pytest.raises(OptionError, match="101 x 101 pixels do not fit into a level of 200 x 100"):
        ez_wsi.patch_origins((200, 100), 101, mask_pixels=grey)
    with pytest.raises(OptionError, match="bool, this one is uint8"):
        ez_wsi.patch_origins((100, 100), 10, mask=mask.astype(np.uint8))
    with pytest.raises(OptionError, match="101 x 4 elements"):
        ez_wsi.patch_origins((100, 100), 10, mask=np.ones((101, 4), np.bool_))
    with pytest.raises(OptionError, match=r"\(4, 4, 1\)"):
        ez_wsi.patch_origins((100, 100), 10, mask=mask[..., None])
    for patch, stride in ((0, None), (10, 0), (10, -1), (2.5, None), (True, None)):
        with pytest.raises(OptionError, match="whole number of pixels"):
            ez_wsi.patch_origins((100, 100), patch, stride, mask_pixels=grey)
    with pytest.raises(OptionError, match=r"\(0, 10\)"):
        ez_wsi.patch_origins((100, 100), 10, mask_pixels=grey[:0])


def test_level_for_spacing_has_ez_wsis_faults() -> None:
    levels = [0.00025, 0.0005, 0.001, 0.002]
    assert ez_wsi.level_for_spacing(levels, 0.0003, 0) == 0  # 17 % away
    assert ez_wsi.level_for_spacing(levels, 0.00033, 0) is None
    assert ez_wsi.level_for_spacing(levels, 0.0004, 0) == 1
    assert ez_wsi.level_for_spacing(levels, 0.1, 0) is None
    assert ez_wsi.level_for_spacing([0.0009, 0.00101], 0.001) == 0  # the other one is nearer
    assert ez_wsi.level_for_spacing(levels, 0.016) == 3  # just 8 times finer
    assert ez_wsi.level_for_spacing(levels, 0.0161) is None
    assert ez_wsi.level_for_spacing([math.nan, None, 0.001, 0.001], 0.001) == 2
    assert ez_wsi.level_for_spacing([], 0.001) is None


def test_mask_level() -> None:
    spacings, frames = [0.00025, 0.001, 0.004, 0.008, 0.016], [900, 60, 4, 2, 1]
    assert ez_wsi.mask_level(spacings, frames, 0) == 3
    assert ez_wsi.mask_level(spacings, frames, 3) == 3
    assert ez_wsi.mask_level(spacings, frames, 4, level=0) == 4  # one frame: it is its own mask, whatever is asked for
    assert ez_wsi.mask_level(spacings, frames, 4, level=0, by_spacing=True) == 0
    assert ez_wsi.mask_level(spacings, frames, 0, level=1) == 1
    assert ez_wsi.mask_level(spacings, frames, 0, spacing=0.0011) == 1
    assert ez_wsi.mask_level(spacings, frames, 4, resized=True, resized_spacing=0.001) is None
    assert ez_wsi.mask_level(spacings, frames, 0, resized=True, resized_spacing=0.009) is None
    assert ez_wsi.mask_level(spacings, frames, 0, resized=True, resized_spacing=0.007) == 3
    assert ez_wsi.mask_level([None, 0.004], [9, 2], 0) == 1
    with pytest.raises(OptionError, match=r"0\.008 mm a pixel: the stored levels have 0\.00025, undefined mm"):
        ez_wsi.mask_level([0.00025, None], [900, 60], 0)


def test_resized_level() -> None:
    assert ez_wsi.resized_level((100, 200), None, to_shape=(50, 70)) == ((50, 70), None)
    # 3.001 and 3 lead to one shape, so that 3.001 serves both axes
    shape, spacing = ez_wsi.resized_level((100, 200), (1.0, 1.0), to_spacing=(3.0, 3.001))
    assert (shape, spacing) == ((33, 66), (3.001, 3.001))
    shape, spacing = ez_wsi.resized_level((100, 200), (1.0, 1.0), to_spacing=(3.0, 4.0))
    assert (shape, spacing) == ((33, 50), (3.0, 4.0))
    assert ez_wsi.resized_level((10, 20), (1.0, 1.0), to_spacing=(30.0, 30.0))[0] == (1, 1)
    with pytest.raises(OptionError, match="no pixel spacing"):
        ez_wsi.resized_level((10, 20), None, to_spacing=(30.0, 30.0))
    with pytest.raises(OptionError, match="give one of them"):
        ez_wsi.resized_level((10, 20), None)
