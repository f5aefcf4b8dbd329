"""The header of a JPEG XL codestream: ISO/IEC 18181-1 Annex D, the boxes around it: 18181-2 clause 9, PS3.5 8.2.17."""

from __future__ import annotations

from typing import NamedTuple

from microtome.errors import CorruptFrameError

__all__ = ["CODESTREAM_SIGNATURE", "CONTAINER_SIGNATURE", "JpegXLHeader", "read_jpegxl_header"]

CODESTREAM_SIGNATURE = b"\xff\x0a"
CONTAINER_SIGNATURE = b"\0\0\0\x0cJXL "

_ENOUGH = 64  # bytes: the fields read here take fewer than 30
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class JpegXLHeader(NamedTuple):
    """Size and sample type of a picture."""

    rows: int
    columns: int
    components: int
    precision: int


class _Bits:
    """Fields of a codestream, least significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise CorruptFrameError("JPEG XL header is cut short")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value

    def choose(self, *choices: tuple[int, int]) -> int:
        """U32(): two bits choose an offset and a number of further bits."""
        offset, count = choices[self.take(2)]
        return offset + self.take(count)


def read_jpegxl_header(data: memoryview) -> JpegXLHeader:
    """Read size, depth and colour of a picture, with or without boxes around it.

    Raises
    ------
    CorruptFrameError
        The header is damaged, or it announces what a DICOM frame cannot be: floating point, an animation,
        further channels.
    """
    bits = _Bits(_codestream_start(data))
    if bits.take(16) != 0x0AFF:
        raise CorruptFrameError("JPEG XL boxes hold no codestream")
    rows, columns = _read_size(bits)
    precision, components = 8, 3
    if not bits.take(1):  # otherwise all is default: 8 bit sRGB
        if bits.take(1):
            bits.take(3)  # orientation: pixels are returned as they are coded
            if bits.take(1):
                _read_size(bits)  # intended display size
            if bits.take(1) or bits.take(1):
                raise CorruptFrameError("JPEG XL codestream holds a preview or an animation, not one picture")
        if bits.take(1):
            raise CorruptFrameError("JPEG XL samples are floating point numbers")
        precision = bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
        bits.take(1)
        if bits.choose((0, 0), (1, 0), (2, 4), (1, 12)):
            raise CorruptFrameError("JPEG XL codestream holds channels beside the colours")
        bits.take(1)  # XYB: the decoder turns it into the colours announced here
        if not bits.take(1):
            bits.take(1)
            components = 1 if bits.choose((0, 0), (1, 0), (2, 4), (18, 6)) == 1 else 3
    return JpegXLHeader(rows, columns, components, precision)


def _read_size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if small else 1 + bits.choose((0, 9), (0, 13), (0, 18), (0, 30))

    rows = side()
    ratio = bits.take(3)
    if ratio == 0:
        return rows, side()
    numerator, denominator = _RATIOS[ratio - 1]
    return rows, rows * numerator // denominator


def _codestream_start(data: memoryview) -> bytes:
    """First bytes of the codestream, gathered from its boxes where there are any."""
    if data[:2] == CODESTREAM_SIGNATURE:
        return bytes(data[:_ENOUGH])
    found, position = b"", 0
    while position + 8 <= len(data) and len(found) < _ENOUGH:
        length = int.from_bytes(data[position : position + 4], "big")
        kind = bytes(data[position + 4 : position + 8])
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        end = len(data) if length == 0 else position + length
        if end < position + head:
            break
        if kind == b"jxlc":
            return bytes(data[position + head : min(end, position + head + _ENOUGH)])
        if kind == b"jxlp":  # a part of the codestream, after its number
            found += bytes(data[position + head + 4 : min(end, position + head + 4 + _ENOUGH)])
        position = end
    return found
