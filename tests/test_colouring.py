"""Colour and stain on slides: against LittleCMS as Pillow calls it, and the functions of arrays on whole levels."""

from __future__ import annotations

import io
import multiprocessing
import warnings
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import xarray as xr
from PIL import Image, ImageCms

import microtome as mt
from microtome.errors import MicrotomeWarning, NoProfileWarning, OptionError
from microtome.ops.stain import Deconvolution, Normalization
from microtome.testing import make_slide


def converted(pixels: np.ndarray, source: bytes, target: bytes | ImageCms.core.CmsProfile) -> np.ndarray:
    to = ImageCms.ImageCmsProfile(io.BytesIO(target) if isinstance(target, bytes) else target)
    transform = ImageCms.buildTransform(ImageCms.ImageCmsProfile(io.BytesIO(source)), to, "RGB", "RGB")
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform))


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coloured")
    make_slide(out, width=900, height=700, codec="native", frame=128)
    return out


@pytest.fixture(params=[None, {"y": 200, "x": 256}], ids=["lazy", "dask"])
def tree(folder: Path, request: pytest.FixtureRequest) -> xr.DataTree:
    return mt.open_slide(folder, chunks=request.param)


def test_profiles_are_pillows(tree: xr.DataTree, real: Path) -> None:
    level = tree["level0"].image
    stored, profile = level.values, tree.wsi.icc_profile()
    assert profile is not None
    for name, file in (("adobe_rgb", "compact_AdobeCompat-v2.icc"), ("display_p3", "compact_DisplayP3-v4.icc")):
        target = (real / "icc" / file).read_bytes()
        expected = converted(stored, profile, target)
        assert furthest(expected, stored) > 5
        image = level.wsi.to_profile(name)
        assert image.shape == level.shape
        assert image.dtype == np.uint8
        assert image.chunks == level.chunks
        assert furthest(image.values, expected) <= 1
        assert furthest(level.wsi.to_profile(target).values, expected) == 0
        assert furthest(level.wsi.to_profile(real / "icc" / file).values, expected) == 0


def test_a_conversion_reads_only_what_is_looked_at(tree: xr.DataTree) -> None:
    level = tree["level0"].image
    image = level.wsi.to_profile("adobe_rgb")
    whole = image.values
    part = image[130:250, 60:300]
    assert np.array_equal(part.values, whole[130:250, 60:300])
    assert part.wsi.explain().frames == level[130:250, 60:300].wsi.explain().frames
    assert np.array_equal(image.wsi.read(130, 60, 20, 30), whole[130:150, 60:90])
    assert np.array_equal(image[..., 1].values, whole[..., 1])
    assert np.array_equal(image.sel(c=["b", "r"]).values, whole[..., [2, 0]])
    points = {"y": xr.DataArray([3, 400], dims="p"), "x": xr.DataArray([899, 0], dims="p")}
    assert np.array_equal(image.isel(points).values, whole[[3, 400], [899, 0]])
    assert np.array_equal(image.wsi.patches(100, 90).image.isel(patch=slice(3, 5)).values, [
        whole[row : row + 100, column : column + 100]
        for row, column in zip(*(image.wsi.patches(100, 90)[n].values[3:5] for n in ("row", "column")), strict=True)
    ])  # fmt: skip


def test_colour_comes_after_resampling(tree: xr.DataTree) -> None:
    """In this order the stored values are averaged; the other order would average converted ones."""
    profile = tree.wsi.icc_profile()
    assert profile is not None
    small = tree.wsi.at(0.0013)
    target = ImageCms.createProfile("sRGB")
    expected = converted(small.values, profile, target)
    assert furthest(small.wsi.to_profile("srgb").values, expected) <= 1


