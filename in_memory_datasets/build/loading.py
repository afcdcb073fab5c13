"""One load: attach to the store of a request, or build it, or mend what failed in it."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from in_memory_datasets.build.bars import progress_bar, waiting_bar
from in_memory_datasets.build.keeping import refuse_if_not_lockable
from in_memory_datasets.build.mixture import max_sample_bytes, promote_what_fits
from in_memory_datasets.build.pipeline import most_under_way, run
from in_memory_datasets.build.planning import is_surely_too_large, plan, ways_out
from in_memory_datasets.build.request import LoadRequest
from in_memory_datasets.build.tally import Tally
from in_memory_datasets.errors import ConfigError, LoadError, MemoryLimitError
from in_memory_datasets.memory import FLOOR_BYTES, available_memory, free_memory, refuse_if_too_large
from in_memory_datasets.rows import RowReader, source_from_value
from in_memory_datasets.schema import (
    ADDRESS_HINT,
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
    parse_bytes,
)
from in_memory_datasets.store import (
    FAILED,
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


def load(request: LoadRequest) -> tuple[Store, Effort]:
    """Attach to the store of a request, after building it where there is none yet.

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

    def build(directory: Path | None = None) -> Store:
        nonlocal effort
        store, effort = _build(request, directory)
        return store

    if request.cache_dir is not None:
        if reader.identity is None:
            raise ConfigError(
                "cache_dir= needs rows that can be recognised in the next run, and an iterator is gone once it is "
                "read: pass a Dataset or a list, or keep what was loaded with dataset.save(directory)"
            )
        directory = cache.resolve(request.cache_dir)
        with disk_errors(directory), waiting_bar(request.progress, reader.num_rows) as show:
            store = attach_or_build(directory, fingerprint(reader.identity, request), build, on_waiting=show)
        cache.keep_to_limit(directory)
    elif request.job is not None:
        store = share_store(request.job, fingerprint(_name_of_rows(reader), request), build)
    else:
        store = build()
    if request.on_error == "raise" and (failures := store.table.failures()):
        store.close()
        raise LoadError(_first_failure(failures[0]))
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
        mended = share_store(request.job, f"{rows} retry {attempt}{which}", lambda: mend(store))
    else:
        mended = mend(store)
    return mended, replace(effort, seconds=time.monotonic() - started)


def memory_for(store: Store, request: LoadRequest) -> int | None:
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


def _build(request: LoadRequest, directory: Path | None) -> tuple[Store, Effort]:
    reader, expected = request.rows, plan(request)
    is_fixed = isinstance(request.spec, ImageSpec)
    encoded = request.storage == "encoded" or (
        request.storage == "auto" and (expected.num_decoded is None or expected.num_decoded != expected.num_samples)
    )
    # What there is no room for may stay on the disk, where the user leaves that to us.
    may_overflow = request.storage == "auto" and directory is not None and not reader.takes_what_fits
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
    with (
        disk_errors(directory),
        StoreWriter(request.spec, encoded=encoded, directory=directory) as writer,
        progress_bar(request.progress, expected.num_samples) as bar,
    ):
        failures: list[Failure] = []
        most = expected.num_samples_that_fit if reader.takes_what_fits and is_fixed and not encoded else None
        rows = _announced(
            reader, writer, bar, most=most, is_full=lambda: reader.takes_what_fits and writer.num_bytes > room
        )
        for outcome in run(rows, writer.put, request, is_encoded=lambda slot: encoded, low_memory=low_memory):
            tally.add(outcome)
            if outcome.failure is not None:
                if request.on_error == "raise":
                    raise LoadError(_first_failure(outcome.failure))
                writer.failed(outcome.failure)
                failures.append(outcome.failure)
            else:
                writer.loaded(outcome.slot, outcome.checksum)
                if writer.num_bytes > room and not may_overflow and not reader.takes_what_fits:
                    raise _full(request, expected, writer)
            bar.set_postfix_str(f"{len(failures)} failed, {format_bytes(tally.bytes_fetched)}", refresh=False)
            bar.update()
        effort = tally.effort()
        if reader.takes_what_fits and most is None and not writer.keep_what_fits(room):
            raise _not_one_fits(request, expected)
        if not writer.num_loaded:
            raise LoadError(_nothing_loaded(failures))
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
        for outcome in run(iter([rows]), writer.put, request, is_encoded=lambda slot: slot >= store.num_decoded):
            tally.add(outcome)
            if outcome.failure is not None:
                writer.failed(outcome.failure)
            else:
                writer.loaded(outcome.slot, outcome.checksum)
            bar.update()
        effort = tally.effort()
        return writer.finish(), effort


def _slots_to_mend(store: Store, reasons: Collection[str] | None) -> list[int]:
    table = store.table
    failed = np.flatnonzero(table.status == FAILED)
    if reasons is not None:
        failed = failed[np.isin(table.reason[failed], [REASONS.index(reason) for reason in reasons])]
    altered = store.verify() if reasons is not None and "checksum" in reasons else []
    return sorted({*failed.tolist(), *altered})


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
    """Enter each batch of rows into the books before any of its samples can arrive; give those still to be loaded."""
    num_rows = 0
    for batch in reader.batches():
        rows = batch if most is None else batch[: most - num_rows]
        if not rows or is_full():
            return
        num_rows += len(rows)
        writer.add_rows(rows)
        to_load = [row for row in rows if not writer.is_done(row.index)]
        bar.update(len(rows) - len(to_load))
        yield to_load


_unnamed = itertools.count()


def _name_of_rows(reader: RowReader) -> str:
    """Name rows for the other processes of a job.

    An iterator has no identity; the same script reaches the same one in the same turn in each of its processes.
    """
    return reader.identity or f"iterator {next(_unnamed)}"


def _first_failure(failure: Failure) -> str:
    return f'{failure}. With on_error="placeholder" or "skip" the load goes on without it'


def _nothing_loaded(failures: list[Failure]) -> str:
    if not failures:
        return "the dataset has no rows: look at its split and filters"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in count_reasons(failures).items())
    hint = ADDRESS_HINT if any(failure.reason == "blocked_address" for failure in failures) else ""
    return f"0 of {len(failures):,} samples loaded: {reasons}; the first is {failures[0]}{hint}"
