"""Part of the pixels where all are too many: a sample for statistics, means for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["LARGE", "block_means", "places", "sample"]

Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]

LARGE = 4_000_000
"""Pixels that the slow methods look at: larger pictures are averaged to at most so many."""

_ENOUGH = 200_000  # a median or a percentile of so many is as good as one of them all
_ROWS = 512  # at a time: Pillow copies what it is given


def places(valid: Bools, limit: int = _ENOUGH) -> tuple[Places, Places]:
    """Return rows and columns of valid pixels: of all of them, or of those on a regular grid.

    Parameters
    ----------
    valid
        (h, w) bool.
    limit
        How many are enough.

    Returns
    -------
    Two of (m,) intp: at most about ``limit``; none only where none is valid.
    """
    height, width = valid.shape
    step = 1
    while -(-height // step) * -(-width // step) > limit:
        step += 1
    rows, columns = np.nonzero(valid[::step, ::step])
    if step > 1 and len(rows) < limit // 8:  # the grid is coarse for what little is valid
        every = np.flatnonzero(valid)
        rows, columns = np.divmod(every[:: max(1, len(every) // limit)], width)
        return rows, columns
    return rows * step, columns * step


def sample(values: npt.NDArray[Any], valid: Bools, limit: int = _ENOUGH) -> npt.NDArray[Any]:
    """Return the values (h, w) or (h, w, n) at `places`: (m,) or (m, n)."""
    if valid.size <= limit:
        return values[valid]
    chosen: npt.NDArray[Any] = values[places(valid, limit)]
    return chosen


def block_means(pixels: npt.NDArray[np.uint8], valid: Bools, factor: int) -> tuple[npt.NDArray[np.uint8], Bools]:
    """Return means over squares of ``factor`` pixels, and which of them are valid in half or more of their pixels.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8.
    valid
        (h, w) bool.
    factor
        At least 1.

    Returns
    -------
    (ceil(h / factor), ceil(w / factor), 3) uint8, within 0.6 of the exact mean, and bool of the same height and width.
    The last squares may be cut by the edge of the picture: they are means of what there is.
    """
    height, width = valid.shape
    shape = -(-height // factor), -(-width // factor)
    means = np.empty((*shape, 3), np.uint8)
    seen = np.ones(shape, np.bool_)
    everything = bool(valid.all())
    rows = max(1, _ROWS // factor)
    for first in range(0, shape[0], rows):
        strip = slice(first * factor, (first + rows) * factor)
        into = slice(first, first + rows)
        means[into] = np.asarray(Image.fromarray(np.ascontiguousarray(pixels[strip])).reduce(factor))
        if not everything:
            grey = Image.fromarray(valid[strip].astype(np.uint8) * 254)
            seen[into] = np.asarray(grey.reduce(factor)) >= 127
    return means, seen
