"""Rows that lie in Ray's object store, block by block: what a node reads its part of the dataset from."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import pyarrow as pa
import ray


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some rows that follow one another.

    Attributes:
        ref: An Arrow table or a list of mappings in the object store.
        start: The first of them that is meant.
        stop: The one behind the last.
    """

    ref: Any
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many are meant."""
        return self.stop - self.start


def part_of(blocks: Sequence[RowBlock], start: int, stop: int) -> list[RowBlock]:
    """Give the blocks that hold some rows, cut to these."""
    part = []
    first = 0
    for block in blocks:
        begin, end = max(start, first), min(stop, first + block.num_rows)
        if begin < end:
            part.append(RowBlock(block.ref, block.start + begin - first, block.start + end - first))
        first += block.num_rows
    return part


class BlockRows(Sequence[Any]):
    """Rows as a sequence of records; one block of them is in the memory of this process at a time.

    Args:
        blocks: Where they lie, in order.
    """

    def __init__(self, blocks: Sequence[RowBlock]) -> None:
        self._blocks = blocks
        self._ends = list(itertools.accumulate(block.num_rows for block in blocks))
        self._number, self._records = -1, list[Any]()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self):,}")
        number = bisect.bisect_right(self._ends, index)
        if number != self._number:
            self._records = _records_of(self._blocks[number])
            self._number = number
            if number + 1 < len(self._blocks):  # the next one is on its way while this one is read
                ray.wait([self._blocks[number + 1].ref], timeout=0, fetch_local=True)
        return self._records[index - (self._ends[number] - self._blocks[number].num_rows)]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _records_of(block: RowBlock) -> list[Any]:
    rows = ray.get(block.ref)
    if isinstance(rows, pa.Table):
        records: list[Any] = rows.slice(block.start, block.num_rows).to_pylist()
        return records
    return list(rows[block.start : block.stop])
