"""`Cohort`: recipes of many slides, and what can be done with all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, overload

import pandas as pd
import xarray as xr

from microtome.cohort.selecting import Selection, chosen
from microtome.errors import OptionError, SelectionError
from microtome.model import SpacingLike

if TYPE_CHECKING:
    from microtome.cohort.tasks import Outcome
    from microtome.lazy.recipe import Recipe

__all__ = ["Cohort"]

KEPT = 4
"""Trees that are kept open: each holds some MB of coordinates."""


class Cohort:
    """Many slides as one lazy thing, as `microtome.open_cohort` returns it.

    It holds how slides are opened and small tables, no slide. It pickles to that.

    ``len``, iteration and ``in`` are those of the names. ``cohort["name"]`` and ``cohort[3]`` open a slide, as
    `microtome.open_slide` does; of those opened last a few are kept. ``cohort[["a", "b"]]``, ``cohort[2:5]`` and
    ``cohort[cohort.table.grade > 2]`` are cohorts of these slides.

    Parameters
    ----------
    names
        Of the slides, each another.
    recipes
        How each is opened.
    table
        What is known of each, one row a slide, by name.
    chunks
        See `microtome.open_slide`.
    """

    def __init__(self, names: Sequence[str], recipes: Sequence[Recipe], table: pd.DataFrame, chunks: Any) -> None:
        self._names = list(names)
        self._recipes = list(recipes)
        self._numbers = {name: n for n, name in enumerate(self._names)}
        self._table = table
        self._chunks = chunks
        self._summary: dict[str, Outcome] = {}
        self._tree = lru_cache(maxsize=KEPT)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._names, self._recipes, self._table, self._chunks, self._summary)

    def __repr__(self) -> str:
        failed = sum(bool(outcome.error) for outcome in self._summary.values())
        known = f", {len(self._summary)} looked at" if self._summary else ""
        return f"<Cohort of {len(self)} slides{known}{f', {failed} failed' if failed else ''}>"

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    @property
    def names(self) -> list[str]:
        """Names of the slides, in order."""
        return list(self._names)

    @property
    def table(self) -> pd.DataFrame:
        """What was given, one row a slide, by name: ``url``, and the other columns of a table. A copy."""
        return self._table.copy()

    @overload
    def __getitem__(self, key: str | int) -> xr.DataTree: ...

    @overload
    def __getitem__(self, key: Selection) -> Cohort: ...

    def __getitem__(self, key: Any) -> xr.DataTree | Cohort:
        """Open a slide by name or number; or return the cohort of some slides.

        Parameters
        ----------
        key
            A name or a number, which may be negative; or a slice, a list of names or numbers, or an array or Series of
            bool.

        Raises
        ------
        SelectionError
            There is no such slide.
        OpenError
            The slide cannot be opened; see `microtome.open_slide`.
        """
        found = chosen(key, self._numbers)
        return self._tree(found) if isinstance(found, int) else self._some(found)

    def head(self, count: int = 5) -> Cohort:
        """Return the cohort of the first slides."""
        return self[:count]

    def _some(self, numbers: Sequence[int]) -> Cohort:
        names = [self._names[n] for n in numbers]
        if len(set(names)) != len(names):
            raise SelectionError("a slide was selected twice: a cohort has each once")
        some = Cohort(names, [self._recipes[n] for n in numbers], self._table.iloc[list(numbers)], self._chunks)
        some._summary = {name: self._summary[name] for name in names if name in self._summary}
        return some

    def _open(self, number: int) -> xr.DataTree:
        from microtome.opening import open_tree

        return open_tree(self._recipes[number], self._chunks)

    def summary(self, *, client: Any = None, progress: bool = True) -> pd.DataFrame:
        """Open every slide, in parallel, and return what the headers tell. It is kept; what failed is tried again.

        Parameters
        ----------
        client
            Of a Dask cluster whose workers open slides. Default: the active one; without one, threads of this process.
        progress
            Whether to show a bar.

        Returns
        -------
        pandas.DataFrame
            One row a slide: ``levels``; of the finest level ``rows``, ``columns``, ``row_spacing`` and
            ``column_spacing`` (mm, NaN where undefined), ``magnification``, ``planes``, ``channels``, ``dtype``,
            ``codec``; ``frames`` of all levels, ``instances``, ``bytes`` of all files (NaN on DICOMweb servers); and
            ``error``, ``"Class: message"`` of a slide that cannot be opened, None for others.
        """
        from microtome.cohort.summary import summarize, summary_table

        self._summary |= summarize(self._names, self._recipes, self._summary, client, progress)
        return summary_table(self._names, self._summary)

    def patches(
        self,
        size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        level: int | str | None = None,
        spacing: SpacingLike | None = None,
        magnification: str | float | None = None,
        image: Callable[[xr.DataTree], xr.DataArray] | None = None,
        mask: Literal["tissue"] | Callable[[xr.DataTree], Any] | Mapping[str, Any] | None = None,
        min_fraction: float | None = None,
        pad: Literal["drop", "fill"] = "drop",
        fill: float | Sequence[float] | None = None,
        origins: Callable[[xr.DataTree], Any] | Mapping[str, Any] | None = None,
        anchor: Literal["corner", "center"] | tuple[int, int] = "corner",
        order: Literal["place", "rows", "random", "given"] | None = None,
        seed: int | None = None,
        chunks: Literal["auto"] | int | None = "auto",
        errors: Literal["raise", "skip"] = "raise",
        client: Any = None,
        progress: bool = True,
    ) -> xr.Dataset:
        """Cut all slides into patches: one lazy dataset, slide after slide.

        Slides are opened, and masks computed, in parallel where the work is done (see `summary`); what comes back are
        places. To read patches touches the slides that they are of, no others.

        Parameters
        ----------
        size, stride, min_fraction, pad, fill, anchor, order, seed, chunks
            See ``image.wsi.patches``; ``order`` is that of the patches of each slide. A chunk holds patches of one
            slide.
        level, magnification
            A stored level of each slide, as ``slide.wsi.level`` finds it.
        spacing
            In mm: all slides are resampled to it, as by ``slide.wsi.at``.
        image
            A function that returns the image of a slide to be cut, for all else: ``lambda slide:
            slide.wsi.at(0.001).wsi.to_profile("srgb")``. Exactly one of these four is given.
        mask
            What patches shall show: ``"tissue"`` (``slide.wsi.tissue_mask()``), a function of a slide, or a mapping
            from names of slides; what these return is all that ``image.wsi.patches`` takes for one.
        origins
            Places instead of a grid: a function of a slide, or a mapping from names of slides.
        errors
            ``"raise"``: the first slide that fails ends it. ``"skip"``: slides that fail have no patches, and the
            attribute ``skipped`` says why.
        client, progress
            See `summary`.

        Returns
        -------
        xarray.Dataset
            ``image`` (patch, ..., y, x[, c]); along ``patch`` the coordinates ``slide`` (name), ``slide_index`` (number
            in this cohort, as in ``table.iloc``), ``row``, ``column`` (pixels of the image), ``y0``, ``x0`` (corner in
            mm, NaN where a slide states no spacing), and ``tissue_fraction`` where there is a mask. Attributes are
            those that all slides share. There is no ``id``: slide, row and column name a patch.

        Raises
        ------
        OptionError
            An argument has no meaning.
        CohortError
            A slide fails, or its patches have another type or other channels than those of most; or all fail.

        Notes
        -----
        To read patches of many slides in any order opens these again and again, unless ``config.open_slides`` is
        enough for all. `microtome.torch.IterablePatchDataset` shuffles with few slides in each batch.
        """
        from microtome.cohort.cuts import Cutter, per_slide
        from microtome.cohort.patches import cut_slides

        if sum(v is not None for v in (level, spacing, magnification, image)) != 1:
            raise OptionError("patches are cut from one of: level=, spacing=, magnification=, image=")
        all_mask, masks = per_slide("mask", mask, self._names)
        all_origins, places = per_slide("origins", origins, self._names)
        rest = {"min_fraction": min_fraction, "pad": pad, "anchor": anchor, "order": order, "seed": seed}
        cutter = Cutter(size, stride, image, level, spacing, magnification, all_mask, all_origins, fill, rest)
        return cut_slides(
            self._names, self._recipes, cutter, masks, places, chunks=chunks, errors=errors, client=client,
            progress=progress,
        )  # fmt: skip

    def map(
        self,
        f: Callable[..., Any],
        *,
        resume: str | os.PathLike[str] | None = None,
        retries: int = 0,
        errors: Literal["record", "raise"] = "record",
        tracebacks: bool = False,
        progress: bool = True,
        client: Any = None,
        **kwargs: Any,
    ) -> pd.DataFrame:
        """Call a function on every slide, in parallel.

        Parameters
        ----------
        f
            Called as ``f(slide, **kwargs)`` with the tree of a slide, in a thread of this process or on a worker, where
            ``compute()`` and ``values`` work in that thread. It returns a dict or a Series, whose names become columns,
            or a single value, the column ``result``; lazy values are computed. On a cluster it may be called again for
            a slide whose worker died.
        resume
            A file that keeps each result as it comes, so that a run that was stopped goes on where it was: JSON lines,
            written by one run at a time. Results are then what JSON has: numbers, texts, lists, dicts. A result is used
            again where the name of the slide, what it is opened from, and ``f`` are the same. ``f`` are its name, code,
            defaults, what it encloses, and ``kwargs``; not what it calls. Slides that failed are tried again.
        retries
            How often a slide that fails is tried again, behind all others.
        errors
            ``"record"``: a slide that fails has a row with ``error``. ``"raise"``: the first ends it.
        tracebacks
            Whether to have a column ``traceback``.
        progress, client
            See `summary`. Of each thread, four slides are under way at the most.
        **kwargs
            For ``f``.

        Returns
        -------
        pandas.DataFrame
            One row a slide, in the order of the cohort: what ``f`` returned, and ``error``, ``"Class: message"`` where
            it failed, else None.

        Raises
        ------
        OptionError
            An argument has no meaning; ``f`` cannot be sent to workers; ``resume`` is another file, or in use.
        CohortError
            A slide failed, with ``errors="raise"``.

        Notes
        -----
        When it is interrupted, what has not begun is cancelled, and what has is not waited for.
        """
        from microtome.cohort.mapping import map_slides

        return map_slides(
            self._names, self._recipes, self._chunks, f, kwargs, resume=resume, retries=retries, errors=errors,
            tracebacks=tracebacks, client=client, progress=progress,
        )  # fmt: skip


def _restored(
    names: list[str], recipes: list[Recipe], table: pd.DataFrame, chunks: Any, summary: dict[str, Outcome]
) -> Cohort:
    cohort = Cohort(names, recipes, table, chunks)
    cohort._summary = summary
    return cohort
