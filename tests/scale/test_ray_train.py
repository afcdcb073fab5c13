"""Ray Train on a cluster: its workers are served by their nodes, and go on from a checkpoint when one is lost."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch.distributed as dist
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.train.torch import TorchTrainer
from torch.utils.data import DataLoader

from in_memory_datasets import FetchOptions, InMemoryImageTextDataset, collate_in_memory_images
from in_memory_datasets.scale import ShardedDataset, load_on_cluster

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(170)]

NUM_SAMPLES = 96
ALL_ROWS = list(range(NUM_SAMPLES))
BATCH_SIZE = 4
LOCAL = FetchOptions(allow_private_addresses=True)

# What workers run is sent to them: they could not import this module, which lies in no package.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ray Train look after its workers five times a second."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


@pytest.fixture
def sharded(picture_server: Any) -> Iterator[ShardedDataset[InMemoryImageTextDataset]]:
    """Load pictures into the memory of both nodes."""
    rows = [{"image_url": f"{picture_server.url}/{i}.png", "caption": f"caption {i}"} for i in ALL_ROWS]
    with load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), fetch=LOCAL, progress=False) as dataset:
        yield dataset


@dataclass(frozen=True, slots=True)
class Step:
    """A batch that a rank has trained on.

    Attributes:
        attempt: What tells the worker group from the one before.
        rank: Who.
        num_ranks: Of how many.
        node: Where.
        epoch: When.
        number: Its place in what this group has had of the epoch.
        is_kept: Whether a checkpoint was made after it, by this group.
        rows: What was in it.
    """

    attempt: float
    rank: int
    num_ranks: int
    node: str
    epoch: int
    number: int
    rows: list[int]


def train(config: dict[str, Any]) -> None:
    """Take batches, and note what is in them; a checkpoint after every so many of them, and after each epoch."""
    context = ray.train.get_context()
    rank, folder = context.get_world_rank(), Path(config["folder"])
    attempts = [time.time()]
    dist.broadcast_object_list(attempts, src=0)
    sharded = config["sharded"]
    dataset = sharded.local_shard()
    sampler = sharded.sampler(dataset, BATCH_SIZE, seed=3)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_in_memory_images)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as place:
            sampler.load_state_dict(json.loads((Path(place) / "sampler.json").read_text()))
    for epoch in range(sampler.epoch, 2):
        sampler.set_epoch(epoch)
        sharded.reshuffle(epoch + 1, fraction=0.3)
        number = 0
        for number, batch in enumerate(loader, start=1):
            assert batch["captions"] == [f"caption {row}" for row in batch["indices"].tolist()]
            step = {
                "attempt": attempts[0],
                "rank": rank,
                "num_ranks": dist.get_world_size(),
                "node": ray.get_runtime_context().get_node_id(),
                "epoch": epoch,
                "number": number,
                "rows": batch["indices"].tolist(),
            }
            note(folder / "steps", step)
            if (epoch, number) == config["fault"] and rank == dist.get_world_size() - 1:
                # Until Ray Train has taken note of a report, which it asks for now and then, it would not count.
                ray.train.get_all_reported_checkpoints()
                config["strike"](folder)
            if number % config["checkpoint_batches"] == 0:
                save(sampler, folder)
        if number % config["checkpoint_batches"]:
            save(sampler, folder)


def note(folder: Path, what: Any) -> None:
    """Write something into a file of its own, which is there as a whole or not at all."""
    name = uuid.uuid4().hex
    (folder / f".{name}").write_text(json.dumps(what))
    (folder / f".{name}").rename(folder / f"{name}.json")


def save(sampler: Any, folder: Path) -> None:
    """Report with a checkpoint, and note what it says."""
    with tempfile.TemporaryDirectory() as place:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            (Path(place) / "sampler.json").write_text(json.dumps(sampler.state_dict()))
            checkpoint = ray.train.Checkpoint.from_directory(place)
        ray.train.report({}, checkpoint=checkpoint)


def fit(
    sharded: ShardedDataset[Any],
    folder: Path,
    *,
    num_workers: int | tuple[int, int] = 2,
    resources: dict[str, float] | None = None,
    max_failures: int = 0,
    fault: tuple[int, int] | None = None,
    strike: Callable[[Path], None] | None = None,
) -> list[Step]:
    """Train two epochs, and give every batch that any rank was given, in order."""
    (folder / "steps").mkdir()
    trainer = TorchTrainer(
        train,
        train_loop_config={
            "sharded": sharded,
            "folder": str(folder),
            "checkpoint_batches": 4,
            "fault": fault,
            "strike": strike,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, resources_per_worker=resources, placement_strategy="SPREAD"
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(folder / "runs"),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    trainer.fit()
    steps = [Step(**json.loads(path.read_text())) for path in (folder / "steps").glob("*.json")]
    return sorted(steps, key=lambda step: (step.attempt, step.epoch, step.number, step.rank))


def rows_of(steps: list[Step]) -> list[int]:
    return sorted(row for step in steps for row in step.rows)


def test_the_workers_train_on_every_sample_once_in_each_epoch(sharded: ShardedDataset[Any], tmp_path: Path) -> None:
    """Two workers, one on each node, have every sample once in each of two epochs, and as many batches each."""
    steps = fit(sharded, tmp_path)
    assert len({step.node for step in steps}) == 2
    for epoch in (0, 1):
        assert rows_of([step for step in steps if step.epoch == epoch]) == ALL_ROWS
        counts = [sum(step.epoch == epoch and step.rank == rank for step in steps) for rank in (0, 1)]
        assert counts == [NUM_SAMPLES // BATCH_SIZE // 2] * 2


def end_this_worker_once(folder: Path) -> None:
    """Kill the worker that calls this, the first time."""
    try:
        (folder / "struck").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_goes_on_from_the_checkpoint(sharded: ShardedDataset[Any], tmp_path: Path) -> None:
    """A worker is killed in the middle of an epoch: of what the checkpoint has, nothing comes again, the rest once."""
    steps = fit(sharded, tmp_path, max_failures=1, fault=(1, 6), strike=end_this_worker_once)
    first, second = sorted({step.attempt for step in steps})
    assert rows_of([step for step in steps if step.epoch == 0]) == ALL_ROWS
    assert {step.epoch for step in steps if step.attempt == second} == {1}
    # The checkpoint was made after four batches of each rank; one of them had two more, which do not count.
    counted = [s for s in steps if s.epoch == 1 and (s.attempt == second or s.number <= 4)]
    assert len([s for s in counted if s.attempt == first]) == 2 * 4
    assert rows_of(counted) == ALL_ROWS
    assert sharded.report.events == ()


def have_this_node_ended_once(folder: Path) -> None:
    """Ask the test to take away the node of the worker that calls this, the first time, and wait for that."""
    try:
        (folder / "struck").touch(exist_ok=False)
    except FileExistsError:
        return
    (folder / "node").write_text(ray.get_runtime_context().get_node_id())
    (folder / "node").rename(folder / "lost")
    time.sleep(600)


@pytest.fixture
def trainers(cluster: Cluster) -> Iterator[list[Any]]:
    """Add two nodes that alone may have a worker, so that neither is the one of this process, which is the head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of what is to change in Ray
        nodes = [
            cluster.add_node(num_cpus=2, resources={"trainer": 1}, object_store_memory=100 * 2**20) for _ in range(2)
        ]
        cluster.wait_for_nodes()
    # Whom Ray Train asks for nodes looks for them every 20 s, and may have looked when there was one: it is made anew.
    with suppress(ValueError):
        ray.kill(ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator"))
    yield nodes
    for node in nodes:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)
    cluster.wait_for_nodes()


