"""An image cut into patches: where they lie, in which order, and the lazy array of their pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError
from microtome.lazy.unwrap import unwrap
from microtome.ops.masks.aligned import align
from microtome.ops.patches.array import PatchArray
from microtome.ops.patches.order import Order, ordered
from microtome.ops.patches.places import Anchor, Pad, checked_origins, grid_origins, pair
from microtome.ops.regions import fill_values

__all__ = ["Cut", "cut", "patch_array"]

Origins = npt.NDArray[np.int64]


class Cut(NamedTuple):
    """Where the patches of an image lie, in their order."""

    places: Origins
    """(patches, 2): row and column of the top left pixel of each."""
    fractions: npt.NDArray[np.float64] | None
    """How much of each the mask covers; None without a mask."""
    size: tuple[int, int]
    stride: tuple[int, int]


def cut(
    image: xr.DataArray,
    size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    *,
    mask: Any = None,
    min_fraction: float | None = None,
    pad: Pad = "drop",
    origins: Any = None,
    anchor: Anchor = "corner",
    order: Order | None = None,
    seed: int | None = None,
) -> Cut:
    """Return where the patches of an image lie; see `ImageAccessor.patches`."""
    if {"row", "patch"} & set(image.dims) or not {"y", "x"} <= set(image.dims):
        raise OptionError(f"patches are cut from images with dimensions y and x, not {', '.join(map(str, image.dims))}")
    height, width = pair("size", size)
    step = (height, width) if stride is None else pair("stride", stride)
    shape = (image.sizes["y"], image.sizes["x"])
    if origins is None:
        places = grid_origins(shape, (height, width), step, pad, anchor)
    elif stride is not None or not isinstance(anchor, str) or anchor != "corner" or pad != "drop":
        raise OptionError("origins= says where patches are: stride, anchor and pad have no meaning with it")
    else:
        places = checked_origins(origins)
    fractions = None
    if mask is not None:
        fractions = align(mask, image).fractions(places, (height, width))
        least = 0.5 if min_fraction is None else min_fraction
        if not 0 <= least <= 1:
            raise OptionError(f"min_fraction={min_fraction!r}: it is a part of a patch, from 0 to 1")
        kept = fractions >= least - 1e-9
        places, fractions = places[kept], fractions[kept]
    elif min_fraction is not None:
        raise OptionError("min_fraction is how much of a patch the mask covers: give mask=")
    chosen = ordered(places, order or ("place" if origins is None else "given"), seed, step)
    return Cut(places[chosen], None if fractions is None else fractions[chosen], (height, width), step)


def patch_array(image: xr.DataArray, places: Origins, size: tuple[int, int], fill: Any) -> PatchArray | None:
    """Return patches of an image as a lazy array (patch, ..., y, x[, c]); None where the image is computed by Dask.

    Parameters
    ----------
    image
        Has dimensions ``y`` and ``x``.
    places, size
        See `Cut`.
    fill
        Value beyond the edges; see `fill_values`.
    """
    view = unwrap(image.variable)
    if view is None or not (view.neighbours and view.shown_as(image.dims)):
        return None
    return PatchArray(view.array, view.key, places, size, tuple(fill_values(image, view, fill).tolist()))
