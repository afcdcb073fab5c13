"""The bytes of rows.arrow: one row per sample, in one Arrow record batch, read in place.

captions   large_list<large_string>   in order, unaltered
source     large_string               without credentials
status     uint8                      0 empty, 1 loaded, 2 failed
stage      dictionary<int8, string>   of a failure
reason     dictionary<int8, string>   of a failure
detail     large_string               of a failure
attempts   uint16                     of a failure
checksum   uint64                     XXH3-64 of the sample's bytes; 0 where it has none
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
_TEXT = ["captions", "source"]


@dataclass(slots=True)
class TableWriter:
    """Rows as they come, as flat arrays; one thread writes."""

    _chunks: list[Any] = field(default_factory=list)  # record batches of captions and source
    status: array[int] = field(default_factory=lambda: array("B"))
    stage: array[int] = field(default_factory=lambda: array("b"))
    reason: array[int] = field(default_factory=lambda: array("b"))
    attempts: array[int] = field(default_factory=lambda: array("H"))
    checksum: array[int] = field(default_factory=lambda: array("Q"))
    details: dict[int, str] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Count the rows so far."""
        return len(self.status)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows, in order, none of them loaded yet."""
        captions = [row.captions for row in rows]
        sources = [_storable(row.source.label) if row.source else "" for row in rows]
        self._chunks.append(
            pa.record_batch([captions, sources], schema=pa.schema([_SCHEMA.field(name) for name in _TEXT]))
        )
        for column in (self.status, self.stage, self.reason, self.attempts, self.checksum):
            column.extend([0] * len(rows))

    def loaded(self, slot: int, checksum: int) -> None:
        """Note that the sample of `slot` is in its place."""
        self.status[slot], self.checksum[slot] = LOADED, checksum
        self.stage[slot] = self.reason[slot] = self.attempts[slot] = 0
        self.details.pop(slot, None)

    def failed(self, failure: Failure) -> None:
        """Note why the sample of a row could not be loaded."""
        slot = failure.index
        self.status[slot], self.checksum[slot] = FAILED, 0
        self.stage[slot], self.reason[slot] = STAGES.index(failure.stage), REASONS.index(failure.reason)
        self.attempts[slot] = min(failure.attempts, 65_535)
        self.details[slot] = _storable(failure.detail)

    def truncate(self, num_rows: int) -> None:
        """Forget all rows but the first."""
        kept, left = [], num_rows
        for chunk in self._chunks:
            kept.append(chunk.slice(0, left))
            left -= kept[-1].num_rows
        self._chunks = kept
        for column in (self.status, self.stage, self.reason, self.attempts, self.checksum):
            del column[num_rows:]
        self.details = {slot: detail for slot, detail in self.details.items() if slot < num_rows}

    def to_buffer(self) -> Any:
        """Write the table as an Arrow IPC file into one buffer."""
        num_rows = self.num_rows
        numbers = {
            "status": np.frombuffer(self.status, np.uint8),
            "attempts": np.frombuffer(self.attempts, np.uint16),
            "checksum": np.frombuffer(self.checksum, np.uint64),
        }
        codes = {
            "stage": (np.frombuffer(self.stage, np.int8), STAGES),
            "reason": (np.frombuffer(self.reason, np.int8), REASONS),
        }
        columns = {name: pa.array(values, _SCHEMA.field(name).type) for name, values in numbers.items()}
        for name, (indices, words) in codes.items():
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), pa.array(words))
        columns["detail"] = pa.array([self.details.get(slot, "") for slot in range(num_rows)], pa.large_string())
        for name in _TEXT:
            chunks = [chunk.column(name) for chunk in self._chunks]
            columns[name] = pa.concat_arrays(chunks) if chunks else pa.array([], _SCHEMA.field(name).type)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, _SCHEMA) as file:
            file.write_batch(pa.record_batch([columns[name] for name in _SCHEMA.names], schema=_SCHEMA))
        return sink.getvalue()

    @classmethod
    def from_table(cls, table: RowTable) -> TableWriter:
        """Take over the rows of a finished table, to alter some."""
        writer = cls([table.batch.select(_TEXT)])
        for name, values in (
            ("status", table.status),
            ("stage", table.stage),
            ("reason", table.reason),
            ("attempts", table.attempts),
            ("checksum", table.checksum),
        ):
            getattr(writer, name).frombytes(values.tobytes())
        writer.details = {failure.index: failure.detail for failure in table.failures()}
        return writer


def _storable(text: str) -> str:
    """Write out what UTF-8 cannot hold, such as file names in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode()


def _numbers(column: Any, dtype: type) -> NDArray[Any]:
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
            if file.schema != _SCHEMA or file.num_record_batches != 1:
                raise pa.ArrowInvalid(f"{file.num_record_batches} record batches of {file.schema.names}")
            self.batch = file.get_batch(0)
            self.batch.validate(full=not intact)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"rows.arrow is damaged: {error}; delete the store and load again") from error
        columns = {name: self.batch.column(name) for name in _SCHEMA.names}
        if nulls := [name for name, column in columns.items() if column.null_count]:
            raise StoreError(f"rows.arrow is damaged: there are nulls in {nulls}; delete the store and load again")
        self.status: NDArray[np.uint8] = _numbers(columns["status"], np.uint8)
        self.stage: NDArray[np.int8] = _numbers(columns["stage"].indices, np.int8)
        self.reason: NDArray[np.int8] = _numbers(columns["reason"].indices, np.int8)
        self.attempts: NDArray[np.uint16] = _numbers(columns["attempts"], np.uint16)
        self.checksum: NDArray[np.uint64] = _numbers(columns["checksum"], np.uint64)
        captions = columns["captions"]
        self._caption_of_slot: NDArray[np.int64] = _numbers(captions.offsets, np.int64)
        has_caption = self._caption_of_slot[1:] > self._caption_of_slot[:-1]
        self._one_each = len(captions.values) == self.num_rows and bool(np.all(has_caption))
        _, offsets, text = captions.values.buffers()
        self._text_of_caption = np.frombuffer(offsets, np.int64) if offsets else np.zeros(1, np.int64)
        self._text = memoryview(text) if text else memoryview(b"")

    @property
    def num_rows(self) -> int:
        """Count the rows."""
        return len(self.status)

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

    def captions(self, slot: int) -> list[str]:
        """Give all captions of a row, in order."""
        slots = np.full(int(self.num_captions(np.array([slot]))[0]), slot)
        return self.caption(slots, np.arange(len(slots)))

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
