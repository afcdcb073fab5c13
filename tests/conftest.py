"""Leaks are failures: every test must leave the process with the descriptors, threads and children it found."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.lacking import lacks
from tests.leaks import threads_left

ROOT = Path(__file__).parents[1]
CORPORA = ROOT.parent / "shared" / "corpora"


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def _ours(name: str) -> bool:
    return "in-memory-datasets" in name or "/samples.safetensors" in name or "/rows.arrow" in name


@pytest.fixture(autouse=True, scope="module")
def cheap_collections() -> Iterator[None]:
    """Spare what is alive before a module from the collection after each of its tests, which made up half the run."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves descriptors, sockets, threads of the library or children, or changes the directory."""
    before, directory = _descriptors(), os.getcwd()
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    gc.collect()
    threads = threads_left()  # first: one that is about to end closes its sockets before it does
    left = {
        fd: name
        for fd, name in _descriptors().items()
        if before.get(fd) != name and (_ours(name) or name.startswith("socket:"))
    }
    new_children = [
        child for child in psutil.Process().children(recursive=True) if child.pid not in children and _is_stray(child)
    ]
    assert os.getcwd() == directory, f"the next test would run in {os.getcwd()}"
    assert not left, f"descriptors left open: {left}"
    assert not threads, f"threads left running: {threads}"
    assert not new_children, f"processes left running: {new_children}"


def _is_stray(child: psutil.Process) -> bool:
    """Tell a forgotten process from multiprocessing's own servants, which live as long as their parent."""
    try:
        command = " ".join(child.cmdline())
    except psutil.NoSuchProcess:
        return False
    return "resource_tracker" not in command and "forkserver" not in command and child.status() != "zombie"


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Give the directory of real photographs and clips."""
    if not CORPORA.is_dir():
        lacks(f"the corpora of real files are not at {CORPORA}")
    return CORPORA
