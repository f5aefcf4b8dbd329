"""Real slides and the 32 hard pyramids through Orthanc, a DICOMweb server that is not ours: as they are on disk.

Everything is stored by our own STOW-RS. Oracle: the files themselves, their frames cut out by pydicom, never by our
frame index. What Orthanc (1.10.1 with its plugin 1.7, as Debian has it) does oddly is written down in the tables below,
so that a change of it, or of ours, is noticed.
"""

from __future__ import annotations

import os
import pickle
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import fsspec
import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.encaps import generate_frames
from requests.adapters import HTTPAdapter

import microtome as mt
import orthanc
from microtome.errors import (
    AmbiguousSlideError,
    AuthenticationError,
    IncompleteSlideWarning,
    NotOnServerError,
    RequestError,
    SlideNotFoundError,
    SlowAccessWarning,
    TranscodedWarning,
)
from microtome.lazy.recipe import forget_open_slides
from microtome.lazy.unwrap import unwrap
from microtome.storage import retrying
from microtome.storage.dicomweb import qido
from microtome.storage.dicomweb.frames import InstanceFrames
from oracles import dataset
from secrets_search import find_secret, whole_traceback
from test_variants import ALL, LEVELS

pytestmark = pytest.mark.timeout(100)

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
NATIVE = ("1.2.840.10008.1.2", EXPLICIT_LITTLE, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
# Module constants, never local variables of a test: tracebacks are searched with the locals of all frames.
USER, PASSWORD, WRONG = "alice", "s3cret", "open-sesame-0123456789"

# The slides among the real files, one a series: name, and a glob of its files.
REAL = {
    "bpaec": "dicom/3dhistech_BPAEC/[0-9]*",
    "ezwsi": "dicom/ezwsi/multiframe_camelyon_challenge_image.dcm",
    "ezwsi_label": "dicom/ezwsi/test.dcm",
    "gcp_cmu1_pyramid": "dicom/gcp_cmu1_pyramid/*.dcm",
    "gcp_jpeg": "dicom/gcp_converter_tests/jpeg.dicom",
    "gcp_jpeg2000": "dicom/gcp_converter_tests/jpeg2000.dicom",
    "highdicom": "dicom/highdicom/sm_image.dcm",
    "highdicom_dots": "dicom/highdicom/sm_image_dots.dcm",
    "highdicom_grayscale": "dicom/highdicom/sm_image_grayscale.dcm",
    "highdicom_jpegls": "dicom/highdicom/sm_image_jpegls.dcm",
    "highdicom_numbers": "dicom/highdicom/sm_image_numbers.dcm",
    "openslide_boxes": "dicom/openslide_boxes/*.dcm",
    "panimg_full_no_bot": "dicom/panimg/full_no_bot/*.dcm",
    "panimg_full_with_bot": "dicom/panimg/full_with_bot/*.dcm",
    "panimg_sparse_with_bot": "dicom/panimg/sparse_with_bot/*.dcm",
    "pathml": "dicom/pathml_tcga/*.dcm",
    "cmu1_bot": "cmu1_dicom/jpeg_bot/*.dcm",
    "cmu1_eot": "cmu1_dicom/jpeg_eot/*.dcm",
}
# Other files under UIDs that those above have, too. Orthanc keeps what it got first, and says that it stored the
# second: these go to the second Orthanc, which wants a password.
TWINS = {
    "google_camelyon": "dicom/google_camelyon/*.dcm",
    "ezwsi_label_2": "dicom/ezwsi/test_wsi.dcm",
    "highdicom_control": "dicom/highdicom/sm_image_control.dcm",
}
# What Orthanc refuses, and why: no whole-slide image. It stores transfer syntaxes that it cannot decode, UIDs of more
# than 64 characters (pathml), headers that lack what is mandatory, and frames without an offset table.
REFUSED: dict[str, str] = {}

# Frames that Orthanc fails (500) to send as they are stored. Asked to decode them, it sends them as they are, and says
# that they are decoded. HTJ2K and JPEG XL are younger than its DCMTK.
NOT_DECODED = ["htj2klossless", "htj2krpcl", "htj2k", "jxllossless", "jxl", "jxlrecomp"]
# Frames that it fails to send as they are stored, too, and does decode: samples of 8 bits keep their bytes.
DECODED = ["native_deflated", "native_bigendian"]


@pytest.fixture(scope="session")
def installed() -> None:
    """Orthanc; tests that need it are skipped where it is not, and fail where CI promises it."""
    reason = orthanc.missing()
    if reason and os.environ.get("MICROTOME_CI") == "1":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)


