"""Polygons laid over an image: drawings of people, in pixels of level 0 or in mm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import MissingDependencyError, OptionError, SpacingUndefinedError
from microtome.lazy.unwrap import unwrap
from microtome.ops.masks.area import fractions, polygon_fractions
from microtome.ops.masks.edges import edges_in_mm
from microtome.ops.masks.polygons import Polygon, read_polygons
from microtome.ops.masks.rasterise import rasterise

__all__ = ["DrawnMask", "drawn_on", "rasterised"]

SUBDIVIDED = 1 << 26
"""Cells of the raster that stands in for exact areas where shapely is not installed."""


@dataclass(frozen=True, eq=False)
class DrawnMask:
    """Polygons in pixels of an image, counted from the outer edge of its first one.

    Parameters
    ----------
    polygons
        At least one.
    shape
        Rows and columns of the image.
    """

    polygons: list[Polygon]
    shape: tuple[int, int]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Top, left, bottom and right, in pixels of the image."""
        points = np.concatenate([ring for polygon in self.polygons for ring in polygon.rings])
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return top, left, bottom, right

    def fractions(self, places: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Return how much of each patch the polygons cover: exact with shapely, else by a raster of fine cells."""
        tops, lefts = places[:, 0].astype(np.float64), places[:, 1].astype(np.float64)
        try:
            return polygon_fractions(self.polygons, tops, lefts, size[0], size[1])
        except MissingDependencyError:
            pass
        top, left, bottom, right = self.bounds
        height, width = max(bottom - top, 1e-9), max(right - left, 1e-9)
        # At most 16 cells a pixel each way, and of a patch at least 64 where memory allows.
        cell = max(1 / 16, math.sqrt(height * width / SUBDIVIDED))
        cell = max(min(cell, min(size) / 64), math.sqrt(height * width / SUBDIVIDED))
        shape = (math.ceil(height / cell) or 1, math.ceil(width / cell) or 1)
        mask = rasterise(self.polygons, shape, spacing=(cell, cell), offset=(top, left))
        return fractions(mask, (tops - top) / cell, (lefts - left) / cell, size[0] / cell, size[1] / cell)

    def pixels(self, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Return which pixels of the image have their centres in the polygons."""
        return rasterise(self.polygons, shape)


def drawn_on(drawing: Any, image: xr.DataArray) -> DrawnMask:
    """Return polygons with their place on an image.

    Parameters
    ----------
    drawing
        GeoJSON as QuPath writes it, in pixels of level 0, or a shapely geometry in mm; see `read_polygons`.
    image
        The image.

    Raises
    ------
    OptionError
        It is no drawing, or the image is not known to be of a slide, so that it has no level 0.
    SpacingUndefinedError
        A place in mm on an image that has none.
    """
    polygons = read_polygons(drawing)
    first = drawing[0] if isinstance(drawing, list | tuple) and drawing else drawing
    scale, offset = _in_mm(image) if hasattr(first, "geom_type") else _in_pixels_of_level0(image)
    moved = [
        Polygon(polygon.shell * scale + offset, tuple(hole * scale + offset for hole in polygon.holes), polygon.name)
        for polygon in polygons
    ]
    return DrawnMask(moved, (image.sizes["y"], image.sizes["x"]))


def _in_mm(image: xr.DataArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return factor and offset (x, y) that make pixels of an image of mm."""
    edges = edges_in_mm(image, "the image")
    if edges is None:
        raise SpacingUndefinedError("the image has no coordinates in mm, by which a drawing could be laid over it")
    low, mm = np.array(edges[::-1]).T
    return 1 / mm, -low / mm


def _in_pixels_of_level0(image: xr.DataArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    view = unwrap(image.variable)
    if view is None:
        raise OptionError(
            "GeoJSON is in pixels of level 0, and of an image that is computed it is not known which slide's: take the "
            "level it is made from, or pass a shapely geometry in mm"
        )
    place = view.array.opened.geometry.placements["level0"]
    if place.spacing is None:
        if view.array.node != "level0" or "y_pixel" not in image.coords or not image.size:
            raise SpacingUndefinedError(
                "the slide states no pixel spacing: a drawing on level 0 has its place there only"
            )
        first = [int(image.coords[f"{d}_pixel"].variable[0].values) for d in ("x", "y")]
        return np.ones(2), -np.array(first, np.float64)
    per_mm, offset = _in_mm(image)
    mm = np.array([place.spacing.column, place.spacing.row])
    return mm * per_mm, np.array([place.x, place.y]) * per_mm + offset


def rasterised(drawing: Any, image: xr.DataArray) -> xr.DataArray:
    """Return a drawing as a mask: which pixels of an image have their centres in it; see `ImageAccessor.rasterise`."""
    drawn = drawn_on(drawing, image)
    mask = drawn.pixels(drawn.shape)
    coords = {n: c for n, c in image.coords.items() if set(c.dims) <= {"y", "x"}}
    return xr.DataArray(mask, dims=("y", "x"), coords=coords, name="mask")
