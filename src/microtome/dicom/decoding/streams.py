"""How to decode a codestream, by what its header says: PS3.5 8.2.1 JPEG, 8.2.3 JPEG-LS, 8.2.4 JPEG 2000, JPEG XL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from microtome.dicom.decoding.colour import ybr_full_to_rgb
from microtome.dicom.decoding.jpeg2000_header import JP2_SIGNATURE, find_codestream, read_jpeg2000_header
from microtome.dicom.decoding.jpeg_header import JPEG_LS, LOSSLESS, is_ycbcr, read_jpeg_header
from microtome.dicom.decoding.jpegxl_header import CODESTREAM_SIGNATURE, CONTAINER_SIGNATURE, read_jpegxl_header
from microtome.dicom.decoding.native import fit_bits
from microtome.errors import CorruptFrameError, UnsupportedCodecError
from microtome.model import FrameFormat

__all__ = ["Recipe", "plan_stream", "stream_syntax"]

Array = npt.NDArray[Any]
Step = Callable[[Array], Array]

_LIBJPEG = frozenset({0xC0, 0xC1, 0xC2, LOSSLESS, 0xC9, 0xCA})


class Recipe(NamedTuple):
    """How to decode the streams that begin with the bytes ``header``.

    ``length`` counts those bytes; it is 0 where a stream has no end marker to look for after them. ``options`` go to
    ``codec``, whose result has the shape ``shape``. ``finish`` turns that into the frame; it is None where it is the
    frame already.
    """

    length: int
    header: bytes
    codec: Callable[..., Any]
    options: Mapping[str, Any]
    shape: tuple[int, int, int]
    finish: Step | None


def plan_stream(view: memoryview, fmt: FrameFormat, lookup: Step | None) -> tuple[memoryview, Recipe] | None:
    """Find out what a stream is and how to decode it.

    Parameters
    ----------
    view
        The bytes of a frame.
    fmt
        What it should hold.
    lookup
        Applies the palette, where there is one.

    Returns
    -------
    tuple
        The codestream, without boxes around it, and the recipe; or None where the bytes are no known stream.

    Raises
    ------
    CorruptFrameError
        The header is damaged, or its picture does not fit ``fmt``.
    UnsupportedCodecError
        There is no decoder for the stream.
    """
    start = bytes(view[:8])
    if start[:3] == b"\xff\xd8\xff":
        return view, _plan_jpeg(view, fmt, lookup)
    if start == JP2_SIGNATURE:
        view = find_codestream(view)
        return view, _plan_jpeg2000(view, fmt, lookup)
    if start[:4] == b"\xff\x4f\xff\x51":
        return view, _plan_jpeg2000(view, fmt, lookup)
    if start == CONTAINER_SIGNATURE or start[:2] == CODESTREAM_SIGNATURE:
        return view, _plan_jpegxl(view, fmt, lookup)
    return None


def stream_syntax(data: bytes) -> str:
    """Return a transfer syntax of the family of codestreams that bytes begin like; empty where they are none."""
    if data.startswith(b"\xff\xd8\xff"):
        return "1.2.840.10008.1.2.4.50"
    if data.startswith((JP2_SIGNATURE, b"\xff\x4f\xff\x51")):
        return "1.2.840.10008.1.2.4.91"
    if data.startswith((CONTAINER_SIGNATURE, CODESTREAM_SIGNATURE)):
        return "1.2.840.10008.1.2.4.112"
    return ""


def _plan_jpeg(view: memoryview, fmt: FrameFormat, lookup: Step | None) -> Recipe:
    import imagecodecs

    header = read_jpeg_header(view)
    shape = _check_picture(fmt, header.rows, header.columns, len(header.identifiers), header.precision)
    codec: Callable[..., Any] = imagecodecs.jpeg8_decode
    options: dict[str, Any] = {}
    ycbcr = planes = False
    if header.frame == JPEG_LS:
        codec = imagecodecs.jpegls_decode
        ycbcr = _is_full_ybr(fmt)
        planes = header.interleaved == 0 and fmt.samples == 3
    elif header.frame not in _LIBJPEG:
        raise UnsupportedCodecError(f"JPEG process ff{header.frame:02x} has no decoder")
    elif fmt.samples == 3:
        ycbcr = is_ycbcr(header, fmt.photometric)
        rgb = int(imagecodecs.JPEG8.CS.RGB)
        options = {"colorspace": rgb, "outcolorspace": rgb}
        if ycbcr and header.frame != LOSSLESS:  # libjpeg converts the colours of lossy streams only
            options["colorspace"] = int(imagecodecs.JPEG8.CS.YCbCr)
            ycbcr = False
    finish = _finish(fmt, lookup, header.precision, False, ycbcr, planes)
    return Recipe(header.length, bytes(view[: header.length]), codec, options, shape, finish)


def _plan_jpeg2000(view: memoryview, fmt: FrameFormat, lookup: Step | None) -> Recipe:
    import imagecodecs

    header = read_jpeg2000_header(view)
    shape = _check_picture(fmt, header.rows, header.columns, header.components, header.precision)
    # OpenJPEG for HTJ2K too: OpenJPH takes half the time, but imagecodecs drops its errors, so that a damaged stream
    # decodes to garbage, and its lossy results wrap around instead of saturating.
    ycbcr = _is_full_ybr(fmt) and not header.transformed
    finish = _finish(fmt, lookup, header.precision, header.signed, ycbcr, False)
    start = bytes(view[: header.length])
    return Recipe(header.length, start, imagecodecs.jpeg2k_decode, {"numthreads": 1}, shape, finish)


def _plan_jpegxl(view: memoryview, fmt: FrameFormat, lookup: Step | None) -> Recipe:
    import imagecodecs

    header = read_jpegxl_header(view)
    shape = _check_picture(fmt, header.rows, header.columns, header.components, header.precision)
    options = {"numthreads": 1, "keeporientation": True}
    finish = _finish(fmt, lookup, header.precision, False, False, False)
    return Recipe(0, b"", imagecodecs.jpegxl_decode, options, shape, finish)


def _finish(
    fmt: FrameFormat, lookup: Step | None, precision: int, signed: bool, ycbcr: bool, planes: bool
) -> Step | None:
    """Return what has to be done to decoded samples, or None where that is nothing."""
    steps: list[Step] = []
    stored = fmt.stored_dtype
    width = 8 if precision <= 8 else 16 if precision <= 16 else 32
    if planes:  # the codec returns a transposed view
        steps.append(np.ascontiguousarray)
    if ycbcr:
        steps.append(lambda frame: ybr_full_to_rgb(frame, precision))
    if signed != fmt.signed:  # the stream is wrong about the sign: only its bits count
        bits = min(precision, fmt.bits_stored)
        steps.append(lambda frame: fit_bits(frame, stored, bits))
    elif width != 8 * stored.itemsize:
        steps.append(lambda frame: frame.astype(stored))
    if lookup is not None:
        steps.append(lookup)
    if not steps:
        return None

    def run(frame: Array) -> Array:
        for step in steps:
            frame = step(frame)
        return frame

    return run


def _is_full_ybr(fmt: FrameFormat) -> bool:
    return fmt.samples == 3 and fmt.photometric in ("YBR_FULL", "YBR_FULL_422")


def _check_picture(fmt: FrameFormat, rows: int, columns: int, components: int, precision: int) -> tuple[int, int, int]:
    """Compare what a header claims with ``fmt``, before anything is allocated for it."""
    if not (0 < rows <= fmt.rows and 0 < columns <= fmt.columns):
        raise CorruptFrameError(f"stream holds a picture of {rows}x{columns}")
    if components != fmt.samples:
        raise CorruptFrameError(f"stream holds {components} components")
    if not 1 <= precision <= 8 * fmt.stored_dtype.itemsize:
        raise CorruptFrameError(f"stream holds samples of {precision} bits")
    return rows, columns, components
