"""Remote files when something is wrong: errors that say what, and never bytes that were not asked for."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import socket
import threading
import traceback
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import microtome as mt
from microtome.errors import (
    AuthenticationError,
    MissingDependencyError,
    NotOnServerError,
    OptionError,
    ProtocolError,
    RequestError,
    SlideChangedError,
    SlideNotFoundError,
)
from microtome.storage import Source, list_files, retrying
from microtome.storage.uri import display_uri, holds_secret, server_name, url_holds_secret
from microtome.testing import Fault, FaultRule, RangeServer, SyntheticSlide, make_slide
from stores import GS_TOKEN, Store, forget_filesystems

DATA = random.Random(7).randbytes(100_000)
SECRET = "hunter2SECRET"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What failed is tried again soon."""
    monkeypatch.setattr(retrying, "BACKOFF", 0.005)
    yield
    forget_filesystems()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "a.dcm").write_bytes(DATA)
    with RangeServer(tmp_path) as server:
        yield server
        assert server.failures == []


def source_of(server: RangeServer, query: str = "", **options: Any) -> Source:
    source = list_files([f"{server.url}/a.dcm{query}"], options)[0].source()
    server.counts.reset()
    return source


def fail(server: RangeServer, times: tuple[int, ...] | None = None, **fault: Any) -> None:
    server.faults = [FaultRule("*", Fault(**fault), times, ranged=True)]


# -- what is read


def test_bytes_are_those_that_were_asked_for(served: RangeServer) -> None:
    source = source_of(served)
    assert source.read(0, 10) == DATA[:10]
    assert source.read(99_990, 100) == DATA[-10:]
    assert source.read(500, 0) == source.read(100_000, 5) == source.read(200_000, 5) == b""
    assert source.read(0, 100_000) == DATA
    assert served.counts.requests == 3


def test_many_ranges_are_read_side_by_side(served: RangeServer) -> None:
    source = source_of(served)
    served.latency = 0.05
    ranges = [(n * 5000 + n, 100 + n) for n in range(12)]
    with mt.config.set(requests_per_server=4):
        assert source.read_many(ranges) == [DATA[o : o + n] for o, n in ranges]
    assert served.counts.requests == 12
    assert 1 < served.counts.peak <= 4


def test_reads_from_many_threads(served: RangeServer) -> None:
    source = source_of(served)
    ranges = [(random.Random(n).randrange(90_000), 777) for n in range(100)]
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda r: source.read(*r), ranges)) == [DATA[o : o + n] for o, n in ranges]
    assert served.counts.peak <= mt.config.get().requests_per_server


def test_a_url_keeps_its_query(served: RangeServer) -> None:
    source = source_of(served, "?X-Sig=a%2Fb%20c&z=1")
    assert source.read(5, 5) == DATA[5:10]
    assert dict(served.requests[0].query) == {"X-Sig": ["a/b c"], "z": ["1"]}
    assert "?" not in source.uri


# -- answers that are others


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"whole": True}, "ignores ranges"),
        ({"fewer": 7}, "were asked for"),
        ({"headers": {"Content-Range": "bytes 0-9/100000"}}, "where 50-59 were asked for"),
        ({"headers": {"Content-Range": "bytes 51-60/100000"}}, "sends bytes 51-60"),
        ({"headers": {"Content-Range": "nonsense"}}, "does not say which range"),
        ({"headers": {"Content-Encoding": "gzip"}}, "encoding"),
        ({"headers": {"Content-Encoding": "br"}}, "compressed"),
        ({"html": True}, "ignores ranges"),
        ({"html": True, "status": 206}, "does not say which range"),
    ],
)
def test_another_range_is_an_error(served: RangeServer, fault: dict[str, Any], words: str) -> None:
    source = source_of(served)
    fail(served, **fault)
    with pytest.raises(ProtocolError, match=words) as raised:
        source.read(50, 10)
    assert "simplecache::" in str(raised.value)
    assert served.counts.requests == 1
    assert served.counts.bytes < 50_000 or fault == {"whole": True}


def test_a_whole_file_is_no_range_but_all_the_same(served: RangeServer) -> None:
    source = source_of(served)
    fail(served, whole=True)
    assert source.read(0, 100_000) == DATA


def test_simplecache_reads_what_has_no_ranges(served: RangeServer) -> None:
    served.faults = [FaultRule("*", Fault(whole=True))]
    source = list_files([f"simplecache::{served.url}/a.dcm"])[0].source()
    assert source.read_many([(50, 10), (99_000, 2000)]) == [DATA[50:60], DATA[99_000:]]


