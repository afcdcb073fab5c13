"""When another attempt is made."""

from __future__ import annotations

import random
from datetime import datetime, timezone

import pytest

from in_memory_datasets.fetch.retry import choose_delay, parse_retry_after

NOW = datetime(2015, 10, 21, 7, 28, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:30 -0000", 30.0),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("²", None),
        ("Wed, 32 Foo 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(("num_attempts", "most"), [(1, 0.25), (2, 0.5), (4, 2.0), (7, 10.0), (10_000, 10.0)])
def test_backoff_doubles_up_to_ten_seconds_with_full_jitter(num_attempts: int, most: float) -> None:
    delays = [choose_delay(num_attempts, None, random.Random(seed)) for seed in range(200)]
    assert min(delays) < 0.1 * most
    assert 0.9 * most < max(delays) <= most


def test_what_the_server_asks_for_is_obeyed_up_to_thirty_seconds() -> None:
    assert [choose_delay(1, seconds, random.Random(0)) for seconds in (0.0, 7.0, 86_400.0)] == [0.0, 7.0, 30.0]
