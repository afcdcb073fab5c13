"""A dataset that lies in the memory of a cluster: what loads it, and the handle that everyone has on it."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import sys
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

import ray
import torch
from ray import cloudpickle
from ray.exceptions import RayTaskError

from in_memory_datasets.build.bars import progress_bar
from in_memory_datasets.errors import ConfigError, StoreError
from in_memory_datasets.rows import RowReader
from in_memory_datasets.scale.coordinator import Coordinator, Description
from in_memory_datasets.scale.division import DEFAULT_FRACTION
from in_memory_datasets.scale.nodes import LOST, NAMESPACE
from in_memory_datasets.scale.planning import ClusterPlan
from in_memory_datasets.scale.reporting import ClusterReport
from in_memory_datasets.scale.sampler import ShardSampler
from in_memory_datasets.scale.view import Board, NodeShare, NodeView, Terms
from in_memory_datasets.training.in_memory import DESCRIBED, InMemoryDataset

DatasetT = TypeVar("DatasetT", bound=InMemoryDataset[Any])

_HEAD = "node:__internal_head__"  # what Ray calls a resource that only the head has
_LOOK_SECONDS = 0.2  # between two looks at how far a load is
_NUM_UNDER_WAY = 4  # batches of rows on their way to the cluster


def load_on_cluster(
    cls: type[DatasetT], data: Any, *args: Any, name: str | None = None, **kwargs: Any
) -> ShardedDataset[DatasetT]:
    """Load a dataset into the memory of all nodes of a Ray cluster, each sample once.

    Args:
        cls: `InMemoryImageTextDataset` or `InMemoryAudioTextDataset`.
        data: What the class takes; or a `ray.data.Dataset`, or the path or URL of Parquet or CSV files, or a list of
            such, which are read by the cluster.
        name: What the cluster calls it. A dataset with a name stays there when the driver ends, until `close`; whoever
            loads it under that name again, or calls `ShardedDataset.find`, has it back. None gives it to the driver.

    All other arguments are those of the class. `memory_limit` and `num_threads` are of each node, and `cache_dir` is a
    directory of each node, or one that all nodes share; `storage="auto"` takes "decoded" where all nodes together have
    room for that, else "encoded".

    Returns:
        A handle of a few kB, to be sent to whoever trains.

    Raises:
        ConfigError: An argument cannot work; before anything is read.
        MemoryLimitError: It does not fit into all nodes together; before anything is fetched.
        LoadError: No sample could be loaded, or one could not and `on_error` is "raise".

    Cost: one fetch and decode per sample, on all nodes at once. The rows go through this process some at a time, unless
    the cluster reads them.
    """
    order = _understand(cls, data, args, kwargs)
    if name is not None and (found := ShardedDataset._find(name)) is not None:
        return _same(found, order.description, name)
    sharded = ShardedDataset[DatasetT](order.description, _start(order, name))
    try:
        _hand_over_rows(sharded._coordinator, order)
        _get(sharded._coordinator.plan.remote())
        _wait_for_load(sharded._coordinator, shows_progress=order.shows_progress)
    except BaseException:
        sharded.close()
        raise
    return sharded


def plan_on_cluster(cls: type[InMemoryDataset[Any]], data: Any, *args: Any, **kwargs: Any) -> ClusterPlan:
    """Compute what a dataset would take on the nodes of a cluster, and whether that fits; nothing is fetched.

    Takes the arguments of `load_on_cluster`, but for the name.

    Raises:
        ConfigError: An argument cannot work.

    Cost: starts an actor on each node, and ends them; reads the first rows, and all of them only where their number is
    not known without.
    """
    order = _understand(cls, data, args, kwargs)
    sharded = ShardedDataset[Any](order.description, _start(order, None))
    try:
        _hand_over_rows(sharded._coordinator, order, only_some=True)
        plan: ClusterPlan = _get(sharded._coordinator.plan.remote())
    finally:
        sharded.close()
    return plan


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be loaded, as far as this process understands it.

    Attributes:
        description: What the cluster is told.
        reader: The rows, or of what the cluster reads the first one.
        source: What the cluster is to read; None where this process hands the rows on.
        max_samples: How many rows to take; None for all.
        shows_progress: Whether to draw a progress bar.
    """

    description: Description
    reader: RowReader
    source: Any | None
    max_samples: int | None
    shows_progress: bool


