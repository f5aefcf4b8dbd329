"""What a user names a cohort by, as a name, a recipe and a row of metadata for each slide."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from microtome.errors import OptionError
from microtome.storage.dicomweb.address import is_dicomweb
from microtome.storage.uri import display_uri, is_remote

if TYPE_CHECKING:
    from microtome.lazy.recipe import Recipe
    from microtome.storage import Target

__all__ = ["Slides", "slides_of_list", "slides_of_mapping", "slides_of_table"]

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,5}$")
_MAGIC = re.compile(r"[*?\[]")


class Slides(NamedTuple):
    """The slides of a cohort, in their order."""

    names: list[str]
    recipes: list[Recipe]
    table: pd.DataFrame
    """Its index are the names."""


def slides_of_list(targets: Sequence[Target], names: Sequence[str] | None, options: Mapping[str, Any]) -> Slides:
    """Return the slides that a list names."""
    targets = list(targets)
    recipes = _recipes(targets, [None] * len(targets), options)
    given = _given(names, len(targets)) if names is not None else _numbered([_name(t) for t in targets])
    return _slides(given, recipes, pd.DataFrame({}, index=range(len(targets))))


def slides_of_mapping(targets: Mapping[str, Target], options: Mapping[str, Any]) -> Slides:
    """Return the slides that a mapping names."""
    given = _given([str(name) for name in targets], len(targets))
    return slides_of_list(list(targets.values()), given, options)


def slides_of_table(table: pd.DataFrame, names: str | Sequence[str] | None, options: Mapping[str, Any]) -> Slides:
    """Return the slides of a table with a column ``url``."""
    if "url" not in table.columns:
        raise OptionError(f"the table has no column 'url': there are {', '.join(map(str, table.columns)) or 'none'}")
    table = table.copy()
    targets = table.pop("url").tolist()
    series = [_text(s) for s in table["series"]] if "series" in table.columns else [None] * len(targets)
    if isinstance(names, str):
        if names not in table.columns:
            raise OptionError(f"names={names!r}: the table has {', '.join(map(str, table.columns))}")
        names = (table.pop(names) if names == "slide" else table[names]).tolist()
    elif names is None and "slide" in table.columns:
        names = table.pop("slide").tolist()
    elif names is None and not isinstance(table.index, pd.RangeIndex) and table.index.is_unique:
        # An index that is left of a larger table's numbers names nothing.
        names = None if pd.api.types.is_integer_dtype(table.index) else table.index.tolist()
    recipes = _recipes(targets, series, options)
    if names is not None:
        given = _given([_text(name) or "" for name in names], len(targets))
    else:
        given = _numbered([s or _name(t) for s, t in zip(series, targets, strict=True)])
    return _slides(given, recipes, table)


def _slides(names: list[str], recipes: list[Recipe], rest: pd.DataFrame) -> Slides:
    table = rest.set_axis(pd.Index(names, name="slide"), axis=0)
    # As it may be shown: without what a signed URL grants.
    table.insert(0, "url", np.array([recipe.where for recipe in recipes], object))
    return Slides(names, recipes, table)


def _recipes(targets: Sequence[Any], series: Sequence[str | None], options: Mapping[str, Any]) -> list[Recipe]:
    """Return a recipe for each slide; options that have a meaning for some only go to these."""
    from microtome.lazy.recipe import Recipe
    from microtome.storage.credentials import resolve

    web = [is_dicomweb(os.fspath(_first(target))) for target in targets]
    stores = dict(options.get("storage_options") or {})
    common = {k: v for k, v in options.items() if k != "storage_options"}
    if common.get("credentials") is not None:
        common["credentials"] = resolve(common["credentials"])  # once: it is shared, and so are its tokens
    of_web, of_files = (stores, common), (stores, common)
    if any(web) and not all(web):
        allowed = {k: v for k, v in stores.items() if k in ("allow_hosts", "credentials")}
        of_web = allowed, common
        only_web = ("credentials", "read_ahead", "rendered")
        of_files = (
            {k: v for k, v in stores.items() if k not in allowed},
            {k: v for k, v in common.items() if k not in only_web},
        )
    recipes = []
    for target, one, is_web in zip(targets, series, web, strict=True):
        stored, rest = of_web if is_web else of_files
        recipes.append(Recipe.make(target, stored, series=one, **rest))
    return recipes


def _first(target: Any) -> str | os.PathLike[str]:
    """Return the first file of a slide, or what stands for all of them."""
    if isinstance(target, str | os.PathLike):
        return target
    if isinstance(target, Iterable) and not isinstance(target, Mapping):
        files = list(target)
        if files and isinstance(files[0], str | os.PathLike):
            return files[0]
    raise OptionError(f"a slide is named by a path or URL, or by a list of these, not by a {type(target).__name__}")


def _name(target: Any) -> str:
    """Return a name for a slide: the last part of its path, without suffix; of a list of files, their folder's."""
    shown = display_uri(os.fspath(_first(target)))
    if is_remote(shown) or is_dicomweb(shown):
        shown = shown.split("::")[0] if "://" in shown.split("::")[0] else shown
        path = shown.split("://", 1)[-1]
    else:
        path = os.path.abspath(shown)  # noqa: PTH100 (a name, which may be a URL's)
    parts = [part for part in re.split(r"[/\\]", path) if part]
    if not isinstance(target, str | os.PathLike) and len(parts) > 1:
        parts.pop()
    while len(parts) > 1 and _MAGIC.search(parts[-1]):
        parts.pop()
    return (_SUFFIX.sub("", parts[-1]) or parts[-1]) if parts else "slide"


def _given(names: Sequence[str], count: int) -> list[str]:
    """Check the names that a user gave."""
    given = [str(name) for name in names]
    if len(given) != count:
        raise OptionError(f"there are {len(given)} names for {count} slides")
    if not all(given):
        raise OptionError("a slide has no name: names are texts that are not empty")
    if len(set(given)) != count:
        twice = next(name for n, name in enumerate(given) if name in given[:n])
        raise OptionError(f"two slides are called {twice!r}: names tell slides apart")
    return given


def _numbered(names: Sequence[str]) -> list[str]:
    """Return names with numbers behind those that others had before."""
    taken = set(names)
    seen: dict[str, int] = {}
    result = []
    for name in names:
        number = seen.get(name, 0) + 1
        if number > 1:
            while f"{name}-{number}" in taken:
                number += 1
        seen[name] = number
        result.append(name if number == 1 else f"{name}-{number}")
    return result


def _text(value: Any) -> str | None:
    """Return the text of a cell of a table; None where it is empty."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return None
    return str(value).strip() or None
