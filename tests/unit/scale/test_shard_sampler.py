"""The batches of a cluster's ranks, and what is kept of them in a state, on nodes that are there in numbers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.scale.division import Division, Homes, Ranks, ranges_of
from in_memory_datasets.scale.sampler import ShardSampler
from in_memory_datasets.scale.view import Board, NodeShare, NodeView, Terms
from tests.making import IMAGE_SPEC

NODES = {"a": 0, "b": 1, "c": 2}


class Shard:
    """What a sampler needs of a node's dataset."""

    def __init__(self, counts: tuple[int, ...], node: int, fraction: float) -> None:
        self.counts, self.node, self.fraction = counts, node, fraction
        self.brought: list[int] = []
        self.share = NodeShare(IMAGE_SPEC, Board(), self.ask)
        self.share.show(self.ask(0, self.share.terms, False))

    def ask(self, epoch: int, terms: Terms, brings: bool) -> NodeView:
        if brings:
            self.brought.append(epoch)
        ranks = None
        if terms.node_ids:
            ranks = Ranks(tuple(NODES[each] for each in terms.node_ids), terms.batch_size, terms.drop_last)
        homes = Homes(ranges_of(self.counts))
        return NodeView("a job", self.node, (), Division(homes, self.fraction, 0, epoch, ranks, terms.past))

    def set_epoch(self, epoch: int) -> None:
        self.share.set_epoch(epoch)

    def rows(self, positions: list[int]) -> list[int]:
        return [int(row) for row in self.share.shown.parts().rows[positions]]

    def __len__(self) -> int:
        return len(self.share.shown.parts().rows)


class Job:
    """All ranks of a job, as far as their batches go."""

    def __init__(
        self, counts: tuple[int, ...], node_ids: str, batch_size: int, *, fraction: float = 0.3, drop_last: bool = False
    ) -> None:
        self.shards = [Shard(counts, NODES[each], fraction) for each in node_ids]
        terms = Terms(tuple(node_ids), batch_size, drop_last)
        self.samplers = [
            ShardSampler(shard, shard.share, terms, shuffle=True, seed=3, rank=rank)
            for rank, shard in enumerate(self.shards)
        ]

    def take(self, num_batches: int | None = None) -> list[list[list[int]]]:
        taken = []
        for shard, sampler in zip(self.shards, self.samplers, strict=True):
            batches, drawn = [], iter(sampler)
            while num_batches is None or len(batches) < num_batches:
                batch = next(drawn, None)
                if batch is None:
                    break
                batches.append(shard.rows(batch))
            taken.append(batches)
        return taken

    def close(self) -> None:
        for shard in self.shards:
            shard.share.close()


@pytest.fixture
def jobs() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def rows_of(taken: list[list[list[int]]]) -> list[int]:
    return sorted(row for of_rank in taken for batch in of_rank for row in batch)


def start(jobs: ExitStack, *args: object, **kwargs: object) -> Job:
    job = Job(*args, **kwargs)  # type: ignore[arg-type]
    jobs.callback(job.close)
    return job


def test_every_sample_comes_once_and_all_ranks_have_as_many_batches(jobs: ExitStack) -> None:
    """Whatever the nodes hold, and also where one has no rank and one no samples; other batches in each epoch."""
    job = start(jobs, (40, 21, 0), "cbca", 4)
    orders = []
    for epoch in range(3):
        for sampler in job.samplers:
            sampler.set_epoch(epoch)
        taken = job.take()
        assert {len(of_rank) for of_rank in taken} == {len(sampler) for sampler in job.samplers} == {4}
        assert rows_of(taken) == list(range(61))
        assert job.samplers[0].num_left_out == 0
        orders.append(taken)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(("batch_size", "drop_last", "num_left_out"), [(1, False, 1), (4, True, 13), (61, True, 61)])
def test_what_is_left_out_is_counted(jobs: ExitStack, batch_size: int, drop_last: bool, num_left_out: int) -> None:
    """What does not go round in batches of one, or with drop_last, is left out on every rank alike, and counted."""
    job = start(jobs, (40, 21), "abba", batch_size, drop_last=drop_last)
    taken = job.take()
    assert len({len(of_rank) for of_rank in taken}) == 1
    assert {sampler.num_left_out for sampler in job.samplers} == {num_left_out}
    assert len(set(rows_of(taken))) == len(rows_of(taken)) == 61 - num_left_out


