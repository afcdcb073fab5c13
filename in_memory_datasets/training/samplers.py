"""Samplers that can be stopped at any sample and resumed by any number of ranks, without skipping or repeating one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.training.order import BatchPlan, even_ends, order_keys, permute, plan_batches
from in_memory_datasets.training.resuming import ResumableSampler

_CHUNK = 8192  # positions permuted at a time: 1,024 cost three times as much each, more gain nothing
_BATCH_CHUNK = 64  # batches made into lists at a time


class EpochSampler(ResumableSampler[int]):
    """Shuffle any number of samples in constant memory, deal them to the ranks, and resume at any sample.

    Rank r of R takes every R-th sample of the epoch's order, from the r-th on: disjoint, and all of them once. Where R
    does not divide their number the first ranks get one more: under DDP, which waits for every rank, use `drop_last`.
    (At the end of such an epoch only the first ranks know that it is over: take the state from rank 0.)

    Args:
        dataset: Anything with a length, which is noted here; positions in it are yielded.
        shuffle: Whether to shuffle, anew in every epoch that `set_epoch` names.
        seed: From 0 to 2^64 - 1, the same on every rank.
        num_replicas: The number of ranks; None takes that of `torch.distributed` where it is initialised, else 1.
        rank: This process among them; None likewise, else 0.
        drop_last: Whether to leave out the samples at the end that R does not divide.

    Raises:
        ConfigError: An argument cannot work.

    Cost: 0.2 µs per index; constructing, resuming and skipping take no longer for 100 million samples than for ten.
    Source: see `order.permute`.

    Example:
        >>> sampler = EpochSampler(range(10), seed=1)
        >>> drawn = iter(sampler)
        >>> first = [next(drawn) for _ in range(4)]
        >>> state = sampler.state_dict()
        >>> state
        {'seed': 1, 'epoch': 0, 'consumed': 4, 'num_samples': 10}
        >>> ranks = [EpochSampler(range(10), num_replicas=2, rank=rank) for rank in range(2)]
        >>> for sampler in ranks:
        ...     sampler.load_state_dict(state)
        >>> sorted(first + [index for sampler in ranks for index in sampler])
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(dataset, shuffle=shuffle, seed=seed, num_replicas=num_replicas, rank=rank, drop_last=drop_last)
        self._tell_order()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, see `ResumableSampler.set_epoch`."""
        super().set_epoch(epoch)
        self._tell_order()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state was taken, see `ResumableSampler.load_state_dict`."""
        super().load_state_dict(state)
        self._tell_order()

    def _tell_order(self) -> None:
        """Tell a dataset that is still being loaded what all ranks will ask for."""
        expect = getattr(self.dataset, "expect_order", None)
        if expect is not None:
            keys = order_keys(self.seed, self._epoch) if self.shuffle else None
            expect(functools.partial(_order, self._loaded or 0, self._num_samples, keys))

    def __len__(self) -> int:
        """Count the samples this rank is dealt in a whole epoch."""
        if self.drop_last:
            return self._num_samples // self.num_replicas
        return len(range(self.rank, self._num_samples, self.num_replicas))

    def _share(self, seed: int, epoch: int, start: int) -> _IndexShare:
        stop = self._num_samples
        if self.drop_last:
            stop -= (stop - start) % self.num_replicas
        keys = order_keys(seed, epoch) if self.shuffle else None
        return _IndexShare(start, stop, self.rank, self.num_replicas, self._num_samples, keys)


def _order(start: int, num_samples: int, keys: NDArray[np.uint64] | None) -> Iterator[NDArray[np.int64]]:
    for first in range(start, num_samples, _CHUNK):
        positions = np.arange(first, min(first + _CHUNK, num_samples))
        yield positions if keys is None else permute(positions, num_samples, keys)


