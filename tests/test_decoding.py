"""Frames decode to the pixels that independent decoders see, and damaged ones to errors."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.pixels.processing import convert_color_space

from microtome.dicom.decoding import FrameDecoder
from microtome.dicom.decoding.jpeg2000_header import find_codestream, read_jpeg2000_header
from microtome.dicom.decoding.jpeg_header import read_jpeg_header
from microtome.dicom.decoding.jpegxl_header import read_jpegxl_header
from microtome.errors import CorruptFrameError, MicrotomeError, UnsupportedCodecError
from microtome.model import FrameFormat

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TILES = SHARED / "real" / "encoded_tiles"
CODECS = SHARED / "real" / "dicom" / "codecs"

NATIVE, DEFLATED_FRAME, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.5"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG, JPEG_12, JPEG_LOSSLESS, JPEG_SV1, JPEG_LS, JPEG_LS_NEAR, J2K_LOSSLESS, J2K, HTJ2K_LOSSLESS, HTJ2K = (
    f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 203)
)
JXL = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (110, 111, 112))

if not TILES.is_dir() and os.environ.get("MICROTOME_CI") == "1":
    raise FileNotFoundError(f"{TILES} is absent")
real_data = pytest.mark.skipif(not TILES.is_dir(), reason=f"the real slides are not here: {TILES} is absent")


def smooth(rows: int = 64, columns: int = 96, channels: int = 3) -> np.ndarray:
    """A picture that lossy codecs keep well, with a different colour everywhere."""
    y, x = np.mgrid[0:rows, 0:columns]
    planes = (255 * x / max(columns - 1, 1), 255 * y / max(rows - 1, 1), 128 + 100 * np.sin(x / 9) * np.cos(y / 7))
    return np.stack(planes[:channels], -1).astype(np.uint8)


def noise(*shape: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 1 << bits, shape)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def form(syntax: str, like: np.ndarray, **fields: Any) -> FrameFormat:
    bits = 8 * like.dtype.itemsize
    colour = like.ndim == 3 and like.shape[2] == 3
    defaults: dict[str, Any] = {
        "rows": like.shape[0],
        "columns": like.shape[1],
        "samples": 3 if colour else 1,
        "photometric": "RGB" if colour else "MONOCHROME2",
        "bits_allocated": bits,
        "bits_stored": bits,
        "signed": like.dtype.kind == "i",
    }
    return FrameFormat(syntax, **(defaults | fields))


def decode(fmt: FrameFormat, data: bytes) -> np.ndarray:
    """Decode in every way there is, which all must agree."""
    decoder = FrameDecoder(fmt)
    first = decoder.decode(data)
    again = decoder.decode(memoryview(bytearray(b"ab" + data + b"cd"))[2:-2])
    out = np.full((fmt.rows, fmt.columns, fmt.channels), 77, fmt.dtype)
    placed = decoder.decode(data, out)
    for other in (again, placed):
        np.testing.assert_array_equal(first, other)
        assert other.dtype == first.dtype == fmt.dtype
        assert other.flags.c_contiguous
        assert first.flags.c_contiguous
    assert first.shape[2] == fmt.channels
    return first


def as_frame(picture: np.ndarray) -> np.ndarray:
    return picture[..., None] if picture.ndim == 2 else picture


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def segments(stream: bytes) -> list[tuple[int, int, int]]:
    """Marker, begin and end of every JPEG segment up to the scan."""
    found, position = [], 2
    while True:
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        found.append((stream[position + 1], position, end))
        if stream[position + 1] == 0xDA:
            return found
        position = end


def without_segments(stream: bytes, *markers: int) -> bytes:
    for marker, begin, end in reversed(segments(stream)):
        if marker in markers:
            stream = stream[:begin] + stream[end:]
    return stream


def renamed_components(stream: bytes, names: bytes) -> bytes:
    patched = bytearray(stream)
    for marker, begin, _ in segments(stream):
        first, step = {0xC0: (begin + 10, 3), 0xDA: (begin + 5, 2)}.get(marker, (0, 0))
        if first:
            patched[first : first + 3 * step : step] = names
    return bytes(patched)


def patched_size(stream: bytes, rows: int, columns: int) -> bytes:
    for marker, begin, _ in segments(stream):
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7):
            return stream[: begin + 5] + struct.pack(">HH", rows, columns) + stream[begin + 9 :]
    raise AssertionError("no frame header")


def jpeg_rgb(picture: np.ndarray) -> bytes:
    """RGB coded, as Adobe does, without subsampling."""
    return imagecodecs.jpeg8_encode(picture, level=95, colorspace="RGB", outcolorspace="RGB", subsampling="444")


def jpeg_ycbcr(picture: np.ndarray, subsampling: str = "444") -> bytes:
    return imagecodecs.jpeg8_encode(picture, level=95, colorspace="RGB", outcolorspace="YCBCR", subsampling=subsampling)


def streams() -> dict[str, tuple[FrameFormat, bytes, np.ndarray, float]]:
    """One stream of every kind, with its format, the true pixels and the mean difference they may have."""
    rgb, grey, grey16 = smooth(), smooth(channels=1)[..., 0], noise(64, 96, bits=16)
    htj2k = imagecodecs.htj2k_encode
    j2k = imagecodecs.jpeg2k_encode
    return {
        "jpeg": (form(JPEG, rgb), jpeg_ycbcr(rgb), rgb, 2),
        "jpeg 4:2:0": (form(JPEG, rgb, photometric="YBR_FULL_422"), jpeg_ycbcr(rgb, "420"), rgb, 2),
        "jpeg grey": (form(JPEG, grey), imagecodecs.jpeg8_encode(grey, level=95), grey, 2),
        "jpeg lossless": (form(JPEG_LOSSLESS, rgb), jpeg_lossless(rgb), rgb, 0),
        "jpeg lossless 16": (form(JPEG_SV1, grey16), jpeg_lossless(grey16), grey16, 0),
        "jpeg-ls": (form(JPEG_LS, rgb), imagecodecs.jpegls_encode(rgb), rgb, 0),
        "jpeg-ls 16": (form(JPEG_LS, grey16), imagecodecs.jpegls_encode(grey16), grey16, 0),
        "j2k lossless": (form(J2K_LOSSLESS, rgb), j2k(rgb, level=0, codecformat="j2k", mct=True), rgb, 0),
        "jp2": (form(J2K_LOSSLESS, rgb), j2k(rgb, level=0, codecformat="jp2", mct=True), rgb, 0),
        "j2k 16": (form(J2K_LOSSLESS, grey16), j2k(grey16, level=0, codecformat="j2k"), grey16, 0),
        "j2k": (form(J2K, rgb), j2k(rgb, level=45, codecformat="j2k", reversible=False, mct=True), rgb, 2),
        "htj2k lossless": (form(HTJ2K_LOSSLESS, rgb), htj2k(rgb, reversible=True, rgb=True), rgb, 0),
        "htj2k 16": (form(HTJ2K_LOSSLESS, grey16), htj2k(grey16, reversible=True), grey16, 0),
        "jxl": (form(JXL[0], rgb), imagecodecs.jpegxl_encode(rgb, lossless=True, usecontainer=False), rgb, 0),
        "jxl 16": (
            form(JXL[0], grey16),
            imagecodecs.jpegxl_encode(grey16, lossless=True, usecontainer=True),
            grey16,
            0,
        ),
        "rle": (form(RLE, rgb), rle(rgb), rgb, 0),
        "rle 16": (form(RLE, grey16), rle(grey16), grey16, 0),
    }


def jpeg_lossless(picture: np.ndarray) -> bytes:
    options: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if picture.ndim == 3 else {}
    if picture.dtype == np.uint16:
        options["bitspersample"] = 16
    return imagecodecs.jpeg8_encode(picture, lossless=True, predictor=1, **options)


def rle(picture: np.ndarray) -> bytes:
    samples = 3 if picture.ndim == 3 else 1
    bits = 8 * picture.dtype.itemsize
    options: dict[str, Any] = {"planar_configuration": 0} if samples == 3 else {}
    return RLELosslessEncoder.encode(
        picture,
        rows=picture.shape[0],
        columns=picture.shape[1],
        samples_per_pixel=samples,
        number_of_frames=1,
        bits_allocated=bits,
        bits_stored=bits,
        pixel_representation=0,
        photometric_interpretation="RGB" if samples == 3 else "MONOCHROME2",
        **options,
    )


STREAMS = streams()
each_stream = pytest.mark.parametrize("name", STREAMS)


@each_stream
def test_streams_give_the_pixels_that_were_coded(name: str) -> None:
    fmt, data, truth, tolerance = STREAMS[name]
    assert mean_difference(decode(fmt, data), as_frame(truth)) <= tolerance


@each_stream
def test_padding_after_a_stream_is_ignored(name: str) -> None:
    fmt, data, truth, tolerance = STREAMS[name]
    if len(data) % 2 or not name.startswith("rle"):  # the encoder has padded RLE already
        assert mean_difference(decode(fmt, data + b"\0"), as_frame(truth)) <= tolerance


@each_stream
@pytest.mark.parametrize("cut", ["the end marker", "half", "nearly all"])
def test_a_part_that_is_cut_is_never_decoded(name: str, cut: str) -> None:
    fmt, data, _, _ = STREAMS[name]
    # An RLE frame may end with a byte of padding, which nobody misses.
    kept = {"the end marker": len(data) - 2 - name.startswith("rle"), "half": len(data) // 2, "nearly all": 5}[cut]
    decoder = FrameDecoder(fmt)
    for _ in range(2):  # before and after the header is known
        with pytest.raises(CorruptFrameError, match=r"frame of \d+ bytes \(transfer syntax 1.2.840"):
            decoder.decode(data[:kept])
        decoder.decode(data)


@each_stream
def test_a_larger_picture_than_stated_is_refused_unseen(name: str) -> None:
    fmt, data, _, _ = STREAMS[name]
    small = FrameFormat(fmt.transfer_syntax, 63, 95, fmt.samples, fmt.photometric, fmt.bits_allocated, fmt.bits_stored)
    with pytest.raises(CorruptFrameError, match=r"64x96|RLE|OUTPUT_TOO_SMALL"):
        FrameDecoder(small).decode(data)


@pytest.mark.parametrize("name", [name for name in STREAMS if not name.startswith("rle")])  # RLE states no size
def test_a_smaller_picture_than_stated_is_returned_as_it_is(name: str) -> None:
    fmt, data, truth, tolerance = STREAMS[name]
    large = FrameFormat(fmt.transfer_syntax, 99, 240, fmt.samples, fmt.photometric, fmt.bits_allocated, fmt.bits_stored)
    frame = FrameDecoder(large).decode(data, np.empty((99, 240, fmt.samples), fmt.dtype))
    assert mean_difference(frame, as_frame(truth)) <= tolerance


@each_stream
def test_samples_of_another_kind_are_refused(name: str) -> None:
    fmt, data, _, _ = STREAMS[name]
    fields = {"rows": fmt.rows, "columns": fmt.columns, "photometric": "RGB" if fmt.samples == 1 else "MONOCHROME2"}
    with pytest.raises(CorruptFrameError):
        FrameDecoder(FrameFormat(fmt.transfer_syntax, samples=4 - fmt.samples, **fields)).decode(data)
    if fmt.bits_allocated == 16:
        with pytest.raises(CorruptFrameError, match=r"16 bits|segments"):
            FrameDecoder(FrameFormat(fmt.transfer_syntax, fmt.rows, fmt.columns)).decode(data)


@pytest.mark.parametrize(
    "name", [name for name, (fmt, *_) in STREAMS.items() if "rle" not in name and fmt.bits_stored == 8]
)
def test_samples_of_8_bits_are_widened_where_16_are_stated(name: str) -> None:
    fmt, data, truth, tolerance = STREAMS[name]
    wide = FrameFormat(fmt.transfer_syntax, fmt.rows, fmt.columns, fmt.samples, fmt.photometric, 16, 8)
    assert mean_difference(decode(wide, data), as_frame(truth)) <= tolerance


@each_stream
def test_garbage_in_the_stream_gives_only_our_errors(name: str) -> None:
    fmt, data, _, _ = STREAMS[name]
    generator = np.random.default_rng(5)
    decoder = FrameDecoder(fmt)
    for _ in range(40):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 400), 3):
            damaged[place] = generator.integers(0, 256)
        try:
            frame = decoder.decode(bytes(damaged))
        except MicrotomeError:
            continue
        assert frame.dtype == fmt.dtype
        assert frame.shape[0] <= fmt.rows
        assert frame.shape[1] <= fmt.columns


def test_sizes_a_header_claims_are_not_allocated() -> None:
    rgb = smooth()
    bombs = [
        (JPEG, patched_size(jpeg_ycbcr(rgb), 65535, 65535)),
        (JPEG_LOSSLESS, patched_size(jpeg_lossless(rgb), 65535, 65535)),
        (JPEG_LS, patched_size(imagecodecs.jpegls_encode(rgb), 65535, 65535)),
    ]
    for codec, syntax in ((imagecodecs.jpeg2k_encode, J2K), (imagecodecs.htj2k_encode, HTJ2K)):
        stream = bytearray(codec(rgb, **({"codecformat": "j2k"} if syntax == J2K else {})))
        stream[8:16] = struct.pack(">II", 100_000, 100_000)
        stream[24:32] = struct.pack(">II", 100_000, 100_000)
        bombs.append((syntax, bytes(stream)))
    # Signature, not a multiple of 8, 30 bits of rows follow, all of them set, as many columns as rows.
    huge = 0x0AFF | 0 << 16 | 3 << 17 | ((1 << 30) - 1) << 19 | 1 << 49
    bombs.append((JXL[0], huge.to_bytes(8, "little") + bytes(20)))
    for syntax, stream in bombs:
        decoder = FrameDecoder(form(syntax, rgb))
        tracemalloc.start()
        with pytest.raises(CorruptFrameError, match="picture of"):
            decoder.decode(stream)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "YBR_FULL"])
def test_colour_of_a_jpeg_stream_is_believed_before_the_header(photometric: str) -> None:
    rgb = smooth()
    fmt = form(JPEG, rgb, photometric=photometric)
    jfif, adobe = jpeg_ycbcr(rgb), jpeg_rgb(rgb)
    assert {0xE0} == {m for m, *_ in segments(jfif)} & {0xE0, 0xEE}
    assert {0xEE} == {m for m, *_ in segments(adobe)} & {0xE0, 0xEE}
    bare_rgb = without_segments(adobe, 0xEE)
    assert mean_difference(decode(fmt, jfif), rgb) < 2
    assert mean_difference(decode(fmt, adobe), rgb) < 2
    assert mean_difference(decode(fmt, bare_rgb), rgb) < 2  # its components are called R, G and B
    both = adobe[:2] + jfif[2:20] + adobe[2:]
    assert mean_difference(decode(fmt, both), rgb) < 2
    subsampled = without_segments(jpeg_ycbcr(rgb, "420"), 0xE0)
    assert mean_difference(decode(fmt, subsampled), rgb) < 2
    # Components 1, 2, 3, not subsampled and nothing said: only now the header decides.
    silent = {True: renamed_components(bare_rgb, b"\1\2\3"), False: without_segments(jfif, 0xE0)}[photometric == "RGB"]
    assert mean_difference(decode(fmt, silent), rgb) < 2


def test_adobe_transform_says_ycbcr() -> None:
    rgb = smooth()
    jfif = jpeg_ycbcr(rgb)
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    assert mean_difference(decode(form(JPEG, rgb), jfif[:2] + adobe + jfif[20:]), rgb) < 2


def test_a_decoder_that_knows_one_header_takes_another() -> None:
    rgb, edge = smooth(), smooth(40, 33)
    decoder = FrameDecoder(form(JPEG, rgb))
    frames = {(64, 96): jpeg_ycbcr(rgb), (40, 33): jpeg_rgb(edge), (8, 8): jpeg_ycbcr(smooth(8, 8), "420")}
    for _ in range(3):
        for (rows, columns), data in frames.items():
            assert mean_difference(decoder.decode(data), smooth(rows, columns)) < 6


def test_many_threads_share_a_decoder() -> None:
    rgb, edge = smooth(), smooth(40, 33)
    decoder = FrameDecoder(form(JPEG, rgb))
    work = [(jpeg_ycbcr(rgb), rgb), (jpeg_rgb(edge), edge), (jpeg_ycbcr(edge, "420"), edge)]
    failures: list[object] = []

    def run(offset: int) -> None:
        try:
            for i in range(60):
                data, truth = work[(i + offset) % 3]
                if mean_difference(decoder.decode(data), truth) > 3:
                    failures.append(i)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_out_is_used_only_where_it_fits() -> None:
    fmt, data, _, _ = STREAMS["jpeg"]
    decoder = FrameDecoder(fmt)
    out = np.empty((64, 96, 3), np.uint8)
    assert decoder.decode(data, out) is out
    for unfit in (
        np.empty((64, 96, 3), np.uint16),
        np.empty((63, 96, 3), np.uint8),
        np.empty((64, 192, 3), np.uint8)[:, ::2],
    ):
        assert decoder.decode(data, unfit) is not unfit
    for name in ("jpeg grey", "j2k 16", "htj2k lossless", "jpeg-ls", "jxl 16"):
        fmt, data, truth, _ = STREAMS[name]
        out = np.empty(as_frame(truth).shape, fmt.dtype)
        assert FrameDecoder(fmt).decode(data, out) is out
    grey = noise(5, 7)
    out = np.empty((5, 7, 1), np.uint8)
    assert FrameDecoder(form(NATIVE, grey)).decode(grey.tobytes(), out) is out


def test_the_result_is_no_view_of_the_input() -> None:
    grey = noise(4, 4)
    data = bytearray(grey.tobytes())
    frame = FrameDecoder(form(NATIVE, grey)).decode(memoryview(data))
    data[:] = bytes(16)
    np.testing.assert_array_equal(frame[..., 0], grey)
    frame[:] = 0


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (JPEG, "jpeg lossless"),
        (HTJ2K_LOSSLESS, "j2k lossless"),
        (HTJ2K, "j2k"),
        (JPEG_12, "jpeg"),
        (J2K_LOSSLESS, "htj2k lossless"),
        (JPEG, "jpeg-ls"),
        (J2K, "jp2"),
        (RLE, "jpeg"),
        ("1.2.3.4", "jpeg"),
    ],
)
def test_mislabelled_streams_are_decoded_by_what_they_are(syntax: str, name: str) -> None:
    _, data, truth, tolerance = STREAMS[name]
    assert mean_difference(decode(form(syntax, truth), data), truth) <= tolerance


def test_damaged_htj2k_is_not_passed_over_in_silence() -> None:
    """OpenJPH through imagecodecs returned garbage for each of these, and wrote to stderr."""
    fmt, data, truth, _ = STREAMS["htj2k lossless"]
    decoder = FrameDecoder(fmt)
    raised = 0
    for seed in range(40):
        damaged = bytearray(data)
        generator = np.random.default_rng(seed)
        for place in generator.integers(120, len(data) - 2, 3):
            damaged[place] = generator.integers(0, 256)
        try:
            decoder.decode(bytes(damaged))
        except CorruptFrameError:
            raised += 1
    assert raised > 20
    np.testing.assert_array_equal(decoder.decode(data), truth)


def test_lossy_htj2k_saturates() -> None:
    rgb = noise(64, 64, 3)
    rgb = np.where(rgb > 127, 255, 0).astype(np.uint8)
    data = imagecodecs.htj2k_encode(rgb, level=0.02, reversible=False, rgb=True)
    wrapped = imagecodecs.htj2k_decode(data)
    openjpeg = imagecodecs.jpeg2k_decode(data)
    assert np.abs(wrapped.astype(int) - openjpeg).max() > 200  # what this test is about
    for syntax in (HTJ2K, HTJ2K_LOSSLESS):
        np.testing.assert_array_equal(decode(form(syntax, rgb), data), openjpeg)


@pytest.mark.parametrize("syntax", JXL)
def test_jpeg_xl(syntax: str) -> None:
    rgb = smooth()
    jpeg = jpeg_ycbcr(rgb, "420")
    for data in (
        imagecodecs.jpegxl_encode_jpeg(jpeg),
        imagecodecs.jpegxl_encode(rgb, distance=0.5, usecontainer=False),
        imagecodecs.jpegxl_encode(rgb, distance=0.5, usecontainer=True),
        imagecodecs.jpegxl_encode(rgb, lossless=True),
    ):
        for photometric in ("RGB", "YBR_FULL_422", "XYB"):
            assert mean_difference(decode(form(syntax, rgb, photometric=photometric), data), rgb) < 3


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (8, 8), (64, 96), (240, 240), (333, 500), (16, 9), (513, 40), (8193, 3)]
)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_xl_header(rows: int, columns: int, bits: int, channels: int) -> None:
    picture = np.zeros((rows, columns, channels), np.uint8 if bits == 8 else np.uint16)
    for container in (False, True):
        data = imagecodecs.jpegxl_encode(picture, lossless=True, effort=1, bitspersample=bits, usecontainer=container)
        header = read_jpegxl_header(memoryview(data))
        assert header == (rows, columns, channels, bits)


def test_jpeg_xl_with_more_than_colours_is_refused() -> None:
    rgba = noise(16, 16, 4)
    data = imagecodecs.jpegxl_encode(rgba, lossless=True)
    with pytest.raises(CorruptFrameError, match="channels beside"):
        FrameDecoder(form(JXL[0], rgba[..., :3])).decode(data)
    floats = imagecodecs.jpegxl_encode(np.zeros((16, 16), np.float32), lossless=True)
    with pytest.raises(CorruptFrameError, match="floating point"):
        FrameDecoder(form(JXL[0], rgba[..., 0])).decode(floats)
    frames = imagecodecs.jpegxl_encode(noise(2, 16, 16, 3), lossless=True)
    with pytest.raises(CorruptFrameError, match="animation"):
        FrameDecoder(form(JXL[0], rgba[..., :3])).decode(frames)


def test_jpeg2000_colours_without_a_transform() -> None:
    rgb = smooth()
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    data = imagecodecs.jpeg2k_encode(ybr, level=0, codecformat="j2k", mct=False)
    expected = convert_color_space(ybr, "YBR_FULL", "RGB")
    for photometric in ("YBR_FULL", "YBR_FULL_422"):
        np.testing.assert_array_equal(decode(form(J2K_LOSSLESS, rgb, photometric=photometric), data), expected)
    for photometric in ("RGB", "YBR_RCT", "YBR_ICT"):
        np.testing.assert_array_equal(decode(form(J2K_LOSSLESS, rgb, photometric=photometric), data), ybr)
    with_transform = imagecodecs.jpeg2k_encode(rgb, level=0, codecformat="j2k", mct=True)
    np.testing.assert_array_equal(decode(form(J2K_LOSSLESS, rgb, photometric="YBR_FULL"), with_transform), rgb)


@pytest.mark.parametrize("syntax", [JPEG_LS, RLE, NATIVE, DEFLATED_FRAME])
def test_full_ybr_becomes_rgb(syntax: str) -> None:
    ybr = noise(32, 32, 3)
    expected = convert_color_space(ybr, "YBR_FULL", "RGB")
    data = {
        JPEG_LS: imagecodecs.jpegls_encode(ybr),
        RLE: rle(ybr),
        NATIVE: ybr.tobytes(),
        DEFLATED_FRAME: zlib.compress(ybr.tobytes(), wbits=-15),
    }[syntax]
    np.testing.assert_array_equal(decode(form(syntax, ybr, photometric="YBR_FULL"), data), expected)


@pytest.mark.parametrize("codec", ["j2k", "htj2k", "native", "rle", "jpeg-ls", "jpeg lossless", "jxl"])
@pytest.mark.parametrize("stored", [12, 16])
def test_signed_samples(codec: str, stored: int) -> None:
    half = 1 << (stored - 1)
    signed = (noise(32, 48, bits=stored).astype(np.int32) - half).astype(np.int16)
    unsigned = (signed.view(np.uint16) & ((1 << stored) - 1)).astype(np.uint16)
    syntax, data = {
        "j2k": (J2K_LOSSLESS, imagecodecs.jpeg2k_encode(signed, level=0, codecformat="j2k", bitspersample=stored)),
        "htj2k": (HTJ2K_LOSSLESS, imagecodecs.htj2k_encode(signed, reversible=True)),
        "native": (NATIVE, unsigned.tobytes()),
        "rle": (RLE, rle(unsigned)),
        "jpeg-ls": (JPEG_LS, imagecodecs.jpegls_encode(unsigned)),
        "jpeg lossless": (JPEG_SV1, jpeg_lossless(unsigned)),
        "jxl": (JXL[0], imagecodecs.jpegxl_encode(unsigned, lossless=True, bitspersample=stored)),
    }[codec]
    np.testing.assert_array_equal(decode(form(syntax, signed, bits_stored=stored), data)[..., 0], signed)


def test_signed_8_bit_native() -> None:
    signed = noise(9, 5).view(np.int8)
    np.testing.assert_array_equal(decode(form(NATIVE, signed), signed.tobytes())[..., 0], signed)


def test_jpeg2000_says_unsigned_where_the_header_says_signed_and_the_reverse() -> None:
    signed = (noise(32, 48, bits=12).astype(np.int32) - 2048).astype(np.int16)
    unsigned = signed.view(np.uint16) & 0xFFF
    for truth, coded in ((signed, unsigned), (unsigned, signed)):
        data = imagecodecs.jpeg2k_encode(coded, level=0, codecformat="j2k", bitspersample=12)
        np.testing.assert_array_equal(decode(form(J2K_LOSSLESS, truth, bits_stored=12), data)[..., 0], truth)


@pytest.mark.parametrize("interleave", [0, 1, 2])
def test_jpeg_ls_interleave_modes(interleave: int) -> None:
    if not CODECS.is_dir():
        pytest.skip(f"the real slides are not here: {CODECS} is absent")
    ds = pydicom.dcmread(CODECS / f"JLSL_RGB_ILV{interleave}.dcm", force=True)
    data = next(iter(generate_frames(ds.PixelData, number_of_frames=1)))
    fmt = FrameFormat(JPEG_LS, 256, 256, 3, "RGB")
    expected = np.asarray(imagecodecs.jpegls_decode(data))
    np.testing.assert_array_equal(decode(fmt, data), expected)
    first = pydicom.dcmread(CODECS / "JLSL_RGB_ILV2.dcm", force=True)
    other = decode(fmt, next(iter(generate_frames(first.PixelData, number_of_frames=1))))
    np.testing.assert_array_equal(expected, other)


# -- native --------------------------------------------------------------------------------------------------------


def test_native_planes() -> None:
    rgb = noise(6, 5, 3)
    planes = np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
    np.testing.assert_array_equal(decode(form(NATIVE, rgb, planar=1), planes.tobytes() + b"\0"), rgb)
    np.testing.assert_array_equal(decode(form(NATIVE, rgb), rgb.tobytes() + b"\0"), rgb)


def test_native_frame_that_is_too_short() -> None:
    rgb = noise(6, 5, 3)
    with pytest.raises(CorruptFrameError, match="holds 89 bytes, 90 are needed"):
        FrameDecoder(form(NATIVE, rgb)).decode(rgb.tobytes()[:-1])
    with pytest.raises(CorruptFrameError, match="0 bytes"):
        FrameDecoder(form(NATIVE, rgb)).decode(b"")


def test_big_endian() -> None:
    grey = noise(8, 9, bits=16)
    np.testing.assert_array_equal(decode(form(BIG_ENDIAN, grey), grey.astype(">u2").tobytes())[..., 0], grey)
    deep = (noise(8, 9, bits=16).astype(np.uint32) << 9) + 5
    np.testing.assert_array_equal(decode(form(BIG_ENDIAN, deep), deep.astype(">u4").tobytes())[..., 0], deep)
    narrow = noise(3, 3)
    np.testing.assert_array_equal(decode(form(BIG_ENDIAN, narrow), narrow.tobytes())[..., 0], narrow)
    words = np.frombuffer(narrow.tobytes() + b"\0", np.uint8).reshape(-1, 2)[:, ::-1]
    fmt = form(BIG_ENDIAN, narrow, byte_swapped=True)
    np.testing.assert_array_equal(decode(fmt, words.tobytes())[..., 0], narrow)
    with pytest.raises(CorruptFrameError, match="10 are needed"):
        FrameDecoder(fmt).decode(words.tobytes()[:-1])


def test_bits_above_those_stored_are_cleared() -> None:
    clean = noise(16, 16, bits=12)
    dirty = clean | (noise(16, 16, bits=4, seed=1).astype(np.uint16) << 12)
    assert (dirty != clean).any()
    for syntax, data in ((NATIVE, dirty.tobytes()), (RLE, rle(dirty))):
        np.testing.assert_array_equal(decode(form(syntax, clean, bits_stored=12), data)[..., 0], clean)
    signed = ((clean.astype(np.int32) ^ 2048) - 2048).astype(np.int16)
    np.testing.assert_array_equal(decode(form(NATIVE, signed, bits_stored=12), dirty.tobytes())[..., 0], signed)


@pytest.mark.parametrize("bit_offset", [0, 1, 5, 7, 8, 13])
@pytest.mark.parametrize(("rows", "columns"), [(10, 10), (3, 7), (1, 1)])
def test_single_bits(bit_offset: int, rows: int, columns: int) -> None:
    mask = noise(rows, columns, bits=1)
    before = noise(bit_offset, bits=1, seed=3)
    data = np.packbits(np.concatenate([before, mask.ravel(), np.ones(3, np.uint8)]), bitorder="little").tobytes()
    fmt = form(NATIVE, mask, bits_allocated=1, bits_stored=1)
    frame = FrameDecoder(fmt).decode(data, bit_offset=bit_offset)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame[..., 0], mask)
    needed = (bit_offset + mask.size + 7) // 8
    FrameDecoder(fmt).decode(data[:needed], bit_offset=bit_offset)
    with pytest.raises(CorruptFrameError):
        FrameDecoder(fmt).decode(data[: needed - 1], bit_offset=bit_offset)


def test_ybr_422_native() -> None:
    pairs = noise(4, 3, 4)
    y, chroma = pairs[..., :2], np.repeat(pairs[..., None, 2:], 2, axis=2)
    ybr = np.concatenate([y[..., None], chroma], -1).reshape(4, 6, 3)
    fmt = form(NATIVE, ybr, photometric="YBR_FULL_422")
    np.testing.assert_array_equal(decode(fmt, pairs.tobytes()), convert_color_space(ybr, "YBR_FULL", "RGB"))
    with pytest.raises(CorruptFrameError, match="48 are needed"):
        FrameDecoder(fmt).decode(pairs.tobytes()[:-1])


@pytest.mark.parametrize("wbits", [-15, 15])
def test_deflated_frame(wbits: int) -> None:
    grey = noise(31, 17, bits=16)
    data = zlib.compress(grey.tobytes(), wbits=wbits)
    np.testing.assert_array_equal(decode(form(DEFLATED_FRAME, grey), data + b"\0")[..., 0], grey)
    with pytest.raises(CorruptFrameError, match="are needed"):
        FrameDecoder(form(DEFLATED_FRAME, grey)).decode(data[: len(data) // 2])
    with pytest.raises(CorruptFrameError, match="deflated frame is damaged"):
        FrameDecoder(form(DEFLATED_FRAME, grey)).decode(b"\xff" * 50)
    mask = noise(13, 11, bits=1)
    packed = zlib.compress(np.packbits(mask, bitorder="little").tobytes(), wbits=wbits)
    fmt = form(DEFLATED_FRAME, mask, bits_allocated=1, bits_stored=1)
    np.testing.assert_array_equal(decode(fmt, packed)[..., 0], mask)


def test_deflated_bomb_is_inflated_to_one_frame_only() -> None:
    grey = np.zeros((16, 16), np.uint8)
    data = zlib.compress(bytes(200_000_000), 1, wbits=-15)
    decoder = FrameDecoder(form(DEFLATED_FRAME, grey))
    tracemalloc.start()
    assert not decoder.decode(data).any()
    assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    tracemalloc.stop()


def test_rle_refuses_what_is_not_such_a_frame() -> None:
    rgb = smooth()
    good = rle(rgb)
    decoder = FrameDecoder(form(RLE, rgb))
    header = struct.unpack("<16I", good[:64])
    for fields in (
        (2, *header[1:]),
        (16, *header[1:]),
        (2**31, *header[1:]),
        (3, 64, header[3], header[2], *header[4:]),
        (3, 60, *header[2:]),
        (3, 64, header[2], len(good) + 50, *header[4:]),
        (3, 64, header[2], 2**32 - 1, *header[4:]),
    ):
        with pytest.raises(CorruptFrameError, match="RLE"):
            decoder.decode(struct.pack("<16I", *fields) + good[64:])
    with pytest.raises(CorruptFrameError, match="fewer than its header"):
        decoder.decode(good[:40])
    short = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x1f" + bytes(32)
    with pytest.raises(CorruptFrameError, match="hold 32 bytes, 64 are needed"):
        FrameDecoder(form(RLE, np.zeros((8, 8), np.uint8))).decode(short)


@pytest.mark.parametrize("first", [0, 5, -3, 300])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i1", "u4"])
def test_palette(first: int, dtype: str) -> None:
    table = noise(40, 3, bits=16)
    limits = np.iinfo(dtype)
    picture = (
        np.random.default_rng(2).integers(max(first - 20, limits.min), min(first + 60, limits.max) + 1, (12, 14))
        if first < limits.max
        else np.full((12, 14), limits.max)
    )
    picture = picture.astype(dtype)
    fmt = form(NATIVE, picture, photometric="PALETTE COLOR", palette=(table, first))
    frame = decode(fmt, picture.tobytes())
    assert frame.dtype == np.uint16
    np.testing.assert_array_equal(frame, table[np.clip(picture.astype(int) - first, 0, 39)])


def test_palette_behind_codestreams() -> None:
    table = noise(256, 3)
    picture = noise(20, 30)
    for syntax, data in (
        (JPEG_LS, imagecodecs.jpegls_encode(picture)),
        (RLE, rle(picture)),
        (J2K_LOSSLESS, imagecodecs.jpeg2k_encode(picture, level=0)),
    ):
        fmt = form(syntax, picture, photometric="PALETTE COLOR", palette=(table, 0))
        np.testing.assert_array_equal(decode(fmt, data), table[picture])


# -- what cannot be decoded ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [
        "1.2.840.10008.1.2.4.100",
        "1.2.840.10008.1.2.4.107",
        "1.2.840.10008.1.2.4.94",
        "1.2.840.10008.1.2.4.205",
        "1.2.840.10008.1.2.7.2",
    ],
)
def test_videos_and_references_are_refused_at_once(syntax: str) -> None:
    with pytest.raises(UnsupportedCodecError, match=syntax.replace(".", r"\.")):
        FrameDecoder(FrameFormat(syntax, 8, 8))


@pytest.mark.parametrize(
    "fields",
    [
        {"samples": 4},
        {"samples": 2},
        {"bits_allocated": 24},
        {"bits_allocated": 64},
        {"bits_stored": 9},
        {"photometric": "YBR_PARTIAL_422"},
        {"rows": 0},
    ],
)
def test_formats_without_a_decoder_are_refused_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedCodecError):
        FrameDecoder(FrameFormat(NATIVE, **({"rows": 4, "columns": 4} | fields)))


def test_unknown_syntax_is_named() -> None:
    with pytest.raises(UnsupportedCodecError, match=r"1\.2\.3\.4\.5"):
        FrameDecoder(FrameFormat("1.2.3.4.5", 8, 8)).decode(bytes(64))


@pytest.mark.parametrize("syntax", [JPEG, JPEG_LS, J2K, HTJ2K, JXL[0]])
def test_bytes_that_are_no_stream_are_shown(syntax: str) -> None:
    with pytest.raises(CorruptFrameError, match="begin with 0102030405060708, not with a JP"):
        FrameDecoder(FrameFormat(syntax, 8, 8)).decode(bytes(range(1, 30)))
    with pytest.raises(CorruptFrameError, match="begin with nothing"):
        FrameDecoder(FrameFormat(syntax, 8, 8)).decode(b"")


def test_jpeg_processes_without_a_decoder() -> None:
    data = bytearray(jpeg_ycbcr(smooth()))
    data[next(begin for marker, begin, _ in segments(data) if marker == 0xC0) + 1] = 0xC5
    with pytest.raises(UnsupportedCodecError, match="ffc5"):
        FrameDecoder(form(JPEG, smooth())).decode(bytes(data))


def test_a_codec_that_runs_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(imagecodecs, "jpeg8_decode", fail)
    fmt, data, _, _ = STREAMS["jpeg"]
    with pytest.raises(CorruptFrameError, match="MemoryError") as caught:
        FrameDecoder(fmt).decode(data)
    assert isinstance(caught.value.__cause__, MemoryError)


def test_importing_does_not_load_the_codecs() -> None:
    code = (
        "import sys; import microtome.dicom.decoding as d; from microtome.model import FrameFormat as F;"
        "d.FrameDecoder(F('1.2.840.10008.1.2.1', 2, 2)); assert 'imagecodecs' not in sys.modules;"
        "d.FrameDecoder(F('1.2.840.10008.1.2.4.50', 2, 2)); assert 'imagecodecs' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(sorted(STREAMS)), st.integers(0, 200))
def test_headers_of_random_bytes_raise_our_errors_only(junk: bytes, name: str, kept: int) -> None:
    data = memoryview(STREAMS[name][1][:kept] + junk)
    for read in (read_jpeg_header, read_jpeg2000_header, read_jpegxl_header, find_codestream):
        try:
            read(data)
        except CorruptFrameError:
            continue


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ", b""]),
    st.sampled_from(sorted(STREAMS)),
)
def test_random_bytes_raise_our_errors_only(junk: bytes, start: bytes, name: str) -> None:
    with pytest.raises(MicrotomeError):
        FrameDecoder(STREAMS[name][0]).decode(start + junk)


# -- real files ----------------------------------------------------------------------------------------------------

TILE_SYNTAXES = {
    "Explicit_VR_Big_Endian": BIG_ENDIAN,
    "Explicit_VR_Little_Endian": NATIVE,
    "Implicit_VR_Little_Endian": "1.2.840.10008.1.2",
    "JPEG-LS_Lossless_Image_Compression": JPEG_LS,
    "JPEG-LS_Lossy_(Near-Lossless)_Image_Compression": JPEG_LS_NEAR,
    "JPEG_2000_Image_Compression": J2K,
    "JPEG_2000_Image_Compression_(Lossless_Only)": J2K_LOSSLESS,
    "JPEG_Baseline_(Process_1)": JPEG,
    "JPEG_Extended_(Process_2_and_4)": JPEG_12,
    "JPEG_Lossless,_Non-Hierarchical_(Process_14)": JPEG_LOSSLESS,
    "RLE_Lossless": RLE,
}
LOSSY_TILES = {JPEG, JPEG_12, JPEG_LS_NEAR, J2K}


def tile_format(path: Path) -> FrameFormat:
    syntax, kind, bits = path.stem.rsplit("-", 2)
    colour = kind != "GRAYSCALE"
    photometric = "MONOCHROME2" if not colour else "YBR_FULL_422" if kind == "YBR" else "RGB"
    if kind == "YBR" and "2000" in syntax:
        photometric = "YBR_RCT" if "Lossless" in syntax else "YBR_ICT"
    return FrameFormat(
        TILE_SYNTAXES[syntax], 240, 240, 3 if colour else 1, photometric, 16 if int(bits) > 8 else 8, int(bits)
    )


@real_data
@pytest.mark.parametrize("path", sorted(TILES.glob("*-*.*")), ids=lambda path: path.stem)
def test_real_tiles(path: Path) -> None:
    fmt = tile_format(path)
    data = path.read_bytes()
    frame = decode(fmt, data)
    assert frame.shape == (240, 240, fmt.channels)
    if fmt.samples == 3:
        with Image.open(TILES / "test_tile.png") as picture:
            truth = np.asarray(picture)
    else:  # what wsidicom-data derived from the picture is what its native files hold
        bits = 8 if fmt.bits_stored == 8 else 16
        truth = np.fromfile(TILES / f"Explicit_VR_Little_Endian-GRAYSCALE-{bits}.raw", f"<u{bits // 8}")
        truth = truth.reshape(240, 240, 1)
        if fmt.bits_stored == 12:
            truth = independent_jpeg_12(data)
    if fmt.transfer_syntax in LOSSY_TILES:
        assert mean_difference(frame, truth) < 3 * (1 << (fmt.bits_stored - 8))
        if path.suffix == ".jpg" and fmt.bits_stored == 8:
            with Image.open(BytesIO(data)) as picture:
                assert (
                    np.abs(
                        frame.astype(int) - as_frame(np.asarray(picture.convert("RGB" if fmt.samples == 3 else "L")))
                    ).max()
                    <= 2
                )
    else:
        np.testing.assert_array_equal(frame, truth)


def independent_jpeg_12(data: bytes) -> np.ndarray:
    from libjpeg import decode as libjpeg_decode

    return as_frame(libjpeg_decode(data))


def dataset_format(ds: pydicom.Dataset) -> FrameFormat:
    palette = None
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        descriptor = ds.RedPaletteColorLookupTableDescriptor
        tables = [ds[f"{c}PaletteColorLookupTableData"].value for c in ("Red", "Green", "Blue")]
        palette = (np.stack([np.frombuffer(t, "<u2") for t in tables], -1)[: descriptor[0]], int(descriptor[1]))
    return FrameFormat(
        str(ds.file_meta.TransferSyntaxUID),
        ds.Rows,
        ds.Columns,
        ds.SamplesPerPixel,
        ds.PhotometricInterpretation,
        ds.BitsAllocated,
        ds.BitsStored,
        bool(ds.PixelRepresentation),
        ds.get("PlanarConfiguration", 0),
        palette=palette,
    )


@real_data
@pytest.mark.parametrize("path", sorted(CODECS.glob("*.dcm")), ids=lambda path: path.stem)
def test_real_files(path: Path) -> None:
    ds = pydicom.dcmread(path, force=True)
    fmt = dataset_format(ds)
    count = int(ds.get("NumberOfFrames", 1) or 1)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        frames = list(generate_frames(ds.PixelData, number_of_frames=count))
    else:
        size = fmt.native_bits // 8
        frames = [ds.PixelData[i * size : (i + 1) * size] for i in range(count)]
    if path.stem == "JPEG2000-embedded-sequence-delimiter":  # pydicom cannot decode it either
        with pytest.raises(CorruptFrameError, match="more tiles"):
            FrameDecoder(fmt).decode(frames[0])
        return
    expected = ds.pixel_array if fmt.palette else pixel_array(ds, raw=False)
    if fmt.palette:
        expected = apply_color_lut(expected, ds)
    expected = expected.reshape(count, fmt.rows, fmt.columns, -1)
    for data, truth in zip(frames, expected, strict=True):
        frame = decode(fmt, data)
        if fmt.transfer_syntax == JPEG:  # another transform, and another way to spread the chroma
            assert mean_difference(frame, truth) < 2
        elif fmt.transfer_syntax == J2K:
            assert np.abs(frame.astype(int) - truth).max() <= 1
        else:
            np.testing.assert_array_equal(frame, truth)


@real_data
def test_real_slide_whose_header_says_rgb_and_whose_streams_are_ycbcr() -> None:
    ds = pydicom.dcmread(SHARED / "real/dicom/gcp_cmu1_pyramid/level-2-frames-0-4.dcm")
    assert ds.PhotometricInterpretation == "RGB"
    decoder = FrameDecoder(dataset_format(ds))
    for data in generate_frames(ds.PixelData, number_of_frames=4):
        with Image.open(BytesIO(data)) as picture:
            truth = np.asarray(picture.convert("RGB"))
        np.testing.assert_allclose(decoder.decode(data).astype(int), truth, atol=2)


@real_data
def test_real_slide_with_short_edge_frames() -> None:
    shapes = set()
    for path in sorted((SHARED / "real/cmu1_dicom/jpeg_bot").glob("*.dcm")):
        ds = pydicom.dcmread(path)
        decoder = FrameDecoder(dataset_format(ds))
        out = np.empty((ds.Rows, ds.Columns, 3), np.uint8)
        for data in generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)):
            frame = decoder.decode(data, out)
            with Image.open(BytesIO(data)) as picture:
                np.testing.assert_allclose(frame.astype(int), np.asarray(picture.convert("RGB")), atol=2)
            shapes.add(frame.shape[:2] == (ds.Rows, ds.Columns))
    assert shapes == {True, False}
