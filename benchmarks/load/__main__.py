"""Measure all parts, or some, and write the figures down. `python -m benchmarks.load --help`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.load import __doc__ as summary
from benchmarks.load.beside import measure_beside
from benchmarks.load.contestants import CONTESTANTS, QUICK
from benchmarks.load.cores import measure_interpreter, measure_processes
from benchmarks.load.figures import Figures
from benchmarks.load.footprint import measure_large, measure_memory
from benchmarks.load.plan import Plan
from benchmarks.load.rates import measure_far, measure_local, measure_web
from benchmarks.load.waiting import measure_training
from benchmarks.processes.machine import describe_machine
from in_memory_datasets.build.request import num_cores

_ROOT = Path(__file__).parents[2]
_RESULTS = Path(__file__).parents[1] / "results" / "load"
_PACKAGES = ("torch", "numpy", "aiohttp", "simplejpeg", "pillow", "soundfile", "soxr")

PARTS: dict[str, Callable[[Plan], Figures]] = {
    "local": measure_local,
    "web": measure_web,
    "far": measure_far,
    "beside": measure_beside,
    "interpreter": measure_interpreter,
    "processes": measure_processes,
    "memory": measure_memory,
    "large": measure_large,
    "training": measure_training,
}


def main() -> None:
    options, plan = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and so ends what runs under it
    whole = not options.quick and set(plan.contestants) == set(CONTESTANTS)
    output = options.output or (_RESULTS if whole else options.build / "load" / "results")
    output.mkdir(parents=True, exist_ok=True)
    # Some parts alone replace those parts of an earlier run, each with its own date.
    results = output / "results.json"
    record = json.loads(results.read_text("utf-8")) if results.exists() else {}
    for name in options.parts:
        print(f"{name} …", flush=True)
        started = time.perf_counter()
        figures = PARTS[name](replace(plan, versions={}))
        machine = describe_machine() | {package: version(package) for package in _PACKAGES}
        record[name] = {"machine": machine, "seconds": round(time.perf_counter() - started), "figures": figures}
        print(f"  {record[name]['seconds']:,} s", flush=True)
        results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    write_text_and_chart(record, output)
    print(f"results: {output}/results.json, results.md, results.png")


def write_text_and_chart(record: dict[str, Any], output: Path) -> None:
    """Write what the page of benchmarks says of these results, and the chart of those side by side."""
    from benchmarks.report.charts import draw
    from benchmarks.report.load import loading

    section = loading(record)
    lines = [line for line in section.lines if not line.startswith("![")]
    for name, part in record.items():
        machine = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
        lines.append(f"- {name}: {part['seconds']:,} s; {machine}")
    (output / "results.md").write_text("\n".join(["# Loading", "", *lines]) + "\n", "utf-8")
    for chart in section.charts[:1]:
        (output / "results.png").write_bytes(draw(chart, form="png"))


def parse_options() -> tuple[argparse.Namespace, Plan]:
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="", help=f"some of {','.join(PARTS)}, instead of all")
    parser.add_argument("--contestants", default="", help=f"side by side, some of {','.join(CONTESTANTS)}")
    parser.add_argument("--num-photos", type=int, default=3_000)
    parser.add_argument("--num-small", type=int, default=5_000, help="pictures that cost nothing to decode")
    parser.add_argument("--num-clips", type=int, default=600)
    parser.add_argument("--num-rows", type=int, default=1_000_000, help="of the large dataset")
    parser.add_argument("--num-threads", type=int, default=num_cores(), help="default: one per core")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-repeats", type=int, default=3, help="of parts that take long")
    parser.add_argument(
        "--num-processes", type=int, default=max(2, num_cores()), help="for the part `processes`; default: one per core"
    )
    parser.add_argument("--quick", action="store_true", help="few samples, one repeat, few contestants: does it run?")
    parser.add_argument("--build", type=Path, default=_ROOT / "build", help="where inputs and environments are kept")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/load for a whole run, else build/load/results"
    )
    options = parser.parse_args()
    options.parts = options.parts.split(",") if options.parts else list(PARTS)
    contestants = options.contestants.split(",") if options.contestants else list(CONTESTANTS)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no such parts: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if unknown := [key for key in contestants if key not in CONTESTANTS]:
        parser.error(f"no such contestants: {', '.join(unknown)}; there are {', '.join(CONTESTANTS)}")
    if options.num_processes < 2:
        parser.error(f"--num-processes {options.num_processes}: expected at least 2")
    plan = Plan(
        build=options.build,
        num_photos=options.num_photos,
        num_small=options.num_small,
        num_clips=options.num_clips,
        num_rows=options.num_rows,
        num_threads=options.num_threads,
        repeats=options.repeats,
        slow_repeats=options.slow_repeats,
        contestants=contestants,
        num_processes=options.num_processes,
    )
    if options.quick:
        few = replace(plan, num_photos=32, num_small=64, num_clips=16, num_rows=2_000, repeats=1, slow_repeats=1)
        plan = replace(few, contestants=contestants if options.contestants else QUICK)
    smallest = min(plan.num_photos, plan.num_small, plan.num_clips, plan.num_rows)
    if min(plan.repeats, plan.slow_repeats, plan.num_threads) < 1 or smallest < 16:
        parser.error("at least one repeat, one thread and 16 samples of each kind")
    return options, plan


if __name__ == "__main__":
    main()
