"""Which frame is where: a slide whose every (path, plane, tile) is a distinct constant, stored in every order there is.

Oracle: the constant of a tile, computed from its path, plane, row and column.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

import microtome as mt
from microtome.dicom.functional_groups import parse_positions
from microtome.dicom.part10 import PER_FRAME_GROUPS, read_outline
from microtome.errors import AlternativesWarning
from microtome.storage import LocalSource
from microtome.testing import make_slide

PATHS, PLANES, DOWN, ACROSS = 2, 3, 2, 5
FRAME = (6, 8)
ABSENT = -(2**31)


def constant(path: int, plane: int, row: int, column: int) -> int:
    return 1 + ((path * PLANES + plane) * DOWN + row) * ACROSS + column


def expected() -> np.ndarray:
    """(z, y, x, c)"""
    tiles = np.fromfunction(lambda z, y, x, c: constant(c, z, y, x), (PLANES, DOWN, ACROSS, PATHS), dtype=int)
    assert len(np.unique(tiles)) == tiles.size == 60
    return tiles.repeat(FRAME[0], 1).repeat(FRAME[1], 2)[:, : FRAME[0] * DOWN - 1, : FRAME[1] * ACROSS - 3]


def pixels() -> np.ndarray:
    """(paths, planes, rows, columns, 1), as make_slide takes it"""
    return np.moveaxis(expected(), -1, 0)[..., None].astype("uint8")


def write(folder: Path, **options) -> list[Path]:
    options = {"pixels": pixels(), "focal_planes": PLANES, "paths": ["DAPI", "Cy5"], "codec": "native"} | options
    return list(make_slide(folder, frame=FRAME, levels=1, associated=False, **options).files)


STORED = {
    "full": {},
    "sparse": {"tiling": "sparse"},
    "sparse and shuffled": {"tiling": "sparse", "shuffle": True},
    "one instance a path": {"split": "path"},
    "one instance a plane": {"split": "plane"},
    "one sparse instance a path": {"split": "path", "tiling": "sparse", "shuffle": True},
    "one sparse instance a plane": {"split": "plane", "tiling": "sparse", "shuffle": True},
    "concatenation": {"parts": 7},
    "sparse concatenation": {"parts": 7, "tiling": "sparse", "shuffle": True},
    "concatenations, one a plane": {"parts": 3, "split": "plane"},
    "encapsulated concatenation": {"parts": 4, "codec": "rle", "offsets": "bot"},
}


@pytest.mark.parametrize("stored", STORED)
def test_every_tile_of_every_plane_and_path_is_in_its_place(tmp_path, stored):
    write(tmp_path, **STORED[stored])
    image = mt.open_slide(tmp_path, chunks=None)["level0"].image
    assert image.dims == ("z", "y", "x", "c")
    assert image.c.values.tolist() == ["DAPI", "Cy5"]
    np.testing.assert_allclose(image.z, [0, 1, 2])
    np.testing.assert_array_equal(image.values, expected())
    assert image.wsi.coverage().values.all()
    # Single tiles, by other ways to the same frames.
    np.testing.assert_array_equal(image.isel(z=1, c=1, y=8, x=slice(14, 18)).values, expected()[1, 8, 14:18, 1])
    np.testing.assert_array_equal(image.wsi.read(4, 5, 5, 9), expected()[:, 4:9, 5:14])


def test_files_may_come_in_any_order_of_their_names(tmp_path):
    files = write(tmp_path / "a", parts=7)
    (tmp_path / "b").mkdir()
    for n, file in enumerate(files):
        shutil.copy(file, tmp_path / "b" / f"{(n * 5 + 3) % 7}")
    np.testing.assert_array_equal(mt.open_slide(tmp_path / "b")["level0"].image.values, expected())


@pytest.mark.parametrize("split", ["path", "plane"])
def test_paths_and_planes_are_merged_whatever_the_names_of_their_files(tmp_path, split):
    files = write(tmp_path / "a", split=split)
    (tmp_path / "b").mkdir()
    for n, file in enumerate(reversed(files)):
        shutil.copy(file, tmp_path / "b" / f"{n}")
    image = mt.open_slide(tmp_path / "b")["level0"].image
    for c, name in enumerate(["DAPI", "Cy5"]):
        np.testing.assert_array_equal(image.sel(c=name).values, expected()[..., c])
    np.testing.assert_allclose(image.z, [0, 1, 2])


def test_identifiers_that_repeat_do_not_merge_paths(tmp_path):
    """Writers exist that give the only path of each instance the identifier 1."""
    for file in write(tmp_path, split="path"):
        ds = pydicom.dcmread(file)
        ds.OpticalPathSequence[0].OpticalPathIdentifier = "1"
        ds.SharedFunctionalGroupsSequence[0].OpticalPathIdentificationSequence[0].OpticalPathIdentifier = "1"
        ds.save_as(file)
    image = mt.open_slide(tmp_path)["level0"].image
    assert sorted(image.c.values.tolist()) == ["Cy5", "DAPI"]
    for c, name in enumerate(["DAPI", "Cy5"]):
        np.testing.assert_array_equal(image.sel(c=name).values, expected()[..., c])


def test_colour_paths_lie_along_path(tmp_path):
    colour = np.repeat(pixels(), 3, -1) + np.array([0, 60, 120], "uint8")
    write(tmp_path, pixels=colour, paths=(), rgb_paths=2)
    image = mt.open_slide(tmp_path)["level0"].image
    assert image.dims == ("z", "path", "y", "x", "c")
    assert image.c.values.tolist() == ["r", "g", "b"]
    assert image.path.values.tolist() == ["Brightfield", "Brightfield 2"]
    np.testing.assert_array_equal(image.values, np.moveaxis(colour, 0, 1))


@pytest.mark.parametrize("codec", ["native", "native-implicit"])
@pytest.mark.parametrize("keyword", ["RowPositionInTotalImagePixelMatrix", "ColumnPositionInTotalImagePixelMatrix"])
def test_an_empty_place_is_absent(tmp_path, codec, keyword):
    """What stands behind an element without a value is not its value."""
    (file,) = write(tmp_path, tiling="sparse", codec=codec)
    ds = pydicom.dcmread(file)
    ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence[0][keyword].value = None
    ds.save_as(file)
    outline = read_outline(LocalSource(str(file), file.stat().st_size))
    located = outline.located[PER_FRAME_GROUPS]
    data = outline.source.read(located.offset, located.length)
    positions = parse_positions(data, outline.encoding, int(ds.NumberOfFrames), "file")
    assert not positions.stated
    row = keyword.startswith("Row")
    assert (positions.row == ABSENT).nonzero()[0].tolist() == ([3] if row else [])
    assert (positions.column == ABSENT).nonzero()[0].tolist() == ([] if row else [3])


def move_tiles(file: Path, moves: dict[int, tuple[int, int]]) -> None:
    """Put frames (numbered from 0) elsewhere: (row, column) from 0."""
    ds = pydicom.dcmread(file)
    for frame, (row, column) in moves.items():
        place = ds.PerFrameFunctionalGroupsSequence[frame].PlanePositionSlideSequence[0]
        place.RowPositionInTotalImagePixelMatrix = row + 1
        place.ColumnPositionInTotalImagePixelMatrix = column + 1
    ds.save_as(file)


def painted(places: list[tuple[int, int]], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Paint frames of constants 1, 2, ... in order of their numbers; 0 where none is."""
    canvas = np.zeros((shape[0] + 2 * FRAME[0], shape[1] + 2 * FRAME[1]), int)
    for number, (row, column) in enumerate(places):
        canvas[row + FRAME[0] : row + 2 * FRAME[0], column + FRAME[1] : column + 2 * FRAME[1]] = number + 1
    canvas = canvas[FRAME[0] : -FRAME[0], FRAME[1] : -FRAME[1]]
    return canvas, canvas > 0


