"""Stains found by the extreme directions in optical density space: Macenko's method.

Macenko M, Niethammer M, Marron JS, et al. A method for normalizing histology slides for quantitative analysis. IEEE
ISBI 2009:1107-1110.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops.stain.fits import StainFit, fit_of, stained_densities

__all__ = ["Macenko"]

_LEAST_VARIANCE = 1e-6  # of optical density: rounding to 8 bit makes this much in dark pixels


@dataclass(frozen=True)
class Macenko(StainFit):
    """Stains of a slide by Macenko's method."""

    @classmethod
    def fit(
        cls, pixels: npt.NDArray[np.uint8], *, angular_percentile: float = 1.0, density_threshold: float = 0.15
    ) -> Macenko:
        """Find the stains of tissue.

        The two leading eigenvectors of the covariance of optical densities span a plane. In it, the directions of
        nearly all pixels lie between those of the pure stains.

        Parameters
        ----------
        pixels
            (..., 3) uint8, of tissue; a low magnification will do.
        angular_percentile
            This many percent of directions lie beyond each stain: the paper's alpha.
        density_threshold
            Pixels of lower mean optical density are glass: the paper's beta.

        Raises
        ------
        OptionError
            There are fewer than 100 pixels with stain, or they have one colour.
        """
        if not 0 <= angular_percentile < 50:
            raise OptionError(f"angular_percentile is from 0 to below 50, not {angular_percentile}")
        densities = stained_densities(pixels, density_threshold)
        values, vectors = np.linalg.eigh(np.cov(densities, rowvar=False, dtype=np.float64))
        if values[1] < _LEAST_VARIANCE:
            raise OptionError("these pixels have one or two colours, where the two stains and mixtures are needed")
        plane = vectors[:, 1:]
        # Angles are taken from the mean: no pixel of tissue is opposite to it, where they would wrap around.
        along = plane @ (plane.T @ densities.mean(0, dtype=np.float64))
        along /= np.linalg.norm(along)
        normal = np.cross(plane[:, 0], plane[:, 1])
        across = np.cross(normal, along)
        basis = np.stack([along, across])
        projected = densities @ basis.T.astype(np.float32)
        angles = np.arctan2(projected[:, 1], projected[:, 0])
        extremes = np.percentile(angles, (angular_percentile, 100 - angular_percentile))
        return fit_of(cls, np.stack([np.cos(extremes), np.sin(extremes)], 1) @ basis, densities)
