"""One frame from bytes to pixels: which decoder, and what to believe (PS3.5 8.2 and Annex A)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.dicom.decoding.colour import palette_lookup, ybr_full_to_rgb
from microtome.dicom.decoding.jpeg_header import ends_with_marker
from microtome.dicom.decoding.native import decode_rle, inflate_frame, unpack_native
from microtome.dicom.decoding.streams import Recipe, plan_stream
from microtome.errors import CorruptFrameError, FrameError, UnsupportedCodecError
from microtome.model import FrameFormat

__all__ = ["FrameDecoder"]

Array = npt.NDArray[Any]

_ROOT = "1.2.840.10008.1.2"
_BIG_ENDIAN = f"{_ROOT}.2"
_DEFLATED_FRAME = f"{_ROOT}.8.1"
_RLE = f"{_ROOT}.5"
_NATIVE = frozenset({_ROOT, f"{_ROOT}.1", f"{_ROOT}.1.98", f"{_ROOT}.1.99", _BIG_ENDIAN, _DEFLATED_FRAME})
_FAMILIES = {
    f"{_ROOT}.4.{number}": family
    for family, numbers in (
        (("JPEG", "JPEG8"), (50, 51, 57, 70)),
        (("JPEG-LS", "JPEGLS"), (80, 81)),
        (("JPEG 2000", "JPEG2K"), (90, 91, 92, 93, 201, 202, 203)),
        (("JPEG XL", "JPEGXL"), (110, 111, 112)),
    )
    for number in numbers
}
_VIDEO = (f"{_ROOT}.4.10", f"{_ROOT}.7.")
_REFERENCES = frozenset({f"{_ROOT}.4.{number}" for number in (94, 95, 204, 205)})  # JPIP

_END_OF_IMAGE = b"\xff\xd9"

# One byte is never equal to four: what a decoder remembers before it has seen a stream.
_NOTHING_SEEN = Recipe(1, b"none", lambda: None, {}, (0, 0, 0), None)


class FrameDecoder:
    """Decodes the frames of one instance.

    The codestream decides how it is decoded; the transfer syntax only says what to expect. May be used from many
    threads at once.

    Parameters
    ----------
    fmt
        What is known of the frames.

    Raises
    ------
    UnsupportedCodecError
        No frame of this kind can be decoded.
    """

    def __init__(self, fmt: FrameFormat) -> None:
        self.fmt = fmt
        _check_format(fmt)
        self._syntax_is_native = fmt.transfer_syntax in _NATIVE
        if not self._syntax_is_native:
            _check_codec(fmt)
        self._dtype = fmt.dtype
        self._grey = fmt.channels == 1
        self._lookup = None if fmt.palette is None else palette_lookup(fmt)
        self._seen = _NOTHING_SEEN  # replaced as a whole, which is safe between threads

    def __repr__(self) -> str:
        """Show what frames are decoded."""
        fmt = self.fmt
        return f"FrameDecoder({fmt.transfer_syntax}, {fmt.rows}x{fmt.columns}x{fmt.channels} {fmt.dtype})"

    def decode(self, data: bytes | memoryview, out: Array | None = None, bit_offset: int = 0) -> Array:
        """Decode one frame.

        Parameters
        ----------
        data
            The bytes of the frame: its fragments joined, or its part of native pixel data.
        out
            A C-contiguous array (rows, columns, channels) of ``fmt.dtype`` to decode into. Used where that saves a
            copy, and then it is what is returned. After an error it may hold anything.
        bit_offset
            Bits of ``data`` before the first pixel, for native frames that do not begin with a byte (PS3.5 8.1.1).

        Returns
        -------
        ndarray
            (h, w, channels) of ``fmt.dtype``, C-contiguous. Codestreams at the edge of a slide may hold fewer rows
            and columns than ``fmt`` says. Three samples are red, green and blue.

        Raises
        ------
        CorruptFrameError
            The bytes do not hold such a frame, or only a part of it.
        UnsupportedCodecError
            There is no decoder for them.
        """
        try:
            seen = self._seen
            # Frames of an instance share the header of their streams: what it means is found out once.
            if bytes(data[: seen.length]) == seen.header:
                return self._run(seen, data, out)
            view = memoryview(data).cast("B")
            if self._syntax_is_native:
                return self._decode_native(view, out, bit_offset)
            return self._decode_stream(view, out)
        except FrameError as error:
            raise type(error)(f"{self._describe(data)}: {error}") from error.__cause__
        except ImportError as error:
            raise UnsupportedCodecError(f"{self._describe(data)}: {error}") from error
        except Exception as error:  # codecs raise all kinds
            reason = str(error) or type(error).__name__
            raise CorruptFrameError(f"{self._describe(data)} cannot be decoded: {reason}") from error

    def _run(self, recipe: Recipe, data: bytes | memoryview, out: Array | None) -> Array:
        length, _, codec, options, shape, finish = recipe
        # libjpeg fills a part that is cut with grey and says nothing.
        if length and data[-2:] != _END_OF_IMAGE and not ends_with_marker(data, length):
            raise CorruptFrameError("stream is cut short: it has no end marker (ffd9)")
        if finish is None and out is not None and self._can_hold(out, shape):
            codec(data, out=out[..., 0] if self._grey else out, **options)
            return out
        frame: Array = codec(data, **options).reshape(shape)
        return frame if finish is None else finish(frame)

    def _decode_stream(self, view: memoryview, out: Array | None) -> Array:
        fmt = self.fmt
        plan = self._plan(view)
        if plan is not None:
            stream, recipe = plan
            if recipe.length and stream is view:
                self._seen = recipe
            return self._run(recipe, stream, out)
        if fmt.transfer_syntax == _RLE:
            return self._finish_native(decode_rle(view, fmt), out)
        start = bytes(view[:8]).hex() or "nothing"
        if fmt.transfer_syntax not in _FAMILIES:
            raise UnsupportedCodecError(f"the transfer syntax is unknown, and so is a stream that begins with {start}")
        raise CorruptFrameError(f"bytes begin with {start}, not with a {_FAMILIES[fmt.transfer_syntax][0]} stream")

    def _plan(self, view: memoryview) -> tuple[memoryview, Recipe] | None:
        """Find out how a stream is decoded; see `plan_stream`."""
        return plan_stream(view, self.fmt, self._lookup)

    def _decode_native(self, view: memoryview, out: Array | None, bit_offset: int) -> Array:
        fmt = self.fmt
        if fmt.transfer_syntax == _DEFLATED_FRAME:
            view = inflate_frame(view, (bit_offset + fmt.native_bits + 7) // 8)
        return self._finish_native(unpack_native(view, fmt, fmt.transfer_syntax == _BIG_ENDIAN, bit_offset), out)

    def _finish_native(self, frame: Array, out: Array | None) -> Array:
        """Make the frame out of stored samples, which may still be a view of the input."""
        fmt = self.fmt
        if self._lookup is not None:
            return self._lookup(frame)
        if fmt.samples == 3 and fmt.photometric in ("YBR_FULL", "YBR_FULL_422"):
            return np.ascontiguousarray(ybr_full_to_rgb(frame, fmt.bits_stored))
        if out is not None and self._can_hold(out, frame.shape):
            np.copyto(out, frame)
            return out
        return frame.copy(order="C")

    def _can_hold(self, out: Array, shape: tuple[int, ...]) -> bool:
        return out.shape == shape and out.dtype == self._dtype and out.flags.c_contiguous

    def _describe(self, data: bytes | memoryview) -> str:
        fmt = self.fmt
        return (
            f"frame of {len(data)} bytes (transfer syntax {fmt.transfer_syntax}), expected "
            f"{fmt.rows}x{fmt.columns}x{fmt.samples} {fmt.stored_dtype}"
        )


def _check_format(fmt: FrameFormat) -> None:
    """Refuse what no decoder here can produce."""
    syntax = fmt.transfer_syntax
    if fmt.rows < 1 or fmt.columns < 1 or fmt.samples not in (1, 3):
        size = f"{fmt.rows}x{fmt.columns} pixels of {fmt.samples} samples"
        raise UnsupportedCodecError(f"frames of {size} cannot be decoded (transfer syntax {syntax})")
    if fmt.bits_allocated not in (1, 8, 16, 32) or not 1 <= fmt.bits_stored <= fmt.bits_allocated:
        bits = f"{fmt.bits_stored} bits in {fmt.bits_allocated}"
        raise UnsupportedCodecError(f"samples of {bits} cannot be decoded (transfer syntax {syntax})")
    if fmt.photometric.startswith("YBR_PARTIAL"):
        raise UnsupportedCodecError(f"photometric interpretation {fmt.photometric} is retired and not supported")


def _check_codec(fmt: FrameFormat) -> None:
    """Refuse a transfer syntax that has no decoder, and load the decoders of those that have."""
    syntax = fmt.transfer_syntax
    family, module = _FAMILIES.get(syntax, ("", ""))
    if (syntax.startswith(_VIDEO) and not family) or syntax in _REFERENCES:
        raise UnsupportedCodecError(f"transfer syntax {syntax} holds a video or a reference, not frames")
    try:
        import imagecodecs
    except ImportError as error:
        raise UnsupportedCodecError(f"transfer syntax {syntax} needs the package imagecodecs") from error
    if family and not getattr(imagecodecs, module).available:
        raise UnsupportedCodecError(f"transfer syntax {syntax}: this build of imagecodecs has no decoder for {family}")
