"""What fits: the memory this process may still take, and the plan made from it.

What kills a process is not the machine's memory but the smallest limit of the control groups it lies in. A group's page
cache that is not in use is given back on demand, and so counts as free.

Source: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; proc(5).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from in_memory_datasets.errors import MemoryLimitError
from in_memory_datasets.schema import LimitedBy, MemoryPlan, format_bytes

# What a load takes besides the block: bodies on their way, pictures being decoded, the interpreter's own growth.
RESERVE_BYTES = 300 * 10**6
# A load that runs as planned stays above this. Below it somebody else is taking the memory, and what is left is for an
# orderly end: another process fills a gigabyte in about half a second here, and the watch then looks twenty times a
# second. With more left it need not look before a few of them together could have taken it.
FLOOR_BYTES = 100 * 10**6
_LOOK_SECONDS, _LONGEST_LOOK_SECONDS, _FASTEST_FILL_BYTES_PER_SECOND = 0.05, 1.0, 10 * 10**9


def free_memory(root: Path = Path("/"), *, all_page_cache: bool = False) -> tuple[int, LimitedBy]:
    """Find how many bytes may still be taken, and whether the container or the machine sets that limit.

    Args:
        root: Where /proc and /sys are; another place is for tests.
        all_page_cache: Whether a group's page cache that is in use counts as free too; the machine's always does.

    Cost: a few small files, about 0.2 ms.
    """
    limits: list[tuple[int, LimitedBy]] = [(_free_of_machine(root), "machine")]
    limits.extend((free, "cgroup") for free in _free_of_cgroups(root, all_page_cache=all_page_cache))
    return min(limits)


def available_memory() -> int:
    """Give how many bytes samples may take: what is free, less a reserve for the load itself."""
    return max(0, free_memory()[0] - RESERVE_BYTES)


class MemoryWatch:
    """Look out for the moment at which hardly any memory is left; a context manager.

    A thread of its own, so that it sees it also while everything else waits for the network.

    Args:
        on_low: Called once, with how much is left and who sets the limit.
        floor_bytes: What counts as hardly any.
        root: Where /proc and /sys are; another place is for tests.

    Cost: 0.4 % of a core while there is little, and a twentieth of that while there is plenty.
    """

    def __init__(
        self, on_low: Callable[[int, LimitedBy], object], *, floor_bytes: int = FLOOR_BYTES, root: Path = Path("/")
    ) -> None:
        self._on_low = on_low
        self._floor_bytes = floor_bytes
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="in-memory-datasets-memory", daemon=True)

    def _look(self) -> None:
        seconds = _LOOK_SECONDS
        while not self._ended.wait(seconds):
            free, limited_by = free_memory(self._root)
            if free < self._floor_bytes:
                self._on_low(free, limited_by)
                return
            seconds = (free - self._floor_bytes) / _FASTEST_FILL_BYTES_PER_SECOND
            seconds = min(max(_LOOK_SECONDS, seconds), _LONGEST_LOOK_SECONDS)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def plan_memory(
    *,
    num_samples: int | None,
    bytes_per_sample: float,
    fixed_bytes: int,
    memory_limit: int | None,
    is_upper_bound: bool,
    root: Path = Path("/"),
) -> MemoryPlan:
    """Hold what a dataset needs against what there is.

    Args:
        num_samples: None where it is not known beforehand.
        bytes_per_sample: Media, captions and bookkeeping of one sample.
        fixed_bytes: What the block takes besides.
        memory_limit: The user's own limit in bytes, if any; it lowers what there is and never raises it.
        is_upper_bound: Whether `bytes_per_sample` is the most a sample may take.
    """
    free, limited_by = free_memory(root)
    available = max(0, free - RESERVE_BYTES)
    if memory_limit is not None and memory_limit < available:
        available, limited_by = memory_limit, "memory_limit"
    needed = None if num_samples is None else round(fixed_bytes + num_samples * bytes_per_sample)
    return MemoryPlan(
        num_samples=num_samples,
        bytes_needed=needed,
        bytes_available=available,
        fits=needed is not None and needed <= available,
        num_samples_that_fit=max(0, int((available - fixed_bytes) / bytes_per_sample)),
        limited_by=limited_by,
        is_upper_bound=is_upper_bound,
    )


def refuse_if_too_large(plan: MemoryPlan, *, ways_out: str) -> None:
    """Raise where a plan is known not to fit.

    Raises:
        MemoryLimitError: With both numbers, how many samples would fit, and what else to change.
    """
    if plan.bytes_needed is None or plan.fits:
        return
    limit = {
        "cgroup": "what the container has free",
        "machine": "what the machine has free",
        "memory_limit": "memory_limit",
    }[plan.limited_by]
    raise MemoryLimitError(
        f"{plan.num_samples:,} samples need {'up to ' if plan.is_upper_bound else ''}"
        f"{format_bytes(plan.bytes_needed)}, {limit} is {format_bytes(plan.bytes_available)}; "
        f"{plan.num_samples_that_fit:,} samples would fit: "
        + (f"give max_samples={plan.num_samples_that_fit}, or {ways_out}" if plan.num_samples_that_fit else ways_out),
        bytes_needed=plan.bytes_needed,
        bytes_available=plan.bytes_available,
    )


def _free_of_machine(root: Path) -> int:
    try:
        return _read_fields(root / "proc/meminfo")["MemAvailable"] * 1024
    except KeyError:  # not Linux: the whole of the memory is the best that is known
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class _Files:
    """What one version of control groups calls its files and fields."""

    limits: tuple[str, ...]
    usage: str
    idle_cache: str
    cache_in_use: str


_V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
_V2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file", "active_file")


def _free_of_cgroups(root: Path, *, all_page_cache: bool) -> Iterator[int]:
    """Give what is free under every limit of every group this process lies in, the enclosing ones included."""
    for group, top, files in _groups_of_process(root):
        while True:
            limits = [limit for name in files.limits if (limit := _read_number(group / name)) is not None]
            usage = _read_number(group / files.usage)
            if limits and usage is not None:
                fields = _read_fields(group / "memory.stat")
                page_cache = fields.get(files.idle_cache, 0)
                if all_page_cache:
                    page_cache += fields.get(files.cache_in_use, 0)
                yield max(0, min(limits) - usage + page_cache)
            if group == top:
                break
            group = group.parent


def _groups_of_process(root: Path) -> Iterator[tuple[Path, Path, _Files]]:
    """Give the innermost memory group of this process in each hierarchy, where that is mounted, its version."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except FileNotFoundError:
        return
    for membership in memberships:
        number, controllers, path = membership.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        for mount in mounts:
            left, _, right = mount.partition(" - ")
            mounted_root, mount_point = left.split()[3:5]
            kind, _, options = [*right.split(), "", "", ""][:3]
            if kind != ("cgroup2" if number == "0" else "cgroup"):
                continue
            if number != "0" and "memory" not in options.split(","):
                continue
            top = root / mount_point.lstrip("/")
            # In a container the group may lie above what is mounted; then the mount is the innermost that is visible.
            inside = os.path.relpath(path, mounted_root)
            group = top if inside.startswith("..") else top / inside
            while group != top and not group.exists():
                group = group.parent
            yield group, top, _V2 if number == "0" else _V1


def _read_number(path: Path) -> int | None:
    """Read a file with one number; None for "max" and where the group has no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _read_fields(path: Path) -> dict[str, int]:
    """Read lines of a name and a number, as in meminfo and memory.stat."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.replace(":", " ").split() for line in lines)
    return {field[0]: int(field[1]) for field in fields if len(field) > 1 and field[1].isdecimal()}
