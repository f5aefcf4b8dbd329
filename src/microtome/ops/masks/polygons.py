"""Polygons from GeoJSON as QuPath writes it, and from shapely.

GeoJSON (RFC 7946) without its geography: QuPath's positions are (x, y) in pixels of the full-resolution image, corners
of pixels at whole numbers. What it says of classes stands in ``properties.classification.name``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["MAX_BYTES", "MAX_VERTICES", "Polygon", "read_polygons"]

Floats = npt.NDArray[np.float64]

MAX_BYTES = 512 << 20
MAX_VERTICES = 20_000_000
_MAX_DEPTH = 16  # of collections in collections
_AREAS = ("Polygon", "MultiPolygon")
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


@dataclass(frozen=True, eq=False)
class Polygon:
    """One area: its outline and its holes.

    Attributes
    ----------
    shell
        (n, 2) float64, columns (x, y), not closed: the last vertex is not the first one.
    holes
        Likewise, any number of them.
    name
        The name of its class; "" where it has none.
    """

    shell: Floats
    holes: tuple[Floats, ...] = ()
    name: str = ""

    @property
    def rings(self) -> tuple[Floats, ...]:
        """The outline, then the holes."""
        return (self.shell, *self.holes)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """``(x0, y0, x1, y1)``."""
        (x0, y0), (x1, y1) = self.shell.min(0), self.shell.max(0)
        return float(x0), float(y0), float(x1), float(y1)

    def scaled(self, x: float, y: float) -> Polygon:
        """Return the polygon with its coordinates multiplied: pixels to mm, or pixels of another level."""
        factors = np.array([x, y])
        return Polygon(self.shell * factors, tuple(hole * factors for hole in self.holes), self.name)


def read_polygons(source: Any, classification: str | Sequence[str] | None = None) -> list[Polygon]:
    """Read polygons.

    Parameters
    ----------
    source
        GeoJSON as a dict, as text, or the path of a file (`pathlib.Path`, or a string that does not begin with ``{`` or
        ``[``); a shapely Polygon, MultiPolygon or GeometryCollection, or anything with ``__geo_interface__``; a list of
        any of these but paths. FeatureCollection, Feature and GeometryCollection are opened.
    classification
        Only features whose class has this name, or one of these.

    Returns
    -------
    In the order of the source. Coordinates are as they stand there. Points and lines, which enclose nothing, are left
    out where there is an area as well.

    Raises
    ------
    OptionError
        No GeoJSON; a ring with fewer than three corners, or with coordinates that are not
        finite; no area at all, or none of this class; more than 512 MB or 20 million vertices.
    """
    wanted = (
        None if classification is None else {classification} if isinstance(classification, str) else set(classification)
    )
    reader = _Reader()
    polygons = list(reader.read(_load(source), "", 0))
    if not polygons:
        kinds = f": only {', '.join(sorted(reader.skipped))}" if reader.skipped else ""
        raise OptionError(f"there is no Polygon or MultiPolygon in what was given as polygons{kinds}")
    if wanted is None:
        return polygons
    kept = [polygon for polygon in polygons if polygon.name in wanted]
    if not kept:
        there = ", ".join(sorted({repr(polygon.name) for polygon in polygons})[:20])
        raise OptionError(f"no polygon has the class {sorted(wanted)}; there are {there} ('' is none)")
    return kept


def _load(source: Any) -> Any:
    """Text and files -> what JSON makes of them; the rest as it is."""
    if isinstance(source, os.PathLike) or (isinstance(source, str) and source.lstrip()[:1] not in ("{", "[")):
        path = Path(source)
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise OptionError(f"{path.name} has {size} bytes; polygons are read from files of up to {MAX_BYTES}")
            source = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise OptionError(f"{str(path)[:200]!r} cannot be read as a GeoJSON file: {e}") from e
    if isinstance(source, str):
        if len(source) > MAX_BYTES:
            raise OptionError(f"{len(source)} characters of GeoJSON; up to {MAX_BYTES} are read")
        try:
            return json.loads(source)
        except (ValueError, RecursionError) as e:
            raise OptionError(f"this is no JSON: {e}") from e
    return source


class _Reader:
    """Goes through nested collections, counting vertices."""

    def __init__(self) -> None:
        self.vertices = 0
        self.skipped: set[str] = set()

    def read(self, item: Any, name: str, depth: int) -> Iterator[Polygon]:
        if depth > _MAX_DEPTH:
            raise OptionError(f"GeoJSON collections are nested more than {_MAX_DEPTH} deep")
        if not isinstance(item, Mapping) and hasattr(item, "__geo_interface__"):
            item = item.__geo_interface__
        if isinstance(item, list | tuple):
            for part in item:
                yield from self.read(part, name, depth + 1)
            return
        if not isinstance(item, Mapping):
            raise OptionError(f"{type(item).__name__} is neither GeoJSON nor a shapely geometry: {str(item)[:80]!r}")
        kind = item.get("type")
        if kind == "FeatureCollection":
            yield from self._parts(item, "features", name, depth)
        elif kind == "GeometryCollection":
            yield from self._parts(item, "geometries", name, depth)
        elif kind == "Feature":
            if item.get("geometry") is not None:
                yield from self.read(item["geometry"], _class_of(item), depth + 1)
        elif kind in _AREAS:
            coordinates = item.get("coordinates")
            for part in [coordinates] if kind == "Polygon" else _listed(coordinates, kind):
                if len(_listed(part, kind)):  # an empty polygon is valid GeoJSON
                    yield self._polygon(part, name)
        elif kind in _NO_AREA:
            self.skipped.add(str(kind))
        else:
            raise OptionError(
                f"GeoJSON of the type {str(kind)[:40]!r} is not known; polygons are in {', '.join(_AREAS)}"
            )

    def _parts(self, item: Mapping[Any, Any], key: str, name: str, depth: int) -> Iterator[Polygon]:
        for part in _listed(item.get(key), str(item["type"])):
            yield from self.read(part, name, depth + 1)

    def _polygon(self, rings: Any, name: str) -> Polygon:
        arrays = [self._ring(ring) for ring in rings]
        return Polygon(arrays[0], tuple(arrays[1:]), name)

    def _ring(self, ring: Any) -> Floats:
        self.vertices += len(_listed(ring, "a ring"))
        if self.vertices > MAX_VERTICES:
            raise OptionError(f"there are more than {MAX_VERTICES} vertices in these polygons")
        try:
            points = np.array([(point[0], point[1]) for point in ring], np.float64)
        except (TypeError, ValueError, IndexError, KeyError) as e:
            raise OptionError(f"a ring of a polygon is no list of (x, y): {str(ring)[:80]}") from e
        if len(points) and not np.isfinite(points).all():
            raise OptionError("a ring of a polygon has coordinates that are not finite")
        if len(points) > 1 and (points[0] == points[-1]).all():
            points = points[:-1]
        if len(points) < 3:
            raise OptionError(f"a ring of a polygon has {len(points)} different corners; three are needed")
        return points


def _listed(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise OptionError(f"GeoJSON: {where} should hold a list, not {type(value).__name__}")
    return value


def _class_of(feature: Mapping[Any, Any]) -> str:
    """The name of QuPath's class; older versions wrote a name alone."""
    properties = feature.get("properties")
    said = properties.get("classification") if isinstance(properties, Mapping) else None
    name = said.get("name") if isinstance(said, Mapping) else said
    return name if isinstance(name, str) else ""
