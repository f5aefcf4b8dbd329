"""What must not show when slides are read from a server: credentials anywhere, patients in errors and logs.

All that can be seen of a read that goes well and of reads that fail is searched for the secrets, in every form.
"""

from __future__ import annotations

import base64
import io
import logging
import pickle
import pprint
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import cloudpickle
import dask
import fsspec
import numpy as np
import pytest

import microtome as mt
from microtome.errors import CredentialsError, MicrotomeError, RequestError
from microtome.lazy.recipe import Recipe
from microtome.storage.credentials import Credentials
from microtome.storage.dicomweb import service
from microtome.storage.dicomweb.transport import proxies_for
from microtome.testing import DICOMwebServer, Fault, Request, make_slide
from secrets_search import find_secret, whole_traceback

# Module constants, never local variables of a test: tracebacks are searched with the locals of all frames.
TOKEN = "tok/EN+with%and~characters=0123456789abcdef"
USER = "jane.doe@hospital.example"
PASSWORD = 'pä ss/"w%rd\\+&=é 0123456789:xyz'
KEY = 'key <of> "a" header; 100% / 0123456789'
SECRETS = {"token": TOKEN, "user": USER, "password": PASSWORD, "key": KEY, "pair": f"{USER}:{PASSWORD}"}
CREDENTIALS: dict[str, Callable[[], Credentials | None]] = {
    "bearer": lambda: mt.credentials.bearer(TOKEN),
    "basic": lambda: mt.credentials.basic(USER, PASSWORD),
    "headers": lambda: mt.credentials.headers({"X-Api-Key": KEY}),
    "callable": lambda: mt.credentials.bearer(lambda: TOKEN),
}
PATIENT = {"PatientName": "Müller^Annegret Maria", "PatientID": "MRN Q4711Z/Ä", "AccessionNumber": "A&17<b>"}


