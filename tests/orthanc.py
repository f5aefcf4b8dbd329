"""Orthanc with its DICOMweb plugin: a server that is not ours, started on a free port of this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["missing", "running"]

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
READY_WITHIN = 30.0
"""Seconds; it takes less than one where nothing else runs."""


def _program() -> str | None:
    """Debian puts it where the PATH of users does not lead."""
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


def missing() -> str:
    """What is not installed; empty where all is."""
    if _program() is None:
        return "Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)"
    return "" if PLUGIN.is_file() else f"Orthanc has no DICOMweb plugin: {PLUGIN} is not there"


@contextlib.contextmanager
def running(folder: Path, users: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run Orthanc with its files in a folder; yield the URL of its DICOMweb service.

    With ``users``, names and passwords, it wants basic authentication.
    """
    for last in (False, False, True):  # another program may take the port before Orthanc does
        port = _free_port()
        process = _start(folder, port, users or {})
        try:
            if _is_ready(process, f"http://127.0.0.1:{port}/dicom-web"):
                yield f"http://127.0.0.1:{port}/dicom-web"
                return
        finally:
            _stop(process)
        assert not last, f"Orthanc does not start:\n{(folder / 'log').read_text()[-3000:]}"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _start(folder: Path, port: int, users: Mapping[str, str]) -> subprocess.Popen[bytes]:
    store = folder / "storage"
    config = {
        "StorageDirectory": str(store),
        "IndexDirectory": str(store),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": bool(users),
        "RegisteredUsers": dict(users),
        "DicomServerEnabled": False,
        "KeepAlive": True,  # connections that are not used for 1 s are closed
        "TcpNoDelay": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("ab") as log:
        command = [str(_program()), str(folder / "orthanc.json")]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + READY_WITHIN
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/studies?limit=1", timeout=5):
                return True
        except urllib.error.HTTPError as e:
            with e:
                return e.code == 401
        except OSError:
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
