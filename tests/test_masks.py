"""Polygons, masks made of them, and areas: against Pillow, shapely, and formulas."""

from __future__ import annotations

import json
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import MissingDependencyError, OptionError
from microtome.ops.masks import Polygon, fractions, polygon_fractions, rasterise, read_polygons
from microtome.ops.masks import polygons as polygons_module

SQUARE = [[2, 1], [8, 1], [8, 5], [2, 5], [2, 1]]
HOLE = [[3, 2], [5, 2], [5, 4], [3, 4], [3, 2]]


def feature(coordinates: Any, name: str | None = None, kind: str = "Polygon") -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"}
    if name:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "x",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def test_reads_what_qupath_writes(tmp_path: Path) -> None:
    collection = {
        "type": "FeatureCollection",
        "features": [
            feature([SQUARE, HOLE], "Tumor"),
            feature([[SQUARE], [HOLE]], "Stroma", "MultiPolygon"),
            feature([HOLE]),
        ],
    }
    file = tmp_path / "slide.geojson"
    file.write_text(json.dumps(collection), "utf-8-sig")
    for source in (collection, json.dumps(collection), file, str(file), collection["features"]):
        polygons = read_polygons(source)
        assert [p.name for p in polygons] == ["Tumor", "Stroma", "Stroma", ""]
        assert polygons[0].shell.tolist() == SQUARE[:-1]
        assert [hole.tolist() for hole in polygons[0].holes] == [HOLE[:-1]]
        assert polygons[0].bounds == (2, 1, 8, 5)
    assert len(read_polygons(collection, "Stroma")) == 2
    assert len(read_polygons(collection, ["Stroma", "Tumor"])) == 3
    geometries = {"type": "GeometryCollection", "geometries": [f["geometry"] for f in collection["features"]]}
    assert len(read_polygons(geometries)) == 4
    doubled = read_polygons(collection)[0].scaled(2, 3)
    assert doubled.shell.tolist() == [[2 * x, 3 * y] for x, y in SQUARE[:-1]]


