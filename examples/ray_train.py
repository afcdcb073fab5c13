"""Train a small dual encoder with Ray Train on pictures that lie in the memory of a cluster.

    python examples/ray_train.py                    # Ray on this machine, one node
    python examples/ray_train.py --nodes 2          # two nodes on this machine: what a cluster does, without one
    python examples/ray_train.py --address auto     # the cluster that this machine belongs to

Each node loads a part of the pictures, once. Both workers are served by the memory of their own node and see every
picture once in an epoch; a tenth is dealt anew to the nodes for each. Kill a worker: it goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.cluster_utils import Cluster
from ray.train.torch import TorchTrainer, prepare_model
from torch.utils.data import DataLoader

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for the demonstration set, which is in no package

from demo.dual_encoder import DualEncoder, contrastive_loss, hash_words
from demo.retrieval import Recall, measure_recall
from demo.scenes import draw_scene, render_scene
from demo.server import serve_demo
from in_memory_datasets import FetchOptions, InMemoryImageTextDataset, collate_in_memory_images
from in_memory_datasets.scale import DEFAULT_FRACTION, ShardedDataset, load_on_cluster

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT_SHARE = 1 / 6


def main() -> None:
    options = parse_options()
    with connect(options), demo_rows(options) as rows:
        num_train = len(rows) - max(2, round(len(rows) * HELD_OUT_SHARE))
        with load(rows[:num_train], options) as sharded, load(rows[num_train:], options) as held_out:
            print(f"{sharded.report}\n{len(sharded):,} to train on, {len(held_out):,} held out\n", flush=True)
            trainer = TorchTrainer(
                train_on_worker,
                train_loop_config={"sharded": sharded, "held_out": held_out, **vars(options)},
                scaling_config=ray.train.ScalingConfig(num_workers=2, placement_strategy="SPREAD"),
                run_config=ray.train.RunConfig(
                    name=options.name,
                    storage_path=str(options.output.resolve()),
                    failure_config=ray.train.FailureConfig(max_failures=2),
                    checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                ),
            )
            result = trainer.fit()
            print(f"\n{sharded.report}\ncheckpoint: {result.checkpoint.path if result.checkpoint else None}")


def load(rows: list[dict[str, Any]], options: argparse.Namespace) -> ShardedDataset[InMemoryImageTextDataset]:
    """Load rows into the memory of all nodes, each once: the arguments are those of the class."""
    side = options.image_size
    # The demonstration server is on this machine, where nothing is fetched from unless one says so.
    fetch = FetchOptions(allow_private_addresses=True)
    return load_on_cluster(InMemoryImageTextDataset, rows, image_size=(side, side), on_error="skip", fetch=fetch)


def train_on_worker(config: dict[str, Any]) -> None:
    """Train; what each worker of Ray Train runs, and runs again from the last checkpoint when one was lost."""
    sharded, rank = config["sharded"], ray.train.get_context().get_world_rank()
    torch.manual_seed(config["seed"])
    model = prepare_model(DualEncoder("image"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["learning_rate"], weight_decay=0.05)
    dataset = sharded.local_shard()
    sampler = sharded.sampler(dataset, batch_size=config["batch_size"] // 2, seed=config["seed"])
    # Not by way of prepare_data_loader: the sampler deals to the ranks already.
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_in_memory_images)
    if checkpoint := ray.train.get_checkpoint():
        resume(checkpoint, model, optimizer, sampler)

    for epoch in range(sampler.epoch, config["epochs"]):
        sampler.set_epoch(epoch)
        sharded.reshuffle(epoch + 1, fraction=config["fraction"])  # brought while this epoch is trained
        model.train()
        losses, waiting_seconds = [], 0.0
        start = ready = time.perf_counter()
        for batch in loader:
            waiting_seconds += time.perf_counter() - ready
            loss = contrastive_loss(*model(batch["images"], hash_words(batch["captions"])))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % config["checkpoint_batches"] == 0:
                save({"loss": loss.item()}, model, optimizer, sampler)
            ready = time.perf_counter()
        seconds = time.perf_counter() - start
        recall = evaluate(model, config["held_out"])
        num_batches = gather(len(losses))
        if losses:  # none are left where the state was that of an epoch's end
            save({"epoch": epoch, "loss": sum(losses) / len(losses)}, model, optimizer, sampler)
        if losses and rank == 0:
            print(
                f"epoch {epoch:>2}: loss {sum(losses) / len(losses):.3f}, held-out {recall}, {seconds:.1f} s, "
                f"waiting for data {waiting_seconds / seconds:.1%}, batches of the ranks {num_batches}",
                flush=True,
            )


def save(metrics: dict[str, Any], model: Any, optimizer: Any, sampler: Any) -> None:
    """Report to Ray Train, with a checkpoint; every rank does as often, since all have as many batches."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:  # the state of the sampler is the same on all
            state = {"model": bare(model).state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "sampler": sampler.state_dict()}, Path(folder) / "state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


