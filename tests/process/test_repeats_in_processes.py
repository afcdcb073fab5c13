"""Rows that name the same URL ask for it once: alone, in every rank of a job, and after a builder was killed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from in_memory_datasets import (
    FetchOptions,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
)
from tests.process.conftest import MediaServer, Script, kill_one_that_lacks_two, make_media, result_of
from tests.process.test_sharing import launch

LOOPBACK = FetchOptions(allow_private_addresses=True, retries=0)
FAILED = [i for i in range(60) if i % 12 == 7]


def urls_of(server: MediaServer, kind: str = "png") -> list[str]:
    """Five captions for each of twelve, as COCO has them in one row each."""
    return [f"{server.url}/{i % 12}.{kind}" for i in range(60)]


def load(server: MediaServer, kind: str, **arguments: Any) -> Any:
    column = "image_url" if kind == "png" else "audio"
    rows = [{column: url, "caption": f"caption {i}"} for i, url in enumerate(urls_of(server, kind))]
    arguments = {"fetch": LOOPBACK, "progress": False, **arguments}
    if kind == "png":
        return InMemoryImageTextDataset(rows, image_size=(32, 32), **arguments)
    return InMemoryAudioTextDataset(rows, target_sr=8_000, max_duration=2.0, **arguments)


@pytest.mark.parametrize("storage", ["decoded", "encoded", "auto"])
@pytest.mark.parametrize("kind", ["png", "wav"])
def test_each_url_is_asked_for_once_and_every_row_has_its_own_caption(
    server: MediaServer, kind: str, storage: str
) -> None:
    server.broken = {f"/7.{kind}"}
    with load(server, kind, storage=storage) as dataset:
        assert Counter(server.requests) == Counter(f"/{i}.{kind}" for i in range(12))
        assert [sample["caption"] for sample in dataset] == [f"caption {i}" for i in range(60)]
        assert dataset.failed_indices == FAILED
        report = dataset.report
        assert (report.num_samples, report.num_ok, report.num_unique) == (60, 55, 12)
        assert report.by_reason == {"http_404": 5}
        assert {(f.source, f.reason, f.host, f.attempts) for f in report.failures} == {
            (f"{server.url}/7.{kind}", "http_404", "127.0.0.1", 1)
        }
        assert report.bytes_fetched == sum(len(make_media(f"/{i}.{kind}")) for i in range(12) if i != 7)
        for i, sample in enumerate(dataset):
            if i not in FAILED and kind == "png":
                assert sample["image"].unique().tolist() == [i % 12]
            elif i not in FAILED:
                assert len(sample["audio"]) == (i % 12 + 1) * 800


@pytest.mark.parametrize("kind", ["png", "wav"])
def test_what_failed_is_asked_for_once_more_for_all_its_rows(server: MediaServer, kind: str, tmp_path: Path) -> None:
    server.broken = {f"/7.{kind}", f"/0.{kind}"}
    with load(server, kind, cache_dir=tmp_path) as dataset:
        server.broken.clear()
        server.requests.clear()
        assert dataset.retry_failed().num_failed == 0
        assert sorted(server.requests) == [f"/0.{kind}", f"/7.{kind}"]
        assert all(sample["valid"] for sample in dataset)
        with load(server, kind, cache_dir=tmp_path) as attached:
            assert attached.failed_indices == attached.verify() == []
        assert len(server.requests) == 2


@pytest.mark.parametrize("kind", ["png", "wav"])
def test_worker_processes_serve_what_rows_share(server: MediaServer, kind: str) -> None:
    collate = collate_in_memory_images if kind == "png" else collate_in_memory_audio
    field = "images" if kind == "png" else "audio"
    with load(server, kind) as dataset:
        epochs = [
            list(DataLoader(dataset, batch_size=16, collate_fn=collate, num_workers=num_workers))
            for num_workers in (0, 2)
        ]
        for alone, helped in zip(*epochs, strict=True):
            assert torch.equal(alone[field], helped[field])
            assert alone["captions"] == helped["captions"]


@pytest.mark.parametrize("with_cache", [False, True])
def test_two_ranks_ask_for_each_url_once_between_them(
    tmp_path: Path, server: MediaServer, script: Script, with_cache: bool
) -> None:
    cache_dir = str(tmp_path / "cache") if with_cache else None
    first, second = launch(script, tmp_path, "load_urls", urls=urls_of(server), cache_dir=cache_dir, distributed=True)
    assert first["inode"] == second["inode"]
    assert first["total"] == second["total"] == 5 * sum(range(12)) * 32 * 32 * 3
    assert Counter(server.requests) == Counter(f"/{i}.png" for i in range(12))


def test_the_next_job_fetches_only_what_a_killed_one_had_not_in_place(
    tmp_path: Path, server: MediaServer, script: Script
) -> None:
    urls = urls_of(server)
    kill_one_that_lacks_two(script, server, urls, tmp_path / "cache", of=12)
    result = result_of(script("load_urls", urls=urls, cache_dir=str(tmp_path / "cache")))
    assert sorted(server.requests) == ["/3.png", "/8.png"]
    assert result["failed"] == []
    assert result["total"] == 5 * sum(range(12)) * 32 * 32 * 3
    result_of(script("load_urls", urls=urls, cache_dir=str(tmp_path / "uninterrupted")))
    for name in ("manifest.json", "rows.arrow", "samples.safetensors"):
        one, other = (next((tmp_path / place).glob(f"*/{name}")) for place in ("cache", "uninterrupted"))
        assert one.read_bytes() == other.read_bytes()
        assert len(list(one.parent.iterdir())) == 3
