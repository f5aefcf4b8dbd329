"""EZ-WSI DICOMweb as a contender.

It cannot share an environment with wsidicom (marshmallow 3 and 4), so it lives in one of its own and reads there, one
line of JSON a question; the times are taken on its side.

Run as a script, this file is that other side: it needs nothing but EZ-WSI.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REQUIREMENT = "ez-wsi-dicomweb==6.1.6"


def serve(path: str) -> None:
    """Answer questions on stdin until it closes."""
    import base64
    import time

    from ez_wsi_dicomweb import dicom_slide

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the library prints is no answer
    slide = dicom_slide.LocalDicomSlide(dicom_files=path)
    level = slide.get_level_by_index(1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        pixels = None
        start = time.perf_counter()
        for y, x, height, width in question["places"]:
            pixels = slide.get_patch(level, x, y, width, height).image_bytes()
        answer: dict[str, Any] = {"seconds": time.perf_counter() - start}
        if question.get("pixels"):
            answer["pixels"] = base64.b64encode(pixels.tobytes()).decode()
        print(json.dumps(answer), file=answers, flush=True)


def environment(cache: Path) -> Path:
    """The interpreter of EZ-WSI's own environment, made on first use; raises RuntimeError if that fails."""
    folder = cache / "ezwsi-venv"
    python, stamp = folder / "bin" / "python", folder / f".{REQUIREMENT}"
    if not stamp.exists():
        print(f"installing {REQUIREMENT} into an environment of its own ...", file=sys.stderr, flush=True)
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT],
        ]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                raise RuntimeError(f"it could not be installed: {done.stderr.strip().splitlines()[-1:]}")
        stamp.touch()
    return python


if __name__ == "__main__":
    serve(sys.argv[1])
else:
    import numpy as np

    from contenders import Contender, finest_instance
    from places import Place

    class EzWsi(Contender):
        """EZ-WSI's LocalDicomSlide, in its own process."""

        name = "EZ-WSI"
        threaded = False

        def __init__(self, folder: Path, threads: int) -> None:
            super().__init__(folder, threads)
            python = environment(Path(__file__).parent / ".cache")
            self._process = subprocess.Popen(
                [python, __file__, str(finest_instance(folder))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._answer()

        def _answer(self) -> dict[str, Any]:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"its process ended with exit code {self._process.wait()}")
            answer: dict[str, Any] = json.loads(line)
            return answer

        def _ask(self, places: list[Place], **more: Any) -> dict[str, Any]:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"places": places, **more}) + "\n")
            self._process.stdin.flush()
            return self._answer()

        def timed(self, places: list[Place]) -> float:
            seconds: float = self._ask(places)["seconds"]
            return seconds

        def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
            import base64

            data = base64.b64decode(self._ask([Place(y, x, height, width)], pixels=True)["pixels"])
            return np.frombuffer(data, np.uint8).reshape(height, width, 3)

        def close(self) -> None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=30)
