"""EZ-WSI's patches of a slide: which levels it looks at, and the patches cut there; the rules are in `ez_wsi`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import LevelNotFoundError, OptionError
from microtome.model import PixelSpacing, SpacingLike
from microtome.ops import ez_wsi
from microtome.ops.choosing import stored_levels
from microtome.ops.colouring import to_profile
from microtome.ops.patches.dataset import patches
from microtome.ops.resize import resize

__all__ = ["ez_wsi_patches"]


class _Stored:
    """The levels of a slide as EZ-WSI sees them."""

    def __init__(self, tree: xr.DataTree) -> None:
        self.levels = stored_levels(tree)
        self.spacings = [None if v.spacing is None else v.spacing.finer for v in self.levels]
        self.frames = [int(v.image.attrs.get("frames", 0)) for v in self.levels]

    def number(self, level: int) -> int:
        """Return the place in the list of a level of this number.

        Raises
        ------
        LevelNotFoundError
            There is none.
        """
        for n, stored in enumerate(self.levels):
            if stored.name == f"level{level}":
                return n
        raise LevelNotFoundError(f"there is no level {level}; there are: {', '.join(map(str, self.levels))}")

    def by_spacing(self, spacing: SpacingLike) -> int:
        """Return the level that EZ-WSI takes for a spacing.

        Raises
        ------
        LevelNotFoundError
            It takes none.
        """
        wanted = PixelSpacing.of(spacing).finer
        found = ez_wsi.level_for_spacing(self.spacings, wanted)
        if found is None:
            raise LevelNotFoundError(
                f"EZ-WSI finds no level for {wanted:g} mm; there are: {', '.join(map(str, self.levels))}"
            )
        return found

    def image(self, n: int) -> xr.DataArray:
        """Return the image of a level, one plane of it."""
        image = self.levels[n].image
        return image.isel({d: 0 for d in image.dims if d not in ("y", "x", "c")})


def ez_wsi_patches(
    tree: xr.DataTree,
    patch_size: int,
    stride_size: int | None,
    *,
    level: int | None,
    spacing: SpacingLike | None,
    shape: tuple[int, int] | None,
    mask: npt.NDArray[np.bool_] | None,
    mask_level: int | SpacingLike | None,
    min_luminance: float,
    max_luminance: float,
    color: Any,
    chunks: Literal["auto"] | int | None,
) -> xr.Dataset:
    """Return the patches that EZ-WSI's generator makes; see `SlideAccessor.ez_wsi_patches`."""
    if (level is None) == (spacing is None):
        raise OptionError("patches are cut from level=, or from the level that EZ-WSI finds for spacing=: give one")
    stored = _Stored(tree)
    source = stored.by_spacing(spacing) if spacing is not None else stored.number(_whole(level))
    image = stored.image(source)
    size = (image.sizes["y"], image.sizes["x"])
    finest = stored.levels[source].spacing
    wanted, resized_spacing = size, None
    if shape is not None:
        own = None if finest is None else (finest.row, finest.column)
        wanted, pair = ez_wsi.resized_level(size, own, to_shape=shape)
        resized_spacing = None if pair is None else min(pair)
    resized = wanted != size
    bounds: dict[str, Any] = {"min_luminance": min_luminance, "max_luminance": max_luminance}
    if mask is not None and (mask_level is not None or color is not None):
        raise OptionError("mask= says where tissue is: mask_level and color have no meaning with it")
    if mask is not None:
        origins = ez_wsi.patch_origins(wanted, patch_size, stride_size, mask=mask, **bounds)
    else:
        asked: dict[str, Any] = {}
        if isinstance(mask_level, int | np.integer):
            asked["level"] = stored.number(int(mask_level))
        elif mask_level is not None:
            asked["spacing"] = PixelSpacing.of(mask_level).finer
        found = ez_wsi.mask_level(
            stored.spacings, stored.frames, source, by_spacing=spacing is not None, resized=resized,
            resized_spacing=resized_spacing, **asked,
        )  # fmt: skip
        pixels = _seen(stored.image(source if found is None else found), color)
        if found is None:
            pixels = ez_wsi.resize(pixels, wanted)
        origins = ez_wsi.patch_origins(wanted, patch_size, stride_size, mask_pixels=pixels, **bounds)
    if resized:
        image = resize(image, shape=wanted)
    return patches(image, patch_size, origins=origins, order="given", fill=0, chunks=chunks)


def _whole(level: Any) -> int:
    if isinstance(level, bool) or not isinstance(level, int | np.integer):
        raise OptionError(f"level={level!r}: it is the number of a stored level, 0 the finest")
    return int(level)


def _seen(image: xr.DataArray, color: Any) -> npt.NDArray[np.uint8]:
    """Return the pixels of a level as EZ-WSI sees them when it looks for tissue."""
    if image.dtype != np.uint8:
        raise OptionError(f"EZ-WSI reads pixels of 8 bit, and this level has {image.dtype}: give a mask")
    if color is not None:
        image = to_profile(image, color)
    pixels: npt.NDArray[np.uint8] = image.transpose("y", "x", "c").values
    if image.attrs.get("photometric_interpretation") == "MONOCHROME1":
        pixels = 255 - pixels
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
