"""`import microtome` costs what importing xarray costs: what a slide needs is imported with the first slide."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = (
    "dask", "distributed", "zarr", "pydicom", "imagecodecs", "gcsfs", "s3fs", "aiohttp", "fsspec.implementations",
    "PIL", "rich", "tifffile", "openslide", "wsidicom", "scipy", "pytest",
)  # fmt: skip


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_heavy_is_imported() -> None:
    # Whatever xarray imports by itself is xarray's.
    code = "import sys, xarray; before = set(sys.modules); import microtome; print(*sorted(set(sys.modules) - before))"
    new = run(code).split()
    assert "microtome" in new
    found = [m for m in new if any(m == h or m.startswith(h + ".") for h in HEAVY)]
    assert not found


def test_testing_is_light_too() -> None:
    code = (
        "import sys, xarray; old = set(sys.modules); import microtome.testing; print(*sorted(set(sys.modules) - old))"
    )
    found = [m for m in run(code).split() if any(m == h or m.startswith(h + ".") for h in HEAVY)]
    assert not found


def test_reading_imports_no_cluster_and_no_zarr(tmp_path: Path) -> None:
    code = """
import sys
import microtome as mt
from microtome.testing import make_slide
make_slide(sys.argv[1], width=100, height=80, frame=32, codec="native", associated=False)
slide = mt.open_slide(sys.argv[1], chunks=None)
slide["level0"].image[3:50, 4:60].values
slide["level0"].image.wsi.read(0, 0, 10, 10)
slide["level0"].image[3:50, 4:60].wsi.explain()
print("distributed" in sys.modules, "zarr" in sys.modules, "gcsfs" in sys.modules)
"""
    assert run(code, str(tmp_path / "slide")).split() == ["False", "False", "False"]


def test_smoke(tmp_path: Path) -> None:
    """A process of its own, warnings as errors: what a first user does."""
    code = """
import sys
import numpy as np
import microtome as mt
from microtome.testing import make_slide
made = make_slide(sys.argv[1], width=300, height=200, frame=64, codec="jpeg-lossless")
slide = mt.open_slide(sys.argv[1])
assert list(slide.children) == ["level0", "level1", "level2", "level3", "associated"], list(slide.children)
levels = slide.wsi.levels
assert levels["rows"].tolist() == [200, 100, 50, 25]
image = slide["level0"].image
assert np.array_equal(image.values, made.pixels(0))
assert np.array_equal(image[10:20, 30:50].values, made.region(0, 10, 30, 10, 20))
assert np.array_equal(image.wsi.read(10, 30, 10, 20), made.region(0, 10, 30, 10, 20))
assert slide["associated/label"].image.dims == ("row", "column", "c")
assert mt.__version__ and set(mt.__all__) <= set(dir(mt))
repr(slide), slide._repr_html_()
print("fine")
"""
    assert run(code, str(tmp_path / "slide")).strip() == "fine"


def test_public_names_have_docstrings() -> None:
    import microtome as mt

    assert "microtome" in (mt.__doc__ or "") or mt.__doc__
    for name in mt.__all__:
        assert getattr(mt, name).__doc__
    for name in mt.errors.__all__:
        error = getattr(mt.errors, name)
        assert error.__doc__
        assert issubclass(error, mt.errors.MicrotomeError | mt.errors.MicrotomeWarning)
