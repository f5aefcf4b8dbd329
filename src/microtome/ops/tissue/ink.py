"""What absorbs light and is no tissue: opaque borders, marker ink, coloured noise, marks that software drew."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from microtome.ops.tissue.density import UNIT, Density, brightest
from microtome.ops.tissue.shapes import grow, local_sum, open_, spread_within

__all__ = ["artefacts"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

_RIM = 12  # pixels that the rim of a stroke is followed
_OPAQUE = 0.16  # of the brightness of glass, in the brightest channel: nothing shines through
_FEW = UNIT * 0.04  # density that thin ink has at least
_MUCH = UNIT * 0.4


def _times(factor: float, density: Density) -> Floats:
    return np.float32(factor) * density


def _strong_and_weak(density: Density) -> tuple[Bools, Bools, Bools]:
    """Blue to green ink where it is beyond doubt; what may be its thin edge; red ink.

    Haematoxylin, eosin and their mixtures absorb green at least as much as red; green, teal and blue inks absorb red
    most, and pass green or blue almost freely. Red ink absorbs green and blue alike, and no red.
    """
    red, green, blue = density
    passes_green = (green < _times(0.75, red)) & (green < _times(1.3, np.maximum(blue, int(0.05 * UNIT))))
    passes_blue = (green < _times(1.02, red)) & (blue < _times(0.45, red))
    cool = passes_green | passes_blue | (green < _times(0.5, red))
    strong = cool & (red > _MUCH)
    weak = cool & (red > _FEW)
    warm = (red < _times(0.2, green)) & (blue > _times(0.72, green)) & (green > _MUCH)
    return strong, weak, warm


def artefacts(
    planes: npt.NDArray[np.uint8],
    sums: npt.NDArray[np.uint16],
    density: Density,
    spread: Density,
    total: Density,
    glass: Floats,
    factor: int,
) -> Bools:
    """Return which pixels are opaque, inked, or of colours that no lit glass shows.

    Parameters
    ----------
    planes
        (3, h, w) uint8, RGB.
    sums
        (3, h, w) uint16: nine times the same without noise.
    density
        (3, h, w) int16: absorbance of ``sums``, in units of 1 / 4096.
    spread, total
        (h, w) int16: range and sum of the channels of ``density``.
    glass
        (3,) float32.
    factor
        How much coarser than the picture these pixels are: strokes are as much narrower.

    Notes
    -----
    A counterstain may have the colour of ink: methyl green, Giemsa, toluidine blue. Where little else is stained, the
    colour is taken for a stain's. A slide with much blue ink and hardly any tissue is told from that by the shape of
    the rest: tissue forms areas, nuclei do not.
    """
    opaque = brightest(sums) < 9 * _OPAQUE * glass.max()
    clipped = (brightest(255 - planes) > 251) & (brightest(planes) > 90)
    strong, weak, warm = _strong_and_weak(density)
    black = open_(
        (total > 3 * 0.3 * UNIT) & (spread < _times(0.04, total) + np.float32(0.02 * UNIT)), max(1.5 / factor, 1.0)
    )
    stained = (spread > 0.06 * UNIT) & ~opaque & ~black
    speck = max(2.0 / factor, 1.0)
    other = open_(stained & ~weak, speck)
    if strong.sum() > 0.3 * stained.sum() and other.sum() < 0.06 * stained.sum():
        strong = np.zeros_like(strong)
        clipped = np.zeros_like(clipped)
    # Strokes fade out towards their rims: their colour is followed as long as it is ink's.
    strong = spread_within(strong, weak | strong, _RIM)
    red = open_(warm, speck)
    if red.any():
        rim = (density[0] < _times(0.25, density[1])) & (density[2] > _times(0.6, density[1]))
        red |= grow(red, 2.0) & rim
    found: Bools = opaque | clipped | strong | red | black
    # What lies among artefacts is one: noise in a black band, gaps in hatching.
    if found.any():
        found |= local_sum(found, 9, np.uint16) > 0.4 * 81
    return found
