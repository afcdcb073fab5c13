"""Memory that worker processes and the process they serve both map, for batches on their way.

The ordinary way puts every batch into a new file of shared memory: the worker copies it there, and both sides pay for
new pages. Here a worker gathers a batch where the other side already looks, only the place is sent, and the place is
used again when both sides have let go of it.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from in_memory_datasets.errors import StoreError
from in_memory_datasets.store import Block, is_alive
from in_memory_datasets.training.buffers import round_up

_NUM_PLACES = 256
# Each place may grow to this: addresses cost nothing, and memory is taken by what was written alone.
_PLACE_BYTES = 2**32
# The first places keep their pages when they are free. Who holds more batches than these gets new pages for the rest.
_NUM_WARM_PLACES = 32
_TABLE_BYTES = 2**16

_NUMBER, _SENDER, _RECEIVER = range(3)  # the columns of the table


@dataclass(frozen=True, slots=True)
class Ticket:
    """What is sent instead of a tensor: where it lies in the ring.

    Attributes:
        place: Which place.
        number: How often that place had been taken; when it is another, something else lies there.
        offset: Bytes from the start of the place.
        dtype: As of the tensor, and so are the next two.
        shape: In elements.
        stride: In elements.
    """

    place: int
    number: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """Count the bytes from the start of the place to the end of the tensor."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.offset + (last + 1) * self.dtype.itemsize


class _Lease(NamedTuple):
    """That a place is held, for as long as there are views of its memory."""

    memory: weakref.ref[NDArray[np.uint8]]
    place: int
    number: int
    role: int
    pid: int


