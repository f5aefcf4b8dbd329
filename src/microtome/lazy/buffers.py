"""Arrays for pixels, at addresses that decoders write fast.

libjpeg-turbo writes rows that begin at a multiple of 32 bytes past the processor's cache, from where they are fetched
again at once: a 256 x 256 frame then takes a third longer. Allocators return either kind of address by chance; these
never do.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["empty", "scratch"]

SCRATCH_LIMIT = 16 << 20
_local = threading.local()


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return a new C-contiguous array whose first element is 16 bytes behind a multiple of 32."""
    memory = np.empty(math.prod(shape) * dtype.itemsize + 32, np.uint8)
    start = (16 - memory.__array_interface__["data"][0]) % 32
    return np.ndarray(shape, dtype, memory, start)


def scratch(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Return this thread's buffer for a decoded frame, in the processor's cache already; None for very large frames."""
    if getattr(_local, "key", None) != (shape, dtype):
        _local.array = empty(shape, dtype) if math.prod(shape) * dtype.itemsize <= SCRATCH_LIMIT else None
        _local.key = (shape, dtype)
    array: npt.NDArray[Any] | None = _local.array
    return array
