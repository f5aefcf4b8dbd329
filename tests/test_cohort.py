"""Cohorts: names, selections, summaries, patches over slides, functions of slides; pixels against source pixels."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import microtome as mt
from microtome.cohort import mapping
from microtome.cohort.cohort import Cohort
from microtome.cohort.cuts import SlideCut
from microtome.cohort.identity import function_digest
from microtome.cohort.patches import _joined
from microtome.cohort.tasks import _computing_here
from microtome.errors import CohortError, CredentialsError, OptionError, SelectionError, SlideNotFoundError
from microtome.lazy import recipe as recipes
from microtome.lazy.recipe import forget_open_slides
from microtome.lazy.unwrap import unwrap
from microtome.ops.patches.array import PatchArray, lazy_patches
from microtome.ops.patches.joined import JoinedPatches, closed
from microtome.testing import DICOMwebServer, RangeServer, SyntheticSlide, make_slide

SIZE = 48
SECRET = "hunter2-AKIAXYZZY"
QUIET: Any = {"progress": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[SyntheticSlide]:
    """Four slides of several sizes, spacings and codecs."""
    top = tmp_path_factory.mktemp("slides")
    return [
        make_slide(
            top / name, width=width, height=height, frame=frame, codec=codec, spacing=spacing, seed=n, levels=3,
            associated=False,
        )
        for n, (name, width, height, frame, codec, spacing) in enumerate(
            [
                ("ant", 300, 260, 64, "deflated-frame", 0.0005),
                ("bee", 420, 200, 32, "native", 0.0005),
                ("cat", 260, 340, 64, "jpeg-ls", 0.00025),
                ("dog", 90, 300, (64, 32), "rle", 0.0005),
            ]
        )
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cohort(made: list[SyntheticSlide]) -> Cohort:
    return mt.open_cohort([slide.folder for slide in made])


@pytest.fixture(scope="module")
def broken(made: list[SyntheticSlide], tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Good slides, and between them a file that is no DICOM, nothing at all, and a slide with other channels."""
    top = tmp_path_factory.mktemp("broken")
    (top / "text.dcm").write_bytes(b"no slide")
    grey = make_slide(top / "grey", width=100, height=100, frame=32, levels=1, paths=("DAPI",), associated=False)
    folders = [slide.folder for slide in made]
    return mt.open_cohort([folders[0], top / "text.dcm", folders[1], top / "nothing", grey.folder, folders[3]])


GOOD = ["ant", "bee", "dog"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.worker.daemon": True}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0", silence_logs=50
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


on_cluster = pytest.mark.filterwarnings("ignore::ResourceWarning")


def truth(made: list[SyntheticSlide], patches: xr.Dataset, level: int = 0) -> Any:
    """The pixels of patches, as slices of whole levels."""
    wholes = {slide.folder.name: slide.pixels(level) for slide in made}
    places = zip(patches.slide.values, patches.row.values, patches.column.values, strict=True)
    return np.stack([wholes[name][r : r + SIZE, c : c + SIZE] for name, r, c in places])


# Opening ------------------------------------------------------------------------------------------------------------


def test_nothing_is_opened(tmp_path: Path) -> None:
    cohort = mt.open_cohort([tmp_path / "not" / "there.dcm", "s3://bucket/nor/here/"])
    assert cohort.names == ["there", "here"]
    with pytest.raises(SlideNotFoundError):
        cohort["there"]


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["/a/one.dcm", "/a/two.x/", "/a/1.2.840.10008/"], ["one", "two", "1.2.840.10008"]),
        (["/a/s", "/b/s", "/c/s", "/d/s-2"], ["s", "s-3", "s-4", "s-2"]),
        ([["/a/s/1.dcm", "/a/s/2.dcm"], "/a/t/*.dcm", "/a/u/**/*"], ["s", "t", "u"]),
        (["gs://b/x/y.dcm", "https://h/z.dcm?sig=hunter2", "zip://in/q.dcm::s3://b/x.zip"], ["y", "z", "q"]),
        (["https://h/dicomWeb/studies/1.2/series/1.2.3"], ["1.2.3"]),
    ],
)
def test_default_names(targets: list[Any], names: list[str]) -> None:
    assert mt.open_cohort(targets).names == names


def test_names_of_ones_own(made: list[SyntheticSlide]) -> None:
    folders = [slide.folder for slide in made]
    assert mt.open_cohort(folders, names=["4", "3", "2", "1"]).names == ["4", "3", "2", "1"]
    by_name = mt.open_cohort({"x": folders[1], "y": [*made[0].files]})
    assert list(by_name) == ["x", "y"]
    np.testing.assert_array_equal(by_name["y"]["level0"].image.values, made[0].pixels(0))
    for wrong in (["a", "a", "b", "c"], ["a"], ["a", "b", "", "c"]):
        with pytest.raises(OptionError):
            mt.open_cohort(folders, names=wrong)


def test_tables(made: list[SyntheticSlide]) -> None:
    urls = [str(slide.folder) for slide in made]
    table = pd.DataFrame({"grade": [1, 3, 2, 3], "url": urls, "series": [None, np.nan, "", "  "]})
    cohort = mt.open_cohort(table)
    assert cohort.names == ["ant", "bee", "cat", "dog"]
    assert cohort.table.grade.tolist() == [1, 3, 2, 3]
    assert cohort.table.index.name == "slide"
    assert "url" in table.columns  # the user's own is left alone
    assert mt.open_cohort(table.assign(slide=[7, 8, 9, 10])).names == ["7", "8", "9", "10"]
    assert mt.open_cohort(table.set_index(pd.Index(list("wxyz")))).names == list("wxyz")
    assert mt.open_cohort(table[table.grade == 3]).names == ["bee", "dog"]
    assert mt.open_cohort(table.assign(code=list("abcd")), names="code").names == list("abcd")
    copy = cohort.table
    copy.loc["ant", "grade"] = 100
    assert cohort.table.grade["ant"] == 1
    with pytest.raises(OptionError, match="url"):
        mt.open_cohort(table.drop(columns="url"))
    with pytest.raises(OptionError, match="'a'"):
        mt.open_cohort(table.assign(slide=list("abac")))


def test_series_choose(tmp_path: Path) -> None:
    slides = [make_slide(tmp_path / str(n), width=70, height=60, frame=32, seed=n, codec="native") for n in range(2)]
    series = [mt.open_slide(slide.folder).attrs["series_instance_uid"] for slide in slides]
    cohort = mt.open_cohort(pd.DataFrame({"url": [str(tmp_path)] * 2, "series": series}))
    assert cohort.names == series
    for name, slide in zip(series, slides, strict=True):
        np.testing.assert_array_equal(cohort[name]["level0"].image.values, slide.pixels(0))


def test_wrong_arguments(made: list[SyntheticSlide]) -> None:
    folders = [slide.folder for slide in made]
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (folders, {"series": "1.2"}), (folders, {"metadata": "{}"}), (folders, {"nonsense": 1}),
        (folders, {"chunks": 7}), (folders, {"missing": "perhaps"}), (folders, {"query": {}}), (7, {}), ([7], {}),
        ([[]], {}), ({"a": folders[0]}, {"names": ["b"]}), (folders, {"names": "url"}),
        (folders, {"credentials": mt.credentials.bearer("x")}),
    ]  # fmt: skip
    for source, options in wrong:
        with pytest.raises(OptionError):
            mt.open_cohort(source, **options)


