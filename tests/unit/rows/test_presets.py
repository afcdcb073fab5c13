"""The six presets, on rows with the published schemas; only `load_dataset`, the border to the Hub, is replaced."""

from __future__ import annotations

import io
import json
import logging
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Audio, Features, Image, Value

from in_memory_datasets import (
    ConfigError,
    FetchOptions,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    LoadError,
    presets,
)
from in_memory_datasets.rows import presets as recipes
from tests.serving import LocalServer, QuietHandler
from tests.unit.rows.media import png, stored, wav

TEXT, INT = Value("string"), Value("int32")
IMAGES: dict[str, Any] = {"image_size": (4, 4), "progress": False}
CLIPS: dict[str, Any] = {"target_sr": 8000, "max_duration": 1.0, "progress": False}

PIXMO = {"image_url": TEXT, "caption": TEXT, "transcripts": [TEXT]}
COCO = {
    "image": Image(),
    "filepath": TEXT,
    "sentids": [INT],
    "filename": TEXT,
    "imgid": INT,
    "split": TEXT,
    "sentences": {"tokens": [TEXT], "raw": TEXT, "imgid": INT, "sentid": INT},
    "cocoid": INT,
}
FLICKR = {"image": Image(), "caption": [TEXT], "sentids": [TEXT], "img_id": TEXT, "filename": TEXT}
MUSICCAPS = {
    "ytid": TEXT,
    "start_s": Value("int64"),
    "end_s": Value("int64"),
    "audioset_positive_labels": TEXT,
    "aspect_list": TEXT,
    "caption": TEXT,
    "author_id": Value("int64"),
    "is_balanced_subset": Value("bool"),
    "is_audioset_eval": Value("bool"),
}
CLOTHO = {
    "index": TEXT,
    "datasetname": TEXT,
    "audio": Audio(),
    "audio_len": Value("float32"),
    "text": TEXT,
    "raw_text": [TEXT],
}


class Hub:
    """Stands where `datasets.load_dataset` is: hands out recorded rows and keeps what it was asked for."""

    def __init__(self) -> None:
        self.rows: Any = None
        self.asked: list[dict[str, Any]] = []

    def load_dataset(self, repo: str, *, split: str, streaming: bool, **others: Any) -> Any:
        self.asked.append({"repo": repo, "split": split, "streaming": streaming, **others})
        return self.rows.to_iterable_dataset() if streaming else self.rows


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    monkeypatch.setattr(recipes, "_said", set())
    return hub


