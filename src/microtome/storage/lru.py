"""Values that are kept up to a number of bytes, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")

__all__ = ["BytesLru"]


class BytesLru(Generic[V]):
    """A mapping that is bounded in bytes. Not safe between threads: whoever shares it holds a lock."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> V | None:
        """Return a value, now the most recently used; None where there is none."""
        entry = self._values.get(key)
        if entry is None:
            return None
        self._values.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: V, size: int, limit: int) -> int:
        """Keep a value of some bytes in place of one of that name; return how many others had to go for it.

        One that is larger than the limit is not kept.
        """
        self.pop(key)
        if size > limit:
            return 0
        self._values[key] = value, size
        self.bytes += size
        gone = 0
        while self.bytes > limit:
            _, (_, freed) = self._values.popitem(last=False)
            self.bytes -= freed
            gone += 1
        return gone

    def pop(self, key: Hashable) -> None:
        """Forget a value, if it is there."""
        _, size = self._values.pop(key, (None, 0))
        self.bytes -= size

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
        self.bytes = 0
