"""Luma and chroma become red, green and blue; palettes are applied: PS3.3 C.7.6.3.1.2 and C.7.9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.model import FrameFormat

__all__ = ["expand_422", "palette_lookup", "ybr_full_to_rgb"]

_YBR_TO_RGB = np.array(
    [
        [1.0, 1.0, 1.0],
        [0.0, -0.114 * 1.772 / 0.587, 1.772],
        [1.402, -0.299 * 1.402 / 0.587, 0.0],
    ],
    np.float32,
)


def ybr_full_to_rgb(frame: npt.NDArray[Any], bits: int = 8) -> npt.NDArray[Any]:
    """Convert (h, w, 3) samples of ``bits`` bits from YBR_FULL to RGB, rounded and clipped.

    Rounds as pydicom does: halves go up.
    """
    values = frame.astype(np.float32)
    values[..., 1:] -= 1 << (bits - 1)
    values = values @ _YBR_TO_RGB
    values += 0.5
    np.floor(values, out=values)
    np.clip(values, 0, (1 << bits) - 1, out=values)
    return values.astype(frame.dtype)


def expand_422(samples: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    """Give every pixel of a native YBR_FULL_422 frame its own chroma.

    ``samples`` run Y Y Cb Cr; both pixels of a pair get its Cb and Cr. The result is (rows, columns, 3).
    """
    pairs = samples.reshape(-1, 4)
    pixels = np.empty((len(pairs), 2, 3), samples.dtype)
    pixels[..., 0] = pairs[:, :2]
    pixels[..., 1:] = pairs[:, None, 2:]
    return pixels.reshape(rows, columns, 3)


def palette_lookup(fmt: FrameFormat) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Return the function that turns stored values (h, w, 1) into colours (h, w, 3).

    Values below the first one of the table, or beyond its end, get its first or last colour (PS3.3 C.7.6.3.1.5).
    """
    assert fmt.palette is not None
    table, first = fmt.palette
    stored = fmt.stored_dtype
    if stored.itemsize > 2:
        return lambda frame: table[np.clip(frame[..., 0].astype(np.int64) - first, 0, len(table) - 1)]
    unsigned = np.dtype(f"u{stored.itemsize}")
    every = np.arange(1 << 8 * stored.itemsize).astype(unsigned).view(stored).astype(np.int64)
    colours = np.ascontiguousarray(table[np.clip(every - first, 0, len(table) - 1)])
    return lambda frame: np.take(colours, frame.view(unsigned)[..., 0], axis=0)
