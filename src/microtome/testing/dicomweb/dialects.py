"""How servers differ: one value for each server that is imitated."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import OptionError

__all__ = ["DIALECTS", "Dialect", "dialect_named"]


@dataclass(frozen=True)
class Dialect:
    """What one kind of server does, and does not do.

    Parameters
    ----------
    name
        Its name.
    root
        Path under which the services are, unless told otherwise.
    accepts
        How Accept is understood for frames and instances: "standard" (PS3.18), "orthanc", or "ignored", where a frame
        comes as a single part.
    lists
        Whether several frames may be asked for at once.
    single_instance
        Whether an instance is also given as a plain application/dicom.
    echoes_octets
        Whether a part that was asked for as application/octet-stream says so, rather than image/jpeg and the like.
    outer_syntax
        Whether the Content-Type of a multipart body states the transfer syntax, too.
    content_location, part_lengths
        Headers of each part.
    quoted_boundary
        Whether the boundary stands in quotes.
    missing_frame
        Status for a frame number that is too large.
    empty
        Status of a search that finds nothing.
    available_syntax, stored_syntax
        Whether searches for instances tell (0008,3002), and (0002,0010).
    refused_fields, refused_filters
        Tag to the words of the 400 that it gets, as includefield or as a filter.
    include_fields, include_all
        Whether includefield is honoured, and its value ``all``.
    warns
        Whether a page that leaves results out says so.
    series_metadata
        Whether there is metadata of whole series and studies.
    binary
        Whether metadata hold small binary values and the URIs of large ones.
    bulk_multipart
        Whether bulk data come as multipart/related always.
    host_urls
        Whether URLs in answers are made from the Host header.
    gzip, keep_alive, ranges, head
        What of HTTP it can do.
    idle
        Seconds after which an idle connection is closed.
    longest_url
        In bytes.
    """

    name: str
    root: str = "/dicomWeb"
    accepts: str = "standard"
    lists: bool = True
    single_instance: bool = True
    echoes_octets: bool = True
    outer_syntax: bool = False
    content_location: bool = True
    part_lengths: bool = True
    quoted_boundary: bool = True
    missing_frame: int = 404
    empty: int = 204
    available_syntax: bool = True
    stored_syntax: bool = False
    refused_fields: tuple[tuple[str, str], ...] = ()
    refused_filters: tuple[tuple[str, str], ...] = ()
    include_fields: bool = True
    include_all: bool = True
    warns: bool = True
    series_metadata: bool = True
    binary: bool = True
    bulk_multipart: bool = False
    host_urls: bool = False
    gzip: bool = True
    keep_alive: bool = True
    ranges: bool = True
    head: bool = True
    idle: float = 60.0
    longest_url: int = 32 << 10


DIALECTS = {
    d.name: d
    for d in (
        Dialect("standard"),
        Dialect(
            "google",
            root="/v1/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb",
            echoes_octets=False,
            outer_syntax=True,
            content_location=False,
            part_lengths=False,
            missing_frame=400,
            available_syntax=False,
            stored_syntax=True,
            # wsidicom knows both errors by these words.
            refused_fields=(("00083002", "unknown/unsupported QIDO attribute: AvailableTransferSyntaxUID"),),
            refused_filters=(("00080016", "SOPClassUID is not a supported instance level attribute"),),
            binary=False,
        ),
        Dialect(
            "minimal",
            accepts="ignored",
            lists=False,
            content_location=False,
            empty=200,
            available_syntax=False,
            include_fields=False,
            warns=False,
            series_metadata=False,
            gzip=False,
            keep_alive=False,
            ranges=False,
        ),
        Dialect(
            "orthanc",
            accepts="orthanc",
            single_instance=False,
            echoes_octets=False,
            content_location=False,
            part_lengths=False,
            quoted_boundary=False,
            missing_frame=400,
            empty=200,
            available_syntax=False,
            include_all=False,
            warns=False,
            bulk_multipart=True,
            host_urls=True,
            ranges=False,
            head=False,
            idle=1.0,
            longest_url=16 << 10,
        ),
    )
}
"""Name to dialect."""


def dialect_named(name: str) -> Dialect:
    """Look a dialect up."""
    if name not in DIALECTS:
        raise OptionError(f"dialect {name!r} is none of {', '.join(DIALECTS)}")
    return DIALECTS[name]
