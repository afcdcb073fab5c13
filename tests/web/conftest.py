"""Servers and fetchers for the tests of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

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
