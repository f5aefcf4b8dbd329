"""scikit-image and the SciPy it brings: imported where they are used, and missed with a remedy."""

from __future__ import annotations

import importlib
from typing import Any

from microtome.errors import MissingDependencyError

__all__ = ["need"]


def need(module: str, what: str) -> Any:
    """Return a module of scikit-image or SciPy.

    Parameters
    ----------
    module
        Its full name, such as ``skimage.filters``.
    what
        What needs it, for the message.

    Raises
    ------
    MissingDependencyError
        It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise MissingDependencyError(
            f'{what} needs scikit-image. Remedy: pip install "microtome[tissue]"; method="luminance" does without it'
        ) from e
