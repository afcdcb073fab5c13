"""Run every contestant in turn, repeat that, and write the medians down. `python -m benchmarks.reload --help`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.processes.machine import describe_machine
from benchmarks.reload import __doc__ as summary
from benchmarks.reload.contestants import CONTESTANTS, QUICK
from benchmarks.reload.figures import METHOD, Row, as_text, make_rows
from benchmarks.reload.page_cache import can_drop
from benchmarks.reload.pictures import BATCH_SIZE, PICTURE_BYTES
from benchmarks.reload.runner import PHASES, Entry, Phase, Runner

_ROOT = Path(__file__).parents[2]
_RESULTS = Path(__file__).parents[1] / "results" / "reload"
_SIZES = (1_000, 10_000, 100_000)
# Beyond this the files of all contestants do not lie on an ordinary disk at once, nor any two of them in its memory.
_MOST_AT_ONCE_BYTES = 5 * 10**9


def main() -> None:
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and so ends what runs under it
    started = time.perf_counter()
    phases = [phase for phase in PHASES if phase != "restarted" or (options.restarted and can_drop())]
    runner = Runner(options.build, _ROOT)
    whole = set(options.contestants) == set(CONTESTANTS) and options.num_samples == list(_SIZES)
    output = options.output or (_RESULTS if whole else options.build / "reload" / "results")
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    # The largest first: its files are gone again before those of the others are made, which stay.
    for num_samples in sorted(options.num_samples, reverse=True):
        found = measure_size(runner, options.contestants, num_samples, phases, options.repeats)
        print(f"[{time.perf_counter() - started:.0f} s]\n{as_text(found)}", flush=True)
        rows = found + rows
        write(output / "results.json", rows, runner, options.repeats, started)
    print(f"results: {output}/results.json")


def measure_size(
    runner: Runner, contestants: list[str], num_samples: int, phases: list[Phase], repeats: int
) -> list[Row]:
    """Measure all contestants with so many samples, by turns where the files of all fit."""
    entries = [runner.enter(key, num_samples) for key in contestants]
    in_turn = num_samples * PICTURE_BYTES <= _MOST_AT_ONCE_BYTES
    for group in [entries] if in_turn else [[entry] for entry in entries]:
        for entry in group:
            runner.prepare(entry)
        measure(runner, group, phases, repeats)
        if not in_turn:
            for entry in group:
                runner.remove(entry)
    return make_rows(entries, phases=phases, in_turn=in_turn)


def measure(runner: Runner, entries: list[Entry], phases: list[Phase], repeats: int) -> None:
    """Time every entry again and again, phase by phase; the last one makes the imports of the next process slow."""
    for phase in phases:
        for repeat in range(repeats):
            first = repeat % len(entries)
            for entry in entries[first:] + entries[:first]:
                runner.measure(entry, phase, seed=repeat)


def write(path: Path, rows: list[Row], runner: Runner, repeats: int, started: float) -> None:
    """Write what there is so far."""
    record: dict[str, Any] = {
        "machine": describe_machine(),
        "method": METHOD,
        "seconds": round(time.perf_counter() - started),
        "batch_size": BATCH_SIZE,
        "repeats": repeats,
        "versions": runner.versions,
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", help=f"some of: {','.join(CONTESTANTS)}")
    parser.add_argument("--num-samples", help=f"sizes of the dataset (default: {','.join(map(str, _SIZES))})")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"200 samples, one repeat, of {','.join(QUICK)}")
    parser.add_argument(
        "--restarted",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure with the caches of the whole machine emptied too, where this process may (default: it does)",
    )
    parser.add_argument("--build", type=Path, default=_ROOT / "build", help="where environments and files are kept")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/reload for a whole run, else build/reload/results"
    )
    options = parser.parse_args()
    options.contestants = options.contestants.split(",") if options.contestants else list(CONTESTANTS)
    options.num_samples = (
        [int(number) for number in options.num_samples.split(",")] if options.num_samples else [*_SIZES]
    )
    if options.quick:
        options.contestants, options.num_samples, options.repeats = list(QUICK), [200], 1
    if unknown := [key for key in options.contestants if key not in CONTESTANTS]:
        parser.error(f"no such contestants: {', '.join(unknown)}; there are {', '.join(CONTESTANTS)}")
    if options.repeats < 1 or min(options.num_samples) < BATCH_SIZE:
        parser.error(f"at least one repeat, and {BATCH_SIZE} samples")
    return options


if __name__ == "__main__":
    main()