@pytest.fixture
def server() -> Iterator[str]:
    """Serve pictures at /<grey level>.png, and nothing else."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            stem = self.path[1:].removesuffix(".png")
            self.send_body(png(int(stem)) if stem.isdigit() else None)

    with LocalServer(Handler) as server:
        yield server.url


def coco_rows() -> list[dict[str, Any]]:
    texts = ["A woman wearing a net on her head cutting a cake. ", "A woman cutting a large white sheet cake."]
    common = {"filepath": "COCO_val2014_000000522418.jpg", "filename": "COCO_val2014_000000522418.jpg", "imgid": 1}
    return [
        {
            "image": {"bytes": png(50), "path": None},
            **common,
            "sentids": [681330, 686718],
            "split": "restval",
            "sentences": {"tokens": text.split(), "raw": text, "imgid": 1, "sentid": 681330 + i},
            "cocoid": 522418,
        }
        for i, text in enumerate(texts)
    ]


def flickr_rows() -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": png(50 * i), "path": f"{i}.jpg"},
            "caption": [f"picture {i}, caption {k}." for k in range(5)],
            "sentids": [str(5 * i + k) for k in range(5)],
            "img_id": str(i),
            "filename": f"{i}.jpg",
        }
        for i in range(3)
    ]


def musiccaps_rows(*ytids: str) -> list[dict[str, Any]]:
    return [
        {
            "ytid": ytid,
            "start_s": 30,
            "end_s": 40,
            "audioset_positive_labels": "/m/0140xf,/m/02cjck,/m/04rlf",
            "aspect_list": "['low quality', 'sustained strings melody']",
            "caption": f"The low quality recording of {ytid} features a ballad song.",
            "author_id": 4,
            "is_balanced_subset": False,
            "is_audioset_eval": True,
        }
        for ytid in ytids
    ]


def clotho_rows(raw_text: list[str]) -> list[dict[str, Any]]:
    text = "A wooden door creaks. Rain falls on a 2.5 m roof. Wind blows."
    clip = {"bytes": wav(4000), "path": "Train, arriving.wav"}
    return [
        {"index": "test/1", "datasetname": "Clotho", "audio": clip, "audio_len": 0.5, "text": text,
         "raw_text": raw_text}
    ]  # fmt: skip


def test_pixmo_cap_is_fetched_by_its_urls(hub: Hub, server: str, caplog: pytest.LogCaptureFixture) -> None:
    long = "The picture shows a grey square. " * 40
    hub.rows = stored(
        [{"image_url": f"{server}/{name}", "caption": long, "transcripts": ["a", "b"]} for name in ("90.png", "gone")],
        PIXMO,
    )
    fetch = FetchOptions(allow_private_addresses=True)
    with presets.load("allenai/pixmo-cap", max_samples=2, fetch=fetch, **IMAGES) as dataset:
        assert isinstance(dataset, InMemoryImageTextDataset)
        assert dataset[0]["caption"] == long
        assert int(dataset[0]["image"].float().mean()) == 90
        assert dataset.report.by_reason == {"http_404": 1}
    # Only text lies on the Hub: there is nothing to stream.
    assert hub.asked == [{"repo": "allenai/pixmo-cap", "split": "train", "streaming": False}]
    assert caplog.records == []


@pytest.mark.parametrize("max_samples", [None, 2])
def test_coco_is_loaded_from_a_copy_with_a_row_per_caption(hub: Hub, max_samples: int | None) -> None:
    hub.rows = stored(coco_rows(), COCO)
    with presets.load("HuggingFaceM4/COCO", max_samples=max_samples, **IMAGES) as dataset:
        assert isinstance(dataset, InMemoryImageTextDataset)
        assert [sample["caption"] for sample in dataset] == [row["sentences"]["raw"] for row in coco_rows()]
        assert dataset.failed_indices == []
    assert hub.asked == [{"repo": "bitmind/MS-COCO", "split": "train", "streaming": max_samples is not None}]


def test_coco_with_a_row_per_picture_has_all_its_captions(hub: Hub) -> None:
    features = {**{name: COCO[name] for name in ("image", "filename")}, "sentences_raw": [TEXT]}
    rows = [{"image": {"bytes": png(1), "path": None}, "filename": "a.jpg", "sentences_raw": ["One. ", "Two."]}]
    hub.rows = stored(rows, features)
    with presets.load("HuggingFaceM4/COCO", split="validation", captions="all", **IMAGES) as dataset:
        assert dataset[0]["caption"] == ["One. ", "Two."]
    assert hub.asked[0]["split"] == "validation"


def test_flickr30k_has_five_captions_a_picture(hub: Hub) -> None:
    hub.rows = stored(flickr_rows(), FLICKR)
    with presets.load("nlphuji/flickr30k", max_samples=2, captions="all", **IMAGES) as dataset:
        assert len(dataset) == 2
        assert [sample["caption"] for sample in dataset] == [row["caption"] for row in flickr_rows()[:2]]
    assert hub.asked == [{"repo": "lmms-lab/flickr30k", "split": "test", "streaming": True}]


def test_musiccaps_takes_the_clips_of_a_directory_by_their_ids(hub: Hub, tmp_path: Path) -> None:
    ids = ("-0Gj8-vB1q4", "-0SdAVK79lg", "_vHOH8YJVk8", "abcdefghijk")
    hub.rows = stored(musiccaps_rows(*ids), MUSICCAPS)
    (tmp_path / "-0Gj8-vB1q4.wav").write_bytes(wav(4000))
    (tmp_path / "-0Gj8-vB1q4.info.json").write_text("{}")
    (tmp_path / "[-0SdAVK79lg]-[30-40].wav").write_bytes(wav(2000))
    (tmp_path / "_vHOH8YJVk8_30_40.wav").write_bytes(wav(1000))
    (tmp_path / "abcdefghijk.webm.part").write_bytes(b"half")
    (tmp_path / "abcdefghijklmn.wav").write_bytes(wav(1))
    with presets.load("google/MusicCaps", audio_dir=tmp_path, **CLIPS) as dataset:
        assert isinstance(dataset, InMemoryAudioTextDataset)
        assert [len(dataset[i]["audio"]) for i in range(3)] == [4000, 2000, 1000]
        assert dataset[0]["caption"] == musiccaps_rows(ids[0])[0]["caption"]
        (failure,) = dataset.report.failures
        assert (failure.index, failure.reason) == (3, "not_found")
        assert failure.source == str(tmp_path / "abcdefghijk.wav")
    assert hub.asked == [{"repo": "google/MusicCaps", "split": "train", "streaming": False}]


def test_musiccaps_without_clips_says_how_to_get_them(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for audio_dir, message in (
        (None, r"no audio: fetch the clips yourself.*yt-dlp.*pass audio_dir='clips'"),
        (tmp_path, r"holds no clips named after their ids.*yt-dlp"),
        (tmp_path / "missing", r"is no directory.*yt-dlp"),
    ):
        with pytest.raises(ConfigError, match=message):
            presets.load("google/MusicCaps", audio_dir=audio_dir)
    assert hub.asked == []


def test_clips_of_ones_own_are_for_musiccaps_alone(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nlphuji/flickr30k brings its media"):
        presets.load("nlphuji/flickr30k", audio_dir=tmp_path)
    assert hub.asked == []


def tar_of_clips(path: Path, start: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(start, start + 3):
            original = {"title": "Harp", "fname": number if number % 2 else str(number), f"only_{number}": [number]}
            about = {"text": [f"clip {number}", "a harp"], "tag": [], "original_data": original}
            for suffix, data in (("flac", wav(4800, 48_000, "FLAC")), ("json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"mnt/freesound/split/train/{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("max_samples", [None, 4])
def test_laion_audio_is_streamed_from_its_tar_files(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_samples: int | None
) -> None:
    """Real tar files, read by the Hub's own library: their `original_data` differ, and there is no torchcodec."""
    monkeypatch.undo()
    for number, name in enumerate(("train_1/0", "train_1/1", "train_2/0", "test/0")):
        tar_of_clips(tmp_path / "freesound" / f"{name}.tar", 3 * number)
        tar_of_clips(tmp_path / "freesound_no_overlap" / f"{name}.tar", 3 * number)
    (tmp_path / "freesound" / "train_1" / "sizes.json").write_text('{"0.tar": 3, "1.tar": 3}')
    load_dataset: Callable[..., Any] = datasets.load_dataset

    def load_copy(repo: str, **arguments: Any) -> Any:
        hub.asked.append({"repo": repo, **{name: arguments[name] for name in ("split", "streaming", "data_dir")}})
        return load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"), **arguments)

    monkeypatch.setattr(datasets, "load_dataset", load_copy)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with presets.load("laion/audio-dataset", max_samples=max_samples, captions="all", **CLIPS) as dataset:
        assert isinstance(dataset, InMemoryAudioTextDataset)
        num_clips = max_samples or 9
        assert [sample["caption"] for sample in dataset] == [[f"clip {i}", "a harp"] for i in range(num_clips)]
        assert {len(sample["audio"]) for sample in dataset} == {800}
        assert dataset.failed_indices == []
    assert hub.asked == [
        {"repo": "Meranti/CLAP_freesound", "split": "train", "streaming": True, "data_dir": "freesound"}
    ]


