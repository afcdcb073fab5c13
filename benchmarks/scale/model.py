"""What clusters far larger than any at hand would take: formulas of a few numbers, each with where it came from.

Everything here is arithmetic. What was measured on this machine is passed in as `Rates`; what was assumed of machines
that nobody measured stands in the constants below, with a reason for each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from in_memory_datasets.scale.division import Division, Homes, Past, Ranks, ranges_of

# 25 Gbit/s: what a rented machine of eight accelerators has at the least, and half of what most have.
NETWORK_BYTES_PER_S = 25e9 / 8
# Eight accelerators, eight cores for each: what such a machine has at the least.
RANKS_OF_NODE, CORES_OF_NODE = 8, 64
# Of every rank: the usual number where decoding is done already.
WORKERS_OF_RANK = 2
# Where samples come from: an object store that lets 10 Gbit/s pass to a node, and 1 Tbit/s to all together.
SOURCE_BYTES_PER_S_OF_NODE, SOURCE_BYTES_PER_S = 10e9 / 8, 1e12 / 8
# What a rank trains on in a second: a ResNet-50 in half precision on an accelerator of 2020; slower models take longer.
SAMPLES_PER_S_OF_RANK = 2_500
DECODED_BYTES, FETCHED_BYTES = 224 * 224 * 3, 25_000
# Caption, row number, lengths and checksums, beside the picture.
BOOKKEEPING_BYTES = 150
# What a lender copies before it is asked again, see `scale.node`; several of them are under way at once.
PARCEL_BYTES, UNDER_WAY = 16 * 2**20, 4
# Places, rows, owners and slots of int64 and float64 that a process makes when it turns to an epoch.
VIEW_BYTES_OF_SAMPLE = 8 * 6
# What every process keeps of them until the next epoch.
KEPT_BYTES_OF_SAMPLE = 8 * 2


@dataclass(frozen=True, slots=True)
class Setup:
    """A cluster and a dataset.

    Attributes:
        num_nodes: Nodes, which are all alike.
        num_samples: Samples in all.
        stored_bytes: What one takes in memory.
        fetched_bytes: What one takes at its source.
        fraction: What is dealt anew in each epoch.
        cores: Of a node, for decoding.
        ranks: Of a node.
    """

    num_nodes: int
    num_samples: int
    stored_bytes: float
    fetched_bytes: float = FETCHED_BYTES
    fraction: float = 0.1
    cores: float = CORES_OF_NODE
    ranks: int = RANKS_OF_NODE


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured.

    Attributes:
        decoded_per_s: Pictures that one core loads in a second, fetched, decoded and stored.
        rows_per_s: Rows that one driver hands over in a second.
        start_seconds: Until the actors of all nodes run; they start side by side.
        first_seconds: What a node takes for its first few samples, before it is at full speed.
        exchange_bytes_per_s: What one node borrows in a second.
        request_seconds: What a parcel takes beside the bytes in it.
        view_seconds: Of a sample that a node serves, for a process to find out which that are.
        left_seconds: Of a sample, for a process to find out which are left when other nodes resume.
        notice_seconds: Until Ray tells that a node is lost.
    """

    decoded_per_s: float
    rows_per_s: float
    start_seconds: float
    first_seconds: float
    exchange_bytes_per_s: float
    request_seconds: float
    view_seconds: float
    left_seconds: float
    notice_seconds: float


def load_seconds(setup: Setup, rates: Rates, *, decodes: bool = True) -> dict[str, float]:
    """Give what each step of a load takes on its own; the longest is the least that they take together.

    Args:
        decodes: Whether pictures are decoded when they are loaded.
    """
    num_bytes = setup.num_samples * setup.fetched_bytes
    steps = {
        "source": num_bytes / min(SOURCE_BYTES_PER_S, SOURCE_BYTES_PER_S_OF_NODE * setup.num_nodes),
        "network": num_bytes / (NETWORK_BYTES_PER_S * setup.num_nodes),
        "rows": setup.num_samples / rates.rows_per_s,
        "starting": rates.start_seconds + rates.first_seconds,
    }
    return steps | ({"decoding": decoding_seconds(setup, rates)} if decodes else {})


def decoding_seconds(setup: Setup, rates: Rates) -> float:
    """Give what all nodes take to fetch, decode and store their parts, where nothing else holds them up."""
    return setup.num_samples / (setup.num_nodes * setup.cores * rates.decoded_per_s)


def borrowed_samples(setup: Setup) -> float:
    """Count what is lent in an epoch: of what is dealt anew, what is dealt to another node than it is at home at."""
    return setup.fraction * setup.num_samples * (1 - 1 / setup.num_nodes)


def borrowed_bytes(setup: Setup) -> float:
    """Count the bytes of that."""
    return borrowed_samples(setup) * setup.stored_bytes


