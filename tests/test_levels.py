"""Pixel spacings, the choice of a level, and scale factors.

Oracle: EZ-WSI's rule worked out by hand for given spacings, headers as pydicom reads them, make_slide's own pixels.
"""

from __future__ import annotations

import copy
import math
import pickle
from decimal import Decimal

import numpy as np
import pydicom
import pytest
import xarray as xr

import microtome as mt
from microtome import PixelSpacing
from microtome.errors import LevelNotFoundError, OptionError, SelectionError, SpacingUndefinedError
from microtome.testing import make_slide

UM = 0.001


def tree_of(*spacings: float | tuple[float, float], first: int = 0) -> xr.DataTree:
    """Levels of 8 x 10 pixels with given spacings in µm."""
    nodes = {}
    for number, um in enumerate(spacings, first):
        row, column = um if isinstance(um, tuple) else (um, um)
        coords = {"y": (np.arange(8) + 0.5) * row * UM, "x": (np.arange(10) + 0.5) * column * UM}
        nodes[f"/level{number}"] = xr.Dataset({"image": (("y", "x"), np.full((8, 10), number, "uint8"))}, coords)
    return xr.DataTree.from_dict(nodes)


def number(image: xr.DataArray) -> int:
    """Which level of `tree_of` it is, by its pixels."""
    return int(image.values.flat[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    return make_slide(folder, width=320, height=256, frame=64, levels=4, codec="native", spacing=0.00025)


@pytest.fixture
def slide(made):
    return mt.open_slide(made.folder)


# PixelSpacing


@pytest.mark.parametrize(
    "value",
    [
        0.0005, np.float64(0.0005), np.array(0.0005), Decimal("0.0005"), (0.0005, 0.0005), [0.0005, 0.0005],
        np.array([0.0005, 0.0005]), PixelSpacing(0.0005, 0.0005), pydicom.valuerep.DSfloat("0.0005"),
        pydicom.multival.MultiValue(pydicom.valuerep.DSfloat, ["0.0005", "0.0005"]),
    ],
)  # fmt: skip
def test_what_stands_for_a_spacing(value):
    spacing = PixelSpacing.of(value)
    assert (spacing.row, spacing.column) == (0.0005, 0.0005)
    assert type(spacing.row) is type(spacing.column) is float


def test_pairs_are_row_then_column():
    assert PixelSpacing.of((0.001, 0.002)) == PixelSpacing(row=0.001, column=0.002)
    assert PixelSpacing.from_um((1, 2)).isclose((0.001, 0.002), rtol=1e-12)
    assert PixelSpacing.from_um(0.5) == PixelSpacing(0.0005, 0.0005)
    assert PixelSpacing(0.001, 0.002).finer == 0.001


@pytest.mark.parametrize(
    ("value", "mm"),
    [
        ("20X", 0.0005), ("20x", 0.0005), ("20", 0.0005), (20, 0.0005), (np.int64(20), 0.0005), ("2.5X", 0.004),
        (" 2.5 x ", 0.004), (".5X", 0.02), ("1.X", 0.01), ("40X", 0.00025), ("0.0390625X", 0.256), (2.5, 0.004),
    ],
)  # fmt: skip
def test_magnifications(value, mm):
    spacing = PixelSpacing.from_magnification(value)
    assert spacing.row == spacing.column == pytest.approx(mm, rel=1e-14)
    assert spacing.magnification == pytest.approx(0.01 / mm, rel=1e-14)


@pytest.mark.parametrize(
    "value", ["", "X", "20XX", "-20X", "0X", "1e3X", "20 µm", 0, -1, math.nan, math.inf, True, None]
)
def test_what_is_no_magnification(value):
    with pytest.raises(OptionError, match=r"magnification is a positive number or text such as '20X'"):
        PixelSpacing.from_magnification(value)


@pytest.mark.parametrize(
    "value",
    [0, -0.5, math.nan, math.inf, (0.5, 0), (math.nan, 1), (1, 2, 3), (1,), (), "20X", "0.5", (True, 1), True, None,
     {1: 2, 3: 4}, np.zeros((2, 2)), ("1", "2"), object()],
)  # fmt: skip
def test_what_is_no_spacing(value):
    with pytest.raises(OptionError, match="a pixel spacing is a"):
        PixelSpacing.of(value)
    with pytest.raises(OptionError, match="a pixel spacing is a"):
        PixelSpacing.from_um(value)


def test_an_image_is_no_spacing(slide):
    with pytest.raises(OptionError, match=r"not a DataArray$"):
        PixelSpacing.of(slide["level0"].image)
    with pytest.raises(OptionError, match="positive number of mm, not nan"):
        PixelSpacing(math.nan, 0.5)


def test_nearly_equal_is_by_the_larger_value_and_equality_is_exact():
    one = PixelSpacing.from_um(1)
    assert one.isclose(PixelSpacing.from_um(0.95))  # exactly 5 % of the larger, in decimals
    assert PixelSpacing.from_um(0.95).isclose(one)
    assert not one.isclose(PixelSpacing.from_um(0.949))
    assert one.isclose(PixelSpacing.from_um(1.052))  # 4.9 % of 1.052
    assert not one.isclose(PixelSpacing.from_um(1.0527))
    assert not one.isclose((0.001, 0.0011))  # both axes count
    assert one.isclose(0.0011, rtol=0.1)
    assert one != PixelSpacing.from_um(1.0000001)
    assert len({one, PixelSpacing(0.001, 0.001), PixelSpacing.from_um(1.01)}) == 2


def test_spacings_show_themselves_and_travel():
    spacing = PixelSpacing.from_magnification("20X")
    assert str(spacing) == "0.5 µm/px (20X)"
    assert str(PixelSpacing(0.001, 0.00025)) == "1 x 0.25 µm/px (40X)"
    assert eval(repr(spacing)) == spacing
    assert pickle.loads(pickle.dumps(spacing)) == copy.deepcopy(spacing) == spacing


# level()


@pytest.mark.parametrize(
    ("um", "expected"),
    [
        (0.30, 0),  # 17 % of the larger
        (0.33, 0),  # 24.2 %: EZ-WSI's notebook says 25 %, its code 23 %, and finds nothing
        (0.40, 1),  # 37 % and 20 %
        (0.25, 0), (2.0, 3), (1.1, 2), (0.2, 0), (2.6, 3),
    ],
)  # fmt: skip
def test_the_levels_of_ez_wsi(um, expected):
    tree = tree_of(0.25, 0.5, 1, 2)
    assert number(tree.wsi.level(spacing=um * UM)) == expected
    assert number(tree.wsi.level(magnification=10 / um)) == expected


@pytest.mark.parametrize("um", [0.74, 100, 0.01, 0.36])
def test_what_no_level_has_is_an_error_that_lists_them(um):
    with pytest.raises(LevelNotFoundError) as caught:
        tree_of(0.25, 0.5, 1, 2).wsi.level(spacing=um * UM)
    message = str(caught.value)
    assert f"within 25 % of {um} µm/px" in message.replace("100.0", "100")
    assert "level0 0.25 µm/px (40X), level1 0.5 µm/px (20X), level2 1 µm/px (10X), level3 2 µm/px (5X)" in message
    assert isinstance(caught.value, SelectionError | IndexError)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


@pytest.mark.parametrize(
    ("levels", "um", "expected"),
    [
        ((0.4, 0.5), 0.48, 1),  # EZ-WSI takes the finer one, 17 % off, before the coarser one, 4 % off
        ((0.4, 0.5), 0.41, 0),
        ((0.4, 0.5), 0.44, 0),  # ratios 1.100 and 1.136
        ((0.4, 0.5), 0.449, 1),  # 1.1225 and 1.114; by difference the finer would win
        ((0.4, 0.625), 0.5, 0),  # a tie: the finer
        ((0.5, 0.5, 0.5), 0.5, 0),
        ((0.5, 0.4), 0.48, 0),  # in any order
    ],
)
def test_the_nearer_of_equal_levels_wins(levels, um, expected):
    assert number(tree_of(*levels).wsi.level(spacing=um * UM)) == expected


def test_the_threshold_is_the_documented_one():
    tree = tree_of(0.75, 4)
    assert number(tree.wsi.level(spacing=0.001)) == 0  # exactly a quarter of the larger
    assert number(tree.wsi.level(spacing=0.003)) == 1
    for um in (1.0001, 2.9999):
        with pytest.raises(LevelNotFoundError):
            tree.wsi.level(spacing=um * UM)
    assert number(tree.wsi.level(spacing=1.0001 * UM, rtol=0.2501)) == 0
    assert number(tree.wsi.level(spacing=0.00075, rtol=0)) == 0  # coordinates are no exact decimals
    with pytest.raises(LevelNotFoundError, match="within 0 % of"):
        tree.wsi.level(spacing=0.000751, rtol=0)


def test_a_finer_level_where_that_is_allowed():
    tree = tree_of(0.25, 0.5, 1, 2)
    assert number(tree.wsi.level(spacing=0.00074, max_downsample=1.48)) == 1
    assert number(tree.wsi.level(spacing=0.016, max_downsample=8)) == 3
    assert number(tree.wsi.level(spacing=0.1, max_downsample=math.inf)) == 3
    assert number(tree.wsi.level(spacing=0.0009, max_downsample=8)) == 2  # an equal one comes first
    assert number(tree.wsi.level(spacing=0.0014, rtol=0, max_downsample=2)) == 2
    with pytest.raises(LevelNotFoundError, match=r"a factor up to 1\.47;.*; max_downsample=1\.5 would take level1"):
        tree.wsi.level(spacing=0.00074, max_downsample=1.47)
    with pytest.raises(LevelNotFoundError) as caught:  # nothing is finer
        tree.wsi.level(spacing=0.0001, max_downsample=100)
    assert "would take" not in str(caught.value)


def test_the_remedy_of_the_error_works():
    tree = tree_of(0.25, 0.5, 1, 2)
    with pytest.raises(LevelNotFoundError, match=r"max_downsample=50 would take level3"):
        tree.wsi.level(spacing=0.1)
    assert number(tree.wsi.level(spacing=0.1, max_downsample=50)) == 3


def test_unequal_axes_are_compared_by_the_finer():
    tree = tree_of((0.5, 0.25), (1, 0.5), (2, 1))
    assert number(tree.wsi.level(spacing=0.0005)) == 1
    assert number(tree.wsi.level(spacing=(0.0005, 0.002))) == 1
    assert number(tree.wsi.level(spacing=PixelSpacing.from_um((4, 1)))) == 2
    assert number(tree.wsi.level(magnification="40X")) == 0


def test_by_number_and_name(slide, made):
    for index in (0, 3, np.int64(2), np.uint8(1)):
        np.testing.assert_array_equal(slide.wsi.level(index).values, made.pixels(int(index)))
    for index in (-1, -4, np.int8(-2)):
        np.testing.assert_array_equal(slide.wsi.level(index).values, made.pixels(4 + int(index)))
    assert slide.wsi.level("level2").identical(slide["level2"].image)
    assert slide.wsi.level(magnification="20X").identical(slide["level1"].image)
    for name in slide.wsi.associated:
        assert slide.wsi.level(name).identical(slide[f"associated/{name}"].image)
        assert slide.wsi.level(name).dims == ("row", "column", "c")
    assert "label" in slide.wsi.associated


@pytest.mark.parametrize("index", [4, -5, np.int8(-128), 10**9, "level4", "level", "", "10X", "associated"])
def test_what_is_not_there_is_listed(slide, index):
    with pytest.raises(LevelNotFoundError, match=r"level0 0\.25 µm/px \(40X\), .*, level3 2 µm/px \(5X\)"):
        slide.wsi.level(index)


def test_names_that_are_not_there(made):
    bare = mt.open_slide(made.folder).drop_nodes("associated")
    with pytest.raises(LevelNotFoundError, match=r"no associated image 'label'.*associated images: none"):
        bare.wsi.level("label")
    with pytest.raises(LevelNotFoundError, match="magnification='10X'"):
        bare.wsi.level("10X")
    with pytest.raises(LevelNotFoundError, match="no levels"):
        xr.DataTree().wsi.level(0)
    with pytest.raises(LevelNotFoundError, match="no levels"):
        xr.DataTree().wsi.level(spacing=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"index": 0, "spacing": 0.001}, {"spacing": 0.001, "magnification": 10}, {"index": 1, "magnification": 10},
        {"index": 0.001}, {"index": True}, {"index": (0, 1)}, {"index": 0, "max_downsample": 2},
        {"spacing": 0.001, "rtol": -0.1}, {"spacing": 0.001, "rtol": 1}, {"spacing": 0.001, "rtol": math.nan},
        {"spacing": 0.001, "max_downsample": 0.5}, {"spacing": 0.001, "max_downsample": math.nan},
        {"spacing": "20X"}, {"spacing": -1}, {"magnification": "fine"}, {"magnification": (1, 2)},
    ],
)  # fmt: skip
def test_arguments_without_meaning(arguments):
    with pytest.raises(OptionError):
        tree_of(0.25, 0.5, 1, 2).wsi.level(**arguments)


