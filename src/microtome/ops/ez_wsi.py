"""Which patches EZ-WSI DICOMweb's ``DicomPatchGenerator`` (version 6.1.6) would make.

For those who move from EZ-WSI and want the very same patches: the level that it takes its tissue mask from, what it
makes of the pixels, and where it puts patches. It averages with OpenCV, whose arithmetic is followed here to the last
bit (see `opencv`). Nothing is read here: pixels come in, places go out.

Easily overlooked: where patches are no larger than strides, what counts is the mean luminance of the *stride* cell, not
of the patch, which is put into the middle of the cell; where they are larger, it is the mean of the patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops import opencv
from microtome.ops.opencv import resize_area, resize_cubic

__all__ = [
    "MASK_SPACING_MM",
    "level_for_spacing",
    "luminance",
    "mask_level",
    "patch_origins",
    "resize",
    "resized_level",
    "stride_mask",
]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Shape = tuple[int, int]

MASK_SPACING_MM = 0.008
"""Pixel spacing that the tissue mask is taken at, 1.25X."""

_SAME_SPACING = 0.23  # relative difference up to which a stored level counts as the one asked for
_MOST_DOWNSAMPLE = 8.0


def patch_origins(
    level_shape: Shape,
    patch_size: int,
    stride_size: int | None = None,
    *,
    mask_pixels: Bytes | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    min_luminance: float = 1 / 255,
    max_luminance: float = 0.8,
) -> npt.NDArray[np.int64]:
    """Return where EZ-WSI puts its patches, in its order: row by row.

    Parameters
    ----------
    level_shape
        Rows and columns of the level, stored or resized, that patches are cut from.
    patch_size
        Pixels of that level; patches are square.
    stride_size
        Pixels from one patch to the next. Default: ``patch_size``. Means nothing with a ``mask``.
    mask_pixels
        Pixels of the level that `mask_level` names: uint8, ``(h, w, 3)`` or grey.
    mask
        Tissue, instead of ``mask_pixels``: bool ``(rows, columns)``, no larger than the level; each element is one
        stride of ``level rows // rows`` by ``level columns // columns`` pixels.
    min_luminance, max_luminance
        Darkest and brightest mean that counts as tissue, 0 to 1. They mean nothing with a ``mask``.

    Returns
    -------
    numpy.ndarray
        int64 ``(n, 2)``: row and column of the top left pixel of each patch. ``(0, 2)`` where no stride is tissue
        (EZ-WSI raises). All are inside the level, with two exceptions: patches larger than the strides of a ``mask``
        run off it at the far edges, and a stride larger than the level may put its only patch anywhere.

    Raises
    ------
    OptionError
        Patches larger than the level; a mask that is not bool, or larger than the level; neither or both of
        ``mask_pixels`` and ``mask``.
    """
    rows, columns = _checked_shape(level_shape)
    patch = _positive(patch_size, "patch_size")
    stride = patch if stride_size is None else _positive(stride_size, "stride_size")
    if (mask_pixels is None) == (mask is None):
        raise OptionError("tissue is known from mask_pixels or from mask: give one of them")
    if patch > min(rows, columns):
        raise OptionError(
            f"patches of {patch} x {patch} pixels do not fit into a level of {rows} x {columns} pixels; choose smaller "
            "patches or a finer level"
        )
    if mask is not None:
        tissue = _checked_mask(mask, (rows, columns))
        strides = (rows // tissue.shape[0], columns // tissue.shape[1])
    else:
        assert mask_pixels is not None
        values = stride_mask(luminance(mask_pixels), (rows, columns), patch, stride)
        tissue = (values >= int(255.0 * min_luminance)) & (values <= int(255.0 * max_luminance))
        strides = (stride, stride)
    cells = np.argwhere(tissue).astype(np.int64)
    shift = [step // 2 - patch // 2 if patch < step else 0 for step in strides]
    return cells * np.array(strides, np.int64) + np.array(shift, np.int64)


def luminance(pixels: Bytes) -> Bytes:
    """Return the grey values that EZ-WSI compares with its bounds.

    Parameters
    ----------
    pixels
        uint8, ``(h, w, 3)`` RGB; ``(h, w)`` or ``(h, w, 1)`` are grey already.

    Returns
    -------
    numpy.ndarray
        uint8, ``(h, w)``.

    Raises
    ------
    OptionError
        Pixels of another shape or dtype.
    """
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3))):
        raise OptionError(
            f"grey values are made of uint8 pixels (h, w, 3) or (h, w); these are {pixels.dtype} {pixels.shape}"
        )
    if pixels.ndim == 2:
        return pixels
    return pixels[..., 0] if pixels.shape[2] == 1 else opencv.luminance(pixels)


def stride_mask(grey: Bytes, level_shape: Shape, patch_size: int, stride_size: int) -> npt.NDArray[np.int64]:
    """Return the mean luminance that EZ-WSI compares with its bounds, one value a stride.

    Where patches are no larger than strides it is the mean of the stride cell, rounded: area interpolation of the part
    of the mask that strides cover. Where they are larger, it is the mean of the patch over whole pixels of the mask,
    rounded down.

    Parameters
    ----------
    grey
        uint8 ``(h, w)``: luminance of the whole mask level, of any size.
    level_shape
        Rows and columns of the level that patches are cut from.
    patch_size, stride_size
        Pixels of that level.

    Returns
    -------
    numpy.ndarray
        int64 ``(strides down, strides across)``, at least ``(1, 1)``.

    Raises
    ------
    OptionError
        A mask without pixels, or not of two dimensions.
    """
    if grey.ndim != 2 or not grey.size:
        raise OptionError(f"a mask level has rows and columns, at least one of each; this one has shape {grey.shape}")
    if patch_size > stride_size:
        return _patch_means(grey, level_shape, patch_size, stride_size)
    steps, kept = [], []
    for whole, pixels in zip(level_shape, grey.shape, strict=True):
        count = max(whole // stride_size, 1)
        covered = count * stride_size
        steps.append(count)
        # in floating point, as EZ-WSI has it: the ceiling may lie one above the exact one
        kept.append(min(math.ceil(pixels * (covered / whole)), pixels))
    return resize_area(grey[: kept[0], : kept[1]], (steps[0], steps[1])).astype(np.int64)


def _patch_means(grey: Bytes, level_shape: Shape, patch_size: int, stride_size: int) -> npt.NDArray[np.int64]:
    """Return means of overlapping windows on the mask, rounded down, by sums along one axis after the other."""
    sums: Array = grey
    area = 1
    for axis, (whole, pixels) in enumerate(zip(level_shape, grey.shape, strict=True)):
        count = max((whole - (patch_size - stride_size)) // stride_size, 1)
        window = max(patch_size * pixels // whole, 1)
        first = np.arange(count, dtype=np.int64) * stride_size * pixels // whole
        # running sums, only where a window begins or ends: the whole mask in int64 would be large
        edges = np.unique(np.concatenate([[0], first, first + window]))
        inside = sums[: edges[-1]] if axis == 0 else sums[:, : edges[-1]]
        running = np.add.reduceat(inside, edges[:-1], axis=axis, dtype=np.int64)
        running = np.insert(np.cumsum(running, axis=axis), 0, 0, axis=axis)
        begin, end = np.searchsorted(edges, first), np.searchsorted(edges, first + window)
        sums = running.take(end, axis) - running.take(begin, axis)
        area *= window
    means: npt.NDArray[np.int64] = sums // area
    return means


def mask_level(
    spacings_mm: Sequence[float | None],
    frame_counts: Sequence[int],
    source: int,
    *,
    by_spacing: bool = False,
    resized_spacing: float | None = None,
    resized: bool = False,
    level: int | None = None,
    spacing: float | None = None,
) -> int | None:
    """Return the level whose pixels EZ-WSI takes for its tissue mask.

    The source itself where it is stored as one frame, whatever is asked for; else what is asked for; else the source
    where it is as coarse as 8 µm; else a level of about 8 µm, or a finer one down to 1 µm.

    Parameters
    ----------
    spacings_mm
        Of the stored levels, finest first: the smaller of row and column spacing, None (or NaN) where undefined.
    frame_counts
        Frames of each.
    source
        Number of the level that patches are cut from; of the one that it is resized from.
    by_spacing
        Whether EZ-WSI was given a pixel spacing instead of a level: `level_for_spacing` found the source, and that it
        may be one frame counts for nothing.
    resized
        Whether patches are cut from a resized level.
    resized_spacing
        Its spacing in mm, the smaller one; see `resized_level`.
    level, spacing
        EZ-WSI's ``mask_level``, if it is given: a stored level, or a spacing in mm.

    Returns
    -------
    int or None
        Number of a stored level. None: the *resized* source is its own mask; see `resize`.

    Raises
    ------
    OptionError
        No level is near 8 µm (or ``spacing``), and none within 8 times finer.
    """
    itself = None if resized else source
    if frame_counts[source] == 1 and not by_spacing:
        return itself
    if level is not None:
        return level
    if spacing is None:
        own = resized_spacing if resized else spacings_mm[source]
        if own is not None and own >= MASK_SPACING_MM:
            return itself
        spacing = MASK_SPACING_MM
    found = level_for_spacing(spacings_mm, spacing)
    if found is None:
        stored = ", ".join("undefined" if _undefined(value) else f"{value:g}" for value in spacings_mm)
        raise OptionError(
            f"EZ-WSI finds no level for a tissue mask of {spacing:g} mm a pixel: the stored levels have {stored} mm, "
            f"and it takes one within {_SAME_SPACING:.0%}, or up to {_MOST_DOWNSAMPLE:g} times finer; name a mask "
            "level, or give a mask"
        )
    return found


def level_for_spacing(
    spacings_mm: Sequence[float | None], target: float, max_downsample: float = _MOST_DOWNSAMPLE
) -> int | None:
    """Return the stored level that EZ-WSI takes for a pixel spacing, its faults included.

    The coarsest level that is no coarser than the target counts as equal within 23 % of the larger of the two, even
    where the next coarser one is nearer; then that next one, within 23 %; then the finer one, up to ``max_downsample``.

    Parameters
    ----------
    spacings_mm
        Of the stored levels, finest first; None or NaN where undefined.
    target
        Spacing in mm.
    max_downsample
        How much finer than the target a level may be: 8 for the sources and masks of its patch generator.

    Returns
    -------
    int or None
        Number of the level; None if there is none.
    """
    known = [(value, n) for n, value in enumerate(spacings_mm) if value is not None and not math.isnan(value)]
    # of levels with one spacing the first wins
    finer = max((k for k in known if k[0] <= target), key=lambda k: (k[0], -k[1]), default=None)
    coarser = min((k for k in known if k[0] > target), default=None)
    for candidate in (finer, coarser):
        if candidate is not None and math.isclose(candidate[0], target, rel_tol=_SAME_SPACING):
            return candidate[1]
    return finer[1] if finer is not None and target / finer[0] <= max_downsample else None


def resized_level(
    shape: Shape,
    spacing: tuple[float, float] | None,
    *,
    to_shape: Shape | None = None,
    to_spacing: tuple[float, float] | None = None,
) -> tuple[Shape, tuple[float, float] | None]:
    """Return shape and spacing of a level that EZ-WSI resizes (``Level.resize``).

    Parameters
    ----------
    shape
        Rows and columns of the stored level.
    spacing
        Its row and column spacing in mm, None where undefined.
    to_shape, to_spacing
        What to resize to: rows and columns, or row and column spacing in mm.

    Returns
    -------
    shape : tuple of int
        Rows and columns, rounded down, at least 1.
    spacing : tuple of float or None
        Row and column spacing in mm. One factor serves both axes where it leads to the same shape.

    Raises
    ------
    OptionError
        Not exactly one target is given, or a spacing for a level that has none.
    """
    if (to_shape is None) == (to_spacing is None):
        raise OptionError("a level is resized to a shape or to a spacing: give one of them")
    if to_shape is not None:
        target = _checked_shape(to_shape)
        factors = [have / want for have, want in zip(shape, target, strict=True)]
    else:
        if spacing is None or to_spacing is None:
            raise OptionError("this level has no pixel spacing: resize it to a shape")
        factors = [want / have for have, want in zip(spacing, to_spacing, strict=True)]
        target = (max(1, int(shape[0] / factors[0])), max(1, int(shape[1] / factors[1])))
    if spacing is None:
        return target, None
    if min(factors) >= 1 or max(factors) < 1:
        common = max(factors) if min(factors) >= 1 else min(factors)
        if (int(shape[0] / common), int(shape[1] / common)) == target:
            factors = [common, common]
    return target, (spacing[0] * factors[0], spacing[1] * factors[1])


def resize(pixels: Bytes, shape: Shape) -> Bytes:
    """Return a whole level resized as EZ-WSI does: by area, or cubic where it grows along an axis.

    Parameters
    ----------
    pixels
        uint8, ``(h, w)`` or ``(h, w, c)``.
    shape
        Rows and columns to make.

    Returns
    -------
    numpy.ndarray
        uint8, ``(rows, columns)`` or ``(rows, columns, c)``. By area it is exact; for cubic see
        `microtome.ops.opencv.resize_cubic`.
    """
    if shape[0] > pixels.shape[0] or shape[1] > pixels.shape[1]:
        return resize_cubic(pixels, shape)
    return resize_area(pixels, shape)


def _checked_mask(mask: Array, level_shape: Shape) -> npt.NDArray[np.bool_]:
    if mask.dtype != np.bool_:
        raise OptionError(f"EZ-WSI's masks are bool, this one is {mask.dtype}: compare it with a threshold first")
    if mask.ndim != 2 or not mask.size:
        raise OptionError(f"a mask has rows and columns, at least one of each; this one has shape {mask.shape}")
    if mask.shape[0] > level_shape[0] or mask.shape[1] > level_shape[1]:
        raise OptionError(
            f"the mask has {mask.shape[0]} x {mask.shape[1]} elements, more than the level has pixels "
            f"({level_shape[0]} x {level_shape[1]}): each is to be one stride; make it coarser, or take a finer level"
        )
    return mask


def _checked_shape(shape: Shape) -> Shape:
    rows, columns = (_positive(size, "shape") for size in shape)
    return rows, columns


def _positive(value: int, name: str) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} is a whole number of pixels, at least 1; not {value!r}")
    return int(value)


def _undefined(value: float | None) -> bool:
    return value is None or math.isnan(value)
