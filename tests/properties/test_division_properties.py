"""Whatever nodes hold and wherever ranks are: every sample is served once, and all ranks have as many batches."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.scale.division import Division, Homes, Past, Ranks, divide, node_of_samples, ranges_of

FRACTIONS = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@st.composite
def homes_of(draw: st.DrawFn, num_samples: int) -> Homes:
    """Draw where samples are at home: some nodes hold nothing, and some hold several ranges, as after a loss."""
    num_nodes = draw(st.integers(1, 5))
    weights = draw(st.lists(st.integers(0, 3), min_size=num_nodes, max_size=num_nodes))
    ranges = [list(each) for each in ranges_of(divide(num_samples, weights))]
    if num_nodes > 1 and draw(st.booleans()):
        lost = draw(st.integers(0, num_nodes - 1))
        heirs = [node for node in range(num_nodes) if node != lost]
        for number, (start, stop) in enumerate(ranges[lost]):
            middle = (start + stop) // 2
            for part in ((start, middle), (middle, stop)):
                if part[0] < part[1]:
                    ranges[heirs[(number + part[0]) % len(heirs)]].append(part)
        ranges[lost] = []
    return Homes(tuple(map(tuple, ranges)))


@st.composite
def divisions(draw: st.DrawFn) -> Division:
    num_samples = draw(st.integers(1, 200))
    homes = draw(homes_of(num_samples))
    ranks = draw(ranks_on(len(homes.ranges), num_samples))
    return Division(homes, draw(FRACTIONS), draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 9)), ranks)


@st.composite
def ranks_on(draw: st.DrawFn, num_nodes: int, num_samples: int) -> Ranks:
    nodes = draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=min(6, num_samples)))
    return Ranks(tuple(nodes), draw(st.integers(1, 9)), draw(st.booleans()))


def batches_of(division: Division, rank: int, num_batches: int, *, seed: int | None = 3) -> list[NDArray[np.int64]]:
    """Give the samples in the first batches of a rank."""
    ranks = division.ranks
    assert ranks is not None
    node = ranks.nodes[rank]
    ends = [ranks.end(rank, number, division.num_samples) for number in range(num_batches + 1)]
    places = division.place_of_turn(rank, np.arange(ends[-1]))
    samples = division.served_by(node)[division.order(node, places, seed=seed)]
    return [samples[start:stop] for start, stop in itertools.pairwise(ends)]


def all_of(division: Division) -> list[int]:
    """Give all samples that are served, sorted."""
    served = [division.served_by(node) for node in range(len(division.homes.ranges))]
    return sorted(np.concatenate(served).tolist())


@given(divisions())
def test_the_nodes_serve_every_sample_once_and_as_many_as_their_ranks_have(division: Division) -> None:
    """Together the nodes serve every sample once, each of them what its ranks are dealt."""
    assert all_of(division) == list(range(division.homes.num_samples))
    assert [len(division.served_by(node)) for node in range(len(division.shares))] == list(division.shares)


@given(divisions(), FRACTIONS)
def test_without_ranks_a_node_serves_as_many_as_it_holds(division: Division, fraction: float) -> None:
    """Where no ranks are known, each node serves as many samples as are at home with it."""
    division = replace(division, ranks=None, fraction=fraction)
    assert division.shares == division.homes.counts
    assert all_of(division) == list(range(division.homes.num_samples))


@given(divisions())
def test_all_ranks_have_as_many_batches_and_no_sample_twice(division: Division) -> None:
    """Every rank has the same number of batches, none empty or too large; only what does not go round is left out."""
    ranks, total = division.ranks, division.num_samples
    assert ranks is not None
    num_batches = ranks.num_batches(total)
    batches = [batches_of(division, rank, num_batches) for rank in range(len(ranks.nodes))]
    sizes = [len(batch) for of_rank in batches for batch in of_rank]
    assert all(0 < size <= ranks.batch_size for size in sizes)
    seen = [sample for of_rank in batches for batch in of_rank for sample in batch.tolist()]
    assert len(set(seen)) == len(seen) == ranks.consumed(num_batches, total)
    if ranks.drop_last:
        assert set(sizes) <= {ranks.batch_size}
        assert total - len(seen) < ranks.batch_size * len(ranks.nodes)
    elif ranks.batch_size > 1:
        assert len(seen) == total
    else:
        assert total - len(seen) == total % len(ranks.nodes)


@settings(max_examples=60)
@given(st.data(), divisions(), FRACTIONS)
def test_what_is_left_is_served_once_by_other_nodes_and_ranks(
    data: st.DataObject, division: Division, fraction: float
) -> None:
    """After any number of batches the rest can be divided anew, twice, and every sample still comes once."""
    seen: list[int] = []
    total = division.homes.num_samples
    for _ in range(2):
        ranks = division.ranks
        assert ranks is not None
        num_batches = data.draw(st.integers(0, ranks.num_batches(division.num_samples)))
        for rank in range(len(ranks.nodes)):
            seen += np.concatenate([*batches_of(division, rank, num_batches), np.zeros(0, np.int64)]).tolist()
        past = Past(division.homes, ranks, division.fraction, division.seed, num_batches, 3)
        homes = data.draw(homes_of(total))
        division = Division(
            homes, fraction, 7, division.epoch, data.draw(ranks_on(len(homes.ranges), total)), (*division.past, past)
        )
        assert sorted(seen + all_of(division)) == list(range(total))


@given(divisions())
def test_a_division_is_the_same_after_json(division: Division) -> None:
    """What a division deals is known from what JSON holds of it, and so is its name."""
    ranks = division.ranks
    assert ranks is not None
    division = replace(division, past=(Past(division.homes, ranks, 0.5, 1, 0, None),))
    same = Division.from_json(json.loads(json.dumps(division.to_json())))
    assert same == division
    assert same.key == division.key


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 5), st.sampled_from([0.1, 0.25, 0.5]))
def test_a_node_keeps_all_but_the_fraction(num_nodes: int, each: int, epoch: int, fraction: float) -> None:
    """With as many ranks as homes call for, no node borrows more than the fraction, or lends more."""
    homes = Homes(ranges_of([each] * num_nodes))
    division = Division(homes, fraction, 0, epoch)
    served = [node_of_samples(homes, division.served_by(node)) for node in range(num_nodes)]
    for node, owners in enumerate(served):
        assert np.count_nonzero(owners != node) <= np.ceil(fraction * each)
        assert sum(np.count_nonzero(other == node) for other in served) == each


def test_nothing_moves_without_a_fraction() -> None:
    """With fraction 0 and ranks on every node alike, each node serves what it holds, in its own order."""
    homes = Homes(ranges_of([10, 10]))
    division = Division(homes, ranks=Ranks((0, 1, 0, 1), 4))
    assert [division.served_by(node).tolist() for node in range(2)] == [list(range(10)), list(range(10, 20))]


def test_with_the_whole_fraction_every_sample_is_served_anywhere_alike() -> None:
    """With fraction 1 a sample is served by each of four nodes in a quarter of the epochs, as chance has it."""
    homes = Homes(ranges_of([50] * 4))
    counts = np.zeros((200, 4))
    num_epochs = 200
    for epoch in range(num_epochs):
        division = Division(homes, 1.0, 5, epoch)
        for node in range(4):
            counts[division.served_by(node), node] += 1
    expected = num_epochs / 4
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    degrees = 200 * 3
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


def test_the_fraction_is_drawn_anew_in_every_epoch() -> None:
    """Which samples are lent differs from epoch to epoch, so that all have been after a while."""
    homes, lent = Homes(ranges_of([40, 40])), set[int]()
    for epoch in range(60):
        served = Division(homes, 0.2, 1, epoch).served_by(0)
        lent |= set(served[served >= 40].tolist())
    assert lent == set(range(40, 80))


def test_what_is_no_more_there_is_told() -> None:
    """A state of a dataset that has since lost samples is refused, with how many are missing."""
    past = Past(Homes(ranges_of([10, 10])), Ranks((0, 1), 2), 0.0, 0, 1, None)
    with pytest.raises(ConfigError, match="20 samples, of which 8 are no more there"):
        _ = Division(Homes(ranges_of([8, 4])), ranks=Ranks((0,), 2), past=(past,)).num_samples


@pytest.mark.parametrize(
    ("num_samples", "weights", "limits", "expected"),
    [
        (10, [1, 1, 1], None, (4, 3, 3)),
        (100, [2, 1, 1], [30, 100, 100], (30, 35, 35)),
        (100, [1, 1], [20, 30], (20, 30)),
        (5, [0, 0], None, (3, 2)),
        (7, [1, 0], [3, 10], (3, 4)),
        (0, [1, 1], None, (0, 0)),
    ],
)
def test_samples_are_divided_by_weight_up_to_limits(
    num_samples: int, weights: list[float], limits: list[int] | None, expected: tuple[int, ...]
) -> None:
    """Nodes get samples in proportion to their weights, those that are full no more, and all are given out."""
    assert divide(num_samples, weights, limits) == expected
