"""What the exchanged fraction q does to training: small models, with batches as the ranks of a cluster have them.

    python -m benchmarks.scale.shuffling            # seven or eight minutes of one processor; makes the page's tables
    python -m benchmarks.scale.shuffling --quick    # that all of it runs; learns next to nothing

Nodes and ranks are simulated in this process. `Division` says which samples each rank has in each batch, as it does on
a cluster; a rank's loss is that of its own batch alone, gradients are averaged over ranks, and there is one step of the
optimizer for all. The data are pictures of the demonstration set with captions. Results go to
benchmarks/results/shuffling/, the tables to docs/explanation/shuffling.md.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

from benchmarks.bench_quick import describe_machine
from demo.dual_encoder import contrastive_loss, hash_words
from demo.retrieval import measure_recall
from demo.scenes import COLOURS, NUM_SCENES, SHAPES, draw_scene, render_scene
from in_memory_datasets.scale.division import Division, Homes, Ranks, node_of_samples, ranges_of

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs" / "explanation" / "shuffling.md"
RESULTS = _ROOT / "benchmarks" / "results" / "shuffling" / "results.json"

FRACTIONS = (0.0, 0.02, 0.1, 0.3, 1.0)
NODES = (4, 8)
NUM_RANKS = 8
BATCH_SIZE = 16  # of a rank
SIDE = 32
EMBEDDING_SIZE = 64
WIDTHS = (16, 32, 64)
METHOD = (
    "Pictures are those of the demonstration set, one of each scene, scaled to a small square. Held out are scenes "
    "that no rank trains on. 'sorted' lays the rows out by colour, then shape, background, size and place, so that a "
    "node of 8 holds one or two colours; 'shuffled' lays them out at random, once. Homes are contiguous ranges of the "
    "rows. 'global' is torch's DistributedSampler. All runs of a seed begin with the same weights."
)


@dataclass(frozen=True, slots=True)
class Scenes:
    """Pictures with captions, and what they are of.

    Attributes:
        pictures: uint8 (N, 3, SIDE, SIDE).
        words: int64 (N, W), numbers of words; 0 is padding.
        num_words: One more than the highest of these numbers.
        captions: N of them.
        kinds: int64 (N,); the number of the pair of colour and shape.
        content: int64 (N,); sorts the scenes by what they show, in the order colour, shape, and all else.
    """

    pictures: Tensor
    words: Tensor
    num_words: int
    captions: list[str]
    kinds: Tensor
    content: NDArray[np.int64]

    def part(self, rows: NDArray[np.int64]) -> Scenes:
        """Take some rows, in their order."""
        captions = [self.captions[row] for row in rows]
        words, kinds = self.words[rows], self.kinds[rows]
        return Scenes(self.pictures[rows], words, self.num_words, captions, kinds, self.content[rows])


def draw_scenes(num_scenes: int) -> Scenes:
    """Draw the first scenes of the demonstration set; all differ."""
    scenes = [draw_scene(index) for index in range(num_scenes)]
    pictures = np.empty((num_scenes, SIDE, SIDE, 3), np.uint8)
    for index, scene in enumerate(scenes):
        with Image.open(io.BytesIO(render_scene(scene, index))) as picture:
            pictures[index] = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    kinds = [len(SHAPES) * list(COLOURS).index(scene.colour) + SHAPES.index(scene.shape) for scene in scenes]
    order = sorted(range(num_scenes), key=lambda i: (kinds[i], scenes[i].background, scenes[i].size, scenes[i].place))
    content = np.empty(num_scenes, np.int64)
    content[order] = np.arange(num_scenes)
    captions = [scene.caption for scene in scenes]
    planes = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    hashes = hash_words(captions)
    # Numbered closely: a table of 4,096 words, of which 32 occur, takes the optimizer longer than all else.
    known, numbers = np.unique(np.append(0, hashes.numpy()), return_inverse=True)
    words = torch.from_numpy(numbers[1:].reshape(hashes.shape))
    return Scenes(planes, words, len(known), captions, torch.tensor(kinds), content)


# ---- who has which samples


def batches_of(division: Division, *, seed: int) -> Iterator[NDArray[np.int64]]:
    """Give the batches of all ranks of an epoch: int64 (B, R), a column for each rank."""
    ranks = division.ranks
    assert ranks is not None
    total = division.num_samples
    columns = []
    for rank, node in enumerate(ranks.nodes):
        places = division.place_of_turn(rank, np.arange(ranks.end(rank, ranks.num_batches(total), total)))
        columns.append(division.served_by(node)[division.order(node, places, seed=seed)])
    dealt = np.stack(columns, axis=1)
    return (dealt[start : start + ranks.batch_size] for start in range(0, len(dealt), ranks.batch_size))


def global_batches(num_samples: int, *, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Give the same as torch's DistributedSampler has them, from a shuffle of all samples."""
    columns = []
    for rank in range(NUM_RANKS):
        sampler = DistributedSampler(range(num_samples), num_replicas=NUM_RANKS, rank=rank, seed=seed, drop_last=True)
        sampler.set_epoch(epoch)
        columns.append(np.array(list(sampler), np.int64))
    dealt = np.stack(columns, axis=1)
    last = len(dealt) - len(dealt) % BATCH_SIZE
    return (dealt[start : start + BATCH_SIZE] for start in range(0, last, BATCH_SIZE))


