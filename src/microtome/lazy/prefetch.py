"""Frames on their way before their pixels are asked for."""

from __future__ import annotations

import xarray as xr

from microtome.errors import OptionError
from microtome.lazy.base import Plans
from microtome.lazy.unwrap import crop_plans
from microtome.lazy.window import Corners, Window

__all__ = ["prefetch_image", "prefetch_regions"]

_NO_VIEW = (
    "this array is not a part of a slide, nor computed by one of our operations: prefetch() the part it is made from"
)


def prefetch_image(image: xr.DataArray) -> int:
    """Fetch the frames under an image, which shows a part of a slide; return how many."""
    plans = crop_plans(image.variable)
    if plans is None:
        raise OptionError(_NO_VIEW)
    return _fetch(plans)


def prefetch_regions(window: Window | None, corners: Corners, height: int, width: int) -> int:
    """Fetch the frames under regions of a window, each once; return how many."""
    if window is None:
        raise OptionError(_NO_VIEW)
    return _fetch(window.plans(corners, height, width))


def _fetch(plans: Plans) -> int:
    return sum(reader.prefetch(plan) for reader, plan in plans)
