"""A store is to be had for as long as any process of the job has it, whichever of them ends, and however."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from in_memory_datasets.errors import StoreError
from in_memory_datasets.store import Block, LiveStore, Store, find_store, share_store
from tests.lacking import needs_proc
from tests.making import IMAGE_SPEC, make_images, make_store
from tests.process.conftest import wait_for

pytestmark = needs_proc

NAME = "pictures"


def make(seed: int = 0) -> Store:
    return make_store(IMAGE_SPEC, make_images(5, seed=seed))


def refuse(show: Callable[[LiveStore], None]) -> Store:
    raise AssertionError("there is one already")


def look(store: Store | None) -> tuple[int, bytes] | None:
    """Tell which memory a store lies in, and its pictures."""
    if store is None:
        return None
    assert store.images is not None
    return os.fstat(store.samples.fd).st_ino, store.images.tobytes()


class _Part:
    """What a process does when it is told to."""

    def __init__(self, test: Connection, job: str) -> None:
        self._test, self._job = test, job
        self._store: Store | None = None
        self._has_built = False

    def share(self) -> Any:
        def build(show: Callable[[LiveStore], None]) -> Store:
            self._has_built = True
            return make()

        self._store = share_store(self._job, NAME, build)
        return self._has_built, look(self._store)

    def share_when_told(self) -> Any:
        def build(show: Callable[[LiveStore], None]) -> Store:
            self._test.send("building")
            while (order := self._test.recv()) != "finish":
                self._test.send(getattr(self, order)())
            return make()

        self._store = share_store(self._job, NAME, build)
        return look(self._store)

    def share_in_vain(self) -> None:
        def build(show: Callable[[LiveStore], None]) -> Store:
            self._test.send("building")
            self._test.recv()
            raise ZeroDivisionError

        with contextlib.suppress(ZeroDivisionError):
            share_store(self._job, NAME, build)

    def find(self) -> Any:
        self._store = find_store(self._job, NAME)
        return look(self._store)

    def find_with_two_descriptors_left(self) -> Any:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, most))
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for fd in taken[-3:]:  # one is for the connection
            os.close(fd)
        try:
            find_store(self._job, NAME)
        except OSError as error:
            return error.errno
        return None

    def close(self) -> None:
        assert self._store is not None
        self._store.close()

    def drop(self) -> None:
        self._store = None
        gc.collect()

    def fork(self) -> int:
        child = os.fork()
        if not child:
            while True:
                signal.pause()
        return child


def _obey(test: Connection, job: str) -> None:
    part = _Part(test, job)
    while (order := test.recv()) != "exit":
        test.send(getattr(part, order)())


class Member:
    """A process of a job, which does what it is told."""

    def __init__(self, job: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_obey, args=(theirs, job))
        self._process.start()
        self._children: list[int] = []
        theirs.close()

    def tell(self, order: str) -> None:
        self._connection.send(order)

    def answer(self) -> Any:
        assert self._connection.poll(60)
        return self._connection.recv()

    def ask(self, order: str) -> Any:
        self.tell(order)
        return self.answer()

    def fork(self) -> None:
        """Have it fork a child that lives until the end of the test."""
        self._children.append(self.ask("fork"))

    def num_ends(self) -> int:
        """Count its sockets at meeting points."""
        ends = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        inodes = {f"socket:[{end[6]}]" for end in ends if end[-1].startswith("@in-memory-datasets/")}
        num_ends = 0
        for fd in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed just now
                num_ends += os.readlink(fd) in inodes
        return num_ends

    def exit(self) -> None:
        self.tell("exit")
        self._process.join(60)
        assert self._process.exitcode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def dismiss(self) -> None:
        self.kill()
        self._process.close()
        self._connection.close()
        for child in self._children:
            os.kill(child, signal.SIGKILL)


def share_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "in-memory-datasets-share"]


@pytest.fixture
def job() -> Iterator[str]:
    """Give the name of a job, which is over at the end, in all threads of this process."""
    yield str(uuid.uuid4())
    gc.collect()
    wait_for(lambda: not share_threads())


Members = Callable[[int], list[Member]]


@pytest.fixture
def members(job: str) -> Iterator[Members]:
    """Start processes of the job."""
    started: list[Member] = []

    def start(num_members: int) -> list[Member]:
        started.extend(Member(job) for _ in range(num_members))
        return started[-num_members:]

    yield start
    for member in started:
        member.dismiss()


def test_whoever_comes_attaches_for_as_long_as_one_process_has_the_store(job: str, members: Members) -> None:
    """The builder is killed, and then its heirs one after another; who comes never builds, until nobody is left."""
    builder, second, third, late = members(4)
    has_built, seen = builder.ask("share")
    assert has_built
    assert second.ask("share") == third.ask("share") == (False, seen)
    builder.kill()
    assert late.ask("find") == seen
    second.kill()
    late.kill()
    with share_store(job, NAME, refuse) as store:
        assert look(store) == seen
        third.kill()
        with share_store(job, NAME, refuse) as another:
            assert look(another) == seen
    assert find_store(job, NAME) is None


@pytest.mark.parametrize("ending", ["close", "drop", "exit"])
def test_heirs_give_the_store_when_its_builder_lets_go_of_it(job: str, members: Members, ending: str) -> None:
    """A store that is closed or collected, and one whose process exits, is to be had from others at once."""
    builder, heir = members(2)
    _, seen = builder.ask("share")
    assert heir.ask("find") == seen
    if ending == "exit":
        builder.exit()
    else:
        builder.ask(ending)
        wait_for(lambda: not builder.num_ends())
    with share_store(job, NAME, refuse) as store:
        assert look(store) == seen
    heir.ask("close")
    assert find_store(job, NAME) is None


def test_a_forked_child_of_one_that_ended_keeps_nobody_waiting(job: str, members: Members) -> None:
    """It has the memory, but not the meeting point: heirs give the store, and when they are gone there is none."""
    builder, heir = members(2)
    _, seen = builder.ask("share")
    assert heir.ask("find") == seen
    builder.fork()
    heir.fork()
    builder.kill()
    with share_store(job, NAME, refuse) as store:
        assert look(store) == seen
    heir.kill()
    assert find_store(job, NAME) is None


def test_who_waits_sees_the_end_of_a_builder_whose_forked_child_lives_on(job: str, members: Members) -> None:
    """Those who wait are turned away by the kernel, and one of them builds."""
    builder, waiting = members(2)
    assert builder.ask("share_when_told") == "building"
    waiting.tell("share")
    wait_for(lambda: builder.num_ends() == 2)
    builder.fork()
    builder.kill()
    has_built, _ = waiting.answer()
    assert has_built


def test_who_looks_for_a_store_waits_while_it_is_built(members: Members) -> None:
    """All who ask before it is there are given it when it is."""
    builder, *waiting = members(3)
    assert builder.ask("share_when_told") == "building"
    for member in waiting:
        member.tell("find")
    wait_for(lambda: builder.num_ends() == 3)
    seen = builder.ask("finish")
    assert [member.answer() for member in waiting] == [seen, seen]


@pytest.mark.parametrize("is_killed", [True, False])
def test_who_looks_for_a_store_finds_none_when_its_builder_fails(members: Members, is_killed: bool) -> None:
    """Whether the builder is killed or raises, who waited for its store is told that there is none."""
    builder, waiting = members(2)
    assert builder.ask("share_in_vain") == "building"
    waiting.tell("find")
    wait_for(lambda: builder.num_ends() == 2)
    if is_killed:
        builder.kill()
    else:
        builder.ask("finish")
    assert waiting.answer() is None


def test_a_process_that_has_no_descriptors_left_says_so(members: Members) -> None:
    """It raises the system's error, instead of asking for the store again and again."""
    builder, late = members(2)
    builder.ask("share")
    assert late.ask("find_with_two_descriptors_left") == errno.EMFILE


