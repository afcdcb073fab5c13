"""A load that goes on while its samples are read."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.build.loading import load
from in_memory_datasets.build.pipeline import Workshop
from in_memory_datasets.build.request import LoadRequest
from in_memory_datasets.errors import ConfigError, InMemoryDatasetsError, LoadError, StoreError
from in_memory_datasets.schema import Effort
from in_memory_datasets.store import LiveStore, Store

Order = Callable[[], Iterator[NDArray[np.int64]]]
"""Gives rows in the order they will be wanted, int64, in pieces."""

_ELSEWHERE = "only the process that loads this dataset has this: ask there, or start this one after wait()"
_NUM_AT_ONCE = 32  # samples that are begun between two looks at what is waited for
_END_SECONDS = 10.0


class Loading:
    """One load in a thread of its own; while it goes on, samples are read from `live`.

    Samples are loaded in this order: those that somebody waits for, then as `expect` said, then by number.

    In a worker process, forked or started anew, it is what samples are read from and no more. Pickled plainly it is the
    finished store.

    Args:
        request: All that the load is told.

    Raises:
        ConfigError: The rows cannot be read in any order but their own, or which are served depends on which can be
            loaded, or they are not to lie decoded.

    Attributes:
        live: What samples are read from; None before there is something to read.
    """

    def __init__(self, request: LoadRequest) -> None:
        _refuse_if_not_readable_early(request)
        reduction.ForkingPickler.register(Loading, _reduce_to_handle)
        self.live: LiveStore | None = None
        self._pid = os.getpid()
        self._result: tuple[Store, Effort] | None = None
        self._error: BaseException | None = None
        self._expected: Iterator[NDArray[np.int64]] = iter(())  # slots, a few at a time
        self._next_number = 0  # below it, all are begun
        self._stop: Callable[[], object] = lambda: None
        self._is_cancelled = False
        self._is_readable, self._has_ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(request,), name="in-memory-datasets-load", daemon=True)
        _wait_before_forks(self)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Tell whether the store is there, in this process."""
        return self._result is not None

    @property
    def progress(self) -> float:
        """Share of the samples that are there, or have failed, 0 to 1."""
        if self.has_ended:
            return 1.0
        return 0.0 if self.live is None else self.live.progress

    def expect(self, order: Order) -> None:
        """Load what is not under way yet in this order; what it does not name comes after that."""
        self._expected = (
            piece[start : start + _NUM_AT_ONCE] for piece in order() for start in range(0, len(piece), _NUM_AT_ONCE)
        )

    def wait_until_readable(self) -> LiveStore | None:
        """Wait until samples can be asked for; give what from, or None where the store is finished.

        Raises:
            InMemoryDatasetsError: The load has failed before there was anything to read.
        """
        if self.live is None:
            self._is_readable.wait()
            if self.live is None and self._error is not None:
                raise self._error
        return None if self.has_ended else self.live

    def wait_for(self, numbers: NDArray[np.int64]) -> None:
        """Wait until some samples can be read, or have failed.

        Raises:
            InMemoryDatasetsError: The load has failed.
        """
        assert self.live is not None
        try:
            self.live.wait_for(numbers)
        except LoadError:
            if self._error is not None:
                raise self._error from None
            raise

    def wait(self, timeout_seconds: float | None = None) -> tuple[Store, Effort]:
        """Wait for the end, and give what `load` gives.

        Raises:
            TimeoutError: It has not come in time; the load goes on.
            InMemoryDatasetsError: The load has failed.
        """
        if os.getpid() != self._pid and self._result is None:
            raise StoreError(_ELSEWHERE)
        if not self._has_ended.wait(timeout_seconds):
            raise TimeoutError(f"the dataset is not loaded after {timeout_seconds:g} s; it goes on loading")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def cancel(self) -> None:
        """End the load as it is and wait for that; what is in place in a `cache_dir` stays there."""
        if os.getpid() == self._pid:
            self._is_cancelled = True
            self._stop()
            self._thread.join(_END_SECONDS)
            if self.live is not None:
                self.live.close()

    def begun(self, live: LiveStore, workshop: Workshop) -> None:
        """Take note of what is read from, and where the samples are made."""
        self._stop = functools.partial(
            workshop.done.put, _CancelledError("the dataset was closed while it was loading")
        )
        self.live = live
        self._is_readable.set()
        if self._is_cancelled:
            self._stop()

    def attached(self, live: LiveStore) -> None:
        """Take note of what is read from, while another process makes the samples."""
        self.live = live
        self._is_readable.set()

    def next_numbers(self, is_begun: NDArray[np.bool_], live: LiveStore) -> NDArray[np.int64]:
        """Give the numbers of the samples that are to be loaded next; empty when all are begun."""
        wanted = np.flatnonzero((live.wanted != 0) & ~is_begun)
        if len(wanted):
            return wanted[:_NUM_AT_ONCE]
        for numbers in self._expected:
            numbers = live.table.sample_of(numbers)
            # Of rows that share a sample, the turn of the first counts.
            numbers = numbers[np.sort(np.unique(numbers, return_index=True)[1])]
            if len(numbers := numbers[~is_begun[numbers]]):
                return numbers
        rest = self._next_number + np.flatnonzero(~is_begun[self._next_number :])[:_NUM_AT_ONCE]
        if len(rest):
            self._next_number = int(rest[0])
        return rest

    def _run(self, request: LoadRequest) -> None:
        try:
            self._result = load(request, self)
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits for it
            self._error = error
            if self.live is not None:
                self.live.break_off(str(error))
        finally:
            self._is_readable.set()
            self._has_ended.set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Finished, (self.wait()[0],)


