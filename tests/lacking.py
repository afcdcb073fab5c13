"""What a test needs of the machine that not every machine has; where CI runs it must be there."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

_IN_CI = os.environ.get("CI") == "true"


def lacks(message: str) -> NoReturn:
    """Skip a test for what this machine lacks; in CI, where it would then run nowhere, fail."""
    if _IN_CI:
        pytest.fail(message)
    pytest.skip(message)


def needs(is_there: bool, message: str) -> pytest.MarkDecorator:
    """Mark a test that is skipped where what it needs is lacking; in CI it runs all the same, and fails."""
    return pytest.mark.skipif(not is_there and not _IN_CI, reason=message)


def needed_package(name: str) -> Any:
    """Import a package of an extra; skip where it is not installed, and in CI fail."""
    return importlib.import_module(name) if _IN_CI else pytest.importorskip(name)


# macOS has neither, nor has every sandbox of Linux.
needs_proc = needs(
    Path("/proc/self/smaps_rollup").exists() and hasattr(os, "pidfd_open"),
    "there is no /proc/<pid>/smaps_rollup, or no pidfd_open, to look at processes with",
)