@dataclass(frozen=True)
class Stored:
    """An instance: its file, and what the file says of it."""

    file: Path
    study: str
    series: str
    sop: str
    syntax: str
    frames: int

    @classmethod
    def of(cls, file: Path) -> Stored:
        ds = pydicom.dcmread(file, stop_before_pixels=True)
        uids = (str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID))
        return cls(file, *uids, str(ds.file_meta.TransferSyntaxUID), int(ds.get("NumberOfFrames", 1)))

    @property
    def path(self) -> str:
        return f"studies/{self.study}/series/{self.series}/instances/{self.sop}"


class Archive:
    """A server, and the slides that are stored there."""

    def __init__(self, url: str, slides: dict[str, list[Path]], credentials: Any = None) -> None:
        self.root = url
        self.credentials = credentials
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pydicom says of the files is no concern of ours
            self.slides = {name: [Stored.of(f) for f in files] for name, files in slides.items()}
        self.fs = fsspec.filesystem("dicomweb", url=url, credentials=credentials, skip_instance_cache=True)

    def url(self, name: str) -> str:
        first = self.slides[name][0]
        return f"{self.root}/studies/{first.study}/series/{first.series}"

    def open(self, name: str, **options: Any) -> xr.DataTree:
        return mt.open_slide(self.url(name), credentials=self.credentials, **options)

    def from_disk(self, name: str, **options: Any) -> xr.DataTree:
        return mt.open_slide([str(i.file) for i in self.slides[name]], **options)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs of requests as they go out, each try one, counted by nothing of ours."""
    urls: list[str] = []
    send = HTTPAdapter.send

    def count(adapter: HTTPAdapter, request: Any, *args: Any, **kwargs: Any) -> Any:
        urls.append(request.url)
        return send(adapter, request, *args, **kwargs)

    monkeypatch.setattr(HTTPAdapter, "send", count)
    return urls


def files_of(globs: dict[str, str], real: Path) -> dict[str, list[Path]]:
    return {name: sorted(real.glob(glob)) for name, glob in globs.items()}


@pytest.fixture(scope="session")
def archive(installed: None, real: Path, variants: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """Orthanc with every real slide and every variant."""
    slides = files_of(REAL, real) | {name: sorted((variants / name).glob("*.dcm")) for name in ALL}
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as url:
        filled = Archive(url, slides)
        for name in REAL:
            assert len(filled.fs.store(slides[name])) == len(slides[name])
        for name in ALL:
            filled.fs.put(variants / name, "studies", recursive=True)
        yield filled


@pytest.fixture(scope="module")
def guarded(installed: None, real: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """Orthanc that wants a password, with the slides whose UIDs are taken elsewhere."""
    with orthanc.running(tmp_path_factory.mktemp("guarded"), {USER: PASSWORD}) as url:
        filled = Archive(url, files_of(TWINS, real), mt.credentials.basic(USER, PASSWORD))
        for stored in filled.slides.values():
            filled.fs.store([i.file for i in stored])
        yield filled


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """Each test asks the server anew."""
    mt.cache.clear()
    yield
    forget_open_slides()


@contextmanager
def collected() -> Iterator[set[type[Warning]]]:
    """The kinds of warnings that are given in a block."""
    kinds: set[type[Warning]] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield kinds
    kinds.update(w.category for w in caught)


def frames_on_disk(file: Path) -> list[bytes]:
    """The encoded frames of a file as pydicom cuts them out.

    Without the Extended Offset Table: its lengths leave out the byte that pads a frame to an even length, and those of
    cmu1_eot are eight too large. Every frame of these files is one fragment, where there is no basic table to tell.
    """
    ds = dataset(file)
    count = int(ds.get("NumberOfFrames", 1))
    if str(ds.file_meta.TransferSyntaxUID) not in NATIVE:
        return list(generate_frames(ds.PixelData, number_of_frames=count))
    size = ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated // 8
    return [ds.PixelData[size * i : size * (i + 1)] for i in range(count)]


def digests(frames: list[bytes]) -> list[str]:
    return [sha256(frame).hexdigest() for frame in frames]


# What is stored ------------------------------------------------------------------------------------------------------


def test_orthanc_has_every_slide(archive: Archive, real: Path) -> None:
    stored = [i for slide in archive.slides.values() for i in slide]
    assert archive.fs.find("") == sorted(i.path for i in stored)
    assert len(stored) == 140
    # And no slide of the shared data was forgotten.
    names = {str(i.file) for i in stored} | {str(f) for glob in TWINS.values() for f in real.glob(glob)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for folder in ("dicom", "cmu1_dicom"):
            for file in filter(Path.is_file, (real / folder).rglob("*")):
                ds = pydicom.dcmread(file, specific_tags=["SOPClassUID"], force=True, stop_before_pixels=True)
                refused = str(file.relative_to(real)) in REFUSED
                assert (str(file) in names) == (ds.get("SOPClassUID") == WHOLE_SLIDE and not refused), file


def test_a_file_that_is_not_dicom_is_refused(archive: Archive, real: Path) -> None:
    with pytest.raises(RequestError, match=r"studies: .*(400|not stored|cannot be understood)"):
        archive.fs.put(real / "dicom/3dhistech_BPAEC/readme.txt", "studies")
    with pytest.raises(IsADirectoryError):
        archive.fs.put(real / "dicom/3dhistech_BPAEC", "studies")
    with pytest.raises(RequestError):
        archive.fs.pipe_file("studies", b"\0" * 1000)


def test_the_first_of_two_files_under_one_uid_stays(archive: Archive, real: Path) -> None:
    """Orthanc says that it stored the second: who must know has to read it back."""
    (first,) = archive.slides["highdicom"]
    assert len(archive.fs.store([real / "dicom/highdicom/sm_image_control.dcm"])) == 1
    assert archive.fs.cat_file(first.path) == first.file.read_bytes()


def test_instances_may_be_sent_to_their_study_only(archive: Archive) -> None:
    (one,) = archive.slides["highdicom"]
    assert len(archive.fs.store([one.file.read_bytes()], f"studies/{one.study}")) == 1
    with pytest.raises(RequestError):
        archive.fs.store([one.file], "studies/1.2.3")


# Frames and files ----------------------------------------------------------------------------------------------------


def check_frames(archive: Archive, name: str) -> None:
    odd = name in NOT_DECODED + DECODED
    for instance in archive.slides[name]:
        expected = frames_on_disk(instance.file)
        paths = [f"{instance.path}/frames/{n + 1}" for n in range(len(expected))]
        # Of a failure (500) that does not pass, the first try tells enough here.
        with collected() as kinds, mt.config.set(http_retries=0 if odd else 5):
            got = archive.fs.cat(paths)
            parts = InstanceFrames(archive.fs.service, instance.path, transfer_syntax="", frames=len(expected)).get(
                range(1, len(expected) + 1)
            )
        assert digests([got[p] for p in paths]) == digests(expected)
        assert {frame.transfer_syntax for frame in parts.values()} == {EXPLICIT_LITTLE if odd else instance.syntax}
        assert kinds == ({TranscodedWarning} if odd else set())
        # Part 10 files come byte for byte, also those that Orthanc cannot parse.
        with archive.fs.open(instance.path) as file:
            assert sha256(file.read()).digest() == sha256(instance.file.read_bytes()).digest()


@pytest.mark.parametrize("name", [*REAL, *ALL])
def test_frames_and_files_are_those_on_disk(archive: Archive, name: str) -> None:
    check_frames(archive, name)


@pytest.mark.parametrize("name", TWINS)
def test_frames_and_files_behind_a_password(guarded: Archive, name: str) -> None:
    check_frames(guarded, name)


# Slides --------------------------------------------------------------------------------------------------------------


def check_tree(disk: xr.DataTree, web: xr.DataTree) -> None:
    assert [node.path for node in web.subtree] == [node.path for node in disk.subtree]
    for a, b in zip(disk.subtree, web.subtree, strict=True):
        # Orthanc does not say in what transfer syntax an instance is stored; the frames do.
        assert without_syntax(b.attrs) == without_syntax(a.attrs)
        assert b.attrs.get("transfer_syntax_uid", "") == ""
        assert list(b.data_vars) == list(a.data_vars)
        if "image" not in a.data_vars:
            continue
        x, y = a["image"], b["image"]
        assert (y.dims, y.shape, y.dtype) == (x.dims, x.shape, x.dtype)
        assert without_syntax(y.attrs) == without_syntax(x.attrs)
        xr.testing.assert_identical(y.coords.to_dataset(), x.coords.to_dataset())
        np.testing.assert_array_equal(y.values, x.values)
        if a.path.startswith("/level"):
            np.testing.assert_array_equal(y.wsi.coverage().values, x.wsi.coverage().values)
        for path in range(max(1, len(x.attrs["optical_paths"]))):
            node = a.path.strip("/")
            assert web.wsi.icc_profile(node, path) == disk.wsi.icc_profile(node, path)


def without_syntax(attrs: dict[Any, Any]) -> dict[Any, Any]:
    return {name: value for name, value in attrs.items() if name != "transfer_syntax_uid"}


def plain(ds: pydicom.Dataset) -> pydicom.Dataset:
    """Headers without what comes as bulk data (profiles and palettes), which only those who ask for it fetch, and
    without sequences of empty items, of which Orthanc tells nothing."""
    for element in list(ds):
        if element.VR in ("OB", "OW", "OB or OW", "UN"):
            del ds[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                plain(item)
            if not any(len(item) for item in element.value):
                del ds[element.tag]
    return ds


def check_slide(archive: Archive, name: str) -> None:
    with collected() as said_of_files:
        disk = archive.from_disk(name)
    with collected() as said:
        web = archive.open(name)
    assert said == said_of_files - {SlowAccessWarning}
    with collected() as transcoded:
        check_tree(disk, web)
    # Frames that Orthanc says it decoded, and did not, are the stored ones: nothing to warn of.
    assert transcoded == ({TranscodedWarning} if name in DECODED else set())
    expected, got = disk.wsi.metadata, web.wsi.metadata
    assert list(got) == list(expected)
    for node, headers in expected.items():
        for a, b in zip(headers, got[node], strict=True):
            with collected():  # what pydicom says of values that break the rules is no concern of ours
                assert plain(b) == plain(a)
    assert [why for _, why in web.wsi.ignored] == [why for _, why in disk.wsi.ignored]


@pytest.mark.parametrize("name", [*REAL, *ALL])
def test_slides_are_those_on_disk(archive: Archive, name: str) -> None:
    check_slide(archive, name)


@pytest.mark.parametrize("name", TWINS)
def test_slides_behind_a_password(guarded: Archive, name: str) -> None:
    check_slide(guarded, name)


@pytest.mark.parametrize("name", ["cmu1_bot", "highdicom_grayscale", "jpeg_zstack_sparse", "j2k"])
def test_crops_points_and_direct_reads(archive: Archive, name: str) -> None:
    disk, web = archive.from_disk(name)["level0"].image, archive.open(name, chunks=None)["level0"].image
    rows, columns = disk.sizes["y"], disk.sizes["x"]
    crop = {"y": slice(rows // 3, rows // 2), "x": slice(columns // 5, columns)}
    np.testing.assert_array_equal(web.isel(crop).values, disk.isel(crop).values)
    np.testing.assert_array_equal(web[..., ::-7, 3::5, :].values, disk[..., ::-7, 3::5, :].values)
    y, x = (xr.DataArray(np.arange(9) * n // 9, dims="p") for n in (rows, columns))
    np.testing.assert_array_equal(web.isel(y=y, x=x).values, disk.isel(y=y, x=x).values)
    many = [0, rows // 4, rows // 2], [0, columns // 2, columns // 4], rows // 5, columns // 5
    np.testing.assert_array_equal(web.wsi.read(*many), disk.wsi.read(*many))


@pytest.mark.parametrize("name", ["cmu1_bot", "gcp_cmu1_pyramid", "bpaec", "jpeg_sparse", "j2k"])
def test_what_is_computed_is_what_is_computed_from_disk(archive: Archive, name: str) -> None:
    disk, web = archive.from_disk(name), archive.open(name)
    spacing = disk["level0"].image.wsi.spacing.finer
    mask = disk.wsi.tissue_mask(spacing=4 * spacing)
    np.testing.assert_array_equal(web.wsi.tissue_mask(spacing=4 * spacing).values, mask.values)
    images = []
    for tree in (disk, web):
        image = tree.wsi.at(spacing=2.5 * spacing)
        images.append(image if name == "bpaec" else image.wsi.to_profile("adobe_rgb", source="srgb"))
    xr.testing.assert_equal(*(image.compute() for image in images))
    cut = [image.wsi.patches(64, 40, mask=mask.compute(), min_fraction=0, pad="fill") for image in images]
    assert cut[0].sizes["patch"] > 5
    xr.testing.assert_equal(*(patches.compute() for patches in cut))


def test_patches_are_read_by_lists_of_frames(archive: Archive, sent: list[str]) -> None:
    level = archive.open("jpeg_ybr422_bot")["level0"].image  # 6 x 5 frames
    patches = level.wsi.patches(100, 50)
    sent.clear()
    _ = patches.image.values
    asked = [url.split("/frames/")[1].split(",") for url in sent if "/frames/" in url]
    assert sorted(int(n) for some in asked for n in some) == [*range(1, 31)]  # each frame once
    assert len(asked) <= 4
    mt.cache.clear()
    sent.clear()
    assert patches.wsi.prefetch() == 30
    assert len(sent) <= 4


def test_the_series_of_a_study_are_told_apart(archive: Archive) -> None:
    (one,) = archive.slides["highdicom"]
    with pytest.raises(AmbiguousSlideError, match="series=") as caught:
        mt.open_slide(f"{archive.root}/studies/{one.study}")
    mine = {i.series for i in (i for slide in archive.slides.values() for i in slide) if i.study == one.study}
    assert set(caught.value.choices) == mine
    assert len(mine) == 3
    for series in mine:
        slide = mt.open_slide(f"{archive.root}/studies/{one.study}", series=series)
        assert slide.attrs["series_instance_uid"] == series


def test_one_instance_is_a_slide(archive: Archive) -> None:
    one = next(i for i in archive.slides["rle"] if i.file.name == "L1.dcm")
    web = mt.open_slide(f"{archive.root}/{one.path}")
    assert list(web.children) == ["level0"]
    np.testing.assert_array_equal(web["level0"].image.values, mt.open_slide(one.file)["level0"].image.values)


def pink(file: Path, to: Path) -> Path:
    """Native pixels that begin like a JPEG stream."""
    ds = dataset(file)
    size = len(ds.PixelData) // int(ds.NumberOfFrames)
    frames = [ds.PixelData[i : i + size] for i in range(0, len(ds.PixelData), size)]
    ds.PixelData = b"".join(b"\xff\xd8\xff" + frame[3:] for frame in frames)
    ds.save_as(to)
    return to


def test_slides_that_are_changed_first(installed: None, real: Path, variants: Path, tmp_path: Path) -> None:
    files = [f for f in sorted((variants / "jpeg_concat_full").glob("*.dcm")) if f.name != "L0_part2.dcm"]
    with orthanc.running(tmp_path) as url:
        lacking = Archive(url, {"lacking": files, "pink": [pink(real / REAL["highdicom"], tmp_path / "pink.dcm")]})
        for slide in lacking.slides.values():
            lacking.fs.store([i.file for i in slide])
        check_slide(lacking, "pink")
        # A part of a concatenation is lost.
        with pytest.warns(IncompleteSlideWarning, match="lost"):
            web = lacking.open("lacking", missing="fill")
        with pytest.warns(IncompleteSlideWarning, match="lost"):
            disk = lacking.from_disk("lacking", missing="fill")
        check_tree(disk, web)


# What Orthanc cannot send --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_DECODED + DECODED)
def test_metadata_from_elsewhere_tell_the_transfer_syntax(archive: Archive, name: str) -> None:
    """Orthanc then refuses (400) the media type of HTJ2K and JPEG XL, or fails again, before it sends the frames."""
    with collected():
        disk = archive.from_disk(name)
    web = archive.open(name, metadata=disk.wsi.to_json())
    # Whatever native frames were on disk, to decode them alters nothing: no warning.
    for node in disk.children:
        np.testing.assert_array_equal(web[node].image.values, disk[node].image.values)
        assert web[node].attrs["transfer_syntax_uid"] == disk[node].attrs["transfer_syntax_uid"]


def test_what_orthanc_fails_to_send_is_not_asked_of_it_again(archive: Archive, sent: list[str]) -> None:
    web = archive.open("htj2k")
    whole = web["level0"].image.values
    mt.cache.clear()
    sent.clear()
    np.testing.assert_array_equal(web["level0"].image.values, whole)
    assert len(sent) == 1
    # And what it can do with other instances is known as well as before.
    assert archive.fs.service.capabilities.original is not False


def test_frames_that_are_not_there(archive: Archive) -> None:
    (one,) = archive.slides["highdicom"]
    with pytest.raises(RequestError, match="frames/26: HTTP 400: Parameter out of range"):
        archive.fs.cat_file(f"{one.path}/frames/26")
    # Orthanc begins to answer a list before it looks at its last frame, and then hangs up.
    with mt.config.set(http_retries=0), pytest.raises(RequestError, match=r"frames/1,25,26: .*cut short"):
        archive.fs.cat([f"{one.path}/frames/{n}" for n in (1, 25, 26)])


def test_pictures_that_orthanc_renders(archive: Archive) -> None:
    """Last resort, and only when asked for: 8 bits, JPEG, not the stored pixels."""
    stored = archive.open("jpeg_ybr422_bot")["level2"].image.values
    shown = archive.open("jpeg_ybr422_bot", rendered=True)["level2"].image
    assert shown.dtype == np.uint8
    assert 0 < np.abs(shown.values.astype(int) - stored).mean() < 3


# Requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jpeg_ybr422_bot", "jpeg_sparse", "jpeg_concat_sparse", "cmu1_bot", "bpaec"])
@pytest.mark.parametrize("what", ["series", "study"])
def test_opening_takes_two_requests_and_no_frame(archive: Archive, sent: list[str], name: str, what: str) -> None:
    url = archive.url(name) if what == "series" else archive.url(name).split("/series/")[0]
    web = mt.open_slide(url)
    web["level0"].image.wsi.coverage()  # positions of sparse frames came with the metadata
    assert len(sent) <= 2
    assert not any("/frames/" in url for url in sent)
    assert web.attrs == archive.from_disk(name).attrs


def test_regions_are_read_by_lists_of_frames(archive: Archive, sent: list[str]) -> None:
    image = archive.open("jpeg_ybr422_bot", chunks=None)["level0"].image  # 6 x 5 frames
    region = image[100:600, 300:900]
    assert repr(region.wsi.explain()).startswith("9 frames in 1 request")
    sent.clear()
    _ = region.values
    assert [url.split("/frames/")[1] for url in sent] == ["2,3,4,7,8,9,12,13,14"]
    _ = region.values  # from the cache
    assert len(sent) == 1
    _ = image.values
    assert [url.count(",") + 1 for url in sent] == [9, 21]
    mt.cache.clear()
    sent.clear()
    with mt.config.set(frames_per_request=7):
        _ = archive.open("jpeg_ybr422_bot", chunks=None)["level0"].image.values
    numbers = [url.split("/frames/")[1].split(",") for url in sent if "/frames/" in url]
    assert max(map(len, numbers)) <= 7
    assert sorted(int(n) for some in numbers for n in some) == [*range(1, 31)]


@pytest.mark.parametrize("name", ["cmu1_bot", "jpeg_concat_sparse", "fluor16_jpegls_sparse", "pathml", "bpaec"])
@pytest.mark.parametrize("source", ["disk", "web"])
def test_opening_with_metadata_takes_no_request(archive: Archive, sent: list[str], name: str, source: str) -> None:
    with collected():
        original = archive.from_disk(name) if source == "disk" else archive.open(name)
    text = original.wsi.to_json()
    sent.clear()
    with collected():
        web = archive.open(name, metadata=text)
    assert sent == []
    for node in original.children:
        if node.startswith("level"):
            xr.testing.assert_equal(original[node].to_dataset(), web[node].to_dataset())


def test_idle_connections_are_no_trouble(archive: Archive, sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Orthanc closes what is not used for a second."""
    monkeypatch.setattr(retrying, "backoff", lambda tries: pytest.fail("waits before it tries again"))
    image = archive.open("jpegls", chunks=None)["level0"].image
    _ = image.values
    (one,) = archive.slides["highdicom"]
    for _ in range(2):
        time.sleep(1.3)
        mt.cache.clear()
        sent.clear()
        _ = image.values
        assert len(sent) <= 2
    time.sleep(1.3)
    assert len(archive.fs.store([one.file])) == 1  # which must not be sent twice


