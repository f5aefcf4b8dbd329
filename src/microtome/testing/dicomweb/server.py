"""DICOMwebServer: the public face of the server."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any

from microtome.errors import OptionError
from microtome.testing.dicomweb.auth import Gate
from microtome.testing.dicomweb.dialects import dialect_named
from microtome.testing.dicomweb.faults import Fault
from microtome.testing.dicomweb.message import Request
from microtome.testing.dicomweb.wire import Handler

if TYPE_CHECKING:
    from typing import Self

    from microtome.testing.dicomweb.services import Services

__all__ = ["DICOMwebServer", "Listener"]

StrPath = str | os.PathLike[str]

LONGEST_LOG = 200_000


class Listener(ThreadingHTTPServer):
    """Accepts connections, a thread for each."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: DICOMwebServer, address: tuple[str, int]) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server who we are, as the base class does."""
        TCPServer.server_bind(self)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and know of it meanwhile."""
        with self._lock:
            self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)

    def handle_error(self, *_: Any) -> None:
        """Say nothing of connections that clients broke."""

    def close_all(self) -> None:
        """End every connection, and wait a moment for their threads."""
        with self._lock:
            open_now = list(self._open)
        for connection in open_now:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        deadline = time.monotonic() + 2
        while self._open and time.monotonic() < deadline:
            time.sleep(0.005)


class DICOMwebServer:
    """A DICOMweb server over files: QIDO-RS, WADO-RS and, if asked for, STOW-RS (PS3.18).

    It shares no code with what reads slides, so errors of the one do not hide errors of the other. It answers in the
    dialects of several servers, logs what it is asked, and fails on demand.

    Parameters
    ----------
    source
        A file or folder of DICOM instances, or several.
    host, port
        Where to listen; port 0 is any free one.
    dialect
        Which server to be like: "standard", "google", "orthanc", or "minimal".
    basic
        (user, password) to ask for.
    tokens
        Accepted bearer tokens. The collection is looked at anew for each request, so tokens may come and go.
    token_lifetime
        Requests that a token is good for; it is refused from then on.
    latency
        Seconds before each answer.
    bandwidth
        Bytes per second of each connection; None for as fast as it goes.
    associated
        Whether labels and overviews, which carry names, are shown.
    stow
        Whether instances may be stored: in the first folder of the source.
    allowed_hosts
        Names under which the server may be called, besides its own address and localhost.
    root
        Path of the services; None for that of the dialect, which is /dicomWeb for all but "google".

    Attributes
    ----------
    requests
        Log of :class:`Request`, oldest first; of the last hundred thousand at least.
    connections
        TCP connections accepted.
    bytes_sent
        Bytes of all bodies.
    failures
        Tracebacks of errors of the server itself, which clients see as status 500.
    fault
        Asked for each request before it is answered; returns a :class:`Fault`, or None for an answer that is well.
    max_body
        The most bytes of a request.

    Raises
    ------
    SlideNotFoundError
        A source is not there.
    NotASlideError
        It is a file and no DICOM instance.
    OptionError
        Options that contradict each other.

    Examples
    --------
    >>> with DICOMwebServer("slide") as server:  # doctest: +SKIP
    ...     slide = mt.open_slide(server.series_urls()[0])
    """

    def __init__(
        self,
        source: StrPath | Sequence[StrPath],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        dialect: str = "standard",
        basic: tuple[str, str] | None = None,
        tokens: Collection[str] | None = None,
        token_lifetime: int | None = None,
        latency: float = 0.0,
        bandwidth: float | None = None,
        associated: bool = False,
        stow: bool = False,
        allowed_hosts: Collection[str] | None = None,
        root: str | None = None,
    ) -> None:
        from microtome.testing.dicomweb.archive import Archive
        from microtome.testing.dicomweb.services import Services

        sources = [source] if isinstance(source, str | os.PathLike) else list(source)
        self.dialect = dialect_named(dialect)
        self.root = "/" + (self.dialect.root if root is None else root).strip("/")
        self.gate = Gate(host, allowed_hosts or (), basic, tokens, token_lifetime)
        self.archive = Archive([Path(s) for s in sources], associated)
        if stow and self.archive.folder is None:
            raise OptionError("stow=True stores into the first folder of the source, which has none")
        self.services: Services = Services(self.archive, self.dialect, self.root, stow)
        self.stow, self.latency, self.bandwidth = stow, latency, bandwidth
        self.max_body = 512 << 20
        self.fault: Callable[[Request], Fault | None] | None = None
        self.requests: list[Request] = []
        self.failures: list[str] = []
        self.connections = self.bytes_sent = 0
        self._host, self._port = host, port
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None

    # -- life

    def start(self) -> Self:
        """Listen, and answer in threads of its own."""
        if self._listener is None:
            self._stopping.clear()
            self._listener = Listener(self, (self._host, self._port))
            self._thread = threading.Thread(
                target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, name="dicomweb", daemon=True
            )
            self._thread.start()
        return self

    def stop(self) -> None:
        """End all connections, and listen no more."""
        if self._listener is not None and self._thread is not None:
            self._stopping.set()
            self._listener.shutdown()
            self._thread.join()
            self._listener.server_close()
            self._listener.close_all()
            self._listener = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what it has

    @property
    def url(self) -> str:
        """Address of the services."""
        if self._listener is None:
            raise OptionError("the server has no address before it is started: use it in a with statement")
        host, port = self._listener.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{name}:{port}{self.root}"

    def study_urls(self) -> list[str]:
        """One for each study."""
        studies = dict.fromkeys(i.study for i in self.archive.instances())
        return [f"{self.url}/studies/{study}" for study in studies]

    def series_urls(self) -> list[str]:
        """One for each series."""
        series = dict.fromkeys((i.study, i.series) for i in self.archive.instances())
        return [f"{self.url}/studies/{study}/series/{one}" for study, one in series]

    @property
    def page(self) -> int:
        """The most results of one search; those who want more have to ask again. 100 at first."""
        return self.services.page

    @page.setter
    def page(self, most: int) -> None:
        self.services.page = most

    def reset(self) -> None:
        """Forget the log, and count from zero."""
        with self._lock:
            self.requests, self.failures = [], []
            self.connections = self.bytes_sent = 0

    # -- for the connections

    def _connected(self) -> int:
        with self._lock:
            self.connections += 1
            return self.connections

    def _log(self, request: Request) -> None:
        with self._lock:
            if len(self.requests) >= LONGEST_LOG:
                del self.requests[: LONGEST_LOG // 2]
            self.requests.append(request)

    def _failed(self, trace: str) -> None:
        with self._lock:
            self.failures = [*self.failures[-99:], trace]

    def _sending(self, request: Request, n: int) -> None:
        with self._lock:
            request.sent += n
            self.bytes_sent += n

    def _pause(self, seconds: float) -> None:
        """Sleep, but not longer than the server runs."""
        if seconds > 0:
            self._stopping.wait(seconds)
