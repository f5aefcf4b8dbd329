"""The resampling of one NumPy array on two regular grids, one for each axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError, SelectionError
from microtome.ops.resampling.axis import AxisGrid
from microtome.ops.resampling.fixed import fixed_weights, resample_fixed
from microtome.ops.resampling.floating import resample_floating

__all__ = ["resample"]


def resample(
    source: npt.NDArray[Any],
    y: AxisGrid,
    x: AxisGrid,
    rows: tuple[int, int],
    columns: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Return a rectangle of the resampled image.

    A pixel depends on its place in the whole output only: any cut of the output into rectangles gives the same pixels,
    to the bit. Each axis goes by its own method (see `AxisGrid`):

    - area: the mean over the output pixel's interval of the source, each source pixel being constant over its own,
      and borders counting by the fraction covered; of the part within the source where it sticks out.
    - linear: between the two nearest centres of source pixels; beyond the first and the last centre, their value.
    - nearest: the source pixel that contains the centre; on the border of two, the right (lower) one.

    Results in integers are rounded to the nearest, half up. For 8 and 16 bit the sums are of whole numbers. At scales
    and offsets that are fractions with small denominators nothing else is rounded. At others the borders of outputs
    move by up to 1 / 7000 of an output pixel, and 8 bit sums along y are kept to 1 / 16 grey level: results are within
    0.6 grey levels of the exact mean, 0.5 of which is the last rounding (16 bit: within 1 of 65536). All else is
    summed in float64; NaN comes out of every pixel that covers one.

    Most of the time is spent without the global interpreter lock, in one thread.

    Parameters
    ----------
    source
        ``(..., h, w, c)``, of integers of up to 32 bit, float16, float32 or float64; bool where both axes are nearest.
    y, x
        The grids of the whole image.
    rows, columns
        First and one-past-last output pixel.
    origin
        Source pixel (row, column) that is the first of ``source``, which holds ``y.support(*rows)`` and
        ``x.support(*columns)``.
    out
        Where to write the result, of its shape and dtype.

    Returns
    -------
    ndarray
        ``(..., rows, columns, c)``, of the dtype of ``source``.

    Raises
    ------
    OptionError
        There is no mean of this dtype, or ``out`` does not fit.
    SelectionError
        Outputs outside the grids, a grid without source pixels, or a ``source`` that does not hold what they need.
    """
    if source.ndim < 3:
        raise OptionError(
            f"an array of shape {source.shape} cannot be resampled: its axes must be (..., y, x, channel)"
        )
    shape = (*source.shape[:-3], rows[1] - rows[0], columns[1] - columns[0], source.shape[-1])
    needed = (y.support(*rows), x.support(*columns))
    copied = y.method == x.method == "nearest"
    kind, size = source.dtype.kind, source.dtype.itemsize
    if not copied and not (kind in "iu" and size <= 4) and not (kind == "f" and size <= 8):
        remedy = (
            "resample masks with nearest=True, or convert to float32 first for the fraction that is covered"
            if kind == "b"
            else "convert to float64 first, or resample with nearest=True"
        )
        raise OptionError(f"pixels of dtype {source.dtype} cannot be averaged or interpolated in that dtype: {remedy}")
    if out is None:
        out = np.empty(shape, source.dtype)
    elif out.shape != shape or out.dtype != source.dtype:
        raise OptionError(
            f"out has shape {out.shape} and dtype {out.dtype}, the result {shape} and {source.dtype}: make out of those"
        )
    if out.size == 0:
        return out
    for name, grid, (first, stop), begin, held in zip(
        ("y", "x"), (y, x), needed, origin, source.shape[-3:-1], strict=True
    ):
        if grid.size == 0:
            raise SelectionError(f"{grid.count} pixels along {name} cannot be made of a source that has none")
        if first < begin or stop > begin + held:
            raise SelectionError(
                f"outputs need source pixels {first} to {stop} along {name}, but the array holds {begin} to "
                f"{begin + held}: read the support of the outputs"
            )
    if copied:
        picked = _pick(source, y.picks(*rows) - origin[0], -3)
        np.copyto(out, _pick(picked, x.picks(*columns) - origin[1], -2))
        return out
    fixed = fixed_weights(source.dtype, y, x)
    for image in np.ndindex(source.shape[:-3]):
        if fixed:
            resample_fixed(source[image], y, x, rows, columns, origin, fixed, out[image])
        else:
            resample_floating(source[image], y, x, rows, columns, origin, out[image])
    return out


def _pick(source: npt.NDArray[Any], index: npt.NDArray[np.int64], axis: int) -> npt.NDArray[Any]:
    """Return pixels along an axis: a view where they are evenly spaced."""
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    if step > 0 and (np.diff(index) == step).all():
        turned = np.moveaxis(source, axis, 0)[int(index[0]) : int(index[-1]) + 1 : step]
        return np.moveaxis(turned, 0, axis)
    return np.take(source, index, axis=axis)
