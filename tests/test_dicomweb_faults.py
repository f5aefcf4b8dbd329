"""What goes wrong on the way: right pixels or a clear error every time, and nothing bad left behind.

A server that fails answers some requests for frames; what is read is compared with the same slide read from its files.
"""

from __future__ import annotations

import email.utils
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import microtome as mt
from microtome.errors import (
    AuthenticationError,
    CorruptFrameError,
    MicrotomeError,
    MissingFrameError,
    NotOnServerError,
    ProtocolError,
    RequestError,
    SlideNotFoundError,
)
from microtome.storage import retrying
from microtome.storage.dicomweb import service, session
from microtome.storage.dicomweb.session import Session
from microtome.testing import DICOMwebServer, Fault, Request, make_slide

Hook = Callable[[Request], Fault | None]

JPEG, J2K, NATIVE = "jpeg", "j2k-lossless", "native"
SIZE = {"width": 400, "height": 300, "frame": 64, "levels": 1, "associated": False, "seed": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for codec in (JPEG, J2K, NATIVE, "rle", "jpeg-ls", "jpeg-xl-lossless", "htj2k-lossless"):
        made[codec] = tmp_path_factory.mktemp(codec) / "slide"
        make_slide(made[codec], codec=codec, **SIZE)
    return made


@pytest.fixture(scope="module")
def pixels(folders: dict[str, Path]) -> dict[str, Any]:
    return {codec: mt.open_slide(folder, chunks=None)["level0"].image.values for codec, folder in folders.items()}


@pytest.fixture(scope="module")
def running(folders: dict[str, Path]) -> Iterator[dict[str, DICOMwebServer]]:
    servers = {codec: DICOMwebServer(folder).start() for codec, folder in folders.items()}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(autouse=True)
def quick(new_to_servers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody waits for long."""
    monkeypatch.setattr(retrying, "LONGEST_BACKOFF", 0.02)
    with mt.config.set(http_timeout=1, http_retries=2):
        yield


@pytest.fixture
def server(running: dict[str, DICOMwebServer]) -> Iterator[DICOMwebServer]:
    yield from prepared(running[JPEG])


def prepared(server: DICOMwebServer) -> Iterator[DICOMwebServer]:
    server.reset()
    yield server
    server.fault = None
    assert server.failures == []


def image(server: DICOMwebServer | str, **options: Any) -> Any:
    url = server if isinstance(server, str) else server.series_urls()[0]
    return mt.open_slide(url, chunks=None, **options)["level0"].image


def first(*faults: Fault) -> Hook:
    """These faults for the first requests for frames; then all is well."""
    left, lock = list(faults), threading.Lock()

    def fault(request: Request) -> Fault | None:
        with lock:
            return left.pop(0) if request.frames and left else None

    return fault


def always(fault: Fault) -> Hook:
    return lambda request: fault if request.frames else None


def outcome(read: Callable[[], Any]) -> tuple[Any, MicrotomeError | None]:
    try:
        return read(), None
    except MicrotomeError as e:
        return None, e


def asked(server: DICOMwebServer) -> int:
    return sum(bool(r.frames) for r in server.requests)


# -- faults that pass

AGAIN = {
    "reset behind the headers": Fault(reset_after=0),
    "reset in mid-body": Fault(reset_after=5000),
    "closed behind the headers": Fault(close_after=0),
    "closed in mid-body": Fault(close_after=5000),
    "closed in mid-body, chunked": Fault(close_after=5000, chunked=True),
    "closed in mid-body, no length": Fault(close_after=5000, connection_close=True),
    "closed in the headers of a part, no length": Fault(close_after=60, connection_close=True),
    "closed in the last delimiter": Fault(close_after=-1, connection_close=True),
    "stall in front of the answer": Fault(delay=1.4),
    "stall in mid-body": Fault(stall_after=5000, stall=1.4),
    "drip, too slow": Fault(drip=40, delay=0.0),
    "part cut, with lengths": Fault(truncate_part=(1, 7), part_lengths=True),
    "part cut, without lengths": Fault(truncate_part=(1, 7), part_lengths=False),
    "part cut to nothing": Fault(truncate_part=(1, 10**9)),
    "wrong boundary": Fault(wrong_boundary=True),
    "no gzip": Fault(headers={"Content-Encoding": "gzip"}),
    "408": Fault(status=408),
    "429": Fault(status=429),
    "429, soon": Fault(status=429, headers={"Retry-After": "0"}),
    "429, a date that is past": Fault(status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "429, nonsense": Fault(status=429, headers={"Retry-After": "soon"}),
    "500": Fault(status=500, body=b"oops"),
    "502": Fault(status=502, html=True),
    "503": Fault(status=503, headers={"Retry-After": "0"}),
    "504": Fault(status=504),
}


@pytest.mark.parametrize("name", AGAIN)
def test_what_passes_is_not_seen(name: str, server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    fault = AGAIN[name]
    if fault.close_after == -1:
        image(server).compute()
        total = next(r.sent for r in server.requests if r.frames)
        fault = Fault(close_after=total - 6, connection_close=True)
        mt.cache.clear()
        server.reset()
    server.fault = first(fault)
    np.testing.assert_array_equal(image(server).values, pixels[JPEG])
    assert asked(server) == 2


@pytest.mark.parametrize("codec", [J2K, NATIVE, "htj2k-lossless", "jpeg-ls"])
@pytest.mark.parametrize("lengths", [True, False])
def test_part_that_is_cut_is_fetched_anew(
    codec: str, lengths: bool, running: dict[str, DICOMwebServer], pixels: dict[str, Any]
) -> None:
    for server in prepared(running[codec]):
        server.fault = first(Fault(truncate_part=(2, 9), part_lengths=lengths))
        np.testing.assert_array_equal(image(server).values, pixels[codec])
        assert asked(server) == 2


@pytest.mark.parametrize("codec", ["rle", "jpeg-xl-lossless"])
@pytest.mark.parametrize("lost", [1, 20, 200, 10**9])
def test_part_that_is_cut_without_an_end_to_tell_is_no_pixels(
    codec: str, lost: int, running: dict[str, DICOMwebServer], pixels: dict[str, Any]
) -> None:
    """Frames of these kinds have no last marker: the decoder tells, and the bad frame does not stay."""
    for server in prepared(running[codec]):
        server.fault = first(Fault(truncate_part=(2, lost)))
        got, error = outcome(image(server).to_numpy)
        if error is None:
            np.testing.assert_array_equal(got, pixels[codec])
        else:
            assert isinstance(error, CorruptFrameError)
            assert "frame 3 of" in str(error)
        np.testing.assert_array_equal(image(server).values, pixels[codec])


def test_frame_of_garbage_does_not_stay(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    lazy = image(server)
    server.fault = first(Fault(status=200, body=b"garbage", headers={"Content-Type": "application/octet-stream"}))
    with pytest.raises(CorruptFrameError, match="frame 1 of"):
        lazy[:10, :10].compute()
    np.testing.assert_array_equal(lazy[:10, :10].values, pixels[JPEG][:10, :10])


def test_boundary_that_the_header_does_not_state(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    server.fault = always(Fault(headers={"Content-Type": 'multipart/related; type="application/octet-stream"'}))
    np.testing.assert_array_equal(image(server).values, pixels[JPEG])
    assert asked(server) == 1


def test_slow_but_steady_is_no_stall(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    lazy = image(server)
    server.fault = always(Fault(drip=3000))  # some two seconds in all, twice the limit
    np.testing.assert_array_equal(lazy[:64, :128].values, pixels[JPEG][:64, :128])
    assert asked(server) == 1


def test_retry_after_is_kept(server: DICOMwebServer, pixels: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = image(server)
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=slept.append)
    monkeypatch.setattr(session, "time", clock)
    for wait in ("20", lambda: email.utils.formatdate(time.time() + 21, usegmt=True)):
        mt.cache.clear()
        slept.clear()
        server.fault = first(Fault(status=429, headers={"Retry-After": wait if isinstance(wait, str) else wait()}))
        np.testing.assert_array_equal(lazy.values, pixels[JPEG])
        assert 19 < max(slept) < 22
        next(iter(service._services.values())).session._not_before = 0.0


def test_storm_of_refusals(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    lazy = image(server)
    times: dict[tuple[int, ...], int] = {}

    def fault(request: Request) -> Fault | None:
        times[request.frames] = times.get(request.frames, 0) + 1
        return Fault(status=429, headers={"Retry-After": "0"}) if request.frames and times[request.frames] < 3 else None

    server.fault = fault
    with mt.config.set(frames_per_request=4), ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(lambda y: lazy[y : y + 30].values, range(0, 300, 30)))
    np.testing.assert_array_equal(np.concatenate(rows), pixels[JPEG])


# -- faults that do not

FOREVER: dict[str, tuple[Fault, type[Exception], str]] = {
    "closed in mid-body": (Fault(close_after=5000), RequestError, r"middle of the answer.*3 tries"),
    "reset": (Fault(reset_after=5000), RequestError, r"reset.*3 tries"),
    "no length": (Fault(close_after=5000, connection_close=True), ProtocolError, r"cut short.*3 tries"),
    "wrong boundary": (Fault(wrong_boundary=True), ProtocolError, "boundary"),
    "no gzip": (Fault(headers={"Content-Encoding": "gzip"}), ProtocolError, "compressed, and is damaged"),
    "part cut": (Fault(truncate_part=(0, 5)), ProtocolError, r"frame 1 arrive.* cut short"),
    "page": (Fault(html=True), ProtocolError, "text/html came in place of frames 1, 2, 3"),
    "json": (
        Fault(status=200, body=b"{}", headers={"Content-Type": "application/json"}), ProtocolError, "application/json",
    ),
    "204": (Fault(status=204), ProtocolError, "no content for frames 1, 2"),
    "403": (Fault(status=403, body=b"not you"), AuthenticationError, "HTTP 403: not you"),
    "408": (Fault(status=408, body=b"late"), RequestError, r"HTTP 408: late \(3 tries"),
    "429": (Fault(status=429, body=b"slow down"), RequestError, "HTTP 429: slow down"),
    "429, long": (Fault(status=429, headers={"Retry-After": "3600"}), RequestError, "asks to wait 3600 s"),
    "500": (Fault(status=500, body=b'{"Message": "disk full"}'), RequestError, "HTTP 500: disk full"),
    "502": (Fault(status=502, html=True), RequestError, "HTTP 502: Proxy error"),
    "503": (Fault(status=503), RequestError, "HTTP 503"),
    "504": (Fault(status=504), RequestError, "HTTP 504"),
    "410": (Fault(status=410), MissingFrameError, "frame 1 of 35"),
    "404": (Fault(status=404), MissingFrameError, "frame 1 of 35"),
    "part missing": (Fault(drop_parts=(3,)), ProtocolError, "of 35 frames asked for, 4 did not come"),
    "part missing, no locations": (
        Fault(drop_parts=(3,), content_location=False), ProtocolError, r"34 parts came for 35 frames \(1, 2, 3",
    ),
    "part twice": (Fault(duplicate_parts=(3,)), ProtocolError, "4 came twice"),
    "part twice, no locations": (Fault(duplicate_parts=(3,), content_location=False), ProtocolError, "36 parts came"),
    "part in place of another": (Fault(duplicate_parts=(3,), drop_parts=(4,)), ProtocolError, "5 did not come; 4 came"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREVER)
def test_what_stays_is_told(name: str, server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    fault, kind, words = FOREVER[name]
    lazy = image(server)
    server.fault = always(fault)
    with pytest.raises(kind, match=words) as caught:
        lazy.compute()
    assert isinstance(caught.value, MicrotomeError)
    text = str(caught.value)
    assert server.series_urls()[0] in text
    if isinstance(caught.value, RequestError) and (fault.status or 0) >= 300:
        assert caught.value.status == fault.status
    server.fault = None
    np.testing.assert_array_equal(lazy.values, pixels[JPEG])


def test_few_tries_for_what_hardly_passes(server: DICOMwebServer) -> None:
    lazy = image(server)[:10, :10]
    server.fault = always(Fault(status=503))
    with mt.config.set(http_retries=4), pytest.raises(RequestError, match="5 tries"):
        lazy.compute()
    assert asked(server) == 5
    server.fault = always(Fault(status=500))
    with mt.config.set(http_retries=4), pytest.raises(RequestError, match="3 tries"):
        lazy.compute()
    server.fault = always(Fault(status=503))
    server.reset()
    with mt.config.set(http_retries=0), pytest.raises(RequestError, match="HTTP 503"):
        lazy.compute()
    assert asked(server) == 1


def test_order_is_by_location(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    server.fault = always(Fault(reverse_parts=True))
    np.testing.assert_array_equal(image(server).values, pixels[JPEG])
    assert asked(server) == 1


def test_one_frame_is_not_there(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    """The others come, and only the one that is missing is filled."""
    server.fault = lambda request: Fault(status=404, body=b"no such frame") if 9 in request.frames else None
    with pytest.raises(MissingFrameError, match="frame 9 of 35"):
        image(server).compute()
    got = image(server, missing="fill", fill=7).values
    hole = np.zeros(got.shape, bool)
    hole[64:128, 64:128] = True  # seven tiles in a row
    np.testing.assert_array_equal(got[~hole], pixels[JPEG][~hole])
    assert (got[hole] == 7).all()
    server.fault = None
    np.testing.assert_array_equal(image(server, missing="fill", fill=7).values, pixels[JPEG])


def test_answer_without_an_end_is_bounded(server: DICOMwebServer) -> None:
    lazy = image(server)[:10, :10]
    server.fault = always(
        Fault(status=200, body=bytes(4 << 20), headers={"Content-Type": "application/octet-stream"}, chunked=True)
    )
    with pytest.raises(ProtocolError, match="longer than"):
        lazy.compute()
    assert all(r.sent < 4 << 20 or r.status == 200 for r in server.requests)


# -- connections


class Relay:
    """Hands connections on to a server, after it has done something to the first ones."""

    def __init__(self, server: DICOMwebServer, *deeds: Callable[[socket.socket], None]) -> None:
        self.deeds = list(deeds)
        self.there = (urlsplit(server.url).hostname, urlsplit(server.url).port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        here = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = server.series_urls()[0].replace(f"{self.there[0]}:{self.there[1]}", here)
        self.seen = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.seen += 1
            deed = self.deeds.pop(0) if self.deeds else None
            threading.Thread(target=self.handle, args=(connection, deed), daemon=True).start()

    def handle(self, connection: socket.socket, deed: Callable[[socket.socket], None] | None) -> None:
        with connection:
            if deed is not None:
                deed(connection)
                return
            with socket.create_connection(self.there) as other:
                back = threading.Thread(target=self.pump, args=(other, connection), daemon=True)
                back.start()
                self.pump(connection, other)
                back.join()

    def pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self.listener.close()


def hang_up(connection: socket.socket) -> None:
    connection.recv(1 << 16)


def reset(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def no_http(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"220 smtp ready\r\n")


def half_a_header(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty")


@pytest.mark.parametrize("deed", [hang_up, reset, no_http, half_a_header])
def test_no_answer(deed: Callable[[socket.socket], None], server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    relay = Relay(server, deed)
    try:
        np.testing.assert_array_equal(image(relay.url).values, pixels[JPEG])
        assert relay.seen >= 2
        service._services.clear()
        relay.deeds = [deed] * 9
        with pytest.raises(MicrotomeError, match=r"127\.0\.0\.1"):
            image(relay.url)
    finally:
        relay.close()


def test_nobody_listens(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    lazy = image(server)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RequestError, match=rf"127.0.0.1:{port}/.*[Cc]onnection refused.*3 tries"):
        image(f"http://127.0.0.1:{port}/dicomWeb/studies/1.2/series/3.4")
    np.testing.assert_array_equal(lazy.values, pixels[JPEG])


def test_server_dies_and_comes_back(folders: dict[str, Path], pixels: dict[str, Any]) -> None:
    with DICOMwebServer(folders[JPEG]) as server:
        port = urlsplit(server.url).port
        assert port
        lazy = image(server)
        lazy[:10, :10].compute()
    with pytest.raises(RequestError, match="refused"):
        lazy.compute()
    with DICOMwebServer(folders[JPEG], port=port):
        np.testing.assert_array_equal(lazy.values, pixels[JPEG])


def test_many_who_wait_are_told_at_once(folders: dict[str, Path]) -> None:
    """Who waits for frames that another fetches does not try for itself, one by one, when there is no server."""
    with DICOMwebServer(folders[JPEG]) as server:
        lazy = image(server)
    tries = []

    def count(self: Session, *args: Any, **options: Any) -> Any:
        tries.append(1)
        started.wait(5)
        return original(self, *args, **options)

    original, started = Session.request, threading.Event()
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(16) as threads:
        patch.setattr(Session, "request", count)
        futures = [threads.submit(lambda: lazy.values) for _ in range(16)]
        deadline = time.monotonic() + 5
        while mt.cache.statistics().hits < 15 * 35 and time.monotonic() < deadline:
            time.sleep(0.01)
        started.set()
        for future in futures:
            with pytest.raises(RequestError, match="refused"):
                future.result(60)
    assert len(tries) < 16


# -- credentials


def test_token_expires_in_mid_read(folders: dict[str, Path], pixels: dict[str, Any]) -> None:
    tokens = ["one"]

    def current() -> str:
        return tokens[-1]

    with DICOMwebServer(folders[JPEG], tokens=tokens, token_lifetime=6) as server:
        lazy = image(server, credentials=mt.credentials.bearer(current))

        def fault(request: Request) -> Fault | None:  # a new token is there before the old one is refused
            if len(server.requests) % 5 == 0:
                tokens.append(f"token{len(server.requests)}")
            return None

        server.fault = fault
        with mt.config.set(frames_per_request=1, requests_per_server=1, decode_threads=1):
            np.testing.assert_array_equal(lazy.values, pixels[JPEG])
        assert any(r.status == 401 for r in server.requests)


def test_token_of_the_environment_is_renewed(
    folders: dict[str, Path], pixels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ["old"]
    monkeypatch.setenv("SLIDES_TOKEN", "old")
    with DICOMwebServer(folders[JPEG], tokens=tokens) as server:
        lazy = image(server, credentials=mt.credentials.bearer(env="SLIDES_TOKEN"))
        tokens[:] = ["new"]

        def fault(request: Request) -> None:
            monkeypatch.setenv("SLIDES_TOKEN", "new")

        server.fault = fault
        np.testing.assert_array_equal(lazy.values, pixels[JPEG])
        assert [r.status for r in server.requests if r.frames] == [401, 200]
        tokens[:] = ["other"]
        mt.cache.clear()
        with pytest.raises(AuthenticationError, match="401") as caught:
            lazy.compute()
        assert caught.value.status == 401
        tokens[:] = ["new"]
        np.testing.assert_array_equal(lazy.values, pixels[JPEG])


# -- redirects


def moved(server: DICOMwebServer, to: str, status: int = 307) -> Hook:
    return lambda r: Fault(status=status, headers={"Location": to.replace("PATH", r.path)}) if r.frames else None


def test_redirects_within_the_server_are_signed(folders: dict[str, Path], pixels: dict[str, Any]) -> None:
    with DICOMwebServer(folders[JPEG], tokens=["t"]) as server:
        lazy = image(server, credentials=mt.credentials.bearer("t"))
        left = [1]

        def fault(request: Request) -> Fault | None:
            return (
                Fault(status=302, headers={"Location": request.path})
                if request.frames and left and left.pop()
                else None
            )

        server.fault = fault
        np.testing.assert_array_equal(lazy.values, pixels[JPEG])
        assert [r.authorized for r in server.requests if r.frames] == [True, True]


def test_redirects_to_others(folders: dict[str, Path], pixels: dict[str, Any]) -> None:
    """Another host is not asked unless it is allowed, and then without credentials."""
    with DICOMwebServer(folders[JPEG], tokens=["t"]) as server, DICOMwebServer(folders[JPEG]) as other:
        there = f"http://localhost:{urlsplit(other.url).port}PATH?signature=s3cret"
        server.fault = moved(server, there)
        token = mt.credentials.bearer("t")
        with pytest.raises(RequestError, match=r"localhost.*not followed.*allow_hosts") as caught:
            image(server, credentials=token).compute()
        assert "s3cret" not in str(caught.value)
        assert other.requests == []
        lazy = image(server, credentials=token, storage_options={"allow_hosts": ["localhost"]})
        np.testing.assert_array_equal(lazy.values, pixels[JPEG])
        assert len(other.requests) == 1
        assert not other.requests[0].authorized


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("PATH", "too many redirects"),
        ("file:///etc/passwd", "no web server"),
        ("http://[::1/x", "no web server"),
        ("http://127.0.0.1:99999/x", "no web server"),
        ("https://127.0.0.1/x", "another origin"),
        ("//elsewhere.example/x", "elsewhere.example"),
        ("http://user:pass@elsewhere.example/x", "elsewhere.example"),
    ],
)
def test_redirects_that_lead_nowhere(to: str, words: str, server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    lazy = image(server)
    server.fault = moved(server, to)
    with pytest.raises(RequestError, match=words) as caught:
        lazy.compute()
    assert "pass@" not in str(caught.value)
    assert asked(server) <= 7
    server.fault = None
    np.testing.assert_array_equal(lazy.values, pixels[JPEG])


def test_redirect_whose_body_has_no_end(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    left = [1]

    def fault(request: Request) -> Fault | None:
        if not (request.frames and left and left.pop()):
            return None
        return Fault(status=302, headers={"Location": request.path}, body=bytes(100_000), drip=500)

    server.fault = fault
    np.testing.assert_array_equal(image(server).values, pixels[JPEG])


def test_encrypted_twin_is_the_same_server() -> None:
    from microtome.storage.dicomweb.address import same_origin

    assert same_origin("https://host/x", "http://host/dicomWeb")
    assert not same_origin("http://host/x", "https://host/dicomWeb")
    assert not same_origin("https://host:8443/x", "http://host/dicomWeb")


# -- metadata


@pytest.mark.parametrize(
    "fault",
    [
        Fault(close_after=900),
        Fault(close_after=900, chunked=True),
        Fault(close_after=900, connection_close=True),
        Fault(close_after=0, connection_close=True),
        Fault(reset_after=900),
        Fault(status=503),
        Fault(delay=1.4),
        Fault(headers={"Content-Encoding": "gzip"}, damage=40),
    ],
    ids=repr,
)
def test_metadata_that_are_cut_are_asked_for_again(
    fault: Fault, server: DICOMwebServer, pixels: dict[str, Any]
) -> None:
    left = [fault]
    server.fault = lambda request: left.pop() if request.path.endswith("/metadata") and left else None
    np.testing.assert_array_equal(image(server).values, pixels[JPEG])
    assert left == []


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault(close_after=900, connection_close=True), ProtocolError, "cut short.*3 tries"),
        (Fault(close_after=900), RequestError, "middle of the answer.*3 tries"),
        (Fault(html=True), ProtocolError, "text/html came in place of application/dicom"),
        (Fault(status=200, body=b"[{]}"), MicrotomeError, "damaged"),
        (Fault(status=200, body=b"[]"), SlideNotFoundError, "no instances"),
        (Fault(status=204), SlideNotFoundError, "no content"),
        (Fault(status=404, body=b"unknown series"), SlideNotFoundError, "unknown series"),
        (Fault(status=403, body=b"go away"), AuthenticationError, "go away"),
        (Fault(status=503, body=b"busy"), RequestError, "busy"),
    ],
    ids=repr,
)
def test_metadata_that_never_come(fault: Fault, kind: type[Exception], words: str, server: DICOMwebServer) -> None:
    server.fault = lambda request: fault if request.method == "GET" else None
    with pytest.raises(kind, match=words) as caught:
        image(server)
    assert server.series_urls()[0] in str(caught.value)


def test_slow_metadata(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    server.fault = lambda request: Fault(drip=6000) if request.path.endswith("/metadata") else None
    np.testing.assert_array_equal(image(server).values, pixels[JPEG])


# -- all of it at once

KINDS = [
    *(fault for fault in AGAIN.values() if not (fault.delay or fault.stall or fault.drip or fault.close_after == -1)),
    *(fault for fault, _, _ in FOREVER.values() if fault.status not in (400, 404, 410)),
]


@pytest.mark.parametrize("seed", range(8))
def test_any_faults_in_any_order(seed: int, running: dict[str, DICOMwebServer], pixels: dict[str, Any]) -> None:
    """Eight threads read all of a slide: right pixels, or an error of ours; right pixels when all is well again."""
    codec = (JPEG, J2K, NATIVE, "rle")[seed % 4]
    server, chance, lock = running[codec], random.Random(seed), threading.Lock()
    server.reset()
    lazy = image(server, read_ahead=("none", "requests", "latency")[seed % 3])
    image(server)[:8, :8].compute()  # what the server can do is known: a burst of 500 is not taken for an inability

    def fault(request: Request) -> Fault | None:
        with lock:
            return chance.choice(KINDS) if chance.random() < 0.3 else None

    def read(y: int, x: int) -> bool:
        got, error = outcome(lambda: lazy[y : y + 70, x : x + 90].values)
        if error is not None:
            assert isinstance(error, RequestError | CorruptFrameError | MissingFrameError)
            return False
        np.testing.assert_array_equal(got, pixels[codec][y : y + 70, x : x + 90])
        return True

    server.fault = fault
    try:
        with mt.config.set(frames_per_request=5), ThreadPoolExecutor(8) as threads:
            for _ in range(3):
                places = [(y, x) for y in range(0, 300, 50) for x in range(0, 400, 60)]
                done = list(threads.map(lambda place: read(*place), places))
                assert any(done)
                mt.cache.clear()
    finally:
        server.fault = None
    np.testing.assert_array_equal(lazy.values, pixels[codec])


def test_errors_of_one_do_not_end_others(server: DICOMwebServer, pixels: dict[str, Any]) -> None:
    """Requests that are made of several callers' fail for the one whose frame is bad, not for the others."""
    lazy = image(server)
    lazy[:8, :8].compute()
    server.fault = lambda request: Fault(status=404) if 9 in request.frames else Fault(delay=0.02)
    with mt.config.set(requests_per_server=2), ThreadPoolExecutor(16) as threads:
        places = [(y, x) for y in range(0, 300, 64) for x in range(0, 400, 64)]
        futures = {p: threads.submit(lambda p=p: lazy[p[0] : p[0] + 8, p[1] : p[1] + 8].values) for p in places}
        for (y, x), future in futures.items():
            if (y, x) == (64, 64):
                assert isinstance(future.exception(60), MissingFrameError | NotOnServerError)
            else:
                np.testing.assert_array_equal(future.result(60), pixels[JPEG][y : y + 8, x : x + 8])
