"""Patches: where they lie, what they show, and what it costs; against slices of the whole level in NumPy."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import pickle
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import microtome as mt
from microtome.dicom.decoding import FrameDecoder
from microtome.errors import OptionError, SelectionError, SpacingUndefinedError
from microtome.lazy.decoded import decoded_frames
from microtome.lazy.recipe import forget_open_slides
from microtome.ops.patches.array import lazy_patches
from microtome.ops.patches.order import hilbert
from microtome.testing import DICOMwebServer, SyntheticSlide, make_slide
from oracles import as_image, assemble

WHITE = (255, 255, 255)
HEIGHT, WIDTH, FRAME = 500, 600, 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("slide"), width=WIDTH, height=HEIGHT, frame=FRAME, codec="deflated-frame")


@pytest.fixture(scope="module")
def truth(made: SyntheticSlide) -> Any:
    return made.pixels(0)


@pytest.fixture
def level(made: SyntheticSlide) -> xr.DataArray:
    decoded_frames().renew()  # an earlier test may have kept some
    image: xr.DataArray = mt.open_slide(made.folder)["level0"].image
    return image


def cut(picture: Any, places: Any, size: tuple[int, int], fill: Any = WHITE) -> Any:
    """Patches (n, height, width, ...) of a picture (rows, columns, ...) in memory, pixel by pixel."""
    rows, columns = picture.shape[:2]
    out = np.empty((len(places), *size, *picture.shape[2:]), picture.dtype)
    out[...] = fill
    for n, (row, column) in enumerate(places):
        for y in range(max(row, 0), min(row + size[0], rows)):
            left, right = max(column, 0), min(column + size[1], columns)
            if left < right:
                out[n, y - row, left - column : right - column] = picture[y, left:right]
    return out


def places_of(patches: xr.Dataset) -> list[tuple[int, int]]:
    return list(zip(patches.row.values.tolist(), patches.column.values.tolist(), strict=True))


def frames_under(
    places: Any, size: tuple[int, int], shape: tuple[int, int] = (HEIGHT, WIDTH), frame: int = FRAME
) -> Any:
    """Which frames (row, column of tiles) the patches touch, by enumeration."""
    found = set()
    for row, column in places:
        ys = range(max(row, 0), min(row + size[0], shape[0]))
        xs = range(max(column, 0), min(column + size[1], shape[1]))
        found |= set(itertools.product({y // frame for y in ys}, {x // frame for x in xs}))
    return found


class Decodes:
    """Counts what is decoded, by the bytes of the codestreams."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.streams: list[bytes] = []
        decode = FrameDecoder.decode

        def counted(decoder: FrameDecoder, payload: Any, *args: Any) -> Any:
            self.streams.append(bytes(payload))
            return decode(decoder, payload, *args)

        monkeypatch.setattr(FrameDecoder, "decode", counted)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Decodes:
    return Decodes(monkeypatch)


