"""Everything the README promises, through the public API, against a real HTTP server on this machine.

Runs by `python test_in_memory_datasets.py`, which prints a line per check, and by pytest. It is longer than 600 lines
because it is one list, which a user reads and runs as one file: what may be relied on, each promise with its check.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import datasets
import numpy as np
import pytest
import soundfile
import soxr
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Subset, random_split

from demo.server import DemoServer, serve_demo
from in_memory_datasets import (
    AudioTextDataset,
    ConfigError,
    DevicePrefetcher,
    DurationBatchSampler,
    EpochSampler,
    FetchOptions,
    ImageTextDataset,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    LoadError,
    MemoryLimitError,
    StoreError,
    cache,
    collate_audio,
    collate_images,
    collate_in_memory_audio,
    collate_in_memory_images,
    presets,
)
from tests.serving import LocalServer, QuietHandler

ROOT = Path(__file__).parent
NUM_IMAGES, NUM_CLIPS = 30, 9
# The server is this machine's own, which no dataset may reach unless it is told so.
HERE = FetchOptions(allow_private_addresses=True, retries=0)


class Gate(LocalServer):
    """Stand before the demonstration server: count requests, answer some with 404 until told otherwise."""

    def __init__(self, behind: str) -> None:
        super().__init__(_Forward)
        self.behind = urlsplit(behind).netloc
        self.num_requests = 0
        self.broken: set[str] = set()
        self.opted_out: set[str] = set()

    def count(self) -> None:
        with self._lock:
            self.num_requests += 1


class _Forward(QuietHandler):
    server: Gate

    def do_GET(self) -> None:
        self.server.count()
        upstream = http.client.HTTPConnection(self.server.behind)
        with contextlib.closing(upstream):
            upstream.request("GET", self.path)
            answer = upstream.getresponse()
            status, body = answer.status, answer.read()
        if self.path in self.server.broken:
            status, body = 404, b"<html>gone</html>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.path in self.server.opted_out:
            self.send_header("X-Robots-Tag", "noai")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with serve_demo(latency_seconds=0.002) as running:
        yield running


@pytest.fixture
def gate(server: DemoServer) -> Iterator[Gate]:
    with Gate(server.url) as gate:
        yield gate


def image_rows(gate: Gate, server: DemoServer, num_rows: int = NUM_IMAGES) -> list[dict[str, Any]]:
    rows = server.image_rows(num_rows)
    return [{**row, "image_url": gate.url + urlsplit(row["image_url"]).path} for row in rows]


def paths(rows: list[dict[str, Any]], indices: list[int]) -> set[str]:
    return {urlsplit(rows[i]["image_url"]).path for i in indices}


@pytest.fixture(scope="module")
def hf_images(server: DemoServer) -> datasets.Dataset:
    return datasets.Dataset.from_list(server.image_rows(NUM_IMAGES))


@pytest.fixture(scope="module")
def hf_clips(server: DemoServer) -> datasets.Dataset:
    return datasets.Dataset.from_list(server.sound_rows(NUM_CLIPS))


@pytest.fixture(scope="module")
def images(hf_images: datasets.Dataset) -> Iterator[InMemoryImageTextDataset]:
    with InMemoryImageTextDataset(hf_images, fetch=HERE, progress=False) as dataset:
        yield dataset


@pytest.fixture(scope="module")
def clips(hf_clips: datasets.Dataset) -> Iterator[InMemoryAudioTextDataset]:
    with InMemoryAudioTextDataset(hf_clips, fetch=HERE, progress=False) as dataset:
        yield dataset


def read(url: str) -> bytes:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc)
    with contextlib.closing(connection):
        connection.request("GET", parts.path)
        return connection.getresponse().read()


# --- the three lines ------------------------------------------------------------------------------------------------


def test_the_three_lines_for_images(hf_images: datasets.Dataset) -> None:
    """A dataset, a stock DataLoader and a collate function give batches of uint8 images, channels_last."""
    dataset = InMemoryImageTextDataset(hf_images, max_samples=16, fetch=HERE, progress=False)
    dataloader = DataLoader(dataset, batch_size=8, collate_fn=collate_in_memory_images)
    batches = list(dataloader)
    assert len(batches) == 2
    for batch in batches:
        assert sorted(batch) == ["captions", "images", "indices", "valid"]
        assert batch["images"].shape == (8, 3, 224, 224)
        assert batch["images"].dtype == torch.uint8
        assert batch["images"].is_contiguous(memory_format=torch.channels_last)
        assert batch["indices"].dtype == torch.int64
        assert batch["valid"].all()
    assert torch.cat([batch["indices"] for batch in batches]).tolist() == list(range(16))
    assert [caption for batch in batches for caption in batch["captions"]] == hf_images["caption"][:16]


def test_the_three_lines_for_audio(hf_clips: datasets.Dataset) -> None:
    """A dataset, a stock DataLoader and a collate function give float32 waveforms, zero-padded, with their lengths."""
    dataset = InMemoryAudioTextDataset(hf_clips, fetch=HERE, progress=False)
    dataloader = DataLoader(dataset, batch_size=NUM_CLIPS, collate_fn=collate_in_memory_audio)
    (batch,) = dataloader
    assert sorted(batch) == ["audio", "captions", "indices", "lengths", "valid"]
    assert batch["audio"].dtype == torch.float32
    assert batch["audio"].shape == (NUM_CLIPS, int(batch["lengths"].max()))
    assert batch["audio"].abs().max() <= 1
    for clip, length in zip(batch["audio"], batch["lengths"], strict=True):
        assert not clip[length:].any()
        assert clip[:length].any()
    assert batch["captions"] == hf_clips["caption"][:]


def test_a_sample_is_what_the_api_says(images: InMemoryImageTextDataset, clips: InMemoryAudioTextDataset) -> None:
    """Samples are plain dictionaries of an image or waveform, a caption, the row number and whether it is real."""
    image = images[3]
    assert image["image"].shape == (3, 224, 224)
    assert image["image"].dtype == torch.uint8
    assert (type(image["caption"]), image["index"], image["valid"]) == (str, 3, True)
    clip = clips[2]
    assert clip["audio"].dtype == torch.float32
    assert clip["audio"].ndim == 1
    assert (clip["sampling_rate"], clip["index"], clip["valid"]) == (16_000, 2, True)
    with pytest.raises(IndexError):
        images[NUM_IMAGES]


def test_images_are_those_that_were_served(images: InMemoryImageTextDataset, hf_images: datasets.Dataset) -> None:
    """An image equals Pillow's own bicubic resize of the file."""
    for i in range(5):
        picture = Image.open(io.BytesIO(read(hf_images[i]["image_url"]))).convert("RGB")
        expected = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        error = images[i]["image"].permute(1, 2, 0).numpy().astype(np.float32) - expected
        assert 10 * np.log10(255**2 / max(np.mean(error**2), 1e-9)) > 40


