"""Rectangles that may run off an image: `wsi.region`, against NumPy's padding of the pixels that went into a slide."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import microtome as mt
from microtome.errors import OptionError, SelectionError, SpacingUndefinedError
from microtome.storage import LocalSource
from microtome.testing import SyntheticSlide, make_slide
from oracles import covered_by_frames

EXAMPLES = os.environ.get("MICROTOME_EXAMPLES")
few = settings(
    deadline=None, max_examples=int(EXAMPLES or 30), derandomize=not EXAMPLES, database=None,
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip

SPACING = 0.0005
ROWS, COLUMNS, FRAME = 97, 130, 32
PIXELS = np.random.default_rng(3).integers(0, 255, (ROWS, COLUMNS, 3), dtype=np.uint8)
FAR = 1_000_000_000


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("slide"), pixels=PIXELS, frame=FRAME, codec="native", levels=2)


@pytest.fixture(params=[None, {"y": 32, "x": 64}], ids=["lazy", "dask"])
def image(request: pytest.FixtureRequest, slide: SyntheticSlide) -> xr.DataArray:
    return mt.open_slide(slide.folder, chunks=request.param)["level0"].image


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of everything that is read from here on."""
    seen: list[int] = []
    original = LocalSource.read

    def read(self: LocalSource, offset: int, length: int) -> bytes:
        seen.append(length)
        return original(self, offset, length)

    monkeypatch.setattr(LocalSource, "read", read)
    return seen


def filled(whole: np.ndarray, y: int, x: int, height: int, width: int, fill: Any = 255) -> np.ndarray:
    """A rectangle of (h, w, c), by pasting what is inside."""
    out = np.empty((height, width, *whole.shape[2:]), whole.dtype)
    out[...] = fill
    top, bottom = max(y, 0), min(y + height, whole.shape[0])
    left, right = max(x, 0), min(x + width, whole.shape[1])
    if top < bottom and left < right:
        out[top - y : bottom - y, left - x : right - x] = whole[top:bottom, left:right]
    return out


EVERY_SIDE = [
    (-10, 20), (-10, -7), (20, -7), (80, 20), (80, 115), (20, 115), (80, -7), (-10, 115), (-40, 10), (97, 10), (5, -40),
    (5, 130), (-400, -400), (FAR, 3), (-FAR, FAR), (3, -FAR), (0, 0), (65, 98), (-1, -1), (96, 129),
]  # fmt: skip


@pytest.mark.parametrize(("y", "x"), EVERY_SIDE)
def test_every_side(image: xr.DataArray, y: int, x: int) -> None:
    got = image.wsi.region(y, x, 32, 40)
    assert got.dims == ("y", "x", "c")
    assert got.dtype == np.uint8
    assert (got.chunks is None) == (image.chunks is None)
    expected = filled(PIXELS, y, x, 32, 40)
    np.testing.assert_array_equal(got.values, expected)
    np.testing.assert_array_equal(got.wsi.read(3, 5, 20, 30), expected[3:23, 5:35])
    np.testing.assert_array_equal(got[::-3, 7].values, expected[::-3, 7])
    np.testing.assert_allclose(got.y, (y + np.arange(32) + 0.5) * SPACING, rtol=1e-12)
    np.testing.assert_allclose(got.x, (x + np.arange(40) + 0.5) * SPACING, rtol=1e-12)
    real = filled(np.ones((ROWS, COLUMNS), bool), y, x, 32, 40, False)
    np.testing.assert_array_equal(got.wsi.coverage().values, real)
    inside_y, inside_x = (got.y > 0) & (got.y < ROWS * SPACING), (got.x > 0) & (got.x < COLUMNS * SPACING)
    np.testing.assert_array_equal(got.y[inside_y], image.y[max(y, 0) : max(y + 32, 0)])  # to the bit
    np.testing.assert_array_equal(got.x[inside_x], image.x[max(x, 0) : max(x + 40, 0)])


