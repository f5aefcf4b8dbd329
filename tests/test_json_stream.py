"""DICOM JSON as a stream.

Oracles: pydicom writes the JSON of files whose functional groups `parse_positions` reads from their bytes; pydicom's
``Dataset.from_json``; `json.loads` of the whole document.
"""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

import microtome as mt
from microtome.dicom import json_stream
from microtome.dicom.file_frames import with_positions
from microtome.dicom.functional_groups import FramePositions, parse_positions
from microtome.dicom.json_dataset import dataset_from_json
from microtome.dicom.json_positions import instances_to_json, positions_to_json
from microtome.dicom.json_stream import JsonInstance, read_json_instances
from microtome.dicom.part10 import PER_FRAME_GROUPS, read_outline
from microtome.errors import CorruptHeaderError, NotASlideError
from microtome.storage import LocalSource
from microtome.testing import make_slide

ABSENT = -(2**31)
GROUPS = "52009230"


def cut(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read(document: Any, size: int = 1 << 16) -> list[JsonInstance]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return list(read_json_instances(cut(data, size), "somewhere"))


def read_items(*items: Any, **element: Any) -> FramePositions | None:
    (instance,) = read([{GROUPS: {"vr": "SQ", "Value": list(items), **element}}])
    assert GROUPS not in instance.attributes
    return instance.positions


def same(a: FramePositions | None, b: FramePositions | None) -> None:
    if a is None or b is None:
        assert a is b
        return
    for name in ("row", "column", "z", "path"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert a.paths == b.paths
    np.testing.assert_equal(a.spacing, b.spacing)


def of_file(file: Path) -> tuple[Dataset, FramePositions | None]:
    """The header of a file for pydicom, and its positions from its bytes; None by the rule of `read_instance`."""
    ds = pydicom.dcmread(file, stop_before_pixels=True)
    outline = read_outline(LocalSource(str(file), file.stat().st_size))
    located = outline.located.get(PER_FRAME_GROUPS)
    if located is None:
        return ds, None
    data = outline.source.read(located.offset, located.length)
    positions = parse_positions(data, outline.encoding, int(ds.NumberOfFrames), "file")
    silent = not positions.stated and not positions.paths and positions.spacing is None
    return ds, None if silent else positions


SLIDES = {
    "sparse": {"tiling": "sparse", "drop": 0.5, "shuffle": True},
    "unaligned": {"tiling": "sparse-unaligned"},
    "planes": {"tiling": "sparse", "focal_planes": 3},
    "paths": {"tiling": "sparse", "paths": ("blue", "green")},
    "full": {"tiling": "full"},
    "big-endian": {"tiling": "sparse", "codec": "native-bigendian"},
}


@pytest.mark.parametrize("kind", SLIDES)
def test_positions_of_files(tmp_path, kind):
    made = make_slide(tmp_path, width=260, height=200, frame=32, **{"codec": "native", "levels": 2, **SLIDES[kind]})
    files = [of_file(file) for file in made.files]
    document = ("[" + ", ".join(ds.to_json() for ds, _ in files) + "]").encode()
    assert any(positions is not None for _, positions in files) == (kind != "full")
    whole = json.loads(document)
    for size in (1, 7, 1 << 16, len(document)):
        instances = read(document, size)
        assert len(instances) == len(files)
        for instance, attributes, (_, positions) in zip(instances, whole, files, strict=True):
            attributes.pop(GROUPS, None)
            assert instance.attributes == attributes
            same(instance.positions, positions)


def slides_of(real: Path) -> Iterator[Path]:
    for file in sorted(real.joinpath("dicom").rglob("*")):
        if file.is_file():
            try:
                outline = read_outline(LocalSource(str(file), file.stat().st_size))
            except (NotASlideError, CorruptHeaderError):
                continue
            if outline.pixel_data is not None and "VL Whole" in str(sop_class(file)):
                yield file


def sop_class(file: Path) -> str:
    ds = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"], force=True)
    return getattr(ds.get("SOPClassUID"), "name", "")


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("folder", ["3dhistech_BPAEC", "panimg", "highdicom"])
def test_positions_of_real_files(real, folder):
    found = 0
    for file in sorted(real.joinpath("dicom", folder).rglob("*")):
        if not file.is_file():
            continue
        try:
            ds, positions = of_file(file)
        except (pydicom.errors.InvalidDicomError, NotASlideError):
            continue
        found += positions is not None
        for size in (61, 1 << 16):
            (instance,) = read(ds.to_json().encode(), size)
            same(instance.positions, positions)
    assert found or folder == "3dhistech_BPAEC"


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_data_sets_of_real_files(real):
    count = 0
    for file in slides_of(real):
        ds = pydicom.dcmread(file, stop_before_pixels=True)
        ds.pop(PER_FRAME_GROUPS, None)
        (instance,) = read(ds.to_json().encode())
        assert dataset_from_json(instance.attributes, "x") == Dataset.from_json(ds.to_json()), file
        count += 1
    assert count > 20


def test_instances_come_as_soon_as_they_are_complete():
    asked = []

    def chunks() -> Iterator[bytes]:
        for n in range(3):
            asked.append(n)
            yield b"[,,"[n : n + 1] + b'{"00080018": {"vr": "UI", "Value": ["1.%d"]}}' % n
        yield b"]"

    for n, instance in enumerate(read_json_instances(chunks(), "x")):
        assert instance.attributes["00080018"]["Value"] == [f"1.{n}"]
        assert asked == list(range(n + 1))
    assert n == 2


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("document", [b"", b" \r\n\t", b"[]", b" [ ] ", b"\xef\xbb\xbf", b"\xef\xbb\xbf[\n]\n"])
def test_no_instances(document, size):
    assert read(document, size) == []


def test_one_object_is_an_array_of_one():
    (instance,) = read(b'\xef\xbb\xbf {"00280010": {"vr": "US", "Value": [512]}} ', 1)
    assert instance.attributes == {"00280010": {"vr": "US", "Value": [512]}}
    assert instance.positions is None


def test_keys():
    document = [{"7fe00010": {"vr": "OB"}, "PatientName": {}, "0x280010": 1, "(0028,0010)": 2, "0028001_": 3, "": 4}]
    assert read(document)[0].attributes == {"7FE00010": {"vr": "OB"}}
    assert read([{}])[0].attributes == {}
    assert read([{GROUPS: {"vr": "SQ"}}])[0].attributes == {}
    with pytest.raises(CorruptHeaderError, match="no DICOM tag"):
        read({"error": {"code": 403}})


def test_bulk_functional_groups_are_left_for_the_caller():
    (instance,) = read([{GROUPS: {"vr": "SQ", "BulkDataURI": "bulk/1"}}])
    assert instance.attributes == {GROUPS: {"vr": "SQ", "BulkDataURI": "bulk/1"}}
    assert instance.positions is None


def test_a_repr_shows_no_patient():
    (instance,) = read([{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}}])
    assert "Doe" not in repr(instance)


def plane(**values: Any) -> dict[str, Any]:
    return {"0048021A": {"vr": "SQ", "Value": [{k.lstrip("_"): v for k, v in values.items()}]}}


def at(row: Any, column: Any) -> dict[str, Any]:
    return plane(_0048021F={"vr": "SL", "Value": [row]}, _0048021E={"vr": "SL", "Value": [column]})


def path(element: Any) -> dict[str, Any]:
    return {"00480207": {"vr": "SQ", "Value": [{"00480106": element}]}}


@pytest.mark.parametrize(
    ("item", "row", "column"),
    [
        (at(257, 513), 256, 512),
        (at("257", " 513 "), 256, 512),
        (at(257.0, "513.0"), 256, 512),
        (at(-5, 0), -6, -1),
        (at(2**31 - 1, 1), 2**31 - 2, 0),
        (at(257, None), 256, ABSENT),
        (at(257, ""), 256, ABSENT),
        (plane(_0048021F={"Value": [257], "vr": "SL"}, _0048021E={"Value": [513]}), 256, 512),
        (plane(_0048021f={"vr": "SL", "Value": [257]}, _0048021e={"vr": "SL", "Value": [513]}), 256, 512),
        (plane(_0048021F={"vr": "SL", "Value": 257}, _0048021E={"vr": "SL", "Value": []}), 256, ABSENT),
        (plane(_0048021F={"vr": "SL"}, _0048021E=None), ABSENT, ABSENT),
        (plane(_0048021F={"vr": "SL", "Value": None}, _0048021E={}), ABSENT, ABSENT),
        ({"0048021a": {"vr": "SQ", "Value": {"0048021F": {"vr": "SL", "Value": [3]}}}}, 2, ABSENT),
        ({"0048021A": {"vr": "SQ", "Value": [None]}}, ABSENT, ABSENT),
        ({"0048021A": {"vr": "SQ"}}, ABSENT, ABSENT),
        ({"0048021A": None}, ABSENT, ABSENT),
        ({}, ABSENT, ABSENT),
        (None, ABSENT, ABSENT),
    ],
)
def test_values_as_servers_write_them(item, row, column):
    positions = read_items(item, at(1, 1), path({"vr": "SH", "Value": ["a"]}))
    assert positions is not None
    assert positions.row.tolist() == [row, 0, ABSENT]
    assert positions.column.tolist() == [column, 0, ABSENT]


@pytest.mark.parametrize(
    ("value", "z"),
    [(1.5, 1.5), (2, 2.0), ("1.5", 1.5), ("1.5 ", 1.5), ("NaN", math.nan), ("", math.nan), (None, math.nan)],
)
def test_z(value, z):
    item = at(1, 1)
    item["0048021A"]["Value"][0]["0040074A"] = {"vr": "DS", "Value": [value]}
    positions = read_items(item, at(1, 1))
    assert positions is not None
    np.testing.assert_array_equal(positions.z, [z, math.nan])


def test_paths_and_spacing():
    def measures(*values: Any) -> dict[str, Any]:
        return {"00289110": {"vr": "SQ", "Value": [{"00280030": {"vr": "DS", "Value": list(values)}}]}}

    positions = read_items(
        {}, path({"vr": "SH", "Value": ["b "]}), path({"vr": "SH", "Value": ["a"]}), path({"vr": "SH"}), path(None),
        path({"vr": "SH", "Value": [None]}), path({"vr": "SH", "Value": ["b"]}), path({"Value": [1]}),
    )  # fmt: skip
    assert positions is not None
    assert positions.paths == ("b", "a", "", "1")
    assert positions.path.tolist() == [0, 0, 1, 2, 0, 2, 0, 3]
    assert positions.spacing is None
    for values in ((0.5, 0.25), ("0.5", "0.25"), ("0.5\\0.25",)):
        positions = read_items({}, measures(), measures(1), measures(None, 1), measures(*values), measures(7, 7))
        assert positions is not None
        assert positions.spacing == (0.5, 0.25)


@pytest.mark.parametrize("value", [None, [], [{}], [None, {}], {}, [{"0048021A": {"vr": "SQ"}}], [at(1, None)]])
def test_groups_that_place_nothing(value):
    (instance,) = read([{GROUPS: {"vr": "SQ", "Value": value}, "00280008": {"vr": "IS", "Value": [2]}}])
    assert instance.positions is None
    assert list(instance.attributes) == ["00280008"]
    assert read([{GROUPS: None}])[0].positions is None
    assert read([{GROUPS: {}}])[0].positions is None


@pytest.mark.parametrize(
    "item",
    [
        at("x", 1), at(1.5, 1), at(True, 1), at([1], 1), at({}, 1), at(2**31 + 1, 1), at(-(2**31), 1), at(10**400, 1),
        at("NaN", 1), at("inf", 1), at("9" * 5000, 1), 1, "text", [at(1, 1)], False,
        {"0048021A": 5}, {"0048021A": []}, {"0048021A": {"Value": ["text"]}}, {"0048021A": {"Value": [[at(1, 1)]]}},
        {"00480207": {"Value": [7]}}, path({"vr": "SH", "Value": [{"a": 1}]}), path("text"),
        plane(_0040074A={"vr": "DS", "Value": ["high"]}), plane(_0040074A={"vr": "DS", "Value": [10**400]}),
    ],
)  # fmt: skip
def test_items_that_are_none(item):
    with pytest.raises(CorruptHeaderError, match=r"somewhere.*frame 2"):
        read_items(at(1, 1), item)


def test_too_many_paths():
    def chunks() -> Iterator[bytes]:
        yield b'[{"52009230": {"vr": "SQ", "Value": [{}'
        for n in range(40000):
            yield b"," + json.dumps(path({"vr": "SH", "Value": [n]})).encode()

    with pytest.raises(CorruptHeaderError, match="frame 32770"):
        list(read_json_instances(chunks(), "somewhere"))


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    "document",
    [
        b"<!DOCTYPE html><html><body>Sign in</body></html>", b'<?xml version="1.0"?>', b"null", b"12", b'"text"',
        b"tru", b"\x1f\x8b\x08\x00", b"\xff\xfe[\x00]\x00", b"[\x00]", b"\xef\xbb", b"\xef\xbb\xbf\xef\xbb\xbf[]",
        b"\xc3", b"}", b"[{}", b"[{},", b"[{},]", b"[{}{}]", b"[{}}", b"[1]", b"[null]", b"[[]]", b"[{}] {}",
        b"{} {}", b"[] x", b"[,{}]", b"[]]", b'[{"00280010"}]', b'[{"00280010":}]', b'[{"00280010":1,}]',
        b'[{"00280010":1 "00280011":2}]', b"[{1:2}]", b"[{,}]", b'[{"00280010":1]]',
        b'[{"00280010":{"Value":[NaN]}}]', b'[{"00280010":Infinity}]', b'[{"00280010":-Infinity}]',
        b'[{"00280010":01}]', b'[{"00280010":1.}]', b'[{"00280010":1e}]', b'[{"00280010":-}]', b'[{"00280010":.5}]',
        b'[{"00280010":\'a\'}]', b'[{"00280010":"\xff"}]', b'[{"00280010":"\xed\xa0\x80"}]', b'[{"00280010":"a\nb"}]',
        b'[{"00280010":"\\x"}]', b'[{"00280010":"\\u12"}]', b'[{"52009230":7}]', b'[{"52009230":[]}]',
        b'[{"52009230":{"Value":[{}}}]', b'[{"52009230":{"Value":[{},]}}]', b'[{"52009230":{"Value":7}}]',
        b'[{"52009230":{"Value":[NaN]}}]', b'[{"00280010":' + b"9" * 5000 + b"}]",
    ],
)  # fmt: skip
def test_what_is_no_dicom_json(document, size):
    with pytest.raises(CorruptHeaderError, match=r"^somewhere: "):
        read(document, size)


