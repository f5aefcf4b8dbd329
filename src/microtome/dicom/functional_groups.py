"""Positions of the frames from the Per-Frame Functional Groups Sequence (PS3.3 C.7.6.16), straight from its bytes.

A slide of 25,000 sparse frames has 300,000 elements here. Making an object of each takes seconds; walking their headers
and unpacking the few values that place a frame takes a fraction of one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.dicom.elements import ITEM, ITEM_END, LONG_VRS, SEQUENCE_END, UNDEFINED, Encoding
from microtome.errors import CorruptHeaderError

__all__ = ["FramePositions", "parse_positions"]

_PLANE_POSITION = 0x0048021A
_OPTICAL_PATH = 0x00480207
_PIXEL_MEASURES = 0x00289110
_COLUMN, _ROW = 0x0048021E, 0x0048021F
_Z_OFFSET = 0x0040074A
_PATH_IDENTIFIER = 0x00480106
_SPACING = 0x00280030
_ABSENT = -(2**31)


@dataclass(frozen=True, slots=True, eq=False)
class FramePositions:
    """Where each frame of an instance lies, one array element a frame.

    Parameters
    ----------
    row, column
        Of its top left pixel in the total pixel matrix, from 0.
    z
        Z offset in the slide coordinate system as stated (DICOM: µm), NaN where not stated.
    path
        Index into ``paths``; 0 where not stated.
    paths
        Optical path identifiers in order of appearance.
    spacing
        Pixel spacing (row, column) of the first frame that states one, or None.
    """

    row: npt.NDArray[np.int32]
    column: npt.NDArray[np.int32]
    z: npt.NDArray[np.float64]
    path: npt.NDArray[np.int16]
    paths: tuple[str, ...]
    spacing: tuple[float, float] | None

    @property
    def stated(self) -> bool:
        """Whether every frame states its place."""
        return bool(np.all(self.row != _ABSENT) and np.all(self.column != _ABSENT))

    @property
    def telling(self) -> bool:
        """Whether they say anything that counts: places, optical paths, or a spacing."""
        return self.stated or bool(self.paths) or self.spacing is not None


class _Parser:
    """A cursor over the bytes of one sequence."""

    def __init__(self, data: bytes, enc: Encoding, uri: str) -> None:
        self.data = data
        self.uri = uri
        self.implicit = enc.implicit
        self._short = struct.Struct(enc.order + "HH2sH").unpack_from
        self._plain = struct.Struct(enc.order + "HHI").unpack_from
        self._long = struct.Struct(enc.order + "I").unpack_from
        self._integer = struct.Struct(enc.order + "i").unpack_from

    def element(self, pos: int) -> tuple[int, int, int]:
        """Return tag, length and offset of the value of the element at ``pos``."""
        if self.implicit:
            group, number, length = self._plain(self.data, pos)
            return group << 16 | number, length, pos + 8
        group, number, vr, length = self._short(self.data, pos)
        if group == 0xFFFE:
            return group << 16 | number, self._long(self.data, pos + 4)[0], pos + 8
        if vr in LONG_VRS:
            return group << 16 | number, self._long(self.data, pos + 8)[0], pos + 12
        return group << 16 | number, length, pos + 8

    def end(self, length: int, value: int, limit: int) -> int:
        """Return where a sequence or item ends, or ``limit`` if only a delimiter tells."""
        if length == UNDEFINED:
            return limit
        if value + length > limit:
            raise CorruptHeaderError(f"{self.uri}: a functional group claims more bytes than there are")
        return value + length

    def skip(self, pos: int, limit: int, depth: int = 0) -> int:
        """Return the position behind the content of undefined length at ``pos``, its delimiter included."""
        if depth > 32:
            raise CorruptHeaderError(f"{self.uri}: functional groups are nested more than 32 deep")
        while pos < limit:
            tag, length, value = self.element(pos)
            if tag in (SEQUENCE_END, ITEM_END):
                return value
            pos = value + length if length != UNDEFINED else self.skip(value, limit, depth + 1)
        return pos

    def place(self, value: int, length: int) -> int:
        """Return a row or a column, which DICOM counts from 1, from 0; absent if there are no four bytes of it."""
        if length < 4:  # what follows is another element
            return _ABSENT
        place: int = self._integer(self.data, value)[0]
        return place - 1

    def text(self, value: int, length: int) -> str:
        return self.data[value : value + length].decode("latin-1").strip(" \0")


def parse_positions(data: bytes, enc: Encoding, frames: int, uri: str) -> FramePositions:
    """Parse the value of a Per-Frame Functional Groups Sequence.

    Parameters
    ----------
    data
        The items of the sequence.
    enc
        How they are written.
    frames
        Number of frames the instance states; there must be an item for each.
    uri
        For messages.

    Raises
    ------
    CorruptHeaderError
        The bytes are no such sequence, or the number of items is another one.
    """
    # An item takes 8 bytes at the least: a count that the bytes cannot hold allocates nothing.
    if frames > len(data) // 8:
        raise CorruptHeaderError(f"{uri}: {frames} frames are stated, and functional groups for fewer")
    row = np.full(frames, _ABSENT, np.int32)
    column = np.full(frames, _ABSENT, np.int32)
    z = np.full(frames, np.nan)
    path = np.zeros(frames, np.int16)
    paths: dict[str, int] = {}
    found: dict[str, Any] = {}
    parser = _Parser(data, enc, uri)
    limit = len(data)
    pos = index = 0
    try:
        while pos < limit:
            tag, length, value = parser.element(pos)
            if tag == SEQUENCE_END:
                break
            if tag != ITEM or index >= frames:
                raise CorruptHeaderError(f"{uri}: functional group {index + 1} of {frames} frames is damaged")
            pos = _parse_frame(
                parser, value, parser.end(length, value, limit), index, row, column, z, path, paths, found
            )
            if length != UNDEFINED:
                pos = value + length
            index += 1
    except struct.error as e:
        raise CorruptHeaderError(f"{uri}: its functional groups end in the middle of frame {index + 1}") from e
    if index != frames:
        raise CorruptHeaderError(f"{uri}: {frames} frames are stated, and functional groups for {index}")
    return FramePositions(row, column, z, path, tuple(paths), found.get("spacing"))


def _parse_frame(
    parser: _Parser,
    pos: int,
    limit: int,
    index: int,
    row: npt.NDArray[np.int32],
    column: npt.NDArray[np.int32],
    z: npt.NDArray[np.float64],
    path: npt.NDArray[np.int16],
    paths: dict[str, int],
    found: dict[str, Any],
) -> int:
    """Read the groups of one frame; return the position behind them."""
    element = parser.element
    while pos < limit:
        tag, length, value = element(pos)
        if tag == ITEM_END:
            return value
        if tag in (_PLANE_POSITION, _OPTICAL_PATH) or (tag == _PIXEL_MEASURES and "spacing" not in found):
            stop = parser.end(length, value, limit)
            inner = value
            while inner < stop:
                tag, n, v = element(inner)
                if tag in (ITEM, ITEM_END):  # step into the only item, and out of it
                    inner = v
                    continue
                if tag == SEQUENCE_END:
                    inner = v
                    break
                if tag == _ROW:
                    row[index] = parser.place(v, n)
                elif tag == _COLUMN:
                    column[index] = parser.place(v, n)
                elif tag == _Z_OFFSET:
                    z[index] = _number(parser, v, n)
                elif tag == _PATH_IDENTIFIER:
                    path[index] = paths.setdefault(parser.text(v, n), len(paths))
                elif tag == _SPACING:
                    values = parser.text(v, n).split("\\")
                    if len(values) == 2:
                        found["spacing"] = (_float(values[0], parser.uri), _float(values[1], parser.uri))
                inner = v + n if n != UNDEFINED else parser.skip(v, stop)
            pos = inner
        else:
            pos = value + length if length != UNDEFINED else parser.skip(value, limit)
    return pos


def _number(parser: _Parser, value: int, length: int) -> float:
    text = parser.text(value, length)
    return _float(text, parser.uri) if text else float("nan")


def _float(text: str, uri: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CorruptHeaderError(f"{uri}: {text[:20]!r} stands in a functional group where a number is due") from None