@few
@given(
    y=st.integers(-150, 200), x=st.integers(-150, 200), height=st.integers(0, 200), width=st.integers(0, 200),
    top=st.integers(0, 97), left=st.integers(0, 130), fill=st.sampled_from([None, 7, (1, 2, 3)]),
    kind=st.sampled_from(["lazy", "dask", "numpy", "computed"]), second=st.booleans(),
)  # fmt: skip
def test_any_rectangle(
    slide: SyntheticSlide, y: int, x: int, height: int, width: int, top: int, left: int, fill: Any, kind: str,
    second: bool,
) -> None:  # fmt: skip
    tree = mt.open_slide(slide.folder, chunks=None if kind == "lazy" else {"y": 32, "x": 64})
    image = tree["level0"].image[top:, left:]
    truth = PIXELS[top:, left:]
    if kind == "numpy":
        image = image.compute()
    elif kind == "computed":
        image, truth = image + 1, truth + 1
    default = 255 if kind in ("lazy", "dask") else 0
    value = default if fill is None else fill
    got, expected = image.wsi.region(y, x, height, width, fill=fill), filled(truth, y, x, height, width, value)
    if second:  # a rectangle of a rectangle
        got, expected = got.wsi.region(-3, x, width, 9, fill=5), filled(expected, -3, x, width, 9, 5)
    np.testing.assert_array_equal(got.values, expected)
    assert (got.chunks is None) == (kind in ("lazy", "numpy"))


def test_fills(image: xr.DataArray) -> None:
    for fill, value in (
        (None, 255),
        (0, 0),
        (255, 255),
        ((1, 2, 3), (1, 2, 3)),
        (np.array([9, 8, 7]), (9, 8, 7)),
        (3.0, 3),
        ([4], 4),
    ):
        got = image.wsi.region(-5, 120, 20, 20, fill=fill)
        np.testing.assert_array_equal(got.values, filled(PIXELS, -5, 120, 20, 20, value))
        np.testing.assert_array_equal(got[..., 1].values, filled(PIXELS, -5, 120, 20, 20, value)[..., 1])
    one = image[..., 2]
    np.testing.assert_array_equal(
        one.wsi.region(-5, 120, 20, 20, fill=4).values, filled(PIXELS, -5, 120, 20, 20, 4)[..., 2]
    )
    two = image.isel(c=[2, 0])
    got = two.wsi.region(-5, 120, 20, 20, fill=(1, 2))
    np.testing.assert_array_equal(got.values, filled(PIXELS[..., [2, 0]], -5, 120, 20, 20, (1, 2)))


@pytest.mark.parametrize(
    "fill", [256, -1, 0.5, "white", (1, 2), (1, 2, 3, 4), math.nan, math.inf, [[1, 2, 3]], object(), ((1, 2), 3), 1j]
)
def test_fills_that_no_pixel_has(image: xr.DataArray, fill: Any) -> None:
    with pytest.raises(OptionError, match="is no pixel of 3 channels of uint8"):
        image.wsi.region(-5, 0, 10, 10, fill=fill)
    with pytest.raises(OptionError, match="is no pixel of 3 channels of uint8"):
        (image + 1).wsi.region(-5, 0, 10, 10, fill=fill)


@pytest.mark.parametrize("fill", [0.1, math.nan, -1, 3, math.inf])
def test_fills_of_floats(image: xr.DataArray, fill: float) -> None:
    """To the precision of the pixels: 0.1 is no float32."""
    floats = image.astype(np.float32) / np.float32(7)
    got = floats.wsi.region(-5, 0, 10, 10, fill=fill)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.values[:5], np.full((5, 10, 3), fill, np.float32))
    with pytest.raises(OptionError, match="is no pixel"):
        floats.wsi.region(-5, 0, 10, 10, fill=1e300)


