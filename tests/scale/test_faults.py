"""Workers, actors and whole nodes that are killed: nothing is lost, nothing comes twice, and the report tells it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from in_memory_datasets import FetchOptions, InMemoryImageTextDataset
from in_memory_datasets.errors import LoadError, StoreError
from in_memory_datasets.scale import ShardedDataset, load_on_cluster
from tests.scale.ranks import all_at_once, end_ranks, living_nodes, start_ranks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(120)]

NUM_SAMPLES = 120
ALL_ROWS = list(range(NUM_SAMPLES))
LOCAL = FetchOptions(allow_private_addresses=True)


def load(server: Any, **kwargs: Any) -> ShardedDataset[InMemoryImageTextDataset]:
    rows = [{"image_url": f"{server.url}/{i}.png", "caption": f"caption {i}"} for i in ALL_ROWS]
    return load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), fetch=LOCAL, progress=False, **kwargs)


def load_meanwhile(server: Any, **kwargs: Any) -> tuple[threading.Thread, list[Any]]:
    """Load in a thread, against a server that answers nobody before its gate is opened."""
    server.gate.clear()
    loaded: list[Any] = []
    thread = threading.Thread(target=lambda: loaded.append(load(server, **kwargs)))
    thread.start()
    return thread, loaded


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.05)


def rows_of(batches: Sequence[Sequence[Sequence[tuple[int, str, int]]]]) -> list[int]:
    for of_rank in batches:
        for batch in of_rank:
            for index, caption, total in batch:
                assert (caption, total) == (f"caption {index}", 144 * (index % 251))
    return [index for of_rank in batches for batch in of_rank for index, _, _ in batch]


def pid_of_actor(sharded: ShardedDataset[Any], node_id: str) -> int:
    return int(next(node.facts.pid for node in sharded.plan.nodes if node.node_id == node_id))


def pids_of(actor: str) -> set[int]:
    """Find the processes of all actors of a kind."""
    processes = psutil.process_iter(["pid", "cmdline"])
    return {each.info["pid"] for each in processes if f"ray::{actor}" in " ".join(each.info["cmdline"] or [])}


def test_a_killed_rank_goes_on_with_what_its_node_holds(picture_server: Any) -> None:
    """A rank that is killed is started anew, attaches, and goes on from its last state; nobody loads anything."""
    placed = living_nodes()
    with load(picture_server) as sharded:
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "set_epoch", 0)
        seen = rows_of(all_at_once(ranks, "take", 5))
        state = ray.get(ranks[0].state.remote())
        os.kill(ray.get(ranks[1].pid.remote()), signal.SIGKILL)
        end_ranks(ranks, placed)
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "load_state", state)
        seen += rows_of(all_at_once(ranks, "take"))
        assert sorted(seen) == ALL_ROWS
        assert sharded.report.events == ()
        end_ranks(ranks, placed)
    assert Counter(picture_server.asked).most_common(1)[0][1] == 1


@pytest.mark.parametrize("is_attached", [True, False])
def test_a_killed_actor_has_its_samples_back(picture_server: Any, is_attached: bool) -> None:
    """An actor that is killed in training has its samples from the ranks that map them, else from the sources."""
    placed = living_nodes()
    with load(picture_server) as sharded:
        ranks = start_ranks(sharded, placed) if is_attached else []
        all_at_once(ranks, "set_epoch", 0)
        seen = rows_of(all_at_once(ranks, "take", 5))
        os.kill(pid_of_actor(sharded, placed[1]), signal.SIGKILL)
        seen += rows_of(all_at_once(ranks, "take"))
        if is_attached:
            assert sorted(seen) == ALL_ROWS
        wait_until(lambda: any("rows" in event for event in sharded.report.events))
        newcomers = start_ranks(sharded, placed)
        all_at_once(newcomers, "reshuffle", 1, 0.5)  # for which the actor lends
        all_at_once(newcomers, "set_epoch", 1)
        assert sorted(rows_of(all_at_once(newcomers, "take"))) == ALL_ROWS
        events = " ".join(sharded.report.events)
        assert ("attached to again" if is_attached else "loaded again") in events
        end_ranks([*ranks, *newcomers], [*(placed if is_attached else []), *placed])
    assert Counter(picture_server.asked).most_common(1)[0][1] == (1 if is_attached else 2)


def test_an_actor_that_is_killed_while_it_loads_loads_its_part_again(picture_server: Any) -> None:
    """An actor that is killed in loading is started anew and loads its part; every sample is there once."""
    before = pids_of("NodeActor")
    thread, loaded = load_meanwhile(picture_server)
    wait_until(lambda: len(picture_server.asked) >= 40)
    os.kill(min(pids_of("NodeActor") - before), signal.SIGKILL)
    picture_server.gate.set()
    thread.join(100)
    with loaded[0] as sharded:
        report = sharded.report
        assert (report.num_samples, report.num_ok) == (NUM_SAMPLES, NUM_SAMPLES)
        placed = living_nodes()
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "set_epoch", 0)
        assert sorted(rows_of(all_at_once(ranks, "take"))) == ALL_ROWS
        end_ranks(ranks, placed)


def test_a_node_that_is_lost_while_it_loads_is_replaced_by_the_others(
    picture_server: Any, cluster: Cluster, add_node: Callable[[], Any]
) -> None:
    """Of a node that is lost in loading the others load the rows, and the report says so; nothing comes twice."""
    node = add_node()
    thread, loaded = load_meanwhile(picture_server)
    wait_until(lambda: len(picture_server.asked) >= 60)
    cluster.remove_node(node, allow_graceful=False)
    # Or its actor, which outlives its node for a moment, could load its part to the end.
    wait_until(lambda: node.node_id not in living_nodes())
    picture_server.gate.set()
    thread.join(100)
    with loaded[0] as sharded:
        report = sharded.report
        assert (report.num_samples, report.num_ok) == (NUM_SAMPLES, NUM_SAMPLES)
        assert sum(report.nodes.values()) == NUM_SAMPLES
        assert report.nodes[node.node_id] == 0
        assert any("was lost, with 40 rows" in event for event in report.events)
        placed = living_nodes()
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "set_epoch", 0)
        assert sorted(rows_of(all_at_once(ranks, "take"))) == ALL_ROWS
        end_ranks(ranks, placed)


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_node_that_is_lost_in_training_is_replaced_by_the_others(
    picture_server: Any, cluster: Cluster, add_node: Callable[[], Any], tmp_path: Path, is_cached: bool
) -> None:
    """When a node is lost the job goes on from its last state on the others, which load its part: from the shared
    directory where there is one, else from the sources; every sample comes once."""
    node = add_node()
    placed = living_nodes()
    with load(picture_server, cache_dir=tmp_path if is_cached else None) as sharded:
        assert len(set(placed)) == 3
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "reshuffle", 0, 0.3)
        all_at_once(ranks, "set_epoch", 0)
        seen = rows_of(all_at_once(ranks, "take", 4))
        state = ray.get(ranks[0].state.remote())
        num_asked = len(picture_server.asked)
        cluster.remove_node(node, allow_graceful=False)
        end_ranks(ranks, placed)
        placed = [each for each in placed if each != node.node_id]
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "load_state", state)
        seen += rows_of(all_at_once(ranks, "take"))
        assert sorted(seen) == ALL_ROWS
        all_at_once(ranks, "set_epoch", 1)
        assert sorted(rows_of(all_at_once(ranks, "take"))) == ALL_ROWS
        # Its actor may have lent on for a moment without it.
        wait_until(lambda: any("was lost" in event for event in sharded.report.events))
        report = sharded.report
        assert (report.num_samples, report.num_ok) == (NUM_SAMPLES, NUM_SAMPLES)
        assert report.nodes[node.node_id] == 0
        end_ranks(ranks, placed)
    num_again = len(picture_server.asked) - num_asked
    assert num_again == 0 if is_cached else 0 < num_again <= 40


def test_a_job_goes_on_with_three_nodes_where_two_left_off(picture_server: Any, add_node: Callable[[], Any]) -> None:
    """The state of two ranks on two nodes is resumed by three ranks on three nodes, in a load of its own."""
    with load(picture_server) as sharded:
        placed = living_nodes()
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "reshuffle", 2, 0.3)
        all_at_once(ranks, "set_epoch", 2)
        seen = rows_of(all_at_once(ranks, "take", 6))
        state = ray.get(ranks[0].state.remote())
        assert (state["epoch"], state["consumed"], state["num_samples"]) == (2, 48, NUM_SAMPLES)
        end_ranks(ranks, placed)
    add_node()
    with load(picture_server) as sharded:
        placed = living_nodes()
        ranks = start_ranks(sharded, placed, batch_size=5)
        assert len(ranks) == 3
        all_at_once(ranks, "load_state", state)
        seen += rows_of(all_at_once(ranks, "take", 2))
        states = all_at_once(ranks, "state")
        assert states[0] == states[1] == states[2]
        assert states[0]["consumed"] == 48 + 30
        seen += rows_of(all_at_once(ranks, "take"))
        assert sorted(seen) == ALL_ROWS
        all_at_once(ranks, "set_epoch", 3)
        assert sorted(rows_of(all_at_once(ranks, "take"))) == ALL_ROWS
        end_ranks(ranks, placed)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_node_that_came_later_serves_what_it_borrows(
    picture_server: Any, add_node: Callable[[], Any], num_workers: int
) -> None:
    """A job that grows has a rank on a node that holds nothing: it borrows its share, and nobody loads anything."""
    with load(picture_server) as sharded:
        add_node()
        placed = living_nodes()
        ranks = start_ranks(sharded, placed, num_workers=num_workers)
        assert len(ranks) == 3
        for epoch in range(2):
            all_at_once(ranks, "set_epoch", epoch)
            all_at_once(ranks, "reshuffle", epoch + 1, 0.3)
            taken = all_at_once(ranks, "take")
            assert len({len(of_rank) for of_rank in taken}) == 1
            assert sorted(rows_of(taken)) == ALL_ROWS
        end_ranks(ranks, placed)
        assert sharded.report.events == ()
    assert len(picture_server.asked) == NUM_SAMPLES


def test_the_driver_may_leave_and_come_back(picture_server: Any, cluster: Cluster) -> None:
    """A dataset with a name outlives the driver that loaded it; another driver finds it and loads nothing again."""
    script = f"""