def test_cropped_and_thinned_trees(slide, made):
    crop = slide.sel(y=slice(0.01, 0.05), x=slice(0.02, 0.06))
    image = crop.wsi.level(magnification="10X")
    assert image.identical(crop["level2"].image)
    assert 0 < image.sizes["y"] < made.level_shapes[2][0]
    assert image.wsi.spacing.isclose(0.001, rtol=1e-9)
    # Every second pixel: what a level is called and what its attributes say no longer tells its spacing.
    half = slide.isel(y=slice(None, None, 2), x=slice(None, None, 2))
    assert half.wsi.level(magnification="10X").identical(half["level1"].image)
    assert half.wsi.level(spacing=0.0005).identical(half["level0"].image)
    empty = slide.isel(y=slice(0, 0))
    assert empty.wsi.level(spacing=0.001).shape == (0, made.level_shapes[2][1], 3)


def test_trees_without_some_levels(slide):
    fewer = slide.drop_nodes(["level0", "level2"])
    assert fewer.wsi.level(1).identical(slide["level1"].image)  # its number is its name
    assert fewer.wsi.level(-1).identical(slide["level3"].image)
    assert fewer.wsi.level(-2).identical(slide["level1"].image)
    assert fewer.wsi.level(spacing=0.00045).identical(slide["level1"].image)
    with pytest.raises(LevelNotFoundError, match=r"no level 2; there are: level1 0\.5 .*, level3 2 "):
        fewer.wsi.level(2)
    with pytest.raises(LevelNotFoundError):
        fewer.wsi.level(-3)
    with pytest.raises(LevelNotFoundError, match="there are: level1"):
        fewer.wsi.level(spacing=0.001)
    assert fewer.wsi.level(spacing=0.001, max_downsample=2).identical(slide["level1"].image)
    assert list(fewer.wsi.levels.index) == ["level1", "level3"]


