"""How a slide is opened, in a form that travels, and the slides this process has open.

A Dask task carries a `SlideRef`: what the user named, the options, and a fingerprint of the files. A worker opens the
slide from it when it first reads, and keeps it open for the tasks that follow.
"""

from __future__ import annotations

import secrets
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from microtome import config
from microtome.dicom.geometry import Alignment, Geometry, place
from microtome.dicom.header import read_instance
from microtome.dicom.instance import Instance
from microtome.dicom.matrix import FrameOrder
from microtome.dicom.part10 import DEFLATED
from microtome.dicom.pyramid import Level, Slide, build_slide, find_candidates, select
from microtome.dicom.reduction import reduced_level
from microtome.errors import (
    IncompleteSlideWarning,
    NotASlideError,
    OpenError,
    OptionError,
    SlideChangedError,
    SlowAccessWarning,
)
from microtome.lazy.names import PackedNames, pack
from microtome.lazy.opened import OpenOnce
from microtome.lazy.reader import LevelReader, Missing
from microtome.storage import FileEntry, Target, display_uri, list_files
from microtome.storage.credentials import Credentials
from microtome.storage.credentials import resolve as resolve_credentials
from microtome.storage.dicomweb.address import is_dicomweb, parse_address
from microtome.storage.dicomweb.service import service
from microtome.storage.listing import MAX_FILES, normalize
from microtome.storage.uri import holds_secret, url_holds_secret

if TYPE_CHECKING:
    from microtome.dicom.web_instances import Metadata
    from microtome.storage.dicomweb.frames import ReadAhead

__all__ = ["OpenSlide", "Recipe", "SlideRef", "open_recipe"]

VERSION = "1"
_SALT = secrets.token_bytes(16)


