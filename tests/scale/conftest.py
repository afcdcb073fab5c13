"""A real cluster of two nodes on this machine, which tests may add nodes to and take nodes from."""

from __future__ import annotations

import gc
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.lacking import needed_package
from tests.leaks import threads_left
from tests.serving import LocalServer, QuietHandler

needed_package("ray")

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

_STORE_BYTES = 150 * 2**20
# A node that is gone is found out after a second and not, as by default, after half a minute.
_QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 2_000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves blocks or threads of the library in this process; its sockets and children are Ray's."""
    before = _blocks()
    yield
    gc.collect()
    threads = threads_left()
    assert not (left := _blocks() - before), f"blocks left open: {left}"
    assert not threads, f"threads left running: {threads}"


def _blocks() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            continue
        if "in-memory-datasets" in name:
            found.add(f"{fd} {name}")
    return found


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start a cluster of two nodes and connect to it, as a driver does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of what is to change in Ray
        started = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 4,
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
                "_system_config": _QUICK_TO_NOTICE,
            },
        )
        started.add_node(num_cpus=4, object_store_memory=_STORE_BYTES)
        ray.init(address=started.address, log_to_driver=False, logging_level="error")
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def add_node(cluster: Cluster) -> Iterator[Callable[[], Any]]:
    """Add nodes, which are gone again after the test, also those that it has not killed."""
    added = []

    def add() -> Any:
        node = cluster.add_node(num_cpus=4, object_store_memory=_STORE_BYTES)
        cluster.wait_for_nodes()
        added.append(node)
        return node

    yield add
    for node in added:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)
    cluster.wait_for_nodes()


@pytest.fixture
def encode_png() -> Callable[..., bytes]:
    """Give what makes a PNG of pixels, whose decoding is exact."""

    def encode(pixels: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()

    return encode


class PictureServer(LocalServer):
    """Serve pictures by number, 17.png, as PNG; counts what is asked, and can keep everyone waiting.

    Attributes:
        asked: The names that were asked for, in order.
        gate: While it is closed nobody is answered.
        missing: Names that are answered by 404.
    """

    def __init__(self, encode: Callable[..., bytes]) -> None:
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.missing: set[str] = set()
        server = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                server.asked.append(name)
                server.gate.wait(60)
                stem = name.partition(".")[0]
                pixels = (
                    np.full((6, 8, 3), int(stem) % 251, np.uint8)
                    if stem.isdecimal() and name not in server.missing
                    else None
                )
                self.send_body(None if pixels is None else encode(pixels))

        super().__init__(Handler)


@pytest.fixture
def picture_server(encode_png: Callable[..., bytes]) -> Iterator[PictureServer]:
    """Serve pictures from this process to the nodes."""
    with PictureServer(encode_png) as server:
        yield server
        server.gate.set()
