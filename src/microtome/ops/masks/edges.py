"""Where an image begins in mm, and how far its pixels lie apart: asked before a place is worked out by arithmetic."""

from __future__ import annotations

import numpy as np
import xarray as xr

from microtome.errors import OptionError
from microtome.ops.grids import spacing_if_defined

__all__ = ["Edge", "edges_in_mm"]

Edge = tuple[float, float]
"""Outer edge of the first pixel, and distance of pixels, in mm."""
UNEVEN = 0.25
"""Part of a pixel by which coordinates may miss their places: they may have been kept in single precision."""


def edges_in_mm(image: xr.DataArray, what: str) -> tuple[Edge, Edge] | None:
    """Return the edges along ``y`` and ``x``; None for an image without a place in mm, or without a pixel.

    Parameters
    ----------
    image
        An image or a mask.
    what
        What it is called in errors.

    Raises
    ------
    OptionError
        Its rows or columns are turned round, or some are left out, or their coordinates are not in mm.
    """
    spacing = spacing_if_defined(image)
    if spacing is None or not image.sizes["y"] or not image.sizes["x"]:
        return None
    y, x = (_edge(image, dim, mm, what) for dim, mm in (("y", spacing.row), ("x", spacing.column)))
    return y, x


def _edge(image: xr.DataArray, dim: str, mm: float, what: str) -> Edge:
    coordinate = image.coords[dim].variable
    unit = coordinate.attrs.get("units", "mm")
    if unit != "mm":
        raise OptionError(f"the coordinate {dim} of {what} is in {unit!r}: it is to be in mm")
    values = coordinate.values
    if np.abs(values - (values[0] + mm * np.arange(len(values)))).max() > UNEVEN * mm:
        raise OptionError(
            f"pixels of {what} along {dim} do not lie side by side in ascending order: take a part without gaps and "
            f"flips, such as isel({dim}=slice(...))"
        )
    return float(values[0]) - mm / 2, mm
