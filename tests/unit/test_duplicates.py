"""Rows that name the same source: found as they stream by, loaded once, served as if each had its own."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from in_memory_datasets import (
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    LoadError,
    MemoryLimitError,
    collate_in_memory_audio,
    collate_in_memory_images,
)
from in_memory_datasets.build.duplicates import SampleNumbers, count_samples, first_rows
from in_memory_datasets.errors import SampleError
from in_memory_datasets.schema import Row, Source
from in_memory_datasets.training.media import DeviceMedia

SIZE = (8, 6)
IMAGE_BYTES = 8 * 6 * 3


def rows_from(*sources: Source | None) -> list[Row]:
    empty = SampleError("nothing there", reason="empty")
    return [Row(i, source, (), None if source else empty) for i, source in enumerate(sources)]


def numbers_of(*sources: Source | None) -> list[int]:
    numbers: list[int] = SampleNumbers().of(rows_from(*sources)).tolist()
    return numbers


@pytest.mark.parametrize("kind", ["url", "path", "fsspec"])
def test_addresses_are_the_same_where_their_text_is(kind: Any) -> None:
    texts = ["a", "b", "a", "A", "", "b", "a "]
    assert numbers_of(*(Source(kind, text) for text in texts)) == [0, 1, 0, 2, 3, 1, 4]


def test_an_address_of_one_kind_is_never_one_of_another() -> None:
    kinds: list[Any] = ["url", "path", "fsspec"]
    sources = [Source(kind, "bytes:x") for kind in kinds]
    assert numbers_of(*sources, Source("bytes", b"x"), *sources) == [0, 1, 2, 3, 0, 1, 2]


def test_inline_bytes_are_the_same_where_they_are_and_their_names_end_alike() -> None:
    """A headerless format is told by its name alone, so that the same bytes are two sounds."""
    named = [("a.g722", b"x"), ("b.G722", b"x"), ("a.vox", b"x"), ("", b"x"), ("a.g722", b"y"), ("c", b"x")]
    assert numbers_of(*(Source("bytes", data, name) for name, data in named)) == [0, 0, 1, 2, 3, 2]


def test_objects_and_rows_without_a_source_have_a_sample_of_their_own() -> None:
    array = np.zeros((2, 2, 3), np.uint8)
    assert numbers_of(Source("object", array), None, Source("object", array), None, Source("path", "a")) == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_a_name_that_is_no_text_is_one_too() -> None:
    assert numbers_of(Source("path", "\udcff"), Source("path", "\udcfe"), Source("path", "\udcff")) == [0, 1, 0]


def test_many_sources_are_told_apart_over_many_batches() -> None:
    """So many that the table grows several times; compared with a dictionary."""
    draw = np.random.default_rng(0)
    numbers, known = SampleNumbers(), dict[int, int]()
    for _ in range(100):
        drawn = draw.integers(0, 8_000, 97).tolist()
        expected = [known.setdefault(number, len(known)) for number in drawn]
        found = numbers.of(rows_from(*(Source("url", f"https://a.example/{number}.jpg") for number in drawn)))
        assert found.tolist() == expected
        assert found.dtype == np.int64
    assert numbers.num_samples == len(known) > 4 * 1024


def test_first_rows_are_those_whose_sample_no_earlier_row_has() -> None:
    rows = rows_from(*(Source("path", name) for name in "abacbd"))
    assert [row.index for row in first_rows(rows, np.array([3, 1, 3, 4, 1, 5]), 3)] == [0, 3, 5]
    assert first_rows([], np.array([], np.int64), 0) == []


def test_counting_stops_when_it_is_known_that_there_are_too_many() -> None:
    read = []

    def batches() -> Iterator[list[Row]]:
        for start in range(0, 100, 10):
            read.append(start)
            yield rows_from(*(Source("path", str((start + i) // 2)) for i in range(10)))

    looked_at: list[int] = []
    assert count_samples(batches(), most=12, on_progress=looked_at.append) == 15
    assert (len(read), sum(looked_at)) == (3, 30)
    assert count_samples(batches(), most=50, on_progress=looked_at.append) == 50


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (10, 10), level).save(file, "PNG")
    return file.getvalue()


def noise(draw: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def wav(num_frames: int) -> bytes:
    return wav_of(np.linspace(-0.5, 0.5, num_frames))


def wav_of(frames: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, frames.astype(np.float32), 8_000, format="WAV")
    return file.getvalue()


FAILED = [i for i in range(30) if i % 6 == 2]


class Dataset:
    """Five captions for each picture or clip, as COCO has them in one row each; source 2 is none."""

    def __init__(self, kind: str, directory: Path, *, inline: bool = False, shared: bool = True) -> None:
        self.kind, self.directory, self.inline, self.shared = kind, directory, inline, shared

    def source(self, number: int, row: int) -> Any:
        data = b"nothing" if number == 2 else png(40 * number) if self.kind == "images" else wav(800 + 400 * number)
        if self.inline:
            # with blanks behind them, the bytes are others and the sample is the same
            return data if self.shared else data + b" " * (row + 1)
        path = self.directory / (f"{number}.bin" if self.shared else f"{row}.bin")
        if not path.exists():
            path.write_bytes(data)
        return str(path)

    def rows(self) -> list[dict[str, Any]]:
        column = "image_url" if self.kind == "images" else "audio"
        return [{column: self.source(i % 6, i), "caption": f"row {i}"} for i in range(30)]

    def load(self, **arguments: Any) -> Any:
        if self.kind == "images":
            return InMemoryImageTextDataset(self.rows(), **{"image_size": SIZE, "progress": False, **arguments})
        shape: dict[str, Any] = {"target_sr": 8_000, "max_duration": 1.0, "dtype": "int16", "progress": False}
        return InMemoryAudioTextDataset(self.rows(), **{**shape, **arguments})


def everything(dataset: Any, indices: list[int] | None = None) -> tuple[Any, ...]:
    batch = dataset.__getitems__(list(range(len(dataset))) if indices is None else indices)
    media = batch.images if hasattr(batch, "images") else batch.audio
    return media.clone(), batch.captions, batch.indices.tolist(), batch.valid.tolist()


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return torch.equal(one[0], other[0]) and one[1:] == other[1:]


KINDS = ["images", "clips"]
INDICES = [7, 1, 0, 29, 13, 13, 8, 2, 19, 1]


@pytest.mark.parametrize("storage", ["decoded", "encoded"])
@pytest.mark.parametrize("inline", [False, True], ids=["paths", "bytes"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_repeat_a_source_are_served_as_if_each_had_its_own(
    tmp_path: Path, kind: str, inline: bool, storage: str
) -> None:
    with (
        Dataset(kind, tmp_path, inline=inline).load(storage=storage) as dataset,
        Dataset(kind, tmp_path / "..", inline=True, shared=False).load(storage=storage) as alone,
    ):
        assert dataset._store.num_unique == 6
        assert alone._store.num_unique == 30
        assert same(everything(dataset), everything(alone))
        assert same(everything(dataset, INDICES), everything(alone, INDICES))
        for i in INDICES:
            assert same(everything(dataset, [i]), everything(alone, [i]))
        assert len(dataset) == 30
        assert dataset.failed_indices == alone.failed_indices == FAILED
        if kind == "clips":
            assert dataset.lengths.tolist() == alone.lengths.tolist()
        assert dataset.verify() == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_source_takes_its_room_once_and_the_report_says_so(tmp_path: Path, kind: str) -> None:
    with Dataset(kind, tmp_path).load() as dataset:
        report = dataset.report
        assert (report.num_samples, report.num_ok, report.num_failed, report.num_unique) == (30, 25, 5, 6)
        assert (report.num_decoded, report.num_encoded, report.num_on_disk) == (25, 0, 0)
        assert report.bytes_fetched == sum(path.stat().st_size for path in tmp_path.iterdir())
        assert "30 rows share 6 samples" in str(report)
        assert [failure.index for failure in report.failures] == FAILED
        assert report.by_reason == {"not_media": 5}
        if kind == "images":
            assert dataset._store.images.shape == (6, 6, 8, 3)
        else:
            assert dataset._store.offsets.shape == (7,)


def test_a_report_says_nothing_of_samples_where_no_row_repeats_a_source(tmp_path: Path) -> None:
    with Dataset("images", tmp_path, inline=True, shared=False).load() as dataset:
        assert dataset.report.num_unique == 30
        assert "share" not in str(dataset.report)
        assert dataset._store.table.samples is None


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_failures_leave_all_their_rows_out(tmp_path: Path, kind: str) -> None:
    with Dataset(kind, tmp_path).load(on_error="skip") as dataset:
        assert [sample["index"] for sample in dataset] == [i for i in range(30) if i % 6 != 2]
        if kind == "clips":
            assert dataset.lengths.tolist() == [800 + 400 * (i % 6) for i in range(30) if i % 6 != 2]


def test_a_load_of_which_nothing_is_left_counts_rows(tmp_path: Path) -> None:
    rows = [{"image_url": str(tmp_path / f"{i % 2}.png"), "caption": ""} for i in range(10)]
    with pytest.raises(LoadError, match="0 of 10 samples loaded: 10 not_found"):
        InMemoryImageTextDataset(rows, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_one_fetch_mends_all_rows_of_a_sample(tmp_path: Path, kind: str) -> None:
    """Of a dataset that was just loaded, and of one that was opened from a directory."""
    source = Dataset(kind, tmp_path / "media")
    source.directory.mkdir()
    good = png(80) if kind == "images" else wav(1_600)
    with source.load() as dataset:
        dataset.save(tmp_path / "saved")
        (source.directory / "2.bin").write_bytes(good)
        for mended in (dataset, type(dataset).load(tmp_path / "saved", progress=False)):
            assert mended.failed_indices == FAILED
            report = mended.retry_failed()
            assert (report.num_failed, report.num_ok, report.num_unique) == (0, 30, 6)
            assert report.bytes_fetched == len(good)
            assert mended.failed_indices == mended.verify() == []
            assert all(sample["valid"] for sample in mended)
            with source.load() as fresh:
                assert same(everything(mended), everything(fresh))
            mended.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_sample_is_bad_in_all_its_rows_and_mended_once(tmp_path: Path, kind: str) -> None:
    source = Dataset(kind, tmp_path)
    with source.load() as dataset:
        expected = everything(dataset)
        store = dataset._store
        store.samples.write(b"\x07" * 40, store.samples.nbytes - 40)  # the end of the last sample
        assert dataset.verify() == [5, 11, 17, 23, 29]
        report = dataset.retry_failed(reasons={"checksum"})
        assert report.bytes_fetched == Path(source.source(5, 5)).stat().st_size
        assert dataset.verify() == []
        assert same(everything(dataset), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_holds_each_sample_once_and_is_attached_to(tmp_path: Path, kind: str) -> None:
    source = Dataset(kind, tmp_path / "media")
    source.directory.mkdir()
    with source.load(cache_dir=tmp_path / "cache") as built, source.load(cache_dir=tmp_path / "cache") as attached:
        assert built.report.bytes_fetched > 0 == attached.report.bytes_fetched
        assert attached._store.num_unique == 6
        assert same(everything(built), everything(attached))
        for num_threads in (1, 4):
            with source.load(num_threads=num_threads) as again:
                again.save(tmp_path / f"again {num_threads}")
        for name in ("manifest.json", "rows.arrow", "samples.safetensors"):
            data = (built._store.directory / name).read_bytes()
            assert data == (tmp_path / "again 1" / name).read_bytes() == (tmp_path / "again 4" / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_loaded_and_published(tmp_path: Path, kind: str) -> None:
    source = Dataset(kind, tmp_path / "media")
    source.directory.mkdir()
    with source.load() as dataset:
        dataset.save(tmp_path / "saved")
        url = f"memory://repeats-{kind}-{tmp_path.name}"
        dataset.save(url, progress=False)
        loads: list[dict[str, Any]] = [
            {"directory": tmp_path / "saved", "verify": True},
            {"directory": url, "cache_dir": tmp_path / "cache", "progress": False},
        ]
        for load in loads:
            with type(dataset).load(**load) as loaded:
                assert same(everything(loaded), everything(dataset))
                assert loaded.report.num_unique == 6


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_pickled_with_its_data(tmp_path: Path, kind: str) -> None:
    with Dataset(kind, tmp_path).load() as dataset, pickle.loads(pickle.dumps(dataset)) as copy:
        assert same(everything(copy), everything(dataset))
        assert copy._store.num_unique == 6


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_device_lies_each_sample_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Dataset(kind, tmp_path).load() as dataset:
        expected = everything(dataset, INDICES)
        # the processor stands for a device, by being taken for another than the host
        monkeypatch.setattr("in_memory_datasets.training.in_memory._CPU", torch.device("meta"))
        there = dataset.to("cpu")
        media = there._samples(there._store)
        assert isinstance(media, DeviceMedia)
        assert media.samples.shape == (dataset._store.images if kind == "images" else dataset._store.frames).shape
        assert same(everything(there, INDICES), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_decodes_as_many_samples_as_there_is_room_for(tmp_path: Path, kind: str) -> None:
    """The samples of the first rows, of which each frees or takes room once."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(60):
        file = io.BytesIO()
        if kind == "images":
            small = Image.fromarray(draw.integers(0, 256, (4, 5, 3), np.uint8))
            small.resize((100, 80), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        else:
            soundfile.write(file, 0.5 * np.sin(np.arange(8_000) * (0.02 + 0.01 * i)), 8_000, format="FLAC")
        rows.append(file.getvalue())
    column, cls = ("image_url", InMemoryImageTextDataset) if kind == "images" else ("audio", InMemoryAudioTextDataset)
    records = [{column: rows[i // 3], "caption": f"row {i}"} for i in range(90)]
    shape: dict[str, Any] = {"image_size": (80, 64)} if kind == "images" else {"target_sr": 8_000, "max_duration": 1.0}
    load: Any = cls
    with load(records, **shape) as decoded, load(records, storage="encoded", **shape) as encoded:
        stores = decoded._store, encoded._store
        room, kept = ([store.sample_at(number).nbytes for number in range(30)] for store in stores)
        limit = encoded.nbytes + sum(room[:11]) - sum(kept[:11]) + (room[11] - kept[11]) // 2
        with load(records, storage="auto", memory_limit=limit, **shape) as mixture:
            assert mixture._store.num_decoded == 11
            assert mixture.nbytes <= limit
            report = mixture.report
            assert (report.num_decoded, report.num_encoded, report.num_unique) == (33, 57, 30)
            assert same(everything(mixture), everything(decoded))
            assert mixture.verify() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", ["decoded", "encoded"])
def test_what_fits_is_counted_in_samples(kind: str, storage: str) -> None:
    """With max_samples="auto": the rows, from the front, whose samples fit together with all the captions."""
    draw = np.random.default_rng(0)
    if kind == "images":
        sources = [noise(draw) for _ in range(60)]
        shape: dict[str, Any] = {"img_col": "media", "image_size": (64, 64)}
    else:
        sources = [wav_of(draw.normal(0, 0.1, 8_000)) for _ in range(60)]
        shape = {"audio_col": "media", "target_sr": 8_000, "max_duration": 1.0, "dtype": "int16"}
    rows = [{"media": sources[i // 5], "caption": f"row {i}"} for i in range(300)]
    load: Any = InMemoryImageTextDataset if kind == "images" else InMemoryAudioTextDataset
    arguments = {"storage": storage, "progress": False, **shape}
    with load(rows, **arguments) as whole:
        limit = int(0.6 * whole.nbytes)
        with load(rows, max_samples="auto", memory_limit=limit, **arguments) as some:
            assert 170 <= len(some) <= 180  # a plan by rows would have taken 36
            assert some.nbytes <= limit
            assert some.verify() == []
            assert same(everything(some), everything(whole, list(range(len(some)))))
        with load(rows, max_samples="auto", memory_limit=2 * whole.nbytes, **arguments) as everyone:
            assert len(everyone) == 300


def test_a_plan_that_takes_a_sample_for_each_row_refuses_no_load_that_fits(tmp_path: Path) -> None:
    """Rows are looked through for repeats before a load is refused."""
    rows = [{"image_url": png(i % 10), "caption": "five captions each"} for i in range(1_000)]
    arguments: dict[str, Any] = {"image_size": (64, 64), "memory_limit": 400_000, "progress": False}
    plan = InMemoryImageTextDataset.plan(rows, **arguments)
    assert not plan.fits
    for data in (rows, datasets.Dataset.from_list(rows)):
        with InMemoryImageTextDataset(data, **arguments) as dataset:
            assert dataset.report.num_ok == 1_000
            assert dataset.nbytes <= 400_000
    with pytest.raises(MemoryLimitError, match=r"100 samples need 1\.29 MB"):
        InMemoryImageTextDataset(
            [{"image_url": png(i % 100), "caption": ""} for i in range(1_000)],
            **{**arguments, "memory_limit": 1_200_000},
        )


class Reads(list[Any]):
    """Rows that are made when they are asked for, and counted."""

    num_reads = 0

    def __getitem__(self, i: Any) -> Any:
        self.num_reads += 1
        return {"image_url": f"/data/{i}.png", "caption": ""}


def test_where_nothing_repeats_no_more_rows_are_looked_at_than_do_not_fit() -> None:
    rows = Reads([None] * 100_000)
    with pytest.raises(MemoryLimitError, match="100,000 samples need"):
        InMemoryImageTextDataset(rows, image_size=(64, 64), memory_limit="10MB", progress=False)
    assert rows.num_reads < 1_500


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_workers_are_those_of_a_dataset_without_repeats(tmp_path: Path, kind: str) -> None:
    collate = collate_in_memory_images if kind == "images" else collate_in_memory_audio
    field = "images" if kind == "images" else "audio"
    with (
        Dataset(kind, tmp_path).load() as dataset,
        Dataset(kind, tmp_path, inline=True, shared=False).load() as alone,
    ):
        batches = [list(DataLoader(each, batch_size=7, collate_fn=collate, num_workers=2)) for each in (dataset, alone)]
        for one, other in zip(*batches, strict=True):
            assert torch.equal(one[field], other[field])
            assert one["captions"] == other["captions"]
            assert one["indices"].tolist() == other["indices"].tolist()


def test_random_crops_and_captions_are_drawn_for_each_row(tmp_path: Path) -> None:
    """Two rows that share a clip are two samples of the dataset, with luck of their own."""
    rows = [{"audio": wav(8_000), "caption": [f"{i} a", f"{i} b"]} for i in range(20)]
    rows = [{**row, "audio": rows[0]["audio"]} for row in rows]
    with InMemoryAudioTextDataset(
        rows, target_sr=8_000, max_duration=0.1, crop="random", keep_duration=1.0, captions="random", progress=False
    ) as dataset:
        assert dataset._store.num_unique == 1
        batch = collate_in_memory_audio(dataset.__getitems__(list(range(20))))
        assert batch["audio"].unique(dim=0).shape[0] > 10
        assert {caption[-1] for caption in batch["captions"]} == {"a", "b"}
        assert [int(caption.split()[0]) for caption in batch["captions"]] == list(range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_was_built_when_every_row_had_its_own_stays_valid(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EachItsOwn(SampleNumbers):
        def of(self, rows: Sequence[Row]) -> Any:
            return np.array([row.index for row in rows])

    source = Dataset(kind, tmp_path / "media")
    source.directory.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("in_memory_datasets.build.loading.SampleNumbers", EachItsOwn)
        source.load(cache_dir=tmp_path / "cache").close()
    (source.directory / "2.bin").write_bytes(png(80) if kind == "images" else wav(1_600))
    with source.load(cache_dir=tmp_path / "cache") as dataset:
        assert (dataset.report.bytes_fetched, dataset.report.num_unique) == (0, 30)
        assert dataset.retry_failed().num_ok == 30
        with source.load() as fresh:
            assert same(everything(dataset), everything(fresh))
