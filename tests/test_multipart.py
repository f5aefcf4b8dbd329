"""Multipart answers: right parts or an error, never wrong bytes, however they are written and wherever they are cut."""

from __future__ import annotations

from contextlib import suppress
from email.message import Message
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.errors import ProtocolError
from microtome.storage.dicomweb.multipart import media_type, split_parts, stream_first_part

W = "http://h/frames/1,2"
CHARACTERS = "0123456789ABCXYZabcxyz'()+_,-./:=?"  # RFC 2046 5.1.1


def body(
    parts: list[tuple[dict[str, str], bytes]], boundary: str, preamble: bytes = b"", epilogue: bytes = b""
) -> bytes:
    out = preamble + b"\r\n" if preamble else b""
    for headers, data in parts:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        out += f"--{boundary}\r\n{head}\r\n".encode() + data + b"\r\n"
    return out + f"--{boundary}--".encode() + epilogue


def bodies(data: bytes, boundary: str) -> list[bytes]:
    return [bytes(part.body) for part in split_parts(data, boundary, W)]


@pytest.mark.parametrize(
    ("value", "name", "parameters"),
    [
        ("", "", {}),
        ("image/JPEG", "image/jpeg", {}),
        ("image/jpeg; transfer-syntax=1.2", "image/jpeg", {"transfer-syntax": "1.2"}),
        ('a/b; type="a/b; c=d"; Boundary="x;y"', "a/b", {"type": "a/b; c=d", "boundary": "x;y"}),
        ("multipart/related;boundary=x ; type=a/b", "multipart/related", {"boundary": "x", "type": "a/b"}),
        ("multipart/related; boundary=DICOM DATA BOUNDARY", "multipart/related", {"boundary": "DICOM DATA BOUNDARY"}),
        ('multipart/related; boundary = "a\\"b\\\\c"', "multipart/related", {"boundary": 'a"b\\c'}),
        ('multipart/related; boundary="open', "multipart/related", {"boundary": "open"}),
        ('multipart/related; type=""; boundary=x', "multipart/related", {"type": "", "boundary": "x"}),
        ("multipart/related; boundary*=us-ascii'en'x", "multipart/related", {"boundary*": "us-ascii'en'x"}),
        ("multipart/related; boundary=a; boundary=b", "multipart/related", {"boundary": "a"}),
        ("; ; =;x", "", {}),
    ],
)  # fmt: skip
def test_content_types(value: str, name: str, parameters: dict[str, str]) -> None:
    assert media_type(value) == (name, parameters)


@given(st.text(max_size=60))
def test_any_content_type_is_read(value: str) -> None:
    media_type(value)


@given(boundary=st.text(CHARACTERS, min_size=1, max_size=70))
def test_a_boundary_is_read_as_the_standard_library_writes_it(boundary: str) -> None:
    message = Message()
    message.add_header("Content-Type", "multipart/related", boundary=boundary, type="application/octet-stream")
    assert media_type(message["Content-Type"]).parameters["boundary"] == boundary


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"--b--", []),
        (b"--b--\r\n", []),
        (b"--b\r\n\r\nxy\r\n--b--", [b"xy"]),
        (b"--b\r\n\r\n\r\n--b--", [b""]),
        (b"--b  \t\r\nA: 1\r\n\r\nx\r\n--b--", [b"x"]),
        (b"\r\n--b\r\nA: 1\r\n\r\nx\r\n--b--", [b"x"]),
        (b"before --b\r\n--b\r\nA: 1\r\n\r\nx\r\n--b\r\nB: 2\r\n\r\ny\r\n--b--after\r\n--b\r\n", [b"x", b"y"]),
        (b"--b\r\nContent-Length: 8\r\n\r\nx\r\n--b\r\n\r\n--b--", [b"x\r\n--b\r\n"]),
        (b"--b\r\nContent-Length: many\r\n\r\nx\r\n--b--", [b"x"]),
        (b"--b\r\nA: 1\r\n 2\r\n\r\nx\r\n--b--", [b"x"]),
    ],
)
def test_ways_to_write_parts(data: bytes, expected: list[bytes]) -> None:
    assert bodies(data, "b") == expected
    if expected:
        assert b"".join(stream_first_part([data], "b", W)) == expected[0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"--other\r\n\r\nx\r\n--other--",
        b"text --b\r\n\r\nx",  # no line of its own
        b"--b",
        b"--b-",
        b"--b\r\n",
        b"--b\r\nA: 1",
        b"--b\r\nA: 1\r\n\r\nx",
        b"--b\r\nA: 1\r\n\r\nx\r\n--",
        b"--b\r\nA: 1\r\n--b\r\n\r\nx\r\n--b--",  # headers without an end
        b"--b\r\nA: 1\r\n\r\n--b--",  # a body without an end
        b"--b\r\nContent-Length: 3\r\n\r\nxy\r\n--b--",
        b"--b\r\nContent-Length: 1\r\n\r\nxy\r\n--b--",
        b"--b\r\nContent-Length: 999999999999\r\n\r\nxy\r\n--b--",
        b"--b\nA: 1\n\nx\n--b--",  # no server is known to end lines so
        b"--b\r\n" + b"A: 1\r\n" * 5000 + b"\r\nx\r\n--b--",
    ],
)
def test_what_is_no_whole_multipart_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^http://h/frames/1,2: "):
        split_parts(data, "b", W)
    with pytest.raises(ProtocolError, match=r"^http://h/frames/1,2: "):
        list(stream_first_part([data], "b", W))