def test_a_tree_beyond_ten_levels_counts_by_number():
    tree = tree_of(*(0.25 * 2**n for n in range(12)))
    assert number(tree.wsi.level(-1)) == 11
    assert number(tree.wsi.level(10)) == 10
    assert number(tree.wsi.level(spacing=0.512)) == 11


@pytest.mark.parametrize("chunks", ["auto", None])
def test_a_slide_without_spacing(tmp_path, chunks):
    made = make_slide(tmp_path, width=300, height=200, frame=64, levels=2, codec="native", spacing=None)
    slide = mt.open_slide(tmp_path, chunks=chunks)
    for tree, shape in ((slide, "200 x 300"), (slide.isel(y=slice(3, 53)), "50 x 300")):
        for target in ({"spacing": 0.001}, {"magnification": "20X"}):
            with pytest.raises(SpacingUndefinedError, match=rf"level0 \({shape} pixels, spacing undefined\), level1 "):
                tree.wsi.level(**target)
    for level in (0, -1):
        np.testing.assert_array_equal(slide.wsi.level(level).values, made.pixels(level % 2))
    with pytest.raises(LevelNotFoundError, match="200 x 300 pixels"):
        slide.wsi.level(2)
    levels = slide.wsi.levels
    assert levels[["row_spacing", "column_spacing", "magnification"]].isna().all(axis=None)
    image = slide.wsi.level(0)
    for target in ({"target": 0.001}, {"magnification": 1}, {"like": image}):
        with pytest.raises(SpacingUndefinedError):
            image.wsi.scale_factors(**target)
    assert image.wsi.scale_factors(shape=(100, 100)) == (2, 3)


