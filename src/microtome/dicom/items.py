"""The items of encapsulated pixel data, one after the other: what is left where no offset table tells the truth."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from microtome.dicom.instance import Instance
from microtome.errors import CorruptFrameError
from microtome.storage import Source

__all__ = ["ITEM", "LONGEST", "end_of_items", "item_length", "walk"]

ITEM = b"\xfe\xff\x00\xe0"
LONGEST = 0xFFFFFFFF
item_length = struct.Struct("<I").unpack_from
MAX_FRAGMENTS = 4096
PIECE = 4 << 20
"""Bytes of a read of a remote file, where all is read for the headers in it."""
ABREAST = 8
"""Such reads side by side."""
# First bytes of the codestreams that may be cut into several fragments: a fragment that begins so begins a frame.
_STREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\0\0\0\x0c")


def end_of_items(source: Source, pos: int) -> int:
    """Return where the run of items at ``pos`` ends; behind the end of the file if it is cut."""
    end = pos
    for start, length, _ in _items(source, pos):
        end = start + 8 + length
    return max(end, pos + 8)


def _items(source: Source, pos: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield start, length and first bytes of each item from ``pos`` on, the one that a cut file breaks off included.

    A local file is asked for each header alone. Of a remote one all is read, several pieces side by side, unless items
    are larger than a piece: then the pieces where headers are.
    """
    base, data, pieces = pos, b"", 1
    while pos + 8 <= source.size:
        at = pos - base
        if at + min(20, source.size - pos) > len(data):
            if not source.remote:
                data = source.read(pos, 20)
            else:
                pieces = min(2 * pieces, ABREAST) if data and at <= len(data) + PIECE else 1
                data = b"".join(source.read_many([(pos + i * PIECE, PIECE) for i in range(pieces)]))
            base, at = pos, 0
        if data[at : at + 4] != ITEM:
            return
        length: int = item_length(data, at + 4)[0]
        yield pos, length, data[at + 8 : at + 20]
        pos += 8 + length


def walk(instance: Instance, source: Source, first: int) -> tuple[list[int], list[int]]:
    """Find the frames by their item headers alone, the first of which is at ``first``: return starts and spans.

    Raises
    ------
    CorruptFrameError
        It cannot be known which fragments belong together.
    """
    starts: list[int] = []
    spans: list[int] = []
    streams: list[bool] = []
    end = first
    for start, length, head in _items(source, first):
        end = start + 8 + length
        if end > source.size:
            break
        if len(starts) > MAX_FRAGMENTS * instance.frames:
            raise CorruptFrameError(f"{instance.uri}: more than {MAX_FRAGMENTS} fragments a frame")
        starts.append(start)
        spans.append(8 + length)
        streams.append(head.startswith(_STREAM_STARTS) or _begins_rle(head))
    cut = end + 8 > source.size  # there is no room for the delimiter that ends the items
    if len(starts) > instance.frames or (cut and any(streams) and not all(streams)):
        starts, spans = _join_fragments(instance, starts, spans, streams, cut)
    if cut and starts and not _whole(source, starts[-1], spans[-1]):
        del starts[-1], spans[-1]
    if max(spans, default=0) > LONGEST:
        raise CorruptFrameError(f"{instance.uri}: a frame of {max(spans)} bytes is more than any decoder takes")
    return starts, spans


def _whole(source: Source, start: int, span: int) -> bool:
    """Tell whether the items in front of a cut hold all of a frame: JPEG streams of every kind end with a marker."""
    if source.read(start + 8, 2) not in (b"\xff\xd8", b"\xff\x4f"):
        return True
    return source.read(start + span - 3, 3).rstrip(b"\0").endswith(b"\xff\xd9")


def _begins_rle(head: bytes) -> bool:
    """Tell whether bytes begin an RLE header (PS3.5 G.3): 1 to 15 segments, the first behind the 64 byte header."""
    return head[1:8] == b"\0\0\0\x40\0\0\0" and 1 <= head[0] <= 15


def _join_fragments(
    instance: Instance, starts: list[int], spans: list[int], streams: list[bool], cut: bool
) -> tuple[list[int], list[int]]:
    """Join the fragments of frames: those that begin a codestream begin a frame."""
    begins = [i for i, begin in enumerate(streams) if begin] if instance.frames > 1 else [0]
    expected = len(begins) <= instance.frames if cut else len(begins) == instance.frames
    if not expected or begins[:1] != [0]:
        raise CorruptFrameError(
            f"{instance.uri}: {len(starts)} fragments hold {instance.frames} frames, no offset table says which belong "
            "together, and their first bytes do not tell"
        )
    ends = [*begins[1:], len(starts)]
    return [starts[i] for i in begins], [sum(spans[i:j]) for i, j in zip(begins, ends, strict=True)]
