"""Whose turn it is among several captions, and which part of a clip is served."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.training.turns import Turns


def take(turns: Turns, slot: int, num_captions: int) -> int:
    return int(turns.take(np.array([slot])).captions(np.array([num_captions]))[0])


def test_every_caption_has_its_turn_before_one_comes_again() -> None:
    turns = Turns(10, seed=0)
    for slot in range(10):
        assert sorted(take(turns, slot, 5) for _ in range(5)) == [0, 1, 2, 3, 4]


def test_samples_do_not_all_start_with_the_same_caption() -> None:
    turns = Turns(200, seed=0)
    assert {take(turns, slot, 5) for slot in range(200)} == {0, 1, 2, 3, 4}


def test_the_same_seed_gives_the_same_turns_and_another_seed_others() -> None:
    first, same, other = ([take(Turns(50, seed=seed), slot, 7) for slot in range(50)] for seed in (3, 3, 4))
    assert first == same
    assert first != other


def test_an_epoch_that_is_set_decides_alone() -> None:
    turns = Turns(3, seed=1)
    turns.set_epoch(5)
    fifth = [take(turns, slot, 4) for slot in (0, 1, 2)]
    assert [take(turns, slot, 4) for slot in (0, 1, 2)] == fifth
    turns.set_epoch(6)
    assert [(turn - 1) % 4 for turn in (take(turns, slot, 4) for slot in (0, 1, 2))] == fifth


def test_a_row_without_captions_has_no_turns_to_take() -> None:
    assert take(Turns(1, seed=0), 0, 0) == 0


@pytest.mark.parametrize("epoch", [-1, 1.5, "2", True, 2**40])
def test_what_is_no_epoch_is_refused(epoch: object) -> None:
    with pytest.raises(ConfigError, match="set_epoch"):
        Turns(1, seed=0).set_epoch(epoch)  # type: ignore[arg-type]


def _take_one(turns: Turns) -> None:
    take(turns, 0, 3)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_a_worker_serves_counts_for_all(method: str) -> None:
    turns = Turns(1, seed=0)
    first = take(turns, 0, 3)
    worker = multiprocessing.get_context(method).Process(target=_take_one, args=(turns,))
    worker.start()
    worker.join()
    worker.close()
    assert take(turns, 0, 3) == (first + 2) % 3


def test_a_pickled_count_goes_on_where_it_was() -> None:
    turns = Turns(1, seed=0)
    first = take(turns, 0, 3)
    copy: Turns = pickle.loads(pickle.dumps(turns))
    assert take(copy, 0, 3) == (first + 1) % 3


def test_parts_begin_anywhere_and_elsewhere_each_time() -> None:
    turns, slots = Turns(4000, seed=0), np.arange(4000)
    first, second = (turns.take(slots).crops(np.full(4000, 10)) for _ in range(2))
    assert np.bincount(first, minlength=10).min() > 300
    assert 0.05 < np.mean(first == second) < 0.15
    assert turns.take(slots[:3]).crops(np.ones(3, np.int64)).tolist() == [0, 0, 0]


def test_a_batch_draws_what_its_samples_draw_alone() -> None:
    slots = np.array([3, 0, 3, 2])
    together, alone = Turns(4, seed=9), Turns(4, seed=9)
    for turns in (together, alone):
        turns.set_epoch(2)
    counts = np.array([5, 1, 5, 7])
    assert together.take(slots).captions(counts).tolist() == [
        take(alone, *pair) for pair in zip(slots, counts, strict=True)
    ]
