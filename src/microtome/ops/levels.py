"""Tables of levels, and spacings from coordinates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import xarray as xr

from microtome.errors import SpacingUndefinedError
from microtome.model import PixelSpacing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["codec_name", "level_names", "levels_table", "spacing_of"]

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
    names = [name for name in tree.children if name.startswith("level") and name[5:].isdigit()]
    return sorted(names, key=lambda name: int(name[5:]))


def spacing_of(image: xr.DataArray) -> PixelSpacing:
    """Return the pixel spacing of an image by its coordinates; of one row or column, by its attributes.

    Raises
    ------
    SpacingUndefinedError
        There are no coordinates in mm.
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
    return PixelSpacing(values[0], values[1])


def levels_table(tree: xr.DataTree) -> pd.DataFrame:
    """Return one row a level; see `SlideAccessor.levels`."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name in level_names(tree):
        image = tree[name].dataset["image"]
        try:
            spacing = spacing_of(image)
        except SpacingUndefinedError:
            spacing = PixelSpacing(math.nan, math.nan)
        sizes = image.sizes
        frame = image.attrs.get("frame_shape", (0, 0))
        colour = image.attrs.get("photometric_interpretation", "").startswith(("RGB", "YBR", "PALETTE", "XYB"))
        rows.append(
            {
                "level": name,
                "rows": sizes["y"],
                "columns": sizes["x"],
                "row_spacing": spacing.row,
                "column_spacing": spacing.column,
                "magnification": spacing.magnification,
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
