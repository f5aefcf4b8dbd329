"""The xarray engine: ``xr.open_datatree(uri, engine="microtome")`` and its relatives."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from microtome.errors import OptionError
from microtome.lazy.datasets import dataset, root
from microtome.lazy.recipe import OpenSlide, Recipe, open_recipe
from microtome.storage.uri import is_remote, local_path

__all__ = ["MicrotomeBackendEntrypoint", "groups"]


def groups(opened: OpenSlide) -> dict[str, xr.Dataset]:
    """Return the datasets of a slide by their paths, the root first."""
    return {"/": root(opened)} | {f"/{node}": dataset(opened, node) for node in opened.slide.images}


class MicrotomeBackendEntrypoint(BackendEntrypoint):
    """Opens whole-slide images as datasets, one a level.

    All methods take the options of `microtome.open_slide`; arrays are lazy, and chunked where xarray's ``chunks`` asks.
    """

    description = "Whole-slide images (DICOM, DICOMweb) as lazy arrays"
    url = "https://github.com/microtome/microtome"
    supports_groups = True
    # Stated, because xarray cannot find them out behind **options.
    open_dataset_parameters = (
        "filename_or_obj", "drop_variables", "group", "series", "storage_options", "frame_order", "missing", "fill",
        "alignment", "prefer", "credentials", "metadata", "read_ahead", "rendered",
    )  # fmt: skip

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        **options: Any,
    ) -> xr.Dataset:
        """Open one level or associated image; ``group`` is its path, ``level0`` where none is named."""
        opened = open_recipe(Recipe.make(filename_or_obj, **options))
        images = opened.slide.images
        node = next(iter(images)) if group is None else group.strip("/")
        if node not in images:
            raise OptionError(f"group={group!r}: the slide has {', '.join(images)}")
        return dataset(opened, node).drop_vars(_names(drop_variables), errors="ignore")

    def open_groups_as_dict(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, **options: Any
    ) -> dict[str, xr.Dataset]:
        """Open every level and associated image, by its path."""
        found = groups(open_recipe(Recipe.make(filename_or_obj, **options)))
        return {path: ds.drop_vars(_names(drop_variables), errors="ignore") for path, ds in found.items()}

    def open_datatree(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, **options: Any
    ) -> xr.DataTree:
        """Open a slide as a tree."""
        return xr.DataTree.from_dict(
            self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, **options)
        )

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Tell whether this is a DICOM file of this machine, or a folder with one; the network is not asked."""
        if not isinstance(filename_or_obj, str | os.PathLike) or is_remote(os.fspath(filename_or_obj)):
            return False
        path = Path(local_path(os.fspath(filename_or_obj)))
        try:
            files = islice(path.iterdir(), 16) if path.is_dir() else [path]
            return any(_is_dicom(file) for file in files if file.is_file())
        except OSError:
            return False


def _names(names: str | Iterable[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
