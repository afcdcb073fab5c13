"""Rows -> fetch -> decode -> a place for each sample, with backpressure.

The calling thread reads rows and takes the outcomes; the fetcher's thread waits for the network; decode threads turn
bytes into samples and put them where they belong. Every hand-over is bounded, so that the peak of memory is what is
put and a constant.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from numpy.typing import NDArray
from typing_extensions import Self

from in_memory_datasets.build.mixture import make_sample
from in_memory_datasets.build.request import LoadRequest
from in_memory_datasets.errors import SampleError
from in_memory_datasets.fetch import Fetched, Fetcher
from in_memory_datasets.memory import MemoryWatch
from in_memory_datasets.schema import Failure, LimitedBy, Row
from in_memory_datasets.store import Placed

# Enough that no thread runs dry while one that reads rows or waits for the network has its turn.
_MAX_INLINE_PER_THREAD, _MAX_FETCHED_PER_THREAD = 8, 16
# Of the rows under way, so many are waited for at once, and so long: to be woken for each costs as much as its books.
_PART_WAITED_FOR, _LONGEST_WAIT_SECONDS = 1 / 2, 0.02


@dataclass(slots=True)
class Outcome:
    """What became of one row.

    Attributes:
        slot: Its number.
        placed: Where its sample was put; None for a failure.
        bytes_fetched: Encoded bytes that were read for it.
        fetch_seconds: What the attempt that brought them took, without the wait for its turn.
        decode_seconds: To make what was put out of them.
        write_seconds: To put it.
        host: Where they came from; "" where no host was asked.
        failure: Why there is nothing to put.
    """

    slot: int
    placed: Placed | None = None
    bytes_fetched: int = 0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    write_seconds: float = 0.0
    host: str = ""
    failure: Failure | None = None


class Outcomes:
    """What became of rows, on its way from many threads to one; an exception ends the run."""

    def __init__(self) -> None:
        self._items: deque[Outcome | BaseException] = deque()
        self._num_wanted = 1
        self._are_enough = threading.Event()

    def put(self, item: Outcome | BaseException) -> None:
        """Pass on what became of a row; from any thread."""
        self._items.append(item)
        if len(self._items) >= self._num_wanted or isinstance(item, BaseException):
            self._are_enough.set()

    def __len__(self) -> int:
        return len(self._items)

    def take(self, num_wanted: int = 1) -> list[Outcome | BaseException]:
        """Take all there are; wait for so many before, but not for long once there is one."""
        for number, seconds in ((num_wanted, _LONGEST_WAIT_SECONDS), (1, None)):
            self._are_enough.clear()
            self._num_wanted = number  # before they are counted, so that one which comes meanwhile is noticed
            if len(self._items) < number:
                self._are_enough.wait(seconds)
            if self._items:
                break
        return [self._items.popleft() for _ in range(len(self._items))]


Put = Callable[[int, NDArray[Any], int], Placed]


class Workshop(Protocol):
    """Where samples are made: what `run` hands rows to; a context manager, which ends what is under way.

    Attributes:
        done: What became of them, in any order.
    """

    done: Outcomes

    def begin(self, row: Row) -> None:
        """Begin with a row that has a source."""

    def flush(self) -> None:
        """Take note that whoever begins is about to wait."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def run(
    batches: Iterator[list[Row]],
    workshop: Workshop,
    request: LoadRequest,
    *,
    low_memory: Callable[[int, LimitedBy], BaseException] | None = None,
) -> Iterator[Outcome]:
    """Fetch, decode and put every row; give the outcomes as they come.

    Args:
        low_memory: Says what to raise when hardly any memory is left; None for a run that does not fill it.

    An exception that is no sample's own ends the run. However it ends, everything under way is cancelled and released.
    """
    # Rows whose bytes are still to be fetched may wait in numbers; inline ones hold their bytes while they wait.
    max_fetching, max_inline = most_under_way(request), _MAX_INLINE_PER_THREAD * request.threads
    num_under_way, done = 0, workshop.done

    def outcomes(num_wanted: int) -> Iterator[Outcome]:
        nonlocal num_under_way
        if len(done) < num_wanted:
            workshop.flush()
        for outcome in done.take(num_wanted):
            if isinstance(outcome, BaseException):
                raise outcome
            num_under_way -= 1
            yield outcome

    with ExitStack() as resources:
        if low_memory is not None:
            watch: AbstractContextManager[object] = MemoryWatch(lambda free, by: done.put(low_memory(free, by)))
            resources.enter_context(watch)
        resources.enter_context(workshop)
        for row in itertools.chain.from_iterable(batches):
            if row.source is None:
                error = row.error or SampleError(f"row {row.index} has no media", reason="empty")
                yield Outcome(row.index, failure=_failure(row, error))
                continue
            limit = max_inline if row.source.kind in ("bytes", "object") else max_fetching
            while num_under_way >= limit or done:
                yield from outcomes(max(1, int(_PART_WAITED_FOR * limit)) if num_under_way >= limit else 1)
            workshop.begin(row)
            num_under_way += 1
        while num_under_way:
            yield from outcomes(num_under_way)


