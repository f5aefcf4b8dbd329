"""``Dataset.wsi``: what an image has, asked of the level or the patches that hold it."""

from __future__ import annotations

from typing import Any

import xarray as xr

from microtome.errors import OptionError
from microtome.ops.accessors.image import ImageAccessor

__all__ = ["LevelAccessor"]


class LevelAccessor(ImageAccessor):
    """``Dataset.wsi``: all that `ImageAccessor` has, for the image of a level, or of patches."""

    def __init__(self, level: xr.Dataset) -> None:
        if "image" not in level:
            raise OptionError("this dataset has no image: .wsi is for the levels of a slide, and for patches")
        super().__init__(level["image"])
        self._dataset = level

    def tissue_fraction(self, mask: Any) -> xr.DataArray:
        """Return how much of each patch a mask covers, exactly by area.

        Parameters
        ----------
        mask
            A bool DataArray with coordinates in mm, or a shapely geometry in mm.

        Returns
        -------
        xarray.DataArray
            ``(patch,)`` float64, from 0 to 1, with the coordinates of the patches.

        Raises
        ------
        OptionError
            This dataset does not hold patches, or the mask is none.
        SpacingUndefinedError
            Patches or mask have no place in mm.
        """
        from microtome.ops.patches.dataset import fraction_of_patches

        return fraction_of_patches(self._dataset, mask)
