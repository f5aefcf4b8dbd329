"""ICC profiles: reference colour spaces built from their published definitions, and profiles that users bring.

Each reference space is three chromaticities, a white point and a transfer curve. They become an ICC.1:2010 (version
4.2) profile of matrix and curves: primaries adapted to D50 by the Bradford transform (ICC.1:2010, annex E), curves as
parametric curves (section 10.15), which keep a profile below 500 bytes and exact at 16 bit. The date inside is a
constant: the same bytes in every process.
"""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = ["PROFILE_NAMES", "check_profile", "profile_bytes", "profile_description"]

MAX_PROFILE_BYTES = 8 << 20  # the largest RGB profiles of devices are some 2 MB

# The illuminant of the profile connection space, as headers must state it: 0.9642, 1, 0.8249, rounded as stored.
_D50 = np.array([0xF6D6, 0x10000, 0xD32D]) / 65536
_D65 = (0.3127, 0.3290)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_DATE = struct.pack(">6H", 2010, 12, 1, 0, 0, 0)  # that of the ICC specification

_CLASSES = {b"scnr": "input", b"mntr": "display", b"prtr": "output", b"spac": "colour space"}


@dataclass(frozen=True)
class _Space:
    """An RGB colour space: chromaticities (x, y), and a curve from encoded to linear values.

    ``curve`` is (g,) for ``x ** g``, or (g, a, b, c, d) for ``(a x + b) ** g`` from d on and ``c x`` below.
    """

    title: str
    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]
    white: tuple[float, float]
    curve: tuple[float, ...]


_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

_SPACES = {
    # IEC 61966-2-1:1999
    "srgb": _Space("sRGB", (0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65, _SRGB_CURVE),
    # Adobe RGB (1998) Color Image Encoding, version 2005-05, section 4.3
    "adobe_rgb": _Space("Adobe RGB (1998)", (0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65, (563 / 256,)),
    # primaries of SMPTE EG 432-1, with D65 and the curve of sRGB
    "display_p3": _Space("Display P3", (0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65, _SRGB_CURVE),
    # ISO 22028-2: linear with slope 16 below 1/512
    "romm_rgb": _Space(
        "ROMM RGB",
        (0.7347, 0.2653),
        (0.1596, 0.8404),
        (0.0366, 0.0001),
        (0.3457, 0.3585),
        (1.8, 1.0, 0.0, 1 / 16, 16 / 512),
    ),
}

PROFILE_NAMES = tuple(_SPACES)


def profile_bytes(profile: str | Path | bytes) -> bytes:
    """Return the bytes of an ICC profile for RGB.

    Parameters
    ----------
    profile
        The name of a reference space, built here: ``"srgb"`` (IEC 61966-2-1), ``"adobe_rgb"`` (Adobe RGB (1998)),
        ``"display_p3"`` (primaries of SMPTE EG 432-1, D65, the curve of sRGB) or ``"romm_rgb"`` (ISO 22028-2); or
        the path of a profile; or its bytes, as in DICOM's ICC Profile (0028,2000), padded or not.

    Raises
    ------
    OptionError
        There is no such name and no such file, or what is there is no ICC profile for RGB.
    """
    if isinstance(profile, bytes | bytearray | memoryview):
        return check_profile(bytes(profile), f"the profile of {len(profile):,} bytes")
    if isinstance(profile, str) and profile in _SPACES:
        return _build(profile)
    if not isinstance(profile, str | Path):
        raise OptionError(f"a colour profile is a name, a path or bytes, not {type(profile).__name__}: {_known()}")
    path = Path(profile)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise OptionError(f"{path} is not a file; a colour profile is a name, a path or bytes: {_known()}")
        _check_size(size, str(path))
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"no colour profile has the name {str(profile)!r}, and no such file can be read "
            f"({getattr(error, 'strerror', None) or error}): {_known()}"
        ) from None
    return check_profile(data, str(path))


def check_profile(data: bytes, what: str) -> bytes:
    """Return a profile without padding, if LittleCMS can open it and it describes RGB.

    Parameters
    ----------
    data
        The profile.
    what
        What errors call it.

    Raises
    ------
    OptionError
        It is none, or one for other colours.
    """
    from PIL import ImageCms

    _check_size(len(data), what)
    if data[36:40] != b"acsp":
        raise OptionError(f"{what} is not an ICC profile: it has no 'acsp' at byte 36")
    stated = int.from_bytes(data[:4], "big")
    if not 132 <= stated <= len(data):
        raise OptionError(f"{what} is cut short or damaged: it states {stated:,} bytes and has {len(data):,}")
    kind, space = data[12:16], data[16:20]
    if kind not in _CLASSES:
        raise OptionError(
            f"{what} is an ICC profile of class {_text(kind)}, which has no pixels of its own; "
            "one of class mntr, scnr, prtr or spac is needed"
        )
    if space != b"RGB ":
        raise OptionError(f"{what} is an ICC profile for {_text(space)}, and the pixels are RGB")
    data = data[:stated]
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(data))
    except OSError as error:
        raise OptionError(f"{what} is damaged: LittleCMS does not open it ({error})") from None
    return data


def profile_description(data: bytes) -> str:
    """Return what a profile calls itself; empty where it does not say."""
    from PIL import ImageCms

    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(data))).strip()
    except (OSError, ImageCms.PyCMSError):
        return ""


