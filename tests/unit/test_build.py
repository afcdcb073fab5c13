"""The pipeline as a whole: order, policies, limits and reports, on inline media and on real files."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from in_memory_datasets import (
    ConfigError,
    FetchOptions,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    LoadError,
    MemoryLimitError,
    StoreError,
)
from in_memory_datasets.schema import format_bytes


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (10, 10), level).save(file, "PNG")
    return file.getvalue()


def wav(num_frames: int, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(num_frames, 0.25, np.float32), rate, format="WAV")
    return file.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for level in range(20):
        (tmp_path / f"{level}.png").write_bytes(png(level))
        paths.append(str(tmp_path / f"{level}.png"))
    return paths


def rows_of(sources: list[Any]) -> list[dict[str, Any]]:
    return [{"image_url": source, "caption": f"row {i}"} for i, source in enumerate(sources)]


SIZE = (4, 4)


def levels(dataset: InMemoryImageTextDataset) -> list[int]:
    return [int(sample["image"].float().mean()) for sample in dataset]


def test_each_row_gets_its_own_sample_whatever_arrives_first(files: list[str]) -> None:
    mixed: list[Any] = [png(i) if i % 3 == 0 else files[i] if i % 3 == 1 else f"file://{files[i]}" for i in range(20)]
    fetch = FetchOptions(allow_private_addresses=True, allow_local_files=True)
    with InMemoryImageTextDataset(rows_of(mixed), image_size=SIZE, num_threads=4, fetch=fetch) as dataset:
        assert levels(dataset) == list(range(20))
        assert dataset[7]["caption"] == "row 7"
        assert dataset.report.num_ok == 20


@pytest.mark.parametrize(("is_seen", "is_wanted"), [(True, True), (False, True), (True, False)])
def test_a_bar_tells_what_is_loaded_and_what_failed_where_somebody_sees_it(
    is_seen: bool,
    is_wanted: bool,
    files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    num_bytes = sum(os.path.getsize(path) for path in files)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_seen)
    rows = rows_of([*files, "/does/not/exist.png"])
    InMemoryImageTextDataset(rows, image_size=SIZE, progress=is_wanted).close()
    said = capsys.readouterr().err
    if is_seen and is_wanted:
        last = said.split("\r")[-1]
        assert "Loading into memory: 100%" in last
        assert "21/21 [" in last
        assert f"1 failed, {format_bytes(num_bytes)}" in last
    else:
        assert said == ""


def test_a_failure_becomes_a_grey_placeholder(files: list[str]) -> None:
    rows = rows_of([files[0], "/does/not/exist.png", b"no picture", None, files[4]])
    with InMemoryImageTextDataset(rows, image_size=SIZE) as dataset:
        assert dataset.failed_indices == [1, 2, 3]
        assert levels(dataset) == [0, 128, 128, 128, 4]
        assert [sample["valid"] for sample in dataset] == [True, False, False, False, True]
        assert dataset[1]["caption"] == "row 1"
        report = dataset.report
        assert report.by_reason == {"not_found": 1, "not_media": 1, "empty": 1}
        assert [failure.stage for failure in report.failures] == ["fetch", "decode", "row"]
        assert "2 of 5 samples loaded" in str(report)


def test_skip_leaves_failures_out_and_keeps_row_numbers(files: list[str]) -> None:
    rows = rows_of([files[0], "/does/not/exist.png", files[2]])
    with InMemoryImageTextDataset(rows, image_size=SIZE, on_error="skip") as dataset:
        assert len(dataset) == 2
        assert [sample["index"] for sample in dataset] == [0, 2]
        assert dataset.failed_indices == [1]


def test_raise_stops_at_the_first_failure_and_names_it(files: list[str]) -> None:
    with pytest.raises(LoadError, match=r"row 1.*not_found.*on_error="):
        InMemoryImageTextDataset(rows_of([files[0], "/no.png"]), image_size=SIZE, on_error="raise")


@pytest.mark.parametrize("on_error", ["placeholder", "skip", "raise"])
def test_a_load_without_one_sample_is_an_error_under_every_policy(on_error: Any) -> None:
    with pytest.raises(LoadError, match="not_found"):
        InMemoryImageTextDataset(rows_of(["/a.png", "/b.png"]), image_size=SIZE, on_error=on_error)
    with pytest.raises(LoadError, match="no rows"):
        InMemoryImageTextDataset([], image_size=SIZE, on_error=on_error)


def test_an_iterator_of_unknown_length_loads_whole(files: list[str]) -> None:
    with InMemoryImageTextDataset(iter(rows_of(files)), image_size=SIZE) as dataset:
        assert levels(dataset) == list(range(20))
    with InMemoryImageTextDataset(iter(rows_of(files)), image_size=SIZE, max_samples=3) as dataset:
        assert len(dataset) == 3


def test_an_iterator_that_outgrows_the_limit_is_stopped() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield {"image_url": np.zeros((2, 2, 3), np.uint8), "caption": ""}

    with pytest.raises(MemoryLimitError, match="more follow: give max_samples="):
        InMemoryImageTextDataset(endless(), image_size=(100, 100), memory_limit="1MB")


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    with pytest.raises(MemoryLimitError, match=r"100 samples need 15\.1 MB, memory_limit is 1 MB"):
        InMemoryImageTextDataset(rows_of([f"/not/there/{i}.png" for i in range(100)]), memory_limit="1MB")
    with pytest.raises(MemoryLimitError, match=r"up to .*int16"):
        InMemoryAudioTextDataset([{"audio": "/a.wav", "caption": ""}], memory_limit="1MB")


def test_the_plan_of_images_is_exact() -> None:
    # with bytes behind the end of a picture it is another source
    rows = [{"image_url": png(i % 20) + bytes(i), "caption": "x" * (i * 7)} for i in range(400)]
    with InMemoryImageTextDataset(rows, image_size=(32, 32)) as dataset:
        plan = InMemoryImageTextDataset.plan(rows, image_size=(32, 32))
        assert plan.bytes_needed == pytest.approx(dataset.nbytes, rel=0.02)
        assert not plan.is_upper_bound
        assert plan.fits


def test_the_plan_of_audio_is_an_upper_bound() -> None:
    rows = [{"audio": wav(800), "caption": ""}] * 50
    with InMemoryAudioTextDataset(rows, max_duration=1.0) as dataset:
        plan = InMemoryAudioTextDataset.plan(rows, max_duration=1.0, on_error="skip")
        assert plan.is_upper_bound
        assert plan.bytes_needed is not None
        assert plan.bytes_needed > dataset.nbytes
    with pytest.raises(TypeError, match="maximum_duration"):
        InMemoryAudioTextDataset.plan(rows, maximum_duration=1.0)


def test_the_plan_of_an_iterator_says_what_it_does_not_know() -> None:
    plan = InMemoryImageTextDataset.plan(iter(rows_of([b"x"])))
    assert plan.num_samples is None
    assert plan.bytes_needed is None
    assert not plan.fits
    bounded = InMemoryImageTextDataset.plan(iter(rows_of([b"x"])), max_samples=10)
    assert (bounded.num_samples, bounded.is_upper_bound, bounded.fits) == (10, True, True)


def test_silence_stands_in_for_a_failed_clip() -> None:
    rows = [{"audio": wav(4000), "caption": "a"}, {"audio": b"noise", "caption": "b"}]
    with InMemoryAudioTextDataset(rows, target_sr=8000) as dataset:
        assert dataset[0]["audio"].shape == (4000,)
        assert dataset[1]["audio"].shape == (8000,)
        assert not dataset[1]["audio"].any()
        assert dataset.failed_indices == [1]


def test_clips_take_the_room_of_their_own_length() -> None:
    clips = [{"audio": wav(8000 * n), "caption": ""} for n in (1, 2, 3)]
    sizes = {}
    for dtype in ("float32", "int16"):
        with InMemoryAudioTextDataset(clips, target_sr=8000, dtype=dtype) as dataset:  # type: ignore[arg-type]
            sizes[dtype] = dataset.nbytes
            np.testing.assert_allclose(dataset[2]["audio"], 0.25, atol=1e-4)
    assert sizes["float32"] - sizes["int16"] == 6 * 8000 * 2


def test_retrying_patches_what_failed_in_place(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    Path(paths[0]).write_bytes(png(10))
    with InMemoryImageTextDataset(rows_of(paths), image_size=SIZE, on_error="skip") as dataset:
        assert len(dataset) == 1
        Path(paths[2]).write_bytes(png(30))
        report = dataset.retry_failed()
        assert (report.num_ok, report.num_failed) == (2, 1)
        assert dataset.failed_indices == [1]
        assert levels(dataset) == [10, 30]
        Path(paths[1]).write_bytes(png(20))
        dataset.retry_failed()
        assert levels(dataset) == [10, 20, 30]
        assert dataset.retry_failed().bytes_fetched == 0  # nothing is left to do
        assert levels(dataset) == [10, 20, 30]
        assert dataset.verify() == []


def test_retrying_works_on_a_dataset_opened_from_a_directory(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.wav") for i in range(3)]
    Path(paths[0]).write_bytes(wav(100))
    Path(paths[2]).write_bytes(wav(300))
    rows = [{"audio": path, "caption": ""} for path in paths]
    with InMemoryAudioTextDataset(rows, target_sr=8000) as dataset:
        dataset.save(tmp_path / "saved")
    Path(paths[1]).write_bytes(wav(200))
    with InMemoryAudioTextDataset.load(tmp_path / "saved") as dataset:
        assert dataset.failed_indices == [1]
        assert dataset.retry_failed().num_failed == 0
        assert [len(sample["audio"]) for sample in dataset] == [100, 200, 300]
    with InMemoryAudioTextDataset.load(tmp_path / "saved", verify=True) as dataset:
        assert dataset.failed_indices == []


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_altered_samples_are_loaded_again_from_their_sources(tmp_path: Path, files: list[str], kind: str) -> None:
    if kind == "images":
        dataset: Any = InMemoryImageTextDataset(rows_of(files), image_size=SIZE, cache_dir=tmp_path / "cache")
    else:
        for i in range(5):
            (tmp_path / f"{i}.wav").write_bytes(wav(100 + i))
        clips = [{"audio": str(tmp_path / f"{i}.wav"), "caption": ""} for i in range(5)]
        dataset = InMemoryAudioTextDataset(clips, target_sr=8000, cache_dir=tmp_path / "cache")
    with dataset:
        expected = [sample["image" if kind == "images" else "audio"].tolist() for sample in dataset]
    (entry,) = (tmp_path / "cache").glob("*/manifest.json")
    with open(entry.with_name("samples.safetensors"), "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\1\2\3\4\5")
    with type(dataset).load(entry.parent) as altered:
        last = len(expected) - 1
        assert altered.verify() == [last]
        with pytest.raises(StoreError, match=r'retry_failed\(reasons=\{"checksum"\}\)'):
            type(dataset).load(entry.parent, verify=True)
        assert altered.retry_failed().bytes_fetched == 0
        assert altered.retry_failed(reasons={"timeout"}).bytes_fetched == 0
        assert altered.verify() == [last]
        report = altered.retry_failed(reasons={"checksum"})
        assert report.num_failed == 0
        assert report.bytes_fetched == (Path(files[last]) if kind == "images" else tmp_path / "4.wav").stat().st_size
        assert altered.verify() == []
        assert [sample["image" if kind == "images" else "audio"].tolist() for sample in altered] == expected
    with type(dataset).load(entry.parent, verify=True) as mended:
        assert mended.report.num_failed == 0


def test_an_altered_sample_that_cannot_be_had_again_is_a_failure_that_says_so(tmp_path: Path) -> None:
    with InMemoryImageTextDataset(rows_of([png(1), png(2), png(3)]), image_size=SIZE) as dataset:
        dataset.save(tmp_path)
    with open(tmp_path / "samples.safetensors", "r+b") as file:
        file.seek(4096 + 4 * 4 * 3)
        file.write(b"\xff")
    with InMemoryImageTextDataset.load(tmp_path) as dataset:
        dataset.retry_failed(reasons={"checksum"})
        assert dataset.failed_indices == [1]
        assert dataset.report.by_reason == {"checksum": 1}
        assert not dataset[1]["valid"]
        assert "differ from their checksum" in dataset.report.failures[0].detail


def test_only_failures_of_the_chosen_reasons_are_retried(tmp_path: Path, files: list[str]) -> None:
    sources = [files[0], str(tmp_path / "missing.png"), b"no picture"]
    with InMemoryImageTextDataset(rows_of(sources), image_size=SIZE) as dataset:
        assert dataset.report.by_reason == {"not_found": 1, "not_media": 1}
        (tmp_path / "missing.png").write_bytes(png(7))
        dataset.retry_failed(reasons={"not_media"})
        assert dataset.failed_indices == [1, 2]
        dataset.retry_failed(reasons=["not_found"])
        assert dataset.failed_indices == [2]
        for wrong in ({"tiredness"}, "not_found"):
            with pytest.raises(ConfigError, match="expected a set of 'dns', 'tls'"):
                dataset.retry_failed(reasons=wrong)


def test_retrying_clips_in_memory_needs_room_for_packing_and_in_a_directory_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = tmp_path / "lost.wav"
    rows = [{"audio": wav(100), "caption": ""}, {"audio": str(lost), "caption": ""}]
    with InMemoryAudioTextDataset(rows, target_sr=8000) as dataset:
        dataset.save(tmp_path / "saved")
        lost.write_bytes(wav(200))
        monkeypatch.setattr("in_memory_datasets.build.loading.free_memory", lambda: (dataset.nbytes - 1, "machine"))
        with pytest.raises(MemoryLimitError, match="save the dataset to a directory and retry it there"):
            dataset.retry_failed()
        assert dataset.failed_indices == [1]
        assert len(dataset[0]["audio"]) == 100
        with InMemoryAudioTextDataset.load(tmp_path / "saved") as saved:
            assert saved.retry_failed().num_failed == 0


def test_a_cache_is_attached_to_without_reading_a_source(files: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with InMemoryImageTextDataset(rows_of(files), image_size=SIZE, cache_dir=cache) as dataset:
        assert dataset.report.bytes_fetched > 0
    for path in files:
        Path(path).unlink()
    with InMemoryImageTextDataset(rows_of(files), image_size=SIZE, cache_dir=cache) as dataset:
        assert levels(dataset) == list(range(20))
        assert dataset.report.bytes_fetched == 0
    with pytest.raises(LoadError):  # another size is another dataset
        InMemoryImageTextDataset(rows_of(files), image_size=(5, 5), cache_dir=cache)


def test_two_loads_give_the_same_files_bit_for_bit(files: list[str], tmp_path: Path) -> None:
    rows = rows_of([*files, "/not/there.png"])
    for name, num_threads in (("a", 1), ("b", 8)):
        with InMemoryImageTextDataset(rows, image_size=SIZE, num_threads=num_threads) as dataset:
            dataset.save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_file_name_in_another_encoding_loads_and_is_reported(tmp_path: Path) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")
    Path(name).write_bytes(png(7))
    lost = os.fsdecode(b"/no/caf\xe9.png")
    with InMemoryImageTextDataset(rows_of([name, lost]), image_size=SIZE) as dataset:
        assert levels(dataset) == [7, 128]
        assert dataset.report.failures[0].source == "/no/caf\\udce9.png"


def test_an_iterator_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recognised in the next run"):
        InMemoryImageTextDataset(iter(rows_of([png(1)])), cache_dir=tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StoreError, OSError), match="file"):
        InMemoryImageTextDataset(rows_of([png(1)]), image_size=SIZE, cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (0, 5)}, "image_size"),
        ({"image_size": 224}, "image_size"),
        ({"resize": "zoom"}, "'stretch', 'crop' or 'pad'"),
        ({"captions": "last"}, "'first', 'random' or 'all'"),
        ({"on_error": "ignore"}, "'placeholder', 'skip' or 'raise'"),
        ({"output": "jax"}, "'torch', 'numpy' or 'pil'"),
        ({"transform": 3}, "transform=3: expected a callable"),
        ({"memory_limit": "lots"}, "memory_limit='lots'"),
        ({"max_samples": 0}, "max_samples=0"),
        ({"output": "pil", "batch_transform": len}, "batch_transform works on a tensor"),
        ({"num_threads": 0}, "num_threads=0"),
    ],
)
def test_impossible_arguments_are_refused_with_the_choices(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InMemoryImageTextDataset(rows_of(["/never/read.png"]), **arguments)


@pytest.mark.parametrize("argument", [{"on_error": "ignore"}, {"num_threads": 0}, {"memory_limit": "lots"}])
def test_an_iterator_loses_no_row_to_an_impossible_argument(argument: dict[str, Any]) -> None:
    rows = iter(rows_of([png(1), png(2)]))
    with pytest.raises(ConfigError):
        InMemoryImageTextDataset(rows, image_size=SIZE, **argument)
    with InMemoryImageTextDataset(rows, image_size=SIZE) as dataset:
        assert levels(dataset) == [1, 2]


def test_opening_refuses_impossible_arguments_before_it_looks_at_the_directory() -> None:
    with pytest.raises(ConfigError, match="num_threads=0"):
        InMemoryImageTextDataset.load("/not/there", num_threads=0)


def test_a_load_leaves_no_thread_behind(files: list[str]) -> None:
    before = threading.active_count()
    with InMemoryImageTextDataset(rows_of(files), image_size=SIZE):
        assert threading.active_count() == before


@pytest.mark.slow
def test_ten_thousand_images_take_what_the_arithmetic_says() -> None:
    image = np.zeros((224, 224, 3), np.uint8)
    rows = [{"image_url": image, "caption": "one of ten thousand"}] * 10_000
    with InMemoryImageTextDataset(rows) as dataset:
        assert dataset.nbytes == pytest.approx(1.505e9, rel=0.01)


@pytest.mark.slow
def test_five_hundred_clips_take_what_the_arithmetic_says() -> None:
    def nbytes(seconds: int, dtype: Any) -> int:
        clip = {"array": np.zeros(16_000 * seconds, np.float32), "sampling_rate": 16_000}
        with InMemoryAudioTextDataset([{"audio": clip, "caption": ""}] * 500, dtype=dtype) as dataset:
            return dataset.nbytes

    whole = nbytes(30, "float32")
    assert whole == pytest.approx(960e6, rel=0.01)
    assert nbytes(30, "int16") == pytest.approx(whole / 2, rel=0.01)
    assert nbytes(5, "float32") == pytest.approx(whole / 6, rel=0.01)
