"""The size of Dask blocks: whole frames, large enough to be few, small enough for memory to stay small."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from microtome import config

__all__ = ["MAX_BLOCKS", "block_shape"]

MAX_BLOCKS = 10_000
"""Blocks of one array. Dask enumerates all keys of an array for a single patch: 10,000 cost milliseconds, 140,000 a
tenth of a second."""


def block_shape(
    sizes: Mapping[Hashable, int] | Mapping[str, int],
    frame: Mapping[str, int],
    y: str,
    x: str,
    itemsize: int,
    weight: float = 1.0,
) -> dict[str, int]:
    """Return the extent of a block along each dimension.

    Parameters
    ----------
    sizes
        Of the array.
    frame
        Extent of one stored frame along each dimension.
    y, x
        The dimensions along which frames are joined.
    itemsize
        Bytes of one sample.
    weight
        How many times its bytes a block counts: what it is computed from may be larger.

    Returns
    -------
    dict
        Multiples of the frame: as many frames each way as come nearest to ``config.get().block_bytes``, more where
        there would be over `MAX_BLOCKS` blocks; never larger than the array.
    """
    extents: Mapping[Any, int] = sizes
    frame_bytes = itemsize * weight
    for extent in frame.values():
        frame_bytes *= extent
    target = config.get().block_bytes
    side = max(1, round((target / frame_bytes) ** 0.5))
    while True:
        shape = dict(frame)
        shape[y] = side * frame[y]
        shape[x] = side * frame[x]
        shape = {dim: max(1, min(extent, extents[dim])) for dim, extent in shape.items()}
        blocks = 1
        for dim, extent in shape.items():
            blocks *= -(-extents[dim] // extent)
        if blocks <= MAX_BLOCKS or (shape[y] >= extents[y] and shape[x] >= extents[x]):
            return shape
        side += max(1, side // 4)
