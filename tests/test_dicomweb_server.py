"""The embedded DICOMweb server: plain HTTP against what pydicom reads from the files, and clients that are not ours."""

from __future__ import annotations

import base64
import gzip
import http.client
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames

from microtome.errors import NotASlideError, OptionError, SlideNotFoundError
from microtome.testing import DICOMwebServer, Fault, SyntheticSlide, make_slide
from oracles import dataset, streams

ORIGINAL = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
JSON = "application/dicom+json"
JPEG = "1.2.840.10008.1.2.4.50"
EXPLICIT = "1.2.840.10008.1.2.1"
RAW = ("1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")


@dataclass
class Got:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        body = gzip.decompress(self.body) if self.headers["Content-Encoding"] == "gzip" else self.body
        return json.loads(body)

    def parts(self) -> list[tuple[dict[str, str], bytes]]:
        """Headers and body of each part."""
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        first, *pieces, last = (b"\r\n" + self.body).split(b"\r\n--" + boundary)
        assert (first, last) == (b"", b"--\r\n")
        found = []
        for piece in pieces:
            head, _, body = piece.partition(b"\r\n\r\n")
            lines = (line.partition(": ") for line in head.decode().split("\r\n") if line)
            found.append(({name: value for name, _, value in lines}, body))
        return found


class Plain:
    """A plain client with one connection."""

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)
        assert self.parts.hostname
        self.http = http.client.HTTPConnection(self.parts.hostname, self.parts.port, timeout=10)

    def __call__(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Got:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        target = path if path.startswith(("/v1", "/dicomWeb")) else self.parts.path + path
        self.http.request(method, target, body, names)
        with self.http.getresponse() as answer:
            return Got(answer.status, answer.headers, answer.read())


def split(got: Got) -> list[bytes]:
    return [body for _, body in got.parts()]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("served") / "slide", width=700, height=500, frame=128, seed=3)


