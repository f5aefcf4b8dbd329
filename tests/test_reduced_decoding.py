"""Frames and levels decoded at 1/2, 1/4 and 1/8 are the means of blocks of pixels that independent decoders see."""

from __future__ import annotations

import io
import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageFile

from microtome.dicom.decoding import FrameDecoder
from microtome.dicom.decoding.reduced import FACTORS, ReducedFrameDecoder, block_mean, frame_decoder
from microtome.dicom.pyramid import Level
from microtome.dicom.reduction import reduced_level
from microtome.errors import CorruptFrameError, MicrotomeError, MissingFrameError, OptionError
from microtome.lazy.axis import Run
from microtome.lazy.reader import LevelReader
from microtome.lazy.recipe import Recipe, open_recipe
from microtome.model import FrameFormat
from microtome.testing import make_slide
from oracles import assemble, dataset, decode, streams
from test_decoding import (
    JPEG,
    NATIVE,
    STREAMS,
    form,
    jpeg_lossless,
    jpeg_rgb,
    jpeg_ycbcr,
    noise,
    patched_size,
    renamed_components,
    smooth,
    without_segments,
)

each_factor = pytest.mark.parametrize("factor", FACTORS)

MEAN = 0.9
"""Grey values by which libjpeg's scales may differ from means, on average; where no encoder has padded anything."""
MOST = {2: 45, 4: 30, 8: 20}
"""And at the most."""


