"""Run every peer in turn, repeat that, and write the medians down. `python -m benchmarks.serve --help`."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes.machine import describe_machine
from benchmarks.serve import __doc__ as summary
from benchmarks.serve.job import BATCH_SIZES, Media
from benchmarks.serve.peers import MEASURE, PEERS
from benchmarks.serve.report import METHOD, as_markdown, make_rows
from benchmarks.serve.runner import Contestant, Measurement, Runner
from benchmarks.serve.samples import make_samples

_ROOT = Path(__file__).parents[2]
_RESULTS = Path(__file__).parents[1] / "results" / "serve"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run measures."""

    peers: list[str]
    num_samples: dict[Media, int]
    workers: list[int]
    repeats: int
    shares: bool
    warm_seconds: float


def main() -> None:
    options = parse_options()
    plan = make_plan(options)
    start = time.perf_counter()
    runner = Runner(options.build, _ROOT, plan.warm_seconds)
    contestants = prepare(plan, options.build, runner)
    measurements = measure(plan, contestants, runner, start)
    rows = make_rows(measurements)
    table = as_markdown(rows)
    print(f"\n{table}")
    whole = set(plan.peers) == set(PEERS) and len(plan.num_samples) == 2 and not options.quick
    output = options.output or (_RESULTS if whole else options.build / "serve" / "results")
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": describe_machine(),
        "method": METHOD,
        "seconds": round(time.perf_counter() - start),
        "num_samples": plan.num_samples,
        "batch_sizes": BATCH_SIZES,
        "repeats": plan.repeats,
        "versions": runner.versions,
        "rows": rows,
    }
    (output / "results.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    lines = "\n".join(f"- {name}: {value}" for name, value in record["machine"].items())  # type: ignore[attr-defined]
    (output / "results.md").write_text(f"{table}\n{lines}\n")
    print(f"results: {output}/results.json, results.md; {record['seconds']} s")


def make_plan(options: argparse.Namespace) -> Plan:
    """Make of the options what is to be measured; the measure of all is always with it."""
    peers = options.peers.split(",") if options.peers else list(PEERS)
    if unknown := [peer for peer in peers if peer not in PEERS]:
        raise SystemExit(f"no such peers: {unknown}; there are {', '.join(PEERS)}")
    if MEASURE not in peers:
        peers.insert(0, MEASURE)
    media: list[Media] = [options.media] if options.media else ["image", "audio"]
    num_samples: dict[Media, int] = {"image": options.num_images, "audio": options.num_clips}
    if options.quick:
        num_samples = {"image": 600, "audio": 100}
    return Plan(
        peers=peers,
        num_samples={one: num_samples[one] for one in media},
        workers=[int(number) for number in options.workers.split(",")],
        repeats=1 if options.quick else options.repeats,
        shares=not options.quick,
        warm_seconds=0.2 if options.quick else 1.0,
    )


def prepare(plan: Plan, build: Path, runner: Runner) -> list[Contestant]:
    """Make the samples, the virtual environments, and every peer's files."""
    contestants = []
    for media, num_samples in plan.num_samples.items():
        data = make_samples(media, num_samples, build / "serve" / "samples")
        for key in plan.peers:
            peer = PEERS[key]
            if media in peer.media:
                share = peer.share if plan.shares else 1.0
                contestant = Contestant(key, media, data, round(num_samples * share))
                runner.prepare(contestant)
                contestants.append(contestant)
    return contestants


def measure(plan: Plan, contestants: list[Contestant], runner: Runner, start: float) -> list[Measurement]:
    """Time every peer, all of them in turn, again and again."""
    measurements = []
    for media in plan.num_samples:
        for num_workers in plan.workers:
            entered = [contestant for contestant in contestants if contestant.media == media]
            measurements += [runner.enter(contestant, num_workers) for contestant in entered]
    print(f"[{time.perf_counter() - start:.0f} s] everything is prepared", flush=True)
    for repeat in range(plan.repeats):
        for media in plan.num_samples:
            for num_workers in plan.workers:
                turn = [one for one in measurements if one.contestant.media == media and one.num_workers == num_workers]
                # The machine's moods come and go in minutes: who was first is last the next time.
                for measurement in turn[:: -1 if repeat % 2 else 1]:
                    runner.time(measurement)
                print(
                    f"[{time.perf_counter() - start:.0f} s] repeat {repeat + 1} of {plan.repeats}: {media}, "
                    f"{num_workers} workers",
                    flush=True,
                )
    return measurements


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help=f"some of: {','.join(PEERS)}")
    parser.add_argument("--media", choices=["image", "audio"])
    parser.add_argument("--workers", default="0,1,2", help="numbers of loader workers (default: 0,1,2)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=10_000)
    parser.add_argument("--num-clips", type=int, default=2_000)
    parser.add_argument("--quick", action="store_true", help="few samples, one repeat: does everything run?")
    parser.add_argument("--build", type=Path, default=_ROOT / "build", help="where environments and samples are kept")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/serve for a whole run, else build/serve/results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