@pytest.fixture(scope="module")
def running(slide: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(slide.folder) as server:
        yield server


@pytest.fixture
def server(running: DICOMwebServer) -> Iterator[DICOMwebServer]:
    running.reset()
    yield running
    running.fault, running.page = None, 100
    assert running.failures == []


@pytest.fixture
def get(server: DICOMwebServer) -> Iterator[Plain]:
    plain = Plain(server.url)
    yield plain
    plain.http.close()


def place(file: Path) -> str:
    ds = pydicom.dcmread(file, stop_before_pixels=True)
    return f"/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"


# -- frames


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "jpeg", "offsets": "eot"},
        {"codec": "jpeg", "offsets": "bot", "fragments": 3},
        {"codec": "jpeg", "offsets": "empty", "fragments": 2},
        {"codec": "j2k-lossless", "offsets": "empty"},
        {"codec": "rle", "tiling": "sparse"},
        {"codec": "native", "tiling": "sparse"},
        {"codec": "native-implicit"},
        {"codec": "native-bigendian", "dtype": "uint16", "paths": ("a",)},
        {"codec": "native-deflated"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_frames_are_those_of_the_file(options: dict[str, Any], tmp_path: Path) -> None:
    made = make_slide(tmp_path / "s", width=300, height=260, frame=64, levels=1, associated=False, **options)
    ds = dataset(made.files[0])
    syntax = str(ds.file_meta.TransferSyntaxUID)
    if syntax in RAW:
        pixels = ds.pixel_array
        expected = [f.astype(f.dtype.newbyteorder("<")).tobytes() for f in pixels]
    else:
        expected = streams(ds)
    with DICOMwebServer(made.folder) as server:
        get = Plain(server.url)
        numbers = list(range(len(expected), 0, -1))
        got = get(f"{place(made.files[0])}/frames/{','.join(map(str, numbers))}", Accept=ORIGINAL)
        get.http.close()
        assert server.requests[0].frames == tuple(numbers)
    assert got.status == 200
    assert split(got) == [expected[n - 1] for n in numbers]
    sent = EXPLICIT if syntax in RAW else syntax
    assert f"transfer-syntax={sent}".encode() in got.body


def test_every_real_file_that_pydicom_cuts_into_frames(real: Path) -> None:
    """Real offset tables, fragments and paddings; instances of one folder share UIDs, so each is served alone."""
    seen = 0
    for file in sorted((real / "dicom").rglob("*")) + sorted((real / "cmu1_dicom").rglob("*.dcm")):
        if not file.is_file() or "robust" in file.parts:
            continue
        try:
            server = DICOMwebServer(file, associated=True)
        except NotASlideError:
            continue
        (instance,) = server.archive.instances()
        ds = dataset(file)
        if "PixelData" not in ds or instance.stored_syntax in RAW:
            continue
        # Items, not the extended offset table: in some of these files its lengths count the tags of the items.
        expected = list(generate_frames(ds.PixelData, number_of_frames=instance.count))
        found = instance.table.read(range(1, instance.count + 1))
        # A byte that makes the length even may be left out where an extended offset table tells.
        assert len(found) == len(expected), file
        assert all(a.rstrip(b"\0") == b.rstrip(b"\0") for a, b in zip(found, expected, strict=True)), file
        seen += 1
    assert seen > 60


def test_broken_files_are_answered(real: Path) -> None:
    with DICOMwebServer(real / "dicom") as server:
        get = Plain(server.url)
        server.page = 1000
        found = get("/instances").json()
        assert len(found) > 70
        for item in found:
            where = urlsplit(item["00081190"]["Value"][0]).path
            assert get(f"{where}/metadata").json()[0]["00080018"] == item["00080018"]
            assert get(f"{where}/frames/1", Accept=ORIGINAL).status in (200, 404, 500)
            assert get(f"{where}/frames/1/rendered").status in (200, 404, 406, 500)
        get.http.close()
        assert server.failures == []


def test_a_large_pyramid_is_indexed_at_once(tmp_path: Path) -> None:
    made = make_slide(tmp_path / "s", width=9216, height=9216, frame=128, levels=1, associated=False, distinct=8)
    server = DICOMwebServer(made.folder)
    (instance,) = server.archive.instances()
    start = time.perf_counter()
    assert len(instance.table.spans) == 5184
    assert time.perf_counter() - start < 0.5  # 0.01 on a machine at rest


@pytest.mark.parametrize(
    ("accept", "status", "media"),
    [
        (ORIGINAL, 200, "application/octet-stream; transfer-syntax=" + JPEG),
        ('multipart/related; type="image/jpeg"', 200, "image/jpeg; transfer-syntax=" + JPEG),
        (f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG}', 200, "image/jpeg; transfer-syntax=" + JPEG),
        (f"multipart/related; transfer-syntax={JPEG}; type=image/jpeg", 200, "image/jpeg; transfer-syntax=" + JPEG),
        ('multipart/related; type="*/*"; transfer-syntax=*', 200, "image/jpeg; transfer-syntax=" + JPEG),
        ('multipart/related; type="application/octet-stream"', 200, "application/octet-stream; transfer-syntax=1.2.8"),
        ("*/*", 200, "application/octet-stream; transfer-syntax=" + EXPLICIT),
        ('multipart/related; type="image/jp2"', 406, ""),
        ('multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.70', 406, ""),
        ("text/html", 406, ""),
        ('multipart/related; type="image/jp2", multipart/related; type="image/jpeg"; q=0.5', 200, "image/jpeg"),
        (
            'multipart/related; type="application/octet-stream"; q=0.1, multipart/related;type="image/jpeg"',
            200,
            "image",
        ),
        ('multipart/related; type="a;b,c/d", ' + ORIGINAL, 200, "application/octet-stream; transfer-syntax=" + JPEG),
        ('multipart/related; type="image/jpeg"; q=0', 406, ""),
        ("nonsense", 400, ""),
        ('multipart/related; type="image/jpeg"; q=high', 400, ""),
    ],
)
def test_accept_of_frames(get: Plain, slide: SyntheticSlide, accept: str, status: int, media: str) -> None:
    got = get(f"{place(slide.files[0])}/frames/1,2", Accept=accept)
    assert got.status == status, got.body[:200]
    if status == 200:
        assert f"Content-Type: {media}".encode() in got.body
        assert got.headers["Content-Type"].startswith(f'multipart/related; type="{media.split(";")[0]}')


def test_decoded_frames_and_pictures(get: Plain, slide: SyntheticSlide) -> None:
    where = place(slide.files[0])
    (stored,) = split(get(f"{where}/frames/5", Accept=ORIGINAL))
    with Image.open(io.BytesIO(stored)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    (raw,) = split(get(f"{where}/frames/5", Accept='multipart/related; type="application/octet-stream"'))
    difference = np.frombuffer(raw, np.uint8).reshape(128, 128, 3).astype(int) - pixels
    assert np.abs(difference).max() <= 3  # pydicom and Pillow round colours otherwise
    png = get(f"{where}/frames/5/rendered", Accept="image/png")
    assert png.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(png.body)) as picture:
        np.testing.assert_array_equal(np.asarray(picture).ravel(), np.frombuffer(raw, np.uint8))
    assert get(f"{where}/rendered").headers["Content-Type"] == "image/jpeg"
    assert get(f"{where}/rendered", Accept="image/webp").status == 406
    single = get(f"{where}/frames/5", Accept=f"image/jpeg; transfer-syntax={JPEG}")
    assert single.body == stored


def test_frame_numbers(get: Plain, slide: SyntheticSlide) -> None:
    where = place(slide.files[0])
    for numbers, status in (("0", 400), ("x", 400), ("1,,2", 400), ("999", 404), ("1,999", 404), ("1%2C2", 200)):
        assert get(f"{where}/frames/{numbers}", Accept=ORIGINAL).status == status, numbers
    assert len(split(get(f"{where}/frames/2,2,1", Accept=ORIGINAL))) == 3


# -- metadata, instances, bulk data


def test_metadata_is_what_pydicom_reads(get: Plain, slide: SyntheticSlide) -> None:
    for file in slide.files[:2]:
        (found,) = get(f"{place(file)}/metadata", Accept=JSON).json()
        expected = pydicom.dcmread(file, stop_before_pixels=True)
        uris: list[str] = []
        read = pydicom.Dataset.from_json(found, lambda _t, _v, uri, to=uris: to.append(uri) or b"")
        assert read.ImageOrientationSlide == expected.ImageOrientationSlide
        assert str(read.PatientName) == str(expected.PatientName)
        assert read.SharedFunctionalGroupsSequence == expected.SharedFunctionalGroupsSequence
        assert {e.tag for e in expected if e.tag < 0x7FE00000} == set(read.keys())
        assert len(uris) == 1
        profile = expected.OpticalPathSequence[0].ICCProfile
        assert get(urlsplit(uris[0]).path).body == profile
        assert split(get(urlsplit(uris[0]).path, Accept='multipart/related; type="*/*"')) == [profile]
        part = get(urlsplit(uris[0]).path, Range="bytes=10-19")
        assert (part.status, part.body) == (206, profile[10:20])
    assert get(f"{place(file)}/bulkdata/00480105/7/00282000").status == 404
    assert get(f"{place(file)}/metadata", Accept="application/dicom+xml").status == 406


def test_metadata_have_the_places_of_frames(tmp_path: Path) -> None:
    made = make_slide(tmp_path / "s", width=300, height=260, frame=64, tiling="sparse", levels=1, associated=False)
    with DICOMwebServer(made.folder) as server:
        get = Plain(server.url)
        (found,) = get(f"{place(made.files[0])}/metadata").json()
        get.http.close()
    expected = dataset(made.files[0]).PerFrameFunctionalGroupsSequence
    groups = pydicom.Dataset.from_json({"52009230": found["52009230"]}).PerFrameFunctionalGroupsSequence
    assert len(groups) == len(expected) == 25
    for a, b in zip(groups, expected, strict=True):
        assert a.FrameContentSequence == b.FrameContentSequence
        place_a, place_b = a.PlanePositionSlideSequence[0], b.PlanePositionSlideSequence[0]
        assert place_a.RowPositionInTotalImagePixelMatrix == place_b.RowPositionInTotalImagePixelMatrix


def test_gzip_where_it_is_accepted(get: Plain, slide: SyntheticSlide) -> None:
    series = place(slide.files[0]).partition("/instances")[0]
    plain = get(f"{series}/metadata")
    packed = get(f"{series}/metadata", Accept_Encoding="br, gzip;q=0.5")
    assert plain.headers["Content-Encoding"] is None
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.json() == plain.json()
    assert len(plain.json()) == 5  # levels and thumbnail: no label, no overview
    assert get(f"{series}/metadata", Accept_Encoding="gzip;q=0").headers["Content-Encoding"] is None


def test_instances(get: Plain, slide: SyntheticSlide) -> None:
    where, data = place(slide.files[1]), slide.files[1].read_bytes()
    assert split(get(where, Accept='multipart/related; type="application/dicom"; transfer-syntax=*')) == [data]
    assert get(where, Accept="application/dicom; transfer-syntax=*").body == data
    assert get(where, Accept="application/dicom; transfer-syntax=1.2.840.10008.1.2.1").status == 406
    everything = split(get(where.partition("/instances")[0], Accept='multipart/related; type="application/dicom"'))
    assert data in everything
    assert len(everything) == 5
    assert len(split(get(where.partition("/series")[0]))) == 5


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=100-", 206, slice(100, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=5-99999999", 206, slice(5, None)),
        ("bytes=99999999-", 416, slice(0, 0)),
        ("bytes=9-2", 200, slice(None)),
        ("bytes=0-1,5-6", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_ranges(get: Plain, slide: SyntheticSlide, asked: str, status: int, part: slice) -> None:
    data = slide.files[1].read_bytes()
    got = get(place(slide.files[1]), Accept="application/dicom", Range=asked)
    assert (got.status, got.body) == (status, data[part])
    if status == 206:
        first = part.indices(len(data))[0]
        assert got.headers["Content-Range"] == f"bytes {first}-{first + len(got.body) - 1}/{len(data)}"


# -- searching


def test_search_levels(get: Plain, slide: SyntheticSlide, server: DICOMwebServer) -> None:
    head = pydicom.dcmread(slide.files[0], stop_before_pixels=True)
    (study,) = get("/studies").json()
    assert study["00201206"]["Value"] == [1]
    assert study["00201208"]["Value"] == [5]
    assert study["00080061"]["Value"] == ["SM"]
    (series,) = get("/series").json()
    assert series["00201209"]["Value"] == [5]
    assert server.study_urls() == study["00081190"]["Value"]
    assert server.series_urls() == series["00081190"]["Value"]
    assert get(f"/studies/{head.StudyInstanceUID}/series").json()[0]["0020000E"]["Value"] == [head.SeriesInstanceUID]
    instances = get("/instances").json()
    assert get(f"/studies/{head.StudyInstanceUID}/instances").json()[0].keys() <= instances[0].keys()
    assert {i["00083002"]["Value"][0] for i in instances} == {JPEG}
    assert {i["00081190"]["Value"][0].rpartition("/")[2] for i in instances} == {
        i["00080018"]["Value"][0] for i in instances
    }
    assert get("/studies/1.2.3/series").status == 204


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("Modality=SM", 5),
        ("00080060=SM", 5),
        ("Modality=S*", 5),
        ("Modality=?M", 5),
        ("Modality=sm", 0),
        ("PatientName=synth*", 5),
        ("PatientName=", 5),
        ("StudyDate=20250101-20261231", 5),
        ("StudyDate=-20251231", 0),
        ("StudyDate=20260101-", 5),
        ("StudyDate=20260101", 5),
        ("InstanceNumber=2", 1),
        ("InstanceNumber=2&Modality=XX", 0),
        ("ImageType=THUMBNAIL", 1),
        ("SOPClassUID=1.2,1.2.840.10008.5.1.4.1.1.77.1.6", 5),
        ("SOPClassUID=1.2%5C1.2.840.10008.5.1.4.1.1.77.1.6", 5),
        ("SOPClassUID=1.2&SOPClassUID=1.2.840.10008.5.1.4.1.1.77.1.6", 5),
        ("SOPClassUID=1.2.*", 0),
        ("limit=2", 2),
        ("limit=2&offset=4", 1),
        ("offset=9", 0),
    ],
)
def test_search_filters(get: Plain, query: str, count: int) -> None:
    got = get(f"/instances?{query}")
    assert got.status == (200 if count else 204), got.body
    assert len(got.json() if count else []) == count


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "offset=1e3", "Modalitee=SM", "includefield=Nothing"])
def test_search_refuses_nonsense(get: Plain, query: str) -> None:
    assert get(f"/instances?{query}").status == 400


