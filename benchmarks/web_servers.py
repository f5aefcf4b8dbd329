"""DICOMweb servers to read from, each in a process of its own, so that no reader shares its interpreter lock.

They are told the latency, and asked what they have done so far, over a pipe: one line of JSON a question. Run as a
script, this file is the process of our embedded server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Counts(NamedTuple):
    """What a server has done so far, or between two times."""

    requests: int
    connections: int
    bytes: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(self, other, strict=True)))

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Counts(0, 0, 0)


class Child:
    """A process that answers lines of JSON with lines of JSON."""

    def __init__(self, *command: object) -> None:
        self._process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.first = self._answer()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


class Embedded:
    """`microtome.testing.DICOMwebServer` over a folder, in two dialects."""

    name = "our server"

    def __init__(self, folder: Path) -> None:
        self._child = Child(sys.executable, __file__, folder)
        self._series: dict[str, str] = self._child.first["series"]

    def series(self, dialect: str) -> str:
        """The URL of the slide."""
        return self._series[dialect]

    def delay(self, seconds: float) -> None:
        """Wait so long before each answer."""
        self._child.ask(latency=seconds)

    def counts(self) -> Counts:
        """What was asked in all dialects."""
        return Counts(*self._child.ask()["counts"])

    def close(self) -> None:
        self._child.close()


def serve(folder: str) -> None:
    """Serve until stdin is closed."""
    from microtome.testing import DICOMwebServer

    servers = {dialect: DICOMwebServer(folder, dialect=dialect).start() for dialect in ("standard", "google")}
    series = {dialect: server.series_urls()[0] for dialect, server in servers.items()}
    print(json.dumps({"series": series}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        for server in servers.values():
            server.latency = question.get("latency", server.latency)
        counts = [Counts(len(s.requests), s.connections, s.bytes_sent) for s in servers.values()]
        print(json.dumps({"counts": sum(counts, NOTHING)}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
