"""Processes that do one job each, and end."""

from __future__ import annotations

import os
import signal


class JobError(Exception):
    """A process failed; the message is the end of what it said."""


def kill_group(pid: int) -> None:
    """End what is left of the group of a process."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # nothing is left
        return
