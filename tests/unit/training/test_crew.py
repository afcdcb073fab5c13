"""Threads that share a piece of work."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator

import pytest
import torch

from in_memory_datasets.training.crew import Crew

MEGABYTES = 2**20


@pytest.fixture
def crew() -> Iterator[Crew]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    crew = Crew()
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
    crew.share(lambda part: None, num_items=3, num_bytes=6 * MEGABYTES)
    assert crew._helpers is not None
    release = threading.Event()
    busy = [crew._helpers.submit(release.wait) for _ in range(3)]
    done: list[int] = []
    crew.share(lambda part: done.extend(range(50)[part]), num_items=50, num_bytes=100 * MEGABYTES)
    release.set()
    assert sorted(done) == list(range(50))
    assert all(helper.result() for helper in busy)


def test_an_error_in_any_part_is_raised(crew: Crew) -> None:
    def fail(part: slice) -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        crew.share(fail, num_items=10, num_bytes=20 * MEGABYTES)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_whose_helpers_are_gone_does_the_work_itself(crew: Crew) -> None:
    crew.share(lambda part: None, num_items=3, num_bytes=6 * MEGABYTES)
    pid = os.fork()
    if pid == 0:
        done: list[int] = []
        crew.share(lambda part: done.extend(range(9)[part]), num_items=9, num_bytes=100 * MEGABYTES)
        os._exit(0 if sorted(done) == list(range(9)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_pickled_crew_has_no_threads() -> None:
    assert pickle.loads(pickle.dumps(Crew()))._helpers is None
