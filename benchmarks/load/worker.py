"""One process that does one thing: a line of JSON in, a line when it is ready, and one when it is done.

python -m benchmarks.load.worker    # the first line of its input says what; the second one begins it
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

Told = dict[str, Any]


def main() -> None:
    task: Told = json.loads(sys.stdin.readline())
    # Libraries print; the answers have standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in _start(task):
        print(json.dumps(answer), file=answers, flush=True)


def _start(task: Told) -> Iterator[Told]:
    # What a task needs is imported for it alone: environments differ, and imports count as memory.
    if task["task"] == "contestant":
        from benchmarks.load.contestants import run

        return run(task)
    from benchmarks.load import tasks

    return tasks.run(task)


if __name__ == "__main__":
    main()