def test_search_fields(get: Plain) -> None:
    bare = get("/instances").json()[0]
    assert "00080070" not in bare
    for query in ("includefield=Manufacturer", "includefield=00080070&includefield=00280002", "includefield=all"):
        assert get(f"/instances?{query}").json()[0]["00080070"]["Value"] == ["microtome"]
    found = get("/instances?includefield=OpticalPathSequence").json()[0]
    assert found["00480105"]["Value"][0]["00282000"]["BulkDataURI"].endswith("/bulkdata/00480105/0/00282000")


def test_search_pages(get: Plain, server: DICOMwebServer) -> None:
    server.page = 2
    pages = [get(f"/instances?offset={n}&limit=100") for n in (0, 2, 4)]
    assert [len(p.json()) for p in pages] == [2, 2, 1]
    assert [p.headers["Warning"] is not None for p in pages] == [True, True, False]
    assert '299 microtome: "There are 3 additional results' in pages[0].headers["Warning"]
    assert len({i["00080018"]["Value"][0] for p in pages for i in p.json()}) == 5


# -- what is private, and who may ask


def test_labels_are_hidden_unless_asked_for(slide: SyntheticSlide, get: Plain) -> None:
    label = place(slide.folder / "label.dcm")
    for path in (label, f"{label}/metadata", f"{label}/frames/1", f"{label}/rendered"):
        assert get(path).status == 404
    with DICOMwebServer(slide.folder, associated=True) as server:
        other = Plain(server.url)
        assert other(f"{label}/frames/1").status == 200
        assert len(other("/instances").json()) == 7
        other.http.close()


