"""Figures as a table of ratios."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Parameters
    ----------
    work, reader
        What was done and by whom.
    value
        What was measured, with its unit.
    ratio
        Median, least and greatest of the ratios over the rounds; what they are a ratio to is said by *to*.
    target
        The least (or, for values, the greatest) that is asked for, in words; empty if nothing is.
    reached
        Whether it was; None where there is no target.
    """

    work: str
    reader: str
    value: str
    ratio: tuple[float, float, float] | None = None
    to: str = ""
    target: str = ""
    reached: bool | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        ratio = "" if self.ratio is None else "{:.2f} ({:.2f}–{:.2f}) {}".format(*self.ratio, self.to)
        reached = {None: "", True: "yes", False: "NO"}[self.reached]
        return self.work, self.reader, self.value, ratio.strip(), self.target, reached, self.note

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ratios(numerators: list[float], denominators: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest ratio over the rounds that both took part in."""
    each = [a / b for a, b in zip(numerators, denominators, strict=False)]
    return median(each), min(each), max(each)


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table, aligned."""
    head = ("work", "reader", "measured", "ratio: median (range)", "target", "reached", "note")
    rows = [head, *(figure.cells() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def say(text: str) -> None:
    """Say what goes on, beside the table."""
    print(text, file=sys.stderr, flush=True)


def reason(error: Exception) -> str:
    """Why something is left out, without this machine's paths."""
    return f"{type(error).__name__}: {error}".replace(f"{Path(__file__).resolve().parents[1]}/", "")[:120]