import ray
from tests.scale.test_faults import load
ray.init(address={cluster.address!r}, log_to_driver=False, logging_level="error")
class Server:
    url = {picture_server.url!r}
load(Server, name="of another driver")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100, cwd=Path(__file__).parents[2])
    num_asked = len(picture_server.asked)
    with ShardedDataset.find("of another driver") as sharded:
        placed = living_nodes()
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "set_epoch", 0)
        assert sorted(rows_of(all_at_once(ranks, "take"))) == ALL_ROWS
        end_ranks(ranks, placed)
    assert len(picture_server.asked) == num_asked == NUM_SAMPLES


def test_a_coordinator_that_is_killed_is_told_by_the_nodes_what_they_hold(picture_server: Any) -> None:
    """Started again, the coordinator of a named dataset asks the nodes, and training goes on with the same batches."""
    placed, before = living_nodes(), pids_of("Coordinator")
    with load(picture_server, name="with a coordinator") as sharded:
        (pid,) = pids_of("Coordinator") - before
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "reshuffle", 1, 0.3)
        all_at_once(ranks, "set_epoch", 0)
        seen = rows_of(all_at_once(ranks, "take", 5))
        os.kill(pid, signal.SIGKILL)
        seen += rows_of(all_at_once(ranks, "take"))
        assert sorted(seen) == ALL_ROWS
        all_at_once(ranks, "set_epoch", 1)
        assert sorted(rows_of(all_at_once(ranks, "take"))) == ALL_ROWS
        found = ShardedDataset.find("with a coordinator")
        assert len(found) == found.plan.num_samples == NUM_SAMPLES
        report = found.report
        assert any("told by the nodes" in event for event in report.events)
        assert (report.num_ok, sum(report.nodes.values())) == (NUM_SAMPLES, NUM_SAMPLES)
        end_ranks(ranks, placed)
    assert len(picture_server.asked) == NUM_SAMPLES


