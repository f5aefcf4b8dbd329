"""Pictures whose tissue is known: drawn by hand on real slides, or known by construction.

The hand-drawn outlines are in ``data/tissue``; its README says how they were made.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from PIL import Image, ImageDraw, ImageFilter

TRUTH = Path(__file__).parent / "data" / "tissue"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Picture:
    """Pixels, what is on them, and the spacing that is stated for them."""

    name: str
    pixels: Array
    spacing_mm: float | None
    tissue: Array
    ignored: Array
    marks: dict[str, Array]  # Pen, Border: never tissue

    def dice(self, found: Array) -> float:
        return float(2 * (found & self.tissue).sum() / ((found & ~self.ignored).sum() + self.tissue.sum()))

    def false_positives(self, found: Array, kind: str) -> float:
        where = self.marks[kind] & ~self.tissue & ~self.ignored
        return float((found & where).sum() / where.sum())


def drawn(name: str, shape: tuple[int, int], scale: float) -> dict[str, Array]:
    """Masks by class, painted by Pillow at 4 or 2 points a pixel and thinned: nothing of ours is asked."""
    masks: dict[str, Array] = {}
    k = 4 if max(shape) < 1200 else 2
    fine = (shape[1] * k, shape[0] * k)
    for feature in json.loads((TRUTH / f"{name}.geojson").read_text())["features"]:
        geometry = feature["geometry"]
        parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        image = Image.new("1", fine)
        draw = ImageDraw.Draw(image)
        for rings in parts:
            for i, ring in enumerate(rings):
                draw.polygon([(k * scale * x, k * scale * y) for x, y in ring], fill=int(i == 0))
        kind = feature["properties"]["classification"]["name"]
        mask = np.asarray(image)[k // 2 :: k, k // 2 :: k]
        masks[kind] = masks.get(kind, np.zeros(shape, bool)) | mask
    return masks


def picture(name: str, truth: str, pixels: Array, spacing: float | None, scale: float = 1.0) -> Picture:
    masks = drawn(truth, pixels.shape[:2], scale)
    none = np.zeros(pixels.shape[:2], bool)
    ignored = masks.pop("Ignore*", none)
    return Picture(name, pixels, spacing, masks.pop("Tissue", none) & ~ignored, ignored, masks)


def frames(path: Path, columnwise: bool = False) -> Array:
    """The total pixel matrix by pydicom alone."""
    ds = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the colour space that is stated is not that of the frames
        tiles = ds.pixel_array
    rows, columns = ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns
    down, across = -(-rows // ds.Rows), -(-columns // ds.Columns)
    out = np.zeros((down * ds.Rows, across * ds.Columns, 3), np.uint8)
    for i in range(len(tiles)):
        x, y = divmod(i, down) if columnwise else divmod(i, across)[::-1]
        out[y * ds.Rows : (y + 1) * ds.Rows, x * ds.Columns : (x + 1) * ds.Columns] = tiles[i]
    return out[:rows, :columns]


def svs(real: Path) -> dict[str, Array]:
    """The pages of CMU-1-Small-Region: level, thumbnail, label, macro."""
    with tifffile.TiffFile(real / "slides/CMU-1-Small-Region.svs") as tiff:
        pages = [page.asarray() for page in tiff.pages]
    names = ["level", "thumbnail", "label", "macro"]
    return dict(zip(names, pages, strict=True))


def shrunk(pixels: Array, factor: int) -> Array:
    return np.asarray(Image.fromarray(pixels).reduce(factor))


def photographs(real: Path, *, full: bool = True) -> list[Picture]:
    """Every real picture; without the largest, and those that show the same again, unless they are wanted."""
    cmu1 = svs(real)
    os1 = tifffile.imread(real / "slides/ome/OS-1-detail.ome.tif")
    os2 = tifffile.imread(real / "slides/ome/OS-2-vsi.ome.tif")
    camelyon = "dicom/google_camelyon/multi_frame_jpeg_camelyon_challenge_image.dcm"
    ezwsi = "dicom/ezwsi/multiframe_camelyon_challenge_image.dcm"
    tcga = frames(real / "dicom/pathml_tcga/small_dicom.dcm", columnwise=True)
    small = "CMU-1-Small-Region_thumbnail"
    pictures = [
        picture("stardist_histo", "stardist_histo", _rgb(real / "photos/stardist_histo.jpg"), None),
        picture("skimage_ihc", "skimage_ihc", _rgb(real / "photos/skimage_ihc.png"), None),
        picture("OS-1-detail", "OS-1-detail", os1, 0.000227),
        picture("OS-2-vsi", "OS-2-vsi", os2, 0.000346),
        picture("CMU-1, 0.5 µm", small, cmu1["level"], 0.000499, 2220 / 574),
        picture("CMU-1, 2 µm", small, cmu1["thumbnail"], 0.00193),
        picture("CMU-1, 8 µm", small, shrunk(cmu1["level"], 16), 0.008, 2220 / 574 / 16),
        picture("CMU-1 macro", "CMU-1-Small-Region_macro", cmu1["macro"], None),
        picture("camelyon (Google)", "camelyon", frames(real / camelyon), 0.029),
        picture("camelyon (EZ-WSI)", "camelyon", frames(real / ezwsi), 0.029),
        picture("marrow, JPEG", "gcp_marrow", frames(real / "dicom/gcp_converter_tests/jpeg.dicom"), 0.0168),
        picture("marrow, JPEG 2000", "gcp_marrow", frames(real / "dicom/gcp_converter_tests/jpeg2000.dicom"), 0.0168),
        picture("prostate with pen, full", "tcga_prostate", tcga, None),
        picture("prostate with pen, / 4", "tcga_prostate", shrunk(tcga, 4), None, 1 / 4),
        picture("prostate with pen, / 8", "tcga_prostate", shrunk(tcga, 8), 0.008, 1 / 8),
    ]
    again = {"camelyon (EZ-WSI)", "prostate with pen, full"}
    return [one for one in pictures if full or one.name not in again]


def _rgb(path: Path) -> Array:
    return np.asarray(Image.open(path).convert("RGB"))


# Composites: 600 x 800 pixels of 8 µm. Shapes are polygons, so that the truth is exact, and committed.

ROWS, COLUMNS = 600, 800
GLASS = (243.0, 242.0, 244.0)
INKS = {"black": (34, 33, 36), "blue": (28, 44, 150), "green": (22, 132, 92), "red": (196, 30, 42)}


def blob(y: float, x: float, ry: float, rx: float, seed: int) -> list[tuple[float, float]]:
    """An uneven ellipse as a polygon of 90 corners."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    r = 1 + sum(rng.uniform(0.02, 0.06) * np.cos(k * t + rng.uniform(0, 6)) for k in range(2, 6))
    return [(round(x + rx * c, 2), round(y + ry * s, 2)) for c, s in zip(r * np.cos(t), r * np.sin(t), strict=True)]


