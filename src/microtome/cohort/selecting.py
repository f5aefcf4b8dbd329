"""Slides of a cohort by name, number, slice or mask, as pandas' users expect it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from microtome.errors import SelectionError

__all__ = ["Selection", "chosen"]

Selection: TypeAlias = "slice | list[str] | list[int] | list[bool] | npt.NDArray[Any] | pd.Index[Any] | pd.Series[Any]"


def chosen(key: Any, numbers: Mapping[str, int]) -> int | list[int]:
    """Return the number of the slide under a key, or the numbers of several.

    Parameters
    ----------
    key
        A name or a number; or a slice, a list of either, or an array or Series of bool.
    numbers
        Number of each slide, by name.

    Raises
    ------
    SelectionError
        There is no such slide.
    """
    if isinstance(key, str):
        return _number(key, numbers)
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return _position(int(key), len(numbers))
    if isinstance(key, slice):
        return list(range(len(numbers)))[key]
    if isinstance(key, pd.Series) and key.dtype == bool and key.index.tolist() != list(numbers):
        raise SelectionError("the mask is not one of this cohort's slides: its index are other names")
    values = np.asarray(key)
    if values.ndim != 1:
        raise SelectionError(f"slides are selected by names, numbers or a mask, not by a {type(key).__name__}")
    if values.dtype.kind == "b":
        if len(values) != len(numbers):
            raise SelectionError(f"the mask has {len(values)} elements for {len(numbers)} slides")
        return np.flatnonzero(values).tolist()
    if values.dtype.kind in "iu":
        return [_position(n, len(numbers)) for n in values.tolist()]
    return [_number(name, numbers) for name in values.tolist()]


def _number(name: Any, numbers: Mapping[str, int]) -> int:
    if name not in numbers:
        raise SelectionError(f"there is no slide {name!r} among these {len(numbers)}")
    return numbers[name]


def _position(number: int, count: int) -> int:
    if not -count <= number < count:
        raise SelectionError(f"there is no slide {number}: there are {count}")
    return number % count
