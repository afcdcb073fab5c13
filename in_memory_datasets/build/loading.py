"""One load: attach to the store of a request, or build it, or mend what failed in it."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.build.bars import progress_bar, waiting_bar
from in_memory_datasets.build.duplicates import SampleNumbers, first_rows
from in_memory_datasets.build.keeping import refuse_if_not_lockable
from in_memory_datasets.build.mixture import max_sample_bytes, promote_what_fits
from in_memory_datasets.build.pipeline import Threads, Workshop, most_under_way, run
from in_memory_datasets.build.planning import is_surely_too_large, plan, plan_without_repeats, ways_out
from in_memory_datasets.build.processes import make_workshop
from in_memory_datasets.build.request import LoadRequest
from in_memory_datasets.build.tally import Tally
from in_memory_datasets.errors import ConfigError, LoadError, MemoryLimitError
from in_memory_datasets.memory import FLOOR_BYTES, available_memory, free_memory, refuse_if_too_large
from in_memory_datasets.rows import RowReader, source_from_value
from in_memory_datasets.schema import (
    FORMAT_VERSION,
    REASONS,
    Effort,
    Failure,
    ImageSpec,
    LimitedBy,
    MemoryPlan,
    Row,
    count_reasons,
    format_bytes,
    hints_for,
    parse_bytes,
)
from in_memory_datasets.store import (
    FAILED,
    LiveStore,
    Pieces,
    Store,
    StoreWriter,
    attach_or_build,
    cache,
    disk_errors,
    locked,
    open_store,
    share_store,
    spec_to_json,
)

# Raised when the same bytes would decode to other samples, so that older caches are built anew.
DECODE_RULES_VERSION = 1


class Follower(Protocol):
    """Who reads samples of a load while they arrive."""

    def next_numbers(self, is_begun: NDArray[np.bool_], live: LiveStore) -> NDArray[np.int64]:
        """Give the numbers of the samples that are to be loaded next, none of them begun; empty when all are."""

    def begun(self, live: LiveStore, workshop: Workshop) -> None:
        """Take note of what is read from, and where the samples are made."""

    def attached(self, live: LiveStore) -> None:
        """Take note of what is read from, while another process makes the samples; it is the follower's now."""


def load(request: LoadRequest, follower: Follower | None = None) -> tuple[Store, Effort]:
    """Attach to the store of a request, after building it where there is none yet.

    Args:
        follower: Who is given the samples while they arrive, in an order of its own; None where nobody looks before all
            are there.

    Returns:
        The store, and what it took.

    Raises:
        ConfigError: A cache is asked for rows that cannot be told apart from others.
        MemoryLimitError: It does not fit; raised before anything is fetched where the length is known.
        LoadError: No sample could be loaded, or one could not and `on_error` is "raise".
        StoreError: The cached store is damaged; or the disk is full, or may not be written.
    """
    started = time.monotonic()
    reader, effort = request.rows, Effort()

    def build(directory: Path | None = None, show: Callable[[LiveStore], None] = lambda live: None) -> Store:
        nonlocal effort
        store, effort = _build(request, directory, follower, show)
        return store

    if request.cache_dir is not None:
        if reader.identity is None:
            raise ConfigError(
                "cache_dir= needs rows that can be recognised in the next run, and an iterator is gone once it is "
                "read: pass a Dataset or a list, or keep what was loaded with dataset.save(directory)"
            )
        directory, name = cache.resolve(request.cache_dir), fingerprint(reader.identity, request)

        def attach(show: Callable[[LiveStore], None] = lambda live: None) -> Store:
            with disk_errors(directory), waiting_bar(request.progress, reader.num_rows) as show_progress:
                return attach_or_build(directory, name, functools.partial(build, show=show), on_waiting=show_progress)

        if request.job is not None and follower is not None:  # who only waits for the lock could read nothing meanwhile
            share_store(request.job, f"{directory} {name}", attach, on_live=follower.attached).close()
        store = attach()
        cache.keep_to_limit(directory)
    elif request.job is not None:
        name = fingerprint(_name_of_rows(reader), request)
        on_live = (lambda live: live.close()) if follower is None else follower.attached
        store = share_store(request.job, name, functools.partial(build, None), on_live=on_live)
    else:
        store = build()
    if request.on_error == "raise" and (failures := store.table.failures()):
        store.close()
        raise LoadError(_first_failure(failures[0], reader))
    return store, replace(effort, seconds=time.monotonic() - started)


