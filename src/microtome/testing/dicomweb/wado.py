"""WADO-RS: retrieving instances, metadata, frames, bulk data and pictures (PS3.18 10.4)."""

from __future__ import annotations

from microtome.testing.dicomweb.accept import OCTETS, choose_frames, choose_whole, ranges
from microtome.testing.dicomweb.archive import Instance
from microtome.testing.dicomweb.dialects import Dialect
from microtome.testing.dicomweb.dicomjson import bulk_value
from microtome.testing.dicomweb.message import Answer, FileRange, Part, Refusal, Request
from microtome.testing.dicomweb.pixels import decoded, rendered

__all__ = ["bulkdata", "frames", "metadata", "picture", "require_json", "whole"]

JSON = "application/dicom+json"
PICTURES = ("image/jpeg", "image/png")


def require_json(request: Request, dialect: Dialect) -> None:
    """Refuse unless JSON will do."""
    kinds = (JSON, "application/json", "application/*", "*/*")
    if dialect.accepts != "ignored" and not any(r.kind in kinds and not r.multipart for r in ranges(request.accept)):
        raise Refusal(406, f"this comes as {JSON}")


def metadata(instances: list[Instance], request: Request, dialect: Dialect) -> Answer:
    """Everything but the pixels, as DICOM JSON."""
    require_json(request, dialect)
    body = b"[" + b",".join(i.metadata(dialect.binary) for i in instances) + b"]"
    return Answer([body], JSON, compressible=True)


def whole(instances: list[Instance], request: Request, dialect: Dialect) -> Answer:
    """Instances as files, in the transfer syntax in which they are stored."""
    parts, several = [], len(instances) > 1
    multipart = [choose_whole(request.accept, i.stored_syntax, several, dialect) for i in instances]
    for i in instances:
        data = FileRange(i.path, 0, i.size)
        parts.append(Part(f"application/dicom; transfer-syntax={i.stored_syntax}", (data,), i.location))
    if any(multipart):
        return Answer(media="application/dicom", parts=parts)
    return Answer(list(parts[0].data), parts[0].media, ranged=True)


def frames(instance: Instance, numbers: list[int], request: Request, dialect: Dialect) -> Answer:
    """Frames, numbered from 1, as they are stored or decoded."""
    if len(numbers) > 1 and not dialect.lists:
        raise Refusal(400, "one frame a request, please")
    for n in numbers:
        if not 1 <= n <= instance.count:
            raise Refusal(dialect.missing_frame, f"frame {n}: the instance has {instance.count} frames")
    choice = choose_frames(request.accept, instance.syntax, len(numbers) > 1, dialect)
    data = instance.table.read(numbers)
    if choice.decoded:
        data = [decoded(instance, frame) for frame in data]
    if not choice.multipart:
        media = choice.media if dialect.accepts == "ignored" else choice.content_type
        return Answer([data[0]], media)
    parts = [
        Part(choice.content_type, (frame,), f"{instance.location}/frames/{n}")
        for n, frame in zip(numbers, data, strict=True)
    ]
    return Answer(media=choice.media, parts=parts)


def bulkdata(instance: Instance, steps: list[str], request: Request, dialect: Dialect) -> Answer:
    """A large binary value of the metadata."""
    value = bulk_value(instance.header, steps)
    if value is None:
        raise Refusal(404, "there is no such bulk data")
    for r in ranges(request.accept) if dialect.accepts != "ignored" else ():
        if r.kind not in (OCTETS, "application/*", "*/*"):
            continue
        if r.multipart or dialect.bulk_multipart:
            location = f"{instance.location}/bulkdata/{'/'.join(steps)}"
            return Answer(media=OCTETS, parts=[Part(OCTETS, (value,), location)])
        return Answer([value], OCTETS, ranged=True)
    if dialect.accepts == "ignored":
        return Answer([value], OCTETS)
    raise Refusal(406, f"bulk data come as {OCTETS}")


def picture(instance: Instance, number: int, request: Request, dialect: Dialect) -> Answer:
    """A frame for people."""
    if not 1 <= number <= instance.count:
        raise Refusal(dialect.missing_frame, f"frame {number}: the instance has {instance.count} frames")
    for r in ranges(request.accept):
        media = next((m for m in PICTURES if r.kind in (m, "image/*", "*/*")), None)
        if media and not r.multipart:
            (frame,) = instance.table.read([number])
            return Answer([rendered(instance, frame, media)], media)
    raise Refusal(406, f"pictures come as {' or '.join(PICTURES)}")
