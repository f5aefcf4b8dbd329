"""Where EZ-WSI's DicomPatchGenerator puts its patches: the JSON files beside this one were made by this script.

It runs in EZ-WSI's own environment (which has no microtome), with the real slides and what make_variants.py makes:

    python -m venv ez && ez/bin/pip install ez-wsi-dicomweb==6.1.6
    ez/bin/python tests/data/ez_wsi/make_positions.py ../shared/data/real VARIANTS

One file a slide. ``levels`` are EZ-WSI's, finest first: shape, frames, row and column spacing in mm, and a hash of
the whole level as it decodes it. ``cases`` are what the generator was given and what it made:

    source      level, perhaps resized to a shape or a spacing (row, column); or a spacing in mm alone
    patch, stride, luminance (min, max)     as they were given; null where left out
    mask        null, level (perhaps resized to a shape), spacing in mm; or array: the rows and columns of `array_mask`
    mask_level  the level it used; or "resized": the resized source; or level, rows, columns: another resized level
    error       what it raised, and nothing else; or
    strides     rows and columns of its normalized mask
    count, hash, some   the patches in its order: how many, a hash of them (`digest`), all of them or three

Patches are what EZ-WSI states for each stride (strides_to_patch_bounds); up to 150 patches of a case are also made, and
their identifiers, which hold their place, agree. ``unreadable`` is an error at that: EZ-WSI lists a patch and cannot
make it.

``opencv.json`` is what OpenCV made of `noise`: hashes of it resized by area from one shape to another, pixels where it
was resized by cubic interpolation, and a hash of the grey values of all 16,777,216 colours, in order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ez_wsi_dicomweb import dicom_slide, ez_wsi_errors, patch_generator, pixel_spacing, slide_level_map

SLIDES = {
    "cmu1_jpeg_bot": ("real", "cmu1_dicom/jpeg_bot"),
    "cmu1_jpeg_eot": ("real", "cmu1_dicom/jpeg_eot"),
    "gcp_cmu1_pyramid": ("real", "dicom/gcp_cmu1_pyramid"),
    "google_camelyon": ("real", "dicom/google_camelyon"),
    "ezwsi_camelyon": ("real", "dicom/ezwsi/multiframe_camelyon_challenge_image.dcm"),
    "jpeg_ybr422_bot": ("variants", "jpeg_ybr422_bot"),
    "jpeg_concat_full": ("variants", "jpeg_concat_full"),
    "jpeg_frame_500x": ("variants", "jpeg_frame_500x"),
    "native_explicit": ("variants", "native_explicit"),
    "j2klossless_rgb": ("variants", "j2klossless_rgb"),
    "jpegls": ("variants", "jpegls"),
    "jxlrecomp": ("variants", "jxlrecomp"),
}
CASES = 48
LUMINANCE = [(None, None), (None, None), (None, 0.9), (0.2, 0.7), (0.0, 1.0), (0.55, 0.85), (0.7, None), (0.0, 0.1)]


def array_mask(rows: int, columns: int) -> np.ndarray:
    """A mask that is no pattern to the eye, and the same everywhere."""
    i, j = np.ogrid[:rows, :columns]
    return (i * 7 + j * 13 + i * j) % 5 < 2


def noise(*shape: int) -> np.ndarray:
    """Bytes that are no pattern, and the same everywhere."""
    number = np.arange(np.prod(shape), dtype=np.uint64)
    number = (number + 1) * np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (number >> np.uint64(56)).astype(np.uint8).reshape(shape)


def digest(values: np.ndarray) -> str:
    """A short hash of an array of whole numbers, in C order."""
    little = np.ascontiguousarray(values, "u1" if values.dtype == np.uint8 else "<i8")
    return hashlib.sha256(little.tobytes()).hexdigest()[:20]


def opencv() -> dict[str, Any]:
    rng = random.Random("opencv")
    area = []
    for n in range(240):
        rows, columns = rng.randint(1, 40), rng.randint(1, 40)
        kind = n % 7
        if kind == 0:  # factors that are whole, and differ
            shape = [rows * rng.randint(1, 30), columns * rng.randint(1, 30)]
        elif kind == 1:
            shape = [rows * 2, columns * 2]
        elif kind == 2:
            factor = rng.randint(3, 30)
            shape = [rows * factor, columns * factor]
        elif kind in (3, 4):
            shape = [rows + rng.randint(0, 500), columns + rng.randint(0, 500)]
        elif kind == 5:  # pixels of which less than a hundredth, or a thousandth, lies under another one
            rows, columns = rng.randint(1, 3), rng.randint(150, 1500)
            shape = [rows * 2 + 1, columns + rng.randint(1, 2000)]
        else:  # one axis or both grow
            shape = [rng.randint(1, 40), rng.randint(1, 400)]
        pixels = noise(*shape, *([3] if n % 5 == 0 else []))
        made = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
        area.append([list(pixels.shape), [rows, columns], digest(made)])
    cubic = []
    for shape, (rows, columns) in (((7, 9), (14, 18)), ((8, 5), (19, 13)), ((12, 6), (12, 20)), ((9, 4), (5, 31))):
        made = cv2.resize(noise(*shape), (columns, rows), interpolation=cv2.INTER_CUBIC)
        cubic.append([list(shape), made.tolist()])
    grey = hashlib.sha256()
    green, blue = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    for red in range(256):
        grey.update(cv2.cvtColor(np.dstack([np.full_like(green, red), green, blue]), cv2.COLOR_RGB2GRAY).tobytes())
    return {"version": cv2.__version__, "grey": grey.hexdigest()[:20], "cubic": cubic, "area": area}


def random_source(rng: random.Random, levels: list[Any]) -> dict[str, Any]:
    n = rng.choice([k for k, level in enumerate(levels) if min(level.height, level.width) >= 32])
    level = levels[n]
    kind = rng.random()
    if kind < 0.55:
        return {"level": n}
    if kind < 0.7:
        spacing = level.pixel_spacing
        factor = rng.choice([0.5, 0.7, 1.3, 2.0, 2.5, 3.0, 4.7, 9.0])
        wanted = [spacing.row_spacing_mm * factor, spacing.column_spacing_mm * rng.choice([factor, factor * 1.04])]
        return {"level": n, "spacing": [float(f"{value:.6g}") for value in wanted]}
    if kind < 0.85:
        down = rng.choice([0.6, 1.5, 2.0, 3.3, 7.0])
        return {"level": n, "shape": [max(33, int(level.height / down)), max(33, int(level.width / (down * 1.1)))]}
    return {"spacing": float(f"{level.pixel_spacing.pixel_spacing_mm * rng.choice([0.8, 1.0, 1.2, 3.0, 40.0]):.6g}")}


def random_mask(rng: random.Random, levels: list[Any], size: tuple[int, int]) -> dict[str, Any] | None:
    kind = rng.random()
    if kind < 0.45:
        return None
    n = rng.randrange(len(levels))
    if kind < 0.65:
        return {"level": n}
    if kind < 0.72:
        return {"level": n, "shape": [max(1, levels[n].height // 3), max(1, int(levels[n].width / 2.7))]}
    if kind < 0.82:
        return {"spacing": rng.choice([0.0005, 0.002, 0.004, 0.016])}
    rows, columns = rng.randint(1, min(40, size[0])), rng.randint(1, min(40, size[1]))
    return {"array": [rows + rng.choice([0, 0, 0, 0, size[0]]), columns]}


def cases_of(name: str, levels: list[Any]) -> list[dict[str, Any]]:
    rng = random.Random(name)
    cases = []
    for _ in range(CASES):
        source = random_source(rng, levels)
        image = levels[source["level"]] if "level" in source else levels[0]
        size = tuple(source.get("shape", (image.height, image.width)))
        patch = rng.choice([32, 33, 48, 64, 71, 100, 128, 200, 224, 256])
        if patch > min(size) and rng.random() < 0.8:
            patch = rng.randint(8, 32)
        stride = rng.choice(
            [
                None,
                None,
                patch,
                patch // 2,
                patch // 3,
                patch * 2,
                patch + 1,
                patch + 17,
                patch - 1,
                patch - 5,
                3 * patch,
            ]
        )
        cases.append(
            {
                "source": source,
                "patch": patch,
                "stride": stride,
                "luminance": rng.choice(LUMINANCE),
                "mask": random_mask(rng, levels, size),
            }
        )
    return cases


def spacing_of(mm: Any) -> Any:
    if isinstance(mm, list):
        return pixel_spacing.PixelSpacing(mm[1], mm[0])  # it takes column, row
    return pixel_spacing.PixelSpacing.FromDouble(mm)


def image_of(what: dict[str, Any], levels: list[Any]) -> Any:
    if "level" not in what:
        return spacing_of(what["spacing"])
    level = levels[what["level"]]
    if "shape" in what:
        return level.resize(slide_level_map.ImageDimensions(what["shape"][1], what["shape"][0]))
    return level.resize(spacing_of(what["spacing"])) if "spacing" in what else level


def identity(level: Any, source: Any, levels: list[Any]) -> Any:
    """How a mask level is written down."""
    for n, stored in enumerate(levels):
        if level is stored:
            return n
    if level is source:
        return "resized"
    return [levels.index(level.source_level), level.height, level.width]


def generated(slide: Any, levels: list[Any], case: dict[str, Any]) -> dict[str, Any]:
    mask = case["mask"] or {}
    arguments: dict[str, Any] = {}
    if "array" in mask:
        arguments["mask"] = array_mask(*mask["array"])
    elif mask:
        arguments["mask_level"] = image_of(mask, levels)
    low, high = case["luminance"]
    try:
        generator = patch_generator.DicomPatchGenerator(
            slide,
            image_of(case["source"], levels),
            case["patch"],
            stride_size=case["stride"],
            min_luminance=low,
            max_luminance=high,
            **arguments,
        )
        strides = generator.total_strides()
    except ez_wsi_errors.EZWsiError as error:
        return {"error": type(error).__name__}
    cells = zip(*np.where(generator.normalized_tissue_mask), strict=True)
    bounds = [generator.strides_to_patch_bounds(patch_generator.StrideCoordinate(y, x)) for y, x in cells]
    origins = np.array([(b.y_origin, b.x_origin) for b in bounds], np.int64).reshape(-1, 2)
    assert len(generator) == len(origins)
    result: dict[str, Any] = {}
    if "array" not in mask:
        result["mask_level"] = identity(generator._tissue_mask_level, generator._image_level, levels)
    try:
        for n in range(len(origins)) if len(origins) <= 150 else (0, 1, len(origins) // 2, len(origins) - 1):
            place = re.search(r"([+-]\d+)([+-]\d+)$", generator[n].id)
            assert [int(place[2]), int(place[1])] == origins[n].tolist()
    except ez_wsi_errors.EZWsiError as error:
        result["unreadable"] = type(error).__name__
    some = origins if len(origins) <= 8 else origins[[0, 1, -1]]
    return {
        **result,
        "strides": [strides.y_strides, strides.x_strides],
        "count": len(origins),
        "hash": digest(origins),
        "some": some.tolist(),
    }


def main(real: Path, variants: Path) -> None:
    logging.disable()
    here = Path(__file__).parent
    made = opencv()
    lines = ",\n".join(map(json.dumps, made.pop("area")))
    (here / "opencv.json").write_text(f'{json.dumps(made)[:-1]}, "area": [\n{lines}\n]}}\n')
    for name, (root, path) in SLIDES.items():
        where = (real if root == "real" else variants) / path
        files = sorted(where.glob("*.dcm")) if where.is_dir() else [where]
        slide = dicom_slide.LocalDicomSlide([str(file) for file in files])
        levels = list(slide.levels)
        stated = [
            {
                "shape": [level.height, level.width],
                "frames": level.number_of_frames,
                "spacing": [level.pixel_spacing.row_spacing_mm, level.pixel_spacing.column_spacing_mm],
                "hash": digest(slide.get_image(level).image_bytes()),
            }
            for level in levels
        ]
        lines = [json.dumps({**case, **generated(slide, levels, case)}) for case in cases_of(name, levels)]
        text = f'{{"root": "{root}", "path": "{path}", "levels": [\n' + ",\n".join(map(json.dumps, stated))
        text += '\n], "cases": [\n' + ",\n".join(lines) + "\n]}\n"
        (here / f"{name}.json").write_text(text)
        sys.stderr.write(f"{name}: {len(levels)} levels, {len(lines)} cases\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
