"""Processes of the peers: started, waited for, and what they answered."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes.jobs import JobError, kill_group
from benchmarks.processes.venvs import InstallError, python_of
from benchmarks.serve import samples
from benchmarks.serve.job import BATCH_SIZES, Job, Media, Task
from benchmarks.serve.peers import PEERS, Peer

_TIMEOUT_SECONDS: dict[Task, float] = {"prepare": 600.0, "time": 180.0}


@dataclass(slots=True)
class Contestant:
    """One peer with one kind of media.

    Attributes:
        error: Why it cannot be measured; "" if it can.
    """

    key: str
    media: Media
    data: Path
    num_samples: int
    error: str = ""

    @property
    def peer(self) -> Peer:
        """Who it is."""
        return PEERS[self.key]


@dataclass(slots=True)
class Measurement:
    """One contestant with one number of workers.

    Attributes:
        timings: What each repeat answered, the first with what its check found; fewer than there were repeats if one
            failed.
        error: Why there are no figures, or not all; "" if all is well.
    """

    contestant: Contestant
    num_workers: int
    timings: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


class Runner:
    """Runs jobs one at a time.

    Attributes:
        versions: Of the distributions that the peers named.
    """

    def __init__(self, build: Path, root: Path, warm_seconds: float) -> None:
        self._build, self._root, self._warm_seconds = build.resolve(), root, warm_seconds
        self.versions: dict[str, str] = {}

    def prepare(self, contestant: Contestant) -> None:
        """Make the peer's environment and files unless they are there."""
        place = self._place(contestant)
        done = place.with_suffix(".prepared")
        try:
            python_of(contestant.peer.venv, self._build / "peers")
            made_by = _fingerprint(contestant.peer)
            if done.exists() and done.read_text() == made_by:
                return
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            print(f"preparing {contestant.media} for {contestant.peer.name}", flush=True)
            self._run("prepare", contestant, num_workers=0)
            done.write_text(made_by)
        except (InstallError, JobError) as error:
            contestant.error = str(error)
            print(f"  not measured: {error}", flush=True)

    def enter(self, contestant: Contestant, num_workers: int) -> Measurement:
        """Open a measurement, with what stands against it noted."""
        fewest = contestant.peer.min_workers
        error = contestant.error
        if not error and num_workers < fewest:
            error = f"takes at least {fewest} worker{'s' * (fewest > 1)}"
        return Measurement(contestant, num_workers, error=error)

    def time(self, measurement: Measurement) -> None:
        """Time the first and later epochs; the first time, compare one more with the samples and watch the memory.

        What failed once is not tried again.
        """
        if measurement.error:
            return
        contestant, num_workers = measurement.contestant, measurement.num_workers
        try:
            measurement.timings.append(self._run("time", contestant, num_workers, check=not measurement.timings))
        except JobError as error:
            measurement.error = str(error)
            print(f"{contestant.peer.name}, {contestant.media}, {num_workers} workers: {error}", flush=True)

    def _place(self, contestant: Contestant) -> Path:
        name = f"{contestant.key}-{contestant.media}-{contestant.num_samples}"
        return self._build / "serve" / "prepared" / name

    def _run(self, task: Task, contestant: Contestant, num_workers: int, *, check: bool = False) -> dict[str, Any]:
        job = Job(
            task=task,
            peer=contestant.key,
            media=contestant.media,
            data=str(contestant.data.resolve()),
            place=str(self._place(contestant)),
            num_samples=contestant.num_samples,
            num_workers=num_workers,
            batch_size=BATCH_SIZES[contestant.media],
            warm_seconds=self._warm_seconds,
            check=check,
        )
        python = python_of(contestant.peer.venv, self._build / "peers")
        # A group of its own, so that nothing it started outlives it; and no peer needs the network.
        with subprocess.Popen(
            [str(python), "-m", "benchmarks.serve.worker", job.to_json()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._root,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        ) as process:
            try:
                answer, said = process.communicate(timeout=_TIMEOUT_SECONDS[task])
            except subprocess.TimeoutExpired as error:
                raise JobError(f"{task} took more than {_TIMEOUT_SECONDS[task]:.0f} s") from error
            finally:
                kill_group(process.pid)
        if process.returncode:
            lines = said.strip().splitlines() or [f"exit status {process.returncode}"]
            errors = [line for line in lines if re.match(r"[\w.]+: ", line)]
            raise JobError(f"{task} failed: {(errors or lines)[-1]}")
        result: dict[str, Any] = json.loads(answer)
        self.versions |= result.pop("versions")
        return result


def _fingerprint(peer: Peer) -> str:
    """Tell the code that makes a peer's files from other code."""
    modules = [Path(samples.__file__), Path(inspect.getfile(type(peer)))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()
