"""The bytes of rows.arrow: the rows in one Arrow record batch, read in place.

captions   large_list<large_string>   in order, unaltered
source     large_string               without credentials
status     uint8                      0 empty, 1 loaded, 2 failed
stage      dictionary<int8, string>   of a failure
reason     dictionary<int8, string>   of a failure
detail     large_string               of a failure
attempts   uint16                     of a failure
checksum   uint64                     XXH3-64 of the sample's bytes; 0 where it has none
sample     int64                      the number of the row's sample; there only if rows share samples

Rows that name the same source share a sample, which lies in the store once. Samples are numbered in the order of the
first rows that have them. Where no row repeats another, sample i is that of row i, and nothing says so.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import REASONS, STAGES, Failure, Row, host_of

EMPTY, LOADED, FAILED = 0, 1, 2

_SCHEMA = pa.schema(
    [
        ("captions", pa.large_list(pa.field("item", pa.large_string()))),
        ("source", pa.large_string()),
        ("status", pa.uint8()),
        ("stage", pa.dictionary(pa.int8(), pa.string())),
        ("reason", pa.dictionary(pa.int8(), pa.string())),
        ("detail", pa.large_string()),
        ("attempts", pa.uint16()),
        ("checksum", pa.uint64()),
    ]
)
_SCHEMA_OF_REPEATS = _SCHEMA.append(pa.field("sample", pa.int64()))
_TEXT = ["captions", "source"]
_NUM_PACKED_AT_ONCE = 1024  # rows whose text is made into an Arrow batch: of 32 at a time each costs twice as much


@dataclass(slots=True)
class TableWriter:
    """Rows as they come, as flat arrays; one thread writes.

    What became of a sample is noted once, and is true of every row that has it, also of those that come later.

    Attributes:
        samples: The number of each row's sample; None as long as no two rows share one, and sample i is that of row i.
        status: Of each sample, as all that follow.
    """

    _chunks: list[Any] = field(default_factory=list)  # record batches of captions and source
    _captions: list[tuple[str, ...]] = field(default_factory=list)  # of rows that are in none yet, as what follows
    _sources: list[str] = field(default_factory=list)
    samples: array[int] | None = None
    status: array[int] = field(default_factory=lambda: array("B"))
    stage: array[int] = field(default_factory=lambda: array("b"))
    reason: array[int] = field(default_factory=lambda: array("b"))
    attempts: array[int] = field(default_factory=lambda: array("H"))
    checksum: array[int] = field(default_factory=lambda: array("Q"))
    details: dict[int, str] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Count the rows so far."""
        return len(self.status if self.samples is None else self.samples)

    @property
    def num_unique(self) -> int:
        """Count the samples that they have."""
        return len(self.status)

    @property
    def num_loaded(self) -> int:
        """Count the rows whose sample is loaded. Any thread may ask."""
        if self.samples is None:
            return self.status.count(LOADED)
        return sum(self.status[number] == LOADED for number in self.samples)

    def number_of(self, slot: int) -> int:
        """Give the number of a row's sample. Any thread may ask."""
        return slot if self.samples is None else self.samples[slot]

    def first_slots(self) -> NDArray[np.int64]:
        """Give the first row that has each sample, int64 (U,). Cost: one pass."""
        if self.samples is None:
            return np.arange(self.num_rows)
        return _first_slots(np.frombuffer(self.samples, np.int64))

    def add(self, rows: Sequence[Row], numbers: NDArray[np.int64] | None = None) -> None:
        """Append rows, in order.

        Args:
            numbers: The number of each row's sample, int64: that of a sample which is there, or the next one. None
                where every row has a sample of its own.
        """
        self._captions += [row.captions for row in rows]
        self._sources += [_storable(row.source.label) if row.source else "" for row in rows]
        if len(self._sources) >= _NUM_PACKED_AT_ONCE:
            self._pack_text()
        before = self.num_unique
        own = np.arange(before, before + len(rows))
        if numbers is None:
            numbers = own
        num_new = max(0, int(numbers.max(initial=-1)) + 1 - before)
        if self.samples is None and not np.array_equal(numbers, own):
            self.samples = array("q", range(before))
        if self.samples is not None:
            self.samples.frombytes(numbers.tobytes())
        for column in self._columns:
            column.extend([0] * num_new)

    def _pack_text(self) -> None:
        """Make an Arrow batch of what is in none yet, so that there is one at least."""
        if self._chunks and not self._sources:
            return
        schema = pa.schema([_SCHEMA.field(name) for name in _TEXT])
        self._chunks.append(pa.record_batch([self._captions, self._sources], schema=schema))
        self._captions, self._sources = [], []

    @property
    def _columns(self) -> tuple[array[int], ...]:
        return self.status, self.stage, self.reason, self.attempts, self.checksum

    def loaded(self, number: int, checksum: int) -> None:
        """Note that a sample is in its place."""
        self.status[number], self.checksum[number] = LOADED, checksum
        self.stage[number] = self.reason[number] = self.attempts[number] = 0
        self.details.pop(number, None)

    def failed(self, number: int, failure: Failure) -> None:
        """Note why a sample could not be loaded."""
        self.status[number], self.checksum[number] = FAILED, 0
        self.stage[number], self.reason[number] = STAGES.index(failure.stage), REASONS.index(failure.reason)
        self.attempts[number] = min(failure.attempts, 65_535)
        self.details[number] = _storable(failure.detail)

    def by_first_row(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give what each sample has to the first row that has it, and 0 to the others, int64 (N,)."""
        if self.samples is None:
            return values
        firsts = _first_slots(np.frombuffer(self.samples, np.int64))
        by_row = np.zeros(self.num_rows, np.int64)
        by_row[firsts] = values
        return by_row

    def truncate(self, num_rows: int) -> None:
        """Forget all rows but the first, and the samples that none of these has."""
        self._pack_text()
        kept, left = [], num_rows
        for chunk in self._chunks:
            kept.append(chunk.slice(0, left))
            left -= kept[-1].num_rows
        self._chunks = kept
        num_unique = num_rows
        if self.samples is not None:
            del self.samples[num_rows:]
            num_unique = max(self.samples, default=-1) + 1
            if num_unique == num_rows:
                self.samples = None
        for column in self._columns:
            del column[num_unique:]
        self.details = {number: detail for number, detail in self.details.items() if number < num_unique}

    def to_buffer(self) -> Any:
        """Write the table as an Arrow IPC file into one buffer."""
        self._pack_text()
        schema = _SCHEMA if self.samples is None else _SCHEMA_OF_REPEATS
        numbers = None if self.samples is None else np.frombuffer(self.samples, np.int64)

        def by_row(column: array[int], dtype: type) -> NDArray[Any]:
            values: NDArray[Any] = np.frombuffer(column, dtype)
            return values if numbers is None else values[numbers]

        columns = {
            "status": pa.array(by_row(self.status, np.uint8)),
            "attempts": pa.array(by_row(self.attempts, np.uint16)),
            "checksum": pa.array(by_row(self.checksum, np.uint64)),
        }
        for name, codes, words in (("stage", self.stage, STAGES), ("reason", self.reason, REASONS)):
            indices = pa.array(by_row(codes, np.int8))
            columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array(words))
        order = range(self.num_rows) if self.samples is None else self.samples
        columns["detail"] = pa.array([self.details.get(number, "") for number in order], pa.large_string())
        if numbers is not None:
            columns["sample"] = pa.array(numbers)
        for name in _TEXT:
            columns[name] = pa.concat_arrays([chunk.column(name) for chunk in self._chunks])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as file:
            file.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))
        return sink.getvalue()

    @classmethod
    def from_table(cls, table: RowTable) -> TableWriter:
        """Take over the rows of a finished table, to alter some."""
        writer = cls([table.batch.select(_TEXT)])
        firsts = table.first_slots()
        if table.samples is not None:
            writer.samples = array("q", table.samples.tobytes())
        for name, values in (
            ("status", table.status),
            ("stage", table.stage),
            ("reason", table.reason),
            ("attempts", table.attempts),
            ("checksum", table.checksum),
        ):
            getattr(writer, name).frombytes((values if firsts is None else values[firsts]).tobytes())
        writer.details = {writer.number_of(failure.index): failure.detail for failure in table.failures()}
        return writer


def _storable(text: str) -> str:
    """Write out what UTF-8 cannot hold, such as file names in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode()


def _first_slots(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give where numbers that are given in ascending order stand for the first time."""
    if not len(samples):
        return samples
    highest = np.maximum.accumulate(samples)
    return np.flatnonzero(np.concatenate([[True], highest[1:] > highest[:-1]]))


def one_batch(batches: Sequence[Any]) -> Any:
    """Copy Arrow record batches of one schema, at least one, into one."""
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    return next(iter(table.to_batches()), batches[0].slice(0, 0))


def no_records() -> Any:
    """Give the record batch of no rows."""
    return pa.RecordBatch.from_pylist([], schema=_SCHEMA)


def numbers_of(column: Any, dtype: type) -> NDArray[Any]:
    """View an Arrow array of numbers; its own `to_numpy` imports pandas, which takes longer than all else here."""
    buffer, itemsize = column.buffers()[1], np.dtype(dtype).itemsize
    if not len(column):
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype, count=len(column), offset=column.offset * itemsize)


class RowTable:
    """The rows of a store, read in place: numpy views on the Arrow buffers, no objects per row.

    Args:
        view: The bytes of rows.arrow; the table keeps them mapped.
        intact: Whether a checksum says that they are what was written. Otherwise every row is looked through, which of
            a million takes 17 ms.

    Raises:
        StoreError: The bytes are short, altered or not such a table.
    """

    def __init__(self, view: memoryview, *, intact: bool = False) -> None:
        try:
            file = pa.ipc.open_file(pa.py_buffer(view))
            if file.schema not in (_SCHEMA, _SCHEMA_OF_REPEATS) or file.num_record_batches != 1:
                raise pa.ArrowInvalid(f"{file.num_record_batches} record batches of {file.schema.names}")
            self.batch = file.get_batch(0)
            self.batch.validate(full=not intact)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"rows.arrow is damaged: {error}; delete the store and load again") from error
        columns = {name: self.batch.column(name) for name in self.batch.schema.names}
        if nulls := [name for name, column in columns.items() if column.null_count]:
            raise StoreError(f"rows.arrow is damaged: there are nulls in {nulls}; delete the store and load again")
        self.status: NDArray[np.uint8] = numbers_of(columns["status"], np.uint8)
        self.stage: NDArray[np.int8] = numbers_of(columns["stage"].indices, np.int8)
        self.reason: NDArray[np.int8] = numbers_of(columns["reason"].indices, np.int8)
        self.attempts: NDArray[np.uint16] = numbers_of(columns["attempts"], np.uint16)
        self.checksum: NDArray[np.uint64] = numbers_of(columns["checksum"], np.uint64)
        self.samples: NDArray[np.int64] | None = None
        if "sample" in columns:
            self.samples = numbers_of(columns["sample"], np.int64)
            self._check_samples(self.samples, intact=intact)
        captions = columns["captions"]
        self._caption_of_slot: NDArray[np.int64] = np.zeros(1, np.int64)
        if len(captions):  # or Arrow allows that there are no offsets, not even the first
            self._caption_of_slot = numbers_of(captions.offsets, np.int64)
        has_caption = self._caption_of_slot[1:] > self._caption_of_slot[:-1]
        self._one_each = len(captions.values) == self.num_rows and bool(np.all(has_caption))
        _, offsets, text = captions.values.buffers()
        num_captions = len(captions.values)
        self._text_of_caption = np.zeros(1, np.int64)
        if num_captions:  # the buffer may be longer than that, by any number of bytes
            self._text_of_caption = np.frombuffer(offsets, np.int64, num_captions + 1)
        self._text = memoryview(text) if text else memoryview(b"")
        # What is looked up one by one: an item of these costs a third of one of an array.
        self._one_by_one = self._caption_of_slot.data, self._text_of_caption.data

    def _check_samples(self, samples: NDArray[np.int64], *, intact: bool) -> None:
        """Check that rows have samples that there are; unless it is known, also that they agree in what these are."""
        self._num_unique = int(samples.max(initial=-1)) + 1
        is_right = int(samples.min(initial=0)) >= 0 and self._num_unique <= len(samples)
        if is_right and not intact:
            firsts = _first_slots(samples)
            # Numbered in the order of their first rows, so that each of these is the next number.
            is_right = np.array_equal(samples[firsts], np.arange(self._num_unique)) and all(
                np.array_equal(values, values[firsts][samples]) for values in (self.status, self.checksum)
            )
        if not is_right:
            raise StoreError("rows.arrow is damaged: its samples are not numbered; delete the store and load again")

    @property
    def num_rows(self) -> int:
        """Count the rows."""
        return len(self.status)

    @property
    def num_unique(self) -> int:
        """Count the samples that they have."""
        return len(self.status) if self.samples is None else self._num_unique

    def sample_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the number of each row's sample: where no row repeats another, `slots` as it is."""
        return slots if self.samples is None else np.asarray(self.samples[slots])

    def number_of(self, slot: int) -> int:
        """Give the number of one row's sample."""
        return slot if self.samples is None else int(self.samples[slot])

    def rows_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the numbers that rows have in the user's dataset: these."""
        return slots

    def records(self, slots: NDArray[np.int64]) -> Any:
        """Copy all that is known of some rows, as an Arrow record batch, but for the numbers of their samples."""
        return self.batch.select(_SCHEMA.names).take(pa.array(slots))

    def first_slots(self) -> NDArray[np.int64] | None:
        """Give the first row that has each sample, int64 (U,); None where sample i is that of row i. Cost: one pass."""
        return None if self.samples is None else _first_slots(self.samples)

    @property
    def num_empty_captions(self) -> int:
        """Count the rows that have no caption, or only an empty one."""
        first, stop = self._caption_of_slot[:-1], self._caption_of_slot[1:]
        text = self._text_of_caption
        return int(np.count_nonzero(text[stop] == text[first])) if self.num_rows else 0

    def num_captions(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the captions of rows."""
        return np.asarray(self._caption_of_slot[slots + 1] - self._caption_of_slot[slots])

    def caption(self, slots: NDArray[np.int64], numbers: NDArray[np.int64] | None = None) -> list[str]:
        """Give one caption of each of some rows; "" for a row that has none.

        Args:
            slots: int64, shape (B,).
            numbers: Which of its captions each row gives, int64 (B,); None for the first.
        """
        if self._one_each and numbers is None:
            chosen, ends = slots, slots + 1  # the common case, which takes half the steps
        else:
            chosen, ends = self._caption_of_slot[slots], self._caption_of_slot[slots + 1]
            if numbers is not None:
                chosen = chosen + numbers
            ends = np.minimum(chosen + 1, ends)  # the caption behind a row's last is another row's: cut to no length
        starts, stops = self._text_of_caption[chosen], self._text_of_caption[ends]
        text = self._text
        return [str(text[start:stop], "utf-8") for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]

    def caption_at(self, slot: int, number: int = 0) -> str:
        """Give one caption of one row, as `caption` does: for a few rows of many tables."""
        caption_of_slot, text_of_caption = self._one_by_one
        chosen, end = slot, slot + 1
        if number or not self._one_each:
            chosen, end = caption_of_slot[slot] + number, caption_of_slot[slot + 1]
            end = min(chosen + 1, end)
        return str(self._text[text_of_caption[chosen] : text_of_caption[end]], "utf-8")

    def captions(self, slot: int) -> list[str]:
        """Give all captions of a row, in order."""
        caption_of_slot, _ = self._one_by_one
        return [self.caption_at(slot, number) for number in range(caption_of_slot[slot + 1] - caption_of_slot[slot])]

    def source(self, slot: int) -> str:
        """Give where the sample came from, without credentials."""
        return str(self.batch.column("source")[slot].as_py())

    def failures(self) -> list[Failure]:
        """Give every failure, by ascending index."""
        columns = {name: self.batch.column(name) for name in ("source", "stage", "reason", "detail", "attempts")}
        failures = []
        for slot in np.flatnonzero(self.status == FAILED).tolist():
            values = {name: column[slot].as_py() for name, column in columns.items()}
            failures.append(Failure(index=slot, host=host_of(values["source"]), **values))
        return failures
