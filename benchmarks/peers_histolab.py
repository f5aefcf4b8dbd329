"""histolab as a reader of patches: in an environment of its own.

pip finds no versions that satisfy what it pins in useful time: it is installed without these, beside today's.

Run as a script, this file is the other side: it needs nothing but histolab and OpenSlide. It answers one line of JSON a
question; the times are taken there. Neither histolab nor OpenSlide reads a folder of DICOM: it is given one file.
"""

from __future__ import annotations

import json
import sys

ALONE = "histolab==0.7.0"
REQUIREMENTS = (
    "numpy", "scipy", "scikit-image", "pillow", "openslide-python", "openslide-bin", "certifi", "requests",
    "setuptools<80",
)  # fmt: skip


def serve(source: str) -> None:
    """Answer questions on stdin until it closes."""
    import base64
    import tempfile
    import time

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the library prints is no answer
    try:
        import numpy as np
        from histolab.slide import Slide
        from histolab.types import CoordinatePair

        slide = Slide(source, tempfile.gettempdir())
        slide.extract_tile(CoordinatePair(0, 0, 224, 224), (224, 224), level=0)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        pixels = None
        start = time.perf_counter()
        for y, x, height, width in question["places"]:
            tile = slide.extract_tile(CoordinatePair(x, y, x + width, y + height), (width, height), level=0)
            pixels = np.asarray(tile.image)
        answer: dict[str, object] = {"seconds": time.perf_counter() - start}
        if question.get("pixels") and pixels is not None:
            answer["pixels"] = base64.b64encode(np.ascontiguousarray(pixels[..., :3]).tobytes()).decode()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
else:
    import base64

    import numpy as np

    from environments import environment
    from places import Place
    from web_servers import Child

    class Reader:
        """histolab in its own process."""

        def __init__(self, source: str) -> None:
            self._child = Child(environment("histolab", *REQUIREMENTS, alone=ALONE), __file__, source)

        def timed(self, places: list[Place]) -> float:
            seconds: float = self._child.ask(places=places)["seconds"]
            return seconds

        def region(self, place: Place) -> np.ndarray:
            data = base64.b64decode(self._child.ask(places=[place], pixels=True)["pixels"])
            return np.frombuffer(data, np.uint8).reshape(place.height, place.width, 3)

        def close(self) -> None:
            self._child.close()
