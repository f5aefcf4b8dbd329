"""What a file says beyond pixels and geometry: headers, colour profiles. Identifying attributes are here only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import xarray as xr

from microtome.errors import OptionError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from microtome.lazy.recipe import OpenSlide

__all__ = ["icc_profile", "ignored", "metadata", "to_json"]


def _opened(tree: xr.DataTree) -> OpenSlide:
    """Return the slide that a tree, or a crop of it, shows."""
    from microtome.lazy.unwrap import unwrap

    for node in tree.subtree:
        if "image" in node.data_vars:
            view = unwrap(node.dataset["image"].variable)
            if view is not None:
                return view.array.opened
    raise OptionError("this tree is no longer lazy: its metadata are with the tree that open_slide returned")


def metadata(tree: xr.DataTree) -> dict[str, list[Dataset]]:
    """Return the headers by node, one data set an instance."""
    images = _opened(tree).slide.images
    return {node: [i.record.dataset() for i in level.instances] for node, level in images.items()}


def to_json(tree: xr.DataTree) -> str:
    """Return the headers of all instances as DICOM JSON."""
    images = _opened(tree).slide.images
    return json.dumps([i.record.json() for level in images.values() for i in level.instances])


def ignored(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Return (file, reason) of what is no part of the slide."""
    return list(_opened(tree).slide.ignored)


def icc_profile(tree: xr.DataTree, node: str, path: int) -> bytes | None:
    """Return the ICC profile of an optical path, else the instance's, else None."""
    images = _opened(tree).slide.images
    if node not in images:
        raise OptionError(f"node {node!r}: the slide has {', '.join(images)}")
    ds = images[node].head.record.dataset(["ICCProfile"])
    paths = ds.get("OpticalPathSequence") or []
    for holder in ([paths[path]] if path < len(paths) else []) + [ds]:
        profile = holder.get("ICCProfile")
        if profile:
            return bytes(profile)
    return None