def retry(
    request: LoadRequest, store: Store, *, attempt: int, reasons: Collection[str] | None = None
) -> tuple[Store, Effort]:
    """Load again only what failed in a store.

    Args:
        attempt: How often this store was retried before; with it, the processes of one job find one another.
        reasons: Only what failed for one of these; with "checksum", also what differs from its checksum now.

    Returns:
        The mended store, which shares the memory of the old one where samples have a fixed size, and is the old one
        where there is nothing to load; and what it took.

    Raises:
        ConfigError: There is no such reason.
        StoreError: The disk is full, or may not be written; what was there is as it was.
    """
    started = time.monotonic()
    effort = Effort()
    if isinstance(reasons, str) or not set(reasons or ()) <= set(REASONS):
        raise ConfigError(f"reasons={reasons!r}: expected a set of {', '.join(map(repr, REASONS[1:]))}")

    def mend(broken: Store) -> Store:
        nonlocal effort
        slots = _slots_to_mend(broken, reasons)
        if not slots:
            return broken
        mended, effort = _mend(request, broken, slots)
        return mended

    looks_further = reasons is not None and "checksum" in reasons
    if not looks_further and not _slots_to_mend(store, reasons):
        mended = store
    elif store.directory is not None:
        with disk_errors(store.directory, "cannot mend the samples in"), locked(store.directory):
            current = open_store(store.directory)  # another process may have mended it by now
            mended = mend(current)
            if mended is not current:
                current.close()
    elif request.job is not None and request.reader is not None:
        rows = fingerprint(_name_of_rows(request.reader), request)
        which = "" if reasons is None else f" {sorted(reasons)}"
        mended = share_store(request.job, f"{rows} retry {attempt}{which}", lambda show: mend(store))
    else:
        mended = mend(store)
    return mended, replace(effort, seconds=time.monotonic() - started)


def memory_for(store: Store | Pieces, request: LoadRequest) -> int | None:
    """Give the memory there is for the files of a store; None for one that lies in memory anyway."""
    if store.directory is None:
        return None
    limit = None if request.memory_limit is None else parse_bytes(request.memory_limit)
    return min(available_memory(), limit or sys.maxsize)


def fingerprint(rows: str, request: LoadRequest) -> str:
    """Digest all that decides the bytes of a store: 32 hexadecimal figures.

    How much of a mixture lies decoded depends on the memory there was when it was built, which makes no other samples
    of them and so is not counted.
    """
    spec = request.spec
    parts = [FORMAT_VERSION, DECODE_RULES_VERSION, rows, type(spec).__name__, spec_to_json(spec)["spec"]]
    if request.storage != "decoded":
        parts.append(request.storage)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _build(
    request: LoadRequest, directory: Path | None, follower: Follower | None, show: Callable[[LiveStore], None]
) -> tuple[Store, Effort]:
    reader, is_fixed = request.rows, isinstance(request.spec, ImageSpec)
    # What there is no room for may stay on the disk, where the user leaves that to us.
    may_overflow = request.storage == "auto" and directory is not None and not reader.takes_what_fits
    expected = plan(request)
    if not may_overflow and not reader.takes_what_fits:
        expected = plan_without_repeats(request, expected)
    encoded = request.storage == "encoded" or (
        request.storage == "auto" and (expected.num_decoded is None or expected.num_decoded != expected.num_samples)
    )
    room = expected.bytes_available
    if reader.takes_what_fits:
        if not expected.num_samples_that_fit:
            raise _not_one_fits(request, expected)
        if encoded or not is_fixed:  # rows are read until the memory is full, and those under way come on top
            room = min(room, available_memory() - most_under_way(request) * max_sample_bytes(request.spec))
    elif not may_overflow and is_surely_too_large(request, expected):
        refuse_if_too_large(expected, ways_out=ways_out(request))

    if request.lock_memory and expected.bytes_needed is not None and not expected.is_upper_bound:
        refuse_if_not_lockable(expected.bytes_needed)

    def low_memory(free: int, limited_by: LimitedBy) -> MemoryLimitError:
        return _low_memory(free, limited_by, writer.num_loaded, directory)

    tally = Tally(request.threads)
    num_rows = expected.num_samples if reader.takes_what_fits or reader.num_rows is None else reader.num_rows
    with (
        disk_errors(directory),
        StoreWriter(request.spec, encoded=encoded, directory=directory) as writer,
        progress_bar(request.progress, num_rows) as bar,
    ):
        num_failed = 0
        most = expected.num_samples_that_fit if reader.takes_what_fits and is_fixed and not encoded else None
        rows = _announced(
            reader, writer, bar, most=most, is_full=lambda: reader.takes_what_fits and writer.num_bytes > room
        )
        workshop = make_workshop(request, writer, encoded=encoded)
        if follower is not None:
            rows = _as_followed(reader, writer, rows, follower, workshop, show)
        for outcome in run(rows, workshop, request, low_memory=low_memory):
            tally.add(outcome)
            if outcome.failure is not None:
                if request.on_error == "raise":
                    raise LoadError(_first_failure(outcome.failure, reader))
                writer.failed(outcome.failure)
                num_failed += 1
            elif outcome.placed is not None:
                writer.loaded(outcome.slot, outcome.placed)
                if writer.num_bytes > room and not may_overflow and not reader.takes_what_fits:
                    raise _full(request, expected, writer)
            if not bar.disable:
                bar.set_postfix_str(f"{num_failed} failed, {format_bytes(tally.bytes_fetched)}", refresh=False)
            bar.update()
        effort = tally.effort()
        is_exact = most is not None and writer.num_unique == writer.num_rows
        if reader.takes_what_fits and not is_exact and not writer.keep_what_fits(room):
            raise _not_one_fits(request, expected)
        if not writer.num_loaded and not request.may_all_fail:
            raise LoadError(_nothing_loaded(writer.failures()))
        if request.storage != "auto" or not encoded:
            return writer.finish(), effort
        with progress_bar(request.progress, None, "Decoding what there is room for") as bar:
            promotion = promote_what_fits(writer, num_bytes=room, num_threads=request.threads, on_progress=bar.update)
            return writer.finish(promotion), effort


