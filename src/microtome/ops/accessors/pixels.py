"""``DataArray.wsi``: reading an image, and what can be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import OptionError, SelectionError
from microtome.model import PixelSpacing, SpacingLike

if TYPE_CHECKING:
    from microtome.lazy.explain import Explanation
    from microtome.lazy.unwrap import View
    from microtome.lazy.window import Window

__all__ = ["Integers", "PixelAccessor"]

Integers = int | Sequence[int] | npt.NDArray[np.integer[Any]]


class PixelAccessor:
    """``DataArray.wsi``: reading and describing the pixels of a level.

    Parameters
    ----------
    image
        An array with dimensions ``y`` and ``x``.
    """

    def __init__(self, image: xr.DataArray) -> None:
        self._image = image
        self._plane = ("row", "column") if "row" in image.dims else ("y", "x")  # plane_dims is not loaded yet
        self._size = tuple(image.sizes.get(dim, -1) for dim in self._plane)
        self._seen: Any = None
        self._view: View | None = None
        self._window: Window | None = None

    def __getstate__(self) -> dict[str, Any]:
        # xarray pickles accessors with their arrays; windows do not travel.
        return self.__dict__ | {"_seen": None, "_view": None, "_window": None}

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
            The image is neither a view of a slide nor computed by one of our operations.
        RequestError
            The server cannot be reached, or refuses.
        """
        from microtome.lazy.prefetch import prefetch_image, prefetch_regions

        if (y0 is None) != (x0 is None):
            raise OptionError("regions have both y0 and x0")
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
            The image is neither a view of a slide nor computed by one of our operations.
        """
        from microtome.lazy.explain import explain
        from microtome.lazy.unwrap import crop_plans

        plans = crop_plans(self._image.variable)
        if plans is None:
            raise OptionError(
                "this array is neither a part of a slide nor computed by one of our operations: explain() what it is "
                "made from"
            )
        return explain(plans, self._image.nbytes)

    def coverage(self) -> xr.DataArray:
        """Return which pixels are real: True where a frame covers them, False where a fill is shown.

        Returns
        -------
        xarray.DataArray
            bool, lazy, of the dimensions of the image without colour.

        Raises
        ------
        OptionError
            The image is neither a view of a slide nor computed by one of our operations.
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

    def scale_factors(
        self,
        target: SpacingLike | None = None,
        *,
        magnification: str | float | None = None,
        shape: tuple[int, int] | None = None,
        like: xr.DataArray | None = None,
    ) -> tuple[float, float]:
        """Return how much coarser a target is than this image, along each axis.

        Exactly one target is given.

        Parameters
        ----------
        target
            Pixel spacing: `PixelSpacing`, mm for both axes, or a pair (row, column) in mm.
        magnification
            ``20`` or ``"20X"``.
        shape
            (rows, columns) to which all of this image is brought.
        like
            An image with coordinates in mm, whose spacing is the target.

        Returns
        -------
        tuple of float
            (y, x): 2.0 where a pixel of the target is as high, or wide, as two pixels of this image.

        Raises
        ------
        OptionError
            No target, several of them, or one without meaning.
        SpacingUndefinedError
            This image, or ``like``, has no coordinates in mm; ``shape`` does without.
        """
        from microtome.ops.levels import scale_factors

        return scale_factors(self._image, target, magnification=magnification, shape=shape, like=like)


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
