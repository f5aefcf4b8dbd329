"""A DICOMweb server as an fsspec filesystem, against the files that it serves."""

from __future__ import annotations

import json
import os
import pickle
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pydicom
import pytest
from fsspec.implementations.reference import ReferenceFileSystem

from microtome import cache, config, credentials
from microtome.errors import (
    AuthenticationError,
    CredentialsError,
    NotOnServerError,
    OptionError,
    ProtocolError,
    RequestError,
)
from microtome.storage.dicomweb import qido, stow
from microtome.storage.dicomweb import service as services
from microtome.storage.dicomweb.filesystem import DICOMwebFileSystem
from microtome.testing import DICOMwebServer, Fault, SyntheticSlide, make_slide
from oracles import streams
from secrets_search import find_secret

SECRET = "Xq7zT9wLp2VbSecret"


class Served:
    """A server, a filesystem on it, and what is on it."""

    def __init__(self, server: DICOMwebServer, slide: SyntheticSlide) -> None:
        self.server = server
        self.fs = DICOMwebFileSystem(server.url)
        self.files: dict[str, Path] = {}
        for file in slide.files:
            ds = pydicom.dcmread(file, stop_before_pixels=True)
            self.study = f"studies/{ds.StudyInstanceUID}"
            self.folder = f"{self.study}/series/{ds.SeriesInstanceUID}/instances"
            self.files[f"{self.folder}/{ds.SOPInstanceUID}"] = file
        self.path, self.file = next(iter(self.files.items()))
        self.frames = streams(pydicom.dcmread(self.file))

    def asked(self) -> list[str]:
        """The requests since this was last asked, without the root."""
        requests, self.server.requests = self.server.requests, []
        return [r.path.removeprefix(self.server.root + "/") for r in requests]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(
        tmp_path_factory.mktemp("served") / "slide",
        width=700,
        height=500,
        frame=128,
        levels=3,
        seed=3,
        associated=False,
    )


