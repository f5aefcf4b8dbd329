"""HTTP/1.1: reading requests, and writing answers with whatever goes wrong with them."""

from __future__ import annotations

import gzip
import os
import re
import socket
import struct
import time
import traceback
from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from microtome.testing.dicomweb.accept import accepts_gzip
from microtome.testing.dicomweb.bodies import blocks, ranged
from microtome.testing.dicomweb.faults import Fault
from microtome.testing.dicomweb.message import Answer, Piece, Refusal, Request, size
from microtome.testing.dicomweb.multipart import boundary_for, write_parts

if TYPE_CHECKING:
    from microtome.testing.dicomweb.serving import Listener, Server

__all__ = ["Handler"]

BATCH = 1 << 20
WORTH_PACKING = 400
PATIENCE = 60.0
NO_FAULT = Fault()

_packed = lru_cache(maxsize=16)(lambda data: gzip.compress(data, 5, mtime=0))


class _Gone(Exception):  # noqa: N818
    """The connection is to be ended here."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener
    _unread = False
    _under_way = False

    @property
    def _owner(self) -> Server:
        return self.server.owner

    def setup(self) -> None:
        """Count the connection."""
        super().setup()
        self._number = self._owner._connected()

    def handle_one_request(self) -> None:
        """Wait for a request, not for ever, and answer it."""
        self.connection.settimeout(self._owner.dialect.idle)
        try:
            super().handle_one_request()
        except (_Gone, OSError):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing: the log is the server's ``requests``."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what was no proper request."""
        self.close_connection = True
        words = message or HTTPStatus(code).phrase
        self._send(Request(getattr(self, "command", None) or "?", "", {}), _error(Refusal(code, words)), NO_FAULT)

    def _serve(self) -> None:
        self.connection.settimeout(PATIENCE)
        owner, request = self._owner, self._request()
        owner._log(request)
        self._under_way = True
        try:
            self._answer_logged(request)
        finally:
            self._answered()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = _serve  # noqa: N815

    def _answer_logged(self, request: Request) -> None:
        owner = self._owner
        # What is left of a body would be taken for the next request.
        self._unread = "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
        fault = (owner.fault and owner.fault(request)) or NO_FAULT
        owner._pause(owner.latency + fault.delay)
        try:
            answer = self._answer(request)
        except Refusal as e:
            answer = _error(e)
        except OSError:
            owner._failed(traceback.format_exc())
            answer = _error(Refusal(500, "the instance cannot be read"))
        except Exception:
            owner._failed(traceback.format_exc())
            answer = _error(Refusal(500, "the server failed"))
        self._send(request, fault.replaced(answer), fault)

    def _answered(self) -> None:
        if self._under_way:
            self._under_way = False
            self._owner._answered()

    def _request(self) -> Request:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        authorized = headers.pop("authorization", None) is not None
        frames = re.search(r"/frames/([0-9]{1,9}(?:,[0-9]{1,9})*)(?:/|$)", unquote(path))
        try:
            asked = parse_qs(query, keep_blank_values=True, max_num_fields=1000)
        except ValueError:
            asked = {}
        accept = asked.get("accept", [headers.get("accept")])[-1]
        return Request(
            self.command, path, asked, accept, headers.get("range"),
            frames=tuple(map(int, frames[1].split(","))) if frames else (), authorized=authorized,
            connection=self._number, headers=headers,
        )  # fmt: skip

    def _answer(self, request: Request) -> Answer:
        owner, dialect = self._owner, self._owner.dialect
        owner.gate.check_host(request.headers.get("host"))
        owner.gate.check(self.headers.get("Authorization"))
        if len(self.path) > dialect.longest_url:
            raise Refusal(400 if dialect.accepts == "orthanc" else 414, "the URL is too long")
        if not dialect.head and self.command in ("HEAD", "OPTIONS"):
            raise Refusal(404, "there is nothing here")
        body = self._body(request, owner.max_body) if self.command == "POST" and owner.stores else b""
        base = f"http://{request.headers['host']}{owner.root}" if dialect.host_urls else owner.url
        return owner.services.answer(request, base, body)

    def _body(self, request: Request, most: int) -> bytes:
        if "chunked" in request.headers.get("transfer-encoding", "").lower():
            data = b"".join(self._chunks(most))
        else:
            text = request.headers.get("content-length", "")
            if not re.fullmatch(r"[0-9]{1,18}", text):
                raise Refusal(411, "a body needs its length")
            if int(text) > most:
                raise Refusal(413, f"a body has at most {most} bytes")
            data = self.rfile.read(int(text))
            if len(data) < int(text):
                raise _Gone
        self._unread = False
        return data

    def _chunks(self, most: int) -> Iterator[bytes]:
        total = 0
        while True:
            line = self.rfile.readline(200).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
                raise Refusal(400, "the chunks of the body are broken")
            n = int(line, 16)
            total += n
            if total > most:
                raise Refusal(413, f"a body has at most {most} bytes")
            if n == 0:
                while self.rfile.readline(1000).strip():
                    pass
                return
            data = self.rfile.read(n)
            if len(data) < n or self.rfile.read(2) != b"\r\n":
                raise _Gone
            yield data

    # -- writing

    def _send(self, request: Request, answer: Answer, fault: Fault) -> None:
        dialect = self._owner.dialect
        headers, body = dict(answer.headers), answer.body
        media = answer.media
        if answer.parts is not None:
            media, body = self._multipart(answer, fault)
        if answer.ranged and dialect.ranges and not fault.whole and answer.status == 200:
            headers["Accept-Ranges"] = "bytes"
            answer.status, body = ranged(request.range, body, headers, fault.fewer)
        if answer.compressible and dialect.gzip:
            headers["Vary"] = "Accept-Encoding"
            if size(body) > WORTH_PACKING and accepts_gzip(request.headers.get("accept-encoding")):
                headers["Content-Encoding"] = "gzip"
                body = [_packed(b"".join(p for p in body if isinstance(p, bytes)))]
        if fault.damage is not None:
            body = fault.damaged(body)
        if answer.status in (204, 304):
            body = []
        elif media:
            headers.setdefault("Content-Type", media)
        if fault.connection_close or fault.close_after is not None or self._unread or not dialect.keep_alive:
            self.close_connection = True
        if fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif answer.status not in (204, 304) and not fault.connection_close:
            headers["Content-Length"] = str(size(body))
        if self.close_connection:
            headers["Connection"] = "close"
        try:
            phrase = HTTPStatus(answer.status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/1.1 {answer.status} {phrase}", "Server: microtome", f"Date: {self.date_time_string()}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request.status = answer.status
        self._stream(request, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), body, fault)

    def _multipart(self, answer: Answer, fault: Fault) -> tuple[str, list[Piece]]:
        """The Content-Type, and the body, of parts."""
        dialect = self._owner.dialect
        parts = fault.parts(answer.parts or [])
        locations = dialect.content_location if fault.content_location is None else fault.content_location
        lengths = dialect.part_lengths if fault.part_lengths is None else fault.part_lengths
        boundary = boundary_for(parts)
        stated = boundary[::-1] if fault.wrong_boundary else boundary
        media = f'multipart/related; type="{answer.media}"'
        if dialect.outer_syntax and parts and ";" in parts[0].media:
            media += ";" + parts[0].media.partition(";")[2]
        media += f'; boundary="{stated}"' if dialect.quoted_boundary else f"; boundary={stated}"
        return media, write_parts(parts, boundary, locations, lengths)

    def _stream(self, request: Request, head: bytes, body: list[Piece], fault: Fault) -> None:
        """Send it all, or as much as the fault allows."""
        owner, batch, held = self._owner, [head], len(head)
        if request.method == "HEAD":
            self._answered()
            self.connection.sendall(head)
            return
        rates = [r for r in (owner.bandwidth, fault.drip) if r]
        rate = min(rates) if rates else None
        step = max(1, int(rate / 25)) if rate else 16 << 10 if fault.chunked else BATCH
        ends = [n for n in (fault.reset_after, fault.close_after) if n is not None]
        end, sent, start = min(ends) if ends else None, 0, time.monotonic()
        whole = size(body)
        for block in blocks(body, step, {n for n in (end, fault.stall_after) if n}):
            if sent in (fault.stall_after, end) and batch:
                self.connection.sendall(b"".join(batch))
                batch, held = [], 0
            if sent == fault.stall_after:
                owner._pause(fault.stall)
            if sent == end:
                break
            owner._sending(request, len(block))  # before it is sent: whoever has the answer finds it counted
            if rate:
                owner._pause(start + (sent + len(block)) / rate - time.monotonic())
            sent += len(block)
            held += len(block)
            batch += [b"%x\r\n" % len(block), block, b"\r\n"] if fault.chunked and block else [block]
            if held >= BATCH or rate:
                if sent == whole:
                    self._answered()
                self.connection.sendall(b"".join(batch))
                batch, held = [], 0
        else:
            if fault.chunked:
                batch.append(b"0\r\n\r\n")
        self._answered()  # before it is sent: whoever has the answer may ask again at once
        if batch:
            self.connection.sendall(b"".join(batch))
        if end is not None:
            self._end(abruptly=fault.reset_after == end)

    def _end(self, abruptly: bool) -> None:
        if abruptly:
            # Long enough for the client to read what came before: a reset throws away what it has not.
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Not close(), which leaves the socket to the file that reads from it; and no shutdown, which is polite.
            os.close(self.connection.detach())
        raise _Gone


def _error(e: Refusal) -> Answer:
    return Answer([f"{e.words}\n".encode()], "text/plain; charset=utf-8", e.status, dict(e.headers))
