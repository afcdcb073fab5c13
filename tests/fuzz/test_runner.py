"""`python -m tests.fuzz` finds what a target does not keep, says how to see it again, and exits with 1."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lacking import needs

ROOT = Path(__file__).parents[2]
# Starting up takes three seconds here, and minutes where much else runs.
pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]
needs_atheris = needs(
    find_spec("atheris") is not None, "atheris, which has wheels for Linux on x86-64 alone, is not installed"
)
HIDE_ATHERIS = "import runpy, sys; sys.modules['atheris'] = None; runpy.run_module('tests.fuzz', run_name='__main__')"


def run(
    root: Path, *arguments: str, program: tuple[str, str] = ("-m", "tests.fuzz")
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of the code, in which something can be broken."""
    for name in ("in_memory_datasets", "tests/fuzz", "tests/__init__.py"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return tmp_path


def break_line(file: Path, line: str, instead: str) -> None:
    text = file.read_text()
    assert line in text
    file.write_text(text.replace(line, instead))


@needs_atheris
def test_a_broken_promise_ends_in_a_failure_that_can_be_seen_again(copy: Path) -> None:
    break_line(copy / "in_memory_datasets/decode/orientation.py", "if 1 <= value <= 8 else None", "")
    done = run(copy, "--seconds=60", "orientations")
    assert done.returncode == 1
    assert "AssertionError" in done.stdout
    _, command = done.stdout.strip().rsplit("see it again with: ", 1)
    again = run(copy, *command.split()[3:])
    assert again.returncode != 0
    assert "AssertionError" in again.stdout + again.stderr


@needs_atheris
@needs(platform.libc_ver()[0] == "glibc", "it is glibc that checks the heap")
def test_a_write_past_the_end_of_a_buffer_is_found(copy: Path) -> None:
    """The scaled decoder of lossless files does that, which is why none may reach it."""
    break_line(copy / "in_memory_datasets/decode/jpeg.py", "self.frame_type <= 2", "self.frame_type <= 3")
    done = run(copy, "--seconds=60", "jpegs")
    assert done.returncode == 1
    assert "see it again with" in done.stdout


@needs_atheris
def test_what_was_found_is_kept_beside_the_seeds(copy: Path) -> None:
    shutil.rmtree(copy / "tests/fuzz/corpus/headers")
    done = run(copy, "--seconds=2", "--keep", "headers")
    assert (done.returncode, done.stderr) == (0, "")
    assert list((copy / "tests/fuzz/corpus/headers").iterdir())


def test_a_target_that_there_is_not_is_refused() -> None:
    done = run(ROOT, "jpgs")
    assert done.returncode == 2
    assert "no such target: jpgs; choose from jpegs, pictures" in done.stderr


def test_without_atheris_it_says_what_to_install() -> None:
    done = run(ROOT, "jpegs", program=("-c", HIDE_ATHERIS))
    assert done.returncode == 2
    assert "pip install 'in-memory-datasets[fuzz]'" in done.stderr
