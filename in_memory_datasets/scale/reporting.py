"""What the nodes of a cluster did, in one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from in_memory_datasets.schema import LoadReport, no_seconds


@dataclass(frozen=True, slots=True)
class ClusterReport(LoadReport):
    """What a load on a cluster did; prints as a short summary.

    Numbers are sums over all nodes, of what each part's last load did; seconds are those of the clock, but for
    `seconds_by_stage`. Row numbers are those of the whole dataset. Of each part at most ten thousand failures are
    listed, all are counted.

    Attributes:
        nodes: How many rows each node holds, by Ray's name for it; those that were lost have none.
        events: What happened: actors that ended, nodes that were lost, and who loaded their rows again.
    """

    nodes: dict[str, int] = field(default_factory=dict)
    events: tuple[str, ...] = ()

    def __str__(self) -> str:
        holding = [count for count in self.nodes.values() if count]
        nodes = (
            "one node" if len(holding) == 1 else f"{len(holding)} nodes, {min(holding, default=0):,} rows or more each"
        )
        lines = [LoadReport.__str__(self), f"on {nodes}"]
        return "\n".join([*lines, *self.events])


def sum_up(
    reports: Sequence[LoadReport], *, nodes: Mapping[str, int], events: tuple[str, ...], seconds: float
) -> ClusterReport:
    """Make one report of those of all parts."""
    values: dict[str, Any] = {}
    for each in fields(LoadReport):
        parts = [getattr(report, each.name) for report in reports]
        if each.name == "seconds":
            values[each.name] = seconds
        elif each.name == "failures":
            values[each.name] = sorted((one for part in parts for one in part), key=lambda failure: failure.index)
        elif each.name == "slowest_hosts":
            slowest = sorted((one for part in parts for one in part), key=lambda host: -host.mean_seconds)
            values[each.name] = tuple({host.host: host for host in reversed(slowest)}.values())[::-1][:5]
        elif each.name == "seconds_by_stage":
            values[each.name] = {name: sum(part[name] for part in parts) for name in no_seconds()}
        elif each.name in ("by_reason", "by_stage", "by_host"):
            values[each.name] = _sum_of_counts(parts)
        else:
            values[each.name] = sum(parts)
    return ClusterReport(**values, nodes=dict(nodes), events=events)


def _sum_of_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total.most_common())
