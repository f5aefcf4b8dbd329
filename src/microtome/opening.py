"""`open_slide`: from a URI to a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from microtome.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr

    from microtome.dicom.web_instances import Metadata
    from microtome.lazy.recipe import Recipe
    from microtome.storage import Target
    from microtome.storage.credentials import Credentials

__all__ = ["check_chunks", "open_slide", "open_tree"]


def open_slide(
    uri: Target,
    *,
    series: str | None = None,
    chunks: Literal["auto"] | Mapping[str, int] | None = "auto",
    storage_options: Mapping[str, Any] | None = None,
    frame_order: Literal["row", "column"] | None = None,
    missing: Literal["raise", "fill"] = "raise",
    fill: float | Sequence[float] | None = None,
    alignment: Literal["spacing", "extent"] = "spacing",
    prefer: str | Sequence[str] = (),
    credentials: Credentials | Callable[[], Mapping[str, str]] | None = None,
    metadata: Metadata | None = None,
    read_ahead: Literal["none", "requests", "latency"] = "none",
    rendered: bool = False,
) -> xr.DataTree:
    """Open a whole-slide image; no pixel is read.

    Parameters
    ----------
    uri
        A folder of DICOM instances (to any depth), one file, a list of files, a glob, or any of these as a URL that
        fsspec knows. Or the URL of a study, series or instance on a DICOMweb server:
        ``https://host/dicomWeb/studies/1.2/series/3.4``, also as ``dicomweb+https://...`` or as the path of a DICOM
        store of the Google Cloud Healthcare API.
    series
        Series Instance UID or Pyramid UID of the slide, where there are several.
    chunks
        ``"auto"``: Dask arrays in blocks of whole frames, of some 16 MB and at most 10,000 a level. A mapping such as
        ``{"y": 1024, "x": 1024}``: Dask arrays in these, ``{}`` for one block a frame. None: xarray's own lazy arrays,
        which read in the thread that asks.
    storage_options
        For the fsspec filesystem of a URL. Of a DICOMweb server: ``allow_hosts``, names of other hosts that redirects
        and bulk data may lead to; they are never sent credentials.
    frame_order
        For files that do not state where their frames lie: whether they follow the ``"row"`` s of tiles, as DICOM
        orders them, or the ``"column"`` s.
    missing
        What reading a frame does that should be there and is not (a lost part, a cut file).
    fill
        Value of pixels that no frame covers, one or one a channel. Default: the file's Recommended Absent Pixel Value,
        else white for transmitted light, else 0.
    alignment
        Where levels state a spacing that contradicts their extent: believe the ``"spacing"``, or the ``"extent"``.
    prefer
        SOP Instance UIDs to choose where several instances show the same pixels.
    credentials
        For a DICOMweb server: what a function of `microtome.credentials` returns, or any function that returns headers.
        Default: none.
    metadata
        For a DICOMweb server: DICOM JSON of the slide (text, a file, or its objects), as ``slide.wsi.to_json()``
        returns it. The slide is then opened without a request.
    read_ahead
        For a DICOMweb server: what is fetched into the frame cache besides the frames under a selection. ``"none"``;
        ``"requests"``: the block of tiles around them, in the same request, for the fewest requests; ``"latency"``:
        the same in the background, so that nothing waits for it.
    rendered
        For a DICOMweb server that does not give its frames away: show pictures that it renders from them, JPEG of 8
        bits. They are not the stored pixels.

    Returns
    -------
    xarray.DataTree
        ``/level0`` (the finest), ``/level1``, ... each with a variable ``image`` of dimensions ``([z,] [path,] y, x,
        c)`` and coordinates ``y`` and ``x``, pixel centres in mm; ``/associated/label``, ``overview``, ``thumbnail``.

    Raises
    ------
    OpenError
        The slide cannot be opened: `NotASlideError`, `SlideNotFoundError`, `AmbiguousSlideError`,
        `CorruptHeaderError`.
    RequestError
        A server cannot be reached, or refuses: `AuthenticationError`, `ProtocolError`.
    OptionError
        An argument has no meaning here.
    """
    from microtome.lazy.recipe import Recipe

    check_chunks(chunks)
    recipe = Recipe.make(
        uri, storage_options, series=series, frame_order=frame_order, missing=missing, fill=fill, alignment=alignment,
        prefer=prefer, credentials=credentials, metadata=metadata, read_ahead=read_ahead, rendered=rendered,
    )  # fmt: skip
    return open_tree(recipe, chunks)


def check_chunks(chunks: Any) -> None:
    """Refuse what `open_slide` does not take as chunks.

    Raises
    ------
    OptionError
        It is nothing of that.
    """
    if not (chunks is None or chunks == "auto" or isinstance(chunks, Mapping)):
        raise OptionError(f"chunks={chunks!r}: it is 'auto', None, or a mapping of dimensions to sizes")


def open_tree(recipe: Recipe, chunks: Literal["auto"] | Mapping[str, int] | None) -> xr.DataTree:
    """Open the slide of a recipe; see `open_slide`."""
    import xarray as xr

    from microtome.lazy.datasets import chunk
    from microtome.lazy.engine import groups
    from microtome.lazy.recipe import open_recipe

    found = groups(open_recipe(recipe))
    if chunks is not None:
        asked = None if chunks == "auto" else chunks
        for path in [p for p in found if p != "/"]:
            found[path] = chunk(found[path], asked)
    return xr.DataTree.from_dict(found)
