"""The elements of a data set as they stand in a file (PS3.5 7): where each begins and ends, not what is in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from microtome.errors import CorruptHeaderError
from microtome.storage import Source
from microtome.storage.reading_ahead import ReadingAhead

__all__ = [
    "ITEM",
    "ITEM_END",
    "LONG_VRS",
    "MAX_DEPTH",
    "SEQUENCE_END",
    "SHORT_VRS",
    "UNDEFINED",
    "Element",
    "Encoding",
    "EndOfFileError",
    "Window",
    "end_of_first_item",
    "end_of_value",
    "read_header",
]

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
SHORT_VRS = frozenset(
    vr.encode()
    for vr in "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()  # noqa: SIM905
)
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a data set is written: explicit or implicit VR, byte order."""

    implicit: bool = False
    big_endian: bool = False

    @property
    def order(self) -> str:
        """Prefix for `struct` formats."""
        return ">" if self.big_endian else "<"


@dataclass(frozen=True, slots=True)
class Element:
    """Where the value of an element is.

    ``length`` is 0xFFFFFFFF for encapsulated pixel data, and the real length for everything else.
    """

    tag: int
    vr: bytes
    offset: int
    length: int


class EndOfFileError(Exception):
    """The file ends in the middle of an element. Never leaves this library."""


class Window:
    """A part of the file in memory that moves forward as the walk does."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.step = 1 << 15
        self.base = 0
        self.data = source.read(0, self.step)

    def need(self, offset: int, length: int) -> int:
        """Make ``length`` bytes at ``offset`` available; return their place in `data`."""
        start = offset - self.base
        if start >= 0 and start + length <= len(self.data):
            return start
        if offset + length > self.source.size:
            raise EndOfFileError
        self.step = min(self.step * 2, 4 << 20)
        kept = self.data[start:] if 0 <= start < len(self.data) else b""
        worth = self.step
        if isinstance(self.source, ReadingAhead):
            worth = min(worth, self.source.end - offset)  # what lies behind it is not worth a request
        more = max(length, worth) - len(kept)
        self.data = kept + self.source.read(offset + len(kept), more)
        self.base = offset
        if len(self.data) < length:
            raise EndOfFileError
        return 0

    def announce(self, stop: int) -> None:
        """Say that all up to ``stop`` will be needed, by this walk or by who comes after it."""
        if isinstance(self.source, ReadingAhead):
            self.source.announce(stop)

    def bytes(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes at ``offset``."""
        start = self.need(offset, length)
        return self.data[start : start + length]


def read_header(window: Window, pos: int, enc: Encoding) -> tuple[int, bytes, int, int]:
    """Return tag, VR, length and offset of the value of the element at ``pos``."""
    start = window.need(pos, 8)
    data = window.data
    if enc.implicit:
        group, number, length = struct.unpack_from(enc.order + "HHI", data, start)
        return group << 16 | number, b"", length, pos + 8
    group, number, vr, length = struct.unpack_from(enc.order + "HH2sH", data, start)
    tag = group << 16 | number
    if group == 0xFFFE:  # items and delimiters have no VR, PS3.5 7.5
        (length,) = struct.unpack_from(enc.order + "I", data, start + 4)
        return tag, b"", length, pos + 8
    if vr in LONG_VRS:
        start = window.need(pos + 8, 4)
        (length,) = struct.unpack_from(enc.order + "I", window.data, start)
        return tag, vr, length, pos + 12
    if vr not in SHORT_VRS and not vr.isalpha():
        raise CorruptHeaderError(
            f"{window.source.uri}: at byte {pos}, element ({group:04X},{number:04X}) has the value representation "
            f"{vr!r}, which does not exist; the file is damaged, or written under another transfer syntax than stated"
        )
    return tag, vr, length, pos + 8


def end_of_value(window: Window, vr: bytes, length: int, value: int, enc: Encoding) -> int:
    """Return where the value of an element ends that begins at ``value``; its length may be undefined."""
    return value + length if length != UNDEFINED else _skip_items(window, value, _nested(enc, vr))


def end_of_first_item(window: Window, vr: bytes, value: int, enc: Encoding) -> int:
    """Return where the first item of the sequence ends whose value begins at ``value``; that itself if it has none."""
    nested = _nested(enc, vr)
    tag, _, length, start = read_header(window, value, nested)
    return _end_of_item(window, length, start, nested) if tag == ITEM else value


def _skip_items(window: Window, pos: int, enc: Encoding, depth: int = 0) -> int:
    """Return where the sequence of undefined length that begins at ``pos`` ends."""
    if depth > MAX_DEPTH:
        raise CorruptHeaderError(f"{window.source.uri}: sequences are nested more than {MAX_DEPTH} deep at byte {pos}")
    while True:
        tag, _, length, value = read_header(window, pos, enc)
        if tag == SEQUENCE_END:
            return value
        if tag != ITEM:
            raise CorruptHeaderError(
                f"{window.source.uri}: at byte {pos} a sequence item is due, and ({tag >> 16:04X},{tag & 0xFFFF:04X}) "
                "is there; the file is damaged"
            )
        pos = _end_of_item(window, length, value, enc, depth)


def _end_of_item(window: Window, length: int, pos: int, enc: Encoding, depth: int = 0) -> int:
    """Return where the item ends whose first element is at ``pos``."""
    if length != UNDEFINED:
        return pos + length
    while True:
        tag, vr, length, value = read_header(window, pos, enc)
        if tag == ITEM_END:
            return value
        pos = value + length if length != UNDEFINED else _skip_items(window, value, _nested(enc, vr), depth + 1)


def _nested(enc: Encoding, vr: bytes) -> Encoding:
    # An element of unknown VR and undefined length is a sequence in implicit little endian, PS3.5 6.2.2.
    return Encoding(implicit=True) if vr == b"UN" else enc
