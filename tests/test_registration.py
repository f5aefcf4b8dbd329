"""Levels of every real pyramid register against level 0 within half a coarse pixel.

Oracle: level 0 averaged over the squares that the coordinates of a level say its pixels cover, and the shift between
the two pictures by least squares of the optical flow equation (Lucas and Kanade, IJCAI 1981).
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import microtome as mt
from microtome.testing import make_slide

PYRAMIDS = {"3dhistech_BPAEC": 5, "gcp_cmu1_pyramid": 7, "jpeg_bot": 5, "jpeg_eot": 5}
PYRAMIDS |= {"jpeg_ybr422_bot": 4, "jpeg_rotated": 3, "jpeg_frame_500x": 3}
CASES = [(name, level) for name, levels in PYRAMIDS.items() for level in range(1, levels)]


def alignment(name: str, level: int) -> str:
    """wsi2dcm (gcp) states spacings by halves; from level 3 on it fits the whole picture into sizes rounded down."""
    return "extent" if name == "gcp_cmu1_pyramid" and level > 2 else "spacing"


def edges(coordinate: np.ndarray) -> np.ndarray:
    step = coordinate[1] - coordinate[0]
    return np.append(coordinate - step / 2, coordinate[-1] + step / 2)


def box_average(picture: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Mean along the first axis between coarse edges in mm, of pixels between fine edges in mm."""
    total = np.concatenate([np.zeros((1, *picture.shape[1:])), np.cumsum(picture, 0)])
    at = np.interp(coarse, fine, np.arange(len(fine)))
    low = np.minimum(at.astype(int), len(fine) - 2)
    sums = total[low] + (at - low)[:, None] * (total[low + 1] - total[low])
    return np.diff(sums, axis=0) / np.maximum(np.diff(at), 1e-9)[:, None]


def shift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(dy, dx) in pixels by which ``b`` shows things further down and right than ``a``."""
    dy, dx = np.gradient(a)
    inner = (slice(1, -1), slice(1, -1))
    terms = np.stack([-dy[inner].ravel(), -dx[inner].ravel(), a[inner].ravel(), np.ones(dy[inner].size)], 1)
    solution, *_ = np.linalg.lstsq(terms, b[inner].ravel(), rcond=None)
    return solution[:2] / max(solution[2], 0.1)


@lru_cache(maxsize=2)
def opened(folder: Path, believed: str):
    slide = mt.open_slide(folder, alignment=believed)
    return slide, slide["level0"].image.mean("c").values


def measured(slide, finest: np.ndarray, level: int) -> np.ndarray:
    top, image = slide["level0"].image, slide[f"level{level}"].image
    # The last pixel of a level may reach over the edge of level 0: rounding up.
    image = image[: max(2, image.shape[0] - 1), : max(2, image.shape[1] - 1)]
    mine = image.mean("c").values
    down = box_average(finest, edges(top.y.values), edges(image.y.values))
    return shift(box_average(down.T, edges(top.x.values), edges(image.x.values)).T, mine)


@pytest.mark.parametrize(("name", "level"), CASES)
def test_levels_register_within_half_a_coarse_pixel(real, variants, name, level):
    (folder,) = [p for p in (real / "dicom" / name, real / "cmu1_dicom" / name, variants / name) if p.is_dir()]
    slide, finest = opened(folder, alignment(name, level))
    off = measured(slide, finest, level)
    assert np.abs(off).max() < 0.5, off


def test_a_shift_would_be_seen(tmp_path):
    make_slide(tmp_path, width=1200, height=900, levels=2, codec="native", associated=False)
    slide = mt.open_slide(tmp_path)
    finest = slide["level0"].image.mean("c").values
    np.testing.assert_allclose(measured(slide, finest, 1), (0, 0), atol=0.1)
    moved = np.roll(finest, (2, -1), (0, 1))  # level 0, and so all but level 1, lies lower and further left
    assert measured(slide, moved, 1)[0] < -0.6
    assert measured(slide, moved, 1)[1] > 0.3


def test_images_pickle_after_they_were_read(tmp_path: Path) -> None:
    make_slide(tmp_path, width=300, height=200, frame=64, codec="native")
    for chunks in (None, "auto"):
        level = mt.open_slide(tmp_path, chunks=chunks)["level0"].to_dataset()
        pixels = level.image.wsi.read(3, 5, 20, 30)
        level.wsi.explain()
        for data in (level.image, level):
            again = pickle.loads(pickle.dumps(data))
            assert np.array_equal(again.wsi.read(3, 5, 20, 30), pixels)
