"""What the page of shuffling says is what was measured, and what is measured is what ranks of their own would do."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.scale.shuffling import (
    BATCH_SIZE,
    FRACTIONS,
    NODES,
    NUM_RANKS,
    PAGE,
    RESULTS,
    TASKS,
    RankNorm,
    Scenes,
    batches_of,
    count_epochs,
    draw_scenes,
    expected_epochs,
    global_batches,
    make_tables,
    with_tables,
)
from demo.dual_encoder import contrastive_loss
from in_memory_datasets.scale.division import DEFAULT_FRACTION, Division, Homes, Ranks, ranges_of
from tests.docs.results import change, places

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw_scenes(64)


def test_the_tables_of_the_page_are_those_of_the_results(record: dict[str, Any]) -> None:
    """All of them are there, and made anew they are the same."""
    page, tables = PAGE.read_text("utf-8"), make_tables(record)
    assert sorted(re.findall(r"<!-- table: (.*) -->", page)) == sorted(tables)
    assert with_tables(page, tables) == page


def test_every_figure_of_the_results_is_in_a_table(record: dict[str, Any]) -> None:
    """A figure that were another would make another page, but for the scores of single seeds, which the ranges tell."""
    before = make_tables(record)
    found = [
        place
        for place in places({key: record[key] for key in ("coverage", "training", "cpu_seconds")})
        if "values" not in place and place[-1] not in ("num_nodes", "fraction")
    ]
    assert len(found) > 200
    assert [place for place in found if make_tables(change(record, place)) == before] == []


def test_ranges_are_those_of_the_seeds(record: dict[str, Any]) -> None:
    """Mean, least and most are of at least three seeds, as many everywhere."""
    for row in record["training"]:
        for score in (row[key] for key in ("score", "averaged_score") if key in row):
            values = score["values"]
            assert len(values) == record["extent"]["num_seeds"] >= 3
            assert (score["mean"], score["min"], score["max"]) == (mean(values), min(values), max(values))


def test_figures_in_the_text_are_of_the_tables(record: dict[str, Any]) -> None:
    """What the sentences between the tables quote with a decimal stands in one of them, or is a q that was measured."""
    page = re.sub(r"<!-- table: .*? -->.*?<!-- end -->", "", PAGE.read_text("utf-8"), flags=re.DOTALL)
    quoted = set(re.findall(r"\d[\d,]*\.\d+", page.replace("arXiv 2211.00224", "")))
    known = set(re.findall(r"\d[\d,]*\.\d+", "\n".join(make_tables(record).values())))
    assert quoted - {f"{fraction:g}" for fraction in FRACTIONS} <= known
    assert f"default is {DEFAULT_FRACTION:g}*" in page


def test_what_the_text_says_of_the_default_is_so(record: dict[str, Any]) -> None:
    """A quarter of what is lost comes back, or not quite two thirds; and one shuffle of the rows is worth more."""
    scores = {
        (row["task"], row["order"], row["num_nodes"], row["fraction"]): row["score"]["mean"]
        for row in record["training"]
    }
    for task, least, most in (("local-contrast", 0.2, 0.3), ("local-norm", 0.55, 0.66)):
        nothing, best = scores[task, "sorted", 8, 0.0], scores[task, "any", 0, None]
        assert least < (scores[task, "sorted", 8, 0.1] - nothing) / (best - nothing) < most
        for num_nodes in NODES:
            assert scores[task, "shuffled", num_nodes, 0.0] > scores[task, "sorted", num_nodes, 0.3]
            assert abs(scores[task, "shuffled", num_nodes, 0.0] - best) < 0.02


def test_a_figure_that_is_changed_is_seen(record: dict[str, Any]) -> None:
    """The comparison of page and results does not pass whatever they hold."""
    changed = copy.deepcopy(record)
    changed["training"][0]["score"]["mean"] += 0.01
    page = PAGE.read_text("utf-8")
    assert with_tables(page, make_tables(changed)) != page


@pytest.mark.parametrize("task", [task for task in TASKS if task.contrastive], ids=lambda task: task.key)
def test_the_loss_of_a_step_is_the_mean_over_ranks_that_compute_apart(task: Any, scenes: Scenes) -> None:
    """One pass over the global batch has the gradient that ranks average when each passes over its own alone."""
    torch.manual_seed(0)
    model = task.make_model(scenes.num_words)
    batch = np.random.default_rng(0).permutation(64).reshape(-1, 4)
    task.loss(model, scenes, batch).backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    if task.local:
        for rank in range(4):
            rows = torch.from_numpy(batch[:, rank])
            (contrastive_loss(*model(scenes.pictures[rows], scenes.words[rows])) / 4).backward()
    else:
        rows = torch.from_numpy(batch.reshape(-1))
        contrastive_loss(*model(scenes.pictures[rows], scenes.words[rows])).backward()
    for gradient, parameter in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_ranks_normalise_as_batch_norm_does_in_processes_of_their_own() -> None:
    """Outputs and running statistics are those of one BatchNorm2d for each rank; rank 0's count in evaluation."""
    torch.manual_seed(0)
    planes, ours = torch.randn(12, 5, 4, 4), RankNorm(5, 3)
    theirs = [nn.BatchNorm2d(5) for _ in range(3)]
    for _ in range(3):
        outputs = ours(planes)
        for rank in range(3):
            torch.testing.assert_close(outputs[rank::3], theirs[rank](planes[rank::3]))
    ours.eval()
    torch.testing.assert_close(ours(planes), theirs[0].eval()(planes))
    ours.evaluate_averaged = True
    means = torch.stack([each.running_mean for each in theirs]).mean(0)
    variances = torch.stack([each.running_var for each in theirs]).mean(0)
    torch.testing.assert_close(ours(planes), F.batch_norm(planes, means, variances))


