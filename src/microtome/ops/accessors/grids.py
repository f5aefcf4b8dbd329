"""``DataArray.wsi``: images on other grids, parts and patches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import xarray as xr

from microtome.model import SpacingLike

__all__ = ["GridAccessor"]


class GridAccessor:
    """``DataArray.wsi``: other grids, regions, patches and drawings of an image."""

    _image: xr.DataArray

    def resize(
        self,
        spacing: SpacingLike | None = None,
        *,
        magnification: str | float | None = None,
        shape: tuple[int, int] | None = None,
        like: xr.DataArray | None = None,
        nearest: bool | None = None,
        quality: Literal["exact", "fast"] = "exact",
    ) -> xr.DataArray:
        """Resample this image to exactly a grid; lazy where the image is.

        Any part of the result has the pixels that it has in the whole: neither the size of blocks nor a crop changes
        them by more than rounding. A grid by spacing is anchored at level 0's corner: a crop has the pixels of the
        whole level there, those whose centres it shows.

        Parameters
        ----------
        spacing
            In mm: a number, (row, column), or a `PixelSpacing`. Pixels of it that lie on the level entirely
            are the result's.
        magnification
            Such as ``"10X"``, by the convention that 10X is 1 µm a pixel.
        shape
            (rows, columns) that the image shall have.
        like
            An image whose rows and columns to have. What lies beyond this image is filled: a mask with False.
        nearest
            Whether pixels are copies of their nearest neighbours, as of labels they must be. Default: for bool only.
        quality
            ``"fast"``: where the grid is coarser by 2, 4 or 8 times, or by much more, frames are decoded at a part of
            their size: JPEG by its low frequencies, at half the cost. In the mean 1 or 2 grey values from the exact
            means; at sharp edges single pixels may be tens away. No difference for nearest neighbours, and for images
            that are computed from others.

        Returns
        -------
        xarray.DataArray
            Of the same dtype and dimensions, with coordinates in mm where the image has them. Where it is coarser than
            the image, a pixel is the mean of its area, else it is interpolated linearly; along each axis by itself.

        Raises
        ------
        OptionError
            Not one target, but none or several.
        SpacingUndefinedError
            The image has no place in mm, and the target is no shape.
        """
        from microtome.ops.resize import resize, target_of

        return resize(self._image, nearest=nearest, quality=quality, **target_of(spacing, magnification, shape, like))

    def like(self, other: xr.DataArray) -> xr.DataArray:
        """Return this mask (or image) on the rows and columns of another image: by mm, from nearest neighbours.

        Levels share corners, not coordinates: ``mask & other_mask`` of two of them is empty, ``mask.wsi.like(level)``
        is how they meet. Beyond its edges a mask is False, wholly where it lies beside the image.

        Parameters
        ----------
        other
            An image with coordinates in mm.
        """
        from microtome.ops.resize import resize

        return resize(self._image, like=other, nearest=True)

    def region(
        self,
        y: float,
        x: float,
        height: int,
        width: int,
        *,
        unit: Literal["pixel", "mm"] = "pixel",
        fill: float | Sequence[float] | None = None,
        require_inside: bool = False,
    ) -> xr.DataArray:
        """Return a rectangle of this image, which may run off its edges; lazy where the image is.

        Parameters
        ----------
        y, x
            Place of the top left corner.
        height, width
            In pixels of this image.
        unit
            Of ``y`` and ``x``: pixels of this image, or mm from level 0's corner (the nearest pixel border).
        fill
            Value beyond the edges, one or one a channel. Default: as where a slide has no frame, white for transmitted
            light; 0 for images that are no view of a slide.
        require_inside
            Whether a rectangle that runs off raises.

        Returns
        -------
        xarray.DataArray
            ``(y, x[, c])`` and further dimensions of the image; coordinates go on beyond its edges. What it costs does
            not depend on how far it runs off.

        Raises
        ------
        SelectionError
            It runs off, and ``require_inside``.
        OptionError
            Pixels that are not whole, or a fill that no pixel has.
        SpacingUndefinedError
            A place in mm on an image that has none.
        """
        from microtome.ops.regions import region

        return region(self._image, y, x, height, width, unit=unit, fill=fill, require_inside=require_inside)

    def patches(
        self,
        size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        *,
        mask: Any = None,
        min_fraction: float | None = None,
        pad: Literal["drop", "fill"] = "drop",
        fill: float | Sequence[float] | None = None,
        origins: Any = None,
        anchor: Literal["corner", "center"] | tuple[int, int] = "corner",
        order: Literal["place", "rows", "random", "given"] | None = None,
        seed: int | None = None,
        chunks: Literal["auto"] | int | None = "auto",
    ) -> xr.Dataset:
        """Cut this image into patches, lazily.

        A chunk of patches is read together: frames that they share are fetched and decoded once, and kept for the next
        chunk. ``isel``, ``map_blocks``, ``to_zarr`` and the like are plain xarray and Dask.

        Parameters
        ----------
        size, stride
            Of a patch, and from one to the next: a number of pixels, or (rows, columns). Default stride: the size.
        mask
            What patches shall show: a bool DataArray with coordinates in mm, an array of bool that covers this image,
            or polygons (GeoJSON as QuPath writes it, in pixels of level 0; shapely geometries in mm).
        min_fraction
            The least part of a patch, by area, that the mask covers. Default: 0.5.
        pad
            ``"drop"``: patches that lie inside, ``1 + (H - size) // stride`` along an axis. ``"fill"``: those that
            begin inside, ``ceil(H / stride)``, filled beyond the edge.
        fill
            Value beyond the edges; see `region`.
        origins
            Places of one's own instead of a grid: (row, column) of the top left pixels, inside the image or not.
        anchor
            Where the grid lies: from the ``"corner"``, in the ``"center"``, or so that a patch begins at (row, column).
        order
            ``"place"`` (default): near ones together, along a Hilbert curve, which is read fastest. ``"rows"``: by row,
            then column. ``"random"``: shuffled, by ``seed``, before chunks are made: a permutation of a dataset in
            chunks would read nearly all of them for each. ``"given"``: as in ``origins`` (their default).
        seed
            For ``order="random"``.
        chunks
            Patches a Dask task reads: ``"auto"`` for some 16 MB, a number, or None for lazy arrays without Dask, which
            read what is selected when it is (any order of patches, too).

        Returns
        -------
        xarray.Dataset
            ``image`` (patch, ..., y, x[, c]); along ``patch`` the coordinates ``row``, ``column`` (pixels of this
            image), ``y0``, ``x0`` (its corner in mm), ``tissue_fraction`` where there is a mask, and ``id``, which
            names the patch whatever crop it was cut from. No patches make an empty dataset.

        Raises
        ------
        OptionError
            A size, stride, mask or option that has no meaning.
        SelectionError
            The mask lies beside the image.
        SpacingUndefinedError
            The mask has a place in mm, and the image has none.
        """
        from microtome.ops.patches.dataset import patches

        return patches(
            self._image, size, stride, mask=mask, min_fraction=min_fraction, pad=pad, fill=fill, origins=origins,
            anchor=anchor, order=order, seed=seed, chunks=chunks,
        )  # fmt: skip

    def rasterise(self, polygons: Any) -> xr.DataArray:
        """Return which pixels of this image have their centres in polygons: a bool mask with its rows and columns.

        Parameters
        ----------
        polygons
            GeoJSON as QuPath writes it, in pixels of level 0 (a mapping, text, or the path of a file), or shapely
            geometries in mm.

        Raises
        ------
        OptionError
            There is no polygon in them.
        """
        from microtome.ops.masks.drawn import rasterised

        return rasterised(polygons, self._image)
