"""A picture that looks like stained tissue on glass, from a seed and nothing else.

Islands of tissue come from smooth noise, their colour from two stains by the Beer-Lambert law, and nuclei are discs,
at most one in each cell of a grid. Everything repeats after the size of the picture, so that a picture laid side by
side with itself shows no seam.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["is_background", "label_picture", "overview_picture", "tissue"]

Floats = npt.NDArray[np.float32]

# Optical density of the two stains in red, green and blue, and the light that passes through bare glass.
EOSIN = np.array([0.08, 0.62, 0.30], np.float32)
HEMATOXYLIN = np.array([0.85, 0.95, 0.42], np.float32)
GLASS = np.array([243, 242, 245], np.float32)

CELL = 16  # pixels: 8 µm at the usual half a micrometre a pixel, about one nucleus
STRIP = 16 * CELL  # rows made at a time: bounds the memory of a large picture


class _Noise:
    """Value noise: random numbers on a lattice that wraps around, with smooth steps between them."""

    def __init__(self, rng: np.random.Generator, rows: int, columns: int, step: float) -> None:
        ny, nx = max(round(rows / step), 2), max(round(columns / step), 2)
        lattice = rng.random((ny, nx), np.float32)
        # Along x once and for all; along y strip by strip.
        left, right, weight = self._steps(np.arange(columns), columns, nx)
        self._lines = lattice[:, left] * (1 - weight) + lattice[:, right] * weight
        self._rows, self._ny = rows, ny

    @staticmethod
    def _steps(at: npt.NDArray[np.intp], size: int, knots: int) -> tuple[npt.NDArray[np.intp], Any, Floats]:
        place = at * (knots / size)
        low = np.floor(place).astype(np.intp)
        t = (place - low).astype(np.float32)
        return low % knots, (low + 1) % knots, t * t * (3 - 2 * t)

    def strip(self, y0: int, y1: int) -> Floats:
        """Rows ``y0`` to ``y1``, values in [0, 1]."""
        top, bottom, weight = self._steps(np.arange(y0, y1), self._rows, self._ny)
        out: Floats = self._lines[top]
        out += (self._lines[bottom] - out) * weight[:, None]
        return out


def _ramp(x: Floats, low: float, high: float) -> Floats:
    """0 below ``low``, 1 above ``high``, straight between."""
    out: Floats = np.clip((x - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return out


class _Nuclei:
    """Discs, at most one in a cell of the grid and wholly inside it, so that a strip needs no neighbours.

    Each row of cells is turned around the picture by its own distance, or the grid would show.
    """

    def __init__(self, rng: np.random.Generator, rows: int, columns: int) -> None:
        self._shape = (-(-rows // CELL), -(-columns // CELL))
        self._columns = columns
        self._radius = rng.uniform(2.5, 5.0, self._shape).astype(np.float32)
        self._radius[rng.random(self._shape) < 0.3] = 0
        self._turn = rng.integers(0, columns, self._shape[0])
        # A cell cut by the border would cut its nucleus, which shows where pictures meet.
        self._radius[rows // CELL :] = 0
        self._radius[:, columns // CELL :] = 0
        slack = CELL / 2 - self._radius - 0.5
        self._y = (CELL / 2 + slack * rng.uniform(-1, 1, self._shape)).astype(np.float32)
        self._x = (CELL / 2 + slack * rng.uniform(-1, 1, self._shape)).astype(np.float32)

    def strip(self, y0: int, y1: int, softness: float) -> Floats:
        """Rows ``y0`` to ``y1``, ``y0`` a multiple of CELL; 1 inside a nucleus, 0 outside."""
        cells = slice(y0 // CELL, -(-y1 // CELL))
        at = np.arange(CELL, dtype=np.float32) + 0.5
        radius = self._radius[cells, None, :, None]
        dy = at[None, :, None, None] - self._y[cells, None, :, None]
        dx = at[None, None, None, :] - self._x[cells, None, :, None]
        inside = np.clip((radius - np.sqrt(dy * dy + dx * dx)) * np.float32(1 / softness), 0, 1)
        inside *= radius > 0
        lines = inside.reshape(-1, CELL, inside.shape[2] * CELL)[..., : self._columns]
        turned = [np.roll(line, turn, axis=1) for line, turn in zip(lines, self._turn[cells].tolist(), strict=True)]
        out: Floats = np.concatenate(turned)[: y1 - y0]
        return out


def tissue(
    rows: int, columns: int, *, seed: int, channels: int, top: float, dtype: str, path: int, plane: int, defocus: float
) -> npt.NDArray[Any]:
    """Draw one optical path of one focal plane.

    Parameters
    ----------
    rows, columns
        Size in pixels; the picture repeats after it.
    seed
        The islands and the nuclei depend on it alone: the same place shows the same tissue in every path and plane.
    channels
        3 for a bright field with two stains, 1 for fluorescence: nuclei in the first path, fibres in the others.
    top
        Value of full white, that is ``2 ** bits_stored - 1`` for unsigned samples.
    dtype
        Of the result.
    path, plane
        Which of the slide's optical paths and focal planes.
    defocus
        Distance from the plane in focus, in planes; blurs the nuclei.

    Returns
    -------
    ndarray of shape (rows, columns, channels)
    """
    rng = np.random.default_rng(seed)
    small = max(min(rows, columns), 1)
    islands = [_Noise(rng, rows, columns, small / n) for n in (4, 9, 24)]
    nuclei = _Nuclei(rng, rows, columns)
    crowd, holes, frills = (_Noise(rng, rows, columns, n) for n in (150, 64, 21))
    own = np.random.default_rng([seed, path, plane, 1])
    fibres = [_Noise(np.random.default_rng([seed, path, n]), rows, columns, n) for n in (90, 23, 7)]

    def density(y0: int, y1: int) -> Floats:
        parts = [n.strip(y0, y1) * np.float32(w) for n, w in zip(islands, (0.6, 0.28, 0.12), strict=True)]
        total: Floats = parts[0] + parts[1] + parts[2]
        return total

    # Glass is about the emptier half, whatever the random numbers were.
    probe = np.concatenate([density(y, y + 1) for y in range(0, rows, max(rows // 64, 1))])
    level = float(np.quantile(probe, 0.55))

    out = np.empty((rows, columns, channels), dtype)
    for y0 in range(0, rows, STRIP):
        y1 = min(y0 + STRIP, rows)
        mask = _ramp(density(y0, y1), level, level + 0.02)
        mask *= 1 - _ramp(0.7 * holes.strip(y0, y1) + 0.3 * frills.strip(y0, y1), 0.7, 0.74)
        dots = nuclei.strip(y0, y1, 1.5 + 2 * defocus) * mask
        dots *= _ramp(crowd.strip(y0, y1), 0.3, 0.6) * np.float32(0.75) + np.float32(0.25)
        weave = 0.5 * fibres[0].strip(y0, y1) + 0.3 * fibres[1].strip(y0, y1) + 0.2 * fibres[2].strip(y0, y1)
        if channels == 3:
            pink, purple = mask * (0.2 + 0.75 * weave), dots * (0.7 + 0.4 * weave) + 0.12 * mask * weave
            # Another path shows the same tissue stained more faintly.
            faint = np.float32(1 / (1 + 0.5 * path))
            light: npt.NDArray[Any] = np.exp(-faint * (pink[..., None] * EOSIN + purple[..., None] * HEMATOXYLIN)) * (
                GLASS / 255
            )
        else:
            signal = dots if path == 0 else mask * _ramp(weave, 0.35, 0.8)
            light = (0.03 + 0.75 * signal)[..., None]
        grain = own.integers(-2, 3, light.shape[:2], np.int8)[..., None]  # of 255: the noise of the sensor
        values = light * np.float32(top) + grain * np.float32(top / 255)
        out[y0:y1] = np.clip(np.rint(values), 0, top)
    return out


def is_background(pixels: npt.NDArray[Any], top: float) -> bool:
    """Whether a tile (rows, columns, channels) shows nothing but glass, or the dark around fluorescence."""
    if pixels.shape[2] == 3:
        marked = pixels.min(axis=2) < 0.8 * top
    else:
        marked = pixels[..., 0] > 0.12 * top
    return float(marked.mean()) < 0.001


def label_picture(seed: int) -> npt.NDArray[np.uint8]:
    """Draw a paper label (400, 400, 3): a coloured band, a square code and lines of blocks, but no real letters."""
    rng = np.random.default_rng([seed, 7])
    out = np.full((400, 400, 3), 250, np.uint8)
    out[:60] = (70, 130, 180)
    out[90:250, 30:190] = (rng.random((20, 20)) < 0.5).repeat(8, 0).repeat(8, 1)[..., None] * np.uint8(230)
    for y in (100, 135, 170, 205, 280, 315, 350):
        x = 215 if y < 260 else 30
        while x < 350:
            width = int(rng.integers(6, 14))
            if rng.random() < 0.85:  # else a gap between words
                out[y : y + 18, x : x + width] = 40
                out[y + 5 : y + 12, x + 3 : x + width - 2] = 250
            x += width + 4
    return out


def overview_picture(label: npt.NDArray[np.uint8], picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Draw the whole glass (400, 1100, 3): the label at the left, ``picture`` (rows, columns, 3) at the right."""
    out = np.full((400, 1100, 3), 238, np.uint8)
    out[:, :400] = label
    shrink = max(picture.shape[0] / 360, picture.shape[1] / 640)
    rows = (np.arange(max(int(picture.shape[0] / shrink), 1)) * shrink).astype(np.intp)
    columns = (np.arange(max(int(picture.shape[1] / shrink), 1)) * shrink).astype(np.intp)
    out[20 : 20 + len(rows), 430 : 430 + len(columns)] = picture[rows][:, columns]
    return out