# Searching -----------------------------------------------------------------------------------------------------------


def series_on(archive: Archive) -> set[str]:
    return {i.series for slide in archive.slides.values() for i in slide}


def test_find_slides(archive: Archive, guarded: Archive) -> None:
    found = mt.find_slides(archive.root, PatientID="CMU1-rle")
    assert found["url"].tolist() == [archive.url("rle")]
    assert mt.open_slide(found["url"][0]).attrs["series_instance_uid"] == found["series_uid"][0]
    found = mt.find_slides(archive.root, PatientID="CMU1-native_*")
    assert set(found["url"]) == {archive.url(name) for name in ALL if name.startswith("native_")}
    found = mt.find_slides(archive.root, AccessionNumber="S19-1_A_1_1")
    assert set(found["url"]) == {archive.url(name) for name in REAL if name.startswith("highdicom")}
    found = mt.find_slides(archive.root, PatientID="AA01", SeriesInstanceUID=archive.slides["highdicom"][0].series)
    assert found["url"].tolist() == [archive.url("highdicom")]
    # Orthanc takes escaped characters (a space, a ^) literally.
    found = mt.find_slides(archive.root, Manufacturer="Leica Biosystems")
    assert found["url"].tolist() == [archive.url("openslide_boxes")]
    assert mt.find_slides(archive.root, PatientName="TEST^CMU1-rle")["url"].tolist() == [archive.url("rle")]
    assert mt.find_slides(archive.root, PatientName="TEST=CMU1-rle").empty
    assert mt.find_slides(archive.root, PatientID="nobody").empty
    assert len(mt.find_slides(f"{archive.root}/studies/{archive.slides['highdicom'][0].study}")) == 3
    found = mt.find_slides(guarded.root, credentials=guarded.credentials, AccessionNumber="CBF-1234")
    assert found["url"].tolist() == [guarded.url("ezwsi_label_2")]


