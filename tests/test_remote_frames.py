"""Frames of files on servers: how many reads and bytes they take, and that they are the right ones.

Oracle: the pixels that went into the slide where its codec is lossless, else the same file read from disk. Requests are
counted by the server.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microtome as mt
from microtome.errors import MissingFrameError
from microtome.storage import BytesSource
from microtome.storage.ranges import GAP, MOST, WASTE, merge
from microtome.storage.reading_ahead import ReadingAhead
from microtome.testing import RangeServer, SyntheticSlide, make_slide
from test_frame_index import grid, write_tiff

FRAME = 64
NUMBERED = np.arange(5 << 19, dtype="<u4").tobytes()
"""10 MB, each place of which is told by its bytes."""


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path) -> Iterator[None]:
    mt.cache.clear()
    with mt.config.set(cache_dir=tmp_path / "kept"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        yield server
        assert not server.failures


Made = Callable[..., SyntheticSlide]


@pytest.fixture(scope="module")
def made(folder: Path) -> Made:
    known: dict[str, SyntheticSlide] = {}

    def make(**options: object) -> SyntheticSlide:
        name = "-".join(f"{k}={v}" for k, v in options.items())
        if name not in known:
            full = {
                "width": 40 * FRAME,
                "height": 30 * FRAME,
                "frame": FRAME,
                "levels": 1,
                "associated": False,
            } | options
            known[name] = make_slide(folder / f"slide{len(known)}", **full)
        return known[name]

    return make


def urls(server: RangeServer, slide: SyntheticSlide) -> list[str]:
    return [f"{server.url}/{slide.folder.name}/{file.name}" for file in slide.files]


def ranged(server: RangeServer) -> list[tuple[int, int]]:
    """(offset, length) of the ranges asked for."""
    found = []
    for asked in server.counts.log:
        if asked.range is not None:
            first, last = asked.range.removeprefix("bytes=").split("-")
            found.append((int(first), int(last) + 1 - int(first)))
    return found


# -- header and index -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"codec": "jpeg", "offsets": "eot"}, 2),
        ({"codec": "jpeg", "offsets": "bot"}, 2),
        ({"codec": "rle", "offsets": "bot", "fragments": 3}, 2),
        ({"codec": "native"}, 1),
        ({"codec": "jpeg", "offsets": "bot", "tiling": "sparse", "drop": 0.3, "shuffle": True}, 3),
        # 40,000 frames: tables of 640 kB, positions of 9 MB
        ({"codec": "jpeg", "offsets": "eot", "width": 3200, "height": 3200, "frame": 16}, 3),
        ({"codec": "jpeg", "offsets": "bot", "width": 3200, "height": 3200, "frame": 16}, 3),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_header_and_index_take_few_reads(server: RangeServer, made: Made, options: dict, most: int) -> None:
    slide = made(**options)
    server.counts.reset()
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    pixels = image[100:101, 100:101].values
    reads = ranged(server)
    assert len(reads) <= most + 1, reads  # one for the frame
    np.testing.assert_array_equal(
        pixels, mt.open_slide(slide.folder, chunks=None)["level0"].image[100:101, 100:101].values
    )
    if slide.files[0].stat().st_size > 4 << 20:
        assert sum(n for _, n in reads) < slide.files[0].stat().st_size / 2


@pytest.mark.parametrize("defined", [True, False], ids=["length stated", "length not stated"])
@pytest.mark.parametrize("offsets", ["bot", "eot"])
def test_positions_of_many_frames_take_three_reads(
    folder: Path, server: RangeServer, made: Made, offsets: str, defined: bool
) -> None:
    """40,000 frames: positions of 7 MB, a table of as many more bytes, and the end of the last frame."""
    slide = made(codec="jpeg", offsets=offsets, tiling="sparse", width=3200, height=3200, frame=16)
    data = slide.files[0].read_bytes()
    tag = b"\x00\x52\x30\x92SQ\0\0"
    at = data.index(tag) + len(tag)
    length = int.from_bytes(data[at : at + 4], "little")
    assert 5 << 20 < length < 0xFFFFFFFF
    name = f"{offsets}-{defined}.dcm"
    if not defined:
        stop = at + 4 + length
        end = b"\xfe\xff\xdd\xe0" + bytes(4)
        data = data[:at] + b"\xff" * 4 + data[at + 4 : stop] + end + data[stop:]
    (folder / name).write_bytes(data)
    server.counts.reset()
    image = mt.open_slide(f"{server.url}/{name}", chunks=None)["level0"].image
    here = mt.open_slide(slide.folder, chunks=None)["level0"].image
    np.testing.assert_array_equal(image[1600:1610, 1600:1610].values, here[1600:1610, 1600:1610].values)
    assert len(ranged(server)) <= 3 + 1, ranged(server)  # one for the frame
    assert server.counts.bytes < 1.2 * length + (2 << 20)


@pytest.mark.parametrize("kind", ["classic TIFF", "BigTIFF"])
def test_the_directory_of_a_dicom_tiff_takes_few_reads(folder: Path, server: RangeServer, kind: str) -> None:
    file = grid("jpeg", across=120, down=90)
    path = folder / f"{kind}.dcm"
    write_tiff(file, path, kind)
    assert path.stat().st_size > 3 << 20
    image = mt.open_slide(f"{server.url}/{path.name}", chunks=None)["level0"].image
    server.counts.reset()
    np.testing.assert_array_equal(image[100:116, 100:116].values, file.pixels[100:116, 100:116])
    offset_of_directory = file.end
    index, frames = [r for r in ranged(server) if r[0] >= offset_of_directory], 2  # rows of frames
    assert 1 <= len(index) <= 2
    assert len(ranged(server)) - len(index) <= frames
    assert server.counts.bytes < path.stat().st_size / 2


def test_a_file_without_a_table_is_walked_in_large_reads(server: RangeServer, made: Made) -> None:
    slide = made(codec="encapsulated-native", offsets="empty", width=3200, height=3200)
    size = slide.files[0].stat().st_size
    assert size > 24 << 20
    server.counts.reset()
    server.latency = 0.05
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    np.testing.assert_array_equal(image[3000:3100, 3000:3100].values, slide.region(0, 3000, 3000, 100, 100))
    assert len(ranged(server)) <= 1 + -(-size // (4 << 20)) + 2 + 2
    assert server.counts.peak > 1
    assert max(n for _, n in ranged(server)) <= 8 << 20


def test_large_items_are_passed_over(server: RangeServer, made: Made) -> None:
    """Of frames of 12 MB nothing is read to find them but their headers' neighbourhood."""
    slide = made(codec="encapsulated-native", offsets="empty", width=8192, height=4096, frame=(2048, 2048))
    server.counts.reset()
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    np.testing.assert_array_equal(image[4000:4096, 8000:8192].values, slide.region(0, 4000, 8000, 96, 192))
    of_frame = 2048 * 2048 * 3
    assert server.counts.bytes < slide.files[0].stat().st_size - 2 * of_frame


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from(["read", "announce", "keep"]), st.integers(0, 10 << 20), st.integers(0, 2 << 20)),
        max_size=12,
    )
)
def test_reading_ahead_gives_the_bytes_of_the_file(asked: list[tuple[str, int, int]]) -> None:
    """Whatever was read before, in front of it or behind it, announced or forgotten."""
    ahead = ReadingAhead(BytesSource(NUMBERED, "numbered"))
    for what, at, length in asked:
        if what == "read":
            assert ahead.read(at, length) == NUMBERED[at : at + length]
        elif what == "announce":
            ahead.announce(at)
        else:
            ahead.keep(at, at + length)


