"""Masks as geometry: polygons from GeoJSON and shapely, masks from polygons, areas of rectangles under masks."""

from microtome.ops.masks.area import fractions, polygon_fractions
from microtome.ops.masks.polygons import Polygon, read_polygons
from microtome.ops.masks.rasterise import rasterise

__all__ = ["Polygon", "fractions", "polygon_fractions", "rasterise", "read_polygons"]
