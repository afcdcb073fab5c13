"""A dataset in the memory of a cluster: each node loads its part, and together they serve every sample once."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.errors import ConfigError, LoadError, MemoryLimitError, StoreError
from in_memory_datasets.scale import ShardedDataset, load_on_cluster, plan_on_cluster
from in_memory_datasets.scale.view import Terms
from in_memory_datasets.store import find_store
from tests.scale.ranks import all_at_once, end_ranks, living_nodes, on_node, start_ranks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

NUM_SAMPLES = 101


def picture(number: int) -> NDArray[np.uint8]:
    return np.full((6, 8, 3), number % 251, np.uint8)


def picture_rows(num_samples: int = NUM_SAMPLES) -> list[dict[str, Any]]:
    return [{"image_url": picture(i), "caption": f"caption {i}"} for i in range(num_samples)]


def clip_rows(num_samples: int = NUM_SAMPLES) -> list[dict[str, Any]]:
    return [
        {"audio": {"array": np.full(10 + i % 7, (1 + i % 90) / 100), "sampling_rate": 100}, "caption": f"caption {i}"}
        for i in range(num_samples)
    ]


@ray.remote(num_cpus=0)
def read(sharded: ShardedDataset[Any], epoch: int | None = None) -> list[tuple[int, str, int]]:
    """Give row, caption and the sum of the media of all that a node serves."""
    with sharded.local_shard(epoch) as dataset:
        samples = [dataset[i] for i in range(len(dataset))]
    media = "audio" if "audio" in (samples or [{}])[0] else "image"
    return [(each["index"], each["caption"], round(float(each[media].double().sum()))) for each in samples]


def read_everywhere(sharded: ShardedDataset[Any], epoch: int | None = None) -> list[list[tuple[int, str, int]]]:
    refs = [read.options(**on_node(node_id)).remote(sharded, epoch) for node_id in living_nodes()]
    return list(ray.get(refs, timeout=60))


def expected_pictures(num_samples: int = NUM_SAMPLES) -> list[tuple[int, str, int]]:
    return [(i, f"caption {i}", int(picture(i).astype(int).sum())) for i in range(num_samples)]


@pytest.fixture(scope="module")
def small(cluster: Any) -> Iterator[ShardedDataset[InMemoryImageTextDataset]]:
    with load_on_cluster(InMemoryImageTextDataset, picture_rows(8), image_size=(8, 6), progress=False) as sharded:
        yield sharded


def test_each_node_holds_a_part_and_together_they_have_every_sample_once() -> None:
    """Two nodes hold half of the pictures each, with the rows, captions and pixels they have on one machine."""
    with load_on_cluster(InMemoryImageTextDataset, picture_rows(), image_size=(8, 6), progress=False) as sharded:
        parts = read_everywhere(sharded)
        report = sharded.report
    assert [len(part) for part in parts] == [51, 50]
    assert [sample for part in parts for sample in part] == expected_pictures()
    assert (report.num_samples, report.num_ok, report.events) == (NUM_SAMPLES, NUM_SAMPLES, ())
    assert list(report.nodes.values()) == [51, 50]


def test_clips_are_served_as_on_one_machine() -> None:
    """Of clips the cluster serves the same frames and captions as one machine."""
    kwargs: dict[str, Any] = {"target_sr": 100, "max_duration": 1.0, "progress": False}
    with InMemoryAudioTextDataset(clip_rows(), **kwargs) as alone:
        expected = [(i, alone[i]["caption"], round(float(alone[i]["audio"].double().sum()))) for i in range(len(alone))]
    with load_on_cluster(InMemoryAudioTextDataset, clip_rows(), **kwargs) as sharded:
        parts = read_everywhere(sharded)
    assert [sample for part in parts for sample in part] == expected


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_after_a_reshuffle_every_sample_is_served_once(fraction: float) -> None:
    """For any fraction, three epochs in a row, the nodes serve every sample once, and other ones each time."""
    with load_on_cluster(InMemoryImageTextDataset, picture_rows(), image_size=(8, 6), progress=False) as sharded:
        served = []
        for epoch in range(1, 4):
            sharded.reshuffle(epoch, fraction=fraction)
            parts = read_everywhere(sharded)
            assert sorted(sample for part in parts for sample in part) == expected_pictures()
            served.append({index for index, _, _ in parts[0]})
        home = set(range(51))
        moved = [len(each - home) for each in served]
        again = read_everywhere(sharded, 2)
    assert {index for index, _, _ in again[0]} == served[1]
    if fraction == 0:
        assert moved == [0, 0, 0]
    else:
        assert all(0 < each <= np.ceil(fraction * 51) for each in moved)
        assert len({frozenset(each) for each in served}) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_train_on_every_sample_once_while_samples_are_exchanged(num_workers: int) -> None:
    """Four ranks on two nodes: every sample once in each of three epochs, and as many batches on every rank."""
    nodes = living_nodes()
    placed = [nodes[0], nodes[1], nodes[1], nodes[0]]
    with load_on_cluster(InMemoryImageTextDataset, picture_rows(), image_size=(8, 6), progress=False) as sharded:
        ranks = start_ranks(sharded, placed, num_workers=num_workers)
        orders = []
        for epoch in range(3):
            all_at_once(ranks, "set_epoch", epoch)
            all_at_once(ranks, "reshuffle", epoch + 1, 0.3)  # goes on while this epoch is read
            batches = all_at_once(ranks, "take")
            assert {len(of_rank) for of_rank in batches} == set(all_at_once(ranks, "num_batches")) == {7}
            seen = [sample for of_rank in batches for batch in of_rank for sample in batch]
            assert sorted(seen) == expected_pictures()
            orders.append(seen)
        assert orders[0] != orders[1] != orders[2]
        end_ranks(ranks, placed)


def test_ranks_on_one_node_serve_what_the_other_holds() -> None:
    """Where all ranks run on one node, it borrows all that the other one holds."""
    nodes = living_nodes()
    with load_on_cluster(InMemoryImageTextDataset, picture_rows(), image_size=(8, 6), progress=False) as sharded:
        placed = [nodes[0], nodes[0]]
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "set_epoch", 0)
        batches = all_at_once(ranks, "take")
        assert sorted(sample for of_rank in batches for batch in of_rank for sample in batch) == expected_pictures()
        _, guests = sharded.nbytes[nodes[0]]
        assert guests >= 50 * picture(0).nbytes
        end_ranks(ranks, placed)


def test_the_same_seed_gives_the_same_batches() -> None:
    """Two loads of the same rows, and ranks placed alike, give the same batches with one worker or none."""
    placed, runs = living_nodes(), []
    for num_workers in (0, 1):
        with load_on_cluster(InMemoryImageTextDataset, picture_rows(), image_size=(8, 6), progress=False) as sharded:
            sharded.reshuffle(1, fraction=0.5)
            ranks = start_ranks(sharded, placed, num_workers=num_workers)
            all_at_once(ranks, "set_epoch", 1)
            runs.append(all_at_once(ranks, "take"))
            end_ranks(ranks, placed)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("on_error", ["placeholder", "skip"])
def test_failed_rows_are_told_with_their_numbers_in_the_whole_dataset(on_error: str) -> None:
    """A failure keeps its row number; a placeholder stands for it, or with "skip" nobody is dealt it."""
    rows = picture_rows()
    for bad in (3, 70, 71):
        rows[bad]["image_url"] = b"no picture"
    with load_on_cluster(
        InMemoryImageTextDataset, rows, image_size=(8, 6), on_error=on_error, progress=False
    ) as sharded:
        sharded.reshuffle(1, fraction=0.5)
        parts = read_everywhere(sharded)
        report = sharded.report
        placed = living_nodes()
        ranks = start_ranks(sharded, placed)
        all_at_once(ranks, "set_epoch", 1)
        batches = all_at_once(ranks, "take")
        end_ranks(ranks, placed)
    assert [failure.index for failure in report.failures] == [3, 70, 71]
    assert report.by_reason == {"not_media": 3}
    seen = sorted(index for part in parts for index, _, _ in part)
    dealt = sorted(index for of_rank in batches for batch in of_rank for index, _, _ in batch)
    expected = [i for i in range(NUM_SAMPLES) if on_error == "placeholder" or i not in (3, 70, 71)]
    assert seen == dealt == expected


def test_what_is_wrong_is_told_before_anything_is_loaded() -> None:
    """A column that is not there, an impossible size and arguments for one machine alone are ConfigErrors at once."""
    rows = picture_rows(4)
    with pytest.raises(ConfigError, match="there is no column 'url'"):
        load_on_cluster(InMemoryImageTextDataset, rows, "url")
    with pytest.raises(ConfigError, match="image_size"):
        load_on_cluster(InMemoryImageTextDataset, rows, image_size=(0, 1))
    with pytest.raises(ConfigError, match="wait=False is for one machine"):
        load_on_cluster(InMemoryImageTextDataset, rows, wait=False)
    with pytest.raises(ConfigError, match="Parquet or of CSV"):
        load_on_cluster(InMemoryImageTextDataset, "/data/rows.txt")


def test_a_dataset_that_fits_nowhere_is_refused_with_the_numbers() -> None:
    """With a limit for each node, the refusal says what all need, what all have, and how many would fit."""
    with pytest.raises(MemoryLimitError, match=r"1,000 samples need .* the 2 nodes have .*; \d+ would fit"):
        load_on_cluster(
            InMemoryImageTextDataset, picture_rows(1000), image_size=(80, 60), memory_limit="5MB", progress=False
        )


def test_a_load_in_which_nothing_loads_is_an_error() -> None:
    """Where not one sample of the cluster can be loaded, LoadError says why; where one can, it is a dataset."""
    rows = [{"image_url": b"no picture", "caption": ""} for _ in range(20)]
    with pytest.raises(LoadError, match="not_media"):
        load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), progress=False)
    rows[0]["image_url"] = picture(0)  # type: ignore[assignment]
    with load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), progress=False) as sharded:
        assert sharded.report.num_ok == 1


def test_the_first_failure_ends_a_load_that_is_to_raise() -> None:
    """With on_error="raise" the error names the row by its number in the whole dataset."""
    rows = picture_rows()
    rows[90]["image_url"] = b"no picture"
    with pytest.raises(LoadError, match="row 90"):
        load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), on_error="raise", progress=False)


def test_sources_are_fetched_by_the_nodes(picture_server: Any) -> None:
    """Rows that name pictures on a server are fetched once each, and what the server lacks is a failure."""
    rows = [{"image_url": f"{picture_server.url}/{i}.png", "caption": f"caption {i}"} for i in range(40)]
    rows[7]["image_url"] = f"{picture_server.url}/missing.png"
    fetch = FetchOptions(allow_private_addresses=True)
    with load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), fetch=fetch, progress=False) as sharded:
        report = sharded.report
    assert report.num_ok == 39
    assert [failure.reason for failure in report.failures] == ["http_404"]
    assert sorted(picture_server.asked) == sorted({row["image_url"].rpartition("/")[2] for row in rows})


def test_a_named_dataset_is_found_again() -> None:
    """Under its name a dataset is found, and given again to who loads the same; anything else is refused."""
    rows = picture_rows(10)
    sharded = load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), name="birds", progress=False)
    try:
        assert ShardedDataset.find("birds").report.num_ok == 10
        again = load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), name="birds", progress=False)
        assert again.report.num_ok == 10
        with pytest.raises(ConfigError, match="another dataset of the name 'birds'"):
            load_on_cluster(InMemoryImageTextDataset, rows, image_size=(6, 8), name="birds", progress=False)
    finally:
        sharded.close()
    with pytest.raises(StoreError, match="no dataset 'birds'"):
        ShardedDataset.find("birds")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")
def test_parquet_csv_and_ray_datasets_are_read_by_the_cluster(tmp_path: Any, encode_png: Callable[..., bytes]) -> None:
    """Files of rows, and Ray's own datasets, give the same samples as the rows themselves, in order."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet
    import ray.data

    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(encode_png(picture(number)))
    rows = [{"image_url": str(tmp_path / f"{i}.png"), "caption": f"caption {i}"} for i in range(12)]
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table.slice(0, 5), tmp_path / "a.parquet")
    pa.parquet.write_table(table.slice(5), tmp_path / "b.parquet")
    pa.csv.write_csv(table, tmp_path / "rows.csv")
    inline = [{"image_url": encode_png(picture(i)), "caption": f"caption {i}"} for i in range(12)]
    inputs = [
        ([tmp_path / "a.parquet", tmp_path / "b.parquet"], 7),
        (tmp_path / "rows.csv", None),
        (ray.data.from_items(inline).repartition(3), None),
    ]
    for data, max_samples in inputs:
        with load_on_cluster(
            InMemoryImageTextDataset, data, max_samples=max_samples, image_size=(8, 6), progress=False
        ) as sharded:
            parts = read_everywhere(sharded)
        assert [sample for part in parts for sample in part] == expected_pictures(max_samples or 12)


