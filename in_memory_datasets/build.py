"""Rows -> fetch -> decode -> store: the only place where they meet.

The calling thread reads rows, keeps the books and draws the progress bar; the fetcher's thread waits for the network;
decode threads turn bytes into samples and write them into the block. Every hand-over is bounded, so that the peak of
memory is the payload and a constant.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from in_memory_datasets.decode import decode_audio, decode_image
from in_memory_datasets.errors import ConfigError, LoadError, MemoryLimitError, SampleError, StoreError
from in_memory_datasets.fetch import Fetched, Fetcher
from in_memory_datasets.memory import free_memory, plan_memory, refuse_if_too_large
from in_memory_datasets.rows import RowReader, source_from_value
from in_memory_datasets.schema import (
    ADDRESS_HINT,
    FORMAT_VERSION,
    AudioSpec,
    Failure,
    FetchOptions,
    ImageSpec,
    LoadReport,
    MemoryPlan,
    Row,
    check_choice,
    count_reasons,
    format_bytes,
    parse_bytes,
)
from in_memory_datasets.store import (
    FAILED,
    HEADER_BYTES,
    Store,
    StoreWriter,
    TableWriter,
    attach_or_build,
    locked,
    open_store,
    share_store,
)

OnError = Literal["placeholder", "skip", "raise"]

# Raised when the same bytes would decode to other samples, so that older caches are built anew.
DECODE_RULES_VERSION = 1
# Rows whose captions are measured for the plan.
_NUM_PROBED_ROWS = 128
# Captions and bookkeeping of a row that cannot be probed, because reading it would use it up.
_ASSUMED_ROW_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """All that a load is told.

    Attributes:
        spec: What each sample is turned into.
        reader: The rows; None where there are none yet, or for a store that was opened from a directory.
        fetch: How sources are fetched.
        on_error: What a failed sample does to the load: only "raise" ends it.
        num_threads: Decode threads; None takes a thread per core this process may use.
        progress: Whether to draw a progress bar, where somebody can see it.
        memory_limit: The user's own limit, in bytes or as text such as "16GB".
        cache_dir: Where stores are kept; None keeps this one in memory.
        job: What the processes that share this load have in common; None for a process on its own.

    Raises:
        ConfigError: One of them cannot work.
    """

    spec: ImageSpec | AudioSpec
    reader: RowReader | None = None
    fetch: FetchOptions = FetchOptions()  # noqa: RUF009 - frozen
    on_error: OnError = "placeholder"
    num_threads: int | None = None
    progress: bool = True
    memory_limit: int | str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    job: str | None = None

    def __post_init__(self) -> None:
        check_choice("on_error", self.on_error, ("placeholder", "skip", "raise"))
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit)
        threads = self.num_threads
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ConfigError(f"num_threads={threads!r}: expected a whole number of at least 1, or None for one a core")


def plan(request: LoadRequest) -> MemoryPlan:
    """Compute what a load would take, without fetching anything."""
    reader, spec = _reader(request), request.spec
    if isinstance(spec, ImageSpec):
        media_bytes = spec.image_size[0] * spec.image_size[1] * 3
    else:
        media_bytes = spec.max_frames * np.dtype(spec.dtype).itemsize + np.dtype(np.int64).itemsize
    empty_bytes = TableWriter().to_buffer().size
    row_bytes: float = _ASSUMED_ROW_BYTES
    if reader.random_access and reader.num_rows:
        probed = np.linspace(0, reader.num_rows - 1, min(reader.num_rows, _NUM_PROBED_ROWS)).round().astype(int)
        table = TableWriter()
        table.add(reader.take(probed.tolist()))
        row_bytes = (table.to_buffer().size - empty_bytes) / len(probed)
    return plan_memory(
        num_samples=reader.num_rows if reader.num_rows is not None else reader.max_rows,
        bytes_per_sample=media_bytes + row_bytes,
        fixed_bytes=empty_bytes + HEADER_BYTES,
        memory_limit=None if request.memory_limit is None else parse_bytes(request.memory_limit),
        is_upper_bound=isinstance(spec, AudioSpec) or reader.num_rows is None,
    )


def load(request: LoadRequest) -> tuple[Store, LoadReport]:
    """Attach to the store of a request, after building it where there is none yet.

    Raises:
        ConfigError: A cache is asked for rows that cannot be told apart from others.
        MemoryLimitError: It does not fit; raised before anything is fetched where the length is known.
        LoadError: No sample could be loaded, or one could not and `on_error` is "raise".
        StoreError: The cached store is damaged, or the disk is full.
    """
    started = time.monotonic()
    reader, bytes_fetched = _reader(request), 0

    def build(directory: Path | None = None) -> Store:
        nonlocal bytes_fetched
        store, bytes_fetched = _build(request, directory)
        return store

    if request.cache_dir is not None:
        if reader.identity is None:
            raise ConfigError(
                "cache_dir= needs rows that can be recognised in the next run, and an iterator is gone once it is "
                "read: pass a Dataset or a list, or keep what was loaded with dataset.save(directory)"
            )
        store = attach_or_build(request.cache_dir, fingerprint(reader.identity, request.spec), build)
    elif request.job is not None:
        store = share_store(request.job, fingerprint(_name_of_rows(reader), request.spec), build)
    else:
        store = build()
    report = store.table.report(seconds=time.monotonic() - started, bytes_fetched=bytes_fetched, nbytes=store.nbytes)
    if request.on_error == "raise" and report.failures:
        store.close()
        raise LoadError(_first_failure(report.failures[0]))
    return store, report


def retry(request: LoadRequest, store: Store, *, attempt: int) -> tuple[Store, LoadReport]:
    """Load again only what failed in a store.

    Args:
        attempt: How often this store was retried before; with it, the processes of one job find one another.

    Returns:
        The mended store, which shares the memory of the old one where samples have a fixed size, and is the old one
        where nothing had failed; and its report.
    """
    started = time.monotonic()
    bytes_fetched = 0

    def mend(broken: Store) -> Store:
        nonlocal bytes_fetched
        mended, bytes_fetched = _mend(request, broken)
        return mended

    if not _failed_slots(store):
        mended = store
    elif store.directory is not None:
        with locked(store.directory):
            current = open_store(store.directory)  # another process may have mended it by now
            mended = mend(current) if _failed_slots(current) else current
            if mended is not current:
                current.close()
    elif request.job is not None and request.reader is not None:
        rows = fingerprint(_name_of_rows(request.reader), request.spec)
        mended = share_store(request.job, f"{rows} retry {attempt}", lambda: mend(store))
    else:
        mended = mend(store)
    report = mended.table.report(seconds=time.monotonic() - started, bytes_fetched=bytes_fetched, nbytes=mended.nbytes)
    return mended, report


def fingerprint(rows: str, spec: ImageSpec | AudioSpec) -> str:
    """Digest all that decides the bytes of a store: 32 hexadecimal figures."""
    parts = [FORMAT_VERSION, DECODE_RULES_VERSION, rows, type(spec).__name__, asdict(spec)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _build(request: LoadRequest, directory: Path | None) -> tuple[Store, int]:
    reader, expected = _reader(request), plan(request)
    refuse_if_too_large(expected, ways_out=_ways_out(request.spec))
    bytes_fetched = 0
    with (
        _disk_errors(directory),
        StoreWriter(request.spec, directory=directory) as writer,
        _progress_bar(request.progress, reader.num_rows) as bar,
    ):
        failures, num_loaded, nbytes = [], 0, 0
        for outcome in _run(_announced(reader, writer), writer.put, request):
            bytes_fetched += outcome.bytes_fetched
            if outcome.failure is not None:
                if request.on_error == "raise":
                    raise LoadError(_first_failure(outcome.failure))
                writer.failed(outcome.failure)
                failures.append(outcome.failure)
            else:
                writer.loaded(outcome.slot, outcome.checksum)
                num_loaded, nbytes = num_loaded + 1, nbytes + outcome.nbytes
                if expected.bytes_needed is None and nbytes > expected.bytes_available:
                    raise MemoryLimitError(
                        f"{num_loaded:,} samples fill the {format_bytes(expected.bytes_available)} there are and more "
                        f"follow: give max_samples={num_loaded - 1}, or {_ways_out(request.spec)}",
                        bytes_needed=nbytes,
                        bytes_available=expected.bytes_available,
                    )
            bar.set_postfix_str(f"{len(failures)} failed, {format_bytes(bytes_fetched)}", refresh=False)
            bar.update()
        if not num_loaded:
            raise LoadError(_nothing_loaded(failures))
        return writer.finish(), bytes_fetched


def _mend(request: LoadRequest, store: Store) -> tuple[Store, int]:
    failed = _failed_slots(store)
    in_memory = store.directory is None
    if isinstance(request.spec, AudioSpec) and in_memory and store.nbytes > (free := free_memory()[0]):
        raise MemoryLimitError(
            f"retrying clips packs them anew, which needs {format_bytes(store.nbytes)} besides what is held; "
            f"{format_bytes(free)} are free: save the dataset to a directory and retry it there",
            bytes_needed=store.nbytes,
            bytes_available=free,
        )
    if request.reader is not None and request.reader.random_access:
        rows = request.reader.take(failed)
    else:
        rows = [row for slot in failed if (row := _row_of_store(store, slot)) is not None]
    bytes_fetched = 0
    with (
        _disk_errors(store.directory),
        StoreWriter(request.spec, directory=store.directory, mend=store) as writer,
        _progress_bar(request.progress, len(rows)) as bar,
    ):
        for outcome in _run(iter([rows]), writer.put, request):
            bytes_fetched += outcome.bytes_fetched
            if outcome.failure is not None:
                writer.failed(outcome.failure)
            else:
                writer.loaded(outcome.slot, outcome.checksum)
            bar.update()
        return writer.finish(), bytes_fetched


def _failed_slots(store: Store) -> list[int]:
    slots: list[int] = np.flatnonzero(store.table.status == FAILED).tolist()
    return slots


def _row_of_store(store: Store, slot: int) -> Row | None:
    """Make a failed row from what the store knows of it; None where its bytes can be had no more."""
    label = store.table.source(slot)
    if not label or label.startswith("<") or "***" in label:
        return None
    return Row(slot, source_from_value(label), ())


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one row."""

    slot: int
    checksum: int = 0
    nbytes: int = 0
    bytes_fetched: int = 0
    failure: Failure | None = None


