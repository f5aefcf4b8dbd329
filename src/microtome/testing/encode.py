"""One frame of pixels to the bytes that a DICOM file holds, by the name of the codec."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["CODECS", "Codec", "codec_for", "encode"]

Pixels = npt.NDArray[Any]

ANY = ("uint8", "uint16", "int16")
UNSIGNED = ("uint8", "uint16")
BYTES = ("uint8",)


@dataclass(frozen=True, slots=True)
class Codec:
    """A transfer syntax and what it does to pixels.

    Parameters
    ----------
    transfer_syntax
        UID.
    photometric
        Photometric Interpretation of colour frames.
    dtypes
        Types of samples it can hold.
    method
        Lossy Image Compression Method, empty where every pixel survives.
    encapsulated
        Whether frames are items, rather than one run of bytes.
    own_size
        Whether a frame states its own size, so that it can differ from Rows x Columns.
    """

    transfer_syntax: str
    photometric: str = "RGB"
    dtypes: tuple[str, ...] = ANY
    method: str = ""
    encapsulated: bool = True
    own_size: bool = True


CODECS = {
    "jpeg": Codec("1.2.840.10008.1.2.4.50", "YBR_FULL_422", BYTES, "ISO_10918_1"),
    "jpeg-rgb": Codec("1.2.840.10008.1.2.4.50", "RGB", BYTES, "ISO_10918_1"),
    "jpeg-12": Codec("1.2.840.10008.1.2.4.51", "RGB", ("uint16",), "ISO_10918_1"),
    "jpeg-lossless": Codec("1.2.840.10008.1.2.4.70", "RGB", UNSIGNED),
    "jpeg-ls": Codec("1.2.840.10008.1.2.4.80", "RGB", UNSIGNED),
    "jpeg-ls-near": Codec("1.2.840.10008.1.2.4.81", "RGB", UNSIGNED, "ISO_14495_1"),
    "j2k-lossless": Codec("1.2.840.10008.1.2.4.90", "YBR_RCT"),
    "j2k": Codec("1.2.840.10008.1.2.4.91", "YBR_ICT", UNSIGNED, "ISO_15444_1"),
    "htj2k-lossless": Codec("1.2.840.10008.1.2.4.201", "YBR_RCT"),
    "htj2k": Codec("1.2.840.10008.1.2.4.203", "YBR_ICT", UNSIGNED, "ISO_15444_15"),
    "jpeg-xl-lossless": Codec("1.2.840.10008.1.2.4.110", "RGB", UNSIGNED),
    "jpeg-xl": Codec("1.2.840.10008.1.2.4.112", "XYB", UNSIGNED, "ISO_18181_1"),
    "rle": Codec("1.2.840.10008.1.2.5", own_size=False),
    "deflated-frame": Codec("1.2.840.10008.1.2.8.1", own_size=False),
    "encapsulated-native": Codec("1.2.840.10008.1.2.1.98", own_size=False),
    "native": Codec("1.2.840.10008.1.2.1", encapsulated=False, own_size=False),
    "native-implicit": Codec("1.2.840.10008.1.2", encapsulated=False, own_size=False),
    "native-bigendian": Codec("1.2.840.10008.1.2.2", encapsulated=False, own_size=False),
    "native-deflated": Codec("1.2.840.10008.1.2.1.99", encapsulated=False, own_size=False),
}


def codec_for(name: str, dtype: str) -> Codec:
    """Look a codec up.

    Raises
    ------
    OptionError
        There is none of this name, or it cannot hold samples of this type.
    """
    if name not in CODECS:
        raise OptionError(f"codec={name!r} is unknown; choose one of {', '.join(CODECS)}")
    codec = CODECS[name]
    if dtype not in codec.dtypes:
        able = ", ".join(other for other, c in CODECS.items() if dtype in c.dtypes)
        fit = " or ".join(codec.dtypes)
        raise OptionError(f"codec={name!r} holds {fit}, not {dtype}, which one of {able} does")
    return codec


def encode(pixels: Pixels, name: str, *, quality: int, bits: int) -> bytes:
    """Encode one frame.

    Parameters
    ----------
    pixels
        (rows, columns, channels), 1 or 3 channels.
    name
        A key of CODECS.
    quality
        1 to 100; means something to the lossy codecs only.
    bits
        Bits stored: the precision that the codestream states, where the codec allows one that is not 8 or 16.

    Returns
    -------
    bytes
        Without the padding to an even length.
    """
    import imagecodecs

    colour = pixels.shape[2] == 3
    a = np.ascontiguousarray(pixels if colour else pixels[..., 0])
    out: bytes | bytearray
    match name:
        case "jpeg":
            how: dict[str, Any] = (
                {"colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "422"} if colour else {}
            )
            out = imagecodecs.jpeg8_encode(a, level=quality, **how)
        case "jpeg-rgb" | "jpeg-12":
            how = {"colorspace": "RGB", "outcolorspace": "RGB", "subsampling": "444"} if colour else {}
            out = imagecodecs.jpeg8_encode(a, level=quality, bitspersample=bits, **how)
        case "jpeg-lossless":  # predictor 1: the only one that transfer syntax 4.70 allows
            out = imagecodecs.jpeg8_encode(a, lossless=True, predictor=1, bitspersample=bits)
        case "jpeg-ls":
            out = imagecodecs.jpegls_encode(a)
        case "jpeg-ls-near":
            out = imagecodecs.jpegls_encode(a, level=max(1, (100 - quality) // 7))
        case "j2k-lossless":
            out = imagecodecs.jpeg2k_encode(
                a, level=0, codecformat="j2k", reversible=True, mct=colour, bitspersample=bits
            )
        case "j2k":  # the level is the peak signal-to-noise ratio, in dB
            out = imagecodecs.jpeg2k_encode(
                a, level=20 + quality // 4, codecformat="j2k", reversible=False, mct=colour, bitspersample=bits
            )
        case "htj2k-lossless":
            out = imagecodecs.htj2k_encode(a, reversible=True, rgb=colour)
        case "htj2k":  # the level is the step of the quantiser, as a share of the range
            out = imagecodecs.htj2k_encode(a, level=0.0008 * 2 ** ((100 - quality) / 6), reversible=False, rgb=colour)
        case "jpeg-xl-lossless":
            out = imagecodecs.jpegxl_encode(a, lossless=True, usecontainer=False, bitspersample=bits, effort=3)
        case "jpeg-xl":
            out = imagecodecs.jpegxl_encode(
                a, distance=0.1 + (100 - quality) / 11, usecontainer=False, bitspersample=bits, effort=3
            )
        case "rle":
            out = _rle(pixels)
        case "deflated-frame":
            deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
            out = deflate.compress(_words(a, "<")) + deflate.flush()
        case "native-bigendian":
            out = _words(a, ">")
        case _:
            out = _words(a, "<")
    return bytes(out)


def _words(a: Pixels, order: Literal["<", ">"]) -> bytes:
    return a.astype(a.dtype.newbyteorder(order), copy=False).tobytes()


def _rle(pixels: Pixels) -> bytes:
    """DICOM RLE (PS3.5 annex G): one PackBits segment for each byte of each sample, high bytes first."""
    import imagecodecs

    planes = pixels.transpose(2, 0, 1)
    size = pixels.dtype.itemsize
    octets = planes.astype(planes.dtype.newbyteorder(">")).view(np.uint8).reshape(*planes.shape, size)
    segments = []
    for plane in octets:
        for i in range(size):
            # Of a two-dimensional array each row is packed by itself, as the annex asks.
            packed = bytes(imagecodecs.packbits_encode(np.ascontiguousarray(plane[..., i])))
            segments.append(packed + b"\0" * (len(packed) % 2))
    starts = [64 + sum(map(len, segments[:i])) for i in range(len(segments))]
    header = struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(starts)))
    return header + b"".join(segments)
