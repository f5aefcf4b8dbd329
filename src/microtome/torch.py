"""Patches for PyTorch's DataLoader: batches are read together, in worker processes as well.

::

    patches = level.wsi.patches(224, stride=112, mask=mask, chunks=None)
    loader = DataLoader(PatchDataset(patches, target="id"), batch_size=64, shuffle=True, num_workers=4)

Nothing goes through Dask: of a dataset in chunks, too, what a batch needs is read, not the chunks that it touches. A
worker, forked or spawned, opens the slide itself. Importing this module needs PyTorch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome import config
from microtome.errors import MissingDependencyError, OptionError, SelectionError
from microtome.ops.patches.array import lazy_patches

try:
    torch: Any = importlib.import_module("torch")
    data: Any = importlib.import_module("torch.utils.data")
except ImportError as e:
    raise MissingDependencyError(
        'microtome.torch feeds PyTorch, which is not installed. Remedy: pip install "microtome[torch]"'
    ) from e

__all__ = ["IterablePatchDataset", "PatchDataset"]

Indices = npt.NDArray[np.int64]
_divided = -1
"""Process whose threads were divided among the workers of its DataLoader."""


def _share_processors() -> None:
    """Let a worker decode with its share of the processors, once: there are other workers."""
    global _divided
    worker = data.get_worker_info()
    if worker is not None and _divided != os.getpid():
        _divided = os.getpid()
        config.set(decode_threads=max(1, config.get().decode_threads // worker.num_workers))


class _Items:
    """What both datasets have: patches, read some at a time."""

    def __init__(
        self, patches: xr.Dataset, target: Any, transform: Callable[[Any], Any] | None, channels_first: bool
    ) -> None:
        if "image" not in patches or patches["image"].dims[:1] != ("patch",):
            raise OptionError(
                "a dataset of patches is needed, as wsi.patches() returns it, with patch as first dimension"
            )
        image = patches["image"]
        lazy = lazy_patches(image)
        # Without coordinates, which may be large: this travels to every worker.
        self._image = image.variable if lazy is None else lazy.variable
        self._targets = _targets(patches, target)
        self._transform = transform
        dims = list(image.dims)
        if channels_first and "c" in dims and "y" in dims:
            dims.remove("c")
            dims.insert(dims.index("y"), "c")
        self._order = [image.dims.index(d) for d in dims]

    def __len__(self) -> int:
        return int(self._image.sizes["patch"])

    def read(self, numbers: Indices) -> list[Any]:
        """Return items, read in one plan."""
        from dask import config as dask_config

        _share_processors()
        if not len(numbers):
            return []
        with dask_config.set(scheduler="synchronous"):  # for images that are computed: its threads do not survive forks
            pixels = self._image.isel(patch=numbers).values
        pixels = np.require(pixels.transpose(self._order), requirements="W")
        items = list(torch.from_numpy(pixels))
        if self._transform is not None:
            items = [self._transform(item) for item in items]
        if self._targets is None:
            return items
        return list(zip(items, map(_plain, self._targets[numbers]), strict=True))


def _targets(patches: xr.Dataset, target: Any) -> npt.NDArray[Any] | None:
    if target is None:
        return None
    if isinstance(target, str):
        if target not in patches.variables or patches[target].dims[:1] != ("patch",) or target == "image":
            names = ", ".join(str(n) for n, v in patches.variables.items() if v.dims[:1] == ("patch",) and n != "image")
            raise OptionError(f"target={target!r} is not known of each patch; there are {names}")
        target = patches[target]
    values = np.asarray(target)
    count = patches.sizes["patch"]
    # Names of slides are Python's own texts, each kept once: of a type that holds them a patch takes a hundred bytes.
    texts = values.dtype == object and all(isinstance(v, str) for v in values.ravel())
    if values.shape[:1] != (count,) or not (texts or values.dtype.kind in "biufUS"):
        raise OptionError(
            f"target has {values.dtype} {values.shape}: it is a coordinate, or a value for each of {count}"
        )
    return values


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.str_ | np.bytes_) else value


class PatchDataset(data.Dataset):  # type: ignore[misc]
    """Patches by number: for a DataLoader with any sampler.

    The patches of a batch are read in one plan (``__getitems__``), so frames that they share are decoded once. A
    sampler in the order of the patches, near ones together, is read fastest.

    Parameters
    ----------
    patches
        As ``wsi.patches()`` or ``cohort.patches()`` returns them, or a selection of them, such as
        ``patches.isel(patch=train)``; in chunks or not (``chunks=None``).
    transform
        Called with the tensor of each patch.
    target
        What comes with a patch: the name of a coordinate (``"id"``, ``"row"``, ``"tissue_fraction"``, of a cohort
        ``"slide"``, ``"slide_index"``), or an array with a value for each patch. Default: nothing.
    channels_first
        Whether channels come before rows and columns, as PyTorch has them, or last, as they are read.

    Raises
    ------
    OptionError
        These are no patches, or the target is none of theirs.

    Notes
    -----
    An item is a tensor ``(c, height, width)`` of the slide's dtype, torch.uint8 as a rule, or a pair of it and its
    target; further dimensions of the image (``z``, ``path``) stand in front. It is a view of the batch it was read in.

    A worker decodes with ``config.decode_threads`` divided by the number of workers.
    """

    def __init__(
        self,
        patches: xr.Dataset,
        *,
        transform: Callable[[Any], Any] | None = None,
        target: Any = None,
        channels_first: bool = True,
    ) -> None:
        self._items = _Items(patches, target, transform, channels_first)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Return items of a batch.

        Raises
        ------
        SelectionError
            There is no patch of this number.
        """
        wanted, count = np.asarray(numbers, np.int64), len(self)
        outside = wanted[(wanted < -count) | (wanted >= count)]
        if len(outside):
            raise SelectionError(f"there is no patch {outside[0]}: there are {count}")
        return self._items.read(wanted % max(count, 1))


