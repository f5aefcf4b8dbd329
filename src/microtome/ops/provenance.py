"""Attributes of images that are computed: what is still true of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["of_computed"]

_STORED_ONLY = frozenset(
    ("frames", "frame_shape", "total_pixel_matrix", "transfer_syntax_uid", "sop_instance_uids", "alternatives")
)


def of_computed(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return attributes without those that tell of stored frames, which a computed image does not have."""
    return {name: value for name, value in attrs.items() if name not in _STORED_ONLY}
