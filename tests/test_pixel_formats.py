"""Every way pixels are stored in slides, read as a whole level through `open_slide`.

Oracle: the array that was stored; pydicom's palette and colour space functions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

import microtome as mt
from microtome.testing import make_slide

ROWS, COLUMNS = 19, 23
FRAME = (5, 7)  # 35 pixels: frames of one bit begin inside a byte
LOSSLESS = ["native", "native-implicit", "native-bigendian", "deflated-frame", "encapsulated-native", "rle"]
LOSSLESS += ["jpeg-lossless", "jpeg-ls", "j2k-lossless", "htj2k-lossless", "jpeg-xl-lossless"]


def tiles(picture: np.ndarray) -> np.ndarray:
    """Cut a picture (rows, columns, samples) into frames, in the order of TILED_FULL, filled up with 1."""
    down, across = -(-ROWS // FRAME[0]), -(-COLUMNS // FRAME[1])
    whole = np.ones((down * FRAME[0], across * FRAME[1], picture.shape[2]), picture.dtype)
    whole[:ROWS, :COLUMNS] = picture
    return whole.reshape(down, FRAME[0], across, FRAME[1], -1).swapaxes(1, 2).reshape(-1, *FRAME, picture.shape[2])


def write(
    folder: Path, pixels: bytes, syntax: str = ExplicitVRLittleEndian, vr: str = "OB", **attributes
) -> pydicom.Dataset:
    """Write a slide of one level whose native pixel data are these bytes."""
    made = make_slide(
        folder, width=COLUMNS, height=ROWS, frame=FRAME, levels=1, codec="native", associated=False,
        paths=() if attributes.get("SamplesPerPixel", 1) == 3 else ["one"],
    )  # fmt: skip
    ds = pydicom.dcmread(made.files[0])
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.PixelData = pixels + b"\0" * (len(pixels) % 2)
    ds["PixelData"].VR = vr
    little = syntax != ExplicitVRBigEndian
    ds.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        made.files[0], ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=little, force_encoding=True
    )
    return ds


def level(folder: Path) -> np.ndarray:
    tree = mt.open_slide(folder)
    image = tree["level0"].image
    np.testing.assert_array_equal(image.wsi.read(3, 4, 11, 12), image.values[3:14, 4:16])
    np.testing.assert_array_equal(image[6:9, 8:10].values, image.values[6:9, 8:10])
    assert image.values.dtype == image.dtype
    return image.values


def random(top: int, dtype: str, samples: int = 1, low: int = 0) -> np.ndarray:
    return np.random.default_rng(7).integers(low, top, (ROWS, COLUMNS, samples), endpoint=True).astype(dtype)


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("kind", ["colour", "uint16", "int16", "12 bits", "one channel"])
def test_lossless_codecs(tmp_path, codec, kind):
    if kind == "int16" and codec in ("jpeg-lossless", "jpeg-ls", "jpeg-xl-lossless"):
        pytest.skip("no signed samples in these streams")
    options = {
        "colour": {},
        "uint16": {"paths": ["a", "b"], "dtype": "uint16"},
        "int16": {"paths": ["a"], "dtype": "int16"},
        "12 bits": {"paths": ["a"], "dtype": "uint16", "bits_stored": 12},
        "one channel": {"paths": ["a"]},
    }[kind]
    slide = make_slide(tmp_path, width=90, height=70, frame=(24, 32), codec=codec, associated=False, **options)
    tree = mt.open_slide(tmp_path)
    for n in range(len(slide.level_shapes)):
        paths = range(len(options.get("paths", "1")))
        expected = np.concatenate([slide.pixels(n, path=p) for p in paths], -1)
        image = tree[f"level{n}"].image
        assert image.dtype == expected.dtype
        np.testing.assert_array_equal(image.values, expected)


def test_one_bit(tmp_path):
    picture = random(1, "uint8")
    bits = np.packbits(tiles(picture).ravel(), bitorder="little").tobytes()
    write(tmp_path, bits, BitsAllocated=1, BitsStored=1, HighBit=0)
    np.testing.assert_array_equal(level(tmp_path), picture)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_monochrome_is_as_stored(tmp_path, photometric):
    picture = random(255, "uint8")
    write(tmp_path, tiles(picture).tobytes(), PhotometricInterpretation=photometric)
    np.testing.assert_array_equal(level(tmp_path), picture)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_sixteen_bits_of_either_order_and_sign(tmp_path, syntax, dtype):
    picture = random(2047, dtype, low=-2048 if dtype == "int16" else 0)
    frames = tiles(picture).astype(np.dtype(dtype).newbyteorder(">" if syntax == ExplicitVRBigEndian else "<"))
    write(
        tmp_path, frames.tobytes(), syntax, "OW", BitsAllocated=16, BitsStored=12, HighBit=11,
        PixelRepresentation=int(dtype == "int16"),
    )  # fmt: skip
    np.testing.assert_array_equal(level(tmp_path), picture)


def test_eight_bits_in_big_endian_words(tmp_path):
    """PS3.5 8.1.1: OW is swapped in pairs of bytes, whatever is in them."""
    picture = random(255, "uint8")
    data = tiles(picture).tobytes()
    data += b"\0" * (len(data) % 2)
    write(tmp_path, np.frombuffer(data, "<u2").byteswap().tobytes(), ExplicitVRBigEndian, "OW")
    np.testing.assert_array_equal(level(tmp_path), picture)


@pytest.mark.parametrize("planar", [0, 1])
def test_planar_configuration(tmp_path, planar):
    picture = random(255, "uint8", 3)
    frames = tiles(picture)
    data = (np.moveaxis(frames, -1, 1) if planar else frames).tobytes()
    write(tmp_path, data, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
    np.testing.assert_array_equal(level(tmp_path), picture)


def test_native_ybr_becomes_rgb(tmp_path):
    picture = random(255, "uint8", 3)
    write(
        tmp_path,
        tiles(picture).tobytes(),
        SamplesPerPixel=3,
        PhotometricInterpretation="YBR_FULL",
        PlanarConfiguration=0,
    )
    expected = convert_color_space(picture, "YBR_FULL", "RGB")
    assert np.abs(level(tmp_path).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("first", [0, 40])
def test_palettes_become_rgb(tmp_path, depth, first):
    picture = random(255, "uint8")
    ds = write(tmp_path, tiles(picture).tobytes())
    table = np.random.default_rng(1).integers(0, 2**depth, (3, 150)).astype(f"<u{depth // 8}")
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for n, entries in enumerate(table):
        ds.add_new(0x00281101 + n, "US", [150, first, depth])
        ds.add_new(0x00281201 + n, "OW", entries.tobytes())
    (file,) = tmp_path.glob("*.dcm")
    ds.save_as(file)
    values = level(tmp_path)
    assert values.dtype == f"uint{depth}"
    np.testing.assert_array_equal(values, apply_color_lut(picture[..., 0], ds))


def sparse(folder: Path, lab: list[int] | None, **options) -> None:
    made = make_slide(
        folder, width=300, height=200, frame=32, levels=1, codec="rle", tiling="sparse", drop=1, associated=False,
        offsets="bot", **options,
    )  # fmt: skip
    if lab:
        ds = pydicom.dcmread(made.files[0])
        ds.RecommendedAbsentPixelCIELabValue = lab
        ds.save_as(made.files[0])


@pytest.mark.parametrize(
    ("lab", "options", "fill"),
    [
        (None, {}, (255, 255, 255)),
        (None, {"paths": ["DAPI", "Cy5"]}, (0, 0)),
        (None, {"paths": ["DAPI"], "dtype": "uint16"}, (0,)),
        ([0xFFFF, 0x8080, 0x8080], {}, (255, 255, 255)),
        ([0x8000, 0x8080, 0x8080], {}, (119, 119, 119)),  # L* 50 is this grey in sRGB
        ([35579, 53665, 50858], {}, (255, 0, 0)),  # L* 54.29, a* 80.81, b* 69.89 (D50) is sRGB's red
    ],
)
def test_what_absent_tiles_show(tmp_path, lab, options, fill):
    sparse(tmp_path, lab, **options)
    image = mt.open_slide(tmp_path)["level0"].image
    real = image.wsi.coverage().values
    real = real[..., 0] if real.ndim == 3 else real
    assert 0 < real.mean() < 1
    shown = image.values[~real].astype(int)
    np.testing.assert_array_equal(shown, np.broadcast_to(shown[0], shown.shape))
    np.testing.assert_allclose(shown[0], fill, atol=2)
    mine = mt.open_slide(tmp_path, fill=7)["level0"].image.values
    assert (mine[~real] == 7).all()
    np.testing.assert_array_equal(mine[real], image.values[real])


def test_planes_that_one_path_has_and_the_other_has_not(tmp_path):
    both = {"width": 40, "height": 30, "frame": 16, "levels": 1, "codec": "native", "associated": False}
    both |= {"series_uid": "1.2.3", "study_uid": "1.2"}
    stack = make_slide(tmp_path / "a", focal_planes=3, paths=["DAPI"], **both)
    single = make_slide(tmp_path / "b", paths=["Cy5"], **both)
    pyramid = pydicom.dcmread(stack.files[0], stop_before_pixels=True).PyramidUID
    ds = pydicom.dcmread(single.files[0])
    ds.PyramidUID = pyramid
    ds.OpticalPathSequence[0].OpticalPathIdentifier = "2"
    ds.SharedFunctionalGroupsSequence[0].OpticalPathIdentificationSequence[0].OpticalPathIdentifier = "2"
    ds.save_as(tmp_path / "a" / "single.dcm")
    shutil.rmtree(tmp_path / "b")
    image = mt.open_slide(tmp_path / "a")["level0"].image
    assert image.dims == ("z", "y", "x", "c")
    np.testing.assert_array_equal(image.wsi.coverage().values[:, 0, 0], [[1, 1], [1, 0], [1, 0]])
    for z in range(3):
        np.testing.assert_array_equal(image.values[z, ..., 0], stack.pixels(0, plane=z)[..., 0])
    np.testing.assert_array_equal(image.values[0, ..., 1], single.pixels(0)[..., 0])
    assert (image.values[1:, ..., 1] == 0).all()
