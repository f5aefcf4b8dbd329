"""Frames decoded: little endian bytes, and pictures for people."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from microtome.testing.dicomweb.accept import EXPLICIT
from microtome.testing.dicomweb.message import Refusal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from microtome.testing.dicomweb.archive import Instance

__all__ = ["decoded", "rendered"]

ENCAPSULATED_NATIVE, DEFLATED_FRAME = "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"
_NEEDED = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration",
)  # fmt: skip


def _array(instance: Instance, frame: bytes) -> npt.NDArray[Any]:
    """One frame (rows, columns[, samples]), colours as RGB."""
    ds = Dataset()
    for keyword in _NEEDED:
        if (value := instance.first(keyword)) is not None:
            setattr(ds, keyword, value)
    if "Rows" not in ds or "Columns" not in ds or "BitsAllocated" not in ds:
        raise Refusal(500, "the stored instance does not state the size of its frames")
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(instance.syntax)
    if instance.syntax == DEFLATED_FRAME:
        frame = zlib.decompressobj(-15).decompress(frame, ds.Rows * ds.Columns * 16)
    if instance.syntax in (DEFLATED_FRAME, ENCAPSULATED_NATIVE):
        ds.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    native = ds.file_meta.TransferSyntaxUID == EXPLICIT
    ds.PixelData = frame + b"\0" * (len(frame) % 2) if native else encapsulate([frame])
    ds["PixelData"].VR = "OB" if ds.BitsAllocated <= 8 else "OW"
    try:
        from pydicom.pixels.utils import pixel_array

        return pixel_array(ds)
    except Exception as e:  # decoders raise anything; what they cannot do is not acceptable
        words = f"frames with transfer syntax {instance.syntax} cannot be decoded here ({type(e).__name__})"
        raise Refusal(406, words) from e


def decoded(instance: Instance, frame: bytes) -> bytes:
    """The pixels of a frame as explicit little endian; colours as RGB, whatever the metadata say of the stored ones."""
    array = _array(instance, frame)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def rendered(instance: Instance, frame: bytes, media: str) -> bytes:
    """A frame as a picture of 8 bits."""
    from PIL import Image

    array = _array(instance, frame)
    photometric = instance.first("PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        raise Refusal(406, "pictures with a palette are not rendered here")
    picture = _eight_bits(array, instance.number("BitsStored", 8), instance.number("PixelRepresentation") == 1)
    if photometric == "MONOCHROME1":
        picture = 255 - picture
    out = io.BytesIO()
    kind = {"image/jpeg": "JPEG", "image/png": "PNG"}[media]
    Image.fromarray(picture).save(out, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return out.getvalue()


def _eight_bits(array: npt.NDArray[Any], stored: int, signed: bool) -> npt.NDArray[np.uint8]:
    import numpy as np

    if stored == 8 and not signed:
        return array.astype(np.uint8)
    low = -(1 << stored - 1) if signed else 0
    return ((array.astype(np.float64) - low) * (255 / ((1 << stored) - 1))).clip(0, 255).round().astype(np.uint8)