def test_a_real_slide_whose_spacing_follows_from_its_extent(real):
    (file,) = (real / "dicom/pathml_tcga").glob("*.dcm")
    header = pydicom.dcmread(file, stop_before_pixels=True)
    assert "SharedFunctionalGroupsSequence" not in header
    row = header.ImagedVolumeHeight / header.TotalPixelMatrixRows
    column = header.ImagedVolumeWidth / header.TotalPixelMatrixColumns
    slide = mt.open_slide(real / "dicom/pathml_tcga", frame_order="column")
    assert slide.wsi.level(spacing=(row, column)).identical(slide["level0"].image)
    assert slide.wsi.level(0).wsi.spacing.isclose((row, column), rtol=1e-9)
    with pytest.raises(LevelNotFoundError, match="level0"):
        slide.wsi.level(magnification="40X")


def test_levels_with_and_without_spacing():
    tree = tree_of(0.25, 0.5, 1)
    tree["level1"] = xr.DataTree(tree["level1"].to_dataset().drop_vars(["y", "x"]))
    assert number(tree.wsi.level(spacing=0.001)) == 2
    with pytest.raises(LevelNotFoundError, match=r"level1 \(8 x 10 pixels, spacing undefined\)"):
        tree.wsi.level(spacing=0.0005)


