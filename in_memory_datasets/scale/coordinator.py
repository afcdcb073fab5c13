"""The actor that knows who holds what: divides rows over nodes, has them loaded, and has lost ones loaded elsewhere.

It is asked a few times in an epoch, and no sample ever passes through it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from in_memory_datasets.build import LoadRequest
from in_memory_datasets.errors import LoadError
from in_memory_datasets.rows import ColumnSpec
from in_memory_datasets.scale.blocks import BlockRows, RowBlock, part_of
from in_memory_datasets.scale.division import Division, Homes, Ranks, divide
from in_memory_datasets.scale.node import Built, Notes
from in_memory_datasets.scale.nodes import LOST, Node, Nodes
from in_memory_datasets.scale.planning import ClusterPlan, NodePlan, lay_out, plan_cluster
from in_memory_datasets.scale.reporting import ClusterReport, sum_up
from in_memory_datasets.scale.view import NodeView, Terms
from in_memory_datasets.schema import LoadReport

_LOOK_SECONDS = 0.5  # between two looks for a node that may take over what was lost


@dataclass(eq=False)
class _Part:
    """Rows that are loaded into one store: where, and what came of it.

    Attributes:
        start: The first row.
        stop: The one behind the last.
        node: Who loads them, or has.
        built: What holds them now; None while nobody does.
        report: What loading them did, the last time that they were loaded.
        version: How often what failed in them was loaded again.
        was_lost: Whether they were held before, and are to be had back.
    """

    start: int
    stop: int
    node: Node | None = None
    built: Built | None = None
    report: LoadReport | None = None
    version: int = 0
    was_lost: bool = False

    @property
    def num_rows(self) -> int:
        """How many rows these are."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Description:
    """What is loaded, and how it is served; all that the cluster is told.

    Attributes:
        request: What a load is told, without rows.
        columns: How the user named the columns.
        served: The class of dataset and how it serves samples, pickled: what no actor looks at.
    """

    request: LoadRequest
    columns: tuple[ColumnSpec, ColumnSpec]
    served: bytes


