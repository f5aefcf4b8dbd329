"""Where bytes come from. Knows URIs, ranges and files; knows nothing of DICOM."""

from microtome.storage.listing import FileEntry, Target, list_files
from microtome.storage.remote import FsspecSource
from microtome.storage.source import BytesSource, LocalSource, Source
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
