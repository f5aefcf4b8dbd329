"""The main header of a JPEG 2000 codestream: ISO/IEC 15444-1 Annex A, PS3.5 8.2.4, HTJ2K alike."""

from __future__ import annotations

from typing import NamedTuple

from microtome.errors import CorruptFrameError

__all__ = ["JP2_SIGNATURE", "Jpeg2000Header", "find_codestream", "read_jpeg2000_header"]

JP2_SIGNATURE = b"\0\0\0\x0cjP  "

_START_OF_TILE = 0x90


class Jpeg2000Header(NamedTuple):
    """What a codestream says of itself before its first tile.

    ``transformed`` says that the decoder turns luma and chroma into red, green and blue; ``length`` counts the bytes
    up to the first tile.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool
    transformed: bool
    length: int


def find_codestream(data: memoryview) -> memoryview:
    """Codestream inside the boxes of a JP2 file, as a view.

    DICOM forbids the boxes (PS3.5 A.4.4), yet writers leave them. What they say about colour is ignored.

    Raises
    ------
    CorruptFrameError
        There is no codestream box.
    """
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        end = len(data) if length == 0 else position + length
        if end < position + head:
            break
        if bytes(data[position + 4 : position + 8]) == b"jp2c":
            return data[position + head : end]
        position = end
    raise CorruptFrameError("JP2 file holds no codestream box")


def read_jpeg2000_header(data: memoryview) -> Jpeg2000Header:
    """Read the marker segments from SOC up to the first tile.

    Raises
    ------
    CorruptFrameError
        Segments are damaged or missing, or components differ in size or type, which DICOM does not allow.
    """
    size: tuple[int, int, int, int, bool] | None = None
    transformed: bool | None = None
    position = 2
    while True:
        if position + 4 > len(data):
            raise CorruptFrameError("JPEG 2000 header ends before its first tile")
        if data[position] != 0xFF:
            raise CorruptFrameError(f"JPEG 2000 header holds no marker at byte {position}")
        marker = data[position + 1]
        if marker == _START_OF_TILE:
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if end < position + 4 or end > len(data):
            raise CorruptFrameError(f"JPEG 2000 segment ff{marker:02x} is longer than the codestream")
        body = bytes(data[position + 4 : end])
        if marker == 0x51:
            size = _read_size(body)
        elif marker == 0x52:
            if len(body) < 10:
                raise CorruptFrameError("JPEG 2000 coding style is damaged")
            transformed = body[4] != 0
        position = end
    if size is None or transformed is None:
        raise CorruptFrameError("JPEG 2000 header does not state its size or its coding style")
    return Jpeg2000Header(*size, transformed, position)


def _read_size(body: bytes) -> tuple[int, int, int, int, bool]:
    """Rows, columns, components, precision and signedness out of a SIZ segment."""
    count = int.from_bytes(body[34:36], "big")
    if len(body) < 39 or len(body) != 36 + 3 * count:
        raise CorruptFrameError("JPEG 2000 image size is damaged")
    right, bottom, left, top, tile_width, tile_height = (
        int.from_bytes(body[i : i + 4], "big") for i in range(2, 26, 4)
    )
    if len(set(body[36::3])) > 1 or set(body[37::3]) != {1} or set(body[38::3]) != {1}:
        raise CorruptFrameError("JPEG 2000 components differ in type or are subsampled")
    if not tile_width or not tile_height or right <= left or bottom <= top:
        raise CorruptFrameError("JPEG 2000 image or its tiles are empty")
    if -(-right // tile_width) * -(-bottom // tile_height) > 0xFFFF:
        raise CorruptFrameError("JPEG 2000 image has more tiles than can be numbered")
    return bottom - top, right - left, count, (body[36] & 0x7F) + 1, bool(body[36] & 0x80)
