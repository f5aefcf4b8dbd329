"""Positions of the frames from and to DICOM JSON (PS3.18 F): the Per-Frame Functional Groups Sequence, item by item.

An item is a thousand characters that say five numbers. A slide of 160,000 sparse frames has 180 MB of them: each is
read, its numbers are kept, and it is dropped before the next.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

import numpy as np

from microtome.dicom.functional_groups import (
    _ABSENT,
    _COLUMN,
    _OPTICAL_PATH,
    _PATH_IDENTIFIER,
    _PIXEL_MEASURES,
    _PLANE_POSITION,
    _ROW,
    _SPACING,
    _Z_OFFSET,
    FramePositions,
)
from microtome.errors import CorruptHeaderError

__all__ = ["PositionsBuilder", "instances_to_json", "positions_to_json"]

_BLOCK = 4096

_PLANE_POSITION_KEY = f"{_PLANE_POSITION:08X}"
_OPTICAL_PATH_KEY = f"{_OPTICAL_PATH:08X}"
_PIXEL_MEASURES_KEY = f"{_PIXEL_MEASURES:08X}"
_COLUMN_KEY = f"{_COLUMN:08X}"
_ROW_KEY = f"{_ROW:08X}"
_Z_KEY = f"{_Z_OFFSET:08X}"
_IDENTIFIER_KEY = f"{_PATH_IDENTIFIER:08X}"
_SPACING_KEY = f"{_SPACING:08X}"


class PositionsBuilder:
    """Takes the functional groups of one frame after the other, and keeps what places them.

    Parameters
    ----------
    where
        Names the document in errors.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._row = array("i")
        self._column = array("i")
        self._z = array("d")
        self._path = array("h")
        self._paths: dict[str, int] = {}
        self._spacing: tuple[float, float] | None = None

    def add(self, item: Any) -> None:
        """Take the item of the next frame: a JSON object, or null for one that says nothing.

        Raises
        ------
        CorruptHeaderError
            It is something else, or a value in it is no number where one is due.
        """
        try:
            self._add(item)
        except (AttributeError, TypeError, ValueError, OverflowError) as e:
            raise CorruptHeaderError(
                f"{self.where}: the functional groups of frame {len(self._row) + 1} are no DICOM JSON, or hold "
                f"something else where a number is due ({type(e).__name__})"
            ) from None

    def _add(self, item: Any) -> None:
        row = column = _ABSENT
        z = math.nan
        path = 0
        if item is not None:
            for group in _values(item, _PLANE_POSITION_KEY):
                for value in _values(group, _ROW_KEY)[:1]:
                    row = _place(value)
                for value in _values(group, _COLUMN_KEY)[:1]:
                    column = _place(value)
                for value in _values(group, _Z_KEY)[:1]:
                    z = _float(value)
            for group in _values(item, _OPTICAL_PATH_KEY):
                # One that is there and empty is a path without a name, as it is in a file.
                if group is not None and group.get(_IDENTIFIER_KEY) is not None:
                    name = _name(_values(group, _IDENTIFIER_KEY))
                    path = self._paths.setdefault(name, len(self._paths))
            if self._spacing is None:
                for group in _values(item, _PIXEL_MEASURES_KEY):
                    self._spacing = self._spacing or _pair(_values(group, _SPACING_KEY))
        self._path.append(path)  # first: it refuses the 32769th path
        self._z.append(z)
        # These refuse what does not fit as well; the number of rows is the number of frames.
        self._column.append(column)
        self._row.append(row)

    def positions(self) -> FramePositions | None:
        """Return what was taken; None where it places no frame, names no path and states no spacing."""
        if not self._row:
            return None
        positions = FramePositions(
            np.frombuffer(self._row, np.int32),
            np.frombuffer(self._column, np.int32),
            np.frombuffer(self._z, np.float64),
            np.frombuffer(self._path, np.int16),
            tuple(self._paths),
            self._spacing,
        )
        return positions if positions.telling else None


def _values(item: Any, key: str) -> Sequence[Any]:
    """Return the values of an element of an object; a value that stands without its array is one."""
    if item is None:
        return ()
    element = item.get(key)
    if element is None:
        element = item.get(key.lower())  # the standard has them in capitals, some servers have not
        if element is None:
            return ()
    values = element.get("Value")
    if type(values) is list:
        return values
    return () if values is None else (values,)


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip(" \0"))


