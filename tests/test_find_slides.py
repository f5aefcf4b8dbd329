"""`find_slides`: only slides that agree, on servers that search well and on those that do not, and in folders of files.

Buckets and web servers of files are in ``test_find_in_buckets.py``.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pydicom
import pytest

import microtome as mt
from microtome.errors import (
    AuthenticationError,
    IncompleteSlideWarning,
    OptionError,
    RequestError,
    SlideNotFoundError,
)
from microtome.finding.headers import Header, read_headers
from microtome.storage import list_files
from microtome.storage.dicomweb import service as services
from microtome.testing import DICOMwebServer, Fault, SyntheticSlide, make_slide
from secrets_search import find_secret

PATIENTS = {
    "1.1": {"PatientID": "QX-ZK77341", "PatientName": "ZZTOP^ANNA", "AccessionNumber": "A-17", "StudyDate": "20250131"},
    "1.2": {"PatientID": "QX-ZK77342", "PatientName": "ZZTOP^BERT", "AccessionNumber": "A-18", "StudyDate": "20260131"},
    "1.3": {"PatientID": "RX-90000", "PatientName": "OTHER^CARL", "AccessionNumber": "B-1", "StudyDate": "20260815"},
}
HIDDEN = ("QX-ZK77341", "ZZTOP^ANNA", "ZZTOP", "ZK77341")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients with a slide each, and a series of the first that is no slide."""
    top = tmp_path_factory.mktemp("patients")
    for n, (study, patient) in enumerate(PATIENTS.items()):
        made = make_slide(
            top / study, width=200, height=100, frame=64, levels=2, associated=False, seed=n,
            study_uid=study, series_uid=f"{study}.5",
        )  # fmt: skip
        for file in made.files:
            ds = pydicom.dcmread(file)
            for keyword, value in patient.items():
                setattr(ds, keyword, value)
            ds.SeriesDescription = f"HE {n}"
            ds.save_as(file)
            if n == 0 and file == made.files[-1]:
                ds.Modality, ds.SeriesInstanceUID = "SR", "1.1.9"
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.1.9.1"
                ds.save_as(file.with_name("other.dcm"))
    return top


@pytest.fixture(scope="module", params=["standard", "google", "minimal", "orthanc"])
def running(folder: Path, request: pytest.FixtureRequest) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(folder, dialect=request.param) as server:
        yield server


