"""Patches as a dataset: their pixels, where they lie, and how much of them a mask covers."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome import config
from microtome.errors import OptionError, SpacingUndefinedError
from microtome.lazy.chunked import in_blocks, lazy_variable
from microtome.lazy.unwrap import unwrap
from microtome.ops.grids import spacing_if_defined
from microtome.ops.masks.aligned import align
from microtome.ops.masks.edges import Edge, edges_in_mm
from microtome.ops.patches.array import dask_patches
from microtome.ops.patches.computed import computed_patches
from microtome.ops.patches.cutting import cut, patch_array
from microtome.ops.patches.order import Order
from microtome.ops.patches.places import Anchor, Pad
from microtome.ops.regions import fill_values

__all__ = ["KEPT_ATTRS", "chunk_of", "fraction_of_patches", "patches"]

MOST_CHUNKS = 10_000
KEPT_ATTRS = ("photometric_interpretation", "bits_stored", "optical_paths")


def patches(
    image: xr.DataArray,
    size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    *,
    mask: Any = None,
    min_fraction: float | None = None,
    pad: Pad = "drop",
    fill: Any = None,
    origins: Any = None,
    anchor: Anchor = "corner",
    order: Order | None = None,
    seed: int | None = None,
    chunks: Literal["auto"] | int | None = "auto",
) -> xr.Dataset:
    """Return patches of an image; see `ImageAccessor.patches`."""
    found = cut(
        image, size, stride, mask=mask, min_fraction=min_fraction, pad=pad, origins=origins, anchor=anchor, order=order,
        seed=seed,
    )  # fmt: skip
    places = found.places
    variable = _pixels(image, places, found.size, fill, chunks)
    edges = edges_in_mm(image, "the image")
    coords = {n: c.variable for n, c in image.coords.items() if not {"y", "x"} & set(c.dims)}
    coords |= _coordinates(image, places, edges)
    if found.fractions is not None:
        coords["tissue_fraction"] = xr.Variable("patch", found.fractions, {"long_name": "part under the mask"})
    coords["id"] = xr.Variable("patch", _ids(image, places, found.size, edges))
    attrs: dict[str, Any] = {k: image.attrs[k] for k in KEPT_ATTRS if k in image.attrs}
    attrs |= {"patch_size": list(found.size), "patch_stride": list(found.stride)}
    spacing = spacing_if_defined(image)
    if spacing is not None:
        attrs["pixel_spacing_mm"] = [spacing.row, spacing.column]
    variable.attrs = dict(attrs)
    return xr.Dataset({"image": variable}, coords=coords, attrs=attrs)


def _pixels(
    image: xr.DataArray, places: npt.NDArray[np.int64], size: tuple[int, int], fill: Any, chunks: Any
) -> xr.Variable:
    each = int(np.prod([n for d, n in image.sizes.items() if d not in ("y", "x")], dtype=np.int64))
    each *= size[0] * size[1] * image.dtype.itemsize
    count = chunk_of(chunks, each, len(places), MOST_CHUNKS)
    array = patch_array(image, places, size, fill)
    if array is not None:
        dims = ("patch", *image.dims)
        return lazy_variable(array, dims) if count is None else xr.Variable(dims, dask_patches(array, count))
    if count is None:
        raise OptionError(
            "chunks=None gives lazy patches of a slide; this image is computed: its patches are a Dask array"
        )
    order = [d for d in image.dims if d not in ("y", "x", "c")] + ["y", "x"] + (["c"] if "c" in image.dims else [])
    data: Any = in_blocks(image.variable).transpose(*order).data
    data = data if "c" in image.dims else data[..., np.newaxis]
    data = computed_patches(data, places, size, fill_values(image, unwrap(image.variable), fill), count)
    return xr.Variable(("patch", *order), data if "c" in image.dims else data[..., 0])


def chunk_of(chunks: Any, each: int, count: int, most: int) -> int | None:
    """Return how many patches a chunk has: some 16 MB of them, and not too many chunks; None for no chunks.

    Parameters
    ----------
    chunks
        As the user gave it.
    each
        Bytes of a patch.
    count
        Number of patches.
    most
        Number of chunks that are not too many.
    """
    if chunks is None:
        return None
    if chunks == "auto":
        return max(1, min(max(config.get().block_bytes // max(each, 1), -(-count // most)), max(count, 1)))
    if isinstance(chunks, bool) or not isinstance(chunks, int | np.integer) or chunks < 1:
        raise OptionError(f"chunks={chunks!r}: it is 'auto', a number of patches, or None")
    return int(chunks)


def _coordinates(
    image: xr.DataArray, places: npt.NDArray[np.int64], edges: tuple[Edge, Edge] | None
) -> dict[Any, xr.Variable]:
    """Return where patches lie: in pixels of the image, and the corner in mm."""
    coords: dict[Any, xr.Variable] = {
        "row": xr.Variable("patch", places[:, 0], {"long_name": "row of the top left pixel"}),
        "column": xr.Variable("patch", places[:, 1], {"long_name": "column of the top left pixel"}),
    }
    if edges is None and (len(places) or spacing_if_defined(image) is None):
        return coords
    for axis, (name, (low, mm)) in enumerate(zip(("y0", "x0"), edges or ((0.0, 1.0),) * 2, strict=True)):
        attrs = {"units": "mm", "long_name": "top left corner"}
        coords[name] = xr.Variable("patch", low + places[:, axis] * mm, attrs)
    return coords


def _ids(
    image: xr.DataArray, places: npt.NDArray[np.int64], size: tuple[int, int], edges: tuple[Edge, Edge] | None
) -> npt.NDArray[np.str_]:
    """Return a name for each patch: the same whatever part of the level it was cut from, and in whatever order."""
    spacing = spacing_if_defined(image)
    name = "" if spacing is None else f"{float(f'{spacing.magnification:.4g}'):g}X:"
    parts = []
    for axis, dim in enumerate(("y", "x")):
        corner = 0
        if edges is not None:
            low, mm = edges[axis]
            # Levels may begin half a pixel, or a quarter, from the corner: rounding must not hang on the last digit.
            corner = math.floor(low / mm + 0.3)
        elif f"{dim}_pixel" in image.coords and image.sizes[dim]:
            corner = int(image.coords[f"{dim}_pixel"].variable[0].values)
        numbers, back = np.unique(places[:, axis] + corner, return_inverse=True)
        parts.append(np.array([f"{n:+d}" for n in numbers.tolist()], np.str_)[back])
    if not len(places):
        return np.empty(0, "<U1")
    return np.strings.add(np.strings.add(f"{name}{size[0]}x{size[1]}", parts[0]), parts[1])


def fraction_of_patches(dataset: xr.Dataset, mask: Any) -> xr.DataArray:
    """Return how much of each patch a mask in mm covers; see `LevelAccessor.tissue_fraction`."""
    if "patch" not in dataset.dims or "patch_size" not in dataset.attrs:
        raise OptionError("tissue_fraction() is for patches, as wsi.patches() returns them")
    if [dataset.sizes.get("y"), dataset.sizes.get("x")] != list(dataset.attrs["patch_size"]):
        raise OptionError("these patches are cropped: ask for tissue_fraction() before they are")
    spacing = dataset.attrs.get("pixel_spacing_mm")
    if spacing is None or "y0" not in dataset.coords:
        raise SpacingUndefinedError("the patches have no place in mm, by which the mask could be laid over them")
    rows, columns = (dataset.coords[n].values / mm for n, mm in zip(("y0", "x0"), spacing, strict=True))
    if isinstance(mask, np.ndarray):
        raise OptionError("an array covers an image, which patches do not have: give a mask with coordinates in mm")
    # An image of one pixel at the corner of level 0, with the spacing of the patches: places are counted from there.
    origin = xr.DataArray(
        np.zeros((2, 2), np.bool_),
        dims=("y", "x"),
        coords={d: (np.arange(2) + 0.5) * mm for d, mm in zip(("y", "x"), spacing, strict=True)},
    )
    aligned = align(mask, origin, anywhere=True)
    values = aligned.fractions(np.stack([rows, columns], axis=1), tuple(dataset.attrs["patch_size"]))
    coords = {n: c for n, c in dataset.coords.items() if c.dims == ("patch",)}
    return xr.DataArray(values, dims="patch", coords=coords, name="tissue_fraction")