def test_clips_are_those_that_were_served(clips: InMemoryAudioTextDataset, hf_clips: datasets.Dataset) -> None:
    """A waveform equals what soundfile reads and soxr resamples."""
    for i in range(3):
        frames, rate = soundfile.read(io.BytesIO(read(hf_clips[i]["audio"])), dtype="float32")
        expected = np.clip(soxr.resample(frames, rate, 16_000, quality="HQ"), -1, 1)
        clip = clips[i]["audio"].numpy()
        assert abs(len(clip) - len(expected)) <= 1
        num_frames = min(len(clip), len(expected))
        error = clip[:num_frames] - expected[:num_frames]
        assert np.mean(error**2) < np.mean(expected**2) * 10**-3.5


# --- what can be asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_resize(resize: Any) -> None:
    """Images are stretched, cropped to the centre or padded with black; sizes are (width, height)."""
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, :40], wide[:, 40:80], wide[:, 80:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    rows = [{"image_url": wide, "caption": ""}]
    with InMemoryImageTextDataset(rows, image_size=(60, 60), resize=resize, progress=False) as dataset:
        image = dataset[0]["image"]
    assert image.shape == (3, 60, 60)
    middle = image[:, 30]
    assert middle[1, 30] > 240
    if resize == "crop":
        assert (middle[0] < 10).all()
        assert (image[1].float().mean()) > 240
    else:
        assert middle[0, 5] > 240
        assert middle[2, 55] > 240
    assert (image[:, 2].sum() == 0) == (resize == "pad")
    with InMemoryImageTextDataset(rows, image_size=(64, 32), resize=resize, progress=False) as dataset:
        assert dataset[0]["image"].shape == (3, 32, 64)


def test_target_sr_and_max_duration(hf_clips: datasets.Dataset) -> None:
    """Clips are resampled to target_sr, and cut at max_duration; int16 takes half of float32."""
    arguments: dict[str, Any] = {"target_sr": 8000, "max_duration": 0.5, "fetch": HERE, "progress": False}
    with (
        InMemoryAudioTextDataset(hf_clips, **arguments) as floats,
        InMemoryAudioTextDataset(hf_clips, dtype="int16", **arguments) as integers,
    ):
        assert [len(sample["audio"]) for sample in floats] == [4000] * NUM_CLIPS
        assert floats[0]["sampling_rate"] == 8000
        torch.testing.assert_close(floats[0]["audio"], integers[0]["audio"], atol=1 / 32_000, rtol=0)
        assert floats.nbytes - integers.nbytes == NUM_CLIPS * 4000 * 2


def test_pad_to_max(hf_clips: datasets.Dataset) -> None:
    """pad_to="max" makes every batch max_duration long."""
    with InMemoryAudioTextDataset(hf_clips, max_duration=5.0, pad_to="max", fetch=HERE, progress=False) as dataset:
        batch = next(iter(DataLoader(dataset, batch_size=2, collate_fn=collate_in_memory_audio)))
    assert batch["audio"].shape == (2, 80_000)
    assert (batch["lengths"] < 80_000).all()


def test_a_clip_costs_its_own_length(clips: InMemoryAudioTextDataset) -> None:
    """Clips are packed: they take four bytes a frame, and not max_duration each."""
    num_frames = sum(len(sample["audio"]) for sample in clips)
    assert clips.nbytes < num_frames * 4 * 1.02 + 20_000
    assert clips.nbytes < NUM_CLIPS * 30 * 16_000 * 4 / 4


@pytest.mark.parametrize("output", ["numpy", "pil"])
def test_output(output: Any, images: InMemoryImageTextDataset, hf_images: datasets.Dataset) -> None:
    """Images come as arrays or as pictures where that is asked for, with the same pixels."""
    with InMemoryImageTextDataset(hf_images, max_samples=4, output=output, fetch=HERE, progress=False) as dataset:
        image = dataset[1]["image"]
        np.testing.assert_array_equal(np.asarray(image), images[1]["image"].permute(1, 2, 0).numpy())
        batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=collate_in_memory_images)))
    if output == "numpy":
        assert batch["images"].shape == (4, 224, 224, 3)
    else:
        assert [picture.size for picture in batch["images"]] == [(224, 224)] * 4


