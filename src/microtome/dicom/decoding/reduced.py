"""Frames decoded at 1/2, 1/4 or 1/8 of their size, without their full size ever being made where that can be had.

A pixel of the result stands for a block of 2 x 2, 4 x 4 or 8 x 8 pixels of the frame. Of 8 bit baseline, extended and
progressive JPEG with Huffman codes, an inverse transform of the low frequencies alone makes it (libjpeg's
``scale_denom``): at 1/8 that is the mean of the block, but for rounding and for chroma that is subsampled; at 1/2 and
1/4 a picture of the same place that is a little sharper than the mean. Where chroma is subsampled along one axis only
(4:2:2), that is done at twice the scale, and averaged. Every other frame is decoded in full, and averaged.

Against the mean of the fully decoded frame, real frames (haematoxylin and eosin, quality 30 to 80, 4:2:0 and 4:4:4)
differ by 0.1 to 0.8 grey values on average, and nowhere by more than 42 at 1/2, 26 at 1/4 and 11 at 1/8; 4:2:2 by 0.7
at the most, and by 18.

Pillow does it, which hands libjpeg's scale and colour spaces on; imagecodecs does not. Entropy coding is what remains:
a 256 x 256 frame takes 0.95, 0.9 and 0.75 of the time of a full decode at 1/2, 1/4 and 1/8, one of 1024 x 1024 takes
0.95, 0.75 and 0.6; and with the mean counted 0.6, 0.6 and 0.5. There are 4, 16 and 64 times fewer pixels to paste, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.dicom.decoding.decoder import FrameDecoder
from microtome.dicom.decoding.jpeg_header import JpegHeader, read_jpeg_header
from microtome.dicom.decoding.streams import Recipe, Step
from microtome.errors import CorruptFrameError, OptionError
from microtome.model import FrameFormat

__all__ = ["FACTORS", "ReducedFrameDecoder", "block_mean", "frame_decoder"]

Array = npt.NDArray[Any]

FACTORS = (2, 4, 8)
"""What the side of a block may be: libjpeg knows fractions of the 8 x 8 pixels of its own blocks."""

_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})
_TRUSTED_PIXELS = 1 << 28
_PIXELS_A_BYTE = 1 << 12


class ReducedFrameDecoder(FrameDecoder):
    """Decodes the frames of one instance at a fraction of their size.

    What a frame is, its colours and its damages are judged as `FrameDecoder` judges them. May be used from many
    threads at once.

    Parameters
    ----------
    fmt
        What is known of the frames as they are stored.
    factor
        2, 4 or 8: the side of the block of pixels that one pixel of the result stands for.

    Raises
    ------
    OptionError
        There is no such factor.
    UnsupportedCodecError
        No frame of this kind can be decoded.
    """

    def __init__(self, fmt: FrameFormat, factor: int) -> None:
        if factor not in FACTORS:
            raise OptionError(f"factor={factor!r}: frames are reduced by one of {FACTORS}")
        super().__init__(fmt)
        self.factor = int(factor)
        self._scales = _can_scale()
        self._large = fmt.rows * fmt.columns > _TRUSTED_PIXELS

    def __repr__(self) -> str:
        """Show what frames are decoded, and their part."""
        return f"Reduced{super().__repr__()[:-1]}, 1/{self.factor})"

    def decode(self, data: bytes | memoryview, out: Array | None = None, bit_offset: int = 0) -> Array:
        """Decode one frame, smaller.

        Parameters
        ----------
        data, bit_offset
            As of `FrameDecoder.decode`.
        out
            A C-contiguous array (ceil(rows / factor), ceil(columns / factor), channels) of ``fmt.dtype``. Used where
            the frame fits, and then it is what is returned. After an error it may hold anything.

        Returns
        -------
        ndarray
            (ceil(h / factor), ceil(w / factor), channels) of ``fmt.dtype``, C-contiguous, for a codestream of h rows
            and w columns, which may be fewer than ``fmt`` says. Pixel (i, j) stands for the block of the frame that
            begins at row ``factor * i`` and column ``factor * j``. At an edge that cuts a block of 8 x 8 pixels, a
            scaled JPEG shows a part of what its encoder filled the block with: the edge again, as a rule.

        Raises
        ------
        CorruptFrameError
            The bytes do not hold such a frame, or only a part of it.
        UnsupportedCodecError
            There is no decoder for them.
        """
        fmt = self.fmt
        # A small result has to be refused like the full frame, which may have to be made.
        if self._large and fmt.rows * fmt.columns > len(data) * _PIXELS_A_BYTE:
            raise CorruptFrameError(f"claims {fmt.rows} x {fmt.columns} pixels in {len(data)} bytes")
        return super().decode(data, out, bit_offset)

    def _plan(self, view: memoryview) -> tuple[memoryview, Recipe] | None:
        plan = super()._plan(view)
        if plan is None:
            return None
        stream, recipe = plan
        scaled = self._scaled(stream, recipe) if self._scales else None
        if scaled is None:
            scaled = recipe._replace(finish=_then_mean(recipe.finish, self.factor))
        return stream, scaled

    def _scaled(self, view: memoryview, recipe: Recipe) -> Recipe | None:
        """Return how libjpeg decodes a stream at its scale; None where it does not, or not to the final colours."""
        if recipe.finish is not None or bytes(view[:3]) != b"\xff\xd8\xff":
            return None
        header = read_jpeg_header(view)
        if header.frame not in _HUFFMAN or header.precision != 8:
            return None
        stretch = _stretch(header.sampling)
        scale = self.factor // stretch
        if scale < 2 or self.factor % stretch:
            return None
        rows, columns, channels = recipe.shape
        rows, columns = -(-rows // scale), -(-columns // scale)
        mode = "L" if channels == 1 else "RGB"
        options = {
            "mode": mode,
            "size": (columns, rows),
            "coded": "YCbCr" if _is_converted(header, recipe.options) else mode,
            "scale": scale,
        }
        finish = None if stretch == 1 else _then_mean(None, stretch)
        return Recipe(recipe.length, recipe.header, _decode_scaled, options, (rows, columns, channels), finish)

    def _finish_native(self, frame: Array, out: Array | None) -> Array:
        return block_mean(super()._finish_native(frame, None), self.factor)


def frame_decoder(fmt: FrameFormat) -> FrameDecoder:
    """Return what decodes frames of a format, at the reduction that it states.

    Raises
    ------
    UnsupportedCodecError
        No frame of this kind can be decoded.
    """
    if fmt.unreduced is None:
        return FrameDecoder(fmt)
    # Of the two, a server that sends other frames than are stored is told to the one that is asked for.
    return ReducedFrameDecoder(replace(fmt.unreduced, transfer_syntax=fmt.transfer_syntax), fmt.reduction)


def block_mean(frame: Array, factor: int) -> Array:
    """Return the means of blocks of ``factor`` x ``factor`` pixels.

    Parameters
    ----------
    frame
        (rows, columns, channels) of integers.
    factor
        Side of a block. Blocks that the edge cuts are the mean of the pixels they have.

    Returns
    -------
    ndarray
        (ceil(rows / factor), ceil(columns / factor), channels) of the same type, C-contiguous, rounded half up.
    """
    rows, columns, channels = frame.shape
    height, width = -(-rows // factor), -(-columns // factor)
    wide = np.dtype(f"{frame.dtype.kind}{2 * frame.itemsize}")  # 64 samples fit into twice their bits
    lines = np.zeros((height, columns, channels), wide)
    for i in range(min(factor, rows)):
        part = frame[i::factor]
        lines[: len(part)] += part
    sums = np.zeros((height, width, channels), wide)
    for channel in range(channels):  # along columns, not channels: loops over long axes are the fast ones
        for j in range(min(factor, columns)):
            piece = lines[:, j::factor, channel]
            sums[:, : piece.shape[1], channel] += piece
    means: Array
    if rows % factor == columns % factor == 0:
        size = factor * factor
        means = (sums + wide.type(size // 2)) >> wide.type(size.bit_length() - 1)
    else:
        down, across = np.full(height, factor, wide), np.full(width, factor, wide)
        down[-1], across[-1] = rows - (height - 1) * factor, columns - (width - 1) * factor
        counts = (down[:, np.newaxis] * across)[..., np.newaxis]
        means = (sums + counts // 2) // counts
    return means.astype(frame.dtype)


def _then_mean(finish: Step | None, factor: int) -> Step:
    if finish is None:
        return lambda frame: block_mean(frame, factor)
    return lambda frame: block_mean(finish(frame), factor)


def _stretch(sampling: bytes) -> int:
    """Return how many times longer than wide a sample of a component is, or wider than long; at the most.

    libjpeg takes as much more of the frequencies of a subsampled component as makes up for it, but of both axes alike:
    4:2:0 comes out right, 4:2:2 with its chroma smeared over two pixels of the result.
    """
    across, down = [s >> 4 for s in sampling], [s & 15 for s in sampling]
    if not min(across + down):
        return 1  # no decoder takes it
    sides = [Fraction(max(across) * v, h * max(down)) for h, v in zip(across, down, strict=True)]
    return ceil(max(max(side, 1 / side) for side in sides))


def _is_converted(header: JpegHeader, options: Mapping[str, Any]) -> bool:
    """Whether the full decoder lets libjpeg convert luma and chroma: what was found out there holds here."""
    return len(header.identifiers) == 3 and options["colorspace"] != options["outcolorspace"]


def _can_scale() -> bool:
    from PIL import features

    return bool(features.check_codec("jpg"))


def _decode_scaled(
    data: bytes | memoryview, *, mode: str, size: tuple[int, int], coded: str, scale: int, out: Array | None = None
) -> Array:
    """Decode a JPEG stream by libjpeg at 1/``scale``; ``size`` (columns, rows) is that of the result.

    Pillow holds no lock of Python's while libjpeg works. A stream that ends early raises; it is not filled.
    """
    from PIL import Image

    # The decoder is called as it is: to open the stream as a file takes as long as to decode it.
    image = Image.frombytes(mode, size, data, "jpeg", mode, coded, scale, 0)
    pixels: Array = np.frombuffer(bytearray(image.tobytes()), np.uint8)
    if out is None:
        return pixels
    np.copyto(out, pixels.reshape(out.shape))
    return out