@pytest.fixture
def make(slide: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    monkeypatch.setattr("microtome.storage.retrying.BACKOFF", 0.001)
    started = []

    def start(**options: Any) -> Served:
        cache.clear()
        services._services.clear()  # a port may be used again
        server = DICOMwebServer(options.pop("source", slide.folder), **options).start()
        started.append(server)
        return Served(server, slide)

    yield start
    for server in started:
        server.stop()
        assert server.failures == []


@pytest.fixture
def served(make: Callable[..., Served]) -> Served:
    return make()


# -- listing


def test_folders_hold_one_another(served: Served) -> None:
    fs = served.fs
    path = ""
    for word in served.folder.split("/"):
        listed = fs.ls(path, detail=True)
        path = f"{path}/{word}".lstrip("/")
        assert listed == [{"name": path, "size": 0, "type": "directory"}]
        assert fs.ls(f"/{path}/", detail=False) == fs.ls(path, detail=False)
    assert {e["name"] for e in fs.ls(path)} == served.files.keys()
    assert all(e["type"] == "file" and e["size"] is None for e in fs.ls(path))
    parts = fs.ls(served.path, detail=False)
    assert parts == [f"{served.path}/{part}" for part in ("frames", "metadata", "rendered")]
    frames = fs.ls(parts[0], detail=False)
    assert frames == [f"{served.path}/frames/{n + 1}" for n in range(len(served.frames))]
    assert fs.ls(frames[2]) == [{"name": frames[2], "size": None, "type": "file"}]


def test_what_there_is(served: Served) -> None:
    fs, path = served.fs, served.path
    files = ["", "/metadata", "/rendered", "/frames/1", f"/frames/{len(served.frames)}", "/frames/1/rendered"]
    for file in [path + tail for tail in files] + [f"{served.study}/metadata", f"{served.study}/rendered"]:
        assert fs.info(file) == {"name": file, "size": None, "type": "file"}
        assert (fs.exists(file), fs.isfile(file), fs.isdir(file)) == (True, True, False), file
    folders = ["", "studies", served.study, f"{served.study}/series", served.folder.rpartition("/")[0], served.folder]
    for folder in [*folders, f"{path}/frames"]:
        assert fs.info(folder) == {"name": folder, "size": 0, "type": "directory"}
        assert (fs.exists(folder), fs.isfile(folder), fs.isdir(folder)) == (True, False, True), folder
    absent = [
        "study", "studies/9.9", "studies/9.9/series", "studies/9.9/metadata", f"{served.study}/series/9.9",
        f"{served.study}/series/9.9/instances", f"{served.folder}/9.9", f"{served.folder}/9.9/frames",
        f"{served.folder}/9.9/metadata", f"{path}/frames/0", f"{path}/frames/{len(served.frames) + 1}",
        f"{path}/frames/1,2", f"{path}/nothing", f"{path}/frames/x", f"{path}/bulkdata/00091234",
    ]  # fmt: skip
    for name in absent:
        assert (fs.exists(name), fs.isfile(name), fs.isdir(name)) == (False, False, False), name
        assert fs.find(name) == []
        for read in (fs.info, fs.ls, fs.cat_file, fs.open):
            with pytest.raises((FileNotFoundError, IsADirectoryError)):
                read(name)


@pytest.mark.parametrize(
    "path",
    [
        "../studies", "studies/..", "studies/../studies", "studies/1.2/../..", "studies/.", "studies//series", "/..",
        "{path}/bulkdata/../metadata", "{path}/bulkdata/%2e%2e/metadata", "{path}/bulkdata/..%2Fmetadata",
        "{path}%2Fmetadata", "{path}/frames/1%2C2", "{path}/bulkdata/a b", "{path}/bulkdata/a\\..\\b",
        "{path}/bulkdata/",
        "{path}/frames//1", "{path}#metadata", "{path}/metadata\n", "{path}/bulkdata", "studies/{uid}\u0661",
    ],
)  # fmt: skip
def test_tricks_with_paths_reach_nothing(served: Served, path: str) -> None:
    path = path.format(path=served.path, uid="1.2")
    for read in (served.fs.info, served.fs.ls, served.fs.cat_file, served.fs.open):
        with pytest.raises((FileNotFoundError, IsADirectoryError)):
            read(path)
    assert not served.fs.exists(path)
    assert served.asked() == []


def test_a_query_is_refused_without_being_shown(served: Served) -> None:
    for path in (f"{served.path}?token={SECRET}", f"dicomweb+{served.server.url}/{served.path}?token={SECRET}"):
        for read in (
            served.fs.info,
            served.fs.cat_file,
            served.fs.open,
            fsspec.open if "://" in path else served.fs.ls,
        ):
            with pytest.raises((FileNotFoundError, OptionError)) as caught:
                read(path)
            assert find_secret(str(caught.value), SECRET) == []
    assert served.asked() == []


def test_find_is_one_search(served: Served) -> None:
    fs, names = served.fs, sorted(served.files)
    fs.service.capabilities.page = 100  # else one more tells whether that was all
    for path in ("", "studies", served.study, served.folder):
        assert fs.find(path) == names
        assert len(served.asked()) == 1
    assert fs.find(served.study, detail=True) == {n: {"name": n, "size": None, "type": "file"} for n in names}
    assert fs.find(names[0]) == [names[0]]
    assert fs.find(f"{served.path}/frames") == sorted(fs.ls(f"{served.path}/frames", detail=False))
    assert fs.find("studies/9.9") == []
    words = served.folder.split("/")
    folders = ["/".join(words[:n]) for n in range(1, 6)]
    assert fs.find("", withdirs=True) == sorted([*folders, *names])
    assert fs.find(served.study, withdirs=True) == sorted([*folders[1:], *names])
    assert fs.find("studies", maxdepth=4, withdirs=True) == folders
    assert fs.find("studies", maxdepth=5) == names


def test_walk(served: Served) -> None:
    walked = list(served.fs.walk("studies"))
    words = served.folder.split("/")
    assert [root for root, _, _ in walked] == ["/".join(words[:n]) for n in range(1, 6)]
    assert [d for _, folders, _ in walked for d in folders] == words[1:]
    assert sorted(f"{root}/{f}" for root, _, files in walked for f in files) == sorted(served.files)


def test_glob(served: Served) -> None:
    fs, names = served.fs, sorted(served.files)
    assert fs.glob("studies/*") == [served.study]
    assert fs.glob(f"{served.study}/series/*/instances/*") == names
    assert fs.glob("studies/*/series/*/instances/*", detail=True) == fs.find("studies", detail=True)
    assert fs.glob(f"{served.folder}/*/frames/1") == [f"{n}/frames/1" for n in names]
    assert fs.glob(f"{served.path}/frames/[12]") == [f"{served.path}/frames/{n}" for n in (1, 2)]
    assert fs.glob(f"{served.folder}/*/metadata") == [f"{n}/metadata" for n in names]
    assert fs.glob("studies/**/instances/*") == names
    assert fs.glob("studies/9*") == fs.glob("studies/9.9/series/*") == fs.glob("studies/9.9") == []
    assert fs.glob(served.path) == [served.path]
    url = f"dicomweb+{served.server.url}"
    assert fs.glob(f"{url}/studies/*") == [served.study]
    assert fs.glob(f"{url}/{served.study}/series/*") == [served.folder.rpartition("/")[0]]


@pytest.mark.parametrize("dialect", ["google", "minimal", "orthanc"])
def test_every_server_is_listed_and_read(make: Callable[..., Served], dialect: str) -> None:
    served = make(dialect=dialect)
    fs = served.fs
    assert fs.find("") == sorted(served.files)
    assert sorted(fs.ls(served.folder, detail=False)) == sorted(served.files)
    assert len(fs.ls(f"{served.path}/frames")) == len(served.frames)
    assert not fs.exists(f"{served.path}/frames/{len(served.frames) + 1}")
    assert not fs.exists("studies/9.9")
    assert fs.cat_file(served.path) == served.file.read_bytes()
    assert fs.cat_file(served.path, 100, 300) == served.file.read_bytes()[100:300]
    assert json.loads(fs.cat_file(f"{served.path}/metadata"))[0]["00080018"]
    assert fs.cat_file(f"{served.path}/rendered").startswith((b"\x89PNG", b"\xff\xd8"))
    assert list(fs.cat([f"{served.path}/frames/{n}" for n in (2, 3)]).values()) == served.frames[1:3]


def test_a_server_that_ignores_filters_shows_what_is_there(served: Served) -> None:
    item: dict[str, Any] = {tag: {"vr": "UI", "Value": ["7.7"]} for tag in ("0020000D", "0020000E", "00080018")}
    body = json.dumps([item]).encode()
    served.server.fault = lambda request: Fault(status=200, body=body) if not request.frames else None
    assert not served.fs.exists(served.path)
    assert not served.fs.exists(served.study)
    assert served.fs.exists("studies/7.7/series/7.7/instances/7.7")
    odd = [{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in ("1.2", "../../x", "", None, "a", "1/2")]
    body = json.dumps([*odd, {}]).encode()
    assert served.fs.ls("studies", detail=False) == ["studies/1.2"]


def test_that_a_server_refuses_to_say_is_an_error(make: Callable[..., Served]) -> None:
    served = make(basic=("anna", SECRET))
    for ask in (served.fs.exists, served.fs.isfile, served.fs.find, served.fs.ls, lambda p: list(served.fs.walk(p))):
        with pytest.raises(AuthenticationError):
            ask(served.path if ask in (served.fs.exists, served.fs.isfile) else "studies")


def test_find_walks_where_there_is_no_search_for_all(served: Served) -> None:
    served.server.fault = lambda r: Fault(status=400) if "series" not in r.path else None
    served.fs.find(served.folder)
    served.server.fault = lambda r: Fault(status=400) if r.path.endswith("Web/instances") else None
    assert served.fs.find("") == sorted(served.files)


# -- pages of a search


def _pages(
    items: list[str],
    *,
    cap: int = 10**6,
    warns: bool = False,
    offsets: bool = True,
    limits: bool = True,
    empty: int = 200,
) -> Callable[[Any], Fault]:
    """Return what answers searches for studies, as one kind of server."""

    def fault(request: Any) -> Fault:
        start = int(request.query.get("offset", ["0"])[0]) if offsets else 0
        stop = start + min(cap, int(request.query["limit"][0])) if limits else start + cap
        page = [{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in items[start:stop]]
        headers = {"Warning": '299 s: "There are more results"'} if warns and items[stop:] else {}
        if not page and empty == 204:
            return Fault(status=204)
        return Fault(status=200, body=json.dumps(page).encode(), headers=headers)

    return fault


@pytest.mark.parametrize("count", [0, 1, 2, 99, 100, 101, 250])
@pytest.mark.parametrize(
    "kind",
    [
        {}, {"empty": 204}, {"cap": 7}, {"cap": 7, "warns": True}, {"cap": 100, "warns": True}, {"cap": 2},
        {"limits": False}, {"limits": False, "offsets": False}, {"offsets": False}, {"limits": False, "cap": 120},
    ],
    ids=str,
)  # fmt: skip
def test_every_result_comes_once(served: Served, kind: dict[str, Any], count: int) -> None:
    uids = [f"1.{n}" for n in range(count)]
    served.server.fault = _pages(uids, **kind)
    assert served.fs.ls("studies", detail=False) == [f"studies/{uid}" for uid in uids]
    assert len(served.asked()) <= 4 + count // min(kind.get("cap", 100), 100)
    found = list(served.fs.service.search("studies", limit=5))
    assert [item["0020000D"]["Value"][0] for item in found] == uids[: min(5, kind.get("cap", 5))]
    assert len(served.asked()) <= 1 + 2 * bool(kind.get("warns"))


def test_the_end_is_known_where_longer_pages_have_come(served: Served) -> None:
    served.server.fault = _pages([f"1.{n}" for n in range(30)])
    assert len(served.fs.ls("studies")) == 30
    assert len(served.asked()) == 2
    served.server.fault = _pages([f"1.{n}" for n in range(29)])
    assert len(served.fs.ls("studies")) == 29
    assert len(served.asked()) == 1


def test_repeated_results_and_refused_pages(served: Served) -> None:
    served.server.fault = _pages(["1.1", "1.1", "1.2", "1.1", "1.3"], cap=2)
    assert served.fs.ls("studies", detail=False) == ["studies/1.1", "studies/1.2", "studies/1.3"]
    answer = _pages([f"1.{n}" for n in range(150)])
    served.server.fault = lambda r: Fault(status=400) if "offset" in r.query else answer(r)
    assert len(served.fs.ls("studies")) == 150
    assert list(served.fs.service.search("studies", limit=0)) == []


def test_results_without_end_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qido, "MAX_PAGES", 5)
    answer = _pages([f"1.{n}" for n in range(100_000)])
    served.server.fault = answer
    with pytest.raises(ProtocolError, match="after 5 pages"):
        served.fs.ls("studies")
    assert len(served.asked()) == 5


@pytest.mark.parametrize(
    ("body", "words", "tries"),
    [
        (b"<html>", "is no JSON", 1),
        (b"[[]]", "no list of DICOM", 1),
        (b"[" * 10**5, "too deep|cut short", 6),
        (b"[{", "cut short", 6),
    ],
)
def test_answers_that_are_no_results(served: Served, body: bytes, words: str, tries: int) -> None:
    served.server.fault = lambda request: Fault(status=200, body=body)
    with pytest.raises(ProtocolError, match=words):
        served.fs.ls("studies")
    assert len(served.asked()) in (1, tries)
    served.server.fault = lambda request: Fault(status=200, body=b" ")
    assert served.fs.ls("studies") == []


# -- reading


def test_an_instance_and_its_ranges(served: Served) -> None:
    fs, data = served.fs, served.file.read_bytes()
    assert fs.cat_file(served.path) == data
    assert fs.cat(served.path) == data
    assert fs.cat_file(f"/{served.path}/") == data
    n = len(data)
    ends: list[int | None] = [None, 0, 1, 132, n - 1, n, n + 10, -1, -10, -n, -n - 10]
    for start in ends:
        for end in ends:
            assert fs.cat_file(served.path, start, end) == data[start:end], (start, end)


def test_a_range_is_asked_for_and_nothing_else_comes(served: Served) -> None:
    size = served.file.stat().st_size
    for start, end, asked, most in (
        (10, 20, "bytes=10-19", 10),
        (-9, None, "bytes=-9", 9),
        (9, None, "bytes=9-", size - 9),
    ):
        served.server.reset()
        served.fs.cat_file(served.path, start, end)
        (request,) = served.server.requests
        assert (request.range, request.status, request.sent) == (asked, 206, most)
        assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("dialect", ["minimal", "orthanc"])
def test_where_ranges_are_unknown_no_more_is_read_than_that(
    make: Callable[..., Served], tmp_path: Path, dialect: str
) -> None:
    big = make_slide(tmp_path / "big", width=4096, height=4096, frame=512, codec="native", levels=1, associated=False)
    served = make(source=big.folder, dialect=dialect)
    (instance,) = served.server.archive.instances()
    data = big.files[0].read_bytes()
    assert served.fs.cat_file(instance.location, 1000, 2000) == data[1000:2000]
    assert served.fs.cat_file(instance.location, -2000) == data[-2000:]
    first, *_, last = [r for r in served.server.requests if r.status == 200]
    assert first.sent < len(data) <= last.sent
    assert sum(r.status == 400 for r in served.server.requests) <= 2  # what it refuses is asked for once


@pytest.mark.parametrize("header", ["", "bytes 0-9/100", "bytes 11-19/100", "bytes 10-18/100", "bytes 10-29/*", "x"])
def test_another_range_than_the_one_asked_for_is_an_error(served: Served, header: str) -> None:
    headers = {"Content-Range": header, "Content-Type": "application/dicom"}
    served.server.fault = lambda request: Fault(status=206, body=b"x" * 10, headers=headers)
    with pytest.raises(ProtocolError, match="another range"):
        served.fs.cat_file(served.path, 10, 20)


def test_files_are_opened_and_read(served: Served) -> None:
    fs, data = served.fs, served.file.read_bytes()
    with fs.open(served.path) as file:
        assert file.size == len(data)
        assert file.read(4) + file.read() == data
        assert file.seek(128) == 128
        assert file.read(4) == b"DICM"
        file.seek(0)
        assert pydicom.dcmread(file).pixel_array.shape[0] == len(served.frames)
    assert file.closed
    with fs.open(f"{served.path}/frames/2") as file:
        assert file.read() == served.frames[1]
    with fs.open(f"{served.path}/metadata", "r") as text:
        assert json.load(text)[0]["00080018"]["Value"] == [served.path.rpartition("/")[2]]
    assert fs.head(served.path, 132)[128:] == b"DICM"
    assert fs.tail(served.path, 10) == data[-10:]
    assert fs.read_block(served.path, 5, 10) == data[5:15]
    assert fs.read_bytes(f"{served.path}/frames/1", 2, 5) == served.frames[0][2:5]
    for mode in ("wb", "ab", "r+b", "w"):
        with pytest.raises(OptionError, match="put and pipe"):
            fs.open(served.path, mode)
    with pytest.raises(IsADirectoryError):
        fs.open(served.folder)


def test_many_frames_are_one_request(served: Served) -> None:
    paths = [f"{served.path}/frames/{n}" for n in (7, 3, 1)]
    got = served.fs.cat(paths)
    assert got == {path: served.frames[n - 1] for path, n in zip(paths, (7, 3, 1), strict=True)}
    assert served.asked() == [f"{served.path}/frames/1,3,7"]
    assert served.fs.cat(paths) == got
    assert served.asked() == []  # they are in the cache
    everything = served.fs.cat(f"{served.path}/frames", recursive=True)
    assert [everything[f"{served.path}/frames/{n + 1}"] for n in range(len(served.frames))] == served.frames
    assert len([path for path in served.asked() if "/frames/" in path]) == 1
    cache.clear()
    assert served.fs.cat(f"{served.path}/frames/*") == everything
    assert len([path for path in served.asked() if "/frames/" in path]) == 1


def test_several_instances_are_one_request_each_side_by_side(served: Served) -> None:
    paths = [f"{path}/frames/{n}" for path in served.files for n in (1, 2)]
    together = threading.Barrier(len(served.files), timeout=20)
    served.server.fault = lambda request: (together.wait(), None)[1]  # each waits for the others
    got = served.fs.cat(paths)
    for path, file in served.files.items():
        assert [got[f"{path}/frames/{n}"] for n in (1, 2)] == streams(pydicom.dcmread(file))[:2]
    assert sorted(served.asked()) == sorted(f"{path}/frames/1,2" for path in served.files)


def test_cat_of_everything_and_of_mixed_things(served: Served) -> None:
    expected = {path: file.read_bytes() for path, file in served.files.items()}
    assert served.fs.cat(served.folder, recursive=True) == expected
    assert served.fs.cat("studies/*/series/*/instances/*") == expected
    assert served.fs.cat(served.path, recursive=True) == {served.path: expected[served.path]}
    mixed = [f"{served.path}/metadata", served.path, f"{served.path}/frames/1"]
    got = served.fs.cat(mixed)
    assert (got[mixed[1]], got[mixed[2]]) == (expected[served.path], served.frames[0])
    assert served.fs.cat([served.path], start=3, end=9) == {served.path: expected[served.path][3:9]}
    with pytest.raises(IsADirectoryError):
        served.fs.cat(served.folder)


def test_errors_of_some_paths(served: Served) -> None:
    good, bad = f"{served.path}/frames/1", [f"{served.path}/frames/999", f"{served.folder}/9.9", "nothing"]
    got = served.fs.cat([good, *bad], on_error="return")
    assert got[good] == served.frames[0]
    assert all(isinstance(got[path], FileNotFoundError) for path in bad)
    assert served.fs.cat([good, *bad], on_error="omit") == {good: served.frames[0]}
    for path in bad:
        with pytest.raises(FileNotFoundError):
            served.fs.cat([good, path])
    served.server.fault = lambda request: Fault(status=403)
    got = served.fs.cat([f"{served.path}/frames/2", served.path], on_error="return")
    assert all(isinstance(e, AuthenticationError) for e in got.values())


def test_ranges_of_several_files(served: Served) -> None:
    frame = f"{served.path}/frames/2"
    paths = [frame, served.path, frame, f"{served.path}/frames/3"]
    got = served.fs.cat_ranges(paths, [0, 128, -4, None], [10, 132, None, None])
    assert got == [served.frames[1][:10], b"DICM", served.frames[1][-4:], served.frames[2]]
    assert sorted(served.asked()) == [served.path, f"{served.path}/frames/2,3"]
    assert served.fs.cat_ranges([frame, frame], 1, 3) == [served.frames[1][1:3]] * 2
    assert served.fs.cat_ranges([], [], []) == []
    bad = f"{served.path}/frames/999"
    got = served.fs.cat_ranges([bad, frame], 0, 4, on_error="return")
    assert isinstance(got[0], FileNotFoundError)
    assert got[1] == served.frames[1][:4]
    with pytest.raises(FileNotFoundError):
        served.fs.cat_ranges([frame, bad], 0, 4, on_error="raise")
    with pytest.raises(ValueError, match="one length"):
        served.fs.cat_ranges([frame], [1, 2], [3, 4])


def test_documents_pictures_and_bulk_data(served: Served) -> None:
    fs, path = served.fs, served.path
    for owner, count in (
        (path, 1),
        (served.folder.rpartition("/")[0], len(served.files)),
        (served.study, len(served.files)),
    ):
        assert len(json.loads(fs.cat_file(f"{owner}/metadata"))) == count
    assert fs.cat_file(f"{path}/rendered").startswith(b"\x89PNG")
    assert fs.cat_file(f"{path}/frames/2/rendered") != fs.cat_file(f"{path}/frames/3/rendered")
    ds = pydicom.dcmread(served.file, stop_before_pixels=True)
    profile = ds.OpticalPathSequence[0].ICCProfile
    uri = json.loads(fs.cat_file(f"{path}/metadata"))[0]["00480105"]["Value"][0]["00282000"]["BulkDataURI"]
    assert fs.cat_file(uri) == profile
    assert fs.info(uri)["size"] == len(profile)
    assert fs.cat_file(uri, -7) == profile[-7:]
    served.server.fault = lambda request: Fault(html=True)
    for name in ("rendered", "metadata"):
        with pytest.raises(ProtocolError, match="text/html"):
            fs.cat_file(f"{path}/{name}")


def test_pictures_of_a_server_that_has_only_jpeg(served: Served) -> None:
    served.server.fault = lambda request: Fault(status=406) if "png" in (request.accept or "") else None
    assert served.fs.cat_file(f"{served.path}/rendered").startswith(b"\xff\xd8")


def test_cut_frames_are_not_given_to_slides(served: Served) -> None:
    """Bytes are handed on as they come; a slide asks anew for what is no whole frame."""
    import microtome as mt

    served.server.fault = lambda request: Fault(truncate_part=(0, 9))
    got = served.fs.cat_file(f"{served.path}/frames/1")
    assert got == served.frames[0][:-9]
    served.server.fault = None
    slide = mt.open_slide(served.server.series_urls()[0], chunks=None)
    assert slide["level0"].image[:128, :128].values.shape == (128, 128, 3)


def test_an_answer_that_is_cut_is_asked_for_again(served: Served) -> None:
    seen: list[int] = []

    def once(request: Any) -> Fault | None:
        seen.append(1)
        return Fault(connection_close=True, close_after=3000) if len(seen) == 1 else None

    served.server.fault = once
    assert served.fs.cat_file(served.path) == served.file.read_bytes()
    assert len(seen) == 2
    served.server.fault = lambda request: Fault(connection_close=True, close_after=3000)
    with config.set(http_retries=1), pytest.raises(ProtocolError, match="cut short"):
        served.fs.open(served.path)


def test_an_instance_leaves_its_connection_of_use(served: Served) -> None:
    for path in [*served.files, *served.files]:
        served.fs.cat_file(path)
    assert served.server.connections == 1


def test_get(served: Served, tmp_path: Path) -> None:
    fs = served.fs
    fs.get(served.path, str(tmp_path / "one.dcm"))
    assert (tmp_path / "one.dcm").read_bytes() == served.file.read_bytes()
    fs.get_file(f"{served.path}/frames/1", str(tmp_path / "new" / "frame"))
    assert (tmp_path / "new" / "frame").read_bytes() == served.frames[0]
    fs.get(served.study, str(tmp_path / "study"), recursive=True)
    got = {p.name: p.read_bytes() for p in (tmp_path / "study").rglob("*") if p.is_file()}
    assert got == {path.rpartition("/")[2]: file.read_bytes() for path, file in served.files.items()}
    names = sorted(served.files)
    fs.get(names, [str(tmp_path / f"{n}.dcm") for n in range(len(names))])
    assert (tmp_path / "0.dcm").read_bytes() == served.files[names[0]].read_bytes()


# -- fsspec


def test_urls(served: Served) -> None:
    url = f"dicomweb+{served.server.url}/{served.path}/frames/1"
    fs, path = fsspec.url_to_fs(url)
    assert (type(fs), fs.root, path) == (DICOMwebFileSystem, served.server.url, f"{served.path}/frames/1")
    assert fs.unstrip_protocol(path) == url
    assert fs.unstrip_protocol(url) == url
    with fsspec.open(url) as file:
        assert file.read() == served.frames[0]
    for name in (url, f"{served.server.url}/{path}", f"dicomweb://{path}", Path(path)):
        assert fs.cat_file(name) == served.frames[0]
    with fsspec.open(f"dicomweb://{path}", url=served.server.url) as file:
        assert file.read() == served.frames[0]
    for text, root, rest in (
        ("dicomweb://h/r", "https://h/r", ""),
        ("dicomweb+https://h:8443/a/b/studies", "https://h:8443/a/b", "studies"),
        ("dicomweb+http://h/studies/1.2", "http://h", "studies/1.2"),
    ):
        fs, path = fsspec.url_to_fs(text)
        assert (fs.root, path) == (root, rest)


def test_what_it_is_made_of(served: Served) -> None:
    with pytest.raises(OptionError, match="url= is needed"):
        fsspec.filesystem("dicomweb")
    with pytest.raises(OptionError, match=r"^token: not known here") as caught:
        fsspec.filesystem("dicomweb", url=served.server.url, token=SECRET)
    assert find_secret(str(caught.value), SECRET) == []
    fsspec.filesystem("dicomweb", url=served.server.url, asynchronous=True, use_listings_cache=False)
    with pytest.raises(OptionError):
        fsspec.filesystem("dicomweb", url=f"https://anna:{SECRET}@h/r")
    served.fs.invalidate_cache()
    served.fs.invalidate_cache("studies")


class Tokens:
    """Headers whose owner shows nothing of them."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def __repr__(self) -> str:
        return "Tokens()"


def test_other_credentials_are_another_filesystem(make: Callable[..., Served]) -> None:
    served = make(tokens=["one"])
    one, two = Tokens("one"), Tokens("two")
    filesystems = [fsspec.filesystem("dicomweb", url=served.server.url, credentials=c) for c in (one, two, one)]
    assert filesystems[0] == filesystems[2] != filesystems[1]
    assert hash(filesystems[0]) == hash(filesystems[2])
    assert filesystems[0].service is filesystems[2].service
    assert filesystems[0].exists("studies")
    assert filesystems[0].ls("studies")
    with pytest.raises(AuthenticationError):
        filesystems[1].ls("studies")
    assert filesystems[0] != served.fs != 3


def test_secrets_do_not_show_and_do_not_travel(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("dicomweb", url=served.server.url, credentials=credentials.bearer(SECRET))
    shown = [
        repr(fs),
        str(fs),
        repr(vars(fs)),
        repr(fs.storage_options),
        fs.fsid,
        fs._fs_token,
        repr(fs.__dask_tokenize__()),
    ]
    assert all(find_secret(text, SECRET) == [] for text in shown)
    for dump in (fs.to_json, fs.to_dict, lambda: fs.to_json(include_password=False), lambda: pickle.dumps(fs)):
        with pytest.raises(CredentialsError) as caught:
            dump()
        assert find_secret(str(caught.value), SECRET) == []
    monkeypatch.setenv("DICOMWEB_TOKEN", SECRET)
    fs = fsspec.filesystem("dicomweb", url=served.server.url, credentials=credentials.bearer(env="DICOMWEB_TOKEN"))
    data = pickle.dumps(fs)
    assert SECRET.encode() not in data
    assert len(data) < 1000
    assert pickle.loads(data) == fs


def test_a_copy_is_the_same_filesystem(served: Served) -> None:
    fs = DICOMwebFileSystem(served.server.url + "/", allow_hosts=["mirror.example"])
    for copy in (pickle.loads(pickle.dumps(fs)), type(fs).from_json(fs.to_json()), type(fs).from_dict(fs.to_dict())):
        assert copy == fs
        assert copy.service is fs.service
        assert copy.cat_file(f"{served.path}/frames/1") == served.frames[0]


def test_many_threads(served: Served) -> None:
    def read(n: int) -> bool:
        frame = n % len(served.frames)
        return bool(served.fs.cat_file(f"{served.path}/frames/{frame + 1}") == served.frames[frame])

    with ThreadPoolExecutor(16) as executor:
        assert all(executor.map(read, range(100)))
    assert served.server.connections <= config.get().requests_per_server


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # of os.fork; it is why we test
def test_after_a_fork(served: Served) -> None:
    paths = [f"{path}/frames/1" for path in served.files]
    expected = served.fs.cat(paths)
    child = os.fork()
    if child == 0:
        good = False
        try:
            cache.clear()
            good = served.fs.cat(paths) == expected
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.clear()
    assert served.fs.cat(paths) == expected


def test_a_mapping_and_references_ask_for_frames_together(served: Served) -> None:
    """Virtual Zarr stores of other tools name frames by URL, and read chunks by such calls."""
    mapping = fsspec.get_mapper(f"dicomweb+{served.server.url}/{served.path}")
    got = mapping.getitems(["frames/1", "frames/4", "frames/999"], on_error="omit")
    assert got == {"frames/1": served.frames[0], "frames/4": served.frames[3]}
    assert "frames/2" in mapping
    assert mapping["frames/2"] == served.frames[1]
    with pytest.raises(KeyError):
        mapping["frames/999"]
    cache.clear()
    served.asked()
    url = f"dicomweb+{served.server.url}/{served.path}/frames"
    references = {"version": 1, "refs": {f"image/c/0/{n}": [f"{url}/{n + 1}"] for n in range(5)}}
    protocol, options = url.split("://")[0], {"url": served.server.url}
    virtual = ReferenceFileSystem(references, remote_protocol=protocol, remote_options=options)
    chunks = virtual.cat([f"image/c/0/{n}" for n in range(5)])
    assert list(chunks.values()) == served.frames[:5]
    assert len(served.asked()) == 1


# -- storing


@pytest.fixture
def store(make: Callable[..., Served], tmp_path: Path) -> Served:
    """A server that stores, with nothing in it."""
    (tmp_path / "stored").mkdir()
    return make(source=tmp_path / "stored", stow=True)


def stored(served: Served) -> set[bytes]:
    return {instance.path.read_bytes() for instance in served.server.archive.instances()}


def test_put_and_pipe(store: Served, tmp_path: Path) -> None:
    fs, files = store.fs, list(store.files.values())
    fs.put(str(files[0]), "studies")
    assert stored(store) == {files[0].read_bytes()}
    assert fs.cat_file(store.path) == files[0].read_bytes()
    fs.put(files[:2], "/studies/")
    fs.pipe("studies", files[2].read_bytes())
    assert stored(store) == {f.read_bytes() for f in files}
    fs.put_file(str(files[0]), store.study)
    for bad in ("", "study", store.path, store.folder, ["studies"]):
        with pytest.raises(OptionError, match=r"are stored under"):
            fs.put(files[0], bad)
    with pytest.raises(FileNotFoundError):
        fs.put(tmp_path / "nothing.dcm", "studies")


def test_put_of_a_folder_takes_what_is_dicom(store: Served, slide: SyntheticSlide, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    (folder / "README").write_text("no slide")
    for n, file in enumerate(store.files.values()):
        (folder / "deeper" / f"{n}.dcm").symlink_to(file)
    with pytest.raises(IsADirectoryError, match="recursive=True"):
        store.fs.put(folder, "studies")
    assert store.asked() == []
    store.fs.put(folder, "studies", recursive=True)
    assert store.asked() == ["studies"]
    assert stored(store) == {f.read_bytes() for f in store.files.values()}
    store.fs.put(f"{folder}/deeper/*.dcm", "studies")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="no DICOM files"):
        store.fs.put(empty, "studies", recursive=True)


def test_what_was_stored_is_told(store: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    files = list(store.files.values())
    assert store.fs.store(files) == [f"{store.server.url}/{path}" for path in store.files]
    assert store.asked() == ["studies"]
    monkeypatch.setattr(stow, "REQUEST_BYTES", files[1].stat().st_size + files[2].stat().st_size)
    assert len(store.fs.store(files, store.study)) == 3
    assert store.asked() == [store.study] * 2
    assert store.fs.store([]) == []


def test_what_was_not_stored_is_told_in_words(store: Served) -> None:
    files = list(store.files.values())
    uid = store.path.rpartition("/")[2]
    with pytest.raises(
        RequestError, match=rf"1 of 1 instances not stored: {uid}: it belongs to another study"
    ) as caught:
        store.fs.put(files[0], "studies/1.2.3")
    assert caught.value.status == 409
    with pytest.raises(RequestError, match=r"1 of 2 instances not stored: one: the server cannot understand") as caught:
        store.fs.store([files[0], b"nonsense"])
    assert caught.value.status == 202
    assert stored(store) == {files[0].read_bytes()}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (272, "the server failed to process it"), (273, "another instance of this UID"),
        (290, "SOP Class is not supported"),
        (42752, "out of resources"), (42800, "out of resources"), (43264, "does not match its SOP Class"),
        (49152, "cannot understand it"), (49442, "its transfer syntax is not supported"), (0x1234, "reason 1234H"),
        (None, "no reason given"), ("x", "no reason given"),
    ],
)  # fmt: skip
def test_reasons(served: Served, code: Any, words: str) -> None:
    item = {"00081155": {"vr": "UI", "Value": ["1.2"]}, "00081197": {"vr": "US", "Value": [code]}}
    body = json.dumps({"00081198": {"vr": "SQ", "Value": [item] * 10}}).encode()
    served.server.fault = lambda request: Fault(status=409, body=body)
    with pytest.raises(RequestError, match=rf"10 of 1 instances not stored: 1.2: .*{words}.*; and 2 more") as caught:
        served.fs.put(served.file)
    assert caught.value.status == 409


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, b"bad syntax", RequestError, "HTTP 400: bad syntax"),
        (404, b"", NotOnServerError, "HTTP 404"),
        (405, b"this server stores nothing", RequestError, "HTTP 405: this server stores nothing"),
        (403, b"", AuthenticationError, "HTTP 403"),
        (409, b"", RequestError, "HTTP 409: nothing stored, and no reason given"),
        (409, b"<html>", RequestError, "HTTP 409: nothing stored"),
        (200, b"<html>", ProtocolError, "does not say what was stored"),
        (200, b"[]", ProtocolError, "does not say what was stored"),
    ],
)  # fmt: skip
def test_servers_that_do_not_store(served: Served, status: int, body: bytes, kind: type[Exception], words: str) -> None:
    served.server.fault = lambda request: Fault(status=status, body=body)
    with pytest.raises(kind, match=words):
        served.fs.put(served.file)
    assert served.asked() == ["studies"]


def test_a_server_without_storage(served: Served) -> None:
    with pytest.raises(RequestError, match="HTTP 405: this server stores nothing"):
        served.fs.put(served.file)


def test_answers_that_say_little_or_much(served: Served) -> None:
    odd = b'[{"00081199": {"vr": "SQ", "Value": [{"00081155": {"Value": ["1.2"]}}, 7]}}]'
    for body, expected in ((b"", []), (b"{}", []), (odd, ["1.2"])):
        served.server.fault = lambda request, body=body: Fault(status=200, body=body)
        assert served.fs.store([served.file]) == expected


def test_a_body_is_sent_once_more_after_a_refusal_that_passes(store: Served) -> None:
    answers = iter([Fault(status=503, headers={"Retry-After": "0"}), Fault(status=429, headers={"Retry-After": "0"})])
    store.server.fault = lambda request: next(answers, None)
    assert len(store.fs.store([store.file, store.file.read_bytes()])) == 2
    assert store.asked() == ["studies"] * 3
    store.server.fault = lambda request: Fault(close_after=0)
    with pytest.raises(RequestError):
        store.fs.put(store.file)
    assert store.asked() == ["studies"]  # whether it was stored is not known


def test_fresh_credentials_send_the_body_again(make: Callable[..., Served], tmp_path: Path) -> None:
    tokens = ["old"]
    served = make(source=tmp_path, stow=True, tokens=tokens)
    fs = DICOMwebFileSystem(served.server.url, credentials=credentials.bearer(lambda: tokens[0]))
    fs.ls("studies")
    tokens[0] = "new"
    fs.put(served.file, "studies")
    assert stored(served) == {served.file.read_bytes()}


# -- memory


def test_large_instances_are_not_held_in_memory(
    make: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by reading, which spools to the disk, and not by storing, which reads as it sends."""
    monkeypatch.setattr("microtome.storage.dicomweb.filesystem._SPOOLED", 4 << 20)
    (tmp_path / "served").mkdir()
    big = make_slide(tmp_path / "big", width=4096, height=4096, frame=512, codec="native", levels=1, associated=False)
    (file,) = big.files
    served = make(source=big.folder)
    (instance,) = served.server.archive.instances()
    size = file.stat().st_size
    assert size > 48 << 20

    def peak(work: Callable[[], Any]) -> int:
        work()
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def read() -> None:
        with served.fs.open(instance.location) as opened:
            assert opened.size == size

    assert peak(read) < 16 << 20
    assert peak(lambda: served.fs.get(instance.location, str(tmp_path / "got.dcm"))) < 16 << 20
    assert (tmp_path / "got.dcm").read_bytes() == file.read_bytes()
    assert peak(lambda: served.fs.cat_file(instance.location, -1000, -500)) < 16 << 20
    assert peak(lambda: served.fs.cat_file(instance.location, -1000)) < 16 << 20
    sent = sum(len(piece) for piece in stow._Body([file, file], "b"))
    assert sent == len(stow._Body([file, file], "b")) > 2 * size
    assert peak(lambda: [len(piece) for piece in stow._Body([file] * 2, "b")].clear()) < 16 << 20

    def put() -> None:  # to a server that stores nothing: ours would hold it in this process
        with pytest.raises(RequestError, match="HTTP 405"):
            served.fs.put([file, file])

    assert peak(put) < 16 << 20