# ---- models. Rows of a global batch are interleaved: every R-th belongs to a rank, as in `batches.reshape(-1)`.


class SmallEncoder(nn.Module):
    """Embed pictures and captions; nothing in it looks across samples."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.pictures = nn.Sequential(
            *_convolutions(lambda width: nn.GroupNorm(4, width)), nn.Linear(16 * WIDTHS[-1], EMBEDDING_SIZE)
        )
        self.words = nn.EmbeddingBag(num_words, 2 * EMBEDDING_SIZE, mode="mean", padding_idx=0)
        self.text = nn.Sequential(
            nn.Linear(2 * EMBEDDING_SIZE, 2 * EMBEDDING_SIZE), nn.GELU(), nn.Linear(2 * EMBEDDING_SIZE, EMBEDDING_SIZE)
        )
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, pictures: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give unit vectors of both, and the scale of their products."""
        seen = F.normalize(self.pictures(pictures.float() / 127.5 - 1), dim=1)
        return seen, F.normalize(self.text(self.words(words)), dim=1), self.log_scale.clamp(max=4.6).exp()


def _convolutions(norm: Callable[[int], nn.Module]) -> Iterator[nn.Module]:
    for before, width in itertools.pairwise((3, *WIDTHS)):
        yield from (nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), norm(width), nn.GELU())
    yield nn.Flatten()


class RankNorm(nn.Module):
    """Batch normalisation with statistics of each rank's rows: what `BatchNorm2d` does in R processes.

    Args:
        width: Channels.
        num_ranks: R; with 1 the statistics are those of the global batch, as of `SyncBatchNorm`.
    """

    def __init__(self, width: int, num_ranks: int) -> None:
        super().__init__()
        self.num_ranks = num_ranks
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.means: Tensor
        self.variances: Tensor
        self.register_buffer("means", torch.zeros(num_ranks * width))
        self.register_buffer("variances", torch.ones(num_ranks * width))
        self.evaluate_averaged = False

    def forward(self, planes: Tensor) -> Tensor:
        """Normalise (B * R, C, H, W); in evaluation with the statistics of rank 0, or with the mean of all."""
        if not self.training:
            means, variances = (each.reshape(self.num_ranks, -1) for each in (self.means, self.variances))
            if self.evaluate_averaged:
                means, variances = means.mean(0, keepdim=True), variances.mean(0, keepdim=True)
            return F.batch_norm(planes, means[0], variances[0], self.weight, self.bias)
        by_rank = planes.reshape(-1, self.num_ranks * planes.shape[1], *planes.shape[2:])
        weight, bias = self.weight.repeat(self.num_ranks), self.bias.repeat(self.num_ranks)
        return F.batch_norm(by_rank, self.means, self.variances, weight, bias, training=True).reshape(planes.shape)


def make_classifier(num_ranks: int) -> nn.Sequential:
    """Make a network that tells colour and shape, with `RankNorm` after each convolution."""
    layers = _convolutions(lambda width: RankNorm(width, num_ranks))
    return nn.Sequential(*layers, nn.Linear(16 * WIDTHS[-1], len(COLOURS) * len(SHAPES)))


# ---- training


