"""What a loader has handed out is what a state counts, and whoever loads it is given exactly the rest."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from in_memory_datasets import (
    ConfigError,
    DurationBatchSampler,
    EpochSampler,
    InMemoryAudioTextDataset,
    collate_in_memory_audio,
)

# torchdata 0.11 still calls what torch 2.13 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

NUM_SAMPLES = 50


class Clips(Dataset[int]):
    """Sample i is the number i; clips of 1 to 20 seconds."""

    sampling_rate = 10
    pad_to = "longest"

    def __init__(self, num_samples: int = NUM_SAMPLES) -> None:
        self.lengths = np.random.default_rng(0).integers(10, 200, num_samples)
        self.epoch = -1

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> int:
        return index

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


Sampler = EpochSampler | DurationBatchSampler


def make_loader(kind: str, dataset: Clips, sampler: Sampler, stateful: bool = False, **options: Any) -> Any:
    """Give the sampler to a loader in one of the ways there are: batches of four, or what the sampler makes."""
    factory: Any = StatefulDataLoader if stateful else DataLoader
    ways: dict[str, dict[str, Any]] = {
        "batch_size": {"batch_size": 4, "sampler": sampler},
        "batch_sampler": {"batch_sampler": BatchSampler(sampler, 4, False)},  # type: ignore[arg-type]
        "singly": {"batch_size": None, "sampler": sampler},
        "drop_last": {"batch_size": 4, "sampler": sampler, "drop_last": True},
        "duration": {"batch_sampler": sampler},
    }
    return factory(dataset, **ways[kind], **options)


def make_sampler(kind: str, dataset: Clips, **options: Any) -> Sampler:
    return DurationBatchSampler(dataset, 60, **options) if kind == "duration" else EpochSampler(dataset, **options)


def numbers(batch: Any) -> list[int]:
    found: list[int] = torch.as_tensor(batch).reshape(-1).tolist()
    return found


def rest_of(kind: str, state: dict[str, int]) -> list[int]:
    """List what a fresh sampler serves once it has loaded a state."""
    sampler = make_sampler(kind, Clips(), seed=99)
    sampler.load_state_dict(json.loads(json.dumps(state)))
    return [number for unit in sampler for number in numbers(unit)]


KINDS = ["batch_size", "batch_sampler", "singly", "drop_last", "duration"]
WORKERS: list[dict[str, Any]] = [
    {"num_workers": 0},
    {"num_workers": 1},
    {"num_workers": 2, "prefetch_factor": 5},
    {"num_workers": 2, "persistent_workers": True},
    {"num_workers": 2, "pin_memory": True},
]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but:UserWarning")
@pytest.mark.parametrize("options", WORKERS, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()))
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_counts_what_was_handed_out(kind: str, options: dict[str, Any]) -> None:
    """After every batch the rest is just what has not been handed out, however far the workers are ahead."""
    dataset = Clips()
    sampler = make_sampler(kind, dataset, seed=5)
    loader = make_loader(kind, dataset, sampler, **options)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected = rest_of(kind, {"seed": 5, "epoch": epoch, "consumed": 0, "num_samples": NUM_SAMPLES})
        seen: list[int] = []
        assert sampler.state_dict()["consumed"] == 0
        for step, batch in enumerate(loader):
            seen += numbers(batch)
            state = sampler.state_dict()
            assert state == {"seed": 5, "epoch": epoch, "consumed": len(seen), "num_samples": NUM_SAMPLES}
            assert seen == expected[: len(seen)]
            if step % 4 == 0:
                assert rest_of(kind, state) == expected[len(seen) :]
        assert sampler.state_dict()["consumed"] == len(seen) == (48 if kind == "drop_last" else 50)
    if loader.persistent_workers:
        loader._iterator = None


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_batches", [3, 11])
def test_a_state_can_be_taken_after_the_loop_was_left(num_workers: int, num_batches: int) -> None:
    """The loader's iterator is gone by then, and its workers with it; at the tail all has long been drawn."""
    dataset = Clips()
    sampler = EpochSampler(dataset)
    for number, _ in enumerate(DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=num_workers), start=1):
        if number == num_batches:
            break
    assert multiprocessing.active_children() == []
    assert sampler.state_dict()["consumed"] == 4 * num_batches
    assert sampler._tally is not None
    assert sampler._tally._loader is not None
    assert sampler._tally._loader._books is None  # nor are its queues and prefetched batches kept


