"""The synthetic slides, read by readers that are not ours: pydicom, wsidicom, highdicom and imagecodecs."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array

from microtome.errors import OptionError
from microtome.testing import make_slide
from microtome.testing.encode import CODECS
from microtome.testing.sources import box_mean
from microtome.testing.tissue import is_background, tissue

# What pydicom 3.0 cannot decode by itself: (bytes, type) -> samples.
BY_HAND = {
    "jpeg-xl": lambda b, dtype: imagecodecs.jpegxl_decode(b),
    "jpeg-xl-lossless": lambda b, dtype: imagecodecs.jpegxl_decode(b),
    "deflated-frame": lambda b, dtype: np.frombuffer(zlib.decompress(b, -15), dtype),
    "encapsulated-native": lambda b, dtype: np.frombuffer(b, dtype),
}


def places(level, path, plane, y0, x0, h, w):
    """Every pixel different: red counts columns, green rows, blue the level, path and plane."""
    y, x = np.mgrid[y0 : y0 + h, x0 : x0 + w]
    return np.stack([x % 251, y % 241, np.full_like(x, 100 * level + 20 * path + plane)], -1).astype("uint8")


def frames_of(file: Path, codec: str = "") -> np.ndarray:
    """All frames of a file, (n, rows, columns, samples), RGB."""
    ds = pydicom.dcmread(file)
    shape = (ds.NumberOfFrames, ds.Rows, ds.Columns, ds.SamplesPerPixel)
    if codec in BY_HAND:
        dtype = f"<{'i' if ds.PixelRepresentation else 'u'}{ds.BitsAllocated // 8}"
        tables = ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths
        data = generate_frames(ds.PixelData, number_of_frames=ds.NumberOfFrames, extended_offsets=tables)
        return np.stack([BY_HAND[codec](b, dtype).reshape(shape[1:]) for b in data])
    return ds.pixel_array.reshape(shape) if codec == "native-deflated" else pixel_array(file).reshape(shape)


def stitched(file: Path, codec: str = "") -> np.ndarray:
    """The total pixel matrix of a full tiling with one path and one plane."""
    ds = pydicom.dcmread(file, stop_before_pixels=True)
    frames = frames_of(file, codec)
    _, h, w, c = frames.shape
    rows, columns = ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns
    grid = frames.reshape(-(-rows // h), -(-columns // w), h, w, c).swapaxes(1, 2)
    return grid.reshape(grid.shape[0] * h, -1, c)[:rows, :columns]


def test_importing_the_module_imports_no_codec():
    code = """
import sys
import microtome
before = set(sys.modules)
import microtome.testing
print([m for m in ("pydicom", "imagecodecs", "PIL") if m in set(sys.modules) - before])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("codec", [c for c in CODECS if "uint8" in CODECS[c].dtypes])
def test_colour_codecs(tmp_path, codec):
    slide = make_slide(tmp_path, width=150, height=101, frame=(48, 64), codec=codec, quality=90, associated=False)
    assert slide.level_shapes == ((101, 150), (51, 75), (26, 38))
    for level, file in enumerate(slide.files):
        ds = pydicom.dcmread(file, stop_before_pixels=True)
        assert ds.file_meta.TransferSyntaxUID == CODECS[codec].transfer_syntax
        assert ds.PhotometricInterpretation == CODECS[codec].photometric
        assert (ds.LossyImageCompression == "01") == bool(CODECS[codec].method)
        got, want = stitched(file, codec), slide.pixels(level)
        assert got.shape == want.shape
        if CODECS[codec].method:
            assert np.abs(got.astype(int) - want).mean() < 6  # a small picture is all detail
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("codec", list(CODECS))
def test_monochrome_codecs(tmp_path, codec, dtype):
    if dtype not in CODECS[codec].dtypes:
        with pytest.raises(OptionError, match=codec):
            make_slide(tmp_path, codec=codec, dtype=dtype)
        return
    bits = 8 if dtype == "uint8" else 12
    slide = make_slide(
        tmp_path, width=60, height=44, frame=32, codec=codec, quality=95, paths=("DAPI",), dtype=dtype,
        bits_stored=bits, levels=1, associated=False,
    )  # fmt: skip
    got = stitched(slide.files[0], codec)
    want = slide.pixels(0)
    assert got.dtype.newbyteorder("=") == want.dtype == dtype
    assert want.max() > 2**bits / 8
    if CODECS[codec].method:
        assert np.abs(got.astype(int) - want).mean() < 0.02 * 2**bits
    else:
        np.testing.assert_array_equal(got, want)