def test_one_process_offers_many_stores_and_each_until_it_is_closed(job: str) -> None:
    """A store that was made before is passed by a build that gives it; to close one ends the offer of that one."""
    before = len(os.listdir("/proc/self/fd"))
    stores = [share_store(job, f"{seed}", lambda show, seed=seed: make(seed)) for seed in range(50)]  # type: ignore[misc]
    for seed in range(0, 50, 2):
        stores[seed].close()
    for seed, store in enumerate(stores):
        with find_store(job, f"{seed}") or contextlib.nullcontext() as found:
            assert look(found) == (None if seed % 2 == 0 else look(store))
    for store in stores:
        store.close()
    wait_for(lambda: not share_threads())
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_store_is_not_given_while_something_of_it_is_still_looked_at(job: str) -> None:
    """Who comes then is turned away, and finds that there is none."""
    store = share_store(job, NAME, lambda show: make())
    table = store.table
    store.close()
    assert find_store(job, NAME) is None
    assert table.num_rows == 5


def test_a_store_that_is_closed_while_it_is_being_sent_is_not_mistaken_for_another_file(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a descriptor may be another file's as soon as the block is closed; that file is not sent."""
    store = share_store(job, NAME, lambda show: make())
    give_fd: Callable[[Block], int] = Block.fd.fget  # type: ignore[attr-defined]
    numbers = [store.samples.fd, store.rows.fd]
    other = os.open(os.devnull, os.O_RDONLY)

    def give_fd_and_close(block: Block) -> int:
        fd = give_fd(block)
        if block is store.rows and threading.current_thread().name in share_threads():
            store.close()
            for number in numbers:
                os.dup2(other, number)
        return fd

    monkeypatch.setattr(Block, "fd", property(give_fd_and_close))
    found = find_store(job, NAME)
    monkeypatch.undo()
    for fd in (other, *numbers):  # these would not be open if nothing had been sent
        os.close(fd)
    assert found is None


def test_a_closed_store_cannot_be_offered(job: str) -> None:
    """The error says that it is closed, and the meeting point is free again."""
    store = make()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        share_store(job, NAME, lambda show: store)
    assert find_store(job, NAME) is None


def test_where_there_are_no_abstract_sockets_no_store_is_found(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux, none is found even in the process that has it."""
    with share_store(job, NAME, lambda show: make()):
        monkeypatch.setattr(sys, "platform", "darwin")
        found = find_store(job, NAME)
        monkeypatch.undo()
    assert found is None
