"""What a test must not leave behind."""

from __future__ import annotations

import threading


def threads_left() -> list[str]:
    """Name the library's threads that are still there two seconds after they were told to end, each."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("in-memory-datasets")]
    for thread in ours:
        thread.join(2.0)
    return [thread.name for thread in ours if thread.is_alive()]