def _understand(cls: Any, data: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Order:
    if kwargs.get("wait", True) is not True:
        raise ConfigError("wait=False is for one machine: a cluster is loaded before local_shard() gives what it holds")
    source, sample = _source_of(data)
    described = cls(sample if source is not None else data, *args, **{**kwargs, "wait": DESCRIBED})
    request, reader = described._request, described._request.rows
    if reader.takes_what_fits:
        raise ConfigError('max_samples="auto" is for one machine: give plan_on_cluster(...).num_samples_that_fit')
    description = Description(
        replace(request, reader=None, job=None, progress=False, may_all_fail=True),
        reader.columns,
        cloudpickle.dumps((cls, described._serving)),
    )
    max_samples = inspect.signature(cls).bind(data, *args, **kwargs).arguments.get("max_samples")
    return _Order(description, reader, source, max_samples, request.progress is True)


def _start(order: _Order, name: str | None) -> Any:
    if not ray.is_initialized():
        ray.init()
    # On the head, without which there is no cluster: where else it were, its node could be lost. It is asked for as a
    # resource, which binds; a soft affinity put one in two of these actors, which take no core, elsewhere (measured).
    options: dict[str, Any] = {}
    if _HEAD in ray.cluster_resources():
        options["resources"] = {_HEAD: 0.001}
    if name is not None:
        options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1}
    token = uuid.uuid4().hex
    return Coordinator.options(**options).remote(name or "", token, order.description)  # type: ignore[attr-defined]


def _hand_over_rows(coordinator: Any, order: _Order, *, only_some: bool = False) -> None:
    """Have the cluster read the rows, or send them; only the first where their number is known and that will do."""
    coordinator.hire.remote()  # who will want the actors waits for them, and is told what goes wrong
    if order.source is not None:
        _get(coordinator.read_rows.remote(order.source, order.max_samples))
    else:
        _send_rows(coordinator, order.reader, num_rows=order.reader.num_rows if only_some else None)


def _send_rows(coordinator: Any, reader: RowReader, *, num_rows: int | None = None) -> None:
    """Send rows, a few batches at a time, whatever their number; or a batch of them that stands for so many."""
    under_way: list[Any] = []
    number = 0
    for records in reader.records() if num_rows is None else itertools.islice(reader.records(), 1):
        if len(under_way) == _NUM_UNDER_WAY:
            _get(under_way.pop(0))
        under_way.append(coordinator.add_rows.remote(number, records, len(records)))
        number += 1
    for ref in under_way:
        _get(ref)
    _get(coordinator.end_rows.remote(number, num_rows))


def _same(found: Any, description: Description, name: str) -> ShardedDataset[Any]:
    there: Description = _get(found.describe.remote())
    wanted = replace(description.request, storage=there.request.storage)
    if wanted != there.request or description.columns != there.columns or description.served != there.served:
        raise ConfigError(
            f"the cluster has another dataset of the name {name!r}: give another name, or close that one with "
            f"ShardedDataset.find({name!r}).close()"
        )
    _get(found.report.remote())  # which waits for it
    return ShardedDataset(there, found)


