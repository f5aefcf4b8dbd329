"""What ``microtome demo`` shows: each line is a line of Python, run as it stands, and what it gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = ["show"]


def show(folder: Path, size: int, *, dicomweb: bool) -> str | None:
    """Make a slide in a folder, and show the library's work on it.

    Returns
    -------
    str or None
        The slide, where it is still there to be read.
    """
    from microtome.testing import DICOMwebServer, make_slide

    slide = folder / "slide"
    make_slide(slide, width=size, height=size * 3 // 4)
    if not dicomweb:
        _run(_FILES, {"folder": str(slide)})
        return str(slide)
    with DICOMwebServer(slide) as server:
        _run(_DICOMWEB, {"server": server.url, "url": server.series_urls()[0]})
    return None


def _run(lines: tuple[str, ...], scope: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.syntax import Syntax

    import microtome as mt

    console = Console(width=None if sys.stdout.isatty() else 120)
    scope["mt"] = mt
    for line in lines:
        console.print(Syntax(line, "python", background_color="default"))
        if line.startswith("import ") or " = " in line.split("(")[0]:
            exec(line, scope)
        else:
            console.print(eval(line, scope), highlight=False, markup=False)
        console.print()


_FILES = (
    "slide = mt.open_slide(folder)",
    "slide.wsi.levels.iloc[:, :7]",
    "image = slide['level0'].image",
    "image[0:512, 0:512].wsi.explain()",
    "image[200:500, 300:600].values.shape",
    "image.wsi.read([0, 100, 200], [0, 100, 200], 224, 224).shape",
    "small = slide.sel(y=slice(0.2, 0.3), x=slice(0.2, 0.3))",
    "{name: dict(node['image'].sizes) for name, node in small.children.items() if name.startswith('level')}",
    "slide['level2'].image.mean(('y', 'x')).compute().round(1)",
    "slide['associated/label'].image.sizes",
    "slide.wsi.to_slide(y=0.2, x=0.2)",
    "slide.wsi.level(magnification='5X').sizes",
    "slide.wsi.at(spacing=0.00125)",
    "mask = slide.wsi.tissue_mask('luminance')",
    "patches = image.wsi.patches(224, stride=112, mask=mask, min_fraction=0.5)",
    "patches",
    "patches.isel(patch=slice(0, 8)).wsi.explain()",
    "patches.image.isel(patch=slice(0, 8)).wsi.coverage().all().compute().item()",
    "image.wsi.to_profile('adobe_rgb').wsi.region(-100, -100, 300, 300).values.shape",
)

_DICOMWEB = (
    "mt.find_slides(server, PatientID='SYNTHETIC')[['url', 'StudyDate', 'NumberOfSeriesRelatedInstances']].T",
    "slide = mt.open_slide(url)",
    "slide.wsi.levels.iloc[:, :7]",
    "image = slide['level0'].image",
    "image[0:512, 0:512].wsi.explain()",
    "image.wsi.read([0, 100, 200], [0, 100, 200], 224, 224).shape",
    "mt.cache.statistics()",
    "slide.wsi.prefetch('level2')",
    "slide['level2'].image.wsi.explain()",
    "slide['level2'].image.mean(('y', 'x')).compute().round(1)",
    "again = mt.open_slide(url, metadata=slide.wsi.to_json())",
    "import fsspec",
    "fs = fsspec.filesystem('dicomweb', url=server)",
    "fs.ls('studies', detail=False)",
    "fs.find('studies')[0][-30:]",
    "len(fs.cat(fs.find('studies')[0] + '/frames/1'))",
)
