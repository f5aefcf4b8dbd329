"""Slides of buckets, archives and folders: their headers, sorted into slides as `open_slide` would."""

from __future__ import annotations

import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from microtome import config
from microtome.dicom.pyramid import Candidate, find_candidates
from microtome.errors import IncompleteSlideWarning, NotASlideError, RequestError
from microtome.finding.headers import Header, read_headers, reason
from microtome.finding.matching import agree
from microtome.finding.places import Place, below, common_folder, lies_in
from microtome.storage import FileEntry, display_uri, list_files

__all__ = ["MEASURES", "find_in_files"]

MEASURES = ("series", "rows", "columns", "spacing", "levels", "instances", "bytes")
"""What headers tell of a slide, besides its attributes."""


def find_in_files(
    names: Sequence[str],
    storage_options: Mapping[str, Any],
    limit: int | None,
    wanted: Mapping[str, str],
    keywords: Sequence[str],
    progress: bool,
) -> list[dict[str, Any]]:
    """Return a row for each slide that agrees.

    Parameters
    ----------
    names
        Files, folders, globs or URLs, in full.
    storage_options, limit, progress
        See `microtome.find_slides`.
    wanted
        What must agree, by keyword.
    keywords
        The attributes to tell.

    Raises
    ------
    SlideNotFoundError
        Nothing is there.
    RequestError
        No file could be read, for the server cannot be reached, or refuses.
    """
    if limit == 0:
        return []
    where = display_uri(names[0]) if len(names) == 1 else f"{display_uri(names[0])} and {len(names) - 1} more"
    entries = list_files(names, storage_options, limit=None)
    headers = _read(entries, list(dict.fromkeys((*keywords, *wanted))), where, progress)
    found = _Slides(headers, names)
    rows = []
    unnamed = 0
    for candidate in found.candidates:
        members = found.members(candidate)
        told = {keyword: _first_told(members, keyword) for keyword in members[0].values}
        if not all(agree(told[keyword], keyword, text, all_told=True) for keyword, text in wanted.items()):
            continue
        name = found.name(candidate)
        if name is None:
            unnamed += 1
            continue
        url, series = name
        finest = members[0].instance
        rows.append(
            {
                "url": url,
                "study_uid": finest.study_uid,
                "series_uid": finest.series_uid,
                **{keyword: told[keyword][0] if told[keyword] else "" for keyword in keywords},
                "series": series,
                "rows": finest.rows,
                "columns": finest.columns,
                "spacing": finest.spacing.row if finest.spacing else float("nan"),
                "levels": len({(i.rows, i.columns) for i in candidate.volumes}),
                "instances": len(members),
                "bytes": sum(member.size for member in members),
            }
        )
    if unnamed:
        warnings.warn(
            f"{where}: {unnamed} slides are left out, for no URL and series tells them from others beside them; open "
            "them as lists of their files",
            IncompleteSlideWarning,
            stacklevel=3,
        )
    rows.sort(key=lambda row: (row["url"], row["series"]))
    return rows[:limit]


def _read(entries: Sequence[FileEntry], keywords: Sequence[str], where: str, progress: bool) -> list[Header]:
    """Return what is kept of the files that are instances of slides; warn of those that cannot be read."""
    threads = config.get().io_threads
    headers: list[Header] = []
    unreadable: list[str] = []
    refusal: RequestError | None = None
    answered = False
    with closing(read_headers(entries, keywords, threads)) as results:
        for entry, result in zip(_shown(entries, progress), results, strict=True):
            answered = answered or not isinstance(result, RequestError)
            if isinstance(result, Header):
                headers.append(result)
            elif not isinstance(result, NotASlideError):
                unreadable.append(reason(result, entry.uri))
                refusal = refusal or (result if isinstance(result, RequestError) else None)
            if refusal is not None and not answered and len(unreadable) >= threads:
                break  # a server that refuses the first is not asked for ten thousand more
    if refusal is not None and not answered:
        raise refusal
    if unreadable:
        warnings.warn(
            f"{where}: {len(unreadable)} of {len(entries)} files cannot be read and are left out; the first: "
            f"{unreadable[0]}",
            IncompleteSlideWarning,
            stacklevel=4,
        )
    return headers


def _shown(entries: Sequence[FileEntry], progress: bool) -> Iterable[FileEntry]:
    """Return the files, in a bar that shows how many have been read."""
    if not progress:
        return entries
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    # In a notebook rich draws by ipywidgets.
    able = console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
    return track(entries, "reading headers", console=console, transient=True, disable=not able)


def _first_told(members: Sequence[Header], keyword: str) -> tuple[str, ...]:
    """Return the values of an attribute of the first instance that states it."""
    told = (member.values[keyword] for member in members)
    return next((values for values in told if any(text.strip(" \0") for text in values)), ())


def _sorted_out(headers: Iterable[Header]) -> list[Candidate]:
    """Return the slides of some files, which are in order of their URIs: of copies the first counts."""
    first: dict[str, Header] = {}
    for header in headers:
        first.setdefault(header.instance.sop_instance_uid or header.uri, header)
    return find_candidates(header.instance for header in first.values())


class _Choices(NamedTuple):
    """What `select` has to choose from in a folder: several with one key cannot be told apart."""

    keys: dict[frozenset[int], str]
    """By the members of each."""
    uses: Counter[str]
    slides: int
    """How many there are, those left out that are labels and overviews alone."""


class _Slides:
    """The slides of some files, and how `open_slide` is told which is meant."""

    def __init__(self, headers: Sequence[Header], names: Sequence[str]) -> None:
        self._names = names
        self._headers = {id(header.instance): header for header in headers}
        placed = sorted(((Place.of(header.uri), header) for header in headers), key=lambda pair: pair[0])
        self._places = [place for place, _ in placed]
        self._in_place = [header for _, header in placed]
        self._inside: dict[Place, _Choices] = {}
        # Labels and overviews alone are no slide.
        self.candidates = [c for c in _sorted_out(headers) if c.volumes]

    def members(self, candidate: Candidate) -> list[Header]:
        """Return the files of a slide, the finest level first."""
        volumes = sorted(candidate.volumes, key=lambda i: (-i.rows * i.columns, i.uri))
        return [self._headers[id(i)] for i in (*volumes, *candidate.associated)]

    def name(self, candidate: Candidate) -> tuple[str, str] | None:
        """Return the URL that `open_slide` takes and the ``series``, empty if need not be; None if there are none."""
        files = [member.uri for member in self.members(candidate)]
        if len(files) == 1:
            return files[0], ""
        folder = common_folder([Place.of(uri) for uri in files])
        if folder is None:
            return None
        # Which slides are told apart, and by what, may differ from what it is for all files together.
        inside = self._choices_in(folder)
        key = inside.keys.get(_members(candidate), "")
        # Beside files that were named one by one there may be those of other slides.
        known = any(lies_in(folder, name) for name in self._names)
        if known and inside.slides == 1 and _members(candidate) in inside.keys:
            return folder.uri, ""
        return (folder.uri, key) if key and inside.uses[key] == 1 else None

    def _choices_in(self, folder: Place) -> _Choices:
        if folder not in self._inside:
            headers = self._in_place[below(folder, self._places)]
            found = _sorted_out(sorted(headers, key=lambda header: header.uri))
            self._inside[folder] = _Choices(
                {_members(c): c.key for c in found}, Counter(c.key for c in found), sum(bool(c.volumes) for c in found)
            )
        return self._inside[folder]


def _members(candidate: Candidate) -> frozenset[int]:
    return frozenset(map(id, candidate.members))