class ShardedDataset(Generic[DatasetT]):
    """A dataset in the memory of a cluster, by a handle of a few kB that can be sent to any process of it.

    `load_on_cluster` makes it.
    """

    def __init__(self, description: Description, coordinator: Any) -> None:
        self._description = description
        self._coordinator = coordinator

    @classmethod
    def find(cls, name: str) -> ShardedDataset[Any]:
        """Give the dataset that was loaded under a name, by this driver or another one.

        Raises:
            StoreError: The cluster has none of that name.
        """
        found = cls._find(name)
        if found is None:
            raise StoreError(f"the cluster has no dataset {name!r}: load it with load_on_cluster(..., name={name!r})")
        description: Description = _get(found.describe.remote())
        return ShardedDataset(description, found)

    @staticmethod
    def _find(name: str) -> Any | None:
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None

    def local_shard(self, epoch: int | None = None) -> DatasetT:
        """Give what this node serves, from its own memory, in any process of the node: no sample is copied.

        Its samples are those that the node serves in an epoch, by position; `index` is the row in the whole dataset.
        `set_epoch` follows when they were divided anew, also in worker processes.

        Args:
            epoch: Which one; None takes the latest that `reshuffle` named, or 0.

        Raises:
            StoreError: The node's samples cannot be attached to.
            LoadError: What was lost could not be loaded again.

        Cost: attaches in milliseconds; waits for what is being loaded again, or borrowed.
        """
        made: tuple[type[DatasetT], Any] = cloudpickle.loads(self._description.served)
        cls, serving = made
        ask = functools.partial(_ask_view, self._coordinator, ray.get_runtime_context().get_node_id())
        share = NodeShare(self._description.request.spec, Board(), ask)
        share.show(ask(epoch, share.terms, True))
        return cls._of_share(self._description.request, serving, share)

    def sampler(
        self,
        dataset: DatasetT,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        node_ids: Sequence[str] | None = None,
    ) -> ShardSampler:
        """Make the batches of this rank: every sample of the cluster once in an epoch, as many batches on every rank.

        Called on every rank, as a collective operation where `torch.distributed` is initialised.

        Args:
            dataset: What `local_shard` gave.
            batch_size: Samples of a batch.
            shuffle: Whether to shuffle, anew in every epoch.
            seed: From 0 to 2^64 - 1, the same on every rank.
            drop_last: Whether to leave out what does not fill a batch on every rank.
            rank: This process; None takes that of `torch.distributed` where it is initialised, else 0.
            node_ids: Ray's name of each rank's node, by rank; None asks them of all ranks, where `torch.distributed` is
                initialised, else there is one rank.

        Raises:
            ConfigError: An argument cannot work.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size={batch_size!r}: expected a whole number of at least 1")
        share = getattr(dataset, "_share", None)
        if not isinstance(share, NodeShare):
            raise ConfigError("the sampler of a cluster needs what local_shard() gave")
        if (rank is None) != (node_ids is None):
            raise ConfigError("give both rank and node_ids, or neither")
        if node_ids is None:
            rank, node_ids = _gather_nodes()
        elif unknown := set(node_ids) - {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            raise ConfigError(f"node_ids: {sorted(unknown)[0]!r} is no node of the cluster, or was lost")
        terms = Terms(tuple(node_ids), batch_size, drop_last)
        return ShardSampler(dataset, share, terms, shuffle=shuffle, seed=seed, rank=rank or 0)

    def reshuffle(self, epoch: int, *, fraction: float = DEFAULT_FRACTION, seed: int = 0) -> None:
        """Divide the samples anew from an epoch on, and begin to bring them where they will be served; do not wait.

        A fraction of the samples of each node, drawn anew for every epoch, is dealt to all nodes; those that are dealt
        to another node are copied there through Ray's object store, while training goes on. What each node holds does
        not change: it lends. Called by every rank, or by the driver alone, before anyone turns to that epoch; said
        twice, it is done once.

        Args:
            epoch: From when on, until it is called for a later one.
            fraction: 0 moves nothing but what ranks and nodes do not agree in; 1 is a full global shuffle.
            seed: What is drawn from.

        Raises:
            ConfigError: An argument cannot work.

        Cost: at most `fraction` of what a node holds is taken there, twice while both of two epochs are in use.
        Source: see `division`.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ConfigError(f"epoch={epoch!r}: expected a whole number from 0 on")
        if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
            raise ConfigError(f"fraction={fraction!r}: expected a number from 0 to 1")
        _get(self._coordinator.reshuffle.remote(epoch, float(fraction), seed))

    def to_ray_dataset(self) -> Any:
        """Give all samples as a `ray.data.Dataset`, a few at a time as they are asked for, see `ray_data`."""
        from in_memory_datasets.scale.ray_data import to_ray_dataset

        return to_ray_dataset(self._description, self._coordinator)

    def retry_failed(self, *, reasons: Collection[str] | None = None) -> ClusterReport:
        """Load again only what failed, each node its own, and return the new report.

        What `local_shard` gave follows when it turns to another epoch.

        Args:
            reasons: Only what failed for one of these, as of `retry_failed` of a dataset.

        Raises:
            ConfigError: There is no such reason.
        """
        report: ClusterReport = _get(self._coordinator.retry_failed.remote(reasons))
        return report

    @property
    def report(self) -> ClusterReport:
        """Sum up what all nodes did, and what happened to them since; waits while something is missing."""
        report: ClusterReport = _get(self._coordinator.report.remote())
        return report

    @property
    def events(self) -> tuple[str, ...]:
        """What happened so far, as in the report; told at once, also while something that was lost is loaded again."""
        events: tuple[str, ...] = _get(self._coordinator.events.remote())
        return events

    @property
    def plan(self) -> ClusterPlan:
        """What each node has, and how much of it this takes."""
        plan: ClusterPlan = _get(self._coordinator.plan.remote())
        return plan

    def __len__(self) -> int:
        return self.plan.num_samples

    @property
    def nbytes(self) -> dict[str, tuple[int, int]]:
        """Bytes that are at home at each node, and those it has borrowed, by Ray's name for it."""
        sizes: dict[str, tuple[int, int]] = _get(self._coordinator.sizes.remote())
        return sizes

    def close(self) -> None:
        """Give up the memory on all nodes; what was handed out by `local_shard` stays readable until it is closed."""
        try:
            _get(self._coordinator.close.remote())
        finally:
            ray.kill(self._coordinator)

    def __enter__(self) -> ShardedDataset[DatasetT]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ShardedDataset({self._description.request.spec})"


