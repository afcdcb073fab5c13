"""What a sample gives this time where chance decides: which of its captions, which part of its clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.store import Block
from in_memory_datasets.training.order import GAMMA, mix

Captions = Literal["first", "random", "all"]
Crop = Literal["start", "random"]

_CAPTION, _CROP = 0, 1  # what is drawn


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What chance gives the samples of one batch; it depends on seed, slot and turn alone.

    Attributes:
        seed: What all is drawn from.
        slots: int64, shape (B,).
        turns: int64, shape (B,): the epoch, or how often each sample was served before.
    """

    seed: int
    slots: NDArray[np.int64]
    turns: NDArray[np.int64]

    def captions(self, num_captions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give which of its captions each sample is served with: in turns, from a start of its own."""
        choices = np.maximum(num_captions, 1).astype(np.uint64)
        return ((self._mixed(_CAPTION) % choices + self.turns.astype(np.uint64)) % choices).astype(np.int64)

    def crops(self, num_starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give at which of its possible starts, from 0 on, the part of each clip begins: anywhere, evenly."""
        return (_draw(self._mixed(_CROP), self.turns) % num_starts.astype(np.uint64)).astype(np.int64)

    def _mixed(self, purpose: int) -> NDArray[np.uint64]:
        seed = np.array([self.seed % 2**64], np.uint64)
        return _draw(_draw(seed, np.array([purpose])), self.slots)


class Turns:
    """How often samples were served, or the epoch: seeded draws are others each time, whatever the number of workers.

    The turn is the epoch where `set_epoch` told it, else how often the sample was served before; it is counted in
    shared memory, so that workers started anew for every epoch go on where others stopped.

    Args:
        num_samples: Samples of the dataset.
        seed: What is drawn from.
    """

    def __init__(self, num_samples: int, *, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._block = Block.anonymous("turns")
        self._map()

    def _map(self) -> None:
        # one counter a sample, and the epoch plus one behind them, 0 while nobody has set it
        self._served = self._block.counters(self._num_samples + 1)

    def set_epoch(self, epoch: int) -> None:
        """Let the epoch, and no longer the count, decide; seen by all workers at once.

        Raises:
            ConfigError: The epoch is not a whole number from 0 on.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < 2**31 - 1:
            raise ConfigError(f"set_epoch({epoch!r}): expected a whole number from 0 on")
        self._served[-1] = epoch + 1

    def take(self, slots: NDArray[np.int64]) -> Draws:
        """Draw for the samples of one batch, and count them as served."""
        epoch = int(self._served[-1])
        if epoch:
            turns = np.full(len(slots), epoch - 1, np.int64)
        else:
            turns = self._served[slots].astype(np.int64)
            np.add.at(self._served, slots, 1)
            self._served[slots] &= 0x7FFFFFFF
        return Draws(self._seed, slots, turns)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_served"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._map()


def _draw(seed: NDArray[np.uint64], values: NDArray[np.int64]) -> NDArray[np.uint64]:
    return mix((values.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA), seed)
