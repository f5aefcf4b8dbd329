"""Results on disk, one line each as they come, so that work that was stopped goes on where it was.

JSON lines: a heading, then ``{"slide": ..., "key": ..., "values": {...}}``. A line counts only when it is whole. Lines
of other slides or functions have other keys and stay as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from microtome.cohort.rows import Row
from microtome.errors import OptionError

__all__ = ["Results", "through_json"]

_HEADING = {"microtome": "results of a cohort", "version": 1}
_HEAD = json.dumps(_HEADING).encode() + b"\n"


def through_json(row: Row) -> Row:
    """Return a row as it will be read again: NumPy's numbers and arrays as plain ones and lists; NaN stays.

    Raises
    ------
    OptionError
        It holds what JSON does not have.
    """
    try:
        text = json.dumps(row, default=_plain)
    except (TypeError, ValueError) as e:
        raise OptionError(f"with resume=, results are numbers, texts, and lists and dicts of these: {e}") from None
    result: Row = json.loads(text)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufUO":
        return value.tolist()
    if isinstance(value, np.generic) and value.dtype.kind in "biufU":
        return value.item()
    raise TypeError(f"there is a {type(value).__name__} among them")


class Results:
    """A file of results, which this object alone writes for as long as it is open.

    Parameters
    ----------
    path
        The file; made where there is none.

    Raises
    ------
    OptionError
        It is another file, cannot be written, or is being written by others.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as e:
            raise OptionError(f"{self.path}: results cannot be kept here: {e.strerror}") from None
        try:
            self._lock()
            self._known = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such locks here
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(
                f"{self.path}: another run is writing its results here; wait for its end, or name another file"
            ) from None
        except OSError:  # nor on this filesystem
            return

    def _read(self) -> dict[str, Row]:
        data = self.path.read_bytes()
        if _HEAD.startswith(data):  # new, or torn while it was made
            os.ftruncate(self._file, 0)
            self._write(_HEAD)
            return {}
        if not data.startswith(_HEAD):
            raise OptionError(f"{self.path}: this is no file of results; it is left as it is. Name another one")
        if not data.endswith(b"\n"):
            self._write(b"\n")  # behind a torn line, so that the next one is whole
        known: dict[str, Row] = {}
        for line in data.splitlines()[1:]:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found = json.loads(line)
                if isinstance(found["values"], dict):
                    known[str(found["key"])] = found["values"]
        return known

    def known(self, key: str) -> Row | None:
        """Return the result of a key; None where there is none yet."""
        return self._known.get(key)

    def keep(self, key: str, slide: str, row: Row) -> None:
        """Write a result; it is on disk when this returns.

        Parameters
        ----------
        key
            Of slide and function.
        slide
            Name of the slide, for people.
        row
            As `through_json` returns it.
        """
        self._write(json.dumps({"slide": slide, "key": key, "values": row}).encode() + b"\n")
        self._known[key] = row

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as e:
            raise OptionError(f"{self.path}: results cannot be kept here: {e.strerror}") from None