@ray.remote(num_cpus=0, max_task_retries=-1, max_concurrency=1000)
class Coordinator:
    """See the module.

    Args:
        name: What the actors are called; "" for none.
        token: What tells this load from all others.
        description: What is loaded.
    """

    def __init__(self, name: str, token: str, description: Description) -> None:
        self._description = description
        self._numbered: dict[int, RowBlock] = {}
        self._blocks: list[RowBlock] = []
        self._num_rows = 0
        self._plan: ClusterPlan | None = None
        request = description.request
        self._nodes = Nodes(name, token, description.columns, request.spec, request.memory_limit, self._begin_with)
        self._homing = asyncio.Lock()
        self._parts: list[_Part] = []
        self._changed = asyncio.Condition()
        self._error: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events: list[str] = []
        self._began = time.monotonic()
        self._seconds = 0.0
        self._fractions: dict[int, tuple[float, int]] = {0: (0.0, 0)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray is to call it otherwise some day
            self._is_started_again: bool = ray.get_runtime_context().was_current_actor_reconstructed
        self._recovery: asyncio.Task[None] | None = None
        self._terms = Terms()  # on which views were last asked for: the next ones likely will be

    # Rows

    async def add_rows(self, number: int, records: Any, num_rows: int) -> None:
        """Take some rows, in whatever order they come; `number` is their place in the right one."""
        self._numbered[number] = RowBlock(ray.put(records), 0, num_rows)

    async def end_rows(self, num_batches: int, num_rows: int | None = None) -> None:
        """Take note that all rows are there; or, for a plan alone, that there are so many more like them.

        Raises:
            LoadError: They are not, since this actor was started again meanwhile.
        """
        if len(self._numbered) != num_batches:
            raise LoadError("the cluster's coordinator ended while rows were handed to it: load again")
        self._blocks = [block for _, block in sorted(self._numbered.items())]
        self._num_rows = sum(block.num_rows for block in self._blocks) if num_rows is None else num_rows

    async def read_rows(self, dataset: Any, max_rows: int | None) -> int:
        """Take the rows of a `ray.data.Dataset`, which is executed here; give how many there are."""
        refs = await asyncio.to_thread(dataset.to_arrow_refs)
        counts = await asyncio.gather(*(_count_rows.remote(ref) for ref in refs))
        self._blocks = [RowBlock(ref, 0, count) for ref, count in zip(refs, counts, strict=True) if count]
        total = sum(counts)
        self._num_rows = total if max_rows is None else min(total, max_rows)
        self._blocks = part_of(self._blocks, 0, self._num_rows)
        return self._num_rows

    # Nodes

    async def hire(self) -> None:
        """Start the actors of all nodes, while rows are still on their way here."""
        await self._recovered()
        await self._nodes.hire_all()

    async def _recovered(self) -> None:
        """Know again what was known before, where this actor was started again."""
        if self._is_started_again:
            if self._recovery is None:
                self._recovery = asyncio.ensure_future(self._recover())
            await asyncio.shield(self._recovery)

    async def _recover(self) -> None:
        """Ask all nodes what they hold; what only this actor had is the rows."""
        recalled = await self._nodes.recall()
        recalled.sort(key=lambda each: each[0].piece.start)
        notes = next((notes for _, _, notes in recalled if notes is not None), None)
        ends = [0, *(built.piece.stop for built, _, _ in recalled)]
        starts = [built.piece.start for built, _, _ in recalled]
        if notes is None or starts != ends[:-1] or ends[-1] != notes.plan.num_samples:
            raise LoadError(
                "the cluster's coordinator ended during the load, with the rows that it alone had: load again"
            )
        self._plan, self._num_rows = notes.plan, notes.plan.num_samples
        self._fractions, self._events = notes.fractions, list(notes.events)
        self._description = replace(self._description, request=notes.request)
        self._parts = [
            _Part(built.piece.start, built.piece.stop, node, built, built.report, built.piece.version)
            for built, node, _ in recalled
        ]
        self._note("the coordinator ended, and was told by the nodes what they hold")
        for node in self._nodes:
            self._begin_with(node)

    async def _remember(self) -> None:
        """Give every node a copy of what this actor alone knows."""
        assert self._plan is not None
        notes = Notes(self._plan, self._description.request, self._fractions, tuple(self._events))
        told = [node.actor.remember.remote(notes) for node in self._nodes.living]
        await asyncio.gather(*told, return_exceptions=True)  # who has ended knows nothing anyway

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Any) -> None:
        """Do some work in the background; what goes wrong with it is raised where its result is waited for."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - the user's columns may raise anything
            async with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _begin_with(self, node: Node) -> None:
        self._start(self._watch(node))

    async def _watch(self, node: Node) -> None:
        """See that what a node holds is held, as long as the node is there; and that others load it then."""
        while node.is_alive:
            try:
                await node.actor.watch.remote()
            except LOST:
                held = [part for part in self._parts if part.node is node and part.built is not None]
                for part in held:
                    part.built, part.was_lost = None, True
                self._note(f"the actor of node {node.id[:8]} ended")
                try:
                    await node.actor.num_done.remote()  # which waits until it is started again
                except LOST:
                    self._lose(node)
                for part in held:
                    self._start(self._build(part))

    def _lose(self, node: Node) -> None:
        if node.is_alive:
            node.is_alive = False
            num_rows = sum(part.num_rows for part in self._parts if part.node is node)
            self._note(f"node {node.id[:8]} was lost, with {num_rows:,} rows")

    def _note(self, what: str) -> None:
        self._events.append(f"{time.monotonic() - self._began:.1f} s: {what}")

    # Load

    async def plan(self) -> ClusterPlan:
        """Start the actors of all nodes, and compute what fits where; once."""
        await self._recovered()
        if self._plan is not None:
            return self._plan
        nodes = await self._nodes.hire_all()
        sample = [] if not self._blocks else await _first_rows.remote(self._blocks[0])
        request, columns = self._description.request, self._description.columns
        plans = [NodePlan(node.id, node.facts) for node in nodes]
        self._plan = plan_cluster(request, columns, sample, self._num_rows, plans)
        return self._plan

    async def load(self) -> None:
        """Load all rows, each once.

        Raises:
            MemoryLimitError: They do not fit into all nodes together.
            LoadError: No sample could be loaded, or one could not and `on_error` is "raise".
        """
        plan = await self.plan()
        plan.refuse_if_too_large()
        self._description = replace(self._description, request=replace(self._description.request, storage=plan.storage))
        for start, stop, node_id in lay_out(plan, in_directories=self._description.request.cache_dir is not None):
            self._parts.append(_Part(start, stop, self._nodes[node_id]))
        for part in self._parts:
            self._start(self._build(part))
        await self._whole()
        self._seconds = time.monotonic() - self._began
        await self._remember()
        report = self._sum_up()
        if not report.num_ok:
            raise LoadError(f"0 of {report.num_samples:,} samples loaded\n{report}")

    async def _build(self, part: _Part) -> None:
        """Have a part loaded, wherever there is a node for it."""
        while part.built is None and part in self._parts:
            node = part.node
            if node is None or not node.is_alive:
                await self._find_home(part)
                continue
            if not self._blocks:
                raise LoadError(
                    f"rows {part.start:,} to {part.stop:,} were lost with node {node.id[:8]}, and where they come from "
                    "with the coordinator that ended before: load again"
                )
            try:
                blocks = part_of(self._blocks, part.start, part.stop)
                built = await node.actor.build.remote(
                    part.start, part.stop, part.version, blocks, self._description.request
                )
            except LOST:
                part.was_lost = True
                self._lose(node)
                continue
            async with self._changed:
                if part.was_lost:
                    how = "attached to" if built.attached else "loaded"
                    self._note(f"rows {part.start:,} to {part.stop:,} were {how} again by node {node.id[:8]}")
                part.built, part.was_lost = built, False
                if part.report is None or not built.attached:
                    part.report = built.report
                self._changed.notify_all()

    async def _find_home(self, part: _Part) -> None:
        """Give a lost part to a node that holds nothing yet, if it has room, else to all others in pieces."""
        is_told = False
        while True:
            async with self._homing:  # one after the other, since each leaves less room
                room = {node: await self._room(node) for node in await self._nodes.hire_all()}
                if self._place(part, room):
                    return
            if not is_told:
                self._note(f"no node has room for rows {part.start:,} to {part.stop:,}: waiting for one")
                is_told = True
            await asyncio.sleep(_LOOK_SECONDS)

    async def _room(self, node: Node) -> int:
        """Count the rows that a node has room for, beside those it has or will have."""
        try:
            node.facts = await node.actor.facts.remote(self._description.request.memory_limit)
            held, _ = await node.actor.num_bytes.remote()
        except LOST:
            return 0
        free = node.facts.bytes_available - (held if node.facts.limited_by == "memory_limit" else 0)
        expected = sum(part.num_rows for part in self._parts if part.node is node and part.built is None)
        assert self._plan is not None
        return max(0, int(free / self._plan.bytes_per_sample) - expected)

    def _place(self, part: _Part, room: dict[Node, int]) -> bool:
        """Choose who loads a lost part; tell whether there is anybody."""
        holders = {other.node for other in self._parts if other is not part}
        roomy = [node for node, num_rows in room.items() if num_rows >= part.num_rows]
        fresh = [node for node in roomy if node not in holders]
        if fresh:
            part.node = fresh[0]
        elif self._description.request.cache_dir is not None:  # where it lies in a directory it is not to be cut
            part.node = max(roomy, key=lambda node: room[node], default=None)
            return part.node is not None
        elif sum(room.values()) >= part.num_rows:
            self._cut(part, divide(part.num_rows, [node.facts.num_cores for node in room], list(room.values())), room)
        else:
            return False
        return True

    def _cut(self, part: _Part, counts: Sequence[int], nodes: Iterable[Node]) -> None:
        place, start, new = self._parts.index(part), part.start, []
        for node, count in zip(nodes, counts, strict=True):
            if count:
                new.append(_Part(start, start + count, node, was_lost=True))
                start += count
        self._parts[place : place + 1] = new
        for each in new:
            self._start(self._build(each))

    @property
    def _is_whole(self) -> bool:
        return bool(self._parts) and all(part.built is not None for part in self._parts)

    async def _whole(self) -> None:
        """Wait until every part is held by a living node.

        Raises:
            LoadError: It never will be.
        """
        await self._recovered()
        async with self._changed:
            await self._changed.wait_for(lambda: self._error is not None or self._is_whole)
            if self._error is not None:
                raise self._error

    async def progress(self) -> tuple[int, int]:
        """Count the samples that are loaded or have failed, and all."""
        counts = [node.actor.num_done.remote() for node in self._nodes.living]
        done = await asyncio.gather(*counts, return_exceptions=True)
        return sum(one for one in done if isinstance(one, int)), self._num_rows

    async def report(self) -> ClusterReport:
        """Sum up what all nodes did, once all are done."""
        await self._whole()
        return self._sum_up()

    async def events(self) -> tuple[str, ...]:
        """Tell what happened so far, also while something is missing."""
        return tuple(self._events)

    def _sum_up(self) -> ClusterReport:
        reports = [part.report for part in self._parts if part.report is not None]
        by_number = sorted(self._nodes, key=lambda node: node.number)  # they have come in any order
        nodes = {node.id: sum(p.num_rows for p in self._parts if p.node is node) for node in by_number}
        return sum_up(reports, nodes=nodes, events=tuple(self._events), seconds=self._seconds)

    # Serving

    async def describe(self) -> Description:
        """Tell what is loaded."""
        await self._recovered()
        return self._description

    async def reshuffle(self, epoch: int, fraction: float, seed: int) -> None:
        """Divide the samples anew from an epoch on, and begin to bring them where they will be served."""
        await self._whole()
        self._fractions[epoch] = fraction, seed
        await self._remember()
        for node in self._nodes.living:
            self._start(self._bring_ahead(node, epoch, self._terms))

    async def view(self, node_id: str, epoch: int | None, terms: Terms, brings: bool) -> NodeView:
        """Give what a node serves in an epoch, None for the latest known; with `brings`, when all of it is there."""
        await self._whole()
        if terms.node_ids:
            self._terms = replace(terms, past=())
        for each in terms.node_ids:
            await self._nodes.hire(each)
        node, epoch = await self._nodes.hire(node_id), max(self._fractions) if epoch is None else epoch
        if brings:
            return await self._bring(node, epoch, terms)
        await self._whole()
        return self._view(node, epoch, terms)

    async def _bring_ahead(self, node: Node, epoch: int, terms: Terms) -> None:
        """Begin with what will be asked for; what goes wrong is raised to who asks for it, and told until then."""
        try:
            await self._bring(node, epoch, terms)
        except Exception as error:  # noqa: BLE001 - as above
            self._note(f"node {node.id[:8]} could not be brought what it serves in epoch {epoch}: {error}")

    async def _bring(self, node: Node, epoch: int, terms: Terms) -> NodeView:
        while True:
            await self._whole()
            view = self._view(node, epoch, terms)
            try:
                await node.actor.borrow.remote(view, self._nodes.lenders(), self._description.request)
            except LOST:
                if not node.is_alive:
                    raise
                await asyncio.sleep(_LOOK_SECONDS)  # a lender was lost, which its watch will see too
                continue
            if self._is_whole and view == self._view(node, epoch, terms):  # and nothing was lost meanwhile
                return view

    def _view(self, node: Node, epoch: int, terms: Terms) -> NodeView:
        pieces = tuple(part.built.piece for part in self._parts if part.built is not None and part.node is node)
        excluded = tuple(
            itertools.chain.from_iterable(part.built.failed for part in self._parts if part.built is not None)
        )
        return NodeView(node.job, node.number, pieces, self._division(epoch, terms), excluded)

    def _division(self, epoch: int, terms: Terms) -> Division:
        num_nodes = 1 + max(node.number for node in self._nodes)
        ranges: list[list[tuple[int, int]]] = [[] for _ in range(num_nodes)]
        first = 0
        for part in self._parts:
            assert part.built is not None
            assert part.node is not None
            num_samples = part.num_rows - len(part.built.failed)
            if num_samples:
                ranges[part.node.number].append((first, first + num_samples))
            first += num_samples
        homes = Homes(tuple(tuple(each) for each in ranges))
        asked = max(each for each in self._fractions if each <= epoch)
        fraction, seed = self._fractions[asked]
        ranks = None
        if terms.node_ids:
            numbers = tuple(self._nodes[node_id].number for node_id in terms.node_ids)
            ranks = Ranks(numbers, terms.batch_size, terms.drop_last)
        return Division(homes, fraction, seed, epoch, ranks, terms.past)

    async def holders(self, start: int, stop: int) -> list[tuple[int, int, Any]]:
        """Tell whose actors hold some rows: (first row, the one behind the last, actor), in order."""
        await self._whole()
        held = []
        for part in self._parts:
            first, last = max(start, part.start), min(stop, part.stop)
            if first < last and part.node is not None:
                held.append((first, last, part.node.actor))
        return held

    async def retry_failed(self, reasons: Collection[str] | None) -> ClusterReport:
        """Have loaded again what failed, each part by the node that holds it."""
        await self._whole()
        await asyncio.gather(*(self._mend(part, reasons) for part in self._parts))
        return await self.report()

    async def _mend(self, part: _Part, reasons: Collection[str] | None) -> None:
        assert part.node is not None
        blocks = part_of(self._blocks, part.start, part.stop)
        try:
            built = await part.node.actor.mend.remote(part.start, part.stop, blocks, self._description.request, reasons)
        except LOST:
            return  # it is loaded again as a whole
        async with self._changed:
            part.built, part.report, part.version = built, built.report, built.piece.version
            self._changed.notify_all()

    async def sizes(self) -> dict[str, tuple[int, int]]:
        """Count the bytes that are at home at each living node, and those it has borrowed."""
        nodes = self._nodes.living
        sizes = await asyncio.gather(*(node.actor.num_bytes.remote() for node in nodes), return_exceptions=True)
        # One that is just being lost has none.
        return {node.id: size for node, size in zip(nodes, sizes, strict=True) if isinstance(size, tuple)}

    async def close(self) -> None:
        """End the actors of all nodes, and with them what nobody has mapped."""
        self._cancel()
        await self._nodes.end()
        self._cancel()

    def _cancel(self) -> None:
        """End what is under way, or the watches would have loaded again what is given up."""
        for task in self._tasks:
            task.cancel()


@ray.remote(num_cpus=0)
def _count_rows(table: Any) -> int:
    return int(table.num_rows)


@ray.remote(num_cpus=0)
def _first_rows(block: RowBlock) -> list[Any]:
    return list(itertools.islice(BlockRows([block]), 128))
