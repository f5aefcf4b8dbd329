"""What a file says beyond pixels and geometry: headers, colour profiles. Identifying attributes are here only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from microtome.errors import OptionError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from microtome.lazy.recipe import OpenSlide

__all__ = ["icc_profile", "ignored", "images", "metadata", "profile_of", "to_json"]


def _opened(tree: xr.DataTree) -> OpenSlide:
    """Return the slide that a tree, or a crop of it, shows."""
    from microtome.lazy.unwrap import unwrap

    for image in images(tree):
        view = unwrap(image.variable)
        if view is not None:
            return view.array.opened
    raise OptionError("this tree is no longer lazy: its metadata are with the tree that open_slide returned")


def images(tree: xr.DataTree) -> list[xr.DataArray]:
    """Return the images of a tree."""
    return [node.dataset["image"] for node in tree.subtree if "image" in node.data_vars]


def metadata(tree: xr.DataTree) -> dict[str, list[Dataset]]:
    """Return the headers by node, one data set an instance."""
    levels = _opened(tree).slide.images
    return {node: [i.record.dataset() for i in level.instances] for node, level in levels.items()}


def to_json(tree: xr.DataTree) -> str:
    """Return the headers of all instances as DICOM JSON."""
    from microtome.dicom.json_positions import instances_to_json

    levels = _opened(tree).slide.images
    return instances_to_json(i.record.json() for level in levels.values() for i in level.instances)


def ignored(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Return (file, reason) of what is no part of the slide."""
    return list(_opened(tree).slide.ignored)


def icc_profile(tree: xr.DataTree, node: str, path: int) -> bytes | None:
    """Return the ICC profile of an optical path, else the instance's, else None."""
    return profile_of(_opened(tree), node, path)


def profile_of(opened: OpenSlide, node: str, path: int) -> bytes | None:
    """Return the ICC profile of an optical path of an image, else the instance's, else None."""
    levels = opened.slide.images
    if node not in levels:
        raise OptionError(f"node {node!r}: the slide has {', '.join(levels)}")
    ds = levels[node].head.record.dataset(["ICCProfile"])
    paths = ds.get("OpticalPathSequence") or []
    for holder in ([paths[path]] if path < len(paths) else []) + [ds]:
        profile = holder.get("ICCProfile")
        if profile:
            return bytes(profile)
    return None
