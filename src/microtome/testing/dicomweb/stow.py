"""STOW-RS: storing instances (PS3.18 10.5)."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from microtome.testing.dicomweb.accept import media_type
from microtome.testing.dicomweb.archive import Archive, Instance
from microtome.testing.dicomweb.dicomjson import BASE
from microtome.testing.dicomweb.message import Answer, Refusal
from microtome.testing.dicomweb.multipart import read_parts

__all__ = ["UID", "store"]

UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*\Z")
"""A UID (PS3.5 9.1), and nothing that could be a way out of a folder."""

CANNOT_UNDERSTAND, WRONG_STUDY, ALREADY_THERE, OUT_OF_RESOURCES = 0xC000, 0xC409, 0x0111, 0xA700


class _Failed(Exception):  # noqa: N818
    def __init__(self, reason: int, instance: Instance | None = None) -> None:
        super().__init__(reason)
        self.reason, self.instance = reason, instance


def store(archive: Archive, content_type: str | None, body: bytes, study: str | None) -> Answer:
    """Store the instances of a body.

    Parameters
    ----------
    archive
        Where.
    content_type
        Of the body.
    body
        multipart/related parts of application/dicom.
    study
        UID of the only study that is accepted, or None.
    """
    kind, parameters = media_type(content_type or "")
    wanted = parameters.get("type", "application/dicom").lower()
    if kind != "multipart/related" or wanted != "application/dicom" or not parameters.get("boundary"):
        raise Refusal(415, 'instances are stored as multipart/related; type="application/dicom"; boundary=...')
    parts = read_parts(body, parameters["boundary"])
    if not parts:
        raise Refusal(400, "the body has no parts")
    stored: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    studies = set()
    for _, data in parts:
        try:
            instance = _store(archive, data, study)
        except _Failed as e:
            item = _reference(e.instance) if e.instance else {}
            failed.append(item | {"00081197": {"vr": "US", "Value": [e.reason]}})
            continue
        studies.add(instance.study)
        url = {"vr": "UR", "Value": [f"{BASE}/{instance.location}"]}
        stored.append(_reference(instance) | {"00081190": url})
    out: dict[str, Any] = {}
    if len(studies) == 1:
        out["00081190"] = {"vr": "UR", "Value": [f"{BASE}/studies/{studies.pop()}"]}
    if failed:
        out["00081198"] = {"vr": "SQ", "Value": failed}
    if stored:
        out["00081199"] = {"vr": "SQ", "Value": stored}
    status = 200 if not failed else 202 if stored else 409
    return Answer([json.dumps(out).encode()], "application/dicom+json", status)


def _reference(instance: Instance) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [instance.sop_class]},
        "00081155": {"vr": "UI", "Value": [instance.uid]},
    }


def _store(archive: Archive, data: bytes, study: str | None) -> Instance:
    folder = archive.folder
    assert folder is not None  # the server refuses to be made without one
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".stow-")
    except OSError:
        raise _Failed(OUT_OF_RESOURCES) from None
    made = Path(name)
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        try:
            instance = archive.open(made)
        except Exception:  # whatever pydicom raises for what is no instance
            raise _Failed(CANNOT_UNDERSTAND) from None
        if not all(UID.match(u) for u in (instance.study, instance.series, instance.uid)):
            raise _Failed(CANNOT_UNDERSTAND)
        if study not in (None, instance.study):
            raise _Failed(WRONG_STUDY, instance)
        instance.path = folder / f"{instance.uid}.dcm"
        there = archive.one(instance.study, instance.series, instance.uid)
        before = there.path if there else instance.path
        if before.exists():
            # What is stored stays; storing the same again is no failure.
            if before.read_bytes() != data:
                raise _Failed(ALREADY_THERE, instance)
            return instance
        try:
            os.link(made, instance.path)  # unlike a rename, never over another file
        except FileExistsError:
            raise _Failed(ALREADY_THERE, instance) from None
        except OSError:
            raise _Failed(OUT_OF_RESOURCES, instance) from None
        archive.add(instance)
        return instance
    finally:
        made.unlink(missing_ok=True)
