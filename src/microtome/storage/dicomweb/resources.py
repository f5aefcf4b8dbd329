"""What a path below a DICOMweb service names (PS3.18 10.1.1), whether it is there or not."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from microtome.storage.dicomweb.address import UID

__all__ = ["LEVELS", "Kind", "Level", "Resource", "resource"]

Kind = Literal["nothing", "folder", "search", "instance", "frames", "frame", "metadata", "picture", "bulk"]
"""``folder`` holds one ``search``; that holds studies, series or instances."""


class Level(NamedTuple):
    """Studies, series, or instances: the name in paths, and the attribute that tells them apart."""

    name: str
    keyword: str
    tag: str


LEVELS = (
    Level("studies", "StudyInstanceUID", "0020000D"),
    Level("series", "SeriesInstanceUID", "0020000E"),
    Level("instances", "SOPInstanceUID", "00080018"),
)
_FRAME = re.compile(r"frames/([1-9][0-9]{0,8})(/rendered)?")
# What servers name bulk data by. Nothing that the way to the server could read as another path.
_BULK = re.compile(r"bulkdata(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@-]+)+")


class Resource(NamedTuple):
    """A path, taken apart.

    Parameters
    ----------
    kind
        What is there, if anything.
    path
        All of it.
    owner
        The path of the study, series or instance; empty for the service.
    uids
        Of these, outermost first.
    frame
        Number of the frame, 0 for none.
    """

    kind: Kind
    path: str
    owner: str
    uids: tuple[str, ...]
    frame: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder and no file."""
        return self.kind in ("folder", "search", "frames")


def resource(path: str) -> Resource:
    """Take a path without slashes around it apart."""
    words = path.split("/") if path else []
    uids: list[str] = []
    for level in LEVELS:
        pair = words[2 * len(uids) : 2 * len(uids) + 2]
        if len(pair) < 2 or pair[0] != level.name or not re.fullmatch(UID, pair[1]):
            break
        uids.append(pair[1])
    owner, rest = "/".join(words[: 2 * len(uids)]), "/".join(words[2 * len(uids) :])
    frame = _FRAME.fullmatch(rest)
    kind: Kind = "nothing"
    if not rest:
        kind = "instance" if len(uids) == 3 else "folder"
    elif len(uids) < 3 and rest == LEVELS[len(uids)].name:
        kind = "search"
    elif uids and rest in ("metadata", "rendered"):
        kind = "metadata" if rest == "metadata" else "picture"
    elif len(uids) == 3 and rest == "frames":
        kind = "frames"
    elif len(uids) == 3 and frame:
        return Resource("picture" if frame[2] else "frame", path, owner, tuple(uids), int(frame[1]))
    elif len(uids) == 3 and _BULK.fullmatch(rest):
        kind = "bulk"
    return Resource(kind, path, owner, tuple(uids))
