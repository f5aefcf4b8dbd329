"""What OpenCV makes of 8 bit pixels, in NumPy: grey values, and resizing by area.

To the last bit, where results have to equal those of programs that use it. The order of operations, the rounding of
each and the type of every intermediate value are part of the result. Checked against OpenCV 4.11 and 5.0 on x86.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["luminance", "resize_area", "resize_cubic"]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Shape = tuple[int, int]

# Rec. 601 weights in units of 2**-15, which add up to one.
_WEIGHTS = (9798, 19235, 3735)
_AT_A_TIME = 1 << 16  # pixels: intermediate values stay in the cache of the processor


def luminance(pixels: Bytes) -> Bytes:
    """Return the luminance of RGB pixels: OpenCV's ``COLOR_RGB2GRAY``.

    0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), in fixed point of 15 bits, rounded half up.

    Parameters
    ----------
    pixels
        uint8, ``(n, 3)`` or ``(h, w, 3)``.

    Returns
    -------
    numpy.ndarray
        uint8, ``(n,)`` or ``(h, w)``.
    """
    grey = np.empty(pixels.shape[:-1], np.uint8)
    rows = max(1, _AT_A_TIME * len(grey) // max(1, grey.size))
    for first in range(0, len(grey), rows):
        part = pixels[first : first + rows]
        sums = part[..., 0] * np.uint32(_WEIGHTS[0])
        for channel in (1, 2):
            sums += part[..., channel] * np.uint32(_WEIGHTS[channel])
        sums += np.uint32(1 << 14)
        sums >>= np.uint32(15)
        grey[first : first + rows] = sums
    return grey


def resize_area(pixels: Bytes, shape: Shape) -> Bytes:
    """Return what OpenCV's ``resize`` makes with ``INTER_AREA``, to the last bit.

    Means over areas where both axes shrink. Where one does not, OpenCV interpolates linearly between pixels, with
    weights of its own.

    Parameters
    ----------
    pixels
        uint8, ``(h, w)`` or ``(h, w, c)``.
    shape
        Rows and columns to make.

    Returns
    -------
    numpy.ndarray
        uint8, ``(rows, columns)`` or ``(rows, columns, c)``.
    """
    rows, columns = shape
    height, width = pixels.shape[:2]
    if (height, width) == (rows, columns):
        return pixels.copy()
    scales = (1.0 / (rows / height), 1.0 / (columns / width))  # OpenCV's two divisions: not always height / rows
    if min(scales) < 1:
        return _resize_linear(pixels, shape, scales)
    factors = (round(scales[0]), round(scales[1]))
    if all(abs(s - f) < sys.float_info.epsilon for s, f in zip(scales, factors, strict=True)):
        cells = pixels.reshape(rows, factors[0], columns, factors[1], *pixels.shape[2:])
        sums = cells.sum(axis=(1, 3), dtype=np.int64)
        if factors == (2, 2):  # a fast path that rounds halves up, where the others round them to even
            halves_up: Bytes = ((sums + 2) >> 2).astype(np.uint8)
            return halves_up
        return _to_bytes(sums.astype(np.float32) * (np.float32(1) / np.float32(factors[0] * factors[1])))
    across = np.zeros((height, columns, *pixels.shape[2:]), np.float32)
    for index, weight in _area_taps(width, columns, scales[1]):
        across += pixels[:, index] * _along(weight, 1, pixels.ndim)
    down = np.zeros((rows, *across.shape[1:]), np.float32)
    for index, weight in _area_taps(height, rows, scales[0]):
        down += across[index] * _along(weight, 0, pixels.ndim)
    return _to_bytes(down)


def _area_taps(size: int, count: int, scale: float) -> list[tuple[Array, npt.NDArray[np.float32]]]:
    """Return, for the first, second, ... source pixel under each of ``count`` pixels, which it is and what it weighs.

    Sums in float32 depend on their order: it is that of the list. Weights of pixels that are not under are 0.
    """
    start = np.arange(count) * scale
    stop = start + scale
    cell = np.minimum(scale, size - start)
    last = np.minimum(np.floor(stop).astype(np.int64), size - 1)
    first = np.minimum(np.ceil(start).astype(np.int64), last)
    # parts of a pixel below a thousandth are left out
    head = np.where(first - start > 1e-3, (first - start) / cell, 0)
    tail = np.where(stop - last > 1e-3, np.minimum(np.minimum(stop - last, 1), cell) / cell, 0)
    taps = [(np.maximum(first - 1, 0), head.astype(np.float32))]
    for n in range(int((last - first).max(initial=0))):
        inside = first + n < last
        taps.append((np.where(inside, first + n, 0), np.where(inside, 1 / cell, 0).astype(np.float32)))
    taps.append((last, tail.astype(np.float32)))
    return taps


def _resize_linear(pixels: Bytes, shape: Shape, scales: tuple[float, float]) -> Bytes:
    """Return what ``INTER_AREA`` makes where an axis grows: linear interpolation in fixed point of 11 bits."""
    values = pixels.astype(np.int64)
    near, far, weights = _linear_taps(pixels.shape[1], shape[1], scales[1])
    near_weight, far_weight = (_along(w, 1, pixels.ndim) for w in weights)
    across = values[:, near] * near_weight + values[:, far] * far_weight
    near, far, weights = _linear_taps(pixels.shape[0], shape[0], scales[0])
    near_weight, far_weight = (_along(w, 0, pixels.ndim) for w in weights)
    upper = (near_weight * (across[near] >> 4)) >> 16
    lower = (far_weight * (across[far] >> 4)) >> 16
    return _to_bytes((upper + lower + 2) >> 2)


def _linear_taps(size: int, count: int, scale: float) -> tuple[Array, Array, tuple[Array, Array]]:
    """Return both neighbours of each pixel, and their weights in 2048ths."""
    number = np.arange(count)
    near = np.floor(number * scale).astype(np.int64)
    part = ((number + 1) - (near + 1) * (count / size)).astype(np.float32)
    part = np.where(part <= 0, np.float32(0), part - np.floor(part))
    part[near >= size - 1] = 0
    near = np.minimum(near, size - 1)
    weights = [np.rint(w * np.float32(2048)).astype(np.int64) for w in (np.float32(1) - part, part)]
    return near, np.minimum(near + 1, size - 1), (weights[0], weights[1])


def resize_cubic(pixels: Bytes, shape: Shape) -> Bytes:
    """Return what OpenCV's ``resize`` makes with ``INTER_CUBIC``, but for halves.

    Cubic convolution (R. Keys, IEEE Trans. ASSP 29, 1981) with a = -0.75; edges are repeated, and nothing is smoothed
    where the image shrinks. OpenCV has two: with Intel's IPP (its wheels for x86 have it) results are these but for
    values within rounding error of a half; without it weights are 2048ths, and some per cent of pixels differ by 1.

    Parameters
    ----------
    pixels
        uint8, ``(h, w)`` or ``(h, w, c)``.
    shape
        Rows and columns to make.

    Returns
    -------
    numpy.ndarray
        uint8, ``(rows, columns)`` or ``(rows, columns, c)``.
    """
    if shape == pixels.shape[:2]:
        return pixels.copy()
    values: Array = pixels.astype(np.float64)
    for axis in (0, 1):
        size, count = pixels.shape[axis], shape[axis]
        place = (np.arange(count) + 0.5) * (1.0 / (count / size)) - 0.5
        base = np.floor(place).astype(np.int64)
        result = 0.0
        for tap in range(-1, 3):
            distance = np.abs(place - base - tap)
            inner = (1.25 * distance - 2.25) * distance**2 + 1
            outer = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
            weight = _along(np.where(distance <= 1, inner, outer), axis, pixels.ndim)
            result = result + values.take(np.clip(base + tap, 0, size - 1), axis) * weight
        values = np.asarray(result)
    return _to_bytes(values)


def _along(weights: Array, axis: int, ndim: int) -> Array:
    """Return weights in the shape that multiplies along an axis."""
    return weights.reshape([-1 if n == axis else 1 for n in range(ndim)])


def _to_bytes(values: Array) -> Bytes:
    """Round, halves to even, into 0 to 255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