def _full(request: LoadRequest, expected: MemoryPlan, writer: StoreWriter) -> MemoryLimitError:
    return MemoryLimitError(
        f"{writer.num_loaded:,} samples fill the {format_bytes(expected.bytes_available)} there are and more follow: "
        f'give max_samples="auto", or {ways_out(request)}',
        bytes_needed=writer.num_bytes,
        bytes_available=expected.bytes_available,
    )


def _not_one_fits(request: LoadRequest, expected: MemoryPlan) -> MemoryLimitError:
    return MemoryLimitError(
        f"not one sample fits into the {format_bytes(expected.bytes_available)} there are: {ways_out(request)}",
        bytes_needed=max_sample_bytes(request.spec),
        bytes_available=expected.bytes_available,
    )


def _low_memory(free: int, limited_by: LimitedBy, num_loaded: int, directory: Path | None) -> MemoryLimitError:
    where = "the container" if limited_by == "cgroup" else "the machine"
    if directory is None:
        next_step = "nothing of it is kept; with cache_dir= the next load would go on from here"
    else:
        next_step = f"{num_loaded:,} samples are in place in {directory}, and the same load goes on from there"
    return MemoryLimitError(
        f"{where} has only {format_bytes(free)} left while this is loading, since another process has taken memory: "
        f"end that, or load less; {next_step}",
        bytes_needed=FLOOR_BYTES,
        bytes_available=free,
    )


def _mend(request: LoadRequest, store: Store, slots: list[int]) -> tuple[Store, Effort]:
    in_memory, in_place = store.directory is None, store.images is not None and store.encoded is None
    if in_memory and not in_place and store.nbytes > (free := free_memory()[0]):
        raise MemoryLimitError(
            f"retrying samples of different lengths packs all anew, which needs {format_bytes(store.nbytes)} besides "
            f"what is held; {format_bytes(free)} are free: save the dataset to a directory and retry it there",
            bytes_needed=store.nbytes,
            bytes_available=free,
        )
    if request.reader is not None and request.reader.random_access:
        rows = request.reader.take(slots)
    else:
        rows = [row for slot in slots if (row := _row_of_store(store, slot)) is not None]
    tally = Tally(request.threads)
    with (
        disk_errors(store.directory, "cannot mend the samples in"),
        StoreWriter(request.spec, directory=store.directory, mend=store) as writer,
        progress_bar(request.progress, len(rows)) as bar,
    ):
        for slot in set(slots).difference(row.index for row in rows):
            if writer.is_done(slot):  # its bytes are altered, and it can be had no more
                writer.failed(_altered(store, slot))
        num_decoded = store.num_decoded
        workshop = Threads(writer.put, request, is_encoded=lambda slot: writer.number_of(slot) >= num_decoded)
        for outcome in run(iter([rows]), workshop, request):
            tally.add(outcome)
            if outcome.failure is not None:
                writer.failed(outcome.failure)
            elif outcome.placed is not None:
                writer.loaded(outcome.slot, outcome.placed)
            bar.update()
        effort = tally.effort()
        return writer.finish(), effort