@pytest.mark.parametrize(
    "path",
    [
        "/studies/../../etc/passwd", "/studies/%2e%2e", "/studies/..%2f..%2fetc%2fpasswd", "/studies/1.2%00",
        "/studies/1.2/series/%2Fetc", "/../pyproject.toml", "//etc/passwd", "/studies/1..2", "/studies/.",
        "/studies/" + "1" * 65, "/studies/1.2/instances/1.2", "/frames/1", "/", "/series/1.2/instances",
    ],
)  # fmt: skip
def test_paths_lead_nowhere_else(get: Plain, path: str, slide: SyntheticSlide) -> None:
    got = get(path)
    assert got.status in (400, 404)
    assert str(slide.folder).encode() not in got.body
    assert len(got.body) < 200


def test_host_names(slide: SyntheticSlide, get: Plain) -> None:
    assert get("/studies", Host="evil.example").status == 421
    assert get("/studies", Host="evil.example:80").status == 421
    assert get("/studies", Host="127.0.0.1.evil.example").status == 421
    for good in ("localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:99"):
        assert get("/studies", Host=good).status == 200, good
    with DICOMwebServer(slide.folder, allowed_hosts=["pacs.example"]) as server:
        other = Plain(server.url)
        assert other("/studies", Host="pacs.example:8080").status == 200
        other.http.close()


def test_basic_authentication(slide: SyntheticSlide) -> None:
    with DICOMwebServer(slide.folder, basic=("alice", "s3:cret")) as server:
        get = Plain(server.url)
        assert get("/studies").headers["WWW-Authenticate"].startswith("Basic realm=")
        for words, status in (("alice:s3:cret", 200), ("alice:other", 401), ("bob:s3:cret", 401)):
            assert get("/studies", Authorization=f"Basic {base64.b64encode(words.encode()).decode()}").status == status
        assert get("/studies", Authorization="Basic ???").status == 401
        assert [r.authorized for r in server.requests] == [False, True, True, True, True]
        assert all("authorization" not in r.headers for r in server.requests)
        get.http.close()


def test_tokens_expire(slide: SyntheticSlide) -> None:
    tokens = {"one"}
    with DICOMwebServer(slide.folder, tokens=tokens, token_lifetime=2) as server:
        get = Plain(server.url)
        assert get("/studies").headers["WWW-Authenticate"] == 'Bearer realm="dicomweb"'
        assert [get("/studies", Authorization="Bearer one").status for _ in range(3)] == [200, 200, 401]
        tokens.add("two")
        assert get("/studies", Authorization="Bearer two").status == 200
        tokens.discard("two")
        got = get("/studies", Authorization="Bearer two")
        assert (got.status, "invalid_token" in got.headers["WWW-Authenticate"]) == (401, True)
        get.http.close()
    with pytest.raises(OptionError, match="tokens"):
        DICOMwebServer(slide.folder, token_lifetime=2)