@pytest.mark.parametrize(
    "fault",
    [
        {"reset_after": 0}, {"reset_after": 100}, {"close_after": 100}, {"close_after": 0}, {"status": 503},
        {"status": 429, "headers": {"Retry-After": "0"}}, {"status": 500}, {"status": 502}, {"status": 408},
        {"stall_after": 10, "stall": 3.0},
    ],
    ids=str,
)  # fmt: skip
def test_what_may_pass_is_tried_again(served: RangeServer, fault: dict[str, Any]) -> None:
    source = source_of(served)
    fail(served, times=(1, 2), **fault)
    with mt.config.set(http_timeout=1):
        assert source.read(10, 1000) == DATA[10:1010]
    assert served.counts.requests == 3


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"close_after": 100}, ProtocolError), ({"reset_after": 0}, RequestError), ({"status": 503}, RequestError),
        ({"stall_after": 0, "stall": 5.0}, RequestError), ({"delay": 5.0}, RequestError),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_pass_is_an_error(served: RangeServer, fault: dict[str, Any], kind: type[RequestError]) -> None:
    source = source_of(served)
    fail(served, **fault)
    with mt.config.set(http_timeout=1, http_retries=1), pytest.raises(kind, match=r"a\.dcm: bytes 10-1009.*2 tries"):
        source.read(10, 1000)
    assert served.counts.requests == 2


def test_a_slow_answer_is_waited_for(served: RangeServer) -> None:
    """The limit is one of silence."""
    source = source_of(served)
    fail(served, drip=20_000)
    with mt.config.set(http_timeout=1, http_retries=0):
        assert source.read(0, 40_000) == DATA[:40_000]


def test_nothing_listens(served: RangeServer) -> None:
    source = source_of(served)
    served.stop()
    with mt.config.set(http_retries=1), pytest.raises(RequestError, match="connection failed"):
        source.read(0, 10)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AuthenticationError), (403, AuthenticationError), (404, NotOnServerError), (410, NotOnServerError),
        (412, SlideChangedError), (416, SlideChangedError), (400, RequestError), (418, RequestError),
    ],
)  # fmt: skip
def test_a_refusal_says_why(served: RangeServer, status: int, kind: type[Exception]) -> None:
    source = source_of(served, f"?token={SECRET}")
    fail(served, status=status, body=f"you sent token {SECRET}, and this is why not".encode())
    with pytest.raises(kind) as raised:
        source.read(0, 10)
    assert type(raised.value) is kind
    assert served.counts.requests == 1
    told = str(raised.value)
    assert str(status) in told
    assert "this is why not" in told or status in (412, 416)
    assert SECRET not in told


# -- files that change


def test_a_file_that_changes_is_noticed(served: RangeServer, tmp_path: Path) -> None:
    source = source_of(served)
    assert source.read(0, 10) == DATA[:10]
    os.utime(tmp_path / "a.dcm", ns=(1, 1))  # another ETag
    with pytest.raises(SlideChangedError, match="changed"):
        source.read(0, 10)


@pytest.mark.parametrize("size", [50, 99_999, 200_000])
def test_another_size_is_noticed_without_a_tag(served: RangeServer, tmp_path: Path, size: int) -> None:
    served.faults = [FaultRule("*", Fault(headers={"ETag": "", "Last-Modified": ""}))]
    source = list_files([f"{served.url}/a.dcm"])[0].source()
    assert source.identity == ""
    (tmp_path / "a.dcm").write_bytes((DATA * 2)[:size])
    with pytest.raises(SlideChangedError):
        source.read(1000, 10)


def test_marks_of_one_kind_are_compared(served: RangeServer) -> None:
    source = list_files([f"{served.url}/a.dcm"])[0].source()
    served.faults = [FaultRule("*", Fault(headers={"ETag": ""}))]
    assert source.read(3, 4) == DATA[3:7]


def test_an_archive_that_changes(served: RangeServer, tmp_path: Path) -> None:
    for data in (DATA, DATA[::-1]):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a.dcm", data)
        if data == DATA:
            source = list_files([f"zip://a.dcm::{served.url}/x.zip"])[0].source()
            assert source.read(7, 5) == DATA[7:12]
    with pytest.raises(SlideChangedError):
        source.read(7, 5)


