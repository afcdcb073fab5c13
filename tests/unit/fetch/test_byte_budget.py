"""The bound on bytes that are being read or wait for whoever asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from in_memory_datasets.fetch.byte_budget import ByteBudget, Grant


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_first_come_first_served() -> None:
    async def work() -> None:
        budget = ByteBudget(100)
        first = await budget.acquire(80)
        large = asyncio.create_task(budget.acquire(90))
        await settle()
        small = asyncio.create_task(budget.acquire(10))
        await settle()
        assert not large.done()
        assert not small.done()
        first.release()
        await settle()
        assert large.done()
        assert small.done()
        assert budget.used_bytes == 100

    run(work())


def test_release_counts_once_and_shrink_keeps_the_rest() -> None:
    async def work() -> None:
        budget = ByteBudget(100)
        first, second = await budget.acquire(30), await budget.acquire(30)
        first.shrink(10)
        first.shrink(20)
        assert budget.used_bytes == 40
        first.release()
        first.release()
        assert budget.used_bytes == 30
        second.release()
        assert budget.used_bytes == 0

    run(work())


def test_a_cancelled_wait_leaves_no_trace() -> None:
    async def work() -> None:
        budget = ByteBudget(100)
        first = await budget.acquire(60)
        waiting = asyncio.create_task(budget.acquire(50))
        growing = asyncio.create_task(budget.grow(first, 10**6))
        behind = asyncio.create_task(budget.acquire(40))
        await settle()
        for task in (waiting, growing):
            task.cancel()
        await settle()
        first.release()
        await settle()
        (await behind).release()
        assert budget.used_bytes == 0

    run(work())


def test_a_wait_that_is_cancelled_when_it_was_just_given_gives_back() -> None:
    async def work() -> None:
        budget = ByteBudget(100)
        first = await budget.acquire(100)
        waiting = asyncio.create_task(budget.acquire(50))
        await settle()
        first.release()
        waiting.cancel()
        await settle()
        assert waiting.cancelled()
        assert budget.used_bytes == 0

    run(work())


def test_of_bodies_that_all_have_to_grow_the_oldest_goes_on() -> None:
    async def work() -> None:
        budget = ByteBudget(100)
        old, young = await budget.acquire(50), await budget.acquire(50)
        young_grows = asyncio.create_task(budget.grow(young, 50))
        await settle()
        assert not young_grows.done()
        old_grows = asyncio.create_task(budget.grow(old, 50))
        await settle()
        assert old_grows.done()
        assert not young_grows.done()
        await budget.grow(old, 0) if budget.used_bytes <= 100 else None
        old.release()
        await settle()
        assert young_grows.done()

    run(work())


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(1, 100),
    bodies=st.lists(st.tuples(st.integers(0, 60), st.lists(st.integers(0, 40), max_size=4)), max_size=25),
    data=st.data(),
)
def test_every_mix_gets_through_and_at_most_one_body_exceeds_the_limit(
    limit: int, bodies: list[tuple[int, list[int]]], data: st.DataObject
) -> None:
    """Bodies that begin with a guess, grow, finish, and are released in any order."""
    budget = ByteBudget(limit)
    largest = max((start + sum(steps) for start, steps in bodies), default=0)
    finished: list[Grant] = []

    async def read(start: int, steps: list[int]) -> None:
        grant = await budget.acquire(start)
        for step in steps:
            await asyncio.sleep(0)
            await budget.grow(grant, step)
            assert budget.used_bytes <= max(limit, largest) + largest
        finished.append(grant)

    async def work() -> None:
        tasks = [asyncio.create_task(read(*body)) for body in bodies]
        while finished or not all(task.done() for task in tasks):
            await settle()
            if finished:
                finished.pop(data.draw(st.integers(0, len(finished) - 1))).release()
        await asyncio.gather(*tasks)
        assert budget.used_bytes == 0

    run(work())