def test_sources(tmp_path: Path, slide: SyntheticSlide) -> None:
    with pytest.raises(SlideNotFoundError, match="nowhere"):
        DICOMwebServer(tmp_path / "nowhere")
    (tmp_path / "note.txt").write_text("no slide")
    with pytest.raises(NotASlideError, match=r"note\.txt"):
        DICOMwebServer(tmp_path / "note.txt")
    with pytest.raises(OptionError, match="folder"):
        DICOMwebServer(slide.files[0], stow=True)
    with pytest.raises(OptionError, match="google"):
        DICOMwebServer(slide.folder, dialect="pacs")
    assert len(DICOMwebServer([slide.files[0], slide.files[1]]).archive.instances()) == 2


# -- HTTP


def test_methods(get: Plain) -> None:
    head, whole = get("/studies", "HEAD"), get("/studies")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.body))
    assert get("/studies", "DELETE").status == 405
    assert get("/studies", "POST", b"x").status == 405
    assert get("/elsewhere").status == 404
    assert get("/studies?" + "x" * 40000).status == 414


def test_broken_requests(server: DICOMwebServer) -> None:
    for lines, status in (
        (b"NONSENSE\r\n\r\n", b" 400 "),
        (b"BREW /dicomWeb/studies HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 501 "),
        (b"GET /dicomWeb/studies HTTP/1.1\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b" 431 "),
    ):
        with socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), timeout=5) as s:
            s.sendall(lines)
            assert status in s.recv(1000).split(b"\r\n")[0], lines


def test_the_log(get: Plain, server: DICOMwebServer, slide: SyntheticSlide) -> None:
    got = get(f"{place(slide.files[0])}/frames/3,1?x=1&x=2", Accept=ORIGINAL, Range="bytes=0-")
    (request,) = server.requests
    assert (request.method, request.status, request.frames) == ("GET", 200, (3, 1))
    assert request.path == f"/dicomWeb{place(slide.files[0])}/frames/3,1"
    assert request.query == {"x": ["1", "2"]}
    assert (request.accept, request.range) == (ORIGINAL, "bytes=0-")
    assert request.sent == server.bytes_sent == len(got.body)
    get("/studies")
    assert server.connections == 1
    assert [r.connection for r in server.requests] == [1, 1]
    server.reset()
    assert (server.requests, server.connections, server.bytes_sent) == ([], 0, 0)


def test_latency_and_bandwidth(slide: SyntheticSlide) -> None:
    with DICOMwebServer(slide.folder, latency=0.05, bandwidth=200_000) as server:
        get = Plain(server.url)
        start = time.perf_counter()
        got = get(place(slide.files[1]), Accept="application/dicom")
        assert time.perf_counter() - start > 0.05 + 0.9 * len(got.body) / 200_000
        assert got.body == slide.files[1].read_bytes()
        get.http.close()


