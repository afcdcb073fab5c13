"""How names are looked up: once, shared, bounded, and again after a pause."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from in_memory_datasets.fetch import names as names_module
from in_memory_datasets.fetch.attempt import AttemptFailed, TimeLimit
from in_memory_datasets.fetch.daemon_threads import DaemonThreads
from in_memory_datasets.fetch.names import MAX_LOOKUPS, RENEW_SECONDS, Address, Names, look_up

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class FakeResolver:
    """Give what was laid down for a name, one answer after the other, the last for ever.

    Attributes:
        asked: How often each name was asked for.
        num_at_once: The most questions that were open at one time.
        open: Set where questions are to be answered.
    """

    def __init__(self, **answers: list[Any]) -> None:
        self._answers = {name.replace("_", "."): given for name, given in answers.items()}
        self._lock = threading.Lock()
        self._num_open = 0
        self.asked: Counter[str] = Counter()
        self.num_at_once = 0
        self._arrived = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()

    def __call__(self, name: str) -> list[Address]:
        with self._lock:
            self.asked[name] += 1
            number = self.asked[name]
            self._num_open += 1
            self.num_at_once = max(self.num_at_once, self._num_open)
        self._arrived.release()
        assert self.open.wait(60)
        with self._lock:
            self._num_open -= 1
        answers = self._answers.get(name, [[(V4, "192.0.2.1")]])
        answer = answers[min(number, len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    async def wait_for_questions(self, count: int) -> None:
        """Wait until so many more questions have come."""
        for _ in range(count):
            assert await asyncio.to_thread(self._arrived.acquire, timeout=60)


class Clock:
    """Stand still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(use: Callable[[Names, Clock], Awaitable[None]], ask: Callable[[str], list[Address]]) -> None:
    """Use names on an event loop, with a clock that stands still."""

    async def main() -> None:
        threads, clock = DaemonThreads("in-memory-datasets-test"), Clock()
        names = Names(threads, ask, clock)
        try:
            await use(names, clock)
        finally:
            await names.close()
            threads.close(60)

    asyncio.run(main())


async def fail(names: Names, name: str) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        await names.find(name)
    assert caught.value.reason == "dns"
    return caught.value


def test_a_name_is_looked_up_once_for_the_load() -> None:
    resolver = FakeResolver()

    async def use(names: Names, clock: Clock) -> None:
        assert not names.is_known("a.example")
        for _ in range(3):
            assert await names.find("a.example") == [(V4, "192.0.2.1")]
            clock.now += 10_000
        assert names.is_known("a.example")

    run(use, resolver)
    assert resolver.asked == {"a.example": 1}


def test_a_name_in_capitals_is_the_same_name() -> None:
    resolver = FakeResolver()

    async def use(names: Names, clock: Clock) -> None:
        await names.find("A.Example")
        assert names.is_known("a.example")

    run(use, resolver)
    assert resolver.asked == {"a.example": 1}


def test_those_who_ask_for_one_name_at_once_share_one_look_up() -> None:
    resolver = FakeResolver(gone_example=[AGAIN])

    async def use(names: Names, clock: Clock) -> None:
        found = await asyncio.gather(*(names.find("a.example") for _ in range(50)))
        assert found == [[(V4, "192.0.2.1")]] * 50
        failures = await asyncio.gather(*(fail(names, "gone.example") for _ in range(50)))
        assert {failure.transient for failure in failures} == {True}

    run(use, resolver)
    assert resolver.asked == {"a.example": 1, "gone.example": 1}


def test_no_more_look_ups_run_at_once_than_allowed() -> None:
    resolver = FakeResolver()
    resolver.open.clear()

    async def use(names: Names, clock: Clock) -> None:
        tasks = [asyncio.create_task(names.find(f"{i}.example")) for i in range(3 * MAX_LOOKUPS)]
        await resolver.wait_for_questions(MAX_LOOKUPS)
        resolver.open.set()
        await asyncio.gather(*tasks)

    run(use, resolver)
    assert resolver.num_at_once == MAX_LOOKUPS
    assert len(resolver.asked) == 3 * MAX_LOOKUPS


def test_whoever_gives_up_leaves_the_look_up_to_the_others() -> None:
    """An answer that is late for one attempt is there for the next."""
    resolver = FakeResolver()
    resolver.open.clear()

    async def use(names: Names, clock: Clock) -> None:
        patient = asyncio.create_task(names.find("a.example"))
        with pytest.raises(asyncio.TimeoutError), TimeLimit(0.05):
            await names.find("a.example")
        resolver.open.set()
        assert await patient == [(V4, "192.0.2.1")]
        assert names.is_known("a.example")

    run(use, resolver)
    assert resolver.asked == {"a.example": 1}


def test_a_failure_is_kept_for_a_pause_that_doubles_up_to_half_a_minute() -> None:
    resolver = FakeResolver(a_example=[AGAIN])

    async def use(names: Names, clock: Clock) -> None:
        for number, pause in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0), 1):
            failure = await fail(names, "a.example")
            assert (failure.transient, failure.retry_after) == (True, pause)
            clock.now += pause / 2
            failure = await fail(names, "a.example")
            assert (failure.transient, failure.retry_after) == (True, pause / 2)
            assert resolver.asked["a.example"] == number
            clock.now += pause / 2

    run(use, resolver)


