"""The server of byte ranges: plain HTTP against the bytes of the files, other clients, faults and counts."""

from __future__ import annotations

import http.client
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import fsspec
import pytest

from microtome.errors import SlideNotFoundError
from microtome.testing import DICOMwebServer, Fault, FaultRule, RangeServer, make_slide

DATA = random.Random(5).randbytes(100_000)
ODD = "name with space #1 50% ü'\"&.dcm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranges")
    (folder / "a.dcm").write_bytes(DATA)
    (folder / "empty").write_bytes(b"")
    (folder / "deep").mkdir()
    (folder / "deep" / ODD).write_bytes(DATA[:1000])
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        yield server


@pytest.fixture
def server(running: RangeServer) -> Iterator[RangeServer]:
    running.counts.reset()
    yield running
    running.faults, running.latency, running.bandwidth = (), 0.0, None
    assert running.failures == []


class Plain:
    """A plain client with one connection."""

    def __init__(self, url: str, timeout: float = 10) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        self.http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def __call__(
        self, path: str, asked: str | None = None, method: str = "GET", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if asked is not None:
            names["Range"] = f"bytes={asked}"
        self.http.request(method, path, headers=names)
        with self.http.getresponse() as answer:
            return answer.status, answer.headers, answer.read()


@pytest.fixture
def get(server: RangeServer) -> Iterator[Plain]:
    plain = Plain(server.url)
    yield plain
    plain.http.close()


# -- what is answered


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("0-0", slice(0, 1)),
        ("7-99", slice(7, 100)),
        ("99990-", slice(99_990, None)),
        ("-10", slice(-10, None)),
        ("-200000", slice(None)),
        ("99999-99999", slice(99_999, None)),
        ("50000-200000", slice(50_000, None)),
    ],
)
def test_a_range(get: Plain, asked: str, part: slice) -> None:
    status, headers, body = get("/a.dcm", asked)
    first, stop, _ = part.indices(len(DATA))
    assert (status, body) == (206, DATA[part])
    assert headers["Content-Range"] == f"bytes {first}-{stop - 1}/{len(DATA)}"
    assert headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("asked", ["100000-", "100000-100001", "-0"])
def test_a_range_that_no_byte_is_in(get: Plain, asked: str) -> None:
    status, headers, body = get("/a.dcm", asked)
    assert (status, headers["Content-Range"], body) == (416, "bytes */100000", b"")


@pytest.mark.parametrize("asked", ["5-3", "a-b", "-", "0-1,5-6"])
def test_what_is_no_single_range_gets_the_whole(get: Plain, asked: str) -> None:
    status, headers, body = get("/a.dcm", asked)
    assert (status, body, headers["Content-Range"]) == (200, DATA, None)


def test_a_whole_file_and_its_headers(get: Plain, folder: Path) -> None:
    status, headers, body = get("/a.dcm")
    about = (folder / "a.dcm").stat()
    assert (status, body) == (200, DATA)
    assert headers["Accept-Ranges"] == "bytes"
    assert parsedate_to_datetime(headers["Last-Modified"]).timestamp() == int(about.st_mtime)
    status, of_head, body = get("/a.dcm", method="HEAD")
    assert (status, body, of_head["Content-Length"], of_head["ETag"]) == (200, b"", "100000", headers["ETag"])
    assert get("/empty")[::2] == (200, b"")
    assert get("/empty", "0-1")[0] == 416


def test_the_etag_is_another_when_the_file_is(get: Plain, folder: Path) -> None:
    path = folder / "changing"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    tag = get("/changing")[1]["ETag"]
    assert get("/changing", If_Match=tag)[::2] == (200, b"one")
    path.write_bytes(b"two")
    assert get("/changing")[1]["ETag"] != tag
    assert get("/changing", If_Match=tag)[0] == 412
    path.unlink()
    assert get("/changing")[0] == 404