def test_many_connections_at_once(server: DICOMwebServer, slide: SyntheticSlide) -> None:
    failed: list[object] = []

    def work() -> None:
        get = Plain(server.url)
        for n in range(1, 11):
            got = get(f"{place(slide.files[0])}/frames/{n},{n + 1}", Accept=ORIGINAL)
            if got.status != 200 or len(split(got)) != 2:
                failed.append(got.status)
        get.http.close()

    threads = [threading.Thread(target=work) for _ in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    assert server.connections == 20


def test_stop_ends_connections(slide: SyntheticSlide) -> None:
    server = DICOMwebServer(slide.folder).start()
    get = Plain(server.url)
    assert get("/studies").status == 200
    start = time.perf_counter()
    server.stop()
    assert time.perf_counter() - start < 2
    with pytest.raises((http.client.HTTPException, OSError)):
        get("/studies")
    get.http.close()
    with DICOMwebServer(slide.folder, port=get.parts.port or 0) as again:
        assert get("/studies").status == 200
        assert urlsplit(again.url).port == get.parts.port
    get.http.close()
    with pytest.raises(OptionError, match="started"):
        _ = server.url


# -- faults


@pytest.fixture
def broken(server: DICOMwebServer, slide: SyntheticSlide) -> Iterator[Callable[[Fault], Got]]:
    """Ask for frames 1, 2 and 3 with a fault; what was sent of the body is what is got."""
    opened = []

    def ask(fault: Fault) -> Got:
        server.fault = lambda request: fault if "/frames/" in request.path else None
        get = Plain(server.url)
        opened.append(get)
        return get(f"{place(slide.files[0])}/frames/1,2,3", Accept=ORIGINAL)

    yield ask
    for plain in opened:
        plain.http.close()


def test_fault_of_status(broken: Callable[[Fault], Got], get: Plain) -> None:
    got = broken(Fault(status=429, headers={"Retry-After": "1"}, body=b"slow down"))
    assert (got.status, got.headers["Retry-After"], got.body) == (429, "1", b"slow down")
    assert broken(Fault(status=204)).body == b""
    assert broken(Fault(status=302, headers={"Location": "http://other.example/"})).headers["Location"]
    page = broken(Fault(html=True))
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert broken(Fault(headers={"X-Odd": "1"})).headers["X-Odd"] == "1"
    assert get("/studies").status == 200  # no fault for this one


def test_faults_of_parts(broken: Callable[[Fault], Got]) -> None:
    good = split(broken(Fault()))
    assert split(broken(Fault(drop_parts=(1,)))) == [good[0], good[2]]
    assert split(broken(Fault(duplicate_parts=(0, 2)))) == [good[0], good[0], good[1], good[2], good[2]]
    reverse = broken(Fault(reverse_parts=True))
    assert split(reverse) == good[::-1]
    assert [h["Content-Location"].rpartition("/")[2] for h, _ in reverse.parts()] == ["3", "2", "1"]
    assert split(broken(Fault(truncate_part=(1, 10)))) == [good[0], good[1][:-10], good[2]]
    bare = broken(Fault(content_location=False, part_lengths=False)).parts()
    assert [set(h) for h, _ in bare] == [{"Content-Type"}] * 3
    full = broken(Fault(part_lengths=True)).parts()
    assert [int(h["Content-Length"]) for h, _ in full] == [len(g) for g in good]
    wrong = broken(Fault(wrong_boundary=True))
    assert wrong.headers["Content-Type"].partition("boundary=")[2].strip('"').encode() not in wrong.body


def test_faults_of_the_body(broken: Callable[[Fault], Got], server: DICOMwebServer, get: Plain) -> None:
    good = broken(Fault())
    chunked = broken(Fault(chunked=True))
    assert (chunked.headers["Transfer-Encoding"], chunked.body) == ("chunked", good.body)
    assert broken(Fault(chunked=True, stall_after=len(good.body), stall=0.01)).body == good.body
    until_closed = broken(Fault(connection_close=True))
    assert until_closed.headers["Content-Length"] is None
    assert until_closed.body == good.body
    damaged = broken(Fault(damage=-5))
    assert [i for i, (a, b) in enumerate(zip(good.body, damaged.body, strict=True)) if a != b] == [len(good.body) - 5]
    server.fault = lambda _request: Fault(damage=-5)
    packed = get("/instances", Accept_Encoding="gzip")
    with pytest.raises((OSError, EOFError)):
        gzip.decompress(packed.body)


def test_faults_of_the_connection(broken: Callable[[Fault], Got], server: DICOMwebServer) -> None:
    whole = broken(Fault()).body
    with pytest.raises(http.client.IncompleteRead) as cut:
        broken(Fault(close_after=100))
    assert cut.value.partial == whole[:100]
    assert server.requests[-1].sent == 100
    with pytest.raises(http.client.IncompleteRead):
        broken(Fault(close_after=100, chunked=True))
    assert broken(Fault(close_after=100, connection_close=True)).body == whole[:100]
    with pytest.raises(ConnectionResetError):
        broken(Fault(reset_after=100))
    with pytest.raises(ConnectionResetError):
        broken(Fault(reset_after=0))
    with pytest.raises(ConnectionResetError):
        broken(Fault(reset_after=100, chunked=True))


@pytest.mark.parametrize(
    "fault", [Fault(stall_after=500, stall=0.2), Fault(delay=0.2), Fault(drip=80_000)], ids=["stall", "delay", "drip"]
)
def test_slow_answers_are_whole(broken: Callable[[Fault], Got], fault: Fault) -> None:
    whole = broken(Fault()).body
    start = time.perf_counter()
    assert broken(fault).body == whole
    assert time.perf_counter() - start > (0.9 * len(whole) / fault.drip if fault.drip else 0.19)


def test_a_fault_in_between(server: DICOMwebServer, get: Plain) -> None:
    statuses = iter([503, None, 500])
    server.fault = lambda _request: Fault(status=status) if (status := next(statuses)) else None
    assert [get("/studies").status for _ in range(3)] == [503, 200, 500]


# -- dialects


@pytest.fixture(scope="module", params=["google", "minimal", "orthanc"])
def spoken(request: pytest.FixtureRequest, slide: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(slide.folder, dialect=request.param) as server:
        yield server


def test_dialects(spoken: DICOMwebServer, slide: SyntheticSlide) -> None:
    get, where, name = Plain(spoken.url), place(slide.files[0]), spoken.dialect.name
    series = where.partition("/instances")[0]
    frames = get(f"{where}/frames/1,2", Accept=ORIGINAL)
    found = get(f"{series}/instances").json()
    missing = get(f"{where}/frames/999", Accept=ORIGINAL).status
    (meta,) = get(f"{where}/metadata").json()
    if name == "google":
        assert spoken.url.endswith("/v1/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb")
        assert get("/studies").status == 200
        kind = f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG}; boundary='
        assert frames.headers["Content-Type"].startswith(kind)
        assert b"Content-Location" not in frames.body
        assert found[0]["00020010"]["Value"] == [JPEG]
        assert "AvailableTransferSyntaxUID" in get("/instances?includefield=00083002").body.decode()
        assert get("/instances?SOPClassUID=1.2").status == 400
        assert get("/studies?PatientID=none").status == 204
        assert "00282000" not in meta["00480105"]["Value"][0]
        assert missing == 400
    elif name == "minimal":
        assert (frames.status, frames.headers["Connection"]) == (400, "close")
        single = get(f"{where}/frames/2", Accept="anything at all")
        assert single.headers["Content-Type"] == "image/jpeg"
        assert single.body == streams(dataset(slide.files[0]))[1]
        assert get(f"{series}/metadata").status == 404
        assert "00080070" not in get("/instances?includefield=all").json()[0]
        assert get("/studies?PatientID=none").json() == []
        assert get("/instances", Accept_Encoding="gzip").headers["Content-Encoding"] is None
        assert get(where, Range="bytes=0-9").status == 200
        assert len(get("/instances?limit=2").json()) == 2
        assert missing == 404
    else:
        assert '"; boundary=microtome-' in frames.headers["Content-Type"]
        assert f"Content-Type: image/jpeg; transfer-syntax={JPEG}".encode() in frames.body
        assert b"Content-Length" not in frames.body
        exact = f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG}'
        assert split(get(f"{where}/frames/1,2", Accept=exact)) == split(frames)
        for accept in ('multipart/related; type="*/*"', "image/jpeg", f"{ORIGINAL}, {exact}"):
            assert get(f"{where}/frames/1", Accept=accept).status == 400
        assert len(split(get(f"{where}/frames/1"))[0]) == 128 * 128 * 3
        assert get("/studies", "HEAD").status == 404
        assert get("/studies/1.2.3/series").json() == []
        assert not {"00083002", "00020010"} & found[0].keys()
        uri = get(f"{where}/metadata", Host="localhost:1").json()[0]["00480105"]["Value"][0]["00282000"]["BulkDataURI"]
        assert uri.startswith("http://localhost:1/dicomWeb/")
        assert get(urlsplit(uri).path).headers["Content-Type"].startswith("multipart/related")
        assert get(where, Accept="application/dicom").status == 400
        assert missing == 400
    get.http.close()