def test_transforms(hf_images: datasets.Dataset, hf_clips: datasets.Dataset) -> None:
    """transform sees one sample's image or waveform, batch_transform the batch tensor."""
    seen: list[tuple[int, ...]] = []

    def halve(image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape))
        return image[:, ::2, ::2]

    with InMemoryImageTextDataset(
        hf_images,
        max_samples=4,
        transform=halve,
        batch_transform=lambda batch: batch.float() / 255,
        fetch=HERE,
        progress=False,
    ) as dataset:
        batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=collate_in_memory_images)))
    assert seen == [(3, 224, 224)] * 4
    assert batch["images"].shape == (4, 3, 112, 112)
    assert batch["images"].max() <= 1
    with InMemoryAudioTextDataset(
        hf_clips, max_samples=2, transform=lambda clip: clip[:100], fetch=HERE, progress=False
    ) as sounds:
        assert collate_in_memory_audio(sounds.__getitems__([0, 1]))["lengths"].tolist() == [100, 100]


def test_captions_first_random_and_all(server: DemoServer) -> None:
    """Of several captions the first, another one each epoch, or all of them."""
    rows = [{**row, "caption": [f"{i} one", f"{i} two"]} for i, row in enumerate(server.image_rows(6))]
    with InMemoryImageTextDataset(rows, image_size=(8, 8), fetch=HERE, progress=False) as first:
        assert [sample["caption"] for sample in first] == [f"{i} one" for i in range(6)]
    with InMemoryImageTextDataset(rows, image_size=(8, 8), captions="all", fetch=HERE, progress=False) as every:
        assert every[2]["caption"] == ["2 one", "2 two"]
    with InMemoryImageTextDataset(rows, image_size=(8, 8), captions="random", fetch=HERE, progress=False) as random:
        epochs = [[sample["caption"] for sample in random] for _ in range(2)]
    for i, turns in enumerate(zip(*epochs, strict=True)):
        assert sorted(turns) == [f"{i} one", f"{i} two"]


@pytest.mark.parametrize("how", ["shuffled", "streamed", "list", "generator"])
def test_rows_of_every_kind(how: str, server: DemoServer, hf_images: datasets.Dataset) -> None:
    """A Dataset after select and shuffle, an IterableDataset, a list and a generator all load."""
    rows = server.image_rows(NUM_IMAGES)
    order = list(range(8))
    data: Any
    if how == "shuffled":
        shuffled = hf_images.select(range(20)).shuffle(seed=3)
        data = shuffled
        order = [hf_images["caption"][:].index(caption) for caption in shuffled["caption"][:8]]
    elif how == "streamed":
        data = hf_images.to_iterable_dataset()
    else:
        data = rows if how == "list" else iter(rows)
    with InMemoryImageTextDataset(data, max_samples=8, image_size=(16, 16), fetch=HERE, progress=False) as dataset:
        assert [sample["index"] for sample in dataset] == list(range(8))
        assert [sample["caption"] for sample in dataset] == [rows[i]["caption"] for i in order]


def test_sources_of_every_kind(hf_images: datasets.Dataset, tmp_path: Path) -> None:
    """A URL, bytes, a path, an HF Image value, a picture and an array give the same image."""
    url = hf_images[3]["image_url"]  # a PNG
    data = read(url)
    (tmp_path / "a.png").write_bytes(data)
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    sources = [url, data, str(tmp_path / "a.png"), {"bytes": data, "path": None}, picture, np.asarray(picture)]
    rows = [{"image_url": source, "caption": ""} for source in sources]
    with InMemoryImageTextDataset(rows, fetch=HERE, progress=False) as dataset:
        assert dataset.report.num_ok == len(rows)
        for sample in dataset:
            torch.testing.assert_close(sample["image"], dataset[0]["image"])


def test_a_missing_column_is_named(hf_clips: datasets.Dataset) -> None:
    """Whoever forgets the column is told which there are."""
    with pytest.raises(ConfigError, match=r"no column 'image_url'.*'audio', 'caption'"):
        InMemoryImageTextDataset(hf_clips)


# --- failures -------------------------------------------------------------------------------------------------------