def _run(
    batches: Iterator[list[Row]], put: Callable[[int, NDArray[Any]], int], request: LoadRequest
) -> Iterator[_Outcome]:
    """Fetch, decode and put every row; give the outcomes as they come.

    An exception that is no sample's own ends the run. However it ends, everything under way is cancelled and released.
    """
    num_threads = request.num_threads or num_cores()
    done: SimpleQueue[_Outcome | BaseException] = SimpleQueue()
    decode = functools.partial(_DECODERS[type(request.spec)], spec=request.spec)

    def finish(row: Row, fetched: Fetched) -> None:
        try:
            assert row.source is not None
            sample = decode(fetched.data, name=row.source.name)
            done.put(_Outcome(row.index, put(row.index, sample), sample.nbytes, fetched.num_bytes))
        except SampleError as error:
            done.put(_Outcome(row.index, bytes_fetched=fetched.num_bytes, failure=_failure(row, error)))
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            done.put(error)
        finally:
            fetched.release()

    def on_fetched(row: Row, future: Future[Fetched]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            try:
                threads.submit(finish, row, future.result())
            except RuntimeError:  # the run has ended and takes no more
                future.result().release()
        else:
            done.put(_Outcome(row.index, failure=_failure(row, error)) if isinstance(error, SampleError) else error)

    def next_outcome() -> _Outcome:
        outcome = done.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    # Rows whose bytes are still to be fetched may wait in numbers; inline ones hold their bytes while they wait.
    max_fetching, max_inline = 2 * request.fetch.concurrency + 4 * num_threads, 4 * num_threads
    num_under_way = 0
    with (
        Fetcher(request.fetch) as fetcher,
        _cancelling(ThreadPoolExecutor(num_threads, thread_name_prefix="in-memory-datasets-decode")) as threads,
    ):
        for row in itertools.chain.from_iterable(batches):
            if row.source is None:
                error = row.error or SampleError(f"row {row.index} has no media", reason="empty")
                yield _Outcome(row.index, failure=_failure(row, error))
                continue
            limit = max_inline if row.source.kind in ("bytes", "object") else max_fetching
            while num_under_way >= limit or not done.empty():
                yield next_outcome()
                num_under_way -= 1
            fetcher.submit(row.source).add_done_callback(functools.partial(on_fetched, row))
            num_under_way += 1
        for _ in range(num_under_way):
            yield next_outcome()


_DECODERS: dict[type, Callable[..., NDArray[Any]]] = {ImageSpec: decode_image, AudioSpec: decode_audio}


def _announced(reader: RowReader, writer: StoreWriter) -> Iterator[list[Row]]:
    """Enter each batch of rows into the books before any of its samples can arrive."""
    for rows in reader.batches():
        writer.add_rows(rows)
        yield rows


@contextmanager
def _cancelling(threads: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Let running work end, drop what has not begun, and join the threads."""
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


@contextmanager
def _disk_errors(directory: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        place = "shared memory" if directory is None else str(directory)
        raise StoreError(
            f"cannot write the samples to {place}: {error.strerror}; make room there and load again"
        ) from error


@contextmanager
def _progress_bar(wanted: bool, num_rows: int | None) -> Iterator[Any]:
    # tqdm's own disable=None would also silence notebooks, whose streams are no terminals.
    visible = wanted and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    with tqdm(total=num_rows, desc="Loading into memory", unit="sample", disable=not visible) as bar:
        yield bar


def num_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reader(request: LoadRequest) -> RowReader:
    assert request.reader is not None, "a store that was opened from a directory is never loaded again"
    return request.reader


_unnamed = itertools.count()


def _name_of_rows(reader: RowReader) -> str:
    """Name rows for the other processes of a job.

    An iterator has no identity; the same script reaches the same one in the same turn in each of its processes.
    """
    return reader.identity or f"iterator {next(_unnamed)}"


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


def _first_failure(failure: Failure) -> str:
    return f'{failure}. With on_error="placeholder" or "skip" the load goes on without it'


def _nothing_loaded(failures: list[Failure]) -> str:
    if not failures:
        return "the dataset has no rows: look at its split and filters"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in count_reasons(failures).items())
    hint = ADDRESS_HINT if any(failure.reason == "blocked_address" for failure in failures) else ""
    return f"0 of {len(failures):,} samples loaded: {reasons}; the first is {failures[0]}{hint}"


def _ways_out(spec: ImageSpec | AudioSpec) -> str:
    if isinstance(spec, ImageSpec):
        return "take a smaller image_size"
    return "give max_duration= of your longest clip" + ("" if spec.dtype == "int16" else ', or dtype="int16"')
