"""Five epochs over 10,000 images of 224×224 from a server that takes 60 ms for each: on the fly against in memory.

    python -m benchmarks.bench_quick        # about three minutes

Only the time for data is measured: batches are taken and dropped. On the fly, one epoch over the first 1,000 rows is
measured and scaled to all rows and epochs, since the whole would take an hour; in memory, everything is measured as it
is: the load of all rows, and every epoch. Results go to benchmarks/results/quick/ as JSON, Markdown and a chart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from data import ImageTextDataset, collate_images
from demo.server import serve_demo
from in_memory_datasets import FetchOptions, InMemoryImageTextDataset, collate_in_memory_images

NUM_EPOCHS = 5
BATCH_SIZE = 32
LATENCY_SECONDS = 0.06
LOOPBACK = FetchOptions(allow_private_addresses=True)  # the server is on this machine
TARGETS = {0: 20.0, 4: 5.0}  # DataLoader workers of the on-the-fly way: how many times faster memory has to be


@dataclass(frozen=True, slots=True)
class OnTheFly:
    """What one epoch over `num_measured` rows took, and what five over `num_rows` would."""

    num_workers: int
    num_measured: int
    measured_seconds: float
    scaled_seconds: float
    ratio: float
    target: float

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.ratio >= self.target


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured; times in seconds."""

    num_rows: int
    num_epochs: int
    latency_seconds: float
    num_failed: int
    load_seconds: float
    epoch_seconds: list[float]
    nbytes: int
    on_the_fly: list[OnTheFly]

    @property
    def in_memory_seconds(self) -> float:
        """The load and the epochs together."""
        return self.load_seconds + sum(self.epoch_seconds)


def main() -> None:
    options = parse_options()
    # torch advises as many workers as there are processors; these ones wait for a server instead.
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    figures = measure(options.num_rows, min(options.num_measured, options.num_rows))
    table = as_markdown(figures)
    print(f"\n{table}")
    options.output.mkdir(parents=True, exist_ok=True)
    record = {"machine": describe_machine(), "figures": asdict(figures)}
    (options.output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.output / "results.md").write_text(f"{table}\n{as_lines(record['machine'])}\n")
    draw_chart(figures, options.output / "results.png")
    print(f"results: {options.output}/results.json, results.md, results.png")


def measure(num_rows: int, num_measured: int) -> Figures:
    """Measure both ways against one server."""
    with serve_demo(latency_seconds=LATENCY_SECONDS) as server:
        rows = server.image_rows(num_rows)
        print("letting the server draw its pictures; nothing is measured yet")
        InMemoryImageTextDataset(rows[:2000], fetch=LOOPBACK, progress=False).close()

        on_the_fly_seconds = {}
        for num_workers in TARGETS:
            print(f"on the fly, {num_workers} workers, one epoch over {num_measured:,} rows …", flush=True)
            on_the_fly_seconds[num_workers] = time_on_the_fly(rows[:num_measured], num_workers)

        print(f"in memory, {num_rows:,} rows …", flush=True)
        start = time.perf_counter()
        dataset = InMemoryImageTextDataset(rows, fetch=LOOPBACK)
        load_seconds = time.perf_counter() - start
    print(dataset.report)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate_in_memory_images)
    epoch_seconds = [time_epoch(loader) for _ in range(NUM_EPOCHS)]

    in_memory_seconds = load_seconds + sum(epoch_seconds)
    on_the_fly = []
    for num_workers, seconds in on_the_fly_seconds.items():
        scaled = seconds * NUM_EPOCHS * num_rows / num_measured
        ratio = scaled / in_memory_seconds
        on_the_fly.append(OnTheFly(num_workers, num_measured, seconds, scaled, ratio, TARGETS[num_workers]))
    return Figures(
        num_rows=num_rows,
        num_epochs=NUM_EPOCHS,
        latency_seconds=LATENCY_SECONDS,
        num_failed=dataset.report.num_failed,
        load_seconds=load_seconds,
        epoch_seconds=epoch_seconds,
        nbytes=dataset.nbytes,
        on_the_fly=on_the_fly,
    )


def time_on_the_fly(rows: Sequence[dict[str, str]], num_workers: int) -> float:
    """Time one epoch that fetches and decodes."""
    dataset = ImageTextDataset(rows, fetch=LOOPBACK)
    return time_epoch(
        DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers, collate_fn=collate_images)
    )


def time_epoch(loader: DataLoader[Any]) -> float:
    """Take every batch once and drop it."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def as_markdown(figures: Figures) -> str:
    """Write the figures as a table, with notes on what was measured and what was scaled."""
    table = [
        f"| {figures.num_epochs} epochs of {figures.num_rows:,} images, data only | seconds | in memory is | target |",
        "|---|---:|---:|---|",
    ]
    notes = []
    for way in figures.on_the_fly:
        name = f"on the fly, {way.num_workers} workers"
        verdict = f"≥ {way.target:.0f} ×: {'met' if way.met else 'NOT MET'}"
        table.append(f"| {name}¹ | {way.scaled_seconds:,.1f} | {way.ratio:,.1f} × faster | {verdict} |")
        notes.append(
            f"¹ {name}: {way.measured_seconds:.1f} s measured for one epoch over {way.num_measured:,} rows, "
            f"times {way.scaled_seconds / way.measured_seconds:,.0f}.  "
        )
    table.append(f"| in memory, load and epochs² | {figures.in_memory_seconds:,.1f} | | |")
    epochs = ", ".join(f"{seconds:.2f}" for seconds in figures.epoch_seconds)
    notes += [
        f"² All measured: {figures.load_seconds:.1f} s to load, then epochs of {epochs} s; "
        f"{figures.nbytes / 1e9:.3f} GB held, {figures.num_failed} failed.  ",
        f"Every answer of the server takes {figures.latency_seconds * 1000:.0f} ms, give or take a tenth.",
    ]
    return "\n".join([*table, "", *notes, ""])


def as_lines(machine: dict[str, str]) -> str:
    """Write one machine as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in machine.items())


def describe_machine() -> dict[str, str]:
    """Name what the figures depend on."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "aiohttp", "simplejpeg", "pillow")},
    }


def draw_chart(figures: Figures, path: Path) -> None:
    """Draw the three totals as bars over a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [f"on the fly, {way.num_workers} workers" for way in figures.on_the_fly] + ["in memory, load included"]
    seconds = [way.scaled_seconds for way in figures.on_the_fly] + [figures.in_memory_seconds]
    figure, panel = plt.subplots(figsize=(8, 2.6))
    bars = panel.barh(names, seconds, color=["#c44e52"] * len(figures.on_the_fly) + ["#4c72b0"])
    panel.bar_label(bars, [f" {value:,.0f} s" for value in seconds])
    panel.set(
        xscale="log",
        xlim=(None, 2 * max(seconds)),
        xlabel=f"seconds for the data of {figures.num_epochs} epochs of {figures.num_rows:,} images",
    )
    panel.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rows", type=int, default=10_000, help="rows in memory (default: 10000)")
    parser.add_argument("--num-measured", type=int, default=1_000, help="rows of them on the fly (default: 1000)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quick")
    return parser.parse_args()


if __name__ == "__main__":
    main()
