"""What a load would take, in every form, and as many samples as fit."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from in_memory_datasets import (
    ConfigError,
    FetchOptions,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    MemoryLimitError,
    cache,
)
from in_memory_datasets.build.planning import MAX_PROBE, Probe
from in_memory_datasets.memory import MemoryWatch
from in_memory_datasets.schema import MemoryPlan, TierPlan
from tests.process.conftest import MediaServer
from tests.unit.test_memory import make_machine
from tests.unit.test_storage import NUM_ROWS, SIZE, image_rows, jpeg, load

LOOPBACK = FetchOptions(allow_private_addresses=True)


def tier(plan: MemoryPlan, name: str) -> TierPlan:
    return next(one for one in plan.tiers if one.name == name)


def test_the_plan_prints_a_table_of_all_forms() -> None:
    rows = [{"image_url": "https://a.example/1.jpg", "caption": "a cat"}] * 10_000
    plan = InMemoryImageTextDataset.plan(rows, memory_limit="1GB")
    assert str(plan).splitlines() == [
        "samples           10,000",
        "memory available  1 GB (memory_limit)",
        "                  memory needed     fits  samples that fit",
        f"  decoded         1.51 GB           no    {tier(plan, 'decoded').num_samples_that_fit:>16,}",
        f"  encoded         at most 1.51 GB   no    {tier(plan, 'encoded').num_samples_that_fit:>16,}",
    ]


def test_clips_are_planned_in_three_forms() -> None:
    plan = InMemoryAudioTextDataset.plan([{"audio": "https://a.example/1.mp3", "caption": ""}] * 1000, dtype="int16")
    assert [one.name for one in plan.tiers] == ["decoded", "int16", "encoded"]
    assert plan.bytes_needed == tier(plan, "int16").bytes_needed
    assert tier(plan, "decoded").bytes_needed == pytest.approx(2 * tier(plan, "int16").bytes_needed, rel=0.01)
    assert all(one.is_upper_bound and not one.is_estimate for one in plan.tiers)
    odd = InMemoryAudioTextDataset.plan([{"audio": "a.wav", "caption": ""}], target_sr=96_001)
    assert [one.name for one in odd.tiers] == ["decoded", "int16"]  # FLAC does not hold that rate


@pytest.mark.parametrize("where", ["inline", "files"])
def test_encoded_sizes_that_are_known_without_a_fetch_are_planned_with(tmp_path: Path, where: str) -> None:
    rows = [{"image_url": jpeg(i), "caption": f"picture {i}"} for i in range(NUM_ROWS)]
    if where == "files":
        for i, row in enumerate(rows):
            (tmp_path / f"{i}.jpg").write_bytes(row["image_url"])  # type: ignore[arg-type]
            row["image_url"] = str(tmp_path / f"{i}.jpg")
    plan = InMemoryImageTextDataset.plan(rows, image_size=SIZE, storage="encoded")
    with InMemoryImageTextDataset(rows, image_size=SIZE, storage="encoded", progress=False) as dataset:
        assert plan.bytes_needed == pytest.approx(dataset.nbytes, rel=0.02)
    assert (plan.storage, plan.is_upper_bound, tier(plan, "encoded").is_estimate) == ("encoded", False, True)
    assert "  encoded         about " in str(plan)


@pytest.mark.parametrize("num_decoded", [0, 5, 17])
def test_a_mixture_is_planned_as_it_is_built(num_decoded: int) -> None:
    rows = [{"image_url": jpeg(i), "caption": f"picture {i}"} for i in range(NUM_ROWS)]
    base = InMemoryImageTextDataset.plan(rows, image_size=SIZE, storage="encoded").bytes_needed
    assert base is not None
    arguments: Any = {"image_size": SIZE, "storage": "auto", "memory_limit": base + num_decoded * 48 * 40 * 3 + 1}
    plan = InMemoryImageTextDataset.plan(rows, **arguments)
    assert plan.num_decoded is not None
    with InMemoryImageTextDataset(rows, progress=False, **arguments) as dataset:
        assert abs(dataset.report.num_decoded - plan.num_decoded) <= 1
    assert plan.fits
    assert f"mixture           {plan.num_decoded:,} decoded, {NUM_ROWS - plan.num_decoded:,} encoded" in str(plan)


def test_what_a_mixture_leaves_on_disk_is_planned() -> None:
    rows = [{"image_url": jpeg(i), "caption": ""} for i in range(NUM_ROWS)]
    plan = InMemoryImageTextDataset.plan(rows, image_size=SIZE, storage="auto", memory_limit=20_000)
    assert (plan.fits, plan.num_decoded) == (False, 0)
    assert plan.num_on_disk == NUM_ROWS - plan.num_samples_that_fit > 0
    assert f"0 decoded, {plan.num_samples_that_fit} encoded, {plan.num_on_disk} on disk" in str(plan)


@pytest.fixture
def server() -> Any:
    with MediaServer() as media:
        yield media


@pytest.mark.parametrize("kind", ["png", "wav"])
def test_a_probe_fetches_the_first_samples_and_no_more(server: MediaServer, kind: str) -> None:
    # zeros in front make another URL of the same picture
    paths = [f"/{i % 7:0{1 + i // 7}}.{kind}" for i in range(500)]
    rows = [{"media": server.url + path, "caption": path} for path in paths]
    cls: Any = InMemoryImageTextDataset if kind == "png" else InMemoryAudioTextDataset
    columns = {"img_col": "media"} if kind == "png" else {"audio_col": "media", "target_sr": 8_000}
    arguments = {**columns, "fetch": LOOPBACK, "storage": "encoded"}
    blind = cls.plan(rows, **arguments)
    assert server.requests == []
    assert (blind.seconds, blind.num_probed, blind.is_upper_bound) == (None, 0, True)
    plan = cls.plan(rows, probe=21, **arguments)
    assert sorted(server.requests) == sorted(paths[:21])
    assert plan.num_probed == 21
    assert plan.seconds > 0
    assert f"load time         about {plan.seconds:.1f} s (21 samples probed)" in str(plan)
    assert not plan.is_upper_bound
    with cls(rows, progress=False, **arguments) as dataset:
        assert plan.bytes_needed == pytest.approx(dataset.nbytes, rel=0.1)
        assert blind.bytes_needed > dataset.nbytes


def test_a_probe_of_failures_still_says_how_long(server: MediaServer) -> None:
    server.broken = {f"/{i}.png" for i in range(5)}
    rows = [{"image_url": f"{server.url}/{i}.png", "caption": ""} for i in range(5)]
    plan = InMemoryImageTextDataset.plan(rows, probe=5, fetch=LOOPBACK)
    assert plan.num_probed == 5
    assert plan.seconds is not None
    assert plan.seconds > 0


@pytest.mark.parametrize("probe", [-1, MAX_PROBE + 1, True, 2.5, "all"])
def test_never_more_than_64_samples_are_probed(probe: Any) -> None:
    with pytest.raises(ConfigError, match="from 0 to 64"):
        InMemoryImageTextDataset.plan(image_rows(), probe=probe)


def test_an_iterator_is_not_used_up_by_a_probe() -> None:
    with pytest.raises(ConfigError, match="gone once it is read"):
        InMemoryImageTextDataset.plan(iter(image_rows()), probe=3)
    stream = datasets.Dataset.from_list([{"image_url": f"{i}", "caption": ""} for i in range(9)]).to_iterable_dataset()
    assert InMemoryImageTextDataset.plan(stream, probe=3).num_probed == 3


@pytest.mark.parametrize(
    ("latency", "decode", "hosts", "expected"),
    [(0.1, 0.0, 1, 10_000 * 0.1 / 32), (0.1, 0.0, 8, 10_000 * 0.1 / 128), (0.001, 0.01, 1, 10_000 * 0.01 / 2)],
)
def test_the_slower_of_fetching_and_decoding_decides_how_long(
    latency: float, decode: float, hosts: int, expected: float
) -> None:
    probe = Probe(64, hosts, latency, decode, encoded_bytes=None, num_frames=0.0)
    assert probe.seconds_for(10_000, fetch=FetchOptions(), num_threads=2) == pytest.approx(expected)


@pytest.mark.parametrize("make", [list, iter, lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset()])
def test_as_many_images_as_fit_are_taken(make: Any) -> None:
    rows = [{"image_url": jpeg(i), "caption": f"picture {i}"} for i in range(NUM_ROWS)]
    plan = InMemoryImageTextDataset.plan(rows, image_size=SIZE, max_samples="auto", memory_limit=100_000)
    assert 0 < plan.num_samples_that_fit < NUM_ROWS
    assert (plan.num_samples, plan.fits) == (plan.num_samples_that_fit, True)
    with InMemoryImageTextDataset(
        make(rows), image_size=SIZE, max_samples="auto", memory_limit=100_000, progress=False
    ) as dataset:
        assert dataset.nbytes <= 110_000
        assert len(dataset) == dataset.report.num_samples > 0.8 * plan.num_samples_that_fit
        if make is list:
            assert len(dataset) == plan.num_samples_that_fit
        assert [sample["caption"] for sample in dataset] == [f"picture {i}" for i in range(len(dataset))]


def test_all_are_taken_where_all_fit() -> None:
    for kind, storage in itertools.product(("images", "clips"), ("decoded", "encoded", "auto")):
        with load(kind, storage=storage, max_samples="auto") as dataset:
            assert len(dataset) == NUM_ROWS


@pytest.mark.parametrize(("kind", "storage"), [("clips", "decoded"), ("clips", "encoded"), ("images", "encoded")])
def test_of_samples_of_different_lengths_the_longest_run_that_fits_is_taken(
    tmp_path: Path, kind: str, storage: str
) -> None:
    """Whatever arrives first: the same limit gives the same store, bit for bit."""
    with load(kind, storage=storage) as dataset:
        sizes = [dataset._store.sample(slot).nbytes for slot in range(NUM_ROWS)]
        row_bytes = dataset._store.rows.nbytes / NUM_ROWS
    limit = round(sum(sizes) * 0.6)
    for num_threads in (1, 4):
        with load(kind, storage=storage, max_samples="auto", memory_limit=limit, num_threads=num_threads) as dataset:
            num_rows, nbytes = len(dataset), dataset.nbytes
            dataset.save(tmp_path / str(num_threads))
            assert dataset.verify() == []
        assert nbytes <= limit
        assert nbytes + sum(sizes[num_rows : num_rows + 2]) + 2 * row_bytes > limit * 0.99
    for file in ("manifest.json", "rows.arrow", "samples.safetensors"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "4" / file).read_bytes()


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_what_was_taken_is_attached_to_though_other_memory_is_free_now(tmp_path: Path, kind: str) -> None:
    lengths = []
    for limit in ("100kB", "2GB", None):
        with load(kind, max_samples="auto", memory_limit=limit, cache_dir=tmp_path) as dataset:
            lengths.append(len(dataset))
    assert lengths[0] == lengths[1] == lengths[2] < NUM_ROWS
    with load(kind, cache_dir=tmp_path) as dataset:
        assert len(dataset) == NUM_ROWS
    assert len(cache.entries(tmp_path)) == 2


@pytest.mark.parametrize("storage", ["decoded", "encoded"])
@pytest.mark.parametrize("kind", ["images", "clips"])
def test_where_not_one_fits_that_is_said(kind: str, storage: str) -> None:
    with pytest.raises(MemoryLimitError, match=r"not one sample fits into the 500 B there are: (give|take)"):
        load(kind, storage=storage, max_samples="auto", memory_limit=500)


def test_other_words_than_auto_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_samples='all': expected a whole number .* or 'auto'"):
        load("images", max_samples="all")


def test_the_watch_speaks_once_when_hardly_any_memory_is_left(tmp_path: Path) -> None:
    root = make_machine(tmp_path, available=10**9)
    said: list[tuple[int, str]] = []
    heard = threading.Event()

    def hear(free: int, limited_by: str) -> None:
        said.append((free, limited_by))
        heard.set()

    with MemoryWatch(hear, floor_bytes=5 * 10**8, root=root):
        assert said == []
        (root / "proc/meminfo").write_text("MemAvailable: 1024 kB\n")
        assert heard.wait(30)
    assert said == [(2**20, "machine")]


def test_the_watch_looks_seldom_while_there_is_plenty_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    free, num_looks, heard = 10**12, 0, threading.Event()
    looked_often = threading.Event()

    def free_memory(*_: object) -> tuple[int, str]:
        nonlocal num_looks
        num_looks += 1
        if free < 10**12 and num_looks >= 8:
            looked_often.set()
        return free, "machine"

    monkeypatch.setattr("in_memory_datasets.memory.free_memory", free_memory)
    with MemoryWatch(lambda *_: heard.set(), floor_bytes=10**8):
        time.sleep(0.7)
        assert num_looks <= 2
        free = 10**9
        assert looked_often.wait(30)
        free = 10**7
        assert heard.wait(30)


def test_a_load_that_runs_out_of_memory_ends_in_order_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: MediaServer
) -> None:
    rows = [{"image_url": f"{server.url}/{i}.png", "caption": ""} for i in range(10)]
    server.stalled_paths = {"/3.png"}
    free = iter([(10**12, "machine")])  # of the plan; then the watch finds this:

    def free_memory(*_: object) -> tuple[int, str]:
        journals = list(tmp_path.glob("*/journal"))
        if journals and journals[0].stat().st_size == 9 * 40:
            return 5 * 10**6, "cgroup"
        return next(free, (10**12, "machine"))

    with monkeypatch.context() as patched:
        patched.setattr("in_memory_datasets.memory.free_memory", free_memory)
        with pytest.raises(MemoryLimitError, match=r"container has only 5 MB left .* 9 samples are in place"):
            InMemoryImageTextDataset(rows, cache_dir=tmp_path, fetch=LOOPBACK, progress=False)
    server.stalled_paths = set()
    server.release.set()
    server.requests.clear()
    with InMemoryImageTextDataset(rows, cache_dir=tmp_path, fetch=LOOPBACK, progress=False) as dataset:
        assert dataset.report.num_ok == 10
    assert server.requests == ["/3.png"]
