"""A slide as an ordinary picture: for people to look at, not to measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError
from microtome.ops.levels import level_names

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
        RGB; a fluorescence slide shows its first three channels, each stretched to its range.
    """
    from PIL import Image

    names = level_names(tree)
    large = [n for n in names if max(tree[n].sizes["y"], tree[n].sizes["x"]) >= size]
    image = tree[large[-1] if large else names[0]].dataset["image"]
    image = image.isel({d: image.sizes[d] // 2 if d == "z" else 0 for d in image.dims if d not in ("y", "x", "c")})
    pixels = _displayable(image.values, image.attrs.get("photometric_interpretation", ""))
    picture = Image.fromarray(pixels)
    picture.thumbnail((size, size), Image.Resampling.BOX, reducing_gap=None)
    return picture


def _displayable(pixels: npt.NDArray[Any], photometric: str) -> npt.NDArray[np.uint8]:
    """Return (rows, columns, 3) bytes of (rows, columns, channels) pixels."""
    if pixels.dtype != np.uint8 or photometric.startswith("MONOCHROME"):
        low = pixels.min(axis=(0, 1), keepdims=True).astype(np.float64)
        high = pixels.max(axis=(0, 1), keepdims=True).astype(np.float64)
        scaled = (pixels - low) / np.maximum(high - low, 1) * 255
        pixels = (255 - scaled if photometric == "MONOCHROME1" else scaled).astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    missing = 3 - min(pixels.shape[2], 3)
    return np.ascontiguousarray(np.pad(pixels[..., :3], ((0, 0), (0, 0), (0, missing))))


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
