"""What one node serves, as every process on it sees it: the node's own samples, and those it has borrowed.

No process is sent samples. Each attaches to the blocks of its node, by the meeting point they are shown at or by their
directory, and finds out from a few numbers which of their rows are served in which place. These numbers stand on a
board in shared memory, so that worker processes follow when another epoch divides the samples anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.errors import StoreError
from in_memory_datasets.scale.division import Division, Past, node_of_samples
from in_memory_datasets.schema import AudioSpec, ImageSpec
from in_memory_datasets.store import Block, Store, find_store, open_store
from in_memory_datasets.store.pieces import Pieces

_PATIENCE_SECONDS = 600.0  # for a block whose holder is being started again
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of the dataset that were loaded into one store.

    Attributes:
        start: The first row.
        stop: The one behind the last.
        directory: Where the store lies; None for memory.
        version: How often what failed in it was loaded again.
    """

    start: int
    stop: int
    directory: str | None = None
    version: int = 0

    @property
    def key(self) -> str:
        """What its store is shown under."""
        return f"rows {self.start}-{self.stop}, {self.version} times mended"


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a job is served; the same on every rank.

    Attributes:
        node_ids: Ray's name of the node of each rank, by rank; none where no ranks are known.
        batch_size: Samples of a batch.
        drop_last: Whether to leave out what does not fill a batch on every rank.
        past: What was served of the epoch before, under other divisions.
    """

    node_ids: tuple[str, ...] = ()
    batch_size: int = 1
    drop_last: bool = False
    past: tuple[Past, ...] = ()


def guests_key(division: Division) -> str:
    """Name what the store of borrowed samples is shown under."""
    return f"guests {division.key}"


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a node serves.

    Attributes:
        job: What the processes of this node have in common.
        node: Which node it is, as of the division.
        pieces: Its own stores.
        division: Who serves what.
        excluded: The rows that failed and are left out of the samples, ascending; none where they are served.
    """

    job: str
    node: int
    pieces: tuple[Piece, ...]
    division: Division
    excluded: tuple[int, ...] = ()

    def to_bytes(self) -> bytes:
        """Write it down."""
        return json.dumps({**asdict(self), "division": self.division.to_json()}).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> NodeView:
        """Read it back."""
        values = json.loads(text)
        return cls(
            values["job"],
            values["node"],
            tuple(Piece(**piece) for piece in values["pieces"]),
            Division.from_json(values["division"]),
            tuple(values["excluded"]),
        )

    def rows_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the rows that some samples are: samples are numbered through without those that are left out."""
        if not self.excluded:
            return samples
        excluded = np.asarray(self.excluded, np.int64)
        return np.asarray(samples + np.searchsorted(excluded - np.arange(len(excluded)), samples, side="right"))

    def parts(self) -> Parts:
        """Find out what is served, and what of it is to be borrowed from whom."""
        served = self.division.served_by(self.node)
        homes = self.division.homes
        owners = node_of_samples(homes, served) if len(served) else served
        foreign = np.flatnonzero(owners != self.node)
        # From the next node first, so that all lend at the same time; of each in the order in which its samples lie.
        distance = (owners[foreign] - self.node) % len(homes.ranges)
        foreign = foreign[np.lexsort((served[foreign], distance))]
        return Parts(self.rows_of(served), foreign, owners[foreign])


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a node serves, apart by where it lies.

    Attributes:
        rows: The row in each place, int64 (share,).
        foreign: The places of those that are borrowed, in the order in which these lie in their store.
        owners: The node that each of those is borrowed from.
    """

    rows: NDArray[np.int64]
    foreign: NDArray[np.int64]
    owners: NDArray[np.int64]

    @property
    def guests(self) -> NDArray[np.int64]:
        """The rows of those that are borrowed, in the order in which these lie in their store."""
        return np.asarray(self.rows[self.foreign])