class _CancelledError(InMemoryDatasetsError):
    """Report that a load was ended by whoever began it."""


class Finished:
    """What a load is in another process, or was: the store, or what is read from while another process loads it."""

    def __init__(self, store: Store | None, live: LiveStore | None = None) -> None:
        self.live, self._store = live, store

    @property
    def has_ended(self) -> bool:
        """Tell whether the store is there, in this process."""
        return self._store is not None

    def wait_until_readable(self) -> LiveStore | None:
        """Give what samples are read from; None where the store is finished."""
        return self.live

    def wait_for(self, numbers: NDArray[np.int64]) -> None:
        """Wait until some samples can be read, or have failed.

        Raises:
            LoadError: The load has failed.
        """
        assert self.live is not None
        self.live.wait_for(numbers)

    def expect(self, order: Order) -> None:
        """Do nothing: the order is that of the process which loads."""

    def cancel(self) -> None:
        """Give up what is read from; the load goes on in its own process."""
        if self.live is not None:
            self.live.close()

    @property
    def progress(self) -> float:
        """Share of the samples that are there, or have failed, 0 to 1."""
        return 1.0 if self.live is None else self.live.progress

    def wait(self, timeout_seconds: float | None = None) -> tuple[Store, Effort]:
        """Give the store.

        Raises:
            StoreError: Another process loads it.
        """
        if self._store is None:
            raise StoreError(_ELSEWHERE)
        return self._store, Effort()


def _reduce_to_handle(loading: Loading) -> tuple[Any, ...]:
    live = loading.wait_until_readable()
    return Finished, ((loading.wait()[0] if live is None else None), live)


def _refuse_if_not_readable_early(request: LoadRequest) -> None:
    reader, reason = request.rows, ""
    if not reader.random_access:
        reason = (
            "its rows can only be read in order, and are loaded in the order that they are wanted in: pass a Dataset"
        )
    elif reader.takes_what_fits:
        reason = 'with max_samples="auto" its length is known when all is loaded: give a number'
    elif request.on_error == "skip":
        reason = 'with on_error="skip" it is known when all is loaded which samples it has: take "placeholder"'
    elif request.storage != "decoded":
        reason = f'samples that arrive lie decoded: take storage="decoded", not {request.storage!r}'
    if reason:
        raise ConfigError(
            f"wait=False reads from the dataset while it is loaded, but {reason}, or leave out wait=False"
        )


_loadings: weakref.WeakSet[Loading] = weakref.WeakSet()


def _wait_before_forks(loading: Loading) -> None:
    """Let no process be forked before it can read from a load: afterwards it could not hear of it any more."""
    _register_once()
    _loadings.add(loading)


@functools.cache
def _register_once() -> None:
    os.register_at_fork(before=_wait_for_all)


def _wait_for_all() -> None:
    for loading in _loadings:
        loading._is_readable.wait()