def _check_size(size: int, what: str) -> None:
    if not 132 <= size <= MAX_PROFILE_BYTES:
        raise OptionError(
            f"{what} is not an ICC profile for RGB: it has {size:,} bytes; they have at least 132 and, here, at most "
            f"{MAX_PROFILE_BYTES:,}"
        )


def _known() -> str:
    return "names are " + ", ".join(_SPACES)


def _text(signature: bytes) -> str:
    return ascii(signature.decode("latin-1").strip())


@functools.cache
def _build(name: str) -> bytes:
    space = _SPACES[name]
    adapt = _adaptation(_xyz(space.white))
    primaries = np.stack([_xyz(p) for p in (space.red, space.green, space.blue)], 1)
    columns = adapt @ (primaries * np.linalg.solve(primaries, _xyz(space.white)))
    fixed = _fixed(columns)
    fixed[:, 1] += _fixed(_D50) - fixed.sum(1)  # white is the white of the connection space to the last bit
    curve = _element(b"para", struct.pack(">HH", 0 if len(space.curve) == 1 else 3, 0) + _pack(_fixed(space.curve)))
    elements = {
        b"desc": _localized(space.title),
        b"cprt": _localized("No copyright"),
        b"wtpt": _element(b"XYZ ", _pack(_fixed(_D50))),
        b"chad": _element(b"sf32", _pack(_fixed(adapt))),
        b"rXYZ": _element(b"XYZ ", _pack(fixed[:, 0])),
        b"gXYZ": _element(b"XYZ ", _pack(fixed[:, 1])),
        b"bXYZ": _element(b"XYZ ", _pack(fixed[:, 2])),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    return _assemble(elements)


def _xyz(chromaticity: tuple[float, float]) -> npt.NDArray[np.float64]:
    x, y = chromaticity
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _adaptation(white: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the linear Bradford transform (3, 3) from colours under ``white`` to colours under D50."""
    gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    return np.linalg.solve(_BRADFORD, gains[:, None] * _BRADFORD)


def _fixed(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return s15Fixed16Number."""
    return np.rint(np.asarray(values, np.float64) * 65536).astype(np.int64)


def _pack(values: npt.NDArray[np.int64]) -> bytes:
    return values.astype(">i4").tobytes()


def _element(signature: bytes, content: bytes) -> bytes:
    content = signature + bytes(4) + content
    return content + bytes(-len(content) % 4)


def _localized(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return _element(b"mluc", struct.pack(">II4sII", 1, 12, b"enUS", len(encoded), 28) + encoded)


def _assemble(elements: dict[bytes, bytes]) -> bytes:
    """Return header, tag table and elements (ICC.1:2010, section 7); equal elements are stored once."""
    table, body = struct.pack(">I", len(elements)), b""
    begin = 128 + 4 + 12 * len(elements)
    places: dict[bytes, int] = {}
    for signature, element in elements.items():
        if element not in places:
            places[element] = begin + len(body)
            body += element
        table += struct.pack(">4sII", signature, places[element], len(element))
    header = struct.pack(">I4sI4s4s4s", begin + len(body), b"", 0x04200000, b"mntr", b"RGB ", b"XYZ ")
    header += _DATE + b"acsp" + bytes(28) + _pack(_fixed(_D50))
    return header.ljust(128, b"\0") + table + body
