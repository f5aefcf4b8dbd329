"""``DataArray.wsi``: all that can be asked of an image; thin, the work is elsewhere."""

from __future__ import annotations

from microtome.ops.accessors.colour import ColourAccessor
from microtome.ops.accessors.grids import GridAccessor
from microtome.ops.accessors.pixels import PixelAccessor

__all__ = ["ImageAccessor"]


class ImageAccessor(PixelAccessor, GridAccessor, ColourAccessor):
    """``DataArray.wsi``: reading an image, bringing it to other grids and colours, cutting it into patches.

    Parameters
    ----------
    image
        An array with dimensions ``y`` and ``x``.
    """
