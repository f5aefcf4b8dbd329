"""Jobs that need a process of their own: peak memory, imports, and slides opened for the first time.

``python isolated.py JOB FOLDER...`` prints one line of JSON; :func:`run` is how the benchmarks call it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
FORBIDDEN = ("dask", "zarr", "pydicom", "imagecodecs", "gcsfs", "s3fs", "aiohttp", "google.auth", "openslide")


def run(job: str, *arguments: object, script: str = "isolated.py") -> Answer:
    """Run a job of this file, or of another one beside it, in a fresh interpreter and return its answer."""
    command = [sys.executable, str(Path(__file__).with_name(script)), job, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{job}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    return answer


class Peak:
    """Peak resident memory from here on, in MB above what there was."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self.before = self.most = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, self._process.memory_info().rss)

    def stop(self) -> float:
        """Megabytes above the start."""
        self._stop.set()
        self._thread.join()
        try:  # Linux knows the exact peak of this process
            status = Path("/proc/self/status").read_text()
            exact = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            self.most = max(self.most, int(exact.split()[1]) * 1024)
        except (OSError, StopIteration):
            pass
        return (self.most - self.before) / 1e6


def memory(folder: str) -> Answer:
    """Read level 0 once, by Dask blocks, with two threads."""
    import microtome

    peak = Peak()
    import dask

    image = microtome.open_slide(folder)["level0"].image
    data = image.data
    block = max(data.chunks[0]) * max(data.chunks[1]) * data.shape[2] * data.dtype.itemsize
    start = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=2):
        most = int(image.max().compute())
    return {
        "peak": peak.stop(), "block": block / 1e6, "max": most, "seconds": time.perf_counter() - start,
        "blocks": int(data.npartitions), "gigabytes": data.nbytes / 1e9,
    }  # fmt: skip


def _middle(folder: str) -> tuple[list[Path], int, int]:
    import pydicom

    files = sorted(Path(folder).glob("*.dcm"))
    tags = ["ImageType", "TotalPixelMatrixRows", "TotalPixelMatrixColumns"]
    heads = [(f, pydicom.dcmread(f, stop_before_pixels=True, specific_tags=tags)) for f in files]
    volume = [(f, head) for f, head in heads if "VOLUME" in head.ImageType]
    head = volume[0][1]
    return [f for f, _ in volume], int(head.TotalPixelMatrixRows) // 2 + 77, int(head.TotalPixelMatrixColumns) // 2 + 77


def sparse_microtome(folder: str, warm: str) -> Answer:
    """Open a slide and read one patch of it, everything being imported."""
    import microtome

    microtome.open_slide(warm, chunks=None)["level0"].image.wsi.read(0, 0, 64, 64)
    _, y, x = _middle(folder)
    start = time.perf_counter()
    slide = microtome.open_slide(folder, chunks=None)
    opened = time.perf_counter() - start
    patch = slide["level0"].image.wsi.read(y, x, 256, 256)
    return {"seconds": time.perf_counter() - start, "opened": opened, "mean": float(patch.mean())}


def sparse_highdicom(folder: str, warm: str) -> Answer:
    """The same with highdicom, for which each part is an image of its own; the patch is read from one of them."""
    import highdicom

    from contenders import finest_instance

    small = highdicom.imread(finest_instance(Path(warm)), lazy_frame_retrieval=True)
    small.get_total_pixel_matrix(0, 64, 0, 64, as_indices=True)
    files, y, x = _middle(folder)
    start = time.perf_counter()
    parts = [highdicom.imread(file, lazy_frame_retrieval=True) for file in files]
    opened = time.perf_counter() - start
    part = parts[len(parts) // 2]
    patch = part.get_total_pixel_matrix(y, y + 256, x, x + 256, as_indices=True, apply_icc_profile=False)
    return {"seconds": time.perf_counter() - start, "opened": opened, "mean": float(patch.mean())}


def sparse_wsidicom(folder: str, warm: str) -> Answer:
    """The same with wsidicom."""
    import wsidicom

    wsidicom.WsiDicom.open(warm).read_region((0, 0), 0, (64, 64), as_array=True)
    _, y, x = _middle(folder)
    start = time.perf_counter()
    slide = wsidicom.WsiDicom.open(folder)
    opened = time.perf_counter() - start
    patch = slide.read_region((x, y), 0, (256, 256), as_array=True)
    return {"seconds": time.perf_counter() - start, "opened": opened, "mean": float(patch.mean())}


def imports(module: str) -> Answer:
    """Import a module; what came along of what should not."""
    start = time.perf_counter()
    __import__(module)
    return {
        "seconds": time.perf_counter() - start,
        "loaded": [name for name in FORBIDDEN if name in sys.modules],
    }


JOBS: dict[str, Callable[..., Answer]] = {
    "memory": memory,
    "sparse_microtome": sparse_microtome,
    "sparse_highdicom": sparse_highdicom,
    "sparse_wsidicom": sparse_wsidicom,
    "imports": imports,
}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))
