"""Processes that do one thing each, watched from outside so that watching costs them nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.load.worker import Told
from benchmarks.processes.jobs import JobError, kill_group

_ROOT = Path(__file__).parents[2]
_TIMEOUT_SECONDS = 900.0


class Running:
    """A process that waits to begin.

    Attributes:
        pid: Its number; it leads a group and a session of its own.
        ready: What it said when it was ready.
    """

    def __init__(self, process: subprocess.Popen[str], task: Told) -> None:
        self._process = process
        self.pid = process.pid
        self._say(json.dumps(task))
        self.ready = self.read()

    def begin(self) -> None:
        """Let it begin."""
        self._say("go")

    def read(self) -> Told:
        """Wait for what it says next.

        Raises:
            EOFError: It ended without a word.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EOFError
        told: Told = json.loads(line)
        return told

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EOFError from error


@contextmanager
def started(task: Told, python: Path | None = None) -> Iterator[Running]:
    """Start a process that is over, with all it started, when the block is.

    Raises:
        JobError: It failed; with the end of what it said.
    """
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [str(python or sys.executable), "-m", "benchmarks.load.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"},
            start_new_session=True,
        ) as process,
    ):
        timer = threading.Timer(_TIMEOUT_SECONDS, kill_group, [process.pid])
        timer.start()
        try:
            yield Running(process, task)
        except EOFError as error:
            is_late = not timer.is_alive()
            kill_group(process.pid)
            raise JobError(_why(process.wait(), said, is_late=is_late)) from error
        finally:
            timer.cancel()
            kill_group(process.pid)


def _why(status: int, said: Any, *, is_late: bool) -> str:
    if is_late:
        return f"took more than {_TIMEOUT_SECONDS:.0f} s"
    said.seek(0)
    lines = said.read().strip().splitlines() or [f"exit status {status}"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return str((errors or lines)[-1])


@contextmanager
def watched(look: Callable[[], None], wait: Callable[[], float]) -> Iterator[None]:
    """Look at something again and again while the block runs, and once more when it is over.

    Args:
        wait: Gives the seconds until the next look.

    Raises:
        BaseException: What looking raised.
    """
    over = threading.Event()
    errors: list[BaseException] = []

    def watch() -> None:
        try:
            while not over.wait(wait()):
                look()
        except BaseException as error:  # noqa: BLE001 - raised again where the block ends
            errors.append(error)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        look()
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]