def test_failures_become_placeholders(gate: Gate, server: DemoServer) -> None:
    """A file that is gone is grey, not valid, keeps its caption, and is listed with its reason."""
    rows = image_rows(gate, server)
    gate.broken = paths(rows, [4, 11])
    with InMemoryImageTextDataset(rows, fetch=HERE, progress=False) as dataset:
        assert len(dataset) == NUM_IMAGES
        assert dataset.failed_indices == [4, 11]
        assert (dataset[4]["image"] == 128).all()
        assert dataset[4]["valid"] is False
        assert dataset[4]["caption"] == rows[4]["caption"]
        report = dataset.report
        assert (report.num_samples, report.num_ok, report.num_failed) == (NUM_IMAGES, NUM_IMAGES - 2, 2)
        assert report.by_reason == {"http_404": 2}
        assert [(failure.index, failure.stage, failure.host) for failure in report.failures] == [
            (4, "fetch", "127.0.0.1"),
            (11, "fetch", "127.0.0.1"),
        ]
        assert report.nbytes == dataset.nbytes
        assert report.bytes_fetched > 0
        assert "28 of 30 samples loaded" in str(report)
        assert "2 failed: 2 http_404" in str(report)


def test_a_report_explains_the_load(gate: Gate, server: DemoServer, tmp_path: Path) -> None:
    """It says at which hosts and stages samples failed, what took how long, and what the limit was; as a file too."""
    rows = image_rows(gate, server)
    gate.broken = paths(rows, [4, 11])
    rows[7] = {"image_url": b"<html>no picture</html>", "caption": ""}
    with InMemoryImageTextDataset(rows, fetch=HERE, progress=False) as dataset:
        report = dataset.report
    assert report.success_rate == pytest.approx(27 / 30)
    assert report.by_host == {"127.0.0.1": 2}
    assert report.by_stage == {"fetch": 2, "decode": 1}
    assert [(host.host, host.num_samples) for host in report.slowest_hosts] == [("127.0.0.1", 29)]
    assert set(report.seconds_by_stage) == {"fetch", "decode", "write", "waiting"}
    assert report.seconds_by_stage["fetch"] > 0 < report.seconds_by_stage["decode"]
    assert report.limited_by in ("network", "processor", "writing")
    assert " was the limit: decode threads waited " in str(report)
    assert "3 failed: 2 http_404, 1 not_media; 2 of them at 127.0.0.1" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["num_failed"] == 3
    assert report.to_pandas()["reason"].tolist() == ["http_404", "not_media", "http_404"]
    report.save(tmp_path / "failures.jsonl")
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [4, 7, 11]


def test_failures_are_left_out(gate: Gate, server: DemoServer) -> None:
    """With on_error="skip" the dataset is shorter, and samples still name their rows."""
    rows = image_rows(gate, server, 6)
    gate.broken = paths(rows, [0, 3])
    with InMemoryImageTextDataset(rows, on_error="skip", fetch=HERE, progress=False) as dataset:
        assert [sample["index"] for sample in dataset] == [1, 2, 4, 5]
        assert dataset.failed_indices == [0, 3]


def test_failures_end_the_load(gate: Gate, server: DemoServer) -> None:
    """With on_error="raise" the first failure is an error that names the row."""
    rows = image_rows(gate, server, 6)
    gate.broken = paths(rows, [2])
    with pytest.raises(LoadError, match=r"^row 2: http_404 "):
        InMemoryImageTextDataset(rows, on_error="raise", fetch=HERE, progress=False)


@pytest.mark.parametrize("on_error", ["placeholder", "skip", "raise"])
def test_a_load_of_nothing_is_an_error(on_error: Any, gate: Gate, server: DemoServer) -> None:
    """When not one sample could be loaded, no policy hides it."""
    rows = image_rows(gate, server, 4)
    gate.broken = paths(rows, [0, 1, 2, 3])
    with pytest.raises(LoadError, match="http_404"):
        InMemoryImageTextDataset(rows, on_error=on_error, fetch=HERE, progress=False)


def test_failed_clips_are_a_second_of_silence(hf_clips: datasets.Dataset) -> None:
    """What stands for a clip that failed is one second long and silent."""
    rows = [*hf_clips.select(range(2)), {"audio": b"<html>no clip</html>", "caption": "kept"}]
    with InMemoryAudioTextDataset(rows, fetch=HERE, progress=False) as dataset:
        sample = dataset[2]
        assert dataset.report.by_reason == {"not_media": 1}
    assert sample["audio"].shape == (16_000,)
    assert not sample["audio"].any()
    assert (sample["valid"], sample["caption"]) == (False, "kept")


def test_what_failed_can_be_retried(gate: Gate, server: DemoServer) -> None:
    """When the server has recovered, retry_failed asks for the failed files alone and puts them in their places."""
    rows = image_rows(gate, server)
    gate.broken = paths(rows, [4, 11])
    with InMemoryImageTextDataset(rows, fetch=HERE, progress=False) as dataset:
        assert dataset.failed_indices == [4, 11]
        gate.broken = paths(rows, [11])
        before = gate.num_requests
        report = dataset.retry_failed()
        assert gate.num_requests - before == 2
        assert dataset.failed_indices == [11] == [failure.index for failure in report.failures]
        assert dataset[4]["valid"] is True
        assert dataset[4]["image"].float().std() > 1


