"""A block: one run of bytes that any number of processes map.

Anonymous blocks are memory that no name outlives (memfd; where there is none, an unlinked temporary file); blocks with
a path are files, and the page cache is then the one copy. Both are written through the descriptor and read through a
read-only mapping, which the kernel keeps coherent: a full disk is an `OSError`, never a bus error, and no reader can
alter a sample by accident.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.errors import StoreError

PAGE_BYTES = mmap.PAGESIZE
CLOSED = "this dataset was closed; keep it open for as long as it is read"
COPY_BYTES = 64 * 2**20  # short enough that an interrupt is answered at once


class Block:
    """One run of bytes, shared by every process that holds its descriptor; a context manager.

    Pickled plainly it carries its bytes; sent to a worker process, by any start method or queue of `multiprocessing`,
    it is a handle on the same memory.

    The memory is returned to the machine when the last descriptor and the last view in the last process are gone,
    also after kill -9.

    Args:
        fd: A descriptor of the bytes; the block owns it from here on.
    """

    def __init__(self, fd: int) -> None:
        # multiprocessing sends things to its processes with a ForkingPickler, and nothing else uses one.
        reduction.ForkingPickler.register(Block, _reduce_to_handle)
        self._fd: int | None = fd
        self._close_fd = weakref.finalize(self, os.close, fd)
        self._view: memoryview | None = None
        self._lock = threading.Lock()

    @classmethod
    def anonymous(cls, name: str) -> Block:
        """Make an empty block of shared memory; `name` only shows in /proc/<pid>/maps."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create(f"in-memory-datasets-{name}", os.MFD_CLOEXEC))
        fd, path = tempfile.mkstemp(prefix="in-memory-datasets-")
        os.unlink(path)
        return cls(fd)

    @classmethod
    def create(cls, path: Path) -> Block:
        """Make an empty block that is the file `path`, which must not exist."""
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))

    @classmethod
    def open(cls, path: Path) -> Block:
        """Open the block that is the file `path`; one that may not be written can still be read."""
        try:
            block = cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            block = cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        if hasattr(os, "posix_fadvise"):
            # Reading ahead of what `read` is asked for brought half as much again from a disk, for no time gained.
            os.posix_fadvise(block.fd, 0, 0, os.POSIX_FADV_RANDOM)
        return block

    @property
    def closed(self) -> bool:
        """Tell whether the descriptor was given up."""
        return self._fd is None

    @property
    def fd(self) -> int:
        """Give the descriptor, for handing the block to another process.

        Raises:
            StoreError: The block is closed.
        """
        if self._fd is None:
            raise StoreError(CLOSED)
        return self._fd

    @property
    def nbytes(self) -> int:
        """Count the bytes in the block."""
        return os.fstat(self.fd).st_size

    @property
    def has_name(self) -> bool:
        """Tell whether it is a file that others can open, and alter; memory, and a file that was removed, are not."""
        return os.fstat(self.fd).st_nlink > 0

    def write(self, data: Any, offset: int) -> None:
        """Write a contiguous buffer at `offset`; the block grows as needed. Thread-safe, releases the GIL.

        Raises:
            OSError: The disk is full or the block may not be written.
        """
        view = memoryview(data).cast("B")
        while view.nbytes:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Copy a part of the bytes out, fewer where the block ends before. Thread-safe, releases the GIL.

        What does not lie in memory then comes from the disk as one piece. Through a mapping it comes page by page, each
        with all that the kernel reads around it: with half of a store on the disk, and 8 MB around, an epoch read 37
        times the store.
        """
        return os.pread(self.fd, num_bytes, offset)

    def will_need(self, start: int, num_bytes: int) -> None:
        """Have the kernel read a part from the disk, as one piece and nothing else, before it is looked at.

        It does not wait for the disk, so that parts that are announced one after another are read at once.
        """
        view, page = self.view(), start // PAGE_BYTES * PAGE_BYTES
        stop = min(start + num_bytes, view.nbytes)
        if start < stop:
            view.obj.madvise(mmap.MADV_WILLNEED, page, stop - page)  # type: ignore[attr-defined]

    def resize(self, num_bytes: int) -> None:
        """Set the length; what is added reads as zeros and takes no memory until it is written."""
        os.ftruncate(self.fd, num_bytes)

    def view(self) -> memoryview:
        """Map the bytes, read-only; the mapping lives as long as anything looks at it."""
        with self._lock:
            if self._view is None or self._view.nbytes != self.nbytes:
                self._view = memoryview(mmap.mmap(self.fd, self.nbytes, mmap.MAP_SHARED, mmap.PROT_READ))
            return self._view

    def counters(self, num_counters: int) -> NDArray[np.int32]:
        """Map the bytes as int32, shape (num_counters,), writable: what one process counts, all see."""
        self.resize(num_counters * 4)
        return np.frombuffer(self.map(0, num_counters * 4), np.int32)

    def map(self, offset: int, num_bytes: int) -> mmap.mmap:
        """Map a part of the bytes, writable, its pages present; `offset` is a multiple of the page size."""
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        return mmap.mmap(self.fd, num_bytes, flags=flags, offset=offset)

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the parts that hold data, (start, stop); what lies between them are holes, which read as zeros."""
        end, stop = self.nbytes, 0
        while stop < end:
            try:
                start = os.lseek(self.fd, stop, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                raise
            stop = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            yield start, stop

    def copy_to(self, other: Block, *, on_progress: Callable[[int], object] = lambda num_bytes: None) -> None:
        """Write all bytes into the empty block `other`, telling how many more are there; holes stay holes."""
        view = self.view()
        for start, stop in self.extents():
            for at in range(start, stop, COPY_BYTES):
                part = view[at : min(at + COPY_BYTES, stop)]
                other.write(part, at)
                on_progress(part.nbytes)
        other.resize(self.nbytes)

    def close(self) -> None:
        """Give up the descriptor and the mapping; views handed out before stay readable."""
        self._view = None
        self._fd = None
        self._close_fd()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Protocol 5 writes a buffer from where it lies; older ones need a copy as bytes.
        return _from_bytes, (PickleBuffer(self.view()) if protocol >= 5 else bytes(self.view()),)

    def __enter__(self) -> Block:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _from_bytes(data: Any) -> Block:
    block = Block.anonymous("unpickled")
    block.write(data, 0)
    return block


def _reduce_to_handle(block: Block) -> tuple[Any, ...]:
    return _from_handle, (reduction.DupFd(block.fd),)


def _from_handle(handle: Any) -> Block:
    return Block(handle.detach())


class SharedEnd:
    """Where the next sample may lie, as all processes see it that put samples into one block.

    Args:
        block: Where it is counted; one with a descriptor of the same memory counts on.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        block.resize(8)
        self._value = np.frombuffer(block.map(0, 8), np.int64)
        self._lock = threading.Lock()  # the system's own lock keeps out other processes, not threads

    @property
    def value(self) -> int:
        """Give it, a multiple of the page size."""
        return int(self._value[0])

    def allocate(self, num_bytes: int) -> int:
        """Move it behind so many bytes, and give where they may lie. Safe in threads and processes."""
        with self._lock:
            fcntl.lockf(self.block.fd, fcntl.LOCK_EX)  # let go of by the system when its holder dies
            try:
                start = int(self._value[0])
                self._value[0] = start + -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
            finally:
                fcntl.lockf(self.block.fd, fcntl.LOCK_UN)
        return start

    def close(self) -> None:
        """Give up the memory; a mapping holds a descriptor of its own, which goes with the last view of it."""
        self._value = np.zeros(1, np.int64)
        self.block.close()


class Spool:
    """Samples in the order they arrive, before they are packed in the order of their rows.

    Each starts on a page of its own, so that `free` can give its pages back to the machine at once: while samples are
    packed in memory, they lie there once, not twice.

    Args:
        block: Where they lie; whoever made it closes it.
        end: Where the next one may begin.
    """

    def __init__(self, block: Block, end: int = 0) -> None:
        self.block = block
        self.end = SharedEnd(Block.anonymous("end"))
        self.end.allocate(end)
        self._lock = threading.Lock()
        self._pages: mmap.mmap | None = None

    def read(self, start: int, num_bytes: int) -> memoryview:
        """Look at the sample at `start`; for when all samples are in."""
        return memoryview(self._map())[start : start + num_bytes]

    def free(self, start: int, num_bytes: int) -> None:
        """Give back the pages of the sample at `start`, which nobody looks at any more."""
        if num_bytes and hasattr(mmap, "MADV_REMOVE"):
            self._map().madvise(mmap.MADV_REMOVE, start, -(-num_bytes // PAGE_BYTES) * PAGE_BYTES)

    def close(self) -> None:
        """Give up the mapping."""
        self.end.close()
        if self._pages is not None:
            with contextlib.suppress(BufferError):  # an error on its way up still looks at a sample; it goes with that
                self._pages.close()
            self._pages = None

    def _map(self) -> mmap.mmap:
        with self._lock:
            if self._pages is None:
                num_bytes = max(self.end.value, PAGE_BYTES)
                self.block.resize(num_bytes)
                self._pages = mmap.mmap(self.block.fd, num_bytes, mmap.MAP_SHARED)
            return self._pages
