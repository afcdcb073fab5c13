"""WebDataset shards, as `load_dataset("webdataset", ...)` gives them."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import torch
from fsspec.asyn import get_loop, sync
from fsspec.implementations.http import HTTPFileSystem

from in_memory_datasets import ConfigError, InMemoryAudioTextDataset, InMemoryImageTextDataset, LoadError
from tests.serving import LocalServer, QuietHandler
from tests.sources.shards import Members, clips, load_shards, picture, pictures, write_shard


@pytest.fixture(autouse=True)
def cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is prepared from shards in the test's own directory, and let there be no codec to decode with."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "torchcodec", None)


@pytest.fixture(autouse=True, scope="module")
def loop_of_fsspec() -> None:
    """Start the thread that reads the web; it and the sockets that wake it stay for as long as the process."""
    get_loop()


@pytest.fixture
def place(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], str]]:
    """Say where a file of the test's directory is for a reader: its path, or its URL on a server."""
    if request.param == "disk":
        yield lambda path: path
        return
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the server is on this machine
    with LocalServer(functools.partial(QuietHandler, directory=str(tmp_path))) as server:
        yield lambda path: f"{server.url}/{Path(path).name}"
        hang_up()


def hang_up() -> None:
    """Close the connections that fsspec keeps for the next request."""
    for fs in HTTPFileSystem._cache.values():
        if fs._session is not None:
            sync(get_loop(), fs._session.close)
    HTTPFileSystem.clear_instance_cache()
    sync(get_loop(), asyncio.sleep, 0)  # sockets are closed in the loop's next turn


load_images = functools.partial(InMemoryImageTextDataset, image_size=(12, 8), progress=False)
load_clips = functools.partial(InMemoryAudioTextDataset, target_sr=8000, progress=False)


@pytest.mark.parametrize("place", ["disk", "web"], indirect=True)
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("media", ["jpg", "png"])
def test_shards_of_pictures_are_a_dataset(
    media: str, streaming: bool, place: Callable[[str], str], tmp_path: Path
) -> None:
    """Text beside the picture, a field of its JSON and its key are captions; pictures are those of the same bytes."""
    shards = [write_shard(tmp_path / f"{n}.tar", pictures(range(5 * n, 5 * n + 5), media=media)) for n in range(3)]
    data = load_shards([place(shard) for shard in shards], streaming=streaming)
    expected = {
        "txt": [f"text {i}" for i in range(15)],
        "json.caption": [f"json {i}" for i in range(15)],
        "json.all": [f"one {i}" for i in range(15)],
        "__key__": [f"{i:04}" for i in range(15)],
    }
    inline = load_images([{"image_url": data, "caption": ""} for name, data in pictures(range(15), media=media)
                          if name.endswith(media)])  # fmt: skip
    for column, captions in expected.items():
        with load_images(data, media, column) as dataset:
            assert [dataset[i]["caption"] for i in range(len(dataset))] == captions
            assert all(torch.equal(dataset[i]["image"], inline[i]["image"]) for i in range(15))
    with load_images(data, media, "txt", max_samples=7) as dataset:
        assert (len(dataset), dataset[6]["caption"]) == (7, "text 6")
    inline.close()


@pytest.mark.parametrize("place", ["disk", "web"], indirect=True)
@pytest.mark.parametrize("media", ["flac", "wav", "mp3"])
def test_shards_of_clips_are_a_dataset(media: str, place: Callable[[str], str], tmp_path: Path) -> None:
    """They are typed `Audio`, which the Hub's library cannot decode here and need not."""
    shards = [write_shard(tmp_path / f"{n}.tar", clips(range(4 * n, 4 * n + 4), media=media)) for n in range(2)]
    data = load_shards([place(shard) for shard in shards])
    assert isinstance(data.features[media], datasets.Audio)
    with load_clips(data, media, "json.text", captions="all") as dataset:
        assert [dataset[i]["caption"] for i in range(8)] == [[f"one {i}", f"two {i}"] for i in range(8)]
        assert [len(dataset[i]["audio"]) for i in range(8)] == [2000 + 10 * i for i in range(8)]
    with load_clips(data, media, "json.text", max_samples=3) as dataset:
        assert len(dataset) == 3


