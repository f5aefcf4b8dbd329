"""PyTorch's DataLoader over patches: batches against slices in NumPy, in this process and in workers."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import microtome as mt
from microtome.errors import OptionError, SelectionError
from microtome.lazy import reader
from microtome.testing import DICOMwebServer, SyntheticSlide, make_slide

SIZE = 64


torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from torch.utils.data import DataLoader, Subset, random_split  # noqa: E402

from microtome.torch import IterablePatchDataset, PatchDataset  # noqa: E402

forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork.*:DeprecationWarning",  # it is why we test
    "ignore:This DataLoader will create:UserWarning",  # torch on machines of one processor
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("slide"), width=600, height=500, frame=64, codec="deflated-frame")


@pytest.fixture(scope="module")
def level(made: SyntheticSlide) -> Any:
    return mt.open_slide(made.folder)["level0"].image


@pytest.fixture(params=["auto", 20, None])
def patches(level: Any, request: pytest.FixtureRequest) -> xr.Dataset:
    ps: xr.Dataset = level.wsi.patches(SIZE, 32, chunks=request.param)
    return ps


def truth_of(made: SyntheticSlide, patches: xr.Dataset) -> Any:
    """(n, c, y, x), by slices of the whole level."""
    whole = made.pixels(0)
    places = zip(patches.row.values, patches.column.values, strict=True)
    return np.stack([whole[r : r + SIZE, c : c + SIZE].transpose(2, 0, 1) for r, c in places])


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of regions of each plan that is carried out."""
    seen: list[int] = []
    plan = reader.plan_regions

    def counted(level: Any, planes: Any, regions: Any, grouping: Any) -> Any:
        seen.append(len(regions))
        return plan(level, planes, regions, grouping)

    monkeypatch.setattr(reader, "plan_regions", counted)
    return seen


def check(loader: Any, truth: Any) -> list[int]:
    """Compare the batches of a loader whose targets are numbers of patches; return these."""
    seen: list[int] = []
    for images, numbers in loader:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, SIZE, SIZE)
        np.testing.assert_array_equal(images.numpy(), truth[numbers.numpy()])
        seen += numbers.tolist()
    return seen


def test_items(made: SyntheticSlide, patches: xr.Dataset) -> None:
    truth, data = truth_of(made, patches), PatchDataset(patches)
    assert len(data) == len(truth) == patches.sizes["patch"]
    for number in (0, 5, -1, np.int64(7), len(truth) - 1):
        np.testing.assert_array_equal(data[number].numpy(), truth[number])
    for number in (len(truth), -len(truth) - 1):
        with pytest.raises(SelectionError, match=f"there are {len(truth)}"):
            data[number]
    np.testing.assert_array_equal(PatchDataset(patches, channels_first=False)[3].numpy(), truth[3].transpose(1, 2, 0))
    grey = PatchDataset(patches, transform=lambda image: image.float().mean(0))[3]
    np.testing.assert_allclose(grey.numpy(), truth[3].mean(0), atol=1e-3)
    data[4][...] = 0  # what is handed out is nobody else's
    np.testing.assert_array_equal(data[4].numpy(), truth[4])


def test_targets(patches: xr.Dataset) -> None:
    labels = np.arange(patches.sizes["patch"] * 2, dtype=np.float32).reshape(-1, 2)
    patches = patches.assign(grade=("patch", labels[:, 0] > 9))
    for target, first in (("row", torch.int64), ("y0", torch.float64), ("grade", torch.bool), (labels, torch.float32)):
        _, got = next(iter(DataLoader(PatchDataset(patches, target=target), batch_size=30)))
        wanted = patches[target].values if isinstance(target, str) else target
        assert got.dtype == first
        np.testing.assert_array_equal(got.numpy(), wanted[:30])
    _, names = next(iter(DataLoader(PatchDataset(patches, target="id"), batch_size=30)))
    assert list(names) == patches.id.values[:30].tolist()
    for wrong in ("image", "c", "nothing", labels[:5], [object()] * len(labels)):
        with pytest.raises(OptionError):
            PatchDataset(patches, target=wrong)