def test_a_name_that_is_found_after_failures_is_kept() -> None:
    resolver = FakeResolver(a_example=[AGAIN, NO_NAME, [(V4, "192.0.2.7")]])

    async def use(names: Names, clock: Clock) -> None:
        for _ in range(2):
            assert (await fail(names, "a.example")).transient
            clock.now += 10_000
        assert await names.find("a.example") == [(V4, "192.0.2.7")]

    run(use, resolver)
    assert resolver.asked == {"a.example": 3}


def test_a_denial_is_believed_when_it_is_repeated_and_asked_for_again_much_later() -> None:
    resolver = FakeResolver(a_example=[NO_NAME, NO_NAME, [(V4, "192.0.2.7")]])

    async def use(names: Names, clock: Clock) -> None:
        assert (await fail(names, "a.example")).transient
        clock.now += 1.0
        failure = await fail(names, "a.example")
        assert (failure.transient, failure.retry_after) == (False, None)
        clock.now += 200.0
        assert not (await fail(names, "a.example")).transient
        assert resolver.asked["a.example"] == 2
        clock.now += 200.0
        assert await names.find("a.example") == [(V4, "192.0.2.7")]

    run(use, resolver)


@pytest.mark.parametrize(
    ("error", "words", "transient"),
    [
        (NO_NAME, "there is no such name as a.example (Name or service not known)", True),
        (AGAIN, "the name servers give no answer for a.example (Temporary failure in name resolution)", True),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), "give no answer for a.example", True),
        (OSError(24, "Too many open files"), "give no answer for a.example (Too many open files)", True),
        (UnicodeError("label too long"), "a.example is no name that could be looked up (label too long)", False),
        (ValueError("embedded null byte"), "is no name that could be looked up (embedded null byte)", False),
    ],
    ids=repr,
)
def test_the_detail_tells_a_name_that_is_none_from_servers_that_fail(
    error: Exception, words: str, transient: bool
) -> None:
    async def use(names: Names, clock: Clock) -> None:
        failure = await fail(names, "a.example")
        assert words in failure.detail
        assert failure.transient == transient

    run(use, FakeResolver(a_example=[error]))


def test_a_name_without_an_address_is_none() -> None:
    async def use(names: Names, clock: Clock) -> None:
        assert "no such name" in (await fail(names, "a.example")).detail

    run(use, FakeResolver(a_example=[[]]))


def test_a_long_name_is_not_shown_whole() -> None:
    async def use(names: Names, clock: Clock) -> None:
        assert len((await fail(names, "a" * 5000)).detail) < 300

    run(use, FakeResolver(**{"a" * 5000: [NO_NAME]}))


@pytest.mark.parametrize("number", ["192.0.2.1", "::1", "2001:db8::1", "fe80::1%1"])
def test_a_number_is_no_name(number: str) -> None:
    """Nobody is asked for what is an address already."""
    resolver = FakeResolver()

    async def use(names: Names, clock: Clock) -> None:
        assert await names.find(number) == [(V6 if ":" in number else V4, number)]
        assert names.is_known(number)

    run(use, resolver)
    assert not resolver.asked


def test_addresses_that_come_first_alike_take_turns_and_the_others_stay_behind() -> None:
    first, second, other = (V4, "192.0.2.1"), (V4, "192.0.2.2"), (V6, "2001:db8::1")

    async def use(names: Names, clock: Clock) -> None:
        found = [await names.find("a.example") for _ in range(3)]
        assert found == [[first, second, other], [second, first, other], [first, second, other]]

    run(use, FakeResolver(a_example=[[first, second, other]]))


def test_addresses_that_fail_are_looked_up_again_but_not_at_once() -> None:
    resolver = FakeResolver(a_example=[[(V4, "192.0.2.1")], [(V4, "192.0.2.2")]])

    async def use(names: Names, clock: Clock) -> None:
        names.doubt("never-seen.example")
        await names.find("a.example")
        clock.now += RENEW_SECONDS - 1
        names.doubt("a.example")
        assert await names.find("a.example") == [(V4, "192.0.2.1")]
        clock.now += 1
        names.doubt("a.example")
        assert await names.find("a.example") == [(V4, "192.0.2.2")]

    run(use, resolver)


def test_a_million_names_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "MAX_KEPT", 10)
    resolver = FakeResolver()

    async def use(names: Names, clock: Clock) -> None:
        for i in range(30):
            await names.find(f"{i}.example")
        assert [i for i in range(30) if names.is_known(f"{i}.example")] == list(range(20, 30))

    run(use, resolver)


def test_closing_leaves_a_look_up_that_hangs() -> None:
    resolver = FakeResolver()
    resolver.open.clear()

    async def main() -> None:
        threads = DaemonThreads("in-memory-datasets-test")
        names = Names(threads, resolver)
        waiting = asyncio.create_task(names.find("a.example"))
        await resolver.wait_for_questions(1)
        await names.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert asyncio.all_tasks() == {asyncio.current_task()}
        resolver.open.set()
        threads.close(60)

    asyncio.run(main())


def test_the_system_is_asked_for_every_address_once() -> None:
    assert look_up("127.0.0.1") == [(V4, "127.0.0.1")]
    with pytest.raises(ValueError, match="label"):
        look_up("a" * 70 + ".invalid")


def test_a_link_local_address_keeps_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [(V6, 1, 6, "", ("fe80::1", 0, 0, 3)), (V4, 1, 6, "", ("192.0.2.1", 0)), (V4, 2, 17, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: infos)
    assert look_up("a.example") == [(V6, "fe80::1%3"), (V4, "192.0.2.1")]
