"""Channels of fluorescence to RGB: each has a window of values and a colour, and light adds up.

A value at the low end of its window is black, at the high end its channel's colour, linear between; what all channels
give is added and clipped, as in the additive blending of DICOM's Advanced Blending Presentation State (PS3.4 N.2.4.3).
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError

__all__ = [
    "Pseudocolour",
    "auto_windows",
    "colour_of_wavelength",
    "default_colours",
    "parse_colour",
    "pseudocolour",
]

Colour = tuple[int, int, int]
Window = tuple[float, float]

_BAND = 1 << 16  # pixels at a time: what is computed of them stays in the cache of the processor
_FIRST_COLOURS: tuple[Colour, ...] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 0),
)


@dataclass(frozen=True)
class Pseudocolour:
    """Windows and colours, one of each a channel: a callable from channels to RGB.

    Parameters
    ----------
    windows
        ``(low, high)`` of each channel in its own values. Where low is above high, the channel is inverted.
    colours
        Of each channel: ``(r, g, b)`` of 0 to 255, or what `parse_colour` takes.

    Raises
    ------
    OptionError
        They are not one a channel, a window is empty or not finite, or a colour is none.
    """

    windows: tuple[Window, ...]
    colours: tuple[Colour, ...]

    def __post_init__(self) -> None:
        windows = tuple(_checked_window(window) for window in self.windows)
        colours = tuple(parse_colour(colour) for colour in self.colours)
        if len(windows) != len(colours) or not windows:
            raise OptionError(
                f"there are {len(windows)} windows and {len(colours)} colours; each channel has one of both"
            )
        object.__setattr__(self, "windows", windows)
        object.__setattr__(self, "colours", colours)

    def __call__(self, channels: npt.NDArray[Any], out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Return RGB, (..., 3) uint8, of channels (..., c) of any real type; NaN is black.

        Raises
        ------
        OptionError
            The number of channels differs, or ``out`` is not uint8 (..., 3) of the same places.
        """
        count = len(self.windows)
        if channels.ndim == 0 or channels.shape[-1] != count:
            raise OptionError(f"the channels are of shape {channels.shape}; the last axis must have {count} of them")
        if channels.dtype.kind not in "buif":
            raise OptionError(f"pseudo-colour is made of real numbers, not of {channels.dtype}")
        shape = (*channels.shape[:-1], 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8:
            raise OptionError(f"out is {out.dtype} {out.shape}, and the colours are uint8 {shape}")
        flat = channels.reshape(-1, count)
        result = out.reshape(-1, 3) if out.flags.c_contiguous else np.empty((len(flat), 3), np.uint8)
        ramps = [_ramp_of(channels.dtype, window) for window in self.windows]
        for begin in range(0, len(flat), _BAND):
            self._blend(flat[begin : begin + _BAND], ramps, result[begin : begin + _BAND])
        if not out.flags.c_contiguous:
            out[...] = result.reshape(shape)
        return out

    def _blend(self, band: npt.NDArray[Any], ramps: list[_Ramp], result: npt.NDArray[np.uint8]) -> None:
        """Add the light of all channels, round and clip it."""
        totals = np.full((3, len(band)), 0.5, np.float32)
        product = np.empty(len(band), np.float32)
        for channel, (ramp, colour) in enumerate(zip(ramps, self.colours, strict=True)):
            if not any(colour):
                continue
            light = ramp(band[:, channel])
            for total, amount in zip(totals, colour, strict=True):
                if amount:
                    total += np.multiply(light, np.float32(amount), out=product)
        np.minimum(totals, 255, out=totals)
        for component in range(3):
            result[:, component] = totals[component]  # conversion to integers rounds down


def pseudocolour(
    channels: npt.NDArray[Any],
    windows: Sequence[Window],
    colours: Sequence[Colour | str],
) -> npt.NDArray[np.uint8]:
    """Return RGB, (..., 3) uint8, of channels (..., c); see `Pseudocolour`."""
    return Pseudocolour(tuple(windows), tuple(parse_colour(colour) for colour in colours))(channels)


def auto_windows(
    sample: npt.NDArray[Any], percentiles: tuple[float, float] = (0.1, 99.9)
) -> tuple[tuple[float, float], ...]:
    """Return a window for each channel, from percentiles of a sample (..., c), such as a low level of the slide.

    Values that are not finite do not count. Where the percentiles fall together, as with few bright spots on an even
    ground, the least and the greatest value take their place; a channel of one value gets a window that shows it black.

    Raises
    ------
    OptionError
        The sample has no pixels or no channels, a channel has no finite value, or the percentiles make no sense.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise OptionError(f"the percentiles of a window rise from 0 to 100, unlike {percentiles}")
    if sample.ndim == 0 or sample.size == 0:
        raise OptionError(f"windows need pixels to be found by; the sample has shape {sample.shape}")
    windows = []
    for channel in range(sample.shape[-1]):
        values = sample[..., channel].ravel()
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)].astype(np.float64)
        elif values.dtype.kind == "b":
            values = values.astype(np.uint8)
        if not values.size:
            raise OptionError(f"channel {channel} of the sample has no finite value, so no window: state one")
        begin, end = (float(v) for v in np.percentile(values, (low, high)))
        if end <= begin:
            begin, end = float(values.min()), float(values.max())
        if end <= begin:
            end = max(begin + 1.0, math.nextafter(begin, math.inf))
        windows.append((begin, end))
    return tuple(windows)


def default_colours(count: int) -> tuple[Colour, ...]:
    """Return colours for channels of which nothing is known.

    White for one; red, green, blue, cyan, magenta, yellow for more; beyond these, hues at the golden angle.
    """
    if count < 1:
        raise OptionError(f"there is no colour for {count} channels")
    if count == 1:
        return ((255, 255, 255),)
    colours = list(_FIRST_COLOURS[:count])
    golden = (3 - math.sqrt(5)) / 2
    for further in range(count - len(colours)):
        red, green, blue = colorsys.hsv_to_rgb((1 / 12 + further * golden) % 1, 0.75, 1.0)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)


def parse_colour(colour: str | Sequence[int]) -> Colour:
    """Return ``(r, g, b)`` of 0 to 255 for such three numbers, or for a colour by name or in CSS, as Pillow reads it.

    ``"green"`` is (0, 255, 0), as microscopes use the word; CSS means half of it.

    Raises
    ------
    OptionError
        It is no colour.
    """
    if isinstance(colour, str):
        from PIL import ImageColor

        if colour.strip().lower() == "green":
            return (0, 255, 0)
        try:
            parsed = ImageColor.getrgb(colour.strip())
        except ValueError:
            raise OptionError(
                f"{colour!r} is no colour; colours are names such as 'cyan', '#00ff00', or three numbers to 255"
            ) from None
        return parsed[0], parsed[1], parsed[2]
    values = tuple(colour)
    if len(values) != 3 or not all(0 <= v <= 255 and int(v) == v for v in values):
        raise OptionError(f"{values} is no colour: a colour is three whole numbers from 0 to 255")
    return int(values[0]), int(values[1]), int(values[2])


def colour_of_wavelength(wavelength_nm: float) -> Colour:
    """Return the most saturated sRGB colour for monochromatic light, at full brightness.

    The colour matching functions are the multi-lobe fit of Wyman, Sloan and Shirley (Simple Analytic Approximations to
    the CIE XYZ Color Matching Functions, JCGT 2(2), 2013). What lies beyond 410 and 680 nm, where the eye sees
    little and hue hardly changes, gets the colour of these ends: a channel in the infrared is deep red.

    Raises
    ------
    OptionError
        The wavelength is not a positive number.
    """
    if not (math.isfinite(wavelength_nm) and wavelength_nm > 0):
        raise OptionError(f"{wavelength_nm} nm is no wavelength")
    nm = min(max(float(wavelength_nm), 410.0), 680.0)

    def lobe(height: float, peak: float, below: float, above: float) -> float:
        return height * math.exp(-0.5 * ((nm - peak) / (below if nm < peak else above)) ** 2)

    x = lobe(1.056, 599.8, 37.9, 31.0) + lobe(0.362, 442.0, 16.0, 26.7) + lobe(-0.065, 501.1, 20.4, 26.2)
    y = lobe(0.821, 568.8, 46.9, 40.5) + lobe(0.286, 530.9, 16.3, 31.1)
    z = lobe(1.217, 437.0, 11.8, 36.0) + lobe(0.681, 459.0, 26.0, 13.8)
    linear = (  # IEC 61966-2-1; what no display can show is clipped
        max(0.0, 3.2406 * x - 1.5372 * y - 0.4986 * z),
        max(0.0, -0.9689 * x + 1.8758 * y + 0.0415 * z),
        max(0.0, 0.0557 * x - 0.2040 * y + 1.0570 * z),
    )
    brightest = max(linear)
    encoded = [_srgb_encoded(value / brightest) for value in linear]
    return round(255 * encoded[0]), round(255 * encoded[1]), round(255 * encoded[2])


def _srgb_encoded(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def _checked_window(window: Sequence[float]) -> Window:
    values = tuple(float(v) for v in window)
    if len(values) != 2 or not all(math.isfinite(v) for v in values) or values[0] == values[1]:
        raise OptionError(f"{values} is no window: a window is two finite numbers that differ, low and high")
    return values[0], values[1]


_Ramp = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]


@functools.lru_cache(32)  # of 16 bit: 256 kB each
def _ramp_of(dtype: np.dtype[Any], window: Window) -> _Ramp:
    """Return the function from values of a channel to 0 ... 1: for whole numbers of 8 and 16 bit, a table.

    The entries of tables are in the order of the bits of values, taken as unsigned.
    """
    if dtype.kind not in "ui" or dtype.itemsize > 2:
        return functools.partial(_ramp, window=window)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    values = np.arange(1 << (8 * dtype.itemsize)).astype(unsigned)
    table = _ramp(values.view(f"{dtype.kind}{dtype.itemsize}"), window)
    return lambda values: table[values.astype(dtype.newbyteorder("="), copy=False).view(unsigned)]


def _ramp(values: npt.NDArray[Any], window: Window) -> npt.NDArray[np.float32]:
    low, high = window
    scaled = values.astype(np.float64)
    scaled -= low
    scaled /= high - low
    np.clip(scaled, 0, 1, out=scaled)
    if values.dtype.kind == "f":
        scaled[np.isnan(scaled)] = 0
    return scaled.astype(np.float32)
