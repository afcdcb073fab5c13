"""What a fetcher starts, and that nothing of it is left."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.schema import FetchOptions, Source
from tests.web.hostile_server import HostileServer

LOCAL = FetchOptions(allow_private_addresses=True, retries=0, timeout=0.3, max_bytes=2**20)


def count_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def name_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_nothing_starts_before_something_has_to_be_fetched() -> None:
    before = name_threads()
    with Fetcher() as fetcher:
        assert fetcher.fetch(Source("bytes", b"abc")).data == b"abc"
        assert name_threads() == before


@pytest.mark.parametrize("path", ["/ok/100000", "/status/404", "/slow-body", "/short/9", "/chain/3", "/endless"])
def test_no_thread_and_no_descriptor_is_left(server: HostileServer, tmp_path: Path, path: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"abc")
    threads, descriptors = name_threads(), count_descriptors()
    with Fetcher(LOCAL) as fetcher:
        futures = [fetcher.submit(Source("url", server.url(path, host="localhost"))) for _ in range(20)]
        futures += [fetcher.submit(Source("path", str(tmp_path / "a.jpg"))) for _ in range(20)]
        futures += [fetcher.submit(Source("path", str(tmp_path / "none.jpg"))) for _ in range(20)]
        for future in futures:
            future.exception(20)
    assert name_threads() == threads
    server.drop_connections()
    assert count_descriptors() <= descriptors


def test_a_fetcher_that_is_dropped_ends_by_itself(server: HostileServer) -> None:
    threads = name_threads()
    Fetcher(LOCAL).fetch(Source("url", server.url("/ok/10")))
    gc.collect()
    assert name_threads() == threads


def test_many_threads_share_one_fetcher(server: HostileServer) -> None:
    with Fetcher(LOCAL) as fetcher:
        sizes: list[int] = []

        def fetch() -> None:
            sizes.extend(fetcher.fetch(Source("url", server.url("/ok/100"))).num_bytes for _ in range(10))

        threads = [threading.Thread(target=fetch) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sizes == [100] * 80


def run_script(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_forked_child_fetches_with_a_thread_of_its_own(server: HostileServer) -> None:
    """The child's fetches and its end leave the parent's connections alone."""
    script = """
        import os, sys, warnings
        from in_memory_datasets.fetch import Fetcher
        from in_memory_datasets.schema import FetchOptions, Source
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        url = sys.argv[1]
        fetcher = Fetcher(FetchOptions(allow_private_addresses=True, retries=0))
        assert fetcher.fetch(Source("url", url)).num_bytes == 100
        child = os.fork()
        if child == 0:
            assert fetcher.fetch(Source("url", url)).num_bytes == 100
            fetcher.close()
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        for _ in range(3):
            assert fetcher.fetch(Source("url", url)).num_bytes == 100
        idle_child = os.fork()
        if idle_child == 0:
            sys.exit(0)
        assert os.waitpid(idle_child, 0)[1] == 0
        assert fetcher.fetch(Source("url", url)).num_bytes == 100
        print("done")
    """
    assert run_script(script, server.url("/ok/100")) == "done\n"
    assert server.num_connections == 2


def test_a_process_ends_quietly_with_an_open_fetcher(server: HostileServer) -> None:
    script = """
        import sys
        from in_memory_datasets.fetch import Fetcher
        from in_memory_datasets.schema import FetchOptions, Source
        fetcher = Fetcher(FetchOptions(allow_private_addresses=True))
        fetcher.fetch(Source("url", sys.argv[1]))
        stalled = fetcher.submit(Source("url", sys.argv[2]))
        print("end of script")
    """
    assert run_script(script, server.url("/ok/100"), server.url("/slow-body")) == "end of script\n"


def test_importing_the_package_loads_neither_aiohttp_nor_fsspec() -> None:
    script = """
        import sys
        import in_memory_datasets.fetch
        print([name for name in ("aiohttp", "fsspec", "torch") if name in sys.modules])
    """
    assert run_script(script) == "[]\n"