def means(pixels: np.ndarray, factor: int, inside: bool = False) -> np.ndarray:
    """Means of blocks of (..., rows, columns, samples), halves up; ``inside``: of whole blocks only."""
    rows, columns = pixels.shape[-3:-1]
    if inside:
        rows, columns = rows // factor * factor, columns // factor * factor
        pixels = pixels[..., :rows, :columns, :]
    before = [(0, 0)] * (pixels.ndim - 3)
    padded = np.pad(
        pixels.astype(float), [*before, (0, -rows % factor), (0, -columns % factor), (0, 0)], constant_values=np.nan
    )
    lead, samples = padded.shape[:-3], padded.shape[-1]
    blocks = padded.reshape(*lead, padded.shape[-3] // factor, factor, padded.shape[-2] // factor, factor, samples)
    return np.floor(np.nanmean(blocks, axis=(-4, -2)) + 0.5).astype(pixels.dtype)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert a.shape == b.shape
    return np.abs(a.astype(float) - b.astype(float))


def reduced(fmt: FrameFormat, data: bytes, factor: int) -> np.ndarray:
    """Decode in every way there is, which all must agree."""
    decoder = ReducedFrameDecoder(fmt, factor)
    first = decoder.decode(data)
    again = decoder.decode(memoryview(bytearray(b"ab" + data + b"cd"))[2:-2])
    shape = (-(-fmt.rows // factor), -(-fmt.columns // factor), fmt.channels)
    placed = decoder.decode(data, np.full(shape, 77, fmt.dtype))
    for other in (again, placed):
        np.testing.assert_array_equal(first, other)
        assert other.dtype == first.dtype == fmt.dtype
        assert other.flags.c_contiguous
        assert first.flags.c_contiguous
        assert first.flags.writeable
    return first


@each_factor
@pytest.mark.parametrize("name", STREAMS)
def test_streams_give_the_means_of_what_was_coded(name: str, factor: int) -> None:
    fmt, data, picture, tolerance = STREAMS[name]
    truth = means(picture.reshape(*picture.shape[:2], -1), factor)
    found = reduced(fmt, data, factor)
    if tolerance:
        assert difference(found, truth).mean() < tolerance
    else:
        np.testing.assert_array_equal(found, truth)


@each_factor
@pytest.mark.parametrize(
    "where", ["cmu1_dicom/jpeg_bot", "dicom/gcp_cmu1_pyramid", "dicom/google_camelyon"], ids=lambda w: w.split("/")[1]
)
def test_real_frames_are_near_the_means_of_pillows(real: Path, where: str, factor: int) -> None:
    differences, most, shifted = [], 0.0, []
    for file in sorted((real / where).glob("*.dcm")):
        ds = dataset(file)
        fmt = FrameFormat(JPEG, ds.Rows, ds.Columns, 3, str(ds.PhotometricInterpretation))
        decoder = ReducedFrameDecoder(fmt, factor)
        for data in streams(ds)[::7]:
            full = decode(data, JPEG)
            found = decoder.decode(data)
            whole = (slice(full.shape[0] // 8 * 8 // factor), slice(full.shape[1] // 8 * 8 // factor))
            far = difference(found, means(full, factor))
            if min(full.shape[:2]) >= 16 and full.std() > 8:
                assert far.mean() < 3  # edges included, where the encoder's padding is mixed in
                differences.append(far[whole].mean())
                most = max(most, far[whole].max())
                for axis, by in itertools.product((0, 1), (-1, 1)):
                    moved = means(np.roll(full, by * factor // 2, axis), factor)
                    shifted.append(difference(found, moved)[whole].mean() - differences[-1])
    assert len(differences) >= 3
    assert np.mean(differences) < MEAN
    assert most < MOST[factor]
    assert min(shifted) > 0  # half a pixel off, every frame would fit worse


@each_factor
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "YBR_FULL"])
def test_colours_are_those_of_the_full_decoder(photometric: str, factor: int) -> None:
    rgb = smooth()
    jfif, adobe = jpeg_ycbcr(rgb), jpeg_rgb(rgb)
    bare = without_segments(adobe, 0xEE)
    numbered = renamed_components(bare, b"\1\2\3") if photometric == "RGB" else without_segments(jfif, 0xE0)
    transform = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    fmt = form(JPEG, rgb, photometric=photometric)
    truth = means(rgb, factor)
    for data in (
        jfif,
        adobe,
        bare,  # components named R, G and B
        numbered,  # nothing in the stream tells: the header does
        adobe[:2] + jfif[2:20] + adobe[2:],  # both segments: Adobe's counts
        jfif[:2] + transform + jfif[20:],
        without_segments(jpeg_ycbcr(rgb, "420"), 0xE0),
    ):
        assert difference(reduced(fmt, data, factor), truth).mean() < 2
    # Channels that were taken for others would be far away.
    assert difference(truth, truth[..., ::-1]).mean() > 40


@each_factor
def test_the_slide_whose_header_says_rgb_and_whose_streams_are_ycbcr(real: Path, factor: int) -> None:
    ds = pydicom.dcmread(real / "dicom/gcp_cmu1_pyramid/level-2-frames-0-4.dcm")
    assert ds.PhotometricInterpretation == "RGB"
    fmt = FrameFormat(JPEG, ds.Rows, ds.Columns, 3, "RGB")
    for data in streams(ds):
        truth = means(decode(data, JPEG), factor)
        assert np.abs(reduced(fmt, data, factor).mean((0, 1)) - truth.mean((0, 1))).max() < 1


def encoded(picture: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


@each_factor
@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": "4:2:2"}])
@pytest.mark.parametrize("size", [(64, 96), (61, 95), (7, 3), (1, 1)])
def test_kinds_and_sizes_of_jpeg(options: dict[str, object], size: tuple[int, int], factor: int) -> None:
    picture = smooth(*size)
    data = encoded(picture, **options)
    found = reduced(form(JPEG, picture), data, factor)
    truth = means(decode(data, JPEG), factor)
    assert found.shape == truth.shape
    if min(size) > 8:  # else there is no block without padding
        assert difference(found, truth).mean() < 2
    # Pictures smaller than stated keep their size, and leave no trace in ``out``.
    larger = replace(form(JPEG, picture), rows=80, columns=120)
    np.testing.assert_array_equal(reduced(larger, data, factor), found)


def test_means_round_halves_up_and_count_what_is_there() -> None:
    frame = np.array([[[0], [1], [10]], [[0], [1], [11]], [[200], [203], [255]]], np.uint8)
    np.testing.assert_array_equal(block_mean(frame, 2)[..., 0], [[1, 11], [202, 255]])
    np.testing.assert_array_equal(block_mean(np.full((2, 2, 1), -1, np.int16), 2), [[[-1]]])
    for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32):
        most = np.full((16, 17, 3), np.iinfo(dtype).max, dtype)
        np.testing.assert_array_equal(block_mean(most, 8), most[:2, :3])
        assert block_mean(most, 8).dtype == dtype


@each_factor
def test_native_frames_are_means(factor: int) -> None:
    for pixels in (noise(21, 35, 3), noise(16, 24, 1), noise(17, 9, 1, bits=16), noise(16, 16, 1, bits=16).view("i2")):
        data = pixels.tobytes()
        np.testing.assert_array_equal(reduced(form(NATIVE, pixels), data, factor), means(pixels, factor))
    ramp = (np.arange(256 * 3) % 251).reshape(256, 3).astype(np.uint8)
    index = noise(16, 24, 1)
    fmt = form(NATIVE, index, photometric="PALETTE COLOR", palette=(ramp, 0))
    # Colours are averaged, not their numbers.
    np.testing.assert_array_equal(reduced(fmt, index.tobytes(), factor), means(ramp[index[..., 0]], factor))


def test_a_palette_behind_jpeg_is_looked_up_before_the_mean() -> None:
    index = np.repeat(np.repeat(noise(8, 12, 1), 8, 0), 8, 1)
    ramp = noise(256, 3, seed=3)
    data = encoded(index[..., 0])
    fmt = form(JPEG, index, photometric="PALETTE COLOR", palette=(ramp, 0))
    np.testing.assert_array_equal(reduced(fmt, data, 4), means(ramp[decode(data, JPEG)], 4))


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("cut", ["the end marker", "half", "nearly all"])
def test_a_part_that_is_cut_is_never_decoded(name: str, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # a switch that programs do set
    fmt, data, _, _ = STREAMS[name]
    length = {"the end marker": -2, "half": len(data) // 2, "nearly all": len(data) // 20}[cut]
    for decoder in (ReducedFrameDecoder(fmt, factor) for factor in FACTORS):
        if cut == "the end marker" and not name.startswith(("jpeg", "j2k", "jp2", "htj2k")):
            continue
        with pytest.raises(CorruptFrameError):
            decoder.decode(data[:length])
        decoder.decode(data)  # and with the header known
        with pytest.raises(CorruptFrameError):
            decoder.decode(data[:length])


@pytest.mark.parametrize("name", ["jpeg", "jpeg 4:2:0", "jpeg grey"])
def test_damage_raises_our_errors_and_is_found_where_the_full_decoder_finds_it(name: str) -> None:
    fmt, data, _, _ = STREAMS[name]
    generator = np.random.default_rng(7)
    full, small = FrameDecoder(fmt), ReducedFrameDecoder(fmt, 4)
    agree = raised = 0
    for _ in range(200):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 700), 2):
            damaged[place] = generator.integers(0, 256)
        outcomes = []
        for decoder in (full, small):
            try:
                outcomes.append(decoder.decode(bytes(damaged)).shape)
            except MicrotomeError:
                outcomes.append(None)
        raised += outcomes[0] is None
        agree += (outcomes[0] is None) == (outcomes[1] is None)
        if outcomes[0] and outcomes[1]:
            assert outcomes[1][:2] == (-(-outcomes[0][0] // 4), -(-outcomes[0][1] // 4))
    assert raised > 20
    assert agree >= 198


def test_sizes_that_bytes_can_hardly_hold_are_refused_before_decoding() -> None:
    picture = smooth()
    for data in (jpeg_ycbcr(picture), jpeg_lossless(picture)):
        decoder = ReducedFrameDecoder(form(JPEG, picture, rows=40_000, columns=40_000), 8)
        with pytest.raises(CorruptFrameError, match="claims 40000 x 40000"):
            decoder.decode(patched_size(data, 40_000, 40_000))
    with pytest.raises(CorruptFrameError, match="picture of"):
        ReducedFrameDecoder(form(JPEG, picture), 8).decode(patched_size(jpeg_ycbcr(picture), 72, 96))


def test_out_is_used_only_where_it_fits() -> None:
    fmt, data, _, _ = STREAMS["jpeg"]
    decoder = ReducedFrameDecoder(fmt, 4)
    right = np.zeros((16, 24, 3), np.uint8)
    assert decoder.decode(data, right) is right
    assert right.any()
    for out in (np.zeros((64, 96, 3), np.uint8), np.zeros((16, 24, 3), np.uint16), np.zeros((16, 48, 3), "u1")[:, ::2]):
        np.testing.assert_array_equal(decoder.decode(data, out), right)
        assert not out.any()


def test_many_threads_share_a_decoder() -> None:
    pictures = [smooth(64, 96), smooth(40, 33), smooth(16, 16)]
    data = [jpeg_ycbcr(p, "420") for p in pictures]
    decoder = ReducedFrameDecoder(form(JPEG, pictures[0]), 2)
    expected = [decoder.decode(d) for d in data]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 3, 100):
            if not np.array_equal(decoder.decode(data[i]), expected[i]):
                wrong.append(int(i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_factors_that_libjpeg_does_not_know_are_refused() -> None:
    fmt, _, _, _ = STREAMS["jpeg"]
    for factor in (0, 1, 3, 16, -2):
        with pytest.raises(OptionError, match="reduced by one of"):
            ReducedFrameDecoder(fmt, factor)


def test_without_libjpeg_in_pillow_frames_are_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    monkeypatch.setattr(features, "check_codec", lambda name: False)
    fmt, data, _, _ = STREAMS["jpeg 4:2:0"]
    found = reduced(fmt, data, 4)
    np.testing.assert_array_equal(found, means(FrameDecoder(fmt).decode(data), 4))


# Levels


@pytest.fixture
def levels():
    opened = []

    def open_levels(folder: Path, **options: object) -> tuple[Level, ...]:
        opened.append(open_recipe(Recipe.make(str(folder), **options)))
        return opened[-1].slide.levels

    return open_levels


def read(level: Level, **options: object) -> np.ndarray:
    """The pixels of a level, (z, path, y, x, samples)."""
    reader = LevelReader(level, **options)
    z, paths, rows, columns, _ = reader.shape
    out = np.zeros(reader.shape, reader.dtype)
    reader.read(reader.planes(Run(0, z), Run(0, paths)), [(Run(0, rows), Run(0, columns))], out)
    return out


LOSSY = ["jpeg_ybr422_bot", "jpeg_rgb_eot", "jpeg_empty_bot", "jpeg_multifragment", "jpeg_sparse", "jpeg_rotated"]
LOSSY += ["jpeg_sparse_empty_bot", "jpeg_concat_full", "jpeg_concat_sparse", "jpeg_frame_500x", "fluor8_jpeg"]
LOSSY += ["jpeg_zstack", "jpeg_zstack_sparse", "j2k", "htj2k"]
EXACT = ["j2klossless", "j2klossless_rgb", "htj2klossless", "htj2krpcl", "jpegls", "rle", "jxllossless", "jpeglsnear"]
EXACT += ["jxl", "jxlrecomp", "native_explicit", "native_implicit", "native_bigendian", "fluor16_native"]
EXACT += ["fluor16_j2k", "fluor16_jpegls_sparse"]


@pytest.mark.parametrize(
    ("name", "factor"),
    [pytest.param(n, (2, 4, 8)[i % 3] if n != "jpeg_frame_500x" else 4) for i, n in enumerate([*LOSSY, *EXACT])],
)
def test_variants_read_as_the_means_of_frames_that_others_decode(variants, levels, name: str, factor: int) -> None:
    level = levels(variants / name)[0]
    small = reduced_level(level, factor)
    assert small is not None
    full, _ = assemble(sorted([*(variants / name).glob("L0.dcm"), *(variants / name).glob("L0_part*.dcm")]))
    truth = means(full, factor, inside=True)
    found = read(small)
    if name in EXACT:
        np.testing.assert_array_equal(found, truth)
        return
    far = difference(found, truth)
    assert far.mean() < (MEAN if name.startswith("jpeg") else 0.5)
    assert far.max() < MOST[factor]


@pytest.mark.parametrize("name", ["level1", "level2"])
def test_frames_that_are_cut_short_at_the_edge(real: Path, levels, name: str) -> None:
    found = {level.name: level for level in levels(real / "cmu1_dicom/jpeg_bot")}
    level = found[name]
    small = reduced_level(level, 4)
    assert small is not None
    full = read(level)
    assert difference(read(small), means(full, 4, inside=True)).mean() < MEAN


@pytest.mark.parametrize("tiling", ["full", "sparse"])
@pytest.mark.parametrize(("rows", "columns"), [(130, 259), (131, 256), (128, 200), (67, 65), (192, 385)])
@pytest.mark.parametrize("frame_order", [None, "column"])
def test_blocks_that_the_matrix_cuts_are_left_out(
    tmp_path: Path, levels, rows: int, columns: int, tiling: str, frame_order: str | None
) -> None:
    pixels = noise(rows, columns, 3)
    stated = {} if frame_order is None else {"dimension_organization": "absent"}
    if frame_order and tiling == "sparse":
        stated = {}
    slide = make_slide(tmp_path, pixels=pixels, frame=64, codec="native", levels=1, tiling=tiling, **stated)
    level = levels(slide.folder, **({"frame_order": frame_order} if stated else {}))[0]
    full = read(level)  # by columns of tiles it is another picture, but one
    for factor in FACTORS:
        small = reduced_level(level, factor)
        assert small is not None
        head = small.head
        assert (head.rows, head.columns) == (rows // factor, columns // factor)
        assert (head.tile_rows, head.tile_columns) == (64 // factor, 64 // factor)
        assert head.spacing is not None
        assert level.head.spacing is not None
        assert head.spacing.row == pytest.approx(level.head.spacing.row * factor)
        found = read(small)
        np.testing.assert_array_equal(found, means(full, factor, inside=True))
        if not stated:
            np.testing.assert_array_equal(found[0, 0], means(pixels, factor, inside=True))
        y, x = (np.random.default_rng(1).integers(0, n, 50) for n in found.shape[2:4])
        nothing = np.zeros(50, np.int64)
        points = LevelReader(small).read_points(nothing, nothing, y, x)
        np.testing.assert_array_equal(points, found[0, 0, y, x])


def test_what_has_no_reduced_level(tmp_path: Path, levels) -> None:
    pixels = smooth(100, 150)
    for frame, possible in ((64, (2, 4, 8)), (60, (2, 4)), (50, (2,)), (63, ()), (150, (2, 4, 8)), (200, (2, 4, 8))):
        slide = make_slide(tmp_path / str(frame), pixels=pixels, frame=frame, codec="native", levels=1)
        level = levels(slide.folder)[0]
        assert tuple(f for f in FACTORS if reduced_level(level, f) is not None) == possible
        for factor in possible:
            small = reduced_level(level, factor)
            assert small is not None
            np.testing.assert_array_equal(read(small)[0, 0], means(pixels, factor, inside=True))
            assert reduced_level(small, 2) is None  # reduced already
    tiny = make_slide(tmp_path / "tiny", pixels=smooth(3, 90), frame=16, codec="native", levels=1)
    assert reduced_level(levels(tiny.folder)[0], 2) is not None
    assert reduced_level(levels(tiny.folder)[0], 4) is None
    with pytest.raises(OptionError, match="reduced by one of"):
        reduced_level(levels(tiny.folder)[0], 3)


def test_tiles_off_the_grid_have_no_reduced_level(tmp_path: Path, levels) -> None:
    slide = make_slide(tmp_path, pixels=smooth(128, 128), frame=64, codec="native", levels=1, tiling="sparse")
    file = slide.files[0]
    ds = pydicom.dcmread(file)
    ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence[0].RowPositionInTotalImagePixelMatrix = 60
    ds.save_as(file)
    level = levels(slide.folder)[0]
    assert level.overlapping
    assert reduced_level(level, 2) is None


def test_absent_tiles_stay_absent(variants: Path, levels) -> None:
    level = levels(variants / "jpeg_sparse")[0]
    small = reduced_level(level, 8)
    assert small is not None
    colour = (1, 2, 254)
    absent = (read(level, fill=colour) == colour).all(-1)
    assert 0 < absent.mean() < 1
    inside = absent[..., : absent.shape[2] // 8 * 8 : 8, : absent.shape[3] // 8 * 8 : 8]
    np.testing.assert_array_equal((read(small, fill=colour) == colour).all(-1), inside)


def test_lost_frames_raise_or_are_filled(tmp_path: Path, levels) -> None:
    slide = make_slide(tmp_path, width=512, height=256, frame=64, levels=1, associated=False)
    file = slide.files[0]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 3 // 4])
    small = reduced_level(levels(slide.folder)[0], 8)
    assert small is not None
    with pytest.raises(MissingFrameError):
        read(small)
    found = read(small, missing="fill", fill=(1, 2, 254))
    lost = (found == (1, 2, 254)).all(-1)
    assert 0 < lost.mean() < 0.5
    assert not lost[0, 0, :16].any()


def test_formats_keep_the_size_of_stored_frames() -> None:
    fmt = FrameFormat(NATIVE, 20, 30, 3, "RGB")
    small = replace(fmt, rows=10, columns=15, reduction=2, unreduced=fmt)
    assert small.native_bits == fmt.native_bits
    assert isinstance(frame_decoder(small), ReducedFrameDecoder)
    assert type(frame_decoder(fmt)) is FrameDecoder
    # A server may send other frames than are stored.
    sent = replace(small, transfer_syntax=JPEG)
    picture = smooth(20, 30)
    assert difference(frame_decoder(sent).decode(jpeg_ycbcr(picture)), means(picture, 2)).mean() < 3
