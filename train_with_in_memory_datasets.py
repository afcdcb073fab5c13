"""Train a small dual encoder on pictures or sounds that lie in memory.

    python train_with_in_memory_datasets.py                                  # the demonstration pictures, no network
    python train_with_in_memory_datasets.py --modality audio                 # the demonstration sounds
    python train_with_in_memory_datasets.py --preset nlphuji/flickr30k --max-samples 10000 --image-size 112
    torchrun --nproc-per-node 2 train_with_in_memory_datasets.py             # the same in two processes

Media and captions are embedded so that what belongs together lies together; held-out retrieval says whether that was
learned. Under torchrun the processes of a machine share one copy of the data: the dataset is made in the same words.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from demo.dual_encoder import DualEncoder, contrastive_loss, hash_words
from demo.retrieval import Recall, measure_recall
from demo.server import DemoServer, serve_demo
from in_memory_datasets import (
    EpochSampler,
    FetchOptions,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
    presets,
)
from in_memory_datasets.rows import find_preset

HELD_OUT_SHARE = 1 / 6


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of the job's processes this is; the only one, where nothing launched more."""

    rank: int
    world_size: int
    local_rank: int
    machine: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to; `recall` is measured by rank 0 alone."""

    epoch: int
    loss: float
    recall: Recall | None
    seconds: float
    waiting_seconds: float

    def __str__(self) -> str:
        share = self.waiting_seconds / self.seconds
        return (
            f"epoch {self.epoch:>2}: loss {self.loss:.3f}, held-out {self.recall}, "
            f"{self.seconds:.1f} s, waiting for data {self.waiting_seconds:.3f} s ({share:.1%})"
        )


def main() -> None:
    options = parse_options()
    with join_ranks() as ranks:
        torch.manual_seed(options.seed)
        dataset = load_preset(options) if options.preset else load_demo(options, ranks)
        # The last rows are held out, and not rows at random: some datasets give a picture several rows in succession.
        num_train = len(dataset) - max(1, round(len(dataset) * HELD_OUT_SHARE))
        train, held_out = Subset(dataset, range(num_train)), Subset(dataset, range(num_train, len(dataset)))
        if ranks.rank == 0:
            print(f"{dataset.report}\n{len(train):,} to train on, {len(held_out):,} held out\n")

        images = isinstance(dataset, InMemoryImageTextDataset)
        model = DualEncoder("image" if images else "audio", sampling_rate=options.target_sr).to(ranks.device)
        epochs = []
        for epoch in train_epochs(model, train, held_out, options, ranks):
            epochs.append(epoch)
            if ranks.rank == 0:
                print(epoch, flush=True)
        if ranks.rank == 0:
            save_results(model, epochs, options.output)


def train_epochs(
    model: DualEncoder, train: Subset[Any], held_out: Subset[Any], options: argparse.Namespace, ranks: Ranks
) -> Iterator[Epoch]:
    """Train, and give an account after each epoch."""
    sampler = EpochSampler(train, seed=options.seed, drop_last=True)  # asks torch.distributed for the ranks
    batch_size = min(options.batch_size // ranks.world_size, len(sampler))
    loader = make_loader(train, batch_size, ranks, sampler=sampler, drop_last=True)
    parallel = DistributedDataParallel(model) if ranks.world_size > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.05)
    num_steps = options.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, num_steps))

    for epoch in range(1, options.epochs + 1):
        sampler.set_epoch(epoch)
        model.train()
        losses, waiting_seconds = [], 0.0
        start = ready = time.perf_counter()
        for batch in loader:
            waiting_seconds += time.perf_counter() - ready
            media, text, scale = parallel(*to_device(batch, ranks.device))
            loss = contrastive_loss(gather(media, ranks), gather(text, ranks), scale)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            ready = time.perf_counter()
        seconds = time.perf_counter() - start
        recall = evaluate(model, held_out, options.batch_size, ranks) if ranks.rank == 0 else None
        yield Epoch(epoch, sum(losses) / len(losses), recall, seconds, waiting_seconds)


@torch.no_grad()
def evaluate(model: DualEncoder, held_out: Subset[Any], batch_size: int, ranks: Ranks) -> Recall:
    """Look for each held-out caption's medium, and for each medium's caption, among all that are held out."""
    model.eval()
    media, texts, captions = [], [], []
    for batch in make_loader(held_out, batch_size, ranks):
        embedded_media, embedded_text, _ = model(*to_device(batch, ranks.device))
        media.append(embedded_media.cpu())
        texts.append(embedded_text.cpu())
        captions += batch["captions"]
    return measure_recall(torch.cat(media), torch.cat(texts), captions)


def make_loader(subset: Subset[Any], batch_size: int, ranks: Ranks, **arguments: Any) -> DataLoader[Any]:
    """Read from memory: without worker processes, since a batch is one copy and nothing is left to do beside it."""
    images = isinstance(subset.dataset, InMemoryImageTextDataset)
    return DataLoader(
        subset,
        batch_size=batch_size,
        collate_fn=collate_in_memory_images if images else collate_in_memory_audio,
        pin_memory=ranks.device.type == "cuda",
        **arguments,
    )


def to_device(batch: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Put on the device what the model takes: media, and the numbers of the captions' words."""
    media = batch["images"] if "images" in batch else batch["audio"]
    return media.to(device, non_blocking=True), hash_words(batch["captions"]).to(device, non_blocking=True)


