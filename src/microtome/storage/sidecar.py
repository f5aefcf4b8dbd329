"""What was found out about remote files, kept on disk of this machine: arrays of numbers, by the identity of a file.

The folder is the setting ``cache_dir``; it and its files are the user's alone. Files of it tell nothing of where they
come from, and what cannot be read, is damaged or is another's is as good as absent. Many processes may write at a time.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from microtome import config

__all__ = ["load", "remove", "store"]

_MAGIC = b"microtome sidecar 1\n"
_DIGEST = 32
_SUFFIX = ".index"
LARGEST = 256 << 20
"""Bytes of a file at the most: twelve for each of twenty million frames."""
_LEAST = 4096
"""Bytes that a file takes on a disk, however few are in it."""
_SHARE = 32
"""The folder is looked through once for so many parts of its limit that are written, on average."""
Arrays = dict[str, npt.NDArray[Any]]


def load(identity: str) -> Arrays | None:
    """Return what is kept of a file; None where nothing is, or nothing that is whole."""
    path = _path(identity)
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not len(_MAGIC) + _DIGEST < size <= LARGEST:
                return None
            data = file.read(size)
        body = data[len(_MAGIC) + _DIGEST :]
        # Looked at before it is parsed: a length in damaged bytes would be memory to allocate.
        if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : -len(body)] != _digest(identity, body):
            return None
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        with contextlib.suppress(OSError):
            os.utime(path)  # used: others are removed first
    except Exception:  # of NumPy and zipfile, whatever they meet
        return None
    return arrays


def store(identity: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keep arrays of numbers for a file; where it cannot be done, nothing is."""
    path = _path(identity)
    if not path:
        return
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    body = buffer.getvalue()
    folder = os.path.dirname(path)
    temporary = f"{path}.{os.getpid()}-{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "wb") as file:
                file.write(_MAGIC + _digest(identity, body) + body)
            os.replace(temporary, path)  # readers see the old file or the new one
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        # Many files are written by many processes: each time to list them all would take longer with every one.
        if secrets.randbelow(config.get().cache_dir_bytes) < max(len(body), _LEAST) * _SHARE:
            _make_room(folder)


def remove(identity: str) -> None:
    """Forget what is kept of a file: it is not true."""
    path = _path(identity)
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _path(identity: str) -> str:
    """Return where the arrays of a file are; empty where none are kept."""
    folder = config.get().cache_dir
    if not folder or not identity:
        return ""
    return os.path.join(folder, blake2b(_MAGIC + identity.encode(), digest_size=20).hexdigest() + _SUFFIX)


def _digest(identity: str, body: bytes) -> bytes:
    return blake2b(body, digest_size=_DIGEST, key=blake2b(identity.encode()).digest()).digest()


def _make_room(folder: str) -> None:
    """Remove what was not used for longest, until what is left is within ``cache_dir_bytes``."""
    limit = config.get().cache_dir_bytes
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _SUFFIX in entry.name and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # removed by another process meanwhile
                    status = entry.stat()
                    found.append((status.st_mtime, max(status.st_size, _LEAST), entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size
