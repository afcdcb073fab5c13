"""Load captioned pictures and sounds into memory once, and see what every later epoch costs.

    python quickstart_in_memory.py                                # a demonstration set; needs no network
    python quickstart_in_memory.py --dataset allenai/pixmo-cap    # the same on a dataset of the Hub
    python quickstart_in_memory.py --dataset me/birds --image-column photo --caption-column text

The demonstration set comes from a real HTTP server on this machine that takes 60 ms for each file, as far servers do.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from data import AudioTextDataset, ImageTextDataset, collate_audio, collate_images
from demo.server import serve_demo
from in_memory_datasets import (
    FetchOptions,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
    presets,
)
from in_memory_datasets.rows import find_preset, open_preset

NUM_EPOCHS = 5
BATCH_SIZE = 32
NUM_WORKERS = 4  # of the DataLoader that fetches on the fly; the one that reads memory needs none

# By default no address of this machine or its network is fetched from: the URLs of a dataset are a stranger's words.
# The demonstration server is on this machine, and is ours.
LOOPBACK = FetchOptions(allow_private_addresses=True)


@dataclass(frozen=True, slots=True)
class Material:
    """Rows to load: images or audio, with the columns that matter."""

    kind: str  # "images" or "audio"
    rows: Any
    media_col: Any
    caption_col: Any
    fetch: FetchOptions


@dataclass(frozen=True, slots=True)
class Comparison:
    """What five epochs took, in seconds."""

    kind: str
    on_the_fly: list[float]
    load: float
    in_memory: list[float]

    @property
    def ratio(self) -> float:
        """How often the in-memory way, its load included, fits into the on-the-fly way."""
        return sum(self.on_the_fly) / (self.load + sum(self.in_memory))


def main() -> None:
    options = parse_options()
    # torch advises as many workers as there are processors; these ones wait for a network instead.
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    with contextlib.ExitStack() as stack:
        materials = [from_hub(options)] if options.dataset else stack.enter_context(from_demo(options.max_samples))
        comparisons = [compare(material, options.max_samples) for material in materials]
    for comparison in comparisons:
        print_table(comparison)
    chart = options.output / "quickstart.png"
    draw_chart(comparisons, chart)
    print(f"\nchart: {chart}")


def compare(material: Material, max_samples: int) -> Comparison:
    """Go through the same rows five times on the fly, and five times in memory."""
    print(f"\n── {material.kind} " + "─" * (70 - len(material.kind)))
    images = material.kind == "images"
    columns = (material.rows, material.media_col, material.caption_col, max_samples)

    in_memory_class = InMemoryImageTextDataset if images else InMemoryAudioTextDataset
    print(f"\nWhat it would take:\n{in_memory_class.plan(*columns)}")

    on_the_fly_class = ImageTextDataset if images else AudioTextDataset
    print(f"\nOn the fly, with {NUM_WORKERS} worker processes …")
    loader = DataLoader(
        on_the_fly_class(*columns, fetch=material.fetch),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=NUM_WORKERS,
        collate_fn=collate_images if images else collate_audio,
    )
    on_the_fly = [time_epoch(loader) for _ in range(NUM_EPOCHS)]

    print("\nIn memory, loaded once …")
    start = time.perf_counter()
    dataset = in_memory_class(*columns, fetch=material.fetch)
    load = time.perf_counter() - start
    print(dataset.report)

    loader = DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        shuffle=True,
        collate_fn=collate_in_memory_images if images else collate_in_memory_audio,
    )
    print("\nA batch:")
    for name, value in next(iter(loader)).items():
        shown = f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "shape") else f"{len(value)} × {value[0]!r}, …"
        print(f"  {name:<10}{shown}")
    return Comparison(material.kind, on_the_fly, load, [time_epoch(loader) for _ in range(NUM_EPOCHS)])


def time_epoch(loader: DataLoader[Any]) -> float:
    """Take every batch once and do nothing with it: what is left is the time that data costs."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


