"""Media types: reading Accept (RFC 9110 12.5.1) and choosing the form of an answer (PS3.18 8.7)."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.testing.dicomweb.dialects import Dialect
from microtome.testing.dicomweb.message import Refusal

__all__ = [
    "EXPLICIT",
    "OCTETS",
    "Choice",
    "MediaRange",
    "accepts_gzip",
    "choose_frames",
    "choose_whole",
    "media_of",
    "media_type",
    "ranges",
]

OCTETS, DICOM = "application/octet-stream", "application/dicom"
EXPLICIT = "1.2.840.10008.1.2.1"

_JPEG = "1.2.840.10008.1.2.4."
_MEDIA = {
    **dict.fromkeys(("50", "51", "57", "70"), "image/jpeg"),
    **dict.fromkeys(("80", "81"), "image/jls"),
    **dict.fromkeys(("90", "91"), "image/jp2"),
    **dict.fromkeys(("92", "93"), "image/jpx"),
    **dict.fromkeys(("110", "111", "112"), "image/jxl"),
    **dict.fromkeys(("201", "202", "203"), "image/jphc"),
}


@dataclass(frozen=True)
class MediaRange:
    """One entry of Accept.

    Parameters
    ----------
    kind
        Media type in lower case; of the parts, where it is multipart/related.
    multipart
        Whether it is.
    syntax
        Transfer syntax UID, ``*``, or None.
    quality
        0 to 1.
    """

    kind: str
    multipart: bool
    syntax: str | None
    quality: float


@dataclass(frozen=True)
class Choice:
    """The form of an answer.

    Parameters
    ----------
    multipart
        Whether it comes in parts.
    media
        Media type of the pixels.
    syntax
        Their transfer syntax.
    decoded
        Whether they have to be decoded first.
    """

    multipart: bool
    media: str
    syntax: str
    decoded: bool = False

    @property
    def content_type(self) -> str:
        """As a header has it."""
        return f"{self.media}; transfer-syntax={self.syntax}"


def media_of(syntax: str) -> str:
    """The media type of frames of a transfer syntax (PS3.18 table 8.7.3-5)."""
    if syntax == "1.2.840.10008.1.2.5":
        return "image/dicom-rle"
    return _MEDIA.get(syntax.removeprefix(_JPEG), OCTETS) if syntax.startswith(_JPEG) else OCTETS


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that does not stand in a quoted string."""
    out, start, quoted, escaped = [], 0, False, False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and c == "\\":
            escaped = True
        elif c == '"':
            quoted = not quoted
        elif c == separator and not quoted:
            out.append(text[start:i])
            start = i + 1
    out.append(text[start:])
    return [piece.strip() for piece in out]


def media_type(text: str) -> tuple[str, dict[str, str]]:
    """Split a media type into its name and its parameters, both names in lower case."""
    name, *rest = _split(text, ";")
    parameters = {}
    for piece in filter(None, rest):
        key, _, value = piece.partition("=")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            inner, value, escaped = value[1:-1], "", False
            for c in inner:
                escaped = c == "\\" and not escaped
                value += "" if escaped else c
        parameters[key.strip().lower()] = value
    return name.lower(), parameters


def ranges(header: str | None) -> list[MediaRange]:
    """Read Accept: what is wanted, best first; nothing said is ``*/*``."""
    out = []
    for entry in filter(None, _split(header or "*/*", ",")):
        name, parameters = media_type(entry)
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            raise Refusal(400, f"Accept: quality {parameters['q']!r} is no number") from None
        if "/" not in name:
            raise Refusal(400, f"Accept: {name!r} is no media type")
        multipart = name in ("multipart/related", "multipart/*")
        kind = parameters.get("type", "*/*").lower() if multipart else name
        if quality > 0:
            out.append(MediaRange(kind, multipart, parameters.get("transfer-syntax"), quality))
    return sorted(out, key=lambda r: -r.quality)


def accepts_gzip(header: str | None) -> bool:
    """Whether Accept-Encoding allows gzip."""
    for entry in _split(header or "", ","):
        name, parameters = media_type(entry)
        if name in ("gzip", "*"):
            return parameters.get("q", "1").strip("0.") != ""
    return False


def _covers(kind: str, media: str) -> bool:
    return kind in (media, "*/*", media.split("/")[0] + "/*")


def choose_frames(accept: str | None, syntax: str, several: bool, dialect: Dialect) -> Choice:
    """Choose the form of frames whose transfer syntax is given; EXPLICIT for everything native."""
    media = media_of(syntax)
    if dialect.accepts == "ignored":
        return Choice(False, media, syntax)
    wanted = ranges(accept)
    if dialect.accepts == "orthanc":
        return _as_orthanc(wanted, media, syntax)
    for r in wanted:
        multipart = r.multipart or r.kind == "*/*"
        if several and not multipart:
            continue
        # Nothing said about the syntax is explicit little endian for octets (PS3.18 8.7.3.3.2), and what is there for
        # the media type of what is there.
        octets = _covers(r.kind, OCTETS)
        same = _covers(r.kind, media) and (r.kind != "*/*" or r.syntax is not None) and media != OCTETS
        if (r.syntax in ("*", syntax) and (octets or same)) or (r.syntax is None and same):
            return Choice(multipart, OCTETS if r.kind == OCTETS and dialect.echoes_octets else media, syntax)
        if octets and r.syntax in (None, EXPLICIT):
            return Choice(multipart, OCTETS, EXPLICIT, decoded=syntax != EXPLICIT)
    raise Refusal(406, f"frames are of {media} with transfer syntax {syntax}, or decoded of {OCTETS}")


def _as_orthanc(wanted: list[MediaRange], media: str, syntax: str) -> Choice:
    """Choose as Orthanc 1.7 does, which knows two forms of Accept and decodes for some others."""
    if len(wanted) == 1:
        r = wanted[0]
        if r.multipart and (r.kind, r.syntax) in ((OCTETS, "*"), (media, syntax)):
            return Choice(True, media, syntax)
        if (r.multipart and r.kind == OCTETS and r.syntax in (None, EXPLICIT)) or (r.kind, r.multipart) == (
            "*/*",
            False,
        ):
            return Choice(True, OCTETS, EXPLICIT, decoded=syntax != EXPLICIT)
    raise Refusal(400, "This WADO-RS plugin cannot generate the following content type")


def choose_whole(accept: str | None, syntax: str, several: bool, dialect: Dialect) -> bool:
    """Choose the form of whole instances: whether in parts, which several always are."""
    if dialect.accepts == "ignored":
        return several
    for r in ranges(accept):
        if not _covers(r.kind, DICOM):
            continue
        if r.syntax not in (None, "*", syntax):
            continue
        if r.multipart or r.kind == "*/*":
            return True
        if dialect.single_instance and not several:
            return False
    status = 400 if dialect.accepts == "orthanc" else 406
    raise Refusal(status, f"instances are of {DICOM} with transfer syntax {syntax}, and are not transcoded")