@pytest.mark.parametrize(
    ("storage", "memory_limit", "num_encoded"),
    [("encoded", None, NUM_SAMPLES), ("auto", None, 0), ("auto", "55kB", NUM_SAMPLES)],
)
def test_samples_lie_in_one_form_and_are_lent_as_they_lie(
    storage: Any, memory_limit: str | None, num_encoded: int, encode_png: Callable[..., bytes]
) -> None:
    """Encoded samples are exchanged encoded, and decode to the same pixels; "auto" takes the first form that fits."""
    rows = [{"image_url": encode_png(picture(i)), "caption": f"caption {i}"} for i in range(NUM_SAMPLES)]
    with load_on_cluster(
        InMemoryImageTextDataset,
        rows,
        image_size=(24, 18),
        storage=storage,
        memory_limit=memory_limit,
        progress=False,
    ) as sharded:
        sharded.reshuffle(1, fraction=1.0)
        parts = read_everywhere(sharded)
        report = sharded.report
    sums = [(index, caption, total) for part in parts for index, caption, total in part]
    assert sorted(sums) == [(i, f"caption {i}", 24 * 18 * 3 * (i % 251)) for i in range(NUM_SAMPLES)]
    assert report.num_encoded == num_encoded


def test_what_failed_is_loaded_again_where_it_belongs(picture_server: Any) -> None:
    """What a server did not have yet is loaded again by the node that holds its row, and by nobody else."""
    rows = [{"image_url": f"{picture_server.url}/{i}.png", "caption": f"caption {i}"} for i in range(40)]
    picture_server.missing = {"3.png", "30.png", "31.png"}
    fetch = FetchOptions(allow_private_addresses=True)
    with load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), fetch=fetch, progress=False) as sharded:
        assert [failure.index for failure in sharded.report.failures] == [3, 30, 31]
        views = [
            ray.get(sharded._coordinator.view.remote(node_id, 0, Terms(), False)) for node_id in sharded.report.nodes
        ]
        picture_server.missing = {"31.png"}
        picture_server.asked.clear()
        report = sharded.retry_failed(reasons={"http_404"})
        assert sorted(picture_server.asked) == ["3.png", "30.png", "31.png"]
        assert [failure.index for failure in report.failures] == [31]
        assert (report.num_ok, report.num_tried) == (39, 3)
        served = [sample for part in read_everywhere(sharded) for sample in part if sample[0] != 31]
        assert served == [sample for sample in expected_pictures(40) if sample[0] != 31]
        with pytest.raises(ConfigError, match="reasons="):
            sharded.retry_failed(reasons={"boredom"})
        for view in views:  # what was mended has taken the place of what was there
            deadline = time.monotonic() + 20
            while (store := find_store(view.job, view.pieces[0].key)) is not None:
                store.close()
                assert time.monotonic() < deadline, "what was replaced is still held"
                time.sleep(0.1)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda sharded, shard: sharded.reshuffle(-1), "epoch=-1"),
        (lambda sharded, shard: sharded.reshuffle(True), "epoch=True"),
        (lambda sharded, shard: sharded.reshuffle(1, fraction=1.5), "fraction=1.5"),
        (lambda sharded, shard: sharded.reshuffle(1, fraction="half"), "fraction='half'"),
        (lambda sharded, shard: sharded.sampler(shard, 0), "batch_size=0"),
        (lambda sharded, shard: sharded.sampler(shard, True), "batch_size=True"),
        (lambda sharded, shard: sharded.sampler(shard, 4, seed=-1), "seed"),
        (lambda sharded, shard: sharded.sampler(range(4), 4), "needs what local_shard"),
        (lambda sharded, shard: sharded.sampler(shard, 4, rank=0), "both rank and node_ids"),
        (lambda sharded, shard: sharded.sampler(shard, 4, rank=1, node_ids=living_nodes()[:1]), "rank"),
        (lambda sharded, shard: sharded.sampler(shard, 4, rank=0, node_ids=["nowhere"]), "nowhere"),
    ],
)
def test_what_cannot_be_served_is_refused(
    small: ShardedDataset[Any], ask: Callable[[Any, Any], object], message: str
) -> None:
    """What no epoch, fraction, batch or job can be is a ConfigError that shows it."""
    with small.local_shard() as shard, pytest.raises(ConfigError, match=message):
        ask(small, shard)