@pytest.mark.parametrize("fraction", [None, 0.0, 0.1, 1.0])
def test_every_epoch_deals_every_row_once(fraction: float | None) -> None:
    """However much is exchanged, or with torch's sampler, each rank has full batches, and each row comes once."""
    num_rows = 4 * NUM_RANKS * BATCH_SIZE
    if fraction is None:
        batches = list(global_batches(num_rows, seed=1, epoch=2))
    else:
        ranks = Ranks(tuple(range(NUM_RANKS)), BATCH_SIZE, drop_last=True)
        homes = Homes(ranges_of([num_rows // NUM_RANKS] * NUM_RANKS))
        batches = list(batches_of(Division(homes, fraction, 1, 2, ranks), seed=1))
        at_home = [batch // (num_rows // NUM_RANKS) == np.arange(NUM_RANKS) for batch in batches]
        assert mean(map(np.mean, at_home)) == pytest.approx(1 - fraction * (1 - 1 / NUM_RANKS), abs=0.05)
    assert {batch.shape for batch in batches} == {(BATCH_SIZE, NUM_RANKS)}
    assert sorted(np.concatenate(batches).reshape(-1).tolist()) == list(range(num_rows))


def test_epochs_until_all_nodes_were_met_are_counted_as_computed() -> None:
    """With q = 1 that is the collector of coupons; with less, what the divisions themselves come to."""
    assert expected_epochs(1.0, 4) == pytest.approx(4 * (1 + 1 / 2 + 1 / 3 + 1 / 4))
    counted = count_epochs(0.5, 4, samples_per_node=200, num_epochs=3)
    assert counted["epochs"] == pytest.approx(expected_epochs(0.5, 4), rel=0.1)
    assert counted["borrowed_share"] == pytest.approx(0.5 * 3 / 4, rel=0.05)
    assert counted["met_share"] == pytest.approx(1 - (1 - 0.5 / 4) ** 3, rel=0.1)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """Whoever only tries it has all tables, and the committed results stay."""
    before = RESULTS.read_bytes()
    command = [sys.executable, "-W", "error", "-m", "benchmarks.scale.shuffling", "--quick", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=150)
    quick = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert make_tables(quick).keys() == make_tables(json.loads(before)).keys()
    assert RESULTS.read_bytes() == before