def test_private_addresses_are_refused(gate: Gate, server: DemoServer) -> None:
    """Unless it is allowed, no URL of a dataset reaches this machine's own services."""
    rows = [*image_rows(gate, server, 2), {"image_url": np.zeros((4, 4, 3), np.uint8), "caption": ""}]
    with InMemoryImageTextDataset(rows, progress=False) as dataset:
        assert dataset.report.by_reason == {"blocked_address": 2}
    assert gate.num_requests == 0


def test_opted_out_files_are_left_out(gate: Gate, server: DemoServer) -> None:
    """A file whose server says `X-Robots-Tag: noai` is not used, unless that is switched off."""
    rows = image_rows(gate, server, 3)
    gate.opted_out = paths(rows, [1])
    with InMemoryImageTextDataset(rows, fetch=HERE, progress=False) as dataset:
        assert dataset.report.by_reason == {"opt_out": 1}
    anyway = FetchOptions(allow_private_addresses=True, respect_opt_out=False)
    with InMemoryImageTextDataset(rows, fetch=anyway, progress=False) as dataset:
        assert dataset.report.num_failed == 0


# --- memory ---------------------------------------------------------------------------------------------------------


def test_the_plan_is_what_it_takes(images: InMemoryImageTextDataset, hf_images: datasets.Dataset) -> None:
    """The plan of images is within 2 % of what they then take; that of clips is an upper bound and says so."""
    plan = InMemoryImageTextDataset.plan(hf_images)
    assert plan.num_samples == NUM_IMAGES
    assert plan.bytes_needed == pytest.approx(images.nbytes, rel=0.02)
    assert plan.fits
    assert not plan.is_upper_bound
    assert "memory needed" in str(plan)


def test_the_plan_of_clips_is_an_upper_bound(clips: InMemoryAudioTextDataset, hf_clips: datasets.Dataset) -> None:
    """Lengths are not known before clips are fetched, so the plan takes max_duration and says so."""
    plan = InMemoryAudioTextDataset.plan(hf_clips)
    assert plan.is_upper_bound
    assert plan.bytes_needed is not None
    assert plan.bytes_needed >= clips.nbytes


def test_too_large_is_refused_before_anything_is_fetched(gate: Gate, server: DemoServer) -> None:
    """What does not fit is refused with both numbers and the number of samples that would; the server is not asked."""
    rows = image_rows(gate, server)
    with pytest.raises(MemoryLimitError, match=r"30 samples need 4.5\d MB.*1 MB.*max_samples=6") as caught:
        InMemoryImageTextDataset(rows, memory_limit="1MB", fetch=HERE, progress=False)
    assert gate.num_requests == 0
    assert caught.value.bytes_available == 10**6
    with InMemoryImageTextDataset(rows, max_samples=6, memory_limit="1MB", fetch=HERE, progress=False) as dataset:
        assert len(dataset) == 6


def test_what_does_not_fit_decoded_lies_encoded(
    images: InMemoryImageTextDataset, clips: InMemoryAudioTextDataset, gate: Gate, server: DemoServer
) -> None:
    """Encoded or mixed, it is the same dataset in less memory, and each sample is fetched once."""
    rows = image_rows(gate, server)
    arguments: dict[str, Any] = {"fetch": HERE, "progress": False}
    with InMemoryImageTextDataset(rows, storage="encoded", **arguments) as encoded:
        assert gate.num_requests == NUM_IMAGES
        assert encoded.nbytes < images.nbytes / 4
        assert torch.equal(encoded.__getitems__(range(30)).images, images.__getitems__(range(30)).images)
    with InMemoryImageTextDataset(rows, storage="auto", memory_limit="3MB", **arguments) as mixture:
        assert mixture.nbytes < 3_000_000
        assert mixture.report.num_decoded > 5 < mixture.report.num_encoded
        assert torch.equal(mixture.__getitems__(range(30)).images, images.__getitems__(range(30)).images)
    with InMemoryAudioTextDataset(server.sound_rows(NUM_CLIPS), storage="encoded", **arguments) as quieter:
        assert quieter.nbytes < clips.nbytes / 2
        torch.testing.assert_close(quieter[2]["audio"], clips[2]["audio"], rtol=0, atol=1 / 32_768)


def test_as_many_as_fit(gate: Gate, server: DemoServer) -> None:
    """max_samples="auto" takes rows from the front until the memory is full, and fetches no other."""
    rows = image_rows(gate, server)
    with InMemoryImageTextDataset(rows, max_samples="auto", memory_limit="1MB", fetch=HERE, progress=False) as dataset:
        assert len(dataset) == 6 == gate.num_requests
        assert dataset.nbytes < 1_000_000


# --- once, and never again ------------------------------------------------------------------------------------------