def test_reads_shapely() -> None:
    shapely = pytest.importorskip("shapely")
    shape = shapely.Polygon(SQUARE, [HOLE])
    (polygon,) = read_polygons(shape)
    assert {tuple(p) for p in polygon.shell.tolist()} == {tuple(p) for p in SQUARE}
    assert len(polygon.holes) == 1
    assert len(read_polygons([shape, shapely.MultiPolygon([shape])])) == 2


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{not json", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("nowhere.geojson", "cannot be read"),
        (7, "neither GeoJSON"),
        ({"type": "Topology"}, "not known"),
        ({"type": "FeatureCollection"}, "should hold a list"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]}, "three are needed"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, float("nan")]]]}, "not finite"),
        ({"type": "Polygon", "coordinates": [[[0, 0], ["__import__('os')", 1], [0, 1]]]}, "no list of"),
        ({"type": "Polygon", "coordinates": [[1, 2, 3]]}, "no list of"),
        ({"type": "Polygon", "coordinates": []}, "no Polygon"),
        (feature([0, 0], kind="Point"), "only Point"),
        ({"type": "FeatureCollection", "features": []}, "no Polygon"),
    ],
)
def test_refuses_what_is_no_polygon(source: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        read_polygons(source)


def test_refuses_endless_nesting_and_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nested: dict[str, Any] = {"type": "Polygon", "coordinates": [SQUARE]}
    for _ in range(100):
        nested = {"type": "GeometryCollection", "geometries": [nested]}
    with pytest.raises(OptionError, match="nested"):
        read_polygons(nested)
    monkeypatch.setattr(polygons_module, "MAX_VERTICES", 8)
    with pytest.raises(OptionError, match="vertices"):
        read_polygons(feature([SQUARE, HOLE]))
    monkeypatch.setattr(polygons_module, "MAX_BYTES", 10)
    (tmp_path / "big.geojson").write_text(json.dumps(feature([SQUARE])))
    with pytest.raises(OptionError, match="bytes"):
        read_polygons(tmp_path / "big.geojson")


def test_class_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(OptionError, match="'Tumor'"):
        read_polygons(feature([SQUARE], "Tumor"), "Stroma")


def exact_inside(rings: list[list[tuple[int, int]]], y: Fraction, x: Fraction) -> bool:
    """The even-odd rule in rational numbers, crossing by crossing: edges to the left, left and upper edges inside."""
    odd = False
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            if (y0 <= y) != (y1 <= y):
                odd ^= x0 + Fraction((y - y0) * (x1 - x0), y1 - y0) <= x
    return odd


points = st.tuples(st.integers(-4, 24), st.integers(-4, 24))
ring_strategy = st.lists(points, min_size=3, max_size=7, unique=True)


@given(ring_strategy, st.lists(ring_strategy, max_size=2))
@settings(max_examples=60, deadline=None)
def test_rasterise_is_the_pixel_centre_rule(shell: list[tuple[int, int]], holes: list[list[tuple[int, int]]]) -> None:
    polygon = Polygon(np.array(shell, float), tuple(np.array(hole, float) for hole in holes))
    mask = rasterise([polygon], (9, 11), spacing=(2.0, 2.0), offset=(1.0, -1.0))
    for i in range(9):
        for j in range(11):
            y, x = 1 + 2 * (i + Fraction(1, 2)), -1 + 2 * (j + Fraction(1, 2))
            assert mask[i, j] == exact_inside([shell, *holes], y, x), (i, j)


def test_polygons_side_by_side_share_no_pixel_and_leave_none_out() -> None:
    rng = np.random.default_rng(1)
    spokes = np.sort(rng.uniform(0, 2 * np.pi, 40))
    rim = np.stack([50 + 200 * np.cos(spokes), 50 + 200 * np.sin(spokes)], 1)
    count = np.zeros((100, 100), int)
    for a, b in zip(rim, np.roll(rim, -1, 0), strict=True):
        count += rasterise([Polygon(np.array([[50.3, 49.7], a, b]))], (100, 100))
    assert (count == 1).all()


def test_holes_and_union() -> None:
    first, second = read_polygons([feature([SQUARE, HOLE]), feature([[[4, 3], [9, 3], [9, 9], [4, 9]]])])
    expected = np.zeros((10, 10), bool)
    expected[1:5, 2:8] = True
    expected[2:4, 3:5] = False
    assert (rasterise([first], (10, 10)) == expected).all()
    expected[3:9, 4:9] = True
    assert (rasterise([first, second], (10, 10)) == expected).all()
    assert not rasterise([], (3, 4)).any()
    assert rasterise([first], (0, 4)).shape == (0, 4)
    assert not rasterise([first.scaled(1, 1)], (10, 10), offset=(100, 100)).any()


def test_rasterise_large_in_bounded_memory() -> None:
    import tracemalloc

    t = np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    polygon = Polygon(np.stack([4000 + 3900 * np.cos(t), 4000 + 3900 * np.sin(t)], 1))
    tracemalloc.start()
    mask = rasterise([polygon], (8000, 8000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(mask.sum() / (np.pi * 3900**2) - 1) < 1e-5
    assert peak < mask.nbytes + 250e6


@pytest.mark.parametrize(
    "options", [{"spacing": (0, 1)}, {"spacing": (1, float("nan"))}, {"offset": (float("inf"), 0)}]
)
def test_rasterise_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        rasterise([], (3, 3), **options)
    with pytest.raises(OptionError):
        rasterise([], (-1, 3))


@given(st.integers(0, 2**32 - 1), st.integers(-20, 60), st.integers(-20, 60), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_fractions_are_exact(seed: int, top: int, left: int, height: int, width: int) -> None:
    # In eighths of a pixel: a mask eight times as fine holds such a rectangle exactly.
    mask = np.random.default_rng(seed).random((5, 4)) < 0.5
    fine = np.pad(mask.repeat(8, 0).repeat(8, 1), 100)
    expected = fine[100 + top : 100 + top + height, 100 + left : 100 + left + width].sum() / (height * width)
    (found,) = fractions(mask, [top / 8], [left / 8], height / 8, width / 8)
    assert found == pytest.approx(expected, abs=1e-12)


def test_fractions_of_whole_rectangles() -> None:
    mask = np.ones((7, 9), bool)
    assert fractions(mask, [0, 1.5, -1, -3, 6.5, 100, -100], [0, 2.5, 0, -3, 8.5, 0, 0], 2, 2).tolist() == [
        1, 1, 0.5, 0, 0.0625, 0, 0,
    ]  # fmt: skip
    assert fractions(mask, [], [], 2, 2).shape == (0,)
    assert fractions(np.zeros((0, 5), bool), [0], [0], 2, 2).tolist() == [0]
    assert fractions(mask, [-10], [-10], 100, 100)[0] == pytest.approx(63 / 1e4)


def test_million_fractions_in_about_a_second() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((2000, 2000)) < 0.5
    tops, lefts = rng.uniform(-100, 2100, (2, 1_000_000))
    started = time.process_time()
    found = fractions(mask, tops, lefts, 28, 28)
    took = time.process_time() - started
    started = time.process_time()
    for top, left in zip(np.maximum(tops[:2000].astype(int), 0), np.maximum(lefts[:2000].astype(int), 0), strict=True):
        mask[top : top + 28, left : left + 28].sum()
    loop = time.process_time() - started
    assert found.shape == (1_000_000,)
    assert took < 100 * loop  # a loop would take 500 times as long as its 2000 turns


@pytest.mark.parametrize(
    ("mask", "tops", "lefts", "height"),
    [
        (np.zeros((3, 3), np.uint8), [0], [0], 1),
        (np.zeros((3, 3, 1), bool), [0], [0], 1),
        (np.zeros((3, 3), bool), [0, 1], [0], 1),
        (np.zeros((3, 3), bool), [np.nan], [0], 1),
        (np.zeros((3, 3), bool), [0], [0], 0),
        (np.zeros((3, 3), bool), [0], [0], np.inf),
    ],
)
def test_fractions_refuse(mask: Any, tops: Any, lefts: Any, height: float) -> None:
    with pytest.raises(OptionError):
        fractions(mask, tops, lefts, height, 1)


def test_polygon_fractions_are_exact_areas() -> None:
    pytest.importorskip("shapely")
    triangle = Polygon(np.array([[0.0, 0], [10, 0], [0, 10]]))
    found = polygon_fractions([triangle], [0, 4, 8, -5, 20], [0, 4, 8, -5, 20], 4, 4)
    assert found == pytest.approx([1, 2 / 16, 0, 0, 0])
    with_hole = read_polygons(feature([SQUARE, HOLE]))
    assert polygon_fractions(with_hole, [0], [0], 10, 10) == pytest.approx([0.2])
    assert polygon_fractions(with_hole * 2, [1], [2], 4, 6) == pytest.approx([20 / 24])
    # Edges at whole numbers: the mask says the same.
    rng = np.random.default_rng(3)
    tops, lefts = rng.uniform(-3, 9, (2, 500))
    expected = fractions(rasterise(with_hole, (10, 10)), tops, lefts, 2.5, 3.25)
    assert polygon_fractions(with_hole, tops, lefts, 2.5, 3.25) == pytest.approx(expected, abs=1e-12)
    assert polygon_fractions([], [0], [0], 1, 1).tolist() == [0]
    bow = Polygon(np.array([[0.0, 0], [4, 4], [4, 0], [0, 4]]))  # crosses itself
    assert polygon_fractions([bow], [0], [0], 4, 4) == pytest.approx([0.5])


def test_without_shapely_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(MissingDependencyError, match=r"microtome\[shapes\]"):
        polygon_fractions([Polygon(np.array([[0.0, 0], [1, 0], [0, 1]]))], [0], [0], 1, 1)
