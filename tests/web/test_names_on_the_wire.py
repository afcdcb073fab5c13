"""Names that do not resolve as they should, and what becomes of the requests of others meanwhile."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch import Fetcher, names
from in_memory_datasets.schema import Source
from tests.web.hostile_server import HostileServer, make_body

MakeFetcher = Callable[..., Fetcher]
Fail = Callable[..., FetchError]


class SystemResolver:
    """Stand where the system's is asked: every name under "test" is 127.0.0.1, after the failures laid down for it.

    Attributes:
        asked: How often each name was asked for.
        failures: How often a name fails before it is found, and with what.
        open: Set where names under "hanging.test" are to be answered.
    """

    def __init__(self) -> None:
        self._system = socket.getaddrinfo
        self.asked: Counter[str] = Counter()
        self.failures: dict[str, tuple[int, Exception]] = {}
        self.open = threading.Event()

    def __call__(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if not str(host).endswith(".test"):
            return self._system(host, port, *arguments, **options)
        self.asked[host] += 1
        if host.endswith("hanging.test"):
            assert self.open.wait(60)
        times, error = self.failures.get(host, (0, OSError()))
        if self.asked[host] <= times:
            raise error
        return self._system("127.0.0.1", port, *arguments, **options)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemResolver]:
    resolver = SystemResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.open.set()
    for thread in threading.enumerate():
        if thread.name.startswith("in-memory-datasets-io"):  # left inside a look-up when its fetcher was closed
            thread.join(60)


@pytest.fixture
def make_fetcher(resolver: SystemResolver, make_fetcher: MakeFetcher) -> MakeFetcher:
    """Close the fetchers before the resolver is gone."""
    return make_fetcher


AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "PAUSE_SECONDS", 0.1)


def test_a_host_is_looked_up_once_by_however_many_requests(
    server: HostileServer, make_fetcher: MakeFetcher, resolver: SystemResolver
) -> None:
    """Also those that come later, on connections of their own."""
    fetcher = make_fetcher()
    for _ in range(3):
        futures = [fetcher.submit(Source("url", server.url("/ok/9", host="a.test"))) for _ in range(40)]
        assert {future.result(60).data for future in futures} == {make_body(9)}
        server.drop_connections()
    assert resolver.asked == {"a.test": 1}


@pytest.mark.usefixtures("short_pauses")
def test_a_name_that_fails_twice_is_found_the_third_time_for_all(
    server: HostileServer, make_fetcher: MakeFetcher, resolver: SystemResolver
) -> None:
    resolver.failures["flaky.test"] = (2, AGAIN)
    fetcher = make_fetcher(retries=3)
    futures = [fetcher.submit(Source("url", server.url("/ok/9", host="flaky.test"))) for _ in range(20)]
    assert {future.result(60).num_attempts for future in futures} == {3}
    assert resolver.asked == {"flaky.test": 3}


@pytest.mark.usefixtures("short_pauses")
def test_a_name_that_does_not_exist_costs_two_look_ups_for_all_of_its_rows(
    server: HostileServer, make_fetcher: MakeFetcher, resolver: SystemResolver
) -> None:
    resolver.failures["gone.test"] = (99, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    fetcher = make_fetcher(retries=3)
    errors = [fetcher.submit(Source("url", server.url(f"/ok/{i}", host="gone.test"))).exception(60) for i in range(30)]
    assert [(error.reason, error.attempts) for error in errors if isinstance(error, FetchError)] == (
        [("dns", 2)] + [("dns", 1)] * 29
    )
    assert "there is no such name as gone.test" in str(errors[0])
    assert resolver.asked == {"gone.test": 2}


@pytest.mark.usefixtures("short_pauses")
def test_name_servers_that_fail_are_told_from_names_that_are_none(
    server: HostileServer, fail: Fail, resolver: SystemResolver
) -> None:
    resolver.failures["down.test"] = (99, AGAIN)
    error = fail(server.url("/ok/1", host="down.test"), retries=1)
    assert (error.reason, error.attempts, error.host) == ("dns", 2, "down.test")
    assert "the name servers give no answer for down.test (Temporary failure in name resolution)" in str(error)


def test_a_name_that_is_never_answered_ends_with_the_timeout(
    server: HostileServer, fail: Fail, resolver: SystemResolver
) -> None:
    error = fail(server.url("/ok/1", host="hanging.test"), retries=1, timeout=0.2)
    assert (error.reason, error.attempts) == ("dns", 2)
    assert "no name server answered for hanging.test within 0.2 s" in str(error)
    assert resolver.asked == {"hanging.test": 1}
    resolver.open.set()


def test_an_answer_that_comes_too_late_serves_the_next_attempt(
    server: HostileServer, make_fetcher: MakeFetcher, resolver: SystemResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = make_fetcher(retries=0, timeout=0.2)
    error = fetcher.submit(Source("url", server.url("/ok/9", host="hanging.test"))).exception(60)
    assert isinstance(error, FetchError)
    resolver.open.set()
    patient = make_fetcher(retries=0, timeout=60.0)
    assert patient.fetch(Source("url", server.url("/ok/9", host="hanging.test"))).data == make_body(9)
    assert fetcher.fetch(Source("url", server.url("/ok/9", host="hanging.test"))).data == make_body(9)
    assert resolver.asked == {"hanging.test": 2}  # by each of the two fetchers


def test_names_that_hang_take_no_slot_from_others(
    server: HostileServer, make_fetcher: MakeFetcher, resolver: SystemResolver
) -> None:
    """With a single slot, and ten rows whose names nobody answers for, the eleventh is fetched."""
    fetcher = make_fetcher(concurrency=1, timeout=60.0)
    hanging = [fetcher.submit(Source("url", server.url("/ok/9", host=f"{i}.hanging.test"))) for i in range(10)]
    assert fetcher.submit(Source("url", server.url("/ok/9"))).result(60).data == make_body(9)
    assert not any(future.done() for future in hanging)
    resolver.open.set()
    assert {future.result(60).data for future in hanging} == {make_body(9)}


def test_closing_does_not_wait_for_a_name(
    server: HostileServer, make_fetcher: MakeFetcher, resolver: SystemResolver
) -> None:
    fetcher = make_fetcher(timeout=3600.0)
    future = fetcher.submit(Source("url", server.url("/ok/9", host="hanging.test")))
    fetcher.submit(Source("url", server.url("/ok/9"))).result(60)
    fetcher.close()
    assert future.done()
    resolver.open.set()
