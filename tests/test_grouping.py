"""Which instances are one slide: by series, Pyramid UID and geometry, never by Frame of Reference UID.

Oracle: which call of `make_slide` wrote a file, and the pixels that it wrote.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

import microtome as mt
from microtome.errors import (
    AmbiguousSlideError,
    IncompleteSlideWarning,
    NotASlideError,
    OptionError,
    SlideNotFoundError,
)
from microtome.testing import SyntheticSlide, make_slide

SMALL = {"frame": 32, "codec": "native", "associated": False}


def edit(files, **attributes) -> None:
    """Set attributes of files; None takes one away, a function makes a value for each file."""
    for n, file in enumerate(files):
        ds = pydicom.dcmread(file)
        for keyword, value in attributes.items():
            value = value(n) if callable(value) else value
            if value is not None:
                setattr(ds, keyword, value)
            elif keyword in ds:
                delattr(ds, keyword)
        ds.save_as(file)


def check(tree, slide: SyntheticSlide) -> None:
    levels = [name for name in tree.children if name.startswith("level")]
    assert levels == [f"level{n}" for n in range(len(slide.level_shapes))]
    for n, name in enumerate(levels):
        np.testing.assert_array_equal(tree[name].image.values, slide.pixels(n))


@pytest.mark.parametrize("pyramid", [True, False])
def test_a_frame_of_reference_for_each_instance(tmp_path, pyramid):
    slide = make_slide(tmp_path, width=150, height=100, **SMALL)
    edit(slide.files, FrameOfReferenceUID=lambda n: f"1.2.3.{n}", **({} if pyramid else {"PyramidUID": None}))
    tree = mt.open_slide(tmp_path)
    check(tree, slide)
    assert ("pyramid_uid" in tree.attrs) == pyramid


@pytest.mark.parametrize("downsample", [2, 3, 4, 7])
@pytest.mark.parametrize(("width", "height"), [(150, 100), (33, 1), (1, 1), (1, 70), (31, 200)])
def test_levels_of_any_ratio_and_size(tmp_path, downsample, width, height):
    slide = make_slide(tmp_path, width=width, height=height, downsample=downsample, levels=4, **SMALL)
    edit(slide.files, PyramidUID=None)
    shapes = list(dict.fromkeys(slide.level_shapes))
    if len(shapes) == 4:
        check(mt.open_slide(tmp_path), slide)
        return
    for file in slide.files[len(shapes) :]:  # a second level of one pixel says nothing
        file.unlink()
    tree = mt.open_slide(tmp_path)
    for n in range(len(shapes)):
        np.testing.assert_array_equal(tree[f"level{n}"].image.values, slide.pixels(n))


def test_two_pyramids_in_one_series(tmp_path):
    one = make_slide(tmp_path / "a", width=150, height=100, seed=1, series_uid="1.2.3", **SMALL)
    two = make_slide(tmp_path / "b", width=150, height=100, seed=2, series_uid="1.2.3", **SMALL)
    uids = [str(pydicom.dcmread(s.files[0], stop_before_pixels=True).PyramidUID) for s in (one, two)]
    with pytest.raises(AmbiguousSlideError) as e:
        mt.open_slide(tmp_path)
    assert sorted(e.value.choices) == sorted(uids)
    for uid, slide in zip(uids, (one, two), strict=True):
        tree = mt.open_slide(tmp_path, series=uid)
        check(tree, slide)
        assert len(tree.wsi.ignored) == len((one, two)[slide is one].level_shapes)
        assert all("another slide" in reason for _, reason in tree.wsi.ignored)


def test_two_series_without_pyramid_uids(tmp_path):
    one = make_slide(tmp_path / "a", width=150, height=100, seed=1, series_uid="1.2.3", **SMALL)
    two = make_slide(tmp_path / "b", width=90, height=200, seed=2, series_uid="1.2.4", **SMALL)
    edit(one.files + two.files, PyramidUID=None)
    with pytest.raises(AmbiguousSlideError, match=r"100 x 150(.|\n)*200 x 90"):
        mt.open_slide(tmp_path)
    check(mt.open_slide(tmp_path, series="1.2.4"), two)


def test_two_shapes_in_one_series_without_pyramid_uids(tmp_path):
    one = make_slide(tmp_path / "a", width=150, height=100, seed=1, series_uid="1.2.3", **SMALL)
    two = make_slide(tmp_path / "b", width=90, height=200, seed=2, series_uid="1.2.3", **SMALL)
    edit(one.files + two.files, PyramidUID=None)
    with pytest.raises(AmbiguousSlideError) as e:
        mt.open_slide(tmp_path)
    assert len(e.value.choices) == 2
    assert len(set(e.value.choices)) == 2
    trees = [mt.open_slide(tmp_path, series=key) for key in e.value.choices]
    for slide in (one, two):
        (tree,) = [t for t in trees if t["level0"].image.shape[:2] == slide.level_shapes[0]]
        check(tree, slide)


def test_files_folders_lists_and_globs(tmp_path):
    slide = make_slide(tmp_path / "a" / "b", width=150, height=100, **SMALL)
    (tmp_path / "a" / "notes.txt").write_text("not DICOM")
    names = [
        tmp_path / "a",
        str(tmp_path / "a"),
        list(slide.files),
        str(tmp_path / "a/b/*.dcm"),
        f"file://{tmp_path}/a",
    ]
    for name in names:
        check(mt.open_slide(name), slide)
    tree = mt.open_slide(slide.files[1])
    np.testing.assert_array_equal(tree["level0"].image.values, slide.pixels(1))


@pytest.mark.parametrize("name", ["nothing", "nothing/*.dcm"])
def test_nothing_there(tmp_path, name):
    with pytest.raises(SlideNotFoundError) as e:
        mt.open_slide(tmp_path / name)
    assert "nothing" in str(e.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises((NotASlideError, SlideNotFoundError)) as e:
        mt.open_slide(tmp_path)
    assert str(tmp_path) in str(e.value)


def test_a_damaged_file_beside_a_slide_is_left_out_with_a_warning(tmp_path):
    slide = make_slide(tmp_path, width=150, height=100, **SMALL)
    bad = tmp_path / "zz.dcm"
    shutil.copy(slide.files[2], bad)
    edit([bad], SOPInstanceUID="1.2.9", Rows=0)
    with pytest.warns(IncompleteSlideWarning, match="Rows is 0"):
        tree = mt.open_slide(tmp_path)
    check(tree, slide)
    ((file, reason),) = tree.wsi.ignored
    assert (file, "Rows" in reason) == (str(bad), True)


def test_associated_images_go_with_the_series(tmp_path):
    one = make_slide(tmp_path / "a", width=150, height=100, seed=1, **(SMALL | {"associated": True}))
    make_slide(tmp_path / "b", width=150, height=100, seed=2, **(SMALL | {"associated": True}))
    series = str(pydicom.dcmread(one.files[0], stop_before_pixels=True).SeriesInstanceUID)
    tree = mt.open_slide(tmp_path, series=series)
    assert tree.wsi.associated == ["label", "overview", "thumbnail"]
    alone = mt.open_slide(tmp_path / "a")
    for name in tree.wsi.associated:
        np.testing.assert_array_equal(tree[f"associated/{name}"].image, alone[f"associated/{name}"].image)


def test_two_labels_are_both_there(tmp_path):
    slide = make_slide(tmp_path, width=150, height=100, **(SMALL | {"associated": True}))
    (label,) = [f for f in slide.files if f.name == "label.dcm"]
    shutil.copy(label, tmp_path / "label_again.dcm")
    edit([tmp_path / "label_again.dcm"], SOPInstanceUID="1.2.9")
    assert mt.open_slide(tmp_path).wsi.associated == ["label", "label2", "overview", "thumbnail"]


@pytest.mark.parametrize("fill", [(1, 2), (1, 2, 3, 4), 300, -1, float("nan"), (0, 0, 256)])
def test_fills_that_are_no_pixel(tmp_path, fill):
    make_slide(tmp_path, width=40, height=30, levels=1, **SMALL)
    with pytest.raises(OptionError, match="no pixel of 3 channels of uint8"):
        mt.open_slide(tmp_path, fill=fill)


@pytest.mark.parametrize(
    "options",
    [{"frame_order": "rows"}, {"missing": "ignore"}, {"alignment": "corner"}, {"chunks": 5}, {"fill": "white"}],
)
def test_options_that_have_no_meaning(tmp_path, options):
    make_slide(tmp_path, width=40, height=30, levels=1, **SMALL)
    with pytest.raises(OptionError) as e:
        mt.open_slide(tmp_path, **options)
    assert str(next(iter(options.values()))) in str(e.value)


def test_identifying_attributes_stay_behind_metadata(tmp_path):
    slide = make_slide(tmp_path, width=150, height=100, **(SMALL | {"associated": True}))
    secret = "Mustermann^Erika"
    number = "Q4711Z"  # no part of a path or of an address in memory
    edit(slide.files, PatientName=secret, PatientID=number, ContainerIdentifier=number, DeviceSerialNumber=number)
    tree = mt.open_slide(tmp_path)
    shown = repr(tree) + repr([(node.attrs, node.encoding) for node in tree.subtree])
    shown += repr([(v.attrs, v.encoding) for node in tree.subtree for v in node.variables.values()])
    assert number not in shown
    assert secret not in shown
    assert str(tree.wsi.metadata["level0"][0].PatientName) == secret
    assert set(tree.wsi.metadata) == {"level0", "level1", "level2", "level3"} | {
        f"associated/{n}" for n in tree.wsi.associated
    }


def test_paths_are_shown_as_named(tmp_path, monkeypatch):
    make_slide(tmp_path / "a", width=40, height=30, levels=1, **SMALL)
    monkeypatch.chdir(tmp_path)
    tree = mt.open_slide("a")
    monkeypatch.chdir(Path("/"))
    assert tree["level0"].image.values.shape == (30, 40, 3)  # read after the working directory changed
