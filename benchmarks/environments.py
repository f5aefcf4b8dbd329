"""Environments of their own for readers that cannot share ours: made on first use, kept in ``benchmarks/.cache``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).parent / ".cache"


def environment(name: str, *requirements: str, alone: str = "") -> Path:
    """The interpreter of an environment with these requirements; raises RuntimeError if it cannot be made.

    The package *alone* is installed without what it asks for: for one that pins versions which no longer build.
    """
    folder = CACHE / f"{name}-venv"
    python, stamp = folder / "bin" / "python", folder / f".{alone or requirements[0]}"
    if not stamp.exists():
        print(f"installing {', '.join(requirements)} into an environment of its own ...", file=sys.stderr, flush=True)
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
        ]
        if alone:
            steps.append([*steps[1][: -len(requirements)], "--no-deps", alone])
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                raise RuntimeError(f"it could not be installed: {done.stderr.strip().splitlines()[-1:]}")
        stamp.touch()
    return python
