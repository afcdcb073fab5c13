"""Recall counts what is found, fairly, and knows what chance would find."""

from __future__ import annotations

import pytest
import torch

from demo.retrieval import measure_recall


def test_a_perfect_embedding_finds_everything() -> None:
    """Where each medium lies on its caption, recall is whole and chance is one in N."""
    recall = measure_recall(torch.eye(20), torch.eye(20), [f"caption {i}" for i in range(20)])
    assert (recall.at_1, recall.at_5) == (1.0, 1.0)
    assert recall.chance_at_1 == pytest.approx(1 / 20)
    assert recall.chance_at_5 == pytest.approx(5 / 20)
    assert recall.over_chance == pytest.approx(20)


def test_captions_that_say_the_same_answer_for_one_another() -> None:
    """Finding the twin is right, and chance is told of twins too."""
    exchanged = torch.eye(4)[[1, 0, 2, 3]]
    strangers = measure_recall(torch.eye(4), exchanged, ["a", "b", "c", "d"])
    twins = measure_recall(torch.eye(4), exchanged, ["a dog", "A  dog", "c", "d"])
    assert strangers.at_1 == 0.5
    assert twins.at_1 == 1.0
    assert twins.chance_at_1 == pytest.approx((2 / 4 + 2 / 4 + 1 / 4 + 1 / 4) / 4)


def test_random_embeddings_find_what_chance_does() -> None:
    """Where nothing was learned, recall is about chance, with twins and without."""
    generator = torch.Generator().manual_seed(0)
    media, text = (torch.randn(2000, 16, generator=generator) for _ in range(2))
    for captions in ([str(i) for i in range(2000)], [str(i // 20) for i in range(2000)]):
        recall = measure_recall(media, text, captions)
        assert recall.at_5 == pytest.approx(recall.chance_at_5, rel=0.5)


def test_fewer_pairs_than_five_are_all_found() -> None:
    """Among three, everything is among the first five."""
    recall = measure_recall(torch.eye(3), torch.eye(3)[[1, 2, 0]], ["a", "b", "c"])
    assert (recall.at_1, recall.at_5, recall.chance_at_5) == (0.0, 1.0, 1.0)