def test_a_load_that_was_broken_off_goes_on(gate: Gate, server: DemoServer, tmp_path: Path) -> None:
    """What one process had in place before it was killed, the next one does not ask for again."""
    rows = image_rows(gate, server)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    script = """
import json, os, sys
from in_memory_datasets import FetchOptions, InMemoryImageTextDataset
from in_memory_datasets.store import StoreWriter
loaded = StoreWriter.loaded
def die_after_some(writer, *sample):
    loaded(writer, *sample)
    if writer.num_loaded == 12:
        os.kill(os.getpid(), 9)
StoreWriter.loaded = die_after_some
InMemoryImageTextDataset(
    json.load(open(sys.argv[1])), cache_dir=sys.argv[2], progress=False,
    fetch=FetchOptions(allow_private_addresses=True, retries=0, concurrency=2),
)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "rows.json"), str(tmp_path / "cache")]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=100).returncode == -9
    before = gate.num_requests
    with InMemoryImageTextDataset(rows, cache_dir=tmp_path / "cache", fetch=HERE, progress=False) as dataset:
        assert gate.num_requests - before == NUM_IMAGES - 12
        assert dataset.verify() == []
        assert dataset.report.num_ok == NUM_IMAGES
        (entry,) = cache.entries(tmp_path / "cache")
        assert (entry.num_samples, entry.complete, entry.in_use) == (NUM_IMAGES, True, True)


def test_an_altered_sample_is_loaded_again_and_no_other(gate: Gate, server: DemoServer, tmp_path: Path) -> None:
    """`verify` names what differs from its checksum, and `retry_failed` asks for nothing else."""
    rows = image_rows(gate, server)
    with InMemoryImageTextDataset(rows, cache_dir=tmp_path, fetch=HERE, progress=False) as dataset:
        right = dataset[1]["image"]
        (samples,) = tmp_path.glob("*/samples.safetensors")
        with open(samples, "r+b") as file:
            file.seek(200_000)
            file.write(b"\0\1\2\3\4\5")
        assert dataset.verify() == [1]
        before = gate.num_requests
        assert dataset.retry_failed(reasons={"checksum"}).num_failed == 0
        assert gate.num_requests - before == 1
        assert dataset.verify() == []
        assert torch.equal(dataset[1]["image"], right)


def test_the_second_run_asks_for_nothing(gate: Gate, server: DemoServer, tmp_path: Path) -> None:
    """With cache_dir the same dataset is attached to without one request; another size is another dataset."""
    rows = image_rows(gate, server)
    arguments: dict[str, Any] = {"cache_dir": tmp_path, "fetch": HERE, "progress": False}
    with InMemoryImageTextDataset(rows, **arguments) as built:
        assert gate.num_requests == NUM_IMAGES
        with InMemoryImageTextDataset(rows, **arguments) as attached:
            assert gate.num_requests == NUM_IMAGES
            for one, other in zip(built, attached, strict=True):
                assert one["caption"] == other["caption"]
                assert torch.equal(one["image"], other["image"])
    with InMemoryImageTextDataset(rows, image_size=(32, 32), **arguments) as smaller:
        assert smaller[0]["image"].shape == (3, 32, 32)
        assert gate.num_requests == 2 * NUM_IMAGES


def test_save_and_load(images: InMemoryImageTextDataset, clips: InMemoryAudioTextDataset, tmp_path: Path) -> None:
    """A saved dataset is mapped again with the same samples; altered files are refused."""
    images.save(tmp_path / "images")
    with InMemoryImageTextDataset.load(tmp_path / "images", verify=True) as again:
        assert torch.equal(again[7]["image"], images[7]["image"])
        assert again[7]["caption"] == images[7]["caption"]
        assert again.verify() == []
    clips.save(tmp_path / "clips")
    with InMemoryAudioTextDataset.load(tmp_path / "clips") as sounds:
        assert torch.equal(sounds[2]["audio"], clips[2]["audio"])
    samples = tmp_path / "images" / "samples.safetensors"
    with open(samples, "r+b") as file:
        file.seek(200_000)
        file.write(b"\0\1\2\3\4\5")
    with InMemoryImageTextDataset.load(tmp_path / "images") as altered:
        assert altered.verify() == [1]
    with pytest.raises(StoreError, match="differ from their checksums"):
        InMemoryImageTextDataset.load(tmp_path / "images", verify=True)
    os.truncate(samples, 300_000)
    with pytest.raises(StoreError, match=r"300,000 bytes, expected"):
        InMemoryImageTextDataset.load(tmp_path / "images")


def test_a_pickle_opens_in_another_process(images: InMemoryImageTextDataset, tmp_path: Path) -> None:
    """A file of a pickled dataset carries the data."""
    (tmp_path / "images.pickle").write_bytes(pickle.dumps(images))
    script = "import pickle, sys; d = pickle.load(open(sys.argv[1], 'rb')); print(len(d), int(d[5]['image'].sum()))"
    answer = run_python(script, str(tmp_path / "images.pickle"))
    assert answer == f"{len(images)} {int(images[5]['image'].sum())}"


def test_processes_of_one_job_load_once(gate: Gate, server: DemoServer) -> None:
    """Two ranks of one machine fetch every file once between them and see the same samples."""
    script = (
        "import json, sys\n"
        "from in_memory_datasets import FetchOptions, InMemoryImageTextDataset\n"
        "rows = json.loads(sys.stdin.readline())\n"
        "fetch = FetchOptions(allow_private_addresses=True)\n"
        "dataset = InMemoryImageTextDataset(rows, image_size=(64, 64), fetch=fetch, progress=False)\n"
        "print(sum(int(sample['image'].sum()) for sample in dataset), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    line = json.dumps(image_rows(gate, server)) + "\n"
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank in range(2):
            environment = {
                **os.environ,
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            ranks.append(
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", script],
                        cwd=ROOT,
                        env=environment,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
            )
        for process in ranks:
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()
        sums = [process.stdout.readline() for process in ranks if process.stdout is not None]
        for process in ranks:
            process.communicate("\n")
    assert sums[0] == sums[1] != ""
    assert gate.num_requests == NUM_IMAGES


def run_python(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


# --- PyTorch's own tools --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stock_dataloader(num_workers: int, images: InMemoryImageTextDataset) -> None:
    """An epoch gives every sample once, with and without workers, in any order."""
    loader = DataLoader(
        images, batch_size=7, shuffle=True, num_workers=num_workers, collate_fn=collate_in_memory_images
    )
    seen: dict[int, torch.Tensor] = {}
    for batch in loader:
        seen.update(zip(batch["indices"].tolist(), batch["images"].clone(), strict=True))
    assert sorted(seen) == list(range(NUM_IMAGES))
    for i in (0, 9, 29):
        assert torch.equal(seen[i], images[i]["image"])


def test_stock_dataloader_of_clips_with_workers(clips: InMemoryAudioTextDataset) -> None:
    """Clips reach the training loop through workers too."""
    loader = DataLoader(clips, batch_size=4, num_workers=2, collate_fn=collate_in_memory_audio)
    lengths = torch.cat([batch["lengths"] for batch in loader]).tolist()
    assert lengths == [len(sample["audio"]) for sample in clips]


def test_subsets_splits_concatenations_and_samplers(images: InMemoryImageTextDataset) -> None:
    """PyTorch's wrappers and samplers take the dataset as any other."""

    def indices(dataset: Any, **arguments: Any) -> list[int]:
        loader = DataLoader(dataset, batch_size=4, collate_fn=collate_in_memory_images, **arguments)
        return [i for batch in loader for i in batch["indices"].tolist()]

    assert indices(Subset(images, [5, 3, 8])) == [5, 3, 8]
    parts = random_split(images, [20, 10], generator=torch.Generator().manual_seed(1))
    assert sorted(indices(parts[0]) + indices(parts[1])) == list(range(NUM_IMAGES))
    assert indices(ConcatDataset([Subset(images, [1, 2]), Subset(images, [7])])) == [1, 2, 7]
    halves = [
        indices(images, sampler=DistributedSampler(images, num_replicas=2, rank=rank, shuffle=False))
        for rank in range(2)
    ]
    assert sorted(halves[0] + halves[1]) == list(range(NUM_IMAGES))


