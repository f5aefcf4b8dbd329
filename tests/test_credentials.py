"""Credentials: what is sent where, what travels, what is renewed how often; and that no secret shows anywhere."""

from __future__ import annotations

import base64
import copy
import datetime
import functools
import gc
import io
import itertools
import json
import logging
import os
import pickle
import pprint
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cloudpickle
import google.auth.credentials
import google.auth.exceptions
import google.oauth2.credentials
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from dask.base import tokenize
from requests.auth import HTTPBasicAuth

import microtome as mt
from microtome.errors import CredentialsError, MicrotomeError, MissingDependencyError, OptionError
from microtome.storage import credentials as creds
from microtome.storage.credentials import Credentials, SecretHeaders, google_auth, keeping
from secrets_search import find_secret, whole_traceback

ROOT = Path(__file__).resolve().parent.parent
HERE = "http://127.0.0.1:8080/dicomWeb"
GOOGLE = "https://healthcare.googleapis.com/v1/projects/p"

# Module constants, never local variables of a test: tracebacks are searched with the locals of all frames.
TOKEN = 'tok/EN+with%and"quotes\\and~0123456789abcdef'
USER = "jane.doe@hospital.example"
PASSWORD = 'pä ss/"w%rd\\+&=é 0123456789:xyz'
VALUE = 'value <of> "a" header; 100% / 0123456789'
KEY = (
    rsa.generate_private_key(65537, 2048)
    .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    .decode()
)
SERVED = "ya29.token-from-the-server-0123456789"
SECRETS = {
    "token": TOKEN,
    "user": USER,
    "password": PASSWORD,
    "value": VALUE,
    "key": KEY.splitlines()[5],
    "served": SERVED,
    "pair": f"{USER}:{PASSWORD}",
}


def account(uri: str = "http://127.0.0.1:9/token") -> dict[str, str]:
    """What a key file of a service account holds."""
    return {
        "type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": KEY,
        "client_email": "reader@p.iam.gserviceaccount.com", "client_id": "1", "token_uri": uri,
    }  # fmt: skip


def secrets_in(text: str) -> list[str]:
    return [f"{name} ({form})" for name, secret in SECRETS.items() for form in find_secret(text, secret)]


def caught(action: Callable[[], object], kind: type[BaseException] = MicrotomeError) -> BaseException:
    """Return what an action raises, having searched it for secrets."""
    with pytest.raises(kind) as info:
        action()
    found = secrets_in(whole_traceback(info.value))
    assert not found, found
    return info.value


def give_token() -> str:
    return TOKEN