@pytest.mark.parametrize("raw_text", [[], [""], ["A wooden door creaks. Slowly.", "Rain falls."]], ids=len)
def test_clotho_has_several_captions_a_clip(hub: Hub, raw_text: list[str]) -> None:
    """They are listed, or where that list is empty, joined into one text."""
    hub.rows = stored(clotho_rows(raw_text), CLOTHO)
    with presets.load("ChristophSchuhmann/Clotho", max_samples=5, captions="all", **CLIPS) as dataset:
        assert isinstance(dataset, InMemoryAudioTextDataset)
        joined = ["A wooden door creaks.", "Rain falls on a 2.5 m roof.", "Wind blows."]
        assert dataset[0]["caption"] == (raw_text if any(raw_text) else joined)
        assert len(dataset[0]["audio"]) == 4000
    assert hub.asked == [{"repo": "CLAPv2/Clotho", "split": "test", "streaming": True}]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("HuggingFaceM4/COCO", "loading bitmind/MS-COCO"),
        ("nlphuji/flickr30k", "loading lmms-lab/flickr30k"),
        ("google/MusicCaps", "publishes no audio; taking the clips in audio_dir"),
        ("laion/audio-dataset", "streaming Meranti/CLAP_freesound"),
        ("ChristophSchuhmann/Clotho", "loading CLAPv2/Clotho"),
    ],
)
def test_a_copy_is_announced_once(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, said: str
) -> None:
    (tmp_path / "-0Gj8-vB1q4.wav").write_bytes(wav(10))
    everything = {"image": Image(), "caption": TEXT, "ytid": TEXT, "audio": Audio(), "json": TEXT, "sentences": TEXT}
    hub.rows = stored([dict.fromkeys(everything)], everything)
    with caplog.at_level(logging.WARNING, logger="in_memory_datasets"):
        for _ in range(2):
            audio_dir = tmp_path if name == "google/MusicCaps" else None
            with pytest.raises(LoadError):
                presets.load(name, audio_dir=audio_dir, progress=False)
    assert [said in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("name", presets.names())
def test_a_copy_whose_columns_have_changed_is_refused_with_those_it_has(hub: Hub, tmp_path: Path, name: str) -> None:
    (tmp_path / "-0Gj8-vB1q4.wav").write_bytes(wav(10))
    audio_dir = tmp_path if name == "google/MusicCaps" else None
    for max_samples in (None, 5):
        hub.rows = stored([{"pixels": "a", "words": "b"}], {"pixels": TEXT, "words": TEXT})
        with pytest.raises(ConfigError, match=r"has the columns 'pixels', 'words' and none of .*name its columns"):
            presets.load(name, audio_dir=audio_dir, max_samples=max_samples)


def test_a_stream_that_declares_no_columns_is_asked_for_its_first_row(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(flickr_rows))
    with presets.load("nlphuji/flickr30k", max_samples=2, **IMAGES) as dataset:
        assert len(dataset) == 2


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'flickr30k': choose .*did you mean 'nlphuji/flickr30k'\?"):
        presets.load("flickr30k")
    with pytest.raises(ConfigError, match="choose 'allenai/pixmo-cap'"):
        presets.load("zzz")


def test_the_six_names() -> None:
    assert presets.names() == [
        "allenai/pixmo-cap",
        "HuggingFaceM4/COCO",
        "nlphuji/flickr30k",
        "google/MusicCaps",
        "laion/audio-dataset",
        "ChristophSchuhmann/Clotho",
    ]


def test_the_recorded_schemas_are_types_the_library_knows() -> None:
    for schema in (PIXMO, COCO, FLICKR, MUSICCAPS, CLOTHO):
        assert Features(schema).arrow_schema.names == list(schema)
