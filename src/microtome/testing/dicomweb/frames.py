"""Where the frames of a file lie: a walk over its elements and items, once, and slices from then on.

The items themselves are walked, not the offset tables believed: a table only says which fragments belong together.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from microtome.testing.dicomweb.message import Refusal

__all__ = ["FrameTable", "find_frames"]

Buffer = bytes | mmap.mmap
Reader = Callable[[int, int], bytes]
Spans = tuple[tuple[int, int], ...]

UNDEFINED = 0xFFFFFFFF
PIXELS, FLOATS, DOUBLES, OFFSETS, LENGTHS = 0x7FE00010, 0x7FE00008, 0x7FE00009, 0x7FE00001, 0x7FE00002
ITEM, END_ITEM, END_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP", b"\xff\x0a", b"\x00\x00\x00\x0cJXL")


class _CutShort(Exception):  # noqa: N818
    """The file ends where more should come."""


@dataclass(frozen=True)
class FrameTable:
    """Bytes of each frame in one file.

    Parameters
    ----------
    path
        The file.
    inflated
        The data set of a deflated file, which takes the place of the file; else None.
    spans
        (start, stop) of the pieces of each frame; of native pixels only the one of all frames.
    count
        Of frames.
    native_bits
        Bits of a native frame; 0 for encapsulated ones.
    swap
        Size of the words of big endian pixels, which are sent little endian; else 0.
    """

    path: Path
    inflated: bytes | None
    spans: tuple[Spans, ...]
    count: int
    native_bits: int = 0
    swap: int = 0

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Read frames, numbered from 1, as they are stored (native ones as little endian)."""
        with self._reader() as read:
            return [self._native(read, n - 1) if self.native_bits else self._item(read, n - 1) for n in numbers]

    @contextmanager
    def _reader(self) -> Iterator[Reader]:
        """A function (start, stop) -> bytes; the file is open for one request, so it may be replaced meanwhile."""
        if (data := self.inflated) is not None:
            yield lambda start, stop: data[start:stop]
            return
        fd = os.open(self.path, os.O_RDONLY)
        try:
            yield lambda start, stop: os.pread(fd, stop - start, start)
        finally:
            os.close(fd)

    def _item(self, read: Reader, index: int) -> bytes:
        spans = self.spans[index]
        pieces = [read(start, stop) for start, stop in spans]
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return _whole(data, sum(stop - start for start, stop in spans))

    def _native(self, read: Reader, index: int) -> bytes:
        (start, _) = self.spans[0][0]
        first, last = index * self.native_bits, (index + 1) * self.native_bits
        low, high = first // 8, -(-last // 8)
        data = _whole(read(start + low, start + high), high - low)
        if self.native_bits % 8:
            # Frames of single bits follow each other without a gap; each is sent from a byte of its own.
            import numpy as np

            bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            begin = first - 8 * low
            data = np.packbits(bits[begin : begin + self.native_bits], bitorder="little").tobytes()
        if self.swap > 1:
            import numpy as np

            data = np.frombuffer(data, f">u{self.swap}").astype(f"<u{self.swap}").tobytes()
        return data


def _whole(data: bytes, expected: int) -> bytes:
    if len(data) != expected:
        raise Refusal(500, "the stored instance is cut short")
    return data


def find_frames(
    path: Path, at: int, syntax: str, count: int, bits: int, word: int, inflated: bytes | None = None
) -> FrameTable:
    """Index the frames of a file.

    Parameters
    ----------
    path
        The file.
    at
        Position of an element at the top level, before the pixels.
    syntax
        Transfer syntax UID.
    count
        Number of frames.
    bits
        Of a frame, if native.
    word
        Bytes of a sample.
    inflated
        The data set of a deflated file; ``at`` is a position in it.
    """
    if inflated is not None:
        return _find(inflated, path, at, syntax, count, bits, word, inflated)
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return _find(whole, path, at, syntax, count, bits, word, None)


def _find(
    b: Buffer, path: Path, at: int, syntax: str, count: int, bits: int, word: int, inflated: bytes | None
) -> FrameTable:
    implicit, big = syntax == "1.2.840.10008.1.2", syntax == "1.2.840.10008.1.2.2"
    try:
        found = _elements(b, at, implicit, ">" if big else "<")
    except (struct.error, _CutShort):
        raise Refusal(500, "the stored instance is cut short before its pixels") from None
    pixels = next((found[tag] for tag in (PIXELS, FLOATS, DOUBLES) if tag in found), None)
    if pixels is None:
        raise Refusal(404, "the instance has no pixels")
    start, length = pixels
    if length != UNDEFINED:
        swap = word if big else 0
        return FrameTable(path, inflated, (((start, start + length),),), count, bits, swap)
    table, items = _items(b, start)
    frames = _group(b, items, count, table, found)
    return FrameTable(path, inflated, frames, count)


