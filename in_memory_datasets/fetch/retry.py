"""When another attempt is made."""

from __future__ import annotations

import random
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

BASE_SECONDS = 0.25
CAP_SECONDS = 10.0
# A server may ask for hours; a load that waits so long for one sample looks hung.
RETRY_AFTER_CAP_SECONDS = 30.0


def choose_delay(num_attempts: int, retry_after: float | None, rng: random.Random) -> float:
    """Choose the seconds to wait after `num_attempts` failed attempts.

    Exponential backoff with full jitter; a server's own Retry-After takes its place, up to 30 s.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Example:
        >>> choose_delay(1, 7200.0, random.Random(0))
        30.0
        >>> 0 <= choose_delay(3, None, random.Random(0)) <= 1.0
        True
    """
    if retry_after is not None:
        return min(retry_after, RETRY_AFTER_CAP_SECONDS)
    return rng.uniform(0.0, min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(num_attempts - 1, 16)))


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Read a Retry-After header, given in seconds or as a date, as seconds from `now`.

    None where there is no such header or it makes no sense.

    Source: RFC 9110, section 10.2.3.

    Example:
        >>> parse_retry_after("3")
        3.0
        >>> parse_retry_after("Wed, 21 Oct 2015 07:28:05 GMT", datetime(2015, 10, 21, 7, 28, tzinfo=timezone.utc))
        5.0
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return max(0.0, (at - (now or datetime.now(timezone.utc))).total_seconds())