def test_a_weak_tag_is_a_tag(served: RangeServer) -> None:
    served.faults = [FaultRule("*", Fault(headers={"ETag": 'W/"17"'}))]
    source = list_files([f"{served.url}/a.dcm"])[0].source()
    assert source.read(3, 4) == DATA[3:7]
    served.faults = [FaultRule("*", Fault(headers={"ETag": '"17"'}))]  # the same, says another server
    assert source.read(3, 4) == DATA[3:7]


@pytest.mark.parametrize("name", ["s3", "gs", "nginx"])
def test_an_object_that_is_written_anew(stores: Any, name: str) -> None:
    store = stores[name]
    url = store.write("changing/a.dcm", DATA)
    source = list_files([url], store.storage_options)[0].source()
    assert source.read(7, 5) == DATA[7:12]
    # The emulator has neither generations nor ETags in its answers, and the ETag of nginx is made of size and second.
    store.write("changing/a.dcm", DATA[::-1] + (b"" if name == "s3" else b"more"))
    with pytest.raises(SlideChangedError):
        source.read(7, 5)
    store.remove("changing/a.dcm")
    with pytest.raises((NotOnServerError, SlideChangedError)):
        source.read(7, 5)


def test_a_slide_that_changes_while_it_is_open(served: RangeServer, tmp_path: Path) -> None:
    made = make_slide(tmp_path / "s", width=300, height=200, frame=64, codec="native", levels=1, associated=False)
    slide = mt.open_slide(f"{served.url}/s/", chunks=None)
    np.testing.assert_array_equal(slide["level0"].image[:64, :64].values, made.pixels(0)[:64, :64])
    os.utime(made.files[0], ns=(1, 1))
    with pytest.raises(SlideChangedError):
        slide["level0"].image[100:, 100:].values  # noqa: B018


# -- names, identities


def test_identities(served: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "b.dcm").write_bytes(DATA)
    one, again, signed = (source_of(served, query) for query in ("", "", "?sig=1"))
    (other,) = (entry.source() for entry in list_files([f"{served.url}/b.dcm"]))
    assert one.identity == again.identity == signed.identity != other.identity  # a signature is another each time
    assert one.key == again.key
    assert len({one.key, other.key, signed.key}) == 3
    served.faults = [FaultRule("*", Fault(headers={"ETag": ""}))]  # then the time counts, which others may have
    assert source_of(served, "?id=1").identity != source_of(served, "?id=2").identity
    served.faults = []
    with_header = source_of(served, headers={"X-Who": "me"})
    assert with_header.key != one.key  # who asks in another way may be shown other bytes
    os.utime(tmp_path / "a.dcm", ns=(1, 1))
    assert source_of(served).identity != one.identity
    assert source_of(served).key != one.key


def test_files_that_differ_in_what_is_not_shown(served: RangeServer) -> None:
    entries = list_files([f"{served.url}/a.dcm?id=1", f"{served.url}/a.dcm?id=2"])
    assert len({entry.shown for entry in entries}) == len({entry.uri for entry in entries}) == 2


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:pw@h.org/a%20b.dcm?sig=x#y", "https://h.org/a%20b.dcm"),
        ("https://h.org/a.dcm?time=12:30&sig=SECRET", "https://h.org/a.dcm"),
        ("https://h.org/a.dcm?a=b::c&sig=SECRET", "https://h.org/a.dcm::…"),
        ("gs://bucket/a b#1?.dcm", "gs://bucket/a b#1?.dcm"),
        ("s3://bucket/a@b/c.dcm", "s3://bucket/a@b/c.dcm"),
        ("zip://a#1.dcm::https://me@h.org/x.zip?sig=SECRET", "zip://a#1.dcm::https://h.org/x.zip"),
        ("simplecache::gs://b/x", "simplecache::gs://b/x"),
        ("zip://a.dcm::/data/x.zip", "zip://a.dcm::/data/x.zip"),
    ],
)
def test_uris_as_they_are_shown(uri: str, shown: str) -> None:
    assert display_uri(uri) == shown


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("https://me:pw@H.org/a?b", "https://h.org:443"),
        ("http://h.org:81/", "http://h.org:81"),
        ("zip://x::gs://bucket/a/b.zip", "gs://bucket"),
        ("simplecache::s3://bucket", "s3://bucket"),
        ("memory://a/b", ""),
        ("zip://x::/data/a.zip", ""),
        ("zip://x::file:///data/a.zip", ""),
    ],
)
def test_names_of_servers(uri: str, server: str) -> None:
    assert server_name(uri) == server


