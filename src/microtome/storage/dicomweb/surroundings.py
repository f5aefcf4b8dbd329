"""Read-ahead: the frames around some."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["BLOCK", "frames_around"]

BLOCK = 64
"""Frames of a block, at the most: what a viewer shows next, and not much more."""


def frames_around(numbers: Iterable[int], *, size: int, across: int, frames: int) -> list[int]:
    """Return the frames of the blocks, square where frames lie in rows, that some frames are in.

    Parameters
    ----------
    numbers
        Of the frames, from 1.
    size
        The most frames of a block.
    across
        Frames in a row of tiles, where frames follow rows of tiles; else 0.
    frames
        How many there are.
    """
    found: set[int] = set()
    if not across:
        for block in {(n - 1) // size for n in numbers}:
            found.update(range(block * size + 1, min((block + 1) * size, frames) + 1))
        return sorted(found)
    side = max(1, int(size**0.5))
    for down, over in {(row // side, column // side) for row, column in (divmod(n - 1, across) for n in numbers)}:
        for row in range(down * side, (down + 1) * side):
            first = row * across + over * side
            last = row * across + min((over + 1) * side, across)
            found.update(range(first + 1, min(last, frames) + 1))
    return sorted(found)
