"""The options of a synthetic slide, checked once, and what follows from them by arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.model import OpticalPath
from microtome.testing.encode import Codec, codec_for
from microtome.testing.sources import FunctionSource, PictureSource, PixelFunction, Source
from microtome.testing.tissue import tissue

__all__ = ["Recipe"]

PICTURE_BYTES = 64_000_000  # a slide above it is a repeated mosaic

# Excitation and name of what labs use most; any other name is given a wavelength of its own.
WAVELENGTHS = {"DAPI": 405.0, "FITC": 488.0, "TRITC": 561.0, "Cy5": 640.0}


def _choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name}={value!r}: one of {', '.join(map(repr, allowed))} is allowed")


def _demand(so: bool, message: str) -> None:
    if not so:
        raise OptionError(message)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a slide; see :func:`microtome.testing.make_slide` for the meaning.

    Raises
    ------
    OptionError
        An option, or a combination of them, that no slide can have.
    """

    width: int
    height: int
    frame: tuple[int, int]
    codec: str
    levels: int | None
    downsample: int
    spacing: tuple[float, float] | None
    quality: int
    offsets: str
    fragments: int
    tiling: str
    drop: float
    shuffle: bool
    parts: int
    focal_planes: int
    z_step: float
    paths: tuple[str, ...]
    rgb_paths: int
    dtype: str
    bits_stored: int
    orientation: tuple[float, ...]
    origin: tuple[float, float]
    origin_style: str
    associated: bool
    pixels: npt.NDArray[Any] | PixelFunction | None = field(repr=False)
    seed: int
    edge: str
    distinct: int
    dimension_organization: str
    split: str | None
    study_uid: str | None
    series_uid: str | None

    def __post_init__(self) -> None:
        for name in ("width", "height", "quality", "fragments", "parts", "focal_planes", "rgb_paths", "distinct"):
            _demand(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: 1 or more is allowed")
        _demand(len(self.frame) == 2 and min(self.frame) >= 1, f"frame={self.frame}: (rows, columns) of 1 or more")
        _demand(max(self.frame) <= 65535, f"frame={self.frame}: Rows and Columns end at 65535")
        _demand(self.levels is None or self.levels >= 1, f"levels={self.levels}: 1 or more, or None, is allowed")
        _demand(self.downsample >= 2, f"downsample={self.downsample}: a whole number of 2 or more is allowed")
        _demand(self.quality <= 100, f"quality={self.quality}: 1 to 100 is allowed")
        _demand(0 <= self.drop <= 1, f"drop={self.drop}: a share from 0 to 1 is allowed")
        _demand(len(self.orientation) == 6, "orientation: six direction cosines are needed")
        _demand(self.spacing is None or min(self.spacing) > 0, f"spacing={self.spacing}: more than 0 mm is allowed")
        _choice("dtype", self.dtype, ("uint8", "uint16", "int16"))
        _choice("offsets", self.offsets, ("eot", "bot", "empty"))
        _choice("tiling", self.tiling, ("full", "sparse", "sparse-unaligned"))
        _choice("origin_style", self.origin_style, ("corner", "centre"))
        _choice("edge", self.edge, ("full", "short"))
        _choice("dimension_organization", self.dimension_organization, ("stated", "absent"))
        _choice("split", self.split, (None, "path", "plane"))
        _demand(not self.paths or self.rgb_paths == 1, "rgb_paths counts colour paths: give it or paths, not both")
        _demand(self.sparse or not self.drop, "drop leaves tiles out: it needs tiling='sparse' or 'sparse-unaligned'")
        _demand(self.sparse or not self.shuffle, "shuffle needs tiling='sparse': the order of a full tiling is fixed")
        self._check_codec()

    def _check_codec(self) -> None:
        codec = self.coding
        depth = 8 if self.dtype == "uint8" else 16
        least = 8 if depth == 8 else 9
        bits = self.bits_stored
        _demand(least <= bits <= depth, f"bits_stored={bits}: {self.dtype} holds {least} to {depth}")
        _demand(self.codec != "jpeg-12" or self.bits_stored == 12, "codec='jpeg-12' needs bits_stored=12")
        _demand(
            codec.encapsulated or self.fragments == 1, f"fragments: codec={self.codec!r} has frames without fragments"
        )
        _demand(
            self.offsets != "eot" or self.fragments == 1,
            "offsets='eot' demands one fragment a frame (PS3.3 C.7.6.3.1.8); use offsets='bot' or 'empty'",
        )
        _demand(
            self.edge == "full" or codec.own_size,
            f"edge='short' needs a codec whose frames state their size, which {self.codec!r} does not",
        )

    @property
    def coding(self) -> Codec:
        """The codec, from its name."""
        return codec_for(self.codec, self.dtype)

    @property
    def sparse(self) -> bool:
        """Whether every frame states its place."""
        return self.tiling != "full"

    @property
    def top(self) -> int:
        """Greatest sample value."""
        return int(2 ** (self.bits_stored - (self.dtype == "int16")) - 1)

    @property
    def channels(self) -> int:
        """Samples per pixel: 3, or 1."""
        if isinstance(self.pixels, np.ndarray):
            return int(self.pixels.shape[-1])
        return 1 if self.paths else 3

    @property
    def optical_paths(self) -> tuple[OpticalPath, ...]:
        """The paths, in the order of the frames."""
        if self.paths:
            return tuple(
                OpticalPath(str(n), name, WAVELENGTHS.get(name, 400.0 + 10 * n), "Epifluorescence illumination", False)
                for n, name in enumerate(self.paths, 1)
            )
        names = ["Brightfield", *(f"Brightfield {n}" for n in range(2, self.rgb_paths + 1))]
        return tuple(
            OpticalPath(str(n), name, None, "Brightfield illumination", True) for n, name in enumerate(names, 1)
        )

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each level, finest first; sizes that do not divide are rounded up."""

        def shapes() -> Iterator[tuple[int, int]]:
            rows, columns, n = self.height, self.width, 0
            while self.levels is None or n < self.levels:
                yield rows, columns
                one_frame = rows <= self.frame[0] and columns <= self.frame[1]
                if self.levels is None and one_frame:
                    return
                rows, columns, n = -(-rows // self.downsample), -(-columns // self.downsample), n + 1

        return tuple(shapes())

    def level_spacing(self, level: int) -> tuple[float, float] | None:
        """(row, column) spacing of a level in mm, or None."""
        if self.spacing is None:
            return None
        factor = self.downsample**level
        return self.spacing[0] * factor, self.spacing[1] * factor

    def level_origin(self, level: int) -> tuple[float, float]:
        """Stated origin (x, y) of a level in the slide coordinate system, in mm."""
        finest, spacing = self.level_spacing(0), self.level_spacing(level)
        if self.origin_style == "corner" or finest is None or spacing is None:
            return self.origin
        # Centres of the top left pixels of two levels that share a corner.
        down, right = (spacing[0] - finest[0]) / 2, (spacing[1] - finest[1]) / 2
        o = self.orientation
        return self.origin[0] + right * o[0] + down * o[3], self.origin[1] + right * o[1] + down * o[4]

    def positions(self, level: int) -> npt.NDArray[np.int64]:
        """(n, 2) rows and columns, from 0, of the top left pixels of the tiles; columns fastest."""
        shape = self.level_shapes[level]
        # Steps of seven eighths of a frame overlap, and meet a multiple of the frame size only every seven frames.
        steps = [n if self.tiling != "sparse-unaligned" else max(n - max(n // 8, 1), 1) for n in self.frame]
        rows, columns = (np.arange(0, size, step) for size, step in zip(shape, steps, strict=True))
        return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)

    @property
    def entropy(self) -> str:
        """Text from which all UIDs are made: equal options, equal UIDs."""
        if isinstance(self.pixels, np.ndarray):
            # The repr of a large array leaves most of it out.
            digest = hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes()).hexdigest()
            what = f"{self.pixels.dtype} {self.pixels.shape} {digest}"
        else:
            what = getattr(self.pixels, "__qualname__", type(self.pixels).__name__)
        return f"microtome {[getattr(self, f.name) for f in fields(self) if f.name != 'pixels']} {what}"

    def source(self) -> Source:
        """Where the pixels come from."""
        if callable(self.pixels):
            return FunctionSource(self.pixels, self.channels, self.dtype)
        return PictureSource(self._picture(), self.level_shapes, self.downsample)

    def _picture(self) -> Callable[[int, int], npt.NDArray[Any]]:
        if isinstance(self.pixels, np.ndarray):
            given = self.pixels
            return lambda path, plane: np.asarray(given[path, plane])
        rows, columns = self._picture_shape()
        middle = (self.focal_planes - 1) / 2

        def drawn(path: int, plane: int) -> npt.NDArray[Any]:
            return tissue(
                rows, columns, seed=self.seed, channels=self.channels, top=self.top, dtype=self.dtype, path=path,
                plane=plane, defocus=abs(plane - middle),
            )  # fmt: skip

        return drawn

    def _picture_shape(self) -> tuple[int, int]:
        """(rows, columns) of the picture: the whole of level 0 if that is small, else a mosaic of whole frames."""
        each = self.channels * np.dtype(self.dtype).itemsize * len(self.optical_paths) * self.focal_planes
        if self.height * self.width * each <= PICTURE_BYTES:
            return self.height, self.width
        # A power of the downsample keeps the mosaic of the next levels whole, too: the frames there repeat as well.
        base = 2 if self.downsample & (self.downsample - 1) == 0 else self.downsample
        side = base
        while (side * base) ** 2 <= self.distinct and (side * base) ** 2 * self.frame[0] * self.frame[1] * each <= 64e6:
            side *= base
        return side * self.frame[0], side * self.frame[1]
