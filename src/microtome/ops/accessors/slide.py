"""``DataTree.wsi``: the slide as a whole; thin, the work is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError
from microtome.model import SpacingLike

if TYPE_CHECKING:
    import pandas as pd
    from pydicom.dataset import Dataset as DicomDataset

    from microtome.ops.stain import Reinhard, StainFit

__all__ = ["SlideAccessor"]


class SlideAccessor:
    """``DataTree.wsi``: the slide as a whole."""

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    @property
    def levels(self) -> pd.DataFrame:
        """The levels, one row each, finest first.

        Columns: ``rows``, ``columns``, ``row_spacing`` and ``column_spacing`` (mm, NaN where undefined),
        ``magnification``, ``downsample`` (to the finest), ``frames``, ``frame_rows``, ``frame_columns``, ``planes``,
        ``paths``, ``channels``, ``dtype``, ``codec``.
        """
        from microtome.ops.levels import levels_table

        return levels_table(self._tree)

    def level(
        self,
        index: int | str | None = None,
        *,
        spacing: SpacingLike | None = None,
        magnification: str | float | None = None,
        rtol: float = 0.25,
        max_downsample: float | None = None,
    ) -> xr.DataArray:
        """Return the image of a stored level: by number or name, spacing, or magnification. Exactly one is given.

        By spacing or magnification, a level counts as equal where its spacing and the target differ by no more than
        ``rtol`` of the larger of the two; the nearest of these, by ratio, is returned. Where none counts as equal and
        ``max_downsample`` is given, it is the nearest finer level from which the target is no more than so many times
        coarser. Spacings are those of the coordinates, so crops keep theirs. Where rows and columns differ in spacing,
        the finer axis counts, of levels and target alike.

        Parameters
        ----------
        index
            Number of a level as in its name, 0 the finest as stored; -1 is the coarsest that is there, -2 the next.
            Or a name: ``"level2"``, ``"label"``, ``"overview"``, ``"thumbnail"``.
        spacing
            `PixelSpacing`, mm for both axes, or a pair (row, column) in mm.
        magnification
            ``20`` or ``"20X"``, which stands for 0.01 / 20 mm.
        rtol
            From 0 to below 1. At 0.25, levels from 0.75 to 1 / 0.75 times the target count as equal, ends included.
        max_downsample
            1 or more.

        Returns
        -------
        xarray.DataArray
            As stored, nothing read; ``(y, x, c)``, with further dimensions where there are any, or ``(row, column, c)``
            of an associated image.

        Raises
        ------
        LevelNotFoundError
            There is no such level; the message lists those there are.
        SpacingUndefinedError
            The files state no spacing of any level.
        OptionError
            None or several of the ways to choose are used, or an argument has no meaning.
        """
        from microtome.ops.choosing import choose_level

        return choose_level(
            self._tree,
            index,
            spacing=spacing,
            magnification=magnification,
            rtol=rtol,
            max_downsample=max_downsample,
        )

    def at(
        self,
        spacing: SpacingLike | None = None,
        *,
        magnification: str | float | None = None,
        shape: tuple[int, int] | None = None,
        like: xr.DataArray | None = None,
        nearest: bool | None = None,
        quality: Literal["exact", "fast"] = "exact",
    ) -> xr.DataArray:
        """Return the image of the slide on exactly a grid, resampled lazily from the nearest finer stored level.

        Pixels are square where the spacing is one number, whatever those of the levels are. Where all levels are
        coarser, the finest is enlarged. A level that has the grid is returned as it is stored.

        Parameters
        ----------
        spacing, magnification, shape, like, nearest, quality
            The grid; see `ImageAccessor.resize`. By ``shape``, the level is the smallest that has as many pixels.

        Returns
        -------
        xarray.DataArray
            ``(y, x, c)``, with further dimensions where the levels have any; read by ``wsi.read``, cut by
            ``wsi.patches`` and computed by Dask as a level is.

        Raises
        ------
        OptionError
            Not one target, but none or several.
        SpacingUndefinedError
            The slide states no spacing, and the target is no shape.
        """
        from microtome.ops.at import at
        from microtome.ops.resize import target_of

        return at(self._tree, nearest=nearest, quality=quality, **target_of(spacing, magnification, shape, like))

    def thumbnail(self, max_size: int = 512) -> xr.DataArray:
        """Return a small image of the whole slide, from the smallest level that suffices.

        Parameters
        ----------
        max_size
            Of the longer side, in pixels; less where the finest level is smaller.

        Returns
        -------
        xarray.DataArray
            Lazy; pixels are square, values are those stored.
        """
        from microtome.ops.at import thumbnail

        return thumbnail(self._tree, max_size)

    def tissue_mask(
        self,
        method: str | Callable[[npt.NDArray[Any]], npt.ArrayLike] = "stain",
        *,
        min_luminance: float = 1 / 255,
        max_luminance: float = 0.8,
        spacing: SpacingLike | None = 0.008,
        closing: float | None = None,
        min_area: float | None = None,
        color: str | Path | bytes | None = None,
        quality: Literal["fast", "exact"] = "fast",
    ) -> xr.DataArray:
        """Return which pixels show tissue, at low magnification; lazy.

        Parameters
        ----------
        method
            ``"stain"``: what absorbs light, but no ink, border or shadow; see docs/tissue.md. ``"luminance"``: EZ-WSI's
            rule, grey values from ``min_luminance`` to ``max_luminance``. ``"otsu"``, ``"saturation"``: Otsu's
            threshold of either. A function of pixels (h, w, 3) to bool (h, w). Fluorescence is bright on dark.
        min_luminance, max_luminance
            From 0 to 1, for ``"luminance"``.
        spacing
            Of the mask, in mm. Resampled from the nearest finer level, however fine, in bounded memory. A slide that
            states no spacing is looked at in 2048 pixels.
        closing, min_area
            Gaps up to so many mm are closed, regions of fewer mm² left out.
        color
            A profile to convert to before; see `ImageAccessor.to_profile`.
        quality
            ``"fast"``: frames of a much finer level may be decoded at a part of their size; see
            `ImageAccessor.resize`.

        Returns
        -------
        xarray.DataArray
            (y, x) bool, with coordinates in mm. Pixels that no frame covers are never tissue.

        Raises
        ------
        OptionError
            A method or bounds of no meaning.
        SpacingUndefinedError
            ``closing`` or ``min_area`` of a slide that states no spacing.
        MissingDependencyError
            scikit-image is not installed, which all but ``"luminance"`` and functions need.
        """
        from microtome.ops.tissue_mask import tissue_mask

        return tissue_mask(
            self._tree, method, min_luminance=min_luminance, max_luminance=max_luminance, spacing=spacing,
            closing=closing, min_area=min_area, color=color, quality=quality,
        )  # fmt: skip

    def fit_stain(
        self,
        method: Literal["macenko", "vahadane", "reinhard"] = "macenko",
        *,
        mask: Any = None,
        spacing: SpacingLike = 0.004,
        pixels: int = 200_000,
    ) -> StainFit | Reinhard:
        """Find out what the stains of this slide look like, from its tissue at low magnification.

        Parameters
        ----------
        method
            ``"macenko"`` (2009) and ``"vahadane"`` (2016) find the colours of hematoxylin and eosin, ``"reinhard"``
            (2001) mean and spread of all colours.
        mask
            Where to look: all that `ImageAccessor.patches` takes for one. Default: `tissue_mask`.
        spacing
            In mm.
        pixels
            The most that are looked at: evenly spread over the tissue, the same each time.

        Returns
        -------
        StainFit or Reinhard
            For `ImageAccessor.normalize`, of this slide or another.

        Raises
        ------
        OptionError
            There is too little tissue, the slide is not RGB of 8 bit, or has but one stain.
        """
        from microtome.ops.staining import fit_stain

        return fit_stain(self._tree, method, mask, spacing, pixels)

    def ez_wsi_patches(
        self,
        patch_size: int,
        stride_size: int | None = None,
        *,
        level: int | None = None,
        spacing: SpacingLike | None = None,
        shape: tuple[int, int] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
        mask_level: int | SpacingLike | None = None,
        min_luminance: float = 1 / 255,
        max_luminance: float = 0.8,
        color: str | Path | bytes | None = None,
        chunks: Literal["auto"] | int | None = "auto",
    ) -> xr.Dataset:
        """Cut exactly the patches that EZ-WSI's ``DicomPatchGenerator`` makes of the same parameters, in its order.

        For work that shall go on as it began; `ImageAccessor.patches` with `tissue_mask` is what else to use. The rules
        are EZ-WSI's of version 6.1.6, with the arithmetic of its averages to the last bit.

        Parameters
        ----------
        patch_size, stride_size
            In pixels; patches are square. Default stride: the size.
        level, spacing
            Where patches are cut: a stored level, 0 the finest (EZ-WSI's 1), or the one it finds for a spacing in mm.
        shape
            (rows, columns) that the level is resized to first.
        mask
            Tissue instead of luminance, an array of bool: each element is one stride.
        mask_level
            Where luminance is looked at: the number of a stored level (an int), or a spacing in mm (a float). Default:
            as EZ-WSI, about 8 µm.
        min_luminance, max_luminance
            Of tissue, from 0 to 1.
        color
            A profile to convert to before luminance; EZ-WSI's ``mask_color_transform``.
        chunks
            See `ImageAccessor.patches`.

        Returns
        -------
        xarray.Dataset
            As of `ImageAccessor.patches`. Pixels of a level that is resized are those of the whole level resized, which
            EZ-WSI's, resized patch by patch, approach.

        Raises
        ------
        LevelNotFoundError
            There is no such level, or EZ-WSI finds none.
        OptionError
            What EZ-WSI refuses: patches larger than the level, a mask that is not bool or has more elements than the
            level pixels, levels of more than 8 bit; no level for the mask.
        """
        from microtome.ops.ez_wsi_slide import ez_wsi_patches

        return ez_wsi_patches(
            self._tree, patch_size, stride_size, level=level, spacing=spacing, shape=shape, mask=mask,
            mask_level=mask_level, min_luminance=min_luminance, max_luminance=max_luminance, color=color, chunks=chunks,
        )  # fmt: skip

    @property
    def associated(self) -> list[str]:
        """Names of the associated images: label, overview, thumbnail."""
        return list(self._tree["associated"].children) if "associated" in self._tree.children else []

    @property
    def metadata(self) -> dict[str, list[DicomDataset]]:
        """The DICOM headers by node, one pydicom data set an instance, identifying attributes included."""
        from microtome.ops.metadata import metadata

        return metadata(self._tree)

    def to_json(self) -> str:
        """Return the DICOM headers of all instances as DICOM JSON (PS3.18 F), identifying attributes included.

        ``mt.open_slide(url, metadata=...)`` opens the slide from it without asking the server. Per-frame groups are cut
        down to the positions of frames.
        """
        from microtome.ops.metadata import to_json

        return to_json(self._tree)

    @property
    def ignored(self) -> list[tuple[str, str]]:
        """(file, reason) of what was found beside the slide and is no part of it."""
        from microtome.ops.metadata import ignored

        return ignored(self._tree)

    def prefetch(self, *targets: str | xr.DataArray | xr.Dataset) -> int:
        """Fetch encoded frames into the frame cache; see `ImageAccessor.prefetch`.

        Parameters
        ----------
        *targets
            Levels by their paths, such as ``"level2"``, images or crops of them, and patches. Default: what this tree
            shows.

        Returns
        -------
        int
            Number of frames that were fetched.
        """
        from microtome.ops.metadata import images

        found = images(self._tree) if not targets else [self._image(t) if isinstance(t, str) else t for t in targets]
        return sum(image.wsi.prefetch() for image in found)

    def _image(self, path: str) -> xr.DataArray:
        try:
            image: xr.DataArray = self._tree[path].dataset["image"]
        except KeyError:
            raise OptionError(f"{path!r}: the slide has {', '.join(self._tree.children)}") from None
        return image

    def icc_profile(self, node: str = "level0", path: int = 0) -> bytes | None:
        """Return the ICC profile of an image, or None where it has none.

        Parameters
        ----------
        node
            Path of a level or an associated image.
        path
            Number of the optical path.
        """
        from microtome.ops.metadata import icc_profile

        return icc_profile(self._tree, node, path)

    def to_slide(self, y: npt.ArrayLike, x: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Convert coordinates of the tree to the slide coordinate system (PS3.3 C.8.12.2.1).

        Parameters
        ----------
        y, x
            In mm from level 0's top left corner, as the coordinates of the levels are.

        Returns
        -------
        tuple of numpy.ndarray
            (X, Y) in mm, from the origin of the slide.

        Raises
        ------
        OptionError
            The file does not state where its pixels lie on the slide.
        """
        from microtome.ops.slide_coordinates import to_slide

        return to_slide(self._tree.attrs, y, x)

    def from_slide(
        self, slide_x: npt.ArrayLike, slide_y: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Convert slide coordinates to those of the tree: the inverse of `to_slide`.

        Parameters
        ----------
        slide_x, slide_y
            In mm from the origin of the slide.

        Returns
        -------
        tuple of numpy.ndarray
            (y, x) in mm.
        """
        from microtome.ops.slide_coordinates import from_slide

        return from_slide(self._tree.attrs, slide_x, slide_y)
