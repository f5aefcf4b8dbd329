"""The colour of glass, and how much light pixels absorb compared with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.ops.opencv import luminance
from microtome.ops.tissue.sampling import sample
from microtome.ops.tissue.shapes import local_sum

__all__ = ["UNIT", "Density", "absorbance", "brightest", "density_tables", "glass_colour", "smooth", "spread_and_sum"]

Floats = npt.NDArray[np.float32]
Density = npt.NDArray[np.int16]

UNIT = 4096
"""Densities are whole numbers of 1 / 4096: the greatest there is, 1.5, is 6072, and sums are exact."""

# Added to intensities before the logarithm: a black pixel absorbs much, but not infinitely more than its neighbour.
_OFFSET = 8.0
_BRIGHT = 150  # glass is brighter than this in any slide that was lit
_USUAL = 235.0  # glass, where a picture shows none


def glass_colour(pixels: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_]) -> Floats:
    """Return the colour of bare glass: the brightest frequent, nearly grey colour.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8, RGB.
    valid
        (h, w) bool: which pixels to ask. Of many, a sample.

    Returns
    -------
    (3,) float32. Where less than half a percent of the pixels are bright and grey, (235, 235, 235): a picture that is
    tissue from edge to edge says nothing of glass.
    """
    rgb = sample(pixels, valid)
    spread = brightest(rgb.T) - (255 - brightest(255 - rgb.T))
    grey = luminance(rgb)
    neutral = (spread <= 20) & (grey >= _BRIGHT)
    usual = np.full(3, _USUAL, np.float32)
    if neutral.sum() <= 0.005 * len(rgb):
        return usual
    counts = np.bincount(grey[neutral], minlength=256).astype(float)
    counts[255] = min(counts[255], counts[:255].max() or 1)  # overexposed pixels, and labels made of paper
    smoothed = np.convolve(counts, np.ones(5), "same")
    # Pale stroma and cytoplasm are nearly grey as well, and darker: hence the brightest peak, not the highest.
    peaks = np.flatnonzero(
        (smoothed >= np.roll(smoothed, 1)) & (smoothed >= np.roll(smoothed, -1)) & (smoothed > smoothed.max() / 4)
    )
    around = neutral & (np.abs(grey.astype(np.int16) - int(peaks[-1])) <= 3)
    colour: Floats = np.median(rgb[around], axis=0).astype(np.float32)
    return colour


def smooth(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Return sums over 3 by 3 pixels, (3, h, w): nine times the picture without noise."""
    return np.stack([local_sum(plane, 3, np.uint16) for plane in planes])


def absorbance(sums: npt.NDArray[np.uint16], glass: Floats) -> Density:
    """Return the optical density of each channel against glass, ``log10((glass + 8) / (I + 8))``.

    Beer-Lambert: densities of stains add up. Negative where a pixel is brighter than glass.

    Parameters
    ----------
    sums
        (3, h, w) uint16: of nine pixels, see `smooth`.
    glass
        (3,) float32.

    Returns
    -------
    (3, h, w) int16, in units of 1 / 4096.
    """
    # Sums are within the tables: "clip" only spares the check.
    return np.stack([np.take(t, plane, mode="clip") for t, plane in zip(density_tables(glass), sums, strict=True)])


def density_tables(glass: Floats) -> Density:
    """Return `absorbance` of each sum of nine pixels there is: (3, 2296) int16."""
    intensity = np.arange(9 * 255 + 1) / 9.0
    tables: Density = np.rint(UNIT * np.log10((glass[:, None] + _OFFSET) / (intensity + _OFFSET))).astype(np.int16)
    return tables


def brightest(planes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the greatest of the three channels, which come first: as ``max(0)``."""
    most: npt.NDArray[Any] = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    return most


def spread_and_sum(density: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the difference between the greatest and the least channel, how coloured a pixel is, and the sum."""
    red, green, blue = density
    least = np.minimum(np.minimum(red, green), blue)
    return brightest(density) - least, red + green + blue
