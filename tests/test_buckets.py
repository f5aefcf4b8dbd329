"""Slides in buckets, on web servers, in memory and in archives: the very pixels, by few requests and few bytes."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import microtome as mt
from microtome.errors import AuthenticationError, RequestError, SlideNotFoundError
from microtome.storage import list_files, retrying
from microtome.testing import SyntheticSlide, make_slide
from stores import GS_TOKEN, S3_KEY, S3_SECRET, Store, Stores, forget_filesystems

ODD = ("a b.dcm", "c#1.dcm", "d%20e.dcm", "f[1].dcm", "g*?.dcm", "ü'&;=+@~(),$!.dcm", "h:i.dcm")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What failed is tried again soon, and nothing of a slide is cached."""
    monkeypatch.setattr(retrying, "BACKOFF", 0.005)
    mt.cache.clear()
    yield
    forget_filesystems()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    """Three levels, label, overview and thumbnail; the finest level is megabytes."""
    folder = tmp_path_factory.mktemp("made") / "made"
    return make_slide(folder, width=1900, height=1300, frame=256, codec="native", levels=3)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    folder = tmp_path_factory.mktemp("compressed") / "compressed"
    return make_slide(folder, width=2000, height=1500, frame=256, codec="jpeg", quality=95, levels=2, associated=False)


def check(slide: Any, made: SyntheticSlide) -> None:
    for number in range(3):
        np.testing.assert_array_equal(slide[f"level{number}"].image.values, made.pixels(number))
    for name in ("label", "overview", "thumbnail"):
        assert slide[f"associated/{name}"].image.size


def finest(made: SyntheticSlide) -> Path:
    return max(made.files, key=lambda file: file.stat().st_size)


# -- the same pixels, whatever is named


def test_a_folder(store: Store, made: SyntheticSlide) -> None:
    url = store.put(made.folder)
    store.counts.reset()
    slide = mt.open_slide(url, storage_options=store.storage_options)
    opened = store.counts.log
    check(slide, made)
    listing = [asked for asked in opened if asked.range is None]
    heads = len(made.files) if store.name in ("nginx", "ranges") else 0
    assert len(listing) == 1 + heads
    assert [asked.method for asked in listing].count("HEAD") == heads
    whole = sum(file.stat().st_size for file in made.files)
    assert sum(asked.sent for asked in opened) < whole / 4


@pytest.mark.parametrize("how", ["no slash", "file", "glob", "glob in the middle", "list"])
def test_other_names(store: Store, made: SyntheticSlide, how: str) -> None:
    url = store.put(made.folder)
    web = store.name in ("nginx", "ranges")
    files = [f"{url}{file.name}" for file in made.files]
    if how == "glob in the middle":
        if web:
            pytest.skip("only the last part of a URL of a web server may be a pattern")
        targets: Any = f"{url.rstrip('/')[:-1]}*/*.dcm"
    else:
        targets = {
            "no slash": url.rstrip("/"),
            "file": f"{url}{finest(made).name}",
            "glob": f"{url}*.dcm",
            "list": files,
        }[how]
    store.counts.reset()
    slide = mt.open_slide(targets, storage_options=store.storage_options)
    requests = [asked for asked in store.counts.log if asked.range is None]
    if how == "file":
        np.testing.assert_array_equal(slide["level0"].image[:300].values, made.pixels(0)[:300])
        assert len(requests) == 1
    else:
        check(slide, made)
        most = {"list": len(files)}.get(how, 3 + (len(files) if web else 0))
        assert len(requests) <= most


