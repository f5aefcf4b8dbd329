"""What the documents show, run as it stands."""

from __future__ import annotations

import gc
import importlib.util
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dask
import numpy as np
import pytest

import microtome as mt
from microtome.testing import DICOMwebServer, make_slide
from stores import Stores

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def slide_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slide under the names that the documents give it, in the current folder."""
    make_slide(tmp_path / "folder/of/instances", width=8192, height=6144, levels=4)
    (tmp_path / "slide").symlink_to(tmp_path / "folder/of/instances")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings_as_they_were() -> Iterator[None]:
    """Documents change settings for good."""
    settings = mt.config.get()
    names = ("cache_dir", "cache_dir_bytes", "frame_cache_bytes")
    with mt.config.set(**{name: getattr(settings, name) for name in names}):
        yield


@pytest.fixture(scope="module")
def one_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide that several documents read and none writes to."""
    folder = tmp_path_factory.mktemp("documents") / "slide"
    make_slide(folder, width=8192, height=6144, levels=4)
    return folder


def python_blocks(text: str) -> list[str]:
    """Return the Python of a page; blocks that need a package which is not installed (needs=name) are left out."""
    found = re.findall(r"^```python(?: needs=(\w+))?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [code for needs, code in found if not needs or importlib.util.find_spec(needs)]


def run(code: str, scope: dict[str, Any], name: str) -> None:
    exec(compile(code, name, "exec"), scope)


def test_readme(slide_here: Path) -> None:
    scope: dict[str, Any] = {}
    blocks = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) > 5
    for number, block in enumerate(b for b in blocks if "make_slide" not in b):
        run(block, scope, f"README block {number}")
    assert scope["image"][0:512, 0:512].wsi.explain().frames == 4


def run_page(document: str, places: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Run the Python of a page, in which some places have other names; return its variables."""
    scope: dict[str, Any] = {}
    text = (ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8")
    for name, place in places.items():
        assert name in text
        text = text.replace(name, place)
    blocks = python_blocks(text)
    assert len(blocks) > 1
    for number, block in enumerate(blocks):
        run(block, scope, f"{document}.md block {number}")
    return scope


@pytest.fixture
def quiet_clusters() -> Iterator[None]:
    """Workers end with this process, whatever happens."""
    pytest.importorskip("distributed")  # whose settings are there from then on
    with dask.config.set({"distributed.worker.daemon": True}):
        yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # clusters that pages left behind: none is to be found at the end of all tests


@pytest.mark.usefixtures("quiet_clusters")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_slide("slide", width=4096, height=3072, levels=4, codec="deflated-frame")
    scope = run_page("clusters")
    np.testing.assert_allclose(scope["means"], made.pixels(0).mean((0, 1)))
    np.testing.assert_array_equal(scope["crop"], 255 - made.pixels(0)[1000:1300, 2000:2300])
    assert scope["colours"].shape == (scope["patches"].sizes["patch"], 3)


@pytest.mark.usefixtures("settings_as_they_were")
@pytest.mark.parametrize("document", ["credentials", "dicomweb"])
def test_pages(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(document)


@pytest.mark.usefixtures("settings_as_they_were")
def test_clouds(
    stores: Stores,
    one_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With buckets of this machine in place of those that the page names."""
    monkeypatch.chdir(tmp_path)
    gs, s3 = stores["gs"], stores["s3"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    url = gs.put(one_slide)
    archive = tmp_path / "slides.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in one_slide.iterdir():
            zipped.write(file, f"slide/{file.name}")
    places = {
        "gs://bucket/slides.zip": gs.write("slides/of-documents.zip", archive.read_bytes()),
        "gs://bucket/slide/": url,
        '"gs://bucket/"': f'"{url}"',
        "s3://bucket/slide/": s3.put(one_slide),
        '{"token": "anon"}': repr(gs.storage_options),
    }
    mt.cache.clear()
    scope = run_page("clouds", places)
    gs.remove("of-documents.zip")  # other tests list this bucket
    assert list(scope["table"].levels) == [4]
    assert scope["opening"] == 8
    assert scope["reading"] == 5
    printed = capsys.readouterr().out.splitlines()
    for line, part in zip(printed, ("AccessDenied", "hold a secret", "changed", "simplecache::"), strict=True):
        assert part in line
    assert "hunter2" not in "".join(printed)
    assert list((tmp_path / "copies").iterdir())
    part = scope["slide"]["level0"].image[0:2048, 0:2048]
    assert part.wsi.explain().bytes == 0
    np.testing.assert_array_equal(part.values, mt.open_slide(one_slide)["level0"].image[0:2048, 0:2048].values)


def test_cohorts_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = run_page("cohorts")
    assert scope["patches"].sizes["patch"] > 4
    assert scope["results"].error["broken"].startswith("NotASlideError: ")
    assert scope["good"].names == scope["cohort"].names
    assert list(scope["some"].attrs["skipped"]) == ["broken"]
    if "pixels" in scope:
        assert scope["pixels"].shape == (8, 3, 224, 224)
        assert set(scope["train"].slide.values) <= {"case-0", "case-1", "case-2"}


@pytest.mark.parametrize("document", ["levels", "patches", "colour", "from-ez-wsi", "from-openslide", "from-pathml"])
def test_pages_on_a_slide(document: str, one_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slide").symlink_to(one_slide)
    monkeypatch.chdir(tmp_path)
    run_page(document)


def run_notebook(name: str) -> dict[str, Any]:
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    scope: dict[str, Any] = {}
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert cells
    for number, cell in enumerate(cells):
        run(cell, scope, f"notebook {name} cell {number}")
    return scope


def test_quickstart_notebook(slide_here: Path) -> None:
    assert run_notebook("quickstart")["tissue"].dims == ("y", "x")


def test_dicomweb_notebook() -> None:
    scope = run_notebook("dicomweb")
    assert scope["patches"].shape == (100, 224, 224, 3)
    assert scope["colours"].shape == (100, 3)
    assert scope["requests"] == 0


def test_getting_started_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICROTOME_SLIDE", raising=False)
    scope = run_notebook("getting_started")
    assert scope["means"].shape[0] > 100
    assert scope["pixels"].shape == (8, 224, 224, 3)
    assert 0.3 < scope["tissue"] < 0.7


def test_getting_started_notebook_on_a_server(one_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROTOME_SLIDE", str(one_slide))
    local = run_notebook("getting_started")
    mt.cache.clear()
    with DICOMwebServer(one_slide) as server:
        monkeypatch.setenv("MICROTOME_SLIDE", server.series_urls()[0])
        remote = run_notebook("getting_started")
        assert len(server.requests) > 5
    assert remote["slide"].wsi.levels.equals(local["slide"].wsi.levels)
    assert remote["patches"].id.equals(local["patches"].id)
    assert (remote["pixels"] == local["pixels"]).all()
    assert remote["theirs"].row.equals(local["theirs"].row)


@pytest.mark.usefixtures("quiet_clusters")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_cohort_notebook() -> None:
    scope = run_notebook("cohort")
    assert list(scope["table"].error.isna()) == [True] * 7 + [False]
    assert scope["good"].tissue.between(0.05, 0.95).all()
    assert len(scope["means"]) > 7


def test_no_document_names_a_place_that_is_not_there() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"


def test_architecture_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "microtome"
    for folder in ("storage", "dicom", "lazy"):
        for module in (source / folder).rglob("*.py"):
            assert module.name == "__init__.py" or module.name in text, f"{folder}/{module.name}"
