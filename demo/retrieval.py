"""How well media find their captions, and captions their media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Recall:
    """Shares of queries whose answer is among the first found, the mean of both directions.

    Attributes:
        num_pairs: How many media and captions there are to find.
        at_1: Found first.
        at_5: Found among the first five.
        chance_at_1: What guessing would find first.
        chance_at_5: What guessing would find among the first five.
    """

    num_pairs: int
    at_1: float
    at_5: float
    chance_at_1: float
    chance_at_5: float

    @property
    def over_chance(self) -> float:
        """How many times as often as by guessing the answer is found first."""
        return self.at_1 / self.chance_at_1

    def __str__(self) -> str:
        return f"R@1 {self.at_1:.1%} (chance {self.chance_at_1:.1%}), R@5 {self.at_5:.1%} ({self.chance_at_5:.1%})"


def measure_recall(media: Tensor, text: Tensor, captions: Sequence[str]) -> Recall:
    """Look for each caption's medium and each medium's caption.

    Pairs that have the same caption answer for one another: nobody could tell them apart. Chance takes them into
    account too.

    Args:
        media: Unit vectors, (N, D).
        text: Unit vectors, (N, D), in the same order.
        captions: What was embedded in `text`, N of them.

    Example:
        >>> corners = torch.eye(3)
        >>> measure_recall(corners, corners, ["a", "b", "c"]).at_1
        1.0
        >>> measure_recall(corners, corners[[1, 0, 2]], ["twin", "Twin", "c"]).at_1  # exchanged, and yet right
        1.0
    """
    meanings = [" ".join(caption.lower().split()) for caption in captions]
    numbers = {meaning: number for number, meaning in enumerate(dict.fromkeys(meanings))}
    group = torch.tensor([numbers[meaning] for meaning in meanings])
    same = group[:, None] == group[None, :]
    products = media @ text.T
    num_pairs = len(meanings)
    found: dict[int, float] = {}
    for k in (1, 5):
        shares = [
            same.gather(1, scores.topk(min(k, num_pairs), dim=1).indices).any(1).double().mean().item()
            for scores in (products, products.T)
        ]
        found[k] = sum(shares) / 2
    num_answers = same.sum(1).double()
    return Recall(num_pairs, found[1], found[5], _chance(num_answers, num_pairs, 1), _chance(num_answers, num_pairs, 5))


def _chance(num_answers: Tensor, num_pairs: int, k: int) -> float:
    """Give the mean chance that k different guesses hold one of each query's answers."""
    missed = torch.ones_like(num_answers)
    for guess in range(min(k, num_pairs)):
        missed *= ((num_pairs - num_answers - guess) / (num_pairs - guess)).clamp(min=0)
    return float((1 - missed).mean())
