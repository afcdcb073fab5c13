"""Samplers count what was drawn, say where they are, and refuse what cannot work."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from in_memory_datasets import ConfigError, DurationBatchSampler, EpochSampler, InMemoryAudioTextDataset
from in_memory_datasets.training import samplers

STATE = {"seed": 0, "epoch": 0, "consumed": 0, "num_samples": 10}


class Sized:
    """Something with a length, and nothing in it."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class Clips(Sized):
    def __init__(self, lengths: Any, sampling_rate: int = 100, pad_to: str = "longest") -> None:
        super().__init__(len(lengths))
        self.lengths, self.sampling_rate, self.pad_to = np.array(lengths), sampling_rate, pad_to


def test_without_shuffling_the_order_is_that_of_the_dataset() -> None:
    assert list(EpochSampler(range(5), shuffle=False)) == [0, 1, 2, 3, 4]
    assert [list(EpochSampler(range(5), shuffle=False, num_replicas=2, rank=rank)) for rank in (0, 1)] == [
        [0, 2, 4],
        [1, 3],
    ]


def test_indices_are_plain_ints() -> None:
    """A NumPy number would make `dataset[index]` of a list, or a JSON of them, fail."""
    assert {type(index) for index in EpochSampler(range(300))} == {int}
    (batch, *_) = DurationBatchSampler(Clips([100] * 4), 2)
    assert type(batch) is list
    assert {type(index) for index in batch} == {int}


