"""The nodes of a cluster on which samples may lie, each with its actor: who starts, finds and ends these."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from in_memory_datasets.rows import ColumnSpec
from in_memory_datasets.scale.node import Built, NodeActor, Notes
from in_memory_datasets.scale.planning import Facts
from in_memory_datasets.schema import AudioSpec, ImageSpec

NAMESPACE = "in-memory-datasets"

# What is raised of an actor that has ended; the second where its node is gone for good.
LOST = (RayActorError, ActorUnschedulableError)


@dataclass(eq=False)
class Node:
    """A node, and what is known of it.

    Attributes:
        id: Ray's name of it.
        number: Which one it is, in the order in which they were found.
        job: What its processes have in common.
        actor: Who loads there, lends and borrows.
        facts: What it had when it was last asked.
        is_alive: Whether it is not known to be lost.
    """

    id: str
    number: int
    job: str
    actor: Any
    facts: Facts
    is_alive: bool = True


class Nodes:
    """All nodes that were ever found, lost ones included.

    Args:
        name: What their actors are called, with the node's own; "" for none.
        token: What tells this load from all others.
        columns: How the user named the columns.
        spec: What samples are turned into.
        memory_limit: Of each node, for its samples.
        on_hired: Told each node whose actor was started.
    """

    def __init__(
        self,
        name: str,
        token: str,
        columns: tuple[ColumnSpec, ColumnSpec],
        spec: ImageSpec | AudioSpec,
        memory_limit: int | str | None,
        on_hired: Callable[[Node], None],
    ) -> None:
        self._name, self._token = name, token
        self._columns, self._spec, self._memory_limit = columns, spec, memory_limit
        self._on_hired = on_hired
        self._nodes: dict[str, Node] = {}
        self._hiring: dict[str, asyncio.Future[Node]] = {}
        self._numbers = itertools.count()
        self._known_lenders: tuple[dict[int, Any], ray.ObjectRef[Any]] | None = None

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def __getitem__(self, node_id: str) -> Node:
        return self._nodes[node_id]

    @property
    def living(self) -> list[Node]:
        """Those that are not known to be lost."""
        return [node for node in self if node.is_alive]

    async def hire(self, node_id: str) -> Node:
        """Give a node, after starting its actor where it has none; all nodes start theirs at once."""
        if (node := self._nodes.get(node_id)) is not None and node.is_alive:
            return node
        if (hiring := self._hiring.get(node_id)) is None or hiring.done():
            hiring = self._hiring[node_id] = asyncio.ensure_future(self._start_actor(node_id, next(self._numbers)))
        return await asyncio.shield(hiring)  # others may wait for it too

    async def _start_actor(self, node_id: str, number: int) -> Node:
        job = f"cluster {self._token} {node_id}"
        named = {"name": self._name_on(node_id), "namespace": NAMESPACE, "lifetime": "detached"} if self._name else {}
        # Hard: another node's memory is of no use to this one's processes.
        actor = NodeActor.options(  # type: ignore[attr-defined]
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False), **named
        ).remote(number, job, self._columns, self._spec)
        facts = await actor.facts.remote(self._memory_limit)
        node = self._nodes[node_id] = Node(node_id, number, job, actor, facts)
        self._on_hired(node)
        return node

    def _name_on(self, node_id: str) -> str:
        return f"{self._name} {node_id}"

    async def hire_all(self) -> list[Node]:
        """Give all living nodes; one that is lost just now is left out."""
        hired = await asyncio.gather(*map(self.hire, await _living_ids()), return_exceptions=True)
        for one in hired:
            if isinstance(one, BaseException) and not isinstance(one, LOST):
                raise one
        return [one for one in hired if isinstance(one, Node)]

    async def recall(self) -> list[tuple[Built, Node, Notes | None]]:
        """Find the actors that an earlier coordinator started, and give what each holds, and was told."""
        recalled = []
        for node_id in await _living_ids():
            try:
                actor = ray.get_actor(self._name_on(node_id), namespace=NAMESPACE)
                number, job, built, notes = await actor.recall.remote()
                facts = await actor.facts.remote(self._memory_limit)
            except (ValueError, *LOST):  # it has none, or is about to have none
                continue
            node = self._nodes[node_id] = Node(node_id, number, job, actor, facts)
            recalled += [(one, node, notes) for one in built]
        self._numbers = itertools.count(1 + max((node.number for node in self), default=-1))
        return recalled

    def lenders(self) -> ray.ObjectRef[Any]:
        """Give all actors by the numbers of their nodes, put where each node fetches them once, not with every call."""
        actors = {node.number: node.actor for node in self}
        if self._known_lenders is None or actors != self._known_lenders[0]:
            self._known_lenders = actors, ray.put(actors)
        return self._known_lenders[1]

    async def end(self) -> None:
        """End all actors, those too that are being started."""
        await asyncio.gather(*self._hiring.values(), return_exceptions=True)
        for node in self:
            ray.kill(node.actor)


async def _living_ids() -> list[str]:
    """List the nodes on which work may be done: a head node without cores is not meant for it."""
    nodes = await asyncio.to_thread(ray.nodes)
    return [node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
