"""Answers to requests for frames: which frame each part holds, or why that cannot be known (PS3.18 10.4.1.1.6)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from microtome.errors import ProtocolError
from microtome.storage.cache import EncodedFrame
from microtome.storage.dicomweb.answer import Answer, CutShortError
from microtome.storage.dicomweb.multipart import MediaType, Part, media_type, split_parts

__all__ = ["NoListError", "UnclearError", "read_frames", "shown"]

_RLE = "1.2.840.10008.1.2.5"
_LOCATION = re.compile(r"/frames/([0-9]{1,9})/?$")
_ERROR_PAGES = ("text/", "application/json", "application/dicom+json", "application/problem+json", "application/xml")


class NoListError(ProtocolError):
    """One frame came in answer to a list."""


class UnclearError(ProtocolError):
    """Which frames came cannot be told; asked for one by one, it can."""


def read_frames(answer: Answer, numbers: Sequence[int], limit: int | None = None) -> dict[int, EncodedFrame]:
    """Read an answer into frames by their numbers, from 1: all of those that were asked for, and no others.

    Parameters
    ----------
    answer
        Successful, its body unread.
    numbers
        The frames asked for.
    limit
        The most bytes they may take.

    Raises
    ------
    NoListError
        Several were asked for, and one comes.
    UnclearError
        It cannot be told which is which.
    CutShortError
        It is no whole multipart.
    ProtocolError
        It is an error page, or has other parts than were asked for.
    """
    kind = media_type(answer.content_type)
    if answer.status == 204:
        raise ProtocolError(f"{answer.url}: the server has no content for frames {shown(numbers)}", answer.status)
    if kind.name.startswith(_ERROR_PAGES):
        raise ProtocolError(f"{answer.url}: {kind.name} came in place of frames {shown(numbers)}", answer.status)
    body = answer.body(limit)
    if not kind.name.startswith("multipart/"):
        if len(numbers) > 1:
            raise NoListError(f"{answer.url}: one frame came in place of {len(numbers)}", answer.status)
        return {numbers[0]: EncodedFrame(body, _syntax(kind))}
    try:
        parts = split_parts(body, kind.parameters.get("boundary", ""), answer.url, len(numbers))
    except ProtocolError as e:
        raise CutShortError(str(e)) from None
    placed: dict[int, EncodedFrame] = {}
    for number, part in zip(_order(answer, numbers, parts), parts, strict=True):
        stated = media_type(part.headers.get("content-type", ""))
        if stated.name.startswith(_ERROR_PAGES):
            raise ProtocolError(f"{answer.url}: {stated.name} came in place of frame {number}", answer.status)
        # Some servers say it of the whole answer, and not of each part.
        syntax = _syntax(stated) or _syntax(media_type(kind.parameters.get("type", ""))) or _syntax(kind)
        placed[number] = EncodedFrame(bytes(part.body), syntax)
    return placed


def _syntax(kind: MediaType) -> str:
    """Return the transfer syntax that a content type states, or that alone has this type (PS3.18 8.7.3)."""
    stated = kind.parameters.get("transfer-syntax", "").strip().removesuffix("*")
    return stated or (_RLE if kind.name == "image/dicom-rle" else "")


def _order(answer: Answer, numbers: Sequence[int], parts: Sequence[Part]) -> Sequence[int]:
    """Return which frame each part holds: by its Content-Location if it states one, else as asked for."""
    if len(parts) == 1 < len(numbers):
        raise NoListError(f"{answer.url}: one frame came in place of {shown(numbers)}", answer.status)
    found = [_LOCATION.search(part.headers.get("content-location", "")) for part in parts]
    stated = [int(match.group(1)) if match else None for match in found]
    known = [number for number in stated if number is not None]
    if len(parts) > 1 and len(known) == len(parts) and len(set(known)) == 1:
        # Some servers state one location for all parts, which tells nothing. Or it is one frame, over and over.
        if len(parts) == len(numbers) and len({bytes(part.body) for part in parts}) == 1:
            raise UnclearError(f"{answer.url}: all parts are equal, and state one location", answer.status)
        stated, known = [None] * len(parts), []
    missing = [number for number in numbers if number not in known]
    extra = [number for number in known if number not in numbers]
    if len(known) == len(parts) and not extra and not missing and len(known) == len(numbers):
        return known
    if len(known) == len(parts) or extra:
        twice = sorted({number for number in known if known.count(number) > 1})
        what = (("did not come", missing), ("came twice", twice), ("came unasked", extra))
        told = "; ".join(f"{shown(some)} {how}" for how, some in what if some)
        raise ProtocolError(f"{answer.url}: of {len(numbers)} frames asked for, {told}", answer.status)
    if len(parts) != len(numbers):
        raise ProtocolError(
            f"{answer.url}: {len(parts)} parts came for {len(numbers)} frames ({shown(numbers)}); which is which "
            "cannot be known",
            answer.status,
        )
    if any(place not in (None, number) for place, number in zip(stated, numbers, strict=True)):
        raise ProtocolError(
            f"{answer.url}: some parts state which of the frames {shown(numbers)} they are, and are not in order",
            answer.status,
        )
    return numbers


def shown(numbers: Sequence[int]) -> str:
    """Return frame numbers for a message, a long list shortened."""
    listed = ", ".join(map(str, numbers[:8]))
    return f"{listed}, … ({len(numbers)} in all)" if len(numbers) > 8 else listed
