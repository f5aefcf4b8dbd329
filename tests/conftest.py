"""Where the tests find real slides: ``../shared/data``, which is no part of the repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import microtome as mt
from microtome.storage import retrying
from microtome.storage.dicomweb import service

pytest_plugins = ["stores"]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data; tests that need them are skipped where there are none, and fail where CI promises them."""
    if not (DATA / "MANIFEST.md").is_file():
        reason = f"{DATA} is not here: it holds the real slides that this test reads"
        if os.environ.get("MICROTOME_CI") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return DATA


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept on disk is kept here, by processes that tests start as well."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MICROTOME_CACHE_DIR"] = str(folder)
    with mt.config.set(cache_dir=folder):
        yield
    del os.environ["MICROTOME_CACHE_DIR"]


@pytest.fixture(autouse=True, scope="session")
def interrupts_count() -> None:
    """A shell that runs the tests in the background has them ignore SIGINT, and so all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def new_to_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of any server, nothing is cached, and what failed is tried again soon."""
    monkeypatch.setattr(retrying, "BACKOFF", 0.01)
    monkeypatch.setattr(service, "_services", {})
    mt.cache.clear()


@pytest.fixture(scope="session")
def real(shared: Path) -> Path:
    """Real files, as MANIFEST.md lists them."""
    return shared / "real"


@pytest.fixture(scope="session")
def variants(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 32 hard pyramids and their source pixels; made once a session (once a worker, where several run)."""
    out = tmp_path_factory.mktemp("variants")
    real = shared / "real"
    arguments = [real / "slides/CMU-1-Small-Region.svs", real / "icc/compact_sRGB-v4.icc", out]
    arguments += [real / "photos/cp_speckles_hoechst.tif", real / "photos/cp_speckles_h2ax.tif"]
    command = [sys.executable, "-W", "ignore", "-B", shared / "make" / "make_variants.py", *arguments]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out