def most_under_way(request: LoadRequest) -> int:
    """Count the rows that a run may have begun and not finished."""
    return 2 * request.fetch.concurrency + 4 * request.threads


class Threads:
    """A workshop in this process: one thread for the network, a few for files, and those that decode.

    Args:
        put: Takes a slot, what is kept of its sample, and of an encoded clip the frames it decodes to; says where it
            lies. Called in several threads.
        is_encoded: Tells whether the sample of a slot is kept encoded.
        max_buffered_bytes: As of `Fetcher`.
    """

    def __init__(
        self,
        put: Put,
        request: LoadRequest,
        *,
        is_encoded: Callable[[int], bool],
        max_buffered_bytes: int = 128 * 2**20,
    ) -> None:
        self.done = Outcomes()
        self._put, self._request, self._is_encoded = put, request, is_encoded
        # A plain queue, since an executor's futures cost as much as all else around a decode.
        self._fetched: SimpleQueue[tuple[Row, Fetched] | None] = SimpleQueue()
        self._enough = _MAX_FETCHED_PER_THREAD * request.threads
        self._is_closing = False
        self._fetcher = Fetcher(request.fetch, max_buffered_bytes=max_buffered_bytes, is_backed_up=self._has_enough)
        self._threads = [
            threading.Thread(target=self._work, name=f"in-memory-datasets-decode-{number}")
            for number in range(request.threads)
        ]

    def begin(self, row: Row) -> None:
        """Begin with a row that has a source."""
        assert row.source is not None
        self._fetcher.begin(row.source, functools.partial(self._take, row))

    def flush(self) -> None:
        """Do nothing: what was begun is under way."""

    def _take(self, row: Row, result: Fetched | BaseException) -> None:
        if isinstance(result, Fetched):
            self._fetched.put((row, result))
        elif isinstance(result, SampleError):
            seconds, failure = result.seconds, _failure(row, result)
            self.done.put(Outcome(row.index, fetch_seconds=seconds, host=failure.host, failure=failure))
        elif not isinstance(result, CancelledError):
            self.done.put(result)

    def _has_enough(self) -> bool:
        return self._fetched.qsize() >= self._enough

    def _work(self) -> None:
        while True:
            if self._fetched.empty():
                self._fetcher.hurry()
            job = self._fetched.get()
            if job is None:
                return
            row, fetched = job
            try:
                if not self._is_closing:
                    self.done.put(self._make(row, fetched))
            except BaseException as error:  # noqa: BLE001 - raised again by whoever runs this
                self.done.put(error)
            finally:
                fetched.release()
            del job, row, fetched  # an idle thread keeps no body alive

    def _make(self, row: Row, fetched: Fetched) -> Outcome:
        """Decode one sample and put it in its place."""
        assert row.source is not None
        outcome = Outcome(row.index, None, fetched.num_bytes, fetched.seconds, host=fetched.host)
        name, encoded, begun = row.source.name, self._is_encoded(row.index), time.monotonic()
        try:
            sample, num_frames = make_sample(fetched.data, spec=self._request.spec, name=name, encoded=encoded)
        except SampleError as error:
            outcome.failure = _failure(row, error)
            outcome.decode_seconds = time.monotonic() - begun
            return outcome
        made = time.monotonic()
        outcome.placed = self._put(row.index, sample, num_frames)
        outcome.decode_seconds, outcome.write_seconds = made - begun, time.monotonic() - made
        return outcome

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Let decodes that run end, drop what has not begun, and join the threads."""
        self._is_closing = True
        self._fetcher.close()
        for _ in self._threads:
            self._fetched.put(None)
        for thread in self._threads:
            thread.join()


def _failure(row: Row, error: SampleError) -> Failure:
    source = row.source
    return Failure(
        index=row.index,
        source=source.label if source else "",
        stage=error.stage,
        reason=error.reason,
        detail=str(error),
        host=error.host or (source.host if source else ""),
        attempts=error.attempts,
    )
