"""`find_slides`: only slides that agree, on servers that search well and on those that do not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

import microtome as mt
from microtome.errors import AuthenticationError, OptionError, RequestError
from microtome.storage.dicomweb import service as services
from microtome.testing import DICOMwebServer, Fault, make_slide
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
    monkeypatch.setattr("microtome.storage.dicomweb.session._BACKOFF", 0.001)
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