class Ring:
    """Places for batches in one block of shared memory; a place is free when sender and receiver have let go of it.

    Who holds a place is written in the block, as a process number, so that what a process held is free when it has
    ended, however it ended. What is under way bears the number of its sender, below 0.

    Pickled plainly it is another ring; sent to a worker process it is a handle on the same memory.

    Raises:
        OSError: The machine gives no such block.
    """

    def __init__(self, block: Block | None = None, name: str = "") -> None:
        reduction.ForkingPickler.register(Ring, _reduce_to_handle)
        self._block = Block.anonymous("ring") if block is None else block
        if block is None:
            self._block.resize(_TABLE_BYTES + _NUM_PLACES * _PLACE_BYTES)
        self.name = name or os.urandom(8).hex()
        self._table = np.frombuffer(self._block.map(0, _TABLE_BYTES), np.int64)[: 3 * _NUM_PLACES].reshape(-1, 3)
        self._maps: dict[int, mmap.mmap] = {}
        self._leases: dict[int, _Lease] = {}
        self._locks: dict[int, threading.RLock] = {}  # by process: a forked child may have found one taken
        _rings[self.name] = self

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """Give an uninitialised tensor in a free place, for sending; None where there is none. Thread-safe."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if not 0 < num_bytes <= _PLACE_BYTES or (place := self._claim()) is None:
            return None
        try:
            lease = self._lease(place, num_bytes, _SENDER)
        except OSError:  # no more addresses or maps to be had: the batch goes the ordinary way
            self._table[place, _SENDER] = 0
            return None
        return torch.from_numpy(lease).view(dtype).view(shape)

    def send(self, tensor: torch.Tensor) -> Ticket | None:
        """Put the place of a tensor under way; None for a tensor that lies elsewhere."""
        address, me = tensor.data_ptr(), os.getpid()
        for place, memory in list(self._maps.items()):
            offset = address - np.frombuffer(memory, np.uint8).ctypes.data
            if 0 <= offset < len(memory) and self._table[place, _SENDER] == me:
                self._table[place, _RECEIVER] = -me
                number = int(self._table[place, _NUMBER])
                return Ticket(place, number, offset, tensor.dtype, tuple(tensor.shape), tensor.stride())
        return None

    def receive(self, tickets: Sequence[Ticket]) -> list[torch.Tensor]:
        """Give the tensors of one message; their places are held until the last view of them is gone.

        Raises:
            StoreError: Something else lies in a place by now.
        """
        self._let_go_of_what_is_gone()
        if any(self._table[ticket.place, _NUMBER] != ticket.number for ticket in tickets):
            raise StoreError("a worker process died while its batch was under way, and the batch is gone")
        ends: dict[int, int] = {}
        for ticket in tickets:
            ends[ticket.place] = max(ends.get(ticket.place, 0), ticket.end)
        storages = {}
        for place, end in ends.items():
            storages[place] = torch.from_numpy(self._lease(place, end, _RECEIVER)).untyped_storage()
            self._table[place, _RECEIVER] = os.getpid()
        return [
            torch.empty(0, dtype=ticket.dtype).set_(
                storages[ticket.place], ticket.offset // ticket.dtype.itemsize, ticket.shape, ticket.stride
            )
            for ticket in tickets
        ]

    def _claim(self) -> int | None:
        """Take a free place, one whose pages this process knows if it can be."""
        with self._one_thread(), self._one_process():
            free = np.flatnonzero(~self._table[:, _SENDER:].any(axis=1)).tolist()
            place = next((place for place in self._maps if place in free), None)
            if place is None:
                self._bury_the_dead()
                free = np.flatnonzero(~self._table[:, _SENDER:].any(axis=1)).tolist()
                if not free:
                    return None
                place = int(free[0])
            self._table[place, _NUMBER] += 1
            self._table[place, _SENDER] = os.getpid()
            return place

    def _one_thread(self) -> threading.RLock:
        me = os.getpid()
        return self._locks.get(me) or self._locks.setdefault(me, threading.RLock())

    @contextmanager
    def _one_process(self) -> Iterator[None]:
        fcntl.lockf(self._block.fd, fcntl.LOCK_EX)  # let go of by the kernel when its holder dies
        try:
            yield
        finally:
            fcntl.lockf(self._block.fd, fcntl.LOCK_UN)

    def _bury_the_dead(self) -> None:
        holders = self._table[:, _SENDER:]
        for pid in np.unique(np.abs(holders)).tolist():
            if pid and not is_alive(pid):
                holders[np.abs(holders) == pid] = 0

    def _lease(self, place: int, num_bytes: int, role: int) -> NDArray[np.uint8]:
        """Give the memory of a place to somebody, until the last view of it is gone."""
        memory = np.frombuffer(self._map(place, num_bytes), np.uint8, num_bytes)
        reference = weakref.ref(memory, self._hear_that_it_is_gone)
        number = int(self._table[place, _NUMBER])
        self._leases[id(reference)] = _Lease(reference, place, number, role, os.getpid())
        return memory

    def _hear_that_it_is_gone(self, reference: weakref.ref[NDArray[np.uint8]]) -> None:
        # A signal handler may raise in here, as PyTorch's does when a worker has died, and Python drops such an error.
        self._let_go(id(reference))

    def _let_go_of_what_is_gone(self) -> None:
        """Let go of places that were not let go of when their last view went, because a signal came in between."""
        for key in list(self._leases):
            self._let_go(key)

    def _let_go(self, key: int) -> None:
        with self._one_thread():
            lease = self._leases.get(key)
            if lease is None or lease.memory() is not None:
                return
            place, holders = lease.place, self._table[lease.place]
            # In a forked child the last view goes too, of a place that is its parent's.
            if lease.pid == os.getpid() == holders[lease.role] and lease.number == holders[_NUMBER]:
                if lease.role == _RECEIVER and place >= _NUM_WARM_PLACES and hasattr(mmap, "MADV_REMOVE"):
                    self._maps[place].madvise(mmap.MADV_REMOVE)
                holders[lease.role] = 0
            self._leases.pop(key, None)

    def _map(self, place: int, num_bytes: int) -> mmap.mmap:
        memory = self._maps.get(place)
        if memory is None or len(memory) < num_bytes:
            length = min(_PLACE_BYTES, -(-round_up(num_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE)
            memory = self._maps[place] = self._block.map(_TABLE_BYTES + place * _PLACE_BYTES, length)
        return memory

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_ring, ()


_rings: weakref.WeakValueDictionary[str, Ring] = weakref.WeakValueDictionary()


def shared_ring() -> Ring | None:
    """Give the ring of this process, which all its datasets share; None where the machine has no memory for one."""
    for ring in _rings.values():
        return ring
    try:
        return Ring()
    except OSError:
        return None


def ring_of_worker() -> Ring | None:
    """Give the ring that this process can send batches through; None for all but the workers of a `DataLoader`."""
    return None if get_worker_info() is None else next(iter(_rings.values()), None)


def ring_named(name: str) -> Ring:
    """Find the ring that a batch came through.

    Raises:
        StoreError: This process does not have it.
    """
    ring = _rings.get(name)
    if ring is None:
        raise StoreError(
            "a batch came from a worker process whose dataset is no longer in this one: keep the dataset for as long "
            "as its batches are taken"
        )
    return ring


def _reduce_to_handle(ring: Ring) -> tuple[Any, ...]:
    return _from_handle, (ring._block, ring.name)


def _from_handle(block: Block, name: str) -> Ring:
    return _rings.get(name) or Ring(block, name)
