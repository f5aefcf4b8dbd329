"""The default method: what absorbs light in colour, and what is pale among it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from microtome.ops.tissue.density import UNIT, Density, absorbance, glass_colour, smooth, spread_and_sum
from microtome.ops.tissue.extra import need
from microtome.ops.tissue.fine import refine, thin
from microtome.ops.tissue.ink import artefacts
from microtome.ops.tissue.sampling import LARGE, block_means
from microtome.ops.tissue.shapes import close, fill_small, grow, local_sum, open_, regions

__all__ = ["stain"]

Bools = npt.NDArray[np.bool_]

WORKING_MM = 0.004  # finer pixels are averaged: nuclei and membranes are tissue together with what is between them
_COLOUR = 0.022 * UNIT  # difference between the densities of two channels
_PALE = 0.014 * UNIT
_GREY = 3 * 0.028 * UNIT  # density without colour, of three channels together
_THREAD = 3 * 0.018 * UNIT  # density of thin lines, with a little colour
_CONTRAST = 3 * 0.007 * UNIT  # how much denser than their surroundings
_DENSE = 0.12  # of an area: threads are many
_HOLE = 320  # pixels: about 0.02 mm² at 8 µm, some fat cells
_BODY = 3.0  # pixels
_THIN, _SLENDER = 16.0, 10.0  # a region 16 pixels thick on average, ten times as long: an edge, a fibre
_HALO = 3.0  # pixels around artefacts that prove nothing
_SIDE = 1024  # pixels: a picture of unknown spacing is averaged to this


def stain(pixels: npt.NDArray[np.uint8], *, valid: Bools, spacing_mm: float | None = None, **_: Any) -> Bools:
    """Return where a slide is stained, without ink, borders and shadows.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8, RGB, transmitted light.
    valid
        (h, w) bool: which pixels to look at.
    spacing_mm
        Distance of pixel centres. Pictures finer than 4 µm are averaged to about that, and the result is repeated.

    Notes
    -----
    Of more than four million pixels, then, colour and thin lines are looked at one by one, and all else at means of
    squares of them.
    """
    if not valid.any():
        return np.zeros(valid.shape, np.bool_)
    if spacing_mm is None:
        factor = -(-max(valid.shape) // _SIDE)
    else:
        factor = max(int(WORKING_MM / spacing_mm + 1e-6), 1)
    if factor <= 1:
        return _stain(pixels, valid)
    found = _stain(*block_means(pixels, valid, factor)).repeat(factor, 0).repeat(factor, 1)
    return found[: pixels.shape[0], : pixels.shape[1]]


def _stain(pixels: npt.NDArray[np.uint8], valid: Bools) -> Bools:
    """The same at the resolution of the picture, or nearly."""
    factor = 1
    while -(-valid.shape[0] // factor) * -(-valid.shape[1] // factor) > LARGE:
        factor += 1
    if factor > 1:
        return _large(pixels, valid, factor)
    if not valid.any():
        return np.zeros(valid.shape, np.bool_)
    seen = _look(pixels, valid, 1)
    thread = (seen.total > _thread_limit(seen, 15)) & (seen.spread > _PALE / 2)
    threads = thread & (local_sum(thread, 15, np.uint16) > _DENSE * 15**2)
    return _regions(seen, threads, 1) & valid


def _large(pixels: npt.NDArray[np.uint8], valid: Bools, factor: int) -> Bools:
    """The same of a picture that is large: at ``1 / factor`` of its resolution, but for what is lost there."""
    small, enough = block_means(pixels, valid, factor)
    if not enough.any():
        return np.zeros(valid.shape, np.bool_)
    seen = _look(small, enough, factor)
    window = max(3, round(15 / factor) // 2 * 2 + 1)
    coloured, counts = thin(pixels, factor, seen.glass, _COLOUR, _thread_limit(seen, window), _PALE / 2)
    threads = (counts > 0) & (local_sum(counts, window, np.int32) > _DENSE * (window * factor) ** 2)
    found = _regions(seen, threads, factor) & enough
    return refine(found, coloured, (seen.spread > _COLOUR) & ~seen.bad, seen.bad, factor)


class _Seen(NamedTuple):
    """What a picture shows: densities in units of 1 / 4096, and where they mean something."""

    glass: npt.NDArray[np.float32]
    density: Density
    spread: Density
    total: Density
    bad: Bools
    good: Bools


def _look(pixels: npt.NDArray[np.uint8], valid: Bools, factor: int) -> _Seen:
    glass = glass_colour(pixels, valid)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    sums = smooth(planes)
    density = absorbance(sums, glass)
    spread, total = spread_and_sum(density)
    bad = artefacts(planes, sums, density, spread, total, glass, factor) | ~valid
    return _Seen(glass, density, spread, total, bad, ~grow(bad, _HALO))


def _thread_limit(seen: _Seen, window: int) -> Density:
    """How dense a thread is at least: clearly denser than its surroundings. Nothing is, near artefacts."""
    limit = local_sum(seen.total, window, np.int32) // window**2 + int(_CONTRAST)
    return np.where(seen.good, np.maximum(limit, int(_THREAD)), np.iinfo(np.int16).max).astype(np.int16)


def _regions(seen: _Seen, threads: Bools, factor: int) -> Bools:
    """Return the regions that colour, what is pale or grey, and threads make up.

    Lengths shrink with the picture, as far as discs of so few pixels are discs.
    """
    bad, good = seen.bad, seen.good
    coloured = (seen.spread > _COLOUR) & ~bad
    found = coloured | _pale(seen.density, seen.spread, good) | _grey(seen.total, coloured & good)
    # Threads are tissue where they are many: membranes of fat, with nothing but glass between them.
    found |= close(threads, max(4.0 / factor, 1.5))
    found &= ~bad
    # Next to an artefact colours run: what is there counts as far as tissue reaches from outside.
    found &= good | grow(open_(found & good, 1.0), _HALO + 1)
    # Holes before thin lines: the membranes of fat are a net whose threads are thin.
    hole = _HOLE / factor**2
    found = open_(fill_small(close(found, 2.0 / factor), hole), 1.0) & ~bad
    found = fill_small(found, hole) & ~bad
    return _solid(found, bad, max(_BODY / factor, 2.0))


def _pale(density: Density, spread: Density, good: Bools) -> Bools:
    """Weak colours where they are everywhere: mucin and fat, not the noise of a camera."""
    some = spread > _PALE
    wide = np.stack([local_sum(channel * good, 7, np.int32) for channel in density])
    seen = local_sum(good, 7, np.uint16)
    everywhere = local_sum(some & good, 9, np.uint16) > 0.7 * 81
    pale: Bools = (spread_and_sum(wide)[0] > np.float32(_PALE) * seen) & (spread > _PALE / 2) & everywhere
    return pale


def _grey(total: Density, coloured: Bools) -> Bools:
    """Grey is tissue where colour is close: unstained stroma and cytoplasm, not dust, scratches and shadows."""
    grey: Bools = (total > _GREY) & (local_sum(coloured, 17, np.uint16) > 0.12 * 17**2)
    return grey


def _solid(found: Bools, bad: Bools, radius: float) -> Bools:
    """Keep the connected regions that have a body of their own.

    Slivers are edges of coverslips and of strokes: tissue has somewhere a disc of ``radius`` pixels that no
    artefact touches.
    """
    ndimage = need("scipy.ndimage", 'the method "stain"')
    labels, sizes = regions(found, corners=True)
    count = len(sizes)
    body = np.zeros(count, np.bool_)
    body[labels[~grow(~found | grow(bad, _HALO), radius)]] = True
    boxes = ndimage.find_objects(labels, max_label=count - 1)
    longest = np.array([1, *(max(s.stop - s.start for s in box) for box in boxes)])
    mean = sizes / longest
    line = (mean <= _THIN) & (longest > _SLENDER * mean)
    keep = body & ~line
    keep[0] = False
    kept: Bools = keep[labels]
    return kept