class Login:
    """A user's callable that holds a password and counts."""

    def __init__(self, *answers: Any, wait: float = 0) -> None:
        self.password, self.answers, self.calls, self.wait = PASSWORD, answers or (TOKEN,), 0, wait

    def __repr__(self) -> str:
        return f"Login(password={self.password!r})"

    def token(self) -> Any:
        return self()

    def __call__(self) -> Any:
        time.sleep(self.wait)
        self.calls += 1
        answer = self.answers[min(self.calls, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeGoogle(google.auth.credentials.Credentials):  # type: ignore[misc]
    """An object of google-auth with tokens of its own."""

    def __init__(self, *answers: Any, wait: float = 0, seconds: float = 3600) -> None:
        super().__init__()
        self.answers, self.calls, self.wait, self.seconds = answers or (SERVED,), 0, wait, seconds

    def __repr__(self) -> str:
        return f"FakeGoogle(token={self.token!r})"

    def expire(self, seconds: float = -1) -> None:
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        self.expiry = now + datetime.timedelta(seconds=seconds)

    def refresh(self, request: Any) -> None:
        time.sleep(self.wait)
        self.calls += 1
        answer = self.answers[min(self.calls, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            secret_in_a_frame = TOKEN
            raise answer from ValueError(secret_in_a_frame)
        self.token = f"{answer}{self.calls}" if answer == SERVED else answer
        self.expire(self.seconds)


class TokenServer:
    """An OAuth token endpoint on loopback."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                time.sleep(outer.wait)
                token = f"{SERVED}-{len(outer.asked)}"
                body = outer.refusal or {"access_token": token, "expires_in": outer.seconds, "token_type": "Bearer"}
                data = json.dumps(body).encode()
                self.send_response(400 if outer.refusal else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.asked: list[str] = []
        self.refusal: dict[str, str] = {}
        self.seconds, self.wait = 3600.0, 0.0
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_port}/token"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[TokenServer]:
    one = TokenServer()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no waiting, and no credentials of whoever runs the tests."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("A_TOKEN", TOKEN)
    monkeypatch.setenv("A_PASSWORD", PASSWORD)
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setattr(google_auth, "WAITS", (0.0, 0.0))
    keeping._kept.clear()


LITERALS: dict[str, Callable[..., Credentials]] = {
    "bearer": lambda **k: creds.bearer(TOKEN, **k),
    "bearer to hosts": lambda **k: creds.bearer(TOKEN, hosts=["127.0.0.1"], **k),
    "basic": lambda **k: creds.basic(USER, PASSWORD, **k),
    "headers": lambda **k: creds.headers({"X-Key": VALUE, "Authorization": f"Bearer {TOKEN}"}, **k),
    "service account": lambda **k: creds.service_account(account(), **k),
    "google": lambda **k: creds.google(FakeGoogle(), **k),
}
RECIPES: dict[str, Callable[[], Credentials]] = {
    "none": creds.none,
    "bearer env": lambda: creds.bearer(env="A_TOKEN"),
    "bearer function": lambda: creds.bearer(give_token),
    "basic env": lambda: creds.basic(USER, env="A_PASSWORD"),
    "default": creds.default,
    "default, more": lambda: creds.default(hosts=["Proxy.Example.org."], scopes=["a", "b"]),
    "service account file": lambda: creds.service_account("key.json"),
    "function": lambda: creds.resolve(give_headers),
}
ALL = {**LITERALS, **RECIPES}


def give_headers() -> dict[str, str]:
    return {"X-Key": VALUE}


# --- what is sent ---------------------------------------------------------------------------------------------------


def test_bearer() -> None:
    for one in (
        creds.bearer(TOKEN), creds.bearer(f"  {TOKEN}\n".encode()), creds.bearer(env="A_TOKEN"),
        creds.bearer(give_token), creds.bearer(lambda: TOKEN.encode() + b"\r\n"), creds.bearer(Login().token),
    ):  # fmt: skip
        assert dict(one.headers_for(HERE)) == {"Authorization": f"Bearer {TOKEN}"}


def test_basic_is_utf8_and_keeps_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", f" {PASSWORD} \n")
    for one, password in (
        (creds.basic(USER, PASSWORD), PASSWORD),
        (creds.basic(USER, env="A_PASSWORD"), f" {PASSWORD} "),
    ):
        sent = one.headers_for(HERE)["Authorization"].removeprefix("Basic ")
        assert base64.b64decode(sent).decode("utf-8") == f"{USER}:{password}"
    assert base64.b64decode(creds.basic("key", "").headers_for(HERE)["Authorization"][6:]) == b"key:"


def test_headers_and_functions_that_return_them() -> None:
    assert dict(creds.headers({"X-Key": f" {VALUE}\n", "B": b"2"}).headers_for(HERE)) == {"X-Key": VALUE, "B": "2"}
    assert dict(creds.resolve(give_headers).headers_for(HERE)) == {"X-Key": VALUE}
    login = Login({"A": "1"}, {"A": "2"})
    one = creds.resolve(login)
    first = one.headers_for(HERE)
    assert dict(one.headers_for(HERE)) == dict(first) == {"A": "1"}
    assert one.refresh(first)
    assert dict(one.headers_for(HERE)) == {"A": "2"}
    assert login.calls == 2


def test_none_goes_everywhere() -> None:
    for url in ("http://evil.example", "https://a@b", "nonsense", ""):
        assert creds.none().headers_for(url) == {}
    assert not creds.none().refresh(SecretHeaders())


WRONG: list[Any] = [TOKEN, TOKEN.encode(), (USER, PASSWORD), {"A": VALUE}, 7, dict, HTTPBasicAuth(USER, PASSWORD)]


def test_resolve() -> None:
    assert creds.resolve(None) == creds.none()
    one = creds.bearer(TOKEN)
    assert creds.resolve(one) is one
    for number in range(len(WRONG)):
        error = caught(lambda number=number: creds.resolve(WRONG[number]), OptionError)  # type: ignore[misc]
        for name in ("default()", "bearer()", "basic()", "headers()", "none()", "google()", "service_account()"):
            assert name in str(error)


def test_headers_are_of_the_caller() -> None:
    one = creds.bearer(give_token)
    one.headers_for(HERE)["Accept"] = "x"
    assert set(one.headers_for(HERE)) == {"Authorization"}
    merged = one.headers_for(HERE) | {"Accept": "x"}
    assert isinstance(merged, SecretHeaders)
    assert isinstance({"Accept": "x"} | merged, SecretHeaders)
    assert repr(merged) == str(merged) == f"{merged}" == "<headers: Authorization, Accept>"
    assert merged.generation == one.headers_for(HERE).generation
    assert copy.deepcopy(merged) == copy.copy(merged) == merged
    assert repr(SecretHeaders()) == "<headers: none>"


@pytest.mark.parametrize("name", ALL)
def test_identity(name: str) -> None:
    one, same = ALL[name](), ALL[name]()
    if name != "google":  # two objects, who knows what they hold
        assert (one, one.identity, hash(one), repr(one)) == (same, same.identity, hash(same), repr(same))
    others = [make() for other, make in ALL.items() if other != name]
    others += [creds.bearer(TOKEN + "x"), creds.basic(USER, "x"), creds.basic("x", PASSWORD), creds.bearer(lambda: "x")]
    others += [creds.bearer(env="B"), creds.basic("x", env="A_PASSWORD"), creds.google(FakeGoogle())]
    others += [
        creds.headers({"X-Key": "x"}),
        creds.default(hosts=["x"]),
        creds.service_account("b"),
        creds.resolve(Login()),
    ]
    others += [make(travel=True) for make in LITERALS.values()]
    assert all(one != other for other in others)
    assert len({o.identity for o in [one, *others]}) == len({repr(o) for o in [one, *others]}) == len(others) + 1
    assert copy.copy(one) == copy.deepcopy({"a": one})["a"] == one
    assert one != repr(one)


def test_functions_are_known_by_themselves() -> None:
    login = Login()
    assert creds.bearer(login) == creds.bearer(login) != creds.bearer(Login())
    assert creds.bearer(login.token) == creds.bearer(login.token) != creds.bearer(login)
    marks = set()
    for _ in range(50):  # one id after the other is used again
        marks.add(creds.bearer(lambda: "x").identity)
    assert len(marks) == 50
    gc.collect()
    before = len(keeping._marks)
    for _ in range(50):
        creds.bearer(lambda: "x")
    gc.collect()
    assert len(keeping._marks) <= before


def test_equal_recipes_share_what_was_made() -> None:
    login = Login()
    for _ in range(3):
        creds.bearer(login).headers_for(HERE)
    assert login.calls == 1


# --- where it is sent -----------------------------------------------------------------------------------------------

ANY, LOCAL, GOOGLES, LISTED = "any", "local", "google", "listed"
HOSTS = [
    # URL, and which kinds go there
    ("https://healthcare.googleapis.com/v1", {ANY, GOOGLES}),
    ("https://googleapis.com", {ANY, GOOGLES}),
    ("HTTPS://HealthCare.GoogleAPIs.com:8443/v1?x=@y", {ANY, GOOGLES}),
    ("https://healthcare.googleapis.com./v1", {ANY, GOOGLES}),
    ("https://us-central1-healthcare.googleapis.com:443", {ANY, GOOGLES}),
    ("https://proxy.example.org/v1", {ANY, LISTED}),
    ("https://PROXY.example.org.:444/v1", {ANY, LISTED}),
    ("https://sub.proxy.example.org/v1", {ANY}),
    ("https://proxy.example.org.evil.org/v1", {ANY}),
    ("https://googleapis.com.evil.org", {ANY}),
    ("https://evilgoogleapis.com", {ANY}),
    ("https://evil.org/googleapis.com", {ANY}),
    ("https://evil.org?.googleapis.com", {ANY}),
    ("https://evil.org#.googleapis.com", {ANY}),
    ("https://evil.org/@googleapis.com", {ANY}),
    ("https://googleapis.com..", {ANY}),
    ("https://evil%2egoogleapis.com", {ANY}),
    ("https://evil%2f.googleapis.com", {ANY}),
    ("https://.googleapis.com", {ANY}),
    ("https://g\u043e\u043egleapis.com", {ANY}),
    ("https://evil\uff0egoogleapis.com", {ANY}),
    ("https://googleapis.com@evil.org", set()),
    ("https://evil.org\\@googleapis.com", set()),
    ("https://evil.org\\.googleapis.com", set()),
    ("https://u:p@googleapis.com", set()),
    ("https://@googleapis.com", set()),
    ("https://evil.org\t.googleapis.com", set()),
    ("https://evil.org\n.googleapis.com", set()),
    ("https://evil.org .googleapis.com", set()),
    ("https://googleapis.com:99999", set()),
    ("https://googleapis.com:x", set()),
    ("https://[::1", set()),
    ("https://", set()),
    ("https:///path", set()),
    ("googleapis.com", set()),
    ("//googleapis.com/x", set()),
    ("ftp://googleapis.com", set()),
    ("file:///etc/passwd", set()),
    ("gs://bucket/x", set()),
    ("http://googleapis.com", set()),
    ("http://proxy.example.org", set()),
    ("http://127.0.0.1:8080/x", {ANY, LISTED}),
    ("http://127.1.2.3", {ANY}),
    ("http://localhost:1", {ANY}),
    ("HTTP://LOCALHOST", {ANY}),
    ("http://[::1]:8080/x", {ANY, LISTED}),
    ("http://[0:0:0:0:0:0:0:1]/", {ANY, LISTED}),
    ("http://[::2]", set()),
    ("http://[::ffff:127.0.0.1]", set()),
    ("http://[::ffff:7f00:1]", set()),
    ("http://localhost.", set()),
    ("http://127.0.0.1.", set()),
    ("http://localhost.evil.org", set()),
    ("http://127.0.0.1.evil.org", set()),
    ("http://127.0.0.1@evil.org", set()),
    ("http://evil.org#@127.0.0.1", set()),
    ("http://127.1", set()),
    ("http://2130706433", set()),
    ("http://0x7f.1", set()),
    ("http://0.0.0.0", set()),
    ("http://128.0.0.1", set()),
    ("http://[fe80::1%25lo]", set()),
]


@pytest.mark.parametrize(("url", "goes"), HOSTS)
def test_where_credentials_go(url: str, goes: set[str]) -> None:
    listed = ["proxy.example.org", "127.0.0.1", "[::1]"]
    table = [
        (creds.bearer(TOKEN), ANY in goes),
        (creds.bearer(TOKEN, hosts=listed), LISTED in goes),
        (creds.bearer(env="A_TOKEN"), ANY in goes),
        (creds.bearer(give_token), ANY in goes),
        (creds.bearer(give_token, hosts=listed), LISTED in goes),
        (creds.basic(USER, PASSWORD), ANY in goes),
        (creds.basic(USER, env="A_PASSWORD"), ANY in goes),
        (creds.headers({"A": VALUE}), ANY in goes),
        (creds.resolve(give_headers), ANY in goes),
        (creds.google(FakeGoogle()), GOOGLES in goes),
        (creds.google(FakeGoogle(), hosts=listed), GOOGLES in goes or LISTED in goes),
    ]
    for one, allowed in table:
        if allowed:
            assert one.headers_for(url)
        else:
            assert "Remedy" in str(caught(lambda one=one: one.headers_for(url), CredentialsError))  # type: ignore[misc]


def test_google_goes_nowhere_before_it_is_asked_for() -> None:
    """The rule comes first: no token is made for a host that must not have it."""
    fake = FakeGoogle()
    for one in (
        creds.google(fake),
        creds.default(),
        creds.service_account("/nowhere"),
        creds.service_account(account()),
    ):
        error = caught(lambda one=one: one.headers_for("https://evil.org/x"), CredentialsError)  # type: ignore[misc]
        assert "https://evil.org" in str(error)
        assert "hosts=['evil.org']" in str(error)
    assert fake.calls == 0


def test_urls_show_neither_patients_nor_passwords() -> None:
    for make in (creds.default, creds.bearer):
        one = make(**({"env": "A_TOKEN"} if make is creds.bearer else {}))
        for number in range(len(REVEALING)):
            error = caught(lambda one=one, n=number: one.headers_for(REVEALING[n]), CredentialsError)  # type: ignore[misc]
            assert not re.search("PW|jane|doe", whole_traceback(error))


REVEALING = [
    "http://u:PW@evil.org/jane?name=doe",
    "https://u:PW@x.org/jane",
    "http://evil.org/jane?doe",
    "https://x:PW/",
]


@pytest.mark.parametrize(
    "host", ["https://proxy", "proxy:80", "*.example.org", "", " ", "a/b", "u@h", "[::1]:80", "h\u00f6st", "..", "a b"]
)
def test_hosts_are_names(host: str) -> None:
    for make in (creds.default, lambda **k: creds.bearer(TOKEN, **k), lambda **k: creds.google(FakeGoogle(), **k)):
        caught(lambda make=make: make(hosts=[host]), OptionError)  # type: ignore[misc]


def test_one_host_may_be_a_str() -> None:
    assert creds.default(hosts="proxy.example.org") == creds.default(hosts=["proxy.example.org"])
    caught(lambda: creds.bearer(TOKEN, hosts=[]), OptionError)


BREAKS = [
    f"{TOKEN}\r\nX-Evil: 1", f"{TOKEN}\nX", f"{TOKEN}\rX", f"{TOKEN}\0X", f"{TOKEN}\x7fX", f"{TOKEN}\x0bX",
    f"{TOKEN}\u2028X", f"{TOKEN}\u20ac", f"{TOKEN}\x85X",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BREAKS)))
def test_no_header_injection(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    caught(lambda: creds.bearer(BREAKS[number]), CredentialsError)
    caught(lambda: creds.bearer(BREAKS[number].encode("utf-8")), CredentialsError)
    caught(lambda: creds.headers({"A": BREAKS[number]}), CredentialsError)
    caught(lambda: creds.headers({BREAKS[number]: "A"}), CredentialsError)
    caught(lambda: creds.bearer(lambda: BREAKS[number]).headers_for(HERE), CredentialsError)
    caught(lambda: creds.resolve(lambda: {"A": BREAKS[number]}).headers_for(HERE), CredentialsError)
    caught(lambda: creds.google(FakeGoogle(BREAKS[number])).headers_for(GOOGLE), CredentialsError)
    if "\0" not in BREAKS[number]:
        monkeypatch.setenv("A_TOKEN", BREAKS[number])
        caught(lambda: creds.bearer(env="A_TOKEN").headers_for(HERE), CredentialsError)
    if BREAKS[number].isascii():
        caught(lambda: creds.basic(USER, BREAKS[number]), CredentialsError)
        caught(lambda: creds.basic(BREAKS[number], PASSWORD), CredentialsError)


def test_what_is_no_secret_is_said() -> None:
    for action, words in {
        lambda: creds.bearer(" \n"): "empty",
        lambda: creds.bearer(b""): "empty",
        lambda: creds.bearer(f"Bearer {TOKEN}"): "without the word 'Bearer'",
        lambda: creds.bearer(env="NOT_SET").headers_for(HERE): "NOT_SET is not set",
        lambda: creds.basic(USER, env="NOT_SET").headers_for(HERE): "NOT_SET is not set",
        lambda: creds.bearer(lambda: None).headers_for(HERE): "does not return a str",
        lambda: creds.bearer(lambda: "").headers_for(HERE): "empty",
        lambda: creds.resolve(lambda: [VALUE]).headers_for(HERE): "list",
        lambda: creds.resolve(lambda: {"A": 7}).headers_for(HERE): "int",
        lambda: creds.basic(f"{USER}:", PASSWORD): "colon",
        lambda: creds.basic(USER, PASSWORD + "\ud800"): "no character",
    }.items():
        assert words in str(caught(action, CredentialsError))


def test_options() -> None:
    for action in (
        creds.bearer, lambda: creds.bearer(TOKEN, env="A_TOKEN"), lambda: creds.bearer(7),
        lambda: creds.bearer([TOKEN]),
        lambda: creds.bearer(env=TOKEN), lambda: creds.bearer(functools.partial(print, TOKEN), env="A_TOKEN"),
        lambda: creds.basic(USER), lambda: creds.basic(USER, PASSWORD, env="A"), lambda: creds.basic(USER, [PASSWORD]),
        lambda: creds.basic([USER], PASSWORD), lambda: creds.basic(USER, env=PASSWORD), lambda: creds.headers({}),
        lambda: creds.headers([("A", VALUE)]), lambda: creds.headers(VALUE), lambda: creds.google(TOKEN),
        lambda: creds.google(FakeGoogle), lambda: creds.service_account(KEY), lambda: creds.service_account(7),
        lambda: creds.service_account({"private_key": KEY}), lambda: creds.service_account(""),
        lambda: creds.service_account(json.dumps(account())[:-1]),
        lambda: creds.service_account({**account(), "more": {KEY}}),
    ):  # fmt: skip
        caught(action, OptionError)  # type: ignore[arg-type]


def test_empty_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", " \n")
    error = caught(lambda: creds.bearer(env="A_TOKEN").headers_for(HERE), CredentialsError)
    assert "A_TOKEN is empty" in str(error)


# --- what is made anew ----------------------------------------------------------------------------------------------


def eight(action: Callable[[], Any]) -> list[Any]:
    """Return what an action returns in each of eight threads that start at the same time."""
    barrier = threading.Barrier(8)

    def run(_: int) -> Any:
        barrier.wait(10)
        return action()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(run, range(8)))


def test_literals_are_not_renewed() -> None:
    for make in (LITERALS["bearer"], LITERALS["basic"], LITERALS["headers"]):
        one = make()
        assert not one.refresh(one.headers_for(HERE))


def test_variables_are_read_at_each_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for one, name in ((creds.bearer(env="A_TOKEN"), "A_TOKEN"), (creds.basic(USER, env="A_PASSWORD"), "A_PASSWORD")):
        stale = one.headers_for(HERE)
        assert not one.refresh(stale)
        monkeypatch.setenv(name, "anew")
        assert one.refresh(stale | {"Accept": "x"})
        assert one.headers_for(HERE) != stale


def test_eight_threads_call_a_function_once() -> None:
    login = Login("a", "b", wait=0.05)
    one = creds.bearer(login)
    first = eight(lambda: one.headers_for(HERE))
    assert login.calls == 1
    assert eight(lambda: one.refresh(first[0] | {"Accept": "x"})) == [True] * 8
    assert login.calls == 2
    assert one.headers_for(HERE)["Authorization"] == "Bearer b"
    # It has no other: that, too, is found out once, and nothing is worth asking again.
    second = one.headers_for(HERE)
    assert eight(lambda: one.refresh(second)) == [False] * 8
    assert login.calls == 3


def test_eight_threads_renew_a_token_of_google_once() -> None:
    fake = FakeGoogle(wait=0.05)
    one = creds.google(fake)
    first = eight(lambda: one.headers_for(GOOGLE))
    assert fake.calls == 1
    assert eight(lambda: one.refresh(first[0])) == [True] * 8
    assert fake.calls == 2
    fake.expire()
    assert {h["Authorization"] for h in eight(lambda: one.headers_for(GOOGLE))} == {f"Bearer {SERVED}3"}
    assert fake.calls == 3


def test_eight_threads_ask_the_token_server_once(server: TokenServer) -> None:
    server.wait = 0.05
    ACCOUNTS["eight"] = account(server.uri)
    copies = [creds.service_account(ACCOUNTS["eight"]) for _ in range(8)]
    queue = iter(copies)
    first = eight(lambda: next(queue).headers_for(GOOGLE))
    assert {str(h["Authorization"]) for h in first} == {f"Bearer {SERVED}-1"}
    queue = iter(copies)
    assert eight(lambda: next(queue).refresh(first[0])) == [True] * 8
    assert len(server.asked) == 2


ACCOUNTS: dict[str, dict[str, str]] = {}


def test_expiry_is_invisible(server: TokenServer) -> None:
    server.seconds = 1
    one = creds.service_account(account(server.uri), hosts=["127.0.0.1"])
    first = one.headers_for(HERE)["Authorization"]
    assert one.headers_for(HERE)["Authorization"] == first  # of a token that lives for a second, no two are asked for
    time.sleep(1.1)
    assert one.headers_for(HERE)["Authorization"] == f"Bearer {SERVED}-2" != first
    assert "assertion=" in server.asked[0]


def test_an_expired_object_is_renewed_before_it_is_sent() -> None:
    fake = FakeGoogle()
    fake.token = "old"
    fake.expire()
    assert creds.google(fake).headers_for(GOOGLE)["Authorization"] == f"Bearer {SERVED}1"


def test_a_token_that_others_renewed_is_taken() -> None:
    fake = FakeGoogle()
    one = creds.google(fake)
    stale = one.headers_for(GOOGLE)
    fake.refresh(None)
    assert one.refresh(stale)
    assert fake.calls == 2


def test_failures_that_pass_are_not_seen() -> None:
    away = google.auth.exceptions.TransportError(f"no route, {TOKEN}")
    fake = FakeGoogle(away, away, SERVED, away)
    one = creds.google(fake)
    assert one.headers_for(GOOGLE)["Authorization"] == f"Bearer {SERVED}3"
    fake.expire(100)  # google-auth would renew it now; it cannot, but the old one is good for 100 s
    for _ in range(3):
        keeping._kept[one.identity].renewed -= 4
        assert one.headers_for(GOOGLE)["Authorization"] == f"Bearer {SERVED}3"
    assert fake.calls == 4
    fake.expire(-1)
    error = caught(lambda: one.headers_for(GOOGLE), CredentialsError)
    assert "cannot be reached (TransportError)" in str(error)
    assert fake.calls == 7


def test_a_token_that_was_handed_over_alone() -> None:
    one = creds.google(google.oauth2.credentials.Credentials(TOKEN))
    sent = one.headers_for(GOOGLE)
    assert dict(sent) == {"Authorization": f"Bearer {TOKEN}"}
    assert not one.refresh(sent)


def test_quota_project_is_sent() -> None:
    given = google.oauth2.credentials.Credentials(TOKEN, quota_project_id="q")
    assert creds.google(given).headers_for(GOOGLE)["x-goog-user-project"] == "q"


def test_default(server: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = creds.default()
    error = caught(lambda: one.headers_for(GOOGLE), CredentialsError)
    assert "gcloud auth application-default login" in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None
    file = tmp_path / "key.json"
    file.write_text(json.dumps(account(server.uri)))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    first = one.headers_for(GOOGLE)  # a login is found without a new process
    assert first["Authorization"] == f"Bearer {SERVED}-1"
    assert one.refresh(first)
    assert one.headers_for(GOOGLE)["Authorization"] == f"Bearer {SERVED}-2"
    assert "cloud-platform" in str(base64.b64decode(re.split(r"assertion=|%2E|\.", server.asked[0])[2] + "=="))


def test_service_account_file(server: TokenServer, tmp_path: Path) -> None:
    one = creds.service_account(tmp_path / "key.json")
    assert str(tmp_path / "key.json") in str(caught(lambda: one.headers_for(GOOGLE), CredentialsError))
    (tmp_path / "key.json").write_text("{}")
    caught(lambda: one.headers_for(GOOGLE), CredentialsError)
    (tmp_path / "key.json").write_text(json.dumps(account(server.uri)))
    assert one.headers_for(GOOGLE)["Authorization"] == f"Bearer {SERVED}-1"
    # The text of a file is a key, not a path that may be shown.
    text = creds.service_account(json.dumps(account(server.uri)))
    assert text == creds.service_account(account(server.uri))
    assert text.headers_for(GOOGLE)


def test_refused_by_the_token_server(server: TokenServer) -> None:
    one = creds.service_account(account(server.uri))
    server.refusal = {"error": "invalid_grant", "error_description": f"no {SERVED} {TOKEN}"}
    error = caught(lambda: one.headers_for(GOOGLE), CredentialsError)
    assert "RefreshError: invalid_grant" in str(error)
    assert "clock" in str(error)
    server.refusal = {}
    stale = one.headers_for(GOOGLE)
    server.refusal = {"error": SERVED}
    caught(lambda: one.refresh(stale), CredentialsError)
    server.refusal = {}
    assert one.refresh(stale)


def test_google_auth_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [creds.default(), creds.service_account("f"), creds.service_account(account()), creds.google(FakeGoogle())]
    monkeypatch.setitem(sys.modules, "google.auth", None)
    for one in made:
        error = caught(lambda one=one: one.headers_for(GOOGLE), MissingDependencyError)  # type: ignore[misc]
        assert "pip install 'microtome[google]'" in str(error)


def test_functions_that_fail() -> None:
    for answer in (ValueError(TOKEN), SystemError(PASSWORD), {"A": {VALUE}}, TOKEN + "\n\nX"):
        LOGINS[:] = [Login(answer)]
        del answer
        error = caught(lambda: creds.bearer(LOGINS[0]).headers_for(HERE), CredentialsError)
        assert "Login" in str(error)
        assert (error.__cause__, error.__context__) == (None, None)
        caught(lambda: creds.resolve(LOGINS[0]).headers_for(HERE), CredentialsError)
    LOGINS[:] = [Login(KeyboardInterrupt())]
    with pytest.raises(CredentialsError):  # not an Exception: Login returns it, and it is no token
        creds.bearer(LOGINS[0]).headers_for(HERE)


LOGINS: list[Login] = []


def test_after_a_fork_nothing_is_locked() -> None:
    code = """
import os, signal, threading, time, warnings
warnings.simplefilter("ignore")
from microtome.storage import credentials
one = credentials.bearer(lambda: time.sleep(1) or str(os.getpid()))
thread = threading.Thread(target=one.headers_for, args=("https://a.org",))
thread.start()
time.sleep(0.3)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    sent = one.headers_for("https://a.org")["Authorization"]
    os._exit(0 if sent == f"Bearer {os.getpid()}" else 3)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "0", done.stderr


# --- what travels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LITERALS)
def test_literals_stay_here(name: str) -> None:
    one = LITERALS[name]()
    for dump in (pickle.dumps, cloudpickle.dumps):
        error = caught(lambda dump=dump: dump({"a": [one]}), CredentialsError)  # type: ignore[misc]
        assert "travel=True" in str(error)
        assert repr(one) in str(error)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        caught(lambda protocol=protocol: pickle.dumps(one, protocol), CredentialsError)  # type: ignore[misc]
    if "google" in name or "account" in name:
        return
    caught(lambda: pickle.dumps(one.headers_for(HERE)), CredentialsError)
    caught(lambda: pickle.dumps(list(one.headers_for(HERE).values())), CredentialsError)
    caught(lambda: pickle.dumps(vars(one)), CredentialsError)


@pytest.mark.parametrize("name", [name for name in LITERALS if name != "google"])
def test_literals_travel_when_told(name: str) -> None:
    one = LITERALS[name](travel=True)
    again = pickle.loads(cloudpickle.dumps(one))
    assert again == one
    assert pickle.loads(pickle.dumps(again)) == one
    if "account" not in name:
        assert again.headers_for(HERE) == one.headers_for(HERE)


def test_objects_of_google_travel_when_told() -> None:
    one = creds.google(google.oauth2.credentials.Credentials(TOKEN), hosts=["a.org"], travel=True)
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    assert again.headers_for("https://a.org") == {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_travel(name: str) -> None:
    one = RECIPES[name]()
    if "default" not in name and "account" not in name:
        one.headers_for(HERE)
    for dump in (pickle.dumps, cloudpickle.dumps):
        data = dump(one)
        assert len(data) < 1000
        again = pickle.loads(data)
        assert again == one
        assert repr(again) == repr(one)
        found = secrets_in(repr(data) + data.decode("latin-1"))
        if name == "basic env":  # the user's name travels, and the pair begins with it
            found = [form for form in found if not form.startswith(("user", "pair (cut off)"))]
        assert not found, found


def test_a_recipe_is_followed_where_it_arrives() -> None:
    made = [
        creds.bearer(env="A_TOKEN"),
        creds.basic(USER, env="A_PASSWORD"),
        creds.bearer(lambda: "here"),
        creds.none(),
    ]
    for one in made:
        one.headers_for(HERE)
    code = """
import sys, pickle
made = pickle.loads(bytes.fromhex(sys.stdin.read()))
assert "google" not in sys.modules and "requests" not in sys.modules
for copies in zip(made, pickle.loads(pickle.dumps(made[:2])) + made[2:]):
    assert copies[0] == copies[1]
print([str(one.headers_for("https://a.org").get("Authorization")) for one in made])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], input=cloudpickle.dumps(made).hex(), capture_output=True,
        text=True, timeout=60, check=False, env={**os.environ, "A_TOKEN": "there", "A_PASSWORD": "there"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    basic = "Basic " + base64.b64encode(f"{USER}:there".encode()).decode()
    assert done.stdout.strip() == str(["Bearer there", basic, "Bearer here", "None"])


def test_tasks_share_what_one_of_them_made() -> None:
    """Each task unpickles a copy of its own, of a function that pickles by value."""
    code = """
import pickle, sys
from microtome.storage import credentials
datas = [bytes.fromhex(line) for line in sys.stdin.read().split()]
copies = [pickle.loads(data) for data in datas]
print(len({str(one.headers_for("https://a.org")["Authorization"]) for one in copies}), len(set(copies)))
"""
    one = creds.bearer(lambda: __import__("uuid").uuid4().hex)
    datas = "\n".join(cloudpickle.dumps(one).hex() for _ in range(5))
    done = subprocess.run(
        [sys.executable, "-c", code], input=datas, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize("name", ALL)
def test_dask_names(name: str) -> None:
    one = ALL[name]()
    assert tokenize(one) == tokenize(ALL[name]())
    assert not secrets_in(repr(one.__dask_tokenize__()))
    assert one.identity not in repr(one.__dask_tokenize__())
    assert json.dumps(one.__dask_tokenize__())


# --- what shows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_nothing_shows(name: str, caplog: pytest.LogCaptureFixture) -> None:
    from _pytest._io.saferepr import saferepr
    from rich.pretty import pretty_repr

    caplog.set_level(logging.DEBUG)
    one = ALL[name]()
    things: list[Any] = [one]
    if "default" not in name and "account" not in name:
        url = GOOGLE if name == "google" else HERE
        things += [one.headers_for(url), one.headers_for(url) | {"Accept": "x"}, dict(one.headers_for(url))]
    for thing in things:
        logging.getLogger("test").warning("%r", thing)
        if not (isinstance(thing, dict) and type(thing) is dict):
            logging.getLogger("test").warning("%s %s", thing, f"{thing}")
        texts = [repr(thing), pprint.pformat(thing), pprint.pformat([thing]), saferepr(thing), f"{[thing]}"]
        texts += [pretty_repr(thing), pretty_repr([thing], max_string=20), ascii(thing)]
        if hasattr(thing, "__dict__"):
            texts += [repr(vars(thing)), pprint.pformat(vars(thing)), pretty_repr(vars(thing), max_string=20)]
            texts += [str(v) for v in vars(thing).values()] + [f"{v}" for v in vars(thing).values()]
        if hasattr(thing, "__getstate__"):
            texts.append(repr(thing.__getstate__()))
        found = [s for text in texts for s in secrets_in(text)]
        assert not found, (found, type(thing))
    assert not secrets_in(caplog.text + repr([vars(r) for r in caplog.records]))


def test_google_auth_logs_nothing_either(server: TokenServer, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("", "google", "google.auth", "requests", "urllib3"):
        caplog.set_level(logging.DEBUG, name or None)
    one = creds.service_account(account(server.uri))
    assert one.refresh(one.headers_for(GOOGLE))
    assert caplog.records
    text = caplog.text + repr([vars(r) for r in caplog.records])
    assert not secrets_in(text)
    assert server.asked[0].split("assertion=")[1][:40] not in text


def test_rich_tracebacks_show_nothing() -> None:
    from rich.console import Console
    from rich.traceback import Traceback

    error = caught(lambda: creds.basic(USER, PASSWORD).headers_for("http://evil.org"), CredentialsError)
    console = Console(file=io.StringIO(), width=300)
    console.print(
        Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True, locals_max_string=10_000)
    )
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "self" in text
    assert not secrets_in(text)


def test_http_clients_print_masked_values() -> None:
    """What requests and urllib3 copy into dicts of their own keeps its mask in the locals of their frames."""
    import requests

    prepared = requests.Request("GET", HERE, headers=creds.bearer(TOKEN).headers_for(HERE) | {"A": "b"}).prepare()
    assert prepared.headers["Authorization"] == f"Bearer {TOKEN}"
    assert not secrets_in(repr(prepared.headers) + repr(vars(prepared)))


def test_reprs() -> None:
    assert repr(creds.none()) == "none()"
    assert repr(creds.default()) == "default()"
    assert repr(creds.default(hosts=["b", "A"])) == "default(hosts=('a', 'b'))"
    assert repr(creds.bearer(env="A_TOKEN")) == "bearer(env='A_TOKEN')"
    assert re.fullmatch(r"bearer\(<secret [0-9a-f]{12}>\)", repr(creds.bearer(TOKEN)))
    assert re.fullmatch(r"bearer\(<secret [0-9a-f]{12}>, travel=True\)", repr(creds.bearer(TOKEN, travel=True)))
    assert re.fullmatch(r"basic\(<secret [0-9a-f]{12}>\)", repr(creds.basic(USER, PASSWORD)))
    assert re.fullmatch(r"basic\(<user [0-9a-f]{12}>, env='A'\)", repr(creds.basic(USER, env="A")))
    assert re.fullmatch(r"headers\(X-Key: <secret [0-9a-f]{12}>\)", repr(creds.headers({"X-Key": VALUE})))
    assert re.fullmatch(r"bearer\(<callable test_credentials.give_token \w{12}>\)", repr(creds.bearer(give_token)))
    assert re.fullmatch(r"bearer\(<callable functools.partial \w{12}>\)", repr(creds.bearer(functools.partial(Login))))
    path = str(Path.cwd() / "key.json")
    assert repr(creds.service_account("key.json")) == f"service_account({path!r})"


@pytest.mark.parametrize("name", ALL)
def test_remedies(name: str) -> None:
    one = ALL[name]()
    texts = [creds.refusal_remedy(one), creds.refusal_remedy(one, 403)]
    assert all(len(text) > 20 for text in texts)
    assert not secrets_in("".join(texts))
    if name == "none":
        assert "credentials.default()" in texts[0]
    if name == "bearer env":
        assert "is A_TOKEN current?" in texts[0]


def test_importing_imports_neither_google_nor_requests() -> None:
    code = "import sys, microtome.storage.credentials; print({'google', 'google.auth', 'requests'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mt, "credentials", creds, raising=False)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "credentials.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 2
    for block in blocks:
        exec(compile(block, "docs/credentials.md", "exec"), {"__name__": "document"})


# --- the search itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [TOKEN, PASSWORD, VALUE, "short", "ü"])
def test_the_search_finds(secret: str) -> None:
    from urllib.parse import quote, quote_plus

    data = secret.encode()
    for before, after in itertools.product(("", "u:", "us:", "use:"), ("", "x", "xy")):
        inside = before.encode() + data + after.encode()
        if len(data) > 4:
            assert "base64" in find_secret(base64.b64encode(inside).decode(), secret)
            assert "base64, urlsafe" in find_secret(base64.urlsafe_b64encode(inside).decode(), secret)
    assert "plain" in find_secret(f"a{secret}b", secret)
    for quoted in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        assert "percent-escaped" in find_secret(quoted, secret)
    assert "JSON-escaped" in find_secret(json.dumps({"a": [secret]}), secret)
    assert "plain" in find_secret(repr([secret]), secret)
    assert "plain" in find_secret(repr(data), secret)
    assert not find_secret("nothing of the kind", secret)


def test_the_search_sees_locals_and_all_that_came_before() -> None:
    def fail() -> None:
        kept = TOKEN
        try:
            raise ValueError("one" + kept[:0])
        except ValueError:
            raise KeyError("two") from None

    with pytest.raises(KeyError) as info:
        fail()
    text = whole_traceback(info.value)
    assert "plain" in find_secret(text, TOKEN)
    assert "ValueError: one" in text
