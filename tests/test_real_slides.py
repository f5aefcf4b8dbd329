"""Every file of ../shared/data/real: it opens with the right pixels, or one of our errors says why it does not.

Oracle: pydicom's frames decoded by decoders that are not ours (oracles.py); wsidicom and highdicom where named. The
numbers of the traps are those of MANIFEST.md.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import microtome as mt
from microtome.errors import AmbiguousSlideError, FrameOrderWarning, NotASlideError, OpenError
from oracles import as_image, assemble, dataset, decode, frames, psnr, streams

BPAEC = "dicom/3dhistech_BPAEC"
BOXES = "dicom/openslide_boxes"
BOT = "cmu1_dicom/jpeg_bot"
EOT = "cmu1_dicom/jpeg_eot"
TCGA = "dicom/pathml_tcga/small_dicom.dcm"
PREFIX = "1.2.826.0.1.3680043.8.498."

# Instances that are a level: file, (rows, columns, channels).
LEVELS = {
    f"{BPAEC}/5_0": (2304, 3072, 3),
    f"{BPAEC}/6_0": (1152, 1536, 3),
    f"{BPAEC}/7_0": (576, 768, 3),
    f"{BPAEC}/8_0": (288, 384, 3),
    f"{BPAEC}/9_0": (144, 192, 3),
    f"{BPAEC}/10_0": (72, 96, 3),
    f"{BPAEC}/11_0": (36, 48, 3),
    f"{BPAEC}/12_0": (18, 24, 3),
    "dicom/ezwsi/multiframe_camelyon_challenge_image.dcm": (700, 1152, 3),
    "dicom/google_camelyon/multi_frame_jpeg_camelyon_challenge_image.dcm": (700, 1152, 3),
    "dicom/gcp_cmu1_pyramid/level-0-frames-0-30.dcm": (2967, 2220, 3),
    "dicom/gcp_cmu1_pyramid/level-1-frames-0-9.dcm": (1483, 1110, 3),
    "dicom/gcp_cmu1_pyramid/level-2-frames-0-4.dcm": (741, 555, 3),
    "dicom/gcp_cmu1_pyramid/level-3-frames-0-1.dcm": (370, 277, 3),
    "dicom/gcp_cmu1_pyramid/level-4-frames-0-1.dcm": (185, 138, 3),
    "dicom/gcp_cmu1_pyramid/level-5-frames-0-1.dcm": (92, 69, 3),
    "dicom/gcp_cmu1_pyramid/level-6-frames-0-1.dcm": (46, 34, 3),
    "dicom/gcp_cmu1_pyramid/level-7-frames-0-1.dcm": (23, 17, 3),
    "dicom/gcp_cmu1_pyramid/level-8-frames-0-1.dcm": (11, 8, 3),
    "dicom/gcp_cmu1_pyramid/level-9-frames-0-1.dcm": (5, 4, 3),
    "dicom/gcp_cmu1_pyramid/level-10-frames-0-1.dcm": (2, 2, 3),
    "dicom/gcp_cmu1_pyramid/level-11-frames-0-1.dcm": (1, 1, 3),
    "dicom/gcp_converter_tests/jpeg.dicom": (715, 957, 3),
    "dicom/gcp_converter_tests/jpeg2000.dicom": (715, 957, 3),
    "dicom/highdicom/sm_image.dcm": (50, 50, 3),
    "dicom/highdicom/sm_image_control.dcm": (50, 50, 3),
    "dicom/highdicom/sm_image_dots.dcm": (50, 50, 3),
    "dicom/highdicom/sm_image_numbers.dcm": (50, 50, 3),
    "dicom/highdicom/sm_image_jpegls.dcm": (50, 50, 3),
    "dicom/highdicom/sm_image_grayscale.dcm": (50, 50, 1),
    f"{BOXES}/boxes_0.dcm": (16, 16, 3),
    "dicom/panimg/full_no_bot/full_no_bot.dcm": (290, 154, 3),
    "dicom/panimg/full_with_bot/full_with_bot.dcm": (290, 154, 3),
    "dicom/panimg/sparse_with_bot/sparse_with_bot.dcm": (290, 154, 3),
    f"{BOT}/{PREFIX}10532622223674069324517551435304071746.dcm": (186, 139, 3),
    f"{BOT}/{PREFIX}31968542594741691252926983344880591738.dcm": (371, 278, 3),
    f"{BOT}/{PREFIX}32523332470002340040241510648626349301.dcm": (2967, 2220, 3),
    f"{BOT}/{PREFIX}59160576315126491653933805523807420409.dcm": (742, 555, 3),
    f"{BOT}/{PREFIX}70305238809567439460357523469435203183.dcm": (1484, 1110, 3),
    f"{EOT}/{PREFIX}17682652362605912042390378729513375646.dcm": (2967, 2220, 3),
    f"{EOT}/{PREFIX}27812185318449907786565728501716803097.dcm": (186, 139, 3),
    f"{EOT}/{PREFIX}68011954664381020060597418510694851661.dcm": (371, 278, 3),
    f"{EOT}/{PREFIX}69714727274341873131589541844151658046.dcm": (1484, 1110, 3),
    f"{EOT}/{PREFIX}91214339964244010250143448548549870650.dcm": (742, 555, 3),
}
# Instances that are an associated image: file, its name, (rows, columns, channels).
ASSOCIATED = {
    f"{BPAEC}/2": ("label", (441, 579, 3)),
    "dicom/ezwsi/test.dcm": ("label", (117, 234, 3)),
    "dicom/ezwsi/test_wsi.dcm": ("label", (117, 234, 3)),
    f"{BOXES}/boxes_1.dcm": ("thumbnail", (16, 16, 3)),
    f"{BOT}/{PREFIX}37150656390704006220913760466294181440.dcm": ("overview", (431, 1280, 3)),
    f"{BOT}/{PREFIX}41679145702981027704365757740740562459.dcm": ("label", (463, 387, 3)),
    f"{BOT}/{PREFIX}95898225106022267311165418137611723070.dcm": ("thumbnail", (768, 574, 3)),
    f"{EOT}/{PREFIX}35887265599851227724754398994502322965.dcm": ("thumbnail", (768, 574, 3)),
    f"{EOT}/{PREFIX}68450407746576469918584896152584958905.dcm": ("overview", (431, 1280, 3)),
    f"{EOT}/{PREFIX}76614628808300297520729803434032023852.dcm": ("label", (463, 387, 3)),
}
# What is no slide, and a part of the reason that must be given.
REFUSED = {
    f"{BPAEC}/1_Map": "REGIONLOCALIZER",
    f"{BPAEC}/readme.txt": "not a DICOM file",
    "dicom/highdicom/seg_image_sm_control.dcm": "Segmentation Storage",
    "dicom/highdicom/seg_image_sm_control_labelmap.dcm": "1.2.840.10008.5.1.4.1.1.66.7",
    "dicom/highdicom/seg_image_sm_control_labelmap_palette_color.dcm": "1.2.840.10008.5.1.4.1.1.66.7",
    "dicom/highdicom/seg_image_sm_dots.dcm": "Segmentation Storage",
    "dicom/highdicom/seg_image_sm_numbers.dcm": "Segmentation Storage",
    "dicom/highdicom/sm_annotations.dcm": "Microscopy Bulk Simple Annotations Storage",
    "dicom/panimg/non_wsi_dcm/1.dcm": "1.2.111.10008.2.1.4.1.1.2",
    "dicom/robust/3gb-bulk-data-truncated": "MR Image Storage",
    "dicom/robust/ExplVR_BigEndNoMeta.dcm": "RT Ion Plan Storage",
    "dicom/robust/ExplVR_LitEndNoMeta.dcm": "RT Ion Plan Storage",
    "dicom/robust/MR_truncated.dcm": "MR Image Storage",
    "dicom/robust/UN_sequence.dcm": "without SOP Class",
    "dicom/robust/badVR.dcm": "RT Dose Storage",
    "dicom/robust/bad_sequence.dcm": "CT Image Storage",
    "dicom/robust/empty_charset_LEI.dcm": "without SOP Class",
    "dicom/robust/emri_small_jpeg_2k_lossless_too_short.dcm": "Enhanced MR Image Storage",
    "dicom/robust/generated_encapsulated_defined_bot_1_to_1.dcm": "without SOP Class",
    "dicom/robust/generated_encapsulated_defined_bot_2_to_1.dcm": "without SOP Class",
    "dicom/robust/generated_encapsulated_defined_bot_2_to_2.dcm": "without SOP Class",
    "dicom/robust/generated_encapsulated_empty_bot_1_to_1.dcm": "without SOP Class",
    "dicom/robust/generated_encapsulated_empty_bot_2_to_1.dcm": "without SOP Class",
    "dicom/robust/meta_missing_tsyntax.dcm": "without SOP Class",
    "dicom/robust/no_meta.dcm": "not a DICOM file",
    "dicom/robust/no_meta_group_length.dcm": "without SOP Class",
    "dicom/robust/rtplan_truncated.dcm": "RT Plan Storage",
}


def test_every_dicom_file_is_in_one_of_the_tables(real):
    here = {str(p.relative_to(real)) for p in (real / "dicom").rglob("*") if p.is_file()}
    here |= {str(p.relative_to(real)) for p in (real / "cmu1_dicom").rglob("*") if p.is_file()}
    here = {name for name in here if not name.startswith("dicom/codecs/")}
    assert here == {*LEVELS, *ASSOCIATED, *REFUSED, TCGA}


@pytest.mark.parametrize("name", LEVELS)
def test_level_has_the_pixels_that_others_decode(real, name):
    slide = mt.open_slide(real / name, chunks=None)
    assert list(slide.children) == ["level0"]
    image = slide["level0"].image
    assert image.shape == LEVELS[name]
    expected, covered = assemble([real / name])
    assert covered.all()
    assert image.dtype == expected.dtype
    difference = np.abs(image.values.astype(int) - as_image(expected))
    assert difference.max() <= 2
    assert difference.mean() < 0.05


@pytest.mark.parametrize("name", ASSOCIATED)
def test_associated_image_has_the_pixels_that_others_decode(real, name):
    slide = mt.open_slide(real / name, chunks=None)
    kind, shape = ASSOCIATED[name]
    assert slide.wsi.associated == [kind]
    image = slide[f"associated/{kind}"].image
    assert image.shape == shape
    (frame,) = frames(dataset(real / name))
    assert np.abs(image.values.astype(int) - frame[: shape[0], : shape[1]]).max() <= 2


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_is_no_slide_is_refused_with_its_name_and_a_reason(real, name, why):
    with pytest.raises(NotASlideError) as e:
        mt.open_slide(real / name)
    assert str(real / name) in str(e.value)
    assert why in str(e.value)


def test_other_objects_and_formats_are_refused(real):
    """DICOM that is no slide, and slides that are no DICOM (the OpenSlide and TIFF formats come later)."""
    names = [p for top in ("dicom/codecs", "slides", "photos", "icc") for p in (real / top).rglob("*") if p.is_file()]
    assert len(names) > 60
    for name in names:
        with pytest.raises(OpenError) as e:
            mt.open_slide(name)
        assert str(name) in str(e.value)


def test_no_real_file_takes_a_gigabyte_or_crashes(real):
    code = """
