"""What two stains of a slide look like, however that was found, and the pixels that tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops.stain.deconvolution import Vector, stain_vectors, unmixing
from microtome.ops.stain.density import check_rgb, density_planes

__all__ = ["StainFit", "stained_densities"]

LEAST_PIXELS = 100

_Fit = TypeVar("_Fit", bound="StainFit")


@dataclass(frozen=True)
class StainFit:
    """The colours of hematoxylin and eosin on a slide, and how much there is of each.

    Attributes
    ----------
    stains
        Optical densities in red, green and blue of unit length: hematoxylin, eosin.
    maxima
        The 99th percentile of the concentration of each among stained pixels.
    """

    stains: tuple[Vector, Vector]
    maxima: tuple[float, float]

    def __post_init__(self) -> None:
        first, second = stain_vectors(self.stains)
        object.__setattr__(self, "stains", (first, second))
        if len(self.maxima) != 2 or not all(np.isfinite(m) and m > 0 for m in self.maxima):
            raise OptionError(f"the maxima of concentrations are two positive numbers, not {self.maxima}")


def fit_of(kind: type[_Fit], vectors: npt.NDArray[np.float64], densities: npt.NDArray[np.float32]) -> _Fit:
    """Return a fit of two stain vectors in any order, with the concentrations that densities (n, 3) have of them.

    Hematoxylin is the one that takes more of the red.

    Raises
    ------
    OptionError
        The vectors do not differ, or there is nothing of one of the stains.
    """
    if vectors[0, 0] < vectors[1, 0]:
        vectors = vectors[::-1]
    try:
        first, second = stain_vectors(vectors)
    except OptionError:
        raise OptionError(
            "the tissue has one colour only, where two stains are to be told apart: is it H&E, and in focus?"
        ) from None
    concentrations = densities @ unmixing((first, second)).astype(np.float32)
    high = np.percentile(concentrations, 99, axis=0)
    if (high <= 0.01).any():
        raise OptionError("one of the two stains is nowhere in these pixels; pixels with both are needed")
    return kind((first, second), (float(high[0]), float(high[1])))


def stained_densities(pixels: npt.NDArray[np.uint8], threshold: float) -> npt.NDArray[np.float32]:
    """Return the optical densities (n, 3) of pixels that have stain on them.

    Parameters
    ----------
    pixels
        (..., 3) uint8.
    threshold
        A pixel has stain where its mean optical density over red, green and blue is at least that. Darkness
        without colour (0 in all three) has none: it is the border of a scan.

    Raises
    ------
    OptionError
        They are fewer than 100, or pixels are not RGB of 8 bit.
    """
    check_rgb(pixels)
    flat = pixels.reshape(-1, 3)
    planes = density_planes(flat)  # sums along an axis of three are slow
    chosen = planes[0] + planes[1] + planes[2] >= 3 * threshold
    chosen &= (flat[:, 0] | flat[:, 1] | flat[:, 2]) != 0
    stained: npt.NDArray[np.float32] = np.stack([plane[chosen] for plane in planes], 1)
    if len(stained) < LEAST_PIXELS:
        raise OptionError(
            f"not enough tissue pixels: {len(stained):,} of {len(flat):,} have a mean optical density of "
            f"{threshold:g} or more and are not black, and at least {LEAST_PIXELS} are needed; give pixels of stained "
            "tissue, or lower the threshold"
        )
    return stained
