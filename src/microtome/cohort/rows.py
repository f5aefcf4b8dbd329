"""What a function returned of a slide, as the row of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from microtome.cohort.tasks import Outcome
from microtome.errors import OptionError

__all__ = ["Row", "as_row", "as_table"]

Row = dict[str, Any]
RESERVED = ("error", "traceback")
"""Columns that tell of failures."""


def as_row(value: Any) -> Row:
    """Return what a function returned as one row: plain numbers and texts, arrays as NumPy's.

    Parameters
    ----------
    value
        A mapping or a Series: columns by name. A single value: the column ``result``. None: no column. Lazy arrays are
        computed.

    Raises
    ------
    OptionError
        It is nothing of these, or has a column of a name that tells of failures.
    """
    if value is None:
        return {}
    if isinstance(value, pd.Series):
        value = value.to_dict()
    if isinstance(value, Mapping) and not hasattr(value, "data_vars"):  # which xarray's datasets are as well
        row = {str(name): _plain(v) for name, v in value.items()}
        taken = [name for name in RESERVED if name in row]
        if taken:
            raise OptionError(f"a column cannot be called {taken[0]!r}, which tells of failures")
        return row
    plain = _plain(value)
    if isinstance(plain, pd.DataFrame | np.ndarray | list | tuple | set) or hasattr(plain, "data_vars"):
        raise OptionError(
            f"the function returned a {type(value).__name__}; of each slide there is one row: a dict, a Series, or a "
            "single value. What is larger is best written to a file, and its name returned"
        )
    return {"result": plain}


def _plain(value: Any) -> Any:
    """Return Python's own number for one of NumPy, and an array in memory for a lazy one."""
    if not hasattr(value, "__array__") or isinstance(value, pd.DataFrame | pd.Series) or hasattr(value, "data_vars"):
        return value
    array = np.asarray(value)
    if array.ndim:
        return array
    return array[()] if array.dtype.kind in "mM" else array.item()


def as_table(names: Sequence[str], outcomes: Sequence[Outcome], tracebacks: bool) -> pd.DataFrame:
    """Return one row a slide, in the order of the names.

    Parameters
    ----------
    names
        Of the slides.
    outcomes
        Of each, its value a row.
    tracebacks
        Whether to have a column for them.
    """
    columns: dict[str, None] = {}
    for outcome in outcomes:
        columns |= dict.fromkeys(outcome.value or {})
    index = pd.Index(list(names), name="slide")
    # Column by column: a table made of rows would guess types of values that are lists or arrays.
    data: dict[str, pd.Series[Any]] = {}
    for column in columns:
        values = [(outcome.value or {}).get(column, np.nan) for outcome in outcomes]
        listed = any(isinstance(v, list | tuple | np.ndarray | Mapping) for v in values)
        data[column] = pd.Series(values, index, dtype=object if listed else None)
    data["error"] = pd.Series([outcome.error or None for outcome in outcomes], index, dtype=object)
    if tracebacks:
        data["traceback"] = pd.Series([outcome.traceback or None for outcome in outcomes], index, dtype=object)
    return pd.DataFrame(data, index=index)
