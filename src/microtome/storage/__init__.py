"""Where bytes come from. Knows URIs, ranges and files; knows nothing of DICOM."""

from microtome.storage.listing import FileEntry, Target, list_files
from microtome.storage.source import BytesSource, FsspecSource, LocalSource, Source
from microtome.storage.uri import display_uri

__all__ = [
    "BytesSource",
    "FileEntry",
    "FsspecSource",
    "LocalSource",
    "Source",
    "Target",
    "display_uri",
    "list_files",
]
