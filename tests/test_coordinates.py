"""Coordinates tell where pixels are: every pixel holds the millimetres at which it was drawn.

Oracle: the ramp itself (red is y, green is x, in 10 nm, from the corner of level 0), highdicom's transform for slide
coordinates. The ramp is drawn from spacings and offsets given here, not from what microtome makes of the headers.
"""

from __future__ import annotations

import math
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

import microtome as mt
from microtome.errors import GeometryWarning, OptionError, SpacingUndefinedError
from microtome.testing import make_slide

ROWS, COLUMNS = 201, 303  # odd on every level: the last pixels reach over the edge
SPACING = (0.001, 0.002)
OFFSET = (0.0123, -0.0071)  # mm along y and x, of every level but the finest
PER_MM = 1e5
SHIFT = 1000  # keeps what lies left of level 0's corner above 0

ORIENTATIONS = {
    "as scanners do": (0, -1, 0, -1, 0, 0),
    "upright": (1, 0, 0, 0, 1, 0),
    "half turn": (-1, 0, 0, 0, -1, 0),
    "mirrored": (-1, 0, 0, 0, 1, 0),
    "transposed": (0, 1, 0, 1, 0, 0),
    "turned by 30 degrees": (*(math.sqrt(3) / 2, 0.5, 0), *(-0.5, math.sqrt(3) / 2, 0)),
}


