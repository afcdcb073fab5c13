"""What a node's actor does and who starts it, without a cluster: both are called as they are, by hand."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.lacking import needed_package
from tests.making import IMAGE_SPEC, make_images, make_store

needed_package("ray")

from in_memory_datasets.build import LoadRequest  # noqa: E402
from in_memory_datasets.errors import MemoryLimitError  # noqa: E402
from in_memory_datasets.memory import RESERVE_BYTES  # noqa: E402
from in_memory_datasets.scale import node as node_module  # noqa: E402
from in_memory_datasets.scale import nodes as nodes_module  # noqa: E402
from in_memory_datasets.scale.division import Division, Homes, ranges_of  # noqa: E402
from in_memory_datasets.scale.nodes import Node, Nodes  # noqa: E402
from in_memory_datasets.scale.view import NodeView, Piece  # noqa: E402
from in_memory_datasets.schema import Effort  # noqa: E402

A, B, C = (56 * letter for letter in "abc")  # as Ray names nodes
COLUMNS = ("image_url", "caption")
REQUEST = LoadRequest(spec=IMAGE_SPEC, progress=False)
HERE, THERE = Piece(0, 6), Piece(6, 12)
ALL_DEALT = NodeView("a job", 0, (HERE,), Division(Homes(ranges_of([6, 6])), fraction=1.0))


class Lender:
    """The actor of another node, which gives what it has at once."""

    def __init__(self, actor: Any) -> None:
        self.lend = self
        self._actor = actor

    def remote(self, rows: Any) -> Any:
        return self._actor.lend(rows)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Give the actors of two nodes, which hold six pictures each."""
    monkeypatch.setattr(node_module.ray, "get", lambda found: found)
    kind = node_module.NodeActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    images, actors = make_images(12), []
    for number, piece in enumerate((HERE, THERE)):
        actor = kind(number, "a job", COLUMNS, IMAGE_SPEC)
        actor._stores = {piece: make_store(IMAGE_SPEC, images[piece.start : piece.stop])}
        actors.append(actor)
    yield actors
    for actor in actors:
        for store in [*actor._stores.values(), *actor._guests.values()]:
            store.close()


def test_what_is_borrowed_lies_here_in_the_order_that_is_expected(actors: list[Any]) -> None:
    """A node borrows each sample that it serves and does not hold, once, however many ask."""
    lenders = {number: Lender(actor) for number, actor in enumerate(actors)}
    num_bytes = actors[0].borrow(ALL_DEALT, lenders, REQUEST)
    (guests,) = actors[0]._guests.values()
    expected = make_images(12)
    for slot, row in enumerate(ALL_DEALT.parts().guests.tolist()):
        assert np.array_equal(guests.images[slot], expected[row])
    assert num_bytes == guests.nbytes == actors[0].num_bytes()[1]
    assert actors[0].borrow(ALL_DEALT, {}, REQUEST) == num_bytes  # from nobody
    assert list(actors[0]._guests.values()) == [guests]


def test_a_node_has_the_samples_of_two_epochs_and_no_more(actors: list[Any]) -> None:
    """What was borrowed for the epoch before the last one is given up."""
    lenders, division = {1: Lender(actors[1])}, ALL_DEALT.division
    for epoch in range(5):
        view = dataclasses.replace(ALL_DEALT, division=dataclasses.replace(division, epoch=epoch))
        actors[0].borrow(view, lenders, REQUEST)
        assert len(actors[0]._guests) == min(2, epoch + 1)


def test_what_does_not_fit_is_not_borrowed(actors: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is asked of others, the error says what is needed, what is free, and what to do."""
    monkeypatch.setattr(node_module, "free_memory", lambda: (RESERVE_BYTES + 100, "machine"))
    with pytest.raises(MemoryLimitError, match="give a smaller fraction, or more nodes") as caught:
        actors[0].borrow(ALL_DEALT, {}, REQUEST)
    num_borrowed = len(ALL_DEALT.parts().foreign)
    assert (caught.value.bytes_available, caught.value.bytes_needed >= num_borrowed * 144) == (100, True)
    assert actors[0].num_bytes()[1] == 0


def test_some_failures_of_a_part_are_told_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a part holds the first failures, by their numbers in the whole dataset; its counts are of all."""
    monkeypatch.setattr(node_module, "MAX_FAILURES", 3)
    samples = [None if slot % 2 else image for slot, image in enumerate(make_images(10))]
    with make_store(IMAGE_SPEC, samples) as store:
        report = node_module._report_of(store, Effort(), 100)
    assert [failure.index for failure in report.failures] == [101, 103, 105]
    assert (report.num_ok, report.num_failed) == (5, 5)


class FakeActor:
    """Stands for the class of actors: an actor tells its facts when all three that there are were asked."""

    started: list[str]
    all_asked: asyncio.Event

    def __init__(self, node_id: str = "") -> None:
        self.facts, self._node_id = self, node_id

    @classmethod
    def options(cls, *, scheduling_strategy: Any) -> Any:
        cls.started.append(scheduling_strategy.node_id)
        return FakeStart(scheduling_strategy.node_id)

    def remote(self, memory_limit: Any) -> Any:
        return self._tell()

    async def _tell(self) -> str:
        if len(self.started) == 3:
            self.all_asked.set()
        await self.all_asked.wait()
        if self._node_id == C:
            raise nodes_module.LOST[0]
        return f"facts of {self._node_id}"


class FakeStart:
    def __init__(self, node_id: str) -> None:
        self._node_id = node_id

    def remote(self, *_: Any) -> FakeActor:
        return FakeActor(self._node_id)


def test_all_actors_start_at_once_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No actor waits for another one's start; who asks twice is given the same; a node that is lost is left out."""
    told: list[Node] = []

    async def living() -> list[str]:
        return [A, B, C]

    async def hire() -> tuple[list[Node], list[Node]]:
        FakeActor.started, FakeActor.all_asked = [], asyncio.Event()
        nodes = Nodes("", "token", COLUMNS, IMAGE_SPEC, None, told.append)
        first, second = await asyncio.gather(nodes.hire_all(), nodes.hire_all())
        assert nodes.living == list(nodes) == told
        return first, second

    monkeypatch.setattr(nodes_module, "NodeActor", FakeActor)
    monkeypatch.setattr(nodes_module, "_living_ids", living)
    first, second = asyncio.run(asyncio.wait_for(hire(), 20))
    assert first == second == told
    assert FakeActor.started == [A, B, C]
    assert [(node.id, node.number, node.facts) for node in told] == [(A, 0, f"facts of {A}"), (B, 1, f"facts of {B}")]
