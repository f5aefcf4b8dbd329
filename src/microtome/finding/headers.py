"""The headers of many files: read side by side, and kept as the little that finding slides needs of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from microtome.dicom.dataset import lenient
from microtome.dicom.file_frames import FileRecord
from microtome.dicom.header import WHOLE_SLIDE, make_instance
from microtome.dicom.instance import Instance
from microtome.dicom.part10 import read_outline
from microtome.errors import CorruptHeaderError, MicrotomeError, NotASlideError, OpenError
from microtome.storage import FileEntry, display_uri

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from microtome.dicom.instance import Record

__all__ = ["Header", "read_headers", "reason"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What is kept of a file.

    Parameters
    ----------
    uri
        Where it is, in full.
    size
        In bytes.
    instance
        What its header says, without its positions, its palette and its record, which hold the bytes of the header.
    values
        By keyword, the values of the attributes that were asked for, as text.
    """

    uri: str = field(repr=False)
    size: int
    instance: Instance
    values: dict[str, tuple[str, ...]] = field(repr=False)


def read_headers(
    entries: Iterable[FileEntry], keywords: Sequence[str], threads: int
) -> Generator[Header | OpenError | OSError]:
    """Read the headers of files, several at a time; yield in their order what is kept of each, or why it is nothing.

    Parameters
    ----------
    entries
        The files.
    keywords
        The attributes to keep.
    threads
        Files that are read at a time.

    Yields
    ------
    Header
        Of an instance of a slide.
    NotASlideError
        Of another kind of file.
    OpenError, OSError
        Of a file that cannot be read.
    """

    def read(entry: FileEntry) -> Header | OpenError | OSError:
        try:
            return _read(entry, keywords)
        except (OpenError, OSError) as e:
            # Without its traceback, which holds the bytes of the header.
            return e.with_traceback(None)

    yield from _side_by_side(read, entries, threads)


def reason(error: OpenError | OSError, uri: str) -> str:
    """Return what an error says, in the words of this library only: those of others may show how a store is reached."""
    return str(error) if isinstance(error, MicrotomeError) else f"{display_uri(uri)}: {type(error).__name__}"


def _read(entry: FileEntry, keywords: Sequence[str]) -> Header:
    outline = read_outline(entry.source())
    record = FileRecord(outline)
    ds = record.dataset()
    with lenient():
        stated = _states_spacing(ds)
        sop_class = str(ds.get("SOPClassUID") or (WHOLE_SLIDE if outline.preamble else ""))
    if outline.pixel_data is None and outline.truncated and sop_class == WHOLE_SLIDE:
        raise CorruptHeaderError(f"{record.uri}: ends before its pixels begin")
    # Positions of frames may be megabytes: they are read where the spacing stands nowhere else.
    positions: Callable[[int], Any] = (lambda frames: None) if stated else record.positions
    instance = make_instance(ds, record, outline.transfer_syntax, positions)
    if outline.pixel_data is None:
        raise NotASlideError(f"{record.uri}: has no pixel data")
    with lenient():
        values = {keyword: _texts(ds, keyword) for keyword in keywords}
    small = replace(
        instance, positions=None, format=replace(instance.format, palette=None), record=cast("Record", None)
    )
    return Header(entry.uri, entry.size, small, values)


def _states_spacing(ds: Dataset) -> bool:
    try:
        return bool(ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing)
    except Exception:  # pydicom raises whatever the bytes lead it to
        return False


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the values of an attribute as text, names of persons as written in Latin letters; none if damaged."""
    from pydicom.multival import MultiValue
    from pydicom.sequence import Sequence as Items
    from pydicom.valuerep import PersonName

    try:
        value = ds.get(keyword)
        several = list(value) if isinstance(value, MultiValue | list) and not isinstance(value, Items) else [value]
        kept = [v for v in several if v is not None and not isinstance(v, bytes | Items)]
        return tuple(str(v).split("=")[0] if isinstance(v, PersonName) else str(v) for v in kept)
    except Exception:  # see above
        return ()


def _side_by_side(call: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R]:
    """Yield results in order; no more are waiting than keeps the threads at work."""
    executor = ThreadPoolExecutor(threads, thread_name_prefix="microtome-headers")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(call, item))
            if len(waiting) >= 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