def gather(own: Tensor, ranks: Ranks) -> Tensor:
    """Put the rows of all ranks together, so that every rank contrasts with all of them.

    Gradients flow into a rank's own rows; the mean that DistributedDataParallel takes is then the whole gradient but
    for a factor, to which Adam is indifferent.
    """
    if ranks.world_size == 1:
        return own
    rows = [torch.empty_like(own) for _ in range(ranks.world_size)]
    dist.all_gather(rows, own.detach())
    rows[ranks.rank] = own
    return torch.cat(rows)


def learning_rate_share(step: int, num_steps: int) -> float:
    """Rise over the first tenth of the steps, then fall along a cosine."""
    warm_up = max(1, num_steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def load_demo(options: argparse.Namespace, ranks: Ranks) -> InMemoryImageTextDataset | InMemoryAudioTextDataset:
    """Load demonstration pictures or sounds from a server that one process of each machine starts."""
    with serve_demo() if ranks.local_rank == 0 else contextlib.nullcontext() as server:
        if ranks.world_size > 1:
            servers: list[tuple[int, DemoServer | None]] = [(0, None)] * ranks.world_size
            dist.all_gather_object(servers, (ranks.machine, server))
            server = next(own for machine, own in servers if machine == ranks.machine and own is not None)
        assert server is not None
        # The server is on this machine, where nothing is fetched from unless one says so.
        common: dict[str, Any] = {"on_error": "skip", "fetch": FetchOptions(allow_private_addresses=True)}
        num_rows = options.max_samples or 1920
        if options.modality == "image":
            side = options.image_size
            return InMemoryImageTextDataset(server.image_rows(num_rows), image_size=(side, side), **common)
        common |= {"target_sr": options.target_sr, "max_duration": options.max_duration, "pad_to": "max"}
        return InMemoryAudioTextDataset(server.sound_rows(num_rows), **common)


def load_preset(options: argparse.Namespace) -> InMemoryImageTextDataset | InMemoryAudioTextDataset:
    """Load a published dataset; which arguments it takes follows from what it holds."""
    arguments: dict[str, Any] = {"image_size": (options.image_size, options.image_size)}
    if find_preset(options.preset).modality == "audio":
        arguments = {"target_sr": options.target_sr, "max_duration": options.max_duration, "pad_to": "max"}
        arguments |= {"audio_dir": options.audio_dir}
    return presets.load(options.preset, max_samples=options.max_samples, on_error="skip", **arguments)


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the other processes where torchrun started several; leave them at the end."""
    rank, world_size, local_rank, machine = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("GROUP_RANK", "0"))
    )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if world_size > 1:
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks(rank, world_size, local_rank, machine, device)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def save_results(model: DualEncoder, epochs: list[Epoch], directory: Path) -> None:
    """Save the checkpoint, the figures of every epoch as JSON, and a plot of them."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), directory / "dual_encoder.pt")
    (directory / "training.json").write_text(json.dumps([asdict(epoch) for epoch in epochs], indent=1))
    draw_plot(epochs, directory / "training.png")
    last = epochs[-1].recall
    assert last is not None
    print(f"\nThe right one of {last.num_pairs} is found first {last.over_chance:.0f} times as often as by chance.")
    print(f"checkpoint, figures and plot: {directory}/dual_encoder.pt, training.json, training.png")


def draw_plot(epochs: list[Epoch], path: Path) -> None:
    """Draw loss, held-out recall against chance, and where the time went."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    numbers = [epoch.epoch for epoch in epochs]
    recalls = [epoch.recall for epoch in epochs if epoch.recall is not None]
    figure, (losses, found, times) = plt.subplots(1, 3, figsize=(14, 4))
    losses.plot(numbers, [epoch.loss for epoch in epochs], color="#4c72b0")
    losses.set(title="contrastive loss", xlabel="epoch", ylim=(0, None))
    found.plot(numbers, [recall.at_5 for recall in recalls], color="#55a868", label="recall@5")
    found.plot(numbers, [recall.at_1 for recall in recalls], color="#4c72b0", label="recall@1")
    found.axhline(recalls[0].chance_at_5, color="#55a868", linestyle=":", label="chance@5")
    found.axhline(recalls[0].chance_at_1, color="#4c72b0", linestyle=":", label="chance@1")
    found.set(title=f"held-out retrieval among {recalls[0].num_pairs}", xlabel="epoch", ylim=(0, 1))
    found.legend()
    waiting = [epoch.waiting_seconds for epoch in epochs]
    computing = [epoch.seconds - epoch.waiting_seconds for epoch in epochs]
    times.bar(numbers, waiting, color="#c44e52", label="waiting for data")
    times.bar(numbers, computing, bottom=waiting, color="#4c72b0", label="computing")
    times.set(title="seconds per epoch", xlabel="epoch")
    times.legend()
    for panel in (losses, found, times):
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modality", choices=("image", "audio"), default="image", help="of the demonstration set")
    parser.add_argument("--preset", choices=presets.names(), help="a published dataset instead")
    parser.add_argument("--audio-dir", type=Path, help="for google/MusicCaps: the directory of clips you have fetched")
    parser.add_argument("--max-samples", type=int, help="rows to take (default: 1,920 of the demonstration, or all)")
    parser.add_argument("--image-size", type=int, default=64, help="width and height in pixels (default: 64)")
    parser.add_argument("--target-sr", type=int, default=16_000, help="sampling rate in Hz (default: 16000)")
    parser.add_argument("--max-duration", type=float, default=5.0, help="seconds of each clip (default: 5)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together (default: 128)")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="where results go (default: outputs)")
    options = parser.parse_args()
    if options.max_samples is not None and options.max_samples < 12:
        parser.error(f"--max-samples {options.max_samples}: expected at least 12, a sixth of which are held out")
    return options


if __name__ == "__main__":
    main()