# -- storing


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[DICOMwebServer, Plain]]:
    with DICOMwebServer(tmp_path, stow=True) as server:
        get = Plain(server.url)
        yield server, get
        get.http.close()
        assert server.failures == []
    assert not list(tmp_path.glob(".*"))


def body_of(*parts: bytes) -> bytes:
    return b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + p + b"\r\n" for p in parts) + b"--x--"


STOW = 'multipart/related; type="application/dicom"; boundary=x'


def test_what_is_stored_can_be_read(store: tuple[DICOMwebServer, Plain], slide: SyntheticSlide, tmp_path: Path) -> None:
    _, get = store
    data = slide.files[0].read_bytes()
    uid = place(slide.files[0]).rpartition("/")[2]
    got = get("/studies", "POST", body_of(data), Content_Type=STOW)
    assert got.status == 200
    (item,) = got.json()["00081199"]["Value"]
    assert item["00081155"]["Value"] == [uid]
    assert item["00081190"]["Value"][0].endswith(place(slide.files[0]))
    assert [p.name for p in tmp_path.iterdir()] == [f"{uid}.dcm"]
    assert get(place(slide.files[0]), Accept="application/dicom").body == data
    assert get("/studies", "POST", body_of(data), Content_Type=STOW).status == 200  # once more, the same
    other = pydicom.dcmread(slide.files[0])
    other.PatientID = "SOMEONE ELSE"
    out = io.BytesIO()
    other.save_as(out)
    got = get("/studies", "POST", body_of(out.getvalue()), Content_Type=STOW)
    assert got.status == 409
    assert got.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0x0111]
    assert (tmp_path / f"{uid}.dcm").read_bytes() == data


