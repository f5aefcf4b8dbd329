"""How far the work on a cohort is, on a terminal or in a notebook."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(what: str, total: int, show: bool) -> Iterator[Callable[[bool], None]]:
    """Show a bar while slides are worked on; yield what is called when one is done, with whether it failed.

    Parameters
    ----------
    what
        What is done.
    total
        Number of slides.
    show
        Whether to. Where standard error is neither a terminal nor a notebook, nothing is shown.
    """
    if not show or not total:
        yield lambda failed: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    # In a notebook rich draws by ipywidgets.
    able = console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not able) as bar:
        task = bar.add_task(what, total=total, failed="")
        failures = 0

        def done(failed: bool) -> None:
            nonlocal failures
            failures += failed
            bar.update(task, advance=1, failed=f"{failures} failed" if failures else "")

        yield done
