"""`find_slides` of buckets and web servers: every slide opens, and it takes a list and the beginnings of files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import microtome as mt
from microtome.errors import (
    AuthenticationError,
    IncompleteSlideWarning,
    NotOnServerError,
    OptionError,
    RequestError,
    SlideNotFoundError,
)
from microtome.testing import DICOMwebServer, Fault, FaultRule, RangeServer, SyntheticSlide, make_slide
from stores import Store, Stores

OF_FILES = {"simple_links": True}
"""Any option of fsspec's: a URL that it is given for is not asked whether it is a DICOMweb service."""
HEADER = 64_000
"""More bytes than the first two pieces of a header that is read: 32 KiB each."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SyntheticSlide]]:
    """Five slides, by series: one a folder, two in one, levels in folders of their own, and one that is a file."""
    top, aside = tmp_path_factory.mktemp("bucket"), tmp_path_factory.mktemp("aside")
    options: dict[str, Any] = {"height": 400, "frame": 128, "codec": "native", "levels": 2}
    made = {}
    for n, (folder, more) in enumerate(
        {
            "alone #1": {},
            "one": {"associated": False, "tiling": "sparse"},
            "two": {"associated": False, "parts": 2},
            "apart": {"associated": False},
            "file": {"associated": False, "levels": 1},
        }.items()
    ):
        uid = f"5.{n}"
        made[f"{uid}.5"] = make_slide(
            aside / folder, width=500 + 10 * n, seed=n, study_uid=uid, series_uid=f"{uid}.5", **(options | more)
        )
    shutil.copytree(aside / "alone #1", top / "patient ü" / "alone #1")
    for name in ("one", "two"):
        for file in sorted((aside / name).iterdir()):
            (top / "pair").mkdir(exist_ok=True)
            shutil.copy(file, top / "pair" / f"{name}-{file.name}")
    for file in (aside / "apart").iterdir():
        (top / "apart" / file.stem).mkdir(parents=True)
        shutil.copy(file, top / "apart" / file.stem)
    shutil.copy(made["5.4.5"].files[0], top / "file.dcm")
    (top / "pair" / "notes.txt").write_text("no slide")
    return top, made


def test_slides_of_a_store(store: Store, tree: tuple[Path, dict[str, SyntheticSlide]]) -> None:
    top, made = tree
    url = store.put(top)
    files = [file for file in top.rglob("*") if file.is_file()]
    store.counts.reset()
    table = mt.find_slides(url, storage_options=store.storage_options)
    log = store.counts.log
    assert sorted(table.series_uid) == sorted(made)
    assert [bool(series) for series in table.sort_values("series_uid").series] == [False, True, True, False, False]

    whole = [a for a in log if a.method == "GET" and a.range is None and ".dcm" in a.path and "prefix=" not in a.path]
    assert whole == []
    ranged = [asked for asked in log if asked.range is not None]
    assert len(files) <= len(ranged) <= 2 * len(files)
    assert max(asked.sent for asked in ranged) <= HEADER
    assert sum(asked.sent for asked in ranged) < sum(file.stat().st_size for file in files) / 2

    for row in table.itertuples():
        slide = mt.open_slide(row.url, series=row.series or None, storage_options=store.storage_options, chunks=None)
        np.testing.assert_array_equal(slide["level0"].image.values, made[row.series_uid].pixels(0))
        assert row.instances == len(made[row.series_uid].files)
        assert row.bytes == sum(file.stat().st_size for file in made[row.series_uid].files)


@pytest.mark.parametrize("name", ["gs", "s3"])
def test_listing_a_bucket_takes_few_requests(
    name: str, stores: Stores, tree: tuple[Path, dict[str, SyntheticSlide]]
) -> None:
    top, _ = tree
    store = stores[name]
    url = store.put(top)
    store.counts.reset()
    assert len(mt.find_slides(url, storage_options=store.storage_options)) == 5
    assert store.counts.requests - store.counts.ranged <= 5


def test_a_cohort_of_a_bucket(gs: Store, tree: tuple[Path, dict[str, SyntheticSlide]]) -> None:
    top, made = tree
    cohort = mt.open_cohort(gs.put(top), storage_options=gs.storage_options, query={"SeriesInstanceUID": "5.1.5,5.2.5"})
    assert len(cohort) == 2
    for n, series in enumerate(("5.1.5", "5.2.5")):
        np.testing.assert_array_equal(cohort[n]["level0"].image.values, made[series].pixels(0))


def test_thousands_of_objects(ranges: Store, tmp_path: Path) -> None:
    made = make_slide(
        tmp_path, width=64, height=64, frame=64, codec="native", levels=1, associated=False,
        study_uid="6.1000", series_uid="6.1000.5",
    )  # fmt: skip
    data = made.files[0].read_bytes()
    own = pydicom.dcmread(made.files[0]).SOPInstanceUID.encode()
    urls = []
    for n in range(2000):
        # UIDs of the same length: no length in the file changes.
        changed = data.replace(own, b"%s%04d" % (own[:-4], n)).replace(b"6.1000", b"6.%d" % (1000 + n))
        urls.append(ranges.write(f"many/{n % 10}/{n}.dcm", changed))
    ranges.counts.reset()
    with mt.config.set(io_threads=4):
        # Named one by one, they are looked up one by one: what is under way at a time are headers.
        table = mt.find_slides(urls, storage_options=OF_FILES)
    assert sorted(table.url) == sorted(urls)
    assert table.series_uid.nunique() == len(urls)
    assert 1 < ranges.counts.peak <= 4
    assert ranges.counts.ranged == len(urls)


@pytest.mark.parametrize("codec", ["native", "jpeg"])
def test_positions_of_frames_are_not_read(ranges: Store, tmp_path: Path, codec: str) -> None:
    """Where the spacing stands without them: they may be megabytes."""
    made = make_slide(
        tmp_path, width=4000, height=4000, frame=64, codec=codec, levels=1, associated=False, tiling="sparse",
    )  # fmt: skip
    url = ranges.write(f"sparse-{codec}.dcm", made.files[0].read_bytes())
    ranges.counts.reset()
    (row,) = mt.find_slides(url, storage_options=OF_FILES).itertuples()
    assert (row.rows, row.columns, row.spacing) == (4000, 4000, 0.0005)
    sent = [asked.sent for asked in ranges.counts.log if asked.range is not None]
    assert len(sent) <= 2
    assert sum(sent) <= 2 * HEADER


@pytest.mark.parametrize("times", [None, {3}], ids=["always", "once"])
def test_files_that_a_server_refuses(tmp_path: Path, times: set[int] | None) -> None:
    """All of them: an error, and no more requests than it takes. Some of them: they are counted."""
    made = make_slide(tmp_path / "one", width=64, height=64, frame=64, codec="native", levels=1, associated=False)
    for n in range(60):
        shutil.copy(made.files[0], tmp_path / f"{n}.dcm")
    rule = FaultRule("*.dcm", Fault(status=403), times=times, ranged=True)
    with RangeServer(tmp_path, faults=[rule]) as server, mt.config.set(io_threads=4, http_retries=0):
        urls = [f"{server.url}/{n}.dcm" for n in range(60)]
        if times is None:
            with pytest.raises(AuthenticationError, match=r"/0\.dcm"):
                mt.find_slides(urls, storage_options=OF_FILES)
            assert 4 <= server.counts.ranged <= 4 * 5
        else:
            with pytest.warns(IncompleteSlideWarning, match=": 1 of 60 files cannot be read and are left out"):
                assert len(mt.find_slides(urls, storage_options=OF_FILES)) == 1
            assert server.counts.ranged == 60


def test_a_url_is_asked_whether_it_is_a_service(tmp_path: Path, ranges: Store) -> None:
    """A DICOMweb service is searched, slash or not, and is asked for no file; where there is neither, it says so."""
    make_slide(tmp_path, width=200, height=100, frame=64, codec="native", levels=1, associated=False)
    with DICOMwebServer(tmp_path) as server:
        for url in (server.url, f"{server.url}/"):
            assert len(mt.find_slides(url)) == 1
        assert {request.path.rsplit("/", 1)[1] for request in server.requests} == {"series"}
    with pytest.raises((SlideNotFoundError, RequestError)):
        mt.find_slides(f"{ranges.url}/nowhere/", storage_options=OF_FILES)
    assert not any(asked.path.endswith("/series") for asked in ranges.counts.log)
    with pytest.raises(NotOnServerError, match="/nowhere/series"):
        mt.find_slides(f"{ranges.url}/nowhere/")
    with pytest.raises(NotOnServerError, match="/nowhere/series"):
        mt.find_slides(f"{ranges.url}/nowhere")
    with pytest.raises(OptionError, match="no meaning for a DICOMweb server"):
        mt.find_slides(f"{ranges.url}/studies/1.2", storage_options=OF_FILES)


def test_where_there_is_nothing(store: Store, tree: tuple[Path, dict[str, SyntheticSlide]]) -> None:
    store.put(tree[0])
    with pytest.raises((SlideNotFoundError, RequestError)):
        mt.find_slides(f"{store.url}/nowhere/", storage_options=store.storage_options)
    store.write("texts/note.txt", b"no slide")
    table = mt.find_slides(f"{store.url}/texts/", storage_options=store.storage_options)
    assert len(table) == 0
    assert {"url", "series", "spacing", "bytes"} < set(table.columns)
