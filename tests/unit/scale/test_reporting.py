"""The report of a cluster is the sum of its parts."""

from __future__ import annotations

from dataclasses import replace

from in_memory_datasets.scale.reporting import sum_up
from in_memory_datasets.schema import Failure, HostTime, LoadReport, no_seconds


def part(first_row: int, host: str) -> LoadReport:
    failures = [Failure(first_row + i, f"http://{host}/{i}.jpg", "fetch", "timeout", "late", host, 1) for i in (1, 0)]
    return LoadReport(
        num_samples=10,
        num_ok=8,
        num_failed=2,
        num_empty_captions=1,
        by_reason={"timeout": 2},
        failures=failures,
        seconds=5.0,
        bytes_fetched=100,
        nbytes=50,
        num_decoded=8,
        num_encoded=0,
        num_on_disk=0,
        by_stage={"fetch": 2},
        by_host={host: 2},
        num_tried=10,
        seconds_by_stage={**no_seconds(), "fetch": 2.0},
        slowest_hosts=(HostTime(host, 0.5, 10), HostTime("both", 0.1 if host == "a" else 0.2, 3)),
        num_unique=9,
    )


def test_numbers_are_added_and_failures_come_in_order() -> None:
    """Counts and seconds of work are sums, the time is the clock's, and failures are sorted by row."""
    report = sum_up([part(10, "b"), part(0, "a")], nodes={"n1": 10, "n2": 10, "gone": 0}, events=("1 s: x",), seconds=7)
    assert (report.num_samples, report.num_ok, report.num_failed, report.num_unique) == (20, 16, 4, 18)
    assert (report.seconds, report.bytes_fetched, report.seconds_by_stage["fetch"]) == (7, 200, 4.0)
    assert [failure.index for failure in report.failures] == [0, 1, 10, 11]
    assert report.by_host == {"b": 2, "a": 2}
    assert report.by_reason == {"timeout": 4}


def test_of_a_host_that_several_parts_asked_the_slowest_time_is_told_once() -> None:
    """Each host is named once, the slowest first."""
    report = sum_up([part(0, "a"), part(10, "b")], nodes={}, events=(), seconds=1)
    assert [(host.host, host.mean_seconds) for host in report.slowest_hosts] == [("a", 0.5), ("b", 0.5), ("both", 0.2)]


def test_it_prints_with_nodes_and_events() -> None:
    """The summary ends with how many nodes hold how much, and what happened."""
    reports = [replace(part(0, "a"), failures=[], num_failed=0, num_ok=10)]
    text = str(sum_up(reports, nodes={"n1": 7, "n2": 3, "gone": 0}, events=("1 s: gone was lost",), seconds=1))
    assert text.endswith("on 2 nodes, 3 rows or more each\n1 s: gone was lost")
    assert "on one node" in str(sum_up(reports, nodes={"n1": 10}, events=(), seconds=1))