@pytest.mark.parametrize("num_workers", [0, 2])
def test_of_two_passes_the_one_begun_last_counts(num_workers: int) -> None:
    dataset = Clips()
    sampler = EpochSampler(dataset)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=num_workers)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    next(first)
    next(first)
    assert sampler.state_dict()["consumed"] == 4
    next(second)
    assert sampler.state_dict()["consumed"] == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_in_the_stock_loader_serves_the_rest_and_then_whole_epochs(num_workers: int) -> None:
    """A state of another process, and the usual loop from its epoch on: as if nothing had happened."""

    def serve(sampler: EpochSampler, first: int) -> Iterator[tuple[int, list[int], dict[str, int]]]:
        loader = DataLoader(sampler.dataset, batch_size=4, sampler=sampler, num_workers=num_workers)  # type: ignore[arg-type]
        for epoch in range(first, 3):
            sampler.set_epoch(epoch)
            for batch in loader:
                yield epoch, numbers(batch), sampler.state_dict()

    whole = list(serve(EpochSampler(Clips()), 0))
    for stop in (0, 5, 12, 13, 20, 25):  # in the middle, the last but one, and the last of an epoch
        state = whole[stop][2]
        sampler = EpochSampler(Clips())
        sampler.load_state_dict(state)
        assert list(serve(sampler, state["epoch"])) == whole[stop + 1 :]