def secrets_in(text: str) -> list[str]:
    return [f"{name} ({form})" for name, secret in SECRETS.items() for form in find_secret(text, secret)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("secret") / "slide"
    make_slide(made, width=300, height=200, frame=64, levels=2, seed=2)
    return made


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(folder) as server:
        yield server


@pytest.fixture
def server(running: DICOMwebServer) -> Iterator[DICOMwebServer]:
    running.reset()
    yield running
    running.fault = None


@pytest.fixture(autouse=True)
def quick(new_to_servers: None) -> Iterator[None]:
    with mt.config.set(http_timeout=1, http_retries=1):
        yield


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """All that anybody logs, at the lowest level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s %(exc_info)s"))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)


def echo(name: str, status: int, pattern: str) -> Callable[[Request], Fault | None]:
    """An error that gives back all that the server was told, in some forms."""
    told = {
        "bearer": [TOKEN],
        "callable": [TOKEN],
        "headers": [KEY],
        "basic": [USER, PASSWORD, SECRETS["pair"], base64.b64encode(SECRETS["pair"].encode()).decode()],
    }[name]
    forms = [form for one in told for form in (one, quote(one), quote(one, safe=""), repr(one), one.upper())]
    body = "\n".join(pattern.format(form) for form in forms).encode()
    return lambda request: Fault(status=status, body=body) if request.frames else None


# -- a read that goes well


@pytest.mark.parametrize("name", CREDENTIALS)
def test_nothing_shows_of_what_goes_well(name: str, server: DICOMwebServer, logs: io.StringIO) -> None:
    url = server.series_urls()[0]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        tree = mt.open_slide(url, credentials=CREDENTIALS[name]())
        level = tree["level0"].image
        level[:100, :100].wsi.prefetch()
        level.compute()
        recipe = Recipe.make(url, credentials=CREDENTIALS[name]())
        files = fsspec.filesystem("dicomweb", url=server.url, credentials=CREDENTIALS[name](), skip_instance_cache=True)
        files.ls("studies")
    lazy = mt.open_slide(url, credentials=CREDENTIALS[name](), chunks=None)["level0"].image
    known = next(iter(service._services.values()))
    graph = dict(level.data.__dask_graph__())
    seen: list[object] = [
        tree, repr(tree), tree._repr_html_(), level, level.data, level.attrs, tree.attrs, tree["level0"].attrs,
        level.encoding, lazy, lazy.variable._data, recipe, recipe.credentials, vars(recipe), files, vars(files),
        known, known.key, known.session, vars(known.session), vars(known), list(graph), graph, level.data.name,
        dask.base.tokenize(level), dask.base.tokenize(recipe), tree.wsi.to_json(), mt.cache.statistics(),
        level[:10, :10].wsi.explain(), tree.wsi.levels, known.session.credentials.identity, warned,
    ]  # fmt: skip
    text = "\n".join([*map(repr, seen), *map(str, seen), *(pprint.pformat(s) for s in seen), logs.getvalue()])
    assert "GET" in text  # urllib3 logged what it sent
    assert secrets_in(text) == []


@pytest.mark.parametrize("name", ["bearer", "basic", "headers"])
def test_literals_do_not_travel(name: str, server: DICOMwebServer) -> None:
    url = server.series_urls()[0]
    tree = mt.open_slide(url, credentials=CREDENTIALS[name]())
    lazy = mt.open_slide(url, credentials=CREDENTIALS[name](), chunks=None)["level0"].image
    for thing in (tree["level0"].image, tree["level0"].image.data, lazy):
        for dumps in (pickle.dumps, cloudpickle.dumps):
            with pytest.raises((CredentialsError, pickle.PicklingError)) as caught:
                dumps(thing)
            assert secrets_in(whole_traceback(caught.value)) == []


def test_recipes_travel_without_the_secret(server: DICOMwebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDES_TOKEN", TOKEN)
    tree = mt.open_slide(server.series_urls()[0], credentials=mt.credentials.bearer(env="SLIDES_TOKEN"))
    data = cloudpickle.dumps(tree["level0"].image)
    assert secrets_in(data.decode("latin-1")) == []
    np.testing.assert_array_equal(pickle.loads(data)[:50, :50].values, tree["level0"].image[:50, :50].values)


# -- reads that fail

FAILURES: dict[str, Callable[[Request], Fault | None]] = {
    "reset": lambda r: Fault(reset_after=10) if r.frames else None,
    "cut": lambda r: Fault(close_after=10) if r.frames else None,
    "stall": lambda r: Fault(delay=1.5) if r.frames else None,
    "html": lambda r: Fault(html=True) if r.frames else None,
    "parts": lambda r: Fault(drop_parts=(0,)) if r.frames else None,
    "boundary": lambda r: Fault(wrong_boundary=True) if r.frames else None,
    "gzip": lambda r: Fault(headers={"Content-Encoding": "gzip"}) if r.frames else None,
    "garbage": lambda r: (
        Fault(status=200, body=b"x", headers={"Content-Type": "application/octet-stream"})
        if len(r.frames) == 1 else Fault(status=400) if r.frames else None
    ),
    "missing": lambda r: Fault(status=404) if r.frames else None,
    "elsewhere": lambda r: (
        Fault(status=302, headers={"Location": f"http://elsewhere.example/?token={quote(TOKEN)}"}) if r.frames else None
    ),
    "nowhere": lambda r: (
        Fault(status=302, headers={"Location": f"http://[{quote(TOKEN)}/"}) if r.frames else None
    ),
    "around": lambda r: Fault(status=302, headers={"Location": r.path}) if r.frames else None,
}  # fmt: skip


ECHOED = {
    "echo": (500, "{}"), "401": (401, "unknown: {}"), "403": (403, '{{"message": "{}"}}'), "page": (400, "<b>{}</b>"),
}  # fmt: skip


# What takes its time, and is the same for all, is done for one.
CASES = [(f, n) for f in (*ECHOED, *FAILURES) for n in CREDENTIALS if f != "stall" or n == "basic"]


@pytest.mark.parametrize(("failure", "name"), CASES)
def test_nothing_shows_of_what_fails(failure: str, name: str, server: DICOMwebServer, logs: io.StringIO) -> None:
    url = server.series_urls()[0]
    # Without Dask: one of its objects fails in repr, and so does a traceback with locals.
    lazy = mt.open_slide(url, credentials=CREDENTIALS[name](), chunks=None)["level0"].image
    server.fault = FAILURES[failure] if failure in FAILURES else echo(name, *ECHOED[failure])
    with pytest.raises(MicrotomeError) as caught:
        lazy.compute()
    assert secrets_in(whole_traceback(caught.value)) == []
    assert secrets_in(logs.getvalue()) == []
    assert secrets_in(str(mt.cache.statistics())) == []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        logging.getLogger("test").exception("failed", exc_info=caught.value)
    assert secrets_in(logs.getvalue() + str(warned)) == []


@pytest.mark.parametrize("name", CREDENTIALS)
def test_nothing_shows_of_a_server_that_is_not_there(name: str, logs: io.StringIO) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RequestError) as caught:
        mt.open_slide(f"http://127.0.0.1:{port}/x/studies/1.2/series/1.3", credentials=CREDENTIALS[name]())
    assert secrets_in(whole_traceback(caught.value) + logs.getvalue()) == []


@pytest.mark.parametrize("name", CREDENTIALS)
def test_plain_http_to_others_is_refused(name: str, logs: io.StringIO) -> None:
    with pytest.raises(CredentialsError, match="plain HTTP") as caught:
        mt.open_slide("http://slides.example/x/studies/1.2/series/1.3", credentials=CREDENTIALS[name]())
    assert secrets_in(whole_traceback(caught.value) + logs.getvalue()) == []


def test_a_function_that_fails_in_mid_read(server: DICOMwebServer, logs: io.StringIO) -> None:
    works = [True]

    def token() -> str:
        if not works:
            raise ValueError(f"the vault said {TOKEN}")
        return TOKEN

    tree = mt.open_slide(server.series_urls()[0], credentials=mt.credentials.bearer(token))
    works.clear()
    server.fault = lambda request: Fault(status=401)
    with pytest.raises(MicrotomeError) as caught:
        tree["level0"].image.compute()
    assert secrets_in(str(caught.value) + logs.getvalue()) == []
    assert secrets_in("".join(traceback.format_exception(caught.value))) == []


# -- where requests go


class Listener:
    """Takes connections, and remembers what came over them."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.heard = b""
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    self.heard += connection.recv(1 << 16)
                    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    continue


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_reached_without_a_proxy(
    host: str, server: DICOMwebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials go over plain HTTP because they do not leave the machine: a proxy would be another."""
    proxy = Listener()
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, proxy.url)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    url = server.series_urls()[0].replace("127.0.0.1", host)
    mt.open_slide(url, credentials=mt.credentials.bearer(TOKEN))["level0"].image.compute()
    # Others are reached through it: it is what their administrator wants.
    with pytest.raises(RequestError, match="502"):
        mt.open_slide("http://slides.example/x/studies/1.2/series/1.3")
    assert proxy.heard.startswith(b"GET http://slides.example/")
    assert b"127.0.0.1" not in proxy.heard.partition(b"\r\n")[0]
    assert server.requests
    proxy.socket.close()


@pytest.mark.parametrize(
    ("url", "direct"),
    [
        ("http://127.0.0.1:8042/x", True),
        ("http://127.9.9.9/x", True),
        ("http://[::1]:8042/x", True),
        ("http://localhost:8042/x", True),
        ("https://localhost/x", True),
        ("http://localhost.example/x", False),
        ("https://127.0.0.1.example/x", False),
        ("https://10.0.0.1/x", False),
    ],
)
def test_what_is_this_machine(url: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from requests.utils import get_environ_proxies

    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    found = get_environ_proxies(url, no_proxy=proxies_for(url).get("no_proxy"))
    assert (found == {}) == direct
    assert urlsplit(url).hostname


@pytest.mark.parametrize("given", [None, "callable"])
def test_netrc_is_not_read(
    given: str | None, server: DICOMwebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password other\ndefault login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    credentials = None if given is None else CREDENTIALS[given]()
    mt.open_slide(server.series_urls()[0], credentials=credentials)["level0"].image.compute()
    assert {r.authorized for r in server.requests} == {given is not None}


def test_cookies_are_not_kept(server: DICOMwebServer) -> None:
    server.fault = lambda request: Fault(headers={"Set-Cookie": "session=1; Path=/"})
    mt.open_slide(server.series_urls()[0])["level0"].image.compute()
    assert not any("cookie" in r.headers for r in server.requests)


# -- patients


def patient_in(text: str) -> list[str]:
    found = [f"{name} ({form})" for name, value in PATIENT.items() for form in find_secret(text, value)]
    words = ("Müller", "MÜLLER", "Annegret", "Q4711Z", "A&17", "A&amp;17")
    return found + [word for word in words if word.lower() in text.lower()]


ECHOES: dict[str, Callable[[str, str], str]] = {
    "plain": lambda name, value: f"no {name} {value} here",
    "json": lambda name, value: f'{{"message": "no {name} \\"{value}\\" here"}}',
    "escaped": lambda name, value: f"no {name}={quote(value)} here, nor {quote(value, safe='')}",
    "upper": lambda name, value: f"no {value.upper()} here",
    "page": lambda name, value: (
        f"<html><body>no <b>{value.replace('&', '&amp;')}</b>, {value.replace('^', ' ')}</html>"
    ),
    "words": lambda name, value: f"no patient {' / '.join(value.replace('^', ' ').split())}",
    "at the end": lambda name, value: "<p>" * 1363 + value * 3,
    "base64": lambda name, value: base64.b64encode(value.encode()).decode(),
}


@pytest.mark.parametrize("how", ECHOES)
@pytest.mark.parametrize("attribute", PATIENT)
@pytest.mark.parametrize("status", [400, 403, 500])
def test_patients_are_in_no_error_and_no_log(
    how: str, attribute: str, status: int, server: DICOMwebServer, logs: io.StringIO
) -> None:
    words = ECHOES[how](attribute, PATIENT[attribute])
    server.fault = lambda request: Fault(status=status, body=words.encode())
    with pytest.raises(RequestError, match=f"HTTP {status}") as caught:
        mt.find_slides(server.url, **{attribute: PATIENT[attribute]})
    assert patient_in("".join(traceback.format_exception(caught.value))) == []
    assert "GET" in logs.getvalue()
    assert patient_in(logs.getvalue()) == []


def test_patients_of_searches_that_find(server: DICOMwebServer, logs: io.StringIO) -> None:
    mt.find_slides(server.url, **PATIENT)
    assert any("AccessionNumber" in r.query for r in server.requests)
    assert patient_in(logs.getvalue()) == []


def test_patients_of_searches_that_are_redirected_or_cut(server: DICOMwebServer, logs: io.StringIO) -> None:
    for fault in (
        Fault(status=302, headers={"Location": f"http://elsewhere.example/?PatientID={quote(PATIENT['PatientID'])}"}),
        Fault(status=200, body=b'[{"0020000D": {}}]', close_after=3),
        Fault(status=200, body=b'[{"0020000D": {}}]', reset_after=0),
        Fault(html=True),
        Fault(status=200, body=PATIENT["PatientID"].encode()),
    ):
        server.fault = lambda request, fault=fault: fault
        with pytest.raises(RequestError) as caught:
            mt.find_slides(server.url, **PATIENT)
        assert patient_in("".join(traceback.format_exception(caught.value)) + logs.getvalue()) == []


def test_words_of_use_stay(server: DICOMwebServer) -> None:
    """What is hidden is what the request told, not what the server says of it."""
    server.fault = lambda request: Fault(status=403, body=b'{"error": "token expired; ask the basic desk, limit 100"}')
    with pytest.raises(RequestError, match="token expired; ask the basic desk, limit 100"):
        mt.open_slide(server.series_urls()[0], credentials=mt.credentials.bearer(TOKEN))


def test_slides_opened_by_two_users_ask_as_who_opened_them(folder: Path) -> None:
    accepted = {"of-the-first", "of-the-second"}
    with DICOMwebServer(folder, tokens=accepted) as server:
        (url,) = server.series_urls()
        first = mt.open_slide(url, credentials=mt.credentials.bearer("of-the-first"))["level0"].image
        second = mt.open_slide(url, credentials=mt.credentials.bearer("of-the-second"))["level0"].image
        assert first.data.name != second.data.name
        accepted.discard("of-the-first")
        pixels = mt.open_slide(folder)["level0"].image.values
        np.testing.assert_array_equal(second.wsi.read(0, 0, 200, 300), pixels)
        mt.cache.clear()
        np.testing.assert_array_equal(second.values, pixels)
        with pytest.raises(mt.errors.AuthenticationError):
            first.wsi.read(0, 0, 200, 300)


def test_the_name_of_a_task_is_the_same_in_every_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    monkeypatch.setenv("OF_THE_TEST", "current")
    with DICOMwebServer(folder, tokens={"current"}) as server:
        (url,) = server.series_urls()
        code = f"""
import microtome as mt
slide = mt.open_slide({url!r}, credentials=mt.credentials.bearer(env="OF_THE_TEST"))
print(slide["level0"].image.data.name)
"""
        names = {subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) for _ in range(2)}
        here = mt.open_slide(url, credentials=mt.credentials.bearer(env="OF_THE_TEST"))["level0"].image.data.name
    assert names == {here + "\n"}
