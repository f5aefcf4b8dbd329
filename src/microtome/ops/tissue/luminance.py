"""The luminance rule: neither white nor black."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.ops.opencv import luminance

__all__ = ["between"]


def between(pixels: npt.NDArray[np.uint8], low: float, high: float, **_: Any) -> npt.NDArray[np.bool_]:
    """Return where ``int(255 low) <= luminance <= int(255 high)``: EZ-WSI DICOMweb's rule.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8, RGB.
    low, high
        Bounds in [0, 1], both included.
    """
    grey = luminance(pixels)
    kept: npt.NDArray[np.bool_] = (grey >= int(255 * low)) & (grey <= int(255 * high))
    return kept
