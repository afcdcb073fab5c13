"""Which rows name the same source, found as they stream by: each source is fetched, decoded and stored once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from in_memory_datasets.decode.audio_formats import extension
from in_memory_datasets.schema import Row, Source

_FIRST_CAPACITY = 1024


class SampleNumbers:
    """Number the samples of rows that come in order: a new source has the next number, a repeated one its first's.

    URLs and paths are the same where their text is, inline bytes where they are and their names end alike, which may
    tell the decoder what they are. Objects, such as pictures and arrays, are never taken for one another, and a row
    without a source has a sample of its own, which fails.

    Nothing of a row is kept but 128 bits: that two of a thousand million sources are taken for one another has a chance
    below one in 10²⁰.

    Cost: one digest and one look into the table a row; 33 to 50 bytes for each different source, and half as much
    again while the table grows.
    Source: XXH3-128, https://xxhash.com; a hash table with open addressing and linear probing.

    Example:
        >>> rows = [Row(i, Source("path", name), ()) for i, name in enumerate(["a.jpg", "b.jpg", "a.jpg"])]
        >>> SampleNumbers().of(rows).tolist()
        [0, 1, 0]
    """

    def __init__(self) -> None:
        self.num_samples = 0
        # Of each number the two halves of its digest; and a table of numbers + 1, where 0 is a free place.
        self._low, self._high = array("Q"), array("Q")
        self._table = array("Q", [0]) * _FIRST_CAPACITY

    def of(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        """Give the number of each row's sample, int64 (len(rows),)."""
        return np.fromiter((self._number(row.source) for row in rows), np.int64, len(rows))

    def _number(self, source: Source | None) -> int:
        key = None if source is None else _key(source)
        if key is None:
            return self._append(0, 0)
        low, high = key
        mask = len(self._table) - 1
        place = low & mask
        while entry := self._table[place]:
            if self._low[entry - 1] == low and self._high[entry - 1] == high:
                return entry - 1
            place = (place + 1) & mask
        number = self._append(low, high)
        self._table[place] = number + 1
        if 2 * self.num_samples > len(self._table):
            self._grow()
        return number

    def _append(self, low: int, high: int) -> int:
        self._low.append(low)
        self._high.append(high)
        self.num_samples += 1
        return self.num_samples - 1

    def _grow(self) -> None:
        old, self._table = self._table, array("Q", [0]) * (2 * len(self._table))
        mask = len(self._table) - 1
        for entry in filter(None, old):
            place = self._low[entry - 1] & mask
            while self._table[place]:
                place = (place + 1) & mask
            self._table[place] = entry


def first_rows(rows: Sequence[Row], numbers: NDArray[np.int64], num_before: int) -> list[Row]:
    """Give those of some rows whose sample no earlier row has.

    Args:
        numbers: Of their samples.
        num_before: How many samples the rows before these have.
    """
    firsts: list[Row] = []
    for row, number in zip(rows, numbers.tolist(), strict=True):
        if number == num_before + len(firsts):
            firsts.append(row)
    return firsts


def count_samples(batches: Iterable[Sequence[Row]], *, most: int, on_progress: Callable[[int], object]) -> int:
    """Count the samples that rows have; where there are more than `most`, only so many that this is known.

    Args:
        on_progress: Told how many more rows were looked at.
    """
    numbers = SampleNumbers()
    for rows in batches:
        numbers.of(rows)
        on_progress(len(rows))
        if numbers.num_samples > most:
            break
    return numbers.num_samples


def _key(source: Source) -> tuple[int, int] | None:
    """Digest what makes a source the one it is; None of one that is never taken for another."""
    if source.kind == "object":
        return None
    if source.kind == "bytes":
        digest = xxhash.xxh3_128(f"bytes:{extension(source.name)}:".encode("utf-8", "surrogatepass"))
        digest.update(source.value)
    else:
        digest = xxhash.xxh3_128(f"{source.kind}:{source.value}".encode("utf-8", "surrogatepass"))
    both = digest.intdigest()
    return both & 0xFFFF_FFFF_FFFF_FFFF, both >> 64
