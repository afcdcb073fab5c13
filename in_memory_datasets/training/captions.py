"""Which of a row's captions is served."""

from __future__ import annotations

from typing import Literal

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.store import Block

Captions = Literal["first", "random", "all"]


class CaptionTurns:
    """Whose turn it is among several captions of a sample: another each epoch, seeded, whatever the number of workers.

    A sample's captions take turns, from a start that depends on the seed and the sample. The turn is the epoch where
    `set_epoch` told it, else how often the sample was served before; it is counted in shared memory, so that workers
    started anew for every epoch go on where others stopped.

    Args:
        num_samples: Samples of the dataset.
        seed: What the starts are drawn from.
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

    def take(self, slot: int, num_captions: int) -> int:
        """Give the number of the caption whose turn it is."""
        epoch = int(self._served[-1])
        turn = epoch - 1 if epoch else int(self._served[slot])
        if not epoch:
            self._served[slot] = (turn + 1) & 0x7FFFFFFF
        return (_mix(self._seed, slot) + turn) % max(1, num_captions)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_served"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._map()


def _mix(seed: int, slot: int) -> int:
    """Draw a number that depends on both alone. Source: SplitMix64, Steele, Lea and Flood, OOPSLA 2014."""
    mask = 2**64 - 1
    value = (seed + (slot + 1) * 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
