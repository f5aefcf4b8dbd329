"""A slide at any spacing or size, from the stored level that is fit for it: `slide.wsi.at`, `slide.wsi.thumbnail`."""

from __future__ import annotations

from typing import Any

import xarray as xr

from microtome.errors import LevelNotFoundError, OptionError, SpacingUndefinedError
from microtome.model import PixelSpacing
from microtome.ops.choosing import StoredLevel, stored_levels
from microtome.ops.grids import ALMOST
from microtome.ops.levels import spacing_of
from microtome.ops.resize import Quality, resize

__all__ = ["at", "thumbnail"]


def at(tree: xr.DataTree, *, nearest: bool | None = None, quality: Quality = "exact", **target: Any) -> xr.DataArray:
    """Return the image of a slide on a grid; see `SlideAccessor.at`."""
    stored = stored_levels(tree)
    if not stored:
        raise LevelNotFoundError("this tree has no level: there is nothing to be resampled")
    # A crop may leave pixels of the finer levels only. Where it leaves none at all, an empty image is what there is.
    levels = [level for level in stored if min(level.image.sizes[d] for d in ("y", "x"))] or stored
    if "shape" in target:
        source = _for_shape(levels, target["shape"])
    else:
        wanted = target.get("spacing") or spacing_of(target["like"])
        source = _for_spacing(levels, wanted)
    return resize(source.image, nearest=nearest, quality=quality, **target)


def _for_spacing(levels: list[StoredLevel], wanted: PixelSpacing) -> StoredLevel:
    """Return the coarsest level that is nowhere coarser than what is wanted, else the finest."""
    known = [(level, level.spacing) for level in levels if level.spacing is not None]
    if not known:
        raise SpacingUndefinedError(
            "the pixel spacing of this slide is not stated in its files: it can be resampled to a shape only"
        )
    limits = (wanted.row * (1 + ALMOST), wanted.column * (1 + ALMOST))
    fine = [(level, s) for level, s in known if s.row <= limits[0] and s.column <= limits[1]]
    if fine:
        return max(fine, key=lambda pair: pair[1].row * pair[1].column)[0]
    return min(known, key=lambda pair: pair[1].row * pair[1].column)[0]


def _for_shape(levels: list[StoredLevel], shape: tuple[int, int]) -> StoredLevel:
    """Return the smallest level that has as many pixels both ways, else the largest."""

    def pixels(level: StoredLevel) -> int:
        return int(level.image.sizes["y"] * level.image.sizes["x"])

    enough = [v for v in levels if v.image.sizes["y"] >= shape[0] and v.image.sizes["x"] >= shape[1]]
    return min(enough, key=pixels) if enough else max(levels, key=pixels)


def thumbnail(tree: xr.DataTree, max_size: int, quality: Quality = "exact") -> xr.DataArray:
    """Return a small image of a slide; see `SlideAccessor.thumbnail`."""
    if max_size < 1:
        raise OptionError(f"max_size={max_size}: a thumbnail has at least one pixel")
    levels = stored_levels(tree)
    finest = max(levels, key=lambda level: level.image.sizes["y"] * level.image.sizes["x"], default=None)
    if finest is None:
        raise LevelNotFoundError("this slide has no level: there is nothing to be shown")
    rows, columns = finest.image.sizes["y"], finest.image.sizes["x"]
    spacing = finest.spacing
    if spacing is not None:  # pixels of a picture are square
        height, width = rows * spacing.row, columns * spacing.column
    else:
        height, width = float(rows), float(columns)
    if not rows or not columns:
        return finest.image
    longest = min(max_size, max(rows, columns))
    scale = longest / max(height, width)
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    return at(tree, shape=shape, quality=quality)