def test_html_is_named():
    with pytest.raises(CorruptHeaderError, match="HTML"):
        read(b"\n<html>")


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
@pytest.mark.parametrize("before", [b'{"00280010":', b'{"52009230":{"Value":[', b'{"52009230":', b""])
def test_deep_nesting(before, bracket):
    with pytest.raises(CorruptHeaderError, match="somewhere"):
        read(before + bracket * 200_000, 1 << 14)


EXAMPLE: list[dict[str, Any]] = [
    {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "52009230": {
            "Value": [at(1, 257), {**at(257, -1), **path({"vr": "SH", "Value": ["ü€"]})}, None, {}],
            "vr": "SQ",
        },
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": 'Jürgen "\\" 山田 \U0001f52c'}]},
        "00280008": {"vr": "IS", "Value": [4, -1.25e-3, 1e5, True, None]},
        "0028FFFF": -12.5e3,
    },
    {"00280010": 0},
]
TEXT = json.dumps(EXAMPLE, ensure_ascii=False, indent=1).encode()
ESCAPED = json.dumps(EXAMPLE).encode()


def check_example(instances: list[JsonInstance]) -> None:
    first, second = instances
    assert first.attributes == {k: v for k, v in EXAMPLE[0].items() if k != GROUPS}
    assert second.attributes == EXAMPLE[1]
    assert first.positions is not None
    assert first.positions.row.tolist() == [0, 256, ABSENT, ABSENT]
    assert first.positions.column.tolist() == [256, -2, ABSENT, ABSENT]
    assert first.positions.paths == ("ü€",)


