"""The bound on bodies held in memory, with bodies of every kind and size from a real server."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, as_completed
from concurrent.futures import TimeoutError as FutureTimeoutError

import pytest

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch import Fetched, Fetcher
from in_memory_datasets.schema import Source
from tests.web.hostile_server import HostileServer

MakeFetcher = Callable[..., Fetcher]
MIB = 2**20


@pytest.mark.parametrize("seed", range(5))
def test_any_mix_of_bodies_gets_through_within_the_bound(
    server: HostileServer, make_fetcher: MakeFetcher, seed: int
) -> None:
    """Whatever mix of known, unknown, too large, broken and stalled bodies: all end, and the bound holds.

    The bound: the budget, or the largest body where that is more, and one body beyond it while others that cannot
    finish wait for it.
    """
    rng = random.Random(seed)
    budget, largest = rng.choice([64 * 1024, MIB, 3 * MIB]), 2 * MIB
    fetcher = make_fetcher(
        max_buffered_bytes=budget, max_bytes=largest, concurrency=rng.choice([1, 7, 64]), timeout=1.0, per_host=64
    )
    paths = []
    for _ in range(80):
        size = rng.choice([1, 1000, 50_000, 400_000, MIB + 1, largest, largest + 1])
        paths.append(
            rng.choice(
                [
                    f"/ok/{size}",
                    f"/ok/{size}",
                    f"/chunked/{size}/65536",
                    f"/until-close/{size}",
                    f"/gzip/{size}",
                    "/short/99",
                ]
            )
        )
    paths.append("/slow-body")
    rng.shuffle(paths)

    lock = threading.Lock()
    held = most = 0
    futures: list[Future[Fetched]] = []

    def count(future: Future[Fetched]) -> None:
        nonlocal held, most
        if future.exception() is None:
            with lock:
                held += future.result().num_bytes
                most = max(most, held)

    for path in paths:
        future = fetcher.submit(Source("url", server.url(path)))
        future.add_done_callback(count)
        futures.append(future)
    num_ok = 0
    for future in as_completed(futures, timeout=30):
        error = future.exception()
        if error is not None:
            assert isinstance(error, FetchError)
            assert error.reason in ("too_large", "truncated", "timeout")
            continue
        num_ok += 1
        with lock:
            held -= future.result().num_bytes
        future.result().release()
    assert num_ok > 30
    assert most <= max(budget, largest) + largest


def test_what_is_not_released_holds_the_next_body_back(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    """A wait for memory is no part of the time-out, and ends with the release."""
    fetcher = make_fetcher(max_buffered_bytes=100_000, timeout=0.3)
    first = fetcher.fetch(Source("url", server.url("/ok/80000")))
    second = fetcher.submit(Source("url", server.url("/ok/80000")))
    # Fits beside the first, and is asked for after the second: first come, first served.
    third = fetcher.submit(Source("url", server.url("/slow-body")))
    server.wait_for_stalls(1)
    with pytest.raises(FutureTimeoutError):
        second.result(0.6)
    assert not third.done()
    first.release()
    first.release()
    assert second.result(10).num_bytes == 80_000
    second.result().release()
    error = third.exception(10)
    assert isinstance(error, FetchError)
    assert error.reason == "timeout"


def test_a_body_that_turns_out_longer_waits_for_memory_without_its_time_running(
    server: HostileServer, make_fetcher: MakeFetcher
) -> None:
    fetcher = make_fetcher(max_buffered_bytes=2 * MIB, timeout=0.3)
    first = fetcher.fetch(Source("url", server.url("/ok/1000000")))
    second = fetcher.submit(Source("url", server.url("/chunked/1500000/50000")))
    with pytest.raises(FutureTimeoutError):
        second.result(0.6)
    first.release()
    assert second.result(10).num_bytes == 1_500_000
    second.result().release()


def test_a_body_larger_than_the_budget_comes_alone(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher(max_buffered_bytes=1000)
    futures = [fetcher.submit(Source("url", server.url(path))) for path in ("/ok/50000", "/chunked/50000/999") * 5]
    for future in as_completed(futures, timeout=10):
        assert future.result().num_bytes == 50_000
        assert sum(other.done() for other in futures) >= 1
        future.result().release()


def test_failures_give_their_bytes_back(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    """Many more bytes than the budget fail in every way, and there is room afterwards."""
    fetcher = make_fetcher(max_buffered_bytes=3000, timeout=0.2, max_bytes=100_000)
    paths = ["/short/99", "/endless", "/reset/body", "/gzip/200000", "/slow-body", "/empty", "/broken-gzip"] * 4
    for future in [fetcher.submit(Source("url", server.url(path))) for path in paths]:
        assert isinstance(future.exception(20), FetchError)
    assert fetcher.fetch(Source("url", server.url("/ok/3000"))).num_bytes == 3000
