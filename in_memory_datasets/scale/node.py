"""The actor of a node: loads the node's part into shared memory, shows it to the processes there, lends and borrows."""

from __future__ import annotations

import importlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from in_memory_datasets.build import LoadRequest, load, num_cores, retry
from in_memory_datasets.errors import MemoryLimitError, StoreError
from in_memory_datasets.memory import RESERVE_BYTES, free_memory
from in_memory_datasets.rows import ColumnSpec, RowReader, open_rows
from in_memory_datasets.scale.blocks import BlockRows, RowBlock
from in_memory_datasets.scale.planning import ClusterPlan, Facts
from in_memory_datasets.scale.view import NodeView, Parts, Piece, guests_key, slots_of_rows
from in_memory_datasets.schema import AudioSpec, Effort, ImageSpec, LoadReport, format_bytes, parse_bytes
from in_memory_datasets.store import FAILED, Store, find_store, share_store
from in_memory_datasets.store.parcels import Parcel, ParcelWriter, cut_parcel
from in_memory_datasets.store.pieces import Pieces

# What is asked of another node at once, and how many such parcels are under way to one node.
_PARCEL_BYTES, _NUM_UNDER_WAY = 16 * 2**20, 4
_PATIENCE_SECONDS = 600.0
# The failures of a part that are told; all are counted.
MAX_FAILURES = 10_000


@dataclass(frozen=True, slots=True)
class Built:
    """A part that is loaded.

    Attributes:
        piece: Which, and where.
        report: What the load did, with row numbers of the whole dataset; at most ten thousand failures.
        failed: All rows that failed, where they are left out of the samples.
        attached: Whether it was there already.
    """

    piece: Piece
    report: LoadReport
    failed: tuple[int, ...]
    attached: bool


@dataclass(frozen=True, slots=True)
class Notes:
    """What the coordinator knows of all and cannot find out anew; every node keeps a copy.

    Attributes:
        plan: Who was to hold what.
        request: What a load is told, without rows.
        fractions: From which epoch on what fraction is dealt anew, and what that is drawn from.
        events: What happened so far.
    """

    plan: ClusterPlan
    request: LoadRequest
    fractions: dict[int, tuple[float, int]]
    events: tuple[str, ...]


