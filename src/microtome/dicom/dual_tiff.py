"""Tile offsets of a file that is DICOM and TIFF at once (PS3.10 7.1: the preamble may be the header of another format).

Files of this kind often have no offset table of their own; the TIFF's tells where the payload of each frame begins.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.storage import Source

__all__ = ["tiff_tile_offsets"]

_TYPES = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_OFFSETS, _COUNTS = (324, 273), (325, 279)  # tiles, or strips
_MAX_PAGES = 64


def tiff_tile_offsets(
    source: Source, preamble: bytes, frames: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Return offset and byte count of each of ``frames`` tiles, from the first TIFF page that has as many.

    Returns None where the preamble is no TIFF header or no page fits: then the file says nothing, or lies.
    """
    order = {b"II": "<", b"MM": ">"}.get(preamble[:2])
    if order is None:
        return None
    (version,) = struct.unpack_from(order + "H", preamble, 2)
    if version == 42:
        (page,) = struct.unpack_from(order + "I", preamble, 4)
        count_format, entry_format, entry_size, word = "H", "HHI4s", 12, "I"
    elif version == 43:
        (page,) = struct.unpack_from(order + "Q", preamble, 8)
        count_format, entry_format, entry_size, word = "Q", "HHQ8s", 20, "Q"
    else:
        return None
    for _ in range(_MAX_PAGES):
        if not 0 < page < source.size:
            return None
        head = source.read(page, struct.calcsize(count_format))
        if len(head) < struct.calcsize(count_format):
            return None
        (entries,) = struct.unpack(order + count_format, head)
        at = page + len(head)
        body = source.read(at, min(entries, 4096) * entry_size + struct.calcsize(word))
        tags = {}
        for i in range(min(entries, 4096)):
            if (i + 1) * entry_size > len(body):
                return None
            tag, kind, count, value = struct.unpack_from(order + entry_format, body, i * entry_size)
            tags[tag] = kind, count, value
        offsets = _values(source, order, tags, _OFFSETS, frames)
        counts = _values(source, order, tags, _COUNTS, frames)
        if offsets is not None and counts is not None:
            return offsets, counts
        if entries * entry_size + struct.calcsize(word) > len(body):
            return None
        (page,) = struct.unpack_from(order + word, body, entries * entry_size)
    return None


def _values(
    source: Source, order: str, tags: dict[int, tuple[int, int, bytes]], names: tuple[int, ...], frames: int
) -> npt.NDArray[np.int64] | None:
    entry = next((tags[name] for name in names if name in tags), None)
    if entry is None or entry[1] != frames or entry[0] not in _TYPES:
        return None
    dtype: np.dtype[Any] = np.dtype(order + _TYPES[entry[0]])
    size = frames * dtype.itemsize
    data = entry[2][:size]
    if size > len(entry[2]):
        (offset,) = struct.unpack(order + ("I" if len(entry[2]) == 4 else "Q"), entry[2])
        if offset + size > source.size:
            return None
        data = source.read(offset, size)
    return np.frombuffer(data, dtype).astype(np.int64)
