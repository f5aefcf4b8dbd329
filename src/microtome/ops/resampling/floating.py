"""Resampling of any real dtype in float64, one source pixel per output and step.

Every output adds its own pixels in their order, and no others: a NaN or an infinity stays where it is, and pixels are
the same to the bit however an image is cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.ops.resampling.axis import AxisGrid
from microtome.ops.resampling.weights import Weights, axis_weights

__all__ = ["resample_floating"]

_SAMPLES = 2**18
"""Source samples that are worked on at a time, where those of one output row are fewer."""


def resample_floating(
    source: npt.NDArray[Any],
    y: AxisGrid,
    x: AxisGrid,
    rows: tuple[int, int],
    columns: tuple[int, int],
    origin: tuple[int, int],
    out: npt.NDArray[Any],
) -> None:
    """Resample an image ``(h, w, c)``, which begins at source pixel ``origin``, into ``out``."""
    left, right = x.support(*columns)
    source = source[:, left - origin[1] : right - origin[1]]
    strip = max(1, int(_SAMPLES / (source[0].size * max(y.scale, 1))))
    across = axis_weights(x, *columns)
    for start in range(*rows, strip):
        stop = min(start + strip, rows[1])
        top, bottom = y.support(start, stop)
        lines = source[top - origin[0] : bottom - origin[0]].astype(np.float64, order="C")
        turned = np.ascontiguousarray(_along_first(lines, axis_weights(y, start, stop), top).transpose(1, 2, 0))
        values = _along_first(turned, across, left)
        if out.dtype.kind in "iu":
            np.floor(values + 0.5, out=values)
        np.copyto(out[start - rows[0] : stop - rows[0]], values.transpose(2, 0, 1), casting="unsafe")


def _along_first(source: npt.NDArray[np.float64], weights: Weights, origin: int) -> npt.NDArray[np.float64]:
    """Return the weighted means along the first axis of a source whose first pixel is ``origin``."""
    first, table, total = weights
    count, taps = table.shape
    used = np.count_nonzero(table, axis=1)
    result = np.zeros((count, *source.shape[1:]))
    with np.errstate(invalid="ignore"):
        for tap in range(taps):
            counts = np.flatnonzero(tap < used)  # 0 times infinity is no summand
            part = np.take(source, first[counts] + (tap - origin), axis=0)
            part *= table[counts, tap, None, None]
            if len(counts) == count:
                result += part
            else:
                result[counts] += part
        result /= total[:, None, None]
    return result