# Where they lie -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stride"), [(1, 1), (64, 64), (100, 50), (100, 30), (33, 70), (500, 7), (501, 9), ((40, 90), (25, 60))]
)
def test_grids(level: xr.DataArray, truth: Any, size: Any, stride: Any) -> None:
    (height, width), (down, across) = np.broadcast_to(size, 2).tolist(), np.broadcast_to(stride, 2).tolist()
    if size == 1:
        level, truth = level[:9, :7], truth[:9, :7]
    rows, columns = truth.shape[:2]
    ps = level.wsi.patches(size, stride, order="rows", chunks=None)
    inside = [
        (r, c)
        for r in range(0, rows, down)
        for c in range(0, columns, across)
        if r + height <= rows and c + width <= columns
    ]
    assert places_of(ps) == inside
    assert len(inside) == max(0, 1 + (rows - height) // down) * max(0, 1 + (columns - width) // across)
    np.testing.assert_array_equal(ps.image.values, cut(truth, inside, (height, width)))
    ps = level.wsi.patches(size, stride, order="rows", pad="fill")
    begun = [(r, c) for r in range(0, rows, down) for c in range(0, columns, across)]
    assert places_of(ps) == begun
    assert len(begun) == -(-rows // down) * -(-columns // across)
    some = np.unique(np.linspace(0, len(begun) - 1, 9).astype(int))
    np.testing.assert_array_equal(ps.image[some].values, cut(truth, np.array(begun)[some].tolist(), (height, width)))


@pytest.mark.parametrize(("shape", "size", "stride", "count"), [(6, 4, 2, 9), (100, 200, 100, 1), (5, 3, 2, 9)])
def test_what_pathml_miscounts(shape: int, size: int, stride: int, count: int) -> None:
    image = xr.DataArray(np.arange(shape * shape, dtype=np.int16).reshape(shape, shape, 1), dims=("y", "x", "c"))
    ps = image.wsi.patches(size, stride, pad="fill", fill=-1)
    assert ps.sizes["patch"] == count
    np.testing.assert_array_equal(ps.image.values, cut(image.values, places_of(ps), (size, size), -1))


def test_strides_without_gaps_show_every_pixel_once(level: xr.DataArray, truth: Any) -> None:
    ps = level.wsi.patches((70, 90), pad="fill", fill=(1, 2, 3)).compute()
    back = np.zeros((HEIGHT + 70, WIDTH + 90, 3), np.uint8)
    for n, (row, column) in enumerate(places_of(ps)):
        assert not back[row : row + 70, column : column + 90].any()
        back[row : row + 70, column : column + 90] = ps.image.values[n]
    np.testing.assert_array_equal(back[:HEIGHT, :WIDTH], truth)
    np.testing.assert_array_equal(back[HEIGHT : 8 * 70, :WIDTH], np.broadcast_to([1, 2, 3], (60, WIDTH, 3)))


def test_anchors(level: xr.DataArray) -> None:
    ps = level.wsi.patches(64, 50, anchor=(120, -7), order="rows")
    assert places_of(ps) == [(r, c) for r in range(20, 437, 50) for c in range(43, 537, 50)]
    ps = level.wsi.patches(64, 50, anchor=np.array([120, -7]), order="rows", pad="fill")
    assert places_of(ps) == [(r, c) for r in range(20, 500, 50) for c in range(43, 600, 50)]
    for pad in ("drop", "fill"):
        centred = level.wsi.patches((64, 100), 90, anchor="center", pad=pad)
        assert centred.sizes == level.wsi.patches((64, 100), 90, pad=pad).sizes
        for axis, extent, size in ((centred.row, HEIGHT, 64), (centred.column, WIDTH, 100)):
            before, after = int(axis.min()), extent - int(axis.max()) - size
            assert after - before in (0, 1)


def test_origins_of_ones_own(level: xr.DataArray, truth: Any) -> None:
    places = [(10, 20), (-30, 580), (10, 20), (499, 599), (-64, 0), (0, -63), (10**9, 5), (300, -(10**11)), (7, 7)]
    for chunks in ("auto", 4, None):
        for given in (places, np.array(places), np.array(places, np.int64).tolist()):
            ps = level.wsi.patches(64, origins=given, chunks=chunks)
            assert places_of(ps) == places
            np.testing.assert_array_equal(ps.image.values, cut(truth, places, (64, 64)))
            assert ps.id.values[0] == ps.id.values[2]
            assert len(set(ps.id.values)) == len(places) - 1
    for order in ("place", "rows", "random"):
        ps = level.wsi.patches(64, origins=places, order=order, fill=3)
        assert sorted(places_of(ps)) == sorted(places)
        np.testing.assert_array_equal(ps.image.values, cut(truth, places_of(ps), (64, 64), 3))
    assert level.wsi.patches(64, origins=[]).sizes["patch"] == 0


def test_no_patches(level: xr.DataArray, made: SyntheticSlide) -> None:
    nothing = np.zeros((5, 5), bool)
    for image, options in (
        (level, {"size": 501}),
        (level, {"size": 64, "mask": nothing}),
        (level[:0], {"size": 64}),
        (level[:, 7:7], {"size": 64, "pad": "fill"}),
        (level, {"size": 64, "origins": np.empty((0, 2), int)}),
        (xr.DataArray(level.values, dims=level.dims, coords=level.coords), {"size": 600}),
    ):
        size = options["size"]
        for chunks in ("auto", 3, None) if image.wsi._unwrap() is not None else ("auto", 3):
            ps = image.wsi.patches(chunks=chunks, **options)
            assert ps.image.dims == ("patch", "y", "x", "c")
            assert ps.image.shape == (0, size, size, 3)
            assert ps.image.dtype == np.uint8
            assert {"row", "column", "y0", "x0", "id"} <= set(ps.coords)
            assert ("tissue_fraction" in ps.coords) == ("mask" in options)
            assert ps.compute().image.shape == (0, size, size, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0}, {"size": -4}, {"size": 2.5}, {"size": (1, 2, 3)}, {"size": "a"}, {"size": True},
        {"size": [[1], [2, 3]]}, {"size": 8, "stride": 0}, {"size": 8, "stride": (4, -1)},
        {"size": 8, "pad": "reflect"}, {"size": 8, "anchor": "top"},
        {"size": 8, "anchor": 5}, {"size": 8, "anchor": (1.5, 2)}, {"size": 8, "anchor": (1, 2, 3)},
        {"size": 8, "order": "hilbert"}, {"size": 8, "seed": 1}, {"size": 8, "order": "rows", "seed": 1},
        {"size": 8, "chunks": 0}, {"size": 8, "chunks": "all"}, {"size": 8, "chunks": True}, {"size": 8, "fill": 256},
        {"size": 8, "fill": (1, 2)}, {"size": 8, "min_fraction": 0.5}, {"size": 8, "origins": [(1.5, 2)]},
        {"size": 8, "origins": [(1, 2, 3)]}, {"size": 8, "origins": [(1, 2), (3,)]},
        {"size": 8, "origins": [(2**50, 0)]}, {"size": 8, "origins": [(0, 0)], "stride": 4},
        {"size": 8, "origins": [(0, 0)], "anchor": np.array([1, 2])},
        {"size": 8, "origins": [(0, 0)], "pad": "fill"},
        {"size": 8, "mask": np.ones((4, 4), bool), "min_fraction": 1.1},
        {"size": 8, "mask": np.ones((4, 4), bool), "min_fraction": float("nan")}, {"size": 8, "mask": np.ones((4, 4))},
        {"size": 8, "mask": np.ones((4, 4, 1), bool)}, {"size": 8, "mask": 3},
    ],
)  # fmt: skip
def test_options_without_meaning(level: xr.DataArray, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        level.wsi.patches(**options)


def test_images_that_cannot_be_cut(level: xr.DataArray, made: SyntheticSlide) -> None:
    ps = level.wsi.patches(64)
    with pytest.raises(OptionError, match="dimensions y and x"):
        ps.wsi.patches(16)
    with pytest.raises(OptionError, match="dimensions y and x"):
        mt.open_slide(made.folder)["associated/overview"].image.wsi.patches(16)
    # A place worked out by arithmetic would be wrong.
    for image in (level[::-1], level.isel(y=[0, 1, 5, 6])):
        with pytest.raises(OptionError, match="ascending"):
            image.wsi.patches(2)
    with pytest.raises(OptionError, match="computed"):
        (level + 1).wsi.patches(16, chunks=None)


# In which order -----------------------------------------------------------------------------------------------------


def test_the_curve_visits_neighbours() -> None:
    for bits in (1, 2, 5):
        rows, columns = np.divmod(np.arange(4**bits), 2**bits)
        path = np.argsort(hilbert(rows, columns))
        assert sorted(hilbert(rows, columns)) == list(range(4**bits))
        assert (abs(np.diff(rows[path])) + abs(np.diff(columns[path])) == 1).all()
    assert len(np.unique(hilbert(np.array([0, 1 << 31, 1 << 40]), np.array([0, 0, 1 << 40])))) == 3


def test_orders(level: xr.DataArray) -> None:
    grid = [(r, c) for r in range(0, 437, 50) for c in range(0, 537, 50)]
    rows = level.wsi.patches(64, 50, order="rows")
    assert places_of(rows) == grid
    place = level.wsi.patches(64, 50)
    assert sorted(places_of(place)) == grid
    assert place.identical(level.wsi.patches(64, 50, order="place"))
    # Eight by eight of it lie together: a block of the curve.
    first = np.array(places_of(level[:414, :414].wsi.patches(64, 50)))
    assert (abs(np.diff(first, axis=0)).sum(1) == 50).all()
    shuffled = level.wsi.patches(64, 50, order="random", seed=7)
    assert sorted(places_of(shuffled)) == grid
    assert places_of(shuffled) not in (grid, places_of(place))
    assert places_of(level.wsi.patches(64, 50, order="random", seed=7, chunks=None)) == places_of(shuffled)
    assert places_of(level.wsi.patches(64, 50, order="random", seed=8)) != places_of(shuffled)
    assert places_of(level.wsi.patches(64, 50, order="random")) != places_of(level.wsi.patches(64, 50, order="random"))


@pytest.mark.parametrize("order", ["place", "rows", "random"])
@pytest.mark.parametrize("chunks", ["auto", 7, np.int64(1000), None])
def test_pixels_in_any_order_and_chunks(level: xr.DataArray, truth: Any, order: Any, chunks: Any) -> None:
    ps = level.wsi.patches((70, 50), (60, 80), order=order, pad="fill", chunks=chunks, mask=np.ones((3, 3), bool))
    np.testing.assert_array_equal(ps.image.values, cut(truth, places_of(ps), (70, 50)))
    if chunks is None:
        assert ps.image.chunks is None
    else:
        assert ps.image.data.numblocks[1:] == (1, 1, 1)
        assert max(ps.image.chunks[0]) == min({"auto": len(ps.row)}.get(chunks, chunks), len(ps.row))


# What they are called -----------------------------------------------------------------------------------------------


def test_coordinates(level: xr.DataArray) -> None:
    ps = level.wsi.patches((64, 50), 37)
    np.testing.assert_allclose(ps.y0.values, level.y.values[ps.row.values] - 0.00025, atol=1e-9)
    np.testing.assert_allclose(ps.x0.values, level.x.values[ps.column.values] - 0.00025, atol=1e-9)
    assert ps.y0.attrs["units"] == "mm"
    assert ps.image.dims == ("patch", "y", "x", "c")
    assert ps.c.values.tolist() == ["r", "g", "b"]
    json.dumps(ps.attrs)
    crop = level[100:300, 50:400].wsi.patches(64, 37)
    np.testing.assert_allclose(crop.y0.values, level.y.values[100 + crop.row.values] - 0.00025, atol=1e-9)
    named = level.assign_coords(id="mine", row=3).wsi.patches(64)
    assert named.id.dims == named.row.dims == ("patch",)
    single = level[7:8, 9:10].wsi.patches(1)
    assert float(single.y0[0]) == pytest.approx(7 * 0.0005)


def test_ids_stay(level: xr.DataArray, made: SyntheticSlide) -> None:
    ps = level.wsi.patches(64, 32)
    assert len(set(ps.id.values)) == len(ps.id)
    known = dict(zip(ps.id.values, zip(ps.y0.values, ps.x0.values, strict=True), strict=True))
    others = (
        level.wsi.patches(64, 32, order="random", chunks=3),
        level.wsi.patches(64, 32, chunks=None),
        level[64:, 96:].wsi.patches(64, 32),
        level[32:333, 160:401].wsi.patches(64, 32, order="rows"),
        level.wsi.region(-32, -64, 300, 300)
        .wsi.patches(64, 32, anchor=(32, 64))
        .pipe(lambda p: p.isel(patch=p.row >= 32)),
        mt.open_slide(made.folder)["level0"].image.load().wsi.patches(64, 32),
    )
    for other in others:
        both = [n for n in range(len(other.id)) if other.id.values[n] in known]
        assert len(both) >= 20
        for n in both:
            np.testing.assert_allclose(known[other.id.values[n]], [other.y0.values[n], other.x0.values[n]], atol=1e-9)
    assert set(ps.id.values).isdisjoint(mt.open_slide(made.folder)["level1"].image.wsi.patches(64, 32).id.values)


@pytest.mark.parametrize("shift", [0, 0.25, 0.5])
def test_ids_do_not_hang_on_the_last_digit(shift: float) -> None:
    y = (np.arange(4000) + 0.5 + shift) * 0.00025
    image = xr.DataArray(np.zeros((4000, 2), np.uint8), dims=("y", "x"), coords={"y": y, "x": y[:2]})
    ids = {i: image[i : i + 2].wsi.patches(1).id.values[0] for i in range(0, 3998, 41)}
    assert {i: int(name.split("+")[1]) for i, name in ids.items()} == {i: i for i in ids}


def test_ids_without_spacing(tmp_path: Path) -> None:
    slide = make_slide(tmp_path, width=90, height=80, frame=32, codec="native", spacing=None, levels=1)
    image = mt.open_slide(slide.folder)["level0"].image
    ps, crop = image.wsi.patches(16), image[32:, 16:].wsi.patches(16)
    assert "y0" not in ps.coords
    assert set(crop.id.values) < set(ps.id.values)
    assert ps.id.values[places_of(ps).index((32, 16))] == crop.id.values[places_of(crop).index((0, 0))]


# Lazy ---------------------------------------------------------------------------------------------------------------


def test_lazy_indexing(level: xr.DataArray, truth: Any) -> None:
    ps = level.wsi.patches((48, 40), 29, pad="fill", chunks=None)
    whole = cut(truth, places_of(ps), (48, 40))
    n = len(whole)
    chosen, grid = np.array([5, -1, 5, 0, n - 2]), np.array([[3, 1, 4], [1, 5, 9]])
    picked = xr.DataArray(grid, dims=("a", "b"))
    along = [
        xr.DataArray(k, dims="p")
        for k in (np.array([3, 0, n - 1, 3]), np.array([0, 47, 5, 9]), np.array([39, 1, 0, 0]))
    ]
    for got, wanted in (
        (ps.isel(patch=7), whole[7]),
        (ps.isel(patch=-1), whole[-1]),
        (ps.isel(patch=slice(3, 40, 7)), whole[3:40:7]),
        (ps.isel(patch=slice(None, None, -5)), whole[::-5]),
        (ps.isel(patch=slice(5, 5)), whole[5:5]),
        (ps.isel(patch=chosen), whole[chosen]),
        (ps.isel(patch=[]), whole[:0]),
        (ps.isel(patch=ps.column.values > 300), whole[ps.column.values > 300]),
        (ps.isel(patch=picked), whole[grid]),
        (ps.isel(patch=slice(4, 9), y=slice(10, 30), x=slice(5, 6), c=1), whole[4:9, 10:30, 5:6, 1]),
        (
            ps.isel(patch=chosen, y=[40, 3], x=slice(None, None, -2), c=[2, 0]),
            whole[chosen][:, [40, 3]][:, :, ::-2][..., [2, 0]],
        ),
        (ps.isel(y=5, patch=2), whole[2, 5]),
        (ps.isel(y=slice(0, 0)), whole[:, :0]),
        (ps.isel(patch=chosen).isel(patch=slice(1, 3)).isel(x=slice(3, 9)), whole[chosen][1:3, :, 3:9]),
        (ps.isel(patch=picked, y=slice(3, 8), c=0), whole[grid][:, :, 3:8, :, 0]),
        (ps.isel(y=picked), whole[:, grid]),
        (ps.isel(patch=picked).transpose("y", "b", "c", "x", "a"), whole[grid].transpose(2, 1, 4, 3, 0)),
        (ps.isel(patch=picked.T, x=xr.DataArray([4, 2], dims="d")), whole[grid.T][..., [4, 2], :]),
        (ps.isel(y=xr.DataArray([4, 2], dims="d"), patch=picked), whole[grid][:, :, [4, 2]]),
        (ps.isel(patch=picked, y=xr.DataArray([4, 2], dims="a"), c=0), whole[grid, np.array([[4], [2]]), :, 0]),
        (ps.isel(patch=along[0], y=along[1]), whole[along[0].values, along[1].values]),
        (ps.isel(patch=along[0], y=along[1], x=along[2]), whole[tuple(a.values for a in along)]),
        (
            ps.isel(patch=along[0], y=along[1], x=along[2], c=xr.DataArray([2, 0, 1, 1], dims="p")),
            whole[(*(a.values for a in along), [2, 0, 1, 1])],
        ),
        (
            ps.isel(patch=along[0], x=along[2], c=slice(None, None, -1)),
            whole[along[0].values, :, along[2].values, ::-1],
        ),
    ):  # fmt: skip
        assert got.image.chunks is None
        values = got.transpose("p", ...).image.values if "p" in got.image.dims else got.image.values
        np.testing.assert_array_equal(values, wanted)
    np.testing.assert_array_equal(lazy_patches(level.wsi.patches((48, 40), 29, pad="fill").image), whole)


@pytest.mark.parametrize("selection", ["one", "scattered", "rows", "crop", "points"])
def test_only_frames_under_a_selection_are_read(level: xr.DataArray, decodes: Decodes, selection: str) -> None:
    ps = level.wsi.patches((48, 40), 29, pad="fill", chunks=None)
    places = np.array(places_of(ps))
    chosen = {
        "one": ps.isel(patch=100),
        "scattered": ps.isel(patch=[3, 200, 77, 3]),
        "rows": ps.isel(patch=slice(20, 40), y=slice(5, 9)),
        "crop": ps.isel(patch=[30, 31], y=slice(40, 48), x=slice(30, 40), c=2),
        "points": ps.isel(
            patch=xr.DataArray([8, 90], dims="p"), y=xr.DataArray([1, 47], dims="p"), x=xr.DataArray([2, 3], dims="p")
        ),
    }[selection]
    wanted = {
        "one": frames_under(places[[100]], (48, 40)),
        "scattered": frames_under(places[[3, 200, 77]], (48, 40)),
        "rows": frames_under(places[20:40] + np.array([5, 0]), (4, 40)),
        "crop": frames_under(places[[30, 31]] + [40, 30], (8, 10)),
        "points": frames_under(places[[8, 90]] + [[1, 2], [47, 3]], (1, 1)),
    }[selection]
    if selection != "points":  # what is picked point by point is no part that could be planned
        assert chosen.wsi.explain().frames == len(wanted)
        assert not decodes.streams
    _ = chosen.image.values
    assert len(decodes.streams) == len(wanted)


def test_explain_counts_frames_of_each_chunk(level: xr.DataArray) -> None:
    ps = level.wsi.patches(64, 32, chunks=20)
    places = places_of(ps)
    chunks = [places[i : i + 20] for i in range(0, len(places), 20)]
    assert ps.wsi.explain().frames == sum(len(frames_under(c, (64, 64))) for c in chunks)
    assert ps.image.wsi.explain().pixels == len(places) * 64 * 64 * 3
    assert ps.isel(patch=slice(0, 5)).wsi.explain().frames == len(frames_under(chunks[0], (64, 64)))
    lazy = level.wsi.patches(64, 32, chunks=None)
    assert lazy.wsi.explain().frames == len(frames_under(places, (64, 64)))
    assert lazy.isel(patch=slice(0, 5)).wsi.explain().frames == len(frames_under(places[:5], (64, 64)))


def test_a_dataset_in_chunks_leads_back_to_the_lazy_array(level: xr.DataArray, truth: Any, decodes: Decodes) -> None:
    ps = level.wsi.patches(64, 32, chunks=20)
    places = np.array(places_of(ps))
    chosen = np.array([50, 3, 120, 51])
    for selected, at in (
        (ps, slice(None)),
        (ps.isel(patch=chosen), chosen),
        (ps.isel(patch=slice(200, 5, -30)), slice(200, 5, -30)),
        (ps.isel(patch=chosen).isel(patch=[2, 1]), chosen[[2, 1]]),
        (ps.isel(patch=ps.row > 200), places[:, 0] > 200),
    ):
        lazy = lazy_patches(selected.image)
        assert lazy is not None
        assert not decodes.streams
        assert lazy.chunks is None
        np.testing.assert_array_equal(lazy.values, cut(truth, places[at], (64, 64)))
        assert lazy.coords.identical(selected.image.coords)
        del decodes.streams[:]
        decoded_frames().renew()
    crop = lazy_patches(ps.isel(patch=chosen, y=slice(3, 9), x=slice(None, None, -1), c=1).image)
    assert crop is not None
    np.testing.assert_array_equal(crop.values, cut(truth, places[chosen], (64, 64))[:, 3:9, ::-1, 1])
    assert lazy_patches((ps + 1).image) is None
    assert lazy_patches((level + 1).wsi.patches(64).image) is None
    assert lazy_patches(level) is None
    assert ps.isel(patch=chosen).image.wsi.coverage().values.all()


# What it costs ------------------------------------------------------------------------------------------------------


def test_tasks_are_of_chunks_not_of_patches(level: xr.DataArray) -> None:
    ps = level.wsi.patches(8, 4, chunks=500)
    blocks = ps.image.data.npartitions
    assert ps.sizes["patch"] == 124 * 149
    assert blocks == -(-124 * 149 // 500)
    assert len(ps.image.data.dask) <= 2 * blocks
    (optimised,) = dask.optimize(ps.image.data)
    assert len(optimised.dask) <= 2 * blocks


def test_a_million_patches_are_cheap(level: xr.DataArray) -> None:
    """Against making, shuffling and sorting as many pairs of numbers in NumPy."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, 100_000, (1_000_000, 2))

    def plain() -> None:
        np.lexsort(np.argsort(rng.permutation(places), axis=0).T)

    def ours() -> None:
        ps = level.wsi.patches(224, origins=places, order="place")
        assert ps.sizes["patch"] == 1_000_000
        assert ps.image.data.npartitions <= 10_100
        assert len(ps.image.data.dask) <= 2 * 10_100

    times = []
    for run in (plain, ours):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    assert times[1] < 20 * times[0], times  # one Python object a patch takes over 100 times as long


@pytest.mark.parametrize("order", ["place", "random"])
def test_what_travels(level: xr.DataArray, made: SyntheticSlide, order: Any) -> None:
    ps = level.wsi.patches(64, 5, chunks=100, order=order)
    graph = dask.optimize(ps.image.data)[0].dask
    sizes = [len(cloudpickle.dumps(task)) for task in graph.values()]
    assert max(sizes) <= 4096 + 3 * 8 * 100
    assert sum(sizes) <= ps.image.data.npartitions * (4096 + 3 * 8 * 100)
    lazy = level.wsi.patches(64, 5, chunks=None)
    assert len(pickle.dumps(lazy.image.variable)) <= 4096 + 2 * 8 * lazy.sizes["patch"]
    back = pickle.loads(pickle.dumps(lazy.isel(patch=slice(3, 5))))
    np.testing.assert_array_equal(back.image.values, cut(made.pixels(0), places_of(back), (64, 64)))


def test_names(level: xr.DataArray, made: SyntheticSlide) -> None:
    name = level.wsi.patches(64, 32, chunks=9).image.data.name
    assert mt.open_slide(made.folder)["level0"].image.wsi.patches(64, 32, chunks=9).image.data.name == name
    others = [
        level.wsi.patches(64, 33, chunks=9),
        level.wsi.patches((64, 63), 32, chunks=9),
        level.wsi.patches(64, 32, chunks=9, order="rows"),
        level.wsi.patches(64, 32, chunks=9, pad="fill"),
        level.wsi.patches(64, 32, chunks=9, fill=0),
        level.wsi.patches(64, 32, chunks=10),
        level[64:].wsi.patches(64, 32, chunks=9),
        level.isel(c=slice(0, 2)).wsi.patches(64, 32, chunks=9),
        mt.open_slide(made.folder)["level1"].image.wsi.patches(64, 32, chunks=9),
    ]
    names = {name} | {p.image.data.name for p in others}
    assert len(names) == 1 + len(others)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    rng = np.random.default_rng(0)  # every frame another codestream
    pixels = rng.integers(0, 255, (1920, 2048, 3), np.uint8)
    return make_slide(tmp_path_factory.mktemp("wide"), pixels=pixels, frame=64, codec="native", levels=1)


@pytest.mark.parametrize("source", ["local", "server"])
def test_frames_are_decoded_about_once(wide: SyntheticSlide, decodes: Decodes, source: str, request: Any) -> None:
    """Stride half, one thread: chunks share frames, and what is kept of them is far less than the level."""
    frames = 30 * 32
    with (
        mt.config.set(decode_threads=1, overlap_cache_bytes=200 * 64 * 64 * 3),
        dask.config.set(scheduler="synchronous"),
    ):
        if source == "local":
            image = mt.open_slide(wide.folder)["level0"].image
        else:
            server = request.getfixturevalue("wide_server")
            image = mt.open_slide(server.series_urls()[0])["level0"].image
        ps = image.wsi.patches(64, 32, chunks=40)
        assert ps.image.data.npartitions > 90
        total = sum(int(block.compute().sum(dtype=np.int64)) for block in ps.image.data.partitions)
        assert frames <= len(decodes.streams) <= 1.1 * frames
        assert decoded_frames().bytes <= 200 * 64 * 64 * 3
    truth = wide.pixels(0)
    assert total == sum(truth[r : r + 64, c : c + 64].sum(dtype=np.int64) for r, c in places_of(ps))


@pytest.fixture(scope="module")
def wide_server(wide: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(wide.folder) as server:
        yield server


def test_nothing_is_kept_if_told_so(wide: SyntheticSlide, decodes: Decodes) -> None:
    forget_open_slides()
    with mt.config.set(overlap_cache_bytes=0, decode_threads=1), dask.config.set(scheduler="synchronous"):
        ps = mt.open_slide(wide.folder)["level0"].image[:640, :640].wsi.patches(64, 32, chunks=10)
        places = places_of(ps)
        before = decoded_frames().bytes
        ps.image.data.map_blocks(
            lambda b: b.sum(axis=(1, 2, 3), dtype=np.int64), drop_axis=(1, 2, 3), dtype=int
        ).compute()
        assert decoded_frames().bytes == before
    each = [len(frames_under(places[i : i + 10], (64, 64), (640, 640))) for i in range(0, len(places), 10)]
    assert len(decodes.streams) == sum(each)


@pytest.mark.parametrize("codec", ["native", "deflated-frame", "jpeg-ls"])
@pytest.mark.parametrize("kept", [0, 20 * 64 * 64 * 3, 64 << 20])
def test_kept_frames_are_the_right_ones(tmp_path: Path, codec: str, kept: int) -> None:
    """Runs of frames of which some are kept already, and others not: each must get its own bytes."""
    slide = make_slide(tmp_path, width=300, height=260, frame=32, codec=codec, levels=1)
    truth = slide.pixels(0)
    ps = mt.open_slide(slide.folder)["level0"].image.wsi.patches(32, 16, chunks=None)
    whole = cut(truth, places_of(ps), (32, 32))
    with mt.config.set(overlap_cache_bytes=kept):
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(whole))
            for part in np.array_split(order, 12):
                np.testing.assert_array_equal(ps.image[part].values, whole[part])


# Of what ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", ["auto", None])
@pytest.mark.parametrize("target", [0.00125, 0.0015, (0.0012, 0.0018), 0.0004])
def test_resampled_levels(made: SyntheticSlide, target: Any, chunks: Any) -> None:
    image = mt.open_slide(made.folder).wsi.at(spacing=target)
    whole = image.values
    ps = image.wsi.patches((50, 40), (25, 30), pad="fill", chunks=chunks)
    np.testing.assert_array_equal(ps.image.values, cut(whole, places_of(ps), (50, 40)))
    np.testing.assert_allclose(np.diff(ps.attrs["pixel_spacing_mm"]), np.diff(np.broadcast_to(target, 2)), atol=1e-9)
    assert ps.wsi.explain().frames > 0
    few = ps.isel(patch=[3]).wsi.explain()
    assert few.frames <= ps.wsi.explain().frames


def test_regions_that_run_off(level: xr.DataArray, truth: Any) -> None:
    region = level.wsi.region(-40, 500, 200, 300, fill=(9, 8, 7))
    (whole,) = cut(truth, [(-40, 500)], (200, 300), (9, 8, 7))
    for chunks in ("auto", None):
        ps = region.wsi.patches(64, 50, pad="fill", fill=1, chunks=chunks)
        np.testing.assert_array_equal(ps.image.values, cut(whole, places_of(ps), (64, 64), 1))
        np.testing.assert_allclose(ps.y0.values, (ps.row.values - 40) * 0.0005, atol=1e-9)
        # Beyond the level nothing is real, nor beyond the region.
        real = cut(np.ones((HEIGHT, WIDTH), bool), [(r - 40, c + 500) for r, c in places_of(ps)], (64, 64), False)
        real &= cut(np.ones((200, 300), bool), places_of(ps), (64, 64), False)
        np.testing.assert_array_equal(ps.image.wsi.coverage().values, real)


@pytest.mark.parametrize("chunks", ["auto", None])
def test_optical_paths_and_planes(tmp_path: Path, chunks: Any) -> None:
    options: Any = {"width": 150, "height": 130, "frame": 32, "codec": "native", "levels": 1}
    grey = make_slide(tmp_path / "grey", paths=("DAPI", "FITC"), dtype="uint16", bits_stored=12, **options)
    colour = make_slide(tmp_path / "colour", focal_planes=3, rgb_paths=2, **options)
    image = mt.open_slide(grey.folder)["level0"].image
    whole = np.concatenate([grey.pixels(0, path=p) for p in range(2)], axis=-1)
    ps = image.wsi.patches((40, 30), 35, pad="fill", chunks=chunks)
    assert ps.image.dtype == np.uint16
    np.testing.assert_array_equal(ps.image.values, cut(whole, places_of(ps), (40, 30), 0))
    one = image.isel(c=1).wsi.patches((40, 30), 35, pad="fill", fill=4000, chunks=chunks)
    assert one.image.dims == ("patch", "y", "x")
    np.testing.assert_array_equal(one.image.values, cut(whole[..., 1], places_of(one), (40, 30), 4000))
    np.testing.assert_array_equal(ps.isel(c=[1, 0]).image.values, ps.image.values[..., ::-1])
    image = mt.open_slide(colour.folder)["level0"].image
    assert image.dims == ("z", "path", "y", "x", "c")
    planes = [[colour.pixels(0, plane=z, path=p) for p in range(2)] for z in range(3)]
    ps = image.wsi.patches((40, 30), 35, pad="fill", chunks=chunks)
    assert ps.image.dims == ("patch", "z", "path", "y", "x", "c")
    assert ps.z.values.tolist() == image.z.values.tolist()
    wanted = np.stack([[cut(plane, places_of(ps), (40, 30)) for plane in row] for row in planes]).transpose(
        2, 0, 1, 3, 4, 5
    )
    np.testing.assert_array_equal(ps.image.values, wanted)
    np.testing.assert_array_equal(ps.isel(z=[2, 0], path=1, patch=slice(3, 6)).image.values, wanted[3:6, [2, 0], 1])
    flat = image.isel(z=1, path=0).wsi.patches((40, 30), 35, pad="fill", chunks=chunks)
    np.testing.assert_array_equal(flat.image.values, wanted[:, 1, 0])
    if chunks is None:
        p, z = xr.DataArray([4, 0, 2], dims="k"), xr.DataArray([0, 2, 1], dims="k")
        points = ps.isel(patch=p, z=z, y=p, x=z).transpose("k", ...)
        np.testing.assert_array_equal(points.image.values, wanted[p.values, z.values, :, p.values, z.values])


def test_tiles_that_are_not_there(tmp_path: Path) -> None:
    slide = make_slide(tmp_path, width=500, height=400, frame=32, codec="native", levels=1, tiling="sparse", drop=0.6)
    image = mt.open_slide(slide.folder)["level0"].image
    real = image.wsi.coverage().values
    assert 0 < real.mean() < 1
    whole = np.where(real[..., np.newaxis], slide.pixels(0), image.values)
    ps = image.wsi.patches(48, 20, pad="fill")
    np.testing.assert_array_equal(ps.image.values, cut(whole, places_of(ps), (48, 48), image.values[~real][0]))
    np.testing.assert_array_equal(ps.image.wsi.coverage().values, cut(real, places_of(ps), (48, 48), False))
    masks = image.wsi.coverage().wsi.patches(48, 20, pad="fill")
    assert masks.image.dtype == np.bool_
    np.testing.assert_array_equal(masks.image.values, cut(real, places_of(ps), (48, 48), False))


def test_real_slides(real: Path) -> None:
    folder = real / "dicom/gcp_cmu1_pyramid"
    level = mt.open_slide(folder)["level1"].image
    size = (level.sizes["y"], level.sizes["x"])
    (file,) = [f for f in sorted(folder.rglob("*")) if f.is_file() and _size_of(f) == size]
    picture = as_image(assemble([file])[0])
    ps = level.wsi.patches(112, 70, pad="fill")
    np.testing.assert_allclose(ps.image.values.astype(int), cut(picture, places_of(ps), (112, 112)), atol=1)
    import openslide

    with openslide.OpenSlide(real / "slides/CMU-1-Small-Region.svs") as original:
        theirs = np.asarray(original.read_region((700, 900), 0, (224, 224)).convert("RGB")).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = mt.open_slide(real / "cmu1_dicom/jpeg_bot")["level0"].image
    ours = image.wsi.patches(224, origins=[(900, 700)]).image.values[0].astype(int)
    assert abs(ours - theirs).mean() < 1


def _size_of(file: Path) -> tuple[int, int] | None:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    return (ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns) if "TotalPixelMatrixRows" in ds else None


@pytest.mark.parametrize("dims", [("y", "x", "c"), ("c", "y", "x"), ("y", "x"), ("t", "y", "c", "x")])
@pytest.mark.parametrize("kind", ["numpy", "dask", "floats"])
def test_computed_images(dims: tuple[str, ...], kind: str) -> None:
    sizes = {"t": 2, "y": 130, "x": 170, "c": 3}
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, tuple(sizes[d] for d in dims)).astype("float32" if kind == "floats" else "int16")
    data = values if kind == "numpy" else da.from_array(values, chunks=37)
    image = xr.DataArray(data, dims=dims)
    fill = {"floats": float("nan")}.get(kind, -5)
    order = ["y", "x"] + [d for d in ("t", "c") if d in dims]
    whole = np.transpose(values, [dims.index(d) for d in order])
    for how, chunks in itertools.product(("place", "rows", "random"), ("auto", 5)):
        ps = image.wsi.patches((40, 30), 35, pad="fill", fill=fill, order=how, chunks=chunks)
        assert ps.image.dims == ("patch", *(["t"] if "t" in dims else []), "y", "x", *(["c"] if "c" in dims else []))
        np.testing.assert_array_equal(
            ps.transpose("patch", *order).image.values, cut(whole, places_of(ps), (40, 30), fill)
        )


def _numbers(y: Any, x: Any) -> Any:
    return (7 * y + x) % 256


def test_computed_images_are_held_in_part() -> None:
    """Patches from far apart do not take all that lies between them."""
    numbers = da.fromfunction(_numbers, shape=(12_000, 12_000), chunks=500, dtype=int).astype(np.uint8)
    image = xr.DataArray(numbers, dims=("y", "x"))
    with mt.config.set(block_bytes=1 << 20), dask.config.set(scheduler="synchronous"):
        ps = image.wsi.patches(50, 1000, order="random", seed=0, chunks=30)
        assert np.ptp(ps.row.values[:30]) > 8000
        assert np.ptp(ps.column.values[:30]) > 8000
        tracemalloc.start()
        try:
            pixels = ps.image[:30].values
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    inside = np.arange(50)
    rows, columns = ps.row.values[:30, np.newaxis] + inside, ps.column.values[:30, np.newaxis] + inside
    np.testing.assert_array_equal(pixels, _numbers(rows[:, :, np.newaxis], columns[:, np.newaxis]))
    assert peak < 30 << 20, peak  # the whole has 144 MB


def test_lazy_images_that_are_no_views_are_not_read_whole(level: xr.DataArray, truth: Any, decodes: Decodes) -> None:
    lazy = mt.open_slide(level.wsi._unwrap().array.opened.ref.recipe.names[0], chunks=None)["level0"].image[::2, ::2]
    ps = lazy.wsi.patches(20, chunks=5)
    assert not decodes.streams
    np.testing.assert_array_equal(ps.image.values, cut(truth[::2, ::2], places_of(ps), (20, 20)))


# Masks --------------------------------------------------------------------------------------------------------------


def covered(
    mask: Any, scale: tuple[float, float], offset: tuple[float, float], places: Any, size: tuple[int, int]
) -> Any:
    """The part of each patch under a mask, by area: exact overlaps of every row and column with every pixel."""
    fractions = []
    pixels = mask.astype(float)
    edges = [offset[axis] + scale[axis] * np.arange(mask.shape[axis] + 1) for axis in (0, 1)]
    for place in places:
        row, column = (
            np.clip(np.minimum(e[1:], p + n) - np.maximum(e[:-1], p), 0, None)
            for e, p, n in zip(edges, place, size, strict=True)
        )
        fractions.append(row @ pixels @ column / (size[0] * size[1]))
    return np.array(fractions)


def mask_of(
    shape: tuple[int, int], spacing: tuple[float, float], low: tuple[float, float], seed: int = 0
) -> xr.DataArray:
    values = np.random.default_rng(seed).random(shape) < 0.5
    y, x = (low[axis] + (np.arange(shape[axis]) + 0.5) * spacing[axis] for axis in (0, 1))
    return xr.DataArray(values, dims=("y", "x"), coords={"y": y, "x": x})


@pytest.mark.parametrize("kind", ["numpy", "dask", "transposed"])
@pytest.mark.parametrize(
    ("shape", "spacing", "low"),
    [
        ((20, 20), (0.0125, 0.015), (0, 0)),
        ((500, 600), (0.0005, 0.0005), (0, 0)),
        ((7, 5), (0.037, 0.071), (-0.01, 0.02)),
        ((1000, 40), (0.00022, 0.0031), (0.05, 0.1)),
    ],
)
def test_masks_by_coordinates(level: xr.DataArray, shape: Any, spacing: Any, low: Any, kind: str) -> None:
    mask = mask_of(shape, spacing, low)
    given = {
        "numpy": mask,
        "dask": mask.chunk({"y": -(-shape[0] // 4), "x": -(-shape[1] // 3)}),
        "transposed": mask.transpose("x", "y"),
    }[kind]
    at = level[30:, 20:]  # a crop has another corner, the mask the same place
    scale, offset = (spacing[0] / 0.0005, spacing[1] / 0.0005), (low[0] / 0.0005 - 30, low[1] / 0.0005 - 20)
    everything = at.wsi.patches((48, 40), 29, pad="fill", chunks=None, order="rows")
    wanted = covered(mask.values, scale, offset, places_of(everything), (48, 40))
    for least in (None, 0, 0.3, 1):
        ps = at.wsi.patches((48, 40), 29, pad="fill", mask=given, min_fraction=least, order="rows")
        kept = wanted >= (0.5 if least is None else least) - 1e-9
        assert places_of(ps) == [p for p, k in zip(places_of(everything), kept, strict=True) if k]
        np.testing.assert_allclose(ps.tissue_fraction.values, wanted[kept], atol=1e-9)
    np.testing.assert_allclose(everything.wsi.tissue_fraction(given).values, wanted, atol=1e-9)
    assert everything.wsi.tissue_fraction(given).id.identical(everything.id.rename("tissue_fraction").rename("id"))


def test_fractions_stay_with_their_patches(level: xr.DataArray) -> None:
    mask = mask_of((20, 20), (0.0125, 0.015), (0, 0))
    for order in ("place", "rows", "random"):
        ps = level.wsi.patches(64, 30, mask=mask, min_fraction=0.4, order=order)
        wanted = covered(mask.values, (25, 30), (0, 0), places_of(ps), (64, 64))
        np.testing.assert_allclose(ps.tissue_fraction.values, wanted, atol=1e-9)
        np.testing.assert_allclose(ps.wsi.tissue_fraction(mask).values, wanted, atol=1e-9)
        np.testing.assert_allclose(ps.isel(patch=[5, 3]).wsi.tissue_fraction(mask).values, wanted[[5, 3]], atol=1e-9)
    ps = level.wsi.patches(64, mask=mask, min_fraction=0, origins=[(400, 500), (3, 4), (10**8, 0)])
    wanted = covered(mask.values, (25, 30), (0, 0), places_of(ps), (64, 64))
    np.testing.assert_allclose(ps.tissue_fraction.values, wanted, atol=1e-9)
    assert wanted[2] == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (50, 60), (501, 7), (1000, 130)])
def test_masks_of_any_shape_cover_the_image(level: xr.DataArray, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(1).random(shape) < 0.6
    ps = level.wsi.patches(64, 30, mask=mask, min_fraction=0)
    wanted = covered(mask, (HEIGHT / shape[0], WIDTH / shape[1]), (0, 0), places_of(ps), (64, 64))
    np.testing.assert_allclose(ps.tissue_fraction.values, wanted, atol=1e-9)


def test_large_masks_are_summed_up_in_parts(level: xr.DataArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.ops.masks.aligned.AT_ONCE", 1000)
    mask = mask_of((250, 300), (0.001, 0.001), (0, 0))
    ps = level.wsi.patches(64, 30, mask=mask, min_fraction=0)
    wanted = covered(mask.values, (2, 2), (0, 0), places_of(ps), (64, 64))
    np.testing.assert_allclose(ps.tissue_fraction.values, wanted, atol=1e-9)
    computed = []

    def seen(block: Any) -> Any:
        computed.append(block.size)
        return block

    lazy = mask.copy(data=da.from_array(mask.values, chunks=50).map_blocks(seen, meta=np.empty((0, 0), bool)))
    corner = level.wsi.patches(64, origins=[(0, 0), (300, 60)], mask=lazy, min_fraction=0)
    np.testing.assert_allclose(
        corner.tissue_fraction.values, covered(mask.values, (2, 2), (0, 0), places_of(corner), (64, 64)), atol=1e-9
    )
    assert len(computed) <= 4  # blocks under these two; there are 30
    np.testing.assert_allclose(
        level.wsi.patches(64, 30, mask=mask.values, min_fraction=0).tissue_fraction.values, wanted, atol=1e-9
    )


def test_masks_that_say_nothing_of_the_image(level: xr.DataArray, made: SyntheticSlide) -> None:
    mask = mask_of((10, 10), (0.01, 0.01), (0, 0))
    apart = mask.assign_coords(y=mask.y + 5)
    with pytest.raises(SelectionError, match="lie apart"):
        level.wsi.patches(64, mask=apart)
    with pytest.raises(SelectionError, match="lie apart"):
        level[:, 300:].wsi.patches(64, mask=mask)
    with pytest.raises(SelectionError, match="no pixel"):
        level.wsi.patches(64, mask=mask[:0])
    for wrong in (mask[::-1], mask[:, ::-1], mask.isel(y=[0, 1, 5, 6])):
        with pytest.raises(OptionError, match="ascending"):
            level.wsi.patches(64, mask=wrong)
    inches = mask.assign_coords(y=("y", mask.y.values, {"units": "inch"}))
    with pytest.raises(OptionError, match="inch"):
        level.wsi.patches(64, mask=inches)
    with pytest.raises(SpacingUndefinedError, match="the mask"):
        level.wsi.patches(64, mask=mask.drop_vars(["y", "x"]))
    with pytest.raises(SpacingUndefinedError, match="the image"):
        level.drop_vars(["y", "x"]).wsi.patches(64, mask=mask)
    for wrong in (mask.astype(float), mask.expand_dims(c=3), mask.rename(y="row")):
        with pytest.raises(OptionError):
            level.wsi.patches(64, mask=wrong)
    ps = level.wsi.patches(64)
    with pytest.raises(OptionError, match="covers an image"):
        ps.wsi.tissue_fraction(np.ones((4, 4), bool))
    with pytest.raises(OptionError, match="for patches"):
        mt.open_slide(made.folder)["level0"].to_dataset().wsi.tissue_fraction(mask)
    assert not ps.wsi.tissue_fraction(apart).values.any()
    assert level[:0].wsi.patches(64, mask=mask).sizes["patch"] == 0


def test_drawn_masks(made: SyntheticSlide, tmp_path: Path) -> None:
    """A triangle: what a patch has of it, by shapely from the corners, in pixels of level 0."""
    shapely = pytest.importorskip("shapely")
    corners = [(100.5, 50), (520, 130), (210, 460.25)]
    triangle = shapely.Polygon(corners)
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[list(c) for c in [*corners, corners[0]]]]},
        "properties": {"objectType": "annotation"},
    }
    file = tmp_path / "drawn.geojson"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    in_mm = shapely.Polygon([(x * 0.0005, y * 0.0005) for x, y in corners])
    tree = mt.open_slide(made.folder)
    for name, factor, crop in (("level0", 1, (0, 0)), ("level1", 2, (0, 0)), ("level0", 1, (70, 33))):
        image = tree[name].image[crop[0] :, crop[1] :]
        for drawing in (feature, file, json.dumps(feature), in_mm, [in_mm]):
            ps = image.wsi.patches((40, 32), 20, mask=drawing, min_fraction=0.01)
            boxes = [
                shapely.box(*(np.array([c, r, c + 32, r + 40]) + [crop[1], crop[0]] * 2) * factor)
                for r, c in places_of(ps)
            ]
            wanted = [box.intersection(triangle).area / box.area for box in boxes]
            np.testing.assert_allclose(ps.tissue_fraction.values, wanted, atol=1e-6)
        assert 20 < ps.sizes["patch"] < image.wsi.patches((40, 32), 20).sizes["patch"]
        np.testing.assert_allclose(ps.wsi.tissue_fraction(in_mm).values, wanted, atol=1e-6)
    with pytest.raises(SelectionError, match="lie apart"):
        tree["level0"].image[:, 530:].wsi.patches(16, mask=feature)
    with pytest.raises(OptionError, match="level 0"):
        (tree["level0"].image + 1).wsi.patches(16, mask=feature)
    resampled = tree.wsi.at(spacing=0.00125)
    ps = resampled.wsi.patches(20, mask=feature, min_fraction=0.99)
    assert all(shapely.box(c, r, c + 20, r + 20).buffer(-0.5).within(
        shapely.affinity.scale(triangle, 0.4, 0.4, origin=(0, 0))) for r, c in places_of(ps))  # fmt: skip
    assert ps.sizes["patch"]


def test_tissue_masks(made: SyntheticSlide) -> None:
    tree = mt.open_slide(made.folder)
    mask = tree.wsi.tissue_mask(method="luminance", spacing=0.002)
    ps = tree["level0"].image.wsi.patches(64, 32, mask=mask)
    assert 0 < ps.sizes["patch"] < tree["level0"].image.wsi.patches(64, 32).sizes["patch"]
    scale = [float(mask[d][1] - mask[d][0]) / 0.0005 for d in ("y", "x")]
    wanted = covered(mask.values, (scale[0], scale[1]), (0, 0), places_of(ps), (64, 64))
    np.testing.assert_allclose(ps.tissue_fraction.values, wanted, atol=1e-6)


# Onwards ------------------------------------------------------------------------------------------------------------


def test_selecting_and_mapping(level: xr.DataArray, truth: Any) -> None:
    ps = level.wsi.patches(64, 32, chunks=30)
    whole = cut(truth, places_of(ps), (64, 64))
    few = ps.isel(patch=[9, 100, 3])
    np.testing.assert_array_equal(few.image.values, whole[[9, 100, 3]])
    assert places_of(few) == [places_of(ps)[n] for n in (9, 100, 3)]
    means = ps.image.data.map_blocks(lambda b: b.mean(axis=(1, 2, 3)), drop_axis=(1, 2, 3), dtype=float)
    np.testing.assert_allclose(means.compute(), whole.mean((1, 2, 3)))
    np.testing.assert_allclose(ps.image.mean(("y", "x", "c")).values, whole.mean((1, 2, 3)))
    joined = xr.concat([ps.isel(patch=slice(0, 5)), ps.isel(patch=slice(50, 60))], "patch")
    np.testing.assert_array_equal(joined.image.values, np.concatenate([whole[:5], whole[50:60]]))
    best = ps.assign(score=("patch", means)).sortby("score", ascending=False).isel(patch=slice(0, 4))
    np.testing.assert_array_equal(best.image.values, whole[np.argsort(-whole.mean((1, 2, 3)), kind="stable")[:4]])
    np.testing.assert_array_equal(ps.set_xindex("id").sel(id=ps.id.values[7]).image.values, whole[7])


@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_to_zarr(level: xr.DataArray, tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed")
    ps = level.wsi.patches(64, 32, chunks=50, mask=np.ones((2, 2), bool))
    ps.to_zarr(tmp_path / "patches.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "patches.zarr", consolidated=False)
    xr.testing.assert_identical(back.compute(), ps.compute())
    assert back.image.chunks == ps.image.chunks
    mask = mask_of((20, 20), (0.0125, 0.015), (0, 0))
    np.testing.assert_array_equal(back.wsi.tissue_fraction(mask).values, ps.wsi.tissue_fraction(mask).values)


def test_xbatcher(level: xr.DataArray, truth: Any) -> None:
    xbatcher = pytest.importorskip("xbatcher", reason="xbatcher is not installed")
    ps = level.wsi.patches(64, 32, chunks=None)
    whole = cut(truth, places_of(ps), (64, 64))
    for n, batch in enumerate(xbatcher.BatchGenerator(ps, {"patch": 50, "y": 64, "x": 64, "c": 3})):
        np.testing.assert_array_equal(batch.image.values, whole[50 * n : 50 * n + 50])


def test_a_server_is_asked_little(made: SyntheticSlide, truth: Any, new_to_servers: None) -> None:
    with DICOMwebServer(made.folder) as server:
        image = mt.open_slide(server.series_urls()[0])["level0"].image
        ps = image.wsi.patches(64, 16, chunks=100)
        blocks = ps.image.data.npartitions
        assert ps.sizes["patch"] > 9 * 100
        server.reset()
        plan = ps.isel(patch=slice(0, 100)).wsi.explain()
        assert 1 <= len(plan.reads) <= 3
        assert not server.requests
        np.testing.assert_array_equal(ps.image[:100].values, cut(truth, places_of(ps)[:100], (64, 64)))
        assert len([r for r in server.requests if r.frames]) == len(plan.reads)
        ps.image.compute()
        asked = [f for r in server.requests for f in r.frames]
        assert len(asked) == len(set(asked)) == 8 * 10
        assert len([r for r in server.requests if r.frames]) <= 3 * blocks
        mt.cache.clear()
        forget_open_slides()
        lazy = mt.open_slide(server.series_urls()[0])["level0"].image.wsi.patches(64, 16, chunks=None)
        server.reset()
        chosen = lazy.isel(patch=[900, 3, 400, 4])
        wanted = frames_under([places_of(lazy)[n] for n in (900, 3, 400, 4)], (64, 64))
        assert chosen.wsi.prefetch() == len(wanted)
        assert len(server.requests) == 1
        np.testing.assert_array_equal(chosen.image.values, cut(truth, places_of(chosen), (64, 64)))
        assert len(server.requests) == 1
        assert ps.isel(patch=[700]).wsi.prefetch() >= 1


def _sum(image: xr.Variable) -> int:
    return int(image.values.sum(dtype=np.int64))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork.*:DeprecationWarning")
def test_forks(level: xr.DataArray, truth: Any) -> None:
    ps = level.wsi.patches(64, 32, chunks=None)
    _ = ps.image[:50].values  # threads, kept frames and an open file are there when it forks
    parts = [slice(0, 100), slice(100, None)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.map(_sum, [ps.image.variable[p] for p in parts])
    whole = cut(truth, places_of(ps), (64, 64))
    assert sums == [int(whole[p].sum(dtype=np.int64)) for p in parts]


@pytest.mark.timeout(100)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_distributed(level: xr.DataArray, truth: Any) -> None:
    distributed = pytest.importorskip("distributed")
    ps = level.wsi.patches(64, 32, chunks=40, order="random", seed=1)
    with (
        dask.config.set({"distributed.worker.daemon": True}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        result = client.compute(ps.image.data).result(timeout=60)
    np.testing.assert_array_equal(result, cut(truth, places_of(ps), (64, 64)))


def test_torch_is_optional() -> None:
    """In a process where it cannot be imported, whether it is installed or not."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import microtome\n"
        "from microtome.errors import MissingDependencyError\n"
        "try: import microtome.torch\n"
        "except MissingDependencyError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "microtome[torch]"' in done.stdout


def test_fractions_are_those_of_whole_patches(tmp_path: Path) -> None:
    make_slide(tmp_path, width=300, height=200, frame=64, codec="native", levels=1)
    level = mt.open_slide(tmp_path)["level0"].image
    mask = level.isel(c=0, drop=True) > 0
    patches = level.wsi.patches(50)
    assert patches.wsi.tissue_fraction(mask.compute()).shape == patches.row.shape
    with pytest.raises(OptionError, match="cropped"):
        patches.isel(y=slice(10, None)).wsi.tissue_fraction(mask)