def test_a_batch_is_one_read(made: SyntheticSlide, patches: xr.Dataset, plans: list[int]) -> None:
    truth = truth_of(made, patches)
    data = PatchDataset(patches, target=np.arange(len(truth)))
    del plans[:]
    seen = check(DataLoader(data, batch_size=32, shuffle=True), truth)
    assert sorted(seen) == list(range(len(truth)))
    assert seen != sorted(seen)
    assert plans == [32] * (len(truth) // 32) + [len(truth) % 32]
    del plans[:]
    seen = check(
        DataLoader(IterablePatchDataset(patches, target=np.arange(len(truth)), batch=50), batch_size=32), truth
    )
    assert seen == list(range(len(truth)))
    assert plans == [50] * (len(truth) // 50) + [len(truth) % 50]


def test_selections(made: SyntheticSlide, patches: xr.Dataset, plans: list[int]) -> None:
    truth = truth_of(made, patches)
    chosen = np.random.default_rng(0).permutation(len(truth))[:40]
    data = PatchDataset(patches.isel(patch=chosen), target=chosen)
    del plans[:]
    assert check(DataLoader(data, batch_size=16), truth) == chosen.tolist()
    assert len(plans) == 3
    whole = PatchDataset(patches, target=np.arange(len(truth)))
    assert check(DataLoader(Subset(whole, chosen.tolist()), batch_size=16), truth) == chosen.tolist()
    one, other = random_split(whole, [0.25, 0.75], generator=torch.Generator().manual_seed(0))
    both = check(DataLoader(one, batch_size=16), truth) + check(DataLoader(other, batch_size=16), truth)
    assert sorted(both) == list(range(len(truth)))
    crop = PatchDataset(patches.isel(y=slice(8, 40), x=slice(None, None, 2), c=1))[9]
    np.testing.assert_array_equal(crop.numpy(), truth[9, 1, 8:40, ::2])
    crop = PatchDataset(patches.isel(c=[2, 0]))[9]
    np.testing.assert_array_equal(crop.numpy(), truth[9, [2, 0]])


def test_images_that_are_computed(made: SyntheticSlide, level: Any) -> None:
    for image in (255 - level, 255 - level.compute()):
        ps = image.wsi.patches(SIZE, 32)
        truth = 255 - truth_of(made, ps)
        assert len(check(DataLoader(PatchDataset(ps, target=np.arange(len(truth))), batch_size=100), truth)) == len(
            truth
        )
        loaded = PatchDataset(ps.compute(), target=np.arange(len(truth)))
        assert len(check(DataLoader(loaded, batch_size=100), truth)) == len(truth)
    inverse = level.wsi.patches(SIZE, 32).map(lambda v: 255 - v)
    np.testing.assert_array_equal(PatchDataset(inverse)[7].numpy(), 255 - truth_of(made, inverse)[7])


def test_other_dimensions(tmp_path: Any) -> None:
    slide = make_slide(
        tmp_path,
        width=100,
        height=90,
        frame=32,
        codec="native",
        levels=1,
        focal_planes=2,
        paths=("a", "b"),
        dtype="uint16",
    )
    ps = mt.open_slide(slide.folder)["level0"].image.wsi.patches((40, 30), chunks=None)
    item = PatchDataset(ps)[3]
    assert item.shape == (2, 2, 40, 30)
    row, column = int(ps.row[3]), int(ps.column[3])
    for z in range(2):
        for c in range(2):
            wanted = slide.pixels(0, plane=z, path=c)[row : row + 40, column : column + 30, 0]
            np.testing.assert_array_equal(item[z, c].numpy(), wanted)


def test_what_is_no_patches(level: Any) -> None:
    for wrong in (level.to_dataset(name="image"), level.wsi.patches(SIZE).isel(patch=0), xr.Dataset()):
        with pytest.raises(OptionError, match="patches"):
            PatchDataset(wrong)
    nothing = level.wsi.patches(1000)
    assert len(PatchDataset(nothing)) == 0
    assert list(IterablePatchDataset(nothing, shuffle=True)) == []
    ps = level.wsi.patches(SIZE)
    for options in ({"batch": 0}, {"runs": 0}, {"seed": -1}, {"rank": 0}, {"rank": 2, "world_size": 2}, {"batch": 1.5}):
        with pytest.raises(OptionError):
            IterablePatchDataset(ps, **options)  # type: ignore[arg-type]


def test_shuffled_passes(made: SyntheticSlide, patches: xr.Dataset) -> None:
    truth = truth_of(made, patches)
    numbers = np.arange(len(truth))

    def order(epoch: int, **options: Any) -> list[int]:
        data = IterablePatchDataset(patches, target=numbers, shuffle=True, batch=40, **options)
        data.set_epoch(epoch)
        seen = [int(number) for _, number in data]
        assert sorted(seen) == numbers.tolist()
        return seen

    first = order(0)
    assert order(0) == first
    assert first != numbers.tolist()
    assert order(1) != first
    assert order(0, seed=1) != first
    # Read together are runs of neighbours: eight, and perhaps the last one, which is shorter.
    for start in range(0, len(first), 40):
        assert (np.diff(np.sort(first[start : start + 40])) > 1).sum() <= 8
    # It mixes far places.
    assert np.std(first[:40]) > len(first) / 8


def test_ranks(patches: xr.Dataset) -> None:
    numbers = np.arange(patches.sizes["patch"])
    for shuffle in (False, True):
        parts = [
            [int(n) for _, n in IterablePatchDataset(patches, target=numbers, shuffle=shuffle, rank=r, world_size=3)]
            for r in range(3)
        ]
        assert sorted(itertools.chain(*parts)) == numbers.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_pickles_are_small(level: Any) -> None:
    ps = level.wsi.patches(SIZE, 5, chunks=50)
    data = pickle.dumps(PatchDataset(ps))
    assert len(data) < 8192 + 2 * 8 * ps.sizes["patch"]
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy[9].numpy(), PatchDataset(ps)[9].numpy())


@forks
@pytest.mark.parametrize("workers", [1, 2])
def test_forked_workers(made: SyntheticSlide, patches: xr.Dataset, workers: int) -> None:
    truth = truth_of(made, patches)
    _ = patches.image[:60].values  # there are threads and an open file at the time of the fork
    numbers = np.arange(len(truth))
    loader = DataLoader(
        PatchDataset(patches, target=numbers), batch_size=32, shuffle=True, num_workers=workers,
        multiprocessing_context="fork",
    )  # fmt: skip
    assert sorted(check(loader, truth)) == numbers.tolist()
    in_order = DataLoader(PatchDataset(patches, target=numbers), batch_size=32, num_workers=workers)
    assert check(in_order, truth) == numbers.tolist()


@forks
def test_persistent_workers_hear_of_epochs(made: SyntheticSlide, patches: xr.Dataset) -> None:
    truth = truth_of(made, patches)
    data = IterablePatchDataset(patches, target=np.arange(len(truth)), shuffle=True, batch=32)
    loader = DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="fork", persistent_workers=True)
    passes = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        passes.append(check(loader, truth))
        assert sorted(passes[-1]) == list(range(len(truth)))
    assert passes[0] == passes[2] != passes[1]


