"""Stains told apart by their colours: Ruifrok and Johnston's colour deconvolution.

Ruifrok AC, Johnston DA. Quantification of histochemical staining by color deconvolution. Anal Quant Cytol Histol
2001;23:291-299.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops.stain.density import BAND, check_rgb, combine, density_planes, rgb_of_density

__all__ = ["STAINS", "Deconvolution", "compose", "deconvolve", "stain_vectors"]

Vector = tuple[float, float, float]
Vectors = tuple[Vector, ...]

_HEMATOXYLIN = (0.65, 0.70, 0.29)
_EOSIN = (0.07, 0.99, 0.11)
_DAB = (0.27, 0.57, 0.78)

#: Optical densities of stains in red, green and blue, by Ruifrok and Johnston.
STAINS: dict[str, Vectors] = {
    "H&E": (_HEMATOXYLIN, _EOSIN),
    "H-DAB": (_HEMATOXYLIN, _DAB),
    "HED": (_HEMATOXYLIN, _EOSIN, _DAB),
}

_LEAST_DETERMINANT = 0.02  # of unit vectors: the sine of 1.1 degrees between two


def stain_vectors(stains: str | Sequence[Sequence[float]] | npt.NDArray[Any]) -> Vectors:
    """Return stain vectors of unit length.

    Parameters
    ----------
    stains
        A name of `STAINS`, or one to three vectors of optical density in red, green and blue.

    Raises
    ------
    OptionError
        There is no such name, or these vectors cannot be told apart.
    """
    if isinstance(stains, str):
        if stains not in STAINS:
            raise OptionError(f"there are no stain vectors {stains!r}; there are {', '.join(STAINS)}")
        stains = STAINS[stains]
    try:
        vectors = np.asarray(stains, np.float64)
    except (TypeError, ValueError):
        vectors = np.empty(0)
    if vectors.ndim != 2 or not 1 <= len(vectors) <= 3 or vectors.shape[1] != 3 or not np.isfinite(vectors).all():
        raise OptionError(
            "stain vectors are one to three rows of three numbers, the optical densities of a stain in red, green "
            f"and blue; not {stains!r}"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (lengths < 1e-6).any():
        raise OptionError(f"a stain vector of no length says nothing of a stain: {vectors.tolist()}")
    vectors = vectors / lengths
    if np.sqrt(np.linalg.det(vectors @ vectors.T).clip(0)) < _LEAST_DETERMINANT:
        raise OptionError(f"stains of one colour, or mixed of others, cannot be told apart: {vectors.tolist()}")
    return tuple((float(r), float(g), float(b)) for r, g, b in vectors)


@dataclass(frozen=True)
class Deconvolution:
    """From RGB to the concentrations of stains: a callable, whose ``stains`` are what `stain_vectors` takes.

    Concentrations are least squares fits of stain vectors of unit length to the optical density of a pixel. For two
    stains that is the same as Ruifrok's third vector at right angles to both, which takes what these do not explain.
    """

    stains: Vectors

    def __post_init__(self) -> None:
        object.__setattr__(self, "stains", stain_vectors(self.stains))

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return concentrations, (..., stains) float32, of RGB (..., 3) uint8. White has none of any stain.

        They are in units of optical density, and not clipped: a pixel of another colour than the stains has less than
        nothing of one of them.

        Raises
        ------
        OptionError
            The pixels are not RGB of 8 bit.
        """
        check_rgb(rgb)
        flat = rgb.reshape(-1, 3)
        result = np.empty((len(flat), len(self.stains)), np.float32)
        weights = unmixing(self.stains).astype(np.float32)
        for begin in range(0, len(flat), BAND):
            for stain, plane in enumerate(combine(density_planes(flat[begin : begin + BAND]), weights)):
                result[begin : begin + BAND, stain] = plane
        return result.reshape(*rgb.shape[:-1], len(self.stains))


def deconvolve(
    rgb: npt.NDArray[np.uint8], stains: str | Sequence[Sequence[float]] | npt.NDArray[Any] = "H&E"
) -> npt.NDArray[np.float32]:
    """Return concentrations of stains, (..., stains) float32, of RGB (..., 3) uint8; see `Deconvolution`."""
    return Deconvolution(stain_vectors(stains))(rgb)


def compose(
    concentrations: npt.NDArray[np.floating[Any]],
    stains: str | Sequence[Sequence[float]] | npt.NDArray[Any] = "H&E",
) -> npt.NDArray[np.uint8]:
    """Return RGB, (..., 3) uint8, of concentrations (..., stains): what `deconvolve` takes apart.

    Raises
    ------
    OptionError
        There are more or fewer concentrations than stains.
    """
    vectors = stain_vectors(stains)
    if concentrations.ndim == 0 or concentrations.shape[-1] != len(vectors):
        raise OptionError(f"concentrations of {len(vectors)} stains are needed; their shape is {concentrations.shape}")
    density = np.zeros((*concentrations.shape[:-1], 3), np.float32)
    for stain, vector in enumerate(vectors):
        density += concentrations[..., stain, None].astype(np.float32, copy=False) * np.array(vector, np.float32)
    return rgb_of_density(density)


def unmixing(stains: Vectors) -> npt.NDArray[np.float64]:
    """Return the matrix (3, stains) from optical densities to concentrations."""
    return np.linalg.pinv(np.array(stains))