@pytest.fixture
def server(running: DICOMwebServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[DICOMwebServer]:
    monkeypatch.setattr("microtome.storage.retrying.BACKOFF", 0.001)
    services._services.clear()
    running.reset()
    yield running
    running.fault, running.page = None, 100
    assert running.failures == []


def studies(server: DICOMwebServer, **attributes: Any) -> list[str]:
    return sorted(mt.find_slides(server.url, **attributes).study_uid)


ALL = ["1.1", "1.2", "1.3"]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ALL),
        ({"AccessionNumber": "A-17"}, ["1.1"]),
        ({"PatientID": "QX-ZK77341"}, ["1.1"]),
        ({"PatientID": " QX-ZK77341 "}, ["1.1"]),
        ({"PatientID": "QX-ZK7734"}, []),
        ({"PatientID": "QX-*"}, ["1.1", "1.2"]),
        ({"PatientID": "QX-ZK7734?"}, ["1.1", "1.2"]),
        ({"PatientID": "*"}, ALL),
        ({"PatientID": "QX.ZK77341"}, []),
        ({"AccessionNumber": "A-*", "PatientID": "*2"}, ["1.2"]),
        ({"PatientName": "zztop*"}, ["1.1", "1.2"]),
        ({"StudyDate": "20260131"}, ["1.2"]),
        ({"StudyDate": "20260101-"}, ["1.2", "1.3"]),
        ({"StudyDate": "-20260131"}, ["1.1", "1.2"]),
        ({"StudyDate": "20250131-20260130"}, ["1.1"]),
        ({"StudyDate": "20270101-"}, []),
        ({"StudyInstanceUID": "1.2"}, ["1.2"]),
        ({"StudyInstanceUID": "1.2,1.3"}, ["1.2", "1.3"]),
        ({"StudyInstanceUID": "1"}, []),
        ({"SeriesDescription": "HE 2"}, ["1.3"]),
        ({"Modality": "SM"}, ALL),
        ({"PatientID": "", "AccessionNumber": "B-1"}, ["1.3"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("deaf", [False, True], ids=["", "ignores filters"])
def test_only_what_agrees(server: DICOMwebServer, attributes: dict[str, str], expected: list[str], deaf: bool) -> None:
    if deaf:
        everything = mt.find_slides(server.url, PatientName="*", SeriesDescription="*")
        assert len(everything) == 3
        shown = [i for i in _all_series(server) if "0020000D" in i]
        server.fault = lambda request: Fault(status=200, body=json.dumps(shown).encode())
    assert studies(server, **attributes) == expected


def _all_series(server: DICOMwebServer) -> list[dict[str, Any]]:
    fields = [("includefield", keyword) for keyword in ("PatientName", "SeriesDescription", "PatientID")]
    found = list(services.service(server.url, mt.credentials.none()).search("series", fields))
    assert len(found) == 4
    return found


def test_the_table(server: DICOMwebServer) -> None:
    table = mt.find_slides(server.url, PatientID="QX-ZK77341", PatientName="ZZ*")
    assert list(table.columns) == [
        "url", "study_uid", "series_uid", "PatientID", "PatientName", "AccessionNumber", "StudyDate",
        "StudyDescription", "SeriesDescription", "ContainerIdentifier", "NumberOfSeriesRelatedInstances",
    ]  # fmt: skip
    (row,) = table.itertuples()
    assert row.url == f"{server.url}/studies/1.1/series/1.1.5"
    assert (row.study_uid, row.series_uid, row.AccessionNumber, row.StudyDate) == ("1.1", "1.1.5", "A-17", "20250131")
    if server.dialect.name in ("standard", "google"):
        assert (row.SeriesDescription, row.NumberOfSeriesRelatedInstances) == ("HE 0", "2")
    slide = mt.open_slide(row.url, chunks=None)
    assert slide["level0"].image.shape == (100, 200, 3)


def test_nothing_found_is_an_empty_table(server: DICOMwebServer) -> None:
    table = mt.find_slides(server.url, AccessionNumber="C-99", PatientBirthDate="1900-")
    assert len(table) == 0
    assert {"url", "study_uid", "AccessionNumber", "PatientBirthDate", "ContainerIdentifier"} < set(table.columns)
    assert list(table.url) == []


def test_of_a_study_or_a_series(server: DICOMwebServer) -> None:
    for url in (f"{server.url}/studies/1.1", f"dicomweb+{server.url}/studies/1.1/series/1.1.5"):
        assert list(mt.find_slides(url).series_uid) == ["1.1.5"]
    assert len(mt.find_slides(f"{server.url}/studies/1.1/series/1.1.9")) == 0
    assert len(mt.find_slides(f"{server.url}/studies/1.1", PatientID="RX-90000")) == 0


def test_a_limit(server: DICOMwebServer) -> None:
    assert [len(mt.find_slides(server.url, limit=n)) for n in (0, 1, 2, 3, 4)] == [0, 1, 2, 3, 3]
    services._services.clear()
    server.page = 1 if server.dialect.warns else 2
    assert studies(server) == ALL
    with pytest.raises(OptionError, match="limit=-1"):
        mt.find_slides(server.url, limit=-1)


def test_a_keyword_that_dicom_does_not_have(server: DICOMwebServer) -> None:
    with pytest.raises(OptionError, match=r"^Patient_ID is no keyword of DICOM") as caught:
        mt.find_slides(server.url, Patient_ID=HIDDEN[0])
    assert find_secret(repr(caught.value), HIDDEN[0]) == []
    assert server.requests == []


def test_servers_that_refuse_what_they_cannot_include(server: DICOMwebServer) -> None:
    server.fault = lambda r: Fault(status=400, body=b"no such field") if "includefield" in r.query else None
    assert studies(server, AccessionNumber="A-18") == ["1.2"]
    server.fault = lambda r: Fault(status=400, body=b"no such filter")
    with pytest.raises(RequestError, match="no such filter"):
        mt.find_slides(server.url)
    assert len(server.requests) == 4


def test_values_of_odd_forms(server: DICOMwebServer) -> None:
    def item(study: Any, series: Any = "1.5", **more: Any) -> dict[str, Any]:
        tags = {"0020000D": study, "0020000E": series, **{tag.lstrip("t"): value for tag, value in more.items()}}
        return {
            tag: {"vr": "UN", "Value": value if isinstance(value, list) else [value]} for tag, value in tags.items()
        }

    items = [
        item("1.1 ", "1.5\0", t00080050=["X", "A-17"], t00080060="SM"),
        item("1.2", t00080050=[None, " A-17 "]),
        item("1.3", t00080050="A-18"),
        item("1.4", t00080050=[]),
        item("1.5", t00080060="CT"),
        item("../x"), item("1.6", ""), item(None), {},
        item("1.7", t00080050=17),
    ]  # fmt: skip
    server.fault = lambda request: Fault(status=200, body=json.dumps(items).encode())
    assert studies(server, AccessionNumber="A-17") == ["1.1", "1.2", "1.4"]
    assert studies(server, AccessionNumber="17") == ["1.4", "1.7"]
    items[:] = [
        item("1.1", t00201209=7),
        item("1.2", t00201209="7.0"),
        item("1.3", t00201209="8"),
        item("1.4", t00201209="x"),
    ]
    assert studies(server, NumberOfSeriesRelatedInstances="7") == ["1.1", "1.2"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=400, body=b"cannot search for QX-ZK77341 of ZZTOP^ANNA"),
        Fault(status=403, body=b'{"Message": "no ZZTOP%5EANNA"}'),
        Fault(status=500, body=b"<p>QX-ZK77341 ZZTOP^ANNA</p>"),
        Fault(status=404),
        Fault(html=True),
        Fault(status=200, body=b"[{"),
        Fault(reset_after=0),
        Fault(status=302, headers={"Location": "https://other.example/?PatientID=QX-ZK77341"}),
    ],
    ids=["400", "403", "500", "404", "html", "cut", "reset", "redirect"],
)
def test_patients_are_in_no_error_and_no_log(
    server: DICOMwebServer, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    server.fault = lambda request: fault
    with caplog.at_level(logging.DEBUG), mt.config.set(http_retries=1), pytest.raises(RequestError) as caught:
        mt.find_slides(server.url, PatientID=HIDDEN[0], PatientName=HIDDEN[1])
    error: BaseException | None = caught.value
    while error is not None:
        for secret in HIDDEN:
            for text in (str(error), repr(error), repr(error.args), repr(vars(error))):
                assert find_secret(text, secret) == []
        error = error.__cause__ or error.__context__
    log = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert "urllib3" in log
    assert [secret for secret in HIDDEN if find_secret(log, secret)] == []
    assert server.requests


def test_patients_are_not_logged_of_a_search_that_succeeds(
    server: DICOMwebServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert studies(server, PatientID=HIDDEN[0], PatientName=HIDDEN[1]) == ["1.1"]
    log = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert [secret for secret in HIDDEN if find_secret(log, secret)] == []


def test_credentials(folder: Path) -> None:
    with DICOMwebServer(folder, basic=("anna", "secret")) as server:
        with pytest.raises(AuthenticationError):
            mt.find_slides(server.url)
        found = mt.find_slides(server.url, credentials=mt.credentials.basic("anna", "secret"), AccessionNumber="A-17")
        assert list(found.PatientID) == ["QX-ZK77341"]


# Of files -----------------------------------------------------------------------------------------------------------

MEASURES = ["series", "rows", "columns", "spacing", "levels", "instances", "bytes"]
SLIDES = {
    "alone": "2.1.5", "pair one": "2.2.5", "pair two": "2.3.5", "scattered": "2.4.5", "parts": "2.5.5",
    "single": "2.6.5", "mixed": "2.7.5",
}  # fmt: skip


@pytest.fixture(scope="module")
def patients(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients with a slide each."""
    top = tmp_path_factory.mktemp("copied") / "patients"
    return shutil.copytree(folder, top, ignore=shutil.ignore_patterns("other.dcm"))


def make(folder: Path, name: str, n: int, **options: Any) -> SyntheticSlide:
    series = SLIDES[name]
    options = {"width": 200 + 10 * n, "height": 100, "frame": 64, "codec": "native", "levels": 2, "seed": n} | options
    return make_slide(folder, study_uid=series.removesuffix(".5"), series_uid=series, **options)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SyntheticSlide]]:
    """Slides in folders of many forms, by name, with files that are none among them."""
    top, aside = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("aside")
    made = {
        "alone": make(top / "alone", "alone", 0),
        "pair one": make(aside / "one", "pair one", 1),
        "pair two": make(aside / "two", "pair two", 2, associated=False),
        "scattered": make(aside / "scattered", "scattered", 3, associated=False),
        "parts": make(top / "parts", "parts", 4, parts=3, width=300),
        "single": make(top / "others", "single", 5, levels=1, associated=False),
        "mixed": make(top / "mixed" / "deep" / "down", "mixed", 6, tiling="sparse", spacing=None),
    }
    for name in ("one", "two"):
        for file in (aside / name).iterdir():
            (top / "pair").mkdir(exist_ok=True)
            shutil.copy(file, top / "pair" / f"{name} {file.name}")
    for n, file in enumerate(made["scattered"].files):
        (top / "scattered" / f"level {n}").mkdir(parents=True)
        shutil.copy(file, top / "scattered" / f"level {n}")
    (top / "pair" / "notes.txt").write_text("no slide")
    (top / "alone" / "empty.dcm").write_bytes(b"")
    ds = pydicom.dcmread(made["single"].files[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "2.6.9"
    del ds.PixelData
    ds.save_as(top / "others" / "report.dcm")
    return top, made


@pytest.fixture(params=["local", "memory", "zip"])
def place(tree: tuple[Path, dict[str, SyntheticSlide]], request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of the tree."""
    top, _ = tree
    if request.param == "local":
        return str(top)
    files = [path for path in sorted(top.rglob("*")) if path.is_file()]
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
            for path in files:
                archive.write(path, path.relative_to(top))
        return f"zip://::{tmp_path}/tree.zip"
    memory = fsspec.filesystem("memory")
    for path in files:
        memory.pipe(f"/{top.name}/{path.relative_to(top)}", path.read_bytes())
    return f"memory://{top.name}"


def by_series(table: pd.DataFrame) -> dict[str, Any]:
    names = {uid: name for name, uid in SLIDES.items()}
    return {names[row.series_uid]: row for row in table.itertuples()}


def reopened(row: Any, **options: Any) -> Any:
    return mt.open_slide(row.url, series=row.series or None, chunks=None, **options)


def test_slides_of_files_can_all_be_opened(place: str, tree: tuple[Path, dict[str, SyntheticSlide]]) -> None:
    _, made = tree
    table = mt.find_slides(place)
    rows = by_series(table)
    assert len(table) == len(rows) == len(made)
    assert rows.keys() == made.keys()
    for name, row in rows.items():
        slide = reopened(row)
        np.testing.assert_array_equal(slide["level0"].image.values, made[name].pixels(0))
        assert len(slide.wsi.levels) == row.levels
        assert (row.rows, row.columns) == made[name].level_shapes[0]
        files = made[name].files
        assert (row.instances, row.bytes) == (len(files), sum(file.stat().st_size for file in files))
        np.testing.assert_equal(row.spacing, (made[name].spacings[0] or (float("nan"),))[0])
    folders = {name: row.url.split("::")[0].rstrip("/") for name, row in rows.items()}
    root = place.split("::")[0].rstrip("/").replace("memory://", "memory:///")
    ends = {name: folder.removeprefix(root).strip("/") for name, folder in folders.items()}
    assert ends == {
        "alone": "alone", "pair one": "pair", "pair two": "pair", "scattered": "scattered", "parts": "parts",
        "single": "others/level00.dcm", "mixed": "mixed/deep/down",
    }  # fmt: skip
    assert {name for name, row in rows.items() if row.series} == {"pair one", "pair two"}


def test_the_table_of_files(tree: tuple[Path, dict[str, SyntheticSlide]]) -> None:
    top, _ = tree
    table = mt.find_slides(top / "alone", PatientName="*")
    assert list(table.columns) == [
        "url", "study_uid", "series_uid", "PatientName", "PatientID", "AccessionNumber", "StudyDate",
        "StudyDescription", "SeriesDescription", "ContainerIdentifier", *MEASURES,
    ]  # fmt: skip
    (row,) = table.itertuples()
    assert (row.url, row.study_uid, row.series_uid) == (str(top / "alone"), "2.1", "2.1.5")
    assert (row.PatientID, row.ContainerIdentifier) == ("SYNTHETIC", "SYNTHETIC-1")
    assert all(table[name].dtype.kind == "i" for name in ("rows", "columns", "levels", "instances", "bytes"))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ALL),
        ({"AccessionNumber": "A-17"}, ["1.1"]),
        ({"AccessionNumber": "A-*", "PatientID": "*2"}, ["1.2"]),
        ({"PatientID": " QX-ZK77341 "}, ["1.1"]),
        ({"PatientID": "QX.ZK77341"}, []),
        ({"PatientName": "zztop*"}, ["1.1", "1.2"]),
        ({"PatientID": "", "AccessionNumber": "B-1"}, ["1.3"]),
        ({"StudyDate": "20260101-"}, ["1.2", "1.3"]),
        ({"StudyDate": "-20260131"}, ["1.1", "1.2"]),
        ({"StudyInstanceUID": "1.2,1.3"}, ["1.2", "1.3"]),
        ({"Modality": "SM"}, ALL),
        ({"Modality": "CT"}, []),
        # What a file does not state it does not have, where a server may only not tell it.
        ({"PatientComments": "x"}, []),
        ({"PatientComments": "*"}, ALL),
        ({"AcquisitionDate": "-20260101"}, []),
        ({"NumberOfFrames": "8"}, ALL),
    ],
    ids=str,
)
def test_files_are_searched_as_servers_are(patients: Path, attributes: dict[str, str], expected: list[str]) -> None:
    assert sorted(mt.find_slides(patients, **attributes).study_uid) == expected


