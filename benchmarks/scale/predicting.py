"""The model, fed with what was measured, held to it, and asked about clusters of a hundred and a thousand nodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from benchmarks.load.figures import Figures, spread
from benchmarks.scale import model
from benchmarks.scale.model import Rates, Setup
from benchmarks.scale.plan import Plan
from in_memory_datasets.build.request import num_cores
from in_memory_datasets.scale.view import NodeView

_SIZES = (100, 1_000)
_STORED_BYTES = {"decoded": model.DECODED_BYTES, "encoded": model.FETCHED_BYTES}
# Fewer than the model's: what is left takes memory for all their numbers.
_NUM_LEFT, _LEFT_NODES = 4_000_000, 16


def measure_model(plan: Plan, record: Mapping[str, Any]) -> Figures:
    """Measure what one process takes to find out what it serves, and compute the rest."""
    found = {name: record[name]["figures"] for name in ("load", "exchange", "driver", "recovery") if name in record}
    if len(found) < 4:
        raise RuntimeError("the model is made of the parts load, exchange, driver and recovery: measure these first")
    views = {size: _time_view(Setup(size, plan.num_modelled, 1), plan.slow_repeats) for size in _SIZES}
    left = _time_left(min(_NUM_LEFT, plan.num_modelled), plan.slow_repeats)
    share = plan.num_modelled / _SIZES[0]
    alone = next(row for row in found["load"]["rows"] if (row["source"], row["num_nodes"]) == ("bytes", None))
    in_load = [row for row in found["load"]["rows"] if row["source"] == "bytes" and row["num_nodes"]][-1]
    stored = [row for row in found["driver"]["rows"] if row["source"] == "file"][-1]
    pair = found["exchange"]["rows"][0]
    rates = Rates(
        decoded_per_s=alone["per_s"]["median"] / num_cores(),
        rows_per_s=stored["per_s"]["median"],
        start_seconds=in_load["actors_seconds"]["median"],
        first_seconds=found["load"]["first_seconds"]["median"],
        exchange_bytes_per_s=1e6 * pair["mb_per_s"]["median"] / pair["num_nodes"],
        request_seconds=pair["request_ms"]["median"] / 1e3,
        view_seconds=views[_SIZES[0]]["median"] / share,
        left_seconds=left["median"],
        notice_seconds=next(
            row["noticed_seconds"]["median"] for row in found["recovery"]["rows"] if row["what"] == "node"
        ),
    )
    return {
        "num_samples": plan.num_modelled,
        "rates": asdict(rates),
        "views": [{"num_nodes": size, "seconds": seconds} for size, seconds in views.items()],
        "left_us": spread(1e6 * each for each in left.values()),
        "checks": [
            {"what": what, "predicted": predicted, "measured": measured}
            for what, predicted, measured in _checks(plan, found, rates, views)
        ],
        "cases": [
            _project(Setup(size, plan.num_modelled, num_bytes), rates, form)
            for size in _SIZES
            for form, num_bytes in _STORED_BYTES.items()
        ],
    }


def _time_view(setup: Setup, repeats: int) -> dict[str, float]:
    """Time what every process does when it turns to an epoch."""
    division = model.division_of(setup)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        NodeView("job", setup.num_nodes // 2, (), division).parts()
        times.append(time.perf_counter() - started)
    return spread(times)


def _time_left(num_samples: int, repeats: int) -> dict[str, float]:
    """Time, for each sample, what every process does when other nodes resume."""
    before = model.division_of(Setup(_LEFT_NODES, num_samples, model.DECODED_BYTES))
    times = []
    for repeat in range(repeats):
        # Each has had other batches, since what is left is remembered.
        past = model.past_of(before, 1 + repeat)
        now = model.division_of(Setup(_LEFT_NODES + 1, num_samples, model.DECODED_BYTES))
        started = time.perf_counter()
        num_left = replace(now, past=(past,)).num_samples
        times.append((time.perf_counter() - started) / num_left)
    return spread(times)


def _checks(
    plan: Plan,
    found: Mapping[str, Any],
    rates: Rates,
    views: Mapping[int, dict[str, float]],
) -> Iterator[tuple[str, float, float]]:
    """Give what the formulas say of this machine, and what it did: what it is, predicted, measured."""
    for row in found["load"]["rows"]:
        if row["num_nodes"]:  # which share the cores
            setup = Setup(
                row["num_nodes"],
                found["load"]["num_pictures"],
                model.DECODED_BYTES,
                cores=num_cores() / row["num_nodes"],
            )
            seconds = row["load_seconds"]["median"]
            what = f"load of {row['source']}, nodes: {row['num_nodes']}, s"
            yield what, rates.first_seconds + model.decoding_seconds(setup, rates), seconds
    for row in found["exchange"]["rows"]:
        size = row["num_nodes"]
        setup = Setup(size, size * found["exchange"]["num_samples"], model.DECODED_BYTES, fraction=1.0)
        yield f"borrowed, nodes: {size}, MB", model.borrowed_bytes(setup) / 1e6, row["borrowed_mb"]
        memory = model.memory_of_node(setup)
        yield f"at home on a node, nodes: {size}, MB", memory["home"] / 1e6, row["home_mb_of_node"]
        yield f"borrowed by a node, nodes: {size}, MB", memory["borrowed"] / 2e6, row["borrowed_mb_of_node"]
        bare = 1e6 * row["bare_mb_per_s"]["median"] / size
        yield (
            f"exchange at the speed of bare copies, nodes: {size}, s",
            model.exchange_seconds(setup, bare),
            row["seconds"]["median"],
        )
    stored = [row for row in found["driver"]["rows"] if row["source"] == "file"]
    for fewer, more in itertools.pairwise(stored):
        count, seconds = more["num_rows"], more["num_rows"] / more["per_s"]["median"]
        yield f"hand-over of {count:,} rows, s", count / fewer["per_s"]["median"], seconds
    size = _SIZES[-1]
    predicted = plan.num_modelled / size * rates.view_seconds
    yield f"what a node of {size} serves, s", predicted, views[size]["median"]
    recovery = found["recovery"]
    lost = next(row for row in recovery["rows"] if row["what"] == "node")
    predicted = recovery["num_samples"] / recovery["loaded_per_s"]["median"]
    yield "loading what a lost node held, s", predicted, lost["restored_seconds"]["median"]


def _project(setup: Setup, rates: Rates, form: str) -> Figures:
    steps = model.load_seconds(setup, rates, decodes=form == "decoded")
    memory = model.memory_of_node(setup)
    epoch = model.epoch_seconds(setup)
    exchange = model.exchange_seconds(setup, rates.exchange_bytes_per_s, rates.request_seconds)
    resume = model.resume_on_others(setup, rates)
    of_node = model.borrowed_bytes(setup) / setup.num_nodes
    return {
        "num_nodes": setup.num_nodes,
        "form": form,
        "load_seconds": steps,
        "epoch_seconds": epoch,
        "borrowed_tb": model.borrowed_bytes(setup) / 1e12,
        "borrowed_mb_per_s_of_node": of_node / epoch / 1e6,
        "network_percent": 100 * of_node / epoch / model.NETWORK_BYTES_PER_S,
        "exchange_seconds": exchange,
        "exchange_seconds_at_network": model.exchange_seconds(setup, model.NETWORK_BYTES_PER_S, rates.request_seconds),
        "memory_gb_of_node": {name: size / 1e9 for name, size in memory.items()},
        "calls": model.calls_of_epoch(setup),
        "coordinator_mb": model.coordinator_bytes(setup) / 1e6,
        "division_kb": model.division_bytes(setup) / 1e3,
        "state_kb": model.state_bytes(setup) / 1e3,
        "view_seconds": model.view_seconds(setup, rates),
        "resume_seconds": resume["seconds"],
        "resume_gb": resume["bytes"] / 1e9,
        "recovery_seconds": model.recovery_seconds(setup, rates),
    }
