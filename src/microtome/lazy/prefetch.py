"""Frames on their way before their pixels are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from microtome.errors import OptionError
from microtome.lazy.unwrap import crop_requests
from microtome.lazy.window import Window

__all__ = ["prefetch_image", "prefetch_regions"]

_NO_VIEW = "this array is not a part of a slide as it is stored: prefetch() the part it is made from"


def prefetch_image(image: xr.DataArray) -> int:
    """Fetch the frames under an image, which shows a part of a slide; return how many."""
    asked = crop_requests(image.variable)
    if asked is None:
        raise OptionError(_NO_VIEW)
    return sum(array.reader.prefetch(array.plan(key)) for array, key in asked if array.kind == "image")


def prefetch_regions(window: Window | None, corners: Sequence[tuple[int, int]], height: int, width: int) -> int:
    """Fetch the frames under regions of a window, each once; return how many."""
    if window is None:
        raise OptionError(_NO_VIEW)
    return window.prefetch(corners, height, width)