@ray.remote(
    num_cpus=0,
    max_restarts=-1,
    max_task_retries=-1,
    concurrency_groups={"loading": 1, "lending": 4, "borrowing": 4, "watching": 2, "asking": 4},
)
class NodeActor:
    """Holds what is at home at a node; one on each node.

    Args:
        number: Which node this is.
        job: What the processes of the node have in common.
        columns: How the user named the columns.
        spec: What samples are turned into.
    """

    def __init__(
        self, number: int, job: str, columns: tuple[ColumnSpec, ColumnSpec], spec: ImageSpec | AudioSpec
    ) -> None:
        self._number = number
        self._job = job
        self._columns = columns
        self._num_done = 0
        self._changed = threading.Condition()
        self._stores: dict[Piece, Store] = {}
        self._built: dict[Piece, Built] = {}
        self._notes: Notes | None = None
        self._guests: OrderedDict[str, Store] = OrderedDict()
        self._fetching: dict[str, threading.Lock] = {}
        if isinstance(spec, ImageSpec):  # what resizes takes a second to import: now, while rows are still on their way
            threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()

    def _tell(self, num_more: int) -> None:
        self._num_done += num_more

    @ray.method(concurrency_group="asking")
    def facts(self, memory_limit: int | str | None) -> Facts:
        """Tell what this node has, of which samples may take no more than a limit."""
        free, limited_by = free_memory()
        available = max(0, free - RESERVE_BYTES)
        if memory_limit is not None and (most := parse_bytes(memory_limit)) < available:
            available, limited_by = most, "memory_limit"
        return Facts(available, limited_by, num_cores(), _machine(), os.getpid())

    @ray.method(concurrency_group="asking")
    def num_done(self) -> int:
        """Count the samples that are loaded, or have failed, since this actor was started."""
        return self._num_done

    @ray.method(concurrency_group="asking")
    def remember(self, notes: Notes) -> None:
        """Keep what the coordinator knows."""
        self._notes = notes

    @ray.method(concurrency_group="asking")
    def recall(self) -> tuple[int, str, list[Built], Notes | None]:
        """Tell a coordinator that was started again what this node is, what it holds, and what it was told."""
        return self._number, self._job, [self._built[piece] for piece in self._stores], self._notes

    @ray.method(concurrency_group="watching", max_task_retries=0)
    def watch(self) -> None:
        """Never return: who waits for it is told when this actor, or its node, ends."""
        threading.Event().wait()

    @ray.method(concurrency_group="loading")
    def build(self, start: int, stop: int, version: int, blocks: Sequence[RowBlock], request: LoadRequest) -> Built:
        """Load some rows, unless a process of this node has them already.

        Raises:
            LoadError: One could not be loaded, and `on_error` is "raise".
            MemoryLimitError: They do not fit.
        """
        piece, effort = self._held(start, stop) or Piece(start, stop, version=version), Effort()
        store = self._stores.get(piece) or find_store(self._job, piece.key)
        was_there = store is not None
        if store is not None:
            piece, store = self._hold(piece, store)
        else:
            limit = request.memory_limit
            if limit is not None:
                limit = max(1, parse_bytes(limit) - sum(other.nbytes for other in self._stores.values()))
            reader = self._reader(start, blocks)
            loaded, effort = load(replace(request, reader=reader, memory_limit=limit, progress=self._tell))
            piece, store = self._keep(piece, loaded)
        return self._note(Built(piece, _report_of(store, effort, start), _failed(store, start, request), was_there))

    def _note(self, built: Built) -> Built:
        self._built[built.piece] = built
        return built

    @ray.method(concurrency_group="loading")
    def mend(
        self,
        start: int,
        stop: int,
        blocks: Sequence[RowBlock],
        request: LoadRequest,
        reasons: Collection[str] | None,
    ) -> Built:
        """Load again what failed in some rows that are held here, see `build.retry`."""
        piece = self._held(start, stop)
        assert piece is not None
        store = self._stores[piece]
        request = replace(request, reader=self._reader(start, blocks), progress=self._tell)
        mended, effort = retry(request, store, attempt=piece.version, reasons=reasons)
        if mended is not store:
            # The one before is let go of, not closed: somebody may just be lent from it.
            with self._changed:
                del self._stores[piece]
                piece, mended = self._keep(replace(piece, version=piece.version + 1), mended)
        return self._note(
            Built(piece, _report_of(mended, effort, start), _failed(mended, start, request), attached=False)
        )

    def _held(self, start: int, stop: int) -> Piece | None:
        return next((piece for piece in self._stores if (piece.start, piece.stop) == (start, stop)), None)

    def _reader(self, start: int, blocks: Sequence[RowBlock]) -> RowReader:
        media_col, txt_col = self._columns
        reader = open_rows(BlockRows(blocks), media_col=media_col, txt_col=txt_col, max_samples=None)
        reader.first_row = start
        return reader

    def _keep(self, piece: Piece, store: Store) -> tuple[Piece, Store]:
        """Hold a store that was made here, and let the processes of this node have it."""
        if store.directory is None:
            store = _shown(self._job, piece.key, store)
        return self._hold(piece, store)

    def _hold(self, piece: Piece, store: Store) -> tuple[Piece, Store]:
        if store.directory is not None:
            piece = replace(piece, directory=str(store.directory))
        with self._changed:
            self._stores[piece] = store
            self._changed.notify_all()
        return piece, store

    @ray.method(concurrency_group="lending")
    def lend(self, rows: NDArray[np.int64]) -> Parcel:
        """Give copies of some samples that are at home here; waits for those that are being loaded.

        Raises:
            StoreError: They have not been loaded here in ten minutes.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: (self._slots(rows) >= 0).all(), _PATIENCE_SECONDS):
                raise StoreError(f"{len(rows):,} samples are asked of a node that does not hold all of them")
            stores = dict(self._stores)
        slots = slots_of_rows(tuple(stores), rows)
        return cut_parcel(Pieces(list(stores.values()), [np.arange(one.start, one.stop) for one in stores]), slots)

    def _slots(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return slots_of_rows(tuple(self._stores), rows)

    @ray.method(concurrency_group="borrowing")
    def borrow(self, view: NodeView, lenders: Mapping[int, Any], request: LoadRequest) -> int:
        """Bring what this node serves of other nodes' samples here, and give how many bytes that is.

        Raises:
            MemoryLimitError: There is no room for it.
        """
        key, parts = guests_key(view.division), view.parts()
        if not len(parts.foreign):
            return 0
        with self._changed:
            fetching = self._fetching.setdefault(key, threading.Lock())
        with fetching:  # several ranks ask for the same at once
            store = self._guests.get(key) or find_store(self._job, key)
            if store is None:
                store = _shown(self._job, key, self._fetch_guests(parts, lenders, request))
        with self._changed:
            self._fetching.pop(key, None)
            self._guests[key] = store
            self._guests.move_to_end(key)
            while len(self._guests) > 2:  # that of this epoch, and of the next one
                self._guests.popitem(last=False)[1].close()
        return store.nbytes

    def _fetch_guests(self, parts: Parts, lenders: Mapping[int, Any], request: LoadRequest) -> Store:
        rows, owners = parts.guests, parts.owners
        with self._changed:
            own = list(self._stores.values())
        num_bytes = max(1, round(sum(s.nbytes for s in own) / max(1, sum(s.num_samples for s in own))))
        free = free_memory()[0] - RESERVE_BYTES
        if own and len(rows) * num_bytes > free:
            raise MemoryLimitError(
                f"{len(rows):,} samples that this node serves in the next epoch are at home at others, and borrowing "
                f"them takes {format_bytes(len(rows) * num_bytes)}; {format_bytes(max(0, free))} are free: give a "
                "smaller fraction, or more nodes",
                bytes_needed=len(rows) * num_bytes,
                bytes_available=max(0, free),
            )
        encoded = request.storage == "encoded"
        with ParcelWriter(request.spec, encoded=encoded, num_rows=len(rows)) as writer:
            # A few on their way at once: the memory they take does not depend on how many there are.
            under_way: deque[Any] = deque()
            for part in _in_parcels(owners, max(1, _PARCEL_BYTES // num_bytes)):
                if len(under_way) == _NUM_UNDER_WAY:
                    writer.add(ray.get(under_way.popleft()))
                under_way.append(lenders[int(owners[part.start])].lend.remote(rows[part]))
            while under_way:
                writer.add(ray.get(under_way.popleft()))
            return writer.finish()

    @ray.method(concurrency_group="asking")
    def num_bytes(self) -> tuple[int, int]:
        """Count the bytes that are at home here, and those that are borrowed."""
        with self._changed:
            guests = sum(store.nbytes for store in self._guests.values())
            return sum(store.nbytes for store in self._stores.values()), guests


def _in_parcels(owners: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Cut samples into runs of one owner, none longer than so many."""
    start = 0
    for stop in [*(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]:
        for first in range(start, stop, most):
            yield slice(first, min(stop, first + most))
        start = stop


def _shown(job: str, key: str, store: Store) -> Store:
    """Let the processes of this node attach to a store; give theirs, where they have it already."""
    shown = share_store(job, key, lambda show: store)
    if shown is not store:
        store.close()
    return shown


def _failed(store: Store, start: int, request: LoadRequest) -> tuple[int, ...]:
    """Give the rows that are left out of the samples, since they failed."""
    if request.on_error != "skip":
        return ()
    return tuple((start + np.flatnonzero(store.table.status == FAILED)).tolist())


def _report_of(store: Store, effort: Effort, first_row: int) -> LoadReport:
    report = store.report(effort)
    failures = [replace(failure, index=first_row + failure.index) for failure in report.failures[:MAX_FAILURES]]
    return replace(report, failures=failures)


def _machine() -> str:
    """Tell the memory that this process draws on from that of other machines and containers."""
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/cgroup"):
        try:
            parts.append(Path(path).read_text().strip())
        except OSError:  # not Linux, where there is one node to a machine
            parts.append("")
    return " ".join(parts)
