"""Batches of a cluster's samples: every one of them once in an epoch, and as many batches on every rank."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.scale.division import Division, Past
from in_memory_datasets.scale.view import NodeShare, Terms
from in_memory_datasets.training.resuming import ResumableSampler

_BATCH_CHUNK = 64  # batches made into lists at a time


class ShardSampler(ResumableSampler["list[int]"]):
    """Make the batches of one rank from what its node serves: a `batch_sampler` of a DataLoader.

    Every sample of the cluster comes once in an epoch, and all ranks have as many batches, wherever they run and
    whatever their nodes hold; all batches are full but the last ones. Where samples do not go round even so (fewer than
    one for each rank are left, or batches are of one sample) these few are left out, and `num_left_out` counts them.

    The state can be loaded by another number of ranks or nodes: what is left of the epoch is dealt anew to them.

    `sharded.sampler()` makes one.

    Args:
        dataset: What `local_shard` gave.
        share: What follows the node's view for it.
        terms: Where the ranks are, and how large their batches.
        shuffle: Whether to shuffle what the node serves, anew in every epoch that `set_epoch` names.
        seed: From 0 to 2^64 - 1, the same on every rank.
        rank: This process among them.

    Raises:
        ConfigError: An argument cannot work.

    Cost: 0.5 µs per index.
    Source: see `division`.
    """

    def __init__(
        self,
        dataset: Any,
        share: NodeShare,
        terms: Terms,
        *,
        shuffle: bool,
        seed: int,
        rank: int,
    ) -> None:
        num_replicas = len(terms.node_ids)
        super().__init__(
            dataset, shuffle=shuffle, seed=seed, num_replicas=num_replicas, rank=rank, drop_last=terms.drop_last
        )
        self.batch_size = terms.batch_size
        self._follower = share
        share.terms = terms
        self._is_resumed = False
        self._expected: Division | None = None  # what is dealt next, where the node does not serve it yet
        self._expect(0)
        if self._num_samples < num_replicas:
            raise ConfigError(
                f"{self._num_samples:,} samples for {num_replicas:,} ranks: each needs at least one in every epoch"
            )

    @property
    def _division(self) -> Division:
        return self._follower.shown.division if self._expected is None else self._expected

    def _tell_dataset(self, epoch: int) -> None:
        super()._tell_dataset(epoch)
        self._expected = None
        self._num_samples = self._division.homes.num_samples

    def _expect(self, epoch: int) -> None:
        """Learn who serves what in an epoch; the samples are brought when the first one is drawn."""
        self._expected = self._follower.look(epoch).division
        self._num_samples = self._expected.homes.num_samples
        self._told = -1

    def __len__(self) -> int:
        """Count the batches of this rank, and of every other, in a whole epoch."""
        ranks = self._division.ranks
        assert ranks is not None
        return ranks.num_batches(self._num_samples)

    @property
    def num_left_out(self) -> int:
        """How many samples of the current epoch no rank is dealt."""
        ranks, total = self._division.ranks, self._division.num_samples
        assert ranks is not None
        return total - ranks.consumed(ranks.num_batches(total), total)

    def _share(self, seed: int, epoch: int, start: int) -> _RankShare:
        if self._follower.terms.past and not self._is_resumed:  # that pass was the rest of the epoch, this is a whole
            self._follower.terms = replace(self._follower.terms, past=())
            self._tell_dataset(epoch)
        self._is_resumed = False
        return _RankShare(self._division, self.rank, start, seed if self.shuffle else None)

    def _take_up(self, epoch: int, past: tuple[Past, ...]) -> None:
        """Turn to what is left of an epoch after all that."""
        self._follower.terms = replace(self._follower.terms, past=past)
        self._expect(epoch)

    def _state(self, epoch: int, consumed: int) -> dict[str, Any]:
        """Give the state when each rank has had so many batches of what the division deals."""
        division = self._division
        assert division.ranks is not None
        now = Past(
            division.homes,
            division.ranks,
            division.fraction,
            division.seed,
            consumed,
            self.seed if self.shuffle else None,
        )
        before = self._num_samples - division.num_samples
        return {
            "seed": self.seed,
            "epoch": epoch,
            "consumed": before + division.ranks.consumed(consumed, division.num_samples),
            "num_samples": self._num_samples,
            "divisions": [asdict(past) for past in (*division.past, now)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, whatever the numbers of nodes and ranks were then; the seed is taken over.

        The next pass serves the rest of the epoch, dealt anew where nodes, ranks or batches are others now; the one
        after it is whole. Every rank loads the same state.

        Raises:
            ConfigError: It is no such state, or that of another dataset.

        Cost: where nodes or ranks are others now, about 0.5 µs per sample of the dataset, once.
        """
        if "divisions" not in state:
            raise ConfigError(f"the state is not one of a {type(self).__name__}: it has no 'divisions'")
        *past, last = map(Past.from_json, state["divisions"])
        super().load_state_dict({**state, "consumed": 0})
        self._take_up(self._epoch, tuple(past))
        division, seed = self._division, self.seed if self.shuffle else None
        now = (division.homes, division.ranks, division.fraction, division.seed, seed)
        self._loaded = last.num_batches
        if now != (last.homes, last.ranks, last.fraction, last.seed, last.order_seed):
            self._loaded = 0
            if last.num_batches:
                self._take_up(self._epoch, (*past, last))
        self._is_resumed = True

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, and wait until what the node serves in it is there.

        The epoch of a state that was just loaded keeps its position.
        """
        if epoch != self.epoch:
            self._is_resumed = False
            self._follower.terms = replace(self._follower.terms, past=())
        super().set_epoch(epoch)


@dataclass(frozen=True, slots=True)
class _RankShare:
    division: Division
    rank: int
    start: int
    seed: int | None

    def units(self, start: int) -> list[list[int]]:
        division, ranks = self.division, self.division.ranks
        assert ranks is not None
        total = division.num_samples
        first = self.start + start
        last = min(ranks.num_batches(total), first + _BATCH_CHUNK)
        if first >= last:
            return []
        ends = np.array([ranks.end(self.rank, number, total) for number in range(first, last + 1)])
        places = division.place_of_turn(self.rank, np.arange(ends[0], ends[-1]))
        positions = division.order(ranks.nodes[self.rank], places, seed=self.seed).tolist()
        cuts = (ends - ends[0]).tolist()
        return [positions[begin:end] for begin, end in itertools.pairwise(cuts)]

    def consumed(self, num_units: int) -> int:
        """Count batches, not samples: the state tells both."""
        ranks = self.division.ranks
        assert ranks is not None
        return min(self.start + num_units, ranks.num_batches(self.division.num_samples))
