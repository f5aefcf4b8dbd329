"""Stains of images and slides: fitted at low magnification, applied lazily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from microtome.errors import OptionError
from microtome.model import PixelSpacing, SpacingLike
from microtome.ops.at import at
from microtome.ops.colouring import RGB, stain_image
from microtome.ops.levels import middle_plane
from microtome.ops.masks.aligned import align
from microtome.ops.stain import (
    STAINS,
    Deconvolution,
    Macenko,
    Normalization,
    Reinhard,
    StainFit,
    Vahadane,
    stain_vectors,
)
from microtome.ops.tissue_mask import tissue_mask

__all__ = ["deconvolve_image", "fit_stain", "normalize_image"]

_FITS: dict[str, Any] = {"macenko": Macenko, "vahadane": Vahadane, "reinhard": Reinhard}
_NAMES = {"H&E": ("hematoxylin", "eosin"), "H-DAB": ("hematoxylin", "dab"), "HED": ("hematoxylin", "eosin", "dab")}
assert _NAMES.keys() == STAINS.keys()


def deconvolve_image(image: xr.DataArray, stains: str | Sequence[Sequence[float]] | StainFit) -> xr.DataArray:
    """Return the concentrations of stains; see `ImageAccessor.deconvolve`."""
    if isinstance(stains, StainFit):
        names: Sequence[str] = _NAMES["H&E"]
        vectors = stain_vectors(stains.stains)
    else:
        vectors = stain_vectors(stains)
        names = _NAMES[stains] if isinstance(stains, str) else [f"stain {n + 1}" for n in range(len(vectors))]
    return stain_image(image, Deconvolution(vectors), names, np.float32)


def normalize_image(
    image: xr.DataArray, source: StainFit | Reinhard, target: StainFit | Reinhard | None
) -> xr.DataArray:
    """Return an image in the stain colours of another; see `ImageAccessor.normalize`."""
    return stain_image(image, Normalization(source, target), RGB, np.uint8)


def fit_stain(tree: xr.DataTree, method: str, mask: Any, spacing: SpacingLike, pixels: int) -> StainFit | Reinhard:
    """Return what the stains of a slide look like; see `SlideAccessor.fit_stain`."""
    if method not in _FITS:
        raise OptionError(f"method={method!r}: it is one of {', '.join(_FITS)}")
    if pixels < 1:
        raise OptionError(f"pixels={pixels}: some pixels are needed")
    image = middle_plane(at(tree, spacing=PixelSpacing.of(spacing), quality="fast"))
    if image.sizes.get("c") != 3 or image.dtype != np.uint8:
        raise OptionError(f"stains are those of RGB images of 8 bit, not of {image.sizes.get('c', 1)} x {image.dtype}")
    if mask is None:
        mask = tissue_mask(
            tree, "stain", min_luminance=1 / 255, max_luminance=0.8, spacing=0.008, closing=None, min_area=None,
            color=None, quality="fast",
        )  # fmt: skip
    chosen = np.flatnonzero(align(mask, image).pixels((image.sizes["y"], image.sizes["x"])))
    if len(chosen) > pixels:
        chosen = chosen[np.linspace(0, len(chosen) - 1, pixels).astype(np.int64)]
    values = image.transpose("y", "x", "c").values.reshape(-1, 3)[chosen]
    fit: StainFit | Reinhard = _FITS[method].fit(values)
    return fit
