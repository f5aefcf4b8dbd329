"""Colour as functions of arrays: ICC profiles, conversions between them, and colours for channels."""

from microtome.ops.colour.profiles import PROFILE_NAMES, profile_bytes, profile_description
from microtome.ops.colour.pseudocolour import (
    Pseudocolour,
    auto_windows,
    colour_of_wavelength,
    default_colours,
    parse_colour,
    pseudocolour,
)
from microtome.ops.colour.transform import ColourTransform, Intent

__all__ = [
    "PROFILE_NAMES",
    "ColourTransform",
    "Intent",
    "Pseudocolour",
    "auto_windows",
    "colour_of_wavelength",
    "default_colours",
    "parse_colour",
    "profile_bytes",
    "profile_description",
    "pseudocolour",
]
