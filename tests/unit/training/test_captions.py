"""Whose turn it is among several captions."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.training.captions import CaptionTurns


def test_every_caption_has_its_turn_before_one_comes_again() -> None:
    turns = CaptionTurns(10, seed=0)
    for slot in range(10):
        assert sorted(turns.take(slot, 5) for _ in range(5)) == [0, 1, 2, 3, 4]


def test_samples_do_not_all_start_with_the_same_caption() -> None:
    turns = CaptionTurns(200, seed=0)
    assert {turns.take(slot, 5) for slot in range(200)} == {0, 1, 2, 3, 4}


def test_the_same_seed_gives_the_same_turns_and_another_seed_others() -> None:
    first, same, other = ([CaptionTurns(50, seed=seed).take(slot, 7) for slot in range(50)] for seed in (3, 3, 4))
    assert first == same
    assert first != other


def test_an_epoch_that_is_set_decides_alone() -> None:
    turns = CaptionTurns(3, seed=1)
    turns.set_epoch(5)
    fifth = [turns.take(slot, 4) for slot in (0, 1, 2)]
    assert [turns.take(slot, 4) for slot in (0, 1, 2)] == fifth
    turns.set_epoch(6)
    assert [(turn - 1) % 4 for turn in (turns.take(slot, 4) for slot in (0, 1, 2))] == fifth


def test_a_row_without_captions_has_no_turns_to_take() -> None:
    assert CaptionTurns(1, seed=0).take(0, 0) == 0


@pytest.mark.parametrize("epoch", [-1, 1.5, "2", True, 2**40])
def test_what_is_no_epoch_is_refused(epoch: object) -> None:
    with pytest.raises(ConfigError, match="set_epoch"):
        CaptionTurns(1, seed=0).set_epoch(epoch)  # type: ignore[arg-type]


def _take_one(turns: CaptionTurns) -> None:
    turns.take(0, 3)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_a_worker_serves_counts_for_all(method: str) -> None:
    turns = CaptionTurns(1, seed=0)
    first = turns.take(0, 3)
    worker = multiprocessing.get_context(method).Process(target=_take_one, args=(turns,))
    worker.start()
    worker.join()
    worker.close()
    assert turns.take(0, 3) == (first + 2) % 3


def test_a_pickled_count_goes_on_where_it_was() -> None:
    turns = CaptionTurns(1, seed=0)
    first = turns.take(0, 3)
    copy: CaptionTurns = pickle.loads(pickle.dumps(turns))
    assert copy.take(0, 3) == (first + 1) % 3