@pytest.mark.filterwarnings("ignore::microtome.errors.GeometryWarning")
def test_a_real_pyramid_by_its_headers(real):
    slide = mt.open_slide(real / "dicom/gcp_cmu1_pyramid")
    found = {}
    for file in (real / "dicom/gcp_cmu1_pyramid").glob("*.dcm"):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        found[float(measures.PixelSpacing[0])] = (header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns)
    assert len(found) == 12
    for mm, shape in found.items():
        for near in (mm, mm * 1.2, mm / 1.3):
            assert slide.wsi.level(spacing=near).shape[:2] == shape
        with pytest.raises(LevelNotFoundError):
            slide.wsi.level(spacing=mm * 1.42)
        assert slide.wsi.level(spacing=mm * 1.42, max_downsample=1.5).shape[:2] == shape
    assert slide.wsi.level(magnification="20X").shape == slide.wsi.level(0).shape == (2967, 2220, 3)
    assert slide.wsi.level(magnification="0.01X").shape[:2] == slide.wsi.level(-1).shape[:2] == (1, 1)


# spacing and scale_factors


def test_scale_factors(slide):
    image = slide["level1"].image  # 0.5 µm, 128 x 160
    assert image.wsi.scale_factors(0.001) == pytest.approx((2, 2))
    assert image.wsi.scale_factors((0.001, 0.00125)) == pytest.approx((2, 2.5))
    assert image.wsi.scale_factors(PixelSpacing.from_um(0.25)) == pytest.approx((0.5, 0.5))
    assert image.wsi.scale_factors(magnification="2.5X") == pytest.approx((8, 8))
    assert image.wsi.scale_factors(shape=(32, 10)) == (4, 16)
    assert image.wsi.scale_factors(shape=(np.int64(256), 320)) == (0.5, 0.5)
    assert image.wsi.scale_factors(like=slide["level3"].image) == pytest.approx((4, 4))
    assert image.wsi.scale_factors(like=slide["level3"].image[3:9, 2:7, 0]) == pytest.approx((4, 4))
    assert image[::2, 5:9].wsi.scale_factors(0.001) == pytest.approx((1, 2))  # by coordinates
    assert slide["level1"].dataset.wsi.scale_factors(magnification=10) == pytest.approx((2, 2))
    assert slide["level1"].dataset.wsi.scale_factors(shape=(64, 80)) == (2, 2)
    label = slide["associated/label"].image
    assert label.wsi.scale_factors(shape=(label.sizes["row"] * 2, label.sizes["column"])) == (0.5, 1)


def test_scale_factors_of_unequal_axes():
    image = tree_of((0.5, 0.25))["level0"].image
    assert image.wsi.scale_factors(0.001) == pytest.approx((2, 4))
    assert image.wsi.scale_factors(magnification="20X") == pytest.approx((1, 2))


def test_scale_factors_of_empty_images(slide):
    empty = slide["level1"].image[:0]
    assert empty.wsi.scale_factors(shape=(0, 80)) == (1, 2)
    assert empty.wsi.scale_factors(0.001) == pytest.approx((2, 2))
    with pytest.raises(OptionError, match="0 x 160 pixels cannot be brought to 4 x 80"):
        empty.wsi.scale_factors(shape=(4, 80))


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((), {}), ((0.001,), {"magnification": 10}), ((0.001,), {"shape": (1, 1)}), (("20X",), {}),
        ((), {"shape": (0, 5)}), ((), {"shape": (-1, 5)}), ((), {"shape": (1.5, 5)}), ((), {"shape": 5}),
        ((), {"shape": (1, 2, 3)}), ((), {"magnification": "?"}),
    ],
)  # fmt: skip
def test_targets_without_meaning(slide, arguments, keywords):
    with pytest.raises(OptionError):
        slide["level1"].image.wsi.scale_factors(*arguments, **keywords)


def test_spacing_is_never_nan(slide):
    image = slide["level1"].image
    assert image[7:8, 5:6].wsi.spacing.isclose(0.0005, rtol=1e-12)  # one pixel: as stated
    assert image[7].wsi.spacing.isclose(0.0005, rtol=1e-9)
    alone = image[7:8].drop_attrs()
    with pytest.raises(SpacingUndefinedError, match=r"along y \(1 there\)"):
        _ = alone.wsi.spacing
    with pytest.raises(SpacingUndefinedError, match="along x"):
        _ = image.isel(x=[3, 3]).wsi.spacing
