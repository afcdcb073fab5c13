"""The model of large clusters: formulas that agree with the division itself where that can be asked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.scale import model
from benchmarks.scale.model import Rates, Setup
from in_memory_datasets.scale.division import Division
from in_memory_datasets.scale.view import NodeView

RATES = Rates(
    decoded_per_s=100.0,
    rows_per_s=1e6,
    start_seconds=2.0,
    first_seconds=0.5,
    exchange_bytes_per_s=1e9,
    request_seconds=1e-3,
    view_seconds=1e-6,
    left_seconds=5e-7,
    notice_seconds=10.0,
)
SETUP = Setup(4, 4_000, 100_000.0, cores=2, ranks=2)


def test_twice_the_nodes_load_in_half_the_time_unless_rows_come_through_one_driver() -> None:
    """Decoding, source and network are shared by the nodes; the hand-over of rows is not."""
    one, other = (model.load_seconds(replace(SETUP, num_nodes=size), RATES) for size in (4, 8))
    assert one["decoding"] == 4_000 / (4 * 2 * 100)
    for step in ("decoding", "source", "network"):
        assert other[step] == pytest.approx(one[step] / 2)
    assert other["rows"] == one["rows"] == 4_000 / 1e6


def test_a_source_lets_no_more_pass_than_it_has() -> None:
    most = model.load_seconds(replace(SETUP, num_nodes=10**6), RATES)["source"]
    assert most == 4_000 * model.FETCHED_BYTES / model.SOURCE_BYTES_PER_S


def test_what_stays_encoded_is_not_decoded() -> None:
    assert "decoding" not in model.load_seconds(SETUP, RATES, decodes=False)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_as_much_is_borrowed_as_the_division_lends(fraction: float) -> None:
    """The formula gives the mean, from which a draw of 4,000 samples is a few percent off."""
    setup = replace(SETUP, fraction=fraction)
    division = model.division_of(setup)
    lent = sum(len(NodeView("", node, (), division).parts().foreign) for node in range(4))
    assert lent == pytest.approx(model.borrowed_samples(setup), rel=0.15)


def test_one_node_borrows_nothing_and_asks_nobody() -> None:
    alone = replace(SETUP, num_nodes=1)
    assert model.borrowed_bytes(alone) == model.requests_of_node(alone) == model.exchange_seconds(alone, 1e9) == 0


def test_every_node_asks_every_other_at_least_once() -> None:
    """A parcel to each of the others, however little it holds; more where it does not fit one."""
    assert model.requests_of_node(SETUP) == 3
    assert model.requests_of_node(replace(SETUP, num_nodes=1_000)) == 999
    large = replace(SETUP, num_samples=4_000_000)
    each = model.borrowed_bytes(large) / 4 / 3
    assert model.requests_of_node(large) == 3 * -(-each // model.PARCEL_BYTES)
    assert model.calls_of_epoch(SETUP)["between_nodes"] == 4 * 3


def test_an_exchange_takes_its_bytes_and_its_requests() -> None:
    of_node = model.borrowed_bytes(SETUP) / 4
    seconds = model.exchange_seconds(SETUP, 1e6, 0.4)
    assert seconds == pytest.approx(of_node / 1e6 + 3 * 0.4 / model.UNDER_WAY)


def test_a_node_holds_its_part_and_what_it_borrows_for_two_epochs() -> None:
    memory = model.memory_of_node(SETUP)
    assert memory["borrowed"] == pytest.approx(memory["home"] * 2 * 0.1 * 3 / 4)
    assert memory["home"] == 1_000 * (100_000 + model.BOOKKEEPING_BYTES)


def test_what_is_sent_is_the_division_itself() -> None:
    """Its bytes are counted, not estimated; a state holds as much, and both grow with the nodes."""
    division = model.division_of(SETUP)
    assert model.division_bytes(SETUP) == len(json.dumps(division.to_json()))
    assert Division.from_json(json.loads(json.dumps(division.to_json()))) == division
    assert division.num_samples == 4_000
    assert sum(division.shares) == 4_000
    assert model.state_bytes(replace(SETUP, num_nodes=400)) > 30 * model.state_bytes(SETUP)
    assert model.coordinator_bytes(SETUP) == (4 * 3 + 4 * 2) * model.division_bytes(SETUP)


def test_what_other_nodes_resume_is_what_was_left() -> None:
    """The division that is timed for it leaves out the batches that were served."""
    before = model.division_of(SETUP)
    past = model.past_of(before, 1)
    now = replace(model.division_of(replace(SETUP, num_nodes=5)), past=(past,))
    assert now.num_samples == 4_000 - 8 * 256


def test_a_lost_node_is_loaded_by_all_others() -> None:
    seconds = model.recovery_seconds(SETUP, RATES)
    assert seconds == {"noticing": 10.0, "loading": 1_000 / (3 * 2 * 100)}


def test_costs_of_a_process_grow_with_what_it_passes_over() -> None:
    """Turning to an epoch costs a process its node's share, resuming on other nodes costs it all samples."""
    assert model.view_seconds(SETUP, RATES) == pytest.approx(1_000 * 1e-6)
    assert model.resume_on_others(SETUP, RATES)["seconds"] == pytest.approx(4_000 * 5e-7)
    assert model.epoch_seconds(SETUP) == 4_000 / (4 * 2 * model.SAMPLES_PER_S_OF_RANK)