def test_a_field_that_is_not_there_is_named(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", pictures(range(3)))
    for streaming in (True, False):
        data = load_shards([shard], streaming=streaming)
        with pytest.raises(ConfigError, match=r"'json.captoin'.*did you mean 'caption'"):
            load_images(data, "jpg", "json.captoin")
        with pytest.raises(ConfigError, match=r"there is no column 'image_url'.*'jpg', 'txt', 'json'"):
            load_images(data)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_broken_or_missing_member_costs_its_sample_alone(streaming: bool, tmp_path: Path) -> None:
    members = [(name, b"no picture" if name == "0007.jpg" else data) for name, data in pictures(range(12))]
    members = [member for member in members if member[0] not in ("0008.jpg", "0009.txt")]
    data = load_shards([write_shard(tmp_path / "0.tar", members)], streaming=streaming)
    with load_images(data, "jpg", "txt") as dataset:
        assert {failure.index: failure.reason for failure in dataset.report.failures} == {7: "not_media", 8: "empty"}
        assert (dataset[7]["caption"], dataset[9]["caption"], dataset.report.num_empty_captions) == ("text 7", "", 1)
        assert [dataset[i]["valid"] for i in range(12)] == [i not in (7, 8) for i in range(12)]


def offset_of(shard: str, member: str) -> int:
    """Find where the header of a member begins."""
    import tarfile

    with tarfile.open(shard) as tar:
        return tar.getmember(member).offset


def damaged(tmp_path: Path, kind: str) -> str:
    """Write a shard of samples 6 to 11 that is whole up to somewhere in 0009."""
    members: Members = pictures(range(6, 12))
    whole = write_shard(tmp_path / "whole.tar", members)
    at, path = offset_of(whole, "0009.jpg"), tmp_path / "damaged.tar"
    if kind == "cut in a header":
        return write_shard(path, members, num_bytes=at + 100)
    if kind == "cut in a member":
        return write_shard(path, members, num_bytes=at + 600)
    if kind == "a header is overwritten":
        data = bytearray(Path(whole).read_bytes())
        data[at : at + 512] = b"\xa5" * 512
        path.write_bytes(data)
    elif kind == "the JSON is none":
        return write_shard(path, [(n, b"{caption" if n == "0009.json" else data) for n, data in members])
    elif kind == "a page instead of a shard":
        path.write_bytes(b"<html>the file is gone</html>" * 100)
    elif kind == "an empty file":
        path.write_bytes(b"")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "num_rows", "cause"),
    [
        ("cut in a header", 8, "ReadError: what follows the first .* bytes is no tar archive"),
        ("cut in a member", 9, "ReadError: unexpected end of data"),
        ("a header is overwritten", 8, "ReadError: what follows the first .* bytes is no tar archive"),
        ("the JSON is none", 9, "JSONDecodeError"),
        ("a page instead of a shard", 6, "ReadError"),
        ("an empty file", 6, "ReadError: it is empty"),
    ],
)
def test_a_damaged_shard_is_an_error_that_says_where(kind: str, num_rows: int, cause: str, tmp_path: Path) -> None:
    """Never a shorter dataset. The rows before it can be had, and those of a cache are kept."""
    good = write_shard(tmp_path / "0.tar", pictures(range(6)))
    bad = damaged(tmp_path, kind)
    data = load_shards([good, bad])
    cache_dir = tmp_path / "cache"
    with pytest.raises(LoadError, match=f"(?s)broke off after {num_rows} rows.*damaged.tar: {cause}") as caught:
        load_images(data, "jpg", "txt", cache_dir=cache_dir)
    assert caught.value.__cause__ is not None
    assert f"max_samples={num_rows}" in str(caught.value)
    with load_images(data, "jpg", "txt", max_samples=num_rows) as dataset:
        assert [dataset[i]["caption"] for i in range(num_rows)] == [f"text {i}" for i in range(num_rows)]
    # The shard is there again, under the same name.
    Path(bad).write_bytes((tmp_path / "whole.tar").read_bytes())
    with load_images(data, "jpg", "txt", cache_dir=cache_dir) as dataset:
        assert [dataset[i]["caption"] for i in range(12)] == [f"text {i}" for i in range(12)]
        assert dataset.report.num_failed == 0


