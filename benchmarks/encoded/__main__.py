"""Measure all parts, or some, and write the figures down. `python -m benchmarks.encoded --help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_quick import describe_machine
from benchmarks.encoded import __doc__ as summary
from benchmarks.encoded.access import measure_access
from benchmarks.encoded.disk import measure_disk
from benchmarks.encoded.mixture import measure_mixture
from benchmarks.encoded.quality import measure_quality
from benchmarks.encoded.samples import CORPORA, Corpora
from benchmarks.encoded.sizes import measure_sizes

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured.

    Attributes:
        num_files: Files of each kind out of the corpora; None for all.
        num_accesses: Pictures of an epoch that decodes on access.
        num_mixed: Pictures of a mixture.
        num_on_disk: Pictures of the store of which a part is on the disk.
    """

    num_files: int | None
    batch_sizes: tuple[int, ...]
    num_accesses: int
    num_mixed: int
    num_on_disk: int


_ALL = Amount(None, (32, 256), 1024, 2048, 6000)
_QUICK = Amount(12, (8,), 16, 64, 200)


@dataclass(frozen=True, slots=True)
class Job:
    """What one run measures, and with what."""

    corpora: Corpora
    amount: Amount
    repeats: int
    work: Path


PARTS: dict[str, Callable[[Job], Any]] = {
    "access": lambda job: measure_access(
        job.corpora, batch_sizes=job.amount.batch_sizes, num_samples=job.amount.num_accesses, repeats=job.repeats
    ),
    "sizes": lambda job: measure_sizes(job.corpora),
    "quality": lambda job: measure_quality(job.corpora),
    "mixture": lambda job: measure_mixture(job.corpora, num_samples=job.amount.num_mixed, repeats=job.repeats),
    "disk": lambda job: measure_disk(
        job.corpora, num_samples=job.amount.num_on_disk, repeats=job.repeats, work=job.work
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--parts", default="", help=f"some of {','.join(PARTS)}, instead of all")
    parser.add_argument("--quick", action="store_true", help="few samples, one repeat: does everything run?")
    parser.add_argument("--corpora", type=Path, default=CORPORA, help=f"default: {CORPORA}")
    parser.add_argument("--work", type=Path, default=_ROOT / "build" / "encoded", help="a directory on a disk")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "encoded")
    options = parser.parse_args()
    wanted = set(filter(None, options.parts.split(",")))
    if unknown := wanted - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not options.corpora.is_dir():
        parser.error(f"the corpora of real files are not at {options.corpora}: give their place with --corpora")
    amount = _QUICK if options.quick else _ALL
    job = Job(Corpora(options.corpora, amount.num_files), amount, 1 if options.quick else options.repeats, options.work)
    results_file = options.output / "results.json"
    # Some parts alone replace those parts of an earlier run, each with its own date.
    record = json.loads(results_file.read_text()) if wanted and results_file.exists() else {}
    for name, measure in PARTS.items():
        if not wanted or name in wanted:
            print(f"{name} …", flush=True)
            record[name] = {"machine": describe_machine(), "figures": measure(job)}
    options.output.mkdir(parents=True, exist_ok=True)
    results_file.write_text(json.dumps(record, indent=1) + "\n")
    print(f"results: {results_file}")


if __name__ == "__main__":
    main()
