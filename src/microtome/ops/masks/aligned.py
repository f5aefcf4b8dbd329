"""Masks brought to an image by their coordinates, never by guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError, SelectionError, SpacingUndefinedError
from microtome.ops.grids import spacing_if_defined
from microtome.ops.masks.area import fractions
from microtome.ops.masks.drawn import drawn_on
from microtome.ops.masks.edges import edges_in_mm

__all__ = ["AlignedMask", "Mask", "align"]

AT_ONCE = 1 << 24
"""Pixels of a mask that are summed up at a time: a mask may be as large as a level."""


class Mask(Protocol):
    """What covers part of an image."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Top, left, bottom and right of what it may cover, in pixels of the image."""
        ...

    def fractions(self, places: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Return how much of each patch it covers, by area: (patches,) from 0 to 1.

        Parameters
        ----------
        places
            (patches, 2): row and column of the top left pixel of each, in pixels of the image.
        size
            Rows and columns of a patch.
        """
        ...

    def pixels(self, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Return which pixels of the image, of this shape, have their centres in it."""
        ...


@dataclass(frozen=True, eq=False)
class AlignedMask:
    """A mask, and where its pixels lie on an image.

    Parameters
    ----------
    mask
        (rows, columns) of bool, in memory or lazy.
    top, left
        Where its first pixel begins, in pixels of the image.
    row_scale, column_scale
        Pixels of the image per pixel of the mask.
    """

    mask: npt.NDArray[np.bool_] | xr.DataArray
    top: float
    left: float
    row_scale: float
    column_scale: float

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Top, left, bottom and right of what it may cover, in pixels of the image."""
        rows, columns = self.mask.shape
        return self.top, self.left, self.top + rows * self.row_scale, self.left + columns * self.column_scale

    def fractions(self, places: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Return how much of each patch the mask covers, by area."""
        tops = (places[:, 0] - self.top) / self.row_scale
        lefts = (places[:, 1] - self.left) / self.column_scale
        height, width = size[0] / self.row_scale, size[1] / self.column_scale
        out = np.zeros(len(places))
        down, across = self._steps()
        rows, columns = self.mask.shape
        for row in range(0, rows, down):
            near = np.flatnonzero((tops < row + down) & (tops + height > row))
            for column in range(0, columns, across) if len(near) else ():
                here = near[(lefts[near] < column + across) & (lefts[near] + width > column)]
                if len(here):
                    part = np.asarray(self.mask[row : row + down, column : column + across])
                    out[here] += fractions(part, tops[here] - row, lefts[here] - column, height, width)
        return np.minimum(out, 1, out=out)

    def pixels(self, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Return which pixels of the image have their centres in the mask."""
        at = []
        for count, low, scale, size in (
            (shape[0], self.top, self.row_scale, self.mask.shape[0]),
            (shape[1], self.left, self.column_scale, self.mask.shape[1]),
        ):
            index = np.floor((np.arange(count) + 0.5 - low) / scale).astype(np.int64)
            at.append((np.clip(index, 0, size - 1), (index >= 0) & (index < size)))
        (rows, rows_in), (columns, columns_in) = at
        if isinstance(self.mask, xr.DataArray):
            values = self.mask.isel(y=rows, x=columns).values
        else:
            values = self.mask[np.ix_(rows, columns)]
        covered: npt.NDArray[np.bool_] = values & rows_in[:, np.newaxis] & columns_in
        return covered

    def _steps(self) -> tuple[int, int]:
        """Return rows and columns of the parts that are summed up at a time: whole blocks, where there are any."""
        rows, columns = self.mask.shape
        if rows * columns <= AT_ONCE:
            return rows, columns
        chunks = getattr(self.mask, "chunks", None) or ((1,), (1,))
        blocks = [max(c) for c in chunks]
        across = min(columns, blocks[1] * max(1, int(AT_ONCE**0.5) // blocks[1]))
        return min(rows, blocks[0] * max(1, AT_ONCE // across // blocks[0])), across


def align(mask: Any, image: xr.DataArray, anywhere: bool = False) -> Mask:
    """Return a mask with its place on an image.

    Parameters
    ----------
    mask
        A bool DataArray with coordinates ``y`` and ``x`` in mm; a bool array that covers the image, whatever its size;
        or polygons: GeoJSON as QuPath writes it, in pixels of level 0 (a mapping, a path, or text), or a shapely
        geometry in mm.
    image
        The image.
    anywhere
        Whether the mask may lie beside the image, which then tells coordinates only.

    Raises
    ------
    OptionError
        It is no mask, or one of which pixels are left out or turned round.
    SelectionError
        It covers nothing of the image.
    SpacingUndefinedError
        It has a place in mm, and the image has none.
    """
    rows, columns = image.sizes["y"], image.sizes["x"]
    aligned: Mask
    if isinstance(mask, xr.DataArray):
        aligned = _by_coordinates(mask, image)
    elif isinstance(mask, np.ndarray):
        if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.size:
            raise OptionError(f"a mask is a 2-D array of bool, not {mask.dtype} {mask.shape}")
        scales = (n / m if n else 1.0 for n, m in zip((rows, columns), mask.shape, strict=True))
        aligned = AlignedMask(mask, 0.0, 0.0, *scales)
    else:
        aligned = drawn_on(mask, image)
    top, left, bottom, right = aligned.bounds
    if not anywhere and rows and columns and (bottom <= 0 or right <= 0 or top >= rows or left >= columns):
        raise SelectionError(
            "the mask covers nothing of the image: by their coordinates in mm they lie apart; masks of another slide, "
            "and crops of another place, do"
        )
    return aligned


def _by_coordinates(mask: xr.DataArray, image: xr.DataArray) -> AlignedMask:
    if mask.dtype != np.bool_ or set(mask.dims) != {"y", "x"}:
        raise OptionError(
            f"a mask is a bool DataArray with dimensions y and x, not {mask.dtype} ({', '.join(map(str, mask.dims))})"
        )
    if not image.sizes["y"] or not image.sizes["x"]:
        return AlignedMask(np.zeros((1, 1), np.bool_), 0.0, 0.0, 1.0, 1.0)
    if not mask.size:
        raise SelectionError("the mask has no pixel: it covers nothing of the image")
    for one, which in ((mask, "the mask"), (image, "the image")):
        if spacing_if_defined(one) is None:
            raise SpacingUndefinedError(
                f"{which} has no coordinates in mm, by which the mask could be laid over the image; pass mask.values "
                "if it covers the image"
            )
    theirs, ours = edges_in_mm(mask, "the mask"), edges_in_mm(image, "the image")
    assert theirs is not None
    assert ours is not None
    top, left = ((low - our_low) / our for (low, _), (our_low, our) in zip(theirs, ours, strict=True))
    scales = [their / our for (_, their), (_, our) in zip(theirs, ours, strict=True)]
    lazy = mask.transpose("y", "x")
    return AlignedMask(lazy if lazy.size > AT_ONCE else lazy.values, top, left, *scales)