class IterablePatchDataset(data.IterableDataset):  # type: ignore[misc]
    """Patches one after the other: for passes over whole slides, split between workers and ranks.

    Every patch comes once. Each worker has a part that lies together, and reads ``batch`` patches in one plan.

    Parameters
    ----------
    patches, transform, target, channels_first
        See `PatchDataset`.
    batch
        Patches read together; the DataLoader's ``batch_size`` need not be the same.
    shuffle
        Whether patches come in random order, another one each epoch; see `set_epoch`. To remain fast it is not any
        order: what is read together are short runs of neighbours from ``runs`` places. ``PatchDataset`` with a sampler
        that shuffles has any.
    seed
        Of the random order; the same on all ranks.
    runs
        Places from which the patches of a batch come, if shuffled.
    rank, world_size
        Which part of how many this process has. Default: those of ``torch.distributed`` where it is initialised, else
        all. Parts differ by one patch at most.

    Raises
    ------
    OptionError
        These are no patches, or an option has no meaning.
    """

    def __init__(
        self,
        patches: xr.Dataset,
        *,
        batch: int = 64,
        shuffle: bool = False,
        seed: int = 0,
        runs: int = 8,
        transform: Callable[[Any], Any] | None = None,
        target: Any = None,
        channels_first: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for name, value, least in (("batch", batch, 1), ("runs", runs, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise OptionError(f"{name}={value!r}: it is a whole number of at least {least}")
        self._items = _Items(patches, target, transform, channels_first)
        self._batch, self._shuffle, self._seed, self._runs = int(batch), bool(shuffle), int(seed), int(runs)
        self._rank, self._ranks = _rank(rank, world_size)
        # Shared with workers that persist, which would not see another attribute of this process change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; without shuffling all are the same."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = data.get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        parts, part = self._ranks * workers, self._rank * workers + number
        order, random = self._ordered()
        count = len(order)
        mine = order[count * part // parts : count * (part + 1) // parts]
        for start in range(0, len(mine), self._batch):
            numbers = mine[start : start + self._batch]
            yield from self._items.read(random.permutation(numbers) if self._shuffle else numbers)

    def _ordered(self) -> tuple[Indices, np.random.Generator]:
        """Return the order of all patches in this epoch, and what else is to be random in it."""
        order = np.arange(len(self._items))
        random = np.random.default_rng([self._seed, int(self._epoch)])
        if self._shuffle and len(order):
            length = max(1, self._batch // self._runs)
            cuts = np.split(order, range(length, len(order), length))
            order = np.concatenate([cuts[i] for i in random.permutation(len(cuts))])
        return order, random


def _rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise OptionError("rank and world_size are given together")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        return int(distributed.get_rank()), int(distributed.get_world_size())
    if not 0 <= rank < world_size:
        raise OptionError(f"rank={rank!r} of world_size={world_size!r}: ranks are counted from 0")
    return int(rank), int(world_size)
