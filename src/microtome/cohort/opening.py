"""`open_cohort`: from what names many slides to their recipes; no slide is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microtome.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

    from microtome.cohort.cohort import Cohort
    from microtome.storage import Target
    from microtome.storage.credentials import Credentials

__all__ = ["open_cohort"]

_OPTIONS = ("frame_order", "missing", "fill", "alignment", "prefer", "read_ahead", "rendered")


def open_cohort(
    source: Sequence[Target] | Mapping[str, Target] | pd.DataFrame | str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    credentials: Credentials | Callable[[], Mapping[str, str]] | None = None,
    names: str | Sequence[str] | None = None,
    query: Mapping[str, Any] | None = None,
    chunks: Any = "auto",
    **options: Any,
) -> Cohort:
    """Take many slides for one lazy thing. None is opened before it is asked for.

    Parameters
    ----------
    source
        A list of slides, each what `open_slide` takes: a path or URL, or a list of the files of one slide. A mapping
        from names to these. A table with a column ``url``, and where they are there ``series``, which chooses among the
        slides under a URL, and ``slide``, their names; all other columns are kept as metadata. Or one path or URL, of a
        folder, a bucket or a DICOMweb server, under which `find_slides` looks for slides.
    storage_options, credentials
        See `open_slide`; for all slides. Where some are on a DICOMweb server and others are not, each are given to
        those that they have a meaning for.
    names
        Of the slides of a list or table; of a table also the column that holds them. Default: the column ``slide`` or
        an index of texts, else the series UID where there is one, else the last part of the path, with a number where
        several slides have the same.
    query
        With one path or URL, what else `find_slides` takes: ``{"StudyDate": "20260101-", "limit": 100}``.
    chunks, **options
        See `open_slide`: ``frame_order``, ``missing``, ``fill``, ``alignment``, ``prefer``, ``read_ahead``,
        ``rendered``; for all slides.

    Returns
    -------
    Cohort
        ``cohort["name"]`` opens a slide, `Cohort.summary` looks at all, `Cohort.patches` cuts them into patches,
        `Cohort.map` calls a function on each.

    Raises
    ------
    OptionError
        An argument has no meaning, or two slides have one name.
    RequestError
        A server that is asked for its slides cannot be reached, or refuses.
    """
    import pandas as pd

    from microtome.cohort.cohort import Cohort
    from microtome.cohort.sources import slides_of_list, slides_of_mapping, slides_of_table
    from microtome.opening import check_chunks

    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        hint = "; a table has a column 'series'" if "series" in unknown else ""
        raise OptionError(f"open_cohort() has no option {unknown[0]!r}: there are {', '.join(_OPTIONS)}{hint}")
    check_chunks(chunks)
    options |= {"storage_options": storage_options, "credentials": credentials}
    if isinstance(source, str | os.PathLike):
        source = _found(source, storage_options, credentials, query or {})
    elif query is not None:
        raise OptionError("query= is for a source that is one path or URL, under which slides are looked for")
    if isinstance(source, pd.DataFrame):
        slides = slides_of_table(source, names, options)
    elif isinstance(source, Mapping):
        if names is not None:
            raise OptionError("names= has no meaning with a mapping, whose keys are the names")
        slides = slides_of_mapping(source, options)
    elif isinstance(source, Sequence):
        if isinstance(names, str):
            raise OptionError("names= is a list of them: a list of slides has no columns")
        slides = slides_of_list(source, names, options)
    else:
        raise OptionError(f"a cohort is a list, a mapping, a table, or a path or URL, not a {type(source).__name__}")
    return Cohort(slides.names, slides.recipes, slides.table, chunks)


def _found(
    source: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None,
    credentials: Any,
    query: Mapping[str, Any],
) -> pd.DataFrame:
    """Return the table of the slides under a path or URL."""
    from microtome.finding import find_slides

    asked = dict(query)
    stores = dict(storage_options or {})
    if "allow_hosts" in stores:
        asked["allow_hosts"] = stores.pop("allow_hosts")
    if stores:
        asked["storage_options"] = stores
    return find_slides(os.fspath(source), credentials=credentials, **asked)