def test_a_limit_of_files_and_nothing_that_agrees(patients: Path) -> None:
    everything = mt.find_slides(patients)
    assert [len(mt.find_slides(patients, limit=n)) for n in (0, 1, 2, 3, 4)] == [0, 1, 2, 3, 3]
    assert mt.find_slides(patients, limit=2).equals(everything[:2])
    for table in (mt.find_slides(patients, limit=0), mt.find_slides(patients, PatientID="nobody")):
        assert list(table.columns) == list(everything.columns)
        assert len(table) == 0


def test_where_there_is_nothing_and_where_there_are_no_slides(tmp_path: Path) -> None:
    for nowhere in (tmp_path / "nowhere", f"memory://{tmp_path.name}-nowhere/", tmp_path / "*.dcm"):
        with pytest.raises(SlideNotFoundError):
            mt.find_slides(nowhere)
    assert len(mt.find_slides(tmp_path)) == 0
    (tmp_path / "note.txt").write_text("no slide")
    table = mt.find_slides(tmp_path)
    assert len(table) == 0
    assert list(table.columns)[-len(MEASURES) :] == MEASURES


def test_options_that_have_no_meaning(patients: Path, running: DICOMwebServer) -> None:
    with pytest.raises(OptionError, match="credentials= and allow_hosts= are for DICOMweb servers"):
        mt.find_slides(patients, credentials=mt.credentials.bearer("x"))
    with pytest.raises(OptionError, match="'anon' have no meaning for a DICOMweb server"):
        mt.find_slides(f"dicomweb+{running.url}", storage_options={"anon": True})
    with pytest.raises(OptionError, match=r"^NumberOfSeriesRelatedInstances is told by servers only"):
        mt.find_slides(patients, NumberOfSeriesRelatedInstances="2")
    with pytest.raises(OptionError, match="is a sequence"):
        mt.find_slides(patients, SpecimenDescriptionSequence="x")


