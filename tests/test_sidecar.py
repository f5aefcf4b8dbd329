"""Frame indexes that are kept on disk: found again, never believed when stale or damaged, nobody else's to read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import microtome as mt
from microtome.errors import OptionError
from microtome.lazy.unwrap import unwrap
from microtome.storage import sidecar
from microtome.storage.remote import FsspecSource
from microtome.testing import RangeServer, SyntheticSlide, make_slide

ARRAYS = {"starts": np.arange(5000, dtype=np.int64), "spans": np.arange(5000, dtype=np.uint32)}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path) -> Iterator[Path]:
    mt.cache.clear()
    with mt.config.set(cache_dir=tmp_path / "some" / "where"):
        yield tmp_path / "some" / "where"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    folder = tmp_path_factory.mktemp("served")
    # 10 MB without an offset table
    return make_slide(
        folder / "a", width=2048, height=1600, frame=64, levels=1, associated=False, codec="encapsulated-native",
        offsets="empty",
    )  # fmt: skip


def same(found: dict[str, np.ndarray] | None) -> bool:
    return found is not None and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


# -- the folder -------------------------------------------------------------------------------------------------------


def test_kept_and_found(kept: Path) -> None:
    assert sidecar.load("a") is None
    sidecar.store("a", ARRAYS)
    assert same(sidecar.load("a"))
    assert sidecar.load("b") is None
    sidecar.remove("a")
    assert sidecar.load("a") is None
    assert files(kept) == []


def test_what_is_unknown_is_not_kept(kept: Path) -> None:
    sidecar.store("", ARRAYS)
    assert sidecar.load("") is None
    assert files(kept) == []


def test_only_the_user_may_look(kept: Path) -> None:
    os.umask(os.umask(0))  # whatever it is
    before = os.umask(0)
    try:
        sidecar.store("a", ARRAYS)
    finally:
        os.umask(before)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    (file,) = files(kept)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_it_tells_nothing(kept: Path) -> None:
    sidecar.store("https://host/bucket/MUELLER-ANNA.dcm?signature=abc", ARRAYS)
    (file,) = files(kept)
    for word in (b"MUELLER", b"ANNA", b"host", b"abc"):
        assert word not in file.read_bytes()
        assert word.decode() not in file.name


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign", "longer", "of another", "a folder"])
def test_damaged_files_are_as_good_as_absent(kept: Path, damage: str) -> None:
    sidecar.store("a", ARRAYS)
    (file,) = files(kept)
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "flipped":
        file.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    elif damage == "foreign":
        file.write_bytes(b"hello" * 100)
    elif damage == "longer":
        file.write_bytes(data + b"x")
    elif damage == "of another":
        sidecar.store("b", ARRAYS)
        (other,) = [f for f in files(kept) if f != file]
        file.write_bytes(other.read_bytes())
    else:
        file.unlink()
        file.mkdir()
    assert sidecar.load("a") is None
    if damage != "a folder":
        sidecar.store("a", ARRAYS)
        assert same(sidecar.load("a"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1 << 20), bits=st.binary(min_size=1, max_size=40), cut=st.booleans())
def test_any_damage(kept: Path, at: int, bits: bytes, cut: bool) -> None:
    sidecar.store("a", ARRAYS)
    (file,) = files(kept)
    data = file.read_bytes()
    at %= len(data)
    damaged = data[:at] + bits + (b"" if cut else data[at + len(bits) :])
    file.write_bytes(damaged)
    found = sidecar.load("a")
    assert found is None if damaged != data else same(found)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with mt.config.set(cache_dir=folder):
            sidecar.store("a", ARRAYS)
            assert sidecar.load("a") is None


def test_none(kept: Path) -> None:
    with mt.config.set(cache_dir=""):
        sidecar.store("a", ARRAYS)
        assert sidecar.load("a") is None
    assert files(kept) == []


def test_the_setting() -> None:
    with pytest.raises(OptionError, match="cache_dir"):
        mt.config.set(cache_dir=3)  # type: ignore[arg-type]
    with mt.config.set(cache_dir="~/x"):
        assert mt.config.get().cache_dir == str(Path("~/x").expanduser())
    code = "import microtome as mt; print(mt.config.get().cache_dir)"
    environment = os.environ | {"MICROTOME_CACHE_DIR": "/some/folder"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "/some/folder"


def test_what_was_used_last_stays(kept: Path) -> None:
    sidecar.store("a", ARRAYS)
    (file,) = files(kept)
    size = file.stat().st_size
    (kept / "notes.txt").write_text("somebody's")
    with mt.config.set(cache_dir_bytes=3 * size):
        for n, name in enumerate("abc"):
            sidecar.store(name, ARRAYS)
            for path in files(kept):
                if path.suffix == ".index" and path.stat().st_mtime > 1e9:
                    os.utime(path, (1e6 + n, 1e6 + n))
        assert same(sidecar.load("a"))  # used: it is the newest now
        sidecar.store("d", ARRAYS)
        assert same(sidecar.load("a"))
        assert same(sidecar.load("d"))
        assert sum(f.stat().st_size for f in files(kept) if f.suffix == ".index") <= 3 * size
    assert (kept / "notes.txt").exists()


def test_the_folder_is_not_listed_at_each_writing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would take longer with every file that is in it; and yet what is kept stays near its limit."""
    looks = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda *arguments: looks.append(1) or scandir(*arguments))
    for n in range(100):
        sidecar.store(f"few {n}", {"starts": np.arange(10)})
    assert len(looks) <= 2
    with mt.config.set(cache_dir_bytes=1 << 20):
        for n in range(600):
            sidecar.store(f"many {n}", {"starts": np.arange(10)})
    assert len(looks) < 200
    assert len(files(kept)) * 4096 < 1.4 * (1 << 20)