@pytest.mark.parametrize("num_samples", [0, 1, 2, 10, 11, 12])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_length_is_what_is_served(num_samples: int, drop_last: bool) -> None:
    counts = []
    for rank in range(3):
        sampler = EpochSampler(range(num_samples), num_replicas=3, rank=rank, drop_last=drop_last)
        counts.append(len(sampler))
        assert len(list(sampler)) == len(sampler)
    assert sum(counts) == (num_samples // 3 * 3 if drop_last else num_samples)
    assert max(counts) - min(counts) <= (0 if drop_last else 1)


def test_each_epoch_has_its_order_and_repeats_it() -> None:
    """As with `DistributedSampler`, it takes `set_epoch` to get another one."""
    sampler = EpochSampler(range(100))
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert sorted(second) == sorted(first) == list(range(100))
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(EpochSampler(range(100), seed=1)) != first


def test_the_dataset_is_told_the_epoch() -> None:
    """By `set_epoch` and by a state, and not before: captions go by their own count where nobody speaks of epochs."""
    dataset = Sized(10)
    sampler = EpochSampler(dataset)
    list(sampler)
    assert dataset.epochs == []
    sampler.set_epoch(3)
    list(sampler)
    assert dataset.epochs == [3]
    sampler.load_state_dict({**STATE, "epoch": 7})
    list(sampler)
    assert dataset.epochs == [3, 7]


def test_plain_iteration_counts_what_was_drawn() -> None:
    sampler = EpochSampler(range(20_000), num_replicas=2, rank=1)
    assert sampler.state_dict()["consumed"] == 0
    drawn = iter(sampler)
    for expected in (1, 2, 3):
        next(drawn)
        assert sampler.state_dict()["consumed"] == 2 * expected
    assert len(list(drawn)) == 9997
    assert sampler.state_dict() == {"seed": 0, "epoch": 0, "consumed": 20_000, "num_samples": 20_000}


def test_a_pass_begins_anew_unless_a_state_was_loaded() -> None:
    sampler = EpochSampler(range(10))
    whole = list(sampler)
    assert list(itertools.islice(sampler, 4)) == whole[:4]
    assert list(itertools.islice(sampler, 4)) == whole[:4]
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    assert sampler.state_dict() == state
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole


def test_an_iterator_that_is_never_drawn_from_uses_nothing_up() -> None:
    """A loader with workers asks for two iterators, and draws from the second."""
    sampler = EpochSampler(range(10))
    whole = list(sampler)
    sampler.load_state_dict({**STATE, "consumed": 4})
    iter(sampler)
    assert sampler.state_dict()["consumed"] == 4
    assert list(sampler) == whole[4:]


def test_set_epoch_keeps_the_position_of_the_epoch_that_was_loaded() -> None:
    whole = {epoch: EpochSampler(range(10)) for epoch in (2, 3)}
    for epoch, sampler in whole.items():
        sampler.set_epoch(epoch)
    state = {**STATE, "epoch": 2, "consumed": 4}
    sampler = EpochSampler(range(10))
    sampler.load_state_dict(state)
    sampler.set_epoch(2)
    assert list(sampler) == list(whole[2])[4:]
    sampler.set_epoch(3)
    assert sampler.state_dict() == {**state, "epoch": 3, "consumed": 0}
    sampler.load_state_dict(state)
    sampler.set_epoch(3)
    assert list(sampler) == list(whole[3])


def test_set_epoch_in_the_middle_of_its_epoch_changes_nothing() -> None:
    """Frameworks call it once more than needed."""
    sampler = EpochSampler(range(10))
    sampler.set_epoch(1)
    drawn = iter(sampler)
    first = [next(drawn) for _ in range(3)]
    sampler.set_epoch(1)
    assert sampler.state_dict()["consumed"] == 3
    assert sorted(first + list(drawn)) == list(range(10))


def test_the_rest_of_an_epoch_that_was_over_is_empty() -> None:
    """So the loop from `state["epoch"]` on repeats nothing, wherever the state was taken."""
    sampler = EpochSampler(range(10))
    served = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        served.append(list(sampler))
        if epoch == 1:
            state = sampler.state_dict()
    resumed = EpochSampler(range(10))
    resumed.load_state_dict(state)
    found = []
    for epoch in range(state["epoch"], 3):
        resumed.set_epoch(epoch)
        found.append(list(resumed))
    assert found == [[], served[2]]


def test_the_seed_comes_with_the_state() -> None:
    state = {**STATE, "seed": 5}
    sampler = EpochSampler(range(10), seed=1)
    sampler.load_state_dict(state)
    assert sampler.state_dict() == state
    assert list(sampler) == list(EpochSampler(range(10), seed=5))


def test_drop_last_leaves_out_what_does_not_divide_of_the_rest() -> None:
    rank_of_four = EpochSampler(range(10), num_replicas=4, rank=3, drop_last=True)
    assert len(list(rank_of_four)) == 2
    assert rank_of_four.state_dict()["consumed"] == 8
    rests = []
    for rank in range(4):
        sampler = EpochSampler(range(10), num_replicas=4, rank=rank, drop_last=True)
        sampler.load_state_dict({**STATE, "consumed": 3})
        rests.append(list(sampler))
    assert [len(rest) for rest in rests] == [1, 1, 1, 1]
    assert rests == [[index] for index in list(EpochSampler(range(10)))[3:7]]


def test_a_hundred_million_samples_cost_no_more_than_ten() -> None:
    """Neither building, nor resuming in the middle, nor drawing makes anything of the size of the dataset."""
    num_samples = 100_000_000
    tracemalloc.start()
    try:
        sampler = EpochSampler(Sized(num_samples), num_replicas=8, rank=5)
        sampler.load_state_dict({**STATE, "consumed": num_samples // 2, "num_samples": num_samples})
        indices = list(itertools.islice(sampler, 10))
        assert len(sampler) == num_samples // 8
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert sampler.state_dict()["consumed"] == num_samples // 2 + 80
    assert len(set(indices)) == 10
    assert max(indices) - min(indices) > num_samples // 4


@pytest.mark.parametrize("seed", [0, 5])
def test_a_sampler_travels_to_another_process(seed: int) -> None:
    """With the epoch, and with a position that was loaded; a pass that runs here stays here."""
    sampler = EpochSampler(Sized(10), seed=seed, num_replicas=2, rank=1)
    sampler.set_epoch(4)
    drawn = iter(sampler)
    next(drawn)
    for twin in (pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        assert twin.state_dict() == {"seed": seed, "epoch": 4, "consumed": 0, "num_samples": 10}
        assert list(twin) == list(sampler)
    sampler.load_state_dict({**STATE, "consumed": 6})
    assert pickle.loads(pickle.dumps(sampler)).state_dict() == {**STATE, "consumed": 6}
    clips = DurationBatchSampler(Clips(range(1, 50)), 3, seed=seed)
    assert list(pickle.loads(pickle.dumps(clips))) == list(clips)


def test_samplers_say_where_they_are() -> None:
    sampler = EpochSampler(range(2000), num_replicas=2, rank=1)
    next(iter(sampler))
    assert repr(sampler) == ("EpochSampler(2,000 samples shuffled by seed 0, epoch 0, 2 consumed, rank 1 of 2)")
    assert repr(DurationBatchSampler(Clips([100] * 10), 2.5, shuffle=False)) == (
        "DurationBatchSampler(batches of 2.5 s, 10 samples in order, epoch 0, 0 consumed, rank 0 of 1)"
    )


def test_rank_and_number_come_from_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is initialised; what is given goes before it."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    sampler = EpochSampler(range(8))
    assert (sampler.rank, sampler.num_replicas) == (3, 4)
    sampler = EpochSampler(range(8), num_replicas=2, rank=0)
    assert (sampler.rank, sampler.num_replicas) == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": 10}, "needs a dataset with a length, not int: for positions alone give range"),
        ({"seed": -1}, "seed=-1: expected a whole number from 0"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": True}, "seed=True"),
        ({"num_replicas": 0, "rank": 0}, "num_replicas=0: expected a whole number from 1"),
        ({"num_replicas": 2, "rank": 2}, "rank=2: expected a whole number from 0 to 1"),
        ({"num_replicas": 2, "rank": -1}, "rank=-1"),
        ({"num_replicas": 2}, "num_replicas=2 without a rank"),
        ({"rank": 1}, "rank=1: expected a whole number from 0 to 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    dataset = arguments.pop("dataset", range(10))
    with pytest.raises(ConfigError, match=message):
        EpochSampler(dataset, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 11}, "the state is that of 11 samples, this dataset has 10"),
        ({"consumed": 11}, "consumed=11: expected a whole number from 0 to 10"),
        ({"consumed": -1}, "consumed=-1"),
        ({"epoch": -1}, "epoch=-1"),
        ({"epoch": "3"}, "epoch='3'"),
        ({"seed": None}, "seed=None"),
    ],
)
def test_states_of_something_else_are_refused(change: dict[str, Any], message: str) -> None:
    """And the sampler stays as it was."""
    sampler = EpochSampler(range(10))
    sampler.load_state_dict({**STATE, "consumed": 4})
    with pytest.raises(ConfigError, match=message):
        sampler.load_state_dict({**STATE, **change})
    assert sampler.state_dict() == {**STATE, "consumed": 4}


def test_a_state_that_lacks_something_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the state has no epoch, seed: load what EpochSampler\.state_dict\(\) gave"):
        EpochSampler(range(10)).load_state_dict({"consumed": 1, "num_samples": 10})


@pytest.mark.parametrize("epoch", [-1, 1.0, "1", None, True])
def test_epochs_are_whole_numbers(epoch: Any) -> None:
    sampler = EpochSampler(range(10))
    with pytest.raises(ConfigError, match="epoch="):
        sampler.set_epoch(epoch)
    assert sampler.epoch == 0


def test_numbers_of_numpy_and_torch_will_do() -> None:
    """A state may have been through an array or a tensor."""
    assert DurationBatchSampler(Clips([100] * 4), np.float32(2)).max_batch_seconds == 2.0  # type: ignore[arg-type]
    sampler = EpochSampler(range(10), seed=np.int64(3), num_replicas=np.int32(2), rank=torch.tensor(1))  # type: ignore[arg-type]
    sampler.load_state_dict({key: np.int64(value) for key, value in STATE.items()})  # type: ignore[misc]
    assert {type(value) for value in sampler.state_dict().values()} == {int}


SKEWED = np.minimum(np.random.default_rng(0).lognormal(np.log(800), 0.7, 5000), 3000).astype(np.int64)


def test_batches_of_seconds_waste_a_fraction_of_what_random_ones_do() -> None:
    """Random batches of these clips would be padding by more than a half."""
    sampler = DurationBatchSampler(Clips(SKEWED), 240)
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(5000))
    padded = [len(batch) * SKEWED[batch].max() for batch in batches]
    assert max(padded) <= 24_000
    found = sampler.statistics()
    assert found.num_batches == len(batches) == len(sampler)
    assert found.mean_batch_seconds == pytest.approx(np.mean(padded) / 100)
    assert found.padding_waste == sampler.padding_waste == pytest.approx(1 - SKEWED.sum() / sum(padded))
    assert found.num_oversized == 0
    assert found.padding_waste < 0.03


def test_clips_too_long_for_a_batch_are_counted() -> None:
    sampler = DurationBatchSampler(Clips([100, 500, 100, 501, 100, 600]), 5)
    assert sorted(map(sorted, sampler)) == [[0, 2, 4], [1], [3], [5]]
    assert sampler.statistics().num_oversized == 2


def test_in_order_batches_are_packed_as_the_clips_lie() -> None:
    sampler = DurationBatchSampler(Clips([100, 300, 100, 100, 100]), 6, shuffle=False)
    assert list(sampler) == [[0, 1], [2, 3, 4]]
    sampler.set_epoch(5)
    assert list(sampler) == [[0, 1], [2, 3, 4]]


def test_every_rank_gets_as_many_batches() -> None:
    """The last batch is halved for the rank that would go without, or with `drop_last` nobody gets it."""
    clips = Clips([100] * 12)
    whole = list(DurationBatchSampler(clips, 4))
    assert [len(batch) for batch in whole] == [4, 4, 4]
    ranks = [DurationBatchSampler(clips, 4, num_replicas=2, rank=rank) for rank in (0, 1)]
    assert [list(sampler) for sampler in ranks] == [[whole[0], whole[2][:2]], [whole[1], whole[2][2:]]]
    assert [len(sampler) for sampler in ranks] == [2, 2]
    assert ranks[0].statistics().num_batches == 4
    ranks = [DurationBatchSampler(clips, 4, num_replicas=2, rank=rank, drop_last=True) for rank in (0, 1)]
    assert [list(sampler) for sampler in ranks] == [[whole[0]], [whole[1]]]
    assert ranks[0].state_dict()["consumed"] == 8
    nothing = DurationBatchSampler(clips, 12, num_replicas=2, rank=0, drop_last=True)
    assert list(nothing) == []
    assert nothing.statistics().num_batches == len(nothing) == 0


def test_a_resumed_run_makes_the_very_batches_of_one_that_went_on() -> None:
    """With as many ranks: also in the last steps, where batches are halved."""
    clips = Clips(SKEWED[:400])

    def ranks() -> list[DurationBatchSampler]:
        return [DurationBatchSampler(clips, 60, num_replicas=7, rank=rank) for rank in range(7)]

    whole = [list(sampler) for sampler in ranks()]
    num_steps = len(whole[0])
    for step in (1, num_steps // 2, num_steps - 2, num_steps - 1, num_steps):
        before = ranks()
        for sampler in before:
            list(itertools.islice(sampler, step))
        states = [sampler.state_dict() for sampler in before]
        assert states == states[:1] * 7
        after = ranks()
        for sampler in after:
            sampler.load_state_dict(states[0])
        assert [list(sampler) for sampler in after] == [batches[step:] for batches in whole]


def test_the_length_follows_the_epoch() -> None:
    sampler = DurationBatchSampler(Clips(SKEWED), 20)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler)) == sampler.statistics().num_batches


def test_an_epoch_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader asks for the length, then for the batches; a million clips take a second to plan."""
    planned = []
    sampler = DurationBatchSampler(Clips(SKEWED), 20)
    plan = samplers.plan_batches
    monkeypatch.setattr(samplers, "plan_batches", lambda *args, **kwargs: planned.append(1) or plan(*args, **kwargs))
    for epoch in range(2):
        sampler.set_epoch(epoch)
        len(sampler), sampler.padding_waste, list(sampler)
    assert len(planned) == 2


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "10", None, True])
def test_the_seconds_of_a_batch_are_a_positive_number(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="max_batch_seconds="):
        DurationBatchSampler(Clips([1]), seconds)


def test_datasets_without_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="range has no lengths, sampling_rate, pad_to: give it an InMemoryAudio"):
        DurationBatchSampler(range(10), 10)
    with pytest.raises(ConfigError, match="pad_to='max': every clip costs the same there"):
        DurationBatchSampler(Clips([1], pad_to="max"), 10)
    with pytest.raises(ConfigError, match="3 clips for 4 ranks"):
        DurationBatchSampler(Clips([1, 2, 3]), 10, num_replicas=4, rank=0)
    uneven = Clips([1, 2, 3])
    uneven.num_samples = 4
    with pytest.raises(ConfigError, match=r"lengths of shape \(3,\) for 4 clips"):
        DurationBatchSampler(uneven, 10)


def test_clips_in_memory_come_in_batches_of_seconds() -> None:
    """The frames of a batch, padding included, stay within the bound."""
    rows = [{"audio": {"array": np.ones(100 * (1 + i % 7)), "sampling_rate": 100}, "caption": ""} for i in range(40)]
    with InMemoryAudioTextDataset(rows, target_sr=100, progress=False) as dataset:
        sampler = DurationBatchSampler(dataset, 20)
        batches = list(sampler)
        sizes = [dataset.__getitems__(batch).audio.shape for batch in batches]
        dataset.set_epoch(1)
    assert max(count * frames for count, frames in sizes) <= 2000
    assert sum(count * frames for count, frames in sizes) / 100 / len(batches) == pytest.approx(
        sampler.statistics().mean_batch_seconds
    )
