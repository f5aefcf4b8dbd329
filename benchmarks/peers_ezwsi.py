"""EZ-WSI DICOMweb as a contender.

It cannot share an environment with wsidicom (marshmallow 3 and 4), so it lives in one of its own and reads there, one
line of JSON a question; the times are taken on its side.

Run as a script, this file is that other side: it needs nothing but EZ-WSI. What it reads is a file, or the URL of a
series; then the frame cache is none, on (it fetches whole instances of this size at the first miss) or preloaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REQUIREMENT = "ez-wsi-dicomweb==6.1.6"


def open_slide(source: str, cache: str) -> Any:
    """Open the slide anew: nothing is in any cache, unless it is preloaded."""
    from ez_wsi_dicomweb import credential_factory, dicom_slide, dicom_web_interface, local_dicom_slide_cache
    from ez_wsi_dicomweb.ml_toolkit import dicom_path

    if not source.startswith("http"):
        return dicom_slide.LocalDicomSlide(dicom_files=source)
    nobody = credential_factory.NoAuthCredentialsFactory()
    frames = None if cache == "none" else local_dicom_slide_cache.InMemoryDicomSlideCache(nobody)
    interface = dicom_web_interface.DicomWebInterface(nobody)
    slide = dicom_slide.DicomSlide(interface, dicom_path.FromString(source), slide_frame_cache=frames)
    if cache == "preloaded":
        slide.preload_level_in_frame_cache(slide.get_level_by_index(1))
    return slide


def serve(source: str, cache: str = "none") -> None:
    """Answer questions on stdin until it closes."""
    import base64
    import time

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the library prints is no answer
    try:
        slide = open_slide(source, cache)
        level = slide.get_level_by_index(1)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if question.get("open"):
            slide = open_slide(source, cache)
            level = slide.get_level_by_index(1)
        pixels = None
        start = time.perf_counter()
        for y, x, height, width in question.get("places", ()):
            pixels = slide.get_patch(level, x, y, width, height).image_bytes()
        answer: dict[str, Any] = {"seconds": time.perf_counter() - start}
        if question.get("pixels"):
            answer["pixels"] = base64.b64encode(pixels.tobytes()).decode()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
else:
    import numpy as np

    from contenders import Contender, finest_instance
    from environments import environment
    from places import Place
    from web_servers import Child

    class Reader:
        """EZ-WSI in its own process, reading level 0 of a file or of a series on a server."""

        def __init__(self, source: str, cache: str = "none") -> None:
            self._child = Child(environment("ezwsi", REQUIREMENT), __file__, source, cache)

        def reopen(self) -> None:
            self._child.ask(open=True)

        def timed(self, places: list[Place]) -> float:
            seconds: float = self._child.ask(places=places)["seconds"]
            return seconds

        def region(self, place: Place) -> np.ndarray:
            import base64

            data = base64.b64decode(self._child.ask(places=[place], pixels=True)["pixels"])
            return np.frombuffer(data, np.uint8).reshape(place.height, place.width, 3)

        def close(self) -> None:
            self._child.close()

    class EzWsi(Contender):
        """EZ-WSI's LocalDicomSlide, in its own process."""

        name = "EZ-WSI"
        threaded = False

        def __init__(self, folder: Path, threads: int) -> None:
            super().__init__(folder, threads)
            self._reader = Reader(str(finest_instance(folder)))

        def timed(self, places: list[Place]) -> float:
            return self._reader.timed(places)

        def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
            return self._reader.region(Place(y, x, height, width))

        def close(self) -> None:
            self._reader.close()
