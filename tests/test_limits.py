"""Places among requests: how many at a time, who is next, and what takes them back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import microtome as mt
from microtome.errors import OptionError
from microtome.storage import limits
from microtome.storage.limits import Places
from microtome.testing import SyntheticSlide, make_slide
from microtome.testing.dicomweb import DICOMwebServer, Fault

A, B, C = "https://a:443", "https://b:443", "gs://c"


class Under:
    """Counts what is under way, at the most."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now: dict[str, int] = {}
        self.peak: dict[str, int] = {}

    @contextmanager
    def way(self, server: str) -> Iterator[None]:
        with self.lock:
            for name in (server, "all"):
                self.now[name] = self.now.get(name, 0) + 1
                self.peak[name] = max(self.peak.get(name, 0), self.now[name])
        try:
            yield
        finally:
            with self.lock:
                for name in (server, "all"):
                    self.now[name] -= 1


def wait_until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def waiting() -> int:
    return len(limits._requests.places._waiting)


@contextmanager
def held(*servers: str) -> Iterator[list[threading.Event]]:
    """Threads that hold a place each until their event is set."""
    leave = [threading.Event() for _ in servers]
    inside = [threading.Event() for _ in servers]

    def hold(i: int) -> None:
        with limits.request(servers[i]):
            inside[i].set()
            leave[i].wait(20)

    with ThreadPoolExecutor(len(servers)) as threads:
        done = [threads.submit(hold, i) for i in range(len(servers))]
        try:
            assert all(event.wait(10) for event in inside)
            yield leave
        finally:
            for event in leave:
                event.set()
            for future in done:
                future.result()


def test_never_more_than_allowed_and_as_many() -> None:
    under = Under()

    def ask(i: int) -> None:
        server = (A, B, C)[i % 3]
        with limits.request(server), under.way(server):
            time.sleep(0.002)

    with mt.config.set(requests=5, requests_per_server=2), ThreadPoolExecutor(24) as threads:
        list(threads.map(ask, range(300)))
    assert under.peak == {A: 2, B: 2, C: 2, "all": 5}
    assert not limits._requests.places._held


def test_who_waited_longest_is_first() -> None:
    order: list[int] = []

    def ask(i: int) -> None:
        with limits.request(A):
            order.append(i)

    with mt.config.set(requests_per_server=1), ThreadPoolExecutor(20) as threads:
        with held(A):
            done = []
            for i in range(20):
                done.append(threads.submit(ask, i))
                wait_until(lambda i=i: waiting() == i + 1)
        for future in done:
            future.result()
    assert order == list(range(20))


def test_a_busy_server_stands_in_nobodys_way() -> None:
    def ask() -> None:
        with limits.request(A):
            pass

    with mt.config.set(requests_per_server=1, requests=3), ThreadPoolExecutor(1) as threads, held(A):
        waits = threads.submit(ask)
        wait_until(waiting)
        with held(B, C):
            assert not waits.done()


def test_settings_may_change_while_threads_wait() -> None:
    with mt.config.set(requests_per_server=1), ThreadPoolExecutor(3) as threads, held(A):
        inside = threading.Barrier(4)

        def ask() -> None:
            with limits.request(A):
                inside.wait(10)

        done = [threads.submit(ask) for _ in range(3)]
        wait_until(lambda: waiting() == 3)
        mt.config.set(requests_per_server=4)
        inside.wait(10)
        for future in done:
            future.result()
    under = Under()

    def ask_again(_: int) -> None:
        with limits.request(A), under.way(A):
            time.sleep(0.001)

    with mt.config.set(requests_per_server=2), ThreadPoolExecutor(8) as threads:
        list(threads.map(ask_again, range(40)))
    assert under.peak[A] == 2


def test_a_thread_does_not_wait_for_itself() -> None:
    with mt.config.set(requests=1, requests_per_server=1), limits.request(A):
        with limits.request(A), limits.request(B):
            pass
        assert limits._requests.places._held == {A: 1}
    assert not limits._requests.places._held


def test_errors_give_places_back() -> None:
    with mt.config.set(requests_per_server=1):
        for _ in range(3):
            with pytest.raises(ValueError), limits.request(A):
                raise ValueError
    assert not limits._requests.places._held


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_who_is_interrupted_waits_no_more() -> None:
    with mt.config.set(requests_per_server=1), held(A):
        timer = threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt), limits.request(A):
            pytest.fail("two places")
        timer.join()
        assert not waiting()
    with mt.config.set(requests_per_server=1), limits.request(A):
        pass
    assert not limits._requests.places._held


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_begins_anew() -> None:
    def shared(server: str) -> Any:
        raise AssertionError("a lease of another process was asked for")

    with mt.config.set(requests_per_server=1), held(A), limits.request(B):
        limits.share(shared)
        try:
            pid = os.fork()
        finally:
            if pid:
                limits.share(None)
        if pid == 0:
            status = 1
            try:
                signal.alarm(10)
                for _ in range(2):
                    with limits.request(A), limits.request(A):
                        pass
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert limits._requests.places._held == {A: 1, B: 1}


