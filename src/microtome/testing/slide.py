"""make_slide: the public face of the synthetic slides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.testing.recipe import Recipe
from microtome.testing.sources import PixelFunction, Source
from microtome.testing.writer import SlideWriter

__all__ = ["SyntheticSlide", "make_slide"]

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class SyntheticSlide:
    """A slide that was written, and the pixels that went into it.

    Parameters
    ----------
    folder
        Where the files are.
    files
        Those of the levels, finest first, in the order in which they were written; then the associated images.
    level_shapes
        (rows, columns) of the total pixel matrix of each level.
    spacings
        (row, column) in mm of each level, or None.
    """

    folder: Path
    files: tuple[Path, ...]
    level_shapes: tuple[tuple[int, int], ...]
    spacings: tuple[tuple[float, float] | None, ...]
    _source: Source = field(repr=False, compare=False)

    def pixels(self, level: int, plane: int = 0, path: int = 0) -> Pixels:
        """Exact pixels (rows, columns, channels) of a whole level before encoding; for slides that fit into memory."""
        return self.region(level, 0, 0, *self.level_shapes[level], plane=plane, path=path)

    def region(self, level: int, y: int, x: int, h: int, w: int, plane: int = 0, path: int = 0) -> Pixels:
        """Exact pixels (h, w, channels) of a region of a level before encoding.

        Raises
        ------
        OptionError
            The region leaves the level.
        """
        rows, columns = self.level_shapes[level]
        if not (0 <= y <= y + h <= rows and 0 <= x <= x + w <= columns):
            raise OptionError(f"region y={y}, x={x}, {h} x {w} leaves level {level} of {rows} x {columns} pixels")
        return self._source.region(level, path, plane, y, x, h, w)


def make_slide(
    folder: str | os.PathLike[str],
    *,
    width: int = 4096,
    height: int = 3072,
    frame: int | tuple[int, int] = (256, 256),
    codec: str = "jpeg",
    levels: int | None = None,
    downsample: int = 2,
    spacing: float | tuple[float, float] | None = 0.0005,
    quality: int = 80,
    offsets: str = "eot",
    fragments: int = 1,
    tiling: str = "full",
    drop: float = 0.0,
    shuffle: bool = False,
    parts: int = 1,
    focal_planes: int = 1,
    z_step: float = 0.001,
    paths: Sequence[str] = (),
    rgb_paths: int = 1,
    dtype: str = "uint8",
    bits_stored: int | None = None,
    orientation: Sequence[float] = (0, -1, 0, -1, 0, 0),
    origin: tuple[float, float] = (20.0, 40.0),
    origin_style: str = "corner",
    associated: bool = True,
    pixels: Pixels | PixelFunction | None = None,
    seed: int = 0,
    edge: str = "full",
    distinct: int = 64,
    dimension_organization: str = "stated",
    split: str | None = None,
    study_uid: str | None = None,
    series_uid: str | None = None,
) -> SyntheticSlide:
    """Write a synthetic slide: a pyramid of VL Whole Slide Microscopy Image instances (PS3.3 A.32.8).

    Equal arguments write equal bytes (UIDs included). A slide above 64 MB of pixels repeats a mosaic of a few frames,
    each encoded once: 40960 x 40960 pixels take seconds, and little memory.

    Parameters
    ----------
    folder
        Made if need be. Files of earlier slides in it stay, unless they have the same names.
    width, height
        Pixels of level 0; with an array as ``pixels``, its own size counts instead.
    frame
        (rows, columns) of a frame, or one number for both.
    codec
        A key of :data:`microtome.testing.encode.CODECS`: jpeg, jpeg-rgb, jpeg-12, jpeg-lossless, jpeg-ls,
        jpeg-ls-near, j2k-lossless, j2k, htj2k-lossless, htj2k, jpeg-xl-lossless, jpeg-xl, rle, deflated-frame,
        encapsulated-native, native, native-implicit, native-bigendian, native-deflated.
    levels
        How many; None goes down to a level of one frame.
    downsample
        From each level to the next.
    spacing
        Of level 0, in mm: one number, (row, column), or None for a slide without any pixel measures.
    quality
        1 to 100, for the lossy codecs.
    offsets
        Where frames start is told by "eot" (Extended Offset Table), "bot" (Basic Offset Table) or not ("empty").
    fragments
        Items for each frame; more than one excludes "eot".
    tiling
        "full": by the order of the frames. "sparse": each frame states its place. "sparse-unaligned": and the places
        are no multiples of the frame size, and overlap.
    drop
        Share of the background tiles that a sparse tiling leaves out.
    shuffle
        Whether the frames of a sparse tiling lie in random order.
    parts
        Instances of the concatenation that holds level 0.
    focal_planes, z_step
        How many, and their distance in mm.
    paths
        Names of monochrome fluorescence paths; none for RGB.
    rgb_paths
        Number of RGB paths.
    dtype, bits_stored
        "uint8", "uint16" or "int16" (which the standard does not know for slides), and how many bits are used.
    orientation, origin, origin_style
        Image Orientation (Slide); the origin (x, y) of level 0 in mm; and whether all levels state this "corner", or
        each the "centre" of its own first pixel, so that origins differ by half the difference of the spacings.
    associated
        Whether to write a label, an overview and a thumbnail.
    pixels
        None: tissue, from ``seed``. An array (rows, columns), (rows, columns, c), (planes, rows, columns, c) or
        (paths, planes, rows, columns, c), c 1 or 3: level 0, whose box means are the other levels; missing axes are
        the same everywhere. A function ``f(level, path, plane, y0, x0, h, w)`` that returns (h, w, c): every pixel of
        every level, never asked beyond their borders (the name of the function, not its code, goes into the UIDs).
    seed
        Of everything random.
    edge
        "full": frames at the right and bottom border are filled up by repeating the last pixels. "short": they are
        encoded at the size that is left.
    distinct
        How many frames the mosaic of a large slide has, about.
    dimension_organization
        "stated", or "absent" to leave Dimension Organization Type out.
    split
        None, or one instance for each "path" or focal "plane" of a level.
    study_uid, series_uid
        In place of made ones.

    Returns
    -------
    SyntheticSlide

    Raises
    ------
    OptionError
        An option, or a combination of them, that no slide can have; the message says what is allowed.
    """
    if isinstance(pixels, np.ndarray):
        pixels = _five_axes(pixels, focal_planes, len(paths) or rgb_paths)
        height, width = pixels.shape[2:4]
        dtype = str(pixels.dtype)
    recipe = Recipe(
        width=int(width), height=int(height), frame=(int(frame), int(frame)) if np.ndim(frame) == 0 else tuple(frame),  # type: ignore[arg-type]
        codec=codec, levels=levels, downsample=int(downsample), spacing=_pair(spacing), quality=int(quality),
        offsets=offsets, fragments=int(fragments), tiling=tiling, drop=float(drop), shuffle=bool(shuffle),
        parts=int(parts), focal_planes=int(focal_planes), z_step=float(z_step), paths=tuple(paths),
        rgb_paths=int(rgb_paths), dtype=dtype, orientation=tuple(map(float, orientation)),
        bits_stored=bits_stored or (12 if codec == "jpeg-12" else 8 if dtype == "uint8" else 16),
        origin=(float(origin[0]), float(origin[1])), origin_style=origin_style, associated=bool(associated),
        pixels=pixels, seed=int(seed), edge=edge, distinct=int(distinct),
        dimension_organization=dimension_organization, split=split, study_uid=study_uid, series_uid=series_uid,
    )  # fmt: skip
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    writer = SlideWriter(where, recipe)
    files = [file for level in range(len(recipe.level_shapes)) for file in writer.level(level)]
    if recipe.associated:
        files += writer.associated()
    spacings = tuple(recipe.level_spacing(n) for n in range(len(recipe.level_shapes)))
    return SyntheticSlide(where, tuple(files), recipe.level_shapes, spacings, writer.source)


def _pair(spacing: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if spacing is None:
        return None
    row, column = np.broadcast_to(np.asarray(spacing, float), 2).tolist()
    return row, column


def _five_axes(pixels: Pixels, planes: int, paths: int) -> Pixels:
    """View an array as (paths, planes, rows, columns, channels)."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    shape = (1,) * (5 - pixels.ndim) + pixels.shape
    if len(shape) != 5 or shape[4] not in (1, 3) or shape[0] not in (1, paths) or shape[1] not in (1, planes):
        raise OptionError(
            f"pixels of shape {pixels.shape}: ([paths,] [planes,] rows, columns, c) is allowed, with c 1 or 3, "
            f"{planes} focal planes and {paths} optical paths"
        )
    return np.broadcast_to(pixels.reshape(shape), (paths, planes, *shape[2:]))
