"""DICOM JSON (PS3.18 F) as a stream: the answer of a server to ``/metadata``, instance by instance.

`json.loads` of the answer for a slide of 160,000 sparse frames takes gigabytes. What is held here is the attribute or
the functional group that is being read, and what was kept of those before.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from microtome.dicom.functional_groups import FramePositions
from microtome.dicom.json_positions import PositionsBuilder
from microtome.dicom.part10 import PER_FRAME_GROUPS
from microtome.errors import CorruptHeaderError

__all__ = ["JsonInstance", "read_json_instances"]

MAX_VALUE = 64 << 20
"""Characters of one attribute or functional group, and of the kept attributes of one instance together."""

_PIECE = 1 << 18
_TAG = re.compile("[0-9A-Fa-f]{8}")
_SPACE = re.compile("[ \t\n\r]*")
_PER_FRAME_KEY = f"{PER_FRAME_GROUPS:08X}"
# The longest thing that json refuses for want of its end, other than a string: two halves of an escaped character.
_LONGEST_TOKEN = 16


@dataclass(frozen=True, slots=True, eq=False)
class JsonInstance:
    """One instance of a DICOM JSON document.

    Parameters
    ----------
    attributes
        Its attributes by tag, eight upper-case hexadecimal digits; without the Per-Frame Functional Groups Sequence
        (unless that is there as a BulkDataURI only, which is left in its place).
    positions
        What the functional groups say of the places of its frames, as many as there are items; None where there are
        none, or they say nothing of it.
    """

    attributes: dict[str, Any] = field(repr=False)  # they name the patient
    positions: FramePositions | None


class _ConstantError(ValueError):
    pass


def _refuse(constant: str) -> NoReturn:
    raise _ConstantError(f"{constant} is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).raw_decode


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """Cut long chunks: characters take up to four times the memory of their bytes."""
    for chunk in chunks:
        if len(chunk) <= _PIECE:
            yield chunk
        else:
            view = memoryview(chunk)
            for start in range(0, len(chunk), _PIECE):
                yield view[start : start + _PIECE]


class _Cursor:
    """A place in a JSON document of which a part is in memory."""

    def __init__(self, chunks: Iterable[bytes], where: str) -> None:
        self.where = where
        self._pieces = _pieces(chunks)
        self._characters = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._pos = 0
        self._dropped = 0
        self._ended = False

    @property
    def offset(self) -> int:
        """Characters in front of the cursor."""
        return self._dropped + self._pos

    def fail(self, problem: str) -> NoReturn:
        if self._ended and not self.peek():
            problem = "it ends in the middle; the answer is cut short"
        raise CorruptHeaderError(f"{self.where}: its JSON is damaged at character {self.offset + 1}: {problem}")

    def fail_long(self) -> NoReturn:
        self.fail(f"a single value is longer than {MAX_VALUE >> 20} MiB")

    def more(self, count: int) -> None:
        """Drop what is read, and take in ``count`` characters or more, or as many as there are."""
        parts = [self._text[self._pos :]]
        self._dropped += self._pos
        self._pos = 0
        got = 0
        while got < count and not self._ended:
            piece = next(self._pieces, None)
            self._ended = piece is None
            try:
                characters = self._characters(piece or b"", self._ended)
            except UnicodeDecodeError as e:
                raise CorruptHeaderError(f"{self.where}: its JSON is not in UTF-8 ({e.reason})") from None
            parts.append(characters)
            got += len(characters)
        self._text = "".join(parts)

    def peek(self) -> str:
        """Return the next character that is not white space, the cursor in front of it; empty at the end."""
        while True:
            char = self._text[self._pos : self._pos + 1]
            if char > " ":
                return char
            if char:
                self._pos = _SPACE.match(self._text, self._pos).end()  # type: ignore[union-attr]
                char = self._text[self._pos : self._pos + 1]
                if char:
                    return char
            if self._ended:
                return ""
            self.more(1)

    def step(self) -> None:
        """Step over the character that `peek` showed."""
        self._pos += 1

    def value(self) -> Any:
        """Return the value that begins here, the cursor behind it."""
        self.peek()
        while True:
            held = len(self._text) - self._pos
            unfinished = False
            try:
                value, end = _decode(self._text, self._pos)
            except json.JSONDecodeError as e:
                # Of a value that is cut short, json shows the end, or the quote where a string began.
                unfinished = e.pos >= len(self._text) - _LONGEST_TOKEN or self._text[e.pos] == '"'
                problem = e.msg
            except RecursionError:
                problem = "it is nested too deeply"
            except _ConstantError as e:
                problem = str(e)
            except ValueError:
                problem = "a number has too many digits"
            else:
                if end - self._pos > MAX_VALUE:
                    self.fail_long()
                # 12 may be the beginning of 12.5e+3.
                if type(value) not in (int, float) or end + 2 < len(self._text) or self._ended:
                    self._pos = end
                    return value
                unfinished, problem = True, "a number goes on"
            if not unfinished:
                self.fail(problem)
            if held > MAX_VALUE:
                self.fail_long()
            if self._ended:
                self.fail(f"{problem}, or the answer is cut short")
            # Twice as much at each attempt: all attempts together read no more than twice what there is.
            self.more(max(1, min(held, MAX_VALUE + 1 - held)))

    def elements(self) -> Iterator[None]:
        """Step to each value of the array that begins here; it must be read before the next step."""
        self.step()
        if self.peek() == "]":
            self.step()
            return
        while True:
            yield
            char = self.peek()
            if char not in (",", "]"):
                self.fail("',' or ']' is due")
            self.step()
            if char == "]":
                return

    def members(self) -> Iterator[str]:
        """Yield each key of the object that begins here, the cursor in front of its value, which must be read then."""
        self.step()
        if self.peek() == "}":
            self.step()
            return
        while True:
            if self.peek() != '"':
                self.fail("a key is due")
            key = self.value()
            if self.peek() != ":":
                self.fail("':' is due")
            self.step()
            yield key
            char = self.peek()
            if char not in (",", "}"):
                self.fail("',' or '}' is due")
            self.step()
            if char == "}":
                return


def read_json_instances(chunks: Iterable[bytes], where: str) -> Iterator[JsonInstance]:
    """Read the instances of a DICOM JSON document (PS3.18 F.2), each as soon as it is complete.

    The document is an array of objects, or one object alone; an empty one holds no instances. Memory is bounded by
    the longest attribute and by what is kept of one instance, whatever the number of its frames.

    Parameters
    ----------
    chunks
        The document in UTF-8, cut anywhere. What their iterator raises passes through.
    where
        Names the document in errors: its URI, without secrets.

    Raises
    ------
    CorruptHeaderError
        The document is cut short, is no JSON, or is no DICOM JSON.
    """
    cursor = _Cursor(chunks, where)
    begin = cursor.peek()
    if begin == "\ufeff":
        cursor.step()
        begin = cursor.peek()
    if not begin:
        return
    if begin == "{":
        yield _instance(cursor)
    elif begin == "[":
        for _ in cursor.elements():
            if cursor.peek() != "{":
                cursor.fail("an instance is due, which is an object")
            yield _instance(cursor)
    else:
        raise CorruptHeaderError(
            f"{where}: its first character is {begin!r}, which begins no JSON array or object"
            + ("; the server seems to have answered with a page of HTML or with XML" if begin == "<" else "")
        )
    if cursor.peek():
        cursor.fail("something follows behind its end")


def _instance(cursor: _Cursor) -> JsonInstance:
    attributes: dict[str, Any] = {}
    positions: FramePositions | None = None
    kept = keys = tags = 0
    for key in cursor.members():
        tag = key.upper() if _TAG.fullmatch(key) else None
        keys += 1
        tags += tag is not None
        if tag == _PER_FRAME_KEY:
            bulk, positions = _functional_groups(cursor)
            attributes.pop(tag, None)
            if bulk is not None:
                attributes[tag] = bulk
            continue
        start = cursor.offset
        value = cursor.value()
        kept += cursor.offset - start
        if kept > MAX_VALUE:
            cursor.fail(f"the attributes of one instance are longer than {MAX_VALUE >> 20} MiB")
        if tag is not None:
            attributes[tag] = value
    if keys and not tags:  # what a server says of a failure, perhaps
        raise CorruptHeaderError(f"{cursor.where}: an object of its JSON has keys, and no DICOM tag among them")
    return JsonInstance(attributes, positions)


def _functional_groups(cursor: _Cursor) -> tuple[dict[str, Any] | None, FramePositions | None]:
    """Read the element that holds the groups; return it if it refers to bulk data instead, and the positions."""
    if cursor.peek() != "{":
        if cursor.value() is not None:
            cursor.fail("the functional groups are no JSON object")
        return None, None
    builder = PositionsBuilder(cursor.where)
    rest: dict[str, Any] = {}
    for key in cursor.members():
        if key != "Value":
            value = cursor.value()
            if key in ("vr", "BulkDataURI"):
                rest[key] = value
            continue
        builder = PositionsBuilder(cursor.where)
        if cursor.peek() == "[":
            for _ in cursor.elements():
                builder.add(cursor.value())
        else:
            item = cursor.value()
            if item is not None:
                builder.add(item)
    positions = builder.positions()
    return (rest if "BulkDataURI" in rest and positions is None else None), positions