def test_servers_and_files_in_one_table(patients: Path, running: DICOMwebServer) -> None:
    table = mt.find_slides([str(patients / "1.1"), running.url])
    assert sorted(table.study_uid) == ["1.1", *ALL]
    assert table.series.tolist() == [""] * 4
    assert table.spacing.notna().sum() == 1
    for row in table.itertuples():
        assert reopened(row)["level0"].image.shape == (100, 200, 3)
    assert len(mt.find_slides([running.url, str(patients)], limit=4)) == 4


def test_copies_count_once(tree: tuple[Path, dict[str, SyntheticSlide]], tmp_path: Path) -> None:
    top, made = tree
    shutil.copytree(top / "alone", tmp_path / "a")
    shutil.copytree(top / "alone", tmp_path / "b")
    (row,) = mt.find_slides(tmp_path).itertuples()
    assert row.url == str(tmp_path / "a")
    # One file is in b only: then both folders are needed.
    (tmp_path / "a" / made["alone"].files[0].name).unlink()
    (row,) = mt.find_slides(tmp_path).itertuples()
    assert (row.url, row.instances) == (str(tmp_path), 5)
    np.testing.assert_array_equal(reopened(row)["level0"].image.values, made["alone"].pixels(0))


def test_pyramids_of_one_series(tmp_path: Path) -> None:
    """What tells them apart depends on which of them a folder holds."""
    shapes = {"a/one": (200, 100), "a/two": (100, 200), "b": (400, 100)}
    made = {}
    for n, (name, (width, height)) in enumerate(shapes.items()):
        made[name] = make_slide(
            tmp_path / name, width=width, height=height, frame=64, codec="native", levels=2, associated=False, seed=n,
            study_uid="3.1", series_uid="3.1.5",
        )  # fmt: skip
        for file in made[name].files:
            ds = pydicom.dcmread(file)
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"3.1.{n}.{ds.InstanceNumber}"
            ds.save_as(file)
    table = mt.find_slides(tmp_path)
    assert table.url.tolist() == [str(tmp_path / name) for name in shapes]
    for name, file in (("a/one", "x1"), ("a/two", "x2")):
        for n, source in enumerate(made[name].files):
            shutil.move(source, tmp_path / "a" / f"{file}-{n}.dcm")
    table = mt.find_slides(tmp_path)
    assert table.url.tolist() == [str(tmp_path / "a"), str(tmp_path / "a"), str(tmp_path / "b")]
    assert [bool(series) for series in table.series] == [True, True, False]
    for row in table.itertuples():
        (name,) = (name for name, (width, height) in shapes.items() if (row.rows, row.columns) == (height, width))
        np.testing.assert_array_equal(reopened(row)["level0"].image.values, made[name].pixels(0))


