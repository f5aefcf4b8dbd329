"""One request for a range of bytes, through a filesystem of fsspec; answers are checked to be what was asked for.

Of filesystems over HTTP the connections are used, and what they know of credentials and addresses, but not their own
requests: these take a whole file for a range of it, and do not tell which version of it they read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from microtome.errors import ProtocolError, SlideChangedError
from microtome.storage.filesystems import is_a, time_limit
from microtome.storage.http_answers import HttpAnswer, mark_of, refused
from microtome.storage.refusals import Failure, RefusedError

if TYPE_CHECKING:
    from aiohttp import ClientResponse

__all__ = ["Wanted", "fetch"]

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_REMEDY = "read it through a copy that is made when it is opened: simplecache::https://…"


class Wanted(NamedTuple):
    """A range of a file.

    Parameters
    ----------
    path
        In the filesystem.
    start, stop
        Bytes; within the file, and not empty.
    size
        Of the file, as it was listed.
    mark
        Its ETag, generation or time of modification, as listed; empty if none is known.
    """

    path: str
    start: int
    stop: int
    size: int
    mark: str


def fetch(fs: Any, wanted: Wanted) -> bytes:
    """Return the bytes; one request is sent, or none.

    Raises
    ------
    RefusedError
        The answer is another one.
    Exception
        Whatever the filesystem raises.
    """
    from fsspec.asyn import sync

    if is_a(fs, "HTTPFileSystem"):
        return bytes(sync(fs.loop, _of_http, fs, wanted))
    if is_a(fs, "GCSFileSystem"):
        return bytes(sync(fs.loop, _of_gcs, fs, fs._get_headers(_range(wanted)), wanted))  # may ask for a new token
    if is_a(fs, "S3FileSystem"):
        return bytes(sync(fs.loop, _of_s3, fs, wanted))
    data: bytes = fs.cat_file(wanted.path, start=wanted.start, end=wanted.stop)
    if len(data) != wanted.stop - wanted.start:
        raise RefusedError(Failure(f"gives {len(data)} bytes of {wanted.stop - wanted.start}", kind=ProtocolError))
    return data


def _range(wanted: Wanted) -> dict[str, str]:
    return {"Range": f"bytes={wanted.start}-{wanted.stop - 1}", "Accept-Encoding": "identity"}


# HTTP ---------------------------------------------------------------------------------------------------------------


async def _of_http(fs: Any, wanted: Wanted) -> bytes:
    async with HttpAnswer(fs, "GET", wanted.path, _range(wanted)) as answer:
        return await _checked(answer, wanted, mark_of(answer.headers, wanted.mark))


async def _of_gcs(fs: Any, headers: dict[str, str], wanted: Wanted) -> bytes:
    import yarl

    bucket = fs.split_path(wanted.path)[0]
    if fs.on_google and is_a(fs, "ExtendedGcsFileSystem") and await fs._is_zonal_bucket(bucket):
        return bytes(await fs._cat_file(wanted.path, start=wanted.start, end=wanted.stop))
    session = await fs._set_session()
    generation = wanted.mark if wanted.mark.isdecimal() else None
    # As it is encoded: of a name with ";" in it a part would be taken for something else.
    url, params = yarl.URL(fs.url(wanted.path, generation=generation), encoded=True), fs._get_params({})
    async with session.get(url, headers=headers, params=params, timeout=time_limit()) as answer:
        if answer.status == 404 and generation:
            why = "is no longer there, or was written anew, since it was listed"
            raise RefusedError(Failure(why, status=404, kind=SlideChangedError))
        return await _checked(answer, wanted, answer.headers.get("X-Goog-Generation", ""))


async def _checked(answer: ClientResponse, wanted: Wanted, mark: str) -> bytes:
    """Return the body of an answer that is what was asked for."""
    length = wanted.stop - wanted.start
    if answer.status in (412, 416):
        raise RefusedError(Failure("changed since it was listed", status=answer.status, kind=SlideChangedError))
    if answer.status not in (200, 206):
        raise RefusedError(await refused(answer))
    if wanted.mark and mark and mark != wanted.mark:
        raise RefusedError(Failure("changed since it was listed", kind=SlideChangedError))
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        why = f"sends ranges in an encoding ({answer.headers['Content-Encoding']:.20}) that was not asked for"
        raise RefusedError(Failure(f"{why}. Remedy: {_REMEDY}", kind=ProtocolError))
    if answer.status == 206:
        _check_range(answer.headers.get("Content-Range", ""), wanted)
    elif length != wanted.size:
        why = "the server ignores ranges, and sends the whole file for each part of it"
        raise RefusedError(Failure(f"{why}. Remedy: {_REMEDY}", kind=ProtocolError))
    stated = answer.headers.get("Content-Length")
    if stated is not None and stated != str(length):
        raise RefusedError(_another_length(stated, length))
    pieces, got = [], 0
    async for piece in answer.content.iter_any():
        pieces.append(piece)
        got += len(piece)
        if got > length:
            raise RefusedError(_another_length("more", length))
    if got < length:
        raise RefusedError(Failure(f"the answer is cut short: {got} bytes of {length}", again=True, kind=ProtocolError))
    return b"".join(pieces)


def _another_length(sent: str, length: int) -> Failure:
    return Failure(f"sends {sent:.20} bytes where {length} were asked for. Remedy: {_REMEDY}", kind=ProtocolError)


def _check_range(stated: str, wanted: Wanted) -> None:
    """Check the header Content-Range of an answer (RFC 9110 14.4).

    Raises
    ------
    RefusedError
        It is of another range, or of a file of another size.
    """
    found = _RANGE.fullmatch(stated.strip())
    if found is None:
        why = f"the answer does not say which range it is. Remedy: {_REMEDY}"
        raise RefusedError(Failure(why, kind=ProtocolError))
    if found[3] not in ("*", str(wanted.size)):
        why = f"changed since it was listed: it has {found[3]} bytes, and had {wanted.size}"
        raise RefusedError(Failure(why, kind=SlideChangedError))
    if (int(found[1]), int(found[2]) + 1) != (wanted.start, wanted.stop):
        why = f"sends bytes {found[1]}-{found[2]} where {wanted.start}-{wanted.stop - 1} were asked for"
        raise RefusedError(Failure(f"{why}. Remedy: {_REMEDY}", kind=ProtocolError))


# S3 -----------------------------------------------------------------------------------------------------------------


async def _of_s3(fs: Any, wanted: Wanted) -> bytes:
    bucket, key, version = fs.split_path(wanted.path)
    more = {"VersionId": version} if version else {}
    if wanted.mark:
        more["IfMatch"] = f'"{wanted.mark}"'
    asked = _range(wanted)["Range"]
    try:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=asked, **more)
    except OSError as e:
        response = getattr(e.__cause__, "response", None)
        status = response["ResponseMetadata"].get("HTTPStatusCode") if isinstance(response, dict) else None
        if status in (412, 416):
            raise RefusedError(Failure("changed since it was listed", status=status, kind=SlideChangedError)) from None
        raise
    body = answer["Body"]
    try:
        _check_range(answer.get("ContentRange", ""), wanted)
        if answer["ContentLength"] != wanted.stop - wanted.start:
            raise RefusedError(_another_length(str(answer["ContentLength"]), wanted.stop - wanted.start))
        data = bytes(await body.read())
    finally:
        body.close()
    if len(data) != wanted.stop - wanted.start:
        raise RefusedError(Failure("the answer is cut short", again=True, kind=ProtocolError))
    return data
