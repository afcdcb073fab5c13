"""Who serves which samples in an epoch: a formula of a few numbers, the same on every node, without a table of samples.

Every sample has a home, the node that holds it. In an epoch each node serves as many samples as its ranks are to have.
A fraction 1 - q of these it keeps: they are drawn from its own. All the others, of all nodes, make the pool, which is
shuffled and dealt to the nodes: a sample that is dealt to another node than its own is lent to it for that epoch, and
stays where it is. With q = 1 all are in the pool: each sample is served anywhere, with the same chance, as after a full
global shuffle. With q = 0 nothing is moved but what ranks and homes do not agree in.

So any node can tell what it serves, and from whom to borrow it, from the sizes of the homes alone; what another epoch
was like does not matter, and neither does who has been lost since: what a node must hold never changes.

Source: Nguyen, Trahay, Domke, Drozd, Vatai, Liao, Wahib and Gerofi, "Why Globally Re-shuffle? Revisiting Data Shuffling
in Large Scale Deep Learning", IPDPS 2022 (exchanging a fraction of the samples in each epoch, there for good); Yang and
Cong, "Accelerating Data Loading in Deep Neural Network Training", HiPC 2019 (samples are best served where they are
held, and which rank serves a sample of the global batch is of no account to it).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.training.order import order_keys, permute

Ranges = tuple[tuple[int, int], ...]

DEFAULT_FRACTION = 0.1

_KEEP, _POOL = 2, 3  # what a permutation of an epoch is for, apart from those of the samplers


@dataclass(frozen=True, slots=True)
class Homes:
    """Which samples each node holds.

    Attributes:
        ranges: For each node, half-open ranges of sample numbers; all together give every sample once.
    """

    ranges: tuple[Ranges, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Homes:
        """Read what `asdict` gave, after JSON has made lists of tuples."""
        return cls(tuple(tuple((start, stop) for start, stop in ranges) for ranges in values["ranges"]))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many samples each node holds."""
        return tuple(sum(stop - start for start, stop in ranges) for ranges in self.ranges)

    @property
    def num_samples(self) -> int:
        """How many there are in all."""
        return sum(self.counts)

    def samples_at(self, node: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the numbers of the samples at some places of a node's home, counted through its ranges."""
        return _at(self.ranges[node], places)


def _at(ranges: Ranges, places: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(ranges) == 1:  # as nearly always
        return np.asarray(places + ranges[0][0])
    starts = np.array([start for start, _ in ranges], np.int64)
    ends = np.cumsum([stop - start for start, stop in ranges])
    which = np.searchsorted(ends, places, side="right")
    return np.asarray(starts[which] + places - np.concatenate([[0], ends])[which])


def node_of_samples(homes: Homes, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the node that each of some samples is at home at, int64 (B,)."""
    pieces = sorted((start, stop, node) for node, ranges in enumerate(homes.ranges) for start, stop in ranges)
    starts = np.array([start for start, _, _ in pieces], np.int64)
    nodes = np.array([node for _, _, node in pieces], np.int64)
    return np.asarray(nodes[np.searchsorted(starts, samples, side="right") - 1])


@dataclass(frozen=True, slots=True)
class Ranks:
    """How the samples that a node serves are dealt to its ranks, batch by batch; all ranks have as many batches.

    Attributes:
        nodes: The node of each rank, by rank.
        batch_size: Samples of a batch.
        drop_last: Whether to leave out what does not fill a batch on every rank.
    """

    nodes: tuple[int, ...]
    batch_size: int
    drop_last: bool = False

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Ranks:
        """Read what `asdict` gave."""
        return cls(tuple(values["nodes"]), values["batch_size"], values["drop_last"])

    def of_node(self, node: int) -> list[int]:
        """Give the ranks of a node."""
        return [rank for rank, its_node in enumerate(self.nodes) if its_node == node]

    def num_samples(self, rank: int, total: int) -> int:
        """Count what a rank is dealt of so many samples: the same as all others, or for the first ranks one more."""
        each, more = divmod(total, len(self.nodes))
        return each + (rank < more)

    def shares(self, total: int, num_nodes: int) -> tuple[int, ...]:
        """Count what each node serves of so many samples."""
        each, more = divmod(total, len(self.nodes))
        nodes = np.asarray(self.nodes)
        counts = each * np.bincount(nodes, minlength=num_nodes) + np.bincount(nodes[:more], minlength=num_nodes)
        return tuple(counts.tolist())

    def num_batches(self, total: int) -> int:
        """Count the batches of every rank."""
        each, more = divmod(total, len(self.nodes))
        if self.drop_last:
            return each // self.batch_size
        if each == 0 or (more and self.batch_size == 1):  # what does not go round
            return each
        return -(-(each + (more > 0)) // self.batch_size)

    def end(self, rank: int, num_batches: int, total: int) -> int:
        """Count the samples in the first batches of a rank.

        All batches are full but the last. Where others have one more, since they have one more sample, the last two
        share a batch between them.
        """
        whole, size = self.num_batches(total), self.batch_size
        if num_batches >= whole:
            return whole * size if self.drop_last else self._num_dealt(rank, total)
        if num_batches == whole - 1 and num_batches * size >= self._num_dealt(rank, total):
            return num_batches * size - size // 2
        return num_batches * size

    def _num_dealt(self, rank: int, total: int) -> int:
        return min(self.num_samples(rank, total), self.num_batches(total) * self.batch_size)

    def consumed(self, num_batches: int, total: int) -> int:
        """Count the samples that all ranks have had after so many batches each."""
        first, last = 0, len(self.nodes) - 1
        more = total % len(self.nodes)
        return more * self.end(first, num_batches, total) + (len(self.nodes) - more) * self.end(
            last, num_batches, total
        )


@dataclass(frozen=True, slots=True)
class Past:
    """What was served of an epoch before the nodes or ranks changed.

    Attributes:
        homes: Where the samples were at home then.
        ranks: Who was to serve them.
        fraction: What of them was dealt anew.
        seed: What that was drawn from.
        num_batches: How many batches each rank has had.
        order_seed: What the order of each node was drawn from; None where it was not shuffled.
    """

    homes: Homes
    ranks: Ranks
    fraction: float
    seed: int
    num_batches: int
    order_seed: int | None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Past:
        """Read what `asdict` gave."""
        homes, ranks = Homes.from_json(values["homes"]), Ranks.from_json(values["ranks"])
        return cls(**{**values, "homes": homes, "ranks": ranks})


@dataclass(frozen=True, slots=True)
class Division:
    """What each node serves in an epoch, or in the rest of one.

    Attributes:
        homes: Where each sample is at home.
        fraction: What of them is dealt anew, 0 to 1.
        seed: What that is drawn from.
        epoch: From 0 on.
        ranks: Who serves them; None for the nodes alone, as many as each holds.
        past: What was served of this epoch before, under other divisions, in order.
    """

    homes: Homes
    fraction: float = 0.0
    seed: int = 0
    epoch: int = 0
    ranks: Ranks | None = None
    past: tuple[Past, ...] = ()

    @property
    def key(self) -> str:
        """Name this division: 32 hexadecimal figures. How ranks make batches of what their node serves is not in it."""
        values = asdict(self)
        values["ranks"] = None if self.ranks is None else self.ranks.nodes
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Division:
        """Read it back."""
        past = tuple(map(Past.from_json, values["past"]))
        ranks = None if values["ranks"] is None else Ranks.from_json(values["ranks"])
        return cls(Homes.from_json(values["homes"]), values["fraction"], values["seed"], values["epoch"], ranks, past)

    @property
    def num_samples(self) -> int:
        """How many samples are served."""
        return sum(self.stock.counts)

    @property
    def shares(self) -> tuple[int, ...]:
        """How many samples each node serves."""
        counts = self.stock.counts
        return counts if self.ranks is None else self.ranks.shares(sum(counts), len(counts))

    @property
    def stock(self) -> Stock:
        """What is there to be served."""
        return _stock_of(self)

    def served_by(self, node: int) -> NDArray[np.int64]:
        """Give the numbers of the samples that a node serves, int64 (share,): those it keeps, then those of the pool.

        Cost: about 0.3 µs for each.
        """
        stock, shares = self.stock, self.shares
        counts = stock.counts
        kept = [int((1 - self.fraction) * min(each)) for each in zip(counts, shares, strict=True)]
        # The pool: what the nodes do not keep, one node after the other; and the places that are to be filled from it.
        starts = np.concatenate([[0], np.cumsum(np.subtract(counts, kept))])
        first = int(np.sum(np.subtract(shares, kept)[:node]))
        places = np.arange(first, first + shares[node] - kept[node])
        drawn = permute(places, int(starts[-1]), self._keys(_POOL, 0)) if len(places) else places
        homes = np.searchsorted(starts, drawn, side="right") - 1
        samples = np.empty(shares[node], np.int64)
        unmoved = self.fraction == 0 and counts[node] == shares[node]  # all are kept, in whatever order
        own = np.arange(kept[node])
        samples[: kept[node]] = stock.samples_at(node, own) if unmoved else self._from_home(node, own)
        pooled = samples[kept[node] :]
        for home in np.unique(homes).tolist():
            here = homes == home
            pooled[here] = self._from_home(home, kept[home] + drawn[here] - starts[home])
        return samples

    def _from_home(self, node: int, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the samples of a node that have some turns in the order in which it keeps, and then gives, them."""
        if not len(turns):
            return turns
        stock = self.stock
        return stock.samples_at(node, permute(turns, stock.counts[node], self._keys(_KEEP, node)))

    def _keys(self, purpose: int, node: int) -> NDArray[np.uint64]:
        return order_keys(self.seed, self.epoch, purpose + 4 * (node + 2**24 * len(self.past)))

    def order(self, node: int, places: NDArray[np.int64], *, seed: int | None) -> NDArray[np.int64]:
        """Say which of the samples a node serves stand at some places of its order.

        Args:
            places: int64, from 0 to its share.
            seed: What the order is drawn from; None leaves them as `served_by` gives them.
        """
        if seed is None or not len(places):
            return places
        return permute(places, self.shares[node], order_keys(seed, self.epoch, 4 * (node + 2**24 * len(self.past))))

    def place_of_turn(self, rank: int, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give where in its node's order the samples stand that a rank is dealt: every R-th of a node of R ranks."""
        assert self.ranks is not None
        peers = self.ranks.of_node(self.ranks.nodes[rank])
        return np.asarray(peers.index(rank) + turns * len(peers))


@dataclass(frozen=True, slots=True, eq=False)
class Stock:
    """The samples that are still to be served, by the node that they are at home at.

    Attributes:
        homes: Where they are at home.
        left: For each node, what is left of its samples, int64, ascending; None where all are.
    """

    homes: Homes
    left: tuple[NDArray[np.int64], ...] | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """How many there are at each node."""
        return self.homes.counts if self.left is None else tuple(map(len, self.left))

    def samples_at(self, node: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the numbers of the samples at some places of what a node has."""
        if self.left is None:
            return self.homes.samples_at(node, places)
        return np.asarray(self.left[node][places])


@functools.lru_cache(maxsize=4)
def _stock_of(division: Division) -> Stock:
    if not division.past:
        return Stock(division.homes)
    *earlier, last = division.past
    before = Division(last.homes, last.fraction, last.seed, division.epoch, ranks=last.ranks, past=tuple(earlier))
    left = np.sort(np.concatenate([left_of(before, node, last) for node in range(len(last.homes.ranges))]))
    parts = []
    for ranges in division.homes.ranges:
        each = [left[np.searchsorted(left, start) : np.searchsorted(left, stop)] for start, stop in ranges]
        parts.append(np.concatenate(each) if each else left[:0])
    if sum(map(len, parts)) != len(left):
        raise ConfigError(
            f"the state is that of {last.homes.num_samples:,} samples, of which {len(left) - sum(map(len, parts)):,} "
            "are no more there: load the same dataset (rows, max_samples, on_error), or begin a new epoch"
        )
    return Stock(division.homes, tuple(parts))


def left_of(division: Division, node: int, past: Past) -> NDArray[np.int64]:
    """Give the samples that a node was to serve and has not, when each rank has had so many batches; in no order.

    Cost: as of `served_by`, and O(share) memory.
    """
    total, peers = division.num_samples, past.ranks.of_node(node)
    is_left = np.ones(division.shares[node], np.bool_)
    for place, rank in enumerate(peers):
        is_left[place :: len(peers)][: past.ranks.end(rank, past.num_batches, total)] = False
    places = division.order(node, np.flatnonzero(is_left), seed=past.order_seed)
    return division.served_by(node)[places]


def divide(num_samples: int, weights: Sequence[float], limits: Sequence[int] | None = None) -> tuple[int, ...]:
    """Divide samples over nodes in proportion to their weights, to none more than it has room for.

    Args:
        num_samples: How many there are.
        weights: Of each node, such as its cores.
        limits: How many each has room for; None for no limits.

    Returns:
        How many each gets; fewer than there are in all where they do not fit.

    Example:
        >>> divide(100, [2, 1, 1], [30, 100, 100])
        (30, 35, 35)
    """
    counts = [0] * len(weights)
    room = [num_samples] * len(weights) if limits is None else [min(limit, num_samples) for limit in limits]
    left = min(num_samples, sum(room))
    while left:
        open_nodes = [node for node in range(len(weights)) if counts[node] < room[node]]
        total = sum(weights[node] for node in open_nodes)
        # By the largest remainders, so that all are given out; ties go to the first.
        exact = [left * (weights[node] / total if total else 1 / len(open_nodes)) for node in open_nodes]
        given = [int(share) for share in exact]
        order = sorted(range(len(exact)), key=lambda i: given[i] - exact[i])
        for i in order[: left - sum(given)]:
            given[i] += 1
        for node, share in zip(open_nodes, given, strict=True):
            taken = min(share, room[node] - counts[node])
            counts[node] += taken
            left -= taken
    return tuple(counts)


def ranges_of(counts: Sequence[int]) -> tuple[Ranges, ...]:
    """Lay out samples over nodes: one range for each, one after the other; none for who gets none."""
    ends = list(itertools.accumulate(counts, initial=0))
    return tuple(((start, stop),) if stop > start else () for start, stop in itertools.pairwise(ends))