def test_a_place_that_is_given_back_after_a_fork_is_not_counted() -> None:
    places = Places(lambda: (1, 1))
    with places.take():
        places.renew()  # as in the new process
    assert not places._held
    with places.take() as taken:
        assert taken


def test_the_share_of_others_is_asked_for_last() -> None:
    under = Under()
    with mt.config.set(requests_per_server=2), ThreadPoolExecutor(6) as threads:
        limits.share(under.way)
        try:

            def ask(_: int) -> None:
                with limits.request(A), limits.request(A):
                    time.sleep(0.002)

            list(threads.map(ask, range(60)))
        finally:
            limits.share(None)
    assert under.peak == {A: 2, "all": 2}  # once a request, and never by those who wait for a place


# Servers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("slide"), width=1000, height=900, frame=32, codec="jpeg-ls")


def in_parallel(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as threads:
        futures: list[Future[Any]] = [threads.submit(call) for call in calls]
        return [future.result() for future in futures]


@pytest.mark.usefixtures("new_to_servers")
def test_requests_to_a_server_are_so_many(made: SyntheticSlide) -> None:
    with DICOMwebServer(made.folder, latency=0.03) as one, DICOMwebServer(made.folder, latency=0.03) as other:
        images = [mt.open_slide(s.series_urls()[0], chunks=None)["level0"].image for s in (one, other)]
        for server in (one, other):
            server.reset()
        with mt.config.set(requests_per_server=3, frames_per_request=2):
            corners = [(i, y) for y in range(0, 800, 50) for i in (0, 1)]
            in_parallel([lambda i=i, y=y: images[i][y : y + 40, y : y + 40].values for i, y in corners])
        assert one.peak == other.peak == 3
        assert one.connections <= 3
        mt.cache.clear()
        one.reset()
        with mt.config.set(requests=1):
            in_parallel([lambda y=y: images[0][y : y + 40].values for y in range(0, 800, 200)])
        assert one.peak == 1
        mt.cache.clear()
        one.reset()
        with mt.config.set(requests_per_server=12, frames_per_request=1):  # more than there were connections
            images[0][:300].values  # noqa: B018
        assert 8 < one.peak <= 12


@pytest.mark.usefixtures("new_to_servers")
def test_places_are_given_back_while_a_server_is_waited_for(made: SyntheticSlide) -> None:
    """Retries, redirects and renewed credentials: with one place for all, each must be there for the next try."""
    tokens = ["t-0"]
    current = iter(range(1, 1000))

    def token() -> str:
        tokens[:] = [f"t-{next(current)}"]
        return tokens[0]

    count = iter(range(10_000))

    def fault(request: Any) -> Fault | None:
        n = next(count)
        if n % 5 == 1:
            return Fault(status=503)
        if n % 5 == 3 and "again" not in request.query:
            return Fault(status=307, headers={"Location": f"{request.path}?again=1"})
        return None

    with DICOMwebServer(made.folder, tokens=tokens, token_lifetime=3) as server:
        credentials = mt.credentials.bearer(token)
        with mt.config.set(requests=1, requests_per_server=1, frames_per_request=4):
            image = mt.open_slide(server.series_urls()[0], credentials=credentials, chunks=None)["level0"].image
            server.fault = fault
            calls = [lambda y=y: image[y : y + 32, :200].values for y in range(0, 320, 32)]
            pieces = in_parallel(calls)
        assert {401, 503, 307, 200} <= {request.status for request in server.requests}
        assert server.peak == 1
    for i, piece in enumerate(pieces):
        np.testing.assert_array_equal(piece, made.pixels(0)[32 * i : 32 * i + 32, :200])


@pytest.mark.usefixtures("new_to_servers")
def test_few_threads_decode_what_many_fetched(made: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.lazy.frames import InstanceReader

    under = Under()
    paste = InstanceReader._paste

    def slow(self: Any, *arguments: Any) -> None:
        with under.way("decoding"):
            time.sleep(0.003)
            paste(self, *arguments)

    monkeypatch.setattr(InstanceReader, "_paste", slow)
    with DICOMwebServer(made.folder) as server:
        image = mt.open_slide(server.series_urls()[0], chunks=None)["level0"].image
        with mt.config.set(frames_per_request=4, decode_threads=2):
            image[:320].values  # noqa: B018
        assert under.peak["decoding"] == 2
        assert server.peak > 2


def test_settings() -> None:
    for name in ("requests", "requests_per_server"):
        with pytest.raises(OptionError, match=name):
            mt.config.set(**{name: 0})
    before = mt.config.get().decode_threads
    with mt.config.set(decode_threads=before + 3):
        assert mt.config.get().decode_threads == before + 3
        with mt.config.set(decode_threads=0):
            assert mt.config.get().decode_threads == before
        assert mt.config.get().decode_threads == before + 3
    assert mt.config.get().decode_threads == before
