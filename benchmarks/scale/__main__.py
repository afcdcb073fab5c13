"""Measure all parts, or some, and write the figures down. `python -m benchmarks.scale --help`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.processes.machine import describe_machine
from benchmarks.scale import __doc__ as summary
from benchmarks.scale.plan import Plan, quick

_ROOT = Path(__file__).parents[2]
_RESULTS = Path(__file__).parents[1] / "results" / "scale"
_PACKAGES = ("torch", "numpy", "ray", "simplejpeg", "datasets")

# The last one is made of the others.
PARTS = {
    "load": ("load", "measure_load"),
    "epoch": ("epoch", "measure_epoch"),
    "exchange": ("exchange", "measure_exchange"),
    "driver": ("driver", "measure_driver"),
    "recovery": ("recovery", "measure_recovery"),
    "model": ("predicting", "measure_model"),
}


def main() -> None:
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and so ends what runs under it
    plan = quick(options.build) if options.quick else Plan(options.build)
    output = options.output or (options.build / "scale" / "results" if options.quick else _RESULTS)
    output.mkdir(parents=True, exist_ok=True)
    # Some parts alone replace those parts of an earlier run, each with its own date.
    results = output / "results.json"
    record = json.loads(results.read_text("utf-8")) if results.exists() else {}
    for name in options.parts:
        print(f"{name} …", flush=True)
        module, function = PARTS[name]
        measure = getattr(importlib.import_module(f"benchmarks.scale.{module}"), function)
        # Nodes that another part has just given up are still ending.
        load = os.getloadavg()[0]
        started = time.perf_counter()
        figures = measure(plan, record) if name == "model" else measure(plan)
        machine = describe_machine() | {package: version(package) for package in _PACKAGES}
        seconds = round(time.perf_counter() - started)
        record[name] = {"machine": machine, "seconds": seconds, "figures": figures | {"load_before": load}}
        print(f"  {seconds:,} s", flush=True)
        results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"results: {results}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="", help=f"some of {','.join(PARTS)}, instead of all")
    parser.add_argument("--quick", action="store_true", help="few samples, one repeat: does it run?")
    parser.add_argument("--build", type=Path, default=_ROOT / "build", help="where inputs are kept")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/scale, with --quick build/scale/results"
    )
    options = parser.parse_args()
    options.parts = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no such parts: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
