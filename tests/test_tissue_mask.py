"""The tissue of slides: masks in mm, from whatever levels there are, and patches by them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import microtome as mt
from microtome.errors import OptionError, SelectionError, SpacingUndefinedError
from microtome.lazy.frames import InstanceReader
from microtome.ops import resampled
from microtome.testing import make_slide


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def disc(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture of a round piece of tissue on glass, and which pixels are tissue."""
    y, x = np.ogrid[:rows, :columns]
    tissue = (y - rows * 0.4) ** 2 + (x - columns * 0.5) ** 2 < (min(rows, columns) * 0.3) ** 2
    texture = (y * 7 + x * 13) % 40
    picture = np.full((rows, columns, 3), 240, np.uint8)
    picture[tissue] = [170, 90, 150]
    picture[..., 1] -= (texture * tissue).astype(np.uint8)
    return picture, tissue


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("tissue")
    picture, _ = disc(1600, 2000)
    made = {}
    for name, options in {
        "pyramid": {"spacing": 0.002}, "level0": {"spacing": 0.002, "levels": 1},
        "jpeg": {"spacing": 0.001, "levels": 1, "codec": "jpeg", "quality": 90},
        "nowhere": {"spacing": None},
    }.items():  # fmt: skip
        make_slide(out / name, pixels=picture, frame=128, **({"codec": "native"} | options))
        made[name] = out / name
    return made


@pytest.mark.parametrize("method", ["stain", "luminance", "otsu", "saturation"])
@pytest.mark.parametrize("name", ["pyramid", "level0", "jpeg"])
@pytest.mark.parametrize("chunks", [None, "auto"], ids=["lazy", "dask"])
def test_masks_show_tissue(slides: dict[str, Path], name: str, method: str, chunks: str | None) -> None:
    tree = mt.open_slide(slides[name], chunks=chunks)
    mask = tree.wsi.tissue_mask(method)
    assert mask.dtype == bool
    assert mask.dims == ("y", "x")
    assert mask.chunks is not None  # not computed yet
    spacing = mask.wsi.spacing
    assert (round(spacing.row, 9), round(spacing.column, 9)) == (0.008, 0.008)
    # the truth, at the places in mm that the mask states
    mm = tree["level0"].image.wsi.spacing.row
    truth = disc(1600, 2000)[1]
    rows, columns = (mask.y.values / mm).astype(int), (mask.x.values / mm).astype(int)
    assert dice(mask.values, truth[np.ix_(rows, columns)]) > 0.97


def test_luminance_is_ez_wsis_rule(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["pyramid"])
    low = tree.wsi.at(0.008).values.astype(np.int64)
    grey = (low[..., 0] * 4899 + low[..., 1] * 9617 + low[..., 2] * 1868 + 8192) >> 14
    mask = tree.wsi.tissue_mask("luminance", min_luminance=0.2, max_luminance=0.6)
    assert np.abs(mask.values.astype(int) - ((grey >= 51) & (grey <= 153))).sum() <= 2


def test_a_function_may_tell(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["pyramid"])
    mask = tree.wsi.tissue_mask(lambda pixels: pixels[..., 1] < 120)
    assert np.array_equal(mask.values, tree.wsi.at(0.008, quality="fast").values[..., 1] < 120)
    with pytest.raises(OptionError):
        tree.wsi.tissue_mask(lambda pixels: pixels).compute()
    with pytest.raises(OptionError, match="it is one of"):
        tree.wsi.tissue_mask("best")


