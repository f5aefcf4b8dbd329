"""Frames of an instance from a server: several in a request, through the frame cache (PS3.18 10.4.1.1.6).

What a server cannot do is found out once and then left: lists of frames, ``transfer-syntax=*``, the stored transfer
syntax. Whatever it does, a frame is the one that was asked for and whole, or an error names it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Any, Literal

from microtome import config
from microtome.errors import NotOnServerError, ProtocolError, RequestError, TranscodedWarning
from microtome.storage import cache as cache_
from microtome.storage.cache import EncodedFrame, Flight
from microtome.storage.dicomweb.frame_answers import NoListError, UnclearError, read_frames, shown
from microtome.storage.dicomweb.gathering import Gathering
from microtome.storage.dicomweb.service import Service
from microtome.storage.dicomweb.session import is_of_server
from microtome.storage.dicomweb.surroundings import BLOCK, frames_around

__all__ = ["InstanceFrames", "ReadAhead"]

ReadAhead = Literal["none", "requests", "latency"]

_ROOT = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = f"{_ROOT}.1"
_NATIVE = frozenset({_ROOT, EXPLICIT_LITTLE, f"{_ROOT}.2", f"{_ROOT}.1.98", f"{_ROOT}.1.99", f"{_ROOT}.8.1"})
# PS3.18 8.7.3: the media type of each transfer syntax.
_MEDIA_TYPES = {
    f"{_ROOT}.4.{number}": name
    for name, numbers in (
        ("image/jpeg", (50, 51, 57, 70)),
        ("image/jls", (80, 81)),
        ("image/jp2", (90, 91)),
        ("image/jpx", (92, 93)),
        ("image/jphc", (201, 202, 203)),
        ("image/jxl", (110, 111, 112)),
    )
    for number in numbers
} | {f"{_ROOT}.5": "image/dicom-rle"}
_REFUSED = (400, 406, 415, 501)
_LIST_REFUSED = (*_REFUSED, 404, 405, 410, 413, 414)
_SLACK = 64 << 10
"""Bytes that a frame may take beyond twice those of its pixels, with the headers of its part."""
CUT_TRIES = 3
"""How often a frame is fetched that arrives incomplete inside an answer that is not."""


class InstanceFrames:
    """The frames of one instance.

    Parameters
    ----------
    service
        Where it is.
    path
        Of the instance.
    transfer_syntax
        As metadata state it; empty where they do not.
    frames
        How many there are.
    across
        Frames in a row of tiles, where frames follow rows of tiles; else 0.
    frame_bytes
        Bytes of the pixels of a frame; 0 where that is not known.
    cut
        Tells whether the bytes of a frame are only a part of it. Without it that is not known, and whoever knows does
        not share what is fetched.
    decodes
        Tells whether frames of a transfer syntax can be decoded here; others are asked for transcoded.
    recognize
        Returns the transfer syntax that a frame really has, whatever its part states.
    read_ahead
        See `microtome.open_slide`.
    rendered
        Ask for pictures made for display in place of stored frames.
    """

    def __init__(
        self,
        service: Service,
        path: str,
        *,
        transfer_syntax: str,
        frames: int,
        across: int = 0,
        frame_bytes: int = 0,
        cut: Callable[[EncodedFrame], bool] | None = None,
        decodes: Callable[[str], bool] = lambda syntax: True,
        recognize: Callable[[EncodedFrame], str] = lambda frame: frame.transfer_syntax,
        read_ahead: ReadAhead = "none",
        rendered: bool = False,
    ) -> None:
        self.service = service
        self.path = path
        self.frames = frames
        self._syntax = transfer_syntax
        self._across = across
        self._frame_bytes = frame_bytes
        self._cut = cut or (lambda frame: False)
        self._what = "rendered" if rendered else "frames" if cut else "unchecked"
        self._decodes = decodes
        self._recognize = recognize
        self._read_ahead = read_ahead
        self._rendered = rendered
        self._transcoded = bool(transfer_syntax) and not decodes(transfer_syntax)
        self._gathering = Gathering(self._batch)
        self._delivered = False  # whether frames have come as they are stored

    @property
    def url(self) -> str:
        """The URL of the instance."""
        return self.service.url(self.path)

    def _key(self, number: int) -> Hashable:
        return (self.service.key, self.path, self._what, number)

    @property
    def frames_per_request(self) -> int:
        """The most frames of one request, as far as is known."""
        single = self.service.capabilities.lists is False or self._rendered
        return 1 if single else config.get().frames_per_request

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Return the frames that are neither in the cache nor on their way to it."""
        held = cache_.frame_cache().holds(map(self._key, numbers))
        return [number for number in numbers if self._key(number) not in held]

    def get(self, numbers: Sequence[int]) -> dict[int, EncodedFrame]:
        """Return frames by their numbers, from 1; those that the server does not have are left out.

        Raises
        ------
        RequestError
            The server cannot be reached, refuses, or sends other frames than were asked for.
        """
        got = self._get(numbers)
        if self._read_ahead == "latency" and len(numbers) <= config.get().frames_per_request:
            ahead = self.missing(self._around(numbers))
            if ahead:
                self.service.workers.background(partial(self.prefetch, ahead))
        return got

    def prefetch(self, numbers: Sequence[int]) -> int:
        """Fetch frames that are not in the cache into it; return how many these were."""
        mine = self._claim_ahead(numbers)
        if mine:
            self._fetch(mine)
        return len(mine)

    def discard(self, numbers: Iterable[int]) -> None:
        """Forget frames that cannot be decoded, so that they are fetched anew."""
        cache_.frame_cache().discard(map(self._key, numbers))

    def _get(self, numbers: Sequence[int], again: bool = False) -> dict[int, EncodedFrame]:
        by_key: dict[Hashable, int] = {self._key(number): number for number in numbers}

        def fetch(mine: dict[Hashable, Flight], again: bool) -> dict[Hashable, EncodedFrame]:
            if again:
                frames = self._fetch(mine)
            else:
                frames = self._fetch_with_others([by_key[key] for key in mine], mine)
            return {self._key(number): frame for number, frame in frames.items()}

        found = cache_.frame_cache().get(by_key, fetch, again)
        return {by_key[key]: frame for key, frame in found.items() if key in by_key}  # not those around them

    def _fetch_with_others(self, numbers: list[int], flights: dict[Hashable, Flight]) -> dict[int, EncodedFrame]:
        """Fetch frames that this caller has claimed, and those around them where that is wanted."""
        others: dict[Hashable, Flight] = {}
        if self._read_ahead == "requests" and len(numbers) <= config.get().frames_per_request:
            others = self._claim_ahead(self._around(numbers))
        try:
            return self._fetch(flights | others)
        except RequestError as e:
            if not others or is_of_server(e):
                raise
        return self._get(numbers, again=True)  # one that nobody asked for may be bad

    def _fetch(self, flights: dict[Hashable, Flight]) -> dict[int, EncodedFrame]:
        """Fetch frames that this caller has claimed."""
        cache = cache_.frame_cache()
        got: dict[int, EncodedFrame] = {}
        why: RequestError | None = None

        def fetch(batch: list[int]) -> None:
            settings = config.get()
            if self.frames_per_request > 1:
                frames = self._gathering.ask(batch, settings.requests_per_server, settings.frames_per_request)
            else:
                frames = self._batch(batch)
            got.update(frames)
            cache.deliver({self._key(number): frame for number, frame in frames.items()}, flights)

        try:
            self.service.workers.parallel(fetch, self._batches(sorted(_number(key) for key in flights)))
        except RequestError as e:
            why = copy(e) if is_of_server(e) else None
            raise
        finally:
            cache.give_up(flights, why)
        return got

    def _claim_ahead(self, numbers: Sequence[int]) -> dict[Hashable, Flight]:
        """Claim those frames that nobody has, or has claimed."""
        return cache_.frame_cache().claim(map(self._key, self.missing(numbers)), ahead=True)[1]

    def _around(self, numbers: Iterable[int]) -> list[int]:
        size = min(BLOCK, config.get().frames_per_request)
        return frames_around(numbers, size=size, across=self._across, frames=self.frames)

    def _batches(self, numbers: list[int]) -> list[list[int]]:
        size = self.frames_per_request
        return [numbers[i : i + size] for i in range(0, len(numbers), size)]

    def _batch(self, numbers: list[int]) -> dict[int, EncodedFrame]:
        """Fetch frames by one request, or one each where the server knows no lists."""
        capabilities = self.service.capabilities
        if len(numbers) > 1 and capabilities.lists is not False and not self._rendered:
            try:
                frames = self._negotiate(numbers)
            except RequestError as e:
                # A list may be refused for one bad frame in it: which one, single requests tell.
                if not isinstance(e, NoListError | UnclearError) and e.status not in _LIST_REFUSED:
                    raise
                clear = not isinstance(e, UnclearError)
            else:
                capabilities.lists = True
                return frames
            got = self._singles(numbers)
            if clear and len(got) == len(numbers) and capabilities.lists is None:
                capabilities.lists = False
            return got
        return self._singles(numbers)

    def _singles(self, numbers: list[int]) -> dict[int, EncodedFrame]:
        def one(number: int) -> dict[int, EncodedFrame]:
            try:
                return self._negotiate([number])
            except NotOnServerError:
                return {}

        return {n: frame for frames in self.service.workers.parallel(one, numbers) for n, frame in frames.items()}

    # -- one request -------------------------------------------------------------------------------------------------

    def _negotiate(self, numbers: list[int]) -> dict[int, EncodedFrame]:
        """Ask for frames in the form that the server is known to send, else in one form after the other."""
        capabilities = self.service.capabilities
        errors: list[RequestError] = []
        for form, accept in self._forms():
            try:
                frames = self._whole(numbers, accept)
            except RequestError as e:
                # Servers exist that fail (500) to send what they cannot parse, and yet can decode it, or believe so. A
                # failure says nothing of other instances, and nothing of one whose frames have come before.
                failed = e.status == 500 and not self._delivered
                known = getattr(capabilities, form, None)
                if not failed and (e.status not in _REFUSED or (known and e.status == 400 and not errors)):
                    raise
                errors.append(e)
                continue
            self._learn(form, any(e.status != 500 for e in errors))
            kinds = {(frame.transfer_syntax, self._recognize(frame)) for frame in frames.values()}
            if form == "transcoded":
                if any(e.status == 500 for e in errors):
                    capabilities.failing.add(self.path)
            elif not all(map(self._decodes, {real for _, real in kinds})):
                self._transcoded = True
                return self._negotiate(numbers)
            else:
                self._delivered = True
            if self._altered(form, kinds):
                self._warn()
            return frames
        raise errors[0]

    def _altered(self, form: str, kinds: Iterable[tuple[str, str]]) -> bool:
        """Tell whether frames are not those that are stored, and decoding them may have altered their pixels.

        Of the frames the transfer syntaxes are told, as stated and as they are.
        """
        if self._syntax in _NATIVE or form == "rendered":
            return False
        if form == "transcoded":
            # A server may say that it decoded what it did not: such a codestream is the stored one.
            return any(stated not in _NATIVE or real in _NATIVE for stated, real in kinds)
        return bool(self._syntax) and any(real in _NATIVE for _, real in kinds)

    def _forms(self) -> Iterator[tuple[str, str]]:
        """Yield the forms in which frames may be asked for, the best first."""
        if self._rendered:
            yield "rendered", "image/jpeg"
            return
        capabilities = self.service.capabilities
        if not self._transcoded and self.path not in capabilities.failing:
            if capabilities.original is not False:
                yield "original", _related("application/octet-stream", "*")
            if self._syntax and capabilities.exact is not False:
                yield "exact", _related(_MEDIA_TYPES.get(self._syntax, "application/octet-stream"), self._syntax)
        yield "transcoded", _related("application/octet-stream", EXPLICIT_LITTLE)

    def _learn(self, form: str, others_refused: bool) -> None:
        capabilities = self.service.capabilities
        if form == "original":
            capabilities.original = True
        elif others_refused and not self._transcoded and capabilities.original is None:
            capabilities.original = False
        if form == "exact":
            capabilities.exact = True
        elif form == "transcoded" and others_refused and self._syntax and capabilities.exact is None:
            capabilities.exact = False

    def _warn(self) -> None:
        warnings.warn(
            f"{self.url}: the server does not send the frames as they are stored "
            f"({self._syntax or 'transfer syntax unknown'}), or they cannot be decoded here; it decodes them, which "
            "may alter their pixels",
            TranscodedWarning,
            stacklevel=2,
        )

    def _whole(self, numbers: list[int], accept: str) -> dict[int, EncodedFrame]:
        """Ask for frames until none of them is cut."""
        for _ in range(CUT_TRIES):
            frames = self._request(numbers, accept)
            bad = [number for number, frame in frames.items() if self._cut(frame)]
            if not bad:
                return frames
        raise ProtocolError(
            f"{self.url}: frame{'s' * (len(bad) > 1)} {shown(bad)} arrive cut short, {CUT_TRIES} times; either the "
            "server loses bytes, or it stores them so"
        )

    def _request(self, numbers: list[int], accept: str) -> dict[int, EncodedFrame]:
        tail = "/rendered" if self._rendered else ""
        url = f"{self.url}/frames/{','.join(map(str, numbers))}{tail}"
        limit = len(numbers) * (2 * self._frame_bytes + _SLACK) + _SLACK if self._frame_bytes else None
        cache = cache_.frame_cache()
        began = time.perf_counter()
        try:
            return self.service.session.request(
                "GET", url, accept=accept, read=lambda a: read_frames(a, numbers, limit), sending=cache.sent
            )
        finally:
            cache.took(time.perf_counter() - began)


def _number(key: Any) -> int:
    """Return the number of a frame from its key."""
    number: int = key[-1]
    return number


def _related(kind: str, syntax: str) -> str:
    return f'multipart/related; type="{kind}"; transfer-syntax={syntax}'
