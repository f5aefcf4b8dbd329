"""What the headers of a slide tell, as one row: no tree is made, and no pixel read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from microtome.cohort.rows import as_table
from microtome.cohort.running import opening_threads, work
from microtome.cohort.tasks import Outcome
from microtome.dicom.file_frames import FileRecord
from microtome.lazy.recipe import OpenSlide, Recipe, open_recipe
from microtome.ops.levels import codec_name

__all__ = ["describe", "summarize", "summary_table"]

COLUMNS = (
    "levels", "rows", "columns", "row_spacing", "column_spacing", "magnification", "planes", "channels", "dtype",
    "codec", "frames", "instances", "bytes",
)  # fmt: skip


def describe(recipe: Recipe) -> dict[str, Any]:
    """Open a slide and return the columns of `Cohort.summary`."""
    return _row(open_recipe(recipe))


def _row(opened: OpenSlide) -> dict[str, Any]:
    levels = [node for node in opened.slide.images if node.startswith("level")]
    finest = opened.slide.images[levels[0]]
    head = finest.head
    spacing = opened.geometry.placements[levels[0]].spacing
    instances = {i.sop_instance_uid: i for level in opened.slide.images.values() for i in level.instances}.values()
    sizes = [i.record.outline.source.size if isinstance(i.record, FileRecord) else math.nan for i in instances]
    return {
        "levels": len(levels),
        "rows": head.rows,
        "columns": head.columns,
        "row_spacing": spacing.row if spacing else math.nan,
        "column_spacing": spacing.column if spacing else math.nan,
        "magnification": spacing.magnification if spacing else math.nan,
        "planes": len(finest.z),
        "channels": head.format.channels if head.format.channels == 3 else len(finest.paths),
        "dtype": str(head.format.dtype),
        "codec": codec_name(head.format.transfer_syntax),
        "frames": sum(i.frames for level in levels for i in opened.slide.images[level].instances),
        "instances": len(instances),
        "bytes": sum(sizes),
    }


def summarize(
    names: Sequence[str], recipes: Sequence[Recipe], known: Mapping[str, Outcome], client: Any, progress: bool
) -> dict[str, Outcome]:
    """Return the rows of slides that are not yet known, or failed."""
    waiting = [n for n, name in enumerate(names) if name not in known or known[name].error]
    found: dict[str, Outcome] = {}

    def take(n: int, outcome: Outcome) -> None:
        # Without the traceback, which nobody asks for and each cohort would keep.
        found[names[waiting[n]]] = Outcome(outcome.value, outcome.error)

    work(
        describe, [recipes[n] for n in waiting], take, what="summary", client=client, progress=progress,
        threads=opening_threads(recipes),
    )  # fmt: skip
    return found


def summary_table(names: Sequence[str], known: Mapping[str, Outcome]) -> pd.DataFrame:
    """Return the table of `Cohort.summary`."""
    return as_table(names, [known[name] for name in names], False).reindex(columns=[*COLUMNS, "error"])
