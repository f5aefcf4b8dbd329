"""A function of a slide, called on all of them: `Cohort.map`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from microtome import config
from microtome.cohort.identity import function_digest, recipe_digest
from microtome.cohort.results import Results, through_json
from microtome.cohort.rows import Row, as_row, as_table
from microtome.cohort.running import fail, work
from microtome.cohort.tasks import Outcome
from microtome.errors import OptionError
from microtome.lazy.recipe import Recipe
from microtome.opening import open_tree

__all__ = ["map_slides"]


def map_slides(
    names: Sequence[str],
    recipes: Sequence[Recipe],
    chunks: Any,
    f: Callable[..., Any],
    kwargs: dict[str, Any],
    *,
    resume: str | os.PathLike[str] | None,
    retries: int,
    errors: str,
    tracebacks: bool,
    client: Any,
    progress: bool,
) -> pd.DataFrame:
    """Call a function on every slide; see `Cohort.map`."""
    if errors not in ("record", "raise"):
        raise OptionError(f"errors={errors!r}: it is 'record' or 'raise'")
    if not callable(f):
        raise OptionError(f"a function of a slide is needed, not a {type(f).__name__}")
    if isinstance(retries, bool) or not isinstance(retries, int | np.integer) or retries < 0:
        raise OptionError(f"retries={retries!r}: it is a whole number, 0 or more")
    outcomes = [Outcome()] * len(names)
    waiting, keys = list(range(len(names))), [""] * len(names)
    with nullcontext() if resume is None else Results(resume) as results:
        if results is not None:
            digest = function_digest(f, kwargs)
            keys = [f"{digest}-{recipe_digest(r)}-{name}" for r, name in zip(recipes, names, strict=True)]
            known = [results.known(key) for key in keys]
            outcomes = [Outcome(row) for row in known]
            waiting = [n for n, row in enumerate(known) if row is None]

        def take(n: int, outcome: Outcome) -> None:
            number = waiting[n]
            outcomes[number] = outcome
            if outcome.error:
                if errors == "raise":
                    fail(names[number], outcome)
            elif results is not None:
                results.keep(keys[number], names[number], outcome.value)

        work(
            partial(_apply, f, kwargs, chunks, results is not None), [recipes[n] for n in waiting], take,
            what=_name_of(f), client=client, progress=progress, threads=config.get().decode_threads, retries=retries,
        )  # fmt: skip
    return as_table(names, outcomes, tracebacks)


def _apply(f: Callable[..., Any], kwargs: dict[str, Any], chunks: Any, json: bool, recipe: Recipe) -> Row:
    """Call a function on a slide, and return its row."""
    row = as_row(f(open_tree(recipe, chunks), **kwargs))
    return through_json(row) if json else row


def _name_of(f: Callable[..., Any]) -> str:
    inner = f.func if isinstance(f, partial) else f
    return str(getattr(inner, "__name__", type(inner).__name__))
