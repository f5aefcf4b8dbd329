"""An sRGB profile of a few hundred bytes, always the same ones (ICC.1:2010, version 4.3)."""

from __future__ import annotations

import struct

__all__ = ["srgb_profile"]


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def _text(words: str) -> bytes:
    return struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", 2 * len(words), 28) + words.encode("utf-16-be")


def srgb_profile() -> bytes:
    """Build the profile: a matrix to the D50 connection space and the curve of IEC 61966-2-1."""
    tags = {
        b"desc": _text("sRGB"),
        b"cprt": _text("CC0"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1.0, 0.8249),
        b"rXYZ": b"XYZ \0\0\0\0" + _fixed(0.43607, 0.22249, 0.01392),
        b"gXYZ": b"XYZ \0\0\0\0" + _fixed(0.38515, 0.71687, 0.09708),
        b"bXYZ": b"XYZ \0\0\0\0" + _fixed(0.14307, 0.06061, 0.71410),
    }
    # Function type 3: y = (a x + b)^g above d, c x below it.
    curve = b"para\0\0\0\0\0\3\0\0" + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    header = struct.pack(
        ">I4sI4s4s4s6H4s4sIIIQI12s4s44x",
        at + len(body), b"\0" * 4, 0x04300000, b"mntr", b"RGB ", b"XYZ ", 2026, 1, 1, 0, 0, 0, b"acsp", b"\0" * 4,
        0, 0, 0, 0, 0, _fixed(0.9642, 1.0, 0.8249), b"\0" * 4,
    )  # fmt: skip
    return header + struct.pack(">I", len(tags)) + table + body
