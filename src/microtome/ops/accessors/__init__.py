"""The ``.wsi`` accessors of DataTree, Dataset and DataArray."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr

from microtome.ops.accessors.image import ImageAccessor
from microtome.ops.accessors.level import LevelAccessor
from microtome.ops.accessors.slide import SlideAccessor

__all__ = ["ImageAccessor", "LevelAccessor", "SlideAccessor", "register"]


def register() -> None:
    """Register the accessors with xarray."""
    # xarray leaves these functions untyped.
    for extend, accessor in (
        (xr.register_dataarray_accessor, ImageAccessor),
        (xr.register_dataset_accessor, LevelAccessor),
        (xr.register_datatree_accessor, SlideAccessor),
    ):
        decorate: Callable[[str], Callable[[type], type]] = extend
        decorate("wsi")(accessor)
