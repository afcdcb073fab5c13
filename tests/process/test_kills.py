"""A load that is killed at any moment is gone on with: little is fetched twice, and the result is the same to the bit.

Death comes from outside when a request arrives, and from inside at a call that changes the disk, when half of what was
to be written is; these calls are spread over the whole load, its packing and promoting, and its declaring.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from in_memory_datasets.build import LoadRequest
from in_memory_datasets.build.pipeline import most_under_way
from in_memory_datasets.schema import FetchOptions, ImageSpec
from in_memory_datasets.store.journal import num_journaled
from tests.process.conftest import MediaServer, Script
from tests.process.deaths import FEW

NUM_ROWS = 60
NUM_BY_REQUEST, NUM_BY_CALL, NUM_IN_FINISH = 5, 5, 9  # and one after the store was declared: twenty
IN_FLIGHT = most_under_way(LoadRequest(spec=ImageSpec(), fetch=FetchOptions(concurrency=FEW), num_threads=FEW))
FILES = ["manifest.json", "rows.arrow", "samples.safetensors"]


class Nursery:
    """Have loads begun in processes of their own, which all that is imported is there for already."""

    def __init__(self, process: subprocess.Popen[str], server: MediaServer, arguments: dict[str, Any]) -> None:
        self._process, self._server, self._arguments = process, server, arguments
        self._pid, self._is_known = 0, threading.Event()

    def load(self, *, kill_at_request: int = 0, **arguments: int) -> dict[str, Any]:
        """Load, and give what the process said, with its "exit"."""
        self._is_known.clear()
        first = len(self._server.requests)

        def on_request(count: int) -> None:
            if count - first == kill_at_request:
                assert self._is_known.wait(60)
                os.kill(self._pid, signal.SIGKILL)

        self._server.on_request = on_request
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**self._arguments, **arguments}) + "\n")
        self._process.stdin.flush()
        self._pid = self._read()["pid"]
        self._is_known.set()
        said = answer = self._read()
        while "exit" not in answer:
            answer = self._read()
            said |= answer
        self._server.settle()  # or its last requests would be counted with those of the next
        return said

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "images decoded": ("png", {"image_size": [32, 32]}),
    "images encoded": ("png", {"image_size": [32, 32], "storage": "encoded"}),
    "images mixed": ("png", {"image_size": [32, 32], "storage": "auto", "memory_limit": 120_000}),
    "clips decoded": ("wav", {"target_sr": 8000, "dtype": "int16"}),
    "clips encoded": ("wav", {"target_sr": 8000, "dtype": "int16", "storage": "encoded"}),
    "clips mixed": ("wav", {"target_sr": 8000, "dtype": "int16", "storage": "auto", "memory_limit": 1_000_000}),
}


@pytest.mark.parametrize("step", ["process_request", "finish_request"])  # a connection is taken, and is read from
def test_what_dead_clients_asked_for_last_is_counted(
    step: str, server: MediaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, late = getattr(server, step), iter([0.2, 0.2])

    def take_late(*connection: Any) -> None:
        time.sleep(next(late, 0))
        take(*connection)

    monkeypatch.setattr(server, step, take_late)
    for i in range(2):
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.sendall(f"GET /{i}.png HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    server.settle()
    assert sorted(server.requests) == ["/0.png", "/1.png"]


@pytest.mark.campaign
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_load_that_is_killed_twenty_times_is_the_same_and_fetches_little_twice(
    scenario: str, tmp_path: Path, server: MediaServer, script: Script
) -> None:
    kind, options = SCENARIOS[scenario]
    urls = [f"{server.url}/{i}.{kind}" for i in range(NUM_ROWS)]
    draw = random.Random(scenario)
    process = script("nursery", module="deaths", stdin=subprocess.PIPE)

    def nursery(cache_dir: Path) -> Nursery:
        return Nursery(process, server, {"urls": urls, "options": options, "cache_dir": str(cache_dir)})

    whole = nursery(tmp_path / "whole").load()
    assert (whole["exit"], whole["num_ok"]) == (0, NUM_ROWS)
    assert (0 < whole["num_decoded"] < NUM_ROWS) == scenario.endswith("mixed")
    (expected,) = (tmp_path / "whole").glob("*/")
    to_finish = whole["num_to_declare"] - 2 * NUM_ROWS  # a sample is written, and then its record in the journal
    assert to_finish > NUM_IN_FINISH

    killed, entry = nursery(tmp_path / "killed"), tmp_path / "killed" / expected.name
    server.requests.clear()
    num_kills, num_repeated = 0, 0

    def kill(**how: int) -> None:
        nonlocal num_kills, num_repeated
        outcome = killed.load(**how)
        assert outcome == {"exit": -signal.SIGKILL}, f"{how} did not kill"
        num_kills += 1
        repeated = sum(count - 1 for count in Counter(server.requests).values())
        assert repeated - num_repeated <= IN_FLIGHT
        num_repeated = repeated
        assert len(server.requests) <= NUM_ROWS + num_kills * IN_FLIGHT

    by_request = [1] * NUM_BY_REQUEST + [0] * NUM_BY_CALL
    draw.shuffle(by_request)
    for is_request in by_request:
        left = NUM_ROWS - num_journaled(entry)
        share = left // 4  # of what is left, so that none of the kills comes too late
        if is_request:
            kill(kill_at_request=draw.randint(1, max(1, share)))
        else:
            kill(die_at=draw.randint(1, max(1, 2 * share)))
    assert num_journaled(entry) < NUM_ROWS
    for at in draw.sample(range(1, to_finish), NUM_IN_FINISH):
        kill(die_at=2 * (NUM_ROWS - num_journaled(entry)) + at)
    num_requests = len(server.requests)
    kill(die_after_declared=1)
    assert len(server.requests) == num_requests
    assert killed.load()["exit"] == 0
    assert len(server.requests) == num_requests
    assert num_kills == 20
    assert sorted(path.name for path in entry.iterdir()) == FILES
    for name in FILES:
        assert (entry / name).read_bytes() == (expected / name).read_bytes(), name