def test_what_tasks_carry_is_small_and_computes_elsewhere(folder: Path) -> None:
    image = mt.open_slide(folder, chunks={})["level0"].image.wsi.to_profile("adobe_rgb")
    sizes = [len(cloudpickle.dumps(task)) for task in dict(image.data.__dask_graph__()).values()]
    assert max(sizes) < 4096
    part = image[:128, :128]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(cloudpickle.loads(cloudpickle.dumps(np.asarray)), (part.variable.compute().values,))
        assert np.array_equal(there, part.values)
        lazy = mt.open_slide(folder, chunks=None)["level0"].image.wsi.to_profile("adobe_rgb")[:128, :128]
        assert np.array_equal(pool.apply(np.asarray, (lazy.variable,)), part.values)


def test_names_of_arrays_tell_profiles_apart(folder: Path, real: Path) -> None:
    level = mt.open_slide(folder)["level0"].image
    other = (real / "icc" / "compact_sRGB-v4.icc").read_bytes()
    images = [level.wsi.to_profile(p, intent=i) for p, i in (
        ("adobe_rgb", "perceptual"), ("adobe_rgb", "absolute"), ("srgb", "perceptual"), (other, "perceptual"),
    )]  # fmt: skip
    assert len({image.data.name for image in images}) == len(images)
    again = mt.open_slide(folder)["level0"].image.wsi.to_profile(other)
    assert again.data.name == images[-1].data.name


def test_slides_without_profile_stay_as_they_are(real: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MicrotomeWarning)
        tree = mt.open_slide(real / "dicom/google_camelyon")
    level = tree["level0"].image
    with pytest.raises(OptionError, match="no ICC profile"):
        level.wsi.to_profile("srgb", require=True)
    with pytest.warns(NoProfileWarning, match="no ICC profile"):
        same = level.wsi.to_profile("srgb")
    assert same.data.name == level.data.name
    assert level.wsi.to_profile("srgb").equals(level)  # no second warning
    given = level.wsi.to_profile("adobe_rgb", source="srgb")
    source, target = ((real / "icc" / f"compact_{n}.icc").read_bytes() for n in ("sRGB-v4", "AdobeCompat-v2"))
    assert furthest(given.values, converted(level.values, source, target)) <= 1


def test_a_profile_that_swaps_colours_is_seen(tree: xr.DataTree) -> None:
    """The shared crayons profile is sRGB's in truth: what makes a visible change is one whose primaries are swapped."""
    from microtome.ops.colour import profile_bytes

    srgb = profile_bytes("srgb")
    swapped = srgb.replace(b"rXYZ", b"@@@@").replace(b"bXYZ", b"rXYZ").replace(b"@@@@", b"bXYZ")
    level = tree["level0"].image
    image = level.wsi.to_profile("srgb", source=swapped)
    assert furthest(image.values, level.values[..., ::-1]) <= 1
    assert furthest(image.values, level.values) > 20


def test_raw_channels_are_refused_and_pseudocolours_are_not(real: Path) -> None:
    tree = mt.open_slide(real / "dicom/3dhistech_BPAEC")
    raw = tree["level2"].image
    assert raw.sizes["c"] == 3
    with pytest.raises(OptionError, match=r"wsi\.pseudocolor"):
        raw.wsi.to_profile("srgb")
    image = raw.wsi.pseudocolor(windows=[(0, 255), (10, 200), (0, 100)], colors=["red", "#00ff00", (0, 0, 255)])
    assert list(image.c.values) == ["r", "g", "b"]
    assert image.dtype == np.uint8
    values = raw.values.astype(float)
    for n, (low, high) in enumerate(((0, 255), (10, 200), (0, 100))):
        expected = np.clip((values[..., n] - low) / (high - low), 0, 1) * 255
        assert np.abs(image.values[..., n] - expected).max() <= 0.5 + 1e-6
    profile = tree.wsi.icc_profile("level2")
    assert profile is not None
    shown = image.wsi.to_profile("srgb").values
    assert furthest(shown, converted(image.values, profile, ImageCms.createProfile("sRGB"))) <= 1
    default = raw.wsi.pseudocolor()
    assert default.values.max() == 255
    assert default.chunks is not None
    with pytest.raises(OptionError, match="in colour already"):
        image.wsi.pseudocolor()
    with pytest.raises(OptionError):
        raw.wsi.pseudocolor(windows=[(0, 255)])


