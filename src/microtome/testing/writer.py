"""From recipe to files: which frames make up which instance, each distinct one encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome.testing.dataset import Concatenation, Identity, Instance, describe
from microtome.testing.encode import CODECS, encode
from microtome.testing.part10 import FrameStore, Places, write_file
from microtome.testing.recipe import Recipe
from microtome.testing.tissue import is_background, label_picture, overview_picture

__all__ = ["SlideWriter"]

Pixels = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

THUMBNAIL_SIDE = 512  # pixels, at most


class SlideWriter:
    """Writes the files of one slide.

    Parameters
    ----------
    folder
        Where the files go.
    recipe
        All options.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe, self.source = folder, recipe, recipe.source()
        self.identity = Identity(recipe.entropy, recipe.study_uid, recipe.series_uid, recipe.orientation)
        self._number = 0

    def level(self, level: int) -> Iterator[Path]:
        """Write the instances of one level."""
        r = self.recipe
        tiles = self._tiles(level)
        paths, planes = range(len(r.optical_paths)), range(r.focal_planes)
        groups: list[tuple[str, Sequence[int], Sequence[int]]] = [("", paths, planes)]
        if r.split == "path":
            groups = [(f"_path{p + 1}", [p], planes) for p in paths]
        elif r.split == "plane":
            groups = [(f"_plane{z + 1}", paths, [z]) for z in planes]
        store = FrameStore(r.coding.encapsulated, r.fragments)
        try:
            for name, some_paths, some_planes in groups:
                yield from self._instance(level, f"level{level:02d}{name}", tiles, some_paths, some_planes, store)
        finally:
            store.close()

    def _tiles(self, level: int) -> Ints:
        """(n, 2) positions of the tiles that are written."""
        r = self.recipe
        tiles = r.positions(level)
        if r.drop == 0:
            return tiles
        known: dict[object, bool] = {}
        keep = np.ones(len(tiles), bool)
        chance = np.random.default_rng([r.seed, level]).random(len(tiles)) < r.drop
        for i in np.flatnonzero(chance).tolist():
            y, x = tiles[i].tolist()
            h, w = self._inside(level, y, x)
            key = (self.source.key(level, 0, 0, y, x), h, w)
            if key not in known:
                known[key] = is_background(self.source.region(level, 0, 0, y, x, h, w), r.top)
            keep[i] = not known[key]
        keep[0] |= not keep.any()  # an instance has at least one frame
        kept: Ints = tiles[keep]
        return kept

    def _inside(self, level: int, y: int, x: int) -> tuple[int, int]:
        """Size of the part of a frame that lies inside the level."""
        (rows, columns), (h, w) = self.recipe.level_shapes[level], self.recipe.frame
        return min(h, rows - y), min(w, columns - x)

    def _instance(
        self, level: int, name: str, tiles: Ints, paths: Sequence[int], planes: Sequence[int], store: FrameStore
    ) -> Iterator[Path]:
        """Write one instance, or the parts of its concatenation."""
        r = self.recipe
        # (path, plane, row, column) of each frame. Columns run fastest, then rows, planes and paths (PS3.3 C.7.6.17.3).
        p, z, t = (a.ravel() for a in np.meshgrid(paths, planes, np.arange(len(tiles)), indexing="ij"))
        order = np.stack([p, z, tiles[t, 0], tiles[t, 1]], 1)
        if r.shuffle:
            order = np.random.default_rng([r.seed, level, 1]).permutation(order)
        which, ratio = self._encoded(level, order, store)
        parts = min(r.parts, len(order)) if level == 0 else 1
        cuts = np.linspace(0, len(order), parts + 1).astype(int).tolist()
        for n, (start, stop) in enumerate(pairwise(cuts), 1):
            own = name if parts == 1 else f"{name}_part{n:03d}"
            self._number += 1
            instance = Instance(
                name=own, number=self._number, flavour="VOLUME", resampled=level > 0, shape=r.level_shapes[level],
                frame=r.frame, frames=stop - start, spacing=r.level_spacing(level), origin=r.level_origin(level),
                z=1000 * r.z_step * planes[0], planes=len(planes), z_step=r.z_step,
                paths=tuple(r.optical_paths[i] for i in paths), samples=r.channels,
                photometric=r.coding.photometric if r.channels == 3 else "MONOCHROME2",
                lossy=(r.coding.method, ratio) if r.coding.method else None, bits_stored=r.bits_stored, dtype=r.dtype,
                sparse=r.sparse, tiling_stated=r.dimension_organization == "stated",
                part=Concatenation(name, n, parts, start) if parts > 1 else None,
            )  # fmt: skip
            file = self.folder / f"{own}.dcm"
            write_file(
                file, describe(instance, self.identity), r.coding.transfer_syntax, store, which[start:stop],
                offsets=r.offsets if r.coding.encapsulated else None,
                places=self._places(level, order[start:stop], len(paths)) if r.sparse else None,
            )  # fmt: skip
            yield file

    def _encoded(self, level: int, order: Ints, store: FrameStore) -> tuple[Ints, float]:
        """For each frame its number in the store, every distinct one encoded once; and the compression ratio."""
        r = self.recipe
        known: dict[object, int] = {}
        which = np.empty(len(order), np.int64)
        for i, (path, plane, y, x) in enumerate(order.tolist()):
            h, w = self._inside(level, y, x)
            key = (path, plane, h, w, self.source.key(level, path, plane, y, x))
            if key not in known:
                pixels = self.source.region(level, path, plane, y, x, h, w)
                if r.edge == "full" and (h, w) != r.frame:
                    pixels = np.pad(pixels, ((0, r.frame[0] - h), (0, r.frame[1] - w), (0, 0)), mode="edge")
                known[key] = store.add(encode(pixels, r.codec, quality=r.quality, bits=r.bits_stored))
            which[i] = known[key]
        raw = len(order) * r.frame[0] * r.frame[1] * r.channels * np.dtype(r.dtype).itemsize
        return which, raw / float(store.lengths(which).sum())

    def _places(self, level: int, order: Ints, paths: int) -> Places:
        r = self.recipe
        path, plane, rows, columns = order.T
        (x0, y0), o = r.level_origin(level), r.orientation
        # Without a spacing nobody knows where a frame lies on the glass; the attribute is mandatory, the origin true.
        down, right = r.level_spacing(level) or (0.0, 0.0)
        knots = [np.unique(r.positions(level)[:, axis]) for axis in (0, 1)]
        ranks = [np.searchsorted(k, v) for k, v in zip(knots, (rows, columns), strict=True)]
        return Places(
            rows, columns,
            x=x0 + columns * right * o[0] + rows * down * o[3], y=y0 + columns * right * o[1] + rows * down * o[4],
            z=1000 * r.z_step * plane, index=np.stack([path, plane, *ranks], 1) + 1,
            paths=[r.optical_paths[i].identifier for i in path.tolist()] if paths > 1 else None,
        )  # fmt: skip

    def associated(self) -> Iterator[Path]:
        """Write the label, the overview and the thumbnail."""
        r = self.recipe
        last = len(r.level_shapes) - 1
        rows, columns = r.level_shapes[last]
        step = -(-max(rows, columns) // THUMBNAIL_SIDE)
        # Every step-th pixel: with all levels there step is 1, and without them a mean would read the whole slide.
        lines = [self.source.region(last, 0, 0, y, 0, 1, columns)[:, ::step] for y in range(0, rows, step)]
        small = np.concatenate(lines).astype(np.float32) * (255 / r.top)
        thumbnail = np.clip(np.rint(small), 0, 255).astype(np.uint8)
        label = label_picture(r.seed)
        overview = overview_picture(label, np.broadcast_to(thumbnail, (*thumbnail.shape[:2], 3)))
        stated = r.level_spacing(last)
        spacing = (stated[0] * step, stated[1] * step) if stated else None
        glass = (0.0625, 0.0625) if stated else None
        yield self._single("label", label, glass, resampled=False)
        yield self._single("overview", overview, glass, resampled=False)
        yield self._single("thumbnail", thumbnail, spacing, resampled=True)

    def _single(self, name: str, picture: Pixels, spacing: tuple[float, float] | None, resampled: bool) -> Path:
        """Write an image of one frame; baseline JPEG whatever the codec of the slide, as scanners do."""
        r, codec = self.recipe, CODECS["jpeg"]
        data = encode(picture, "jpeg", quality=90, bits=8)
        rows, columns, samples = picture.shape
        self._number += 1
        instance = Instance(
            name=name, number=self._number, flavour=name.upper(), resampled=resampled, shape=(rows, columns),
            frame=(rows, columns), frames=1, spacing=spacing, origin=r.origin, paths=r.optical_paths[:1],
            samples=samples, photometric=codec.photometric if samples == 3 else "MONOCHROME2",
            lossy=(codec.method, picture.size / len(data)),
        )  # fmt: skip
        store = FrameStore(True, 1)
        which = np.array([store.add(data)])
        file = self.folder / f"{name}.dcm"
        write_file(
            file, describe(instance, self.identity), codec.transfer_syntax, store, which, offsets="bot", places=None
        )
        store.close()
        return file
