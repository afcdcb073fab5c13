"""The example for Ray Train does what it says, on a cluster of two nodes that it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lacking import needed_package

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_example_trains_on_two_nodes(tmp_path: Path) -> None:
    """Two workers take as many batches each in every epoch, the loss falls, and a checkpoint is there."""
    needed_package("ray")
    done = subprocess.run(
        [
            *(sys.executable, "examples/ray_train.py", "--nodes", "2", "--max-samples", "240", "--epochs", "3"),
            *("--batch-size", "40", "--checkpoint-batches", "3", "--output", str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},  # which are Ray's own
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "200 of 200 samples loaded" in said, said
    assert "on 2 nodes, 100 rows or more each" in said, said
    epochs = re.findall(r"epoch +(\d+): loss ([\d.]+), held-out R@1 .*, batches of the ranks \[(\d+), (\d+)\]", said)
    assert [int(epoch) for epoch, *_ in epochs] == [0, 1, 2], said
    assert all(first == second == "5" for *_, first, second in epochs), said
    assert float(epochs[-1][1]) < 0.95 * float(epochs[0][1]), said
    (place,) = re.findall(r"^checkpoint: (.*)$", said, re.MULTILINE)
    assert (Path(place) / "state.pt").is_file()
