"""A picture and sound server that can be told to stall or fail, and a way to start scripts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.lacking import lacks
from tests.serving import LocalServer, QuietHandler

ROOT = Path(__file__).parents[2]


class MediaServer(LocalServer):
    """Serve /<i>.png, grey pictures of level i, and /<i>.wav, i + 1 tenths of a second; count every request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.requests: list[str] = []
        self.stalls = threading.Event()  # while set, nobody is answered
        self.stalled_paths: set[str] = set()  # nor who asks for one of these
        self.asked = threading.Event()
        self.release = threading.Event()
        self.broken: set[str] = set()  # paths that are not found ...
        self.mended_by: Path | None = None  # ... until this file exists
        self.on_request: Callable[[int], None] = lambda count: None  # told of each request before it is answered


class _Handler(QuietHandler):
    server: MediaServer

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self.path)
        server.on_request(len(server.requests))
        server.asked.set()
        if server.stalls.is_set():
            server.release.wait()
            return
        if self.path in server.stalled_paths:
            server.release.wait()
        mended = server.mended_by is not None and server.mended_by.exists()
        self.send_body(None if self.path in server.broken and not mended else make_media(self.path))


def make_media(path: str) -> bytes:
    name, _, kind = path.strip("/").partition(".")
    file = io.BytesIO()
    if kind == "png":
        Image.new("L", (40, 30), int(name) % 256).save(file, "PNG")
    else:
        soundfile.write(file, np.full((int(name) + 1) * 800, 0.5, np.float32), 8000, format="WAV")
    return file.getvalue()


@pytest.fixture
def server() -> Iterator[MediaServer]:
    with MediaServer() as media:
        try:
            yield media
        finally:
            media.release.set()


Script = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def script() -> Iterator[Script]:
    """Start a function of `scripts`, or of another such module, in a process; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(
        name: str,
        *,
        launcher: tuple[str, ...] = (),
        wrapper: Sequence[str] = (),
        env: dict[str, str] | None = None,
        stdin: int | None = None,
        module: str = "scripts",
        **arguments: Any,
    ) -> Any:
        command = [*wrapper, sys.executable, *launcher, "-m", f"tests.process.{module}", name, json.dumps(arguments)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=stdin,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.communicate()


@pytest.fixture
def unshare() -> list[str]:
    """Give the command that starts a process whose mounts are its own, where that is permitted."""
    command = ["env", "LC_ALL=C", "unshare", "-m" if os.geteuid() == 0 else "-rm"]
    attempt = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if attempt.returncode and "not permitted" in attempt.stderr:
        lacks(f"no mount namespace is to be had here: {attempt.stderr.strip()}")
    assert attempt.returncode == 0, attempt.stderr
    return command


def wait_for(condition: Callable[[], Any]) -> Any:
    """Ask until the answer is true; another process is at work on it."""
    deadline = time.monotonic() + 60
    while not (answer := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return answer


def kill_one_that_lacks_two(script: Script, server: MediaServer, urls: list[str], cache_dir: Path, *, of: int) -> None:
    """Kill a process that loads pictures when all `of` them but /3.png and /8.png are in place, and forget it."""
    server.stalled_paths = {"/3.png", "/8.png"}
    builder = script("load_urls", urls=urls, cache_dir=str(cache_dir))
    assert server.asked.wait(60)
    (journal,) = wait_for(lambda: list(cache_dir.glob("*/journal")))
    wait_for(lambda: journal.stat().st_size == (of - 2) * 40)
    builder.kill()
    builder.wait()
    server.stalled_paths = set()
    server.release.set()
    server.requests.clear()


def result_of(process: subprocess.Popen[str]) -> Any:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1]) if output.strip() else None