import resource, sys, warnings
from pathlib import Path
import microtome as mt
def peak():  # in MB; what getrusage says begins with the peak of the process that started this one
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
warnings.simplefilter("ignore")
for file in sorted(p for p in Path(sys.argv[1]).rglob("*") if p.is_file()):
    try:
        slide = mt.open_slide(file, chunks=None)
    except mt.errors.OpenError:
        continue
    for node in slide.leaves:
        node.dataset["image"].values
print(peak())
"""
    done = subprocess.run([sys.executable, "-c", code, real], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000


@pytest.mark.parametrize(
    ("folder", "slides"),
    [("dicom/gcp_converter_tests", 2), ("dicom/highdicom", 5), ("dicom/panimg", 3), ("cmu1_dicom", 2)],
)
def test_folders_of_several_slides_list_them(real, folder, slides):
    with pytest.raises(AmbiguousSlideError, match="series=") as e:
        mt.open_slide(real / folder)
    assert str(real / folder) in str(e.value)
    assert len(e.value.choices) == slides
    for series in e.value.choices:
        assert series in str(e.value)
        slide = mt.open_slide(real / folder, series=series)
        assert series in (slide.attrs["series_instance_uid"], slide.attrs.get("pyramid_uid"))


def test_series_that_is_not_there(real):
    with pytest.raises(OpenError, match=r"1\.2\.3") as e:
        mt.open_slide(real / "dicom/panimg", series="1.2.3")
    assert "290 x 154" in str(e.value)


def seams(image: np.ndarray, tile: int) -> float:
    """Mean difference of the pixels on both sides of the borders of tiles: small only where neighbours are."""
    a = image.astype(float)
    rows = [np.abs(a[y] - a[y - 1]).mean() for y in range(tile, len(a), tile)]
    columns = [np.abs(a[:, x] - a[:, x - 1]).mean() for x in range(tile, a.shape[1], tile)]
    return float(np.mean(rows + columns))


def test_trap_0_frames_that_run_down_the_columns(real):
    with pytest.warns(FrameOrderWarning, match="frame_order='column'"):
        wrong = mt.open_slide(real / TCGA, chunks=None)["level0"].image.values
    image = mt.open_slide(real / TCGA, chunks=None, frame_order="column")["level0"].image.values
    assert seams(image, 500) < 15  # MANIFEST: 7-8 by columns
    assert seams(wrong, 500) > 60  # 82-105 by rows
    ds = dataset(real / TCGA)
    for number, stream in enumerate(streams(ds)):
        x, y = divmod(number, 6)
        expected = decode(stream, str(ds.file_meta.TransferSyntaxUID))
        part = image[y * 500 : y * 500 + 500, x * 500 : x * 500 + 500]
        assert np.abs(part.astype(int) - expected[: part.shape[0], : part.shape[1]]).max() <= 2
    rows = mt.open_slide(real / TCGA, chunks=None, frame_order="row")["level0"].image  # no warning: it was chosen
    np.testing.assert_array_equal(rows.values, wrong)


@pytest.mark.parametrize("name", ["dicom/gcp_cmu1_pyramid", TCGA])
def test_trap_1_colours_are_those_of_the_stream(real, name):
    """RGB is stated, YCbCr is stored: taken at its word, the background is pink or green."""
    image = mt.open_slide(real / name, frame_order="column")["level0"].image.values
    bright = image[image.sum(-1) > 690].astype(int)
    assert len(bright) > 10_000
    assert np.abs(bright - bright.mean(-1, keepdims=True)).mean() < 5


@pytest.mark.parametrize("folder", [BOT, EOT])
@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::UserWarning:wsidicom")
def test_trap_2_edge_frames_shorter_than_rows_by_columns(real, folder, level):
    """Oracle: wsidicom, which reads them, though where RGB is stated and YCbCr stored it shows YCbCr (0.36.1)."""
    from wsidicom import WsiDicom

    image = mt.open_slide(real / folder)[f"level{level}"].image
    with WsiDicom.open(real / folder) as peer:
        size = peer.levels[level].size
        expected = np.asarray(peer.read_region((0, 0), level, size.to_tuple()))[..., :3]
    assert image.shape == expected.shape
    converted = np.asarray(Image.fromarray(expected, "YCbCr").convert("RGB"))
    assert min(np.abs(image.values.astype(int) - e).max() for e in (expected, converted)) <= 3
    # The last frames alone.
    y, x = (image.shape[0] - 1) // 240 * 240, (image.shape[1] - 1) // 240 * 240
    np.testing.assert_array_equal(image[y:, x:], image.values[y:, x:])


def test_trap_3_plain_jpeg_2000_under_the_htj2k_syntax(variants, tmp_path):
    ds = dataset(variants / "j2klossless" / "L0.dcm")
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    ds.save_as(tmp_path / "a.dcm")
    expected = mt.open_slide(variants / "j2klossless")["level0"].image.values
    np.testing.assert_array_equal(mt.open_slide(tmp_path)["level0"].image.values, expected)


def test_trap_7_irreversible_colour_under_the_lossless_syntax_and_a_spacing_of_point_008(variants, tmp_path):
    ds = dataset(variants / "j2k" / "L0.dcm")
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [".008", ".008"]
    ds.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]
    ds.save_as(tmp_path / "a.dcm")
    slide = mt.open_slide(tmp_path)
    expected = mt.open_slide(variants / "j2k")["level0"].image.values
    np.testing.assert_array_equal(slide["level0"].image.values, expected)
    assert slide.wsi.levels["row_spacing"].iloc[0] == pytest.approx(0.008)
    right, up = slide.wsi.to_slide(1.0, 0.5)
    assert (pytest.approx(21.0), pytest.approx(40.5)) == (right, up)


def test_trap_8_3dhistech_fluorescence(real):
    slide = mt.open_slide(real / BPAEC)
    assert [slide[f"level{n}"].image.shape for n in range(8)] == [s for n, s in LEVELS.items() if n.startswith(BPAEC)]
    for n in range(8):
        image = slide[f"level{n}"].image
        assert image.c.values.tolist() == ["Green", "Blue", "Red"]
        # 0 nm is stated, which is no wavelength (trap 13)
        assert [p["wavelength_nm"] for p in image.attrs["optical_paths"]] == [None] * 3
    assert slide.wsi.associated == ["label"]
    ignored = {Path(file).name: reason for file, reason in slide.wsi.ignored}
    assert ignored.keys() == {"1_Map", "readme.txt"}
    assert "REGIONLOCALIZER" in ignored["1_Map"]
    assert slide.attrs["image_orientation_slide"] == [-1, 0, 0, 0, -1, 0]
    profile = (real / "icc").glob("3dhistech*")
    assert slide.wsi.icc_profile() == next(profile).read_bytes()
    assert "icc" not in str(slide["level0"].image.attrs).lower()


@pytest.mark.parametrize("name", ["full_no_bot", "full_with_bot", "sparse_with_bot"])
def test_trap_9_anisotropic_spacing_and_no_organization_type(real, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = mt.open_slide(real / "dicom/panimg" / name)["level0"].image
    assert image.wsi.spacing.row == pytest.approx(0.1242353)
    assert image.wsi.spacing.column == pytest.approx(0.1241778)
    assert float(image.y[0]) == pytest.approx(0.1242353 / 2)
    assert float(image.x[-1]) == pytest.approx(0.1241778 * 153.5)


@pytest.mark.parametrize("folder", [BOT, EOT])
def test_trap_10_associated_images_without_pixel_measures(real, folder):
    slide = mt.open_slide(real / folder)
    assert slide.wsi.associated == ["label", "overview", "thumbnail"]
    assert set(slide["associated/label"].coords) == {"c"}
    assert set(slide["associated/overview"].coords) == {"c"}
    thumbnail = slide["associated/thumbnail"].image
    assert thumbnail.y.dims == ("row",)
    assert float(thumbnail.y[1] - thumbnail.y[0]) == pytest.approx(0.00192993, rel=1e-5)


def test_trap_10_spacing_at_the_root(variants, tmp_path):
    ds = dataset(variants / "jpeg_rgb_eot" / "L1.dcm")
    del ds.SharedFunctionalGroupsSequence, ds.ImagedVolumeWidth, ds.ImagedVolumeHeight
    ds.PixelSpacing = ["0.002", "0.003"]
    ds.save_as(tmp_path / "a.dcm")
    spacing = mt.open_slide(tmp_path)["level0"].image.wsi.spacing
    assert (spacing.row, spacing.column) == (pytest.approx(0.002), pytest.approx(0.003))


def test_trap_10_no_optical_paths(real):
    slide = mt.open_slide(real / "dicom/ezwsi")
    assert slide["level0"].image.shape == (700, 1152, 3)
    reasons = {Path(file).name: reason for file, reason in slide.wsi.ignored}
    assert "copy" in reasons["test_wsi.dcm"]
    assert "another slide" in reasons["test.dcm"]


def test_trap_10_twelve_levels_down_to_one_pixel(real):
    slide = mt.open_slide(real / "dicom/gcp_cmu1_pyramid")
    shapes = [s for n, s in LEVELS.items() if n.startswith("dicom/gcp_cmu1")]
    assert [slide[f"level{n}"].image.shape for n in range(12)] == shapes
    files = [n for n in LEVELS if n.startswith("dicom/gcp_cmu1")]
    for n in (3, 9, 10, 11):
        picture, _ = assemble([real / files[n]])
        np.testing.assert_allclose(slide[f"level{n}"].image.values, picture[0, 0], atol=2)
    assert len(slide.wsi.levels) == 12
    assert np.isfinite(slide.wsi.levels["row_spacing"]).all()


def test_boxes_of_16_pixels_in_a_frame_of_64(real):
    slide = mt.open_slide(real / BOXES)
    image = slide["level0"].image
    assert image.shape == (16, 16, 3)
    assert slide.wsi.associated == ["thumbnail"]
    # The corner of the frame, and nothing of its padding: the thumbnail shows the same without compression.
    assert psnr(image.values, slide["associated/thumbnail"].image.values) > 28


@pytest.mark.parametrize("name", [n for n in LEVELS if n.startswith("dicom/highdicom")])
@pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom", "ignore:.*:UserWarning:highdicom")
def test_highdicom_reads_its_own_slides_as_we_do(real, name):
    import highdicom as hd

    expected = hd.imread(real / name).get_total_pixel_matrix(apply_icc_profile=False, apply_real_world_transform=False)
    image = mt.open_slide(real / name)["level0"].image.values
    np.testing.assert_array_equal(image, expected.reshape(image.shape))


def test_segmentations_and_annotations_beside_a_slide_are_ignored(variants, shared, tmp_path):
    source = variants / "jpeg_ybr422_bot"
    script = [sys.executable, "-W", "ignore", shared / "make/make_seg_ann.py", source, tmp_path / "objects"]
    done = subprocess.run([str(s) for s in script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    others = sorted((tmp_path / "objects").iterdir())
    assert len(others) == 9
    slide = mt.open_slide([source, tmp_path / "objects"])
    assert len(slide.wsi.levels) == 4
    reasons = dict(slide.wsi.ignored)
    assert sorted(reasons) == [str(p) for p in others]
    for file, reason in reasons.items():
        kind = "66.7" if "labelmap" in file else "Segmentation" if "seg" in Path(file).name else "Annotations"
        assert kind in reason
