"""Which instances there are, and what is asked of each: its header, its metadata, its frames."""

from __future__ import annotations

import json
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pydicom import config, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial

from microtome.errors import NotASlideError, SlideNotFoundError
from microtome.testing.dicomweb.accept import EXPLICIT
from microtome.testing.dicomweb.dicomjson import to_json, without_binary
from microtome.testing.dicomweb.frames import FrameTable, find_frames

__all__ = ["Archive", "Instance"]

PER_FRAME = 0x52009230
NATIVE = (EXPLICIT, "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
DEFLATED = NATIVE[3]
INFLATED_MOST = 1 << 30
_HIDDEN = {"LABEL", "OVERVIEW", "LOCALIZER"}

# Conversions of pydicom are lazy and warn of odd values through global state: one thread at a time.
_pydicom = threading.RLock()


class Instance:
    """One file.

    Parameters
    ----------
    path
        Of it.

    Raises
    ------
    InvalidDicomError, KeyError
        It is no DICOM file, or lacks a UID.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as f:
            # The functional groups of frames can be large, and only metadata need them.
            self.header = read_partial(f, stop_when=lambda tag, _vr, _length: tag >= PER_FRAME)
            self._at = f.tell()
            self.size = f.seek(0, 2)
        head = self.header
        self.stored_syntax = str(head.file_meta.TransferSyntaxUID)
        self.study, self.series = str(head["StudyInstanceUID"].value), str(head["SeriesInstanceUID"].value)
        self.uid, self.sop_class = str(head["SOPInstanceUID"].value), str(head["SOPClassUID"].value)
        flavour = {str(v) for v in head.get("ImageType", ()) or ()}
        self.associated = bool(flavour & _HIDDEN) or head.get("SpecimenLabelInImage") == "YES"
        self._lock = threading.Lock()
        self._table: FrameTable | None = None
        self._metadata: dict[bool, bytes] = {}

    @property
    def location(self) -> str:
        """Its path below the services."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.uid}"

    @property
    def syntax(self) -> str:
        """Transfer syntax of its frames; everything native is sent as explicit little endian."""
        return EXPLICIT if self.stored_syntax in NATIVE else self.stored_syntax

    @property
    def count(self) -> int:
        """Number of frames."""
        return self.number("NumberOfFrames", 1) or 1

    def number(self, keyword: str, default: int = 0) -> int:
        """A whole number in the header; the default where there is none, or nonsense."""
        value = self.first(keyword)
        return int(value) if isinstance(value, int | float) else default

    def first(self, keyword: str) -> Any:
        """The first value of an attribute in the header, as JSON has it; None where there is none."""
        element = self.summary.get(f"{tag_for_keyword(keyword) or 0:08X}", {})
        return next(iter(element.get("Value", ())), None)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The header without the functional groups of frames, as DICOM JSON."""
        with _quiet():
            return to_json(self.header, f"{self.location}/bulkdata")

    def metadata(self, binary: bool) -> bytes:
        """Everything but the pixels, as DICOM JSON, with or without binary values."""
        with self._lock:
            if binary not in self._metadata:
                found = self.summary
                with _quiet():
                    rest = dcmread(self.path, stop_before_pixels=True) if self._has_groups() else self.header
                    found = found | to_json(rest, f"{self.location}/bulkdata", first=PER_FRAME)
                chosen = found if binary else without_binary(found)
                self._metadata[binary] = json.dumps(chosen, separators=(",", ":")).encode()
            return self._metadata[binary]

    def _has_groups(self) -> bool:
        if self.stored_syntax == DEFLATED:
            return True
        with self.path.open("rb") as f:
            f.seek(self._at)
            return f.read(4) in (b"\x00\x52\x30\x92", b"\x52\x00\x92\x30")

    @property
    def table(self) -> FrameTable:
        """Where its frames lie; found on first use."""
        with self._lock:
            if self._table is None:
                inflated, at = (self._inflate(), 0) if self.stored_syntax == DEFLATED else (None, self._at)
                allocated = self.number("BitsAllocated", 8)
                samples = self.number("Rows") * self.number("Columns") * self.number("SamplesPerPixel", 1)
                if self.first("PhotometricInterpretation") == "YBR_FULL_422" and self.syntax == EXPLICIT:
                    samples = samples // 3 * 2
                self._table = find_frames(
                    self.path, at, self.stored_syntax, self.count, samples * allocated, allocated // 8, inflated
                )
            return self._table

    def _inflate(self) -> bytes:
        """The data set of a deflated file: it has no random access."""
        meta = 128 + 4 + 12 + int(self.header.file_meta.FileMetaInformationGroupLength)
        return zlib.decompressobj(-15).decompress(self.path.read_bytes()[meta:], INFLATED_MOST)


class _quiet:  # noqa: N801 (reads as a statement)
    """One thread at a time in pydicom, which says nothing of odd values meanwhile."""

    def __enter__(self) -> None:
        _pydicom.acquire()
        self._mode = config.settings.reading_validation_mode
        config.settings.reading_validation_mode = config.IGNORE

    def __exit__(self, *_: object) -> None:
        config.settings.reading_validation_mode = self._mode
        _pydicom.release()


class Archive:
    """All instances of some files and folders.

    Parameters
    ----------
    sources
        Files, and folders with everything below them; hidden files are left out.
    associated
        Whether labels and overviews are shown: they carry names.

    Raises
    ------
    SlideNotFoundError
        A source is not there.
    NotASlideError
        No source holds a DICOM instance.
    """

    def __init__(self, sources: Iterable[Path], associated: bool) -> None:
        self._sources = [Path(s) for s in sources]
        self._associated = associated
        self._lock = threading.Lock()
        self._by_uid: dict[tuple[str, str, str], Instance] = {}
        self.hidden = 0
        self.ignored: list[Path] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pydicom says of broken files
            for file in self._files():
                self._read(file)
        if not self._by_uid and not self.hidden and not any(s.is_dir() for s in self._sources):
            raise NotASlideError(
                f"{', '.join(map(str, self._sources))}: not a DICOM file; give files or folders of them"
            )

    @property
    def folder(self) -> Path | None:
        """The first source that is a folder: where new instances go."""
        return next((s for s in self._sources if s.is_dir()), None)

    def _files(self) -> Iterator[Path]:
        for source in self._sources:
            if not source.exists():
                raise SlideNotFoundError(f"{source}: there is no such file or folder")
            if source.is_file():
                yield source
            else:
                found = (p for p in sorted(source.rglob("*")) if p.is_file())
                yield from (p for p in found if not any(s.startswith(".") for s in p.relative_to(source).parts))

    def _read(self, file: Path) -> None:
        try:
            instance = self.open(file)
        except (InvalidDicomError, KeyError, AttributeError, ValueError, OSError, EOFError, TypeError):
            self.ignored.append(file)
            return
        self.add(instance)

    def open(self, file: Path) -> Instance:
        """Read the header of a file."""
        with _quiet():
            return Instance(file)

    def add(self, instance: Instance) -> None:
        """Take an instance in; the first file of a UID counts."""
        with self._lock:
            if instance.associated and not self._associated:
                self.hidden += 1
                return
            self._by_uid.setdefault((instance.study, instance.series, instance.uid), instance)

    def instances(self, study: str | None = None, series: str | None = None, uid: str | None = None) -> list[Instance]:
        """Those under the given UIDs."""
        with self._lock:
            return [
                i
                for (a, b, c), i in self._by_uid.items()
                if study in (None, a) and series in (None, b) and uid in (None, c)
            ]

    def knows(self, uid: str) -> bool:
        """Whether an instance has this UID of its own, of its series, or of its study."""
        with self._lock:
            return any(uid in uids for uids in self._by_uid)

    def one(self, study: str, series: str, uid: str) -> Instance | None:
        """The instance of these UIDs."""
        with self._lock:
            return self._by_uid.get((study, series, uid))
