"""One process loads, others fetch the result: over a real S3 API, fsspec's memory, and the Hub at its border."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from tqdm.auto import tqdm

from in_memory_datasets import (
    ConfigError,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    LoadError,
    MissingExtraError,
    StoreError,
    cache,
)

FILES = ("samples.safetensors", "rows.arrow", "manifest.json")


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8))
    small.resize((100, 80), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def load(kind: str, **arguments: Any) -> Any:
    if kind == "images":
        rows = [{"image_url": jpeg(i) if i != 4 else b"no picture", "caption": f"picture {i}"} for i in range(40)]
        return InMemoryImageTextDataset(rows, image_size=(48, 40), progress=False, **arguments)
    clips = [{"array": np.sin(np.arange(800 + 90 * i) / 9), "sampling_rate": 8_000} for i in range(30)]
    rows = [{"audio": clip, "caption": f"clip {i}"} for i, clip in enumerate(clips)]
    return InMemoryAudioTextDataset(rows, target_sr=8_000, max_duration=1.0, progress=False, **arguments)


def class_of(kind: str) -> Any:
    return InMemoryImageTextDataset if kind == "images" else InMemoryAudioTextDataset


def files_of(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with load("images") as dataset:
        dataset.save(tmp_path / "saved", progress=False)
    return tmp_path / "saved"


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def birds(s3: Any) -> Any:
    s3.mkdir("birds")
    return s3


@pytest.mark.parametrize("kind", ["images", "clips"])
@pytest.mark.parametrize("form", ["decoded", "encoded", "in a directory"])
def test_what_is_published_is_what_others_have(kind: str, form: str, birds: Any, tmp_path: Path) -> None:
    url = f"s3://birds/{kind}/{form[:7]}"
    how = {"cache_dir": tmp_path / "own"} if form == "in a directory" else {"storage": form}
    with load(kind, **how) as dataset:
        dataset.save(url, progress=False)
        dataset.save(tmp_path / "local", progress=False)
        with class_of(kind).load(url, cache_dir=tmp_path / "cache", progress=False) as fetched:
            media = "images" if kind == "images" else "audio"
            indices = list(range(len(dataset)))
            theirs, ours = (each.__getitems__(indices) for each in (fetched, dataset))
            assert torch.equal(getattr(theirs, media), getattr(ours, media))
            assert theirs.captions == ours.captions
            assert fetched.failed_indices == dataset.failed_indices
            (entry,) = cache.entries(tmp_path / "cache")
            assert (entry.complete, entry.in_use, entry.num_samples) == (True, True, len(dataset))
            assert files_of(entry.path) == files_of(tmp_path / "local")
            assert sorted(path.name for path in entry.path.iterdir()) == sorted(FILES)


class Renamed(MemoryFileSystem):
    """The memory file system under another protocol."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = MemoryFileSystem._strip_protocol(path.replace(f"{cls.protocol}://", "memory://"))
        return stripped


class CountingMemory(Renamed):
    """Counts what is read, and breaks when it is told to."""

    protocol = "counting"
    read: dict[str, int] = {}  # noqa: RUF012 - of all instances
    num_bytes_left = 10**9

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data: bytes = super().cat_file(path, start=start, end=end, **options)
        cls = type(self)
        if len(data) > cls.num_bytes_left:
            raise ConnectionResetError("the line broke")
        cls.num_bytes_left -= len(data)
        name = path.rpartition("/")[2]
        cls.read[name] = cls.read.get(name, 0) + len(data)
        return data