def stroke(points: list[tuple[float, float]], width: float) -> list[tuple[float, float]]:
    """A thick line as a polygon."""
    p = np.array(points)
    along = np.gradient(p, axis=0)
    normal = along[:, ::-1] * (1, -1) / np.hypot(*along.T)[:, None] * width / 2
    return [tuple(np.round(q, 2).tolist()) for q in np.concatenate([p + normal, (p - normal)[::-1]])]


def wave(y: float, x0: float, x1: float, height: float) -> list[tuple[float, float]]:
    x = np.linspace(x0, x1, 25)
    return list(zip(x, y + height * np.sin((x - x0) / (x1 - x0) * 5), strict=True))


SHAPES: dict[str, list[tuple[str, str, list[tuple[float, float]]]]] = {
    "pens": [
        ("Tissue", "a", blob(300, 250, 130, 110, 1)),
        ("Tissue", "b", blob(320, 560, 120, 90, 2)),
        ("Pen", "black", stroke(wave(70, 60, 720, 25), 16)),
        ("Pen", "green", stroke(wave(530, 60, 720, 25), 22)),
        ("Pen", "blue", stroke([(405, y) for y in range(130, 470, 20)], 18)),
        ("Pen", "red", stroke([(740, y) for y in range(130, 470, 20)], 18)),
        ("Pen", "blue", stroke([(60, y) for y in range(130, 470, 20)], 12)),
    ],
    "small biopsy in a ring of blue ink": [
        ("Tissue", "a", blob(300, 400, 22, 90, 3)),
        ("Pen", "blue", stroke([(400 + 200 * np.cos(t), 300 + 160 * np.sin(t)) for t in np.linspace(0, 6.1, 60)], 20)),
    ],
    "border": [
        ("Tissue", "a", blob(330, 300, 150, 120, 4)),
        ("Tissue", "b", blob(150, 640, 100, 80, 5)),
        ("Border", "black", [(0, 0), (800, 0), (800, 40), (90, 60), (80, 560), (800, 580), (800, 600), (0, 600)]),
    ],
    "fat": [("Tissue", "a", blob(300, 260, 140, 100, 6)), ("Tissue", "fat", blob(300, 500, 150, 180, 7))],
    "mucin": [("Tissue", "a", blob(300, 260, 140, 100, 8)), ("Tissue", "mucin", blob(300, 500, 120, 160, 9))],
    "dust, coverslip, shadow": [
        ("Tissue", "a", blob(300, 260, 140, 100, 10)),
        ("Tissue", "b", blob(330, 540, 90, 120, 11)),
    ],
}