def test_names_of_all_kinds(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "odd #%[x] ü"
    for name in ODD:
        (folder / "deep er").mkdir(parents=True, exist_ok=True)
        (folder / "deep er" / name).write_bytes(name.encode())
        (folder / name).write_bytes(name.encode() * 2)
    url = store.put(folder)
    entries = list_files([url], store.storage_options)
    assert len(entries) == 2 * len(ODD)
    assert len({entry.shown for entry in entries}) == len(entries)
    for entry in entries:
        (again,) = list_files([entry.uri], store.storage_options)
        assert (again.uri, again.size, again.identity) == (entry.uri, entry.size, entry.identity)
        source = again.source()
        assert source.read(0, 1000) == entry.source().read(0, 1000)
        assert source.read(0, 1000).decode() in (*ODD, *(name * 2 for name in ODD))


def test_patches(store: Store, compressed: SyntheticSlide) -> None:
    """Bytes and requests are those of the frames."""
    slide = mt.open_slide(store.put(compressed.folder), storage_options=store.storage_options)
    local = mt.open_slide(compressed.folder)["level0"].image
    image = slide["level0"].image
    image[:1, :1].values  # noqa: B018 - the index of the frames is known
    store.counts.reset()
    mt.cache.clear()
    np.testing.assert_array_equal(image[600:900, 500:800].values, local[600:900, 500:800].values)
    frames = 9
    assert 0 < store.counts.ranged == store.counts.requests <= 6
    size = finest(compressed).stat().st_size / (8 * 6)
    assert store.counts.bytes <= 1.6 * frames * size
    store.counts.reset()
    image[600:900, 500:800].values  # noqa: B018
    assert store.counts.requests == 0
    patches = image.wsi.patches(200)
    np.testing.assert_array_equal(patches.image[3:7].values, local.wsi.patches(200).image[3:7].values)


def test_a_listing_is_not_remembered(store: Store, made: SyntheticSlide, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.dcm").write_bytes(b"a")
    url = store.put(tmp_path / "s")
    assert len(list_files([url], store.storage_options)) == 1
    name = re.sub(r"^\w+://[^/]+/", "", url)
    store.write(f"{name}b.dcm", b"b")
    assert len(list_files([url], store.storage_options)) == 2
    store.remove(f"{name}a.dcm")
    assert [entry.uri for entry in list_files([url], store.storage_options)] == [f"{url}b.dcm"]
    store.write(f"{name}b.dcm", b"bb")
    assert [entry.size for entry in list_files([f"{url}b.dcm"], store.storage_options)] == [2]


def test_a_limit_of_files(store: Store, made: SyntheticSlide) -> None:
    with pytest.raises(SlideNotFoundError, match="more than 3 files"):
        list_files([store.put(made.folder)], store.storage_options, limit=3)


@pytest.mark.parametrize("path", ["nothing/", "nothing", "nothing.dcm", "nothing/*.dcm", "made/nothing.dcm"])
def test_nothing_is_there(store: Store, made: SyntheticSlide, path: str) -> None:
    store.put(made.folder)
    store.counts.reset()
    with pytest.raises(SlideNotFoundError, match=re.escape(store.url)):
        mt.open_slide(f"{store.url}/{path}", storage_options=store.storage_options)
    assert store.counts.requests <= 4


@pytest.mark.parametrize("name", ["gs", "s3"])
def test_no_such_bucket(stores: Stores, name: str) -> None:
    for url in (f"{name}://no-such-bucket/", f"{name}://no-such-bucket/a/", f"{name}://no-such-bucket/a.dcm"):
        with pytest.raises(SlideNotFoundError, match="no-such-bucket"):
            mt.open_slide(url, storage_options=stores[name].storage_options)


# -- credentials


def test_credentials_of_gs(gs: Store, made: SyntheticSlide, caplog: pytest.LogCaptureFixture) -> None:
    from google.oauth2.credentials import Credentials

    for file in made.files:
        gs.write(f"private/s/{file.name}", file.read_bytes())
    good = {**gs.storage_options, "token": Credentials(GS_TOKEN)}
    check(mt.open_slide("gs://private/s/", storage_options=good), made)
    for token in ("anon", Credentials("bad-SECRET")):
        for url in ("gs://private/s/", f"gs://private/s/{made.files[0].name}"):
            with pytest.raises(AuthenticationError, match=r"HTTP 401.*storage_options") as raised:
                mt.open_slide(url, storage_options={**gs.storage_options, "token": token})
            assert raised.value.__context__ is raised.value.__cause__ is None
    assert "SECRET" not in caplog.text + str(raised.value)


def test_credentials_of_s3(s3: Store, made: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in made.files:
        s3.write(f"public/s/{file.name}", file.read_bytes())
    url = s3.put(made.folder)
    endpoint = s3.storage_options
    check(mt.open_slide(url, storage_options=endpoint), made)  # from the environment
    check(mt.open_slide(url, storage_options={**endpoint, "key": S3_KEY, "secret": S3_SECRET}), made)
    names = [f"s3://public/s/{file.name}" for file in made.files]
    check(mt.open_slide(names, storage_options={**endpoint, "anon": True}), made)
    for wrong in ({"anon": True}, {"key": "bad", "secret": "bad-SECRET"}):
        for target in (url, f"{url}{made.files[0].name}"):
            with pytest.raises(AuthenticationError, match=r"HTTP 403.*storage_options") as raised:
                mt.open_slide(target, storage_options={**endpoint, **wrong})
            assert raised.value.__context__ is raised.value.__cause__ is None
            assert "SECRET" not in str(raised.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises((AuthenticationError, RequestError)):
        mt.open_slide(url, storage_options={**endpoint, "skip_instance_cache": True})


# -- chained


def test_memory_and_archives(made: SyntheticSlide, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{made.folder}/", "/cohort/one/", recursive=True)
    archive = tmp_path / "slides.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in made.files:
            packed.write(file, f"one/{file.name}")
        packed.writestr("readme.txt", "no slide")
    memory.pipe("/slides.zip", archive.read_bytes())
    for target in (
        "memory://cohort/one/", "memory://cohort/one", "memory://cohort/one/*.dcm", "zip://one/::memory://slides.zip",
        "zip://one/*.dcm::memory://slides.zip", "zip://::memory://slides.zip", f"zip://one/::file://{archive}",
        f"zip://one/::{archive}", "dir://one::memory://cohort", "simplecache::memory://cohort/one/",
        "zip://one/::simplecache::memory://slides.zip",
    ):  # fmt: skip
        check(mt.open_slide(target), made)
        for entry in list_files([target]):
            if entry.uri.endswith(".dcm") or ".dcm::" in entry.uri:
                assert [again.uri for again in list_files([entry.uri])] == [entry.uri]
    memory.rm("/cohort", recursive=True)
    memory.rm("/slides.zip")


@pytest.mark.parametrize("options", ["by name", "cached"])
def test_archives_in_stores(store: Store, made: SyntheticSlide, tmp_path: Path, options: str) -> None:
    archive = tmp_path / "slides.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in made.files:
            packed.write(file, f"one/{file.name}")
    url = store.write("archives/slides.zip", archive.read_bytes())
    store.counts.reset()
    of_store = {url.split("://")[0]: store.storage_options}
    if options == "cached":
        check(mt.open_slide(f"zip://one/::simplecache::{url}", storage_options=of_store), made)
        return
    slide = mt.open_slide(f"zip://one/::{url}", storage_options=of_store)
    np.testing.assert_array_equal(slide["level0"].image[300:500, 200:600].values, made.pixels(0)[300:500, 200:600])
    assert store.counts.bytes < archive.stat().st_size / 3
    check(slide, made)


def test_compressed_archives(ranges: Store, made: SyntheticSlide, tmp_path: Path) -> None:
    smallest = min(made.files, key=lambda file: file.stat().st_size)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(smallest, "a.dcm")
    for url in (
        f"zip://a.dcm::{ranges.write('x.zip', (tmp_path / 'x.zip').read_bytes())}",
        f"zip://a.dcm::{tmp_path}/x.zip",
    ):
        source = list_files([url])[0].source()
        assert source.read_many([(1000, 50), (10, 20)]) == [
            smallest.read_bytes()[o : o + n] for o, n in ((1000, 50), (10, 20))
        ]
        assert source.read(0, source.size + 10) == smallest.read_bytes()


def test_copies_of_files(store: Store, made: SyntheticSlide, tmp_path: Path) -> None:
    url = store.put(made.folder)
    options = {"simplecache": {"cache_storage": str(tmp_path / "copies")}, url.split("://")[0]: store.storage_options}
    slide = mt.open_slide(f"simplecache::{url}", storage_options=options)
    check(slide, made)
    store.counts.reset()
    mt.cache.clear()
    check(slide, made)
    assert store.counts.bytes == 0


# -- encrypted


def test_encrypted_connections(stores: Stores, made: SyntheticSlide) -> None:
    """In a process of its own: whom a connection trusts is settled when aiohttp is imported."""
    store = stores["nginx"]
    path = store.put(made.folder).removeprefix(store.url)
    code = (
        "import sys, microtome as mt\n"
        "slide = mt.open_slide(sys.argv[1])\n"
        "print(slide['level0'].image[100:300, 100:300].values.tobytes().hex())\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, f"{store.encrypted}{path}"]
    environment = {
        "PATH": "/usr/bin",
        "MICROTOME_CACHE_DIR": "",
        "MICROTOME_HTTP_RETRIES": "0",
        "HOME": str(made.folder),
    }
    trusted = {**environment, "SSL_CERT_FILE": str(store.certificate)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=trusted, check=False)
    assert done.returncode == 0, done.stderr
    assert bytes.fromhex(done.stdout) == made.pixels(0)[100:300, 100:300].tobytes()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode != 0
    assert "no encrypted connection can be made" in done.stderr.splitlines()[-1]
