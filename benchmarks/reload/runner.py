"""Processes of the contestants: started, held until their files are cold or warm, and what they answered."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.processes.jobs import JobError, kill_group
from benchmarks.processes.venvs import InstallError, python_of
from benchmarks.reload import pictures
from benchmarks.reload.contestants import CONTESTANTS, Contestant
from benchmarks.reload.page_cache import cool, warm
from benchmarks.reload.pictures import PICTURE_BYTES, choose, describe, digest_captions, digest_images, draw
from benchmarks.reload.worker import Job, Task

Phase = Literal["warm", "cold", "restarted"]
PHASES: tuple[Phase, ...] = ("warm", "cold", "restarted")
_TIMEOUT_SECONDS: dict[Task, float] = {"prepare": 3600.0, "measure": 300.0}
# What the machine has to keep for everything else.
_SPARE_MEMORY_BYTES, _SPARE_DISK_BYTES = 10**9, 2 * 10**9


@dataclass(slots=True)
class Entry:
    """One contestant with so many samples.

    Attributes:
        place: Where its files lie.
        stored_mb: How large they are.
        timings: What each repeat answered.
        error: Why there are no figures, or not all; "" if all is well.
    """

    key: str
    num_samples: int
    place: Path
    stored_mb: float = 0.0
    timings: dict[Phase, list[dict[str, Any]]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    error: str = ""

    @property
    def contestant(self) -> Contestant:
        """Who it is."""
        return CONTESTANTS[self.key]


class Runner:
    """Runs one process at a time.

    Args:
        build: Where environments and files are kept.
        root: Where the processes run.

    Attributes:
        versions: Of the distributions that the contestants named.
    """

    def __init__(self, build: Path, root: Path) -> None:
        self._build, self._root = build.resolve(), root
        self.versions: dict[str, str] = {}

    def enter(self, key: str, num_samples: int) -> Entry:
        """Open an entry; nothing is made yet."""
        return Entry(key, num_samples, self._build / "reload" / f"{key}-{num_samples}")

    def prepare(self, entry: Entry) -> None:
        """Make the environment and the files, unless they are there."""
        done = entry.place.with_suffix(".prepared")
        try:
            python_of(entry.contestant.venv, self._build / "peers")
            made_by = _fingerprint(entry.contestant)
            found = json.loads(done.read_text()) if done.exists() else {}
            if found.get("made_by") != made_by:
                self.remove(entry)
                _refuse_if_too_large(entry)
                entry.place.mkdir(parents=True)
                print(f"preparing {entry.num_samples:,} samples for {entry.contestant.name}", flush=True)
                with self._process("prepare", entry, []) as process:
                    found = {"made_by": made_by, **self._read(process)}
                done.write_text(json.dumps(found))
                os.sync()  # or the disk goes on writing while others are measured
            entry.stored_mb = found["stored_mb"]
        except (InstallError, JobError) as error:
            entry.error = str(error)
            print(f"  not measured: {error}", flush=True)

    def remove(self, entry: Entry) -> None:
        """Remove the files of an entry."""
        entry.place.with_suffix(".prepared").unlink(missing_ok=True)
        shutil.rmtree(entry.place, ignore_errors=True)

    def measure(self, entry: Entry, phase: Phase, seed: int) -> None:
        """Time a first batch in a process of its own. What failed once is not tried again."""
        if entry.error:
            return
        indices = choose(entry.num_samples, seed)
        try:
            started = time.perf_counter()
            with self._process("measure", entry, indices) as process:
                self._read(process)
                imports_ms = 1e3 * (time.perf_counter() - started)
                resident = warm(entry.place) if phase == "warm" else cool(entry.place, everything=phase == "restarted")
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                answer = self._read(process)
            _compare(entry, answer, indices)
        except JobError as error:
            entry.error = str(error)
            print(f"{entry.contestant.name}, {entry.num_samples:,} samples, {phase}: {error}", flush=True)
            return
        self.versions |= answer.pop("versions")
        entry.timings[phase].append({"imports_ms": imports_ms, "resident_share": resident, **answer})

    @contextmanager
    def _process(self, task: Task, entry: Entry, indices: list[int]) -> Iterator[subprocess.Popen[str]]:
        """Start a process that is over, with all it started, when the block is."""
        job = Job(
            task=task,
            contestant=entry.key,
            place=str(entry.place),
            num_samples=entry.num_samples,
            indices=indices,
        )
        python = python_of(entry.contestant.venv, self._build / "peers")
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(
                [str(python), "-m", "benchmarks.reload.worker", job.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                cwd=self._root,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            ) as process,
        ):
            # Whoever waits for its answer is told of its end.
            timer = threading.Timer(_TIMEOUT_SECONDS[task], kill_group, [process.pid])
            timer.start()
            try:
                yield process
            except EOFError as error:
                is_late = not timer.is_alive()
                process.wait()
                raise JobError(_why(task, process.returncode, said, is_late=is_late)) from error
            finally:
                timer.cancel()
                kill_group(process.pid)

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
        """Read one answer.

        Raises:
            EOFError: The process ended without one.
        """
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer


def _why(task: Task, status: int, said: Any, *, is_late: bool) -> str:
    if is_late:
        return f"{task} took more than {_TIMEOUT_SECONDS[task]:.0f} s"
    said.seek(0)
    lines = said.read().strip().splitlines() or [f"exit status {status}"]
    errors = [line for line in lines if re.match(r"[\w.]+: ", line)]
    return f"{task} failed: {(errors or lines)[-1]}"


def _refuse_if_too_large(entry: Entry) -> None:
    """Raise where the files, or what comes of them, would not fit; better than half an hour of swapping.

    Raises:
        JobError: With what is needed and what there is.
    """
    pixels = entry.num_samples * PICTURE_BYTES
    needed = round(entry.contestant.memory_copies * pixels) + _SPARE_MEMORY_BYTES
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > free:
        raise JobError(f"takes {needed / 1e9:.1f} GB of memory beside a warm file; the machine has {free / 1e9:.1f} GB")
    needed = round(entry.contestant.disk_copies * pixels) + _SPARE_DISK_BYTES
    entry.place.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(entry.place.parent).free
    if needed > free:
        raise JobError(f"takes {needed / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are free")


def _compare(entry: Entry, answer: dict[str, Any], indices: list[int]) -> None:
    """See that a batch is the one that was asked for.

    Raises:
        JobError: It is another.
    """
    import numpy as np

    images, captions = answer.pop("images"), answer.pop("captions")
    if images != digest_images(np.stack([draw(i) for i in indices])):
        raise JobError("gave another batch of images")
    if (captions is not None) != entry.contestant.has_captions:
        raise JobError(f"{'gave' if captions else 'gave no'} captions")
    if captions is not None and captions != digest_captions([describe(i) for i in indices]):
        raise JobError("gave other captions")


def _fingerprint(contestant: Contestant) -> str:
    """Tell the code that makes the files from other code."""
    modules = [Path(pictures.__file__), Path(inspect.getfile(type(contestant)))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()