def test_a_batch_sampler_of_another_kind_is_refused_only_where_it_matters() -> None:
    """Nobody can tell how many samples of prefetched batches of unknown size were handed out; drawn singly, one can."""

    class Pairs:
        def __init__(self, sampler: EpochSampler) -> None:
            self.sampler = sampler

        def __iter__(self) -> Iterator[list[int]]:
            drawn = iter(self.sampler)
            return ([index, next(drawn)] for index in drawn)

    class Growing(BatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            drawn = iter(self.sampler)
            return (list(itertools.islice(drawn, size)) for size in range(1, 5))

    sampler = EpochSampler(Clips())
    helped = iter(DataLoader(Clips(), batch_sampler=Growing(sampler, 4, False), num_workers=1))
    next(helped)
    with pytest.raises(ConfigError, match="cannot be known"):
        sampler.state_dict()
    alone = iter(DataLoader(Clips(), batch_sampler=Pairs(sampler)))
    next(alone)
    assert sampler.state_dict()["consumed"] == 2
    helped = iter(DataLoader(Clips(), batch_sampler=Pairs(sampler), num_workers=1))
    next(helped)
    with pytest.raises(ConfigError, match="cannot be known"):
        sampler.state_dict()
    assert "unknown consumed" in repr(sampler)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_sampler_of_another_kind_may_hand_the_state_on(num_workers: int) -> None:
    """`StatefulDataLoader` asks it as it draws: what was drawn by then is what it wants to know."""

    class Pairs:
        def __init__(self) -> None:
            self.sampler = EpochSampler(Clips())
            self.state_dict, self.load_state_dict = self.sampler.state_dict, self.sampler.load_state_dict

        def __iter__(self) -> Iterator[list[int]]:
            drawn = iter(self.sampler)
            return ([index, next(drawn)] for index in drawn)

    loader = StatefulDataLoader(Clips(), batch_sampler=Pairs(), num_workers=num_workers)
    batches = [numbers(batch) for batch in itertools.islice(loader, 4)]
    state = loader.state_dict()
    loader._iterator = None
    resumed = StatefulDataLoader(Clips(), batch_sampler=Pairs(), num_workers=num_workers)
    resumed.load_state_dict(state)
    batches += [numbers(batch) for batch in resumed]
    assert [index for batch in batches for index in batch] == list(EpochSampler(Clips()))
    resumed._iterator = None


@pytest.mark.parametrize("kind", ["batch_size", "duration"])
def test_a_loader_that_does_not_keep_the_order_is_refused(kind: str) -> None:
    sampler = make_sampler(kind, Clips())
    loader = iter(make_loader(kind, Clips(), sampler, num_workers=2, in_order=False))
    next(loader)
    with pytest.raises(ConfigError, match="in_order=True"):
        sampler.state_dict()


def test_a_sampler_that_is_read_inside_a_worker_counts_for_itself() -> None:
    """A dataset may iterate a sampler of its own while another loader fetches: that loader has no part in it."""

    class Draws(Dataset[int]):
        def __init__(self) -> None:
            self.sampler = EpochSampler(range(10))

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            drawn = iter(self.sampler)
            return len([next(drawn) for _ in range(index)]) * 100 + self.sampler.state_dict()["consumed"]

    for num_workers in (0, 1):
        found = [int(number) for batch in DataLoader(Draws(), num_workers=num_workers) for number in batch]
        assert found[1:] == [101, 202, 303]


STATEFUL = ["batch_size", "batch_sampler", "singly", "duration"]


@pytest.mark.parametrize("snapshot_every_n_steps", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", STATEFUL)
def test_stateful_loaders_resume_exactly(kind: str, num_workers: int, snapshot_every_n_steps: int) -> None:
    """The loader's own state, taken in the middle of an epoch; afterwards the sampler's is right again."""
    options = {"num_workers": num_workers, "snapshot_every_n_steps": snapshot_every_n_steps}
    dataset = Clips()
    sampler = make_sampler(kind, dataset, seed=5)
    sampler.set_epoch(1)
    loader = make_loader(kind, dataset, sampler, stateful=True, **options)
    batches, states, counts = [], [], []
    for batch in loader:
        batches.append(numbers(batch))
        states.append(loader.state_dict())
        counts.append(sampler.state_dict())
        assert counts[-1]["consumed"] == sum(map(len, batches))
    for stop in (0, 3, len(batches) - 2):
        dataset = Clips()
        sampler = make_sampler(kind, dataset, seed=5)
        sampler.set_epoch(1)
        resumed = make_loader(kind, dataset, sampler, stateful=True, **options)
        resumed.load_state_dict(json.loads(json.dumps(states[stop])))
        for step, batch in enumerate(resumed, start=stop + 1):
            assert numbers(batch) == batches[step]
            assert sampler.state_dict() == counts[step]
        assert step == len(batches) - 1
        # the next pass is a whole one, and the one after it follows the epoch
        again = [numbers(batch) for batch in resumed]
        assert again == batches
        sampler.set_epoch(2)
        assert numbers(next(iter(resumed))) != batches[0]
        resumed._iterator = None
    loader._iterator = None


@pytest.mark.parametrize("kind", ["batch_size", "duration"])
@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "snapshot_every_n_steps": 3}], ids=["alone", "helped"])
def test_a_finished_stateful_loader_goes_on_with_the_epoch_that_was_asked_for(
    kind: str, options: dict[str, Any]
) -> None:
    """It loads its state when the loop begins, after `set_epoch`, and begins another pass since that one was over."""
    dataset = Clips()
    sampler = make_sampler(kind, dataset)
    loader = make_loader(kind, dataset, sampler, stateful=True, **options)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append([numbers(batch) for batch in loader])
        if epoch == 0:
            finished = loader.state_dict()
    dataset = Clips()
    sampler = make_sampler(kind, dataset)
    resumed = make_loader(kind, dataset, sampler, stateful=True, **options)
    resumed.load_state_dict(finished)
    sampler.set_epoch(1)
    assert [numbers(batch) for batch in resumed] == epochs[1]
    assert sampler.state_dict()["epoch"] == dataset.epoch == 1


