"""The header of a JPEG or JPEG-LS stream: ISO/IEC 10918-1 Annex B, ISO/IEC 14495-1 Annex C, PS3.5 8.2.1 and 8.2.3."""

from __future__ import annotations

from typing import NamedTuple

from microtome.errors import CorruptFrameError

__all__ = ["JPEG_LS", "LOSSLESS", "JpegHeader", "ends_with_marker", "is_ycbcr", "read_jpeg_header"]

LOSSLESS = 0xC3
JPEG_LS = 0xF7

_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, JPEG_LS})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_END = b"\xff\xd9"


class JpegHeader(NamedTuple):
    """What a JPEG stream says of itself before its first scan.

    ``frame`` is the second byte of its SOF marker, ``length`` counts the bytes from SOI up to the coded data,
    ``adobe`` is the transform of an APP14 segment, ``interleaved`` the mode of a JPEG-LS scan.
    """

    frame: int
    precision: int
    rows: int
    columns: int
    identifiers: bytes
    sampling: bytes
    jfif: bool
    adobe: int | None
    interleaved: int
    length: int


def read_jpeg_header(data: memoryview) -> JpegHeader:
    """Read all segments up to the first scan.

    Raises
    ------
    CorruptFrameError
        The segments do not follow each other up to a scan, or there is no frame header among them.
    """
    frame: tuple[int, int, int, int, bytes, bytes] | None = None
    jfif, adobe = False, None
    position, size = 2, len(data)
    while True:
        while position + 1 < size and data[position] == 0xFF and data[position + 1] == 0xFF:  # fill bytes
            position += 1
        if position + 4 > size:
            raise CorruptFrameError("JPEG header ends before its first scan")
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xD8, 0xD9):
            found = bytes(data[position : position + 2]).hex()
            raise CorruptFrameError(f"JPEG header holds {found} at byte {position}, where a segment should begin")
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        body = bytes(data[position + 4 : min(end, position + 4 + 1024)])
        if end > size or end < position + 4:
            raise CorruptFrameError(f"JPEG segment ff{marker:02x} at byte {position} is longer than the stream")
        if marker in _FRAMES:
            if frame is not None:
                raise CorruptFrameError("JPEG header holds two frame headers")
            frame = _read_frame(marker, body)
        elif marker == 0xE0 and body[:5] == b"JFIF\0":
            jfif = True
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        elif marker == 0xF8 and body[:1] == b"\x04":
            raise CorruptFrameError("JPEG-LS header gives the size of the picture again, in an LSE segment")
        elif marker == 0xDA:
            if frame is None:
                raise CorruptFrameError("JPEG header has a scan before any frame header")
            if len(body) < 4 or len(body) != 4 + 2 * body[0]:
                raise CorruptFrameError("JPEG scan header is damaged")
            kind, precision, rows, columns, identifiers, sampling = frame
            return JpegHeader(kind, precision, rows, columns, identifiers, sampling, jfif, adobe, body[-2], end)
        position = end


def _read_frame(marker: int, body: bytes) -> tuple[int, int, int, int, bytes, bytes]:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise CorruptFrameError("JPEG frame header is damaged")
    rows, columns = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return marker, body[0], rows, columns, body[6::3], body[7::3]


def is_ycbcr(header: JpegHeader, photometric: str) -> bool:
    """Whether three components are luma and chroma, not red, green and blue.

    Files lie in both directions, so the stream is asked first, in libjpeg's order: Adobe's segment, JFIF's,
    the component identifiers, subsampling; then Photometric Interpretation. Lossless streams carry JFIF segments
    that mean nothing: of those only Adobe's is believed (PS3.5 8.2.1).
    """
    if header.adobe is not None:
        return header.adobe != 0
    if header.frame == LOSSLESS:
        return photometric in ("YBR_FULL", "YBR_FULL_422") and header.identifiers != b"RGB"
    if header.jfif:
        return True
    if header.identifiers == b"RGB":
        return False
    return len(set(header.sampling)) > 1 or photometric != "RGB"


def ends_with_marker(data: memoryview | bytes, start: int) -> bool:
    """Whether an end marker (ffd9) closes the coded data, which begins at byte ``start``.

    Padding after it is ignored. Coded data of JPEG, JPEG-LS and JPEG 2000 never holds these two bytes.
    """
    if bytes(data[-16:]).rstrip(b"\0\xff").endswith(_END):
        return True
    return _END in bytes(data[start:])
