"""What means over squares of pixels lose, of pictures too large to be looked at one by one: edges and thin lines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from microtome.ops.tissue.density import Density, density_tables
from microtome.ops.tissue.shapes import grow

__all__ = ["refine", "thin"]

Bools = npt.NDArray[np.bool_]

_AT_A_TIME = 1 << 17  # pixels: intermediate results stay in the cache of the processor
_WORKERS = 2


def thin(
    pixels: npt.NDArray[np.uint8],
    factor: int,
    glass: npt.NDArray[np.float32],
    coloured: float,
    denser: Density,
    tinged: float,
) -> tuple[Bools, npt.NDArray[np.uint16]]:
    """Return which pixels are coloured, and how many of each square belong to thin lines.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8, RGB.
    factor
        Pixels a side of a square, at most 255.
    glass
        (3,) float32.
    coloured
        Difference between the densities of two channels from which on a pixel is coloured, in units of 1 / 4096.
    denser
        (ceil(h / factor), ceil(w / factor)) int16: sum of the densities of three channels above which a pixel may
        belong to a line.
    tinged
        The colour it has at least.

    Returns
    -------
    (h, w) bool, and uint16 of the shape of ``denser``. Both of means over 3 by 3 pixels.
    """
    height, width = pixels.shape[:2]
    colour = np.empty((height, width), np.bool_)
    counts = np.zeros(denser.shape, np.uint16)
    tables = density_tables(glass)
    squares = max(1, _AT_A_TIME // (width * factor))

    def strip(first: int) -> None:
        rows = slice(first * factor, min((first + squares) * factor, height))
        red, green, blue = (np.take(t, s, mode="clip") for t, s in zip(tables, _sums(pixels, rows), strict=True))
        spread = np.maximum(np.maximum(red, green), blue)
        spread -= np.minimum(np.minimum(red, green), blue)
        np.greater(spread, coloured, out=colour[rows])
        red += green
        red += blue
        part = denser[first : first + squares]
        limit = part.repeat(factor, 1)[:, :width].repeat(factor, 0)[: len(red)]
        line = (red > limit) & (spread > tinged)
        if not line.any():
            return
        whole = np.zeros((len(part) * factor, part.shape[1] * factor), np.uint8)
        whole[: len(line), :width] = line
        down = whole.reshape(len(part), factor, -1).sum(1, dtype=np.uint16)
        for x in range(factor):
            counts[first : first + squares] += down[:, x::factor]

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(strip, range(0, len(denser), squares)))
    return colour, counts


def _sums(pixels: npt.NDArray[np.uint8], rows: slice) -> npt.NDArray[np.uint16]:
    """Return sums over 3 by 3 pixels of some rows, the picture continued by its outermost pixels: (3, h, w)."""
    height = len(pixels)
    above, below = max(rows.start - 1, 0), min(rows.stop + 1, height)
    part = pixels[above:below].astype(np.uint16)
    part = np.pad(part, ((rows.start == 0, rows.stop == height), (1, 1), (0, 0)), mode="edge")
    down = part[:-2] + part[1:-1]
    down += part[2:]
    sums = down[:, :-2] + down[:, 1:-1]
    sums += down[:, 2:]
    return sums.transpose(2, 0, 1)


def refine(found: Bools, colour: Bools, coloured: Bools, bad: Bools, factor: int) -> Bools:
    """Return a mask at full resolution, whose borders follow colour.

    Parameters
    ----------
    found
        (ceil(h / factor), ceil(w / factor)) bool: the mask of squares.
    colour
        (h, w) bool: which pixels are coloured.
    coloured, bad
        As ``found``: squares that are coloured, and that are artefacts.
    factor
        Pixels a side of a square.

    Returns
    -------
    (h, w) bool.
    """
    height, width = colour.shape
    border = grow(found, 1.5) & grow(~found, 1.5)
    # What is pale, grey, or filled has no colour to follow: its squares stay as they are.
    near = border & grow(found & coloured, 1.5) & ~bad
    keep = found & ~(near & coloured)

    def full(mask: Bools) -> Bools:
        return mask.repeat(factor, 0)[:height].repeat(factor, 1)[:, :width]

    return full(keep) | (full(near) & colour)
