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
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import nullcontext
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

# Enough that no thread runs dry while one that reads rows or waits for the network has its turn.
_MAX_INLINE_PER_THREAD, _MAX_FETCHED_PER_THREAD = 8, 16


@dataclass(slots=True)
class Outcome:
    """What became of one row.

    Attributes:
        slot: Its number.
        checksum: Of what was put.
        nbytes: How large that is.
        bytes_fetched: Encoded bytes that were read for it.
        fetch_seconds: What the attempt that brought them took, without the wait for its turn.
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

    def decode(row: Row, fetched: Fetched) -> None:
        begun = written = time.monotonic()
        outcome = Outcome(row.index, bytes_fetched=fetched.num_bytes, fetch_seconds=fetched.seconds, host=fetched.host)
        try:
            assert row.source is not None
            name, encoded = row.source.name, is_encoded(row.index)
            sample, num_frames = make_sample(fetched.data, spec=request.spec, name=name, encoded=encoded)
            written = time.monotonic()
            outcome.checksum, outcome.nbytes = put(row.index, sample, num_frames), sample.nbytes
        except SampleError as error:
            outcome.failure = _failure(row, error)
            written = time.monotonic()
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            done.put(error)
            return
        finally:
            fetched.release()
        outcome.decode_seconds, outcome.write_seconds = written - begun, time.monotonic() - written
        done.put(outcome)

    def on_fetched(row: Row, result: Fetched | BaseException) -> None:
        if isinstance(result, Fetched):
            decoders.submit(row, result)
        elif isinstance(result, SampleError):
            done.put(Outcome(row.index, fetch_seconds=result.seconds, host=result.host, failure=_failure(row, result)))
        elif not isinstance(result, CancelledError):
            done.put(result)

    def next_outcome() -> Outcome:
        outcome = done.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    # Rows whose bytes are still to be fetched may wait in numbers; inline ones hold their bytes while they wait.
    max_fetching, max_inline = most_under_way(request), _MAX_INLINE_PER_THREAD * num_threads
    num_under_way = 0
    with (
        nullcontext() if low_memory is None else MemoryWatch(lambda free, by: done.put(low_memory(free, by))),
        _Decoders(num_threads, decode) as decoders,
        Fetcher(request.fetch, is_backed_up=decoders.have_enough) as fetcher,
    ):
        decoders.on_idle = fetcher.hurry
        for row in itertools.chain.from_iterable(batches):
            if row.source is None:
                error = row.error or SampleError(f"row {row.index} has no media", reason="empty")
                yield Outcome(row.index, failure=_failure(row, error))
                continue
            limit = max_inline if row.source.kind in ("bytes", "object") else max_fetching
            while num_under_way >= limit or not done.empty():
                yield next_outcome()
                num_under_way -= 1
            fetcher.begin(row.source, functools.partial(on_fetched, row))
            num_under_way += 1
        for _ in range(num_under_way):
            yield next_outcome()


def most_under_way(request: LoadRequest) -> int:
    """Count the rows that a run may have begun and not finished."""
    return 2 * request.fetch.concurrency + 4 * request.threads


class _Decoders:
    """Threads that decode what was fetched, in that order; a context manager.

    A plain queue, since an executor's futures cost as much as all else around a decode.

    Attributes:
        on_idle: Called when a thread finds nothing to do.
    """

    def __init__(self, num_threads: int, decode: Callable[[Row, Fetched], None]) -> None:
        self.on_idle: Callable[[], None] = lambda: None
        self._decode = decode
        self._queue: SimpleQueue[tuple[Row, Fetched] | None] = SimpleQueue()
        self._enough = _MAX_FETCHED_PER_THREAD * num_threads
        self._is_closing = False
        self._threads: list[threading.Thread] = [
            threading.Thread(target=self._work, name=f"in-memory-datasets-decode-{number}")
            for number in range(num_threads)
        ]

    def submit(self, row: Row, fetched: Fetched) -> None:
        """Have one source decoded; released at once when all is at an end. From any thread."""
        self._queue.put((row, fetched))

    def have_enough(self) -> bool:
        """Tell whether what waits to be decoded will last for a while."""
        return self._queue.qsize() >= self._enough

    def _work(self) -> None:
        while True:
            if self._queue.empty():
                self.on_idle()
            job = self._queue.get()
            if job is None:
                return
            if self._is_closing:
                job[1].release()
            else:
                self._decode(*job)
            del job  # an idle thread keeps no body alive

    def __enter__(self) -> _Decoders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Let running work end, drop what has not begun, and join the threads."""
        self._is_closing = True
        for _ in self._threads:
            self._queue.put(None)
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
