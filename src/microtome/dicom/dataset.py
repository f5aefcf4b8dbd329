"""From bytes to a pydicom data set, leniently: real headers are full of values that break the rules of their VR."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

from microtome.dicom.part10 import Outline
from microtome.errors import CorruptHeaderError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["lenient", "parse_dataset"]

_pydicom_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    # No fork while another thread has pydicom's settings changed: the child would find them so, and the lock taken.
    os.register_at_fork(
        before=_pydicom_lock.acquire, after_in_parent=_pydicom_lock.release, after_in_child=_pydicom_lock.release
    )


@contextmanager
def lenient() -> Iterator[None]:
    """Let pydicom convert values that break the rules of their VR."""
    import pydicom.config as settings

    with _pydicom_lock, warnings.catch_warnings(), settings.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def parse_dataset(outline: Outline) -> Dataset:
    """Return the metadata of a file as a pydicom data set, without pixels, offset tables and per-frame groups.

    Raises
    ------
    CorruptHeaderError
        pydicom cannot make sense of it.
    """
    from pydicom.filereader import read_dataset

    enc = outline.encoding
    with lenient():
        try:
            return read_dataset(BytesIO(outline.kept), enc.implicit, not enc.big_endian)
        except Exception as e:  # pydicom raises whatever the bytes lead it to
            raise CorruptHeaderError(f"{outline.source.uri}: its header is damaged ({type(e).__name__}: {e})") from e
