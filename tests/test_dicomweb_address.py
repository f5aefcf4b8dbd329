"""Which URLs name something on a DICOMweb service, and what; where a server may lead us."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.errors import OptionError, RequestError
from microtome.storage import credentials
from microtome.storage.dicomweb.address import (
    Address,
    is_dicomweb,
    on_service,
    origin,
    parse_address,
    same_origin,
    split_url,
)
from microtome.storage.dicomweb.session import Session
from secrets_search import find_secret

STORE = "projects/p/locations/l/datasets/d/dicomStores/s"
GOOGLE = f"https://healthcare.googleapis.com/v1/{STORE}/dicomWeb"
BETA = GOOGLE.replace("v1", "v1beta1")
LOCAL = f"http://127.0.0.1:80/v1/{STORE}/dicomWeb"
LONG = "1." + "2" * 62  # 64 characters, which is the most that PS3.5 allows


@pytest.mark.parametrize(
    ("url", "root", "uids"),
    [
        ("dicomweb+https://h/dicomWeb", "https://h/dicomWeb", ()),
        ("dicomweb://h/dicomWeb/studies/1.2", "https://h/dicomWeb", ("1.2",)),
        ("DICOMweb+HTTP://H:8042/dicom-web/studies/1.2/series/3.4", "http://h:8042/dicom-web", ("1.2", "3.4")),
        ("dicomweb+http://h", "http://h", ()),
        ("dicomweb+http://h/", "http://h", ()),
        ("dicomweb+https://h/studies", "https://h", ()),
        ("dicomweb+https://h/a/b/c/studies/", "https://h/a/b/c", ()),
        ("https://h/dicomWeb/studies/1.2", "https://h/dicomWeb", ("1.2",)),
        ("HTTPS://Host.Example/DicomWeb/studies/1.2/", "https://host.example/DicomWeb", ("1.2",)),
        ("https://h/a/b/studies/1.2/series/3/instances/4", "https://h/a/b", ("1.2", "3", "4")),
        ("https://h/studies/1.2/series/3/instances/4/frames/7", "https://h", ("1.2", "3", "4")),
        ("https://h/r/studies/1.2/series/3/metadata", "https://h/r", ("1.2", "3")),
        ("https://h/r/studies/1.2/series", "https://h/r", ("1.2",)),
        ("https://h/r/studies/1.2//series//3", "https://h/r", ("1.2", "3")),
        ("https://[::1]:8042/r/studies/1.2", "https://[::1]:8042/r", ("1.2",)),
        ("https://h/r/studies/0.01.002", "https://h/r", ("0.01.002",)),
        (f"https://h/r/studies/{LONG}/series/{LONG}", "https://h/r", (LONG, LONG)),
        (f"https://h/r/studies/{LONG}0", "https://h/r", (f"{LONG}0",)),
        ("https://h/studies/2026/dicomWeb/studies/1.2/series/3", "https://h/studies/2026/dicomWeb", ("1.2", "3")),
        (f"https://healthcare.googleapis.com/v1/{STORE}", GOOGLE, ()),
        (f"{GOOGLE}/studies/1.2/series/3", GOOGLE, ("1.2", "3")),
        (f"{GOOGLE.removesuffix('/dicomWeb')}/studies/1.2", GOOGLE, ("1.2",)),
        (f"{BETA}/studies/1.2", BETA, ("1.2",)),
        (f"{STORE}/dicomWeb/studies/1.2/series/3", GOOGLE, ("1.2", "3")),
        (f"{STORE}/studies/1.2", GOOGLE, ("1.2",)),
        (STORE, GOOGLE, ()),
        (f"dicomweb://{STORE}/studies/1.2", GOOGLE, ("1.2",)),
        (f"dicomweb+{LOCAL}/studies/1.2", LOCAL, ("1.2",)),
    ],
)  # fmt: skip
def test_urls_of_services_and_of_what_is_on_them(url: str, root: str, uids: tuple[str, ...]) -> None:
    address = parse_address(url)
    assert address == Address(root, *uids)
    assert is_dicomweb(url)
    assert parse_address(f"dicomweb+{address.url}") == address


@pytest.mark.parametrize(
    "url",
    [
        "https://h/a.dcm", "http://h/slides/a.svs", "https://h/studies/a.dcm", "https://h/studies/2026.dcm",
        "https://h/studies/2026/a.dcm", "https://h/studies/", "https://h/a?x=/studies/1.2", "https://h/a#/studies/1.2",
        "s3://b/studies/1.2", "gs://b/studies/1.2/series/3", "/studies/1.2", "studies/1.2", "slide.dcm", "",
        "projects/p",         "C:\\studies\\1.2", "https://[::1/studies/x",
    ],
)  # fmt: skip
def test_what_stays_a_file(url: str) -> None:
    assert not is_dicomweb(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://h/r/studies/abc", "https://h/r/studies/1.2x/series/3", "https://h/r/studies/1.2/series/x",
        "https://h/r/studies/1.2/series/..", "https://h/r/studies/1.2/series/.3", f"https://h/r/studies/{LONG}{LONG}0",
        "https://h/r/studies/1.2/series/3/instances/%2e%2e", "dicomweb://h/studies/*",
    ],
)  # fmt: skip
def test_what_is_no_uid(url: str) -> None:
    with pytest.raises(OptionError, match="is no UID of"):
        parse_address(url)


@pytest.mark.parametrize("url", ["", "https://", "dicomweb://", "file:///studies/1.2", "https://h:x/studies/1.2", "ftp://h/",
    "https://[::1/studies/1.2", "https://h\\x/studies/1.2", "https://h/a b/studies/1.2", "https://h/\tstudies/1.2",
    "https://h:99999/studies/1.2", "/studies/1.2"])  # fmt: skip
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(OptionError, match="is named by a URL such as"):
        parse_address(url)


SECRET = "Xq7zT9wLp2Vb"


@pytest.mark.parametrize(
    "url",
    [
        "https://anna:{}@h/r/studies/1.2", "https://{}@h/r/studies/1.2", "https://anna:x/{}@h/studies/1.2",
        "https://anna:x?{}@h/studies/1.2", "https://anna:x#{}@h/studies/1.2", "dicomweb+https://anna:{}@h/r",
        "https://h/r/studies/1.2?key={}", "https://h/r/studies/1.2#{}", "https://h/r?token={}",
        "https://anna:{}\u2100@h/r/studies/1.2", "https://anna:{}\u2100h/r/studies/1.2",
    ],
)  # fmt: skip
def test_a_secret_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_address(url.format(SECRET))
    assert find_secret(str(caught.value), SECRET) == []
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


UIDS = st.from_regex(r"[0-9][0-9.]{0,63}", fullmatch=True).filter(str.isascii)
PREFIX = st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), max_size=3)


@given(
    prefix=PREFIX,
    uids=st.lists(UIDS, min_size=1, max_size=3),
    tail=st.sampled_from(["", "/", "/metadata", "/frames/3"]),
)
def test_every_prefix_and_uid_comes_back(prefix: list[str], uids: list[str], tail: str) -> None:
    root = "/".join(["https://h.example:8443", *prefix])
    address = Address(root, *uids)
    assert parse_address(address.url + tail) == address
    assert split_url(address.url + tail) == (root, (address.path + tail).rstrip("/"))


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"https://h/studies/{text}", f"dicomweb://{text}"):
        is_dicomweb(url)
        try:
            address = parse_address(url)
        except OptionError:
            continue
        assert ".." not in address.path.split("/")
        assert "@" not in address.root
        assert "?" not in address.url


ROOT = "https://h.example/r"
INSTANCE = f"{ROOT}/studies/1/series/2/instances/3"
BASE = f"{INSTANCE}/metadata"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://localhost:8042/x/studies/1/series/2/instances/3/bulkdata/7", f"{INSTANCE}/bulkdata/7"),
        ("https://other/x/studies/1/series/2/instances/3?offset=1&length=2", f"{INSTANCE}?offset=1&length=2"),
        ("//other/studies/1/bulkdata/7", f"{ROOT}/studies/1/bulkdata/7"),
        ("/r/studies/1/bulkdata/7", f"{ROOT}/studies/1/bulkdata/7"),
        ("bulkdata/7", f"{INSTANCE}/bulkdata/7"),
        ("../bulkdata/7", f"{ROOT}/studies/1/series/2/instances/bulkdata/7"),
        ("https://h/studies/9/web/studies/1/bulkdata/7", f"{ROOT}/studies/1/bulkdata/7"),
        ("https://other/blobs/7?sig=x#f", "https://other/blobs/7?sig=x"),
    ],
)  # fmt: skip
def test_what_a_server_names_is_fetched_from_the_service(uri: str, expected: str) -> None:
    assert on_service(uri, BASE, ROOT) == expected


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "FILE:///studies/1/x", "ftp://h.example/studies/1", "data:,x",
    "https://[::1/studies/1", "https://h:x/studies/1", "javascript:x"])  # fmt: skip
def test_other_schemes_are_never_followed(uri: str) -> None:
    with pytest.raises(RequestError, match=r"is not followed$"):
        on_service(uri, BASE, ROOT)


@pytest.mark.parametrize(
    ("url", "root", "same"),
    [
        ("https://h/x", "https://h/r", True),
        ("https://H:443/x", "https://h", True),
        ("https://h./x", "https://h", True),
        ("https://h:444/x", "https://h", False),
        ("https://h/x", "http://h/r", True),
        ("http://h/x", "https://h/r", False),
        ("https://h/x", "http://h:8042/r", False),
        ("https://h:8042/x", "http://h:8042/r", False),
        ("https://h.evil/x", "https://h", False),
        ("https://h@evil/x", "https://h", False),
        ("https://evil\\@h/x", "https://h", False),
        ("file://h/x", "https://h", False),
        ("https://[::1]/x", "https://[::1]:443", True),
        ("nonsense", "nonsense", False),
    ],
)
def test_origins(url: str, root: str, same: bool) -> None:
    assert same_origin(url, root) is same


@given(st.text(max_size=40))
def test_any_url_has_an_origin_or_none(text: str) -> None:
    for url in (text, f"https://{text}"):
        scheme, host, _ = origin(url)
        assert bool(scheme) == bool(host)


def test_only_allowed_hosts_are_asked() -> None:
    session = Session(ROOT, credentials.none(), ("Mirror.Example",))
    session.may_fetch("https://mirror.example/blob")
    session.may_fetch(f"{ROOT}/blob")
    for url in (
        "https://other.example/blob",
        "file:///etc/passwd",
        "https://mirror.example.evil/blob",
        "https://h.example:1/x",
    ):
        with pytest.raises(RequestError, match="refers to"):
            session.may_fetch(url)