def test_paths_stay_in_the_folder(get: Plain, folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    for path in ("/../secret", "/%2e%2e/secret", "/deep/..%2f..%2fsecret", "/deep/../../secret", "/.", "/%00"):
        status, _, body = get(path)
        assert status in (400, 404), path
        assert b"secret" not in body


def test_what_is_not_there(get: Plain) -> None:
    assert get("/nothing")[0] == 404
    assert get("/a.dcm/")[0] == 404
    assert get("/a.dcm", method="DELETE")[0] == 405
    status, headers, _ = get("/deep")
    assert (status, headers["Location"]) == (301, "/deep/")


def test_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFoundError, match="no such folder"):
        RangeServer(tmp_path / "nothing")


def test_credentials(folder: Path) -> None:
    with RangeServer(folder, tokens=["sesame"]) as server:
        get = Plain(server.url)
        assert get("/a.dcm")[0] == 401
        assert get("/a.dcm", Authorization="Bearer sesame")[::2] == (200, DATA)
        assert "sesame" not in repr(server.requests)
        get.http.close()


def test_fsspec_lists_and_reads(server: RangeServer) -> None:
    fs = fsspec.filesystem("http", skip_instance_cache=True)
    found = fs.find(server.url + "/")
    assert {url.removeprefix(server.url) for url in found} == {"/a.dcm", "/empty", f"/deep/{quote(ODD)}"}
    assert fs.info(f"{server.url}/a.dcm")["size"] == len(DATA)
    assert fs.cat_file(f"{server.url}/deep/{quote(ODD)}", start=10, end=-10) == DATA[10:990]
    spans = [(i * 1000, i * 1000 + 77) for i in range(50)]
    read = fs.cat_ranges([f"{server.url}/a.dcm"] * 50, *map(list, zip(*spans, strict=True)))
    assert read == [DATA[start:stop] for start, stop in spans]


# -- counts


def test_counts(server: RangeServer, get: Plain) -> None:
    get("/a.dcm", "0-9")
    get("/a.dcm?signature=x", method="HEAD")
    get("/deep/")
    size = len(get("/deep/")[2])
    assert (server.counts.requests, server.counts.ranged, server.counts.bytes) == (4, 1, 10 + 2 * size)
    assert server.counts.log[:2] == [("GET", "/a.dcm", "bytes=0-9"), ("HEAD", "/a.dcm", None)]
    assert server.counts.connections == 1
    assert server.requests[1].query == {"signature": ["x"]}
    server.counts.reset()
    assert (server.counts.requests, server.counts.bytes, server.counts.peak, server.counts.log) == (0, 0, 0, [])


def test_latency_is_waited_for_side_by_side(server: RangeServer) -> None:
    server.latency = 0.2
    clients = [Plain(server.url) for _ in range(40)]
    with ThreadPoolExecutor(40) as pool:
        start = time.monotonic()
        bodies = list(pool.map(lambda client: client("/a.dcm", "5-8")[2], clients))
        took = time.monotonic() - start
    assert bodies == [DATA[5:9]] * 40
    assert server.counts.peak > 20
    assert 0.2 <= took < 0.2 * 40
    for client in clients:
        client.http.close()


@pytest.mark.parametrize("part", ["0-9", None])
def test_the_peak_is_never_more_than_there_are_clients(server: RangeServer, part: str | None) -> None:
    """An answer is over before its last byte is sent, or its client's next request would count as a second one."""

    def ask(_: int) -> None:
        client = Plain(server.url)
        for method in ("GET", "HEAD") * 40:
            client("/a.dcm", part, method)
        client.http.close()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, range(3)))
    assert server.counts.requests == 240
    assert 1 <= server.counts.peak <= 3


def test_the_peak_with_a_narrow_band(server: RangeServer, get: Plain) -> None:
    server.bandwidth = 2e6
    for _ in range(5):
        assert get("/a.dcm", "0-19999")[2] == DATA[:20_000]
    assert server.counts.peak == 1


def test_the_dicomweb_server_counts_its_peak(tmp_path: Path) -> None:
    slide = make_slide(tmp_path / "slide", width=256, height=256, frame=128)
    with DICOMwebServer(slide.folder, latency=0.2) as server:
        path = urlsplit(server.url).path + "/studies"
        clients = [Plain(server.url) for _ in range(5)]
        with ThreadPoolExecutor(5) as pool:
            assert {answer[0] for answer in pool.map(lambda client: client(path), clients)} == {200}
        assert 1 < server.peak <= 5
        server.reset()
        clients[0](path)
        assert server.peak == 1
        for client in clients:
            client.http.close()