@contextlib.contextmanager
def from_demo(max_samples: int) -> Iterator[list[Material]]:
    """Serve pictures and a third as many sounds; one file in a hundred is missing, as it is in any dataset of URLs."""
    num_sounds = max(1, max_samples // 3)
    print(f"{max_samples} pictures and {num_sounds} sounds, 60 ms each, 1 % of them lost: a lost file stops nothing")
    with serve_demo(latency_seconds=0.06, missing=0.01) as server:
        yield [
            Material("images", server.image_rows(max_samples), "image_url", "caption", LOOPBACK),
            Material("audio", server.sound_rows(num_sounds), "audio", "caption", LOOPBACK),
        ]


def from_hub(options: argparse.Namespace) -> Material:
    """Open a preset, or any dataset of the Hub, or a directory that `datasets.load_dataset` reads."""
    import datasets

    media_col, caption_col = options.audio_column or options.image_column, options.caption_column
    images = options.audio_column is None
    if options.dataset in presets.names():
        preset = find_preset(options.dataset)
        images = preset.modality == "image"
        rows, media_col, caption_col = open_preset(
            preset, split=options.split, max_samples=options.max_samples, audio_dir=options.audio_dir
        )
    else:
        rows = datasets.load_dataset(options.dataset, split=options.split or "train")
    if isinstance(rows, datasets.IterableDataset):
        # On the fly, rows are asked for in any order; a stream has only one. Media stay encoded, as in the stream.
        if isinstance(media_col, str) and media_col in (rows.features or {}):
            rows = rows.cast_column(media_col, (datasets.Image if images else datasets.Audio)(decode=False))
        rows = list(itertools.islice(rows, options.max_samples))
    return Material("images" if images else "audio", rows, media_col, caption_col, FetchOptions())


def print_table(comparison: Comparison) -> None:
    print(f"\n{comparison.kind + ', seconds':<20}{'on the fly':>12}{'in memory':>12}")
    print(f"{'load':<20}{'–':>12}{comparison.load:>12.3f}")
    for epoch, (slow, fast) in enumerate(zip(comparison.on_the_fly, comparison.in_memory, strict=True), start=1):
        print(f"{f'epoch {epoch}':<20}{slow:>12.3f}{fast:>12.3f}")
    total = comparison.load + sum(comparison.in_memory)
    print(f"{'all together':<20}{sum(comparison.on_the_fly):>12.3f}{total:>12.3f}   {comparison.ratio:.0f} × faster")


def draw_chart(comparisons: list[Comparison], path: Path) -> None:
    """Draw how the seconds add up, one panel for each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(comparisons), figsize=(5.5 * len(comparisons), 4), squeeze=False)
    for panel, comparison in zip(panels[0], comparisons, strict=True):
        slow = list(itertools.accumulate(comparison.on_the_fly, initial=0.0))
        fast = list(itertools.accumulate(comparison.in_memory, initial=comparison.load))
        for seconds, label, colour in ((slow, "on the fly", "#c44e52"), (fast, "in memory", "#4c72b0")):
            panel.plot(range(NUM_EPOCHS + 1), seconds, marker="o", label=label, color=colour)
        panel.set(
            title=f"{comparison.kind}: {comparison.ratio:.0f} × faster over {NUM_EPOCHS} epochs",
            xlabel="epochs done",
            ylabel="seconds spent on data, load included",
            ylim=(0, None),
        )
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help=f"an id on the Hub, or a preset: {', '.join(presets.names())}")
    parser.add_argument("--split", help="its split; a preset knows its usual one, else train")
    parser.add_argument("--image-column", default="image_url", help="where the images are (default: %(default)s)")
    parser.add_argument("--audio-column", help="where the sounds are; taken instead of images")
    parser.add_argument("--caption-column", default="caption", help="(default: %(default)s)")
    parser.add_argument("--audio-dir", type=Path, help="for google/MusicCaps: the directory of clips you have fetched")
    parser.add_argument("--max-samples", type=int, default=240, help="rows to take (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="where the chart goes")
    options = parser.parse_args()
    if options.max_samples < 1:
        parser.error(f"--max-samples {options.max_samples}: expected at least 1")
    return options


if __name__ == "__main__":
    main()
