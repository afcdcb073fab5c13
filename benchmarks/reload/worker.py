"""One process of one contestant, in its virtual environment.

python -m benchmarks.reload.worker '{"task": "measure", ...}'    # a line of JSON when it is ready, and one at the end
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

Task = Literal["prepare", "measure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked of a process.

    Attributes:
        task: "prepare" writes the files; "measure" imports, says that it is ready, waits for a line, and then opens the
            files and gives a batch.
        contestant: A key of `CONTESTANTS`.
        place: Where the files lie.
        num_samples: How many there are.
        indices: The numbers of the batch.
    """

    task: Task
    contestant: str
    place: str
    num_samples: int
    indices: list[int]

    def to_json(self) -> str:
        """Write the job as one line."""
        return json.dumps(asdict(self))


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    # Libraries print; the answers have standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in (prepare if job.task == "prepare" else measure)(job):
        print(json.dumps(answer), file=answers, flush=True)


def prepare(job: Job) -> Any:
    """Write the files, and give their size."""
    from benchmarks.reload.contestants import CONTESTANTS
    from benchmarks.reload.pictures import Pictures

    place = Path(job.place)
    CONTESTANTS[job.contestant].prepare(Pictures(job.num_samples), place)
    stored = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    yield {"stored_mb": stored / 1e6}


def measure(job: Job) -> Any:
    """Import, wait until the files are as cold or as warm as they shall be, and time the first batch."""
    from benchmarks.reload.contestants import CONTESTANTS

    contestant = CONTESTANTS[job.contestant]
    for name in contestant.imports:
        pkgutil.resolve_name(name)
    yield {"ready": True}
    sys.stdin.readline()
    num_modules = len(sys.modules)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    gc.collect()  # what the imports left is theirs, and not of whoever makes the object with which it falls due
    before = memory()
    start = time.perf_counter()
    opened = contestant.open(Path(job.place))
    is_open = time.perf_counter()
    images, captions = contestant.first_batch(opened, job.indices)
    end = time.perf_counter()
    after = memory()
    late = len(sys.modules) - num_modules

    from benchmarks.reload.pictures import digest_captions, digest_images

    yield {
        "open_ms": 1e3 * (is_open - start),
        "batch_ms": 1e3 * (end - is_open),
        "first_batch_ms": 1e3 * (end - start),
        "grown_mb": after["VmHWM"] - before["VmRSS"],
        "own_mb": after["RssAnon"] - before["RssAnon"],
        "late_modules": late,
        "images": digest_images(images),
        "captions": None if captions is None else digest_captions(captions),
        "versions": {name: version(name) for name in contestant.packages},
    }


def memory() -> dict[str, float]:
    """Read the resident memory of this process, its peak, and what of it is no file, in MB.

    Source: proc_pid_status(5).
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM", "RssAnon")}


if __name__ == "__main__":
    main()