def test_sixteen_bits(variants: Path) -> None:
    tree = mt.open_slide(variants / "fluor16_j2klossless") if (variants / "fluor16_j2klossless").is_dir() else None
    names = [p.name for p in variants.iterdir() if p.name.startswith("fluor16")]
    tree = tree or mt.open_slide(variants / names[0])
    raw = tree["level0"].image
    assert raw.dtype == np.uint16
    image = raw.wsi.pseudocolor(windows=[(300, 2000)] * raw.sizes["c"], colors=["white"] * raw.sizes["c"])
    total = (np.clip((raw.values.astype(float) - 300) / 1700, 0, 1) * 255).sum(axis=-1)
    assert np.abs(image.values[..., 0] - np.minimum(total, 255)).max() <= 1


def test_computed_images_need_a_source(tree: xr.DataTree) -> None:
    level = tree["level1"].image
    inverted = 255 - level
    with pytest.raises(OptionError, match="source="):
        inverted.wsi.to_profile("srgb")
    image = inverted.wsi.to_profile("adobe_rgb", source="srgb")
    assert (image.chunks is None) == (level.chunks is None)
    for wrong in ("sRGB IEC", b"no profile", 7):
        with pytest.raises(OptionError):
            level.wsi.to_profile(wrong)
    with pytest.raises(OptionError, match="rendering intent"):
        level.wsi.to_profile("srgb", intent="best")
    with pytest.raises(OptionError, match="8 or 16 bit"):
        (level / 255).wsi.to_profile("srgb", source="srgb")


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_stains_are_fitted_low_and_applied_lazily(method: str, tree: xr.DataTree) -> None:
    fit = tree.wsi.fit_stain(method)
    assert tree.wsi.fit_stain(method) == fit
    level = tree["level0"].image
    image = level.wsi.normalize(fit)
    assert image.chunks == level.chunks
    assert np.array_equal(image.values, Normalization(fit)(level.values))
    other = tree.wsi.fit_stain(method, pixels=5000)
    assert np.array_equal(image[3:50, 7:90].values, Normalization(fit)(level.values)[3:50, 7:90])
    assert level.wsi.normalize(fit, other).dtype == np.uint8


def test_stains_are_told_apart(tree: xr.DataTree) -> None:
    level = tree["level0"].image
    image = level.wsi.deconvolve()
    assert list(image.c.values) == ["hematoxylin", "eosin"]
    assert image.dtype == np.float32
    assert np.array_equal(image.values, Deconvolution(((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)))(level.values))
    assert level.wsi.deconvolve(tree.wsi.fit_stain()).shape == image.shape
    assert list(level.wsi.deconvolve([(1, 0, 0)]).c.values) == ["stain 1"]
    with pytest.raises(OptionError, match="8 bit"):
        image.wsi.deconvolve()
    with pytest.raises(OptionError, match="method"):
        tree.wsi.fit_stain("best")


def test_a_mask_says_where_stains_are_fitted(tree: xr.DataTree) -> None:
    mask = tree.wsi.tissue_mask().compute()
    nowhere = mask & False
    with pytest.raises(OptionError, match="not enough tissue"):
        tree.wsi.fit_stain(mask=nowhere)
    assert tree.wsi.fit_stain(mask=mask) == tree.wsi.fit_stain()
    everything = {"type": "Polygon", "coordinates": [[[0, 0], [999, 0], [999, 999], [0, 999], [0, 0]]]}
    assert tree.wsi.fit_stain(mask=everything) == tree.wsi.fit_stain(mask=np.ones((3, 4), bool))


