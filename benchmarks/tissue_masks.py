"""How well each method finds tissue: the table of docs/tissue.md, and its pictures.

    python benchmarks/tissue_masks.py [--pictures docs/images/tissue]

Pictures are drawn of made ones and of those whose pixels are CC0 (CMU-1, Camelyon).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from microtome.ops.tissue import METHODS, detect  # noqa: E402
from tissue_pictures import Picture, composites, photographs  # noqa: E402

SHOWN = ("CMU-1, 2 µm", "CMU-1 macro", "camelyon (Google)")


def draw(picture: Picture, found: np.ndarray, folder: Path) -> None:
    """What was found in its colours, the rest dimmed, the outline of the truth in green; what is ignored hatched."""
    out = picture.pixels.copy()
    out[~found] //= 2
    inner = np.logical_and.reduce([np.roll(picture.tissue, by, axis) for by in (-2, 2) for axis in (0, 1)])
    edge = picture.tissue & ~inner
    out[edge] = (0, 220, 0)
    y, x = np.indices(picture.ignored.shape)
    out[picture.ignored & ((x + y) % 12 == 0)] = (90, 90, 160)
    image = Image.fromarray(out)
    image.thumbnail((640, 480))
    name = picture.name.split(" (")[0].replace("made: ", "made_").replace(", ", "_").replace(" ", "_").replace("µ", "u")
    file = folder / f"{name}.jpg"
    for quality in (85, 75, 60, 45):
        image.save(file, quality=quality, optimize=True)
        if file.stat().st_size < 60_000:
            return


def score(picture: Picture, found: np.ndarray) -> str:
    marks = [f"{kind.lower()} {picture.false_positives(found, kind):.1%}" for kind in picture.marks]
    return ", ".join([f"{picture.dice(found):.3f}", *marks])


def as_if_large(picture: Picture, factor: int) -> np.ndarray:
    """What the default finds where so many pixels were too many that it looks at means of ``factor`` squared."""
    module = importlib.import_module("microtome.ops.tissue.stain")
    finer = max(1, int(module.WORKING_MM / picture.spacing_mm + 1e-6))
    height, width = (-(-side // finer) for side in picture.tissue.shape)
    usual, module.LARGE = module.LARGE, -(-height // factor) * -(-width // factor)
    try:
        return detect(picture.pixels, spacing_mm=picture.spacing_mm)
    finally:
        module.LARGE = usual


def timed(pixels: np.ndarray, method: str) -> float:
    started = time.perf_counter()
    detect(pixels, method, spacing_mm=0.008)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "real")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    print("| picture | pixels | " + " | ".join(METHODS) + " | stain, as if large |")
    print("|---|---|" + "---|" * (len(METHODS) + 1))
    scores: dict[str, list[float]] = {method: [] for method in METHODS}
    large: list[float] = []
    seconds = dict.fromkeys(METHODS, 0.0)
    for picture in photographs(options.data) + composites(options.data):
        cells = []
        for method in METHODS:
            started = time.perf_counter()
            found = detect(picture.pixels, method, spacing_mm=picture.spacing_mm)
            seconds[method] += time.perf_counter() - started
            scores[method].append(picture.dice(found))
            cells.append(score(picture, found))
            if options.pictures and method == "stain" and picture.name.startswith((*SHOWN, "made")):
                options.pictures.mkdir(parents=True, exist_ok=True)
                draw(picture, found, options.pictures)
        if picture.spacing_mm is None:  # never large
            cells.append("")
        else:
            found = as_if_large(picture, 3)
            large.append(picture.dice(found))
            cells.append(score(picture, found))
        height, width = picture.tissue.shape
        print(f"| {picture.name} | {height} × {width} | " + " | ".join(cells) + " |")
    print("| **worst** | | " + " | ".join(f"**{min(values):.3f}**" for values in [*scores.values(), large]) + " |")
    print("| **mean** | | " + " | ".join(f"**{np.mean(values):.3f}**" for values in [*scores.values(), large]) + " |")
    print("| seconds, all pictures | | " + " | ".join(f"{value:.1f}" for value in seconds.values()) + " | |")
    part = next(p.pixels for p in photographs(options.data, full=False) if p.name == "CMU-1, 8 µm")
    slide = np.tile(part, (27, 45, 1))[:5000, :6250]
    best = [min(timed(slide, method) for _ in range(5)) for method in METHODS]
    print("| seconds, a large slide | 5000 × 6250 | " + " | ".join(f"{value:.2f}" for value in best) + " | |")


if __name__ == "__main__":
    main()