def test_the_arrays_of_a_tiff_may_lie_in_front_of_its_directory(tmp_path: Path) -> None:
    file = grid("jpeg", across=120, down=90)
    path = tmp_path / "a.dcm"
    file.write(path)
    at = file.end + 8
    arrays = np.array([[start + 8 for start in file.starts], [len(s) for s in file.streams]], "<u4").tobytes()
    # 5 MB lie between them, more than is read over.
    place = at + len(arrays) + (5 << 20)
    entries = [(324, 4, len(file.starts), at), (325, 4, len(file.starts), at + len(arrays) // 2)]
    directory = struct.pack("<H", 2) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    file.write(path, preamble=struct.pack("<2sHI", b"II", 42, place))
    path.write_bytes(path.read_bytes() + arrays + bytes(5 << 20) + directory)
    with RangeServer(tmp_path) as server:
        image = mt.open_slide(f"{server.url}/a.dcm", chunks=None)["level0"].image
        server.counts.reset()
        np.testing.assert_array_equal(image[100:116, 100:116].values, file.pixels[100:116, 100:116])
        assert len(ranged(server)) <= 3 + 2  # directory, two arrays, two rows of frames
        assert server.counts.bytes < 1 << 20


# -- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["jpeg", "native", "j2k-lossless"])
@pytest.mark.parametrize("together", [True, False])
def test_patches_take_two_reads_each_at_most(server: RangeServer, made: Made, codec: str, together: bool) -> None:
    slide = made(codec=codec)
    here = mt.open_slide(slide.folder, chunks=None)["level0"].image
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    random = np.random.default_rng(4)
    places = [(int(y), int(x)) for y, x in zip(random.integers(1, 1800, 20), random.integers(1, 2400, 20), strict=True)]
    _ = image[0:1, 0:1].values  # header and index are there
    mt.cache.clear()
    frames = {
        (i, j)
        for y, x in places
        for i in range(y // FRAME, (y + 55) // FRAME + 1)
        for j in range(x // FRAME, (x + 55) // FRAME + 1)
    }
    server.counts.reset()
    if together:
        got = image.wsi.patches(56, origins=places, order="given").image.values
    else:
        got = np.stack([image.wsi.read(y, x, 56, 56) for y, x in places])
    np.testing.assert_array_equal(got, np.stack([here[y : y + 56, x : x + 56].values for y, x in places]))
    reads = ranged(server)
    assert len(reads) <= 2 * len(places)
    assert len(reads) <= 0.75 * len(frames)  # 3.5 frames of a patch, at random
    assert sum(n for _, n in reads) == server.counts.bytes
    expected = here.wsi.patches(56, origins=places, order="given").image.wsi.explain()
    assert server.counts.bytes <= 1.3 * expected.bytes


def test_what_was_read_is_not_read_again(server: RangeServer, made: Made) -> None:
    slide = made(codec="jpeg")
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    _ = image[100:300, 100:300].values
    server.counts.reset()
    _ = image[110:290, 120:280].values
    again = mt.open_slide(urls(server, slide), chunks=None)["level0"].image  # the same frames, opened anew
    server.counts.reset()
    np.testing.assert_array_equal(again[110:290, 120:280].values, image[110:290, 120:280].values)
    assert again[110:290, 120:280].wsi.explain().bytes == 0
    assert ranged(server) == []


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    make_slide(tmp_path / "a", width=256, height=256, frame=FRAME, levels=1, associated=False, codec="native", seed=1)
    other = make_slide(
        tmp_path / "b", width=256, height=256, frame=FRAME, levels=1, associated=False, codec="native", seed=2
    )
    with RangeServer(tmp_path / "a") as server:
        (name,) = [file.name for file in (tmp_path / "a").iterdir()]
        before = mt.open_slide(f"{server.url}/{name}", chunks=None)["level0"].image.values
        (tmp_path / "a" / name).write_bytes(other.files[0].read_bytes())
        after = mt.open_slide(f"{server.url}/{name}", chunks=None)["level0"].image.values
    np.testing.assert_array_equal(after, other.pixels(0))
    assert (before != after).any()


def test_prefetch_fills_the_cache(server: RangeServer, made: Made) -> None:
    slide = made(codec="jpeg")
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    part = image[0:640, 0:640]
    assert part.wsi.prefetch() == 100
    assert part.wsi.prefetch() == 0
    server.counts.reset()
    np.testing.assert_array_equal(
        part.values, mt.open_slide(slide.folder, chunks=None)["level0"].image[0:640, 0:640].values
    )
    assert ranged(server) == []


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "jpeg"},  # 1,200 frames of 1 kB
        {"codec": "native"},  # of 12 kB
        {"codec": "native", "frame": (1024, 1024), "width": 4096, "height": 4096},  # 16 of 3 MB
    ],
    ids=["small", "middling", "large"],
)
def test_a_whole_level_takes_few_reads_of_bounded_size(server: RangeServer, made: Made, options: dict) -> None:
    slide = made(**options)
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    _ = image[0:1, 0:1].values
    mt.cache.clear()
    server.counts.reset()
    np.testing.assert_array_equal(image.values, mt.open_slide(slide.folder, chunks=None)["level0"].image.values)
    size = slide.files[0].stat().st_size
    assert len(ranged(server)) <= max(2, size // (2 << 20))
    assert max(n for _, n in ranged(server)) <= 5 << 20


def test_a_patch_takes_one_round_trip(folder: Path, made: Made) -> None:
    """All its reads are under way at a time."""
    slide = made(codec="native")
    with RangeServer(folder) as slow, mt.config.set(decode_threads=1):
        image = mt.open_slide(urls(slow, slide), chunks=None)["level0"].image
        _ = image[0:1, 0:1].values
        slow.counts.reset()
        slow.latency = 0.3
        got = image.wsi.read(30, 30, 200, 200)
        np.testing.assert_array_equal(got, slide.region(0, 30, 30, 200, 200))
        assert len(ranged(slow)) == slow.counts.peak == 4  # rows of frames


def test_statistics_count_what_was_fetched(server: RangeServer, made: Made) -> None:
    slide = made(codec="native")
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    _ = image[0:1, 0:1].values
    mt.cache.clear()
    mt.cache.reset_statistics()
    server.counts.reset()
    for _ in range(2):
        _ = image[0 : 2 * FRAME, 0 : 3 * FRAME].values
    told = mt.cache.statistics()
    assert (told.misses, told.hits, told.frames) == (6, 6, 6)
    assert told.requests == len(ranged(server)) == 2
    assert told.received == server.counts.bytes == 6 * FRAME * FRAME * 3


def test_a_read_larger_than_the_cache_leaves_what_is_in_it(server: RangeServer, made: Made) -> None:
    slide = made(codec="native")
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    size = slide.files[0].stat().st_size
    with mt.config.set(frame_cache_bytes=size // 2):
        corner = image[0:100, 0:100].values
        held, evicted = mt.cache.statistics().frames, mt.cache.statistics().evicted
        assert held == 4
        np.testing.assert_array_equal(image.values, slide.pixels(0))
        assert (mt.cache.statistics().frames, mt.cache.statistics().evicted) == (held, evicted)
        server.counts.reset()
        np.testing.assert_array_equal(image[0:100, 0:100].values, corner)
        assert ranged(server) == []


@pytest.mark.parametrize("cache_bytes", [0, 100_000])
def test_a_small_cache_changes_no_pixels(server: RangeServer, made: Made, cache_bytes: int) -> None:
    slide = made(codec="native")
    image = mt.open_slide(urls(server, slide), chunks=None)["level0"].image
    with mt.config.set(frame_cache_bytes=cache_bytes):
        np.testing.assert_array_equal(image.values, slide.pixels(0))
        assert mt.cache.statistics().bytes <= cache_bytes


def test_threads_that_want_the_same_fetch_it_once(folder: Path, made: Made) -> None:
    slide = made(codec="jpeg")
    with RangeServer(folder, latency=0.1) as slow:
        image = mt.open_slide(urls(slow, slide), chunks=None)["level0"].image
        _ = image[0:1, 0:1].values
        slow.counts.reset()
        expected = mt.open_slide(slide.folder, chunks=None)["level0"].image[500:700, 500:700].values
        got: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda: got.append(image[500:700, 500:700].values)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ranged(slow)) == 4  # rows of frames
    assert len(got) == 8
    for pixels in got:
        np.testing.assert_array_equal(pixels, expected)


# -- cut files, lying tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", ["eot", "bot", "empty"])
def test_cut_files(folder: Path, server: RangeServer, made: Made, offsets: str) -> None:
    slide = made(codec="jpeg", offsets=offsets)
    data = slide.files[0].read_bytes()
    cut = folder / f"cut-{offsets}"
    cut.mkdir()
    (cut / "a.dcm").write_bytes(data[: len(data) * 2 // 3])
    image = mt.open_slide(f"{server.url}/{cut.name}/a.dcm", chunks=None)["level0"].image
    here = mt.open_slide(slide.folder, chunks=None)["level0"].image
    np.testing.assert_array_equal(image[0:200, 0:200].values, here[0:200, 0:200].values)
    with pytest.raises(MissingFrameError, match="frame"):
        _ = image[1800:1900, 2400:2500].values
    server.counts.reset()
    filled = mt.open_slide(f"{server.url}/{cut.name}/a.dcm", chunks=None, missing="fill", fill=7)["level0"].image
    local = mt.open_slide(cut, chunks=None, missing="fill", fill=7)["level0"].image
    np.testing.assert_array_equal(filled.values, local.values)
    assert len(ranged(server)) <= 6


@pytest.mark.parametrize("offsets", ["eot", "bot"])
def test_a_table_that_lies_is_found_out(folder: Path, server: RangeServer, made: Made, offsets: str) -> None:
    slide = made(codec="jpeg", offsets=offsets)
    data = bytearray(slide.files[0].read_bytes())
    width, tag = (
        (8, b"\xe0\x7f\x01\x00OV\0\0")
        if offsets == "eot"
        else (4, b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0")
    )
    at = data.index(tag) + len(tag) + 4
    table = np.frombuffer(bytes(data[at : at + 1200 * width]), f"<u{width}").copy()
    table[600:] += 2
    data[at : at + 1200 * width] = table.tobytes()
    lying = folder / f"lying-{offsets}"
    lying.mkdir()
    (lying / "a.dcm").write_bytes(data)
    here = mt.open_slide(slide.folder, chunks=None)["level0"].image
    for _ in range(2):  # the second time with what was kept of the first
        mt.cache.clear()
        image = mt.open_slide(f"{server.url}/{lying.name}/a.dcm", chunks=None)["level0"].image
        np.testing.assert_array_equal(image[1500:1700, 1500:1700].values, here[1500:1700, 1500:1700].values)
        np.testing.assert_array_equal(image[0:100, 0:100].values, here[0:100, 0:100].values)


@pytest.mark.filterwarnings("ignore::microtome.errors.MicrotomeWarning")
def test_variants_are_the_same_from_a_server(variants: Path) -> None:
    """Every hard pyramid, read through a server, is what it is on disk."""
    with RangeServer(variants) as server:
        for folder in sorted(path for path in variants.iterdir() if path.is_dir()):
            here = mt.open_slide(folder, chunks=None)
            files = sorted(folder.iterdir())
            server.counts.reset()
            there = mt.open_slide([f"{server.url}/{folder.name}/{f.name}" for f in files], chunks=None)
            of_files = Counter(asked.path for asked in server.counts.log if asked.range is not None)
            assert max(of_files.values()) <= 2, (folder.name, of_files)  # one more for the frame index
            assert list(here.groups) == list(there.groups)
            for node in here.children:
                if node.startswith("level"):
                    np.testing.assert_array_equal(
                        there[node].image.values, here[node].image.values, err_msg=f"{folder.name} {node}"
                    )


# -- merging ----------------------------------------------------------------------------------------------------------


def test_merging() -> None:
    assert [tuple(m) for m in merge([])] == []
    assert [tuple(m) for m in merge([(0, 10), (10, 10)])] == [(0, 20, [0, 1])]
    assert [tuple(m) for m in merge([(10, 10), (0, 10)])] == [(0, 20, [1, 0])]
    assert [tuple(m) for m in merge([(0, 100), (110, 100)])] == [(0, 210, [0, 1])]  # 10 of 200
    assert len(merge([(0, 100), (150, 100)])) == 2  # 50 of 200
    assert len(merge([(0, 10 << 20), ((10 << 20) + GAP + 1, 10)])) == 2


def test_merging_is_bounded() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        count = int(random.integers(1, 300))
        sizes = random.integers(1, 60_000, count)
        gaps = random.integers(0, 2, count) * random.integers(0, 100_000, count)
        offsets = np.cumsum(sizes + gaps)
        ranges = [(int(o), int(n)) for o, n in zip(offsets - sizes, sizes, strict=True)]
        random.shuffle(ranges)
        merged = merge(ranges)
        assert sorted(n for m in merged for n in m.members) == list(range(count))
        for one in merged:
            wanted = sum(ranges[n][1] for n in one.members)
            assert wanted <= one.length <= (1 + WASTE) * wanted
            assert one.length <= MOST or len(one.members) == 1
            assert all(one.offset <= ranges[n][0] and sum(ranges[n]) <= one.offset + one.length for n in one.members)
