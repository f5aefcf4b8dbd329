"""What the documents show, run as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import microtome as mt
from microtome.testing import make_slide

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def slide_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slide under the names that the documents give it, in the current folder."""
    make_slide(tmp_path / "folder/of/instances", width=8192, height=6144, levels=4)
    (tmp_path / "slide").symlink_to(tmp_path / "folder/of/instances")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(code: str, scope: dict[str, Any], name: str) -> None:
    exec(compile(code, name, "exec"), scope)


def test_readme(slide_here: Path) -> None:
    scope: dict[str, Any] = {}
    blocks = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) > 5
    for number, block in enumerate(b for b in blocks if "make_slide" not in b):
        run(block, scope, f"README block {number}")
    assert scope["image"][0:512, 0:512].wsi.explain().frames == 4


@pytest.mark.parametrize("document", ["credentials", "dicomweb"])
def test_pages(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    blocks = python_blocks((ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8"))
    assert len(blocks) > 2
    with mt.config.set(frame_cache_bytes=mt.config.get().frame_cache_bytes):
        for number, block in enumerate(blocks):
            run(block, scope, f"{document}.md block {number}")


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