def test_storing_refuses(store: tuple[DICOMwebServer, Plain], slide: SyntheticSlide, tmp_path: Path) -> None:
    server, get = store
    data = slide.files[3].read_bytes()
    got = get("/studies", "POST", body_of(data, b"no DICOM"), Content_Type=STOW)
    assert (got.status, len(got.json()["00081198"]["Value"]), len(got.json()["00081199"]["Value"])) == (202, 1, 1)
    assert get("/studies/1.2.3", "POST", body_of(data), Content_Type=STOW).status == 409
    evil = pydicom.dcmread(slide.files[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evil.SOPInstanceUID = "../../evil"
        out = io.BytesIO()
        evil.save_as(out)
    assert get("/studies", "POST", body_of(out.getvalue()), Content_Type=STOW).status == 409
    assert [p.name for p in tmp_path.iterdir()] == [place(slide.files[3]).rpartition("/")[2] + ".dcm"]
    assert not list(tmp_path.parent.parent.glob("evil*"))
    assert get("/studies", "POST", data, Content_Type="application/dicom").status == 415
    assert get("/studies", "POST", b"--x\r\n", Content_Type=STOW).status == 400
    server.max_body = 1000
    assert get("/studies", "POST", body_of(data), Content_Type=STOW).status == 413


# -- clients that are not ours


def test_dicomweb_client(server: DICOMwebServer, slide: SyntheticSlide, tmp_path: Path) -> None:
    from dicomweb_client.api import DICOMwebClient

    client = DICOMwebClient(server.url)
    client._session.trust_env = False
    head = pydicom.dcmread(slide.files[0])
    study, series, uid = head.StudyInstanceUID, head.SeriesInstanceUID, head.SOPInstanceUID
    server.page = 2
    assert len(client.search_for_instances(study, series, get_remaining=True)) == 5
    assert client.search_for_studies(search_filters={"PatientID": "SYNTHETIC"})[0]["0020000D"]["Value"] == [study]
    expected = streams(head)
    for media in ("application/octet-stream", "*"), ("image/jpeg", JPEG):
        found = client.retrieve_instance_frames(study, series, uid, [2, 7], media_types=(media,))
        assert found == [expected[1], expected[6]]
    assert len(client.retrieve_series_metadata(study, series)) == 5
    meta = client.retrieve_instance_metadata(study, series, uid)
    uri = meta["00480105"]["Value"][0]["00282000"]["BulkDataURI"]
    assert client.retrieve_bulkdata(uri) == [head.OpticalPathSequence[0].ICCProfile]
    instance = client.retrieve_instance(study, series, uid, media_types=(("application/dicom", "*"),))
    assert instance.PixelData == head.PixelData
    client._session.close()
    with DICOMwebServer(tmp_path, stow=True, basic=("alice", "secret")) as other:
        client = DICOMwebClient(other.url, chunk_size=10_000)  # small chunks: Transfer-Encoding: chunked
        client._session.trust_env = False
        client._session.auth = ("alice", "secret")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client.store_instances([head, pydicom.dcmread(slide.files[1])])
        assert len(client.search_for_instances(study, series)) == 2
        client._session.close()


@pytest.mark.filterwarnings("ignore:no bulk data URI handler provided:UserWarning")
@pytest.mark.parametrize("dialect", ["standard", "google"])
def test_wsidicom(slide: SyntheticSlide, dialect: str) -> None:
    import requests
    from pydicom.uid import UID
    from wsidicom import WsiDicom, WsiDicomWebClient

    head = pydicom.dcmread(slide.files[0], stop_before_pixels=True)
    with DICOMwebServer(slide.folder, dialect=dialect, associated=True) as server:
        session = requests.Session()
        session.trust_env = False
        client = WsiDicomWebClient.create_client(server.url, auth=session)
        with WsiDicom.open_web(client, UID(head.StudyInstanceUID), [UID(head.SeriesInstanceUID)]) as wsi:
            assert [(level.size.height, level.size.width) for level in wsi.levels] == list(slide.level_shapes)
            found = np.asarray(wsi.read_region((100, 50), 0, (300, 200)).convert("RGB"))
        session.close()
        assert server.failures == []
    from microtome import open_slide

    expected = open_slide(slide.folder, chunks=None)["level0"].image[50:250, 100:400].values
    assert np.abs(found.astype(int) - expected).max() <= 3


EZWSI = """
import json, sys
from ez_wsi_dicomweb import credential_factory, dicom_slide, dicom_web_interface
from ez_wsi_dicomweb.ml_toolkit import dicom_path
url, y, x, height, width = sys.argv[1], *map(int, sys.argv[2:])
interface = dicom_web_interface.DicomWebInterface(credential_factory.NoAuthCredentialsFactory())
slide = dicom_slide.DicomSlide(interface, dicom_path.FromString(url))
levels = list(slide.levels)
patch = slide.get_patch(slide.get_level_by_index(levels[0].level_index), x, y, width, height).image_bytes()
print(json.dumps({"levels": [[l.height, l.width] for l in levels], "pixels": patch.tobytes().hex()}))
"""


def ezwsi_python() -> Path:
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    spec = importlib.util.spec_from_file_location("peers_ezwsi", folder / "peers_ezwsi.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
        python: Path = module.environment("ezwsi", module.REQUIREMENT)
    except (RuntimeError, OSError, subprocess.SubprocessError) as e:
        if os.environ.get("MICROTOME_CI") == "1":
            pytest.fail(f"EZ-WSI has no environment: {e}", pytrace=False)
        pytest.skip(f"EZ-WSI has no environment: {e}")
    finally:
        sys.path.remove(str(folder))
    return python


@pytest.mark.timeout(700)  # the first time, its environment is made
def test_ez_wsi(slide: SyntheticSlide) -> None:
    python = ezwsi_python()
    with DICOMwebServer(slide.folder, dialect="google") as server:
        command = [str(python), "-W", "ignore", "-c", EZWSI, server.series_urls()[0], "50", "100", "200", "300"]
        env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {"NO_PROXY": "*"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=env, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert any(r.frames for r in server.requests)
        assert server.failures == []
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["levels"] == [list(shape) for shape in slide.level_shapes]
    from microtome import open_slide

    expected = open_slide(slide.folder, chunks=None)["level0"].image[50:250, 100:400].values
    pixels = np.frombuffer(bytes.fromhex(found["pixels"]), np.uint8).reshape(200, 300, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 3


# -- the command


def test_serve(slide: SyntheticSlide) -> None:
    command = [sys.executable, "-m", "microtome", "serve", str(slide.folder), "--port", "0", "--token-env", "SECRET"]
    env = os.environ | {"SECRET": "hush"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout
        lines = []
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line, process.communicate()
            lines.append(line)
        url = lines[0].split()[-1]
        assert sum(line.startswith(f'mt.open_slide("{url}/studies/') for line in lines) == 1
        assert any("2 labels and overviews are hidden" in line for line in lines)
        assert "hush" not in "".join(lines)
        get = Plain(url)
        assert get("/studies").status == 401
        assert get("/studies", Authorization="Bearer hush").status == 200
        get.http.close()
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["nowhere"], "nowhere"),
        (["SLIDE", "--host", "0.0.0.0"], "--insecure"),
        (["SLIDE", "--token-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["SLIDE", "--dialect", "pacs"], "orthanc"),
        (["SLIDE", "--port", "70000"], "70000"),
    ],
)
def test_serve_refuses(
    options: list[str], says: str, slide: SyntheticSlide, capsys: pytest.CaptureFixture[str]
) -> None:
    from microtome.cli import main

    assert main(["serve", *(str(slide.folder) if o == "SLIDE" else o for o in options)]) == 2
    assert says in capsys.readouterr().err
