"""Where the tissue of a slide is: `slide.wsi.tissue_mask`, from a low magnification, lazily."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize

from microtome.dicom.tiling import FullTiling
from microtome.errors import OptionError, SpacingUndefinedError
from microtome.lazy.chunked import lazy_variable, to_dask
from microtome.lazy.unwrap import unwrap
from microtome.model import PixelSpacing, SpacingLike
from microtome.ops.at import at, thumbnail
from microtome.ops.colouring import to_profile
from microtome.ops.grids import spacing_if_defined
from microtome.ops.levels import middle_plane
from microtome.ops.resize import Quality
from microtome.ops.tissue import METHODS, detect

__all__ = ["tissue_mask"]

Bools = npt.NDArray[np.bool_]
LONGEST = 2048
"""Pixels of the longer side of the picture that is looked at, of a slide whose spacing is not known."""


@dataclass(frozen=True)
class _Options:
    """How tissue is told; a callable from pixels and which of them are real to a mask, for one Dask task."""

    method: str | Callable[[npt.NDArray[Any]], npt.ArrayLike]
    min_luminance: float
    max_luminance: float
    spacing_mm: float | None
    closing_mm: float | None
    min_area_mm2: float | None
    kind: Literal["colour", "channels", "grey", "inverted grey"]
    bits: int

    def __call__(self, pixels: npt.NDArray[Any], valid: Bools | None = None) -> Bools:
        if valid is not None and valid.ndim == 3:
            valid = np.asarray(valid.all(axis=-1))
        return detect(
            self._prepared(pixels), self.method, min_luminance=self.min_luminance, max_luminance=self.max_luminance,
            spacing_mm=self.spacing_mm, closing_mm=self.closing_mm, min_area_mm2=self.min_area_mm2, valid=valid,
        )  # fmt: skip

    def _prepared(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return RGB of transmitted light as (h, w, 3) bytes, and fluorescence as anything that is not that."""
        if self.kind == "colour":
            return pixels if pixels.dtype == np.uint8 else (pixels >> max(0, self.bits - 8)).astype(np.uint8)
        if self.kind == "channels":
            return pixels.astype(np.uint16) if pixels.dtype == np.uint8 else pixels
        grey = (pixels[..., :1] >> max(0, self.bits - 8)).astype(np.uint8)
        return np.repeat(255 - grey if self.kind == "inverted grey" else grey, 3, axis=-1)


def tissue_mask(
    tree: xr.DataTree,
    method: str | Callable[[npt.NDArray[Any]], npt.ArrayLike],
    *,
    min_luminance: float,
    max_luminance: float,
    spacing: SpacingLike | None,
    closing: float | None,
    min_area: float | None,
    color: Any,
    quality: Quality,
) -> xr.DataArray:
    """Return which pixels of a slide at low magnification show tissue; see `SlideAccessor.tissue_mask`."""
    if isinstance(method, str) and method not in METHODS:
        raise OptionError(f"method={method!r}: it is one of {', '.join(METHODS)}, or a function of pixels")
    image = middle_plane(_picture(tree, spacing, quality))
    if color is not None:
        image = to_profile(image, color)
    mm = spacing_if_defined(image)
    options = _Options(
        method, min_luminance, max_luminance, mm.finer if mm is not None else None, closing, min_area,
        *_kind(image),
    )  # fmt: skip
    _check(options, image)
    blocks = [_whole(image)]
    if _has_holes(image):
        blocks.append(_whole(image.wsi.coverage()))
    mask = xr.DataArray(
        _apply(options, blocks),
        dims=("y", "x"),
        coords={n: c for n, c in image.coords.items() if set(c.dims) <= {"y", "x"}},
        name="tissue",
    )
    if mm is not None:
        mask.attrs["pixel_spacing_mm"] = [mm.row, mm.column]
    mask.attrs["method"] = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    return mask


def _check(options: _Options, image: xr.DataArray) -> None:
    """Refuse now what would be refused when the mask is computed: by looking at one pixel."""
    if not isinstance(options.method, str):
        options = replace(options, method=_nowhere)
    options(np.zeros((1, 1, image.sizes.get("c", 1)), image.dtype))


def _nowhere(pixels: npt.NDArray[Any]) -> Bools:
    return np.zeros(pixels.shape[:2], np.bool_)


def _picture(tree: xr.DataTree, spacing: SpacingLike | None, quality: Quality) -> xr.DataArray:
    if spacing is not None:
        try:
            return at(tree, spacing=PixelSpacing.of(spacing), quality=quality)
        except SpacingUndefinedError:
            pass
    return thumbnail(tree, LONGEST, quality=quality)


def _kind(image: xr.DataArray) -> tuple[Any, int]:
    """Return what the pixels are, and how many bits they have."""
    photometric = str(image.attrs.get("photometric_interpretation", ""))
    bits = int(image.attrs.get("bits_stored", image.dtype.itemsize * 8))
    if not photometric.startswith("MONOCHROME"):
        return ("colour" if image.sizes.get("c") == 3 else "channels"), bits
    view = unwrap(image.variable)
    paths = view.array.opened.slide.images[view.array.node].paths if view is not None else ()
    if image.sizes.get("c", 1) == 1 and any(p.transmitted for p in paths):
        return ("inverted grey" if photometric == "MONOCHROME1" else "grey"), bits
    return "channels", bits


def _has_holes(image: xr.DataArray) -> bool:
    """Tell whether there may be pixels that no frame covers."""
    view = unwrap(image.variable)
    if view is None:
        return False
    reader = view.array.opened.reader(view.array.node)
    whole = all(isinstance(matrix.tiling, FullTiling) for matrix in reader.level.matrices)
    return not whole or reader.missing == "fill"


def _whole(image: xr.DataArray) -> Any:
    """Return an image as a Dask array of one block, (y, x[, c])."""
    image = image.transpose("y", "x", ...)
    if image.chunks is None:
        view = unwrap(image.variable)
        if view is not None:
            variable = lazy_variable(view.array, view.array.dims, view.key)
            return to_dask(variable, view.array, dict.fromkeys(variable.dims, -1), f"-whole-{tokenize(view.key)}").data
    return image.chunk(dict.fromkeys(image.dims, -1)).data


def _apply(options: _Options, blocks: list[Any]) -> Any:
    """Return the mask of a picture of one block."""
    from dask import array

    da: Any = array
    rows, columns = blocks[0].shape[:2]
    axes = [("y", "x", "c")[: block.ndim] for block in blocks]
    pairs = [part for block, names in zip(blocks, axes, strict=True) for part in (block, names)]
    return da.blockwise(
        options, ("y", "x"), *pairs, dtype=bool, concatenate=True, meta=np.empty((0, 0), bool),
        name=f"microtome-tissue-{tokenize(options, [block.name for block in blocks])}",
        align_arrays=False, adjust_chunks={"y": (rows,), "x": (columns,)},
    )  # fmt: skip
