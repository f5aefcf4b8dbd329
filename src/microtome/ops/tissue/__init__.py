"""Tissue or not: pure functions of pixels. `detect` is the front, `METHODS` what it chooses from."""

from microtome.ops.tissue.methods import DEFAULT, METHODS, detect

__all__ = ["DEFAULT", "METHODS", "detect"]
