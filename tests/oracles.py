"""Readers that are not ours: pydicom finds the frames, other decoders than ours decode them, NumPy puts them together.

Nothing here is imported from microtome.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import generate_frames

JPEG = "1.2.840.10008.1.2.4.50"
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201")
JPEG_2000 += ("1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
JPEG_XL = ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112")
RLE = "1.2.840.10008.1.2.5"


def half(a: np.ndarray) -> np.ndarray:
    """2 x 2 mean, rounded half up; sizes rounded up, edge pixels repeated: how make_variants.py makes its levels."""
    a = np.pad(a, ((0, a.shape[0] % 2), (0, a.shape[1] % 2)) + ((0, 0),) * (a.ndim - 2), mode="edge")
    total = sum(a[i::2, j::2].astype(np.int64) for i in (0, 1) for j in (0, 1))
    return ((total + 2) // 4).astype(a.dtype)


def dataset(file: Path) -> pydicom.Dataset:
    """The data set as pydicom reads it; what pydicom says of broken files is no concern of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(file)


def streams(ds: pydicom.Dataset) -> list[bytes]:
    """The codestream of each frame of encapsulated pixel data."""
    eot = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths) if "ExtendedOffsetTable" in ds else None
    return list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1)), extended_offsets=eot))


def decode(stream: bytes, syntax: str) -> np.ndarray:
    """One frame (h, w) or (h, w, 3), by another decoder than ours wherever there is one."""
    if syntax == JPEG:  # libjpeg-turbo through Pillow
        picture = Image.open(io.BytesIO(stream))
        return np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    if syntax in JPEG_2000:  # OpenJPEG through pylibjpeg
        import openjpeg

        return openjpeg.decode(stream)
    if syntax in JPEG_LS:  # libjpeg (Thomas Richter's) through pylibjpeg
        import libjpeg

        return libjpeg.decode(stream)
    assert syntax in JPEG_XL, syntax  # there is one decoder in Python, and it is ours as well
    return imagecodecs.jpegxl_decode(stream)


def frames(ds: pydicom.Dataset) -> Iterator[np.ndarray]:
    """Every frame of an instance, (h, w, samples)."""
    syntax = str(ds.file_meta.TransferSyntaxUID)
    if syntax.startswith("1.2.840.10008.1.2.4"):
        decoded: Iterable[np.ndarray] = (decode(stream, syntax) for stream in streams(ds))
    else:  # native and RLE: pydicom
        count = int(ds.get("NumberOfFrames", 1))
        decoded = ds.pixel_array if count > 1 else ds.pixel_array[None]
    for frame in decoded:
        yield frame.reshape(*frame.shape[:2], -1)


def places(ds: pydicom.Dataset) -> list[tuple[float, str, int, int]]:
    """(z, path, row, column) of each frame: as stated, else by the order of TILED_FULL (PS3.3 C.7.6.17.3)."""
    paths = [str(p.OpticalPathIdentifier) for p in ds.get("OpticalPathSequence", ())] or [""]
    groups = ds.get("PerFrameFunctionalGroupsSequence", ())
    if groups and "PlanePositionSlideSequence" in groups[0]:
        out = []
        for item in groups:
            p = item.PlanePositionSlideSequence[0]
            path = item.get("OpticalPathIdentificationSequence")
            out.append(
                (
                    float(p.get("ZOffsetInSlideCoordinateSystem", 0)),
                    str(path[0].OpticalPathIdentifier) if path else paths[0],
                    int(p.RowPositionInTotalImagePixelMatrix) - 1,
                    int(p.ColumnPositionInTotalImagePixelMatrix) - 1,
                )
            )
        return out
    order = [
        (float(z), path, row, column)
        for path in paths
        for z in range(int(ds.get("TotalPixelMatrixFocalPlanes", 1)))
        for row in range(0, ds.get("TotalPixelMatrixRows", ds.Rows), ds.Rows)
        for column in range(0, ds.get("TotalPixelMatrixColumns", ds.Columns), ds.Columns)
    ]
    first = int(ds.get("ConcatenationFrameOffsetNumber", 0))
    return order[first : first + int(ds.get("NumberOfFrames", 1))]


def assemble(files: Iterable[Path], fill: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """One level from its files: (z, path, y, x, samples), and which of its pixels (z, path, y, x) are real."""
    read = [dataset(f) for f in files]
    head = read[0]
    paths = [str(p.OpticalPathIdentifier) for p in head.get("OpticalPathSequence", ())] or [""]
    depths = sorted({place[0] for ds in read for place in places(ds)})
    rows, columns = head.TotalPixelMatrixRows, head.TotalPixelMatrixColumns
    shape = (len(depths), len(paths), rows, columns, head.SamplesPerPixel)
    picture = np.full(shape, fill, "uint8" if head.BitsAllocated == 8 else "uint16")
    real = np.zeros(shape[:4], bool)
    for ds in read:
        for (z, path, row, column), frame in zip(places(ds), frames(ds), strict=True):
            at = (
                depths.index(z),
                paths.index(path),
                slice(row, row + len(frame)),
                slice(column, column + frame.shape[1]),
            )
            cut = frame[: rows - row, : columns - column]
            picture[at], real[at] = cut, True
    return picture, real


def as_image(picture: np.ndarray) -> np.ndarray:
    """(z, path, y, x, samples) as microtome orders it: ([z,] y, x, c), c the colours, else the paths."""
    if picture.shape[-1] == 1:
        picture = np.moveaxis(picture, 1, -1)[..., 0, :]
    else:
        assert picture.shape[1] == 1
        picture = picture[:, 0]
    return picture[0] if len(picture) == 1 else picture


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio in dB, for 8 bits."""
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def covered_by_frames(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """Which pixels of a sparse level have a frame, by the positions that pydicom reads: (rows, columns) bool."""
    ds = pydicom.dcmread(file, stop_before_pixels=True)
    covered = np.zeros(shape, bool)
    for group in ds.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSlideSequence[0]
        y, x = place.RowPositionInTotalImagePixelMatrix - 1, place.ColumnPositionInTotalImagePixelMatrix - 1
        covered[y : y + ds.Rows, x : x + ds.Columns] = True
    return covered
