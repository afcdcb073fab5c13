"""What a load takes is counted in bounded memory, whatever the rows name."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from in_memory_datasets.build import tally as module
from in_memory_datasets.build.pipeline import Outcome
from in_memory_datasets.build.tally import MAX_HOSTS, Tally
from in_memory_datasets.schema import Effort, HostTime


def outcome(host: str = "", *, fetch: float = 0.0, **values: Any) -> Outcome:
    return Outcome(0, host=host, fetch_seconds=fetch, **values)


def test_a_tally_of_nothing_has_tried_nothing() -> None:
    effort = Tally(4).effort()
    assert (effort.num_tried, effort.bytes_fetched, effort.slowest_hosts) == (0, 0, ())
    assert list(effort.seconds_by_stage) == list(Effort().seconds_by_stage) == ["fetch", "decode", "write", "waiting"]
    assert set(Effort().seconds_by_stage.values()) == {0.0}


def test_waiting_is_what_the_threads_had_left_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads for ten seconds are thirty; what they decoded and wrote in them is not waiting."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    tally = Tally(3)
    tally.add(outcome(fetch=50.0, decode_seconds=4.0, write_seconds=1.0, bytes_fetched=10))
    tally.add(outcome(fetch=25.0, decode_seconds=2.0, bytes_fetched=5))
    now[0] = 110.0
    effort = tally.effort()
    assert effort.seconds == 10.0
    assert effort.seconds_by_stage == {"fetch": 75.0, "decode": 6.0, "write": 1.0, "waiting": 23.0}
    assert (effort.num_tried, effort.bytes_fetched) == (2, 15)


def test_threads_that_were_never_idle_have_not_waited_for_less_than_nothing() -> None:
    """Clocks of different threads do not add up to the last digit."""
    tally = Tally(1)
    tally.add(outcome(decode_seconds=1e6))
    assert tally.effort().seconds_by_stage["waiting"] == 0.0


def test_the_slowest_hosts_come_first_with_the_mean_of_their_samples() -> None:
    tally = Tally(1)
    for number, seconds in enumerate([3, 1, 7, 2, 9, 4, 5]):
        tally.add(outcome(f"host{number}.example", fetch=seconds - 0.5))
        tally.add(outcome(f"host{number}.example", fetch=seconds + 0.5))
    tally.add(outcome("", fetch=1000.0))  # a file, which has no host
    found = tally.effort().slowest_hosts
    assert found == tuple(
        HostTime(f"host{number}.example", mean, 2) for number, mean in ((4, 9), (2, 7), (6, 5), (5, 4), (0, 3))
    )


def test_a_million_hosts_take_the_memory_of_ten_thousand() -> None:
    """Beyond those that are told apart only the totals count on; those that are stay exact."""
    tally = Tally(1)
    tally.add(outcome("slow.example", fetch=60.0))
    tracemalloc.start()
    try:
        for number in range(MAX_HOSTS):
            tally.add(outcome(f"host{number}.example", fetch=1.0))
        before, _ = tracemalloc.get_traced_memory()
        for number in range(MAX_HOSTS, 100_000):
            tally.add(outcome(f"host{number}.example", fetch=99.0))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
    tally.add(outcome("slow.example", fetch=70.0))
    effort = tally.effort()
    assert effort.num_tried == 100_002
    assert effort.seconds_by_stage["fetch"] == 60 + MAX_HOSTS + (100_000 - MAX_HOSTS) * 99 + 70
    assert effort.slowest_hosts[0] == HostTime("slow.example", 65.0, 2)
    assert {host.mean_seconds for host in effort.slowest_hosts[1:]} == {1.0}


def test_a_name_longer_than_any_host_can_have_is_not_kept() -> None:
    tally = Tally(1)
    tally.add(outcome("h" * 10_000_000, fetch=60.0))
    tally.add(outcome("a.example", fetch=1.0))
    assert [host.host for host in tally.effort().slowest_hosts] == ["a.example"]
