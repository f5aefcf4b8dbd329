"""Object stores and web servers that are not ours, for tests that read slides where they lie.

What is asked of each is counted. A test that takes the fixture ``store`` runs once for each of them::

    def test_patches(store: Store, made: SyntheticSlide) -> None:
        url = store.put(made.folder)                  # "gs://slides/0-made/"; a folder is put once a session
        slide = mt.open_slide(url, storage_options=store.storage_options)
        store.counts.reset()
        slide["level0"].image[:10, :10].values
        assert store.counts.ranged <= 2 and store.counts.bytes < 100_000

``gs`` is an emulator of Google's storage read by gcsfs, ``s3`` is moto read by s3fs, ``nginx`` and ``ranges``, which is
`microtome.testing.RangeServer`, are read by fsspec's HTTP filesystem. Fixtures of these names give one of them each;
that of a session, ``stores``, gives any by its name, for fixtures of modules: ``stores["s3"].put(folder)``.

Credentials of S3 are in the environment while the session runs, so that other processes find them and no secret is in
``storage_options``. Of gs, whoever asks may read the bucket ``slides``; ``private`` wants `GS_TOKEN`. Of S3, ``slides``
wants `S3_KEY`; ``public`` does not. Write to any by `Store.write`, whatever the URL of the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import fsspec
import pytest

from microtome.testing import RangeServer

__all__ = ["GS_TOKEN", "NAMES", "S3_KEY", "S3_SECRET", "Asked", "Counts", "Store", "Stores", "forget_filesystems"]

NAMES = ("gs", "s3", "nginx", "ranges")
BUCKET = "slides"
S3_KEY, S3_SECRET = "test", "not-a-real-secret"
GS_TOKEN = "ya29.not-a-real-token"
ENVIRONMENT = {
    # Asked of buckets of zones, which the emulator does not know: calls would take minutes.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "AWS_ACCESS_KEY_ID": S3_KEY,
    "AWS_SECRET_ACCESS_KEY": S3_SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# gcsfs looks when it is imported.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = ENVIRONMENT["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"]


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    """Bytes of the body."""


class Counts(Protocol):
    """What a store was asked since it was started, or since `reset`."""

    @property
    def log(self) -> list[Asked]: ...

    @property
    def requests(self) -> int:
        """How many there were, of any method."""
        ...

    @property
    def ranged(self) -> int:
        """How many asked for a range."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of all bodies."""
        ...

    @property
    def peak(self) -> int:
        """The most that were under way at a time; 0 where it is not known."""
        ...

    def reset(self) -> None:
        """Count from zero."""
        ...