@pytest.mark.parametrize("kind", STATEFUL)
def test_persistent_workers_resume_twice(kind: str) -> None:
    """The loader counts from the loaded step on in one pass, and from 0 on in the next, which it snapshots at once."""
    options = {"num_workers": 2, "snapshot_every_n_steps": 3, "persistent_workers": True}
    dataset = Clips()
    loader = make_loader(kind, dataset, make_sampler(kind, dataset), stateful=True, **options)
    stop = len(loader) - 1
    batches = [numbers(batch) for batch in itertools.islice(loader, stop)]
    state = loader.state_dict()
    loader._iterator = None
    for num_steps in (1, 4):
        dataset = Clips()
        sampler = make_sampler(kind, dataset)
        loader = make_loader(kind, dataset, sampler, stateful=True, **options)
        loader.load_state_dict(json.loads(json.dumps(state)))
        batches[stop:] = [numbers(batch) for batch in loader]
        assert sorted(itertools.chain.from_iterable(batches)) == list(range(NUM_SAMPLES))
        next_pass = iter(loader)
        assert [numbers(next(next_pass)) for _ in range(num_steps)] == batches[:num_steps]
        assert sampler.state_dict()["consumed"] == sum(map(len, batches[:num_steps]))
        middle = loader.state_dict()
        del next_pass
        loader._iterator = None
        again = make_loader(kind, dataset, make_sampler(kind, dataset), stateful=True, **options)
        again.load_state_dict(json.loads(json.dumps(middle)))
        assert [numbers(batch) for batch in again] == batches[num_steps:]
        again._iterator = None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_samplers_own_state_resumes_a_stateful_loader(num_workers: int) -> None:
    """A loader with workers begins two passes at once, and draws from the second."""
    dataset = Clips()
    sampler = EpochSampler(dataset)
    expected = list(sampler)
    sampler.load_state_dict({"seed": 0, "epoch": 0, "consumed": 20, "num_samples": NUM_SAMPLES})
    loader = StatefulDataLoader(dataset, batch_size=4, sampler=sampler, num_workers=num_workers)
    assert [number for batch in loader for number in numbers(batch)] == expected[20:]
    loader._iterator = None


def clips_in_memory() -> InMemoryAudioTextDataset:
    rows = [{"audio": {"array": np.ones(100 + 10 * i), "sampling_rate": 100}, "caption": str(i)} for i in range(30)]
    return InMemoryAudioTextDataset(rows, target_sr=100, progress=False)


def _serve_rank(rank: int, store: str) -> dict[str, Any]:
    """Take two batches as one of two ranks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
        )
    try:
        with clips_in_memory() as dataset:
            sampler = DurationBatchSampler(dataset, max_batch_seconds=12)
            loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_in_memory_audio)
            batches = list(itertools.islice(loader, 2))
            return {
                "place": (sampler.rank, sampler.num_replicas),
                "seen": [int(index) for batch in batches for index in batch["indices"]],
                "num_frames": [batch["audio"].numel() for batch in batches],
                "state": sampler.state_dict(),
            }
    finally:
        torch.distributed.destroy_process_group()


def test_two_ranks_share_an_epoch_and_one_alone_finishes_it(tmp_path: Path) -> None:
    """Rank and number come from torch.distributed; both ranks have the same state after as many steps."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as ranks:
        found = list(ranks.map(_serve_rank, (0, 1), [str(tmp_path / "store")] * 2))
    assert [rank["place"] for rank in found] == [(0, 2), (1, 2)]
    assert max(num_frames for rank in found for num_frames in rank["num_frames"]) <= 1200
    seen = [index for rank in found for index in rank["seen"]]
    assert found[0]["state"] == found[1]["state"]
    assert found[0]["state"]["consumed"] == len(seen) > 0
    with clips_in_memory() as dataset:
        alone = DurationBatchSampler(dataset, max_batch_seconds=12)
        alone.load_state_dict(found[0]["state"])
        rest = [index for batch in alone for index in batch]
    assert sorted(seen + rest) == list(range(30))