def _slots_to_mend(store: Store, reasons: Collection[str] | None) -> list[int]:
    table = store.table
    failed = np.flatnonzero(table.status == FAILED)
    if reasons is not None:
        failed = failed[np.isin(table.reason[failed], [REASONS.index(reason) for reason in reasons])]
    altered = store.verify() if reasons is not None and "checksum" in reasons else []
    slots = np.union1d(failed, altered).astype(np.int64)
    firsts = table.first_slots()
    # Of the rows that share a sample, the first: what is loaded for it is there for all.
    to_mend: list[int] = (slots if firsts is None else np.intersect1d(slots, firsts)).tolist()
    return to_mend


def _altered(store: Store, slot: int) -> Failure:
    source = store.table.source(slot)
    detail = "its bytes differ from their checksum, and its source cannot be had again from the store alone"
    return Failure(slot, source, "fetch", "checksum", detail)


def _row_of_store(store: Store, slot: int) -> Row | None:
    """Make a failed row from what the store knows of it; None where its bytes can be had no more."""
    label = store.table.source(slot)
    if not label or label.startswith("<") or "***" in label:
        return None
    return Row(slot, source_from_value(label), ())


def _announced(
    reader: RowReader, writer: StoreWriter, bar: Any, *, most: int | None, is_full: Callable[[], bool]
) -> Iterator[list[Row]]:
    """Enter each batch of rows into the books before any of its samples can arrive; give those still to be loaded.

    Of rows that name the same source that is the first.

    Args:
        most: At how many samples to stop.
    """
    sample_numbers = SampleNumbers()
    for batch in reader.batches():
        numbers = sample_numbers.of(batch)
        num_rows = len(batch) if most is None else np.count_nonzero(np.maximum.accumulate(numbers) < most)
        rows, numbers = batch[:num_rows], numbers[:num_rows]
        if is_full():
            return
        firsts = first_rows(rows, numbers, writer.num_unique)
        writer.add_rows(rows, numbers)
        to_load = [row for row in firsts if not writer.is_done(row.index)]
        bar.update(len(rows) - len(to_load))
        yield to_load
        if num_rows < len(batch):
            return


def _as_followed(
    reader: RowReader,
    writer: StoreWriter,
    rows: Iterator[list[Row]],
    follower: Follower,
    workshop: Workshop,
    show: Callable[[LiveStore], None],
) -> Iterator[list[Row]]:
    """Enter all rows into the books first, and then give them in the order that they are wanted in."""
    for _ in rows:  # which says what is entered, and is read again for what is loaded
        pass
    live, firsts = writer.go_live(), writer.first_slots()
    follower.begun(live, workshop)
    show(live)
    is_begun = np.array([writer.is_done(slot) for slot in firsts.tolist()], np.bool_)
    while len(numbers := follower.next_numbers(is_begun, live)):
        is_begun[numbers] = True
        yield reader.take(firsts[numbers].tolist())


_unnamed = itertools.count()


def _name_of_rows(reader: RowReader) -> str:
    """Name rows for the other processes of a job.

    An iterator has no identity; the same script reaches the same one in the same turn in each of its processes.
    """
    return reader.identity or f"iterator {next(_unnamed)}"


def _first_failure(failure: Failure, reader: RowReader) -> str:
    failure = replace(failure, index=reader.first_row + failure.index)
    return f'{failure}. With on_error="placeholder" or "skip" the load goes on without it'


def _nothing_loaded(failures: list[Failure]) -> str:
    if not failures:
        return "the dataset has no rows: look at its split and filters"
    counts = count_reasons(failures)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    hints = "".join(hints_for(counts))
    return f"0 of {len(failures):,} samples loaded: {reasons}; the first is {failures[0]}{hints}"