@forks
def test_computed_images_in_forked_workers(made: SyntheticSlide, level: Any) -> None:
    """Dask's own threads, which were there before the fork, are not waited for."""
    ps = (255 - level).wsi.patches(SIZE, chunks=20)
    _ = da.ones(100, chunks=10).sum().compute(scheduler="threads")
    _ = ps.image.compute()
    data = PatchDataset(ps, target=np.arange(ps.sizes["patch"]))
    loader = DataLoader(data, batch_size=20, num_workers=1, multiprocessing_context="fork", timeout=30)
    assert len(check(loader, 255 - truth_of(made, ps))) == len(data)


@forks
def test_workers_share_the_processors(patches: xr.Dataset) -> None:
    seen = PatchDataset(patches, transform=_threads)
    with mt.config.set(decode_threads=6):
        loader = DataLoader(seen, batch_size=16, num_workers=3, multiprocessing_context="fork")
        assert {int(n) for batch in loader for n in batch} == {2}
        assert {int(n) for batch in DataLoader(seen, batch_size=100) for n in batch} == {6}


def _threads(_: Any) -> int:
    return mt.config.get().decode_threads


@pytest.mark.timeout(100)
def test_spawned_workers(made: SyntheticSlide, level: Any) -> None:
    ps = level.wsi.patches(SIZE, 32, chunks=20)
    truth = truth_of(made, ps)
    data = IterablePatchDataset(ps, target=np.arange(len(truth)), batch=20)
    loader = DataLoader(data, batch_size=16, num_workers=1, multiprocessing_context="spawn")
    assert sorted(check(loader, truth)) == list(range(len(truth)))


@forks
def test_over_a_server(made: SyntheticSlide, new_to_servers: None) -> None:
    with DICOMwebServer(made.folder) as server:
        ps = mt.open_slide(server.series_urls()[0])["level0"].image.wsi.patches(SIZE, 32)
        truth = truth_of(made, ps)
        data = PatchDataset(ps, target=np.arange(len(truth)))
        server.reset()
        assert check(DataLoader(data, batch_size=64), truth) == list(range(len(truth)))
        assert len(server.requests) <= 2 * -(-len(truth) // 64)
        loader = DataLoader(data, batch_size=64, num_workers=2, multiprocessing_context="fork", timeout=30)
        assert check(loader, truth) == list(range(len(truth)))
