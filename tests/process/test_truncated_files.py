"""A file that is cut short under a process that reads it ends no process: it is an error that says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from in_memory_datasets import InMemoryImageTextDataset
from tests.process.conftest import ROOT
from tests.process.scripts import array_rows


@pytest.mark.parametrize("name", ["samples.safetensors", "rows.arrow"])
@pytest.mark.parametrize(
    ("num_workers", "start_method"), [(0, None), (1, "fork"), (1, "spawn")], ids=["alone", "fork", "spawn"]
)
def test_the_next_batch_is_an_error(tmp_path: Path, name: str, num_workers: int, start_method: str | None) -> None:
    with InMemoryImageTextDataset(array_rows(2000), image_size=(8, 8), progress=False) as dataset:
        dataset.save(tmp_path / "saved")
    arguments: dict[str, Any] = {
        "directory": str(tmp_path / "saved"),
        "num_workers": num_workers,
        "start_method": start_method,
    }
    command = [sys.executable, "-m", "tests.process.scripts", "read_on_after_a_cut", json.dumps(arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        os.truncate(tmp_path / "saved" / name, 4096)
        output, errors = process.communicate("\n", timeout=100)
    assert process.returncode == 0, errors  # and no signal
    result = json.loads(output.splitlines()[-1])
    assert f"{name} was cut short while it is in use: expected" in result["error"]
    assert "got 4,096" in result["error"]
    assert result["taken"] < 2000