def test_a_line_that_begins_like_a_delimiter_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="boundary stands inside a part"):
        split_parts(b"--b\r\n\r\nx\r\n--bc\r\ny\r\n--b--", "b", W)


def test_a_boundary_that_the_header_does_not_state_is_that_of_the_first_line() -> None:
    data = b"\r\n--some thing\r\nA: 1\r\n\r\nx\r\n--some thing--"
    assert bodies(data, "") == [b"x"]
    assert list(stream_first_part([data[i : i + 1] for i in range(len(data))], "", W)) == [b"x"]
    for bad in (b"", b"{}", b"--" + b"x" * 80 + b"\r\n"):
        with pytest.raises(ProtocolError):
            split_parts(bad, "", W)
        with pytest.raises(ProtocolError):
            list(stream_first_part([bad], "", W))


def test_headers_have_names_in_lower_case_and_folded_lines() -> None:
    (part,) = split_parts(b"--b\r\nContent-TYPE: a;\r\n b=c\r\nnonsense\r\n\r\nx\r\n--b--", "b", W)
    assert part.headers == {"content-type": "a; b=c"}


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, list[tuple[dict[str, str], bytes]], bytes]:
    boundary = draw(st.text(CHARACTERS, min_size=1, max_size=70))
    delimiter = f"--{boundary}".encode()
    pieces = st.sampled_from(
        [b"\r\n", b"--", b"-", b"\r", b"\n", delimiter[:-1] + b"!", b"\r\n" + delimiter[:-1], b"\0"]
    )
    data = st.one_of(st.binary(max_size=40), st.lists(pieces, max_size=6).map(b"".join))
    parts = []
    for content in draw(st.lists(data, max_size=4)):
        headers = draw(st.dictionaries(st.sampled_from(["X-A", "Content-Type"]), st.sampled_from(["a/b", "1; c=2"])))
        if draw(st.booleans()):
            headers["Content-Length"] = str(len(content))
        if delimiter not in b"\r\n" + content + b"\r\n":  # a boundary is chosen so
            parts.append((headers, content))
    preamble = draw(st.sampled_from([b"", b"This is a message\r\nin parts.", b"-", b"\r\n"]))
    epilogue = draw(st.sampled_from([b"", b"\r\n", b"\r\nafter it"]))
    return boundary, parts, body(parts, boundary, preamble if delimiter not in preamble else b"", epilogue)


@given(messages())
def test_parts_come_back(message: tuple[str, list[tuple[dict[str, str], bytes]], bytes]) -> None:
    boundary, parts, data = message
    got = split_parts(data, boundary, W)
    assert [bytes(part.body) for part in got] == [content for _, content in parts]
    assert [part.headers for part in got] == [{k.lower(): v for k, v in headers.items()} for headers, _ in parts]


@given(messages(), st.data())
def test_a_cut_message_is_an_error_or_whole(message: Any, data: st.DataObject) -> None:
    boundary, parts, whole = message
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        got = bodies(cut, boundary)
    except ProtocolError:
        assert len(cut) < len(whole)
    else:
        assert got == [content for _, content in parts]
    try:
        first = b"".join(stream_first_part([cut], boundary, W))
    except ProtocolError:
        assert len(cut) < len(whole) or not parts
    else:
        assert first == parts[0][1]


@given(messages(), st.lists(st.integers(1, 30), min_size=1))
def test_a_stream_may_come_in_any_chunks(message: Any, sizes: list[int]) -> None:
    boundary, parts, whole = message
    chunks, at, i = [], 0, 0
    while at < len(whole):
        size = sizes[i % len(sizes)]
        chunks += [whole[at : at + size], b""]
        at, i = at + size, i + 1
    if not parts:
        with pytest.raises(ProtocolError):
            list(stream_first_part(chunks, boundary, W))
        return
    got = list(stream_first_part(chunks, boundary, W))
    assert all(got)
    assert b"".join(got) == parts[0][1]


@given(st.binary(max_size=200), st.text(CHARACTERS, max_size=3))
def test_nothing_but_our_error_comes_of_nonsense(data: bytes, boundary: str) -> None:
    for read in (bodies, lambda d, b: list(stream_first_part([d], b, W))):
        with suppress(ProtocolError):
            read(data, boundary)


def test_parts_are_not_copied() -> None:
    data = body([({}, b"x" * 1000)], "b")
    (part,) = split_parts(data, "b", W)
    assert part.body.obj is data


def test_a_stream_is_read_to_its_end_unless_that_is_far() -> None:
    """So that the connection is of further use."""
    for after, left in ((10, 0), (100, 33)):
        chunks = iter([body([({}, b"xyz")], "b"), *[b"." * 1000] * after])
        assert list(stream_first_part(chunks, "b", W)) == [b"xyz"]
        assert abs(len(list(chunks)) - left) < 3


def test_a_last_delimiter_without_hyphens_closes_only_behind_all_parts() -> None:
    whole = b"--b\r\n\r\nx\r\n--b\r\n\r\ny\r\n--b"
    for end in (b"", b"\r\n"):
        assert [bytes(part.body) for part in split_parts(whole + end, "b", W, 2)] == [b"x", b"y"]
        for expected in (0, 1, 3):
            with pytest.raises(ProtocolError):
                split_parts(whole + end, "b", W, expected)