@pytest.mark.parametrize(
    ("options", "secret"),
    [
        ({"token": "anon"}, False), ({"token": "/keys/key.json"}, False), ({"token": "key.json"}, False),
        ({"token": "ya29.abc"}, True), ({"token": "1//0gabc"}, True), ({"token": {"private_key": "x"}}, True),
        ({"token": object()}, True), ({"key": "AKIA", "secret": "x"}, True), ({"anon": True}, False),
        ({"s3": {"secret": "x"}}, True), ({"headers": {"Authorization": "Bearer x"}}, True),
        ({"headers": {"X-Api-Key": "x"}}, True), ({"headers": {"Cookie": "x"}}, True),
        ({"connection_string": "AccountKey=x"}, True), ({"endpoint_url": "http://h"}, False), ({"profile": "a"}, False),
        ({"client_kwargs": {"auth": ("me", "pw")}}, True), ({"credential": None}, False), ({"use_ssl": True}, False),
    ],
    ids=str,
)  # fmt: skip
def test_secrets_among_options(options: dict[str, Any], secret: bool) -> None:
    assert holds_secret(options) is secret


def test_secrets_in_urls() -> None:
    assert url_holds_secret("https://h/a?X-Amz-Signature=x")
    assert url_holds_secret("zip://a::https://me:pw@h/a")
    assert not url_holds_secret("https://h/a?page=2")


# -- secrets


