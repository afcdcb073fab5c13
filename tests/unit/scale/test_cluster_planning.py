"""What fits into a cluster of any nodes, and who is to load what."""

from __future__ import annotations

import numpy as np
import pytest

from in_memory_datasets.build import LoadRequest
from in_memory_datasets.errors import MemoryLimitError
from in_memory_datasets.scale.planning import ClusterPlan, Facts, NodePlan, lay_out, plan_cluster
from in_memory_datasets.schema import AudioSpec, ImageSpec

SAMPLE = [{"image": np.zeros((4, 4, 3), np.uint8), "text": "a caption"}] * 8
MB = 10**6


def node(name: str, megabytes: int, cores: int, machine: str | None = None) -> NodePlan:
    return NodePlan(name, Facts(megabytes * MB, "cgroup", cores, machine or name, 1))


def plan(num_rows: int, *nodes: NodePlan, storage: str = "decoded") -> ClusterPlan:
    request = LoadRequest(spec=ImageSpec((100, 100)), storage=storage)  # type: ignore[arg-type]
    return plan_cluster(request, ("image", "text"), SAMPLE, num_rows, nodes)


def test_rows_are_divided_by_cores_up_to_what_each_node_has_room_for() -> None:
    """A node with twice the cores gets twice the rows, unless its memory is full: then others get more."""
    even = plan(3000, node("a", 1000, 4), node("b", 1000, 2))
    assert [each.num_samples for each in even.nodes] == [2000, 1000]
    tight = plan(3000, node("a", 20, 4), node("b", 1000, 2), node("c", 1000, 2))
    # A picture of 100 x 100 takes 30 kB, and a fifth as much is kept free for what is borrowed.
    assert tight.nodes[0].num_samples == tight.nodes[0].num_samples_that_fit < 20 * MB / 30_000 / 1.2
    assert abs(tight.nodes[1].num_samples - tight.nodes[2].num_samples) <= 1
    assert sum(each.num_samples for each in tight.nodes) == 3000
    assert tight.fits


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    """The plan of all nodes together says what is needed, what there is and how many would fit."""
    found = plan(10_000, node("a", 20, 4), node("b", 30, 2))
    assert not found.fits
    assert found.bytes_available == 50 * MB
    assert found.num_samples_that_fit == sum(each.num_samples_that_fit for each in found.nodes)
    with pytest.raises(MemoryLimitError, match=f"give max_samples={found.num_samples_that_fit}"):
        found.refuse_if_too_large()
    text = str(found)
    assert "10,000, decoded" in text
    assert "no; " in text
    assert "4 cores, 20 MB (cgroup)" in text


def test_nodes_on_one_machine_have_its_memory_together() -> None:
    """What two nodes of one machine each find free is counted once, but limits of their own count each."""
    together = plan(100, node("a", 30, 2, "m"), node("b", 30, 2, "m"))
    assert together.bytes_available == 30 * MB
    limited = [NodePlan(name, Facts(30 * MB, "memory_limit", 2, "m", 1)) for name in ("a", "b")]
    assert plan(100, *limited).bytes_available == 60 * MB


def test_auto_takes_encoded_where_decoded_does_not_fit() -> None:
    """With storage="auto" all samples of a cluster lie in one form, the first that fits."""
    roomy, tight = node("a", 1000, 2), node("a", 60, 2)
    sample = [{"image": b"x" * 500, "text": "a caption"}] * 8
    request = LoadRequest(spec=ImageSpec((100, 100)), storage="auto")
    assert plan_cluster(request, ("image", "text"), sample, 5000, [roomy]).storage == "decoded"
    found = plan_cluster(request, ("image", "text"), sample, 5000, [tight])
    assert (found.storage, found.fits) == ("encoded", True)


def test_clips_are_planned_at_their_longest() -> None:
    """Of clips whose lengths are not known the plan is an upper bound, and says so."""
    request = LoadRequest(spec=AudioSpec(target_sr=1000, max_duration=10.0))
    rows = [{"audio": "a.wav", "text": "a caption"}]
    found = plan_cluster(request, ("audio", "text"), rows, 100, [node("a", 1000, 2)])
    assert found.is_upper_bound
    assert 40_000 <= found.bytes_per_sample < 41_000
    assert "at most" in str(found)


def test_in_memory_each_node_loads_one_part() -> None:
    """The parts follow one another, and a node that is to hold nothing has none."""
    found = plan(30, node("a", 1000, 2), node("b", 0, 2), node("c", 1000, 4))
    assert lay_out(found, in_directories=False) == [(0, 10, "a"), (10, 30, "c")]


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5])
def test_in_directories_the_parts_do_not_depend_on_the_nodes(num_nodes: int) -> None:
    """Whatever their number, nodes load the same parts, so that others find them again; each about as many."""
    nodes = [node(str(number), 1000, 2) for number in range(num_nodes)]
    parts = lay_out(plan(1000, *nodes), in_directories=True)
    assert [part[:2] for part in parts] == [(start, min(start + 63, 1000)) for start in range(0, 1000, 63)]
    counts = {name: 0 for _, _, name in parts}
    for start, stop, name in parts:
        counts[name] += stop - start
    assert len(counts) == num_nodes
    assert max(counts.values()) - min(counts.values()) <= 2 * 63
