"""The outline of a DICOM file (PS3.10, PS3.5 7): where its elements are, without reading its pixels.

pydicom turns bytes into values; what this module does for it is to find the bytes worth turning. A header may carry
megabytes that are not metadata to us (offset tables, positions of 25,000 frames): they are located, not parsed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from microtome import config
from microtome.errors import CorruptHeaderError, NotASlideError
from microtome.storage import BytesSource, Source

__all__ = ["DEFLATED", "Element", "Encoding", "Outline", "read_outline"]

DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"

UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset(
    vr.encode()
    for vr in "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()  # noqa: SIM905
)
_MAX_DEPTH = 32

PIXEL_DATA = 0x7FE00010
_OTHER_PIXEL_DATA = {0x7FE00008: "Float Pixel Data", 0x7FE00009: "Double Float Pixel Data"}
EXTENDED_OFFSETS, EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
PER_FRAME_GROUPS = 0x52009230
_LOCATED = frozenset((EXTENDED_OFFSETS, EXTENDED_LENGTHS, PER_FRAME_GROUPS))
MAX_KEPT = 8 << 20
"""An element longer than this is located only: no metadata of ours is."""


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


@dataclass(slots=True)
class Outline:
    """What was found in front of the pixels."""

    source: Source
    """The file; for a deflated data set, its inflated bytes."""
    transfer_syntax: str
    """Empty where the file does not say."""
    encoding: Encoding
    preamble: bytes
    """The first 128 bytes, which may be a TIFF header; empty where there are none."""
    kept: bytes = b""
    """The elements that are metadata, as they stand in the file, for pydicom."""
    located: dict[int, Element] = field(default_factory=dict)
    """The large elements that are not metadata, by tag."""
    pixel_data: Element | None = None
    truncated: bool = False
    """Whether the file ends in the middle of an element."""


class _EndOfFileError(Exception):
    pass


class _Window:
    """A part of the file in memory that moves forward as the walk does."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.step = 1 << 18 if source.remote else 1 << 15
        self.base = 0
        self.data = source.read(0, self.step)

    def need(self, offset: int, length: int) -> int:
        """Make ``length`` bytes at ``offset`` available; return their place in `data`."""
        start = offset - self.base
        if start >= 0 and start + length <= len(self.data):
            return start
        if offset + length > self.source.size:
            raise _EndOfFileError
        self.step = min(self.step * 2, 4 << 20)
        kept = self.data[start:] if 0 <= start < len(self.data) else b""
        more = max(length, self.step) - len(kept)
        self.data = kept + self.source.read(offset + len(kept), more)
        self.base = offset
        if len(self.data) < length:
            raise _EndOfFileError
        return 0

    def bytes(self, offset: int, length: int) -> bytes:
        start = self.need(offset, length)
        return self.data[start : start + length]


def _header(window: _Window, pos: int, enc: Encoding) -> tuple[int, bytes, int, int]:
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
    if vr in _LONG_VRS:
        start = window.need(pos + 8, 4)
        (length,) = struct.unpack_from(enc.order + "I", window.data, start)
        return tag, vr, length, pos + 12
    if vr not in _SHORT_VRS and not vr.isalpha():
        raise CorruptHeaderError(
            f"{window.source.uri}: at byte {pos}, element ({group:04X},{number:04X}) has the value representation "
            f"{vr!r}, which does not exist; the file is damaged, or written under another transfer syntax than stated"
        )
    return tag, vr, length, pos + 8


def _skip_items(window: _Window, pos: int, enc: Encoding, depth: int = 0) -> int:
    """Return where the sequence of undefined length that begins at ``pos`` ends."""
    if depth > _MAX_DEPTH:
        raise CorruptHeaderError(f"{window.source.uri}: sequences are nested more than {_MAX_DEPTH} deep at byte {pos}")
    while True:
        tag, _, length, value = _header(window, pos, enc)
        if tag == _SEQUENCE_END:
            return value
        if tag != _ITEM:
            raise CorruptHeaderError(
                f"{window.source.uri}: at byte {pos} a sequence item is due, and ({tag >> 16:04X},{tag & 0xFFFF:04X}) "
                "is there; the file is damaged"
            )
        pos = value + length if length != UNDEFINED else _skip_elements(window, value, enc, depth)


def _skip_elements(window: _Window, pos: int, enc: Encoding, depth: int) -> int:
    """Return where the item of undefined length whose first element is at ``pos`` ends."""
    while True:
        tag, vr, length, value = _header(window, pos, enc)
        if tag == _ITEM_END:
            return value
        pos = value + length if length != UNDEFINED else _skip_items(window, value, _nested(enc, vr), depth + 1)


def _nested(enc: Encoding, vr: bytes) -> Encoding:
    # An element of unknown VR and undefined length is a sequence in implicit little endian, PS3.5 6.2.2.
    return Encoding(implicit=True) if vr == b"UN" else enc


