"""The ``.wsi`` accessors of DataTree, Dataset and DataArray: thin; the work is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError, SelectionError
from microtome.model import PixelSpacing

if TYPE_CHECKING:
    import pandas as pd
    from pydicom.dataset import Dataset as DicomDataset

    from microtome.lazy.explain import Explanation
    from microtome.lazy.unwrap import View
    from microtome.lazy.window import Window

__all__ = ["ImageAccessor", "LevelAccessor", "SlideAccessor", "register"]

Integers = int | Sequence[int] | npt.NDArray[np.integer[Any]]


class ImageAccessor:
    """``DataArray.wsi``: reading and describing the pixels of a level.

    Parameters
    ----------
    image
        An array with dimensions ``y`` and ``x``.
    """

    def __init__(self, image: xr.DataArray) -> None:
        self._image = image
        self._plane = ("row", "column") if "row" in image.dims else ("y", "x")
        self._size = tuple(image.sizes.get(dim, -1) for dim in self._plane)
        self._seen: Any = None
        self._view: View | None = None
        self._window: Window | None = None

    def _unwrap(self) -> View | None:
        """Return what the image shows of a slide, looked up once for as long as its data stay the same."""
        data = self._image.variable._data
        if data is not self._seen or (self._window is not None and not self._window.current):
            from microtome.lazy.unwrap import unwrap

            view = unwrap(self._image.variable)
            self._window = view.window() if view is not None else None
            self._view = view
            self._seen = data
        return self._view

    def read(
        self, y0: Integers, x0: Integers, height: int, width: int, out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]:
        """Read a region, or many of one size, straight into NumPy.

        Parameters
        ----------
        y0, x0
            Row and column of the top left pixel; arrays of one length for many regions. Frames that regions share are
            decoded once.
        height, width
            In pixels.
        out
            C-contiguous array of the shape and dtype of the result, to be filled and returned.

        Returns
        -------
        numpy.ndarray
            ``(height, width, c)``, with any further dimensions of the image in their places; ``(n, height, width, c)``
            where ``y0`` and ``x0`` are arrays.

        Raises
        ------
        SelectionError
            A region is not inside the image.
        FrameError
            A frame is missing or damaged.
        """
        single = isinstance(y0, int | np.integer) and isinstance(x0, int | np.integer)
        corners = [(int(y0), int(x0))] if single else _corners(y0, x0)  # type: ignore[arg-type]
        self._unwrap()
        self._check_inside(corners, height, width)
        if out is not None:
            _check_out(out, self._shape(height, width, None if single else len(corners)), self._image.dtype)
        window = self._window
        if window is None:
            return self._read_any(corners, height, width, out, single)
        if single:
            return window.read(*corners[0], height, width, out)
        return window.read_many(corners, height, width, out)

    def _check_inside(self, corners: list[tuple[int, int]], height: int, width: int) -> None:
        rows, columns = self._size
        if min(rows, columns) < 0:
            dims = ", ".join(map(str, self._image.dims))
            raise OptionError(f"regions are read from arrays with dimensions y and x; this one has {dims}")
        for y, x in corners:
            if y < 0 or x < 0 or height < 0 or width < 0 or y + height > rows or x + width > columns:
                raise SelectionError(
                    f"rows {y} to {y + height} and columns {x} to {x + width} are not inside an image of "
                    f"{rows} x {columns} pixels"
                )

    def _shape(self, height: int, width: int, regions: int | None) -> tuple[int, ...]:
        """Return the shape of what `read` returns."""
        image = self._image
        sizes = {self._plane[0]: height, self._plane[1]: width}
        shape = tuple(sizes.get(str(d), n) for d, n in zip(image.dims, image.shape, strict=True))
        return shape if regions is None else (regions, *shape)

    def _read_any(
        self, corners: list[tuple[int, int]], height: int, width: int, out: npt.NDArray[Any] | None, single: bool
    ) -> npt.NDArray[Any]:
        """Read regions of an array that is computed, or shows its pixels in another order than stored."""
        if out is None:
            out = np.empty(self._shape(height, width, None if single else len(corners)), self._image.dtype)
        down, across = self._plane
        for n, (y, x) in enumerate(corners):
            part = self._image.variable.isel({down: slice(y, y + height), across: slice(x, x + width)})
            (out if single else out[n])[...] = part.values
        return out

    def prefetch(self, y0: Integers | None = None, x0: Integers | None = None, height: int = 0, width: int = 0) -> int:
        """Fetch the encoded frames under this image, or under regions of it, into the frame cache; decode none.

        For slides on a server: what is read of them afterwards, through Dask for example, waits for nothing. Frames of
        files are not kept.

        Parameters
        ----------
        y0, x0, height, width
            Regions, as for `read`. Default: all of the image.

        Returns
        -------
        int
            Number of frames that were fetched.

        Raises
        ------
        SelectionError
            A region is not inside the image.
        OptionError
            The image is computed from a slide, not a view of one.
        RequestError
            The server cannot be reached, or refuses.
        """
        from microtome.lazy.prefetch import prefetch_image, prefetch_regions

        if y0 is None or x0 is None:
            return prefetch_image(self._image)
        corners = _corners(y0, x0)
        self._check_inside(corners, height, width)
        self._unwrap()
        return prefetch_regions(self._window, corners, height, width)

    def explain(self) -> Explanation:
        """Say what reading this image would take: frames, reads and bytes. No pixel is read.

        Raises
        ------
        OptionError
            The image is computed from a slide, not a view of one.
        """
        from microtome.lazy.explain import explain
        from microtome.lazy.unwrap import crop_requests

        asked = crop_requests(self._image.variable)
        if asked is None:
            raise OptionError("this array is not a part of a slide as it is stored: explain() the part it is made from")
        return explain(asked, self._image.nbytes)

    def coverage(self) -> xr.DataArray:
        """Return which pixels are real: True where a frame covers them, False where a fill is shown.

        Returns
        -------
        xarray.DataArray
            bool, lazy, of the dimensions of the image without colour.

        Raises
        ------
        OptionError
            The image is not a part of a slide as it is stored.
        """
        from microtome.lazy.coverage import coverage

        return coverage(self._image, self._unwrap())

    @property
    def spacing(self) -> PixelSpacing:
        """Distance between neighbouring pixels in mm, by the coordinates.

        Raises
        ------
        SpacingUndefinedError
            The image has no coordinates in mm.
        """
        from microtome.ops.levels import spacing_of

        return spacing_of(self._image)


def _check_out(out: npt.NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise OptionError(f"out is {out.dtype} {out.shape}; a C-contiguous array of {dtype} {shape} is needed")


def _corners(y0: Any, x0: Any) -> list[tuple[int, int]]:
    ys, xs = np.atleast_1d(y0), np.atleast_1d(x0)
    if ys.dtype.kind not in "iu" or xs.dtype.kind not in "iu":
        if ys.size or xs.size:
            raise SelectionError("y0 and x0 are whole numbers of pixels")
        return []
    ys, xs = np.broadcast_arrays(ys, xs)
    if ys.ndim != 1:
        raise SelectionError(f"y0 and x0 have {ys.ndim} dimensions; they are numbers, or arrays of one dimension")
    return list(zip(ys.tolist(), xs.tolist(), strict=True))


class LevelAccessor:
    """``Dataset.wsi``: what `ImageAccessor` does, for the image of a level."""

    def __init__(self, level: xr.Dataset) -> None:
        if "image" not in level:
            raise OptionError("this dataset has no image: .wsi is for the levels of a slide")
        self._image = level["image"]

    def read(
        self, y0: Integers, x0: Integers, height: int, width: int, out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]:
        """Read a region; see `ImageAccessor.read`."""
        pixels: npt.NDArray[Any] = self._image.wsi.read(y0, x0, height, width, out)
        return pixels

    def explain(self) -> Explanation:
        """Say what reading the level would take; see `ImageAccessor.explain`."""
        explanation: Explanation = self._image.wsi.explain()
        return explanation

    def prefetch(self, y0: Integers | None = None, x0: Integers | None = None, height: int = 0, width: int = 0) -> int:
        """Fetch frames into the frame cache; see `ImageAccessor.prefetch`."""
        fetched: int = self._image.wsi.prefetch(y0, x0, height, width)
        return fetched

    def coverage(self) -> xr.DataArray:
        """Return which pixels are real; see `ImageAccessor.coverage`."""
        covered: xr.DataArray = self._image.wsi.coverage()
        return covered

    @property
    def spacing(self) -> PixelSpacing:
        """Distance between neighbouring pixels in mm; see `ImageAccessor.spacing`."""
        spacing: PixelSpacing = self._image.wsi.spacing
        return spacing


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

    def prefetch(self, *targets: str | xr.DataArray) -> int:
        """Fetch encoded frames into the frame cache; see `ImageAccessor.prefetch`.

        Parameters
        ----------
        *targets
            Levels by their paths, such as ``"level2"``, and images or crops of them. Default: what this tree shows.

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


def register() -> None:
    """Register the accessors with xarray."""
    # xarray leaves these functions untyped.
    for extend, accessor in (
        (xr.register_dataarray_accessor, ImageAccessor),
        (xr.register_dataset_accessor, LevelAccessor),
        (xr.register_datatree_accessor, SlideAccessor),
    ):
        decorate: Callable[[str], Callable[[type], type]] = extend
        decorate("wsi")(accessor)
