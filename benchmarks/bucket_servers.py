"""Buckets to read from, each in a process of its own: a server of byte ranges with a latency, and emulators of stores.

Run as a script, this file is the process of one of them. Those of emulators stand behind a relay that counts.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from web_servers import Child, Counts

BUCKET = "slides"


class Ranges:
    """`microtome.testing.RangeServer` over a folder."""

    name = "range server"

    def __init__(self, folder: Path, latency: float = 0.0) -> None:
        self._child = Child(sys.executable, __file__, "ranges", folder, latency)
        self.url: str = self._child.first["url"]

    def series(self, dialect: str) -> str:
        """The URL of the slide; there is one dialect only."""
        return self.url

    def limit(self, bandwidth: float) -> None:
        """Send no more bytes a second over each connection."""
        self._child.ask(bandwidth=bandwidth)

    def counts(self) -> Counts:
        """What it was asked."""
        return Counts(*self._child.ask()["counts"])

    def paths(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(self._child.ask()["paths"])

    def close(self) -> None:
        self._child.close()


class Emulator:
    """An emulator of an object store that holds one slide. fsspec is told where it is, so readers need no options."""

    kind: ClassVar[str]
    protocol: ClassVar[str]
    name: ClassVar[str]
    options: ClassVar[dict[str, Any]]

    def __init__(self, folder: Path) -> None:
        self._child = Child(sys.executable, __file__, self.kind, folder, 0)
        self._relay = Child(sys.executable, Path(__file__).with_name("web_relay.py"), self._child.first["port"])
        from fsspec.config import conf

        conf[self.protocol] = self.options | {"endpoint_url": f"http://127.0.0.1:{self._relay.first['port']}"}

    def series(self, dialect: str) -> str:
        """The URL of the slide."""
        return f"{self.protocol}://{BUCKET}/slide/"

    def counts(self) -> Counts:
        """What went through the relay."""
        return Counts(*self._relay.ask()["counts"])

    def close(self) -> None:
        from fsspec.config import conf

        del conf[self.protocol]
        self._relay.close()
        self._child.close()


class Gcs(Emulator):
    kind, protocol, name = "gcs", "gs", "GCS emulator"
    options: ClassVar[dict[str, Any]] = {"token": "anon"}


class S3(Emulator):
    kind, protocol, name = "s3", "s3", "moto S3"
    options: ClassVar[dict[str, Any]] = {"key": "test", "secret": "test"}


# -- the processes


def ranges(folder: str, latency: str) -> None:
    from microtome.testing import RangeServer

    with RangeServer(folder, latency=float(latency)) as server:
        print(json.dumps({"url": f"{server.url}/"}), flush=True)
        for line in sys.stdin:
            question = json.loads(line)
            server.bandwidth = question.get("bandwidth", server.bandwidth)
            paths = Counter(request.path for request in server.requests)
            counts = Counts(server.counts.requests, server.counts.connections, server.counts.bytes)
            print(json.dumps({"counts": counts, "paths": paths}), flush=True)


def gcs(folder: str, _: str) -> None:
    import logging
    from http.server import ThreadingHTTPServer

    import fsspec
    import gcp_storage_emulator.server as emulator

    logging.disable()

    class Threading(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

    emulator.server.HTTPServer = Threading
    with emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET) as server:
        port = server._api._httpd.server_address[1]
        put(fsspec.filesystem("gs", token="anon", endpoint_url=f"http://127.0.0.1:{port}"), folder, port)


def s3(folder: str, _: str) -> None:
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    fs = fsspec.filesystem("s3", key="test", secret="test", endpoint_url=f"http://127.0.0.1:{port}")
    fs.mkdir(BUCKET)
    put(fs, folder, port)
    server.stop()


def put(fs: Any, folder: str, port: int) -> None:
    """Fill a bucket, say where it is, and run until stdin is closed."""
    for file in sorted(Path(folder).glob("*.dcm")):
        fs.pipe_file(f"{BUCKET}/slide/{file.name}", file.read_bytes())
    print(json.dumps({"port": port}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    os.environ |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "AWS_DEFAULT_REGION": "us-east-1"}
    {"ranges": ranges, "gcs": gcs, "s3": s3}[sys.argv[1]](*sys.argv[2:])
