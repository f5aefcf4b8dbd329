"""From a path to the service that answers it."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

from microtome.testing.dicomweb import qido, stow, wado
from microtome.testing.dicomweb.archive import Archive, Instance
from microtome.testing.dicomweb.dialects import Dialect
from microtome.testing.dicomweb.dicomjson import BASE
from microtome.testing.dicomweb.message import Answer, Part, Refusal, Request

__all__ = ["Services"]

MOST_FRAMES = 10_000


class Services:
    """Answers requests from an archive.

    Parameters
    ----------
    archive
        What there is.
    dialect
        How it is answered.
    root
        Path of the services.
    stores
        Whether STOW-RS is there.
    """

    def __init__(self, archive: Archive, dialect: Dialect, root: str, stores: bool) -> None:
        self.archive, self.dialect, self.root, self.stores = archive, dialect, root, stores
        self.page = 100

    def answer(self, request: Request, base: str, body: bytes) -> Answer:
        """Answer a request.

        Parameters
        ----------
        request
            What is asked.
        base
            URL of the services, for URLs in the answer.
        body
            Of the request.

        Raises
        ------
        Refusal
            With the status of an error.
        """
        steps = self._steps(request.path)
        if request.method == "POST":
            answer = self._post(request, steps, body)
        elif request.method in ("GET", "HEAD"):
            answer = self._get(request, steps)
        else:
            raise Refusal(405, "GET and HEAD", {"Allow": "GET, HEAD, POST" if self.stores else "GET, HEAD"})
        if answer.media == wado.JSON:
            mark, address = BASE.encode(), base.encode("latin-1")
            answer.body = [p.replace(mark, address) if isinstance(p, bytes) else p for p in answer.body]
        if answer.parts is not None:
            answer.parts = [_located(part, base) for part in answer.parts]
        return answer

    def _steps(self, path: str) -> list[str]:
        """The steps of a path below the root. None of them ever becomes part of the name of a file."""
        if not path.startswith(self.root + "/"):
            raise Refusal(404, "there is nothing here")
        steps = [unquote(step) for step in path[len(self.root) + 1 :].rstrip("/").split("/")]
        if not all(re.fullmatch(r"[A-Za-z0-9.,_-]{1,100000}", step) for step in steps):
            raise Refusal(400, "the path holds what no path of these services does")
        return steps

    def _post(self, request: Request, steps: list[str], body: bytes) -> Answer:
        if steps[0] != "studies" or len(steps) > 2:
            raise Refusal(404, "there is nothing here")
        if not self.stores:
            raise Refusal(405, "this server stores nothing", {"Allow": "GET, HEAD"})
        study = self._uid(steps[1]) if len(steps) == 2 else None
        return stow.store(self.archive, request.headers.get("content-type"), body, study)

    def _get(self, request: Request, steps: list[str]) -> Answer:
        uids: dict[str, str] = {}
        levels = ["studies", "series", "instances"]
        while steps and steps[0] in levels:
            level = steps.pop(0)
            # Either level by level, or one level alone for a search in everything.
            if level in uids or (level != levels[len(uids)] and steps):
                break
            if not steps:
                return self._search(request, level, uids)
            uids[level] = self._uid(steps.pop(0))
        else:
            if uids:
                return self._retrieve(request, uids, steps)
        raise Refusal(404, "there is nothing here")

    def _uid(self, text: str) -> str:
        # Some real files have UIDs that are none; nothing but a look-up is made of them here.
        if not stow.UID.match(text) and not self.archive.knows(text):
            raise Refusal(400, "a UID is digits and dots, 64 at most")
        return text

    def _search(self, request: Request, level: str, uids: dict[str, str]) -> Answer:
        wado.require_json(request, self.dialect)
        study, series = uids.get("studies"), uids.get("series")
        results, left = qido.search(self.archive, self.dialect, level, study, series, request.query, self.page)
        headers = {}
        if left and self.dialect.warns:
            words = f"There are {left} additional results that can be requested"
            headers["Warning"] = f'299 microtome: "{words}"'
        if not results and self.dialect.empty == 204:
            return Answer(status=204, headers=headers)
        body = json.dumps(results, separators=(",", ":")).encode()
        return Answer([body], wado.JSON, headers=headers, compressible=True)

    def _retrieve(self, request: Request, uids: dict[str, str], steps: list[str]) -> Answer:
        study, series, uid = uids["studies"], uids.get("series"), uids.get("instances")
        if series and uid:
            there = self.archive.one(study, series, uid)
            found = [there] if there else []
        else:
            found = self.archive.instances(study, series)
        if not found:
            raise Refusal(404, "there is no such study, series or instance")
        one: Instance | None = found[0] if uid else None
        match steps:
            case []:
                return wado.whole(found, request, self.dialect)
            case ["metadata"] if one or self.dialect.series_metadata:
                return wado.metadata(found, request, self.dialect)
            case ["frames", numbers] if one:
                return wado.frames(one, _numbers(numbers), request, self.dialect)
            case ["frames", numbers, "rendered"] if one:
                return wado.picture(one, _numbers(numbers)[0], request, self.dialect)
            case ["rendered"] if one:
                return wado.picture(one, 1, request, self.dialect)
            case ["bulkdata", *rest] if one and rest:
                return wado.bulkdata(one, rest, request, self.dialect)
        raise Refusal(404, "there is nothing here")


def _located(part: Part, base: str) -> Part:
    return Part(part.media, part.data, f"{base}/{part.location}")


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise Refusal(400, "frames are numbers, with commas between them")
    numbers = [int(n) for n in text.split(",")]
    if 0 in numbers:
        raise Refusal(400, "frames are numbered from 1")
    if len(numbers) > MOST_FRAMES:
        raise Refusal(400, f"at most {MOST_FRAMES} frames at once")
    return numbers