def _get(ref: Any) -> Any:
    """Wait for an answer; what went wrong elsewhere is raised as what it is."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    except LOST as error:
        raise StoreError(
            "what the cluster holds is gone, since its coordinator has ended: load it again, under a name, with which "
            f"it is started anew instead ({error})"
        ) from error


def _ask_view(coordinator: Any, node_id: str, epoch: int | None, terms: Terms, brings: bool) -> NodeView:
    view: NodeView = _get(coordinator.view.remote(node_id, epoch, terms, brings))
    return view


def _gather_nodes() -> tuple[int, list[str]]:
    """Ask all ranks for their nodes."""
    own = ray.get_runtime_context().get_node_id()
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, [own]
    node_ids: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(node_ids, own)
    return distributed.get_rank(), node_ids


def _source_of(data: Any) -> tuple[Any | None, list[Any]]:
    """Give what the cluster is to read, a `ray.data.Dataset`, and its first row; None for what this process reads."""
    if isinstance(data, (str, os.PathLike)):
        data = [data]
    if isinstance(data, (list, tuple)) and data and all(isinstance(each, (str, os.PathLike)) for each in data):
        import ray.data

        paths = [os.fspath(path) for path in data]
        kinds = {PurePosixPath(path).suffix.lower() for path in paths}
        if kinds == {".csv"}:
            data = ray.data.read_csv(paths)
        elif kinds <= {".parquet", ""}:  # a directory of them has no such end
            data = ray.data.read_parquet(paths)
        else:
            raise ConfigError(f"{paths[0]}: expected the names of Parquet or of CSV files, or a dataset")
    # Whoever passes one of its datasets has imported its library; whoever does not need not pay for importing it.
    library = sys.modules.get("ray.data")
    if library is None or not isinstance(data, library.Dataset):
        return None, []
    data.context.execution_options.preserve_order = True  # row i is row i, whoever reads it
    return data, data.take(1)


def _wait_for_load(coordinator: Any, *, shows_progress: bool) -> None:
    loaded = coordinator.load.remote()
    _, num_rows = _get(coordinator.progress.remote())
    with progress_bar(shows_progress, num_rows, "Loading into the cluster") as bar:
        while not ray.wait([loaded], timeout=_LOOK_SECONDS)[0]:
            if not bar.disable:
                num_done, _ = _get(coordinator.progress.remote())
                bar.update(num_done - bar.n)
        _get(loaded)
        bar.update(num_rows - bar.n)