@pytest.mark.parametrize("page", [2, 7, 50, 51, 1000])
def test_searches_go_on_to_the_last_page(
    archive: Archive, sent: list[str], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(qido, "PAGE", page)
    monkeypatch.setattr(archive.fs.service.capabilities, "page", 2)  # as if it had never been asked
    found = mt.find_slides(archive.root)
    assert set(found["series_uid"]) == series_on(archive)
    assert len(found) == 50
    assert -(-50 // page) <= len(sent) <= -(-50 // page) + 1
    assert len(mt.find_slides(archive.root, limit=9)) == 9
    if page >= 7:
        assert len(archive.fs.find("")) == 140


# The filesystem ------------------------------------------------------------------------------------------------------


def test_folders_and_files(archive: Archive) -> None:
    fs = archive.fs
    slide = archive.slides["jpeg_ybr422_bot"]
    one = slide[0]
    study, series = f"studies/{one.study}", f"studies/{one.study}/series/{one.series}"
    every = [i for s in archive.slides.values() for i in s]
    assert fs.ls("", detail=False) == ["studies"]
    assert set(fs.ls("studies", detail=False)) == {f"studies/{i.study}" for i in every}
    assert fs.ls(f"{study}/series", detail=False) == [series]
    assert sorted(fs.ls(f"{series}/instances", detail=False)) == sorted(i.path for i in slide)
    assert fs.find(series) == sorted(i.path for i in slide)
    parts = [f"{one.path}/frames", f"{one.path}/metadata", f"{one.path}/rendered"]
    assert fs.ls(one.path, detail=False) == parts
    assert len(fs.ls(f"{one.path}/frames")) == one.frames == 30
    for path in (study, series, f"{one.path}/frames"):
        assert fs.isdir(path)
    for path in (one.path, f"{one.path}/frames/30", f"{one.path}/metadata"):
        assert fs.isfile(path)
        assert fs.exists(path)
        assert fs.info(path)["type"] == "file"
    for path in ("studies/1.2.3", f"{study}/series/1.2", f"{series}/instances/1.2", f"{one.path}/frames/31"):
        assert not fs.exists(path)
        with pytest.raises(FileNotFoundError):
            fs.info(path)
    for path in ("studies/1.2.3", f"{study}/series/1.2", f"{series}/instances/1.2"):
        with pytest.raises(FileNotFoundError):
            fs.ls(path)


def test_ranges(archive: Archive) -> None:
    fs = archive.fs
    one, other = archive.slides["jpeg_sparse"][0], archive.slides["rle"][0]
    data, second = one.file.read_bytes(), other.file.read_bytes()
    for start, end in ((0, 132), (1000, 5000), (None, 100), (len(data) - 10, None), (-20, None), (5, -5), (0, 0)):
        assert fs.cat_file(one.path, start, end) == data[start:end]
    frames = frames_on_disk(one.file)
    assert fs.cat_file(f"{one.path}/frames/3", 2, 10) == frames[2][2:10]
    paths = [one.path, f"{one.path}/frames/1", other.path, f"{one.path}/frames/1", f"{one.path}/frames/2"]
    starts, ends = [0, 0, 7, 4, 1], [10, 5, 9, None, -1]
    got = fs.cat_ranges(paths, starts, ends)
    assert got == [data[:10], frames[0][:5], second[7:9], frames[0][4:], frames[1][1:-1]]
    with fs.open(one.path) as file:
        file.seek(128)
        assert file.read(4) == b"DICM"
    with fsspec.open(f"dicomweb+{archive.root}/{one.path}") as file:
        assert pydicom.dcmread(file).SOPInstanceUID == one.sop
    png = fs.cat_file(f"{archive.slides['jpegls'][0].path}/rendered")
    assert png.startswith(b"\x89PNG")


# Errors --------------------------------------------------------------------------------------------------------------


def test_what_is_not_there(archive: Archive) -> None:
    one = archive.slides["rle"][0]
    wrong = [
        f"{archive.root}/studies/1.2.3",
        f"{archive.root}/studies/1.2.3/series/4.5",
        f"{archive.root}/studies/{one.study}/series/4.5.6",
        f"{archive.root}/studies/{one.study}/series/{one.series}/instances/7.8.9",
    ]
    for url in wrong:
        with pytest.raises(SlideNotFoundError, match=re.escape(url.rsplit("/", 1)[0])) as caught:
            mt.open_slide(url)
        if "series" in url:  # Orthanc answers 200 and [] to a search in a study that is not there
            assert re.search(r"HTTP 404: .*(Unknown resource|Accessing an inexistent item)", str(caught.value))
    with pytest.raises(NotOnServerError, match="404"):
        archive.fs.cat_file(f"studies/{one.study}/series/{one.series}/instances/7.8.9")


@pytest.mark.parametrize("wrong", [True, False])
def test_a_wrong_password_is_in_no_error(guarded: Archive, wrong: bool) -> None:
    credentials = mt.credentials.basic(USER, WRONG) if wrong else None
    url = guarded.url("google_camelyon")
    errors = []
    for call in (
        lambda: mt.open_slide(url, credentials=credentials),
        lambda: mt.find_slides(guarded.root, credentials=credentials, PatientID="x"),
        lambda: fsspec.filesystem("dicomweb", url=guarded.root, credentials=credentials).ls("studies"),
    ):
        with pytest.raises(AuthenticationError, match="401") as caught:
            call()
        errors.append(caught.value)
    for error in errors:
        assert find_secret(whole_traceback(error), WRONG) == []
        while error is not None:
            assert WRONG not in str(error)
            error = error.__cause__ or error.__context__  # type: ignore[assignment]


# Workers -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.worker.daemon": True}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["jpeg_sparse", "fluor8_jpeg", "htj2klossless"])
def test_recipes_travel_to_workers(archive: Archive, cluster: Any, name: str) -> None:
    disk, web = archive.from_disk(name), archive.open(name, chunks={"y": 300, "x": 400})
    for n in range(LEVELS[name]):
        blocks = web[f"level{n}"].image.data
        view = unwrap(web[f"level{n}"].image.variable)
        assert view is not None
        assert len(pickle.dumps(view.array)) < 4096  # what each task carries
        assert len(cloudpickle.dumps(blocks)) < 4096 + 600 * blocks.npartitions
        got = cluster.compute(blocks).result(timeout=60)
        np.testing.assert_array_equal(got, disk[f"level{n}"].image.values)


def test_spawned_processes(archive: Archive) -> None:
    web, disk = archive.open("jpegls", chunks={"y": 300, "x": 400}), archive.from_disk("jpegls")
    with dask.config.set({"multiprocessing.context": "spawn", "num_workers": 2}):
        got = web["level0"].image.compute(scheduler="processes")
    np.testing.assert_array_equal(got.values, disk["level0"].image.values)