def test_many_writers(kept: Path) -> None:
    """Readers see what one of the writers wrote, whole."""
    stop = threading.Event()
    bad: list[object] = []

    def read() -> None:
        while not stop.is_set():
            found = sidecar.load("a")
            if found is not None and not same(found):
                bad.append(found)

    sidecar.store("a", ARRAYS)
    reader = threading.Thread(target=read)
    reader.start()
    code = (
        "import numpy as np; from microtome.storage import sidecar\n"
        "for _ in range(50): sidecar.store('a', {'starts': np.arange(5000, dtype=np.int64),"
        " 'spans': np.arange(5000, dtype=np.uint32)})"
    )
    environment = os.environ | {"MICROTOME_CACHE_DIR": str(kept)}
    writers = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    stop.set()
    reader.join()
    assert not bad
    assert same(sidecar.load("a"))
    assert len(files(kept)) == 1


# -- slides -----------------------------------------------------------------------------------------------------------


def read_elsewhere(url: str, kept: Path) -> bytes:
    """Read some pixels in a process of its own."""
    code = (
        "import sys, microtome as mt\n"
        f"image = mt.open_slide({url!r}, chunks=None)['level0'].image\n"
        "sys.stdout.buffer.write(image[1500:1600, 1900:2000].values.tobytes())"
    )
    environment = os.environ | {"MICROTOME_CACHE_DIR": str(kept)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout


def test_another_process_does_not_walk(slide: SyntheticSlide, kept: Path) -> None:
    expected = slide.region(0, 1500, 1900, 100, 100)
    with RangeServer(slide.folder) as server:
        url = f"{server.url}/{slide.files[0].name}"
        got = read_elsewhere(url, kept)
        first = server.counts.bytes
        assert first > slide.files[0].stat().st_size
        assert got == expected.tobytes()
        assert len(files(kept)) == 1
        server.counts.reset()
        assert read_elsewhere(url, kept) == expected.tobytes()
        # the size, the header, and a read for each of two rows of frames
        assert [asked.method for asked in server.counts.log] == ["HEAD", "GET", "GET", "GET"], server.counts.log
        assert server.counts.bytes < first / 5


def test_what_costs_nothing_is_not_kept(kept: Path, tmp_path: Path) -> None:
    """The Extended Offset Table came with the header."""
    made = make_slide(tmp_path / "a", width=640, height=640, frame=64, levels=1, associated=False, codec="jpeg")
    with RangeServer(made.folder) as server:
        image = mt.open_slide(f"{server.url}/{made.files[0].name}", chunks=None)["level0"].image
        np.testing.assert_array_equal(image.values, mt.open_slide(made.folder, chunks=None)["level0"].image.values)
    assert files(kept) == []


def test_a_changed_file_is_walked_again(slide: SyntheticSlide, kept: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    file = served / "a.dcm"
    file.write_bytes(slide.files[0].read_bytes())
    with RangeServer(served) as server:
        _ = mt.open_slide(f"{server.url}/a.dcm", chunks=None)["level0"].image[0:10, 0:10].values
        other = make_slide(
            tmp_path / "b", width=2048, height=1600, frame=32, levels=1, associated=False, codec="encapsulated-native",
            offsets="empty", seed=9,
        )  # fmt: skip
        file.write_bytes(other.files[0].read_bytes())
        image = mt.open_slide(f"{server.url}/a.dcm", chunks=None)["level0"].image
        np.testing.assert_array_equal(image[1000:1100, 1000:1100].values, other.region(0, 1000, 1000, 100, 100))
    assert len(files(kept)) == 2


def index_of(url: str) -> tuple[str, dict[str, np.ndarray]]:
    """Return the identity of a file, and what is kept of it once it was read; its frames are forgotten."""
    image = mt.open_slide(url, chunks=None)["level0"].image
    _ = image[0:10, 0:10].values
    view = unwrap(image.variable)
    assert view is not None
    identity = view.array.reader.files[0][0].source._source.identity
    arrays = sidecar.load(identity)
    assert arrays is not None
    mt.cache.clear()
    return identity, arrays


def test_an_index_that_lies_is_replaced(slide: SyntheticSlide, kept: Path) -> None:
    with RangeServer(slide.folder) as server:
        url = f"{server.url}/{slide.files[0].name}"
        identity, arrays = index_of(url)
        sidecar.store(identity, arrays | {"starts": arrays["starts"] + 4, "rung": np.array(0)})
        again = mt.open_slide(url, chunks=None)["level0"].image
        np.testing.assert_array_equal(again[800:900, 800:900].values, slide.region(0, 800, 800, 100, 100))
        found = sidecar.load(identity)
        assert found is not None
        np.testing.assert_array_equal(found["starts"], arrays["starts"])


@pytest.mark.parametrize(
    "change",
    [
        {"starts": np.zeros(3)},
        {"starts": np.zeros((2, 2), np.int64)},
        {"rung": np.array(9)},
        {"rung": np.array(-1)},
        {"rung": np.array([1, 2])},
        {"spans": np.zeros(800, np.int64)},
        {"starts": np.zeros(0, np.int64), "spans": np.zeros(0, np.uint32), "rung": np.array(0)},
        {"starts": np.full(800, 1 << 60, np.int64), "rung": np.array(3)},
        {"starts": np.full(800, -1, np.int64)},
        {"starts": np.full(800, (1 << 63) - 1, np.int64), "rung": np.array(3)},  # whose ends wrap
    ],
)
def test_arrays_that_make_no_index(slide: SyntheticSlide, kept: Path, change: dict[str, np.ndarray]) -> None:
    with RangeServer(slide.folder) as server:
        url = f"{server.url}/{slide.files[0].name}"
        identity, arrays = index_of(url)
        sidecar.store(identity, arrays | change)
        again = mt.open_slide(url, chunks=None)["level0"].image
        np.testing.assert_array_equal(again[800:900, 800:900].values, slide.region(0, 800, 800, 100, 100))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("https://host/a.dcm?id=1", "https://host/a.dcm?id=2", False),
        ("https://host/a.dcm?id=1&X-Amz-Signature=a", "https://host/a.dcm?id=1&X-Amz-Signature=b", True),
        ("https://host/a.dcm?sv=1&sig=abc", "https://host/a.dcm?sv=2&sig=def", True),
        ("https://user:secret@host/a.dcm", "https://host/a.dcm", True),
        ("https://host/a.dcm", "https://host/b.dcm", False),
    ],
)
def test_signatures_tell_no_files_apart(one: str, other: str, alike: bool) -> None:
    fs = fsspec.filesystem("memory")
    marks = [FsspecSource(fs, "a", 10, uri, "shown", "mark").identity for uri in (one, other)]
    assert (marks[0] == marks[1]) == alike


def test_frames_belong_to_who_asked_for_them() -> None:
    """Two filesystems of the same options may ask for two accounts, which the environment named one after the other."""
    fsspec.filesystem("memory").clear_instance_cache()
    first = fsspec.filesystem("memory")
    again = FsspecSource(first, "a", 10, "memory://a", "memory://a", "mark").key
    assert again == FsspecSource(first, "a", 10, "memory://a", "memory://a", "mark").key
    first.clear_instance_cache()
    second = fsspec.filesystem("memory")
    assert second is not first
    assert again != FsspecSource(second, "a", 10, "memory://a", "memory://a", "mark").key
