"""Measure microtome against the machine's ceiling and against its peers, and print a table of ratios.

``make bench``, or ``python benchmarks/run.py --only patches,region --rounds 5``. The slides are made on the first run.
A share of the ceiling is the ceiling's time divided by the reader's; each is the median over the rounds, with the least
and the greatest. Only ratios within one run mean anything: machines differ, and so do their hours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import slides
import works
from report import Figure, say, table

VERSIONS = ("microtome", "numpy", "xarray", "dask", "imagecodecs", "pydicom", "wsidicom", "openslide-bin", "highdicom")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(works.ORDINARY), help=f"works, of {', '.join(works.WORKS)}")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each race (default: 7)")
    parser.add_argument("--quick", action="store_true", help="three rounds, and smaller slides without a pyramid")
    parser.add_argument("--no-peers", action="store_true", help="only microtome and the ceiling")
    parser.add_argument("--peers-only", action="store_true", help="without microtome")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--slide", type=Path, help="an existing 40960 x 40960 pyramid in place of a made one")
    parser.add_argument("--large", type=Path, help="an existing 100000 x 80000 pyramid")
    parser.add_argument("--sparse", type=Path, help="an existing sparse slide")
    options = parser.parse_args(argv)
    unknown = set(options.only.split(",")) - works.WORKS.keys()
    if unknown:
        parser.error(f"no work named {', '.join(sorted(unknown))}: there are {', '.join(works.WORKS)}")
    return options


def machine() -> str:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    libraries = ", ".join(f"{name} {installed(name)}" for name in VERSIONS)
    return f"{os.cpu_count()} processors, Python {platform.python_version()}; {libraries}"


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    warnings.filterwarnings("ignore")  # of the peers; the tests see to ours
    given = {"pyramid": options.slide, "large": options.large, "sparse": options.sparse}
    run = works.Run(
        slide_of=lambda name: given.get(name) or slides.slide(name),
        rounds=3 if options.quick else options.rounds,
        ours=not options.peers_only,
        peers=not options.no_peers,
        quick=options.quick,
    )
    figures: list[Figure] = []
    failures = []
    began = perf_counter()
    for name in options.only.split(","):
        start = perf_counter()
        try:
            figures += works.WORKS[name](run)
        except Exception as error:  # one broken work shall not hide the others
            failures.append(name)
            say(f"{name} FAILED: {type(error).__name__}: {error}")
        else:
            say(f"{name}: {perf_counter() - start:.0f} s")
    print(machine())
    print(table(figures))
    missed = [figure for figure in figures if figure.reached is False]
    aimed = [figure for figure in figures if figure.reached is not None]
    print(f"{len(aimed) - len(missed)} of {len(aimed)} targets reached, in {perf_counter() - began:.0f} s")
    if options.json:
        record = {"machine": machine(), "figures": [figure.as_dict() for figure in figures]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if failures:
        print(f"failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures or (options.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
