"""Many cores: processes that each fetch and decode a share of the rows and write straight into the block.

One interpreter's lock lets so many threads decode at once as their share of the time without it allows, a handful. More
cores are used by more interpreters. What crosses between them is rows and what became of them; pixels and frames never
do.

The processes are started anew, not forked, since this one may have threads; and unlike those of `multiprocessing` they
never run the user's script, so that it needs no `if __name__ == "__main__":`. They end when their connection does, also
when this process is killed.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Self

from in_memory_datasets.build.pipeline import Outcome, Outcomes, Threads, Workshop
from in_memory_datasets.build.request import LoadRequest
from in_memory_datasets.decode import share_decode_memory
from in_memory_datasets.errors import LoadError
from in_memory_datasets.schema import Row, Source
from in_memory_datasets.store import Block, Placed, Places, SharedEnd, StoreWriter

# A process keeps so many threads busy, with its fetching and the rest; the figures are in the benchmarks.
THREADS_PER_PROCESS = 4
# Below these, starting processes (a second of each core) or keeping this one's books costs more than it brings.
_MIN_THREADS, _MIN_ROWS = 2 * THREADS_PER_PROCESS, 5_000
_MAX_ROWS_IN_MESSAGE, _NUM_OUTCOMES_WAITED_FOR = 16, 16
_MAX_BUFFERED_BYTES, _MIN_BUFFERED_BYTES = 128 * 2**20, 16 * 2**20
_END_SECONDS = 10.0


def make_workshop(request: LoadRequest, writer: StoreWriter, *, encoded: bool) -> Workshop:
    """Choose where the samples of a load are made: in this process, or with many cores in several."""
    num_processes = count_processes(request)
    if num_processes > 1:
        return Processes(writer, request, encoded=encoded, num_processes=num_processes)
    return Threads(writer.put, request, is_encoded=lambda slot: encoded)


def count_processes(request: LoadRequest) -> int:
    """Count the processes that a load is best made in; 1 for this one alone."""
    if request.num_processes is not None:
        return request.num_processes
    num_rows = request.rows.num_rows
    is_small = request.threads < _MIN_THREADS or (num_rows is not None and num_rows < _MIN_ROWS)
    return 1 if is_small or not sys.executable else -(-request.threads // THREADS_PER_PROCESS)


_Job = tuple[int, Source, int]  # slot, source, number of the sample


@dataclass(frozen=True, slots=True)
class _Setup:
    """What a process is told before its first row; descriptors are numbers that it was started with."""

    request: LoadRequest
    encoded: bool
    block_fd: int
    end_fd: int
    image_bytes: int
    is_clip: bool
    num_processes: int
    max_buffered_bytes: int


@dataclass(slots=True, eq=False)
class _Process:
    """One of the processes, as the one that began them sees it."""

    popen: subprocess.Popen[bytes]
    connection: Connection
    waiting: list[_Job] = field(default_factory=list)
    num_begun: int = 0
    num_ended: int = 0  # counted by another thread
    receiver: threading.Thread | None = None


class Processes:
    """A workshop of several processes.

    Each has its part of the threads, of the requests under way, in all and to one host, and of the memory for what is
    fetched and decoded. Objects, such as pictures, which may not be fit to be sent, are decoded here.
    """

    def __init__(self, writer: StoreWriter, request: LoadRequest, *, encoded: bool, num_processes: int) -> None:
        self.done = Outcomes()
        self._writer = writer
        self._request, self._encoded, self._num_processes = request, encoded, num_processes
        self._here = Threads(
            writer.put, replace(request, num_threads=THREADS_PER_PROCESS), is_encoded=lambda slot: encoded
        )
        self._here.done = self.done
        self._processes: list[_Process] = []
        self._resources = ExitStack()
        self._is_closing = False

    def begin(self, row: Row) -> None:
        """Begin with a row that has a source."""
        assert row.source is not None
        if row.source.kind == "object":
            self._here.begin(row)
            return
        process = min(self._processes, key=lambda process: process.num_begun - process.num_ended)
        process.num_begun += 1
        process.waiting.append((row.index, row.source, self._writer.number_of(row.index)))
        if len(process.waiting) == _MAX_ROWS_IN_MESSAGE:
            self._send(process)

    def flush(self) -> None:
        """Send what was begun."""
        for process in self._processes:
            if process.waiting:
                self._send(process)

    def _send(self, process: _Process) -> None:
        jobs, process.waiting = process.waiting, []
        with suppress(BrokenPipeError, ConnectionResetError):  # its receiver says that it has ended
            process.connection.send(jobs)

    def __enter__(self) -> Self:
        with ExitStack() as started:
            started.callback(self._end)
            for number in range(self._num_processes):
                self._start(number)
            started.enter_context(self._here)
            self._resources = started.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_closing = True
        self._resources.close()

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        places, share = self._writer.places, functools.partial(_share, self._num_processes)
        fds = (theirs.fileno(), places.block.fd, places.end.block.fd)
        # In a session of its own an interrupt from the keyboard does not reach it: it ends when this process says so.
        popen = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {_MAIN}({fds[0]})"],
            pass_fds=fds,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        process = _Process(popen, Connection(ours.detach()))
        self._processes.append(process)
        fetch = self._request.fetch
        fetch = replace(fetch, concurrency=share(fetch.concurrency), per_host=share(fetch.per_host))
        request = replace(
            self._request, reader=None, job=None, fetch=fetch, num_threads=share(self._request.threads), progress=False
        )
        buffered = max(_MIN_BUFFERED_BYTES, share(_MAX_BUFFERED_BYTES))
        setup = _Setup(
            request, self._encoded, *fds[1:], places.image_bytes, places.is_clip, self._num_processes, buffered
        )
        with suppress(BrokenPipeError, ConnectionResetError):  # as above
            process.connection.send(setup)
        process.receiver = threading.Thread(
            target=self._receive, args=(process,), name=f"in-memory-datasets-receive-{number}"
        )
        process.receiver.start()

    def _receive(self, process: _Process) -> None:
        try:
            while True:
                for outcome in process.connection.recv():
                    process.num_ended += 1
                    self.done.put(outcome)
        except (EOFError, OSError):
            if not self._is_closing:
                self.done.put(LoadError(_how_it_ended(process.popen.wait())))

    def _end(self) -> None:
        """End all processes, those that do not end by themselves forcibly."""
        for process in self._processes:
            with suppress(OSError), socket.socket(fileno=os.dup(process.connection.fileno())) as both_ways:
                both_ways.shutdown(socket.SHUT_RDWR)  # an error says that it has ended already
        for process in self._processes:
            try:
                process.popen.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
            if process.receiver is not None:
                process.receiver.join()
            process.connection.close()
        self._processes = []


def _share(num_processes: int, number: int) -> int:
    """Give each process's part of a number, at least 1."""
    return max(1, number // num_processes)


def _how_it_ended(status: int) -> str:
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    hint = ", as the system does with processes when memory runs out" if status == -9 else ""
    return (
        f"one of the processes that load was ended {how}{hint}: load again, which with cache_dir= goes on from where "
        f"this one came to; num_threads={THREADS_PER_PROCESS} loads without further processes"
    )


_MAIN = "from in_memory_datasets.build.processes import work; work"


def work(fd: int) -> None:
    """Make samples for the process at the other end of a connection, until it ends; what a process runs."""
    with Connection(fd) as connection:
        setup: _Setup = connection.recv()
        share_decode_memory(setup.num_processes)
        block, end = Block(setup.block_fd), SharedEnd(Block(setup.end_fd))
        places = Places(block, setup.image_bytes, setup.is_clip, end)
        numbers: dict[int, int] = {}

        def put(slot: int, sample: NDArray[Any], num_frames: int) -> Placed:
            return places.put(numbers[slot], sample, num_frames)

        def forget(outcome: Outcome | BaseException) -> Outcome | BaseException:
            if isinstance(outcome, Outcome):
                numbers.pop(outcome.slot, None)
            return outcome

        threads = Threads(
            put, setup.request, is_encoded=lambda slot: setup.encoded, max_buffered_bytes=setup.max_buffered_bytes
        )
        with threads:
            threading.Thread(target=_report, args=(connection, threads.done, forget), daemon=True).start()
            with suppress(EOFError, OSError):
                while True:
                    for slot, source, number in connection.recv():
                        numbers[slot] = number
                        threads.begin(Row(slot, source, ()))


def _report(
    connection: Connection,
    done: Outcomes,
    forget: Callable[[Outcome | BaseException], Outcome | BaseException],
) -> None:
    """Send what became of the rows, as many at once as have come."""
    with suppress(OSError):  # the other end has ended
        while True:
            outcomes = [forget(one) for one in done.take(_NUM_OUTCOMES_WAITED_FOR)]
            try:
                connection.send(outcomes)
            except (TypeError, AttributeError):  # an exception that cannot be sent
                connection.send([one if isinstance(one, Outcome) else RuntimeError(repr(one)) for one in outcomes])
