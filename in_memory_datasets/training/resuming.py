"""How a sampler is stopped and resumed: a state of four numbers, and what of an epoch counts as consumed."""

from __future__ import annotations

import itertools
import operator
import sys
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sized
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import BatchSampler, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from in_memory_datasets.errors import ConfigError

UnitT = TypeVar("UnitT")


class Share(Protocol[UnitT]):
    """What one rank is dealt of an epoch, from some point of it on. A unit is what is yielded: an index or a batch."""

    def units(self, start: int) -> list[UnitT]:
        """Give some units from the `start`-th on; none at the end."""

    def consumed(self, num_units: int) -> int:
        """Say how many samples of the epoch the whole job has had when each rank has had so many units."""


class ResumableSampler(Sampler[UnitT], Generic[UnitT]):
    """What both samplers have in common: the epoch, the place in the job, and the state."""

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool,
        seed: int,
        num_replicas: int | None,
        rank: int | None,
        drop_last: bool,
    ) -> None:
        try:
            self._num_samples = len(dataset)
        except TypeError as error:
            raise ConfigError(
                f"{type(self).__name__} needs a dataset with a length, not {type(dataset).__name__}: "
                "for positions alone give range(num_samples)"
            ) from error
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = _whole("seed", seed, stop=2**64)
        self.num_replicas, self.rank = _place_in_job(num_replicas, rank)
        self.drop_last = drop_last
        self._epoch = 0
        self._loaded: int | None = None  # a position that was loaded and from which nothing has been drawn yet
        self._asked: int | None = None  # an epoch that set_epoch asked for and from which nothing has been drawn yet
        self._told: int | None = None  # the epoch that the dataset was told; -1 where it is yet to be told
        self._tally: _Tally[UnitT] | None = None  # of the pass that began last

    @abstractmethod
    def _share(self, seed: int, epoch: int, start: int) -> Share[UnitT]:
        """Deal the epoch from its `start`-th sample on."""

    @property
    def epoch(self) -> int:
        """The epoch that is being served, or will be next."""
        return self._epoch if self._tally is None else self._tally.epoch

    def __iter__(self) -> Iterator[UnitT]:
        return _Pass(self)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, and tell the dataset, whose captions follow it.

        Another epoch starts from its beginning. The epoch of a state that was just loaded keeps its position. Without
        this call each pass repeats the order of the one before, as `DistributedSampler` does.

        Raises:
            ConfigError: The epoch is not a whole number from 0 on.
        """
        epoch = _whole("epoch", epoch)
        self._tell_dataset(epoch)
        if epoch != self.epoch:
            self._loaded = self._tally = None
        self._epoch = self._asked = epoch

    def _tell_dataset(self, epoch: int) -> None:
        tell = getattr(self.dataset, "set_epoch", None)
        if tell is not None:
            tell(epoch)
        self._told = epoch

    def _expect(self, epoch: int) -> None:
        """Turn to an epoch of which nothing is drawn yet."""
        self._tell_dataset(epoch)

    def state_dict(self) -> dict[str, int]:
        """Give the position as a few numbers, the same on every rank that has taken as many steps.

        What counts as consumed is what a `DataLoader` has handed out, not what it has drawn ahead for its workers; in
        plain iteration, what was drawn. Whatever takes batches ahead behind the loader, to copy them to a device for
        one, has been handed them.

        Returns:
            `{"seed", "epoch", "consumed", "num_samples"}`; `consumed` samples of the epoch by all ranks together.

        Raises:
            ConfigError: A loader draws ahead through something of which it cannot be known how much a batch takes.
        """
        if self._tally is not None:
            return self._state(self._tally.epoch, self._tally.consumed())
        return self._state(self._epoch, self._loaded or 0)

    def _state(self, epoch: int, consumed: int) -> dict[str, int]:
        return {"seed": self.seed, "epoch": epoch, "consumed": consumed, "num_samples": self._num_samples}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state was taken, whatever the number of ranks was then; the seed is taken over.

        The next pass serves the rest of the epoch, dealt anew to the ranks there are now; the one after it is whole.
        The rest of an epoch that was over is empty: a loop over the epochs from `state["epoch"]` on repeats nothing.
        Rows, `shuffle` and `max_batch_seconds` must be those of then, which a few numbers cannot tell.

        Raises:
            ConfigError: It is no such state, or that of a dataset of another length.
        """
        if missing := {"seed", "epoch", "consumed", "num_samples"} - set(state):
            raise ConfigError(
                f"the state has no {', '.join(sorted(missing))}: load what {type(self).__name__}.state_dict() gave"
            )
        num_samples = _whole("num_samples", state["num_samples"])
        if num_samples != self._num_samples:
            raise ConfigError(
                f"the state is that of {num_samples:,} samples, this dataset has {self._num_samples:,}: load the same "
                "dataset (rows, max_samples, on_error), or begin a new epoch with set_epoch"
            )
        seed, epoch = _whole("seed", state["seed"], stop=2**64), _whole("epoch", state["epoch"])
        consumed = _whole("consumed", state["consumed"], stop=num_samples + 1)
        self._expect(epoch)
        self.seed, self._epoch, self._loaded, self._tally = seed, epoch, consumed, None

    def _begin(self) -> _Tally[UnitT]:
        """Begin a pass: from the position that was loaded, if it was not used yet, else from the beginning."""
        epoch, start = self._epoch, self._loaded or 0
        if self._told not in (None, epoch):
            self._tell_dataset(epoch)
        self._loaded = self._asked = None
        self._tally = _Tally(epoch, self._share(self.seed, epoch, start))
        return self._tally

    def __getstate__(self) -> dict[str, Any]:
        # A pass belongs to the process in which it runs; a copy begins one of its own.
        return {**self.__dict__, "_tally": None}

    def _describe(self) -> str:
        order = f"shuffled by seed {self.seed}" if self.shuffle else "in order"
        try:
            consumed = f"{self.state_dict()['consumed']:,}"
        except ConfigError:
            consumed = "unknown"  # a repr does not fail; state_dict says why
        return (
            f"{self._num_samples:,} samples {order}, epoch {self.epoch}, {consumed} consumed, "
            f"rank {self.rank} of {self.num_replicas}"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()})"