def place(level: int, offset: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """True y and x of the pixel centres of a level, in mm."""
    shape = [-(-n // 2**level) for n in (ROWS, COLUMNS)]
    move = offset if level else (0.0, 0.0)
    y, x = ((np.arange(n) + 0.5) * s * 2**level + d for n, s, d in zip(shape, SPACING, move, strict=True))
    return y, x


def ramp(offset: tuple[float, float]):
    def draw(level, path, plane, y0, x0, h, w):
        y, x = place(level, offset)
        y, x = np.meshgrid(y[y0 : y0 + h], x[x0 : x0 + w], indexing="ij")
        values = np.stack([y * PER_MM + SHIFT, x * PER_MM + SHIFT, np.full(y.shape, level)], -1)
        assert values.min() >= 0
        assert values.max() < 65535
        return np.rint(values).astype("uint16")

    draw.__qualname__ = f"ramp {offset}"
    return draw


def write(folder: Path, origins: str, orientation=(0, -1, 0, -1, 0, 0), **options) -> list[Path]:
    """Three levels whose origins are stated as one corner, as the centres of first pixels, or as real offsets."""
    offset = OFFSET if origins == "offset" else (0.0, 0.0)
    slide = make_slide(
        folder, width=COLUMNS, height=ROWS, frame=(64, 80), levels=3, codec="native", dtype="uint16", spacing=SPACING,
        origin_style="centre" if origins == "centre" else "corner", orientation=orientation, pixels=ramp(offset),
        associated=False, **options,
    )  # fmt: skip
    for file in slide.files[1:] if origins == "offset" else ():
        ds = pydicom.dcmread(file)
        row, column = np.array(ds.ImageOrientationSlide[:3], float), np.array(ds.ImageOrientationSlide[3:], float)
        move = row * offset[1] + column * offset[0]
        origin = ds.TotalPixelMatrixOriginSequence[0]
        origin.XOffsetInSlideCoordinateSystem = f"{float(origin.XOffsetInSlideCoordinateSystem) + move[0]:.10g}"
        origin.YOffsetInSlideCoordinateSystem = f"{float(origin.YOffsetInSlideCoordinateSystem) + move[1]:.10g}"
        ds.save_as(file)
    return list(slide.files)


def check_ramp(image, level: int) -> None:
    """Pixels say where they are; coordinates must agree, to a hundredth of a fine pixel."""
    values = image.values.astype(float)
    y, x = (values[..., 0] - SHIFT) / PER_MM, (values[..., 1] - SHIFT) / PER_MM
    np.testing.assert_allclose(y, np.broadcast_to(image.y.values[:, None], y.shape), atol=1e-5)
    np.testing.assert_allclose(x, np.broadcast_to(image.x.values[None], x.shape), atol=1e-5)
    assert (values[..., 2] == level).all()


@pytest.mark.parametrize("origins", ["corner", "centre", "offset"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_are_where_the_coordinates_say(tmp_path, origins, orientation):
    write(tmp_path, origins, ORIENTATIONS[orientation])
    slide = mt.open_slide(tmp_path, chunks=None)
    for level in range(3):
        image = slide[f"level{level}"].image
        y, x = place(level, OFFSET if origins == "offset" else (0, 0))
        np.testing.assert_allclose(image.y, y, atol=1e-9)
        np.testing.assert_allclose(image.x, x, atol=1e-9)
        check_ramp(image, level)
        check_ramp(image[30:7:-3, 5:60:4], level)
        assert image.wsi.spacing.row == pytest.approx(SPACING[0] * 2**level)
        assert image.wsi.spacing.column == pytest.approx(SPACING[1] * 2**level)


@pytest.mark.parametrize("tiling", ["full", "sparse", "sparse-unaligned"])
@pytest.mark.parametrize("chunks", ["auto", None])
def test_the_same_millimetres_of_every_level(tmp_path, tiling, chunks):
    write(tmp_path, "offset", tiling=tiling)
    crop = mt.open_slide(tmp_path, chunks=chunks).sel(y=slice(0.05, 0.1), x=slice(0.2, 0.32))
    for level in range(3):
        image = crop[f"level{level}"].image
        check_ramp(image, level)
        assert image.y.values.min() >= 0.05
        assert image.x.values.max() <= 0.32
        assert image.shape[0] == pytest.approx(0.05 / (SPACING[0] * 2**level), abs=1)
        assert image.shape[1] == pytest.approx(0.12 / (SPACING[1] * 2**level), abs=1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("origins", ["corner", "centre", "offset"])
def test_slide_coordinates_agree_with_highdicom(tmp_path, orientation, origins):
    files = write(tmp_path, origins, ORIENTATIONS[orientation])
    slide = mt.open_slide(tmp_path)
    pixels = np.array([[0, 0], [10, 20], [60, 3], [74, 49]])  # column, row: on every level
    for level, file in enumerate(files):
        image = slide[f"level{level}"].image
        transform = hd.spatial.PixelToReferenceTransformer.for_image(hd.imread(file), for_total_pixel_matrix=True)
        expected = transform(pixels)[:, :2]
        right, up = slide.wsi.to_slide(image.y.values[pixels[:, 1]], image.x.values[pixels[:, 0]])
        if origins == "centre":
            np.testing.assert_allclose(np.stack([right, up], 1), expected, atol=1e-8)
        else:  # one origin cannot be the centre of the first pixel of all levels: it is taken to be their corner
            across, down = transform.affine[:2, 0], transform.affine[:2, 1]
            np.testing.assert_allclose(np.stack([right, up], 1), expected + across / 2 + down / 2, atol=1e-8)
        y, x = slide.wsi.from_slide(right, up)
        np.testing.assert_allclose(y, image.y.values[pixels[:, 1]], atol=1e-9)
        np.testing.assert_allclose(x, image.x.values[pixels[:, 0]], atol=1e-9)


def test_slide_coordinates_broadcast_like_numpy(tmp_path):
    write(tmp_path, "corner", (1, 0, 0, 0, 1, 0))
    slide = mt.open_slide(tmp_path)
    right, up = slide.wsi.to_slide(0.0, 0.0)
    assert (float(right), float(up)) == (20, 40)
    right, up = slide.wsi.to_slide(np.zeros((3, 1)), np.ones(4))
    assert right.shape == up.shape == (3, 4)
    crop = slide.sel(y=slice(0.05, 0.1), x=slice(0.2, 0.3))
    np.testing.assert_allclose(crop.wsi.to_slide(0.07, 0.25), (20.25, 40.07))


@pytest.mark.parametrize("lost", ["TotalPixelMatrixOriginSequence", "ImageOrientationSlide"])
def test_slides_that_do_not_say_where_they_lie(tmp_path, lost):
    for file in write(tmp_path, "centre"):
        ds = pydicom.dcmread(file)
        delattr(ds, lost)
        ds.save_as(file)
    slide = mt.open_slide(tmp_path)
    for level in range(3):
        check_ramp(slide[f"level{level}"].image, level)
    with pytest.raises(OptionError, match="origin and orientation"):
        slide.wsi.to_slide(0, 0)


def test_levels_share_corners(tmp_path):
    write(tmp_path, "corner")
    slide = mt.open_slide(tmp_path)
    for level in range(3):
        image = slide[f"level{level}"].image
        spacing = image.wsi.spacing
        assert float(image.y[0]) - spacing.row / 2 == pytest.approx(0, abs=1e-12)
        assert float(image.x[0]) - spacing.column / 2 == pytest.approx(0, abs=1e-12)
    assert slide["level0"].image.y.attrs["units"] == "mm"


def state(file: Path, row: float, column: float) -> None:
    ds = pydicom.dcmread(file)
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [f"{row:.10g}", f"{column:.10g}"]
    ds.save_as(file)


def test_spacing_that_contradicts_the_extent_warns(tmp_path):
    files = write(tmp_path, "corner")
    state(files[2], SPACING[0] * 4 * 1.05, SPACING[1] * 4)
    with pytest.warns(GeometryWarning, match="level2.*alignment='extent'"):
        stated = mt.open_slide(tmp_path)["level2"].image
    assert stated.wsi.spacing.row == pytest.approx(SPACING[0] * 4 * 1.05)
    slide = mt.open_slide(tmp_path, alignment="extent")  # and no warning
    for level in range(3):
        image = slide[f"level{level}"].image
        spacing = image.wsi.spacing
        assert spacing.row == pytest.approx(ROWS * SPACING[0] / image.shape[0])
        assert spacing.column == pytest.approx(COLUMNS * SPACING[1] / image.shape[1])
        assert float(image.y[-1]) + spacing.row / 2 == pytest.approx(ROWS * SPACING[0])
        assert float(image.x[0]) == pytest.approx(spacing.column / 2)


def test_undefined_spacing_stays_undefined(tmp_path):
    make_slide(tmp_path, width=300, height=200, frame=64, levels=2, codec="native", spacing=None)
    slide = mt.open_slide(tmp_path)
    for level in (0, 1):
        image = slide[f"level{level}"].image
        assert set(image.coords) == {"y_pixel", "x_pixel", "c"}
        np.testing.assert_array_equal(image.y_pixel, np.arange(image.shape[0]))
        with pytest.raises(SpacingUndefinedError):
            _ = image.wsi.spacing
    crop = slide["level0"].image[50:60:3, 70:75]
    assert crop.y_pixel.values.tolist() == [50, 53, 56, 59]
    assert crop.x_pixel.values.tolist() == [70, 71, 72, 73, 74]
    table = slide.wsi.levels
    assert np.isnan(table["row_spacing"]).all()
    assert np.isnan(table["magnification"]).all()
    for name in ("label", "overview", "thumbnail"):
        assert set(slide[f"associated/{name}"].coords) == {"c"}


def remove(ds: pydicom.Dataset, *places: str) -> None:
    if "shared" in places:
        del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    if "volume" in places:
        del ds.ImagedVolumeWidth, ds.ImagedVolumeHeight


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ((), (0.01, 0.02)),
        (("shared",), (0.03, 0.04)),
        (("shared", "frame"), (0.05, 0.06)),
        (("shared", "frame", "volume"), (0.07, 0.08)),
        (("shared", "frame", "volume", "root"), None),
    ],
)
def test_spacing_comes_from_the_first_place_that_states_it(tmp_path, gone, expected):
    """Shared groups, per-frame groups, Imaged Volume over Total Pixel Matrix, the root: in this order."""
    slide = make_slide(
        tmp_path, width=30, height=20, frame=16, levels=1, codec="native", spacing=(0.01, 0.02), associated=False,
        tiling="sparse",
    )  # fmt: skip
    ds = pydicom.dcmread(slide.files[0])
    ds.ImagedVolumeHeight, ds.ImagedVolumeWidth = 20 * 0.05, 30 * 0.06
    if "root" not in gone:
        ds.PixelSpacing = ["0.07", "0.08"]
    for item in () if "frame" in gone else ds.PerFrameFunctionalGroupsSequence:
        measures = pydicom.Dataset()
        measures.PixelSpacing = ["0.03", "0.04"]
        item.PixelMeasuresSequence = [measures]
    remove(ds, *gone)
    ds.save_as(slide.files[0])
    image = mt.open_slide(tmp_path)["level0"].image
    if expected is None:
        assert "y" not in image.coords
    else:
        assert (image.wsi.spacing.row, image.wsi.spacing.column) == pytest.approx(expected)


@pytest.mark.parametrize("nonsense", [["0", "0"], ["-0.001", "0.001"], ["0.001"], None])
def test_spacings_that_cannot_be_true_are_passed_over(tmp_path, nonsense):
    slide = make_slide(tmp_path, width=30, height=20, frame=16, levels=1, codec="native", associated=False)
    ds = pydicom.dcmread(slide.files[0])
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = nonsense
    ds.save_as(slide.files[0])
    spacing = mt.open_slide(tmp_path)["level0"].image.wsi.spacing
    assert spacing.row == pytest.approx(0.0005, rel=1e-3)  # Imaged Volume is right


def test_associated_images_lie_in_millimetres_of_their_own(tmp_path):
    slide = make_slide(tmp_path, width=300, height=200, frame=64, levels=2, codec="native", spacing=SPACING)
    tree = mt.open_slide(tmp_path)
    thumbnail = tree["associated/thumbnail"].image
    assert thumbnail.dims == ("row", "column", "c")
    step = round(slide.level_shapes[1][0] / thumbnail.shape[0])
    assert float(thumbnail.y[1] - thumbnail.y[0]) == pytest.approx(SPACING[0] * 2 * step)
    assert tree.sel(y=slice(0.05, 0.1))["associated/thumbnail"].image.shape == thumbnail.shape


def test_one_row_or_column_keeps_its_spacing(tmp_path):
    write(tmp_path, "corner")
    image = mt.open_slide(tmp_path)["level1"].image[7:8, 9:10]
    assert (image.wsi.spacing.row, image.wsi.spacing.column) == pytest.approx((SPACING[0] * 2, SPACING[1] * 2))
    check_ramp(image, 1)


@pytest.mark.parametrize("spacing", [0.001, None])
def test_coordinates_are_in_memory_whatever_the_chunks(tmp_path, spacing):
    make_slide(tmp_path, width=300, height=200, frame=64, levels=2, codec="native", spacing=spacing)
    for node in mt.open_slide(tmp_path).leaves:
        assert node.dataset["image"].chunks is not None
        assert all(isinstance(c.variable._data, np.ndarray) or c.name in node.indexes for c in node.coords.values())