@dataclass(frozen=True, slots=True)
class Task:
    """One way to train.

    Attributes:
        key: Names it.
        name: Names it on the page.
        local: Whether a rank's loss hangs together with the rest of its own batch, and of no other.
        contrastive: Whether it is the dual encoder that is trained, or else the classifier.
    """

    key: str
    name: str
    local: bool
    contrastive: bool

    def make_model(self, num_words: int) -> nn.Module:
        """Make what is trained."""
        return SmallEncoder(num_words) if self.contrastive else make_classifier(NUM_RANKS if self.local else 1)

    def loss(self, model: nn.Module, scenes: Scenes, batch: NDArray[np.int64]) -> Tensor:
        """Give the mean of the ranks' losses; its gradient is the mean of theirs."""
        rows = torch.from_numpy(batch.reshape(-1))
        if not self.contrastive:
            return F.cross_entropy(model(scenes.pictures[rows].float() / 127.5 - 1), scenes.kinds[rows])
        seen, read, scale = model(scenes.pictures[rows], scenes.words[rows])
        if not self.local:
            return contrastive_loss(seen, read, scale)
        ranks = batch.shape[1]
        return torch.stack([contrastive_loss(seen[r::ranks], read[r::ranks], scale) for r in range(ranks)]).mean()

    @torch.no_grad()
    def measure(self, model: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Measure what was learned, on scenes that were held out."""
        model.eval()
        if self.contrastive:
            seen, read, _ = model(scenes.pictures, scenes.words)
            return {"score": measure_recall(seen, read, scenes.captions).at_1}
        found = {}
        # With statistics of the global batch all ranks have the same.
        for name, averaged in (("score", False), ("averaged_score", True))[: 2 if self.local else 1]:
            for layer in model:
                if isinstance(layer, RankNorm):
                    layer.evaluate_averaged = averaged
            guess = model(scenes.pictures.float() / 127.5 - 1).argmax(1)
            found[name] = (guess == scenes.kinds).double().mean().item()
        return found


TASKS = (
    Task("local-contrast", "contrastive, negatives of the rank's own batch", local=True, contrastive=True),
    Task("local-norm", "classifier, BatchNorm of the rank's own batch", local=True, contrastive=False),
    Task("global-contrast", "contrastive, negatives gathered from all ranks", local=False, contrastive=True),
    Task("global-norm", "classifier, SyncBatchNorm", local=False, contrastive=False),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One training run: which rows lie where, and what is exchanged of them; None for a global shuffle."""

    task: Task
    order: str
    num_nodes: int
    fraction: float | None


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is trained."""

    num_scenes: int
    num_held_out: int
    num_epochs: int
    num_seeds: int
    learning_rate: float = 4e-3

    @property
    def num_rows(self) -> int:
        """How many scenes are trained on."""
        return self.num_scenes - self.num_held_out


WHOLE = Extent(NUM_SCENES, 384, num_epochs=12, num_seeds=3)
QUICK = Extent(320, 64, num_epochs=1, num_seeds=1)


def plan_runs() -> list[Run]:
    """List what is trained: all there is where batches are local, the worst case alone where they are not."""
    runs = []
    for task in TASKS:
        runs.append(Run(task, "any", 0, None))
        for order, num_nodes in itertools.product(("shuffled", "sorted"), NODES):
            if task.local or (order, num_nodes) == ("sorted", 8):
                fractions = FRACTIONS if task.local else (0.0, 0.1, 1.0)
                runs += [Run(task, order, num_nodes, fraction) for fraction in fractions]
    return runs


def train(run: Run, scenes: Scenes, extent: Extent, seed: int) -> dict[str, float]:
    """Train from the beginning, and measure."""
    torch.manual_seed(seed)
    rows, held_out = scenes.part(np.arange(extent.num_rows)), scenes.part(np.arange(extent.num_rows, extent.num_scenes))
    laid_out = np.random.default_rng(seed).permutation(extent.num_rows)
    rows = rows.part(np.argsort(rows.content) if run.order == "sorted" else laid_out)
    model = run.task.make_model(scenes.num_words)
    optimizer = torch.optim.Adam(model.parameters(), lr=extent.learning_rate)
    num_steps = extent.num_epochs * (extent.num_rows // (NUM_RANKS * BATCH_SIZE))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, extent.learning_rate, num_steps, pct_start=0.1)
    for epoch in range(extent.num_epochs):
        for batch in _batches(run, extent.num_rows, seed, epoch):
            optimizer.zero_grad()
            run.task.loss(model, rows, batch).backward()
            optimizer.step()
            schedule.step()
    return run.task.measure(model, held_out)


def _batches(run: Run, num_rows: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    if run.fraction is None:
        return global_batches(num_rows, seed=seed, epoch=epoch)
    nodes = tuple(rank * run.num_nodes // NUM_RANKS for rank in range(NUM_RANKS))
    homes = Homes(ranges_of([num_rows // run.num_nodes] * run.num_nodes))
    division = Division(homes, run.fraction, seed, epoch, Ranks(nodes, BATCH_SIZE, drop_last=True))
    return batches_of(division, seed=seed)


def measure_training(scenes: Scenes, extent: Extent, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Do all runs with all seeds."""
    rows = []
    for run in plan_runs():
        found = [train(run, scenes, extent, seed) for seed in range(extent.num_seeds)]
        row: dict[str, Any] = {
            "task": run.task.key,
            "order": run.order,
            "num_nodes": run.num_nodes,
            "fraction": run.fraction,
        }
        for name in found[0]:
            values = [each[name] for each in found]
            row[name] = {"mean": mean(values), "min": min(values), "max": max(values), "values": values}
        tell(f"{run.task.key} {run.order} M={run.num_nodes} q={run.fraction}: {row['score']['mean']:.3f}")
        rows.append(row)
    return rows


# ---- how samples get about, without training


def expected_epochs(fraction: float, num_nodes: int) -> float:
    """Give how many epochs pass, on average, until a sample has been served by every node.

    In an epoch it is served at home with chance 1 - q + q/M, and by each other node with q/M. By inclusion and
    exclusion over the sets of nodes that have not served it yet, of which all that have as many members are alike.
    """
    away = fraction / num_nodes
    total = 0.0
    for others, home in itertools.product(range(num_nodes), (0, 1)):
        if others or home:
            chance = others * away + home * (1 - fraction + away)
            total -= (-1) ** (others + home) * math.comb(num_nodes - 1, others) / chance
    return total


def count_epochs(fraction: float, num_nodes: int, *, samples_per_node: int, num_epochs: int) -> dict[str, float]:
    """Deal epochs until every sample has been served by every node; count epochs, and what was borrowed.

    Args:
        fraction: q, above 0.
        num_nodes: M.
        samples_per_node: At home with each.
        num_epochs: After these, what share of other nodes has served a sample is counted.
    """
    homes = Homes(ranges_of([samples_per_node] * num_nodes))
    owners = node_of_samples(homes, np.arange(homes.num_samples))
    served = np.zeros((homes.num_samples, num_nodes), bool)
    complete_after = np.zeros(homes.num_samples, np.int64)
    borrowed = epoch = 0
    share_after = 0.0
    while not complete_after.all():
        division = Division(homes, fraction, 0, epoch)
        for node in range(num_nodes):
            samples = division.served_by(node)
            served[samples, node] = True
            borrowed += int(np.count_nonzero(owners[samples] != node))
        epoch += 1
        complete_after[served.all(axis=1) & (complete_after == 0)] = epoch
        if epoch == num_epochs:
            elsewhere = served.sum() - np.count_nonzero(served[np.arange(len(owners)), owners])
            share_after = float(elsewhere / (len(owners) * (num_nodes - 1)))
    return {
        "epochs": float(complete_after.mean()),
        "last_epochs": int(complete_after.max()),
        "borrowed_share": borrowed / (epoch * homes.num_samples),
        "met_share": share_after,
    }


def measure_coverage(fractions: Sequence[float], *, samples_per_node: int, num_epochs: int) -> list[dict[str, Any]]:
    """Count and compute, for the most nodes, how far samples get about."""
    num_nodes = max(NODES)
    rows = []
    for fraction in fractions:
        expected = {
            "epochs": expected_epochs(fraction, num_nodes),
            "borrowed_share": fraction * (1 - 1 / num_nodes),
            "met_share": 1 - (1 - fraction / num_nodes) ** num_epochs,
        }
        counted = count_epochs(fraction, num_nodes, samples_per_node=samples_per_node, num_epochs=num_epochs)
        rows.append({"fraction": fraction, "num_nodes": num_nodes, "expected": expected, "counted": counted})
    return rows


# ---- what is written


def make_tables(record: dict[str, Any]) -> dict[str, str]:
    """Make the page's tables of the results, by name."""
    tables = {"extent": _extent_lines(record), "coverage": _coverage_table(record["coverage"])}
    for score in ("score", "averaged_score"):
        for task in TASKS:
            rows = [row for row in record["training"] if row["task"] == task.key and score in row]
            if rows:
                tables[f"{task.key} {score}"] = _training_table(rows, score)
    return tables


def _extent_lines(record: dict[str, Any]) -> str:
    extent, machine = record["extent"], record["machine"]
    return (
        f"{extent['num_rows']:,} pictures of {extent['side']}×{extent['side']}, {extent['num_held_out']} held out, "
        f"{extent['num_ranks']} ranks with batches of {extent['batch_size']}, {extent['num_epochs']} epochs, "
        f"{extent['num_seeds']} seeds; {record['cpu_seconds']} s of one processor, torch "
        f"{machine['torch']}, {machine['date']}."
    )


def _training_table(rows: list[dict[str, Any]], score: str) -> str:
    fractions = sorted({row["fraction"] for row in rows if row["fraction"] is not None})
    baseline = next(row for row in rows if row["fraction"] is None)
    lines = [
        "| rows | nodes | " + " | ".join(f"q = {fraction:g}" for fraction in fractions) + " | global shuffle |",
        "| --- | ---: |" + " ---: |" * (len(fractions) + 1),
    ]
    exchanged = [row for row in rows if row["fraction"] is not None]
    for (order, num_nodes), group in itertools.groupby(exchanged, lambda row: (row["order"], row["num_nodes"])):
        cells = {row["fraction"]: _some(row[score]) for row in group}
        told = " | ".join(cells[fraction] for fraction in fractions)
        lines.append(f"| {order} | {num_nodes} | {told} | {_some(baseline[score])} |")
    return "\n".join(lines)


def _some(values: dict[str, Any]) -> str:
    return f"{100 * values['mean']:.1f} ({100 * values['min']:.1f}–{100 * values['max']:.1f})"


def _coverage_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| q | borrowed in an epoch, % of the dataset | memory, % more than the home part at most | "
        "other nodes met by a sample in the epochs trained here, % | epochs until it has met all | "
        "until the last sample has |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        expected, counted = row["expected"], row["counted"]
        borrowed, met = (
            f"{100 * expected[key]:.2f} ({100 * counted[key]:.2f})" for key in ("borrowed_share", "met_share")
        )
        memory = f"{2 * 100 * expected['borrowed_share']:.1f}"  # of this epoch, and of the next
        epochs = f"{expected['epochs']:,.1f} ({counted['epochs']:,.1f}) | ({counted['last_epochs']:,})"
        lines.append(f"| {row['fraction']:g} | {borrowed} | {memory} | {met} | {epochs} |")
    return "\n".join(lines)


def with_tables(page: str, tables: dict[str, str]) -> str:
    """Put tables where the page has them: between `<!-- table: NAME -->` and `<!-- end -->`."""
    for name, table in tables.items():
        before, start, rest = page.partition(f"<!-- table: {name} -->\n")
        if start:
            page = f"{before}{start}{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short epoch of few pictures, one seed")
    parser.add_argument("--output", type=Path, help=f"default: {RESULTS.parent.relative_to(_ROOT)} for a whole run")
    options = parser.parse_args()
    output = options.output or (_ROOT / "build" / "shuffling" if options.quick else RESULTS.parent)
    extent = QUICK if options.quick else WHOLE
    torch.set_num_threads(1)
    coverage = measure_coverage(
        (0.3, 1.0) if options.quick else FRACTIONS[1:], samples_per_node=100, num_epochs=extent.num_epochs
    )
    told = "[{:.0f} s] {}"
    training = measure_training(
        draw_scenes(extent.num_scenes),
        extent,
        lambda line: print(told.format(time.process_time(), line), flush=True),
    )
    sizes = {"num_rows": extent.num_rows, "side": SIDE, "num_ranks": NUM_RANKS, "batch_size": BATCH_SIZE}
    record = {
        "machine": describe_machine(),
        "method": METHOD,
        "cpu_seconds": round(time.process_time()),
        "extent": {**asdict(extent), **sizes},
        "coverage": coverage,
        "training": training,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    tables = make_tables(record)
    print("\n\n".join(f"{name}\n{table}" for name, table in tables.items()))
    if output == RESULTS.parent and PAGE.exists():
        PAGE.write_text(with_tables(PAGE.read_text("utf-8"), tables), "utf-8")


if __name__ == "__main__":
    main()
