"""The 32 hard pyramids of ../shared/data/make/make_variants.py against the pixels that they were made from.

Oracles: ``truth_*.tif`` and the 2 x 2 mean for lossless codecs; for the others pydicom's frames, decoded by decoders
that are not ours (see oracles.py), put where the headers say.
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

import microtome as mt
from microtome.errors import IncompleteSlideWarning, MissingFrameError, SlowAccessWarning
from oracles import as_image, assemble, dataset, decode, frames, half, psnr, streams

COLOUR = ["jpeg_ybr422_bot", "jpeg_rgb_eot", "jpeg_empty_bot", "jpeg_multifragment", "jpeg_sparse"]
COLOUR += ["jpeg_sparse_empty_bot", "jpeg_concat_full", "jpeg_concat_sparse", "jpeg_rotated", "jpeg_frame_500x"]
ZSTACK = ["jpeg_zstack", "jpeg_zstack_sparse"]
LOSSLESS = ["j2klossless", "j2klossless_rgb", "htj2klossless", "htj2krpcl", "jpegls", "rle", "jxllossless"]
NATIVE = ["native_explicit", "native_implicit", "native_deflated", "native_bigendian"]
LOSSY = ["j2k", "htj2k", "jpeglsnear", "jxl", "jxlrecomp"]
FLUOR16 = ["fluor16_native", "fluor16_j2k", "fluor16_jpegls_sparse"]
ALL = [*COLOUR, *ZSTACK, *LOSSLESS, *NATIVE, *LOSSY, *FLUOR16, "fluor8_jpeg"]
LEVELS = dict.fromkeys(ALL, 2) | dict.fromkeys([*COLOUR, "jpeg_zstack", "fluor16_native", "fluor16_j2k"], 3)
LEVELS |= {"jpeg_ybr422_bot": 4, "fluor8_jpeg": 3}


def nodes(names: list[str]) -> list[tuple[str, int]]:
    return [(name, level) for name in names for level in range(LEVELS[name])]


def open_variant(variants: Path, name: str, **options):
    if name == "native_deflated":
        with pytest.warns(SlowAccessWarning, match="no random access"):
            return mt.open_slide(variants / name, **options)
    return mt.open_slide(variants / name, **options)


@lru_cache(maxsize=4)
def truth(variants: Path, name: str) -> np.ndarray:
    """Level 0 before it was encoded, as make_variants.py cuts it."""
    if name.startswith("fluor"):
        channels = np.moveaxis(tifffile.imread(variants / "truth_fluor16.tif"), 0, -1)
        return channels if "16" in name else (channels >> 4).astype(np.uint8)
    a = tifffile.imread(variants / "truth_L0.tif")
    if name in ZSTACK:
        a = a[:700, :701]
        blurred = {s: gaussian_filter(a.astype(np.float32), (s, s, 0)).astype(np.uint8) for s in (3, 2)}
        return np.stack([blurred[3], a, blurred[2]])
    if name in NATIVE:
        return a[300:815, 200:801]
    return a if name in COLOUR else a[300:950, 200:801]


def truth_at(variants: Path, name: str, level: int) -> np.ndarray:
    a = truth(variants, name)
    for _ in range(level):
        a = np.stack([half(p) for p in a]) if name in ZSTACK else half(a)
    return a


def level_files(folder: Path, level: int) -> list[Path]:
    return sorted([*folder.glob(f"L{level}.dcm"), *folder.glob(f"L{level}_part*.dcm")])


def test_all_of_the_variants_are_tested(variants):
    assert sorted(ALL) == sorted(p.name for p in variants.iterdir() if p.is_dir())
    assert len(ALL) == 32
    for name in ALL:
        assert LEVELS[name] == len({p.name[:2] for p in (variants / name).glob("L*.dcm")})


@pytest.mark.parametrize(("name", "level"), nodes([*LOSSLESS, *NATIVE, *FLUOR16]))
def test_lossless_levels_equal_their_source_exactly(variants, name, level):
    image = open_variant(variants, name)[f"level{level}"].image
    expected = truth_at(variants, name, level)
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image.values, expected)


@pytest.mark.parametrize(("name", "level"), nodes([*COLOUR, *ZSTACK, *LOSSY, "fluor8_jpeg"]))
def test_lossy_levels_equal_frames_that_others_decode(variants, name, level):
    image = open_variant(variants, name, chunks=None)[f"level{level}"].image.values
    expected, real = assemble(level_files(variants / name, level))
    difference = np.abs(image.astype(int) - as_image(expected))
    # JPEG and JPEG 2000 decoders may round differently, by one or two grey values.
    assert difference.max() <= (0 if "jxl" in name else 2)
    assert difference.mean() < 0.05
    # And the picture is the one that was encoded: orders, colours and wrapped values show here.
    source = truth_at(variants, name, level)
    mask = as_image(np.repeat(real[..., None], expected.shape[-1], -1))
    assert psnr(image[mask], source[mask]) > 27  # misplaced or miscoloured, it is below 20


@pytest.mark.parametrize("name", ["jpeg_sparse", "jpeg_sparse_empty_bot", "jpeg_concat_sparse"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_tiles_left_out_are_white_and_not_covered(variants, name, level):
    _, real = assemble(level_files(variants / name, level))
    real = real[0, 0]
    assert real.all() == (level == 2)
    image = open_variant(variants, name)[f"level{level}"].image
    np.testing.assert_array_equal(image.wsi.coverage().values, real)
    assert (image.values[~real] == 255).all()
    chosen = open_variant(variants, name, fill=(1, 2, 3))[f"level{level}"].image.values
    assert (chosen[~real] == (1, 2, 3)).all()
    np.testing.assert_array_equal(chosen[real], image.values[real])


def test_sparse_fluorescence_of_all_tiles_is_covered(variants):
    covered = open_variant(variants, "fluor16_jpegls_sparse")["level1"].image.wsi.coverage()
    assert covered.dims == ("y", "x", "c")
    assert covered.values.all()


@pytest.mark.parametrize("name", ["label", "overview", "thumbnail"])
def test_associated_images(variants, name):
    slide = open_variant(variants, "jpeg_ybr422_bot")
    assert slide.wsi.associated == ["label", "overview", "thumbnail"]
    image = slide[f"associated/{name}"].image
    file = variants / "jpeg_ybr422_bot" / {"overview": "macro.dcm"}.get(name, f"{name}.dcm")
    (expected,) = frames(dataset(file))
    assert image.dims == ("row", "column", "c")
    assert np.abs(image.values.astype(int) - expected).max() <= 2
    if name == "thumbnail":  # every fourth pixel of level 0
        assert psnr(image.values, truth(variants, "jpeg_ybr422_bot")[::4, ::4]) > 28
        assert np.isclose(np.diff(image.y[:2])[0], 4 * 0.000499)


def test_variants_without_associated_images_have_none(variants):
    slide = open_variant(variants, "jpeg_rgb_eot")
    assert slide.wsi.associated == []
    assert list(slide.children) == ["level0", "level1", "level2"]


@pytest.mark.parametrize("name", ZSTACK)
@pytest.mark.parametrize("level", [0, 1])
def test_focal_planes_are_in_micrometres(variants, name, level):
    # The full stack states planes 0.001 mm apart; the sparse one 0, 0.001 and 0.002, in mm against the standard.
    image = open_variant(variants, name)[f"level{level}"].image
    assert image.dims == ("z", "y", "x", "c")
    np.testing.assert_allclose(image.z, [0, 1, 2])
    assert image.z.attrs["units"] == "µm"


@pytest.mark.parametrize("name", [*FLUOR16, "fluor8_jpeg"])
def test_monochrome_paths_are_channels(variants, name):
    for level in range(LEVELS[name]):
        image = open_variant(variants, name)[f"level{level}"].image
        assert image.dims == ("y", "x", "c")
        assert image.c.values.tolist() == ["Hoechst", "Alexa (H2AX)"]
        assert image.dtype == ("uint16" if "16" in name else "uint8")
        assert [p["wavelength_nm"] for p in image.attrs["optical_paths"]] == [461, 519]


@pytest.mark.parametrize("name", ALL)
def test_levels_state_their_spacing(variants, name):
    table = open_variant(variants, name).wsi.levels
    assert len(table) == LEVELS[name]
    np.testing.assert_allclose(table["row_spacing"], [0.000499 * 2**n for n in range(LEVELS[name])], rtol=1e-6)
    np.testing.assert_allclose(table["column_spacing"], table["row_spacing"], rtol=1e-6)
    expected = [truth_at(variants, name, n).shape for n in range(LEVELS[name])]
    axis = 1 if name in ZSTACK else 0
    assert list(zip(table["rows"], table["columns"], strict=True)) == [s[axis : axis + 2] for s in expected]


@pytest.mark.parametrize("name", ["jpeg_ybr422_bot", "jpeg_sparse", "jpeg_zstack", "fluor16_j2k", "native_bigendian"])
def test_dask_lazy_and_direct_reads_agree(variants, name):
    blocks = open_variant(variants, name, chunks={"y": 300, "x": 333})["level0"].image
    lazy = open_variant(variants, name, chunks=None)["level0"].image
    whole = blocks.values
    np.testing.assert_array_equal(lazy.values, whole)
    np.testing.assert_array_equal(lazy[..., 3::7, ::-5, :].values, whole[..., 3::7, ::-5, :])
    np.testing.assert_array_equal(lazy.wsi.read(250, 240, 200, 290), lazy.isel(y=slice(250, 450), x=slice(240, 530)))


def without_part(variants: Path, name: str, part: int, to: Path) -> Path:
    shutil.copytree(variants / name, to, copy_function=shutil.copy)
    (to / f"L0_part{part}.dcm").unlink()
    return to


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_lost_part_of_a_full_concatenation_raises_where_it_was(variants, tmp_path, part):
    folder = without_part(variants, "jpeg_concat_full", part, tmp_path / "cut")
    _, real = assemble(level_files(folder, 0))
    real = real[0, 0]
    with pytest.warns(IncompleteSlideWarning, match="lost"):
        image = mt.open_slide(folder, chunks=None)["level0"].image
    whole = open_variant(variants, "jpeg_concat_full", chunks=None)["level0"].image.values
    assert image.shape == whole.shape
    for y in range(0, 1300, 256):
        for x in range(0, 1101, 256):
            tile = image[y : y + 256, x : x + 256]
            if real[y, x]:
                np.testing.assert_array_equal(tile.values, whole[y : y + 256, x : x + 256])
            else:
                with pytest.raises(MissingFrameError, match=r"lost|missing|not here"):
                    _ = tile.values
    with pytest.warns(IncompleteSlideWarning):
        filled = mt.open_slide(folder, chunks=None, missing="fill")["level0"].image
    np.testing.assert_array_equal(filled.wsi.coverage().values, real)
    np.testing.assert_array_equal(filled.values[real], whole[real])
    assert (filled.values[~real] == 255).all()


@pytest.mark.parametrize("part", [1, 4])
def test_a_lost_part_of_a_sparse_concatenation(variants, tmp_path, part):
    folder = without_part(variants, "jpeg_concat_sparse", part, tmp_path / "cut")
    _, real = assemble(level_files(folder, 0))
    real = real[0, 0]
    whole = open_variant(variants, "jpeg_concat_sparse", chunks=None)["level0"].image.values
    with pytest.warns(IncompleteSlideWarning, match="lost"):
        image = mt.open_slide(folder, chunks=None)["level0"].image
    # Nobody knows which of the absent tiles are lost, so that each may be.
    with pytest.raises(MissingFrameError):
        _ = image.values
    y, x = np.argwhere(real)[0]
    np.testing.assert_array_equal(image[y : y + 256, x : x + 256].values, whole[y : y + 256, x : x + 256])
    with pytest.warns(IncompleteSlideWarning):
        filled = mt.open_slide(folder, missing="fill")["level0"].image
    np.testing.assert_array_equal(filled.wsi.coverage().values, real)
    np.testing.assert_array_equal(filled.values[real], whole[real])


@pytest.mark.parametrize("name", ["jxllossless", "jxl", "jxlrecomp"])
def test_jpeg_xl_frame_by_frame(variants, name):
    """Trap 4: pydicom does not know JPEG XL, PhotometricInterpretation XYB is refused by wsidicom and highdicom."""
    ds = dataset(variants / name / "L0.dcm")
    image = open_variant(variants, name)["level0"].image
    for number, stream in enumerate(streams(ds)):
        y, x = divmod(number, 3)
        expected = decode(stream, str(ds.file_meta.TransferSyntaxUID))
        part = image[y * 256 : y * 256 + 256, x * 256 : x * 256 + 256]
        np.testing.assert_array_equal(part.values, expected[: part.shape[0], : part.shape[1]])


def test_lossy_htj2k_does_not_wrap_around(variants):
    """Trap 5: imagecodecs.htj2k_decode wraps around where OpenJPEG clamps."""
    image = open_variant(variants, "htj2k")["level0"].image.values
    assert np.abs(image.astype(int) - truth(variants, "htj2k")).max() < 100
