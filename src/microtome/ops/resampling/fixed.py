"""Resampling of 8 and 16 bit integers as products of small matrices, exact in floating point.

The output is made tile by tile, in cache. Four output rows at a time are a product of source rows and weights, turned
so that the channels and rows of a reduced column lie side by side: then the other axis is the same kind of product.
All sums are of whole numbers that a float32 (float64 for 16 bit) holds exactly, whatever order the matrix library adds
them in, so that pixels are the same to the bit however an image is cut.
"""

from __future__ import annotations

import itertools
import math
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from microtome.ops.resampling.axis import AxisGrid
from microtome.ops.resampling.weights import axis_weights, exact_denominator, fine_denominator, largest_total

__all__ = ["Fixed", "fixed_weights", "resample_fixed"]

_BLOCK = 4
"""Outputs of a product: more would multiply by more zeros, one alone is another routine of BLAS, with threads."""
_SINGLE = 2**18
"""Multiplications in one product: above this OpenBLAS starts threads of its own, which would fight the caller's."""
_SAMPLES, _TILE, _TALL = 6144, 2**18, 16
"""Samples of a source row under a tile, samples of all its source rows, and blocks of its rows. They fit a cache, and
are work enough for each call of NumPy: where calls are short, threads wait for each other's interpreter lock."""
_MIDDLE = 16
"""Steps per grey level kept between the axes, where a float32 cannot hold the exact sums of both."""
_COARSEST = 256
"""The largest scale; beyond, windows of the source would not fit a cache."""
_KEPT = 2048
"""The most outputs whose weights are kept for the next call: the blocks of a level share them."""


class Fixed(NamedTuple):
    """Whole weights for the two axes."""

    y: int
    """Denominator of the weights along y."""
    x: int
    rounded: bool
    """Whether sums along y are first rounded to 1 / 16 grey level."""


class _Blocks(NamedTuple):
    """The weights along one axis, in blocks of four outputs, and groups of blocks ``hop`` source pixels apart."""

    first: npt.NDArray[np.int64]
    """The source pixel at which the first block of each group begins."""
    table: npt.NDArray[Any]
    """``(blocks, source pixels, 4)``; 0 for outputs behind the last, up to whole groups."""
    total: npt.NDArray[Any]
    """The sum of the weights of each output; 1 where there are none."""