@pytest.fixture
def counting(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> type[CountingMemory]:
    fsspec.register_implementation("counting", CountingMemory, clobber=True)
    monkeypatch.setattr(CountingMemory, "read", {})
    monkeypatch.setattr(CountingMemory, "num_bytes_left", 10**9)
    # Parts so small that there are many.
    monkeypatch.setattr("in_memory_datasets.store.publishing._PART_BYTES", 20_000)
    monkeypatch.setattr("in_memory_datasets.store.publishing._NUM_PARTS_AT_ONCE", 2)
    return CountingMemory


def test_the_second_time_only_the_manifest_is_asked_for(
    counting: type[CountingMemory], saved: Path, tmp_path: Path
) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("counting://birds/two", progress=False)
        dataset.save("counting://birds/another-place", progress=False)
    sizes = {name: (saved / name).stat().st_size for name in FILES}
    InMemoryImageTextDataset.load("counting://birds/two", cache_dir=tmp_path / "cache", progress=False).close()
    assert counting.read == sizes
    for place in ("two", "another-place", "two/"):
        counting.read.clear()
        InMemoryImageTextDataset.load(f"counting://birds/{place}", cache_dir=tmp_path / "cache", progress=False).close()
        assert counting.read == {"manifest.json": sizes["manifest.json"]}
    assert len(cache.entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("num_bytes", [30_000, 100_000, 220_000])
def test_a_download_that_broke_goes_on(
    num_bytes: int, counting: type[CountingMemory], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("counting://birds", progress=False)
    monkeypatch.setattr(counting, "num_bytes_left", num_bytes)
    with pytest.raises(StoreError, match=r"counting://birds cannot be reached.*ConnectionResetError: the line broke"):
        InMemoryImageTextDataset.load("counting://birds", cache_dir=tmp_path / "cache", progress=False)
    (entry,) = cache.entries(tmp_path / "cache")
    assert not entry.complete
    here = sum(path.stat().st_size for path in entry.path.iterdir())
    assert num_bytes - 45_000 < here <= num_bytes
    monkeypatch.setattr(counting, "num_bytes_left", 10**9)
    counting.read.clear()
    with InMemoryImageTextDataset.load("counting://birds", cache_dir=tmp_path / "cache", progress=False) as fetched:
        assert sum(counting.read.values()) == sum(map(len, files_of(saved).values())) - here
        assert files_of(fetched._store.directory) == files_of(saved)


def alter(fs: Any, path: str, start: int, data: bytes) -> None:
    content = bytearray(fs.cat_file(path))
    content[start : start + len(data)] = data
    fs.pipe_file(path, bytes(content))


def test_what_was_altered_on_the_way_is_refused_and_nothing_of_it_stays(
    memory: MemoryFileSystem, saved: Path, tmp_path: Path
) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("memory://birds", progress=False)
    arguments: dict[str, Any] = {"cache_dir": tmp_path / "cache", "progress": False}
    whole = files_of(saved)
    sample = 4096 + 7 * 48 * 40 * 3 + 99
    for name, start, said in (
        ("samples.safetensors", sample, r"1 of 40 samples differ from their checksums \(rows \[7\]\)"),
        ("rows.arrow", len(whole["rows.arrow"]) // 2, r"rows\.arrow"),
        ("samples.safetensors", 30, r"samples\.safetensors"),
    ):
        alter(memory, f"/birds/{name}", start, bytes(255 - byte for byte in whole[name][start : start + 9]))
        with pytest.raises(StoreError, match=rf"downloaded from memory://birds is not what was published: .*{said}"):
            InMemoryImageTextDataset.load("memory://birds", **arguments)
        assert list((tmp_path / "cache").glob("*/*")) == []
        memory.pipe_file(f"/birds/{name}", whole[name])
    memory.pipe_file("/birds/samples.safetensors", whole["samples.safetensors"][:-100])
    with pytest.raises(StoreError, match=r"not what was published: samples\.safetensors has .* bytes, expected"):
        InMemoryImageTextDataset.load("memory://birds", **arguments)
    memory.pipe_file("/birds/samples.safetensors", whole["samples.safetensors"])
    InMemoryImageTextDataset.load("memory://birds", **arguments).close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 3}, "format version 3, this library reads 1 and 2"),
        ({"format": "another"}, "does not describe a dataset of this library"),
        ({"byteorder": "big"}, "big-endian"),
        ({"num_samples": 7}, "differs from its checksum"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused_before_anything_is_downloaded(
    counting: type[CountingMemory], saved: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("counting://birds", progress=False)
    fs = fsspec.filesystem("counting")
    manifest = json.loads((saved / "manifest.json").read_text())
    fs.pipe_file("/birds/manifest.json", json.dumps({**manifest, **change}).encode())
    with pytest.raises(StoreError, match=said):
        InMemoryImageTextDataset.load("counting://birds", cache_dir=tmp_path / "cache", progress=False)
    assert set(counting.read) == {"manifest.json"}
    assert not (tmp_path / "cache").exists()


class Breaking(Renamed):
    """Is full when the rows come."""

    protocol = "breaking"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and path.endswith("rows.arrow"):
            raise OSError("no room is left")
        return super()._open(path, mode, **options)


def test_a_broken_off_upload_never_looks_complete(memory: MemoryFileSystem, saved: Path, tmp_path: Path) -> None:
    fsspec.register_implementation("breaking", Breaking, clobber=True)
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("memory://birds", progress=False)  # an older one, which is to be replaced
        with pytest.raises(StoreError, match=r"breaking://birds cannot be .*no room is left"):
            dataset.save("breaking://birds", progress=False)
    with pytest.raises(StoreError, match=r"memory://birds holds no complete dataset: there is no manifest\.json"):
        InMemoryImageTextDataset.load("memory://birds", cache_dir=tmp_path / "cache", progress=False)


def test_an_older_dataset_is_replaced_and_other_files_are_left_alone(
    memory: MemoryFileSystem, saved: Path, tmp_path: Path
) -> None:
    with load("clips") as clips, InMemoryImageTextDataset.load(saved) as images:
        clips.save("memory://sounds", progress=False)
        images.save("memory://sounds", progress=False)
        memory.pipe_file("/thesis/chapter.tex", b"words")
        with pytest.raises(StoreError, match=r"memory://thesis holds other files \(chapter\.tex\)"):
            images.save("memory://thesis", progress=False)
    assert memory.cat_file("/thesis/chapter.tex") == b"words"
    with InMemoryImageTextDataset.load("memory://sounds", cache_dir=tmp_path, progress=False) as fetched:
        assert files_of(fetched._store.directory) == files_of(saved)
    with pytest.raises(StoreError, match="which InMemoryAudioTextDataset does not serve"):
        InMemoryAudioTextDataset.load("memory://sounds", cache_dir=tmp_path, progress=False)


def test_altered_samples_are_not_published(memory: MemoryFileSystem, saved: Path) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        with open(saved / "samples.safetensors", "r+b") as file:
            file.seek(4096 + 3 * 48 * 40 * 3)
            file.write(b"\0\1\2\3")
        with pytest.raises(StoreError, match=r"1 of 40 samples differ .*\(rows \[3\]\) and are not published"):
            dataset.save("memory://birds", progress=False)
    assert memory.find("/") == []


def test_what_was_fetched_behaves_as_what_was_loaded(memory: MemoryFileSystem, saved: Path, tmp_path: Path) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("memory://birds", progress=False)
    arguments: dict[str, Any] = {"cache_dir": tmp_path / "cache", "progress": False}
    with pytest.raises(LoadError, match="memory://birds holds failed samples"):
        InMemoryImageTextDataset.load("memory://birds", on_error="raise", **arguments)
    with InMemoryImageTextDataset.load("memory://birds", verify=True, lock_memory=True, **arguments) as fetched:
        samples = fetched._store.directory / "samples.safetensors"
        with open(samples, "r+b") as file:
            file.seek(4096)
            file.write(b"\0\1\2\3")
        assert fetched.verify() == [0]
        assert fetched.retry_failed(reasons={"checksum"}).by_reason["checksum"] == 1


def test_a_directory_may_be_given_as_a_url_and_is_mapped_where_it_lies(saved: Path, tmp_path: Path) -> None:
    with InMemoryImageTextDataset.load(f"file://{saved}") as dataset:
        assert dataset._store.directory == saved
        dataset.save(f"file://{tmp_path}/another place", progress=False)
    assert files_of(tmp_path / "another place") == files_of(saved)
    with pytest.raises(ConfigError, match=r"cache_dir= is for what is downloaded, and .*saved is mapped where it lies"):
        InMemoryImageTextDataset.load(saved, cache_dir=tmp_path / "cache")


def test_a_url_that_became_a_path_is_no_directory(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        InMemoryImageTextDataset.load(saved) as dataset,
        pytest.raises(ConfigError, match=r"give s3://bucket/birds as a str"),
    ):
        dataset.save(Path("s3://bucket/birds"), progress=False)
    with pytest.raises(ConfigError, match=r"s3:/bucket/birds is a path, and no URL"):
        InMemoryImageTextDataset.load(Path("s3://bucket/birds"))
    assert os.listdir(tmp_path) == ["saved"]


def test_a_bar_shows_what_is_downloaded_and_none_where_nothing_is(
    memory: MemoryFileSystem, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("memory://birds", progress=False)
    num_bytes = sum((saved / name).stat().st_size for name in FILES[:2])
    drawn: list[tuple[str, int, int]] = []
    monkeypatch.setattr(tqdm, "display", lambda bar, *_, **__: drawn.append((bar.desc, bar.n, bar.total)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for expected in (("Downloading", num_bytes, num_bytes), None):
        drawn.clear()
        InMemoryImageTextDataset.load("memory://birds", cache_dir=tmp_path / "cache").close()
        assert (drawn[-1] if drawn else None) == expected


def test_two_processes_at_once_download_once(birds: Any, saved: Path, tmp_path: Path) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("s3://birds/both", progress=False)
    code = f"""
from in_memory_datasets import InMemoryImageTextDataset
from in_memory_datasets.store import publishing
download, count = publishing._download, []
def counted(*arguments):
    count.append(1)
    download(*arguments)
publishing._download = counted
with InMemoryImageTextDataset.load("s3://birds/both", cache_dir={str(tmp_path / "cache")!r}) as dataset:
    print(len(count), len(dataset.verify()))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = sorted(process.communicate(timeout=100)[0].strip() for process in processes)
    assert answers == ["0 0", "0 0", "1 0"]


def test_places_that_cannot_be_reached_say_so_without_credentials(saved: Path, birds: Any, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"cache_dir": tmp_path / "cache", "progress": False}
    with pytest.raises(StoreError, match=r"s3://birds/nothing holds no complete dataset: there is no manifest\.json"):
        InMemoryImageTextDataset.load("s3://birds/nothing", **arguments)
    with pytest.raises(MissingExtraError, match=r"gdrive://folder needs a package .*: pip install gdrive"):
        InMemoryImageTextDataset.load("gdrive://folder", **arguments)
    with pytest.raises(ConfigError, match=r"nosuchprotocol://a is no usable URL"):
        InMemoryImageTextDataset.load("nosuchprotocol://a", **arguments)
    with InMemoryImageTextDataset.load(saved) as dataset:
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/x cannot be reached, read or written"):
            dataset.save("s3://no-such-bucket/x", progress=False)
        with pytest.raises((StoreError, ConfigError)) as caught:
            dataset.save("http://me:secret@127.0.0.1:9/x", progress=False)
        assert "secret" not in str(caught.value)


def test_a_full_disk_is_foreseen(
    memory: MemoryFileSystem, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("memory://birds", progress=False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"has 1 kB free, and .* are to be downloaded: make room"):
        InMemoryImageTextDataset.load("memory://birds", cache_dir=tmp_path / "cache", progress=False)


def test_what_is_published_anew_is_seen_at_once(birds: Any, saved: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"cache_dir": tmp_path / "cache", "progress": False}
    with InMemoryImageTextDataset.load(saved) as dataset, load("images", max_samples=7) as other:
        dataset.save("s3://birds/anew", progress=False)
        birds.ls("birds/anew")  # which this process then remembers
        InMemoryImageTextDataset.load("s3://birds/anew", **arguments).close()
        other.save("s3://birds/anew", progress=False)
        with InMemoryImageTextDataset.load("s3://birds/anew", **arguments) as fetched:
            assert len(fetched) == 7


def test_a_folder_that_a_console_made_is_an_empty_place(birds: Any, saved: Path) -> None:
    birds.call_s3("put_object", Bucket="birds", Key="folder/", Body=b"")
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("s3://birds/folder", progress=False)


class WithoutParts(Renamed):
    """Gives whole files, whatever part is asked for."""

    protocol = "whole"

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data: bytes = super().cat_file(path)
        return data


def test_a_server_that_gives_no_parts_is_named(
    memory: MemoryFileSystem, counting: type[CountingMemory], saved: Path, tmp_path: Path
) -> None:
    fsspec.register_implementation("whole", WithoutParts, clobber=True)
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("memory://birds", progress=False)
    with pytest.raises(StoreError, match=r"whole://birds gave .* bytes of samples.* where 20,000 were asked"):
        InMemoryImageTextDataset.load("whole://birds", cache_dir=tmp_path / "cache", progress=False)


def test_a_cache_that_cannot_be_written_is_not_the_fault_of_the_place(
    memory: MemoryFileSystem, saved: Path, tmp_path: Path
) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("memory://birds", progress=False)
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(OSError, match="cache"):
        InMemoryImageTextDataset.load("memory://birds", cache_dir=tmp_path / "cache", progress=False)


# --- the Hub, at its border -----------------------------------------------------------------------------------------


class Hub:
    """What stands for the Hub: repositories of files, changed by commits; their files are read through `hf://`."""

    def __init__(self, fs: MemoryFileSystem) -> None:
        self.fs = fs
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, str | None, list[str]]] = []

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert (repo_type, exist_ok) == ("dataset", True)
        if repo_id not in self.private:
            self.private[repo_id] = private
            self.fs.pipe_file(f"/datasets/{repo_id}/.gitattributes", b"")

    def list_repo_files(self, repo_id: str, *, repo_type: str, revision: str | None) -> list[str]:
        root = f"/datasets/{repo_id}"
        return [path.removeprefix(f"{root}/") for path in self.fs.find(root)]

    def create_commit(
        self, repo_id: str, operations: list[Any], *, commit_message: str, repo_type: str, revision: str | None
    ) -> None:
        for operation in operations:
            with operation.as_file() as file:
                self.fs.pipe_file(f"/datasets/{repo_id}/{operation.path_in_repo}", file.read())
        self.commits.append((repo_id, revision, [operation.path_in_repo for operation in operations]))


@pytest.fixture
def hub(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    hub = Hub(memory)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)

    class HubFiles(MemoryFileSystem):
        protocol = "hf"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("hf://").strip("/").replace("@main", "")

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", HubFiles)
    return hub


@pytest.mark.parametrize("place", ["hf://datasets/me/birds", "hf://datasets/me/birds@main/train"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_the_hub_gets_one_commit_and_gives_the_same_files(
    place: str, in_memory: bool, hub: Hub, saved: Path, tmp_path: Path
) -> None:
    with load("images") if in_memory else InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save(place, progress=False)
        prefix = "train/" if place.endswith("train") else ""
        assert hub.commits == [
            ("me/birds", "main" if prefix else None, [f"{prefix}{name}" for name in ("manifest.json", *FILES[:2])])
        ]
        assert hub.private == {"me/birds": True}
        dataset.save(place, progress=False)  # which replaces it
        assert len(hub.commits) == 2
    with InMemoryImageTextDataset.load(place, cache_dir=tmp_path / "cache", progress=False) as fetched:
        assert files_of(fetched._store.directory) == files_of(saved)


def test_a_repository_of_something_else_is_left_alone(hub: Hub, saved: Path) -> None:
    hub.create_repo("me/model", repo_type="dataset", private=False, exist_ok=True)
    hub.fs.pipe_file("/datasets/me/model/README.md", b"# mine")
    hub.fs.pipe_file("/datasets/me/model/data/train.parquet", b"")
    with InMemoryImageTextDataset.load(saved) as dataset:
        with pytest.raises(StoreError, match=r"hf://datasets/me/model holds other files \(data\)"):
            dataset.save("hf://datasets/me/model", progress=False)
        dataset.save("hf://datasets/me/model/loaded", progress=False)
    assert hub.private == {"me/model": False}


@pytest.mark.parametrize(
    "url", ["hf://me/birds", "hf://datasets/birds", "hf://models/me/birds", "hf://datasets//birds"]
)
def test_what_names_no_repository_of_data_is_refused(url: str, hub: Hub, saved: Path) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset, pytest.raises(ConfigError, match="hf://datasets/USER/NAME"):
        dataset.save(url, progress=False)
    with pytest.raises(ConfigError, match="hf://datasets/USER/NAME"):
        InMemoryImageTextDataset.load(url, progress=False)
    assert hub.commits == []


def test_without_a_cache_the_platforms_own_is_taken(
    memory: MemoryFileSystem, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with InMemoryImageTextDataset.load(saved) as dataset:
        dataset.save("memory://birds", progress=False)
    with InMemoryImageTextDataset.load("memory://birds", progress=False) as fetched:
        assert fetched._store.directory.parent == cache.resolve(True)
        assert os.fspath(fetched._store.directory).startswith(str(tmp_path))