def test_a_shard_without_the_mark_of_its_end_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some programs leave the mark out; a shard cut between two members looks the same."""
    whole = write_shard(tmp_path / "whole.tar", pictures(range(6)))
    cut = write_shard(tmp_path / "cut.tar", pictures(range(6)), num_bytes=offset_of(whole, "0004.jpg"))
    with caplog.at_level(logging.WARNING), load_images(load_shards([cut, whole]), "jpg", "txt") as dataset:
        assert len(dataset) == 10
    assert [record.getMessage().partition(" ends")[0] for record in caplog.records] == [cut]


def test_a_server_that_breaks_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body shorter than its announced length is never taken for the whole shard, and nothing waits for ever."""
    shard = Path(write_shard(tmp_path / "0.tar", pictures(range(40)))).read_bytes()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)

    class BreaksOff(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(shard)))
            self.end_headers()
            is_cut = self.path.startswith("/1") and self.command == "GET"
            self.wfile.write(b"" if self.command == "HEAD" else shard[: len(shard) // 1024 * 512] if is_cut else shard)
            self.close_connection = is_cut

        do_HEAD = do_GET

    with LocalServer(BreaksOff) as server:
        data = load_shards([f"{server.url}/0.tar", f"{server.url}/1.tar"])
        with pytest.raises(LoadError, match=r"broke off after \d+ rows.* in http://127.0.0.1:\d+/1.tar"):
            load_images(data, "jpg", "txt")
        hang_up()


# The Hub's library leaves its readers of shards to the garbage collector when one of them fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shuffled_and_mapped_stream_of_shards_is_watched_too(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "0.tar", pictures(range(6)))
    data = load_shards([good, damaged(tmp_path, "cut in a header")])
    data = data.map(lambda row: {"upper": row["txt"].upper()}).shuffle(seed=0, buffer_size=4)
    with pytest.raises(LoadError, match=r"broke off after \d+ rows .*damaged.tar"):
        load_images(data, "jpg", "upper")


def test_gzipped_shards_are_read_to_their_end(tmp_path: Path) -> None:
    import gzip

    whole = Path(write_shard(tmp_path / "0.tar", pictures(range(6)))).read_bytes()
    packed = gzip.compress(whole)
    (tmp_path / "0.tar.gz").write_bytes(packed)
    with load_images(load_shards([str(tmp_path / "0.tar.gz")]), "jpg", "txt") as dataset:
        assert len(dataset) == 6
    (tmp_path / "1.tar.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(LoadError, match="broke off after"):
        load_images(load_shards([str(tmp_path / n) for n in ("0.tar.gz", "1.tar.gz")]), "jpg", "txt")


def test_the_members_of_a_shard_are_not_kept_in_memory_once_they_are_read(tmp_path: Path) -> None:
    """A thousand pictures stream through the memory of a few."""
    import tracemalloc

    from in_memory_datasets.rows import open_rows

    noise = [(f"{i:04}.{kind}", picture(i, "JPEG") + bytes(20_000) if kind == "jpg" else b"text")
             for i in range(1000) for kind in ("jpg", "txt")]  # fmt: skip
    data = load_shards([write_shard(tmp_path / "0.tar", noise)])
    reader = open_rows(data, media_col="jpg", txt_col="txt", max_samples=None)
    tracemalloc.start()
    num_rows = sum(len(batch) for batch in reader.batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 1000
    assert peak < 6e6
