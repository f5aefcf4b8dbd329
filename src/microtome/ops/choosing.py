"""Which stored level answers to a number, a name, a spacing or a magnification."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from microtome.errors import LevelNotFoundError, OptionError, SpacingUndefinedError
from microtome.model import PixelSpacing, SpacingLike, is_within
from microtome.ops.levels import level_names, spacing_of, target_spacing

__all__ = ["StoredLevel", "choose_level", "nearest_finer", "stored_levels"]

_ASSOCIATED = ("label", "overview", "thumbnail")


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level of a tree as it is now, cropped or not.

    Parameters
    ----------
    name
        ``level0``, ``level1`` and so on.
    image
        Its pixels.
    spacing
        By its coordinates; None where they tell none.
    """

    name: str
    image: xr.DataArray
    spacing: PixelSpacing | None

    def __str__(self) -> str:
        sizes = self.image.sizes
        shape = f"{sizes.get('y', 1)} x {sizes.get('x', 1)} pixels"
        return f"{self.name} ({shape}, spacing undefined)" if self.spacing is None else f"{self.name} {self.spacing}"


def stored_levels(tree: xr.DataTree) -> list[StoredLevel]:
    """Return the levels of a tree, in the order of their numbers."""
    levels = []
    for name in level_names(tree):
        image = tree[name].dataset["image"]
        try:
            spacing: PixelSpacing | None = spacing_of(image)
        except SpacingUndefinedError:
            spacing = None
        levels.append(StoredLevel(name, image, spacing))
    return levels


def choose_level(
    tree: xr.DataTree,
    index: int | str | None = None,
    *,
    spacing: SpacingLike | None = None,
    magnification: str | float | None = None,
    rtol: float = 0.25,
    max_downsample: float | None = None,
) -> xr.DataArray:
    """Return the image of one level, or of an associated image; see `SlideAccessor.level`."""
    if sum(v is not None for v in (index, spacing, magnification)) != 1:
        raise OptionError("a level is chosen by one of: its number or name, spacing=, magnification=")
    if index is not None:
        if max_downsample is not None:
            raise OptionError("max_downsample goes with spacing= or magnification=, not with a number or a name")
        return _named(tree, index) if isinstance(index, str) else _numbered(tree, index)
    target = target_spacing(spacing, magnification)
    assert target is not None
    return _nearest(stored_levels(tree), target, rtol, max_downsample).image


def _numbered(tree: xr.DataTree, index: int) -> xr.DataArray:
    if not isinstance(index, int | np.integer) or isinstance(index, bool):
        raise OptionError(
            f"a level is chosen by a whole number or a name, not by a {type(index).__name__}; a spacing is given as "
            "spacing= (mm), a magnification as magnification="
        )
    index = int(index)
    names = level_names(tree)
    # Numbers are those in the names, which stay when levels are removed; negative ones count what is there.
    name = f"level{index}" if index >= 0 else names[index] if -index <= len(names) else None
    if name not in names:
        raise LevelNotFoundError(f"there is no level {index}; there are: {_listed(stored_levels(tree))}")
    image: xr.DataArray = tree[name].dataset["image"]
    return image


def _named(tree: xr.DataTree, name: str) -> xr.DataArray:
    associated = list(tree["associated"].children) if "associated" in tree.children else []
    if name in level_names(tree):
        path = name
    elif name in associated:
        path = f"associated/{name}"
    else:
        hint = f" (a magnification is given as magnification={name!r})" if name.endswith(("x", "X")) else ""
        raise LevelNotFoundError(
            f"there is no {'associated image' if name in _ASSOCIATED else 'level'} {name!r}{hint}; there are: "
            f"{_listed(stored_levels(tree))}; associated images: {', '.join(associated) or 'none'}"
        )
    image: xr.DataArray = tree[path].dataset["image"]
    return image


def nearest_finer(levels: list[StoredLevel], target: PixelSpacing) -> StoredLevel | None:
    """Return the coarsest level that is no coarser than a target by its finer axis; None where all are coarser."""
    known = [(level, level.spacing.finer) for level in levels if level.spacing is not None]
    finer = [(level, mm) for level, mm in known if mm <= target.finer or is_within(mm, target.finer, 0.0)]
    return max(finer, key=lambda pair: pair[1])[0] if finer else None


def _nearest(levels: list[StoredLevel], target: PixelSpacing, rtol: float, max_downsample: float | None) -> StoredLevel:
    """Return the level that counts as having the target's spacing, else one fine enough and not too fine."""
    if not 0 <= rtol < 1:
        raise OptionError(f"rtol is a part of the larger spacing, from 0 to below 1, not {rtol!r}")
    if max_downsample is not None and not max_downsample >= 1:
        raise OptionError(f"max_downsample is 1 or more, or None, not {max_downsample!r}")
    known = [(level, level.spacing.finer) for level in levels if level.spacing is not None]
    if levels and not known:
        raise SpacingUndefinedError(
            "the pixel spacing of this slide is not stated in its files: a level can be chosen by number only; there "
            f"are: {_listed(levels)}"
        )
    equal = [(level, mm) for level, mm in known if is_within(mm, target.finer, rtol)]
    if equal:
        # By ratio: half is as far as twice. Of two equally far the finer, which has more to show; rounding is no tie.
        return min(equal, key=lambda pair: (round(abs(math.log(pair[1] / target.finer)), 9), pair[1]))[0]
    finer = nearest_finer(levels, target)
    factor = target.finer / finer.spacing.finer if finer is not None and finer.spacing is not None else math.inf
    if finer is not None and max_downsample is not None and factor <= max_downsample * (1 + 1e-9):
        return finer
    enough = math.ceil(factor * 10 - 1e-6) / 10 if finer is not None else 0
    remedy = f"; max_downsample={enough:.10g} would take {finer.name}" if finer is not None else ""
    allowed = f", and none is finer by a factor up to {max_downsample:g}" if max_downsample is not None else ""
    raise LevelNotFoundError(
        f"no stored level has a spacing within {rtol * 100:g} % of {target}{allowed}; there are: "
        f"{_listed(levels)}{remedy}; wsi.at() resamples to any spacing"
    )


def _listed(levels: list[StoredLevel]) -> str:
    return ", ".join(map(str, levels)) or "no levels"
