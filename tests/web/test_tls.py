"""Fetching over TLS."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from in_memory_datasets.errors import FetchError
from tests.web.certificates import Authority, self_signed
from tests.web.hostile_server import HostileServer


def test_a_certificate_that_is_not_trusted_is_final(tmp_path: Path, fail: Callable[..., FetchError]) -> None:
    with HostileServer(tls=self_signed(tmp_path, "127.0.0.1")) as server:
        error = fail(server.url("/ok/1"), retries=3)
    assert (error.reason, error.attempts, server.requests) == ("tls", 1, [])


def test_https_to_a_server_without_tls_has_a_reason(server: HostileServer, fail: Callable[..., FetchError]) -> None:
    assert fail(server.url("/ok/1").replace("http:", "https:")).reason in ("tls", "reset")


def test_http_to_a_server_with_tls_has_a_reason(tmp_path: Path, fail: Callable[..., FetchError]) -> None:
    with HostileServer(tls=self_signed(tmp_path, "127.0.0.1")) as server:
        assert fail(server.url("/ok/1").replace("https:", "http:")).reason in ("reset", "bad_response")


@pytest.mark.parametrize(
    ("hosts", "days", "words"),
    [
        (("127.0.0.1",), (-3, -1), "certificate has expired"),
        (("127.0.0.1",), (1, 3), "certificate is not yet valid"),
        (("192.0.2.1", "elsewhere.test"), (-1, 1), "IP address mismatch"),
    ],
)
def test_the_detail_tells_what_is_wrong_with_a_certificate(
    tmp_path: Path, hosts: tuple[str, ...], days: tuple[int, int], words: str
) -> None:
    """In a process of its own, which trusts the authority as the system's own would be trusted."""
    authority = Authority(tmp_path)
    script = """
        import sys
        from in_memory_datasets.errors import FetchError
        from in_memory_datasets.fetch import Fetcher
        from in_memory_datasets.schema import FetchOptions, Source
        with Fetcher(FetchOptions(allow_private_addresses=True)) as fetcher:
            assert fetcher.fetch(Source("url", sys.argv[1])).num_bytes == 7
            error = fetcher.submit(Source("url", sys.argv[2])).exception(60)
        assert isinstance(error, FetchError), error
        print(error.reason, error.attempts, error)
    """
    with (
        HostileServer(tls=authority.issue("127.0.0.1")) as good,
        HostileServer(tls=authority.issue(*hosts, days=days)) as bad,
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), good.url("/ok/7"), bad.url("/ok/7")],
            env={**os.environ, "SSL_CERT_FILE": str(authority.path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tls 1 ")
    assert words in done.stdout
