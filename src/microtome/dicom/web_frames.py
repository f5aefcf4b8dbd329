"""Instances on a DICOMweb server: their metadata, and their frames, as the server sends them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from microtome import config
from microtome.dicom.dataset import parse_dataset
from microtome.dicom.decoding import FrameDecoder
from microtome.dicom.decoding.jpeg_header import ends_with_marker
from microtome.dicom.decoding.streams import stream_syntax
from microtome.dicom.file_frames import with_positions
from microtome.dicom.functional_groups import FramePositions
from microtome.dicom.instance import Instance, Read
from microtome.dicom.json_dataset import dataset_from_json
from microtome.dicom.part10 import read_outline
from microtome.errors import UnsupportedCodecError
from microtome.model import FrameFormat
from microtome.storage.cache import EncodedFrame
from microtome.storage.dicomweb.address import Address
from microtome.storage.dicomweb.frames import InstanceFrames, ReadAhead
from microtome.storage.dicomweb.service import Service

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["WebFrames", "WebOptions", "WebRecord"]

_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
# What is native on a disk comes little endian and inflated, whatever it was there (PS3.18 8.7.3.4).
_NATIVE = ("1.2.840.10008.1.2", _EXPLICIT_LITTLE, "1.2.840.10008.1.2.1.99")
_PIXEL_DATA = 0x7FE00010
_JPEG_FAMILY = (b"\xff\xd8", b"\xff\x4f")


@dataclass(frozen=True, slots=True)
class WebOptions:
    """How frames are fetched; see `microtome.open_slide`."""

    read_ahead: ReadAhead = "none"
    rendered: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class WebRecord:
    """An instance on a server.

    Parameters
    ----------
    service, address
        Where it is.
    attributes
        Its metadata as DICOM JSON, without per-frame groups.
    positions
        What the per-frame groups say.
    transfer_syntax
        As the server states it; empty where it does not.
    options
        How its frames are fetched.
    """

    service: Service
    address: Address
    attributes: dict[str, Any] = field(repr=False)
    positions: FramePositions | None
    transfer_syntax: str
    options: WebOptions

    @property
    def uri(self) -> str:
        """URL of the instance."""
        return self.address.url

    def dataset(self, bulk: Collection[str] = ()) -> Dataset:
        """Return the metadata; bulk data are fetched for the keywords in ``bulk`` only.

        Some servers leave binary attributes out of their metadata altogether. ICC profiles and palettes are then looked
        for in the header of the instance itself, of which no more is fetched than that.
        """
        base = f"{self.uri}/metadata"
        ds = dataset_from_json(self.attributes, self.uri, lambda uri: self.service.bulk(uri, base), bulk)
        ds.pop(_PIXEL_DATA, None)  # of native pixels, servers state where they are as bulk data
        if ("ICCProfile" in bulk and _lacks_profile(ds)) or (
            "RedPaletteColorLookupTableData" in bulk and _lacks_palette(ds)
        ):
            return self.service.instance(self.address.path, self._header)
        return ds

    def _header(self, chunks: Iterator[bytes]) -> Dataset:
        return parse_dataset(read_outline(_StreamSource(chunks, self.uri)))

    def json(self) -> dict[str, Any]:
        """Return the metadata as DICOM JSON, with positions and transfer syntax."""
        return with_positions(self.attributes, self.transfer_syntax, self.positions)

    def frames(self, instance: Instance) -> WebFrames:
        """Return what fetches the frames."""
        return WebFrames(instance, self)


def _lacks_profile(ds: Dataset) -> bool:
    holders = (ds, *(ds.get("OpticalPathSequence") or ()))
    return ds.get("SamplesPerPixel") == 3 and not any("ICCProfile" in holder for holder in holders)


def _lacks_palette(ds: Dataset) -> bool:
    return not any(f"{kind}PaletteColorLookupTableData" in ds for kind in ("Red", "SegmentedRed"))


class _StreamSource:
    """The beginning of a file that is still arriving, as far as it is asked for."""

    remote = False
    identity = ""
    key: Hashable = ()

    def __init__(self, chunks: Iterator[bytes], uri: str) -> None:
        self.uri = uri
        self.size = 1 << 62  # unknown; reads behind the end are short
        self._chunks = chunks
        self._data = bytearray()

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where the file ends first."""
        limit = config.get().inflate_bytes
        while len(self._data) < min(offset + length, limit):
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._data += chunk
        return bytes(self._data[offset : offset + length])

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (offset, length)."""
        return [self.read(offset, length) for offset, length in ranges]


class WebFrames:
    """The frames of an instance on a server, through the frame cache."""

    remote = True
    lists = True
    frame_bytes = 0

    def __init__(self, instance: Instance, record: WebRecord) -> None:
        self.uri = record.uri
        self._format = instance.format
        self._rendered = record.options.rendered
        across = -(-instance.columns // instance.tile_columns) if instance.organization == "TILED_FULL" else 0
        self._decodable: dict[str, bool] = {}
        self._frames = InstanceFrames(
            record.service,
            record.address.path,
            transfer_syntax=record.transfer_syntax,
            frames=instance.frames,
            across=across,
            frame_bytes=(self._format.native_bits + 7) // 8,
            cut=self._is_cut,
            decodes=self._decodes,
            recognize=self._syntax,
            read_ahead=record.options.read_ahead,
            rendered=self._rendered,
        )

    def payloads(self, frames: list[int], once: bool = False) -> tuple[list[bytes | memoryview | None], list[str]]:
        """Return the bytes of each frame, None for one that the server does not have, and how each is encoded."""
        got = self._frames.get([frame + 1 for frame in frames])
        payloads: list[bytes | memoryview | None] = []
        syntaxes: list[str] = []
        for frame in frames:
            found = got.get(frame + 1)
            payloads.append(None if found is None else found.data)
            syntaxes.append("" if found is None else self._syntax(found))
        return payloads, syntaxes

    def bit_offset(self, frame: int) -> int:
        """Return 0: each frame comes for itself."""
        return 0

    def reads(self, frames: list[int]) -> list[Read]:
        """Return the request that frames of a unit take; none if they are in the cache."""
        missing = self._frames.missing([frame + 1 for frame in frames])
        size = self._frames.frames_per_request
        lists = [missing[i : i + size] for i in range(0, len(missing), size)]
        return [Read(f"{self.uri}/frames/{','.join(map(str, numbers))}", 0, None) for numbers in lists]

    def prefetch(self, frames: list[int]) -> int:
        """Fetch frames into the frame cache; return how many were not there."""
        return self._frames.prefetch([frame + 1 for frame in frames])

    def discard(self, frames: list[int]) -> None:
        """Forget frames that turned out not to decode: they may come whole the next time."""
        self._frames.discard([frame + 1 for frame in frames])

    def _decodes(self, syntax: str) -> bool:
        if syntax not in self._decodable:
            try:
                FrameDecoder(replace(self._format, transfer_syntax=syntax))
                self._decodable[syntax] = True
            except UnsupportedCodecError:
                self._decodable[syntax] = False
        return self._decodable[syntax]

    def _syntax(self, frame: EncodedFrame) -> str:
        """Return the transfer syntax of a frame: as its part states it, else as metadata do, if its bytes agree."""
        stated, stored = frame.transfer_syntax, self._format.transfer_syntax
        if stated and stated not in _NATIVE:
            return stated
        if _has_native_size(frame.data, self._format) and (stated or stored in _NATIVE or not _is_jpeg(frame.data)):
            return _EXPLICIT_LITTLE
        if stated or stored in _NATIVE:
            # A server that cannot decode a frame may send it as it is, and say that it is decoded.
            stream = stream_syntax(frame.data)
            return (stored if stream and stored and stored not in _NATIVE else stream) or _EXPLICIT_LITTLE
        return stored

    def _is_cut(self, frame: EncodedFrame) -> bool:
        """Tell whether bytes are only a part of a frame: JPEG streams of every kind end with a marker."""
        data = frame.data
        if not self._rendered and self._syntax(frame) == _EXPLICIT_LITTLE:
            return len(data) < (self._format.native_bits + 7) // 8
        if data.startswith(_JPEG_FAMILY):
            return not ends_with_marker(data, 2)
        return not data


def _has_native_size(data: bytes, fmt: FrameFormat) -> bool:
    size = (fmt.native_bits + 7) // 8
    return len(data) in (size, size + size % 2)


def _is_jpeg(data: bytes) -> bool:
    """Tell whether bytes begin and end like a codestream; pixels begin so, too, where they are bright and pink."""
    return data.startswith(_JPEG_FAMILY) and data[-16:].rstrip(b"\0\xff").endswith(b"\xff\xd9")
