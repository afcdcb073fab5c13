"""Whatever the numbers: every sample once, over all ranks, however often a run is stopped and by how many resumed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from in_memory_datasets.training.order import order_keys, permute
from in_memory_datasets.training.samplers import DurationBatchSampler, EpochSampler

seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 2**31)
# how many ranks take how many steps, before the next ones go on
courses = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 12)), max_size=5)


class Clips:
    sampling_rate = 10
    pad_to = "longest"

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return len(self.lengths)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), seeds, epochs, st.integers(0, 3))
def test_a_permutation_has_every_item_once(num_items: int, seed: int, epoch: int, purpose: int) -> None:
    items = permute(np.arange(num_items), num_items, order_keys(seed, epoch, purpose))
    assert sorted(items.tolist()) == list(range(num_items))


@settings(deadline=None)
@given(st.integers(1, 2**62), seeds, epochs, st.data())
def test_a_permutation_of_any_size_stays_inside_and_meets_nothing_twice(
    num_items: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, num_items - 1), max_size=50, unique=True))
    items = permute(np.array(positions, np.int64), num_items, order_keys(seed, epoch)).tolist()
    assert all(0 <= item < num_items for item in items)
    assert len(set(items)) == len(positions)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 300), seeds, epochs, st.booleans(), courses, st.integers(1, 6))
def test_every_sample_once_whoever_goes_on(
    num_samples: int, seed: int, epoch: int, shuffle: bool, course: list[tuple[int, int]], last: int
) -> None:
    """The consumed samples are always the first ones of the epoch's order, whatever the ranks were."""
    state = {"seed": seed, "epoch": epoch, "consumed": 0, "num_samples": num_samples}

    def ranks(num_replicas: int) -> list[EpochSampler]:
        made = [
            EpochSampler(range(num_samples), shuffle=shuffle, num_replicas=num_replicas, rank=rank)
            for rank in range(num_replicas)
        ]
        for sampler in made:
            sampler.load_state_dict(state)
        return made

    (alone,) = ranks(1)
    order = list(alone)
    seen: list[int] = []
    for num_replicas, num_steps in course:
        samplers = ranks(num_replicas)
        shares = [list(itertools.islice(sampler, num_steps)) for sampler in samplers]
        if all(len(share) == num_steps for share in shares):
            states = [sampler.state_dict() for sampler in samplers]
            assert states == states[:1] * num_replicas
        seen += [index for step in itertools.zip_longest(*shares) for index in step if index is not None]
        state = samplers[0].state_dict()
        assert state["consumed"] == len(seen)
        assert seen == order[: len(seen)]
    rest = [list(sampler) for sampler in ranks(last)]
    assert max(map(len, rest)) - min(map(len, rest)) <= 1
    assert sorted(seen + [index for share in rest for index in share]) == list(range(num_samples))


@settings(deadline=None)
@given(st.integers(0, 300), seeds, st.integers(0, 300), st.integers(1, 6))
def test_drop_last_drops_less_than_one_per_rank(num_samples: int, seed: int, start: int, num_replicas: int) -> None:
    shares = []
    for rank in range(num_replicas):
        sampler = EpochSampler(range(num_samples), num_replicas=num_replicas, rank=rank, drop_last=True)
        state = {"seed": seed, "epoch": 0, "consumed": min(start, num_samples), "num_samples": num_samples}
        sampler.load_state_dict(state)
        shares.append(list(sampler))
        assert sampler.state_dict()["consumed"] == state["consumed"] + num_replicas * len(shares[0])
    served = [index for share in shares for index in share]
    assert len({len(share) for share in shares}) == 1
    assert len(set(served)) == len(served) > num_samples - state["consumed"] - num_replicas


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=6, max_size=150),
    st.integers(1, 400),
    st.booleans(),
    seeds,
    courses,
    st.tuples(st.integers(1, 6), st.integers(0, 0)),
)
def test_every_clip_once_in_batches_that_keep_the_bound(
    lengths: list[int],
    tenths: int,
    shuffle: bool,
    seed: int,
    course: list[tuple[int, int]],
    last: tuple[int, int],
) -> None:
    """Over all ranks, as many batches on each, under any number of ranks that go on with the epoch."""
    state: dict[str, int] = {"seed": seed, "epoch": 3, "consumed": 0, "num_samples": len(lengths)}
    clips = Clips(lengths)

    def serve(num_replicas: int, num_steps: int | None) -> tuple[list[list[list[int]]], list[dict[str, int]]]:
        shares, states = [], []
        for rank in range(num_replicas):
            options: dict[str, Any] = {"shuffle": shuffle, "num_replicas": num_replicas, "rank": rank}
            sampler = DurationBatchSampler(clips, tenths / 10, **options)
            sampler.load_state_dict(state)
            shares.append(list(itertools.islice(sampler, num_steps)))
            states.append(sampler.state_dict())
        return shares, states

    order = [index for batch in serve(1, None)[0][0] for index in batch]
    seen: list[int] = []
    for number, (num_replicas, num_steps) in enumerate([*course, last]):
        whole, _ = serve(num_replicas, None)
        counts = [len(share) for share in whole]
        left = len(lengths) - len(seen)
        # only where the clips that are left do not suffice for one more batch on each rank
        assert len(set(counts)) == 1 or left < -(-sum(counts) // num_replicas) * num_replicas
        assert max(counts) - min(counts) <= 1
        shares, states = serve(num_replicas, None if number == len(course) else num_steps)
        assert [share[: len(part)] for share, part in zip(whole, shares, strict=True)] == shares
        for batch in itertools.chain.from_iterable(shares):
            assert len(batch) * max(1, *(lengths[index] for index in batch)) <= tenths or len(batch) == 1
        for step in itertools.zip_longest(*shares, fillvalue=[]):
            seen += itertools.chain.from_iterable(step)
        if len({len(share) for share in shares}) == 1:
            assert states == states[:1] * num_replicas
        state = states[0]
        assert state["consumed"] == len(seen)
        assert seen == order[: len(seen)]
    assert sorted(seen) == list(range(len(lengths)))