@dataclass(frozen=True)
class Recipe:
    """What the user asked for.

    Parameters
    ----------
    names
        Files, folders, globs or URLs, in full.
    storage_options
        For fsspec.
    series, frame_order, missing, fill, alignment, prefer, rendered, credentials, read_ahead
        See `microtome.open_slide`.
    metadata
        As well; it does not travel: a worker asks the server.
    """

    names: Sequence[str] = field(repr=False)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    series: str | None = None
    frame_order: FrameOrder | None = None
    missing: Missing = "raise"
    fill: float | tuple[float, ...] | None = None
    alignment: Alignment = "spacing"
    prefer: tuple[str, ...] = ()
    rendered: bool = False
    credentials: Credentials | None = None
    read_ahead: ReadAhead = "none"
    metadata: Metadata | None = field(default=None, repr=False, compare=False)

    @classmethod
    def make(
        cls,
        target: Target,
        storage_options: Mapping[str, Any] | None = None,
        *,
        fill: float | Sequence[float] | None = None,
        prefer: str | Sequence[str] = (),
        credentials: Any = None,
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
            "rendered": (False, True),
            "read_ahead": ("none", "requests", "latency"),
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
        stores = dict(storage_options or {})
        credentials = stores.pop("credentials", None) if credentials is None else credentials
        recipe = cls(
            normalize(target), stores, fill=fill, prefer=preferred,
            credentials=None if credentials is None else resolve_credentials(credentials), **options,
        )  # fmt: skip
        recipe._check_web()
        return recipe

    @property
    def web(self) -> bool:
        """Whether the slide is on a DICOMweb server."""
        return is_dicomweb(self.names[0])

    def _check_web(self) -> None:
        """Refuse options that have no meaning for where the slide is."""
        if self.web:
            unknown = self.storage_options.keys() - {"allow_hosts"}
            if unknown:
                raise OptionError(
                    f"storage_options {', '.join(map(repr, sorted(unknown)))} have no meaning for a DICOMweb server: "
                    "there is 'allow_hosts'; credentials are passed as credentials="
                )
            return
        given = {"credentials": None, "metadata": None, "read_ahead": "none", "rendered": False}
        for name, default in given.items():
            if getattr(self, name) != default:
                raise OptionError(
                    f"{self.where}: {name}= is for slides on a DICOMweb server; how other stores are reached is "
                    "said by storage_options="
                )

    @property
    def where(self) -> str:
        """What was named, for messages."""
        shown = display_uri(self.names[0])
        return shown if len(self.names) == 1 else f"{shown} and {len(self.names) - 1} more"

    @property
    def options(self) -> tuple[Any, ...]:
        """What changes pixels or coordinates: not how to reach the store."""
        shown = (self.series, self.frame_order, self.missing, self.fill, self.alignment, self.prefer)
        return (*shown, "rendered") if self.rendered else shown

    @property
    def way(self) -> str:
        """A name for what was named, and for who asks; where secrets count, it is good for this process only."""
        secret = _SALT if holds_secret(self.storage_options) or self._secret_in_names() else b""
        stores = sorted(self.storage_options.items(), key=str)
        return _digest(list(self.names), stores, secret, self.read_ahead, repr(self.credentials), size=6)

    def _secret_in_names(self) -> bool:
        # Names that have been packed have been looked at; to go through them would list folders.
        return not isinstance(self.names, PackedNames) and any(map(url_holds_secret, self.names))

    def __reduce__(self) -> tuple[Any, ...]:
        if holds_secret(self.storage_options) or self._secret_in_names():
            raise OptionError(
                f"{self.where}: the URL or storage_options hold a secret, which does not leave this process; let "
                "workers find their own credentials (an environment variable, a file, the platform's default)"
            )
        options = (self.series, self.frame_order, self.missing, self.fill, self.alignment, self.prefer)
        return Recipe, (
            pack(self.names), dict(self.storage_options), *options, self.rendered, self.credentials, self.read_ahead,
        )  # fmt: skip


@dataclass(frozen=True)
class SlideRef:
    """A recipe and the fingerprint of what it opened.

    Parameters
    ----------
    recipe
        How the slide is opened.
    fingerprint
        Tells its pixels from those of other files and options.
    way
        Tells the way to it from others: what was named, and who asks. The same pixels reached in two ways are two
        slides, or reading one might use the credentials of the other.
    """

    recipe: Recipe
    fingerprint: str
    way: str

    @property
    def token(self) -> str:
        """Name of what is read, and of the way to it; it tells nothing of secrets."""
        return f"{self.fingerprint}-{self.way}"


class OpenSlide:
    """A slide that this process has open: the model, and a reader for each of its images."""

    def __init__(self, ref: SlideRef, slide: Slide, geometry: Geometry) -> None:
        self.ref = ref
        self.slide = slide
        self.geometry = geometry
        self._readers: dict[tuple[str, int], LevelReader | None] = {}
        self._lock = threading.Lock()

    def reader(self, node: str) -> LevelReader:
        """Return what reads the image at a node."""
        reader = self.reduced_reader(node, 1)
        assert reader is not None
        return reader

    def reduced_reader(self, node: str, factor: int) -> LevelReader | None:
        """Return what reads the image at a node at 1/``factor`` of its size; None where its frames do not allow it."""
        with self._lock:
            key = node, factor
            if key not in self._readers:
                recipe = self.ref.recipe
                fill = recipe.fill if not node.startswith("associated/") else None
                level: Level | None = self.slide.images[node]
                if factor > 1 and level is not None:
                    level = reduced_level(level, factor)
                self._readers[key] = None if level is None else LevelReader(level, recipe.missing, fill)
            return self._readers[key]


_slides: OpenOnce[OpenSlide] = OpenOnce()


def open_recipe(recipe: Recipe) -> OpenSlide:
    """Open a slide: list its files, read their headers, build the pyramid.

    Raises
    ------
    OpenError
        It cannot be opened; the class says why.
    """
    if recipe.web:
        found: Iterable[tuple[str, Instance | OpenError]] = _ask_server(recipe)
        identities = None
    else:
        entries = list_files(recipe.names, recipe.storage_options, MAX_FILES)
        found = _read_headers(entries)
        identities = {e.shown: (e.uri, e.size, e.identity) for e in entries}
    instances, ignored = _sort_out(list(found))
    candidates = find_candidates(instances)
    taken = {i.uri for c in candidates for i in c.members}
    ignored += [(i.uri, f"an image of type {i.flavor}") for i in instances if i.uri not in taken]
    if not candidates:
        raise NotASlideError(_nothing(recipe, ignored))
    chosen = select(candidates, recipe.series, recipe.where)
    members = {i.uri for i in chosen.members}
    ignored += [(uri, "belongs to another slide") for uri in sorted(taken - members)]
    slide = build_slide(chosen, frame_order=recipe.frame_order, prefer=recipe.prefer, ignored=tuple(ignored))
    if not recipe.web and any(i.format.transfer_syntax == DEFLATED for i in chosen.members):
        warnings.warn(
            f"{recipe.where}: holds deflated data sets, which have no random access: they are held in memory",
            SlowAccessWarning,
            stacklevel=3,
        )
    if identities is None:  # instances on a server never change under their UIDs; what is stated of their frames may
        marks: list[tuple[Any, ...]] = [
            (i.uri, i.sop_instance_uid, i.frames, i.rows, i.columns) for i in chosen.members
        ]
    else:
        marks = [mark for uri, mark in identities.items() if uri in members]
    ref = SlideRef(recipe, _digest(VERSION, recipe.options, sorted(marks)), recipe.way)
    opened = OpenSlide(ref, slide, place(slide, recipe.alignment))
    for node in slide.images:
        opened.reader(node)
    _slides.add(ref.token, opened)
    return opened


def resolve(ref: SlideRef) -> OpenSlide:
    """Return the open slide of a reference, opening it if this process has not.

    Raises
    ------
    SlideChangedError
        Its files are not those that the reference was made from.
    """

    def open_again() -> OpenSlide:
        opened = open_recipe(ref.recipe)
        if opened.ref.fingerprint != ref.fingerprint:
            raise SlideChangedError(f"{ref.recipe.where}: its files changed since the slide was opened; open it again")
        return opened

    # Under the name that came along: that of a secret is another one in every process.
    return _slides.get(ref.token, open_again)


def forget_open_slides() -> None:
    """Drop the slides kept open for tasks, as in a new process."""
    _slides.renew()


def _ask_server(recipe: Recipe) -> Iterator[tuple[str, Instance | OpenError]]:
    from microtome.dicom.web_frames import WebOptions
    from microtome.dicom.web_instances import read_web_instances

    options = WebOptions(recipe.read_ahead, recipe.rendered)
    credentials = recipe.credentials or resolve_credentials(None)
    for name in recipe.names:
        address = parse_address(name)
        server = service(address.root, credentials, recipe.storage_options.get("allow_hosts", ()))
        yield from read_web_instances(server, address, series=recipe.series, metadata=recipe.metadata, options=options)


def _read_headers(entries: list[FileEntry]) -> list[tuple[str, Instance | OpenError]]:
    def read(entry: FileEntry) -> tuple[str, Instance | OpenError]:
        try:
            return entry.shown, read_instance(entry.source())
        except OpenError as e:
            return entry.shown, e

    if len(entries) < 2 or not entries[0].source().remote:
        return [read(entry) for entry in entries]
    executor = ThreadPoolExecutor(config.get().io_threads)
    try:
        return list(executor.map(read, entries))
    finally:
        executor.shutdown(cancel_futures=True)  # a server that fails is not asked for all the others


def _sort_out(found: list[tuple[str, Instance | OpenError]]) -> tuple[list[Instance], list[tuple[str, str]]]:
    """Return the instances, and (URI, reason) of what is none; the error of what is alone is raised."""
    instances: list[Instance] = []
    ignored: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for uri, result in found:
        if isinstance(result, Instance):
            twin = seen.setdefault(result.sop_instance_uid or uri, result.uri)
            if twin is not result.uri:
                ignored.append((result.uri, f"a copy of {twin}"))
            else:
                instances.append(result)
            continue
        if len(found) == 1:
            raise result
        ignored.append((uri, str(result).removeprefix(f"{uri}: ")))
        if not isinstance(result, NotASlideError):
            warnings.warn(f"left out: {result}", IncompleteSlideWarning, stacklevel=4)
    return instances, ignored


def _nothing(recipe: Recipe, ignored: list[tuple[str, str]]) -> str:
    first = f"; the first of {len(ignored)} files: {ignored[0][1]}" if ignored else ""
    return f"{recipe.where}: no whole-slide image is here{first}"


def _digest(*parts: Any, size: int = 12) -> str:
    return blake2b(repr(parts).encode(), digest_size=size).hexdigest()