def test_channels_are_taken_by_their_labels(tree: xr.DataTree) -> None:
    level = tree["level0"].image
    turned = level.isel(c=[2, 1, 0])
    assert np.array_equal(turned.wsi.to_profile("adobe_rgb").values, level.wsi.to_profile("adobe_rgb").values)
    assert np.array_equal(turned.wsi.deconvolve().values, level.wsi.deconvolve().values)
    backwards = level.isel(c=slice(None, None, -1))
    assert np.array_equal(backwards.wsi.read(3, 5, 20, 30), backwards.values[3:23, 5:35])
    assert np.array_equal(backwards.wsi.region(-4, -4, 30, 30).values[4:, 4:], backwards.values[:26, :26])


def test_what_is_cut_or_has_gaps_has_its_profile(tree: xr.DataTree) -> None:
    level = tree["level0"].image
    whole = level.wsi.to_profile("adobe_rgb").values
    strided = level[::3, ::2].wsi.to_profile("adobe_rgb")
    assert np.array_equal(strided.values, whole[::3, ::2])
    patches = level.wsi.patches(100)
    row, column = int(patches.row[3]), int(patches.column[3])
    converted_after = patches.image.wsi.to_profile("adobe_rgb")
    assert np.array_equal(converted_after[3].values, whole[row : row + 100, column : column + 100])
    assert converted_after.chunks is not None


def test_pseudocolours_are_cut_and_padded(real: Path) -> None:
    raw = mt.open_slide(real / "dicom/3dhistech_BPAEC", chunks=None)["level3"].image
    image = raw.wsi.pseudocolor()
    whole = image.values
    patches = image.wsi.patches(64, pad="fill", order="rows")
    assert np.array_equal(patches.image[0].values, whole[:64, :64])
    region = image.wsi.region(-5, -5, 20, 20).values
    assert np.array_equal(region[5:, 5:], whole[:15, :15])
    assert (region[:5] == region[0, 0]).all()
    one = raw.isel(c=[0, 2]).wsi.pseudocolor(windows=[(0, 255)] * 2, colors=["red", "blue"])
    assert one.chunks is None
    assert one.wsi.explain().frames
    assert one.wsi.coverage().all()


def test_paths_with_profiles_of_their_own(tmp_path: Path) -> None:
    make_slide(tmp_path, width=200, height=150, frame=64, codec="native", rgb_paths=2, levels=1)
    level = mt.open_slide(tmp_path, chunks=None)["level0"].image
    assert level.dims == ("path", "y", "x", "c")
    image = level.wsi.to_profile("adobe_rgb")
    whole = image.values
    assert np.array_equal(image.wsi.patches(64, order="rows").image[1].values, whole[:, :64, 64:128])
    one = image.isel(path=1)
    assert np.array_equal(one.wsi.patches(64, order="rows").image[1].values, whole[1, :64, 64:128])
    assert np.array_equal(one.wsi.region(-3, -3, 20, 20).values[3:, 3:], whole[1, :17, :17])


def test_names_of_arrays_tell_what_is_in_a_file_of_a_profile(tree: xr.DataTree, tmp_path: Path) -> None:
    from microtome.ops.colour import profile_bytes

    file = tmp_path / "profile"
    results = []
    for name in ("adobe_rgb", "romm_rgb"):
        file.write_bytes(profile_bytes(name))
        results.append(tree["level1"].image.wsi.to_profile(str(file)).values)
        assert np.array_equal(results[-1], tree["level1"].image.wsi.to_profile(name).values)
    assert not np.array_equal(*results)


def test_values_that_leave_bits_unused_are_refused(tree: xr.DataTree) -> None:
    twelve = (tree["level1"].image.astype(np.uint16) * 16).assign_attrs(bits_stored=12)
    with pytest.raises(OptionError, match="12 of 16 bits"):
        twelve.wsi.to_profile("srgb", source="srgb")
    full = (tree["level1"].image.astype(np.uint16) * 257).assign_attrs(bits_stored=16)
    assert full.wsi.to_profile("adobe_rgb", source="srgb").dtype == np.uint16
