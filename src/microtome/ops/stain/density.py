"""Optical density: what stains add up in (Beer and Lambert).

``D = -log10(I / 255)`` of each of red, green and blue, so white has none, and twice the stain twice as much. A value of
0 counts as 1: the density of 8 bit ends at 2.41.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["density_planes", "optical_density", "rgb_of_density"]

BAND = 1 << 15  # pixels at a time: what is computed of them stays in the cache of the processor

_DENSITY = (-np.log10(np.maximum(np.arange(256), 1) / 255)).astype(np.float32)
_DENSITY[255] = 0.0  # not -0.0


def optical_density(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return optical densities (..., 3) float32 of RGB (..., 3) uint8: 0 for 255, 2.41 for 0 and 1.

    Raises
    ------
    OptionError
        The pixels are not RGB of 8 bit.
    """
    check_rgb(rgb)
    return _DENSITY[rgb]


def rgb_of_density(density: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return pixels uint8 of optical densities, rounded and clipped."""
    light = np.exp(density.astype(np.float32) * np.float32(-np.log(10)))
    pixels: npt.NDArray[np.uint8] = (np.minimum(light * 255, 255) + np.float32(0.5)).astype(np.uint8)
    return pixels


def density_planes(band: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    """Return the optical densities of pixels (n, 3), one array a colour."""
    return [_DENSITY[band[:, colour]] for colour in range(3)]


def check_rgb(rgb: npt.NDArray[Any]) -> None:
    """Raise an error for anything but RGB of 8 bit."""
    if rgb.ndim == 0 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8:
        raise OptionError(
            f"stains are told apart in RGB of 8 bit, (..., 3) uint8; these pixels are {rgb.dtype} {rgb.shape}"
        )


def combine(planes: list[npt.NDArray[np.float32]], weights: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Return ``planes`` times a matrix (3, n): n planes. Not by BLAS, which has threads of its own."""
    product = np.empty_like(planes[0])
    combined = []
    for column in weights.T:
        total = planes[0] * column[0]
        for plane, weight in zip(planes[1:], column[1:], strict=True):
            total += np.multiply(plane, weight, out=product)
        combined.append(total)
    return combined
