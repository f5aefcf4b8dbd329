"""Frames without a codestream of their own: native, deflated and run-length encoded (PS3.5 8.1, 8.2.2, 8.2.16, G)."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.dicom.decoding.colour import expand_422
from microtome.errors import CorruptFrameError
from microtome.model import FrameFormat

__all__ = ["decode_rle", "fit_bits", "inflate_frame", "unpack_native"]

Array = npt.NDArray[Any]


def fit_bits(frame: Array, target: np.dtype[Any], bits: int) -> Array:
    """Keep the lowest ``bits`` bits of every sample, and carry the sign upward where ``target`` has one.

    Above Bits Stored a file may hold anything (PS3.5 8.1.1), and codestreams of signed samples often say they are
    unsigned.

    Returns
    -------
    ndarray
        Integers of type ``target``, of the shape of ``frame``.
    """
    unsigned = np.dtype(f"u{target.itemsize}")
    values = frame.view(f"u{frame.dtype.itemsize}").astype(unsigned)
    unused = 8 * target.itemsize - bits
    if unused <= 0:
        return values.view(target)
    if target.kind == "i":
        values <<= unused
        signed: Array = values.view(target)
        signed >>= unused
        return signed
    values &= unsigned.type((1 << bits) - 1)
    return values


def unpack_native(data: memoryview, fmt: FrameFormat, big_endian: bool, bit_offset: int) -> Array:
    """Return the samples of a native frame as (rows, columns, samples) in ``fmt.stored_dtype``; maybe as a view.

    Parameters
    ----------
    data
        The frame, and possibly padding after it.
    fmt
        What it should hold.
    big_endian
        Whether words of more than 8 bits begin with their most significant byte.
    bit_offset
        Bits of ``data`` before the first pixel: frames of single bits follow each other without padding.

    Raises
    ------
    CorruptFrameError
        The bytes do not suffice for the frame.
    """
    bits = fmt.native_bits
    needed = (bit_offset + bits + 7) // 8
    if fmt.byte_swapped:
        needed += needed % 2
    if len(data) < needed:
        raise CorruptFrameError(f"native frame holds {len(data)} bytes, {needed} are needed")
    raw = np.frombuffer(data, np.uint8, needed)
    if fmt.byte_swapped:
        raw = raw.view(np.uint16).byteswap().view(np.uint8)
    if fmt.bits_allocated == 1:
        whole, rest = divmod(bit_offset, 8)
        unpacked = np.unpackbits(raw[whole:], count=rest + bits, bitorder="little")[rest:]
        return unpacked.view(fmt.stored_dtype).reshape(fmt.rows, fmt.columns, fmt.samples)
    stored = fmt.stored_dtype
    words = stored.newbyteorder(">" if big_endian else "<")
    samples = raw[bit_offset // 8 :][: bits // 8].view(words).astype(stored, copy=False)
    if fmt.bits_stored < fmt.bits_allocated:
        samples = fit_bits(samples, stored, fmt.bits_stored)
    if fmt.samples == 3 and fmt.photometric == "YBR_FULL_422":
        return expand_422(samples, fmt.rows, fmt.columns)
    return _by_pixel(samples, fmt, planar=fmt.planar == 1)


def inflate_frame(data: memoryview, size: int) -> memoryview:
    """Undo the compression of one frame, up to ``size`` bytes and never beyond.

    The standard asks for a raw deflate stream (PS3.5 A.4.13); one with a zlib header is taken as well.

    Raises
    ------
    CorruptFrameError
        The stream is damaged.
    """
    try:
        return memoryview(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size))
    except zlib.error as raw_error:
        try:
            return memoryview(zlib.decompressobj(zlib.MAX_WBITS).decompress(data, size))
        except zlib.error:
            raise CorruptFrameError(f"deflated frame is damaged: {raw_error}") from raw_error


def decode_rle(data: memoryview, fmt: FrameFormat) -> Array:
    """Return the samples of a run-length encoded frame as (rows, columns, samples) in ``fmt.stored_dtype`` (PS3.5 G).

    Each byte of each sample has a segment of its own, the most significant byte first.

    Raises
    ------
    CorruptFrameError
        The segments are not those of such a frame, or do not fill it.
    """
    import imagecodecs

    stored = fmt.stored_dtype
    width = stored.itemsize
    expected = fmt.samples * width
    if len(data) < 64:
        raise CorruptFrameError(f"RLE frame holds {len(data)} bytes, fewer than its header of 64")
    count, *offsets = struct.unpack_from("<16I", data)
    if count != expected:
        raise CorruptFrameError(f"RLE frame has {count} segments, {expected} are needed")
    ends = [*offsets[1:count], len(data)]
    if offsets[0] != 64 or any(start >= end for start, end in zip(offsets[:count], ends, strict=True)):
        raise CorruptFrameError(f"RLE segments at {offsets[:count]} do not lie in a frame of {len(data)} bytes")
    unsigned = np.dtype(f"u{width}")
    planes = np.empty(fmt.rows * fmt.columns * fmt.samples, unsigned)
    source: Any = data  # memoryviews are taken, which the stub does not say
    written = imagecodecs.dicomrle_decode(source, unsigned, out=planes.view(np.uint8).data)
    if len(written) != planes.nbytes:
        raise CorruptFrameError(f"RLE segments hold {len(written)} bytes, {planes.nbytes} are needed")
    samples = planes.view(stored)
    if fmt.bits_stored < fmt.bits_allocated:
        samples = fit_bits(samples, stored, fmt.bits_stored)
    return _by_pixel(samples, fmt, planar=True)


def _by_pixel(samples: Array, fmt: FrameFormat, planar: bool) -> Array:
    if planar and fmt.samples > 1:
        return samples.reshape(fmt.samples, fmt.rows, fmt.columns).transpose(1, 2, 0)
    return samples.reshape(fmt.rows, fmt.columns, fmt.samples)
