"""Between the coordinates of a tree and the slide coordinate system (PS3.3 C.8.12.2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["from_slide", "to_slide"]

Floats = npt.NDArray[np.float64]


def _frame(attrs: Mapping[Any, Any]) -> tuple[Floats, Floats]:
    """Return the corner (X, Y), and the matrix whose columns are the directions of x and of y."""
    corner, orientation = attrs.get("slide_corner_mm"), attrs.get("image_orientation_slide")
    if corner is None or orientation is None:
        raise OptionError("the file does not state where its pixels lie on the slide (origin and orientation)")
    return np.asarray(corner, float), np.array([orientation[0:2], orientation[3:5]], float).T


def to_slide(attrs: Mapping[Any, Any], y: npt.ArrayLike, x: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return slide coordinates (X, Y) in mm of a place in the tree."""
    corner, axes = _frame(attrs)
    across, down = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    return corner[0] + axes[0, 0] * across + axes[0, 1] * down, corner[1] + axes[1, 0] * across + axes[1, 1] * down


def from_slide(attrs: Mapping[Any, Any], slide_x: npt.ArrayLike, slide_y: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return the place (y, x) in the tree, in mm, of slide coordinates."""
    corner, axes = _frame(attrs)
    inverse = np.linalg.inv(axes)
    right, up = np.broadcast_arrays(np.asarray(slide_x, float) - corner[0], np.asarray(slide_y, float) - corner[1])
    return inverse[1, 0] * right + inverse[1, 1] * up, inverse[0, 0] * right + inverse[0, 1] * up