def test_options_reach_the_slides(made: list[SyntheticSlide]) -> None:
    cohort = mt.open_cohort([made[0].folder], chunks=None, fill=7)
    assert cohort[0]["level0"].image.chunks is None
    padded = cohort.patches(SIZE, level=0, pad="fill", anchor=(-20, 0), **QUIET)
    assert (padded.image.values[padded.row.values < 0, 0] == 7).all()
    both = mt.open_cohort(
        {"file": made[0].folder, "web": "https://h/dicomWeb/studies/1.2/series/1.3"},
        credentials=lambda: {"X-Key": "a"}, storage_options={"allow_hosts": ["h2"]}, read_ahead="requests",
    )  # fmt: skip
    assert both["file"].sizes is not None
    assert [r.read_ahead for r in both._recipes] == ["none", "requests"]


# Selecting ----------------------------------------------------------------------------------------------------------


def test_selections(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    assert len(cohort) == 4
    assert "bee" in cohort
    assert "eel" not in cohort
    assert cohort.head(2).names == cohort[:2].names == ["ant", "bee"]
    assert cohort[["dog", "ant"]].names == cohort[[3, 0]].names == cohort[[-1, -4]].names == ["dog", "ant"]
    assert cohort[np.array([True, False, False, True])].names == ["ant", "dog"]
    assert cohort[cohort.table.url.str.endswith("bee")].names == ["bee"]
    assert cohort[::-1].table.index.tolist() == ["dog", "cat", "bee", "ant"]
    assert cohort[[]].names == []
    for key in ("cat", 2, -2, np.int64(2)):
        np.testing.assert_array_equal(cohort[key]["level0"].image.values, made[2].pixels(0))
    np.testing.assert_array_equal(cohort[["dog", "cat"]][1]["level1"].image.values, made[2].pixels(1))
    other = pd.Series([True] * 4, index=list("wxyz"))
    for wrong in ("eel", 4, -5, ["ant", "eel"], [True, False], other, ["ant", "ant"], [[0, 1]], 2.5):
        with pytest.raises(SelectionError):
            cohort[wrong]


def test_few_trees_are_kept(made: list[SyntheticSlide], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Counter[str]()
    real = recipes.open_recipe

    def counted(recipe: Any) -> Any:
        opened[recipe.where] += 1
        return real(recipe)

    monkeypatch.setattr(recipes, "open_recipe", counted)
    cohort = mt.open_cohort({str(n): made[n % 4].folder for n in range(8)})
    assert cohort["0"] is cohort[0]
    for _ in range(2):
        for name in ("0", "1", "2", "3"):
            assert name in cohort
            assert cohort[name].children
    assert set(opened.values()) == {1}
    for name in ("4", "5", "6", "7", "0"):
        assert cohort[name].children
    assert opened[str(made[0].folder)] == 3


def test_it_pickles_small_and_shows_little(made: list[SyntheticSlide]) -> None:
    cohort = mt.open_cohort({f"patient-{n}": made[n % 4].folder for n in range(200)})
    cohort["patient-1"]  # what is open does not travel
    data = pickle.dumps(cohort)
    assert len(data) < 4000 + 200 * 250
    there = pickle.loads(data)
    assert there.names == cohort.names
    pd.testing.assert_frame_equal(there.table, cohort.table)
    np.testing.assert_array_equal(there["patient-3"]["level0"].image.values, made[3].pixels(0))
    assert "patient" not in repr(cohort)
    assert len(repr(cohort)) < 80


# Secrets ------------------------------------------------------------------------------------------------------------


@on_cluster
def test_secrets_do_not_travel(cluster: Any) -> None:
    url = f"https://h/slide.dcm?X-Amz-Signature={SECRET}"
    stores = mt.open_cohort(["s3://b/slide"], storage_options={"key": "a", "secret": SECRET})
    web = mt.open_cohort(["https://h/dicomWeb/studies/1.2"], credentials=mt.credentials.bearer(SECRET))
    for cohort in (mt.open_cohort([url]), stores, web):
        assert SECRET not in repr(cohort) + cohort.table.to_string()
        for work in (cohort.summary, partial(cohort.map, len), partial(cohort.patches, 9, level=0)):
            with pytest.raises((OptionError, CredentialsError), match="secret") as caught:
                work(client=cluster, **QUIET)
            assert SECRET not in str(caught.value)
        with pytest.raises((OptionError, CredentialsError)):
            pickle.dumps(cohort)


def test_signed_urls_are_one_slide(tmp_path: Path) -> None:
    """They are signed anew each time; and no trace of a signature is left in the file."""
    from microtome.cohort.identity import recipe_digest

    first, second, other = (
        mt.open_cohort([f"https://h/{name}.dcm?X-Amz-Signature={sig}"])._recipes[0]
        for name, sig in (("a", "1"), ("a", "2"), ("b", "1"))
    )
    assert recipe_digest(first) == recipe_digest(second) != recipe_digest(other)


# Summaries ----------------------------------------------------------------------------------------------------------


def check_summary(broken: Cohort, made: list[SyntheticSlide], **options: Any) -> None:
    table = broken.summary(**options, **QUIET)
    assert table.index.tolist() == broken.names
    good = table[table.error.isna()]
    assert good.index.tolist() == ["ant", "bee", "grey", "dog"]
    for slide in (made[0], made[1], made[3]):
        row = good.loc[slide.folder.name]
        assert (row["rows"], row["columns"]) == slide.level_shapes[0]
        assert (row["row_spacing"], row["column_spacing"]) == slide.spacings[0]
        assert row["levels"] == 3
        assert row["bytes"] == sum(f.stat().st_size for f in slide.files)
        assert row["frames"] == mt.open_slide(slide.folder).wsi.levels.frames.sum()
    assert good.codec.tolist() == ["deflated frames", "native", "JPEG", "RLE"]
    assert good.channels.tolist() == [3, 3, 1, 3]
    assert table.error["text"].startswith("NotASlideError: ")
    assert table.error["nothing"].startswith("SlideNotFoundError: ")


def test_summary(broken: Cohort, made: list[SyntheticSlide]) -> None:
    fresh = broken[:]
    check_summary(fresh, made)
    assert repr(fresh) == "<Cohort of 6 slides, 6 looked at, 2 failed>"
    assert repr(pickle.loads(pickle.dumps(fresh))) == repr(fresh)


def test_only_what_is_not_known_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = mt.open_cohort([tmp_path / "a", tmp_path / "b"])
    make_slide(tmp_path / "a", width=50, height=40, frame=32, levels=1, associated=False)
    assert cohort.summary(**QUIET).error.isna().tolist() == [True, False]
    make_slide(tmp_path / "b", width=50, height=40, frame=32, levels=1, associated=False)
    seen = []
    monkeypatch.setattr(
        "microtome.cohort.summary.open_recipe", lambda r: seen.append(r.where) or recipes.open_recipe(r)
    )
    assert cohort.summary(**QUIET).error.isna().all()
    assert seen == [str(tmp_path / "b")]
    assert cohort[["b"]].summary(**QUIET)["rows"].tolist() == [40]
    assert len(seen) == 1


@on_cluster
def test_summary_on_a_cluster(broken: Cohort, made: list[SyntheticSlide], cluster: Any) -> None:
    check_summary(broken[:], made, client=cluster)


def test_no_slides(cohort: Cohort) -> None:
    none = cohort[[]]
    assert none.summary(**QUIET).shape == (0, 14)
    assert none.map(len, **QUIET).empty
    with pytest.raises(OptionError):
        none.patches(SIZE, level=0)


# Patches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", ["auto", 7, None])
def test_patches(cohort: Cohort, made: list[SyntheticSlide], chunks: Any) -> None:
    patches = cohort.patches(SIZE, stride=31, level=0, chunks=chunks, **QUIET)
    alone = [mt.open_slide(slide.folder).wsi.level(0).wsi.patches(SIZE, 31) for slide in made]
    for name in ("row", "column", "y0", "x0"):
        np.testing.assert_array_equal(patches[name].values, np.concatenate([ps[name].values for ps in alone]))
        assert patches[name].dtype == alone[0][name].dtype
        assert patches[name].attrs == alone[0][name].attrs
    counts = [ps.sizes["patch"] for ps in alone]
    assert patches.slide.values.tolist() == np.repeat(cohort.names, counts).tolist()
    assert patches.slide_index.values.tolist() == np.repeat(np.arange(4), counts).tolist()
    assert patches.c.values.tolist() == ["r", "g", "b"]
    assert patches.attrs["patch_size"] == [SIZE, SIZE]
    assert "pixel_spacing_mm" not in patches.attrs  # one slide has another
    assert "id" not in patches.coords
    json.dumps(patches.attrs)
    expected = truth(made, patches)
    np.testing.assert_array_equal(patches.image.values, expected)
    if chunks == 7:
        ends = np.cumsum(patches.chunksizes["patch"])
        assert set(np.cumsum(counts)) <= set(ends.tolist())
        assert max(patches.chunksizes["patch"]) == 7
    rng = np.random.default_rng(0)
    some = rng.permutation(len(expected))[:40]
    np.testing.assert_array_equal(patches.isel(patch=some).image.values, expected[some])
    for n in (0, counts[0], len(expected) - 1, -1, np.int64(5)):
        np.testing.assert_array_equal(patches.image[n].values, expected[n])
    np.testing.assert_array_equal(patches.image[3:300:7, 2:9, ::-2, 1].values, expected[3:300:7, 2:9, ::-2, 1])
    np.testing.assert_array_equal(patches.image[::-5].values, expected[::-5])
    assert patches.image[5:5].values.shape == (0, SIZE, SIZE, 3)
    of_bee = patches.isel(patch=patches.slide == "bee")
    np.testing.assert_array_equal(of_bee.image.values, expected[patches.slide.values == "bee"])
    grouped = patches.assign(mean=patches.image.astype(float).mean(("y", "x", "c")))["mean"].groupby("slide").mean()
    means = [expected[patches.slide.values == name].mean() for name in cohort.names]
    np.testing.assert_allclose(grouped.sel(slide=cohort.names).values, means)


def test_points_of_patches(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    patches = cohort.patches(SIZE, level=0, chunks=None, **QUIET)
    expected = truth(made, patches)
    rng = np.random.default_rng(1)
    count = len(expected)
    n, y, x, c = (rng.integers(-k, k, (5, 6)) for k in (count, SIZE, SIZE, 3))
    points = [xr.DataArray(a, dims=("i", "j")) for a in (n, y, x, c)]
    image = patches.image
    np.testing.assert_array_equal(
        image.isel(patch=points[0], y=points[1], x=points[2], c=points[3]).values, expected[n, y, x, c]
    )
    np.testing.assert_array_equal(image.isel(patch=points[0], y=points[1]).values, expected[n, y])
    line, rows = xr.DataArray(n[0], dims="i"), xr.DataArray(y[0], dims="i")
    np.testing.assert_array_equal(image.isel(patch=line).values, expected[n[0]])
    np.testing.assert_array_equal(image.isel(patch=line, y=rows, c=1).values, expected[n[0], y[0], :, 1])
    across = xr.DataArray(y[0], dims="k")
    np.testing.assert_array_equal(image.isel(patch=line, y=across).values, expected[n[0]][:, y[0]])
    for steps in (slice(None), slice(20, 3, -4), slice(7, 7)):
        got = image.isel(patch=steps, y=rows, x=line[:6] % SIZE).values
        wanted = np.moveaxis(expected[steps][:, y[0], n[0] % SIZE], 1, 1)
        np.testing.assert_array_equal(
            np.moveaxis(got, image.isel(patch=steps, y=rows, x=line % SIZE).dims.index("i"), 1), wanted
        )


def test_keys_are_the_same_in_every_process(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    name = cohort.patches(SIZE, level=0, **QUIET).image.data.name
    code = (
        "import sys, microtome as mt; c = mt.open_cohort(sys.argv[1:]); "
        f"print(c.patches({SIZE}, level=0, progress=False).image.data.name)"
    )
    command = [sys.executable, "-c", code, *(str(slide.folder) for slide in made)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip() == name
    others = [
        cohort.patches(SIZE, level=0, **options, **QUIET) for options in ({"stride": 9}, {"chunks": 3}, {"fill": 3})
    ]
    others += [cohort.patches(SIZE, level=1, **QUIET), cohort[::-1].patches(SIZE, level=0, **QUIET)]
    assert len({name, *(ps.image.data.name for ps in others)}) == 6


def test_patch_reads_touch_their_slide_only(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = cohort.patches(SIZE, level=0, chunks=5, **QUIET)
    lazy = cohort.patches(SIZE, level=0, chunks=None, **QUIET)
    forget_open_slides()
    opened: list[str] = []
    real = recipes.open_recipe
    monkeypatch.setattr(recipes, "open_recipe", lambda r: opened.append(Path(r.where).name) or real(r))
    number = int(np.flatnonzero(patches.slide == "cat")[3])
    for ds in (patches, lazy, patches.isel(patch=slice(number, number + 2)), lazy.isel(patch=[number])):
        at = number if ds.sizes["patch"] > 2 else 0
        assert ds.image[at].values.any()
        assert ds.isel(patch=[at]).image.wsi.explain().frames > 0
        assert set(opened) == {"cat"}
        forget_open_slides()
    # And nothing holds what was opened: of a thousand slides, some are open.
    view = unwrap(lazy.image.variable)
    assert view is not None
    assert isinstance(view.array, JoinedPatches)
    assert all(part.source._opened is None for part in view.array.parts)  # type: ignore[attr-defined]


def test_patches_are_known_for_what_they_are(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    patches = cohort.patches(SIZE, level=0, chunks=6, **QUIET)
    for part in (patches, patches.isel(patch=slice(10, 200, 3)), patches.isel(patch=[40, 3, 77])):
        view = unwrap(part.image.variable)
        assert view is not None
        assert isinstance(view.array, JoinedPatches)
        assert part.image.wsi.explain().frames > 0
        lazy = lazy_patches(part.image)
        assert lazy is not None
        assert lazy.chunks is None
        np.testing.assert_array_equal(lazy.values, truth(made, part))
    covered = patches.isel(patch=[3, 40, 100]).image.wsi.coverage()
    assert covered.values.all()
    with pytest.raises(OptionError, match="slides"):
        patches.image.wsi.to_profile("srgb").compute()


def test_at_one_spacing(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    patches = cohort.patches(32, spacing=0.001, **QUIET)
    assert patches.attrs["pixel_spacing_mm"] == [0.001, 0.001]
    pixels = patches.image.values
    for n, slide in enumerate(made):
        whole = mt.open_slide(slide.folder).wsi.at(0.001).values
        for i in np.flatnonzero(patches.slide_index == n):
            r, c = int(patches.row[i]), int(patches.column[i])
            np.testing.assert_array_equal(pixels[i], whole[r : r + 32, c : c + 32])
    stored = cohort.patches(SIZE, magnification=20, **QUIET)
    assert stored.attrs["pixel_spacing_mm"] == [0.0005, 0.0005]
    of_cat = (stored.slide == "cat").values
    np.testing.assert_array_equal(stored.image.values[of_cat], truth(made, stored.isel(patch=of_cat), 1))
    with pytest.raises(CohortError, match="LevelNotFoundError") as caught:
        cohort.patches(SIZE, magnification=40, **QUIET)
    assert set(caught.value.failures) < set(cohort.names)
    assert "choosing.py" in "".join(caught.value.__notes__)


def left_half(slide: xr.DataTree) -> xr.DataArray:
    image = slide["level2"].image
    mask: xr.DataArray = (image.x < float(image.x.mean())) & (image.y > 0)
    return mask


def test_masks(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    by_function = cohort.patches(SIZE, level=0, mask=left_half, min_fraction=0.3, **QUIET)
    masks = {slide.folder.name: left_half(mt.open_slide(slide.folder)) for slide in made}
    by_name = cohort.patches(SIZE, level=0, mask=masks, min_fraction=0.3, **QUIET)
    xr.testing.assert_identical(by_function, by_name)
    alone = [
        mt.open_slide(s.folder).wsi.level(0).wsi.patches(SIZE, mask=masks[s.folder.name], min_fraction=0.3)
        for s in made
    ]
    np.testing.assert_array_equal(by_name.tissue_fraction, np.concatenate([ps.tissue_fraction for ps in alone]))
    np.testing.assert_array_equal(by_name.image.values, truth(made, by_name))
    tissue = cohort.patches(16, level=0, mask="tissue", **QUIET)
    expected = []
    for slide in made:
        opened = mt.open_slide(slide.folder)
        ps = opened.wsi.level(0).wsi.patches(16, mask=opened.wsi.tissue_mask())
        expected += [(slide.folder.name, *place) for place in zip(ps.row.values, ps.column.values, strict=True)]
    assert list(zip(tissue.slide.values, tissue.row.values, tissue.column.values, strict=True)) == expected
    own = cohort.patches(
        SIZE, level=0, origins={n: [[3, 5], [0, 0]][: i % 2 + 1] for i, n in enumerate(cohort)}, **QUIET
    )
    assert own.slide.values.tolist() == ["ant", "bee", "bee", "cat", "dog", "dog"]
    np.testing.assert_array_equal(own.image.values, truth(made, own))
    for wrong in ({"mask": {"ant": left_half}}, {"mask": "tissues"}, {"mask": masks["ant"]}, {"origins": [[0, 0]]}):
        with pytest.raises(OptionError):
            cohort.patches(SIZE, level=0, **wrong, **QUIET)  # type: ignore[arg-type]


def test_images_of_ones_own(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    patches = cohort.patches(SIZE, image=lambda slide: slide["level0"].image[10:, :200].wsi.to_profile("srgb"), **QUIET)
    for n in (0, 40, -1):
        name, r, c = str(patches.slide[n].item()), int(patches.row[n]), int(patches.column[n])
        whole = cohort[name]["level0"].image[10:, :200].wsi.to_profile("srgb").values
        np.testing.assert_array_equal(patches.image[n].values, whole[r : r + SIZE, c : c + SIZE])
    alone = [slide["level0"].image[10:, :200].wsi.patches(SIZE) for slide in map(cohort.__getitem__, cohort)]
    for name in ("row", "column", "y0", "x0"):
        np.testing.assert_array_equal(patches[name].values, np.concatenate([ps[name].values for ps in alone]))
    with pytest.raises(CohortError, match="view of the slide"):
        cohort.patches(SIZE, image=lambda slide: slide["level0"].image + 1, **QUIET)
    with pytest.raises(CohortError, match="DataArray"):
        cohort.patches(SIZE, image=lambda slide: 3, **QUIET)  # type: ignore[arg-type, return-value]
    for wrong in ({}, {"level": 0, "spacing": 0.001}, {"level": 0, "errors": "ignore"}):
        with pytest.raises(OptionError):
            cohort.patches(SIZE, **wrong, **QUIET)  # type: ignore[arg-type]


def test_broken_slides_have_no_patches(broken: Cohort, made: list[SyntheticSlide]) -> None:
    patches = broken.patches(SIZE, level=0, errors="skip", **QUIET)
    assert list(dict.fromkeys(patches.slide.values)) == GOOD
    assert sorted(set(patches.slide_index.values.tolist())) == [0, 2, 5]
    np.testing.assert_array_equal(patches.image.values, truth(made, patches))
    skipped = patches.attrs["skipped"]
    assert list(skipped) == ["text", "nothing", "grey"]
    assert "DAPI" in skipped["grey"]
    assert skipped["text"].startswith("NotASlideError: ")
    with pytest.raises(CohortError, match=r"text|nothing"):
        broken.patches(SIZE, level=0, **QUIET)
    with pytest.raises(CohortError, match=r"grey.*DAPI"):
        broken[["ant", "bee", "grey"]].patches(SIZE, level=0, **QUIET)
    with pytest.raises(CohortError, match="all 2") as caught:
        broken[["text", "nothing"]].patches(SIZE, level=0, errors="skip", **QUIET)
    assert list(pickle.loads(pickle.dumps(caught.value)).failures) == ["text", "nothing"]


def test_no_patches(cohort: Cohort) -> None:
    for chunks in ("auto", 3, None):
        none = cohort.patches(5000, level=0, chunks=chunks, **QUIET)
        assert none.image.values.shape == (0, 5000, 5000, 3)
        assert none.slide.shape == (0,)
    some = cohort.patches((300, 90), level=0, **QUIET)
    assert list(dict.fromkeys(some.slide.values)) == ["cat", "dog"]
    assert some.image.values.shape[1:] == (300, 90, 3)


def test_patches_pickle(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    for chunks in ("auto", None):
        patches = cohort.patches(SIZE, level=0, chunks=chunks, **QUIET)
        data = pickle.dumps(patches)
        assert len(data) < 60 * patches.sizes["patch"] + 4096 * 5
        forget_open_slides()
        np.testing.assert_array_equal(pickle.loads(data).image.values, truth(made, patches))


def test_secrets_need_not_travel_to_threads(made: list[SyntheticSlide]) -> None:
    fs = fsspec.filesystem("memory")
    for slide in made[:2]:
        for file in slide.files:
            fs.pipe(f"/cohort/{slide.folder.name}/{file.name}", file.read_bytes())
    try:
        cohort = mt.open_cohort(
            ["memory://cohort/ant", "memory://cohort/bee"], storage_options={"password": SECRET}
        )  # which this store passes over
        patches = cohort.patches(SIZE, level=0, **QUIET)
        np.testing.assert_array_equal(patches.image.values, truth(made, patches))
        assert cohort.summary(**QUIET).error.isna().all()
    finally:
        fs.rm("/cohort", recursive=True)


def test_ten_million_patches(cohort: Cohort) -> None:
    """Coordinates and places in well below 1 GB: what there is once a patch is counted."""
    image = mt.open_slide(cohort._recipes[0].names[0], chunks=None)["level0"].image
    view = unwrap(image.variable)
    assert view is not None
    rng = np.random.default_rng(0)
    slides, each = 500, 20_000
    cuts = []
    for _ in range(slides):
        places = rng.integers(0, 100_000, (each, 2))
        array = closed(PatchArray(*view, places, (224, 224), (255,)))
        cuts.append(SlideCut(array, {}, ((0.0, 0.0005), (0.0, 0.0005)), rng.random(each), {}))
    patches = _joined(cuts, range(slides), [f"slide-{n:04}-of-the-cohort" for n in range(slides)], "auto")
    assert patches.sizes["patch"] == 10_000_000
    buffers = [v._data if v._data.base is None else v._data.base for v in patches.coords.variables.values()]
    assert sum({id(b): b.nbytes for b in buffers}.values()) < 550e6
    assert cuts[7].array.origins.base is patches.row.variable._data.base
    assert patches.image.data.npartitions <= 50_000 + slides
    assert patches.slide[each * 3 - 1].item() == "slide-0002-of-the-cohort"
    assert len(pickle.dumps(patches.image[:3].variable)) > 0


def test_few_open_slides_are_kept(made: list[SyntheticSlide], monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = mt.open_cohort({str(n): made[n % 4].folder for n in range(8)}, fill=1)
    patches = cohort.patches(SIZE, level=0, chunks=None, **QUIET)
    opened: list[str] = []
    real = recipes.open_recipe
    monkeypatch.setattr(recipes, "open_recipe", lambda r: opened.append(r.where) or real(r))
    for kept, expected in ((8, 4), (2, 8)):  # two names of one slide share it
        forget_open_slides()
        del opened[:]
        with mt.config.set(open_slides=kept):
            for _ in range(2):
                for n in range(4):
                    assert patches.image[int(np.argmax(patches.slide_index.values == n))].values.any()
        assert len(opened) == expected


@on_cluster
def test_patches_on_a_cluster(broken: Cohort, made: list[SyntheticSlide], cluster: Any) -> None:
    def by_lambda(slide: xr.DataTree) -> xr.DataArray:  # pickled by value
        return left_half(slide)

    here = broken.patches(SIZE, level=0, mask=left_half, errors="skip", **QUIET)
    masks = {name: left_half(mt.open_slide(made[n].folder)) for n, name in zip((0, 1, 3), GOOD, strict=True)}
    forget_open_slides()
    of_good = broken[GOOD].patches(SIZE, level=0, mask=masks, client=cluster, **QUIET)
    np.testing.assert_array_equal(of_good.tissue_fraction, here.tissue_fraction)
    there = broken.patches(SIZE, level=0, mask=by_lambda, errors="skip", client=cluster, **QUIET)
    assert not recipes._slides._open  # none was opened here
    xr.testing.assert_identical(here.drop_vars("image"), there.drop_vars("image"))
    assert here.image.data.name == there.image.data.name
    expected = truth(made, there)
    np.testing.assert_array_equal(cluster.compute(there.image.data).result(timeout=60), expected)
    assert not recipes._slides._open
    np.testing.assert_array_equal(there.image.values, expected)
    tasks = there.image.data.__dask_graph__()
    assert len(pickle.dumps(max(tasks.to_dict().values(), key=lambda t: len(pickle.dumps(t))))) < 4096


def test_training(cohort: Cohort, made: list[SyntheticSlide]) -> None:
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    from torch.utils.data import DataLoader

    from microtome.torch import IterablePatchDataset, PatchDataset

    for chunks in ("auto", None):
        patches = cohort.patches(SIZE, level=0, chunks=chunks, **QUIET)
        expected = truth(made, patches).transpose(0, 3, 1, 2)
        grade = np.array([5, 6, 7, 8])[patches.slide_index]
        data = PatchDataset(patches.assign(grade=("patch", grade)), target="grade")
        torch.manual_seed(0)
        numbers = torch.randperm(len(expected)).tolist()
        loader = DataLoader(data, batch_size=16, sampler=numbers, num_workers=2, multiprocessing_context="spawn")
        at = 0
        for images, grades in loader:
            some = numbers[at : at + len(images)]
            np.testing.assert_array_equal(images.numpy(), expected[some])
            assert grades.tolist() == grade[some].tolist()
            at += len(images)
        assert at == len(expected)
        names = [name for _, name in PatchDataset(patches, target="slide")]
        assert names == patches.slide.values.tolist()
        got = torch.cat(list(DataLoader(IterablePatchDataset(patches, batch=20), batch_size=16)))
        np.testing.assert_array_equal(got.numpy(), expected)


# Functions of slides ------------------------------------------------------------------------------------------------


def mean_of(slide: xr.DataTree, power: int = 1) -> dict[str, Any]:
    """Uses what a user would: lazy arrays, values, several computations."""
    image = slide["level0"].image
    assert dask.config.get("scheduler") == "synchronous"
    return {
        "rows": image.sizes["y"],
        "mean": (image.astype(float) ** power).mean(),
        "largest": image.max().values,
        "histogram": np.histogram(image.values, 4, (0, 256))[0],
        "process": os.getpid(),
    }


def check_means(table: pd.DataFrame, made: list[SyntheticSlide], power: int = 1) -> None:
    for slide in made:
        pixels, row = slide.pixels(0), table.loc[slide.folder.name]
        assert row["rows"] == pixels.shape[0]
        np.testing.assert_allclose(row["mean"], (pixels.astype(float) ** power).mean())
        assert row["largest"] == pixels.max()
        np.testing.assert_array_equal(row["histogram"], np.histogram(pixels, 4, (0, 256))[0])
        assert pd.isna(row["error"])


@pytest.mark.parametrize("scheduler", [None, "threads", "synchronous"])
def test_map(cohort: Cohort, made: list[SyntheticSlide], scheduler: str | None) -> None:
    with dask.config.set(scheduler=scheduler):
        table = cohort.map(mean_of, power=2, **QUIET)
        assert dask.config.get("scheduler") == scheduler
    assert table.index.tolist() == cohort.names
    assert table.columns.tolist() == ["rows", "mean", "largest", "histogram", "process", "error"]
    assert table["rows"].dtype == np.int64
    assert table["mean"].dtype == np.float64
    check_means(table, made, power=2)
    assert set(table.process) == {os.getpid()}


def test_what_functions_return(cohort: Cohort) -> None:
    def check(value: Any, expected: Any) -> None:
        got = cohort[:1].map(lambda slide: value, **QUIET).iloc[0]
        assert pd.isna(got.error), got.error
        assert got.drop("error").to_dict() == expected

    check(3, {"result": 3})
    check("text", {"result": "text"})
    check(np.float32(0.5), {"result": 0.5})
    check(xr.DataArray(np.uint8(7)), {"result": 7})
    check(None, {})
    check({}, {})
    check(pd.Series({"a": 1, "b": "x"}), {"a": 1, "b": "x"})
    check({"a": [1, 2], 5: {"k": 1}}, {"a": [1, 2], "5": {"k": 1}})
    for wrong in (np.zeros(3), pd.DataFrame({"a": [1]}), [1, 2], {"error": 1}, cohort[0]["level0"].to_dataset()):
        got = cohort[:1].map(lambda slide, wrong=wrong: wrong, **QUIET)
        assert got.error.iloc[0].startswith("OptionError"), wrong
    missing = cohort.map(lambda slide: {"wide": 1} if slide["level0"].sizes["x"] > 290 else {"narrow": True}, **QUIET)
    assert missing.wide.isna().tolist() == [False, False, True, True]
    assert missing.columns.tolist() == ["wide", "narrow", "error"]


def fails_on_bee(slide: xr.DataTree, calls: str = "", times: int = 100) -> int:
    columns = slide["level0"].sizes["x"]
    if columns == 420:
        if calls:
            with Path(calls).open("a") as file:
                file.write("x")
        if not calls or Path(calls).stat().st_size <= times:
            raise KeyError("no bee here")
    return columns


def test_failures_are_rows(broken: Cohort) -> None:
    table = broken.map(fails_on_bee, tracebacks=True, **QUIET)
    assert table.result.dropna().to_dict() == {"ant": 300, "grey": 100, "dog": 90}
    assert table.error["bee"] == "KeyError: 'no bee here'"
    assert table.error["text"].startswith("NotASlideError: ")
    assert "fails_on_bee" in table.traceback["bee"]
    assert table.traceback.isna().tolist() == table.error.isna().tolist()
    assert broken[table.error.isna()].names == ["ant", "grey", "dog"]
    assert broken[:1].map(lambda slide: sys.exit(3), **QUIET).error.tolist() == ["SystemExit: 3"]
    with pytest.raises(CohortError, match="'bee': KeyError") as caught:
        broken[["ant", "bee", "dog"]].map(fails_on_bee, errors="raise", **QUIET)
    assert caught.value.failures == {"bee": "KeyError: 'no bee here'"}
    assert "fails_on_bee" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("where", ["here", pytest.param("cluster", marks=on_cluster)])
def test_retries(cohort: Cohort, tmp_path: Path, where: str, request: pytest.FixtureRequest) -> None:
    client = request.getfixturevalue("cluster") if where == "cluster" else None
    options = {"calls": str(tmp_path / "calls"), "times": 2, "client": client} | QUIET
    once = cohort.map(fails_on_bee, retries=1, **options)
    assert once.error.isna().tolist() == [True, False, True, True]
    assert cohort.map(fails_on_bee, retries=1, **options).result["bee"] == 420  # the third time
    assert (tmp_path / "calls").read_text() == "xxx"
    for wrong in (-1, 1.5, True):
        with pytest.raises(OptionError):
            cohort.map(len, retries=wrong)  # type: ignore[arg-type]


def test_wrong_functions(cohort: Cohort) -> None:
    for options in ({"f": 3}, {"f": len, "errors": "ignore"}):
        with pytest.raises(OptionError):
            cohort.map(**options, **QUIET)


def test_few_are_under_way(made: list[SyntheticSlide], monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = mt.open_cohort({str(n): made[3].folder for n in range(60)})
    begun: list[int] = []
    ended: list[int] = []
    most = []

    def f(slide: xr.DataTree) -> int:
        begun.append(1)
        most.append(len(begun) - len(ended))
        time.sleep(0.002)
        ended.append(1)
        return threading.get_ident()

    with mt.config.set(decode_threads=3):
        table = cohort.map(f, **QUIET)
    assert table.result.nunique() <= 3
    assert max(most) <= 3
    assert threading.get_ident() not in set(table.result)


@on_cluster
def test_map_on_a_cluster(broken: Cohort, made: list[SyntheticSlide], cluster: Any) -> None:
    """More tasks that compute than threads, in each worker: they do not wait for each other."""
    many = mt.open_cohort({f"{n}": made[n % 4].folder for n in range(24)})
    table = many.map(mean_of, client=cluster, **QUIET)
    assert table.index.tolist() == many.names
    check_means(table.iloc[:4].set_axis([slide.folder.name for slide in made]), made)
    assert os.getpid() not in set(table.process)
    assert len(set(table.process)) == 2
    table = broken.map(mean_of, client=cluster, tracebacks=True, **QUIET)
    check_means(table, [made[0], made[1], made[3]])
    assert table.error["text"].startswith("NotASlideError: ")
    assert "Traceback" in table.traceback["nothing"]
    assert set(cluster.run(lambda: dask.config.get("scheduler", None)).values()) == {None}
    large = np.arange(1 << 20)
    table = many.map(lambda slide: {"process": os.getpid(), "sum": large.sum()}, client=cluster, **QUIET)
    assert set(table["sum"]) == {large.sum()}
    assert len(set(table.process)) == 2
    with pytest.raises(OptionError, match="cannot be sent"):
        many.map(lambda slide, lock=threading.Lock(): 1, client=cluster, **QUIET)  # noqa: B008
    unpicklable = many[:2].map(lambda slide: {"a": (n for n in ())}, client=cluster, **QUIET)
    assert unpicklable.error.str.contains("TypeError").all()
    with pytest.raises(CohortError, match=r"slide '\d+': KeyError"):
        many.map(fails_on_bee, client=cluster, errors="raise", **QUIET)


def first_fails(slide: xr.DataTree, folder: str) -> None:
    name = f"{time.time_ns()}-{os.getpid()}-{threading.get_ident()}"
    (Path(folder) / name).touch()
    time.sleep(0.2)
    raise RuntimeError("at once")


@pytest.mark.parametrize("where", ["here", pytest.param("cluster", marks=on_cluster)])
def test_what_has_not_begun_is_cancelled(
    made: list[SyntheticSlide], tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    client = request.getfixturevalue("cluster") if where == "cluster" else None
    many = mt.open_cohort({f"{n}": made[n % 4].folder for n in range(40)})
    with mt.config.set(decode_threads=2), pytest.raises(CohortError, match="RuntimeError: at once"):
        many.map(first_fails, folder=str(tmp_path), errors="raise", client=client, **QUIET)
    time.sleep(1)
    assert 1 <= len(list(tmp_path.iterdir())) <= 12


def test_progress(broken: Cohort, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken.map(fails_on_bee)
    assert capsys.readouterr() == ("", "")  # this is no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    broken.map(fails_on_bee)
    out, errors = capsys.readouterr()
    assert out == ""
    assert "fails_on_bee" in errors
    assert "6/6" in errors
    assert "3 failed" in errors
    assert "bee.dcm" not in errors


def dies_once(slide: xr.DataTree, marker: str) -> int:
    time.sleep(0.1)
    columns = slide["level0"].sizes["x"]
    if columns == 420 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return columns


@on_cluster
@pytest.mark.timeout(100)
def test_a_worker_that_dies(cohort: Cohort, cluster: Any, tmp_path: Path) -> None:
    table = cohort.map(dies_once, marker=str(tmp_path / "marker"), client=cluster, **QUIET)
    assert table.result.tolist() == [300, 420, 260, 90]
    cluster.wait_for_workers(2, timeout=60)


def test_threads_leave_the_scheduler_alone() -> None:
    barrier = threading.Barrier(2)

    def one(first: float) -> None:
        with _computing_here():
            barrier.wait()
            time.sleep(first)
            assert dask.config.get("scheduler") == "synchronous"

    before = dask.config.get("scheduler", None)
    threads = [threading.Thread(target=one, args=(n / 20,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dask.config.get("scheduler", None) == before


# Results on disk ----------------------------------------------------------------------------------------------------


def test_resume(broken: Cohort, made: list[SyntheticSlide], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    real = mapping.open_tree
    monkeypatch.setattr(mapping, "open_tree", lambda r, c: called.append(Path(r.where).name) or real(r, c))
    file = tmp_path / "results.jsonl"
    first = broken[:3].map(mean_of, resume=file, **QUIET)
    assert sorted(called) == ["ant", "bee", "text.dcm"]
    del called[:]
    table = broken.map(mean_of, resume=file, **QUIET)
    assert sorted(called) == ["dog", "grey", "nothing", "text.dcm"]  # what failed is tried again
    check_means(table, [made[0], made[1], made[3]])
    pd.testing.assert_frame_equal(first, table.iloc[:3], check_dtype=False)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line.get("slide") for line in lines[:1]] == [None]
    assert sorted(line["slide"] for line in lines[1:]) == ["ant", "bee", "dog", "grey"]
    del called[:]
    again = broken[["dog", "ant"]].map(mean_of, resume=file, **QUIET)
    assert called == []
    pd.testing.assert_frame_equal(again, table.loc[["dog", "ant"]], check_dtype=False)


def test_other_lines_are_not_mixed_up(cohort: Cohort, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"

    def results(some: Cohort, function: Any, **kwargs: Any) -> list[Any]:
        return some.map(function, resume=file, **kwargs, **QUIET).result.tolist()

    limit = 1
    functions = [lambda s: 1, lambda s: 2, lambda s: limit, lambda s, k=5: k, lambda s: {"result": len(s.children)}]
    assert [results(cohort[:1], f) for f in functions] == [[1], [2], [1], [5], [3]]
    limit = 9
    assert [results(cohort[:1], f) for f in functions] == [[1], [2], [9], [5], [3]]
    assert results(cohort[:1], functions[3], k=6) == [6]
    other = mt.open_cohort({"ant": cohort._recipes[1].names[0]})
    assert results(other, lambda s: s["level0"].sizes["x"]) == [420]
    assert results(cohort[:1], lambda s: s["level0"].sizes["x"]) == [300]
    filled = mt.open_cohort([cohort._recipes[0].names[0]], missing="fill")
    assert len(file.read_text().splitlines()) == 1 + len(functions) + 1 + 1 + 2
    results(filled, lambda s: s["level0"].sizes["x"])
    assert len(file.read_text().splitlines()) == 1 + len(functions) + 1 + 1 + 3


def test_digests_of_functions() -> None:
    def recursive(n: int) -> Any:
        return recursive(n - 1) if n else {1, 2}

    def made(k: int) -> Any:
        return lambda s: k

    same = [function_digest(made(1), {"a": np.arange(3)}) for _ in range(2)]
    assert same[0] == same[1]
    others = [
        function_digest(f, kwargs)
        for f, kwargs in (
            (made(2), {"a": np.arange(3)}), (made(1), {"a": np.arange(4)}), (made(1), {}), (recursive, {}), (len, {}),
            (str.upper, {}), (made, {}),
        )
    ]  # fmt: skip
    assert len({*same, *others}) == 1 + len(others)


def test_results_on_disk_are_json(cohort: Cohort, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    value = {
        "nan": np.nan,
        "inf": -np.inf,
        "f": np.float32(0.1),
        "i": np.int16(4),
        "b": np.bool_(True),
        "t": "é\n\u2028",
    }
    value |= {"a": np.array([[1.5, np.nan]]), "l": (1, 2), "d": {"k": np.uint8(1)}, "n": None, "big": 1 << 60}
    first, second = (cohort[:1].map(_returned, value=value, resume=file, **QUIET) for _ in range(2))
    assert first.error.isna().all()
    pd.testing.assert_frame_equal(first, second)
    row = first.iloc[0]
    assert np.isnan(row["nan"])
    assert (row["inf"], row["f"], row["i"], row["t"]) == (-np.inf, float(np.float32(0.1)), 4, value["t"])
    assert row["b"] is np.True_ or row["b"] is True
    assert row["l"] == [1, 2]
    assert row["a"][0][0] == 1.5
    assert row["big"] == 1 << 60
    assert len(file.read_text().splitlines()) == 2
    for wrong in (object(), np.datetime64("2026-01-01"), 1j, {1, 2}):
        table = cohort[:1].map(_returned, value={"a": wrong}, resume=file, **QUIET)
        assert table.error.iloc[0].startswith("OptionError")


def _returned(slide: xr.DataTree, value: Any) -> Any:
    return value


def test_torn_and_foreign_lines(cohort: Cohort, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    cohort.map(fails_on_bee, resume=file, **QUIET)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4
    for cut in (1, 20, len(lines[3]) - 1):
        file.write_bytes(whole[: len(whole) - cut])
        table = cohort[["ant", "cat", "dog"]].map(fails_on_bee, resume=file, **QUIET)
        assert table.result.tolist() == [300, 260, 90]
        assert file.read_bytes().endswith(b"\n")
        assert file.read_bytes().splitlines()[-1] == lines[3].strip()
    file.write_bytes(lines[0] + b'\xff\n[1]\n{"key": 3}\n{"key": "a", "values": 3}\n\n' + b"".join(lines[1:]))
    before = file.read_bytes()
    assert cohort[["ant", "cat", "dog"]].map(fails_on_bee, resume=file, **QUIET).result.tolist() == [300, 260, 90]
    assert file.read_bytes() == before
    for size in range(len(lines[0])):  # the heading itself is torn
        file.write_bytes(lines[0][:size])
        cohort[[]].map(fails_on_bee, resume=file, **QUIET)
        assert file.read_bytes() == lines[0]
    for foreign in (b"slide,mean\nant,3\n", b"{}\n", b"\0\1", b"x"):
        file.write_bytes(foreign)
        with pytest.raises(OptionError, match="no file of results"):
            cohort.map(fails_on_bee, resume=file, **QUIET)
        assert file.read_bytes() == foreign
    with pytest.raises(OptionError, match="cannot be kept"):
        cohort.map(fails_on_bee, resume=tmp_path / "no" / "folder.jsonl", **QUIET)
    with pytest.raises(OptionError):
        cohort.map(fails_on_bee, resume=tmp_path, **QUIET)


def test_one_writer(cohort: Cohort, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"

    def nested(slide: xr.DataTree) -> str:
        try:
            cohort[:1].map(len, resume=file, **QUIET)
        except OptionError as e:
            return str(e)
        return ""

    table = cohort[:1].map(nested, resume=file, **QUIET)
    assert "another run" in table.result.iloc[0]
    assert cohort[:1].map(lambda s: 1, resume=file, **QUIET).result.tolist() == [1]  # it is free again


SCRIPT = """
import os, sys, time
from pathlib import Path
import microtome as mt
folder, results, calls = sys.argv[1:]

def slow(slide):
    with open(calls, "a") as file:
        file.write(str(slide["level0"].sizes["x"]) + "\\n")
    time.sleep(0.15)
    return {"columns": slide["level0"].sizes["x"], "part": 0.1}

if __name__ == "__main__":
    mt.config.set(decode_threads=2)
    names = sorted(os.listdir(folder))
    cohort = mt.open_cohort([f"{folder}/{name}" for name in names])
    table = cohort.map(slow, resume=results)
    print(table["columns"].tolist(), table.error.isna().all())
"""


@pytest.fixture
def slow(tmp_path: Path) -> tuple[list[str], Path, Path]:
    """A command that goes slowly over ten slides; its results, and its calls."""
    for n in range(10):
        make_slide(tmp_path / "in" / f"{n}", width=40 + n, height=40, frame=32, levels=1, associated=False)
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    results, calls = tmp_path / "results.jsonl", tmp_path / "calls"
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py")]
    return [*command, str(tmp_path / "in"), str(results), str(calls)], results, calls


def until(condition: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 40
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_a_killed_run_goes_on(slow: tuple[list[str], Path, Path]) -> None:
    command, results, calls = slow
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(lines_of(results)) >= 4, process)
        process.send_signal(signal.SIGKILL)
    done = [json.loads(line)["values"]["columns"] for line in lines_of(results)[1:] if line.endswith("}}")]
    assert 3 <= len(done) < 9
    with results.open("a") as file:
        file.write('{"slide": "9", "key": "')
    before = Counter(map(int, lines_of(calls)))
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == f"{list(range(40, 50))} True"
    assert again.stderr == ""  # no bar where there is no terminal
    after = Counter(map(int, lines_of(calls))) - before
    assert sorted(after) == sorted(set(range(40, 50)) - set(done))
    assert set(after.values()) == {1}


def test_an_interrupted_run_ends(slow: tuple[list[str], Path, Path]) -> None:
    command, results, calls = slow
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(lines_of(results)) >= 2, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert len(lines_of(calls)) < 10


# Where slides are ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[SyntheticSlide]:
    top = tmp_path_factory.mktemp("patients")
    return [
        make_slide(
            top / f"1.{n}.5", width=200 + 20 * n, height=100, frame=64, levels=2, codec="jpeg-ls", associated=False,
            seed=n, study_uid=f"1.{n}", series_uid=f"1.{n}.5",
        )
        for n in (1, 2, 3)
    ]  # fmt: skip


@on_cluster
@pytest.mark.usefixtures("new_to_servers")
def test_a_server(patients: list[SyntheticSlide], cluster: Any) -> None:
    with DICOMwebServer(patients[0].folder.parent) as server:
        cohort = mt.open_cohort(server.url, query={"limit": 2})
        assert len(cohort) == 2
        assert set(cohort) < {"1.1.5", "1.2.5", "1.3.5"}
        cohort = mt.open_cohort(server.url)
        assert sorted(cohort) == ["1.1.5", "1.2.5", "1.3.5"]
        assert "StudyDate" in cohort.table.columns
        assert cohort.summary(**QUIET)["columns"].tolist() == [200 + 20 * int(name[2]) for name in cohort]
        for client in (None, cluster):
            patches = cohort.patches(SIZE, level=0, client=client, **QUIET)
            pixels = cluster.compute(patches.image.data).result(timeout=60) if client else patches.image.values
            np.testing.assert_array_equal(pixels, truth(patients, patches))
        table = cohort.map(lambda slide: slide["level0"].image.mean(), client=cluster, **QUIET)
        means = {slide.folder.name: slide.pixels(0).mean() for slide in patients}
        np.testing.assert_allclose(table.result, [means[name] for name in table.index])
        gone = mt.open_cohort([cohort.table.url.iloc[0], f"{server.url}/studies/9.9"])
        assert gone.summary(client=cluster, **QUIET).error.isna().tolist() == [True, False]


def test_memory(made: list[SyntheticSlide]) -> None:
    fs = fsspec.filesystem("memory")
    for slide in made:
        for file in slide.files:
            fs.pipe(f"/cohort/{slide.folder.name}/{file.name}", file.read_bytes())
    try:
        cohort = mt.open_cohort([f"memory://cohort/{slide.folder.name}" for slide in made])
        assert cohort.summary(**QUIET).bytes.tolist() == [sum(f.stat().st_size for f in s.files) for s in made]
        patches = cohort.patches(SIZE, level=0, **QUIET)
        np.testing.assert_array_equal(patches.image.values, truth(made, patches))
        check_means(cohort.map(mean_of, **QUIET), made)
    finally:
        fs.rm("/cohort", recursive=True)


@on_cluster
def test_http(made: list[SyntheticSlide], cluster: Any) -> None:
    with RangeServer(made[0].folder.parent) as server:
        urls = {s.folder.name: [f"{server.url}/{s.folder.name}/{f.name}" for f in s.files] for s in made}
        cohort = mt.open_cohort(urls | {"gone": [f"{server.url}/gone.dcm"]})
        assert cohort.summary(**QUIET).error.isna().tolist() == [True] * 4 + [False]
        patches = cohort.patches(SIZE, level=0, errors="skip", client=cluster, **QUIET)
        expected = truth(made, patches)
        np.testing.assert_array_equal(cluster.compute(patches.image.data).result(timeout=60), expected)
        lazy = cohort[:4].patches(SIZE, level=0, chunks=None, **QUIET)
        some = np.random.default_rng(0).permutation(len(expected))[:30]
        np.testing.assert_array_equal(lazy.image.isel(patch=some).values, expected[some])
        check_means(cohort[:4].map(mean_of, client=cluster, **QUIET), made)


# Size ---------------------------------------------------------------------------------------------------------------

THOUSAND = """
import os, sys
import microtome as mt
folder = sys.argv[1]
cohort = mt.open_cohort([f"{folder}/{name}" for name in sorted(os.listdir(folder))])
table = cohort.summary(progress=False)
assert table.error.isna().all() and table["rows"].sum() == 70 * len(cohort)
patches = cohort.patches(32, level=0, progress=False)
assert patches.sizes["patch"] == 6 * len(cohort)
assert patches.isel(patch=slice(None, None, 600)).image.values.any()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux")
def test_a_thousand_slides_in_200_megabytes(tmp_path: Path) -> None:
    one = make_slide(tmp_path / "one", width=100, height=70, frame=64, levels=1, associated=False)
    for n in range(1000):
        folder = tmp_path / "all" / f"{n:04}"
        folder.mkdir(parents=True)
        for file in one.files:
            (folder / file.name).hardlink_to(file)
    command = [sys.executable, "-c", THOUSAND, str(tmp_path / "all")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200_000