def test_a_state_goes_on_at_the_batch_and_the_next_pass_is_whole(jobs: ExitStack) -> None:
    """A state that went through JSON is loaded by the same ranks: the rest comes, then whole epochs again."""
    before = start(jobs, (30, 30), "ab", 4)
    for sampler in before.samplers:
        sampler.set_epoch(5)
    all_batches = before.take()
    seen = before.take(3)
    states = [sampler.state_dict() for sampler in before.samplers]
    assert states[0] == states[1]
    assert (states[0]["epoch"], states[0]["consumed"], states[0]["num_samples"]) == (5, 24, 60)
    after = start(jobs, (30, 30), "ab", 4)
    for sampler in after.samplers:
        sampler.load_state_dict(json.loads(json.dumps(states[0])))
        sampler.set_epoch(5)
    rest = after.take()
    assert [first + last for first, last in zip(seen, rest, strict=True)] == all_batches
    assert rows_of(after.take()) == list(range(60))


def test_a_state_is_resumed_by_other_nodes_and_ranks_more_than_once(jobs: ExitStack) -> None:
    """Two ranks, then three, then one: over all of them every sample of the epoch comes once."""
    seen: list[int] = []
    state = None
    for counts, node_ids, batch_size in (((30, 30), "ab", 4), ((20, 20, 20), "abc", 5), ((60,), "a", 7)):
        job = start(jobs, counts, node_ids, batch_size)
        for sampler in job.samplers:
            if state is not None:
                sampler.load_state_dict(state)
        seen += rows_of(job.take(2 if node_ids != "a" else None))
        state = job.samplers[0].state_dict()
    assert sorted(seen) == list(range(60))
    assert state is not None
    assert state["consumed"] == 60
    assert rows_of(job.take()) == list(range(60))  # the pass after that is a whole one


@pytest.mark.parametrize(("counts", "nodes"), [((30, 30), "ab"), ((20, 20, 20), "abc")])
def test_nothing_is_brought_before_it_is_known_what_is_served(
    jobs: ExitStack, counts: tuple[int, ...], nodes: str
) -> None:
    """A sampler that is made, and one that a state is loaded into, have only what the next pass serves brought."""
    before = start(jobs, (30, 30), "ab", 4)
    assert [len(sampler) for sampler in before.samplers] == [8, 8]
    assert [shard.brought for shard in before.shards] == [[], []]
    for sampler in before.samplers:
        sampler.set_epoch(3)
    before.take(2)
    after = start(jobs, counts, nodes, 4)
    for sampler in after.samplers:
        sampler.load_state_dict(before.samplers[0].state_dict())
        sampler.set_epoch(4)
    assert {tuple(shard.brought) for shard in after.shards} == {(4,)}
    for sampler in after.samplers:
        sampler.load_state_dict(before.samplers[0].state_dict())
    assert {tuple(shard.brought) for shard in after.shards} == {(4,)}
    assert len(rows_of(after.take())) == 44
    assert {tuple(shard.brought) for shard in after.shards} == {(4, 3)}
    assert len(rows_of(after.take())) == 60


def test_states_of_something_else_are_refused(jobs: ExitStack) -> None:
    """A state of another sampler, or of another dataset, is a ConfigError."""
    job = start(jobs, (30, 30), "ab", 4)
    with pytest.raises(ConfigError, match="no 'divisions'"):
        job.samplers[0].load_state_dict({"seed": 0, "epoch": 0, "consumed": 0, "num_samples": 60})
    other = start(jobs, (30, 31), "ab", 4)
    with pytest.raises(ConfigError, match="61 samples, this dataset has 60"):
        job.samplers[0].load_state_dict(other.samplers[0].state_dict())


def test_more_ranks_than_samples_are_refused(jobs: ExitStack) -> None:
    """Each rank needs a sample in every epoch."""
    with pytest.raises(ConfigError, match="1 samples for 2 ranks"):
        start(jobs, (1, 0), "ab", 1)


def test_positions_are_those_of_the_nodes_own_share(jobs: ExitStack) -> None:
    """A rank is dealt positions of what its own node serves, each once among the ranks of the node."""
    job = start(jobs, (30, 30), "aab", 4)
    for node in ("a", "b"):
        samplers = [s for s, shard in zip(job.samplers, job.shards, strict=True) if shard.node == NODES[node]]
        positions = sorted(position for sampler in samplers for batch in sampler for position in batch)
        assert positions == list(range(len(job.shards[0 if node == "a" else 2])))
    assert np.sum([len(shard) for shard in job.shards[1:]]) == 60