def test_batches_may_be_held(images: InMemoryImageTextDataset) -> None:
    """Memory of batches is used again, but never while anybody looks at it."""
    loader = DataLoader(images, batch_size=4, collate_fn=collate_in_memory_images)
    epoch, corner = list(loader), next(iter(loader))["images"][0, :, 0, 0].numpy()
    for _ in range(3):
        for batch in loader:
            batch["images"].zero_()
    held = torch.cat([batch["images"] for batch in epoch])
    assert all(torch.equal(held[i], images[i]["image"]) for i in range(NUM_IMAGES))
    assert corner.tolist() == images[0]["image"][:, 0, 0].tolist()


# --- order, and devices ---------------------------------------------------------------------------------------------


def test_an_epoch_is_resumed_by_another_number_of_ranks(images: InMemoryImageTextDataset) -> None:
    """No sample is lost or comes twice when a run of one process goes on as one of two, with workers or without."""

    def load(sampler: EpochSampler, num_workers: int) -> DataLoader[Any]:
        return DataLoader(
            images, 3, sampler=sampler, num_workers=num_workers, collate_fn=collate_in_memory_images, drop_last=False
        )

    sampler = EpochSampler(images, seed=5)
    sampler.set_epoch(2)
    before = iter(load(sampler, num_workers=2))
    seen = [i for _ in range(4) for i in next(before)["indices"].tolist()]
    state = json.loads(json.dumps(sampler.state_dict()))
    assert len(seen) == state["consumed"] == 12
    for rank in range(2):
        half = EpochSampler(images, num_replicas=2, rank=rank)
        half.load_state_dict(state)
        seen += [i for batch in load(half, num_workers=0) for i in batch["indices"].tolist()]
    assert sorted(seen) == list(range(NUM_IMAGES))


