"""Patches of images that are computed from a slide, or of none at all: Dask arrays that take blocks of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome import config

__all__ = ["computed_patches"]

Pixels = npt.NDArray[Any]
Origins = npt.NDArray[np.int64]
SPARSE = 4
"""How many times the pixels of its patches a rectangle may have, before it is rather taken in parts."""


def computed_patches(data: Any, origins: Origins, size: tuple[int, int], value: Pixels, chunk: int) -> Any:
    """Return patches of an array (..., y, x, c) as a Dask array (patch, ..., y, x, c).

    Each group of patches takes the rectangles that hold it, so those that lie near each other belong together.

    Parameters
    ----------
    data
        Dask or NumPy array.
    origins
        (patches, 2): row and column of the top left pixel of each, inside the image or not.
    size
        Rows and columns of a patch.
    value
        Value of each channel beyond the edges.
    chunk
        Patches of a block of the result.
    """
    from dask import array

    da: Any = array

    if not hasattr(data, "__dask_graph__"):
        data = da.from_array(data, chunks=-1)
    groups = [origins[i : i + chunk] for i in range(0, len(origins), chunk)] or [origins]
    return da.concatenate([_group(data, group, size, value) for group in groups])


def _group(data: Any, origins: Origins, size: tuple[int, int], value: Pixels) -> Any:
    """Return a group of patches as one block."""
    from dask import array

    da: Any = array

    clusters = _clusters(origins, size, data.shape[-3:-1], config.get().block_bytes // data.dtype.itemsize)
    parts = [_part(data, origins[cluster], size, value) for cluster in clusters]
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(np.concatenate(clusters))
    return da.concatenate(parts).rechunk({0: -1})[back]


def _spans(origins: Origins, size: tuple[int, int], shape: tuple[int, int]) -> list[slice]:
    """Return the rows and columns of an image that hold what patches show of it."""
    spans = []
    for axis, (extent, n) in enumerate(zip(shape, size, strict=True)):
        low = int(np.clip(origins[:, axis].min(), 0, extent)) if len(origins) else 0
        high = int(np.clip(origins[:, axis].max() + n, low, extent)) if len(origins) else 0
        spans.append(slice(low, high))
    return spans


def _clusters(origins: Origins, size: tuple[int, int], shape: tuple[int, int], most: int) -> list[Origins]:
    """Cut patches into clusters that fill most of the rectangle around them; return the indices of each, in order."""
    waiting, clusters = [np.arange(len(origins))], []
    while waiting:
        cluster = waiting.pop()
        rows, columns = _spans(origins[cluster], size, shape)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height * width <= max(most, SPARSE * len(cluster) * size[0] * size[1]) or len(cluster) == 1:
            clusters.append(np.sort(cluster))
            continue
        order = np.argsort(origins[cluster, 0 if height > width else 1], kind="stable")
        half = len(cluster) // 2
        waiting += [cluster[order[half:]], cluster[order[:half]]]
    return clusters


def _part(data: Any, origins: Origins, size: tuple[int, int], value: Pixels) -> Any:
    spans = _spans(origins, size, data.shape[-3:-1])
    lead = data.ndim - 3
    part = data[(..., *spans, slice(None))].rechunk(-1)
    return part.map_blocks(
        _cut,
        origins - [span.start for span in spans],
        size,
        value,
        dtype=data.dtype,
        new_axis=0,
        chunks=((len(origins),), *part.chunks[:lead], (size[0],), (size[1],), part.chunks[-1]),
        meta=np.empty((0,) * (data.ndim + 1), data.dtype),
    )


def _cut(pixels: Pixels, origins: Origins, size: tuple[int, int], value: Pixels) -> Pixels:
    """Return patches of an array in memory (..., y, x, c), filled beyond its edges."""
    height, width = size
    out = np.empty((len(origins), *pixels.shape[:-3], height, width, pixels.shape[-1]), pixels.dtype)
    out[...] = value
    rows, columns = pixels.shape[-3:-1]
    for n, (row, column) in enumerate(origins.tolist()):
        top, bottom = max(row, 0), min(row + height, rows)
        left, right = max(column, 0), min(column + width, columns)
        if top < bottom and left < right:
            inside = pixels[..., top:bottom, left:right, :]
            out[n, ..., top - row : bottom - row, left - column : right - column, :] = inside
    return out
