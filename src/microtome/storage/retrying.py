"""Which failures of a server may pass, and how long to wait before it is asked again."""

from __future__ import annotations

import email.utils
import random
import time

__all__ = ["AGAIN", "LONGEST_WAIT", "backoff", "retry_after"]

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of answers that may be others soon."""
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for a longer pause is not waited for."""
BACKOFF, LONGEST_BACKOFF = 0.25, 8.0


def backoff(tries: int) -> float:
    """Return the seconds to wait after so many tries: longer each time, and never twice the same."""
    longest: float = min(BACKOFF * 2**tries, LONGEST_BACKOFF)
    return random.uniform(longest / 2, longest)


def retry_after(value: str) -> float | None:
    """Return the seconds of a Retry-After header, which states them or a date (RFC 9110 10.2.3)."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value[:9])
    try:
        date = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, date - time.time())