def test_files_named_one_by_one(tree: tuple[Path, dict[str, SyntheticSlide]]) -> None:
    top, made = tree
    files = sorted((top / "pair").glob("one *"))
    for named in (files, str(top / "pair" / "one *")):
        (row,) = mt.find_slides(named).itertuples()
        # The folder holds another slide, which was not named.
        assert (row.url, row.series) == (str(top / "pair"), "2.2.5")
        np.testing.assert_array_equal(reopened(row)["level0"].image.values, made["pair one"].pixels(0))


def test_slides_that_nothing_tells_apart_are_reported(tmp_path: Path) -> None:
    for n in range(2):
        made = make_slide(
            tmp_path / str(n), width=200 + 100 * n, height=100, frame=64, codec="native", levels=2, associated=False,
            seed=n, study_uid="4", series_uid=f"4.{n}.5",
        )  # fmt: skip
        for file in made.files:
            ds = pydicom.dcmread(file)
            if n == 0:
                del ds.SeriesInstanceUID
            ds.save_as(tmp_path / f"{n}-{file.name}")
            file.unlink()
    with pytest.warns(IncompleteSlideWarning, match="1 slides are left out, for no URL and series") as caught:
        (row,) = mt.find_slides(tmp_path).itertuples()
    assert [w.filename for w in caught] == [__file__]
    assert row.series == "4.1.5"
    assert reopened(row)["level0"].image.shape == (100, 300, 3)