def slots_of_rows(pieces: tuple[Piece, ...], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give where rows stand when those of all pieces are numbered through; -1 for what is in none of them."""
    slots, first = np.full(len(rows), -1, np.int64), 0
    for piece in pieces:
        here = (rows >= piece.start) & (rows < piece.stop)
        slots[here] = first + rows[here] - piece.start
        first += piece.stop - piece.start
    return slots


class Board:
    """A few numbers and a text that one process writes and all read, in shared memory.

    Sent to a worker process it is a handle on the same memory.
    """

    def __init__(self, block: Block | None = None) -> None:
        self._block = Block.anonymous("board") if block is None else block
        if block is None:
            self._block.resize(4)
        self._version = np.frombuffer(self._block.map(0, 4), np.int32)

    @property
    def version(self) -> int:
        """How often it was written. Cost: a look into memory."""
        return int(self._version[0])

    def write(self, text: bytes) -> None:
        """Replace the text; one process at a time."""
        # Behind the one before, which somebody may be reading.
        start = self._block.nbytes
        self._block.write(len(text).to_bytes(8, "little") + text, start)
        self._block.write(start.to_bytes(8, "little"), start + 8 + len(text))
        self._version[0] += 1

    def read(self) -> bytes:
        """Give the text."""
        end = self._block.nbytes
        start = int.from_bytes(self._block.read(end - 8, 8), "little")
        num_bytes = int.from_bytes(self._block.read(start, 8), "little")
        return self._block.read(start + 8, num_bytes)

    def close(self) -> None:
        """Give up the memory."""
        self._version = np.array([self.version], np.int32)
        self._block.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Board, (self._block,)


class NodeShare:
    """What one process serves of what its node does: follows the board, and attaches to what it does not have yet.

    Args:
        spec: What samples were turned into, also where the node has none yet.
        board: Where the node's view stands.
        ask: Gives the view of an epoch on some terms, and where it is told so has all of it brought here first; None in
            worker processes, which only follow.

    Attributes:
        terms: On what terms samples are asked for.
    """

    def __init__(
        self,
        spec: ImageSpec | AudioSpec,
        board: Board,
        ask: Callable[[int, Terms, bool], NodeView] | None = None,
    ) -> None:
        reduction.ForkingPickler.register(NodeShare, _reduce_to_handle)
        self.spec = spec
        self.board = board
        self._ask = ask
        self.terms = Terms()
        self._stores: dict[str, Store] = {}
        self._shown: NodeView | None = None

    @property
    def shown(self) -> NodeView:
        """What is served from the next batch on."""
        return NodeView.from_bytes(self.board.read()) if self._shown is None else self._shown

    def show(self, view: NodeView) -> None:
        """Serve another view from now on, here and in the worker processes."""
        if view != self._shown:
            self.board.write(view.to_bytes())
            self._shown = view

    def set_epoch(self, epoch: int) -> None:
        """Serve what the node does in an epoch; waits until it is there."""
        if self._ask is not None:
            self.show(self._ask(epoch, self.terms, True))

    def look(self, epoch: int) -> NodeView:
        """Give what would be served in an epoch, without having it brought."""
        assert self._ask is not None
        return self._ask(epoch, self.terms, False)

    def current(self, known: int) -> tuple[int, Pieces, NDArray[np.int64]] | None:
        """Give what is served now, see `training.share.Share`.

        Raises:
            StoreError: No process of the node shows a block that is needed.
        """
        version = self.board.version
        if version == known:
            return None
        view = NodeView.from_bytes(self.board.read())
        parts = view.parts()
        stores = {piece.key: self._attach(view, piece.key, piece.directory) for piece in view.pieces}
        numbers = [np.arange(piece.start, piece.stop) for piece in view.pieces]
        slots = slots_of_rows(view.pieces, parts.rows)
        if len(parts.foreign):
            key = guests_key(view.division)
            stores[key] = self._attach(view, key, None)
            numbers.append(parts.guests)
            slots[parts.foreign] = sum(len(each) for each in numbers[:-1]) + np.arange(len(parts.foreign))
        for key in self._stores.keys() - stores.keys():
            self._stores[key].close()
        self._stores = stores
        return version, Pieces(list(stores.values()), numbers, self.spec), slots

    def _attach(self, view: NodeView, key: str, directory: str | None) -> Store:
        if key in self._stores:
            return self._stores[key]
        if directory is not None:
            return open_store(Path(directory))
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (store := find_store(view.job, key)) is None:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"no process of this node shows its samples ({key}): expected its actor, which holds them; look at "
                    "sharded.report for what became of it"
                )
            time.sleep(_LOOK_SECONDS)
        return store

    def close(self) -> None:
        """Give up all stores and the board."""
        for store in self._stores.values():
            store.close()
        self._stores = {}
        self.board.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_share, ()  # with its data, a dataset is one of its own


def _no_share() -> None:
    return None


def _reduce_to_handle(share: NodeShare) -> tuple[Any, ...]:
    # A worker process has the stores by the dataset's own handles; it attaches when the board says something new.
    return NodeShare, (share.spec, share.board)