def _place(value: Any) -> int:
    """Return a row or a column, which DICOM counts from 1, from 0."""
    place: int
    if type(value) is int:
        place = value
    elif _blank(value):
        return _ABSENT
    else:
        number = _float(value)
        place = int(number)
        if place != number:
            raise ValueError(value)
    return place - 1


def _float(value: Any) -> float:
    """Return a number that stands as one or as a string; NaN for one left empty."""
    if type(value) is float:
        return value
    if _blank(value):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    return float(value.strip(" \0") if isinstance(value, str) else value)


def _name(values: Sequence[Any]) -> str:
    value = values[0] if values else None
    if isinstance(value, dict | list | bool):
        raise TypeError(value)
    return "" if value is None else str(value).strip(" \0")


def _pair(values: Sequence[Any]) -> tuple[float, float] | None:
    if len(values) == 1 and isinstance(values[0], str):
        values = values[0].split("\\")
    if len(values) != 2 or any(_blank(v) for v in values):
        return None
    return _float(values[0]), _float(values[1])


def positions_to_json(positions: FramePositions) -> Iterator[dict[str, Any]]:
    """Return the items of a Per-Frame Functional Groups Sequence that say the same, one a frame.

    They are made as they are asked for: all of them at once take much more memory than the positions. They share what
    they have in common; change a copy.
    """
    measures: dict[str, Any] = {}
    if positions.spacing is not None:
        measures = _sequence(_PIXEL_MEASURES_KEY, _element(_SPACING_KEY, "DS", *map(_decimal, positions.spacing)))
    paths = [
        _sequence(_OPTICAL_PATH_KEY, _element(_IDENTIFIER_KEY, "SH", *([name] if name else [])))
        for name in positions.paths
    ]
    for first in range(0, len(positions.row), _BLOCK):
        block = slice(first, first + _BLOCK)
        for row, column, z, path in zip(
            positions.row[block].tolist(),
            positions.column[block].tolist(),
            positions.z[block].tolist(),
            positions.path[block].tolist(),
            strict=True,
        ):
            plane: dict[str, Any] = {}
            if z == z:
                plane |= _element(_Z_KEY, "DS", _decimal(z))
            if column != _ABSENT:
                plane |= _element(_COLUMN_KEY, "SL", column + 1)
            if row != _ABSENT:
                plane |= _element(_ROW_KEY, "SL", row + 1)
            item = dict(measures)
            if plane:
                item |= _sequence(_PLANE_POSITION_KEY, plane)
            if paths:
                item |= paths[path]
            yield item


def instances_to_json(instances: Iterable[Mapping[str, Any]]) -> str:
    """Return the DICOM JSON document of instances, the text that `json.dumps` would make of a list of them.

    Parameters
    ----------
    instances
        Attributes by tag, one instance after the other. A ``Value`` may be an iterator, such as `positions_to_json`
        returns: each item is made, written and dropped before the next.
    """
    text = StringIO()
    for number, attributes in enumerate(instances):
        text.write(", {" if number else "[{")
        for place, (key, element) in enumerate(attributes.items()):
            text.write(f"{', ' if place else ''}{json.dumps(key)}: ")
            values = element.get("Value") if isinstance(element, Mapping) else None
            if not isinstance(values, Iterator):
                text.write(json.dumps(element))
                continue
            whole = json.dumps({name: element[name] for name in element if name != "Value"} | {"Value": []})
            text.write(whole.removesuffix("]}"))
            for index, item in enumerate(values):
                text.write((", " if index else "") + json.dumps(item))
            text.write("]}")
        text.write("}")
    text.write("]" if text.tell() else "[]")
    return text.getvalue()


def _element(key: str, vr: str, *values: Any) -> dict[str, Any]:
    return {str(key): {"vr": vr, "Value": list(values)} if values else {"vr": vr}}


def _sequence(key: str, item: dict[str, Any]) -> dict[str, Any]:
    return _element(key, "SQ", item)


def _decimal(value: float) -> float | str:
    """Return a number as JSON can say it, which knows neither NaN nor infinity."""
    return value if math.isfinite(value) else str(value)
