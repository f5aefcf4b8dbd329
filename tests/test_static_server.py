"""A folder of DICOMweb answers behind a plain web server (nginx): what knows nothing of DICOM, and answers as it is.

One frame a request, redirects from a name to its folder, no boundary in the header, no searches, Accept without
meaning. The answers are made by pydicom.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.encaps import generate_frames

import microtome as mt
from microtome.testing import make_slide

CONFIGURATION = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location /dicomweb/ {{
      alias {folder}/tree/; index index.json index.bin;
      location ~ index.json$ {{ types {{}} default_type application/dicom+json; }}
      location ~ index.bin$ {{ types {{}} default_type 'multipart/related; type="application/octet-stream"'; }}
    }}
  }}
}}
"""


@pytest.fixture(scope="module")
def nginx() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if found is None:
        reason = "nginx is not installed: it serves the files of this test (Debian: apt-get install nginx-light)"
        if os.environ.get("MICROTOME_CI") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "slide"
    make_slide(folder, width=900, height=700, frame=128, codec="j2k", seed=5)
    return folder


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def lay_out(slide: Path, tree: Path) -> str:
    """Write the answers to requests for metadata and frames as files; return the path of the series."""
    headers = []
    for file in sorted(slide.iterdir()):
        ds = pydicom.dcmread(file)
        series = f"studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}"
        syntax = ds.file_meta.TransferSyntaxUID
        for number, frame in enumerate(generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)), 1):
            head = f"--of the parts\r\nContent-Type: image/jp2;transfer-syntax={syntax}\r\n\r\n".encode()
            place = tree / series / "instances" / ds.SOPInstanceUID / "frames" / str(number)
            write(place / "index.bin", head + frame + b"\r\n--of the parts")
        del ds.PixelData
        headers.append(ds.to_json_dict())
    write(tree / series / "metadata" / "index.json", json.dumps(headers).encode())
    return series


@pytest.fixture(scope="module")
def url(nginx: str, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("nginx")
    series = lay_out(slide, folder / "tree")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, port=port))
    process = subprocess.Popen([nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urlopen(f"http://127.0.0.1:{port}/dicomweb/{series}/metadata/").close()
                break
            except OSError:
                assert process.poll() is None, (folder / "error.log").read_text()
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/dicomweb/{series}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_static_files_are_a_slide(url: str, slide: Path) -> None:
    mt.cache.clear()
    mt.cache.reset_statistics()
    remote, local = mt.open_slide(url), mt.open_slide(slide)
    assert list(remote.children) == list(local.children)
    for node in [f"level{n}" for n in range(len(local.wsi.levels))] + [f"associated/{n}" for n in local.wsi.associated]:
        np.testing.assert_array_equal(remote[node].image.values, local[node].image.values, err_msg=node)
    assert remote.wsi.icc_profile() == local.wsi.icc_profile()
    counts = mt.cache.statistics()
    assert counts.frames == counts.misses == sum(frames(local))
    # Redirects count, too. The first list is refused, in each of its forms; no other list is asked for.
    assert counts.requests <= 2 * counts.misses + 3 * 8


def frames(slide: xr.DataTree) -> list[int]:
    nodes = [node for node in slide.subtree if "image" in node.data_vars]
    return [node["image"].attrs["frames"] for node in nodes]


def test_what_is_not_there(url: str) -> None:
    with pytest.raises(mt.errors.SlideNotFoundError, match="404"):
        mt.open_slide(url + "0")
