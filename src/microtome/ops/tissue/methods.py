"""Which pixels of a picture show tissue."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError, SpacingUndefinedError
from microtome.ops.tissue.luminance import between
from microtome.ops.tissue.shapes import close, remove_small
from microtome.ops.tissue.stain import stain
from microtome.ops.tissue.thresholds import bright, is_dark_field, otsu, saturation

__all__ = ["DEFAULT", "METHODS", "detect"]

Bools = npt.NDArray[np.bool_]
Method = Callable[..., Bools]


def _luminance(pixels: npt.NDArray[np.uint8], *, min_luminance: float, max_luminance: float, **_: Any) -> Bools:
    """EZ-WSI DICOMweb's rule; see `between`."""
    return between(pixels, min_luminance, max_luminance)


METHODS: dict[str, Method] = {"stain": stain, "luminance": _luminance, "otsu": otsu, "saturation": saturation}
"""Methods by name, for RGB in transmitted light. Each takes ``(pixels, *, valid, spacing_mm, min_luminance,
max_luminance)`` and returns (h, w) bool."""

DEFAULT = "stain"


def detect(
    pixels: npt.NDArray[Any],
    method: str | Callable[[npt.NDArray[Any]], npt.ArrayLike] = DEFAULT,
    *,
    min_luminance: float = 1 / 255,
    max_luminance: float = 0.8,
    spacing_mm: float | None = None,
    closing_mm: float | None = None,
    min_area_mm2: float | None = None,
    valid: Bools | None = None,
) -> Bools:
    """Return which pixels show tissue.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8: RGB. Anything else, (h, w) or (h, w, n) of any real dtype, is fluorescence: bright on dark.
        RGB that is mostly black and nowhere white is taken for fluorescence as well.
    method
        "stain": absorbs light, in colour or among what does; no ink, no borders, no shadows. "luminance": EZ-WSI
        DICOMweb's rule, ``int(255 * min_luminance) <= luminance <= int(255 * max_luminance)``. "otsu", "saturation":
        Otsu's threshold of luminance, of saturation. A callable gets the pixels and returns (h, w) bool. In
        fluorescence "stain" and "otsu" are Otsu's threshold of the sum of channels, each scaled to its brightest part;
        "luminance" takes (h, w) uint8 as it is; the others have no meaning there.
    min_luminance, max_luminance
        In [0, 1], for "luminance".
    spacing_mm
        Distance of pixel centres; None where it is not known. "stain" averages pictures finer than 4 µm to about
        that, and pictures of unknown spacing to at most 1024 pixels a side. Of more than four million pixels, then,
        it looks at colour and thin lines one by one, and at means of squares of them for all else.
    closing_mm
        Gaps up to this wide are closed afterwards, whatever the method.
    min_area_mm2
        Connected regions (corners connect) smaller than this are removed afterwards.
    valid
        (h, w) bool: pixels that the slide has. The others are never tissue, and no threshold depends on them.

    Returns
    -------
    (h, w) bool.

    Raises
    ------
    OptionError
        A method that is not there, or has no meaning for these pixels; bounds or lengths that make no sense.
    SpacingUndefinedError
        ``closing_mm`` or ``min_area_mm2`` without ``spacing_mm``.
    MissingDependencyError
        Everything but plain "luminance" and callables needs scikit-image.
    """
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "buif":
        raise OptionError(
            f"pixels of shape {pixels.shape} and type {pixels.dtype} are no picture: (h, w) or (h, w, channels) of "
            "real numbers is expected"
        )
    shape = pixels.shape[:2]
    if not 0 <= min_luminance <= max_luminance <= 1:
        raise OptionError(
            f"min_luminance={min_luminance}, max_luminance={max_luminance}: 0 <= min <= max <= 1 is expected"
        )
    _lengths(spacing_mm, closing_mm, min_area_mm2)
    known = np.ones(shape, np.bool_) if valid is None else np.asarray(valid)
    if known.shape != shape or known.dtype != np.bool_:
        raise OptionError(
            f"valid is {known.dtype} of shape {known.shape}; bool of shape {shape}, one a pixel, is expected"
        )
    if 0 in pixels.shape:
        return np.zeros(shape, np.bool_)
    found = _found(pixels, method, known, spacing_mm, min_luminance, max_luminance)
    if valid is not None:
        found = found & known
    if spacing_mm is not None and closing_mm:
        found = close(found, closing_mm / (2 * spacing_mm)) & known
    if spacing_mm is not None and min_area_mm2:
        found = remove_small(found, min_area_mm2 / spacing_mm**2)
    return found


def _lengths(spacing_mm: float | None, closing_mm: float | None, min_area_mm2: float | None) -> None:
    if spacing_mm is not None and not 0 < spacing_mm < math.inf:
        raise OptionError(f"spacing_mm={spacing_mm}: a positive number of millimetres, or None where it is not known")
    for name, value in (("closing_mm", closing_mm), ("min_area_mm2", min_area_mm2)):
        if value is None:
            continue
        if not 0 <= value < math.inf:
            raise OptionError(f"{name}={value}: a number that is not negative, or None, is expected")
        if spacing_mm is None and value:
            raise SpacingUndefinedError(
                f"{name}={value} is in millimetres, and the pixel spacing of this picture is not stated. Remedy: pass "
                f"the spacing, or leave {name} out"
            )


def _found(
    pixels: npt.NDArray[Any],
    method: str | Callable[[npt.NDArray[Any]], npt.ArrayLike],
    valid: Bools,
    spacing_mm: float | None,
    low: float,
    high: float,
) -> Bools:
    """What the method says, before shapes are tidied."""
    if not isinstance(method, str):
        said = np.asarray(method(pixels))
        if said.shape != valid.shape or said.dtype != np.bool_:
            raise OptionError(
                f"{method!r} returned {said.dtype} of shape {said.shape}; bool of shape {valid.shape} is expected"
            )
        return said
    if method not in METHODS:
        raise OptionError(f"method={method!r} is not there: " + ", ".join(map(repr, METHODS)) + ", or a callable")
    rgb = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    if method == "luminance" and not rgb:
        if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[2] != 1):
            raise OptionError(
                f'method="luminance" is for RGB or grey of 8 bit, not for {pixels.dtype} of shape {pixels.shape}. '
                f'Remedy: method="{DEFAULT}" or "otsu"'
            )
        grey = pixels.reshape(valid.shape)
        return (grey >= int(255 * low)) & (grey <= int(255 * high))
    if method == "saturation" and not rgb:
        raise OptionError(f'method="saturation" needs RGB of 8 bit, not {pixels.dtype} of shape {pixels.shape}')
    if method in ("stain", "otsu") and (not rgb or is_dark_field(pixels, valid)):
        return bright(pixels, valid=valid)
    return METHODS[method](pixels, valid=valid, spacing_mm=spacing_mm, min_luminance=low, max_luminance=high)
