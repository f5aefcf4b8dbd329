"""The command line, as a process: what it prints, and one line and exit code 2 for an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from microtome.testing import DICOMwebServer, make_slide


def microtome(
    *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "160", "PYTHONWARNINGS": "default"} | dict(env or {})
    command = [sys.executable, "-m", "microtome", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=100, check=False)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "slide"
    make_slide(folder, width=700, height=500, frame=128, codec="native", seed=3)
    return folder


def test_info_prints_the_levels(slide: Path) -> None:
    done = microtome("info", str(slide))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("level")]
    assert lines[0][0] == "level"
    assert lines[1][:4] == ["level0", "500", "x", "700"]
    assert lines[2][:4] == ["level1", "250", "x", "350"]
    assert "label: " in done.stdout


def test_info_as_json(slide: Path) -> None:
    found = json.loads(microtome("info", "--json", str(slide)).stdout)
    assert [(level["rows"], level["columns"]) for level in found["levels"]][:2] == [(500, 700), (250, 350)]
    assert found["levels"][0]["row_spacing"] == pytest.approx(0.0005)
    assert found["levels"][0]["frames"] == 24
    assert set(found["associated"]) == {"label", "overview", "thumbnail"}


def test_info_of_three_channels(real: Path) -> None:
    folder = real / "dicom" / "3dhistech_BPAEC"
    found = json.loads(microtome("info", "--json", str(folder)).stdout)
    assert found["channels"] == ["Green", "Blue", "Red"]
    assert [(level["rows"], level["columns"]) for level in found["levels"]] == [
        (2304 >> n, 3072 >> n) for n in range(8)
    ]
    assert {Path(item["file"]).name for item in found["ignored"]} == {"1_Map", "readme.txt"}


def test_thumbnail_is_the_slide_made_small(slide: Path, tmp_path: Path) -> None:
    import microtome as mt

    done = microtome("thumbnail", str(slide), str(tmp_path / "out.png"), "--size", "350")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as image:
        picture = np.asarray(image)
    # native frames: the level of this very size is stored without loss, and no resampling is due
    np.testing.assert_array_equal(picture, mt.open_slide(slide)["level1"].image.values)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["info", "nowhere"], "nowhere"),
        (["info", "."], "not a DICOM file"),
        (["thumbnail", "SLIDE", "out.nothing"], ".nothing"),
        (["thumbnail", "SLIDE", "out.png", "--size", "0"], "--size 0"),
        (["info", "SLIDE", "--series", "1.2.3"], "1.2.3"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(args: list[str], says: str, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no slide")
    done = microtome(*[str(slide) if a == "SLIDE" else a for a in args], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_demo_runs(tmp_path: Path) -> None:
    done = microtome("demo", "--size", "1024", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 frames in 2 reads" in done.stdout
    assert "level0" in done.stdout
    with Image.open(tmp_path / "demo.png") as image:
        assert image.size == (1024, 768)


def test_demo_over_dicomweb_runs(tmp_path: Path) -> None:
    done = microtome("demo", "--dicomweb", "--size", "1024", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 frames in 1 request" in done.stdout
    assert "all are in the frame cache" in done.stdout


def test_a_slide_on_a_server(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDE_TOKEN", "s3cret")
    with DICOMwebServer(slide, tokens={"s3cret"}) as server:
        (url,) = server.series_urls()
        found = json.loads(microtome("info", "--json", "--token-env", "SLIDE_TOKEN", url).stdout)
        refused = microtome("info", url)
    assert found["levels"] == json.loads(microtome("info", "--json", str(slide)).stdout)["levels"]
    assert refused.returncode == 2
    assert "401" in refused.stderr
    assert "credentials" in refused.stderr


def test_find_lists_slides_without_patients(slide: Path, tmp_path: Path) -> None:
    make_slide(tmp_path / "tree" / "b", width=300, height=200, frame=64, codec="native", associated=False, levels=1)
    shutil.copytree(slide, tmp_path / "tree" / "a")
    done = microtome("find", "tree", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *lines = [line.split() for line in done.stdout.splitlines()]
    assert heading == ["url", "series", "rows", "columns", "spacing", "levels", "instances", "bytes"]
    assert [line[:4] for line in lines] == [
        [str(tmp_path / "tree" / "a"), "500", "700", "0.0005"],
        [str(tmp_path / "tree" / "b" / "level00.dcm"), "200", "300", "0.0005"],
    ]
    assert len(microtome("find", "tree", "--limit", "1", cwd=tmp_path).stdout.splitlines()) == 2
    assert "SYNTHETIC" in microtome("find", "tree", "--identifiers", cwd=tmp_path).stdout
    (tmp_path / "empty").mkdir()
    assert microtome("find", "empty", cwd=tmp_path).stdout == "there are no slides\n"
    assert microtome("find", "nowhere", cwd=tmp_path).returncode == 2


def test_find_writes_a_table(slide: Path, tmp_path: Path) -> None:
    done = microtome("find", str(slide), "--csv", "slides.csv", cwd=tmp_path)
    assert done.stdout == "slides.csv: 1 slides\n"
    table = pd.read_csv(tmp_path / "slides.csv", dtype={"series": str})
    assert table.url.tolist() == [str(slide)]
    assert "PatientID" not in table
    assert "SYNTHETIC" not in (tmp_path / "slides.csv").read_text()
    microtome("find", str(slide), "--csv", "all.csv", "--identifiers", cwd=tmp_path)
    assert pd.read_csv(tmp_path / "all.csv").PatientID.tolist() == ["SYNTHETIC"]


def test_find_asks_a_server(slide: Path) -> None:
    with DICOMwebServer(slide, tokens={"right"}) as server:
        env = {"TOKEN_OF_TEST": "right"}
        done = microtome("find", server.url, "--token-env", "TOKEN_OF_TEST", env=env)
        assert done.returncode == 0, done.stderr
        heading, line = [line.split() for line in done.stdout.splitlines()]
        assert heading == ["url", "NumberOfSeriesRelatedInstances"]
        assert line[0] in server.series_urls()
        assert microtome("find", server.url).returncode == 2
