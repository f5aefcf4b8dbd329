"""From metadata to an `Instance`: which attribute is believed, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from microtome.dicom.dataset import lenient
from microtome.dicom.file_frames import FileRecord
from microtome.dicom.functional_groups import FramePositions
from microtome.dicom.instance import Concatenation, Instance, Record
from microtome.dicom.part10 import read_outline
from microtome.errors import CorruptHeaderError, NotASlideError
from microtome.model import FrameFormat, OpticalPath, PixelSpacing
from microtome.storage import Source
from microtome.storage.reading_ahead import ReadingAhead

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["make_instance", "read_instance"]

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
MAX_SIDE = 1 << 22
"""Pixels along a side: four million are 75 mm at 0.02 µm a pixel, more than any slide has."""

# CID 8123 Microscopy Illumination Method: does light pass through the slide?
_TRANSMITTED = {"111741": True, "111744": True, "111745": True, "111742": False, "111743": False}


def read_instance(source: Source) -> Instance:
    """Read the header of one file of a whole-slide image.

    Raises
    ------
    NotASlideError
        Not DICOM, another kind of object, or one without pixels; the message says what it is.
    CorruptHeaderError
        Attributes that pixels cannot do without are missing or contradict each other.
    """
    ahead = ReadingAhead(source) if source.remote else None
    outline = read_outline(ahead or source)
    record = FileRecord(outline)
    pixel_data = outline.pixel_data
    lacks = "" if pixel_data else "ends before its pixels begin" if outline.truncated else "has no pixel data"
    swapped = outline.encoding.big_endian and pixel_data is not None and pixel_data.vr == b"OW"
    syntax = outline.transfer_syntax
    instance = make_instance(record.dataset(), record, syntax, record.positions, lacks=lacks, swapped_words=swapped)
    if ahead is not None:
        if pixel_data is not None:
            ahead.read(pixel_data.offset, 8)  # says whether an offset table follows, and may lie behind what was read
        ahead.keep(*outline.tables(instance.frames))
    return instance


def make_instance(
    ds: Dataset,
    record: Record,
    transfer_syntax: str,
    positions: Callable[[int], FramePositions | None],
    *,
    lacks: str = "",
    swapped_words: bool = False,
) -> Instance:
    """Make an instance of metadata, wherever they come from.

    Parameters
    ----------
    ds
        The metadata, without per-frame groups.
    record
        Where they come from.
    transfer_syntax
        Empty where it is not known yet.
    positions
        Returns the positions of as many frames as it is told.
    lacks
        Why it has no pixels; empty where it has.
    swapped_words
        Whether pixel data are big endian words.

    Raises
    ------
    NotASlideError
        They are of another kind of object.
    CorruptHeaderError
        Attributes that pixels cannot do without are missing or contradict each other.
    """
    with lenient():
        try:
            return _Reader(ds, record.uri).instance(record, transfer_syntax, positions, lacks, swapped_words)
        except (CorruptHeaderError, NotASlideError):
            raise
        except Exception as e:
            raise CorruptHeaderError(f"{record.uri}: its header is damaged ({type(e).__name__}: {e})") from e


def _is_slide(ds: Dataset) -> bool:
    """Tell whether a data set is of a whole-slide image; one without SOP Class is, if it has a total pixel matrix."""
    sop_class = str(ds.get("SOPClassUID") or "")
    return sop_class == WHOLE_SLIDE or (not sop_class and "TotalPixelMatrixRows" in ds)


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if not isinstance(value, str | bytes) and hasattr(value, "__iter__") else [value]


def _number(value: Any) -> float | None:
    values = _values(value)
    try:
        number = float(values[0]) if values else None
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    numbers = [_number(v) for v in _values(value)]
    if len(numbers) != count or any(n is None for n in numbers):
        return None
    return tuple(n for n in numbers if n is not None)


def _item(ds: Dataset | None, keyword: str) -> Dataset | None:
    """Return the first item of a sequence, or None."""
    items = ds.get(keyword) if ds is not None else None
    try:
        return items[0] if items else None
    except (TypeError, IndexError, KeyError):
        return None


class _Reader:
    """Reads one data set; its methods share the data set and the name of the file."""

    def __init__(self, ds: Dataset, uri: str) -> None:
        self.ds = ds
        self.uri = uri

    def instance(
        self,
        record: Record,
        transfer_syntax: str,
        positions_of: Callable[[int], FramePositions | None],
        lacks: str,
        swapped_words: bool,
    ) -> Instance:
        ds = self.ds
        if not _is_slide(ds):
            from pydicom.uid import UID

            sop_class = str(ds.get("SOPClassUID") or "")
            kind = UID(sop_class).name if sop_class else "an object without SOP Class"
            raise NotASlideError(f"{self.uri}: holds {kind}, not a VL Whole Slide Microscopy Image")
        if lacks:
            raise NotASlideError(f"{self.uri}: {lacks}")
        frames = self.integer("NumberOfFrames", default=1) or 1
        fmt = self.format(transfer_syntax, swapped_words)
        image_type = tuple(str(v).upper() for v in _values(ds.get("ImageType")))
        rows, columns = self.matrix(fmt, frames)
        positions = positions_of(frames)
        shared = _item(ds, "SharedFunctionalGroupsSequence")
        measures = _item(shared, "PixelMeasuresSequence")
        origin = _item(ds, "TotalPixelMatrixOriginSequence")
        plane_position = _item(shared, "PlanePositionSlideSequence")
        xy = (
            (
                _number(origin.get("XOffsetInSlideCoordinateSystem")),
                _number(origin.get("YOffsetInSlideCoordinateSystem")),
            )
            if origin
            else (None, None)
        )
        z_holder = plane_position or origin
        return Instance(
            uri=self.uri,
            sop_instance_uid=str(ds.get("SOPInstanceUID") or ""),
            study_uid=str(ds.get("StudyInstanceUID") or ""),
            series_uid=str(ds.get("SeriesInstanceUID") or ""),
            pyramid_uid=str(ds.get("PyramidUID") or ""),
            image_type=image_type,
            flavor=_flavor(image_type),
            rows=rows,
            columns=columns,
            frames=frames,
            format=fmt,
            focal_planes=self.integer("TotalPixelMatrixFocalPlanes", default=0) or None,
            plane_spacing=_number(measures.get("SpacingBetweenSlices")) if measures else None,
            z_offset=_number(z_holder.get("ZOffsetInSlideCoordinateSystem")) if z_holder else None,
            paths=self.paths(shared),
            extended_depth_of_field=str(ds.get("ExtendedDepthOfField") or "").strip().upper() == "YES",
            organization=str(ds.get("DimensionOrganizationType") or "").strip().upper(),
            positions=positions,
            concatenation=self.concatenation(),
            spacing=self.spacing(measures, positions, rows, columns),
            origin=(xy[0], xy[1]) if xy[0] is not None and xy[1] is not None else None,
            orientation=_numbers(ds.get("ImageOrientationSlide"), 6),
            absent_lab=self.absent_lab(),
            record=record,
        )

    def integer(self, keyword: str, default: int | None = None) -> int:
        """Return a count that must not be negative; without a default it must be stated and positive."""
        value = self.ds.get(keyword)
        number = _number(value)
        if number is None and (value is None or value == "") and default is not None:
            return default
        if number is None or number != int(number) or number < (1 if default is None else 0):
            raise CorruptHeaderError(f"{self.uri}: {keyword} is {value!r}, where a positive whole number is needed")
        return int(number)

    def format(self, transfer_syntax: str, swapped_words: bool) -> FrameFormat:
        """Return how the frames decode (PS3.3 C.7.6.3)."""
        ds = self.ds
        samples = self.integer("SamplesPerPixel", default=1) or 1
        allocated = self.integer("BitsAllocated")
        stored = self.integer("BitsStored", default=allocated) or allocated
        if samples not in (1, 3) or allocated not in (1, 8, 16, 32) or stored > allocated:
            raise CorruptHeaderError(
                f"{self.uri}: {samples} samples a pixel of {stored} bits in {allocated} are stated; "
                "1 or 3 samples of 1, 8, 16 or 32 bits can be read"
            )
        stated = str(ds.get("PhotometricInterpretation") or ("RGB" if samples == 3 else "MONOCHROME2"))
        photometric = stated.strip().upper()
        return FrameFormat(
            transfer_syntax=transfer_syntax,
            rows=self.integer("Rows"),
            columns=self.integer("Columns"),
            samples=samples,
            photometric=photometric,
            bits_allocated=allocated,
            bits_stored=stored,
            signed=self.integer("PixelRepresentation", default=0) == 1,
            planar=self.integer("PlanarConfiguration", default=0),
            byte_swapped=swapped_words and allocated == 8,
            palette=_palette(ds, self.uri) if photometric == "PALETTE COLOR" else None,
        )

    def matrix(self, fmt: FrameFormat, frames: int) -> tuple[int, int]:
        """Return rows and columns of the total pixel matrix; a single frame without one is its own."""
        if "TotalPixelMatrixRows" not in self.ds and frames == 1:
            return fmt.rows, fmt.columns
        rows, columns = self.integer("TotalPixelMatrixRows"), self.integer("TotalPixelMatrixColumns")
        if max(rows, columns) > MAX_SIDE:
            raise CorruptHeaderError(
                f"{self.uri}: a total pixel matrix of {rows} x {columns} is stated; no slide has over {MAX_SIDE} a side"
            )
        return rows, columns

    def paths(self, shared: Dataset | None) -> tuple[OpticalPath, ...]:
        """Return the optical paths; where the shared groups name one of several, that one alone."""
        paths = tuple(self.path(item) for item in self.ds.get("OpticalPathSequence") or ())
        only = _item(shared, "OpticalPathIdentificationSequence")
        if only is not None and len(paths) > 1:
            identifier = str(only.get("OpticalPathIdentifier") or "").strip()
            named = tuple(p for p in paths if p.identifier == identifier)
            return named or paths
        return paths

    def path(self, item: Dataset) -> OpticalPath:
        code = _item(item, "IlluminationTypeCodeSequence")
        return OpticalPath(
            identifier=str(item.get("OpticalPathIdentifier") or "").strip(),
            description=str(item.get("OpticalPathDescription") or "").strip(),
            wavelength=_number(item.get("IlluminationWaveLength")) or None,
            illumination=str(code.get("CodeMeaning") or "").strip() if code else "",
            transmitted=_TRANSMITTED.get(str(code.get("CodeValue") or "").strip()) if code else None,
        )

    def concatenation(self) -> Concatenation | None:
        uid = str(self.ds.get("ConcatenationUID") or "")
        if not uid:
            return None
        total = self.integer("InConcatenationTotalNumber", default=0)
        return Concatenation(
            uid,
            self.integer("ConcatenationFrameOffsetNumber", 0),
            self.integer("InConcatenationNumber", 0),
            total or None,
        )

    def spacing(
        self, measures: Dataset | None, positions: FramePositions | None, rows: int, columns: int
    ) -> PixelSpacing | None:
        """Return the pixel spacing from the first place that states one that can be true."""
        volume = (_number(self.ds.get("ImagedVolumeHeight")), _number(self.ds.get("ImagedVolumeWidth")))
        candidates = (
            _numbers(measures.get("PixelSpacing"), 2) if measures else None,
            positions.spacing if positions else None,
            (volume[0] / rows, volume[1] / columns) if volume[0] and volume[1] else None,
            _numbers(self.ds.get("PixelSpacing"), 2),
        )
        for pair in candidates:
            if pair is not None and all(math.isfinite(v) and v > 0 for v in pair):
                return PixelSpacing(pair[0], pair[1])
        return None

    def absent_lab(self) -> tuple[int, int, int] | None:
        values = _numbers(self.ds.get("RecommendedAbsentPixelCIELabValue"), 3)
        return (int(values[0]), int(values[1]), int(values[2])) if values else None


def _flavor(image_type: tuple[str, ...]) -> str:
    """Return VOLUME, LABEL, OVERVIEW, THUMBNAIL, or the word that stands in the place of these."""
    for word in ("LABEL", "OVERVIEW", "THUMBNAIL", "VOLUME"):
        if word in image_type:
            return word
    if "LOCALIZER" in image_type:  # the overview's name before Supplement 145 was final
        return "OVERVIEW"
    return image_type[2] if len(image_type) > 2 and image_type[2] else "VOLUME"


def _palette(ds: Dataset, uri: str) -> tuple[npt.NDArray[Any], int]:
    """Return the (n, 3) colour table and the stored value of its first row (PS3.3 C.7.6.3.1.5)."""
    from pydicom.pixels.processing import apply_color_lut

    descriptor = _numbers(ds.get("RedPaletteColorLookupTableDescriptor"), 3)
    if descriptor is None:
        raise CorruptHeaderError(f"{uri}: PALETTE COLOR is stated, and there is no palette")
    entries = int(descriptor[0]) or 1 << 16
    first = int(descriptor[1])
    if not 0 < entries <= 1 << 16:
        raise CorruptHeaderError(f"{uri}: its palette claims {entries} entries; 65536 are the most")
    try:
        # Looking up every index in turn returns the table, segments expanded.
        table = apply_color_lut(np.arange(first, first + entries), ds)
    except Exception as e:
        raise CorruptHeaderError(f"{uri}: its palette is damaged ({e})") from e
    return np.ascontiguousarray(table), first