def test_unreadable_files_are_counted(tree: tuple[Path, dict[str, SyntheticSlide]], tmp_path: Path) -> None:
    top, made = tree
    shutil.copytree(top / "alone", tmp_path / "good")
    data = made["single"].files[0].read_bytes()
    (tmp_path / "a-cut.dcm").write_bytes(data[:1000])
    (tmp_path / "c-cut.dcm").write_bytes(data[:200])
    # Begins like a data set without a preamble, and is none.
    (tmp_path / "d-other.bin").write_bytes(b"\x08\x00\x05\x00CS\x40\x00short")
    (tmp_path / "b-noise.dcm").write_bytes(data[:400] + b"\xff" * 600)
    with pytest.warns(IncompleteSlideWarning) as caught:
        table = mt.find_slides(tmp_path)
    assert [str(w.message).split("; the first: ")[0] for w in caught] == [
        f"{tmp_path}: 3 of 10 files cannot be read and are left out"
    ]
    assert "a-cut.dcm: ends before its pixels begin" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert table.series_uid.tolist() == ["2.1.5"]


def test_patients_are_in_no_warning_and_no_log_of_files(patients: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert len(mt.find_slides(patients, PatientID=HIDDEN[0], PatientName=HIDDEN[1])) == 1
    log = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert [secret for secret in HIDDEN if find_secret(log, secret)] == []
    with pytest.raises(SlideNotFoundError) as caught:
        mt.find_slides(patients / "nowhere", PatientID=HIDDEN[0])
    assert find_secret("".join(traceback.format_exception(caught.value)), HIDDEN[0]) == []


def test_little_is_kept_of_a_header(patients: Path) -> None:
    """Of ten thousand files there must not be ten thousand headers in memory."""
    entries = list_files([str(patients)])
    kept = [h for h in read_headers(entries, ["PatientID"], 2) if isinstance(h, Header)]
    assert len(kept) == 6
    assert all(h.instance.record is None and h.instance.positions is None for h in kept)
    assert max(len(pickle.dumps((h.instance, h.values))) for h in kept) < 3000
