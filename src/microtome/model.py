"""What a slide is, as frozen values: no bytes are read and no array is made here.

The vocabulary is DICOM's (PS3.3 C.8.12.4, C.7.6.17): a *total pixel matrix* is cut into *frames*; a *level* is
one total pixel matrix; *optical paths* and *focal planes* stack several matrices of one geometry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["FrameFormat", "OpticalPath", "PixelSpacing", "SpacingLike", "is_within"]

_MAGNIFICATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*[xX×]?\s*")


@dataclass(frozen=True, slots=True)
class PixelSpacing:
    """Distance between neighbouring pixel centres, in mm.

    Equality is exact, and `isclose` the comparison with a tolerance: "nearly equal" is not transitive (of 0.48, 0.5 and
    0.52 µm the middle one is within 5 % of both others, which are not of each other), so that no hash could agree with
    it, and spacings are keys of dictionaries and parts of cached values.

    Parameters
    ----------
    row
        Between rows, that is along ``y``.
    column
        Between columns, that is along ``x``.

    Raises
    ------
    OptionError
        A value is not a positive, finite number. A spacing that is not known is None, or a `SpacingUndefinedError`.

    Examples
    --------
    >>> PixelSpacing.from_um(0.5)
    PixelSpacing(row=0.0005, column=0.0005)
    >>> print(PixelSpacing.from_magnification("20X"))
    0.5 µm/px (20X)
    """

    row: float
    column: float

    def __post_init__(self) -> None:
        for name in ("row", "column"):
            value = getattr(self, name)
            number = float(value) if _is_number(value) else math.nan
            if not (math.isfinite(number) and number > 0):
                raise OptionError(f"a pixel spacing is a positive number of mm, not {_shown(value)} ({name}s)")
            object.__setattr__(self, name, number)

    @classmethod
    def of(cls, value: SpacingLike) -> PixelSpacing:
        """Return the spacing that a value in mm stands for.

        Parameters
        ----------
        value
            A `PixelSpacing`; a number of mm for both axes; or a pair (row, column) of these, as DICOM states it.

        Raises
        ------
        OptionError
            It is nothing of these, or not positive and finite.
        """
        if isinstance(value, cls):
            return value
        row, column = _pair(value, "mm")
        return cls(row, column)

    @classmethod
    def from_um(cls, value: float | Sequence[float] | npt.NDArray[Any]) -> PixelSpacing:
        """Return the spacing of so many µm a pixel: a number for both axes, or a pair (row, column).

        Raises
        ------
        OptionError
            It is neither, or not positive and finite.
        """
        row, column = _pair(value, "µm")
        return cls(row / 1000, column / 1000)

    @classmethod
    def from_magnification(cls, value: str | float) -> PixelSpacing:
        """Return the spacing of a nominal objective power, by the convention that 10X is 1 µm a pixel.

        Parameters
        ----------
        value
            A number, or text such as ``"20X"`` or ``"2.5x"``.

        Raises
        ------
        OptionError
            It is neither, or not positive and finite.
        """
        found = _MAGNIFICATION.fullmatch(value) if isinstance(value, str) else None
        power = float(found[1]) if found else float(value) if _is_number(value) else math.nan
        if not (math.isfinite(power) and power > 0):
            raise OptionError(f"a magnification is a positive number or text such as '20X', not {_shown(value)}")
        return cls(0.01 / power, 0.01 / power)

    @property
    def magnification(self) -> float:
        """Nominal objective power, by the convention that 10X is 1 µm a pixel; of the finer axis."""
        return 0.01 / self.finer

    @property
    def finer(self) -> float:
        """The smaller of the two, in mm: by it levels are compared."""
        return min(self.row, self.column)

    def isclose(self, other: SpacingLike, rtol: float = 0.05) -> bool:
        """Say whether both axes are equal to those of another spacing, within a part ``rtol`` of the larger value.

        Parameters
        ----------
        other
            Anything that `of` takes.
        rtol
            0.05: 5 % of the larger of two values. A difference of exactly so much counts as equal.
        """
        that = PixelSpacing.of(other)
        return is_within(self.row, that.row, rtol) and is_within(self.column, that.column, rtol)

    def __str__(self) -> str:
        row, column = f"{self.row * 1000:.4g}", f"{self.column * 1000:.4g}"
        both = row if row == column else f"{row} x {column}"
        return f"{both} µm/px ({self.magnification:.3g}X)"


SpacingLike = PixelSpacing | float | Sequence[float] | npt.NDArray[Any]


def is_within(a: float, b: float, rtol: float) -> bool:
    """Say whether two positive numbers differ by no more than a part ``rtol`` of the larger.

    Decimals such as 0.00075 have no exact binary form, and spacings come from differences of coordinates: a part in 1e9
    is granted, so that what differs by exactly ``rtol`` in decimals counts as equal.
    """
    return abs(a - b) <= (rtol + 1e-9) * max(a, b)


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool | np.bool_)


def _shown(value: object) -> str:
    """Return a value as an error may show it: arrays by their type only, for theirs may be a slide."""
    return repr(value) if value is None or _is_number(value) or isinstance(value, str) else f"a {type(value).__name__}"


def _pair(value: Any, unit: str) -> tuple[float, float]:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if _is_number(value):
        return float(value), float(value)
    if not isinstance(value, str | bytes | dict) and hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        numbers = list(value) if len(value) == 2 else []
        if numbers and all(_is_number(v) for v in numbers):
            return float(numbers[0]), float(numbers[1])
    hint = "; PixelSpacing.from_magnification takes text such as '20X'" if isinstance(value, str) else ""
    raise OptionError(
        f"a pixel spacing is a number of {unit}, or a pair (row, column) of these, not {_shown(value)}{hint}"
    )


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
    reduction
        Frames are decoded at this fraction of their size (1/2, 1/4, 1/8): ``rows`` and ``columns`` are those of the
        decoded frame.
    unreduced
        The format of the frames as they are stored, where ``reduction`` is not 1.
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
    reduction: int = 1
    unreduced: FrameFormat | None = None

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
        if self.unreduced is not None:
            return self.unreduced.native_bits
        if self.photometric == "YBR_FULL_422":
            return self.rows * self.columns * 2 * self.bits_allocated
        return self.rows * self.columns * self.samples * self.bits_allocated