def test_a_coordinator_that_is_killed_while_rows_are_loaded_ends_the_load(picture_server: Any) -> None:
    """With it the rows are gone that it alone had: the error says so, and the name can be used again."""
    before, errors = pids_of("Coordinator"), []

    def load_and_catch() -> None:
        try:
            load(picture_server, name="cut short")
        except LoadError as error:
            errors.append(error)

    picture_server.gate.clear()
    thread = threading.Thread(target=load_and_catch)
    thread.start()
    wait_until(lambda: len(picture_server.asked) >= 40)
    (pid,) = pids_of("Coordinator") - before
    os.kill(pid, signal.SIGKILL)
    picture_server.gate.set()
    thread.join(100)
    assert [str(error) for error in errors] == [
        "the cluster's coordinator ended during the load, with the rows that it alone had: load again"
    ]
    with load(picture_server, name="cut short") as sharded:
        assert sharded.report.num_ok == NUM_SAMPLES


def test_what_is_lost_while_samples_are_borrowed_is_waited_for(picture_server: Any) -> None:
    """Whoever asks for a shard just when a part of it is found lost is given it when that is there again."""

    def lose_a_part_meanwhile(coordinator: Any) -> None:  # seen while a node borrows; a second later it is had back
        real = coordinator._nodes.lenders

        def lenders() -> Any:
            coordinator._nodes.lenders = real
            part = coordinator._parts[0]
            part.built, part.was_lost = None, True
            asyncio.get_running_loop().call_later(1.0, lambda: coordinator._start(coordinator._build(part)))
            return real()

        coordinator._nodes.lenders = lenders

    with load(picture_server) as sharded:
        ray.get(sharded._coordinator.__ray_call__.remote(lose_a_part_meanwhile))
        with sharded.local_shard() as shard:
            assert any("attached to again" in event for event in sharded.events)
            assert len(shard) == 60
    assert len(picture_server.asked) == NUM_SAMPLES


