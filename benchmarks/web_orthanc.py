"""Orthanc with its DICOMweb plugin, where it is installed: filled by our STOW-RS, behind a relay that counts."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from web_servers import Child, Counts

PLUGINS = [Path(root, "orthanc/plugins/libOrthancDicomWeb.so") for root in ("/usr/share", "/usr/lib")]
PATIENCE = 20


class Orthanc:
    """An Orthanc of our own that holds one slide; raises RuntimeError where there is none."""

    name = "Orthanc"

    def __init__(self, folder: Path) -> None:
        program = shutil.which("Orthanc")
        plugin = next((path for path in PLUGINS if path.exists()), None)
        if program is None or plugin is None:
            raise RuntimeError("Orthanc and its DICOMweb plugin are not installed (Debian: orthanc, orthanc-dicomweb)")
        self._folder = tempfile.TemporaryDirectory(prefix="orthanc-")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = Path(self._folder.name, "orthanc.json")
        settings.write_text(json.dumps(_settings(self._folder.name, plugin, port)))
        self._process = subprocess.Popen(
            [program, str(settings)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._relay: Child | None = None
        try:
            self._wait(f"http://127.0.0.1:{port}/system")
            self._path = _fill(f"http://127.0.0.1:{port}/dicom-web", folder)
            self._relay = Child(sys.executable, Path(__file__).with_name("web_relay.py"), port)
        except BaseException:
            self.close()
            raise

    def _wait(self, url: str) -> None:
        until = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < until:
            try:
                with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                    self.version = json.load(answer)["Version"]
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise RuntimeError("Orthanc does not start")

    def series(self, dialect: str) -> str:
        """The URL of the slide; there is one dialect only."""
        assert self._relay is not None
        return f"http://127.0.0.1:{self._relay.first['port']}/dicom-web/{self._path}"

    def counts(self) -> Counts:
        """What went through the relay."""
        assert self._relay is not None
        return Counts(*self._relay.ask()["counts"])

    def close(self) -> None:
        if self._relay is not None:
            self._relay.close()
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)
        self._folder.cleanup()


def _settings(folder: str, plugin: Path, port: int) -> dict[str, object]:
    return {
        "StorageDirectory": folder, "IndexDirectory": folder, "Plugins": [str(plugin)], "HttpPort": port,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomServerEnabled": False, "KeepAlive": True,
        "TcpNoDelay": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }  # fmt: skip


def _fill(url: str, folder: Path) -> str:
    """Store a slide; return the path of its series."""
    import fsspec
    import pydicom

    files = sorted(folder.glob("*.dcm"))
    fsspec.filesystem("dicomweb", url=url).put([str(file) for file in files], "studies")
    head = pydicom.dcmread(files[0], stop_before_pixels=True, specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
    return f"studies/{head.StudyInstanceUID}/series/{head.SeriesInstanceUID}"
