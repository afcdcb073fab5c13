"""What fits: limits read from real and from recorded control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from in_memory_datasets.errors import MemoryLimitError
from in_memory_datasets.memory import RESERVE_BYTES, free_memory, plan_memory, refuse_if_too_large

GIB = 2**30


def make_machine(root: Path, *, available: int, cgroup: str = "", mountinfo: str = "") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: 999 kB\nMemAvailable:   {available // 1024} kB\nHugePages_Total: 0\n"
    )
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    return root


def write_v2(group: Path, *, limit: int | str, usage: int, inactive_file: int = 0, high: int | str = "max") -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.high").write_text(f"{high}\n")
    (group / "memory.current").write_text(f"{usage}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")


V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def test_on_this_machine_something_is_free() -> None:
    free, limited_by = free_memory()
    assert free > 0
    assert limited_by in ("machine", "cgroup")


def test_without_control_groups_the_machine_sets_the_limit(tmp_path: Path) -> None:
    assert free_memory(make_machine(tmp_path, available=8 * GIB)) == (8 * GIB, "machine")


def test_v2_counts_reclaimable_page_cache_as_free(tmp_path: Path) -> None:
    root = make_machine(tmp_path, available=64 * GIB, cgroup="0::/\n", mountinfo=V2_MOUNT)
    write_v2(root / "sys/fs/cgroup", limit=4 * GIB, usage=3 * GIB, inactive_file=GIB)
    assert free_memory(root) == (2 * GIB, "cgroup")


def test_v2_takes_the_smallest_of_all_enclosing_groups(tmp_path: Path) -> None:
    root = make_machine(tmp_path, available=64 * GIB, cgroup="0::/pod/box\n", mountinfo=V2_MOUNT)
    write_v2(root / "sys/fs/cgroup/pod", limit=5 * GIB, usage=4 * GIB)
    write_v2(root / "sys/fs/cgroup/pod/box", limit="max", usage=2 * GIB)
    assert free_memory(root) == (GIB, "cgroup")


def test_v2_memory_high_throttles_and_so_counts_as_a_limit(tmp_path: Path) -> None:
    root = make_machine(tmp_path, available=64 * GIB, cgroup="0::/\n", mountinfo=V2_MOUNT)
    write_v2(root / "sys/fs/cgroup", limit=8 * GIB, usage=GIB, high=3 * GIB)
    assert free_memory(root) == (2 * GIB, "cgroup")


def test_v1_reads_the_memory_hierarchy(tmp_path: Path) -> None:
    root = make_machine(tmp_path, available=64 * GIB, cgroup="8:memory:/job\n3:cpu:/\n", mountinfo=V1_MOUNT)
    group = root / "sys/fs/cgroup/memory/job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{3 * GIB}\n")
    (group / "memory.stat").write_text(f"total_inactive_file {GIB}\n")
    assert free_memory(root) == (2 * GIB, "cgroup")


def test_a_group_above_the_mount_is_seen_at_the_mount(tmp_path: Path) -> None:
    """In a container the process's own group may not be visible under the path it is said to have."""
    mount = "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    root = make_machine(tmp_path, available=64 * GIB, cgroup="0::/\n", mountinfo=mount)
    write_v2(root / "sys/fs/cgroup", limit=2 * GIB, usage=GIB)
    assert free_memory(root) == (GIB, "cgroup")


def test_an_overfull_group_has_nothing_free(tmp_path: Path) -> None:
    root = make_machine(tmp_path, available=64 * GIB, cgroup="0::/\n", mountinfo=V2_MOUNT)
    write_v2(root / "sys/fs/cgroup", limit=GIB, usage=2 * GIB)
    assert free_memory(root) == (0, "cgroup")


def test_a_plan_keeps_a_reserve_and_says_what_fits(tmp_path: Path) -> None:
    root = make_machine(tmp_path, available=RESERVE_BYTES + 10_000 + 1024)
    plan = plan_memory(
        num_samples=20, bytes_per_sample=1000, fixed_bytes=500, memory_limit=None, is_upper_bound=False, root=root
    )
    assert (plan.bytes_needed, plan.fits, plan.num_samples_that_fit, plan.limited_by) == (20_500, False, 9, "machine")


def test_memory_limit_lowers_what_there_is_and_never_raises_it(tmp_path: Path) -> None:
    root = make_machine(tmp_path, available=RESERVE_BYTES + 2**20)
    for limit, available, limited_by in ((1000, 1000, "memory_limit"), (10**12, 2**20, "machine")):
        plan = plan_memory(
            num_samples=1, bytes_per_sample=10, fixed_bytes=0, memory_limit=limit, is_upper_bound=False, root=root
        )
        assert (plan.bytes_available, plan.limited_by) == (pytest.approx(available, abs=1024), limited_by)


def test_the_refusal_names_both_numbers_and_the_ways_out() -> None:
    plan = plan_memory(
        num_samples=10_000, bytes_per_sample=150_528, fixed_bytes=0, memory_limit=10**9, is_upper_bound=False
    )
    with pytest.raises(MemoryLimitError, match=r"10,000 samples need 1.51 GB, memory_limit is 1 GB") as error:
        refuse_if_too_large(plan, ways_out="a smaller image_size")
    assert "max_samples=6643" in str(error.value)
    assert "a smaller image_size" in str(error.value)
    assert error.value.bytes_needed == 1_505_280_000


def test_an_unknown_length_is_not_refused_beforehand() -> None:
    plan = plan_memory(num_samples=None, bytes_per_sample=10, fixed_bytes=0, memory_limit=1, is_upper_bound=True)
    assert plan.bytes_needed is None
    assert not plan.fits
    refuse_if_too_large(plan, ways_out="")
    assert "unknown" in str(plan)
