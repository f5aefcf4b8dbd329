"""From an open slide to the datasets of its tree: lazy variables, coordinates in mm, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.dicom.geometry import Placement
from microtome.dicom.pyramid import Level
from microtome.lazy.array import SlideArray
from microtome.lazy.base import plane_dims
from microtome.lazy.blocks import block_shape
from microtome.lazy.chunked import lazy_variable, to_dask
from microtome.lazy.recipe import OpenSlide
from microtome.lazy.unwrap import unwrap
from microtome.model import PixelSpacing

__all__ = ["axis_coordinate", "chunk", "dataset", "root"]

_ASSOCIATED_DIMS = {"y": "row", "x": "column"}


def axis_coordinate(offset: float, spacing: float, count: int, first: int = 0) -> npt.NDArray[np.float64]:
    """Return the pixel centres along an axis in mm from level 0's corner: the one place that makes coordinates.

    ``offset`` is the outer edge of pixel 0; the result begins with pixel ``first``.
    """
    centres: npt.NDArray[np.float64] = offset + (np.arange(first, first + count, dtype=np.float64) + 0.5) * spacing
    return centres


def root(opened: OpenSlide) -> xr.Dataset:
    """Return the root of a tree: provenance of the slide, no variables."""
    images = opened.slide.images
    head = next(iter(images.values())).head
    attrs: dict[str, Any] = {"series_instance_uid": head.series_uid}
    if head.pyramid_uid:
        attrs["pyramid_uid"] = head.pyramid_uid
    geometry = opened.geometry
    if geometry.corner is not None:
        attrs["slide_corner_mm"] = list(geometry.corner)
    if geometry.orientation is not None:
        attrs["image_orientation_slide"] = list(geometry.orientation)
    return xr.Dataset(attrs=attrs)


def _frame_chunks(array: SlideArray, level: Level) -> dict[str, int]:
    """Return the extent of one stored frame along each dimension of an array."""
    head = level.head
    extents = {"z": 1, "path": 1, "y": head.tile_rows, "x": head.tile_columns, "c": head.format.channels}
    return {d: min(extents[d], n) if n else extents[d] for d, n in zip(array.dims, array.shape, strict=True)}


def _variable(opened: OpenSlide, node: str, attrs: dict[str, Any]) -> xr.Variable:
    array = SlideArray.of(opened, node)
    level = opened.slide.images[node]
    names = _ASSOCIATED_DIMS if node.startswith("associated/") else {}
    dims = tuple(names.get(d, d) for d in array.dims)
    chunks = {names.get(d, d): n for d, n in _frame_chunks(array, level).items()}
    variable = lazy_variable(array, dims)
    variable.attrs = attrs
    variable.encoding = {"preferred_chunks": chunks}
    return variable


def dataset(opened: OpenSlide, node: str) -> xr.Dataset:
    """Return the dataset of a level or an associated image, nothing read."""
    level = opened.slide.images[node]
    place = opened.geometry.placements[node]
    attrs = _provenance(level, place.spacing)
    image = _variable(opened, node, attrs)
    return xr.Dataset({"image": image}, coords=_coordinates(level, place, image), attrs=attrs)


def _coordinates(level: Level, place: Placement, image: xr.Variable) -> dict[str, xr.Variable]:
    coords: dict[str, xr.Variable] = {}
    y, x = plane_dims(image.dims)
    rows, columns = level.head.rows, level.head.columns
    if place.spacing is not None:
        mm = {"units": "mm", "axis_origin": "corner of level 0"} if y == "y" else {"units": "mm"}
        coords["y"] = xr.Variable(y, axis_coordinate(place.y, place.spacing.row, rows), mm)
        coords["x"] = xr.Variable(x, axis_coordinate(place.x, place.spacing.column, columns), mm)
    elif y == "y":
        coords["y_pixel"] = xr.Variable("y", np.arange(rows))
        coords["x_pixel"] = xr.Variable("x", np.arange(columns))
    labels = _labels(level)
    colour = level.head.format.channels == 3
    coords["c"] = xr.Variable("c", np.array(["r", "g", "b"] if colour else labels))
    if "path" in image.dims:
        coords["path"] = xr.Variable("path", np.array(labels))
    if "z" in image.dims and None not in level.z:
        coords["z"] = xr.Variable("z", np.array(level.z, np.float64), {"units": "µm", "long_name": "focal offset"})
    return coords


def _labels(level: Level) -> list[str]:
    """Return a name for each optical path, each another."""
    labels = [path.label for path in level.paths]
    for i, path in enumerate(level.paths):
        if labels.count(path.label) > 1:
            labels[i] = f"{path.label} ({path.identifier})"
    return [
        f"{name} #{labels[: i + 1].count(name)}" if labels.count(name) > 1 else name for i, name in enumerate(labels)
    ]


def _provenance(level: Level, spacing: PixelSpacing | None) -> dict[str, Any]:
    """Return what is known of a level that its coordinates do not say; nothing that identifies a patient."""
    head = level.head
    fmt = head.format
    attrs: dict[str, Any] = {
        "sop_instance_uids": [i.sop_instance_uid for i in level.instances][:64],
        "transfer_syntax_uid": fmt.transfer_syntax,
        "photometric_interpretation": fmt.photometric,
        "bits_stored": fmt.bits_stored,
        "total_pixel_matrix": [head.rows, head.columns],
        "frame_shape": [fmt.rows, fmt.columns],
        "frames": sum(i.frames for i in level.instances),
        "image_type": list(head.image_type),
        "optical_paths": [
            {"label": p.label, "wavelength_nm": p.wavelength, "illumination": p.illumination} for p in level.paths
        ],
    }
    if spacing is not None:
        attrs["pixel_spacing_mm"] = [spacing.row, spacing.column]
    if level.alternatives:
        attrs["alternatives"] = list(level.alternatives)
    return attrs


def chunk(data: xr.Dataset, chunks: Mapping[str, int] | None) -> xr.Dataset:
    """Return a dataset with its image as a Dask array, under a name that nothing else has.

    Parameters
    ----------
    data
        As `dataset` returns it.
    chunks
        Extent of a block along the dimensions it names, along others that of a frame; None for blocks of a good size.
    """
    image = data["image"].variable
    view = unwrap(image)
    assert view is not None
    array = view.array
    frame: dict[str, int] = image.encoding["preferred_chunks"]
    y, x = plane_dims(image.dims)
    if chunks is None:
        shape = block_shape(image.sizes, frame, y, x, image.dtype.itemsize)
    else:
        shape = frame | {d: n for d, n in chunks.items() if d in frame}
    return data.assign(image=to_dask(image, array, shape))
