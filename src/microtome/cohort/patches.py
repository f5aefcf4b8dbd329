"""Patches of many slides as one dataset, made of what was found of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.cohort.cuts import Cutter, Order, SlideCut
from microtome.cohort.running import fail, opening_threads, work
from microtome.cohort.tasks import Outcome
from microtome.errors import CohortError, OptionError
from microtome.lazy.recipe import Recipe
from microtome.ops.patches.dataset import chunk_of
from microtome.ops.patches.joined import JoinedPatches, joined_variable

__all__ = ["cut_slides"]

MOST_CHUNKS = 50_000
"""Dask enumerates them all for a single patch."""


def cut_slides(
    names: list[str],
    recipes: list[Recipe],
    cutter: Cutter,
    masks: list[Any],
    origins: list[Any],
    *,
    chunks: Any,
    errors: str,
    client: Any,
    progress: bool,
) -> xr.Dataset:
    """Cut slides into patches; see `Cohort.patches`."""
    if errors not in ("raise", "skip"):
        raise OptionError(f"errors={errors!r}: it is 'raise' or 'skip'")
    if not names:
        raise OptionError("this cohort has no slide, of which there could be patches")
    cuts: list[SlideCut | None] = [None] * len(names)
    skipped: dict[int, str] = {}

    def take(n: int, outcome: Outcome) -> None:
        if not outcome.error:
            cuts[n] = outcome.value
        elif errors == "raise":
            fail(names[n], outcome)
        else:
            skipped[n] = outcome.error

    work(
        cutter, [Order(*each) for each in zip(recipes, masks, origins, strict=True)], take, what="patches",
        client=client, progress=progress, threads=opening_threads(recipes),
    )  # fmt: skip
    for n, reason in _odd_ones(cuts).items():
        if errors == "raise":
            fail(names[n], Outcome(None, reason))
        skipped[n], cuts[n] = reason, None
    kept = [(n, cut) for n, cut in enumerate(cuts) if cut is not None]
    failures = {names[n]: skipped[n] for n in sorted(skipped)}
    if not kept:
        raise CohortError(f"all {len(names)} slides failed; the first: {next(iter(failures.values()))}", failures)
    patches = _joined([cut for _, cut in kept], [n for n, _ in kept], names, chunks)
    return patches.assign_attrs(skipped=failures) if failures else patches


def _odd_ones(cuts: Sequence[SlideCut | None]) -> dict[int, str]:
    """Return which slides cannot be joined with the others, and why, by their numbers: most slides are right."""
    kinds = {n: _kind(cut) for n, cut in enumerate(cuts) if cut is not None}
    if not kinds:
        return {}
    (usual, _), *others = Counter(kinds.values()).most_common()
    if not others:
        return {}
    return {
        n: f"its patches are {_shown(kind)}, those of most slides {_shown(usual)}"
        for n, kind in kinds.items()
        if kind != usual
    }


Kind = tuple[tuple[str, ...], tuple[int, ...], str, tuple[str, ...]]


def _kind(cut: SlideCut) -> Kind:
    labels = cut.coords.get("c")
    channels = tuple(map(str, np.atleast_1d(labels.values).tolist())) if labels is not None else ()
    return cut.array.dims[1:], cut.array.shape[1:], str(cut.array.dtype), channels


def _shown(kind: Kind) -> str:
    dims, shape, dtype, channels = kind
    sizes = ", ".join(f"{d}: {n}" for d, n in zip(dims, shape, strict=True))
    return f"({sizes}) {dtype}" + (f" of {', '.join(channels)}" if channels else "")


def _joined(cuts: Sequence[SlideCut], numbers: Sequence[int], names: Sequence[str], chunks: Any) -> xr.Dataset:
    """Return one dataset of the patches of slides that can be joined.

    Parameters
    ----------
    cuts
        Of each slide.
    numbers
        Of each slide in the cohort.
    names
        Of all slides of the cohort.
    chunks
        See `ImageAccessor.patches`.
    """
    counts = [len(cut.array.origins) for cut in cuts]
    places = np.concatenate([cut.array.origins for cut in cuts])
    ends = np.cumsum(counts).tolist()
    parts = []
    for cut, end, count in zip(cuts, ends, counts, strict=True):
        cut.array.origins = places[end - count : end]  # a view: places are kept once
        parts.append(cut.array)
    joined = JoinedPatches(parts)
    each = int(np.prod(joined.shape[1:], dtype=np.int64)) * joined.dtype.itemsize
    variable = joined_variable(joined, chunk_of(chunks, each, len(places), MOST_CHUNKS))
    coords = _common_coords(cuts) | _coordinates(cuts, places, ends)
    which = np.repeat(np.array(numbers, np.int32), counts)
    coords["slide"] = xr.Variable("patch", np.array(list(names), object)[which], {"long_name": "name of the slide"})
    coords["slide_index"] = xr.Variable("patch", which, {"long_name": "number of the slide in the cohort"})
    if cuts[0].fractions is not None:
        fractions = np.concatenate([cut.fractions for cut in cuts if cut.fractions is not None])
        coords["tissue_fraction"] = xr.Variable("patch", fractions, {"long_name": "part under the mask"})
    attrs = {k: v for k, v in cuts[0].attrs.items() if all(k in cut.attrs and cut.attrs[k] == v for cut in cuts)}
    variable.attrs = dict(attrs)
    return xr.Dataset({"image": variable}, coords=coords, attrs=attrs)


def _common_coords(cuts: Sequence[SlideCut]) -> dict[Any, xr.Variable]:
    first, *others = (cut.coords for cut in cuts)
    return {n: v for n, v in first.items() if all(n in c and _same(v, c[n]) for c in others)}


def _same(one: xr.Variable, other: xr.Variable) -> bool:
    identical: Any = one.identical  # which has no types
    return bool(identical(other))


def _coordinates(cuts: Sequence[SlideCut], places: npt.NDArray[np.int64], ends: list[int]) -> dict[Any, xr.Variable]:
    """Return where patches lie: in pixels of their images, and the corner in mm, NaN where slides have no place."""
    coords: dict[Any, xr.Variable] = {
        "row": xr.Variable("patch", places[:, 0], {"long_name": "row of the top left pixel"}),
        "column": xr.Variable("patch", places[:, 1], {"long_name": "column of the top left pixel"}),
    }
    if all(cut.edges is None for cut in cuts):
        return coords
    for axis, name in enumerate(("y0", "x0")):
        mm = np.full(len(places), np.nan)
        start = 0
        for cut, end in zip(cuts, ends, strict=True):
            if cut.edges is not None:
                low, step = cut.edges[axis]
                mm[start:end] = low + places[start:end, axis] * step
            start = end
        coords[name] = xr.Variable("patch", mm, {"units": "mm", "long_name": "top left corner"})
    return coords