def test_cost_does_not_depend_on_how_far_it_runs_off(image: xr.DataArray, reads: list[int]) -> None:
    """EZ-WSI takes seconds for 1000 rows above the image."""
    image.wsi.region(-5, 5, 20, 20).values  # noqa: B018
    seconds = []
    for y, x in ((-5, 5), (-FAR, -FAR), (FAR, FAR), (FAR, 5)):
        best = math.inf
        for _ in range(5):
            begin = time.perf_counter()
            image.wsi.region(y, x, 20, 20).values  # noqa: B018
            best = min(best, time.perf_counter() - begin)
        seconds.append(best)
    assert max(seconds) < 10 * seconds[0] + 0.01
    reads.clear()
    for y, x in ((-FAR, 0), (0, FAR), (-20, 0), (ROWS, 0)):
        far = image.wsi.region(y, x, 20, 20)
        assert far.wsi.explain().frames == 0
        assert far.values.min() == 255
    assert not reads


@pytest.mark.parametrize(("y", "x"), [(-90, -120), (96, 129), (-90, 129), (-1, 64), (96, 0)])
def test_no_more_is_read_than_is_shown(slide: SyntheticSlide, reads: list[int], y: int, x: int) -> None:
    image = mt.open_slide(slide.folder, chunks=None)["level0"].image
    region = image.wsi.region(y, x, 96, 128)
    rows = {i // FRAME for i in range(max(y, 0), min(y + 96, ROWS))}
    columns = {i // FRAME for i in range(max(x, 0), min(x + 128, COLUMNS))}
    frames = len(rows) * len(columns)
    assert region.wsi.explain().frames == frames
    reads.clear()
    np.testing.assert_array_equal(region.values, filled(PIXELS, y, x, 96, 128))
    assert sum(reads) == frames * FRAME * FRAME * 3


def test_many_regions_of_a_region(image: xr.DataArray) -> None:
    region = image.wsi.region(-50, -60, 300, 400)
    expected = filled(PIXELS, -50, -60, 300, 400)
    y0, x0 = [0, 40, 60, 200, 130, 90], [0, 50, 80, 300, 170, 350]
    for height, width in ((20, 30), (100, 50), (1, 1), (0, 5)):
        out = np.full((6, height, width, 3), 77, np.uint8)
        got = region.wsi.read(y0, x0, height, width, out=out)
        assert got is out
        for n, (y, x) in enumerate(zip(y0, x0, strict=True)):
            np.testing.assert_array_equal(got[n], expected[y : y + height, x : x + width])
    with pytest.raises(SelectionError, match="not inside an image of 300 x 400"):
        region.wsi.read(-1, 0, 5, 5)


# Places in mm, coordinates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1])
def test_places_in_mm(slide: SyntheticSlide, level: int) -> None:
    image = mt.open_slide(slide.folder)[f"level{level}"].image
    truth = slide.pixels(level)
    mm = SPACING * 2**level
    for y, x in ((-0.01, 0.0), (0.01, -0.0031), (0.0449, 0.06), (5.0, 5.0)):
        row, column = round(y / mm), round(x / mm)
        got = image.wsi.region(y, x, 16, 18, unit="mm")
        np.testing.assert_array_equal(got.values, filled(truth, row, column, 16, 18))
        assert abs(float(got.y[0]) - mm / 2 - y) <= mm / 2 + 1e-9
        assert abs(float(got.x[0]) - mm / 2 - x) <= mm / 2 + 1e-9
    part = image[10:20, 12:30].wsi.region(0.0, 0.0, 25, 35, unit="mm")
    expected = np.full((25, 35, 3), 255, np.uint8)
    expected[10:20, 12:30] = truth[10:20, 12:30][:, :23]
    np.testing.assert_array_equal(part.values, expected)
    np.testing.assert_allclose(part.y, (np.arange(25) + 0.5) * mm)


def test_an_anisotropic_level(tmp_path: Path) -> None:
    make_slide(tmp_path, pixels=PIXELS, frame=32, codec="native", levels=1, spacing=(0.001, 0.00025), associated=False)
    got = mt.open_slide(tmp_path)["level0"].image.wsi.region(-0.005, 0.03, 10, 30, unit="mm")
    np.testing.assert_array_equal(got.values, filled(PIXELS, -5, 120, 10, 30))
    assert got.wsi.spacing.row == pytest.approx(0.001)
    assert got.wsi.spacing.column == pytest.approx(0.00025)


def test_undefined_spacing(tmp_path: Path) -> None:
    make_slide(tmp_path, pixels=PIXELS, frame=32, codec="native", levels=1, spacing=None, associated=False)
    image = mt.open_slide(tmp_path)["level0"].image
    got = image[10:, 20:].wsi.region(-15, 100, 40, 30)
    np.testing.assert_array_equal(got.values, filled(PIXELS[10:, 20:], -15, 100, 40, 30))
    np.testing.assert_array_equal(got.y_pixel, np.arange(-5, 35))
    np.testing.assert_array_equal(got.x_pixel, np.arange(120, 150))
    assert got.y_pixel.dtype == image.y_pixel.dtype
    with pytest.raises(SpacingUndefinedError, match="give the place in pixels"):
        image.wsi.region(0.1, 0.1, 5, 5, unit="mm")
    stepped = image[::2, ::-1].wsi.region(-2, -3, 10, 10)
    np.testing.assert_array_equal(stepped.y_pixel, np.arange(-4, 16, 2))
    np.testing.assert_array_equal(stepped.x_pixel, np.arange(132, 122, -1))
    np.testing.assert_array_equal(stepped.values, filled(PIXELS[::2, ::-1], -2, -3, 10, 10))


def test_reversed_images(image: xr.DataArray) -> None:
    upside_down = image[::-1, ::2]
    got = upside_down.wsi.region(-4, 60, 20, 10, fill=9)
    np.testing.assert_array_equal(got.values, filled(PIXELS[::-1, ::2], -4, 60, 20, 10, 9))
    np.testing.assert_allclose(got.y, (ROWS - 1 - np.arange(-4, 16) + 0.5) * SPACING)
    np.testing.assert_allclose(got.x, (2 * np.arange(60, 70) + 0.5) * SPACING)
    with pytest.raises(OptionError, match="does not increase evenly"):
        upside_down.wsi.region(0.0, 0.0, 5, 5, unit="mm")


def test_one_row_and_none(image: xr.DataArray) -> None:
    one = image[40:41, 50:51].wsi.region(-2, -3, 5, 6)
    np.testing.assert_array_equal(one.values, filled(PIXELS[40:41, 50:51], -2, -3, 5, 6))
    np.testing.assert_allclose(one.y, (np.arange(38, 43) + 0.5) * SPACING)
    none = image[40:40].wsi.region(-2, 0, 5, 6)
    assert (none.values == 255).all()
    assert none.shape == (5, 6, 3)
    large = image[40:41, 3:4].wsi.region(-500, -500, 1000, 1000)
    assert large.chunks is None or large.data.npartitions <= 4
    assert image.wsi.region(-5, -5, 0, 3).values.shape == (0, 3, 3)
    assert image.wsi.region(500, 3, 2, 0).values.shape == (2, 0, 3)


# Other images ------------------------------------------------------------------------------------------------------


def test_associated_images(slide: SyntheticSlide) -> None:
    label = mt.open_slide(slide.folder)["associated/label"].image
    got = label.wsi.region(-3, -4, 20, 21, fill=(9, 8, 7))
    assert got.dims == ("row", "column", "c")
    np.testing.assert_array_equal(got.values, filled(label.values, -3, -4, 20, 21, (9, 8, 7)))
    with pytest.raises(SpacingUndefinedError, match="give the place in pixels"):
        label.wsi.region(0.0, 0.0, 3, 3, unit="mm")


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_stacks(tmp_path: Path, chunks: Any) -> None:
    options: dict[str, Any] = {"width": 50, "height": 40, "frame": 16, "codec": "native", "levels": 1}
    slide = make_slide(tmp_path / "a", paths=("A", "B", "C"), focal_planes=2, dtype="uint16", **options)
    image = mt.open_slide(tmp_path / "a", chunks=chunks)["level0"].image
    got = image.wsi.region(-5, 40, 20, 20, fill=(1, 2, 60000))
    assert got.dims == ("z", "y", "x", "c")
    for z in range(2):
        for c, value in enumerate((1, 2, 60000)):
            expected = filled(slide.pixels(0, z, c)[..., 0], -5, 40, 20, 20, value)
            np.testing.assert_array_equal(got.isel(z=z, c=c).values, expected)
    plane = image.isel(z=1, c=[2, 0]).wsi.region(-5, 40, 20, 20)
    np.testing.assert_array_equal(plane.values[..., 0], filled(slide.pixels(0, 1, 2)[..., 0], -5, 40, 20, 20, 0))
    assert got.wsi.coverage().dims == ("z", "y", "x", "c")
    assert got.wsi.coverage().values.sum() == 2 * 3 * 15 * 10
    colours = make_slide(tmp_path / "b", rgb_paths=2, **options)
    got = mt.open_slide(tmp_path / "b", chunks=chunks)["level0"].image.wsi.region(30, -3, 20, 20)
    for p in range(2):
        np.testing.assert_array_equal(got.isel(path=p).values, filled(colours.pixels(0, path=p), 30, -3, 20, 20))


@pytest.mark.parametrize("chunks", [None, {"y": 64, "x": 32}])
def test_sparse_slides(tmp_path: Path, chunks: Any) -> None:
    """Beyond the edge is what missing tiles are filled with, and neither is covered."""
    slide = make_slide(
        tmp_path, width=200, height=180, frame=32, codec="rle", levels=1, tiling="sparse", drop=0.8, shuffle=True
    )
    covered = covered_by_frames(slide.files[0], (180, 200))
    for value in (255, (10, 20, 30)):
        options = {} if value == 255 else {"fill": value}
        image = mt.open_slide(tmp_path, chunks=chunks, **options)["level0"].image
        pixels = np.where(covered[..., None], slide.pixels(0), np.array(value, np.uint8))
        for y, x in ((-40, -40), (150, 160), (-40, 160), (300, 0)):
            got = image.wsi.region(y, x, 90, 100)
            np.testing.assert_array_equal(got.values, filled(pixels, y, x, 90, 100, value))
            np.testing.assert_array_equal(got.wsi.coverage().values, filled(covered, y, x, 90, 100, False))
            part = got[::2, 3:].wsi.coverage()
            np.testing.assert_array_equal(part.values, filled(covered, y, x, 90, 100, False)[::2, 3:])


def test_masks(image: xr.DataArray) -> None:
    for mask in (image[..., 0] > 128, (image[..., 0] > 128).compute()):
        got = mask.wsi.region(-5, 120, 20, 30)
        assert got.dtype == bool
        np.testing.assert_array_equal(got.values, filled(PIXELS[..., 0] > 128, -5, 120, 20, 30, False))
        assert mask.wsi.region(FAR, 0, 4, 4).values.sum() == 0
        assert mask.wsi.region(FAR, 0, 4, 4, fill=True).values.all()


def test_axes_in_other_orders(image: xr.DataArray) -> None:
    expected = filled(PIXELS, -5, 120, 20, 30, (1, 2, 3))
    turned = image.transpose("c", "x", "y").wsi.region(-5, 120, 20, 30, fill=(1, 2, 3))
    assert turned.dims == ("c", "x", "y")
    np.testing.assert_array_equal(turned.values, expected.transpose(2, 1, 0))
    ahead = image.isel(c=1).expand_dims("c").wsi.region(-5, 120, 20, 30, fill=4)
    assert ahead.dims == ("c", "y", "x")
    np.testing.assert_array_equal(ahead.values[0], filled(PIXELS[..., 1], -5, 120, 20, 30, 4))
    swapped = image.rename({"y": "x", "x": "y"}).wsi.region(-5, -6, 20, 30, fill=4)
    np.testing.assert_array_equal(
        swapped.values, filled(PIXELS.transpose(1, 0, 2), -5, -6, 20, 30, 4).transpose(1, 0, 2)
    )


def test_regions_of_resampled_images(slide: SyntheticSlide) -> None:
    for chunks in (None, "auto"):
        image = mt.open_slide(slide.folder, chunks=chunks).wsi.at(spacing=0.00125)
        whole = image.values
        got = image.wsi.region(-7, 40, 30, 40)
        np.testing.assert_array_equal(got.values, filled(whole, -7, 40, 30, 40))
        np.testing.assert_allclose(got.y, (np.arange(-7, 23) + 0.5) * 0.00125)
        again = got.wsi.resize(0.0025)
        assert again.sizes["y"] in (14, 15)


def test_coordinates_that_are_of_no_pixel_stay(image: xr.DataArray) -> None:
    image = image.assign_coords(place=7, weight=("c", [1.0, 2.0, 3.0]), row_name=("y", np.arange(ROWS)))
    got = image.wsi.region(-5, 0, 10, 10)
    assert set(got.coords) == {"y", "x", "c", "place", "weight"}
    assert got.name == image.name
    assert got.attrs == image.attrs
    inside = image.wsi.region(5, 6, 10, 10)
    assert "row_name" in inside.coords
    xr.testing.assert_identical(inside, image[5:15, 6:16])


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("y", "x"), [(-1, 0), (0, -1), (66, 0), (0, 91), (FAR, FAR)])
def test_require_inside(image: xr.DataArray, y: int, x: int) -> None:
    with pytest.raises(SelectionError, match="not inside an image of 97 x 130 pixels; without require_inside"):
        image.wsi.region(y, x, 32, 40, require_inside=True)


def test_require_inside_of_what_is_inside(image: xr.DataArray) -> None:
    for y, x in ((0, 0), (65, 90), (np.int64(3), np.int32(4)), (3.0, 4.0)):
        got = image.wsi.region(y, x, 32, 40, require_inside=True)
        np.testing.assert_array_equal(got.values, PIXELS[int(y) : int(y) + 32, int(x) : int(x) + 40])
    assert image.wsi.region(97, 130, 0, 0, require_inside=True).size == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0, 3, 3), "whole numbers; a place in mm is given with unit='mm'"),
        ((math.nan, 0, 3, 3), "whole numbers"), ((0, math.inf, 3, 3), "whole numbers"),
        (("a", 0, 3, 3), "whole numbers"),
        ((None, 0, 3, 3), "whole numbers"), ((0, 0, -1, 3), "0 or more"), ((0, 0, 3, 2.5), "0 or more"),
        ((0, 0, math.nan, 3), "0 or more"), ((0, 0, 3, math.inf), "0 or more"), ((0, 0, "a", 3), "0 or more"),
    ],
)  # fmt: skip
def test_places_without_meaning(image: xr.DataArray, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        image.wsi.region(*arguments)


def test_units_without_meaning(image: xr.DataArray) -> None:
    with pytest.raises(OptionError, match="'pixel' or 'mm'"):
        image.wsi.region(0, 0, 3, 3, unit="um")
    with pytest.raises(OptionError, match="finite"):
        image.wsi.region(math.nan, 0, 3, 3, unit="mm")
    with pytest.raises(OptionError, match="dimensions y and x"):
        image[3].wsi.region(0, 0, 3, 3)
    with pytest.raises(SpacingUndefinedError, match="give the place in pixels"):
        image[:0].wsi.region(0.0, 0.0, 3, 3, unit="mm")
