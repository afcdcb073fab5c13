"""Threads that share a piece of work."""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from in_memory_datasets.training.crew import Crew

MEGABYTES = 2**20


def begin(crew: Crew) -> Crew:
    """Have a crew do a first piece of work, which its caller does alone."""
    crew.share(lambda part: None, num_items=3, num_bytes=6 * MEGABYTES)
    return crew


@pytest.fixture
def crew() -> Iterator[Crew]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    crew = begin(Crew())
    yield crew
    crew.close()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("num_items", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("num_bytes", [0, 4 * MEGABYTES, 100 * MEGABYTES])
def test_every_item_is_done_once(crew: Crew, num_items: int, num_bytes: int) -> None:
    done: list[int] = []
    crew.share(lambda part: done.extend(range(num_items)[part]), num_items=num_items, num_bytes=num_bytes)
    assert sorted(done) == list(range(num_items))


def test_much_work_is_shared(crew: Crew) -> None:
    """Each of three waits for the two others, so that one alone would never get done."""
    together = threading.Barrier(3, timeout=30)
    crew.share(lambda part: together.wait(), num_items=3, num_bytes=6 * MEGABYTES)


def test_the_first_piece_of_work_starts_no_thread(crew: Crew) -> None:
    crew.close()
    before, workers = threading.active_count(), set()
    crew.share(lambda part: workers.add(threading.get_ident()), num_items=32, num_bytes=5 * MEGABYTES)
    assert workers == {threading.get_ident()}
    assert threading.active_count() == before
    together = threading.Barrier(2, timeout=30)
    crew.share(lambda part: together.wait(), num_items=32, num_bytes=5 * MEGABYTES)


def test_a_large_first_piece_of_work_is_shared(crew: Crew) -> None:
    crew.close()
    together = threading.Barrier(3, timeout=30)
    crew.share(lambda part: together.wait(), num_items=9, num_bytes=100 * MEGABYTES)


def test_little_work_starts_no_thread(crew: Crew) -> None:
    before = threading.active_count()
    crew.share(lambda part: None, num_items=100, num_bytes=MEGABYTES)
    assert threading.active_count() == before


def test_where_torch_may_use_one_thread_the_caller_works_alone(crew: Crew) -> None:
    torch.set_num_threads(1)
    workers = set()
    crew.share(lambda part: workers.add(threading.get_ident()), num_items=100, num_bytes=100 * MEGABYTES)
    assert workers == {threading.get_ident()}


def test_nobody_waits_for_a_helper_that_has_not_begun(crew: Crew) -> None:
    """All helpers are busy for another thread until the work is done without them."""
    torch.set_num_threads(4)
    together, release = threading.Barrier(5, timeout=30), threading.Event()

    def keep_busy(part: slice) -> None:
        together.wait()
        release.wait(30)

    other = threading.Thread(target=lambda: crew.share(keep_busy, num_items=4, num_bytes=8 * MEGABYTES))
    other.start()
    together.wait()
    done: list[int] = []
    crew.share(lambda part: done.extend(range(50)[part]), num_items=50, num_bytes=100 * MEGABYTES)
    release.set()
    other.join()
    assert sorted(done) == list(range(50))


def test_what_was_worked_on_is_not_kept(crew: Crew) -> None:
    """Also by a helper that comes too late, or by one that has nothing else to do."""
    for _ in range(20):
        target = np.empty(9)
        crew.share(lambda part, target=target: target[part].fill(1), num_items=9, num_bytes=100 * MEGABYTES)
        kept = weakref.ref(target)
        del target
        assert kept() is None


def test_a_crew_that_nobody_has_any_more_ends_its_threads() -> None:
    torch.set_num_threads(2)
    crew = begin(begin(Crew()))
    threads = list(crew._threads)
    assert threads
    del crew
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_an_error_in_any_part_is_raised(crew: Crew) -> None:
    def fail(part: slice) -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        crew.share(fail, num_items=10, num_bytes=20 * MEGABYTES)


def test_a_forked_child_has_helpers_of_its_own(crew: Crew) -> None:
    crew.share(lambda part: None, num_items=3, num_bytes=6 * MEGABYTES)
    pid = os.fork()
    if pid == 0:
        together = threading.Barrier(3, timeout=30)
        begin(crew).share(lambda part: together.wait(), num_items=3, num_bytes=6 * MEGABYTES)
        crew.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_pickled_crew_has_no_threads(crew: Crew) -> None:
    crew.share(lambda part: None, num_items=3, num_bytes=6 * MEGABYTES)
    assert pickle.loads(pickle.dumps(crew))._threads == []
