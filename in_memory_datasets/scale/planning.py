"""What fits into a cluster: how many samples each node can hold, and how they are divided."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from in_memory_datasets.build import LoadRequest, Storage, plan
from in_memory_datasets.errors import MemoryLimitError
from in_memory_datasets.rows import ColumnSpec, open_rows
from in_memory_datasets.scale.division import DEFAULT_FRACTION, divide
from in_memory_datasets.schema import LimitedBy, format_bytes

# In a directory, parts have sizes that do not depend on the nodes, so that another number of them finds them again.
_MOST_ROWS_OF_PART, _LEAST_PARTS = 65_536, 16


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node has.

    Attributes:
        bytes_available: Memory that samples may take.
        limited_by: What sets that limit.
        num_cores: Cores that its actor may use.
        machine: What tells the machine, or container, from others; several nodes may be on one.
        pid: The process of its actor.
    """

    bytes_available: int
    limited_by: LimitedBy
    num_cores: int
    machine: str
    pid: int


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What a node has, and what it is to hold.

    Attributes:
        node_id: Ray's name for it.
        facts: What it has.
        num_samples_that_fit: The most samples that it can hold, and borrow.
        num_samples: How many it is to hold.
    """

    node_id: str
    facts: Facts
    num_samples_that_fit: int = 0
    num_samples: int = 0


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What a dataset would take in a cluster; prints as a table.

    Attributes:
        num_samples: Samples asked for.
        bytes_needed: What all blocks will hold together.
        bytes_available: What all nodes may use together.
        fits: Whether it fits.
        num_samples_that_fit: The most samples that would.
        bytes_per_sample: What one takes, its rows included.
        is_upper_bound: True where lengths are unknown beforehand and the longest was assumed.
        storage: The form samples will lie in: "decoded" or "encoded".
        nodes: What each node is to hold.
    """

    num_samples: int
    bytes_needed: int
    bytes_available: int
    fits: bool
    num_samples_that_fit: int
    bytes_per_sample: float
    is_upper_bound: bool
    storage: Storage
    nodes: tuple[NodePlan, ...]

    def refuse_if_too_large(self) -> None:
        """Raise where it does not fit.

        Raises:
            MemoryLimitError: With both numbers, and what else to do.
        """
        if self.fits:
            return
        at_most = "up to " if self.is_upper_bound else ""
        raise MemoryLimitError(
            f"{self.num_samples:,} samples need {at_most}{format_bytes(self.bytes_needed)}, the {len(self.nodes)} "
            f"nodes have {format_bytes(self.bytes_available)} for them; {self.num_samples_that_fit:,} would fit: give "
            f"max_samples={self.num_samples_that_fit}, or more nodes, or take a smaller image_size, max_duration or "
            'storage="encoded"',
            bytes_needed=self.bytes_needed,
            bytes_available=self.bytes_available,
        )

    def __str__(self) -> str:
        needed = ("at most " if self.is_upper_bound else "") + format_bytes(self.bytes_needed)
        lines = [
            f"{'samples':<18}{self.num_samples:,}, {self.storage}",
            f"{'memory needed':<18}{needed} of {format_bytes(self.bytes_available)} on {len(self.nodes)} nodes",
            f"{'fits':<18}{'yes' if self.fits else 'no'}; {self.num_samples_that_fit:,} samples would",
        ]
        lines += [
            f"  {node.node_id[:8]:<16}{node.num_samples:,} samples; {node.facts.num_cores} cores, "
            f"{format_bytes(node.facts.bytes_available)} ({node.facts.limited_by})"
            for node in self.nodes
        ]
        return "\n".join(lines)


def plan_cluster(
    request: LoadRequest,
    columns: tuple[ColumnSpec, ColumnSpec],
    sample: Sequence[Any],
    num_rows: int,
    nodes: Sequence[NodePlan],
) -> ClusterPlan:
    """Divide rows over nodes by their cores, as far as each has room for its samples and for those it will borrow.

    Args:
        request: What a load is told.
        columns: The columns of media and captions.
        sample: Some of the rows, which stand for all.
        num_rows: How many there are.
        nodes: What there is.
    """
    some, none = (
        open_rows(rows, media_col=columns[0], txt_col=columns[1], max_samples=None) for rows in (list(sample), [])
    )
    tiers = dict[Storage, tuple[float, bool]]()
    choices: tuple[Storage, ...] = ("decoded", "encoded") if request.storage == "auto" else (request.storage,)
    for storage in choices:
        one, empty = (
            plan(replace(request, storage=storage, reader=reader, memory_limit=None)) for reader in (some, none)
        )
        of_sample = (one.bytes_needed or 0) - (empty.bytes_needed or 0)
        tiers[storage] = of_sample / max(1, len(sample)), one.is_upper_bound
    sharing = Counter(node.facts.machine for node in nodes)  # nodes on one machine have its memory together
    for storage, (num_bytes, is_upper_bound) in tiers.items():
        for_guests = 1 + 2 * DEFAULT_FRACTION  # of an epoch, and of the next one
        available = [
            node.facts.bytes_available
            if node.facts.limited_by == "memory_limit"
            else node.facts.bytes_available // sharing[node.facts.machine]
            for node in nodes
        ]
        each = max(1.0, num_bytes) * (for_guests if len(nodes) > 1 else 1)
        fitting = [int(room / each) for room in available]
        counts = divide(num_rows, [node.facts.num_cores for node in nodes], fitting)
        fits = sum(counts) == num_rows
        found = ClusterPlan(
            num_samples=num_rows,
            bytes_needed=round(num_rows * num_bytes),
            bytes_available=sum(available),
            fits=fits,
            num_samples_that_fit=sum(fitting),
            bytes_per_sample=max(1.0, num_bytes),
            is_upper_bound=is_upper_bound,
            storage=storage,
            nodes=tuple(
                replace(node, num_samples_that_fit=most, num_samples=count)
                for node, most, count in zip(nodes, fitting, counts, strict=True)
            ),
        )
        if fits:
            break
    return found


def lay_out(plan: ClusterPlan, *, in_directories: bool) -> list[tuple[int, int, str]]:
    """Say which rows are loaded into one store, by which node: (start, stop, Ray's name of the node), in order.

    In memory that is one store a node. In directories they have sizes that do not depend on the nodes, so that another
    number of nodes finds them there again.
    """
    parts, start = [], 0
    if not in_directories:
        for node in plan.nodes:
            if node.num_samples:
                parts.append((start, start + node.num_samples, node.node_id))
            start += node.num_samples
        return parts
    size = max(1, min(_MOST_ROWS_OF_PART, -(-plan.num_samples // _LEAST_PARTS)))
    ends = list(itertools.accumulate(node.num_samples for node in plan.nodes))
    for start in range(0, plan.num_samples, size):
        stop = min(start + size, plan.num_samples)
        number = bisect.bisect_right(ends, (start + stop - 1) // 2)
        parts.append((start, stop, plan.nodes[number].node_id))
    return parts
