"""What a file says beyond pixels and geometry: headers, colour profiles. Identifying attributes are here only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from microtome.errors import OptionError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from microtome.lazy.recipe import OpenSlide

__all__ = ["icc_profile", "ignored", "metadata"]


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
    from microtome.dicom.header import parse_dataset

    images = _opened(tree).slide.images
    return {node: [parse_dataset(i.outline) for i in level.instances] for node, level in images.items()}


def ignored(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Return (file, reason) of what is no part of the slide."""
    return list(_opened(tree).slide.ignored)


def icc_profile(tree: xr.DataTree, node: str, path: int) -> bytes | None:
    """Return the ICC profile of an optical path, else the instance's, else None."""
    from microtome.dicom.header import parse_dataset

    images = _opened(tree).slide.images
    if node not in images:
        raise OptionError(f"node {node!r}: the slide has {', '.join(images)}")
    ds = parse_dataset(images[node].head.outline)
    paths = ds.get("OpticalPathSequence") or []
    for holder in ([paths[path]] if path < len(paths) else []) + [ds]:
        profile = holder.get("ICCProfile")
        if profile:
            return bytes(profile)
    return None