class _Scratch(threading.local):
    """Memory for the arrays of a tile, kept for each thread: new pages cost more than what is done with them."""

    def __init__(self) -> None:
        self.memory: dict[np.dtype[Any], npt.NDArray[Any]] = {}

    def arrays(self, kind: np.dtype[Any], *shapes: tuple[int, ...]) -> list[npt.NDArray[Any]]:
        """Return arrays of these shapes, valid until the next call; they hold what was left in them, or 0."""
        ends = list(itertools.accumulate((-(-math.prod(shape) // 16) * 16 for shape in shapes), initial=0))
        flat = self.memory.get(kind)
        if flat is None or len(flat) < ends[-1]:
            flat = self.memory[kind] = np.zeros(ends[-1], kind)
        return [
            flat[begin : begin + math.prod(shape)].reshape(shape) for begin, shape in zip(ends, shapes, strict=False)
        ]


_scratch = _Scratch()


@lru_cache(maxsize=64)
def fixed_weights(dtype: np.dtype[Any], y: AxisGrid, x: AxisGrid) -> Fixed | None:
    """Return whole weights for which sums over both axes are exact; None where there are none."""
    if dtype.kind not in "iu" or dtype.itemsize > 2 or max(y.scale, x.scale) > _COARSEST:
        return None
    byte = dtype.itemsize == 1
    room = 2**16 if byte else 2**37  # what a float32, float64 holds beside the bits of the value
    down, across = exact_denominator(y, room), exact_denominator(x, room)
    if down and across and largest_total(y, down) * largest_total(x, across) <= room:
        return Fixed(down, across, False)
    y_limit, x_limit = (room, room // _MIDDLE) if byte else (2**18, 2**18)
    return Fixed(
        exact_denominator(y, y_limit) or fine_denominator(y, y_limit),
        exact_denominator(x, x_limit) or fine_denominator(x, x_limit),
        byte,
    )


def resample_fixed(
    source: npt.NDArray[Any],
    y: AxisGrid,
    x: AxisGrid,
    rows: tuple[int, int],
    columns: tuple[int, int],
    origin: tuple[int, int],
    fixed: Fixed,
    out: npt.NDArray[Any],
) -> None:
    """Resample an image ``(h, w, c)``, which begins at source pixel ``origin``, into ``out``."""
    channels = source.shape[2]
    kind = np.dtype(np.float32 if source.dtype.itemsize == 1 else np.float64)
    # a tile is ``tall`` blocks of rows and ``wide`` blocks of columns
    hop, x_hop = round(_BLOCK * y.scale), max(_BLOCK, round(_BLOCK * x.scale))
    wide = max(1, _SAMPLES // (channels * x_hop))
    most = min(_TILE // (min(wide * x_hop, source.shape[1]) * channels), _SINGLE // (_BLOCK * x_hop * channels * 2))
    blocks = -(-(rows[1] - rows[0]) // _BLOCK)
    tall = min(max(1, most // max(hop, _BLOCK)), _TALL)
    tall = -(-blocks // -(-blocks // tall))
    down = _blocks(y, *rows, fixed.y, kind, tall)
    across = _blocks(x, *columns, fixed.x, kind, 1)

    height, window, x_window = tall * _BLOCK, down.table.shape[1], across.table.shape[1]
    row_totals = down.total.reshape(-1, height)
    to_middle = (_MIDDLE / row_totals).astype(kind)
    if fixed.rounded:
        row_totals = np.full_like(row_totals, _MIDDLE)
    for b in range(0, len(across.first), wide):
        first = across.first[b : b + wide] - origin[1]
        left, right = int(first[0]), min(int(first[-1]) + x_window, source.shape[1])
        under = np.minimum((first - left)[:, None] + np.arange(x_window), right - left - 1)
        matrices = across.table[b : b + wide].transpose(0, 2, 1)
        column_totals = across.total[b * _BLOCK : (b + wide) * _BLOCK, None, None]
        samples = (right - left) * channels
        pieces = -(-samples * window * _BLOCK // _SINGLE)
        each = -(-samples // pieces)

        strip, reduced, gathered, grey, totals = _scratch.arrays(
            kind,
            ((tall - 1) * hop + window, pieces * each),
            (pieces * each, height),
            (len(first), x_window, channels * height),
            (len(first) * _BLOCK, channels, height),
            (len(first) * _BLOCK, channels, height),
        )
        rounded = np.empty(grey.shape, out.dtype)
        # where no source pixel is copied to, some finite number is multiplied by 0
        line, sample = strip.strides
        windows = as_strided(strip, (tall, pieces, each, window), (hop * line, each * sample, sample, line))
        for a, top in enumerate((down.first - origin[0]).tolist()):
            part = source[max(top, 0) : top + len(strip), left:right]
            into = strip[max(-top, 0) : max(-top, 0) + len(part), :samples]
            np.copyto(into, part.reshape(into.shape))
            np.matmul(
                windows,
                down.table[a * tall : (a + 1) * tall, None],
                out=reduced.reshape(pieces, each, tall, _BLOCK).transpose(2, 0, 1, 3),
            )
            if fixed.rounded:
                np.multiply(reduced, to_middle[a], out=reduced)
                np.rint(reduced, out=reduced)
            by_column = reduced[:samples].reshape(right - left, channels * height)
            np.take(by_column, under, axis=0, out=gathered, mode="clip")
            np.matmul(matrices, gathered, out=grey.reshape(len(first), _BLOCK, channels * height))

            if a == 0 or not np.array_equal(row_totals[a], row_totals[a - 1]):
                np.multiply(column_totals, row_totals[a], out=totals, casting="same_kind")
            np.divide(grey, totals, out=grey)
            np.add(grey, 0.5, out=grey)
            if out.dtype.kind == "i":
                np.floor(grey, out=grey)  # a cast rounds towards 0
            np.copyto(rounded, grey, casting="unsafe")
            target = out[a * height : (a + 1) * height, b * _BLOCK : (b + wide) * _BLOCK]
            np.copyto(target, rounded[: target.shape[1], :, : target.shape[0]].transpose(2, 0, 1))


def _blocks(grid: AxisGrid, start: int, stop: int, denominator: int, kind: np.dtype[Any], group: int) -> _Blocks:
    make = _kept_blocks if stop - start <= _KEPT else _new_blocks
    return make(grid, start, stop, denominator, kind, group)


def _new_blocks(grid: AxisGrid, start: int, stop: int, denominator: int, kind: np.dtype[Any], group: int) -> _Blocks:
    weights = axis_weights(grid, start, stop, denominator)
    count, taps = weights.table.shape
    number = np.arange(count)
    block, length = number // _BLOCK, group * _BLOCK
    regular = weights.first - block % group * round(_BLOCK * grid.scale)
    first = np.minimum.reduceat(regular, np.arange(0, count, length))
    place = regular - first[number // length]
    table = np.zeros((len(first) * group, int(place.max()) + taps, _BLOCK), kind)
    for tap in range(taps):
        table[block, place + tap, number % _BLOCK] = weights.table[:, tap]
    total = np.ones(len(first) * length)
    total[:count] = weights.total
    return _Blocks(first, table, total)


_kept_blocks = lru_cache(maxsize=32)(_new_blocks)
