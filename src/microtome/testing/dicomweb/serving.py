"""A server's life: listening, its log, its counts, and what it waits for; whatever it is that it serves."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from microtome.errors import OptionError
from microtome.testing.dicomweb.auth import Gate
from microtome.testing.dicomweb.dialects import Dialect
from microtome.testing.dicomweb.faults import Fault
from microtome.testing.dicomweb.message import Answer, Request
from microtome.testing.dicomweb.wire import Handler

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Answering", "Listener", "Server"]

LONGEST_LOG = 200_000


class Listener(ThreadingHTTPServer):
    """Accepts connections, a thread for each."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: Server, address: tuple[str, int]) -> None:
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


class Answering(Protocol):
    """What a server serves."""

    def answer(self, request: Request, base: str, body: bytes) -> Answer:
        """Answer a request; ``base`` is the URL of the services."""
        ...


class Server:
    """Listens, and answers each connection in a thread of its own.

    Parameters
    ----------
    services
        What answers.
    host, port
        Where to listen; port 0 is any free one.
    dialect
        What of HTTP it can do.
    gate
        Who may ask.
    root
        Path of the services.
    latency
        Seconds before each answer.
    bandwidth
        Bytes per second of each connection; None for as fast as it goes.
    stores
        Whether the bodies of POST requests are read.

    Attributes
    ----------
    requests
        Log of :class:`Request`, oldest first; of the last hundred thousand at least.
    connections
        TCP connections accepted.
    bytes_sent
        Bytes of all bodies.
    peak
        The most requests that were under way at a time.
    failures
        Tracebacks of errors of the server itself, which clients see as status 500.
    fault
        Asked for each request before it is answered; returns a :class:`Fault`, or None for an answer that is well.
    max_body
        The most bytes of a request.
    """

    def __init__(
        self,
        services: Answering,
        host: str,
        port: int,
        *,
        dialect: Dialect,
        gate: Gate,
        root: str,
        latency: float,
        bandwidth: float | None,
        stores: bool = False,
    ) -> None:
        self.services, self.dialect, self.gate, self.root, self.stores = services, dialect, gate, root, stores
        self.latency, self.bandwidth = latency, bandwidth
        self.max_body = 512 << 20
        self.fault: Callable[[Request], Fault | None] | None = None
        self.requests: list[Request] = []
        self.failures: list[str] = []
        self.connections = self.bytes_sent = self.peak = 0
        self._host, self._port = host, port
        self._under_way = 0
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
                target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, name="testing server", daemon=True
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

    @property
    def url(self) -> str:
        """Address of the services, without a slash at its end."""
        if self._listener is None:
            raise OptionError("the server has no address before it is started: use it in a with statement")
        host, port = self._listener.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{name}:{port}{self.root}"

    def reset(self) -> None:
        """Forget the log, and count from zero."""
        with self._lock:
            self.requests, self.failures = [], []
            self.connections = self.bytes_sent = 0
            self.peak = self._under_way

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
            self._under_way += 1
            self.peak = max(self.peak, self._under_way)

    def _answered(self) -> None:
        with self._lock:
            self._under_way -= 1

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
