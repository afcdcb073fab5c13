"""What is done of a store that is being built in a directory, so that the next process can go on from there.

A record is appended when a sample's bytes are in place. It is believed only when those bytes have its checksum, so
that neither a half-written record nor one that reached the disk before its sample does harm. It
names the first row that has the sample.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

JOURNAL = "journal"
_RECORD = np.dtype(
    [("slot", "<u8"), ("start", "<u8"), ("num_bytes", "<u8"), ("num_frames", "<u8"), ("checksum", "<u8")]
)


class Journal:
    """The records of one directory; a context manager. One thread writes.

    Args:
        directory: Where the store is being built.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        num_bytes = os.fstat(self._fd).st_size
        os.ftruncate(self._fd, num_bytes - num_bytes % _RECORD.itemsize)  # or what follows would be out of step

    def records(self) -> NDArray[Any]:
        """Read all records, in the order they were written; fields slot, start, num_bytes, num_frames, checksum."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            return np.frombuffer(file.read(), _RECORD)

    def append(self, slot: int, start: int, num_bytes: int, num_frames: int, checksum: int) -> None:
        """Note that the sample of `slot` lies at `start`.

        Raises:
            OSError: The disk is full.
        """
        record = np.array([(slot, start, num_bytes, num_frames, checksum)], _RECORD).tobytes()
        while record:  # on a disk that is nearly full a part of it is written, and the next try says so
            record = record[os.write(self._fd, record) :]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def num_journaled(directory: Path) -> int:
    """Count the samples that are in place in a directory where a store is being built; 0 where none is."""
    try:
        return (directory / JOURNAL).stat().st_size // _RECORD.itemsize
    except FileNotFoundError:
        return 0
