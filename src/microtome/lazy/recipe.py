"""How a slide is opened, in a form that travels, and the slides this process has open.

A Dask task carries a `SlideRef`: what the user named, the options, and a fingerprint of the files. A worker opens the
slide from it when it first reads, and keeps it open for the tasks that follow.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from microtome import config
from microtome.dicom.geometry import Alignment, Geometry, place
from microtome.dicom.header import read_instance
from microtome.dicom.instance import Instance
from microtome.dicom.matrix import FrameOrder
from microtome.dicom.part10 import DEFLATED
from microtome.dicom.pyramid import Slide, build_slide, find_candidates, select
from microtome.errors import (
    IncompleteSlideWarning,
    MicrotomeError,
    NotASlideError,
    OpenError,
    OptionError,
    SlideChangedError,
    SlowAccessWarning,
)
from microtome.lazy.names import PackedNames, pack
from microtome.lazy.reader import LevelReader, Missing
from microtome.storage import FileEntry, Target, display_uri, list_files
from microtome.storage.listing import normalize
from microtome.storage.uri import holds_secret, url_holds_secret

__all__ = ["OpenSlide", "Recipe", "SlideRef", "open_recipe"]

VERSION = "1"
KEPT_OPEN = 32
"""Slides that a worker keeps open between tasks."""


@dataclass(frozen=True)
class Recipe:
    """What the user asked for.

    Parameters
    ----------
    names
        Files, folders, globs or URLs, in full.
    storage_options
        For fsspec.
    series, frame_order, missing, fill, alignment, prefer
        See `microtome.open_slide`.
    """

    names: Sequence[str] = field(repr=False)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    series: str | None = None
    frame_order: FrameOrder | None = None
    missing: Missing = "raise"
    fill: float | tuple[float, ...] | None = None
    alignment: Alignment = "spacing"
    prefer: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        target: Target,
        storage_options: Mapping[str, Any] | None = None,
        *,
        fill: float | Sequence[float] | None = None,
        prefer: str | Sequence[str] = (),
        **options: Any,
    ) -> Recipe:
        """Check what the user gave and bring it into one form.

        Raises
        ------
        OptionError
            A value that an option does not have.
        """
        allowed = {
            "frame_order": (None, "row", "column"),
            "missing": ("raise", "fill"),
            "alignment": ("spacing", "extent"),
        }
        for name, values in allowed.items():
            if name in options and options[name] not in values:
                raise OptionError(f"{name}={options[name]!r}: it is one of {', '.join(map(repr, values))}")
        if fill is not None and not isinstance(fill, int | float):
            try:
                fill = tuple(float(v) for v in fill)
            except (TypeError, ValueError):
                raise OptionError(f"fill={fill!r}: it is a number, or one for each channel") from None
        preferred = (prefer,) if isinstance(prefer, str) else tuple(prefer)
        return cls(normalize(target), dict(storage_options or {}), fill=fill, prefer=preferred, **options)

    @property
    def where(self) -> str:
        """What was named, for messages."""
        shown = display_uri(self.names[0])
        return shown if len(self.names) == 1 else f"{shown} and {len(self.names) - 1} more"

    @property
    def options(self) -> tuple[Any, ...]:
        """What changes pixels or coordinates: not how to reach the store."""
        return (self.series, self.frame_order, self.missing, self.fill, self.alignment, self.prefer)

    def _secret_in_names(self) -> bool:
        # Names that have been packed have been looked at; to go through them would list folders.
        return not isinstance(self.names, PackedNames) and any(map(url_holds_secret, self.names))

    def __reduce__(self) -> tuple[Any, ...]:
        if holds_secret(self.storage_options) or self._secret_in_names():
            raise OptionError(
                f"{self.where}: the URL or storage_options hold a secret, which does not leave this process; let "
                "workers find their own credentials (an environment variable, a file, the platform's default)"
            )
        return Recipe, (pack(self.names), dict(self.storage_options), *self.options)


@dataclass(frozen=True)
class SlideRef:
    """A recipe and the fingerprint of what it opened."""

    recipe: Recipe
    fingerprint: str


class OpenSlide:
    """A slide that this process has open: the model, and a reader for each of its images."""

    def __init__(self, ref: SlideRef, slide: Slide, geometry: Geometry) -> None:
        self.ref = ref
        self.slide = slide
        self.geometry = geometry
        self._readers: dict[str, LevelReader] = {}
        self._lock = threading.Lock()

    def reader(self, node: str) -> LevelReader:
        """Return what reads the image at a node."""
        with self._lock:
            if node not in self._readers:
                recipe = self.ref.recipe
                fill = recipe.fill if not node.startswith("associated/") else None
                self._readers[node] = LevelReader(self.slide.images[node], recipe.missing, fill)
            return self._readers[node]


_lock = threading.RLock()
_open: weakref.WeakValueDictionary[str, OpenSlide] = weakref.WeakValueDictionary()
_kept: OrderedDict[str, OpenSlide] = OrderedDict()


def open_recipe(recipe: Recipe) -> OpenSlide:
    """Open a slide: list its files, read their headers, build the pyramid.

    Raises
    ------
    OpenError
        It cannot be opened; the class says why.
    """
    entries = list_files(recipe.names, recipe.storage_options)
    instances, ignored = _read_headers(entries, alone=len(entries) == 1)
    candidates = find_candidates(instances)
    taken = {i.uri for c in candidates for i in c.members}
    ignored += [(i.uri, f"an image of type {i.flavor}") for i in instances if i.uri not in taken]
    if not candidates:
        raise NotASlideError(_nothing(recipe, ignored))
    chosen = select(candidates, recipe.series, recipe.where)
    members = {i.uri for i in chosen.members}
    ignored += [(uri, "belongs to another slide") for uri in sorted(taken - members)]
    slide = build_slide(chosen, frame_order=recipe.frame_order, prefer=recipe.prefer, ignored=tuple(ignored))
    if any(i.outline.transfer_syntax == DEFLATED for i in chosen.members):
        warnings.warn(
            f"{recipe.where}: holds deflated data sets, which have no random access: they are held in memory",
            SlowAccessWarning,
            stacklevel=3,
        )
    ref = SlideRef(recipe, _fingerprint(recipe, [e for e in entries if display_uri(e.uri) in members]))
    opened = OpenSlide(ref, slide, place(slide, recipe.alignment))
    for node in slide.images:
        opened.reader(node)
    with _lock:
        _open[ref.fingerprint] = opened
    return opened


def resolve(ref: SlideRef) -> OpenSlide:
    """Return the open slide of a reference, opening it if this process has not.

    Raises
    ------
    SlideChangedError
        Its files are not those that the reference was made from.
    """
    with _lock:
        opened = _open.get(ref.fingerprint)
        if opened is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were given when the slide was first opened
                opened = open_recipe(ref.recipe)
        if opened.ref.fingerprint != ref.fingerprint:
            raise SlideChangedError(f"{ref.recipe.where}: its files changed since the slide was opened; open it again")
        _kept[ref.fingerprint] = opened
        _kept.move_to_end(ref.fingerprint)
        while len(_kept) > KEPT_OPEN:
            _kept.popitem(last=False)
    return opened


def forget_open_slides() -> None:
    """Drop the slides kept open for tasks: in a new process after a fork, and in tests."""
    global _lock
    _lock = threading.RLock()
    _kept.clear()
    _open.clear()


def _read_headers(entries: list[FileEntry], alone: bool) -> tuple[list[Instance], list[tuple[str, str]]]:
    instances: list[Instance] = []
    ignored: list[tuple[str, str]] = []
    seen: dict[str, str] = {}

    def read(entry: FileEntry) -> Instance | MicrotomeError:
        try:
            return read_instance(entry.source())
        except OpenError as e:
            return e

    remote = len(entries) > 1 and entries[0].source().remote
    if remote:
        with ThreadPoolExecutor(config.get().io_threads) as executor:
            results = list(executor.map(read, entries))
    else:
        results = [read(entry) for entry in entries]
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, Instance):
            twin = seen.setdefault(result.sop_instance_uid or entry.uri, result.uri)
            if twin is not result.uri:
                ignored.append((result.uri, f"a copy of {twin}"))
            else:
                instances.append(result)
            continue
        if alone:
            raise result
        ignored.append((display_uri(entry.uri), str(result).removeprefix(f"{display_uri(entry.uri)}: ")))
        if not isinstance(result, NotASlideError):
            warnings.warn(f"left out: {result}", IncompleteSlideWarning, stacklevel=4)
    return instances, ignored


def _nothing(recipe: Recipe, ignored: list[tuple[str, str]]) -> str:
    first = f"; the first of {len(ignored)} files: {ignored[0][1]}" if ignored else ""
    return f"{recipe.where}: no whole-slide image is here{first}"


def _fingerprint(recipe: Recipe, entries: list[FileEntry]) -> str:
    files = [(e.uri, e.size, e.identity) for e in entries]
    return blake2b(repr((VERSION, recipe.options, files)).encode(), digest_size=12).hexdigest()
