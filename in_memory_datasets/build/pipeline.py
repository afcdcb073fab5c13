"""Rows -> fetch -> decode -> a place for each sample, with backpressure.

The calling thread reads rows and takes the outcomes; the fetcher's thread waits for the network; decode threads turn
bytes into samples and put them where they belong. Every hand-over is bounded, so that the peak of memory is what is
put and a constant.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from numpy.typing import NDArray

from in_memory_datasets.build.mixture import make_sample
from in_memory_datasets.build.request import LoadRequest
from in_memory_datasets.errors import SampleError
from in_memory_datasets.fetch import Fetched, Fetcher
from in_memory_datasets.memory import MemoryWatch
from in_memory_datasets.schema import Failure, LimitedBy, Row


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row.

    Attributes:
        slot: Its number.
        checksum: Of what was put.
        nbytes: How large that is.
        bytes_fetched: Encoded bytes that were read for it.
        fetch_seconds: From asking for them to having them.
        decode_seconds: To make what was put out of them.
        write_seconds: To put it.
        host: Where they came from; "" where no host was asked.
        failure: Why there is nothing to put.
    """

    slot: int
    checksum: int = 0
    nbytes: int = 0
    bytes_fetched: int = 0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    write_seconds: float = 0.0
    host: str = ""
    failure: Failure | None = None


def run(
    batches: Iterator[list[Row]],
    put: Callable[[int, NDArray[Any], int], int],
    request: LoadRequest,
    *,
    is_encoded: Callable[[int], bool],
    low_memory: Callable[[int, LimitedBy], BaseException] | None = None,
) -> Iterator[Outcome]:
    """Fetch, decode and put every row; give the outcomes as they come.

    Args:
        put: Takes a slot, what is kept of its sample, and of an encoded clip the frames it decodes to; gives a
            checksum. Called in several threads.
        is_encoded: Tells whether the sample of a slot is kept encoded.
        low_memory: Says what to raise when hardly any memory is left; None for a run that does not fill it.

    An exception that is no sample's own ends the run. However it ends, everything under way is cancelled and released.
    """
    num_threads = request.threads
    done: SimpleQueue[Outcome | BaseException] = SimpleQueue()

    def finish(row: Row, fetched: Fetched, fetch_seconds: float) -> None:
        started = time.monotonic()
        try:
            assert row.source is not None
            name, encoded = row.source.name, is_encoded(row.index)
            sample, num_frames = make_sample(fetched.data, spec=request.spec, name=name, encoded=encoded)
            written = time.monotonic()
            checksum = put(row.index, sample, num_frames)
            seconds = fetch_seconds, written - started, time.monotonic() - written
            done.put(Outcome(row.index, checksum, sample.nbytes, fetched.num_bytes, *seconds, row.source.host))
        except SampleError as error:
            failure, decode_seconds = _failure(row, error), time.monotonic() - started
            times = fetch_seconds, decode_seconds
            done.put(Outcome(row.index, 0, 0, fetched.num_bytes, *times, host=failure.host, failure=failure))
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            done.put(error)
        finally:
            fetched.release()

    def on_fetched(row: Row, asked: float, future: Future[Fetched]) -> None:
        if future.cancelled():
            return
        error, seconds = future.exception(), time.monotonic() - asked
        if error is None:
            try:
                threads.submit(finish, row, future.result(), seconds)
            except RuntimeError:  # the run has ended and takes no more
                future.result().release()
        elif isinstance(error, SampleError):
            failure = _failure(row, error)
            done.put(Outcome(row.index, fetch_seconds=seconds, host=failure.host, failure=failure))
        else:
            done.put(error)

    def next_outcome() -> Outcome:
        outcome = done.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    # Rows whose bytes are still to be fetched may wait in numbers; inline ones hold their bytes while they wait.
    max_fetching, max_inline = most_under_way(request), 4 * num_threads
    num_under_way = 0
    with (
        nullcontext() if low_memory is None else MemoryWatch(lambda free, by: done.put(low_memory(free, by))),
        Fetcher(request.fetch) as fetcher,
        _cancelling(ThreadPoolExecutor(num_threads, thread_name_prefix="in-memory-datasets-decode")) as threads,
    ):
        for row in itertools.chain.from_iterable(batches):
            if row.source is None:
                error = row.error or SampleError(f"row {row.index} has no media", reason="empty")
                yield Outcome(row.index, failure=_failure(row, error))
                continue
            limit = max_inline if row.source.kind in ("bytes", "object") else max_fetching
            while num_under_way >= limit or not done.empty():
                yield next_outcome()
                num_under_way -= 1
            asked = time.monotonic()
            fetcher.submit(row.source).add_done_callback(functools.partial(on_fetched, row, asked))
            num_under_way += 1
        for _ in range(num_under_way):
            yield next_outcome()


def most_under_way(request: LoadRequest) -> int:
    """Count the rows that a run may have begun and not finished."""
    return 2 * request.fetch.concurrency + 4 * request.threads


@contextmanager
def _cancelling(threads: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Let running work end, drop what has not begun, and join the threads."""
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


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
