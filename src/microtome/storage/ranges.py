"""Ranges of bytes that are wanted, made into the few reads that a remote file is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Merged", "merge"]

GAP = 64 << 10
"""Bytes between two ranges that are read over at the most: they take about as long as a request of their own."""
WASTE = 0.2
"""What may be read over in all, as a part of what is wanted."""
MOST = 8 << 20
"""Bytes of one read, unless a single range is larger: more take long for one connection, and memory."""


class Merged(NamedTuple):
    """One read."""

    offset: int
    length: int
    members: list[int]
    """Which of the ranges are in it, in order of their offsets."""


def merge(ranges: Sequence[tuple[int, int]]) -> list[Merged]:
    """Merge ranges, (offset, length) in any order, that lie one behind the other, or nearly.

    Of what is read for each of the results at most a sixth is not wanted.
    """
    order = sorted(range(len(ranges)), key=ranges.__getitem__)
    merged: list[Merged] = []
    wanted = 0
    for number in order:
        offset, length = ranges[number]
        if merged:
            last = merged[-1]
            end = last.offset + last.length
            size = max(end, offset + length) - last.offset
            gap = offset - end
            if gap <= GAP and size - wanted - length <= WASTE * (wanted + length) and size <= MOST:
                last.members.append(number)
                merged[-1] = last._replace(length=size)
                wanted += length
                continue
        merged.append(Merged(offset, length, [number]))
        wanted = length
    return merged
