"""Where patches lie: on a grid, or where they were asked for."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["Anchor", "Pad", "checked_origins", "grid_origins", "pair", "steps"]

Origins = npt.NDArray[np.int64]
Pad = Literal["drop", "fill"]
Anchor = Literal["corner", "center"] | tuple[int, int]
MOST = 1 << 28
"""Patches of one image: more are taken for a mistake, before memory is taken for them."""
FARTHEST = 1 << 40
"""Rows and columns from the image: as far as places in mm are exact."""


def pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """Return (rows, columns) from one whole number or two.

    Raises
    ------
    OptionError
        It is neither, or less than ``least``.
    """
    values = np.atleast_1d(_numbers(value))
    if values.shape not in ((1,), (2,)) or values.dtype.kind not in "iu" or values.min() < least:
        raise OptionError(f"{name}={value!r}: it is a whole number of pixels, or (rows, columns), of at least {least}")
    rows, columns = np.broadcast_to(values, (2,)).tolist()
    return rows, columns


def _numbers(value: Any) -> npt.NDArray[Any]:
    """Return an array of what was given; of objects, where it is none."""
    try:
        return np.asarray(value)
    except ValueError:  # nested lists of several lengths
        return np.array(None)


def steps(extent: int, size: int, stride: int, pad: Pad, anchor: int | Literal["corner", "center"]) -> Origins:
    """Return where patches begin along an axis.

    Parameters
    ----------
    extent
        Pixels along the axis.
    size, stride
        Of a patch, and from one to the next.
    pad
        ``"drop"``: those that lie inside, ``1 + (extent - size) // stride`` from a corner. ``"fill"``: those that begin
        inside, ``ceil(extent / stride)``.
    anchor
        ``"corner"``: the first begins with the first pixel. ``"center"``: as many, with what is left over split evenly.
        A number: one of them begins there, or would.
    """
    if anchor in ("corner", "center"):
        count = max(0, 1 + (extent - size) // stride) if pad == "drop" else -(-extent // stride)
        first = (extent - (count - 1) * stride - size) // 2 if anchor == "center" and count else 0
        return first + stride * np.arange(count, dtype=np.int64)
    first = int(anchor) % stride
    end = extent - size + 1 if pad == "drop" else extent
    return np.arange(first, max(first, end), stride, dtype=np.int64)


def grid_origins(
    shape: tuple[int, int], size: tuple[int, int], stride: tuple[int, int], pad: Pad, anchor: Anchor
) -> Origins:
    """Return (patches, 2): row and column of the top left pixel of each patch of a grid, row by row.

    Raises
    ------
    OptionError
        An option of no meaning, or far too many patches.
    """
    if pad not in ("drop", "fill"):
        raise OptionError(f"pad={pad!r}: it is 'drop' or 'fill'")
    if isinstance(anchor, str):
        if anchor not in ("corner", "center"):
            raise OptionError(f"anchor={anchor!r}: it is 'corner', 'center', or (row, column)")
        anchors: tuple[Any, Any] = (anchor, anchor)
    else:
        numbers = _numbers(anchor)
        if numbers.shape != (2,) or numbers.dtype.kind not in "iu":
            raise OptionError(f"anchor={anchor!r}: it is 'corner', 'center', or (row, column)")
        anchors = tuple(numbers.tolist())
    rows, columns = (
        steps(extent, n, step, pad, a) for extent, n, step, a in zip(shape, size, stride, anchors, strict=True)
    )
    if len(rows) * len(columns) > MOST:
        raise OptionError(f"{len(rows)} x {len(columns)} patches are too many: take a larger stride")
    grid = np.empty((len(rows), len(columns), 2), np.int64)
    grid[..., 0] = rows[:, np.newaxis]
    grid[..., 1] = columns
    return grid.reshape(-1, 2)


def checked_origins(origins: Any) -> Origins:
    """Return origins that a user gave as (patches, 2).

    Raises
    ------
    OptionError
        They are no pairs of whole numbers, or such as no image has.
    """
    array = _numbers(origins)
    if array.size == 0:
        return np.empty((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise OptionError("origins are pairs (row, column) of whole numbers of pixels")
    low, high = int(array.min()), int(array.max())
    if low < -FARTHEST or high > FARTHEST:
        raise OptionError(f"origins from {low} to {high}: no image is that large")
    return array.astype(np.int64)
