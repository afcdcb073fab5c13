"""One copy for the ranks of a job and for all jobs of a machine; nothing left when they are killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.process.conftest import MediaServer, Script, kill_one_that_lacks_two, result_of, wait_for


def launch(script: Script, directory: Path, name: str, **arguments: object) -> list[dict[str, object]]:
    """Run a script as two ranks under torchrun and collect what each of them says."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = script(name, launcher=launcher, env={"RESULT_DIR": str(directory)}, **arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("with_cache", [False, True])
def test_two_ranks_load_once_and_share_the_memory(
    tmp_path: Path, server: MediaServer, script: Script, with_cache: bool
) -> None:
    urls = [f"{server.url}/{i}.png" for i in range(20)]
    cache_dir = str(tmp_path / "cache") if with_cache else None
    first, second = launch(script, tmp_path, "load_urls", urls=urls, cache_dir=cache_dir, distributed=True)
    assert first["inode"] == second["inode"]
    assert first["total"] == second["total"] == sum(range(20)) * 32 * 32 * 3
    assert len(server.requests) == 20
    for rank in (first, second):  # the one that loaded tells what that took, and the other that it attached
        assert rank["tried"] in (0, 20)
        assert f"20 of 20 samples {'loaded' if rank['tried'] else 'attached'} in" in str(rank["said"])
    assert first["tried"] != second["tried"]


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize(("kind", "suffix"), [("image", "png"), ("audio", "wav")])
def test_two_ranks_read_what_has_arrived_of_a_load_that_one_of_them_makes(
    tmp_path: Path, server: MediaServer, script: Script, kind: str, suffix: str, with_cache: bool
) -> None:
    urls = [f"{server.url}/{i}.{suffix}" for i in range(20)]
    server.stalled_paths = {f"/{i}.{suffix}" for i in range(20) if i != 5}
    flag, cache_dir = tmp_path / "read", str(tmp_path / "cache") if with_cache else None

    def go_on() -> None:
        wait_for(flag.exists)
        server.release.set()

    others = threading.Thread(target=go_on)
    others.start()
    arguments = {"urls": urls, "flag": str(flag), "kind": kind, "cache_dir": cache_dir}
    first, second = launch(script, tmp_path, "read_while_loading", **arguments)
    others.join()
    assert first.pop("progress") == second.pop("progress") == 1 / 20
    assert first == second
    assert first["ok"] == 20
    assert first["early"] == [first["samples"][5], f"5.{suffix}"]  # type: ignore[index]
    assert len(set(first["samples"])) == 20  # type: ignore[arg-type]
    assert len(server.requests) == 20


def test_two_ranks_retry_clips_once_and_share_the_result(tmp_path: Path, server: MediaServer, script: Script) -> None:
    server.broken = {"/1.wav", "/3.wav"}
    server.mended_by = tmp_path / "mended"
    urls = [f"{server.url}/{i}.wav" for i in range(5)]
    results = launch(script, tmp_path, "load_audio_and_retry", urls=urls, flag=str(server.mended_by))
    assert results[0] == results[1]
    assert results[0]["before"] == [1, 3]
    assert results[0]["after"] == []
    assert len(server.requests) == 5 + 2


def test_jobs_started_at_once_share_one_build_in_the_cache(tmp_path: Path, server: MediaServer, script: Script) -> None:
    urls = [f"{server.url}/{i}.png" for i in range(10)]
    jobs = [script("load_urls", urls=urls, cache_dir=str(tmp_path)) for _ in range(3)]
    results = [result_of(job) for job in jobs]
    assert results[0] == results[1] == results[2]
    assert len(server.requests) == 10


def test_another_job_takes_over_when_the_builder_is_killed(tmp_path: Path, server: MediaServer, script: Script) -> None:
    server.stalls.set()
    urls = [f"{server.url}/{i}.png" for i in range(10)]
    builder = script("load_urls", urls=urls, cache_dir=str(tmp_path))
    assert server.asked.wait(60)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    server.stalls.clear()
    server.release.set()
    assert result_of(script("load_urls", urls=urls, cache_dir=str(tmp_path)))["failed"] == []


def test_the_next_job_fetches_only_what_a_killed_one_had_not_in_place(
    tmp_path: Path, server: MediaServer, script: Script
) -> None:
    urls = [f"{server.url}/{i}.png" for i in range(10)]
    kill_one_that_lacks_two(script, server, urls, tmp_path / "cache", of=10)
    result = result_of(script("load_urls", urls=urls, cache_dir=str(tmp_path / "cache")))
    assert sorted(server.requests) == ["/3.png", "/8.png"]
    assert result["failed"] == []
    assert result["total"] == sum(range(10)) * 32 * 32 * 3
    result_of(script("load_urls", urls=urls, cache_dir=str(tmp_path / "uninterrupted")))
    for name in ("manifest.json", "rows.arrow", "samples.safetensors"):
        one, other = (next((tmp_path / place).glob(f"*/{name}")) for place in ("cache", "uninterrupted"))
        assert one.read_bytes() == other.read_bytes()
        assert len(list(one.parent.iterdir())) == 3


def test_who_waits_for_a_builder_sees_how_far_it_is(tmp_path: Path, server: MediaServer, script: Script) -> None:
    urls = [f"{server.url}/{i}.png" for i in range(10)]
    server.stalled_paths = {"/3.png"}
    builder = script("load_urls", urls=urls, cache_dir=str(tmp_path))
    (entry,) = wait_for(lambda: list(tmp_path.glob("*/journal")))
    wait_for(lambda: entry.stat().st_size == 9 * 40)
    waiting = script("wait_for_builder", urls=urls, cache_dir=str(tmp_path))
    assert waiting.stdout is not None
    assert json.loads(waiting.stdout.readline()) == "Another process is loading:  90%|█████████ | 9/10"
    server.stalled_paths = set()
    server.release.set()
    result_of(builder)
    assert result_of(waiting) == {"failed": [], "bytes_fetched": 0}
    assert sorted(server.requests) == sorted(f"/{i}.png" for i in range(10))


def test_another_rank_takes_over_when_the_builder_is_killed(server: MediaServer, script: Script) -> None:
    server.stalls.set()
    urls = [f"{server.url}/{i}.png" for i in range(10)]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.server_port)}
    builder = script("load_urls", urls=urls, env={**job, "RANK": "0"})
    assert server.asked.wait(60)
    waiting = script("load_urls", urls=urls, env={**job, "RANK": "1"})
    server.stalls.clear()
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    server.release.set()
    result = result_of(waiting)
    assert result["failed"] == []
    assert result["total"] == sum(range(10)) * 32 * 32 * 3


@pytest.mark.alone
def test_nothing_is_left_under_any_name_after_kill_9(server: MediaServer, script: Script) -> None:
    before = set(os.listdir("/dev/shm"))
    server.stalls.set()
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.server_port)}
    builder = script("load_urls", urls=[f"{server.url}/0.png"], env=job)
    assert server.asked.wait(60)
    assert "in-memory-datasets" in Path("/proc/net/unix").read_text()
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert "in-memory-datasets" not in Path("/proc/net/unix").read_text()
    assert set(os.listdir("/dev/shm")) <= before


def test_ctrl_c_ends_a_load_within_two_seconds_and_releases_everything(
    tmp_path: Path, server: MediaServer, script: Script
) -> None:
    server.stalls.set()
    ready = tmp_path / "ready"
    process = script("interrupted", url=server.url, ready=str(ready))
    assert server.asked.wait(60)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    result = json.loads(output)
    assert result["sockets"] == []
    assert result["blocks"] == []
