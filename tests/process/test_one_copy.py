"""One copy per machine: what workers, ranks and jobs hold together, as the kernel counts it, and what is left of it.

Whatever is compared is alive at the same moment: libraries, which all processes of the machine share, then count alike
on both sides.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lacking import needs_proc
from tests.process.conftest import ROOT, MediaServer, Script, result_of
from tests.process.memory_of import (
    family_of,
    holders_of,
    pss_bytes,
    resident_bytes,
    shmem_bytes,
    wait_until_gone,
)

pytestmark = [needs_proc, pytest.mark.campaign]

METHODS = ["fork", "spawn", "forkserver"]
SLACK = 0.05  # of the payload: bookkeeping, and what the builder's allocator keeps of the load
# glibc's own threshold, but one that stays: where it adapts, chance leaves each process some megabytes more or less.
STEADY = {"MALLOC_MMAP_THRESHOLD_": "131072"}


class Meeting:
    """Where processes say how far they have come, and wait; a context manager.

    Attributes:
        address: What `scripts.meet` connects to.
    """

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._waiting: list[socket.socket] = []
        self.address: tuple[str, int] = self._server.getsockname()

    def gather(self, num_processes: int, started: subprocess.Popen[str]) -> list[dict[str, Any]]:
        """Wait for as many processes and give what they say; fail at once when what started them ends before."""
        said = []
        end = os.pidfd_open(started.pid)
        try:
            while len(said) < num_processes:
                ready, _, _ = select.select([self._server, end], [], [], 100)
                if self._server not in ready:
                    started.kill()
                    pytest.fail(f"{len(said)} of {num_processes} came: {started.communicate()[1]}")
                peer, _ = self._server.accept()
                self._waiting.append(peer)
                with peer.makefile() as lines:
                    said.append(json.loads(lines.readline()))
        finally:
            os.close(end)
        return said

    def dismiss(self) -> None:
        """Let all who wait go on."""
        while self._waiting:
            self._waiting.pop().close()

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()
        self._server.close()


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    with Meeting() as meeting:
        yield meeting


@pytest.fixture
def baseline() -> Iterator[Meeting]:
    """Where those meet who hold one sample, and are else the same."""
    with Meeting() as meeting:
        yield meeting


@pytest.fixture
def cache_dir(tmp_path: Path) -> Iterator[Path]:
    """Give a directory that goes with the test; pytest would keep the last ones."""
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache")


def assert_one_copy(payload: int, pids: list[int], pids_of_baseline: list[int]) -> None:
    """Compare what processes hold with what others hold that have one sample and are else the same."""
    assert len(pids) == len(pids_of_baseline)
    held = pss_bytes(pids) - pss_bytes(pids_of_baseline)
    assert held == pytest.approx(payload, rel=SLACK)


def pids_of(said: list[dict[str, Any]]) -> list[int]:
    return [answer["pid"] for answer in said]


def one_inode_of(said: list[dict[str, Any]]) -> int:
    inodes = {answer["inode"] for answer in said}
    assert len(inodes) == 1, "there are several copies"
    return int(inodes.pop())


def ended_well(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


def urls_of(server: MediaServer, num_urls: int) -> list[str]:
    """Name pictures that are filled with the number of their row; that of number 256 n serves as row 0 as well."""
    return [f"{server.url}/{i}.png" for i in range(num_urls)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_process_and_eight_workers_hold_one_copy(
    method: str, script: Script, meeting: Meeting, baseline: Meeting
) -> None:
    """Each worker has served, and so mapped, every picture; the baseline serves as many batches of one picture."""
    num_rows, size = 2048, 256
    payload = num_rows * size * size * 3
    shape = {"size": size, "num_batches": num_rows // 8, "method": method, "env": STEADY}
    run = script("serve_every_page", address=meeting.address, num_rows=num_rows, **shape)
    single = script("serve_every_page", address=baseline.address, num_rows=1, **shape)
    (said,) = meeting.gather(1, run)
    (said_of_one,) = baseline.gather(1, single)
    assert said["wrong"] == said_of_one["wrong"] == []
    assert len(said["workers"]) == 8
    assert all(resident_bytes(worker, said["inode"]) >= payload for worker in said["workers"])
    assert_one_copy(payload, family_of(run.pid), family_of(single.pid))
    meeting.dismiss()
    baseline.dismiss()
    ended_well(run, single)


@pytest.mark.slow
def test_four_ranks_of_an_unchanged_script_load_once_and_hold_one_copy(
    server: MediaServer, script: Script, meeting: Meeting, baseline: Meeting
) -> None:
    num_rows, size = 512, 512
    payload = num_rows * size * size * 3
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4")
    job = {"launcher": torchrun, "env": STEADY, "size": size, "num_reads": num_rows}
    run = script("share_urls", address=meeting.address, urls=urls_of(server, num_rows), **job)
    single = script("share_urls", address=baseline.address, urls=[f"{server.url}/{num_rows}.png"], **job)
    said, said_of_one = meeting.gather(4, run), baseline.gather(4, single)
    ranks, ranks_of_one = pids_of(said), pids_of(said_of_one)
    inode = one_inode_of(said)
    assert one_inode_of(said_of_one) != inode
    assert sorted(server.requests) == sorted(f"/{i}.png" for i in range(num_rows + 1))
    meeting.dismiss()
    baseline.dismiss()
    for answer in meeting.gather(4, run):
        assert (answer["seen"], answer["wrong"]) == (num_rows, [])
    baseline.gather(4, single)
    assert all(resident_bytes(rank, inode) >= payload for rank in ranks)
    assert_one_copy(payload, ranks, ranks_of_one)
    meeting.dismiss()
    baseline.dismiss()
    ended_well(run, single)


def start_ranks(
    script: Script, server: MediaServer, meeting: Meeting, num_ranks: int, **arguments: Any
) -> list[subprocess.Popen[str]]:
    """Start ranks with what a launcher would tell them, all at once."""
    job = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.server_port)}
    return [
        script("share_urls", env={**job, "RANK": str(rank)}, address=meeting.address, **arguments)
        for rank in range(num_ranks)
    ]


def gather_all(meeting: Meeting, processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    return [answer for process in processes for answer in meeting.gather(1, process)]


def test_ranks_started_by_hand_load_once_and_hold_one_copy(
    server: MediaServer, script: Script, meeting: Meeting
) -> None:
    ranks = start_ranks(script, server, meeting, 3, urls=urls_of(server, 20), size=32)
    said = gather_all(meeting, ranks)
    one_inode_of(said)
    assert sorted(pids_of(said)) == sorted(rank.pid for rank in ranks)
    assert len(server.requests) == 20
    meeting.dismiss()
    assert all((answer["seen"], answer["wrong"]) == (20, []) for answer in gather_all(meeting, ranks))
    meeting.dismiss()
    ended_well(*ranks)


def test_ranks_spawned_by_a_script_load_once_and_hold_one_copy(
    tmp_path: Path, server: MediaServer, script: Script, meeting: Meeting
) -> None:
    job = script(
        "spawn_ranks",
        address=meeting.address,
        urls=urls_of(server, 20),
        size=32,
        world_size=3,
        rendezvous=str(tmp_path / "rendezvous"),
    )
    said = meeting.gather(3, job)
    one_inode_of(said)
    assert len(set(pids_of(said)) - {job.pid}) == 3
    assert len(server.requests) == 20
    meeting.dismiss()
    assert all((answer["seen"], answer["wrong"]) == (20, []) for answer in meeting.gather(3, job))
    meeting.dismiss()
    ended_well(job)


@pytest.mark.parametrize("victim_built", [True, False])
def test_the_death_of_a_rank_takes_nothing_from_the_others(
    victim_built: bool, server: MediaServer, script: Script, meeting: Meeting
) -> None:
    """The others look at the pictures for the first time when it is gone."""
    num_rows = 100
    urls = urls_of(server, num_rows)
    job = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.server_port)}
    ranks, said = [], []
    for rank in range(3):  # one after the other, so that the first is the builder
        ranks.append(script("share_urls", env={**job, "RANK": str(rank)}, address=meeting.address, urls=urls, size=128))
        said += meeting.gather(1, ranks[-1])
        assert len(server.requests) == num_rows
    inode = one_inode_of(said)
    victim = ranks.pop(0 if victim_built else 1)
    victim.kill()
    victim.wait()
    assert sorted(holders_of(inode)) == sorted(rank.pid for rank in ranks)
    meeting.dismiss()
    assert all((answer["seen"], answer["wrong"]) == (num_rows, []) for answer in gather_all(meeting, ranks))
    meeting.dismiss()
    ended_well(*ranks)


def meeting_points() -> set[str]:
    return {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@in-memory-data" in line}


@pytest.mark.alone
def test_nothing_is_left_when_ranks_and_their_workers_are_killed(
    server: MediaServer, script: Script, meeting: Meeting
) -> None:
    num_rows, size = 256, 512
    payload = num_rows * size * size * 3
    shm_before, points_before, shmem_before = set(os.listdir("/dev/shm")), meeting_points(), shmem_bytes()
    ranks = start_ranks(script, server, meeting, 2, urls=urls_of(server, num_rows), size=size, num_workers=2)
    inode = one_inode_of(gather_all(meeting, ranks))
    meeting.dismiss()
    gather_all(meeting, ranks)
    families = [pid for rank in ranks for pid in family_of(rank.pid)]
    assert len(families) >= 2 * 3
    assert set(holders_of(inode)) == set(families)
    assert len(meeting_points() - points_before) == 1
    assert shmem_bytes() - shmem_before > 0.9 * payload
    for rank in ranks:
        os.killpg(rank.pid, signal.SIGKILL)
    wait_until_gone(families)
    assert holders_of(inode) == []
    assert meeting_points() <= points_before
    assert set(os.listdir("/dev/shm")) <= shm_before
    assert shmem_bytes() - shmem_before < 0.1 * payload


@pytest.mark.slow
def test_processes_with_a_cache_that_come_one_after_another_hold_one_copy(
    cache_dir: Path, server: MediaServer, script: Script, meeting: Meeting, baseline: Meeting
) -> None:
    num_rows, size = 512, 512
    payload = num_rows * size * size * 3
    job = {"env": STEADY, "size": size, "num_reads": num_rows, "cache_dir": str(cache_dir)}
    urls = urls_of(server, num_rows + 1)
    runs, singles, said = [], [], []
    for _ in range(3):
        runs.append(script("share_urls", address=meeting.address, urls=urls[:num_rows], **job))
        singles.append(script("share_urls", address=baseline.address, urls=urls[num_rows:], **job))
        said += meeting.gather(1, runs[-1])
        baseline.gather(1, singles[-1])
    inode = one_inode_of(said)
    assert len(server.requests) == num_rows + 1
    meeting.dismiss()
    baseline.dismiss()
    for answer in gather_all(meeting, runs):
        assert (answer["seen"], answer["wrong"]) == (num_rows, [])
    gather_all(baseline, singles)
    pids = [run.pid for run in runs]
    assert all(resident_bytes(pid, inode) >= payload for pid in pids)
    assert_one_copy(payload, pids, [single.pid for single in singles])
    meeting.dismiss()
    baseline.dismiss()
    ended_well(*runs, *singles)


SMALL_SHM = 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"'


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("room", [2**26, 2**20])
def test_neither_the_dataset_nor_its_batches_need_room_in_dev_shm(
    room: int, num_workers: int, unshare: list[str]
) -> None:
    """As in a container, which is given 64 MiB of it unless more is asked for."""
    arguments = json.dumps({"num_rows": 512, "size": 256, "batch_size": 64, "num_workers": num_workers})
    command = [
        *unshare,
        "sh",
        "-c",
        SMALL_SHM,
        str(room),
        sys.executable,
        "-m",
        "tests.process.scripts",
        "hold_an_epoch",
        arguments,
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    result = result_of(process)
    assert result["room"] == room
    assert min(result["nbytes"], result["held"]) > 2**26
    assert result["seen"] == list(range(512))
    assert result["wrong"] == []
