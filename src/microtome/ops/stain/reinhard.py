"""Colours of a slide as mean and spread in a space of perception: Reinhard's method.

Reinhard E, Ashikhmin M, Gooch B, Shirley P. Color transfer between images. IEEE Comput Graph Appl 2001;21(5):34-41.
The space is the paper's l-alpha-beta, here in natural logarithms of cone responses to RGB from 0 to 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops.stain.density import check_rgb, combine
from microtome.ops.stain.fits import LEAST_PIXELS

__all__ = ["Reinhard"]

# RGB to cone responses, and these to l-alpha-beta: equations 4 and 6 of the paper.
RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])

_GLASS = 32  # a pixel whose least value is less than this below 255 is not wholly tissue


@dataclass(frozen=True)
class Reinhard:
    """Mean and standard deviation of l, alpha and beta over the tissue of a slide."""

    means: tuple[float, float, float]
    deviations: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.means) != 3 or not np.isfinite(self.means).all():
            raise OptionError(f"the means of l, alpha and beta are three finite numbers, not {self.means}")
        if len(self.deviations) != 3 or not all(np.isfinite(d) and d > 0 for d in self.deviations):
            raise OptionError(f"the deviations of l, alpha and beta are three positive numbers, not {self.deviations}")

    @classmethod
    def fit(cls, pixels: npt.NDArray[np.uint8]) -> Reinhard:
        """Measure tissue.

        Parameters
        ----------
        pixels
            (..., 3) uint8, of tissue. Pixels that are black, or of no value below 224, do not count.

        Raises
        ------
        OptionError
            Fewer than 100 pixels count, or they have one colour, or one but for its brightness.
        """
        check_rgb(pixels)
        flat = pixels.reshape(-1, 3)
        tissue = flat[(_least(flat) <= 255 - _GLASS) & ((flat[:, 0] | flat[:, 1] | flat[:, 2]) != 0)]
        if len(tissue) < LEAST_PIXELS:
            raise OptionError(
                f"not enough tissue pixels: {len(tissue):,} of {len(flat):,} are neither white nor black, and at least "
                f"{LEAST_PIXELS} are needed; give pixels of stained tissue"
            )
        lab = np.log(np.maximum(tissue, 1) @ RGB_TO_LMS.T) @ LMS_TO_LAB.T
        means, deviations = lab.mean(0), lab.std(0)
        if (deviations < 1e-4).any():
            raise OptionError("these pixels have one hue, so there is no spread of colours to match: are they tissue?")
        return cls(
            (float(means[0]), float(means[1]), float(means[2])),
            (float(deviations[0]), float(deviations[1]), float(deviations[2])),
        )


def transfer(band: npt.NDArray[np.uint8], source: Reinhard, target: Reinhard) -> list[npt.NDArray[np.float32]]:
    """Return pixels (n, 3) with the mean and spread of ``target``: planes of 0 to 255, not rounded.

    The change fades out towards white, over the last 32 values of a pixel's least, so that glass remains as it is.
    """
    scales = np.array(target.deviations) / np.array(source.deviations)
    back = np.linalg.inv(LMS_TO_LAB)
    turn = back @ np.diag(scales) @ LMS_TO_LAB
    shift = back @ (np.array(target.means) - scales * np.array(source.means))
    planes = [np.maximum(band[:, c], 1).astype(np.float32) for c in range(3)]
    cones = combine(planes, RGB_TO_LMS.T.astype(np.float32))
    for cone in cones:
        np.log(cone, out=cone)
    cones = combine(cones, turn.T.astype(np.float32))
    for cone, by in zip(cones, shift, strict=True):
        cone += np.float32(by)
        np.minimum(cone, 20, out=cone)  # far beyond white, and short of infinity
        np.exp(cone, out=cone)
    changed = combine(cones, np.linalg.inv(RGB_TO_LMS).T.astype(np.float32))
    weight = np.minimum((255 - _least(band)).astype(np.float32) / np.float32(_GLASS), 1)
    for colour, plane in enumerate(changed):
        np.clip(plane, 0, 255, out=plane)
        plane -= planes[colour]
        plane *= weight
        plane += planes[colour]
    return changed


def _least(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.minimum(np.minimum(pixels[:, 0], pixels[:, 1]), pixels[:, 2])