def test_frames_of_a_full_tiling_run_columns_rows_planes_paths(tmp_path):
    def numbered(level, path, plane, y0, x0, h, w):
        return np.full((h, w, 1), 100 * path + 20 * plane + 4 * (y0 // 32) + x0 // 32, "uint8")

    slide = make_slide(
        tmp_path, width=96, height=64, frame=32, codec="native", levels=1, associated=False, pixels=numbered,
        paths=("DAPI", "FITC"), focal_planes=3,
    )  # fmt: skip
    (file,) = slide.files
    ds = pydicom.dcmread(file)
    assert (ds.NumberOfFrames, ds.TotalPixelMatrixFocalPlanes, ds.NumberOfOpticalPaths) == (36, 3, 2)
    assert [p.IlluminationWaveLength for p in ds.OpticalPathSequence] == [405, 488]
    want = [
        100 * path + 20 * plane + 4 * row + column
        for path in range(2) for plane in range(3) for row in range(2) for column in range(3)
    ]  # fmt: skip
    assert frames_of(file)[:, 0, 0, 0].tolist() == want
    assert slide.region(0, 32, 64, 2, 2, plane=2, path=1).ravel().tolist() == [146] * 4


@pytest.mark.parametrize("split", ["path", "plane"])
def test_split_instances_hold_one_path_or_plane(tmp_path, split):
    slide = make_slide(
        tmp_path, width=64, height=64, frame=32, codec="native", levels=2, associated=False, pixels=places,
        rgb_paths=2, focal_planes=3, split=split,
    )  # fmt: skip
    assert len(slide.files) == 2 * (2 if split == "path" else 3)
    seen = set()
    for file in slide.files:
        ds = pydicom.dcmread(file)
        assert (ds.NumberOfOpticalPaths, ds.TotalPixelMatrixFocalPlanes) == ((1, 3) if split == "path" else (2, 1))
        assert len(ds.OpticalPathSequence) == ds.NumberOfOpticalPaths
        z = ds.TotalPixelMatrixOriginSequence[0].get("ZOffsetInSlideCoordinateSystem", 0)
        seen.add((ds.TotalPixelMatrixRows, float(z), tuple(p.OpticalPathIdentifier for p in ds.OpticalPathSequence)))
        assert len(set(frames_of(file)[..., 2].ravel().tolist())) == (3 if split == "path" else 2)
    assert len(seen) == len(slide.files)


@pytest.mark.parametrize("codec", ["jpeg-ls", "native-implicit", "native-bigendian"])
@pytest.mark.parametrize("tiling", ["sparse", "sparse-unaligned"])
def test_sparse_frames_lie_where_they_say(tmp_path, tiling, codec):
    slide = make_slide(
        tmp_path, width=150, height=100, frame=(32, 48), codec=codec, tiling=tiling, shuffle=True, parts=3,
        rgb_paths=2, focal_planes=2, pixels=places, origin_style="centre", associated=False, levels=2,
    )  # fmt: skip
    assert len(slide.files) == 4
    seen, offset = np.zeros((2, 2, 100, 150), int), 0
    for file in slide.files[:3]:
        ds = pydicom.dcmread(file)
        assert ds.DimensionOrganizationType == "TILED_SPARSE"
        assert ds.ConcatenationFrameOffsetNumber == offset
        offset += ds.NumberOfFrames
        for groups, got in zip(ds.PerFrameFunctionalGroupsSequence, frames_of(file), strict=True):
            at = groups.PlanePositionSlideSequence[0]
            y, x = at.RowPositionInTotalImagePixelMatrix - 1, at.ColumnPositionInTotalImagePixelMatrix - 1
            path = int(groups.OpticalPathIdentificationSequence[0].OpticalPathIdentifier) - 1
            plane = round(at.ZOffsetInSlideCoordinateSystem)  # one µm apart
            want = slide.region(0, y, x, min(32, 100 - y), min(48, 150 - x), plane=plane, path=path)
            np.testing.assert_array_equal(got[: want.shape[0], : want.shape[1]], want)
            seen[path, plane, y : y + 32, x : x + 48] += 1
            # Orientation (0, -1, 0, -1, 0, 0): columns run along -y, rows along -x.
            assert float(at.XOffsetInSlideCoordinateSystem) == pytest.approx(20 - 0.0005 * y)
            assert float(at.YOffsetInSlideCoordinateSystem) == pytest.approx(40 - 0.0005 * x)
            index = groups.FrameContentSequence[0].DimensionIndexValues
            assert index[:2] == [path + 1, plane + 1]
            if tiling == "sparse":
                assert index[2:] == [y // 32 + 1, x // 48 + 1]
    assert seen.min() == 1
    assert (seen.max() > 1) == (tiling == "sparse-unaligned")
    origin = pydicom.dcmread(slide.files[3]).TotalPixelMatrixOriginSequence[0]
    assert float(origin.XOffsetInSlideCoordinateSystem) == pytest.approx(20 - 0.00025)


def test_drop_leaves_background_out(tmp_path):
    whole = make_slide(tmp_path / "a", width=1024, height=1024, frame=64, tiling="sparse", associated=False, levels=1)
    half = make_slide(tmp_path / "b", width=1024, height=1024, frame=64, tiling="sparse", drop=0.5, levels=1)
    bare = make_slide(tmp_path / "c", width=1024, height=1024, frame=64, tiling="sparse", drop=1, levels=1)
    counts = [pydicom.dcmread(s.files[0], stop_before_pixels=True).NumberOfFrames for s in (whole, half, bare)]
    assert counts[0] == 256 > counts[1] > counts[2] > 50
    for groups in pydicom.dcmread(bare.files[0]).PerFrameFunctionalGroupsSequence:
        at = groups.PlanePositionSlideSequence[0]
        y, x = at.RowPositionInTotalImagePixelMatrix - 1, at.ColumnPositionInTotalImagePixelMatrix - 1
        assert not is_background(bare.region(0, y, x, 64, 64), 255)


@pytest.mark.parametrize(("offsets", "fragments"), [("eot", 1), ("bot", 1), ("bot", 3), ("empty", 1), ("empty", 3)])
@pytest.mark.parametrize("parts", [1, 2])
def test_offsets_and_fragments(tmp_path, offsets, fragments, parts):
    slide = make_slide(
        tmp_path, width=128, height=96, frame=32, codec="jpeg-rgb", offsets=offsets, fragments=fragments, parts=parts,
        levels=1, quality=98, associated=False,
    )  # fmt: skip
    frames = np.concatenate([frames_of(f) for f in slide.files])
    got = frames.reshape(3, 4, 32, 32, 3).swapaxes(1, 2).reshape(96, 128, 3)
    assert np.abs(got.astype(int) - slide.pixels(0)).mean() < 3
    for file in slide.files:
        ds = pydicom.dcmread(file)
        assert ("ExtendedOffsetTable" in ds) == (offsets == "eot")
        assert (ds.PixelData[4:8] != b"\0\0\0\0") == (offsets == "bot")


def test_short_edges_are_encoded_at_their_own_size(tmp_path):
    slide = make_slide(tmp_path, width=75, height=50, frame=32, edge="short", levels=1, associated=False)
    ds = pydicom.dcmread(slide.files[0])
    tables = ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths
    data = generate_frames(ds.PixelData, number_of_frames=6, extended_offsets=tables)
    got = [imagecodecs.jpeg_decode(b) for b in data]
    assert [a.shape for a in got] == [(h, w, 3) for h in (32, 18) for w in (32, 32, 11)]


def test_arrays_are_kept_and_averaged(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4096, (2, 61, 47, 1), "uint16")
    slide = make_slide(
        tmp_path, pixels=pixels, paths=("DAPI", "X"), focal_planes=2, frame=16, codec="jpeg-ls", bits_stored=12,
        downsample=3, spacing=(0.001, 0.002),
    )  # fmt: skip
    assert slide.level_shapes == ((61, 47), (21, 16), (7, 6))
    assert slide.spacings[1] == pytest.approx((0.003, 0.006))
    np.testing.assert_array_equal(slide.pixels(0, plane=1, path=1), pixels[1])
    level1 = slide.pixels(1, plane=1)
    assert level1[20, 15, 0] == round(pixels[1, 60:, 45:].mean() + 1e-9)
    frames = frames_of(slide.files[1])  # 2 paths, 2 planes, 2 tiles
    np.testing.assert_array_equal(frames[2], level1[:16])
    measures = pydicom.dcmread(slide.files[0]).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.PixelSpacing == [0.001, 0.002]


def test_box_mean_rounds_halves_up_and_cuts_boxes_at_the_border():
    a = np.array([[-1, 0, 7], [0, 0, 8], [5, 6, 9]], "int16")[..., None]
    assert box_mean(a, 2)[..., 0].tolist() == [[0, 8], [6, 9]]


def test_the_mosaic_repeats_without_a_seam():
    a = tissue(512, 512, seed=3, channels=3, top=255, dtype="uint8", path=0, plane=0, defocus=0).astype(int)
    inside = np.abs(np.diff(a, axis=0)).mean(axis=(1, 2)).max()
    assert np.abs(a[0] - a[-1]).mean() <= inside
    assert np.abs(a[:, 0] - a[:, -1]).mean() <= np.abs(np.diff(a, axis=1)).mean(axis=(0, 2)).max()


@pytest.mark.parametrize(("frame", "downsample"), [(32, 2), ((24, 40), 2), (20, 3), (33, 5), (16, 8)])
def test_mosaics_are_exact_on_every_level(tmp_path, monkeypatch, frame, downsample):
    monkeypatch.setattr("microtome.testing.recipe.PICTURE_BYTES", 1000)
    slide = make_slide(
        tmp_path, width=301, height=215, frame=frame, downsample=downsample, codec="rle", distinct=16, associated=False
    )
    for level, file in enumerate(slide.files):
        np.testing.assert_array_equal(stitched(file), slide.pixels(level))
        if level:  # the box means of the finer level, but for boxes that the border cuts
            finer = slide.pixels(level - 1)
            rows, columns = (n // downsample for n in finer.shape[:2])
            got, want = slide.pixels(level), box_mean(finer, downsample)
            np.testing.assert_array_equal(got[:rows, :columns], want[:rows, :columns])


@pytest.mark.parametrize("options", [{"width": 1, "height": 1}, {"width": 1, "height": 9}, {"width": 40, "height": 2}])
@pytest.mark.parametrize("frame", [1, 8])
def test_tiny_slides(tmp_path, options, frame):
    slide = make_slide(tmp_path, frame=frame, codec="native", **options)
    for level, file in enumerate(slide.files[:-3]):
        np.testing.assert_array_equal(stitched(file), slide.pixels(level))


def test_large_slides_are_small_work(tmp_path):
    tracemalloc.start()
    slide = make_slide(tmp_path, width=16384, height=16384, tiling="sparse", quality=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert len(slide.files) == 7 + 3
    counts = [int(pydicom.dcmread(f, stop_before_pixels=True).NumberOfFrames) for f in slide.files[:7]]
    assert counts == [4096, 1024, 256, 64, 16, 4, 1]
    # Every level shows the same picture.
    fine = slide.region(2, 0, 0, 4096, 4096)[::64, ::64].astype(int)
    coarse = slide.pixels(6)
    assert fine.std() > 10
    np.testing.assert_array_equal(coarse, box_mean(slide.pixels(5), 2))
    np.testing.assert_array_equal(slide.region(1, 4096, 2048, 64, 64), slide.region(1, 0, 0, 64, 64))


def test_equal_arguments_write_equal_bytes(tmp_path):
    def files(name, **options):
        slide = make_slide(tmp_path / name, width=100, height=90, frame=64, **options)
        return [f.read_bytes() for f in slide.files]

    assert files("a") == files("b")
    for other in ({"seed": 1}, {"quality": 81}, {"study_uid": "1.2.3"}, {"origin": (1, 2)}):
        assert all(x != y for x, y in zip(files("a"), files("c", **other), strict=True))


def test_spacing_and_tiling_can_be_left_out(tmp_path):
    slide = make_slide(tmp_path, width=100, height=90, frame=64, spacing=None, dimension_organization="absent")
    for file in slide.files:
        ds = pydicom.dcmread(file)
        assert "PixelMeasuresSequence" not in ds.SharedFunctionalGroupsSequence[0]
        assert "ImagedVolumeWidth" not in ds
        assert ("DimensionOrganizationType" in ds) == (not file.name.startswith("level"))
    assert slide.spacings == (None, None)


def test_associated_images(tmp_path):
    slide = make_slide(tmp_path, width=200, height=100, frame=64, paths=("DAPI",))
    assert [f.name for f in slide.files[-3:]] == ["label.dcm", "overview.dcm", "thumbnail.dcm"]
    for file, flavour, samples in zip(slide.files[-3:], ("LABEL", "OVERVIEW", "THUMBNAIL"), (3, 3, 1), strict=True):
        ds = pydicom.dcmread(file)
        assert ds.ImageType[2] == flavour
        assert ds.SamplesPerPixel == samples
        assert ds.PatientName == "Synthetic^Slide"
        assert frames_of(file).std() > 5


def test_wsidicom_opens_the_default_slide(tmp_path):
    wsidicom = pytest.importorskip("wsidicom")
    made = make_slide(tmp_path, width=700, height=500, frame=128)
    with wsidicom.WsiDicom.open(tmp_path) as slide:
        assert [(n.size.height, n.size.width) for n in slide.levels] == list(made.level_shapes)
        assert slide.levels[0].pixel_spacing.width == pytest.approx(0.0005)
        got = np.asarray(slide.read_region((100, 50), 0, (300, 200)))
        assert np.abs(got.astype(int) - made.region(0, 50, 100, 200, 300)).mean() < 4
        assert slide.read_label().size == (400, 400)
        assert slide.read_overview().size == (1100, 400)


@pytest.mark.parametrize("options", [{}, {"tiling": "sparse", "shuffle": True}])
def test_highdicom_reads_the_total_pixel_matrix(tmp_path, options):
    highdicom = pytest.importorskip("highdicom")
    made = make_slide(tmp_path, width=150, height=100, frame=48, codec="native", levels=1, associated=False, **options)
    image = highdicom.imread(made.files[0])
    got = image.get_total_pixel_matrix(apply_icc_profile=False, dtype=np.uint8)
    np.testing.assert_array_equal(got, made.pixels(0))


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "gif"}, {"dtype": "uint16"}, {"dtype": "float32"}, {"fragments": 2}, {"edge": "long"},
        {"codec": "native", "fragments": 2, "offsets": "bot"}, {"codec": "rle", "edge": "short"}, {"drop": 0.5},
        {"shuffle": True}, {"tiling": "sparse", "drop": 2}, {"levels": 0}, {"downsample": 1}, {"quality": 101},
        {"frame": 0}, {"frame": 70000}, {"spacing": 0}, {"orientation": (1, 0, 0)}, {"bits_stored": 12},
        {"codec": "jpeg-12", "dtype": "uint16", "bits_stored": 16}, {"paths": ("DAPI",), "rgb_paths": 2},
        {"split": "tile"}, {"offsets": "none"}, {"tiling": "dense"}, {"origin_style": "middle"}, {"parts": 0},
        {"pixels": np.zeros((4, 4, 2), "uint8")}, {"pixels": np.zeros((3, 4, 4, 1), "uint8")},
        {"pixels": np.zeros((4, 4), "float32")}, {"pixels": lambda *a: np.zeros((1, 1, 3), "uint8")},
        {"pixels": lambda level, path, plane, y0, x0, h, w: np.zeros((h, w, 3), "uint16")},
    ],
)  # fmt: skip
def test_options_without_a_meaning_are_refused(tmp_path, options):
    with pytest.raises(OptionError):
        make_slide(tmp_path, **{"width": 64, "height": 64, **options})
    assert not any(tmp_path.glob("*.dcm"))


def test_regions_stay_inside_the_level(tmp_path):
    slide = make_slide(tmp_path, width=64, height=64, associated=False)
    with pytest.raises(OptionError, match="leaves level 0"):
        slide.region(0, 60, 0, 5, 5)