OVERLAPS = {
    "unaligned": {4: (1, 35), 9: (5, 29)},
    "overlapping, the later on top": {2: (3, 12), 7: (4, 20)},
    "the same place twice": {6: (6, 0)},
    "off the grid by one": {n: (r * 6 + 1, c * 8 - 1) for n, (r, c) in enumerate(np.ndindex(2, 5)) if c},
    "over the edge": {9: (9, 35), 5: (8, -3)},
}


@pytest.mark.parametrize("which", OVERLAPS)
@pytest.mark.parametrize("codec", ["native", "rle"])
def test_unaligned_and_overlapping_tiles(tmp_path, which, codec):
    (file,) = write(tmp_path, pixels=pixels()[:1, :1], focal_planes=1, paths=["DAPI"], tiling="sparse", codec=codec)
    moves = OVERLAPS[which]
    move_tiles(file, moves)
    places = [moves.get(n, (r * 6, c * 8)) for n, (r, c) in enumerate(np.ndindex(2, 5))]
    image = mt.open_slide(tmp_path, chunks=None)["level0"].image
    values, real = painted(places, image.shape[:2])
    np.testing.assert_array_equal(image.values[..., 0], values)
    np.testing.assert_array_equal(image.wsi.coverage().values.reshape(real.shape), real)
    for y in range(0, image.shape[0], 3):
        np.testing.assert_array_equal(image[y, 5:33:4, 0].values, values[y, 5:33:4])
    np.testing.assert_array_equal(image.wsi.read(2, 3, 7, 20)[..., 0], values[2:9, 3:23])
    blocks = mt.open_slide(tmp_path, chunks={"y": 5, "x": 7})["level0"].image
    np.testing.assert_array_equal(blocks.values[..., 0], values)


