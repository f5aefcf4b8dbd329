"""What a slide is, as frozen values: no bytes are read and no array is made here.

The vocabulary is DICOM's (PS3.3 C.8.12.4, C.7.6.17): a *total pixel matrix* is cut into *frames*; a *level* is
one total pixel matrix; *optical paths* and *focal planes* stack several matrices of one geometry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FrameFormat", "OpticalPath", "PixelSpacing"]


@dataclass(frozen=True, slots=True)
class PixelSpacing:
    """Distance between neighbouring pixel centres, in mm.

    Parameters
    ----------
    row
        Between rows, that is along ``y``.
    column
        Between columns, that is along ``x``.
    """

    row: float
    column: float

    @property
    def magnification(self) -> float:
        """Nominal objective power, by the convention that 10X is 1 µm a pixel."""
        return 0.01 / min(self.row, self.column)


@dataclass(frozen=True, slots=True)
class OpticalPath:
    """How light reached the sensor (PS3.3 C.8.12.5), without the ICC profile.

    Parameters
    ----------
    identifier
        As stated in the file; not unique across the instances of a slide.
    description
        Free text, empty where not stated.
    wavelength
        Illumination wavelength in nm, or None.
    illumination
        Code meaning of the illumination type, empty where not stated.
    transmitted
        True for transmitted light, False for light that leaves the background dark, None where not stated.
    """

    identifier: str
    description: str = ""
    wavelength: float | None = None
    illumination: str = ""
    transmitted: bool | None = None

    @property
    def key(self) -> tuple[str, str, float | None, str]:
        """What tells this path from another one of the same slide."""
        return (self.identifier, self.description, self.wavelength, self.illumination)

    @property
    def label(self) -> str:
        """A name for people: the description, else the wavelength, else the identifier."""
        if self.description:
            return self.description
        if self.wavelength:
            return f"{self.wavelength:g} nm"
        return self.identifier


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """How the bytes of one frame become pixels.

    Everything a decoder may know about a frame before it sees its bytes; the same for all frames of an instance.

    Parameters
    ----------
    transfer_syntax
        UID under which the frame was stored.
    rows, columns
        Nominal frame size. A codestream may hold a smaller picture (edge frames), never a larger one.
    samples
        Samples per pixel as stored: 1 or 3.
    photometric
        Photometric Interpretation as stated.
    bits_allocated, bits_stored
        Of one sample, as stated.
    signed
        Whether Pixel Representation is 1.
    planar
        Planar Configuration: 0 colour by pixel, 1 colour by plane (native and RLE frames only).
    byte_swapped
        True for big endian words of 8-bit samples (OW): neighbouring bytes change places.
    palette
        (n, 3) table and the stored value its first row stands for, where Photometric Interpretation is PALETTE COLOR.
    """

    transfer_syntax: str
    rows: int
    columns: int
    samples: int = 1
    photometric: str = "MONOCHROME2"
    bits_allocated: int = 8
    bits_stored: int = 8
    signed: bool = False
    planar: int = 0
    byte_swapped: bool = False
    palette: tuple[npt.NDArray[Any], int] | None = field(default=None, compare=False)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of one stored sample, little endian or native as this machine has it."""
        bits = 8 if self.bits_allocated <= 8 else 16 if self.bits_allocated <= 16 else 32
        return np.dtype(f"{'i' if self.signed else 'u'}{bits // 8}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a sample of the decoded frame."""
        return self.stored_dtype if self.palette is None else self.palette[0].dtype

    @property
    def channels(self) -> int:
        """Samples per pixel of the decoded frame: 3 for colour and palettes, else 1."""
        return 3 if self.palette is not None else self.samples

    @property
    def native_bits(self) -> int:
        """Bits that one frame takes where it is stored without compression."""
        if self.photometric == "YBR_FULL_422":
            return self.rows * self.columns * 2 * self.bits_allocated
        return self.rows * self.columns * self.samples * self.bits_allocated