def test_without_a_name_the_end_of_the_coordinator_is_told(picture_server: Any) -> None:
    """Where nobody could find the dataset again, whoever asks for it is told that it is gone."""
    before = pids_of("Coordinator")
    sharded = load(picture_server)
    (pid,) = pids_of("Coordinator") - before
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StoreError, match="its coordinator has ended"):
        _ = sharded.report


def test_what_nobody_has_room_for_waits_for_a_new_node(
    picture_server: Any, cluster: Cluster, add_node: Callable[[], Any]
) -> None:
    """Where the others' memory_limit leaves no room, a lost part waits, and the next node that comes takes it whole."""
    node = add_node()
    with load(picture_server) as sharded:  # how much a part takes
        room = max(home for home, _ in sharded.nbytes.values())
    with load(picture_server, memory_limit=round(1.05 * room)) as sharded:
        held = sharded.report.nodes[node.node_id]
        assert held == 40
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: any("no node has room" in event for event in sharded.events))
        new = add_node()
        wait_until(lambda: any("loaded again" in event for event in sharded.events))
        report = sharded.report
        assert report.nodes[new.node_id] == held
        assert (report.num_ok, sum(report.nodes.values())) == (NUM_SAMPLES, NUM_SAMPLES)


def test_the_coordinator_is_where_the_cluster_itself_would_be_lost(add_node: Callable[[], Any]) -> None:
    """However many nodes there are, the coordinator runs on the head, so that no other loss takes it along."""
    add_node()
    (head,) = (node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    rows = [{"image_url": np.zeros((2, 2, 3), np.uint8), "caption": ""}] * 3
    for _ in range(6):  # chance would have found the head six times in a row once in 700
        with load_on_cluster(InMemoryImageTextDataset, rows, image_size=(2, 2), progress=False) as sharded:
            where = sharded._coordinator.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
            assert ray.get(where) == head
