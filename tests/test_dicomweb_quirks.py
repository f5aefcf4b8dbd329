"""How servers differ: each is found out once, remembered, and made up for, and the pixels are those of the files."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import microtome as mt
from microtome.dicom import web_frames
from microtome.errors import (
    MicrotomeError,
    ProtocolError,
    RequestError,
    SlideNotFoundError,
    SlowAccessWarning,
    TranscodedWarning,
    UnsupportedCodecError,
)
from microtome.storage.dicomweb import service
from microtome.testing import DICOMwebServer, Fault, Request, make_slide
from microtome.testing.dicomweb.message import Answer, Part, Refusal, size

LITTLE, JPEG_SYNTAX, J2K_SYNTAX = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
SIZE = {"width": 300, "height": 260, "frame": 64, "seed": 5}
CODECS: dict[str, dict[str, Any]] = {
    "jpeg": {"codec": "jpeg"},
    "j2k": {"codec": "j2k-lossless"},
    "htj2k": {"codec": "htj2k-lossless"},
    "jpeg-ls": {"codec": "jpeg-ls"},
    "jpeg-xl": {"codec": "jpeg-xl-lossless"},
    "rle": {"codec": "rle"},
    "native": {"codec": "native"},
    "implicit": {"codec": "native-implicit"},
    "big-endian": {"codec": "native-bigendian", "dtype": "uint16", "paths": ("a",)},
    "deflated": {"codec": "native-deflated"},
    "sparse": {"codec": "jpeg", "tiling": "sparse-unaligned", "drop": 0.5},
}


class Slide:
    """A slide, its files, and its pixels by level as the files have them."""

    def __init__(self, folder: Path, **options: Any) -> None:
        make_slide(folder, **(SIZE | options))
        self.folder = folder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowAccessWarning)  # deflated files
            local = mt.open_slide(folder, chunks=None)
        self.pixels = {name: local[name].image.values for name in local.children if name.startswith("level")}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Slide]:
    return {name: Slide(tmp_path_factory.mktemp(name) / "slide", **options) for name, options in CODECS.items()}


@pytest.fixture(autouse=True)
def new(new_to_servers: None) -> Iterator[None]:
    with mt.config.set(http_timeout=5, http_retries=1):
        yield


@pytest.fixture
def server(slides: dict[str, Slide]) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(slides["jpeg"].folder) as running:
        yield running
        assert running.failures == []


def image(server: DICOMwebServer, **options: Any) -> Any:
    return mt.open_slide(server.series_urls()[0], chunks=None, **options)["level0"].image


def read_anew(server: DICOMwebServer, lazy: Any) -> tuple[Any, list[Request]]:
    """Read, and return the requests for frames that it took."""
    mt.cache.clear()
    server.reset()
    got = lazy.values
    return got, [r for r in server.requests if r.frames]


def on_frames(server: DICOMwebServer, change: Callable[[Request, Answer], Answer]) -> None:
    """Change the answers to requests for frames; refusals may be raised."""
    answer = server.services.answer

    def changed(request: Request, base: str, body: bytes) -> Answer:
        found = answer(request, base, body)
        return change(request, found) if request.frames else found

    server.services.answer = changed  # type: ignore[method-assign]


def data(part: Part) -> bytes:
    pieces = [p if isinstance(p, bytes) else b"".join(p.chunks()) for p in part.data]
    assert size(list(part.data)) == sum(map(len, pieces))
    return b"".join(pieces)


# -- dialects


@pytest.mark.parametrize("dialect", ["standard", "google", "orthanc", "minimal"])
@pytest.mark.parametrize("codec", CODECS)
def test_dialects(dialect: str, codec: str, slides: dict[str, Slide]) -> None:
    slide = slides[codec]
    with DICOMwebServer(slide.folder, dialect=dialect) as server:
        tree = mt.open_slide(server.series_urls()[0], chunks=None)
        assert not any(r.frames for r in server.requests)
        for name, pixels in slide.pixels.items():
            np.testing.assert_array_equal(tree[name].image.values, pixels)
        assert server.failures == []


@pytest.mark.parametrize("dialect", ["standard", "google", "orthanc", "minimal"])
def test_a_level_is_one_request_where_lists_are_known(dialect: str, slides: dict[str, Slide]) -> None:
    with DICOMwebServer(slides["jpeg"].folder, dialect=dialect) as server:
        _, requests = read_anew(server, image(server))
        assert len(requests) <= (1 if dialect != "minimal" else 2 + 25)
        _, requests = read_anew(server, image(server))
        assert len(requests) == (1 if dialect != "minimal" else 25)


# -- lists


@pytest.mark.parametrize("status", [400, 404, 405, 406, 413, 414, 415, 501])
def test_lists_refused(status: int, server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    server.fault = lambda r: Fault(status=status) if len(r.frames) > 1 else None
    lazy = image(server)
    got, _ = read_anew(server, lazy)
    np.testing.assert_array_equal(got, slides["jpeg"].pixels["level0"])
    assert server.connections <= mt.config.get().requests_per_server
    got, again = read_anew(server, lazy)
    np.testing.assert_array_equal(got, slides["jpeg"].pixels["level0"])
    assert sorted(r.frames for r in again) == [(n,) for n in range(1, 26)]


def test_first_of_a_list_only(server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    def first(request: Request, answer: Answer) -> Answer:
        assert answer.parts
        return replace(answer, parts=answer.parts[:1])

    on_frames(server, first)
    lazy = image(server)
    for _ in range(2):
        got, requests = read_anew(server, lazy)
        np.testing.assert_array_equal(got, slides["jpeg"].pixels["level0"])
    assert {len(r.frames) for r in requests} == {1}


def test_single_frames_are_asked_for_side_by_side(server: DICOMwebServer) -> None:
    """One slow answer after the other would take 25 times as long as one."""
    server.fault = lambda r: Fault(status=400) if len(r.frames) > 1 else None
    lazy = image(server)
    lazy[:8, :200].compute()
    server.latency = 0.05
    read_anew(server, lazy)
    assert server.connections >= 1
    assert len({r.connection for r in server.requests}) > 1


# -- forms


def refuse(server: DICOMwebServer, *forms: str, status: int = 406) -> None:
    """Refuse requests for frames by what they accept: ``*``, or a transfer syntax."""
    ends = tuple(f"transfer-syntax={form}" for form in forms)
    server.fault = lambda r: Fault(status=status, body=b"no") if r.frames and (r.accept or "").endswith(ends) else None


@pytest.mark.parametrize("status", [400, 406, 415, 501])
def test_any_syntax_refused(status: int, server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    refuse(server, "*", status=status)
    lazy = image(server)
    for _ in range(2):
        got, requests = read_anew(server, lazy)
        np.testing.assert_array_equal(got, slides["jpeg"].pixels["level0"])
    assert len(requests) == 1
    assert requests[0].accept == f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG_SYNTAX}'


def test_any_and_stored_syntax_refused(slides: dict[str, Slide]) -> None:
    with DICOMwebServer(slides["j2k"].folder) as server:
        refuse(server, "*", J2K_SYNTAX)
        lazy = image(server)
        for _ in range(2):
            with pytest.warns(TranscodedWarning, match=r"instances/.*decodes them"):
                got, requests = read_anew(server, lazy)
            np.testing.assert_array_equal(got, slides["j2k"].pixels["level0"])
        assert len(requests) == 1
        refuse(server, LITTLE)
        mt.cache.clear()
        with pytest.raises(RequestError, match="HTTP 406: no"):
            lazy.compute()


def test_all_syntaxes_refused(server: DICOMwebServer) -> None:
    refuse(server, "*", JPEG_SYNTAX, LITTLE)
    with pytest.raises(RequestError, match=r"frames/1.*HTTP 406: no") as caught:
        image(server).compute()
    assert caught.value.status == 406


def test_what_cannot_be_decoded_here_is_decoded_there(
    slides: dict[str, Slide], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = web_frames.FrameDecoder

    def decoder(fmt: Any) -> Any:
        if fmt.transfer_syntax == J2K_SYNTAX:
            raise UnsupportedCodecError("not here")
        return real(fmt)

    monkeypatch.setattr(web_frames, "FrameDecoder", decoder)
    for dialect in (
        "standard",
        "google",
    ):  # who states the transfer syntax in metadata or in a search, and who does not
        with DICOMwebServer(slides["j2k"].folder, dialect=dialect) as server:
            lazy = image(server)
            for _ in range(2):
                with pytest.warns(TranscodedWarning, match="decoded here"):
                    got, requests = read_anew(server, lazy)
                np.testing.assert_array_equal(got, slides["j2k"].pixels["level0"])
            assert [(r.accept or "").rpartition("=")[2] for r in requests] == [LITTLE]


def test_server_that_cannot_send_what_it_has(slides: dict[str, Slide]) -> None:
    """Status 500 for frames as they are stored; decoded, they come."""
    with DICOMwebServer(slides["j2k"].folder) as server:
        refuse(server, "*", J2K_SYNTAX, status=500)
        lazy = image(server)
        for _ in range(2):
            with pytest.warns(TranscodedWarning):
                got, requests = read_anew(server, lazy)
            np.testing.assert_array_equal(got, slides["j2k"].pixels["level0"])
        assert len(requests) == 1


@pytest.mark.parametrize("codec", ["jpeg", "j2k", "rle", "native", "jpeg-xl"])
def test_nobody_states_the_transfer_syntax_but_the_part(codec: str, slides: dict[str, Slide]) -> None:
    slide = slides[codec]
    with DICOMwebServer(slide.folder) as server:
        server.services.dialect = replace(server.dialect, available_syntax=False, stored_syntax=False)
        tree = mt.open_slide(server.series_urls()[0], chunks=None)
        for name, pixels in slide.pixels.items():
            np.testing.assert_array_equal(tree[name].image.values, pixels)


@pytest.mark.parametrize("where", ["outer", "type", "nowhere"])
@pytest.mark.parametrize("codec", ["jpeg", "j2k", "native"])
def test_parts_do_not_state_it(where: str, codec: str, slides: dict[str, Slide]) -> None:
    slide = slides[codec]
    with DICOMwebServer(slide.folder) as server:

        def bare(request: Request, answer: Answer) -> Answer:
            assert answer.parts
            syntax = answer.parts[0].media.rpartition("=")[2]
            stated = f"application/octet-stream; transfer-syntax={syntax}"
            kind = (
                f'multipart/related; type="{stated if where == "type" else "application/octet-stream"}"; boundary="a;b"'
            )
            kind += f"; transfer-syntax={syntax}" if where == "outer" else ""
            body = b"".join(b"--a;b\r\n\r\n" + data(part) + b"\r\n" for part in answer.parts)
            return Answer([body + b"--a;b--"], kind)

        on_frames(server, bare)
        np.testing.assert_array_equal(image(server).values, slide.pixels["level0"])
        np.testing.assert_array_equal(read_anew(server, image(server))[0], slide.pixels["level0"])


# -- multipart


def test_one_location_for_all_parts(server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    def same(request: Request, answer: Answer) -> Answer:
        assert answer.parts
        return replace(answer, parts=[replace(p, location=answer.parts[0].location) for p in answer.parts])

    on_frames(server, same)
    got, requests = read_anew(server, image(server))
    np.testing.assert_array_equal(got, slides["jpeg"].pixels["level0"])
    assert len(requests) == 1


def test_one_frame_in_place_of_another_is_no_quirk(server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    """All parts state one location, and are equal: each frame is asked for alone, and is then known."""

    def twice(request: Request, answer: Answer) -> Answer:
        assert answer.parts
        return replace(answer, parts=answer.parts[:1] * len(answer.parts))

    on_frames(server, twice)
    lazy = image(server)
    with mt.config.set(frames_per_request=2):
        np.testing.assert_array_equal(lazy[:64, :128].values, slides["jpeg"].pixels["level0"][:64, :128])


def test_part_of_a_frame_that_was_not_asked_for(server: DICOMwebServer) -> None:
    def other(request: Request, answer: Answer) -> Answer:
        return replace(answer, parts=[replace(p, location="x/frames/99") for p in answer.parts or ()])

    on_frames(server, other)
    with pytest.raises(ProtocolError, match="1 did not come; 99 came unasked"):
        image(server)[:8, :8].compute()


def test_some_parts_state_another_order(server: DICOMwebServer) -> None:
    def mixed(request: Request, answer: Answer) -> Answer:
        parts = answer.parts or []
        return replace(answer, parts=[replace(p, location="") if i % 2 else p for i, p in enumerate(parts[::-1])])

    on_frames(server, mixed)
    with pytest.raises(ProtocolError, match="not in order"):
        image(server)[:64, :128].compute()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(chunked=True),
        Fault(chunked=True, part_lengths=False, content_location=False),
        Fault(connection_close=True),
        Fault(part_lengths=False),
        Fault(headers={"Content-Location": "elsewhere"}),
    ],
    ids=["chunked", "chunked, bare", "no length", "no part lengths", "outer location"],
)
def test_framing(fault: Fault, server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    server.fault = lambda request: fault
    got, requests = read_anew(server, image(server))
    np.testing.assert_array_equal(got, slides["jpeg"].pixels["level0"])
    assert len(requests) == 1


@pytest.mark.parametrize("multipart", [True, False])
def test_gzip(multipart: bool, server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    def packed(request: Request, answer: Answer) -> Answer:
        if not multipart and len(request.frames) > 1:
            raise Refusal(400, "one at a time")
        parts = answer.parts or []
        if multipart:
            body = (
                b"".join(f"--b\r\nContent-Type: {p.media}\r\n\r\n".encode() + data(p) + b"\r\n" for p in parts)
                + b"--b--\r\n"
            )
            kind = "multipart/related; boundary=b"
        else:
            body, kind = data(parts[0]), parts[0].media
        return Answer([gzip.compress(body)], kind, headers={"Content-Encoding": "gzip"})

    on_frames(server, packed)
    np.testing.assert_array_equal(image(server).values, slides["jpeg"].pixels["level0"])


def test_preamble_and_odd_headers(server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    def odd(request: Request, answer: Answer) -> Answer:
        body = b"This is a multipart answer.\r\n"
        for part in answer.parts or []:
            body += (
                b"--=_b'1  \r\ncontent-type:" + part.media.encode() + b"\r\nX-Other: 1\r\n\r\n" + data(part) + b"\r\n"
            )
        return Answer([body + b"--=_b'1--\r\nepilogue"], """Multipart/Related;Type=image/jpeg ;  BOUNDARY="=_b'1" """)

    on_frames(server, odd)
    np.testing.assert_array_equal(image(server).values, slides["jpeg"].pixels["level0"])


def test_lengths_in_parts_may_not_lie(server: DICOMwebServer) -> None:
    def lying(request: Request, answer: Answer) -> Answer:
        body = b""
        for part in answer.parts or []:
            octets = data(part)
            body += f"--b\r\nContent-Length: {len(octets) - 2}\r\n\r\n".encode() + octets + b"\r\n"
        return Answer([body + b"--b--\r\n"], "multipart/related; boundary=b")

    on_frames(server, lying)
    with pytest.raises(ProtocolError, match=r"cut short|has no end"):
        image(server).compute()


# -- pictures


@pytest.mark.parametrize("dialect", ["standard", "google", "orthanc"])
def test_rendered(dialect: str, slides: dict[str, Slide]) -> None:
    with DICOMwebServer(slides["j2k"].folder, dialect=dialect) as server:
        lazy = image(server, rendered=True)
        got, requests = read_anew(server, lazy)
        assert all(r.path.endswith("/rendered") for r in requests)
        assert np.abs(got.astype(int) - slides["j2k"].pixels["level0"]).mean() < 8
        np.testing.assert_array_equal(image(server).values, slides["j2k"].pixels["level0"])  # not from the cache


# -- metadata


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 500, 501])
def test_metadata_of_a_series_refused(status: int, server: DICOMwebServer, slides: dict[str, Slide]) -> None:
    def fault(request: Request) -> Fault | None:
        whole = request.path.endswith("/metadata") and "/instances/" not in request.path
        return Fault(status=status) if whole else None

    server.fault = fault
    np.testing.assert_array_equal(image(server).values, slides["jpeg"].pixels["level0"])


def test_nothing_there(server: DICOMwebServer) -> None:
    url = server.series_urls()[0]
    with pytest.raises(SlideNotFoundError, match=r"series/1\.2\.3"):
        mt.open_slide(url.rpartition("/")[0] + "/1.2.3")
    assert isinstance(SlideNotFoundError("x"), MicrotomeError)


@pytest.mark.parametrize("dialect", ["standard", "google", "orthanc"])
def test_opening_costs_two_requests_at_most(dialect: str, slides: dict[str, Slide]) -> None:
    for codec in ("jpeg", "sparse"):
        with DICOMwebServer(slides[codec].folder, dialect=dialect) as server:
            mt.open_slide(server.series_urls()[0])
            assert len(server.requests) <= 2
            server.reset()
            mt.open_slide(server.study_urls()[0])
            assert len(server.requests) <= 2


def test_a_process_remembers_a_bounded_number_of_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "KEPT", 3)
    nobody = mt.credentials.none()
    first = service.service("http://127.0.0.1:1/a", nobody)
    for name in "bc":
        service.service(f"http://127.0.0.1:1/{name}", nobody)
    assert service.service("http://127.0.0.1:1/a", nobody) is first
    service.service("http://127.0.0.1:1/d", nobody)
    assert [known.root[-1] for known in service._services.values()] == ["c", "a", "d"]


def make_palette_slide(folder: Path) -> None:
    make_slide(folder, width=300, height=200, frame=64, codec="native", levels=1, associated=False)
    (file,) = folder.iterdir()
    ds = pydicom.dcmread(file)
    red = np.frombuffer(ds.PixelData, np.uint8)[: int(ds.NumberOfFrames) * 64 * 64 * 3].reshape(-1, 3)[:, 0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelData = 1, "PALETTE COLOR", red.tobytes()
    for factor, colour in enumerate(("Red", "Green", "Blue"), 1):
        table = (np.arange(256) * 257 // factor).astype("<u2")
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", table.tobytes())
    ds.save_as(file)


@pytest.mark.parametrize("dialect", ["standard", "google", "orthanc", "minimal"])
def test_palettes(dialect: str, tmp_path: Path) -> None:
    """They are bulk data; one of the servers leaves these out of its metadata."""
    make_palette_slide(tmp_path / "slide")
    pixels = mt.open_slide(tmp_path / "slide")["level0"].image.values
    assert pixels.dtype == np.uint16
    assert len(np.unique(pixels)) > 100
    with DICOMwebServer(tmp_path / "slide", dialect=dialect) as server:
        np.testing.assert_array_equal(mt.open_slide(server.series_urls()[0])["level0"].image.values, pixels)