@dataclass
class Store:
    """One store, and a bucket or a folder in it.

    Parameters
    ----------
    name
        One of `NAMES`.
    url
        What is put lies below it; without a slash at the end.
    storage_options
        With which `url` is opened; they hold no secret and travel.
    counts
        See `Counts`.
    endpoint
        Address of the server.
    """

    name: str
    url: str
    storage_options: dict[str, Any]
    counts: Counts
    endpoint: str
    _write: Callable[[str, bytes], None]
    _remove: Callable[[str], None]
    encrypted: str = ""
    """Of nginx, the same by https."""
    certificate: Path | None = None
    """Of whom it is signed by."""
    _put: dict[Path, str] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """What paths of `write` begin with, for what is put to be found below `url`: the bucket, or nothing."""
        return f"{BUCKET}/" if self.name in ("gs", "s3") else ""

    def put(self, folder: Path) -> str:
        """Copy a folder to the store, unless it was; return its URL, with a slash at the end."""
        if folder not in self._put:
            # Folders of other tests may have the same name.
            name = f"{len(self._put)}-{folder.name}"
            self._put[folder] = f"{self.url}/{name if self.root else quote(name)}/"
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                self._write(f"{self.root}{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return self._put[folder]

    def write(self, path: str, data: bytes) -> str:
        """Write a file, in place of what was there; return its URL.

        The path begins with the bucket where there are buckets; without one, it is below `url`.
        """
        known = self.name not in ("gs", "s3") or path.split("/")[0] in (BUCKET, "private", "public")
        path = path if known else f"{BUCKET}/{path}"
        self._write(path, data)
        return f"{self.name}://{path}" if self.root else f"{self.url}/{quote(path)}"

    def remove(self, path: str) -> None:
        """Remove a file below `url`."""
        self._remove(f"{self.root}{path}")


class Stores:
    """All of them, each started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: dict[str, Store] = {}
        self._running = contextlib.ExitStack()

    def __getitem__(self, name: str) -> Store:
        if name not in self._started:
            folder = self._folder / name
            folder.mkdir()
            starting = {"gs": _gs, "s3": _s3, "nginx": _nginx, "ranges": _ranges}[name]
            self._started[name] = self._running.enter_context(starting(folder))
        return self._started[name]

    def close(self) -> None:
        """Stop those that were started."""
        self._running.close()


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Any store by its name; what is put stays for the session."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "GOOGLE_APPLICATION_CREDENTIALS"):
            patch.delenv(name, raising=False)
        all_of_them = Stores(tmp_path_factory.mktemp("stores"))
        yield all_of_them
        forget_filesystems()
        all_of_them.close()


def _one(stores: Stores, name: str) -> Iterator[Store]:
    store = stores[name]
    forget_filesystems()
    store.counts.reset()
    yield store
    forget_filesystems()


@pytest.fixture(params=NAMES)
def store(stores: Stores, request: pytest.FixtureRequest) -> Iterator[Store]:
    """Each store in turn, with nothing counted and nothing known of it."""
    yield from _one(stores, request.param)


@pytest.fixture
def gs(stores: Stores) -> Iterator[Store]:
    """An emulator of Google's storage."""
    yield from _one(stores, "gs")


@pytest.fixture
def s3(stores: Stores) -> Iterator[Store]:
    """Moto."""
    yield from _one(stores, "s3")


@pytest.fixture
def nginx(stores: Stores) -> Iterator[Store]:
    """A web server with pages that list its folders."""
    yield from _one(stores, "nginx")


@pytest.fixture
def ranges(stores: Stores) -> Iterator[Store]:
    """A web server of ours."""
    yield from _one(stores, "ranges")


def forget_filesystems() -> None:
    """Have every filesystem made anew, with nothing cached and no connection open."""
    classes = [fsspec.AbstractFileSystem]
    while classes:
        kind = classes.pop()
        classes += kind.__subclasses__()
        kind.clear_instance_cache()


# What is counted ----------------------------------------------------------------------------------------------------


class _Log:
    """Requests as they are answered, each known before who asked can go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._all: list[Asked] = []
            self.peak = self._under_way

    def add(self, asked: Asked) -> None:
        with self._lock:
            self._all.append(asked)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
            self.peak = max(self.peak, self._under_way)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    @property
    def log(self) -> list[Asked]:
        with self._lock:
            return list(self._all)

    @property
    def requests(self) -> int:
        return len(self.log)

    @property
    def ranged(self) -> int:
        return sum(asked.range is not None for asked in self.log)

    @property
    def bytes(self) -> int:
        return sum(asked.sent for asked in self.log)


class _AccessLog:
    """The log that nginx writes, from where `reset` left it."""

    peak = 0

    def __init__(self, path: Path, url: str) -> None:
        self._path, self._url = path, url
        self._asked = 0
        self._from = 0

    def _lines(self) -> list[str]:
        # Its one process writes a line when it has sent the answer, and then begins with the next request: once this
        # one is in the log, all before it are.
        self._asked += 1
        mark = f"/.mark-{self._asked}"
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{self._url}{mark}", timeout=10).close()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            lines = self._path.read_text().splitlines()
            if any(f"\t{mark}\t" in line for line in lines[-20:]):
                return [line for line in lines if "\t/.mark-" not in line]
            time.sleep(0.002)
        raise AssertionError("nginx does not write its log")

    def reset(self) -> None:
        self._from = len(self._lines())

    @property
    def log(self) -> list[Asked]:
        asked = []
        for line in self._lines()[self._from :]:
            method, path, asked_range, status, sent = line.split("\t")
            asked.append(Asked(method, path, None if asked_range == "-" else asked_range, int(status), int(sent)))
        return asked

    @property
    def requests(self) -> int:
        return len(self.log)

    @property
    def ranged(self) -> int:
        return sum(asked.range is not None for asked in self.log)

    @property
    def bytes(self) -> int:
        return sum(asked.sent for asked in self.log)


class _RangeCounts:
    """What a `RangeServer` counts, in the form of the others."""

    def __init__(self, server: RangeServer) -> None:
        self._server = server
        self.reset = server.counts.reset

    @property
    def log(self) -> list[Asked]:
        return [Asked(r.method, r.path, r.range, r.status, r.sent) for r in self._server.requests]

    requests = property(lambda self: self._server.counts.requests)
    ranged = property(lambda self: self._server.counts.ranged)
    bytes = property(lambda self: self._server.counts.bytes)
    peak = property(lambda self: self._server.counts.peak)


# The servers --------------------------------------------------------------------------------------------------------


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        """Say nothing of connections that clients broke."""


@contextlib.contextmanager
def _listening(server: Any) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def _gs(folder: Path) -> Iterator[Store]:
    import logging

    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.storage import Storage

    counts = _Log()
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)

    class Handler(emulator.RequestHandler):  # type: ignore[misc,name-defined]
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            with contextlib.suppress(OSError):
                super().handle_one_request()

        def _counted(self, answer: Callable[[], None]) -> None:
            with counts.under_way():
                if "/private/" not in self.path or self.headers.get("Authorization") == f"Bearer {GS_TOKEN}":
                    return answer()
                why = (
                    b'{"error": {"code": 401, "message": "Anonymous caller does not have storage.objects.get access"}}'
                )
                self.send_response(401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(why)))
                self.end_headers()
                self.wfile.write(why)
                return None

        def do_GET(self) -> None:  # noqa: N802
            self._counted(super().do_GET)

        def do_POST(self) -> None:  # noqa: N802
            self._counted(super().do_POST)

        def send_response(self, code: int, message: str | None = None) -> None:
            self._status = code
            super().send_response(code, message)

        def send_header(self, name: str, value: str) -> None:
            if name == "Content-Length":
                counts.add(Asked(self.command, self.path, self.headers.get("Range"), self._status, int(value)))
            super().send_header(name, value)

    storage = Storage(use_memory_fs=True)
    for bucket in (BUCKET, "private"):
        create_bucket(bucket, storage)
    with _listening(_Listener(("127.0.0.1", 0), partial(Handler, storage))) as endpoint:

        def ask(method: str, path: str, data: bytes | None = None) -> None:
            headers = {"Content-Type": "application/dicom", "Authorization": f"Bearer {GS_TOKEN}"}
            request = urllib.request.Request(f"{endpoint}{path}", data, headers, method=method)
            with urllib.request.urlopen(request, timeout=30) as answer:
                json.loads(answer.read() or b"null")

        def write(path: str, data: bytes) -> None:
            bucket, _, name = path.partition("/")
            ask("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}", data)

        def remove(path: str) -> None:
            bucket, _, name = path.partition("/")
            ask("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")

        options = {"token": "anon", "endpoint_url": endpoint}
        yield Store("gs", f"gs://{BUCKET}", options, counts, endpoint, write, remove)


@contextlib.contextmanager
def _s3(folder: Path) -> Iterator[Store]:
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    counts = _Log()
    moto = DomainDispatcherApplication(create_backend_app)

    class Handler(MotoRequestHandler):  # type: ignore[misc]
        disable_nagle_algorithm = True

        def log(self, *_: Any) -> None:
            """Say nothing."""

    def refusal(environ: dict[str, Any]) -> str:
        """Moto lets everybody in."""
        authorization = environ.get("HTTP_AUTHORIZATION", "")
        if f"Credential={S3_KEY}/" in authorization or environ["PATH_INFO"].startswith("/public"):
            return ""
        return "InvalidAccessKeyId" if authorization else "AccessDenied"

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        with counts.under_way():
            stated: list[Any] = ["403 Forbidden", [("Content-Type", "application/xml")]]
            why = refusal(environ)
            if why and environ["REQUEST_METHOD"] == "HEAD":
                body = b""
            elif why:
                body = f"<?xml version='1.0'?><Error><Code>{why}</Code><Message>No.</Message></Error>".encode()
            else:
                body = b"".join(
                    moto(environ, lambda status, headers, _=None: stated.__setitem__(slice(2), [status, headers]))
                )
            method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING")
            path = quote(environ["PATH_INFO"].encode("latin-1")) + (f"?{query}" if query else "")
            sent = 0 if method == "HEAD" else len(body)
            counts.add(Asked(method, path, environ.get("HTTP_RANGE"), int(stated[0].split()[0]), sent))
            start_response(*stated)
            return [body]

    # Moto finds out which service is meant by the host of the request.
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)  # type: ignore[arg-type]
    server.daemon_threads = True  # type: ignore[attr-defined]
    with _listening(server) as endpoint:
        client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=S3_KEY, aws_secret_access_key=S3_SECRET,
                              region_name="us-east-1")  # fmt: skip
        for bucket in (BUCKET, "public", "private"):
            client.create_bucket(Bucket=bucket)

        def write(path: str, data: bytes) -> None:
            bucket, _, name = path.partition("/")
            client.put_object(
                Bucket=bucket, Key=name, Body=data, ACL="public-read" if bucket == "public" else "private"
            )

        def remove(path: str) -> None:
            bucket, _, name = path.partition("/")
            client.delete_object(Bucket=bucket, Key=name)

        yield Store("s3", f"s3://{BUCKET}", {"endpoint_url": endpoint}, counts, endpoint, write, remove)
        client.close()


def _files_of(folder: Path) -> tuple[Callable[[str, bytes], None], Callable[[str], None]]:
    def write(path: str, data: bytes) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial_file = target.with_name(f".{target.name}.part")
        partial_file.write_bytes(data)
        partial_file.replace(target)  # who reads the old one meanwhile has the old one

    return write, lambda path: (folder / path).unlink()


@contextlib.contextmanager
def _ranges(folder: Path) -> Iterator[Store]:
    with RangeServer(folder) as server:
        store = Store("ranges", server.url, {}, _RangeCounts(server), server.url, *_files_of(folder))
        yield store


@contextlib.contextmanager
def _nginx(folder: Path) -> Iterator[Store]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        reason = "nginx is not installed (apt-get install nginx-light)"
        if os.environ.get("MICROTOME_CI") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    served, log = folder / "served", folder / "access.log"
    served.mkdir()
    for place in (folder, *folder.parents):  # its worker may run as another user
        if place.owner() == folder.owner() and str(place).startswith("/tmp/"):
            place.chmod(0o755)
    certificate = _certificate(folder)
    for last in (False, False, True):  # another program may take the port before nginx does
        port, encrypted = _free_ports(2)
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, encrypted=encrypted))
        command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            if _answers(process, port):
                url = f"http://127.0.0.1:{port}"
                counts = _AccessLog(log, url)
                yield Store(
                    "nginx", url, {}, counts, url, *_files_of(served), f"https://localhost:{encrypted}", certificate
                )
                return
        finally:
            process.terminate()
            process.wait(20)
        assert not last, f"nginx does not start:\n{(folder / 'error.log').read_text()}"


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _certificate(folder: Path) -> Path:
    """Write a certificate for localhost that is signed by its own key."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    return folder / "certificate.pem"


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.01)
    return False


_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format asked '$request_method\t$request_uri\t$http_range\t$status\t$body_bytes_sent';
  access_log {folder}/access.log asked;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  sendfile on; tcp_nodelay on; keepalive_requests 100000; default_type application/octet-stream; server_tokens off;
  server {{
    listen 127.0.0.1:{port} backlog=256; listen 127.0.0.1:{encrypted} ssl; root {folder}/served; autoindex on;
    ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/key.pem;
  }}
}}
"""
