"""Stains found by sparse non-negative matrix factorization: Vahadane's method.

Vahadane A, Peng T, Sethi A, et al. Structure-preserving color normalization and sparse stain separation for
histological images. IEEE Trans Med Imaging 2016;35:1962-1971.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops.stain.deconvolution import STAINS
from microtome.ops.stain.fits import StainFit, fit_of, stained_densities

__all__ = ["Vahadane"]

_ROUNDS = 500
_PIXELS = 20_000  # more change the third digit of the result


@dataclass(frozen=True)
class Vahadane(StainFit):
    """Stains of a slide by Vahadane's method."""

    @classmethod
    def fit(cls, pixels: npt.NDArray[np.uint8], *, sparsity: float = 0.1, density_threshold: float = 0.15) -> Vahadane:
        """Find the stains of tissue.

        Optical densities V of pixels are taken apart into ``V = H W``, concentrations H and two stain vectors W, both
        without negative values, so that ``|V - H W|² / 2 + sparsity |H|₁`` is least: most pixels are mostly of one
        stain. H and W are improved in turn, beginning with Ruifrok's vectors; for two stains the best H is known in
        closed form. Nothing is random.

        Parameters
        ----------
        pixels
            (..., 3) uint8, of tissue; a low magnification will do. Of more than 20,000 with stain, every n-th counts.
        sparsity
            The paper's lambda, whose densities are natural logarithms.
        density_threshold
            Pixels of lower mean optical density are glass.

        Raises
        ------
        OptionError
            There are fewer than 100 pixels with stain, or they have one colour.
        """
        if not sparsity >= 0:
            raise OptionError(f"sparsity is 0 or more, not {sparsity}")
        densities = stained_densities(pixels, density_threshold)
        sample = densities[:: -(-len(densities) // _PIXELS)].astype(np.float64)
        return fit_of(cls, _factorize(sample, sparsity / np.log(10)), densities)


def _factorize(densities: npt.NDArray[np.float64], sparsity: float) -> npt.NDArray[np.float64]:
    """Return stain vectors (2, 3)."""
    stains = np.array(STAINS["H&E"])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    for _ in range(_ROUNDS):
        before = stains.copy()
        amounts = _amounts(densities, stains, sparsity)
        among, along = amounts.T @ amounts, amounts.T @ densities
        for j in (0, 1):  # coordinate descent, as for dictionaries (Mairal et al., JMLR 2010;11:19-60, algorithm 2)
            if among[j, j] == 0:
                raise OptionError("one of the two stains is nowhere in these pixels; pixels with both are needed")
            stain = np.maximum(stains[j] + (along[j] - among[j] @ stains) / among[j, j], 0)
            stains[j] = stain / max(float(np.linalg.norm(stain)), 1e-12)
        if np.abs(stains - before).max() < 1e-6:
            break
    return stains


def _amounts(
    densities: npt.NDArray[np.float64], stains: npt.NDArray[np.float64], sparsity: float
) -> npt.NDArray[np.float64]:
    """Return the concentrations (n, 2) without negative values that are best for stain vectors of unit length.

    Where the best of all has a negative one, the best without lies on one of the axes.
    """
    shared = float(stains[0] @ stains[1])
    pulls = densities @ stains.T - sparsity
    both = (pulls - shared * pulls[:, ::-1]) / max(1 - shared * shared, 1e-12)
    single = np.maximum(pulls, 0)
    single[np.arange(len(single)), np.argmin(pulls, 1)] = 0
    return np.where((both >= 0).all(1, keepdims=True), both, single)