@pytest.mark.parametrize("document", [TEXT, ESCAPED, b"\xef\xbb\xbf" + TEXT])
def test_every_border_and_every_cut(document):
    for size in range(1, 40):
        check_example(read(document, size))
    for end in range(1, len(document)):
        check_example(list(read_json_instances([document[:end], b"", document[end:]], "x")))
        if document[:end] != b"\xef\xbb\xbf":
            for size in (13, 1 << 16):
                with pytest.raises(CorruptHeaderError):
                    read(document[:end], size)


@given(st.lists(st.integers(0, len(TEXT)), max_size=30))
@settings(deadline=None)
def test_chunks_of_any_size(borders):
    edges = [0, *sorted(borders), len(TEXT)]
    check_example(list(read_json_instances((TEXT[a:b] for a, b in itertools.pairwise(edges)), "x")))


def loads(data: bytes) -> Any:
    """Read as `json.loads` does, which allows NaN; a ValueError for what is no JSON."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    return json.loads(data.decode("utf-8-sig"), parse_constant=refuse)


@given(
    st.sampled_from([TEXT, ESCAPED]),
    st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.integers(0, 3),
            st.one_of(
                st.binary(max_size=2), st.sampled_from([b'"', b"[", b"]", b"{", b"}", b",", b"NaN", b"\\", b"1e9"])
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([1, 17, 1 << 16]),
)
@settings(deadline=None, max_examples=400)
def test_damage_is_an_error_or_harmless(data, damage, size):
    for where, taken, put in damage:
        place = int(where * len(data))
        data = data[:place] + put + data[place + taken :]
    try:
        whole = loads(data)
    except ValueError:
        if data.strip(b" \r\n\t"):
            with pytest.raises(CorruptHeaderError):
                read(data, size)
        return
    try:
        instances = read(data, size)
    except CorruptHeaderError:
        return
    whole = [whole] if isinstance(whole, dict) else whole
    assert len(whole) == len(instances)
    for attributes, instance in zip(whole, instances, strict=True):
        groups = attributes.pop(GROUPS, None)
        items = groups.get("Value") if isinstance(groups, dict) else None
        expected: dict[str, Any] = {}
        for key, value in attributes.items():
            if len(key) == 8 and set(key) <= set("0123456789abcdefABCDEF"):
                expected[key.upper()] = value
        instance.attributes.pop(GROUPS, None)
        assert instance.attributes == expected
        if instance.positions is not None:
            assert len(instance.positions.row) == (len(items) if isinstance(items, list) else 1)


def stream(frames: int) -> Iterator[bytes]:
    """One instance whose functional groups are some 700 bytes a frame, never held whole."""
    filler = {"00209111": {"vr": "SQ", "Value": [{"00209056": {"vr": "SH", "Value": ["1" * 500]}}]}}
    item = json.dumps({**filler, **at("ROW", "COLUMN")}).replace('"ROW"', "%d").replace('"COLUMN"', "%d").encode()
    yield b'[{"52009230": {"vr": "SQ", "Value": ['
    for n in range(frames):
        yield (b"," if n else b"") + item % (1 + n // 256, 1 + n % 256)
    yield b']}, "00280008": {"vr": "IS", "Value": [%d]}}]' % frames


def gathered(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    held = b""
    for chunk in chunks:
        held += chunk
        if len(held) >= size:
            yield held
            held = b""
    yield held


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_memory(size):
    frames = 50_000
    read(b"".join(stream(10)))  # imports
    tracemalloc.start()
    try:
        (instance,) = read_json_instances(gathered(stream(frames), size), "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert instance.positions is not None
    np.testing.assert_array_equal(instance.positions.row, np.arange(frames) // 256)
    np.testing.assert_array_equal(instance.positions.column, np.arange(frames) % 256)
    assert peak < (18 * frames * 1.2) + 4 * (1 << 20)


@pytest.mark.parametrize(
    "before", [b'{"00280010":', b'{"52009230":{"Value":[', b'{"52009230":', b"{", b'{"52009230":{']
)
@pytest.mark.parametrize("again", [b'["', b'"long', b"[[],", b"[12,", b"[" + b"1" * 4000, b"0."])
def test_a_value_without_end(monkeypatch, before, again):
    monkeypatch.setattr(json_stream, "MAX_VALUE", 100_000)
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        yield before + again
        while True:
            taken += 1000
            yield (again[-4:] if again.endswith(b",") else b"1") * 1000

    with pytest.raises(CorruptHeaderError):
        next(read_json_instances(chunks(), "somewhere"))
    assert taken < 300_000


def test_attributes_without_end(monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_VALUE", 100_000)

    def chunks() -> Iterator[bytes]:
        yield b"{"
        n = 0
        while True:
            yield b'"%08X": "%s",' % (n, b"a" * 1000)
            n += 1

    with pytest.raises(CorruptHeaderError, match="attributes of one instance"):
        next(read_json_instances(chunks(), "somewhere"))
    with pytest.raises(CorruptHeaderError, match="single value"):
        read(b'{"00280010": "' + b"a" * 100_001 + b'"}')


def test_a_long_value_is_not_read_again_for_every_chunk(monkeypatch):
    attempts = 0
    decode = json_stream._decode

    def counted(text: str, pos: int) -> tuple[Any, int]:
        nonlocal attempts
        attempts += 1
        return decode(text, pos)

    monkeypatch.setattr(json_stream, "_decode", counted)
    text = "ab" * 200_000
    document = json.dumps([{"00282000": {"vr": "OB", "InlineBinary": text}}]).encode()
    assert read(document, 7)[0].attributes["00282000"]["InlineBinary"] == text
    assert attempts < 50


def test_damage_far_from_the_end_is_seen_at_once():
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        yield b'[{"00280010": {"vr": "US" ; "Value": [1]}'
        while True:
            taken += 1
            yield b" " * 1000

    with pytest.raises(CorruptHeaderError, match="character 15"):
        next(read_json_instances(chunks(), "somewhere"))
    assert taken < 3


def test_errors_of_the_source_pass_through():
    def chunks() -> Iterator[bytes]:
        yield TEXT[:100]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        list(read_json_instances(chunks(), "x"))


positions_strategy = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        *(st.lists(st.one_of(st.just(ABSENT), st.integers(-(2**31), 2**31 - 2)), min_size=n, max_size=n) for _ in "rc"),
        st.lists(st.floats(), min_size=n, max_size=n),
        st.lists(st.sampled_from("abc "), min_size=n, max_size=n),
        st.booleans(),
        st.none() | st.tuples(st.floats(), st.floats()),
    )
)


@given(positions_strategy)
@settings(deadline=None)
def test_round_trip(drawn):
    row, column, z, names, with_paths, spacing = drawn
    names = [name.strip() for name in names] if with_paths else []
    paths = tuple(dict.fromkeys(names))
    positions = FramePositions(
        np.array(row, np.int32),
        np.array(column, np.int32),
        np.array(z, np.float64),
        np.array([paths.index(name) for name in names] if names else [0] * len(row), np.int16),
        paths,
        spacing,
    )
    again = read_items(*json.loads(json.dumps(list(positions_to_json(positions)), allow_nan=False)))
    same(again, positions if positions.stated or paths or spacing is not None else None)


def test_positions_to_json_is_dicom():
    positions = read_items({**at(1, 257), **path({"vr": "SH", "Value": ["a"]})}, at(257, 1))
    assert positions is not None
    ds = Dataset.from_json({GROUPS: {"vr": "SQ", "Value": list(positions_to_json(positions))}})
    places = [item.PlanePositionSlideSequence[0] for item in ds.PerFrameFunctionalGroupsSequence]
    assert [p.RowPositionInTotalImagePixelMatrix for p in places] == [1, 257]
    assert [p.ColumnPositionInTotalImagePixelMatrix for p in places] == [257, 1]


def test_positions_to_json_is_lazy():
    n = 10**6
    zeros = np.zeros(n, np.int32)
    positions = FramePositions(zeros, zeros, np.zeros(n), np.zeros(n, np.int16), (), None)
    tracemalloc.start()
    try:
        next(iter(positions_to_json(positions)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_instances_to_json_is_what_json_makes_of_a_list():
    positions = read_items({**at(1, 257), **path({"vr": "SH", "Value": ["a"]})}, at(257, 1))
    assert positions is not None
    attributes = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": 'Ä"^B'}]}, "00280010": {"vr": "US"}, "7FE00010": {}}
    document = [
        with_positions(attributes, "1.2.840.10008.1.2.1", positions),
        {},
        with_positions({}, "", None),
        {GROUPS: {"vr": "SQ", "Value": iter(())}},
    ]
    expected = [*document[:3], {GROUPS: {"vr": "SQ", "Value": []}}]
    expected[0] = document[0] | {GROUPS: {"vr": "SQ", "Value": list(positions_to_json(positions))}}
    assert instances_to_json(document) == json.dumps(expected)
    assert instances_to_json([]) == "[]"


def test_instances_to_json_takes_little_more_than_the_text():
    n = 100_000
    rows = np.arange(n, dtype=np.int32)
    paths = (np.arange(n) % 2).astype(np.int16)
    positions = FramePositions(rows * 7, rows[::-1].copy(), rows / 4, paths, ("a", "b"), (0.5, 0.25))
    tracemalloc.start()
    try:
        text = instances_to_json([with_positions({}, "", positions)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(text)  # a list of its items takes six times as much
    (instance,) = read_json_instances(cut(text.encode(), 1 << 16), "x")
    same(instance.positions, positions)


def test_a_sparse_slide_to_json_and_back(tmp_path):
    made = make_slide(
        tmp_path, width=300, height=260, frame=32, tiling="sparse", drop=0.5, shuffle=True, paths=("a", "b")
    )
    text = mt.open_slide(tmp_path).wsi.to_json()
    found = {i.attributes["00080018"]["Value"][0]: i.positions for i in read_json_instances([text.encode()], "x")}
    assert len(found) == len(made.files)
    for file in made.files:
        ds, positions = of_file(file)
        same(found[ds.SOPInstanceUID], positions)