def resume(checkpoint: Any, model: Any, optimizer: Any, sampler: Any) -> None:
    """Go on at the batch that a checkpoint was made at, whatever nodes and ranks there are now."""
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", weights_only=True)
    bare(model).load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    sampler.load_state_dict(state["sampler"])
    if ray.train.get_context().get_world_rank() == 0:
        print(f"resumed in epoch {sampler.epoch}, {state['sampler']['consumed']:,} samples into it", flush=True)


@torch.no_grad()
def evaluate(model: Any, held_out: ShardedDataset[InMemoryImageTextDataset]) -> Recall:
    """Look for each held-out caption's picture, and the other way round; every rank embeds those of its node."""
    bare(model).eval()
    embedded = []
    with held_out.local_shard() as dataset:
        sampler = held_out.sampler(dataset, batch_size=64, shuffle=False)
        for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_in_memory_images):
            images, texts, _ = bare(model)(batch["images"], hash_words(batch["captions"]))
            embedded.append((images, texts, batch["captions"]))
    images, texts, captions = zip(*(each for of_rank in gather(embedded) for each in of_rank), strict=True)
    return measure_recall(torch.cat(images), torch.cat(texts), [caption for each in captions for caption in each])


def gather(own: Any) -> list[Any]:
    """Give what all ranks have, by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, own)
    return values


def bare(model: Any) -> Any:
    """Take off what DistributedDataParallel has put around a model."""
    return getattr(model, "module", model)


@contextlib.contextmanager
def connect(options: argparse.Namespace) -> Iterator[None]:
    """Connect to a cluster, after starting one on this machine where none is named."""
    cluster = None
    if options.address is None:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        for _ in range(1, options.nodes):
            cluster.add_node(num_cpus=2)
    try:
        address = options.address if cluster is None else cluster.address
        # What workers print is enough: neither a second time by way of Ray Train's log, nor Ray's account of each step.
        os.environ |= {f"RAY_TRAIN_ENABLE_{what}": "0" for what in ("PRINT_PATCH", "WORKER_STRUCTURED_LOGGING")}
        quiet = ray.LoggingConfig(log_level="ERROR")
        with ray.init(address, runtime_env={"py_modules": [str(ROOT / "demo")]}, logging_config=quiet):
            yield
    finally:
        if cluster is not None:
            cluster.shutdown()


@contextlib.contextmanager
def demo_rows(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Serve the demonstration pictures to the nodes of this machine; other machines, which see no such server, are
    sent the files in the rows."""
    if options.address is not None:
        numbers = range(options.max_samples)
        yield [{"image_url": render_scene(draw_scene(i), i), "caption": draw_scene(i).caption} for i in numbers]
    else:
        with serve_demo(latency_seconds=0.02) as server:
            yield server.image_rows(options.max_samples)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1, help="nodes to start on this machine (default: 1)")
    parser.add_argument("--address", help="of a cluster that runs, such as auto; nothing is started then")
    parser.add_argument("--max-samples", type=int, default=960, help="pictures to take (default: 960)")
    parser.add_argument("--image-size", type=int, default=48, help="width and height in pixels (default: 48)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64, help="of both workers together (default: 64)")
    parser.add_argument("--fraction", type=float, default=DEFAULT_FRACTION, help="that is dealt anew in each epoch")
    parser.add_argument("--checkpoint-batches", type=int, default=50, help="between two checkpoints (default: 50)")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="where checkpoints go; all nodes share it")
    parser.add_argument("--name", help="of the run; one of that name that was broken off goes on")
    return parser.parse_args()


if __name__ == "__main__":
    main()
