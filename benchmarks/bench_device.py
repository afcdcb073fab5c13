"""What batches cost on an accelerator: gathered there, or copied there while a step computes.

    python -m benchmarks.bench_device     # on a GPU with 20 GB
    python -m benchmarks.bench_device --device cpu --num-images 4 --num-steps 1 --repeats 1     # does it run?

Measured are, alternately and as medians: the gather on the device against a copy of as many bytes within the device; a
stock `DataLoader` behind a `DevicePrefetcher` against bare copies of pinned memory; an epoch; and by how much training
steps of a ResNet-50 take longer than the same steps on one batch that is there already.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench_gather import alternate, load_pictures, loader_of
from benchmarks.bench_quick import describe_machine
from in_memory_datasets import DevicePrefetcher, InMemoryImageTextDataset

Figures = dict[str, Any]
BATCH_SIZE = 256


def main() -> None:
    options = parse_options()
    device = torch.device(options.device)
    with load_pictures(options.num_images) as dataset:
        there = dataset.to(device)
        record = {
            "machine": {**describe_machine(), "device": name_of(device), "torch": torch.__version__},
            "num_images": options.num_images,
            "gather": measure_gather(there, device, options.repeats),
            "transfer": measure_transfer(dataset, device, options.repeats),
            "epoch": measure_epoch(dataset, there, device, options.repeats),
            "waiting": measure_waiting(dataset, there, device, options.num_steps, options.repeats),
        }
    print(json.dumps(record, indent=1))
    if options.output is not None or device.type != "cpu":
        output = options.output or Path(__file__).parent / "results" / "device"
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps(record, indent=1) + "\n")


def measure_gather(there: InMemoryImageTextDataset, device: torch.device, repeats: int) -> list[Figures]:
    """Gather rows in random order on the device; its bandwidth is what copying as many consecutive bytes reaches."""
    media = there._samples(there._store)
    num_samples = len(there)
    rows = []
    for batch_size in (32, 256, 1024):
        num_rows = min(batch_size, num_samples)
        num_rounds = max(1, min(100, num_samples // num_rows))
        orders = [torch.randperm(num_samples, device=device)[:num_rows] for _ in range(num_rounds)]
        source = media.images(orders[0])
        target = torch.empty_like(source)
        seconds = alternate(
            repeats,
            copy=lambda: timed(device, lambda: [target.copy_(source) for _ in orders]),  # noqa: B023 - called at once
            gather=lambda: timed(device, lambda: [media.images(order) for order in orders]),  # noqa: B023
        )
        num_bytes = 2 * source.nbytes * num_rounds  # read and written
        rows.append({"batch_size": batch_size, **compare(seconds, "copy", "gather", num_bytes)})
    return rows


def measure_transfer(dataset: InMemoryImageTextDataset, device: torch.device, repeats: int) -> Figures:
    """Bring all batches to the device; the bus is what copies of one pinned batch reach."""
    num_batches = len(loader_of(dataset, BATCH_SIZE))
    batch = next(iter(loader_of(dataset, BATCH_SIZE)))["images"].contiguous(memory_format=torch.channels_last)
    pinned = batch.pin_memory() if device.type == "cuda" else batch
    target = torch.empty_like(pinned, device=device)
    seconds = alternate(
        repeats,
        bus=lambda: timed(device, lambda: [target.copy_(pinned, non_blocking=True) for _ in range(num_batches)]),
        prefetcher=lambda: timed(device, lambda: exhaust(DevicePrefetcher(loader_of(dataset, BATCH_SIZE), device))),
    )
    return {"batch_size": BATCH_SIZE, **compare(seconds, "bus", "prefetcher", pinned.nbytes * num_batches)}


def measure_epoch(
    dataset: InMemoryImageTextDataset, there: InMemoryImageTextDataset, device: torch.device, repeats: int
) -> Figures:
    """Take an epoch of batches on the device, with nothing computed on them."""
    seconds = alternate(
        repeats,
        on_device=lambda: timed(device, lambda: exhaust(loader_of(there, BATCH_SIZE))),
        prefetched=lambda: timed(device, lambda: exhaust(DevicePrefetcher(loader_of(dataset, BATCH_SIZE), device))),
    )
    return {f"{name}_seconds": median(values) for name, values in seconds.items()}


def measure_waiting(
    dataset: InMemoryImageTextDataset,
    there: InMemoryImageTextDataset,
    device: torch.device,
    num_steps: int,
    repeats: int,
) -> Figures:
    """Train steps of a ResNet-50 on batches of the dataset, and on one batch that is on the device already."""
    model = resnet50().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    labels = torch.randint(0, 1000, (BATCH_SIZE,), device=device)
    kept = next(iter(DevicePrefetcher(loader_of(dataset, BATCH_SIZE), device)))

    def train(batches: Iterable[dict[str, Any]]) -> None:
        for _, batch in zip(range(num_steps), batches, strict=False):
            images = batch["images"].float().div_(255)
            # In bfloat16, a processor that has none of its own took 109 s for the few steps of the test of this.
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
                loss = nn.functional.cross_entropy(model(images), labels[: len(images)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    seconds = alternate(
        repeats,
        kept=lambda: timed(device, lambda: train([kept] * num_steps)),
        on_device=lambda: timed(device, lambda: train(loader_of(there, BATCH_SIZE))),
        prefetched=lambda: timed(device, lambda: train(DevicePrefetcher(loader_of(dataset, BATCH_SIZE), device))),
    )
    steps = min(num_steps, len(loader_of(dataset, BATCH_SIZE)))
    figures: Figures = {"steps": steps, "step_seconds": median(seconds["kept"]) / num_steps}
    for name in ("on_device", "prefetched"):
        per_step = [(one / steps, kept / num_steps) for one, kept in zip(seconds[name], seconds["kept"], strict=True)]
        figures[f"{name}_waiting_share"] = median(1 - kept / one for one, kept in per_step)
    return figures


def compare(seconds: dict[str, list[float]], bare: str, ours: str, num_bytes: int) -> Figures:
    ratios = sorted(one / other for one, other in zip(seconds[bare], seconds[ours], strict=True))
    return {
        f"{bare}_gb_per_s": num_bytes / median(seconds[bare]) / 1e9,
        f"{ours}_gb_per_s": num_bytes / median(seconds[ours]) / 1e9,
        "ratio": median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Time work until the device has done it."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def exhaust(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


class Bottleneck(nn.Module):
    """A block of a residual network: narrow, look around, widen, and add what came in."""

    def __init__(self, num_in: int, width: int, stride: int) -> None:
        super().__init__()
        num_out = 4 * width
        self.residual = nn.Sequential(
            *convolution(num_in, width, 1, 1),
            nn.ReLU(inplace=True),
            *convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *convolution(width, num_out, 1, 1),
        )
        same = num_in == num_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(num_in, num_out, 1, stride))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.residual(images) + self.shortcut(images))


def convolution(num_in: int, num_out: int, size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(num_in, num_out, size, stride, size // 2, bias=False), nn.BatchNorm2d(num_out)


def resnet50() -> nn.Module:
    """Make the 25.6 million parameters of a ResNet-50. Source: He, Zhang, Ren and Sun, CVPR 2016, table 1."""
    layers: list[nn.Module] = [*convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    num_in = 64
    for width, num_blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(num_blocks):
            layers.append(Bottleneck(num_in, width, 1 if block else stride))
            num_in = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_in, 1000))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-images", type=int, default=100_000, help="150 kB each, in memory and on the device")
    parser.add_argument("--num-steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/device, for any device but the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