def _elements(b: Buffer, at: int, implicit: bool, order: str) -> dict[int, tuple[int, int]]:
    """(start, length) of the values of group 7FE0."""
    found = {}
    while at + 8 <= len(b):
        tag, start, length = _head(b, at, implicit, order)
        if tag >= 0x7FE00000:
            if tag >> 16 != 0x7FE0:
                break
            found[tag] = start, length
        if length == UNDEFINED:
            if tag in (PIXELS, FLOATS, DOUBLES):
                break
            at = _after_items(b, start, implicit, order)
        else:
            at = start + length
    return found


def _head(b: Buffer, at: int, implicit: bool, order: str) -> tuple[int, int, int]:
    """Tag, start of the value and its length."""
    group, element = struct.unpack_from(order + "HH", b, at)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return tag, at + 8, struct.unpack_from(order + "I", b, at + 4)[0]
    if b[at + 4 : at + 6] in _LONG:
        return tag, at + 12, struct.unpack_from(order + "I", b, at + 8)[0]
    return tag, at + 8, struct.unpack_from(order + "H", b, at + 6)[0]


def _after_items(b: Buffer, at: int, implicit: bool, order: str) -> int:
    """The position behind a sequence of undefined length."""
    while True:
        tag, start, length = _head(b, at, True, order)
        if tag == END_SEQUENCE:
            return start
        if tag != ITEM:
            raise _CutShort
        if length != UNDEFINED:
            at = start + length
            continue
        at = start
        while True:
            tag, start, length = _head(b, at, implicit, order)
            if tag == END_ITEM:
                at = start
                break
            at = _after_items(b, start, implicit, order) if length == UNDEFINED else start + length


def _items(b: Buffer, at: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """(start, length) of the basic offset table, and (start, stop) of each fragment, as far as the file goes."""
    unpack, end = struct.Struct("<II").unpack_from, len(b)
    spans = []
    while at + 8 <= end:
        tag, length = unpack(b, at)
        if tag != 0xE000FFFE or at + 8 + length > end:
            break
        at += 8
        spans.append((at, at + length))
        at += length
    if not spans:
        return (at, 0), []
    return (spans[0][0], spans[0][1] - spans[0][0]), spans[1:]


def _group(
    b: Buffer, items: list[tuple[int, int]], count: int, table: tuple[int, int], found: dict[int, tuple[int, int]]
) -> tuple[Spans, ...]:
    """Which fragments make up which frame (PS3.5 A.4)."""
    if not items:
        raise Refusal(500, "the stored instance has no frames")
    zero = items[0][0] - 8
    if len(items) != count:
        starts = _stated(b, table, "I", count) or _stated(b, found.get(OFFSETS, (0, 0)), "Q", count)
        if count == 1:
            return (tuple(items),)
        groups = _cut(items, {zero + s for s in starts} if starts else None, b)
        if len(groups) != count and len(items) > count:
            raise Refusal(500, "the stored instance does not say which fragments belong to which frame")
        return tuple(groups[:count])
    frames: list[Spans] = [(span,) for span in items]
    lengths = _stated(b, found.get(LENGTHS, (0, 0)), "Q", count)
    for i, stated in enumerate(lengths or ()):
        start, stop = items[i]
        if stop - start - stated == 1:  # the byte that makes the length even is no part of the frame
            frames[i] = ((start, stop - 1),)
    return tuple(frames)


def _cut(items: list[tuple[int, int]], starts: set[int] | None, b: Buffer) -> list[Spans]:
    groups: list[list[tuple[int, int]]] = []
    for start, stop in items:
        if starts is None:
            first = any(b[start : start + len(mark)] == mark for mark in _STARTS)
        else:
            first = start - 8 in starts
        if first or not groups:
            groups.append([])
        groups[-1].append((start, stop))
    return [tuple(group) for group in groups]


def _stated(b: Buffer, where: tuple[int, int], kind: str, count: int) -> tuple[int, ...] | None:
    start, length = where
    if length != count * struct.calcsize("<" + kind) or start + length > len(b):
        return None
    return struct.unpack_from(f"<{count}{kind}", b, start)
