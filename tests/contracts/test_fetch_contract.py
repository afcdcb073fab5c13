"""What every kind of source promises."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.schema import FetchOptions, Source
from tests.serving import LocalServer, QuietHandler

SIZES = (1, 1000, 300_000)


class FetchContract:
    """Subclassed for every kind of source.

    A subclass has the fixtures `sources`, which are `make_bytes` of each of `SIZES`, and `odd_sources`, by the reason
    they are refused for.
    """

    @pytest.fixture
    def fetcher(self) -> Iterator[Fetcher]:
        options = FetchOptions(allow_private_addresses=True, allow_local_files=True, retries=0, max_bytes=300_000)
        with Fetcher(options, max_buffered_bytes=400_000) as fetcher:
            yield fetcher

    def test_the_bytes_arrive_unchanged_and_counted(self, fetcher: Fetcher, sources: dict[int, Source]) -> None:
        for size, source in sources.items():
            fetched = fetcher.fetch(source)
            assert fetched.data == make_bytes(size)
            assert fetched.num_bytes == size
            fetched.release()

    def test_more_than_the_budget_gets_through_when_it_is_released(
        self, fetcher: Fetcher, sources: dict[int, Source]
    ) -> None:
        gone = threading.Semaphore(0)
        for _ in range(10):
            for source in sources.values():
                fetcher.submit(source).add_done_callback(lambda future: (future.result().release(), gone.release()))
        for _ in range(10 * len(sources)):
            assert gone.acquire(timeout=30)

    def test_an_empty_or_too_large_source_is_refused(self, fetcher: Fetcher, odd_sources: dict[str, Source]) -> None:
        for reason, source in odd_sources.items():
            error = fetcher.submit(source).exception(30)
            assert isinstance(error, FetchError)
            assert error.reason == reason


class OutsideFetchContract(FetchContract):
    """What is promised besides of sources that lie elsewhere; a subclass has the fixture `missing`, one that is not."""

    def test_a_missing_source_is_a_failure_in_the_future(self, fetcher: Fetcher, missing: Source) -> None:
        error = fetcher.submit(missing).exception(30)
        assert isinstance(error, FetchError)
        assert error.reason in ("not_found", "http_404")
        assert error.stage == "fetch"


@functools.cache
def make_bytes(size: int) -> bytes:
    return bytes(number % 251 for number in range(size))


class TestInlineBytes(FetchContract):
    @pytest.fixture
    def sources(self) -> dict[int, Source]:
        return {size: Source("bytes", make_bytes(size)) for size in SIZES}

    @pytest.fixture
    def odd_sources(self) -> dict[str, Source]:
        return {"empty": Source("bytes", b""), "too_large": Source("bytes", bytes(300_001))}


class TestLocalFiles(OutsideFetchContract):
    @pytest.fixture
    def missing(self) -> Source:
        return Source("path", "/no/such/file.jpg")

    @pytest.fixture
    def sources(self, tmp_path: Path) -> dict[int, Source]:
        for size in SIZES:
            (tmp_path / str(size)).write_bytes(make_bytes(size))
        return {size: Source("path", str(tmp_path / str(size))) for size in SIZES}

    @pytest.fixture
    def odd_sources(self, tmp_path: Path) -> dict[str, Source]:
        (tmp_path / "empty").touch()
        (tmp_path / "too_large").write_bytes(bytes(300_001))
        return {name: Source("path", str(tmp_path / name)) for name in ("empty", "too_large")}


class TestObjectStore(OutsideFetchContract):
    @pytest.fixture
    def missing(self) -> Source:
        return Source("fsspec", "memory://contract/none")

    @pytest.fixture
    def sources(self) -> Iterator[dict[int, Source]]:
        fs = fsspec.filesystem("memory")
        for size in SIZES:
            fs.pipe_file(f"/contract/{size}", make_bytes(size))
        yield {size: Source("fsspec", f"memory://contract/{size}") for size in SIZES}
        fs.rm("/contract", recursive=True)

    @pytest.fixture
    def odd_sources(self) -> Iterator[dict[str, Source]]:
        fs = fsspec.filesystem("memory")
        fs.pipe_file("/odd/empty", b"")
        fs.pipe_file("/odd/too_large", bytes(300_001))
        yield {name: Source("fsspec", f"memory://odd/{name}") for name in ("empty", "too_large")}
        fs.rm("/odd", recursive=True)


class _Handler(QuietHandler):
    def do_GET(self) -> None:
        self.send_body(None if self.path == "/none" else make_bytes(int(self.path[1:])))


class TestHttp(OutsideFetchContract):
    @pytest.fixture
    def base_url(self) -> Iterator[str]:
        with LocalServer(_Handler) as server:
            yield server.url

    @pytest.fixture
    def missing(self, base_url: str) -> Source:
        return Source("url", f"{base_url}/none")

    @pytest.fixture
    def sources(self, base_url: str) -> dict[int, Source]:
        return {size: Source("url", f"{base_url}/{size}") for size in SIZES}

    @pytest.fixture
    def odd_sources(self, base_url: str) -> dict[str, Source]:
        return {"empty": Source("url", f"{base_url}/0"), "too_large": Source("url", f"{base_url}/300001")}
