"""Servers and fetchers for the tests of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import fsspec
import pytest

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.schema import REASONS, FetchOptions, Source
from tests.web.hostile_server import HostileServer


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture
def make_fetcher() -> Iterator[Callable[..., Fetcher]]:
    """Give fetchers that may reach loopback, and close them after the test."""
    with ExitStack() as stack:

        def make(*, max_buffered_bytes: int = 128 * 2**20, **options: object) -> Fetcher:
            merged = {"allow_private_addresses": True, "retries": 0, "timeout": 5.0, **options}
            return stack.enter_context(Fetcher(FetchOptions(**merged), max_buffered_bytes=max_buffered_bytes))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def fail(make_fetcher: Callable[..., Fetcher]) -> Callable[..., FetchError]:
    """Fetch a URL that must fail, and give the error."""

    def fail(url: str, **options: object) -> FetchError:
        with pytest.raises(FetchError) as caught:
            make_fetcher(**options).fetch(Source("url", url))
        assert caught.value.reason in REASONS
        assert caught.value.stage == "fetch"
        return caught.value

    return fail


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """Serve a real S3 API that s3:// URLs lead to, in this process and in those it starts, and give its file system."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        fs = fsspec.filesystem("s3")
        yield fs
        fs.clear_instance_cache()
    server.stop()
