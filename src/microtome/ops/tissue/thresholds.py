"""Otsu's threshold of luminance, of saturation, and of light emitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.ops.opencv import luminance
from microtome.ops.tissue.extra import need
from microtome.ops.tissue.sampling import places, sample
from microtome.ops.tissue.shapes import local_sum

__all__ = ["bright", "is_dark_field", "otsu", "saturation"]

Bools = npt.NDArray[np.bool_]

_ROWS = 512  # at a time: intermediate results are small
_MEDIAN = 7  # pixels, the side of the square
_REACH = _MEDIAN // 2
_DARK = 25


def _threshold(values: npt.NDArray[Any], valid: Bools, what: str) -> float | None:
    """Return Otsu's threshold of the valid values, or of a sample of them; None where they are all the same."""
    used = sample(values, valid)
    if used.size == 0 or used.min() == used.max():
        used = values[valid]  # a sample may miss the few that differ
    if used.size == 0 or used.min() == used.max():
        return None
    return float(need("skimage.filters", what).threshold_otsu(used))


def otsu(pixels: npt.NDArray[np.uint8], *, valid: Bools, **_: Any) -> Bools:
    """Return what is at most as bright as Otsu's threshold of luminance (Otsu 1979, doi:10.1109/TSMC.1979.4310076).

    Parameters
    ----------
    pixels
        (h, w, 3) uint8, RGB, transmitted light.
    valid
        (h, w) bool: which pixels the histogram is made of.
    """
    grey = luminance(pixels)
    counts = np.zeros(256, np.int64)
    everything = bool(valid.all())
    for first in range(0, len(grey), _ROWS):  # all of them count, but not as eight bytes each at once
        part = slice(first, first + _ROWS)
        counts += np.bincount(grey[part].ravel() if everything else grey[part][valid[part]], minlength=256)
    values = np.flatnonzero(counts)
    if len(values) < 2:
        return np.zeros(valid.shape, np.bool_)
    centres = np.arange(values[0], values[-1] + 1)
    filters = need("skimage.filters", 'the method "otsu"')
    below: Bools = grey <= filters.threshold_otsu(hist=(counts[centres], centres))
    return below


def saturation(pixels: npt.NDArray[np.uint8], *, valid: Bools, **_: Any) -> Bools:
    """Return what is more saturated than Otsu's threshold of HSV saturation, after a median of 7 by 7 pixels.

    As in CLAM (Lu et al. 2021, doi:10.1038/s41551-020-00682-w). Black is excluded: its saturation is noise.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8, RGB, transmitted light.
    valid
        (h, w) bool: which pixels the histogram is made of.
    """
    need("skimage.filters", 'the method "saturation"')
    found = np.zeros(valid.shape, np.bool_)
    limit = _saturation_threshold(pixels, valid)
    if limit is None:
        return found
    # A median is above a threshold where most pixels are: counting is faster than sorting.
    for first in range(0, len(pixels), _ROWS):
        above = min(first, _REACH)
        strip = pixels[first - above : first + _ROWS + _REACH]
        most, least = _extremes(strip)
        more = np.uint16(255) * (most - least) >= np.maximum(np.uint16(limit + 1) * most, 1)
        much = local_sum(more, _MEDIAN, np.uint8) > _MEDIAN**2 // 2
        lit = local_sum(most > _DARK, _MEDIAN, np.uint8) > _MEDIAN**2 // 2
        found[first : first + _ROWS] = (much & lit)[above : above + _ROWS]
    return found


def _extremes(pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the greatest and the least channel, which come last."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)


def _saturation_threshold(pixels: npt.NDArray[np.uint8], valid: Bools) -> int | None:
    """Return Otsu's threshold of medians of saturation, at a sample of places; None where they are all the same."""
    rows, columns = places(valid, 50_000)
    around = range(-_REACH, _REACH + 1)
    values = np.empty((len(rows), _MEDIAN**2), np.uint8)
    bright_ones = np.zeros(len(rows), np.uint8)
    for i, (dy, dx) in enumerate((dy, dx) for dy in around for dx in around):
        y, x = (rows + dy).clip(0, len(pixels) - 1), (columns + dx).clip(0, pixels.shape[1] - 1)
        most, least = _extremes(pixels[y, x])
        values[:, i] = np.uint16(255) * (most - least) // np.maximum(most, 1)
        bright_ones += most > _DARK
    medians = np.partition(values, _MEDIAN**2 // 2, axis=1)[:, _MEDIAN**2 // 2]
    lit = (bright_ones > _MEDIAN**2 // 2)[None]
    limit = _threshold(medians[None], lit, 'the method "saturation"')
    return None if limit is None else int(limit)


def bright(pixels: npt.NDArray[Any], *, valid: Bools, **_: Any) -> Bools:
    """Return what is brighter than Otsu's threshold of the sum of channels, each scaled to its brightest part.

    For fluorescence: bright on dark. A channel counts from its least value to its 99.9th percentile, so that neither
    its exposure nor a hot pixel decides.

    Parameters
    ----------
    pixels
        (h, w) or (h, w, n), any real dtype. NaN is dark.
    valid
        (h, w) bool: which pixels the scale and the histogram are made of.
    """
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    total = np.zeros(valid.shape, np.float32)
    if not valid.any():
        return np.zeros(valid.shape, np.bool_)
    for i in range(channels.shape[-1]):
        channel = channels[..., i].astype(np.float32)
        span = _range(channel, valid)
        if span is None:
            continue
        low, high = span
        if pixels.dtype.kind == "f":
            channel[~np.isfinite(channel)] = low
        channel -= np.float32(low)
        channel /= np.float32(high - low)
        total += np.clip(channel, 0, 1, out=channel)
    limit = _threshold(total, valid, "tissue detection in fluorescence")
    return np.zeros(valid.shape, np.bool_) if limit is None else total > limit


def _range(channel: npt.NDArray[np.float32], valid: Bools) -> tuple[float, float] | None:
    """Return the least valid value and the 99.9th percentile, of a sample; None where all are the same."""
    used = sample(channel, valid)
    used = used[np.isfinite(used)]
    if used.size:
        low, high = float(used.min()), float(np.percentile(used, 99.9))
        if high > low:
            return low, high
    used = channel[valid & np.isfinite(channel)]  # a sample may miss what little there is
    if not used.size or used.min() == used.max():
        return None
    return float(used.min()), float(used.max())


def is_dark_field(pixels: npt.NDArray[np.uint8], valid: Bools) -> bool:
    """Return whether RGB pixels show light that is emitted: most of them black, and none of the rest white.

    Of many pixels, a sample is asked.
    """
    rgb = sample(pixels, valid)
    if not len(rgb) or float(np.median(luminance(rgb))) >= 25:
        return False
    return float(np.percentile(_extremes(rgb)[1], 99)) < 128