class _Tally(Generic[UnitT]):
    """What one pass has been dealt so far, and how much of it counts as consumed."""

    def __init__(self, epoch: int, share: Share[UnitT]) -> None:
        self.epoch = epoch
        self._share = share
        self._num_dealt = 0
        self._chunk: Iterator[UnitT] = iter(())
        self._loader: _LoaderCount | None = None

    def next_chunk(self, sampler: Sampler[UnitT]) -> Iterator[UnitT]:
        if not self._num_dealt:
            self._loader = _find_loader(sampler)
        units = self._share.units(self._num_dealt)
        self._num_dealt += len(units)
        self._chunk = iter(units)
        return self._chunk

    def drawn(self) -> int:
        # The iterator of a list knows exactly what is left of it: nothing needs counting index by index.
        return self._share.consumed(self._num_dealt - operator.length_hint(self._chunk))

    def consumed(self) -> int:
        return self.drawn() if self._loader is None else self._share.consumed(self._loader.num_units())


class _Pass(Iterator[UnitT], Generic[UnitT]):
    """One iteration. It begins when it is first drawn from: a loader with workers makes two and uses the second."""

    def __init__(self, sampler: ResumableSampler[UnitT]) -> None:
        self._sampler = sampler
        self._tally: _Tally[UnitT] | None = None
        self._chunk: Iterator[UnitT] = iter(())

    def __next__(self) -> UnitT:
        try:
            return next(self._chunk)
        except StopIteration:
            if self._tally is None:
                self._tally = self._sampler._begin()
            self._chunk = self._tally.next_chunk(self._sampler)
        return next(self._chunk)

    def state_dict(self) -> dict[str, int]:
        """Give what was drawn: `StatefulDataLoader` asks as it draws, and keeps account of what it has handed out."""
        if self._tally is None:
            return self._sampler._state(self._sampler._epoch, self._sampler._loaded or 0)
        return self._sampler._state(self._tally.epoch, self._tally.drawn())

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state was taken, in this pass alone.

        `StatefulDataLoader` begins another pass at once where the state is that of a finished one. That pass has the
        epoch that `set_epoch` asked for before, when the state was not loaded yet.
        """
        asked = self._sampler._asked
        self._sampler.load_state_dict(state)
        self._tally = self._sampler._begin()
        self._chunk = iter(())
        if asked is not None:
            self._sampler._epoch = self._sampler._asked = asked


class _LoaderCount:
    """How much a loader has handed out, known also when its iterator is gone.

    Holds the attributes of the iterator but not the iterator itself, whose end stops the workers; when it ends, the
    count is noted and they are let go.
    """

    def __init__(self, iterator: object, units_per_batch: int | None) -> None:
        self._books: dict[str, Any] | None = vars(iterator)
        self._num_batches = 0
        self._units_per_batch = units_per_batch
        # StatefulDataLoader counts on from a loaded state, whose batches this pass has not seen, unless it skips them.
        skips = isinstance(self._books["_sampler_iter"], itertools.islice)
        self._before = 0 if skips else self._books["_num_yielded"]
        this = weakref.ref(self)

        def note(_: object) -> None:
            count = this()
            if count is not None and count._books is not None:
                count._num_batches, count._books = count._books["_num_yielded"], None

        self._iterator = weakref.ref(iterator, note)

    def num_units(self) -> int:
        if self._units_per_batch is None:
            raise ConfigError(
                "the loader draws ahead for its workers, out of order or through a batch sampler of its own kind: how "
                "many samples it has handed out cannot be known. Give the sampler to the loader itself or to "
                "torch.utils.data.BatchSampler, with in_order=True, or use num_workers=0"
            )
        num_batches: int = self._num_batches if self._books is None else self._books["_num_yielded"]
        # A loader with persistent workers counts from 0 again before it draws from its next pass.
        return max(0, num_batches - self._before) * self._units_per_batch


def _find_loader(sampler: Sampler[Any]) -> _LoaderCount | None:
    """Find the loader that draws from a sampler, by the frame in which it does so; None where it is somebody else.

    With workers a loader draws num_workers · prefetch_factor batches ahead, and at the end of an epoch it hands out as
    many without drawing at all. How many it has handed out is in its iterator alone, which it shows neither to the
    sampler nor to its workers, and the user never sees it in `for batch in loader`. The stack is the one place where
    the two meet.
    """
    draws = _BaseDataLoaderIter._next_index.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not draws:
        frame = frame.f_back
    if frame is None:
        return None
    iterator = frame.f_locals["self"]
    source = iterator._index_sampler
    in_order = getattr(iterator, "_in_order", True)  # torch 2.6 has brought it
    if in_order and source is sampler:
        return _LoaderCount(iterator, 1)
    if in_order and isinstance(source, BatchSampler) and source.sampler is sampler and _is_plain(source):
        return _LoaderCount(iterator, source.batch_size)
    # Without workers nothing is drawn ahead; a loader with a state_dict asks as it draws, and wants to know just that.
    if iterator._num_workers == 0 or hasattr(iterator, "state_dict"):
        return None
    return _LoaderCount(iterator, None)


def _is_plain(source: BatchSampler) -> bool:
    """Tell PyTorch's own batch samplers, whose batches are all of one size, from subclasses that may do anything."""
    return type(source).__iter__ is BatchSampler.__iter__ or type(source).__module__.startswith("torchdata.")


def _place_in_job(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    distributed = torch.distributed
    is_initialised = distributed.is_available() and distributed.is_initialized()
    if num_replicas is None:
        num_replicas = distributed.get_world_size() if is_initialised else 1
    if rank is None and num_replicas != 1 and not is_initialised:
        raise ConfigError(
            f"num_replicas={num_replicas!r} without a rank: give both, or call torch.distributed.init_process_group "
            "before and give neither"
        )
    if rank is None:
        rank = distributed.get_rank() if is_initialised else 0
    num_replicas = _whole("num_replicas", num_replicas, start=1)
    return num_replicas, _whole("rank", rank, stop=num_replicas)


def _whole(name: str, value: object, *, start: int = 0, stop: int = 2**63) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not start <= operator.index(value) < stop:
        raise ConfigError(f"{name}={value!r}: expected a whole number from {start} to {stop - 1:,}")
    return operator.index(value)
