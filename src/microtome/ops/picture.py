"""A slide as an ordinary picture: for people to look at, not to measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from microtome.errors import OptionError
from microtome.ops.at import thumbnail
from microtome.ops.colouring import is_raw, pseudocolour
from microtome.ops.levels import middle_plane

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["overview", "save"]


def overview(tree: xr.DataTree, size: int) -> Image:
    """Return a picture of the whole slide, from the coarsest level that is large enough.

    Parameters
    ----------
    tree
        A slide with at least one level.
    size
        Longest side of the picture in pixels; less where the finest level is smaller.

    Returns
    -------
    PIL.Image.Image
        RGB; of channels their pseudo-colours, each stretched to its range.
    """
    from PIL import Image

    image = middle_plane(thumbnail(tree, size))
    if is_raw(image):
        image = pseudocolour(image, None, None, (0, 100))
    pixels = image.values
    if pixels.dtype != np.uint8:
        pixels = (pixels >> (int(image.attrs.get("bits_stored", 16)) - 8)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def save(picture: Image, path: str) -> None:
    """Write a picture in the format that the suffix of ``path`` names.

    Raises
    ------
    OptionError
        The suffix is no format's.
    """
    from PIL import Image

    suffix = Path(path).suffix.lower()
    if suffix not in Image.registered_extensions():
        raise OptionError(f"{path}: the suffix {suffix or '(none)'} is no picture format's; .png is one")
    picture.save(path)
