"""The slides that are measured: made once by :func:`microtome.testing.make_slide`, kept in ``benchmarks/.cache``."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parent / ".cache"

#: name -> arguments of make_slide
RECIPES: dict[str, dict[str, Any]] = {
    # 40960 x 40960, JPEG: the slide of all timings of pixels
    "pyramid": {
        "width": 40960, "height": 40960, "frame": 256, "codec": "jpeg", "quality": 80, "offsets": "eot",
        "associated": False,
    },
    # 163,539 frames
    "large": {
        "width": 100000, "height": 80000, "frame": 240, "codec": "jpeg-rgb", "offsets": "eot", "associated": False,
    },
    # some 25,200 frames with an item each, in three parts of a concatenation
    "sparse": {
        "width": 40704, "height": 40704, "frame": 256, "codec": "jpeg", "tiling": "sparse", "parts": 3,
        "offsets": "empty", "levels": 1, "associated": False,
    },
    # 8192 x 8192, one level: what is resampled whole
    "single": {
        "width": 8192, "height": 8192, "frame": 256, "codec": "jpeg", "quality": 80, "offsets": "eot", "levels": 1,
        "associated": False,
    },
    # 139,000 frames of one level: a slide without a pyramid
    "large0": {
        "width": 100000, "height": 80000, "frame": 240, "codec": "jpeg-rgb", "offsets": "eot", "levels": 1,
        "associated": False,
    },
    # the same, smaller
    "small0": {
        "width": 40000, "height": 30000, "frame": 240, "codec": "jpeg-rgb", "offsets": "eot", "levels": 1,
        "associated": False,
    },
    # 40960 x 40960, 34,139 frames, 480 MB: the slide that is read from buckets
    "bucket": {
        "width": 40960, "height": 40960, "frame": 256, "codec": "jpeg", "quality": 92, "offsets": "eot",
        "associated": False,
    },
    # the same without an offset table
    "unindexed": {
        "width": 40960, "height": 40960, "frame": 256, "codec": "jpeg", "quality": 92, "offsets": "empty",
        "associated": False,
    },
    # 16384 x 16384, JPEG: the slide that is read from servers
    "web": {
        "width": 16384, "height": 16384, "frame": 256, "codec": "jpeg", "quality": 80, "offsets": "eot",
        "associated": False,
    },
}  # fmt: skip


COHORT_SIZE = 1000
COHORT: dict[str, Any] = {
    "width": 512, "height": 512, "frame": 256, "codec": "jpeg", "levels": 2, "distinct": 1, "associated": False,
}  # fmt: skip

SERVES = ("__init__.py", "ranges.py")


def _maker() -> str:
    """What makes the slides, as a digest: a slide made by other code is made anew."""
    from microtome import testing

    digest = hashlib.sha256()
    for module in sorted(Path(testing.__path__[0]).glob("*.py")):
        if module.name not in SERVES:
            digest.update(module.read_bytes())
    return digest.hexdigest()[:16]


def slide(name: str) -> Path:
    """Return the folder of a slide of `RECIPES`, made on first use."""
    return _kept(name, {"recipe": RECIPES[name]}, _make_slide)


def cohort() -> Path:
    """Return the folder of a thousand small slides, each in a folder of its own, made on first use."""
    return _kept("cohort", {"recipe": COHORT, "slides": COHORT_SIZE}, _make_cohort)


def _make_slide(folder: Path, made_of: dict[str, Any]) -> None:
    from microtome.testing import make_slide

    make_slide(folder, **made_of["recipe"])


def _make_cohort(folder: Path, made_of: dict[str, Any]) -> None:
    from microtome.testing import make_slide

    for number in range(made_of["slides"]):
        make_slide(folder / f"{number:04}", seed=number, **made_of["recipe"])


def _kept(name: str, made_of: dict[str, Any], make: Callable[[Path, dict[str, Any]], None]) -> Path:
    folder = CACHE / name
    stamp = folder.with_suffix(".json")
    made_by = made_of | {"maker": _maker()}
    if not (stamp.exists() and json.loads(stamp.read_text()) == made_by):
        print(f"making the slide {name!r} ...", end=" ", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start = time.perf_counter()
        make(folder, made_of)
        stamp.write_text(json.dumps(made_by))
        print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)
    return folder


def real_slides() -> dict[str, Path]:
    """The real slides beside the repository, where they are."""
    root = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
    named = {"real, JPEG": root / "cmu1_dicom" / "jpeg_eot", "real, 3 paths": root / "dicom" / "3dhistech_BPAEC"}
    return {name: path for name, path in named.items() if path.is_dir()}