# -- faults


def test_a_status_the_second_time(server: RangeServer, get: Plain) -> None:
    server.faults = [FaultRule("*.dcm", Fault(status=503, headers={"Retry-After": "0"}), times=[2])]
    answers = [get("/a.dcm", "0-3") for _ in range(3)]
    assert [status for status, _, _ in answers] == [206, 503, 206]
    assert answers[1][1]["Retry-After"] == "0"
    assert [request.status for request in server.requests] == [206, 503, 206]


def test_rules_choose_by_path_method_and_range(server: RangeServer, get: Plain) -> None:
    server.faults = [
        FaultRule("/deep/* #1 *", Fault(status=403)),
        FaultRule("/a*", Fault(status=404), method="HEAD"),
        FaultRule("/a*", Fault(status=500), times=range(2, 100), ranged=True),
    ]
    assert get(f"/deep/{quote(ODD)}")[0] == 403
    assert get("/deep/")[0] == 200
    assert get("/a.dcm", method="HEAD")[0] == 404
    assert [get("/a.dcm")[0], get("/a.dcm", "0-1")[0], get("/a.dcm", "0-1")[0]] == [200, 206, 500]
    assert get("/empty")[0] == 200
    server.faults = server.faults
    assert get("/a.dcm", "0-1")[0] == 206


def test_ranges_that_are_ignored(server: RangeServer, get: Plain) -> None:
    server.faults = [FaultRule("*", Fault(whole=True))]
    status, headers, body = get("/a.dcm", "5-9")
    assert (status, body, headers["Content-Range"], headers["Accept-Ranges"]) == (200, DATA, None, None)


def test_another_etag_and_another_range(server: RangeServer, get: Plain) -> None:
    server.faults = [FaultRule("*", Fault(headers={"ETag": '"other"', "Content-Range": "bytes 0-4/100000"}))]
    status, headers, body = get("/a.dcm", "5-9")
    assert (status, body) == (206, DATA[5:10])
    assert (headers["ETag"], headers["Content-Range"]) == ('"other"', "bytes 0-4/100000")


def test_fewer_bytes_than_asked_for(server: RangeServer, get: Plain) -> None:
    server.faults = [FaultRule("*", Fault(fewer=3))]
    status, headers, body = get("/a.dcm", "5-14")
    assert (status, body, headers["Content-Range"]) == (206, DATA[5:12], "bytes 5-11/100000")


def test_a_body_that_ends_early(server: RangeServer) -> None:
    server.faults = [FaultRule("*", Fault(close_after=4))]
    get = Plain(server.url)
    with pytest.raises(http.client.IncompleteRead) as caught:
        get("/a.dcm", "5-14")
    assert caught.value.partial == DATA[5:9]
    get.http.close()
    assert server.counts.bytes == 4


def test_a_connection_that_is_reset(server: RangeServer) -> None:
    server.faults = [FaultRule("*", Fault(reset_after=4))]
    get = Plain(server.url)
    with pytest.raises(ConnectionResetError):
        get("/a.dcm", "5-14")
    get.http.close()


def test_a_stall(server: RangeServer) -> None:
    server.faults = [FaultRule("*", Fault(stall_after=4, stall=60))]
    get = Plain(server.url, timeout=0.3)
    with pytest.raises(socket.timeout):
        get("/a.dcm", "5-14")
    get.http.close()


def test_stopping_does_not_wait_for_a_stall(folder: Path) -> None:
    """Whoever waits gets the answer early, or none."""
    with RangeServer(folder, latency=60) as server:
        get = Plain(server.url)

        def ask() -> None:
            with suppress(http.client.HTTPException, OSError):
                get("/a.dcm")

        asking = threading.Thread(target=ask)
        asking.start()
        while not server.counts.requests:
            time.sleep(0.005)
    asking.join(10)
    assert not asking.is_alive()
    get.http.close()
