"""``DataArray.wsi``: colour and stain of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import xarray as xr

if TYPE_CHECKING:
    from microtome.ops.stain import Reinhard, StainFit

__all__ = ["ColourAccessor"]


class ColourAccessor:
    """``DataArray.wsi``: colour and stain of an image."""

    _image: xr.DataArray

    def to_profile(
        self,
        profile: str | Path | bytes = "srgb",
        *,
        intent: Literal["perceptual", "relative", "saturation", "absolute"] = "perceptual",
        require: bool = False,
        source: str | Path | bytes | None = None,
    ) -> xr.DataArray:
        """Convert the colours of this image to those of another ICC profile, lazily.

        Comes after resampling: what is averaged are stored values, as in the stored levels. Each optical path has its
        own profile.

        Parameters
        ----------
        profile
            ``"srgb"``, ``"adobe_rgb"``, ``"display_p3"``, ``"romm_rgb"`` (built from their published primaries), or a
            profile's path or bytes.
        intent
            Rendering intent.
        require
            Whether an image without a profile raises; else it stays as it is, with a warning, once a slide.
        source
            A profile for the image, in place of the one in its file.

        Returns
        -------
        xarray.DataArray
            Of the same shape and dtype.

        Raises
        ------
        OptionError
            The image is not RGB of 8 or 16 bit, a profile is none, or there is none and ``require``.
        """
        from microtome.ops.colouring import to_profile

        return to_profile(self._image, profile, intent=intent, require=require, source=source)

    def pseudocolor(
        self,
        windows: Sequence[tuple[float, float]] | None = None,
        colors: Sequence[str | tuple[int, int, int]] | None = None,
        *,
        percentiles: tuple[float, float] = (0.1, 99.9),
    ) -> xr.DataArray:
        """Make RGB of the channels of a fluorescence (or any monochrome) image, lazily; their light adds up.

        Parameters
        ----------
        windows
            (low, high) of each channel: black, and the channel's full colour. Default: by ``percentiles`` of the
            coarsest level, which is read; the other way round for MONOCHROME1.
        colors
            Of each channel: a name, ``"#00ff00"``, or (r, g, b). Default: those that the channels are named after, else
            by wavelength where the file states it, else different ones; white for a single channel.
        percentiles
            Of values, for the default windows.

        Returns
        -------
        xarray.DataArray
            ``(..., y, x, c)`` uint8, ``c`` is r, g, b.

        Raises
        ------
        OptionError
            The image is in colour already, or windows and colours are not one a channel.
        """
        from microtome.ops.colouring import pseudocolour

        return pseudocolour(self._image, windows, colors, percentiles)

    def deconvolve(self, stains: str | Sequence[Sequence[float]] | StainFit = "H&E") -> xr.DataArray:
        """Tell stains apart by their colours (Ruifrok and Johnston 2001), lazily.

        Parameters
        ----------
        stains
            ``"H&E"``, ``"H-DAB"``, ``"HED"``, one to three vectors of optical density in red, green and blue, or what
            `SlideAccessor.fit_stain` found.

        Returns
        -------
        xarray.DataArray
            ``(..., y, x, c)`` float32: the concentration of each stain, in units of optical density.

        Raises
        ------
        OptionError
            The image is not RGB of 8 bit, or stains cannot be told apart.
        """
        from microtome.ops.staining import deconvolve_image

        return deconvolve_image(self._image, stains)

    def normalize(self, source: StainFit | Reinhard, target: StainFit | Reinhard | None = None) -> xr.DataArray:
        """Give this image the stain colours of another slide, lazily.

        Parameters
        ----------
        source
            What the stains of this slide look like: `SlideAccessor.fit_stain`.
        target
            Those of the slide to look like. Default: a published reference.

        Returns
        -------
        xarray.DataArray
            RGB uint8 of the same shape.

        Raises
        ------
        OptionError
            The image is not RGB of 8 bit, or one fit is of stains and the other of colours.
        """
        from microtome.ops.staining import normalize_image

        return normalize_image(self._image, source, target)