def test_nothing_is_read_before_it_is_computed(slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tree = mt.open_slide(slides["level0"])
    monkeypatch.setattr(InstanceReader, "paste", lambda *args, **options: pytest.fail("pixels were read"))
    mask = tree.wsi.tissue_mask()
    assert mask.shape == (400, 500)
    assert mask.data.name == mt.open_slide(slides["level0"]).wsi.tissue_mask().data.name
    assert mask.data.name != tree.wsi.tissue_mask("otsu").data.name


def test_a_fine_level_is_read_in_parts(slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampled, "SOURCE_BYTES", 1 << 18)
    tree = mt.open_slide(slides["level0"], chunks=None)
    with mt.config.set(decode_threads=1, overlap_cache_bytes=1 << 20):
        image = tree.wsi.at(0.016)
        tracemalloc.start()
        image.values  # noqa: B018
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20  # the level has 9.6 MB


def test_places_without_frames_are_no_tissue(tmp_path: Path) -> None:
    dark = np.full((1024, 1024, 3), 90, np.uint8)
    dark[..., 1] = 40
    dark[:512, :512] = 243
    make_slide(tmp_path, pixels=dark, tiling="sparse", drop=1.0, frame=128, codec="native", spacing=0.004, levels=1)
    tree = mt.open_slide(tmp_path, fill=60)  # what is not there looks like tissue
    covered = tree["level0"].image.wsi.coverage().values
    assert not covered.all()
    mask = tree.wsi.tissue_mask("luminance").values
    assert mask.any()
    assert not mask[~covered[1::2, 1::2]].any()


def test_shapes_are_tidied_in_mm(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["pyramid"])
    everything = tree.wsi.tissue_mask(min_area=0.01).values
    assert everything.any()
    assert not tree.wsi.tissue_mask(min_area=100).values.any()
    assert tree.wsi.tissue_mask(closing=0.05).values.sum() >= everything.sum()


def test_slides_without_spacing(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["nowhere"])
    mask = tree.wsi.tissue_mask()
    assert "y" not in mask.coords
    assert max(mask.shape) == 2000
    truth = disc(1600, 2000)[1]
    assert dice(mask.values, truth) > 0.97
    with pytest.raises(SpacingUndefinedError):
        tree.wsi.tissue_mask(min_area=1)
    level = tree["level0"].image
    with pytest.raises(SpacingUndefinedError, match=r"mask\.values"):
        level.wsi.patches(64, mask=mask)
    patches = level.wsi.patches(64, mask=mask.values)
    assert 0 < patches.sizes["patch"] < 25 * 31


def test_patches_of_tissue(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["pyramid"])
    mask = tree.wsi.tissue_mask()
    truth = disc(1600, 2000)[1]
    for level, patches in (("level0", 100), ("level1", 50)):
        found = tree[level].image.wsi.patches(patches, mask=mask, min_fraction=0.9, order="rows")
        step = 2000 // tree[level].sizes["x"]
        wanted = [
            (row * 100 // step, column * 100 // step)
            for row in range(16) for column in range(20)
            if truth[row * 100 : row * 100 + 100, column * 100 : column * 100 + 100].mean() >= 0.9
        ]  # fmt: skip
        got = set(zip(found.row.values.tolist(), found.column.values.tolist(), strict=True))
        assert len(got ^ set(wanted)) <= 2  # at the border, pixels of 8 µm decide
        assert (found.tissue_fraction >= 0.9).all()
    elsewhere = mask.assign_coords(y=mask.y + 100)
    with pytest.raises(SelectionError, match="covers nothing"):
        tree["level0"].image.wsi.patches(100, mask=elsewhere)


def test_masks_meet_levels_by_mm(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["pyramid"])
    mask, level = tree.wsi.tissue_mask().compute(), tree["level1"].image
    fine = mask.wsi.like(level)
    assert fine.dtype == bool
    assert fine.sizes == {"y": 800, "x": 1000}
    assert np.array_equal(fine.values, np.repeat(np.repeat(mask.values, 2, 0), 2, 1))
    tissue = level.where(fine, 255)
    assert tissue.shape == level.shape


def test_fluorescence_is_bright(real: Path) -> None:
    tree = mt.open_slide(real / "dicom/3dhistech_BPAEC")
    mask = tree.wsi.tissue_mask(spacing=0.005)
    total = tree.wsi.at(0.005).values.astype(float).sum(axis=-1)
    assert 0.02 < mask.values.mean() < 0.9
    assert total[mask.values].mean() > 2 * total[~mask.values].mean()
    with pytest.raises(OptionError):
        tree.wsi.tissue_mask("saturation").compute()


def test_colour_may_be_converted_before(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["pyramid"])
    seen = []

    def look(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels)
        return np.zeros(pixels.shape[:2], bool)

    tree.wsi.tissue_mask(look, color="adobe_rgb", quality="exact").compute()
    assert np.array_equal(seen[-1], tree.wsi.at(0.008).wsi.to_profile("adobe_rgb").values)


def test_on_a_crop_of_the_slide(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["pyramid"])
    whole = tree.wsi.tissue_mask("luminance").compute()
    crop = tree.sel(y=slice(0.8, 2.0), x=slice(1.0, 3.0))
    part = crop.wsi.tissue_mask("luminance").compute()
    assert part.sizes["y"] in (149, 150, 151)
    same: xr.DataArray = whole.sel(y=part.y, x=part.x, method="nearest", tolerance=1e-9)
    assert np.array_equal(part.values, same.values)


def test_what_has_no_meaning_is_refused_at_once(slides: dict[str, Path]) -> None:
    tree = mt.open_slide(slides["pyramid"])
    for options in ({"min_luminance": 5}, {"closing": -1}, {"min_area": float("nan")}):
        with pytest.raises(OptionError):
            tree.wsi.tissue_mask(**options)
    with pytest.raises(OptionError, match="no meaning with it"):
        tree.wsi.ez_wsi_patches(64, level=0, mask=np.ones((4, 4), bool), mask_level=1)