@dataclass(frozen=True, slots=True)
class _IndexShare:
    start: int
    stop: int
    rank: int
    num_replicas: int
    num_samples: int
    keys: NDArray[np.uint64] | None

    def units(self, start: int) -> list[int]:
        first = self.start + self.rank + start * self.num_replicas
        positions = np.arange(first, min(self.stop, first + _CHUNK * self.num_replicas), self.num_replicas)
        indices: list[int] = (
            positions if self.keys is None else permute(positions, self.num_samples, self.keys)
        ).tolist()
        return indices

    def consumed(self, num_units: int) -> int:
        return min(self.start + num_units * self.num_replicas, self.stop)


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """What the batches of an epoch are like, over all ranks.

    Attributes:
        num_batches: How many there are.
        mean_batch_seconds: Seconds of a batch, padding included, on average.
        padding_waste: Which share of those seconds is padding, from 0 to 1.
        num_oversized: Batches of one clip that is longer than a batch may be.
    """

    num_batches: int
    mean_batch_seconds: float
    padding_waste: float
    num_oversized: int


class DurationBatchSampler(ResumableSampler["list[int]"]):
    """Make batches of so many seconds, padding included, from clips of like length: a `batch_sampler` of a DataLoader.

    Each epoch is shuffled, sorted by length within windows of a hundred batches, packed, and the batches are shuffled:
    1 or 2 % of the seconds are padding, where random batches of clips of 1 to 30 seconds are padding by a half. With
    `shuffle=False` clips keep the order of the dataset. Every rank gets as many batches: the last ones are halved until
    R divides their number, or with `drop_last` left out. Only where fewer clips are left than that takes (a few, after
    the number of ranks has changed; or clips that all make batches of their own) the last ranks get one batch less.

    Args:
        dataset: An `InMemoryAudioTextDataset`, or what else has `lengths` (frames of each clip), `sampling_rate` (Hz)
            and `pad_to`. The lengths are noted here.
        max_batch_seconds: Longest clip of a batch times their number, in seconds. A clip that is longer than that makes
            a batch of its own, which the statistics count.
        shuffle: Whether to shuffle, anew in every epoch that `set_epoch` names.
        seed: From 0 to 2^64 - 1, the same on every rank.
        num_replicas: The number of ranks; None takes that of `torch.distributed` where it is initialised, else 1.
        rank: This process among them; None likewise, else 0.
        drop_last: Whether to leave out the batches at the end that R does not divide.

    Raises:
        ConfigError: An argument cannot work, or clips are not padded to the longest.

    Cost: about 1 µs per clip when an epoch is planned; four integers per clip.
    Source: see `order.plan_batches`.

    Example:
        >>> class Clips:
        ...     lengths, sampling_rate, pad_to = np.array([1, 9, 2, 8, 2, 1]) * 100, 100, "longest"
        ...     def __len__(self):
        ...         return len(self.lengths)
        >>> sampler = DurationBatchSampler(Clips(), max_batch_seconds=18)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 2, 4, 5], [1, 3]]
        >>> sampler.statistics()
        BatchStatistics(num_batches=2, mean_batch_seconds=13.0, padding_waste=0.11..., num_oversized=0)
    """

    def __init__(
        self,
        dataset: Any,
        max_batch_seconds: float,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(dataset, shuffle=shuffle, seed=seed, num_replicas=num_replicas, rank=rank, drop_last=drop_last)
        if isinstance(max_batch_seconds, bool) or not 0 < _number(max_batch_seconds) < math.inf:
            raise ConfigError(f"max_batch_seconds={max_batch_seconds!r}: expected a positive number of seconds")
        self.max_batch_seconds = float(max_batch_seconds)
        self._lengths = _lengths_of(dataset)
        self._sampling_rate = int(dataset.sampling_rate)
        if self._num_samples < self.num_replicas:
            raise ConfigError(
                f"{self._num_samples:,} clips for {self.num_replicas:,} ranks: each needs at least one in every epoch"
            )
        self._planned: tuple[tuple[int, int], BatchPlan] | None = None

    def __len__(self) -> int:
        """Count the batches this rank is dealt in the whole of the current epoch. Cost: plans the epoch, once."""
        return -(-(len(self._whole_epoch().ends) - self.rank) // self.num_replicas)

    @property
    def padding_waste(self) -> float:
        """Which share of the seconds of the current epoch is padding, from 0 to 1."""
        return self.statistics().padding_waste

    def statistics(self) -> BatchStatistics:
        """Sum up the batches of the current epoch. Cost: plans the epoch, once, and looks at every clip."""
        share = self._whole_epoch()
        if not len(share.ends):
            return BatchStatistics(0, 0.0, 0.0, 0)
        sizes = np.diff(share.ends, prepend=0)
        lengths = self._lengths[share.order[: share.ends[-1]]]
        longest = np.maximum.reduceat(lengths, share.ends - sizes)
        num_frames = int((longest * sizes).sum())
        return BatchStatistics(
            num_batches=len(sizes),
            mean_batch_seconds=num_frames / len(sizes) / self._sampling_rate,
            padding_waste=1 - int(lengths.sum()) / max(1, num_frames),
            num_oversized=int((longest > self._max_frames).sum()),
        )

    @property
    def _max_frames(self) -> float:
        return self.max_batch_seconds * self._sampling_rate

    def _whole_epoch(self) -> _BatchShare:
        return self._share(self.seed, self.epoch, 0)

    def _share(self, seed: int, epoch: int, start: int) -> _BatchShare:
        if self._planned is None or self._planned[0] != (seed, epoch):
            plan = plan_batches(self._lengths, self._max_frames, seed=seed if self.shuffle else None, epoch=epoch)
            self._planned = (seed, epoch), plan
        plan = self._planned[1]
        # The batches do not depend on the ranks: whoever resumes finds the same, and if need be goes on within one.
        rest = plan.ends[np.searchsorted(plan.ends, start, side="right") :]
        ends = even_ends(start, rest, self.num_replicas, drop_last=self.drop_last)
        return _BatchShare(start, plan.order, ends, self.rank, self.num_replicas)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_planned": None}

    def _describe(self) -> str:
        return f"batches of {self.max_batch_seconds:g} s, {super()._describe()}"


@dataclass(frozen=True, slots=True)
class _BatchShare:
    start: int
    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    rank: int
    num_replicas: int

    def units(self, start: int) -> list[list[int]]:
        first = self.rank + start * self.num_replicas
        chunk = range(first, min(len(self.ends), first + _BATCH_CHUNK * self.num_replicas), self.num_replicas)
        return [self.order[self._end(number) : self._end(number + 1)].tolist() for number in chunk]

    def consumed(self, num_units: int) -> int:
        return self._end(min(num_units * self.num_replicas, len(self.ends)))

    def _end(self, num_batches: int) -> int:
        return int(self.ends[num_batches - 1]) if num_batches else self.start


def _lengths_of(dataset: Any) -> NDArray[np.int64]:
    missing = [name for name in ("lengths", "sampling_rate", "pad_to") if not hasattr(dataset, name)]
    if missing:
        raise ConfigError(
            f"DurationBatchSampler needs the lengths of clips, and {type(dataset).__name__} has no "
            f"{', '.join(missing)}: give it an InMemoryAudioTextDataset, or use EpochSampler"
        )
    if dataset.pad_to != "longest":
        raise ConfigError(
            f"pad_to={dataset.pad_to!r}: every clip costs the same there, so that a batch_size does what "
            "max_batch_seconds would; or load the dataset with pad_to='longest'"
        )
    lengths: NDArray[np.int64] = np.array(dataset.lengths, dtype=np.int64)
    if lengths.shape != (len(dataset),):
        raise ConfigError(f"lengths of shape {lengths.shape} for {len(dataset):,} clips: expected one number for each")
    return lengths


def _number(value: object) -> float:
    """Give a number as a float, and for what is none one that no comparison holds for."""
    return float(value) if isinstance(value, Real) else math.nan