def composites(real: Path) -> list[Picture]:
    """Real tissue on made glass, with what misleads."""
    cloth = [_cloth(svs(real)["thumbnail"][640:760, 150:300])]
    cloth.append(
        _cloth(frames(real / "dicom/google_camelyon/multi_frame_jpeg_camelyon_challenge_image.dcm")[240:400, 690:790])
    )
    return [_composite(name, i, cloth) for i, name in enumerate(SHAPES)]


def _cloth(patch: Array) -> Array:
    """Tissue laid side by side with its mirror images, as far as the picture goes."""
    both = np.concatenate([patch, patch[::-1]])
    both = np.concatenate([both, both[:, ::-1]], axis=1)
    return np.tile(both, (ROWS // both.shape[0] + 1, COLUMNS // both.shape[1] + 1, 1))[:ROWS, :COLUMNS].astype(float)


def _soft(mask: Array, radius: float) -> Array:
    image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image)[..., None] / 255.0


def _noise(rng: np.random.Generator, step: int) -> Array:
    """Smooth noise in [0, 1]."""
    small = Image.fromarray((rng.random((ROWS // step + 2, COLUMNS // step + 2)) * 255).astype(np.uint8))
    return np.asarray(small.resize((COLUMNS, ROWS), Image.Resampling.BICUBIC))[..., None] / 255.0


def _honeycomb(rng: np.random.Generator) -> Array:
    """Glass with thin pale membranes between cells of some 90 µm."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    cell = 11
    nearest = np.full((2, ROWS, COLUMNS), np.inf)
    for i in range(-1, ROWS // cell + 2):
        for j in range(-1, COLUMNS // cell + 2):
            cy, cx = cell * (i + rng.uniform(0.2, 0.8)), cell * (j + 0.5 * (i % 2) + rng.uniform(-0.3, 0.3))
            a, b, c, d = max(int(cy) - 20, 0), int(cy) + 20, max(int(cx) - 20, 0), int(cx) + 20
            if b <= 0 or d <= 0:
                continue
            distance = np.hypot(y[a:b, c:d] - cy, x[a:b, c:d] - cx)
            first, second = nearest[:, a:b, c:d]
            second[...] = np.where(distance < first, first, np.minimum(second, distance))
            first[...] = np.minimum(first, distance)
    wall = np.clip(1.2 - (nearest[1] - nearest[0]), 0, 1)[..., None]
    return np.array(GLASS) * (1 - wall) + np.array((214.0, 172.0, 204.0)) * wall


def _composite(name: str, seed: int, cloth: list[Array]) -> Picture:
    rng = np.random.default_rng(seed)
    pixels = np.broadcast_to(np.array(GLASS), (ROWS, COLUMNS, 3)).copy()
    masks = {"Tissue": np.zeros((ROWS, COLUMNS), bool)}
    for i, (kind, what, outline) in enumerate(SHAPES[name]):
        image = Image.new("1", (COLUMNS * 4, ROWS * 4))
        ImageDraw.Draw(image).polygon([(4 * x, 4 * y) for x, y in outline], fill=1)
        mask = np.asarray(image)[2::4, 2::4]
        masks[kind] = masks.get(kind, np.zeros_like(mask)) | mask
        if kind == "Tissue":
            made = {"fat": _honeycomb, "mucin": _mucin}.get(what)
            inside, blur = (made(rng) if made else cloth[i % 2]), 0.7
        elif kind == "Border":
            inside, blur = rng.integers(0, 12, (ROWS, COLUMNS, 3)).astype(float), 0.4
        else:  # ink: as thick as it happens to be, by Beer and Lambert
            thick = 0.6 + 0.8 * _noise(rng, 9)
            inside, blur = np.array(GLASS) * (np.array(INKS[what]) / np.array(GLASS)) ** thick, 1.0
        weight = _soft(mask, blur)
        pixels = pixels * (1 - weight) + inside * weight
    if name.startswith("dust"):
        pixels *= _dirt(rng)
    if "Border" in masks:
        masks["Tissue"] &= ~masks["Border"]
    pixels += rng.normal(0, 1.2, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    seen = np.asarray(Image.open(file))
    none = np.zeros((ROWS, COLUMNS), bool)
    return Picture(f"made: {name}", seen, 0.008, masks.pop("Tissue"), none, masks)


def _mucin(rng: np.random.Generator) -> Array:
    """Pale, bluish, in streaks."""
    streaks = 0.7 * _noise(rng, 30) + 0.3 * _noise(rng, 6)
    return np.array((230.0, 233.0, 243.0)) * (1 - streaks) + np.array((212.0, 217.0, 236.0)) * streaks


def _dirt(rng: np.random.Generator) -> Array:
    """Light that is left: specks, dust out of focus, scratches, the edge of a coverslip with its shadow, vignetting."""
    image = Image.new("L", (COLUMNS, ROWS), 255)
    draw = ImageDraw.Draw(image)
    for _ in range(120):
        y, x, r = rng.uniform(0, ROWS), rng.uniform(0, COLUMNS), rng.uniform(0.5, 3)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=int(rng.integers(40, 160)))
    for _ in range(8):
        y, x = rng.uniform(0, ROWS), rng.uniform(0, COLUMNS)
        draw.line([x, y, x + rng.uniform(-90, 90), y + rng.uniform(-90, 90)], fill=190, width=1)
    haze = Image.new("L", (COLUMNS, ROWS), 255)
    for _ in range(10):
        y, x, r = rng.uniform(0, ROWS), rng.uniform(0, COLUMNS), rng.uniform(5, 12)
        ImageDraw.Draw(haze).ellipse([x - r, y - r, x + r, y + r], fill=150)
    left = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6))) / 255.0
    left = left * np.asarray(haze.filter(ImageFilter.GaussianBlur(4))) / 255.0
    x = np.arange(COLUMNS)
    edge = 1 - 0.22 * np.exp(-np.abs(x - 720) / 18.0) * (x >= 720) - 0.45 * (np.abs(x - 720) < 2)
    y = np.arange(ROWS)
    fall = 1 - 0.03 * ((y[:, None] / ROWS - 0.5) ** 2 + (x / COLUMNS - 0.5) ** 2) * 2
    return (left * edge * fall)[..., None]
