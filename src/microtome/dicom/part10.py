"""The outline of a DICOM file (PS3.10, PS3.5 7): where its elements are, without reading its pixels.

pydicom turns bytes into values; what this module does for it is to find the bytes worth turning. A header may carry
megabytes that are not metadata to us (offset tables, positions of 25,000 frames): they are located, not parsed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from microtome import config
from microtome.dicom.elements import (
    LONG_VRS,
    SHORT_VRS,
    UNDEFINED,
    Element,
    Encoding,
    EndOfFileError,
    Window,
    end_of_first_item,
    end_of_value,
    read_header,
)
from microtome.errors import CorruptHeaderError, NotASlideError
from microtome.storage import BytesSource, Source

__all__ = ["DEFLATED", "Outline", "read_outline"]

DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"

PIXEL_DATA = 0x7FE00010
_OTHER_PIXEL_DATA = {0x7FE00008: "Float Pixel Data", 0x7FE00009: "Double Float Pixel Data"}
EXTENDED_OFFSETS, EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
PER_FRAME_GROUPS = 0x52009230
_LOCATED = frozenset((EXTENDED_OFFSETS, EXTENDED_LENGTHS, PER_FRAME_GROUPS))
_NUMBER_OF_FRAMES = 0x00280008
_TABLES_BEHIND = {PER_FRAME_GROUPS: 16, EXTENDED_OFFSETS: 8}
"""Bytes a frame of the offset tables that may follow an element."""
MAX_KEPT = 8 << 20
"""An element longer than this is located only: no metadata of ours is."""


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

    def tables(self, frames: int) -> tuple[int, int]:
        """Return the range of bytes that the offset tables of so many frames are in; an empty one where none are."""
        pixel_data = self.pixel_data
        if pixel_data is None or self.is_native:
            return 0, 0
        offsets = self.located.get(EXTENDED_OFFSETS)
        return offsets.offset if offsets else pixel_data.offset, pixel_data.offset + 8 + 4 * frames

    @property
    def is_native(self) -> bool:
        """Whether pixels are stored as they are, rather than encapsulated."""
        return self.pixel_data is not None and self.pixel_data.length != UNDEFINED


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
    window = Window(source)
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
            window = Window(_inflate(source, pos))
            outline.source = window.source
            pos = 0
        outline.encoding = _encoding(window, pos, outline.transfer_syntax)
        _walk(window, pos, outline)
    except EndOfFileError:
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


def _read_meta(window: Window, pos: int, outline: Outline) -> int:
    """Read the file meta information (PS3.10 7.1), always explicit little endian; return where the data set begins."""
    enc = Encoding()
    while window.source.size > pos:
        start = window.need(pos, 2)
        if window.data[start : start + 2] != b"\x02\x00":
            break
        tag, _, length, value = read_header(window, pos, enc)
        if tag == 0x00020010 and length < 256:
            outline.transfer_syntax = window.bytes(value, length).rstrip(b"\0 ").decode("ascii", "replace")
        pos = value + length
    return pos


def _encoding(window: Window, pos: int, transfer_syntax: str) -> Encoding:
    if transfer_syntax == _BIG_ENDIAN:
        return Encoding(big_endian=True)
    start = window.need(pos, 8)
    group, _, vr = struct.unpack_from("<HH2s", window.data, start)
    if not transfer_syntax:
        if group > 0xFF and group >> 8 in (2, 8):
            return Encoding(big_endian=True, implicit=vr not in LONG_VRS | SHORT_VRS)
        return Encoding(implicit=vr not in LONG_VRS | SHORT_VRS)
    # Writers exist that state one of the two and write the other; the first element tells which it is.
    return Encoding(implicit=vr not in LONG_VRS | SHORT_VRS or (transfer_syntax == _IMPLICIT and not vr.isalpha()))


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


def _walk(window: Window, pos: int, outline: Outline) -> None:
    """Walk the elements of the data set up to the pixels, keeping or locating each."""
    enc = outline.encoding
    kept: list[bytes] = []
    frames = 0
    try:
        while pos < window.source.size:
            tag, vr, length, value = read_header(window, pos, enc)
            if tag == PIXEL_DATA:
                outline.pixel_data = Element(tag, vr, value, length)
                break
            if tag in _OTHER_PIXEL_DATA:
                raise NotASlideError(f"{window.source.uri}: holds {_OTHER_PIXEL_DATA[tag]}, which is no slide's")
            if tag in _LOCATED:
                _announce(window, tag, vr, length, value, enc, frames)
            end = end_of_value(window, vr, length, value, enc)
            if end > window.source.size:
                raise EndOfFileError
            if tag in _LOCATED or end - pos > MAX_KEPT:
                outline.located[tag] = Element(tag, vr, value, end - value)
            else:
                kept.append(window.bytes(pos, end - pos))
                if tag == _NUMBER_OF_FRAMES:
                    text = kept[-1][value - pos :].strip(b"\0 ")
                    frames = int(text) if text.isdigit() and len(text) < 10 else 0
            pos = end
    finally:
        outline.kept = b"".join(kept)


def _announce(window: Window, tag: int, vr: bytes, length: int, value: int, enc: Encoding, frames: int) -> None:
    """Tell the window how far the header goes, as soon as it shows: of a remote file the rest is then one read."""
    if length == UNDEFINED:
        # Its items, one a frame, are about as long as the first one is.
        length = (end_of_first_item(window, vr, value, enc) - value) * frames * 17 // 16
    window.announce(value + length + _TABLES_BEHIND.get(tag, 0) * frames)
