"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone


def describe_machine() -> dict[str, str]:
    """Name what the figures depend on."""
    with open("/proc/cpuinfo") as file:
        models = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "processors": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