def test_sparse_unaligned_slides_of_make_slide(tmp_path):
    slide = make_slide(tmp_path, width=300, height=200, frame=64, codec="rle", tiling="sparse-unaligned", shuffle=True)
    tree = mt.open_slide(tmp_path)
    for n in range(len(slide.level_shapes)):
        np.testing.assert_array_equal(tree[f"level{n}"].image.values, slide.pixels(n))


def copy_of(file: Path, uid: str, **changes) -> str:
    """Write another instance beside a file: its pixels inverted, some attributes changed."""
    ds = pydicom.dcmread(file)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
    ds.PixelData = bytes(255 - b for b in ds.PixelData)
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.save_as(file.with_name(f"{uid}.dcm"))
    return uid


def test_duplicates_are_alternatives(tmp_path):
    (file,) = write(tmp_path)
    original = str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)
    other = copy_of(file, "1.2.3.4")
    with pytest.warns(AlternativesWarning, match="prefer="):
        slide = mt.open_slide(tmp_path)
    assert list(slide.children) == ["level0"]
    first = slide["level0"].image
    assert first.shape == expected().shape
    (rest,) = first.attrs["alternatives"]
    assert {*first.attrs["sop_instance_uids"], rest} == {original, other}
    for uid, values in ((original, expected()), (other, 255 - expected())):
        with pytest.warns(AlternativesWarning, match=re.escape(other if uid == original else original)):
            chosen = mt.open_slide(tmp_path, prefer=uid)["level0"].image
        np.testing.assert_array_equal(chosen.values, values)


def test_extended_depth_of_field_is_an_alternative_to_the_stack(tmp_path):
    (stack,) = write(tmp_path / "a")
    (single,) = write(tmp_path / "b", focal_planes=1, pixels=pixels()[:, :1])
    uid = str(pydicom.dcmread(stack, stop_before_pixels=True).SeriesInstanceUID)
    pyramid = str(pydicom.dcmread(stack, stop_before_pixels=True).PyramidUID)
    edf = copy_of(single, "1.2.3.5", ExtendedDepthOfField="YES", SeriesInstanceUID=uid, PyramidUID=pyramid)
    shutil.move(single.with_name(f"{edf}.dcm"), tmp_path / "a")
    with pytest.warns(AlternativesWarning):
        slide = mt.open_slide(tmp_path / "a")
    assert list(slide.children) == ["level0"]
    np.testing.assert_array_equal(slide["level0"].image.values, expected())
    assert slide["level0"].image.attrs["alternatives"] == [edf]
    with pytest.warns(AlternativesWarning):
        chosen = mt.open_slide(tmp_path / "a", prefer=edf)["level0"].image
    assert chosen.dims == ("y", "x", "c")
    np.testing.assert_array_equal(chosen.values, 255 - expected()[0])


def test_the_same_instance_twice_is_a_copy(tmp_path):
    (file,) = write(tmp_path)
    shutil.copy(file, tmp_path / "zz.dcm")
    slide = mt.open_slide(tmp_path)
    np.testing.assert_array_equal(slide["level0"].image.values, expected())
    ((name, reason),) = slide.wsi.ignored
    assert name == str(tmp_path / "zz.dcm")
    assert "copy" in reason


def test_overlapping_tiles_keep_their_order_when_neighbours_were_read(tmp_path):
    """Frames that were kept decoded would be pasted before those that are read: below what lies below them."""
    (file,) = write(tmp_path, pixels=pixels()[:1, :1], focal_planes=1, paths=["DAPI"], tiling="sparse", codec="rle")
    moves = {3: (0, 20)}
    move_tiles(file, moves)
    places = [moves.get(n, (r * 6, c * 8)) for n, (r, c) in enumerate(np.ndindex(2, 5))]
    image = mt.open_slide(tmp_path, chunks=None)["level0"].image
    values, _ = painted(places, image.shape[:2])
    for size, origin in ((3, (0, 25)), ((5, 8), (0, 18)), (3, (0, 18)), ((5, 12), (0, 16))):
        patch = image.wsi.patches(size, origins=[origin]).image[0, ..., 0].values
        rows, columns = patch.shape
        np.testing.assert_array_equal(patch, values[:rows, origin[1] : origin[1] + columns])