def read_outline(source: Source) -> Outline:
    """Find the elements of a DICOM file up to its pixels.

    Reads the header only: a first piece, then as much as it takes, skipping offset tables and the like.

    Raises
    ------
    NotASlideError
        The file is not DICOM.
    CorruptHeaderError
        It is, and is damaged; or it inflates to more than ``config.get().inflate_bytes``.
    """
    window = _Window(source)
    head = window.data
    outline = Outline(source, "", Encoding(), b"")
    if head[128:132] == b"DICM":
        outline.preamble = head[:128]
        pos = 132
    elif _plausible(head):
        pos = 0
    else:
        raise NotASlideError(f"{source.uri}: not a DICOM file (no DICM at byte 128)")
    try:
        pos = _read_meta(window, pos, outline)
        if outline.transfer_syntax == DEFLATED:
            window = _Window(_inflate(source, pos))
            outline.source = window.source
            pos = 0
        outline.encoding = _encoding(window, pos, outline.transfer_syntax)
        _walk(window, pos, outline)
    except _EndOfFileError:
        outline.truncated = True
    return outline


def _plausible(head: bytes) -> bool:
    """Tell whether bytes without a preamble begin like a data set: group 2 or 8, a small element number."""
    if len(head) < 8:
        return False
    for order in "<>":
        group, number = struct.unpack_from(order + "HH", head)
        if group in (2, 8) and number < 0x0100:
            return True
    return False


def _read_meta(window: _Window, pos: int, outline: Outline) -> int:
    """Read the file meta information (PS3.10 7.1), always explicit little endian; return where the data set begins."""
    enc = Encoding()
    while window.source.size > pos:
        start = window.need(pos, 2)
        if window.data[start : start + 2] != b"\x02\x00":
            break
        tag, _, length, value = _header(window, pos, enc)
        if tag == 0x00020010 and length < 256:
            outline.transfer_syntax = window.bytes(value, length).rstrip(b"\0 ").decode("ascii", "replace")
        pos = value + length
    return pos


def _encoding(window: _Window, pos: int, transfer_syntax: str) -> Encoding:
    if transfer_syntax == _BIG_ENDIAN:
        return Encoding(big_endian=True)
    start = window.need(pos, 8)
    group, _, vr = struct.unpack_from("<HH2s", window.data, start)
    if not transfer_syntax:
        if group > 0xFF and group >> 8 in (2, 8):
            return Encoding(big_endian=True, implicit=vr not in _LONG_VRS | _SHORT_VRS)
        return Encoding(implicit=vr not in _LONG_VRS | _SHORT_VRS)
    # Writers exist that state one of the two and write the other; the first element tells which it is.
    return Encoding(implicit=vr not in _LONG_VRS | _SHORT_VRS or (transfer_syntax == _IMPLICIT and not vr.isalpha()))


def _inflate(source: Source, pos: int) -> BytesSource:
    """Inflate a deflated data set (PS3.5 A.5): it has no random access, and is held in memory."""
    limit = config.get().inflate_bytes
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    pieces: list[bytes] = []
    total = 0
    while pos < source.size and not inflater.eof:
        data = source.read(pos, 1 << 20)
        if not data:
            break
        pos += len(data)
        while data:
            try:
                piece = inflater.decompress(data, 1 << 22)
            except zlib.error as e:
                raise CorruptHeaderError(f"{source.uri}: its deflated data set is damaged ({e})") from e
            total += len(piece)
            if total > limit:
                raise CorruptHeaderError(
                    f"{source.uri}: its deflated data set inflates to more than {limit >> 20} MiB, which is held in "
                    "memory for want of random access; store the file under another transfer syntax, or raise "
                    "the setting inflate_bytes"
                )
            pieces.append(piece)
            data = inflater.unconsumed_tail
    return BytesSource(b"".join(pieces), source.uri)


def _walk(window: _Window, pos: int, outline: Outline) -> None:
    """Walk the elements of the data set up to the pixels, keeping or locating each."""
    enc = outline.encoding
    kept: list[bytes] = []
    try:
        while pos < window.source.size:
            tag, vr, length, value = _header(window, pos, enc)
            if tag == PIXEL_DATA:
                outline.pixel_data = Element(tag, vr, value, length)
                break
            if tag in _OTHER_PIXEL_DATA:
                raise NotASlideError(f"{window.source.uri}: holds {_OTHER_PIXEL_DATA[tag]}, which is no slide's")
            end = value + length if length != UNDEFINED else _skip_items(window, value, _nested(enc, vr))
            if end > window.source.size:
                raise _EndOfFileError
            if tag in _LOCATED or end - pos > MAX_KEPT:
                outline.located[tag] = Element(tag, vr, value, end - value)
            else:
                kept.append(window.bytes(pos, end - pos))
            pos = end
    finally:
        outline.kept = b"".join(kept)
