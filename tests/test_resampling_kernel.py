"""The resampling kernel, against Pillow, against sums over repeated pixels, and against weights written out."""

from __future__ import annotations

import math
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microtome.errors import OptionError, SelectionError
from microtome.ops.resampling import AxisGrid, resample

SCALES = [2, 2.5, 3, 1.7, 7.3, 0.4, 10 / 3, 1, 3.9698]


def whole(source: Any, y: AxisGrid, x: AxisGrid) -> Any:
    return resample(source, y, x, (0, y.count), (0, x.count))


def noise(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> Any:
    """Noise with much of the darkest and the brightest, where overflow and rounding show."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    values = rng.integers(limits.min, limits.max, shape, endpoint=True)
    return np.where(rng.random(shape) < 0.3, rng.choice([limits.min, limits.max], shape), values).astype(dtype)


def repeated_mean(source: Any, repeat: int, factor: int) -> Any:
    """The mean at scale factor / repeat in whole numbers, rounded half up."""
    big = source.repeat(repeat, 0).repeat(repeat, 1).astype(np.int64)
    h, w, c = big.shape[0] // factor, big.shape[1] // factor, big.shape[2]
    sums = big[: h * factor, : w * factor].reshape(h, factor, w, factor, c).sum((1, 3))
    return (2 * sums + factor**2) // (2 * factor**2)


def weights(grid: AxisGrid) -> Any:
    """Weights ``(count, size)`` of one axis, from the definitions, pixel by pixel."""
    result = np.zeros((grid.count, grid.size))
    for i in range(grid.count):
        low, high = grid.offset + i * grid.scale, grid.offset + (i + 1) * grid.scale
        middle = (low + high) / 2
        if grid.nearest:
            result[i, min(max(math.floor(middle + 1e-9), 0), grid.size - 1)] = 1
        elif grid.scale <= 1:
            at = min(max(middle - 0.5, 0), grid.size - 1)
            left = math.floor(at)
            result[i, left] = 1 - (at - left)
            result[i, min(left + 1, grid.size - 1)] += at - left
        else:
            pixels = np.arange(grid.size)
            result[i] = np.maximum(0, np.minimum(high, pixels + 1) - np.maximum(low, pixels))
            if result[i].sum() < 1e-9:  # outside: its nearest pixel
                result[i, 0 if high <= 1e-9 else -1] = 1
            result[i] /= result[i].sum()
    return result


def axis(size: int, scale: float, offset: float = 0.0, nearest: bool = False) -> AxisGrid:
    return AxisGrid(size, max(1, math.ceil((size - offset) / scale)), scale, offset, nearest)


# -- against independent truth


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 7, 8, 16, 64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_whole_factors_are_exact_means(factor: int, channels: int) -> None:
    h, w = 3 * factor * 7, 2 * factor * 9
    source = noise((h, w, channels))
    ours = whole(source, axis(h, factor), axis(w, factor))
    assert np.array_equal(ours, repeated_mean(source, 1, factor))
    planes = [Image.fromarray(np.ascontiguousarray(source[..., c])).reduce(factor) for c in range(channels)]
    theirs = np.stack(planes, axis=-1).astype(int)
    assert np.abs(ours - theirs).max() <= (0 if factor & (factor - 1) == 0 else 1)  # Pillow multiplies by 1 / 9


def test_partial_pixels_at_the_end_are_means_of_what_is_there() -> None:
    source = noise((101, 203, 3))
    ours = whole(source, axis(101, 4), axis(203, 4))
    theirs = np.asarray(Image.fromarray(source).reduce(4)).astype(int)
    assert ours.shape == theirs.shape == (26, 51, 3)
    assert np.abs(ours - theirs).max() <= 1
    assert ours[-1, -1, 0] == math.floor(source[100:, 200:, 0].mean() + 0.5)


@pytest.mark.parametrize(("repeat", "factor"), [(2, 5), (3, 10), (2, 3), (10, 17), (10, 73)])
def test_fractional_factors_are_exact_means(repeat: int, factor: int) -> None:
    source = noise((146, 219, 3))
    truth = repeated_mean(source, repeat, factor)
    scale = factor / repeat
    y, x = AxisGrid(146, truth.shape[0], scale), AxisGrid(219, truth.shape[1], scale)
    ours = whole(source, y, x)
    assert np.array_equal(ours, truth)
    theirs = Image.fromarray(source.repeat(repeat, 0).repeat(repeat, 1)).reduce(factor)
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)[: y.count, : x.count]).max() <= 1


@pytest.mark.parametrize("size", [(64, 90), (75, 46), (30, 45), (301, 77)])
def test_enlarging_is_pillow_bilinear(size: tuple[int, int]) -> None:
    source = noise((30, 45, 3))
    y, x = AxisGrid(30, size[0], 30 / size[0]), AxisGrid(45, size[1], 45 / size[1])
    theirs = np.asarray(Image.fromarray(source).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(whole(source, y, x) - theirs).max() <= 1


@pytest.mark.parametrize("size", [(64, 90), (15, 9), (30, 45), (7, 77)])
def test_nearest_is_pillow_nearest(size: tuple[int, int]) -> None:
    source = noise((30, 45, 3))
    y, x = AxisGrid(30, size[0], 30 / size[0], nearest=True), AxisGrid(45, size[1], 45 / size[1], nearest=True)
    theirs = np.asarray(Image.fromarray(source).resize(size[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(whole(source, y, x), theirs)


@st.composite
def axes(draw: st.DrawFn) -> AxisGrid:
    scale = draw(st.sampled_from(SCALES) | st.floats(0.2, 40) | st.floats(200, 300))
    offset = draw(st.sampled_from([0, 0.5, -3, 1.25]) | st.floats(-9, 9))
    return AxisGrid(draw(st.integers(1, 90)), draw(st.integers(1, 40)), scale, offset, draw(st.integers(0, 9)) == 0)


@settings(deadline=None, max_examples=150)
@given(axes(), axes(), st.sampled_from(["u1", "i1", "u2", ">u2", "i2", "i4", "f4", "f8"]), st.integers(0, 99))
def test_any_grid_is_the_weighted_sum(y: AxisGrid, x: AxisGrid, dtype: str, seed: int) -> None:
    source = noise((y.size, x.size, 2), dtype, seed)
    truth = np.einsum("iy,yxc,jx->ijc", weights(y), source.astype(np.float64), weights(x), optimize=True)
    ours = whole(source, y, x)
    assert ours.dtype == source.dtype
    # borders within a millionth of a source pixel of a whole one are taken as whole
    allowed = {"u1": 0.61, "i1": 0.61, "u2": 1.1, ">u2": 1.1, "i2": 1.1, "i4": 2**32 * 8e-6}.get(dtype, 4e-5)
    assert np.abs(ours - truth).max() <= allowed


@pytest.mark.parametrize(("down", "across"), [(2.5, 2.5), (3, 3), (2.5, 3), (3, 2.5), (4, 2.5), (3, 0.5)])
def test_ramps_read_as_the_ramp_at_the_centres(down: float, across: float) -> None:
    rows, columns = np.mgrid[0:90, 0:120].astype(np.float64)
    ramp = (columns + rows)[..., None]
    y, x = AxisGrid(90, int(90 / down), down), AxisGrid(120, int(120 / across), across)
    at_y, at_x = (np.arange(y.count) + 0.5) * down - 0.5, (np.arange(x.count) + 0.5) * across - 0.5
    truth = np.clip(at_x, 0, 119) + np.clip(at_y, 0, 89)[:, None]
    assert np.abs(whole(ramp.astype(np.uint8), y, x)[..., 0] - truth).max() <= 0.5
    assert np.abs(whole(ramp.astype(np.float32), y, x)[..., 0] - truth).max() <= 0.1001


# -- tiles


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(SCALES),
    st.sampled_from(SCALES),
    st.sampled_from([0, 0.5, -3.25, 1 / 3, 20]),
    st.sampled_from(["u1", "u2", "i2", "f4"]),
    st.booleans(),
    st.data(),
)
def test_tiles_are_the_whole_to_the_bit(
    down: float, across: float, offset: float, dtype: str, nearest: bool, data: st.DataObject
) -> None:
    y, x = axis(83, down, offset, nearest), axis(97, across, -offset)
    source = noise((83, 97, 3), dtype)
    expected = whole(source, y, x)
    cuts = [sorted({0, grid.count, *data.draw(st.lists(st.integers(0, grid.count), max_size=3))}) for grid in (y, x)]
    for rows in zip(cuts[0], cuts[0][1:], strict=False):
        for columns in zip(cuts[1], cuts[1][1:], strict=False):
            top, bottom = y.support(*rows)
            left, right = x.support(*columns)
            assert 0 <= top < bottom <= 83
            tile = resample(source[top:bottom, left:right], y, x, rows, columns, (top, left))
            assert np.array_equal(tile, expected[slice(*rows), slice(*columns)])


@pytest.mark.parametrize(("scale", "dtype"), [(2, "u1"), (3.9698, "u1"), (16.1, "u1"), (3.9698, "u2"), (2.5, "f4")])
def test_big_tiles_are_the_whole_to_the_bit(scale: float, dtype: str) -> None:
    """Larger than the tiles the kernel works in itself."""
    source = noise((700, 2300, 3), dtype)
    y, x = axis(700, scale), axis(2300, scale)
    expected = whole(source, y, x)
    middle = (y.count * 2 // 3, x.count // 3)
    for rows in ((0, middle[0]), (middle[0], y.count)):
        for columns in ((0, middle[1]), (middle[1], x.count)):
            tile = resample(source, y, x, rows, columns)
            assert np.array_equal(tile, expected[slice(*rows), slice(*columns)])
    picked = np.linspace(0, x.count - 1, 9).astype(int)
    truth = np.einsum("iy,yxc,jx->ijc", weights(y), source.astype(float), weights(x)[picked], optimize=True)
    assert np.abs(expected[:, picked] - truth).max() <= {"u1": 0.61, "u2": 1.1, "f4": 1e-5}[dtype]


@settings(deadline=None, max_examples=200)
@given(axes(), st.data())
def test_support_is_what_has_weight(grid: AxisGrid, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, grid.count - 1))
    stop = data.draw(st.integers(start + 1, grid.count))
    first, end = grid.support(start, stop)
    used = np.flatnonzero(weights(grid)[start:stop].max(0) > 2e-6)
    assert first <= used[0] <= used[-1] < end
    assert 0 <= first < end <= grid.size
    assert used[0] - first <= 1
    assert end - 1 - used[-1] <= 1


def test_source_outside_the_support_is_not_looked_at() -> None:
    y, x = axis(60, 2.5), axis(60, 1.7)
    source = np.full((60, 60, 1), np.nan, np.float32)
    rows, columns = (5, 11), (7, 20)
    source[slice(*y.support(*rows)), slice(*x.support(*columns))] = 3
    assert (resample(source, y, x, rows, columns) == 3).all()


# -- dtypes and odd input


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize("scale", [2.5, 4, 0.4, 300])
def test_constants_and_limits_stay(dtype: str, scale: float) -> None:
    limits = np.finfo(dtype) if dtype[0] == "f" else np.iinfo(dtype)
    values = [-3.5, 7] if dtype[0] == "f" else [limits.min, limits.max, 1]
    grid = axis(40, scale, -0.3)
    for value in values:
        source = np.full((40, 40, 1), value, dtype)
        assert (whole(source, grid, grid) == source[0, 0, 0]).all()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4"])
def test_halves_round_up(dtype: str) -> None:
    source = np.array([[0, 1], [1, 0]], dtype)[..., None]
    assert whole(source, axis(2, 2), axis(2, 2)).item() == 1
    if dtype[0] == "i":
        assert whole(-source, axis(2, 2), axis(2, 2)).item() == 0


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("scale", [2, 2.5, 1.7, 0.4])
def test_nan_and_infinity_stay_where_they_are(dtype: str, scale: float) -> None:
    grid = axis(40, scale)
    table = weights(grid)
    for place in range(15, 25):
        touched = table[:, place] > 0
        for odd in (np.nan, np.inf):
            source = noise((40, 40, 2), dtype)
            source[place, place, 1] = odd
            ours = whole(source, grid, grid)
            expected = np.isnan(ours) if np.isnan(odd) else np.isposinf(ours)
            assert np.array_equal(expected[..., 1], np.logical_and.outer(touched, touched))
            assert np.isfinite(ours[..., 0]).all()


def test_rounding_of_the_scale_makes_no_slivers() -> None:
    scale = 0.1 * 3 * 10
    assert scale > 3
    grid = AxisGrid(30, 10, scale)
    assert [grid.support(i, i + 1) for i in range(10)] == [(3 * i, 3 * i + 3) for i in range(10)]
    source = noise((30, 30, 1), np.float32)
    source[3] = np.nan
    assert np.array_equal(np.isnan(whole(source, grid, grid))[:, 0, 0], np.arange(10) == 1)


def test_masks_are_picked_never_averaged() -> None:
    mask = noise((50, 60, 1), bool)
    y, x = axis(50, 2.5, nearest=True), axis(60, 0.4, nearest=True)
    rows = np.minimum((np.arange(y.count) * 2.5 + 1.25).astype(int), 49)
    columns = np.minimum((np.arange(x.count) * 0.4 + 0.2).astype(int), 59)
    assert np.array_equal(whole(mask, y, x), mask[rows][:, columns])
    with pytest.raises(OptionError, match="nearest=True"):
        whole(mask, axis(50, 2), axis(60, 2))
    with pytest.raises(OptionError, match="nearest=True"):
        whole(mask, y, axis(60, 0.5))
    with pytest.raises(OptionError, match="int64"):
        whole(np.zeros((4, 4, 1), np.int64), axis(4, 2), axis(4, 2))


@pytest.mark.parametrize("dtype", ["u1", "f4", bool, "i8"])
def test_a_shift_by_whole_pixels_is_a_copy(dtype: Any) -> None:
    source = noise((20, 30, 3), dtype)
    y, x = AxisGrid(20, 12, 1.0, 5.0), AxisGrid(30, 30, 1.0)
    ours = whole(source, y, x)
    assert np.array_equal(ours, source[5:17])
    assert not np.shares_memory(ours, source)
    assert y.support(0, 12) == (5, 17)


def test_beyond_the_source_is_its_nearest_pixel() -> None:
    source = noise((8, 8, 1))
    for scale in (2.5, 0.5, 1):
        y, x = AxisGrid(8, 60, scale, -20.0), AxisGrid(8, 8, 1.0)
        ours = whole(source, y, x)[:, 3, 0]
        assert ours[0] == source[0, 3, 0]
        assert y.support(0, 1) == (0, 1)
        if scale == 2.5:
            assert ours[59] == source[7, 3, 0]
            assert y.support(59, 60) == (7, 8)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_one_pixel_and_empty_ranges(dtype: str) -> None:
    one = noise((1, 1, 3), dtype)
    for scale in (0.25, 1, 3.3):
        assert (whole(one, AxisGrid(1, 4, scale), AxisGrid(1, 2, scale)) == one).all()
    grid = axis(9, 2.5)
    source = noise((9, 9, 3), dtype)
    assert resample(source, grid, grid, (2, 2), (0, 3)).shape == (0, 3, 3)
    assert resample(source[:0, :0], grid, grid, (2, 2), (0, 0)).shape == (0, 0, 3)
    assert whole(source[..., :0], grid, grid).shape == (4, 4, 0)
    nothing = AxisGrid(0, 0, 2.5)
    assert nothing.support(0, 0) == (0, 0)
    assert whole(source[:0], nothing, grid).shape == (0, 4, 3)


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_planes_views_and_out(dtype: str) -> None:
    source = noise((2, 3, 80, 90, 4), dtype)
    y, x = axis(40, 2.5), axis(90, 3)
    view = source[:, :, ::-2, :, 1:3]
    out = np.zeros((2, 3, 16, 30, 5), dtype)
    target = out[..., 1:3]
    assert resample(view, y, x, (0, 16), (0, 30), out=target) is target
    for z in range(2):
        for path in range(3):
            truth = np.einsum("iy,yxc,jx->ijc", weights(y), view[z, path].astype(float), weights(x), optimize=True)
            assert np.abs(target[z, path] - truth).max() <= (0.51 if dtype == "u1" else 1e-5)
    assert not out[..., [0, 3, 4]].any()


def test_errors_say_what_to_do() -> None:
    grid = axis(20, 2.0)
    source = noise((20, 20, 3))
    with pytest.raises(SelectionError, match="read the support"):
        resample(source[4:], grid, grid, (0, 5), (0, 5), (4, 0))
    with pytest.raises(SelectionError, match="which has 10"):
        resample(source, grid, grid, (0, 11), (0, 5))
    with pytest.raises(SelectionError, match="none"):
        whole(source[:0], AxisGrid(0, 3, 2.0), grid)
    with pytest.raises(OptionError, match="make out of those"):
        resample(source, grid, grid, (0, 5), (0, 5), out=np.empty((5, 5, 3), np.float32))
    with pytest.raises(OptionError, match="axes"):
        whole(source[..., 0], grid, grid)
    for scale, offset in ((0, 0), (-1, 0), (math.nan, 0), (2, math.inf)):
        with pytest.raises(OptionError, match="scale"):
            AxisGrid(4, 4, scale, offset)
    with pytest.raises(OptionError, match="negative"):
        AxisGrid(-1, 4, 2.0)


# -- threads


def test_threads_agree() -> None:
    source = noise((600, 600, 3))
    grid = axis(600, 2.5)
    expected = whole(source, grid, grid)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: whole(source, grid, grid), range(12)):
            assert np.array_equal(result, expected)


def test_others_run_meanwhile() -> None:
    """With no forced switches, another thread runs only where the kernel lets go of the interpreter."""
    source, grid = noise((1500, 1500, 3)), axis(1500, 2.5)
    interval, ticks, stop = sys.getswitchinterval(), [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0.0002)

    sys.setswitchinterval(30)
    thread = threading.Thread(target=tick)
    try:
        thread.start()
        before, end = ticks[0], time.perf_counter() + 0.4
        while time.perf_counter() < end:
            whole(source, grid, grid)
        during = ticks[0] - before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert during >= 5


@pytest.mark.parametrize("scale", [2, 2.5, 16, 100])
def test_no_threads_of_its_own(scale: float) -> None:
    """Threads of the matrix library would spend time that is not this thread's."""
    source, grid = noise((1200, 1200, 3)), axis(1200, scale)
    process, own = time.process_time(), time.thread_time()
    while time.thread_time() < own + 0.15:
        whole(source, grid, grid)
    process, own = time.process_time() - process, time.thread_time() - own
    assert process <= 1.1 * own
