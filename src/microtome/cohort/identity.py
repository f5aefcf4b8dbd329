"""What tells one result from another: the slide, and the function with all that it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from types import CodeType, FunctionType, MethodType
from typing import Any

from dask.base import tokenize

from microtome.lazy.recipe import Recipe
from microtome.storage.uri import display_uri, holds_secret, url_holds_secret

__all__ = ["function_digest", "recipe_digest"]


def recipe_digest(recipe: Recipe) -> str:
    """Name what a recipe opens: where the slide is, and what changes its pixels; not who asks."""
    # A signed URL is signed anew each time, and no trace of a secret is left in a file.
    names = [display_uri(name) if url_holds_secret(name) else name for name in recipe.names]
    stores = sorted((k, v) for k, v in recipe.storage_options.items() if not holds_secret({k: v}))
    return _digest(names, stores, recipe.options)


def function_digest(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Name a function by its module and name, its code, its defaults, what it encloses, and its arguments.

    Comments and line numbers do not count, and functions that it calls do not either. What has no name that holds from
    one process to the next makes another digest each time.
    """
    return _digest(_function(function), sorted((name, _value(value)) for name, value in arguments.items()))


def _function(function: Any, within: tuple[Any, ...] = ()) -> Any:
    if any(function is f for f in within):  # it calls itself
        return len(within)
    within = (*within, function)
    if isinstance(function, partial):
        keywords = sorted((name, _value(value, within)) for name, value in function.keywords.items())
        return "partial", _function(function.func, within), [_value(a, within) for a in function.args], keywords
    if isinstance(function, MethodType):
        return "method", _function(function.__func__, within), tokenize(function.__self__)
    if isinstance(function, FunctionType):
        cells = [_cell(cell, within) for cell in function.__closure__ or ()]
        defaults = [_value(v, within) for v in function.__defaults__ or ()]
        named = sorted((name, _value(v, within)) for name, v in (function.__kwdefaults__ or {}).items())
        return function.__module__, function.__qualname__, _code(function.__code__), defaults, named, cells
    call = next((vars(t)["__call__"] for t in type(function).__mro__ if "__call__" in vars(t)), None)
    code = _code(call.__code__) if isinstance(call, FunctionType) else ""
    return "object", type(function).__module__, type(function).__qualname__, code, tokenize(function)


def _value(value: Any, within: tuple[Any, ...] = ()) -> Any:
    return _function(value, within) if isinstance(value, FunctionType | MethodType | partial) else tokenize(value)


def _cell(cell: Any, within: tuple[Any, ...]) -> Any:
    try:
        return _value(cell.cell_contents, within)
    except ValueError:  # not yet filled
        return None


def _code(code: CodeType) -> Any:
    constants = [_constant(c) for c in code.co_consts]
    return code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, constants


def _constant(constant: Any) -> Any:
    if isinstance(constant, CodeType):
        return _code(constant)
    # Sets have another order in each process.
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)


def _digest(*parts: Any) -> str:
    return blake2b(repr(parts).encode(), digest_size=12).hexdigest()
