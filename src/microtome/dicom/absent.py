"""What a pixel shows that no frame covers (PS3.3 C.8.12.4.1.7, Recommended Absent Pixel CIELab Value)."""

from __future__ import annotations

import numpy as np

from microtome.dicom.pyramid import Level

__all__ = ["absent_value"]


def absent_value(level: Level) -> tuple[int, ...]:
    """Return the colour of missing tiles: as recommended, else white for transmitted light, else 0.

    Returns
    -------
    tuple of int
        One value a channel of the decoded frames.
    """
    head = level.head
    fmt = head.format
    white = int(np.iinfo(fmt.dtype).max) if fmt.palette is not None else (1 << (fmt.bits_stored - fmt.signed)) - 1
    if head.absent_lab is not None and fmt.channels == 3:
        return tuple(round(v * white) for v in _srgb(head.absent_lab))
    stated = [path.transmitted for path in level.paths if path.transmitted is not None]
    transmitted = all(stated) if stated else fmt.channels == 3
    if fmt.photometric == "MONOCHROME1":
        transmitted = not transmitted
    return (white if transmitted else 0,) * fmt.channels


def _srgb(lab: tuple[int, int, int]) -> tuple[float, float, float]:
    """Convert a colour as DICOM stores it (PS3.3 C.10.7.1.1: L* 0..65535, a* and b* offset by 0x8080) to sRGB 0..1."""
    lightness = lab[0] / 65535 * 100
    a, b = lab[1] / 65535 * 255 - 128, lab[2] / 65535 * 255 - 128
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    # D50 white, and the Bradford-adapted matrix from D50 XYZ to linear sRGB (IEC 61966-2-1, ICC.1 Annex E).
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array([0.9642, 1.0, 0.8249])
    matrix = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]])
    linear = np.clip(matrix @ xyz, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = encoded.tolist()
    return red, green, blue