def test_the_driver_can_read_the_shard_of_its_own_node() -> None:
    """In the driver too a shard is an ordinary dataset of the node's samples: it tells, saves, verifies, pickles."""
    with (
        load_on_cluster(InMemoryImageTextDataset, picture_rows(), image_size=(8, 6), progress=False) as sharded,
        sharded.local_shard() as shard,
    ):
        assert isinstance(shard, InMemoryImageTextDataset)
        assert len(shard) in (50, 51)
        assert len(sharded) == NUM_SAMPLES
        assert shard.report.num_ok == len(shard)
        assert shard.verify() == shard.failed_indices == []
        with pytest.raises(ConfigError, match="retry_failed"):
            shard.retry_failed()
        copy = pickle.loads(pickle.dumps(shard))
        assert [copy[i]["index"] for i in range(len(copy))] == [shard[i]["index"] for i in range(len(shard))]
        copy.close()


def test_a_shard_that_has_guests_is_saved_as_one_dataset(tmp_path: Any) -> None:
    """What a node has, borrowed samples included, is saved as a dataset of its own."""
    with load_on_cluster(InMemoryImageTextDataset, picture_rows(), image_size=(8, 6), progress=False) as sharded:
        sharded.reshuffle(1, fraction=1.0)
        with sharded.local_shard(1) as shard:
            shard.save(tmp_path / "shard", progress=False)
            expected = {shard[i]["caption"] for i in range(len(shard))}
    with InMemoryImageTextDataset.load(tmp_path / "shard", verify=True) as saved:
        assert expected <= {saved[i]["caption"] for i in range(len(saved))}


def test_a_plan_is_made_before_anything_is_fetched(picture_server: Any) -> None:
    """The plan of a cluster says what each node is to hold, and asks no server."""
    rows = [{"image_url": f"{picture_server.url}/{i}.png", "caption": f"caption {i}"} for i in range(1000)]
    plan = plan_on_cluster(InMemoryImageTextDataset, rows, image_size=(80, 60), memory_limit="5MB")
    assert (plan.num_samples, plan.fits, len(plan.nodes)) == (1000, False, 2)
    assert 14_400 < plan.bytes_per_sample < 15_000
    fitting = plan_on_cluster(
        InMemoryImageTextDataset, rows, image_size=(80, 60), memory_limit="5MB", max_samples=plan.num_samples_that_fit
    )
    assert fitting.fits
    assert picture_server.asked == []
