"""Tables of levels, spacings from coordinates, and how much coarser another grid is."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import xarray as xr

from microtome.errors import OptionError, SpacingUndefinedError
from microtome.lazy.base import plane_dims
from microtome.model import PixelSpacing, SpacingLike

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["codec_name", "level_names", "levels_table", "middle_plane", "scale_factors", "spacing_of", "target_spacing"]

_CODECS = {
    "1.2.840.10008.1.2": "native",
    "1.2.840.10008.1.2.1": "native",
    "1.2.840.10008.1.2.2": "native, big endian",
    "1.2.840.10008.1.2.1.98": "native, encapsulated",
    "1.2.840.10008.1.2.1.99": "deflated data set",
    "1.2.840.10008.1.2.8.1": "deflated frames",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.92": "JPEG 2000 part 2 lossless",
    "1.2.840.10008.1.2.4.93": "JPEG 2000 part 2",
    "1.2.840.10008.1.2.4.110": "JPEG XL lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL (from JPEG)",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.202": "HTJ2K lossless RPCL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}


def codec_name(transfer_syntax: str) -> str:
    """Return a short name for a transfer syntax; its UID where it has none."""
    return _CODECS.get(transfer_syntax, transfer_syntax)


def level_names(tree: xr.DataTree) -> list[str]:
    """Return the names of the levels of a tree, finest first."""
    names = [n for n, node in tree.children.items() if n.startswith("level") and n[5:].isdigit() and "image" in node]
    return sorted(names, key=lambda name: int(name[5:]))


def spacing_of(image: xr.DataArray) -> PixelSpacing:
    """Return the pixel spacing of an image by its coordinates; of one row or column, by its attributes.

    Raises
    ------
    SpacingUndefinedError
        There are no coordinates in mm; or there is but one row or column, and no attribute ``pixel_spacing_mm``.
    """
    stated = image.attrs.get("pixel_spacing_mm", (math.nan, math.nan))
    values = []
    for axis, dim in enumerate(("y", "x")):
        if dim not in image.coords:
            raise SpacingUndefinedError(
                "the pixel spacing of this image is not stated in its file: it has no place in mm; pixels can be "
                "selected by number"
            )
        coordinate = image.coords[dim].variable
        count = coordinate.shape[0] if coordinate.ndim else 1
        if count > 1:
            ends = coordinate[[0, -1]].values
            values.append(abs(float(ends[1] - ends[0])) / (count - 1))
        else:
            values.append(float(stated[axis]))
        if not (math.isfinite(values[-1]) and values[-1] > 0):
            raise SpacingUndefinedError(
                f"the coordinates of this image along {dim} ({count} there) tell no pixel spacing, and its attributes "
                "do not state one as pixel_spacing_mm"
            )
    # Without the noise of the last digits, which differs from crop to crop.
    return PixelSpacing(float(f"{values[0]:.12g}"), float(f"{values[1]:.12g}"))


def target_spacing(spacing: SpacingLike | None, magnification: str | float | None) -> PixelSpacing | None:
    """Return the spacing that is asked for, one way or the other; None where neither is.

    Raises
    ------
    OptionError
        Both are given, or one that has no meaning.
    """
    if spacing is not None and magnification is not None:
        raise OptionError("spacing and magnification state the same thing: give one of them")
    if magnification is not None:
        return PixelSpacing.from_magnification(magnification)
    return None if spacing is None else PixelSpacing.of(spacing)


def scale_factors(
    image: xr.DataArray,
    target: SpacingLike | None = None,
    *,
    magnification: str | float | None = None,
    shape: tuple[int, int] | None = None,
    like: xr.DataArray | None = None,
) -> tuple[float, float]:
    """Return how much coarser a target is than an image; see `ImageAccessor.scale_factors`."""
    if sum(v is not None for v in (target, magnification, shape, like)) != 1:
        raise OptionError("the target is one of: a spacing, magnification=, shape=, like=")
    if shape is not None:
        return _factors_of_shape(image, shape)
    there = spacing_of(like) if like is not None else target_spacing(target, magnification)
    assert there is not None
    here = spacing_of(image)
    return there.row / here.row, there.column / here.column


def _factors_of_shape(image: xr.DataArray, shape: tuple[int, int]) -> tuple[float, float]:
    plane = plane_dims(image.dims)
    sizes = [image.sizes.get(dim, 1) for dim in plane]
    try:
        rows, columns = (operator.index(n) for n in shape)
    except (TypeError, ValueError):
        raise OptionError("a target shape is a pair of whole numbers: (rows, columns)") from None
    # Nothing of nothing is as coarse as it was; nothing of something, or the reverse, has no factor.
    if min(rows, columns) < 0 or any((n == 0) != (m == 0) for n, m in zip(sizes, (rows, columns), strict=True)):
        raise OptionError(f"an image of {sizes[0]} x {sizes[1]} pixels cannot be brought to {rows} x {columns}")
    return sizes[0] / rows if rows else 1.0, sizes[1] / columns if columns else 1.0


def middle_plane(image: xr.DataArray) -> xr.DataArray:
    """Return the focal plane in the middle of an image, and its first optical path, if it has several of them."""
    return image.isel({d: image.sizes[d] // 2 if d == "z" else 0 for d in image.dims if d in ("z", "path")})


def levels_table(tree: xr.DataTree) -> pd.DataFrame:
    """Return one row a level; see `SlideAccessor.levels`."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name in level_names(tree):
        image = tree[name].dataset["image"]
        try:
            spacing: PixelSpacing | None = spacing_of(image)
        except SpacingUndefinedError:
            spacing = None
        sizes = image.sizes
        frame = image.attrs.get("frame_shape", (0, 0))
        colour = image.attrs.get("photometric_interpretation", "").startswith(("RGB", "YBR", "PALETTE", "XYB"))
        rows.append(
            {
                "level": name,
                "rows": sizes["y"],
                "columns": sizes["x"],
                "row_spacing": spacing.row if spacing else math.nan,
                "column_spacing": spacing.column if spacing else math.nan,
                "magnification": spacing.magnification if spacing else math.nan,
                "downsample": 1.0,
                "frames": image.attrs.get("frames", 0),
                "frame_rows": frame[0],
                "frame_columns": frame[1],
                "planes": sizes.get("z", 1),
                "paths": sizes.get("path", 1) if colour else sizes.get("c", 1),
                "channels": sizes.get("c", 1),
                "dtype": str(image.dtype),
                "codec": codec_name(image.attrs.get("transfer_syntax_uid", "")),
            }
        )
        first = rows[0]
        if rows[-1]["rows"] and rows[-1]["columns"]:
            by_rows, by_columns = first["rows"] / rows[-1]["rows"], first["columns"] / rows[-1]["columns"]
            rows[-1]["downsample"] = (by_rows + by_columns) / 2
    return pd.DataFrame(rows).set_index("level") if rows else pd.DataFrame()