def everything_told(error: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    """Messages, tracebacks with what their frames hold of ours, and the log."""
    told = "".join(traceback.format_exception(error)) + caplog.text
    seen: list[BaseException | None] = [error]
    for e in seen:
        if e is None:
            continue
        told += repr(e) + str(e.args)
        seen += [x for x in (e.__cause__, e.__context__) if x is not None and x not in seen]
        trace = e.__traceback__
        while trace is not None:
            if "aiohttp" in trace.tb_frame.f_code.co_filename or "fsspec" in trace.tb_frame.f_code.co_filename:
                told += "FRAME OF ANOTHER LIBRARY " + repr(trace.tb_frame.f_locals)
            trace = trace.tb_next
    return told


@pytest.mark.parametrize("fault", [{"status": 403}, {"status": 404}, {"reset_after": 0}, {"whole": True}, {"delay": 3}])
def test_no_secret_is_told(served: RangeServer, fault: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "microtome")
    options = {"headers": {"Authorization": f"Bearer {SECRET}", "X-Api-Key": f"{SECRET}9"}}
    source = source_of(served, f"?sig={SECRET}", **options)
    fail(served, body=f"bad header: Bearer {SECRET} and {SECRET}9".encode(), **fault)
    with mt.config.set(http_timeout=1, http_retries=0), pytest.raises((RequestError, SlideChangedError)) as raised:
        source.read(0, 10)
    told = everything_told(raised.value, caplog)
    assert SECRET not in told
    assert "FRAME OF ANOTHER LIBRARY" not in told
    url = f"{served.url}/a.dcm?sig={SECRET}"
    served.faults = [FaultRule("*", Fault(**fault))]
    with mt.config.set(http_timeout=1, http_retries=0):
        if fault.get("whole") or "reset_after" in fault:  # which does nothing to an answer without a body
            assert SECRET not in repr(list_files([url], options))
        else:
            with pytest.raises((RequestError, SlideNotFoundError)) as listing:
                list_files([url], options)
            assert SECRET not in everything_told(listing.value, caplog)


def test_another_origin_sees_no_secret(served: RangeServer, tmp_path: Path) -> None:
    """A redirect to a host that the credentials are not for."""
    with RangeServer(tmp_path) as elsewhere:
        options = {"headers": {"Authorization": "Bearer x", "X-Api-Key": "y"}}
        served.faults = [FaultRule("*", Fault(status=302, headers={"Location": f"{elsewhere.url}/a.dcm"}))]
        source = list_files([f"{served.url}/a.dcm"], options)[0].source()
        assert source.read(5, 5) == DATA[5:10]
        assert elsewhere.counts.ranged == 1
        for request in elsewhere.requests:
            assert not request.authorized
            assert "x-api-key" not in request.headers
        assert all(request.authorized and request.headers["x-api-key"] == "y" for request in served.requests)


def test_redirects_have_an_end(served: RangeServer) -> None:
    served.faults = [FaultRule("*", Fault(status=302, headers={"Location": "/a.dcm"}))]
    with pytest.raises(RequestError, match="too many redirects"):
        list_files([f"{served.url}/a.dcm"])
    served.faults = [FaultRule("*", Fault(status=302, headers={"Location": "file:///etc/passwd"}))]
    with pytest.raises(RequestError, match="no encrypted web server"):
        list_files([f"{served.url}/a.dcm"])


def test_credentials_are_sent(tmp_path: Path) -> None:
    from base64 import b64encode

    (tmp_path / "a.dcm").write_bytes(DATA)
    with RangeServer(tmp_path, basic=("me", SECRET)) as server:
        url = f"{server.url}/a.dcm"
        login = {"Authorization": f"Basic {b64encode(f'me:{SECRET}'.encode()).decode()}"}
        source = list_files([url], {"client_kwargs": {"headers": login}})[0].source()
        assert source.read(5, 5) == DATA[5:10]
        with pytest.raises(AuthenticationError, match="storage_options") as raised:
            list_files([url])
        assert raised.value.status == 401
    with RangeServer(tmp_path, tokens={SECRET}) as server:
        source = list_files([f"{server.url}/a.dcm"], {"headers": {"Authorization": f"Bearer {SECRET}"}})[0].source()
        assert source.read(5, 5) == DATA[5:10]


# -- listing


def test_a_server_that_answers_no_head(served: RangeServer) -> None:
    """A URL that is signed for GET is refused for HEAD."""
    for status in (403, 405, 501):
        served.faults = [FaultRule("*", Fault(status=status), method="HEAD")]
        served.counts.reset()
        source = list_files([f"{served.url}/a.dcm"])[0].source()
        assert source.size == len(DATA)
        assert served.counts.bytes < 100
        assert source.read(5, 5) == DATA[5:10]


def test_a_busy_server_is_listed_when_it_has_time(served: RangeServer) -> None:
    served.faults = [FaultRule("*", Fault(status=503), times=(1, 2))]
    assert list_files([f"{served.url}/a.dcm"])[0].size == len(DATA)


def test_a_page_with_all_kinds_of_links(served: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("a&b.dcm", "c d.dcm", "e.dcm", ".hidden.dcm"):
        (tmp_path / "x" / name).write_bytes(DATA[:10])
    page = (
        '<a href="?C=M;O=A">sort</a><a href="/">up</a><a href="../">up</a><a href="a&amp;b.dcm">1</a>'
        f'<a href="/x/c%20d.dcm">2</a><a HREF=\'{served.url}/x/e.dcm#top\'>3</a><a href=".hidden.dcm">4</a>'
        '<a href="http://elsewhere.example/x/f.dcm">5</a><a href="./">self</a><a name="x">6</a><a href="http://[">7</a>'
    )
    served.faults = [FaultRule("/x/", Fault(status=200, headers={"Content-Type": "text/html"}, body=page.encode()))]
    entries = list_files([f"{served.url}/x/"])
    assert [entry.uri.removeprefix(f"{served.url}/x/") for entry in entries] == ["a&b.dcm", "c%20d.dcm", "e.dcm"]


def test_folders_in_folders_have_an_end(served: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop", target_is_directory=True)
    with pytest.raises(RequestError, match="without an end"):
        list_files([f"{served.url}/loop/"])
    assert served.counts.requests < 100


def test_no_page_that_lists(served: RangeServer) -> None:
    with pytest.raises(SlideNotFoundError):
        list_files([f"{served.url}/nothing/"])
    served.faults = [FaultRule("*", Fault(status=403))]
    with pytest.raises(AuthenticationError):
        list_files([f"{served.url}/"])


@pytest.fixture
def silent() -> Iterator[str]:
    """Accepts connections, and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.timeout(20)  # left to themselves, filesystems try for minutes
@pytest.mark.parametrize("kind", ["gs", "gs file", "s3", "http", "simplecache", "zip gs", "zip http"])
def test_a_silent_server_is_not_waited_for(silent: str, kind: str) -> None:
    gs, s3 = {"token": "anon", "endpoint_url": silent}, {"endpoint_url": silent, "anon": True}
    uri, options = {
        "gs": ("gs://b/x/", gs),
        "gs file": ("gs://b/x.dcm", gs),
        "s3": ("s3://b/x/", s3),
        "http": (f"{silent}/x/", {}),
        "simplecache": (f"simplecache::{silent}/a.dcm", {}),
        "zip gs": ("zip://::gs://b/x.zip", {"gs": gs}),
        "zip http": (f"zip://::{silent}/x.zip", {}),
    }[kind]
    with mt.config.set(http_timeout=1, http_retries=0), pytest.raises(RequestError, match="sent nothing"):
        list_files([uri], options)


# -- filesystems that are not there


@pytest.mark.parametrize(
    ("uri", "extra"),
    [("s3://b/x", "s3"), ("gs://b/x", "gcs"), ("https://h/x", "http"), ("zip://a::s3://b/x.zip", "s3"),
     ("simplecache::gs://b/x", "gcs")],
)  # fmt: skip
def test_a_missing_package(uri: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        if name in ("s3", "gs", "https"):
            raise ImportError(f"Install something to access {name}")
        return known(name)

    known = fsspec.get_filesystem_class
    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'microtome\[{extra}\]'"):
        list_files([uri])


def test_what_fsspec_does_not_know() -> None:
    with pytest.raises(SlideNotFoundError, match="no filesystem 'nonsense'"):
        list_files(["nonsense://a/b"])
    with pytest.raises(OptionError, match="no such storage_options"):
        list_files(["s3://bucket/a/"], {"nonsense": 1, "anon": True})
    with pytest.raises(OptionError, match="not here"):
        list_files(["gs://bucket/a/"], {"token": "/nowhere/key.json"})


# -- other processes


def _read_in_child(source: Source, queue: Any) -> None:
    try:
        queue.put(source.read(5, 5))
    except BaseException as e:
        queue.put(f"{type(e).__name__}: {e}")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", ["nginx", "gs", "s3", "zip"])
def test_a_forked_process_reads(stores: Any, name: str, tmp_path: Path) -> None:
    if name == "zip":
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a.dcm", DATA)
        url, options = f"zip://a.dcm::file://{tmp_path}/x.zip", {}
    else:
        url, options = stores[name].write("forked/a.dcm", DATA), stores[name].storage_options
    source = list_files([url], options)[0].source()
    assert source.read(5, 5) == DATA[5:10]
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            source.read(0, 100)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        fork = multiprocessing.get_context("fork")
        for _ in range(3):
            queue = fork.SimpleQueue()
            child = fork.Process(target=_read_in_child, args=(source, queue))
            child.start()
            assert queue.get() == DATA[5:10]
            child.join(20)
            assert child.exitcode == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert source.read(5, 5) == DATA[5:10]


def test_a_recipe_travels_to_a_new_process(made: SyntheticSlide, s3: Store) -> None:
    import dask

    url = s3.put(made.folder)
    image = mt.open_slide(url, storage_options=s3.storage_options)["level0"].image
    part = image[10:200, 30:90]
    with dask.config.set({"multiprocessing.context": "spawn"}):
        got = part.data.compute(scheduler="processes", num_workers=1)
    np.testing.assert_array_equal(got, made.pixels(0)[10:200, 30:90])


def test_memory_is_that_of_a_process(made: SyntheticSlide) -> None:
    """Another process says that there is nothing, and does not show pixels of something else."""
    import dask

    fsspec.filesystem("memory").put(f"{made.folder}/", "/travel/", recursive=True)
    image = mt.open_slide("memory://travel/")["level0"].image
    np.testing.assert_array_equal(image.values, made.pixels(0))
    with dask.config.set({"multiprocessing.context": "spawn"}), pytest.raises(SlideNotFoundError, match="memory://"):
        image[:10].data.compute(scheduler="processes", num_workers=1)
    fsspec.filesystem("memory").rm("/travel", recursive=True)


def test_secrets_do_not_travel(made: SyntheticSlide, s3: Store, gs: Store) -> None:
    import pickle

    from google.oauth2.credentials import Credentials

    url = s3.put(made.folder)
    secret = {**s3.storage_options, "key": "test", "secret": "not-a-real-secret"}
    with pytest.raises(OptionError, match="does not leave this process"):
        pickle.dumps(mt.open_slide(url, storage_options=secret)["level0"].image.data)
    given = {**gs.storage_options, "token": Credentials(GS_TOKEN)}
    with pytest.raises(OptionError, match="does not leave this process"):
        pickle.dumps(mt.open_slide(gs.put(made.folder), storage_options=given)["level0"].image.data)
    pickle.dumps(mt.open_slide(url, storage_options=s3.storage_options)["level0"].image.data)
    entry = list_files([url], secret)[0]
    for thing in (entry, entry.source()):
        with pytest.raises(OptionError, match="does not leave this process"):
            pickle.dumps(thing)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("made") / "made", width=600, height=400, frame=128, codec="native")


def test_nothing_is_left_open(served: RangeServer) -> None:
    source_of(served).read(0, 10)
    forget_filesystems()
    gc.collect()  # a session that is not closed would be an error here
