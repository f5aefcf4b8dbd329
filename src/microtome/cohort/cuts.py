"""The patches of one slide, found where the slide is open: what comes back holds places and a recipe, no slide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError
from microtome.lazy.recipe import Recipe
from microtome.opening import open_tree
from microtome.ops.grids import spacing_if_defined
from microtome.ops.masks.edges import Edge, edges_in_mm
from microtome.ops.patches.array import PatchArray
from microtome.ops.patches.cutting import cut, patch_array
from microtome.ops.patches.dataset import KEPT_ATTRS
from microtome.ops.patches.joined import closed

__all__ = ["Cutter", "Order", "SlideCut", "per_slide"]


class Order(NamedTuple):
    """What a worker is told of one slide."""

    recipe: Recipe
    mask: Any
    """None where the cutter says how it is made."""
    origins: Any


class SlideCut(NamedTuple):
    """The patches of one slide."""

    array: PatchArray
    coords: dict[Any, xr.Variable]
    """Those of the image that say nothing of rows and columns."""
    edges: tuple[Edge, Edge] | None
    """Where the image begins in mm; None where it has no place."""
    fractions: npt.NDArray[np.float64] | None
    attrs: dict[str, Any]


@dataclass(frozen=True)
class Cutter:
    """How slides are cut into patches."""

    size: Any
    stride: Any
    image: Callable[[xr.DataTree], xr.DataArray] | None
    level: int | str | None
    spacing: Any
    magnification: Any
    mask: Any
    """``"tissue"``, a function of a slide, or None."""
    origins: Any
    """A function of a slide, or None."""
    fill: Any
    options: dict[str, Any]
    """Of `ImageAccessor.patches`, the same for all slides."""

    def __call__(self, order: Order) -> SlideCut:
        """Open a slide and find its patches."""
        slide = open_tree(order.recipe, None)
        image = self._image(slide)
        mask = slide.wsi.tissue_mask() if self.mask == "tissue" else self.mask(slide) if self.mask else order.mask
        origins = self.origins(slide) if self.origins else order.origins
        found = cut(image, self.size, self.stride, mask=mask, origins=origins, **self.options)
        array = patch_array(image, found.places, found.size, self.fill)
        if array is None:
            raise OptionError(
                "the image is computed by Dask, not a view of the slide: cut it slide by slide, or bring it to what "
                "wsi.at(), to_profile() and the like return"
            )
        coords = {n: c.variable.load() for n, c in image.coords.items() if not {"y", "x"} & set(c.dims)}
        attrs = {k: image.attrs[k] for k in KEPT_ATTRS if k in image.attrs}
        attrs |= {"patch_size": list(found.size), "patch_stride": list(found.stride)}
        spacing = spacing_if_defined(image)
        if spacing is not None:
            attrs["pixel_spacing_mm"] = [spacing.row, spacing.column]
        return SlideCut(closed(array), coords, edges_in_mm(image, "the image"), found.fractions, attrs)

    def _image(self, slide: xr.DataTree) -> xr.DataArray:
        image: Any
        if self.image is not None:
            image = self.image(slide)
            if isinstance(image, xr.Dataset) and "image" in image:
                image = image["image"]
        elif self.spacing is not None:
            image = slide.wsi.at(spacing=self.spacing)
        elif self.magnification is not None:
            image = slide.wsi.level(magnification=self.magnification)
        else:
            image = slide.wsi.level(self.level)
        if not isinstance(image, xr.DataArray):
            raise OptionError(f"image= returned a {type(image).__name__}: it is to return a DataArray")
        return image


def per_slide(name: str, value: Any, slides: list[str]) -> tuple[Any, list[Any]]:
    """Return what is said of all slides alike, and what is said of each.

    Parameters
    ----------
    name
        Of the argument.
    value
        None, a function or a text for all, or a mapping from the names of slides.
    slides
        Names of the slides.

    Raises
    ------
    OptionError
        It is nothing of these, or says nothing of a slide.
    """
    if value is None or callable(value) or (isinstance(value, str) and value == "tissue" and name == "mask"):
        return value, [None] * len(slides)
    if isinstance(value, Mapping):
        without = [slide for slide in slides if slide not in value]
        if without:
            raise OptionError(f"{name}= says nothing of {len(without)} slides, {without[0]!r} the first")
        return None, [value[slide] for slide in slides]
    also = "'tissue', " if name == "mask" else ""
    raise OptionError(
        f"{name} is {also}a function of a slide, or a mapping from names of slides, not a {type(value).__name__}: each "
        "slide has its own"
    )
