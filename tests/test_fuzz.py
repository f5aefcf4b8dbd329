"""Damaged slides raise errors of ours: no crash, no hang, nothing allocated for what a header claims and no file holds.

``MICROTOME_FUZZ_CASES=20000 MICROTOME_FUZZ_SEED=7 pytest tests/test_fuzz.py`` looks further.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import microtome as mt
from microtome.errors import CorruptHeaderError, FrameError
from microtome.testing import make_slide

CASES = int(os.environ.get("MICROTOME_FUZZ_CASES", "500"))
SEED = int(os.environ.get("MICROTOME_FUZZ_SEED", "0"))
WORKER = Path(__file__).with_name("fuzz_worker.py")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time are set as Linux does")
@pytest.mark.timeout(120 + CASES)
def test_damaged_slides(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, WORKER, tmp_path, str(SEED), "0", str(CASES)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=100 + CASES, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    found = done.stdout.partition("BUG in case")[2]
    assert done.returncode == 0, f"seed {SEED}, exit code {done.returncode}: {found[:6000] or lines[-5:]}"
    honest = [line for line in lines if line.endswith("}") and "{" in line and "TOTAL" not in line]
    assert len(honest) >= 18
    assert all("Error" not in line for line in honest), honest
    assert lines[-1].startswith("TOTAL")


def test_cut_within_an_offset_table(tmp_path: Path) -> None:
    made = make_slide(
        tmp_path, width=300, height=200, frame=32, codec="jpeg", levels=1, offsets="bot", paths=("a",), associated=False
    )
    data = made.files[0].read_bytes()
    table = data.rindex(b"\xe0\x7f\x10\x00OB") + 20
    for more in range(9):
        made.files[0].write_bytes(data[: table + more])
        image = mt.open_slide(tmp_path, chunks=None)["level0"].image
        with pytest.raises(FrameError):
            image.wsi.read(0, 0, 10, 10)


def test_planes_that_only_damage_explains(tmp_path: Path) -> None:
    made = make_slide(
        tmp_path,
        width=60,
        height=60,
        frame=32,
        codec="native",
        levels=1,
        paths=("a",),
        focal_planes=3,
        associated=False,
    )
    data = bytearray(made.files[0].read_bytes())
    at = data.index(b"\x48\x00\x03\x03UL\x04\x00") + 8
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    made.files[0].write_bytes(data)
    with pytest.raises(CorruptHeaderError, match="focal planes"):
        mt.open_slide(tmp_path)