def test_batches_of_so_many_seconds(clips: InMemoryAudioTextDataset) -> None:
    """Clips of like length share a batch, and no batch is longer than asked for, padding included."""
    sampler = DurationBatchSampler(clips, max_batch_seconds=8)
    batches = list(DataLoader(clips, batch_sampler=sampler, collate_fn=collate_in_memory_audio))
    assert sorted(i for batch in batches for i in batch["indices"].tolist()) == list(range(NUM_CLIPS))
    assert all(batch["audio"].numel() <= 8 * 16_000 or len(batch["captions"]) == 1 for batch in batches)
    assert sampler.statistics().num_batches == len(sampler) == len(batches)


def test_random_parts_of_long_clips(hf_clips: datasets.Dataset) -> None:
    """Another part of a clip is served each epoch, and the same one for the same seed and epoch."""
    torch.manual_seed(3)
    arguments: dict[str, Any] = {"fetch": HERE, "progress": False}
    with (
        InMemoryAudioTextDataset(hf_clips, max_duration=0.25, crop="random", keep_duration=2.0, **arguments) as parts,
        InMemoryAudioTextDataset(hf_clips, max_duration=2.0, **arguments) as whole,
    ):
        served = []
        for epoch in (0, 1, 0):
            parts.set_epoch(epoch)
            served.append([sample["audio"] for sample in parts])
        assert all(torch.equal(*pair) for pair in zip(served[0], served[2], strict=True))
        assert not all(torch.equal(*pair) for pair in zip(served[0], served[1], strict=True))
        for part, sample in zip(served[0], whole, strict=True):
            assert len(part) == 4000
            assert (sample["audio"].unfold(0, 4000, 1) == part).all(1).any()


def test_a_device(images: InMemoryImageTextDataset, clips: InMemoryAudioTextDataset) -> None:
    """A dataset is put on a device, or its batches are; everything else stays as it was."""
    for dataset, collate in ((images, collate_in_memory_images), (clips, collate_in_memory_audio)):
        plain = list(DataLoader(dataset, 4, collate_fn=collate))
        there = list(DataLoader(dataset.to("cpu"), 4, collate_fn=collate))
        fetched = list(DevicePrefetcher(DataLoader(dataset, 4, collate_fn=collate), "cpu"))
        for batch, *others in zip(plain, there, fetched, strict=True):
            for other in others:
                assert batch.keys() == other.keys()
                assert all(np.array_equal(batch[name], other[name]) for name in batch)


def test_default_collate(images: InMemoryImageTextDataset) -> None:
    """PyTorch's default collate function works too."""
    batch = next(iter(DataLoader(images, batch_size=4)))
    assert batch["image"].shape == (4, 3, 224, 224)
    assert batch["index"].tolist() == [0, 1, 2, 3]


# --- the way from on the fly to in memory ---------------------------------------------------------------------------


def test_twins_serve_the_same_images(images: InMemoryImageTextDataset, hf_images: datasets.Dataset) -> None:
    """The on-the-fly dataset gives the same samples and batches, so that one import is the whole migration."""
    on_the_fly = ImageTextDataset(hf_images, max_samples=8, fetch=HERE)
    batch = next(iter(DataLoader(on_the_fly, batch_size=8, collate_fn=collate_images)))
    other = next(iter(DataLoader(images, batch_size=8, collate_fn=collate_in_memory_images)))
    assert batch.keys() == other.keys()
    assert torch.equal(batch["images"], other["images"])
    assert batch["images"].stride() == other["images"].stride()
    assert batch["captions"] == other["captions"]


def test_twins_serve_the_same_clips(clips: InMemoryAudioTextDataset, hf_clips: datasets.Dataset) -> None:
    """The same holds for clips."""
    on_the_fly = AudioTextDataset(hf_clips, max_samples=4, fetch=HERE)
    batch = next(iter(DataLoader(on_the_fly, batch_size=4, collate_fn=collate_audio)))
    other = next(iter(DataLoader(clips, batch_size=4, collate_fn=collate_in_memory_audio)))
    assert batch.keys() == other.keys()
    assert torch.equal(batch["audio"], other["audio"])
    assert torch.equal(batch["lengths"], other["lengths"])


def test_data_py_hands_on_the_twins() -> None:
    """`from data import ...` is where a user's code starts."""
    import data

    assert data.ImageTextDataset is ImageTextDataset
    assert data.collate_audio is collate_audio


def test_presets(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published dataset loads by its name, with the right columns; the Hub alone is replaced here."""
    rows = [{**row, "transcripts": ["…"]} for row in server.image_rows(4)]
    asked = []

    def load_dataset(*arguments: Any, **keywords: Any) -> datasets.Dataset:
        asked.append(arguments[0])
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with presets.load("allenai/pixmo-cap", max_samples=3, fetch=HERE, progress=False) as dataset:
        assert [sample["caption"] for sample in dataset] == [row["caption"] for row in rows[:3]]
    assert asked == ["allenai/pixmo-cap"]
    with pytest.raises(ConfigError, match="choose 'allenai/pixmo-cap'"):
        presets.load("allenai/pixmo")


if __name__ == "__main__":
    raise SystemExit(subprocess.call([sys.executable, "-m", "pytest", "-v", __file__], cwd=ROOT))
