"""Slides made to look as if stained and scanned alike: from the colours of one fit to those of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops.stain.deconvolution import unmixing
from microtome.ops.stain.density import BAND, check_rgb, combine, density_planes
from microtome.ops.stain.fits import StainFit
from microtome.ops.stain.reinhard import Reinhard, transfer

__all__ = ["REINHARD_TARGET", "STAIN_TARGET", "Normalization", "normalize"]

#: Hematoxylin and eosin as in the reference that came with Macenko's method (M. Veta's implementation, which others
#: took over: natural logarithms of light over 240 there, decimal ones here).
STAIN_TARGET = StainFit(
    ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)),
    (1.9705 / float(np.log(10)), 1.0308 / float(np.log(10))),
)

#: A region of slide TCGA-A2-A3XS-DX1, as HistomicsTK states it (Amgad M, et al. Structured crowdsourcing enables
#: convolutional segmentation of histology images. Bioinformatics 2019;35:3461-3467).
REINHARD_TARGET = Reinhard((8.74108109, -0.12440419, 0.0444982), (0.6135447, 0.10989545, 0.0286032))


@dataclass(frozen=True)
class Normalization:
    """From the colours of one slide to those of another, or of a reference: a callable from RGB to RGB.

    Parameters
    ----------
    source
        Fit of the slide: `Macenko`, `Vahadane` or `Reinhard`.
    target
        Fit of the slide to look like: another of these; None for a reference, `STAIN_TARGET` or `REINHARD_TARGET`.
        Stains of Macenko's and Vahadane's methods go together.

    Raises
    ------
    OptionError
        One is of stains and the other of colours as a whole.
    """

    source: StainFit | Reinhard
    target: StainFit | Reinhard | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, StainFit | Reinhard):
            raise OptionError(f"normalization starts from a fit of the slide, not from {type(self.source).__name__}")
        if self.target is None:
            object.__setattr__(self, "target", STAIN_TARGET if isinstance(self.source, StainFit) else REINHARD_TARGET)
        if isinstance(self.source, StainFit) != isinstance(self.target, StainFit) or not isinstance(
            self.target, StainFit | Reinhard
        ):
            raise OptionError(
                f"there is no way from {type(self.source).__name__} to {type(self.target).__name__}: fit both slides "
                "by stains (Macenko, Vahadane), or both by Reinhard"
            )

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return normalized RGB of RGB, both (..., 3) uint8. White stays white.

        With stains, concentrations are found under the source's stains, brought to the target's maxima and given
        its colours; what two stains do not explain of a pixel is dropped. With Reinhard, glass is left as it is.

        Raises
        ------
        OptionError
            The pixels are not RGB of 8 bit.
        """
        check_rgb(rgb)
        flat = rgb.reshape(-1, 3)
        result = np.empty(flat.shape, np.uint8)
        source, target = self.source, self.target
        exponents = np.empty(0, np.float32)
        if isinstance(source, StainFit):
            assert isinstance(target, StainFit)
            exponents = _exponents(source, target)
        for begin in range(0, len(flat), BAND):
            band = flat[begin : begin + BAND]
            if isinstance(source, Reinhard):
                assert isinstance(target, Reinhard)
                planes = transfer(band, source, target)
            else:
                planes = combine(density_planes(band), exponents)
                for plane in planes:
                    np.minimum(plane, 0, out=plane)
                    np.exp(plane, out=plane)
                    plane *= 255
            for colour, plane in enumerate(planes):
                plane += 0.5
                result[begin : begin + BAND, colour] = plane  # conversion to integers rounds down
        return result.reshape(rgb.shape)


def normalize(
    rgb: npt.NDArray[np.uint8], source: StainFit | Reinhard, target: StainFit | Reinhard | None = None
) -> npt.NDArray[np.uint8]:
    """Return RGB (..., 3) uint8 normalized from one fit to another; see `Normalization`."""
    return Normalization(source, target)(rgb)


def _exponents(source: StainFit, target: StainFit) -> npt.NDArray[np.float32]:
    """Return the matrix (3, 3) from optical densities before to natural logarithms of light after."""
    scales = np.array(target.maxima) / np.array(source.maxima)
    matrix: npt.NDArray[np.float64] = -np.log(10) * unmixing(source.stains) @ np.diag(scales) @ np.array(target.stains)
    return matrix.astype(np.float32)