def epoch_seconds(setup: Setup) -> float:
    """Give the time of an epoch whose ranks train as fast as is assumed."""
    return setup.num_samples / (setup.num_nodes * setup.ranks * SAMPLES_PER_S_OF_RANK)


def requests_of_node(setup: Setup) -> float:
    """Count the parcels that a node asks for in an epoch: from every other node at least one."""
    others = setup.num_nodes - 1
    each = borrowed_bytes(setup) / setup.num_nodes / others if others else 0.0
    return others * max(1.0, -(-each // PARCEL_BYTES))


def exchange_seconds(setup: Setup, bytes_per_s: float, request_seconds: float = 0.0) -> float:
    """Give the time of an exchange in which all nodes borrow at once.

    Args:
        bytes_per_s: What one node borrows in a second; all together where they share a machine, if that is asked.
        request_seconds: What a parcel takes beside its bytes.
    """
    of_node = borrowed_bytes(setup) / setup.num_nodes
    return of_node / bytes_per_s + requests_of_node(setup) * request_seconds / UNDER_WAY


def memory_of_node(setup: Setup) -> dict[str, float]:
    """Give the bytes of a node: samples at home, those of two epochs that are borrowed, and what processes keep."""
    share = setup.num_samples / setup.num_nodes
    each = setup.stored_bytes + BOOKKEEPING_BYTES
    borrowed = borrowed_samples(setup) / setup.num_nodes
    processes = setup.ranks * (1 + WORKERS_OF_RANK)
    return {"home": share * each, "borrowed": 2 * borrowed * each, "views": processes * share * KEPT_BYTES_OF_SAMPLE}


def calls_of_epoch(setup: Setup) -> dict[str, float]:
    """Count the calls of an epoch: each rank and each node asks the coordinator, nodes ask one another."""
    return {
        "to_coordinator": setup.num_nodes * setup.ranks * 2.0,  # a reshuffle and a view of each rank
        "from_coordinator": setup.num_nodes * (1.0 + setup.ranks),  # each view is brought, and before that as well
        "to_each_node": requests_of_node(setup) + 1 + setup.ranks,
        "between_nodes": setup.num_nodes * requests_of_node(setup),
    }


def view_seconds(setup: Setup, rates: Rates) -> float:
    """Give what each process of a node takes to find out what is served, when it turns to another epoch."""
    return setup.num_samples / setup.num_nodes * rates.view_seconds


def resume_on_others(setup: Setup, rates: Rates) -> dict[str, float]:
    """Give what each process takes when other nodes resume early in an epoch: seconds, and bytes for the numbers."""
    return {"seconds": setup.num_samples * rates.left_seconds, "bytes": setup.num_samples * 8 * 3.0}


def recovery_seconds(setup: Setup, rates: Rates) -> dict[str, float]:
    """Give what it takes until the samples of a lost node are held by the others."""
    lost = Setup(
        max(1, setup.num_nodes - 1),
        round(setup.num_samples / setup.num_nodes),
        setup.stored_bytes,
        setup.fetched_bytes,
        cores=setup.cores,
    )
    return {"noticing": rates.notice_seconds, "loading": decoding_seconds(lost, rates)}


def division_of(setup: Setup, *, epoch: int = 1, past: Sequence[Past] = ()) -> Division:
    """Make what the coordinator would send to a node: the division itself, not a formula."""
    counts = [setup.num_samples // setup.num_nodes] * setup.num_nodes
    counts[0] += setup.num_samples - sum(counts)
    nodes = tuple(node for node in range(setup.num_nodes) for _ in range(setup.ranks))
    ranks = Ranks(nodes, 256) if nodes else None
    return Division(Homes(ranges_of(counts)), setup.fraction, 0, epoch, ranks, tuple(past))


def past_of(division: Division, num_batches: int) -> Past:
    """Say of a division that so many batches of it were served."""
    assert division.ranks is not None
    return Past(division.homes, division.ranks, division.fraction, division.seed, num_batches, 0)


def state_bytes(setup: Setup) -> int:
    """Count the bytes of a sampler's state as JSON."""
    past = past_of(division_of(setup), 7)
    return len(json.dumps({"seed": 0, "epoch": 1, "consumed": 0, "num_samples": 0, "divisions": [asdict(past)]}))


def division_bytes(setup: Setup) -> int:
    """Count the bytes of a division as it is written on a node's board."""
    return len(json.dumps(division_of(setup).to_json()))


def coordinator_bytes(setup: Setup) -> float:
    """Count the bytes that the coordinator sends in an epoch: divisions. Who lends is told when nodes change."""
    brought = setup.num_nodes * (1 + setup.ranks)
    told = setup.num_nodes * setup.ranks
    return float((brought + told) * division_bytes(setup))