def test_the_job_goes_on_with_fewer_workers_when_a_node_is_lost(
    trainers: list[Any], sharded: ShardedDataset[Any], cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a node is lost with its worker, the one that is left has every remaining sample of the epoch once."""
    # Ray Train may ask for a worker on the lost node first, and gives that up after this time.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    has_ended = threading.Event()

    def take_node_away() -> None:
        while not (tmp_path / "lost").exists() and not has_ended.wait(0.05):
            pass
        for node in trainers:
            if (tmp_path / "lost").exists() and node.node_id == (tmp_path / "lost").read_text():
                cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=take_node_away)
    thread.start()
    try:
        steps = fit(
            sharded,
            tmp_path,
            num_workers=(1, 2),
            resources={"CPU": 1, "trainer": 1},
            max_failures=2,
            fault=(1, 6),
            strike=have_this_node_ended_once,
        )
    finally:
        has_ended.set()
        thread.join()
    first, *_, last = sorted({step.attempt for step in steps})
    assert {step.num_ranks for step in steps if step.attempt == first} == {2}
    assert {step.num_ranks for step in steps if step.attempt == last} == {1}
    assert rows_of([step for step in steps if step.epoch == 0]) == ALL_ROWS
    counted = [step for step in steps if step.epoch == 1 and (step.attempt == last or step.number <= 4)]
    assert rows_of(counted) == ALL_ROWS
    report = sharded.report
    assert any("was lost" in event for event in report.events)
    assert (report.num_ok, sum(report.nodes.values())) == (NUM_SAMPLES, NUM_SAMPLES)
