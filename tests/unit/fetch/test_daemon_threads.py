"""How threads end: a fork that follows finds none of them in its last moments."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable

import pytest

from in_memory_datasets.fetch.daemon_threads import DaemonThreads
from in_memory_datasets.fetch.loop_thread import LoopThread
from tests.lacking import needs


async def _nothing() -> None:
    pass


def use_threads(call: Callable[[], object]) -> None:
    threads = DaemonThreads("test")
    for future in [threads.submit(call) for _ in range(4)]:
        future.result()
    threads.close(30.0)


def use_loop(call: Callable[[], object]) -> None:
    loop = LoopThread("test", _nothing)
    loop.call(call)
    loop.close()


@needs(os.path.isdir("/proc/self/task"), "this system does not list the threads of a process in /proc")
@pytest.mark.parametrize("use", [use_threads, use_loop])
def test_a_closed_thread_is_gone_for_the_system_as_well(use: Callable[[Callable[[], object]], None]) -> None:
    """Python's join returns before, while OpenSSL holds a lock that a forked child would inherit as held."""
    left: list[set[int]] = []
    used: set[int] = set()

    def encrypt() -> None:
        used.add(threading.get_native_id())
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    for _ in range(100):
        used.clear()
        use(encrypt)
        left.append(used & {int(name) for name in os.listdir("/proc/self/task")})
    assert [ids for ids in left if ids] == []
