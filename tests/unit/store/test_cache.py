"""A cache of stores: one builder, locks that hold, and entries that can be listed, checked, removed and limited."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from in_memory_datasets import ConfigError, InMemoryImageTextDataset, StoreError, cache
from in_memory_datasets.store import StoreWriter, attach_or_build, locked
from in_memory_datasets.store.attach import refuse_if_locks_do_not_hold
from in_memory_datasets.store.journal import num_journaled
from tests.lacking import needs
from tests.making import AUDIO_SPEC, IMAGE_SPEC, make_clips, make_encoded_store, make_images, make_rows, make_store

NAMES = [f"{i:032x}" for i in range(4)]


def build_entry(cache_dir: Path, name: str, *, days_ago: int = 0, num_images: int = 400) -> None:
    attach_or_build(
        cache_dir, name, lambda directory: make_store(IMAGE_SPEC, make_images(num_images), directory=directory)
    ).close()
    then = (datetime.now() - timedelta(days=days_ago)).timestamp()
    os.utime(cache_dir / name / "manifest.json", (then, then))


def test_entries_are_listed_with_what_they_are_the_last_used_first(tmp_path: Path) -> None:
    for days_ago, name in enumerate(NAMES[:3]):
        build_entry(tmp_path, name, days_ago=days_ago)
    (tmp_path / "thesis").mkdir()
    found = cache.entries(tmp_path)
    assert [entry.fingerprint for entry in found] == NAMES[:3]
    assert [(entry.num_samples, entry.complete, entry.in_use) for entry in found] == [(400, True, False)] * 3
    assert found[0].num_bytes >= 400 * 8 * 6 * 3
    assert found[0].what == "pictures 8×6"
    assert "400 pictures 8×6" in str(found[0])


def test_attaching_counts_as_use(tmp_path: Path) -> None:
    for days_ago, name in enumerate(NAMES[:2]):
        build_entry(tmp_path, name, days_ago=days_ago)
    attach_or_build(tmp_path, NAMES[1], lambda directory: pytest.fail("it is there")).close()
    assert [entry.fingerprint for entry in cache.entries(tmp_path)] == [NAMES[1], NAMES[0]]


def test_an_entry_that_is_open_in_any_process_is_not_removed(tmp_path: Path) -> None:
    build_entry(tmp_path, NAMES[0])
    code = f"""
import sys
from in_memory_datasets.store import open_store
with open_store({str(tmp_path / NAMES[0])!r}):
    print("open", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        assert cache.entries(tmp_path)[0].in_use
        with pytest.raises(StoreError, match="in use, or not yours to remove: close the datasets"):
            cache.remove(NAMES[0], tmp_path)
        assert cache.set_limit(1, tmp_path) == 0
        reader.communicate()
    assert not cache.entries(tmp_path)[0].in_use
    num_bytes = cache.entries(tmp_path)[0].num_bytes
    assert cache.remove(NAMES[0], tmp_path) == num_bytes
    assert cache.entries(tmp_path) == []


@needs(os.geteuid() == 0, "only root can become somebody else")
def test_a_cache_of_somebody_else_is_attached_to_and_listed_and_not_removed(tmp_path: Path) -> None:
    build_entry(tmp_path, NAMES[0])
    own = [place for place in tmp_path.parents if place.name.startswith(("pytest-", "popen-"))]
    for place in (tmp_path, *own):  # which pytest lets nobody else enter
        place.chmod(0o755)
    code = f"""
import os
from pathlib import Path
from in_memory_datasets import StoreError, cache
from in_memory_datasets.store import attach_or_build
os.setuid(65534)
place = Path({str(tmp_path)!r})
with attach_or_build(place, {NAMES[0]!r}, build=None) as store:
    print(store.verify(), [entry.num_samples for entry in cache.entries(place)])
try:
    cache.remove({NAMES[0]!r}, place)
except StoreError as error:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] [400]", "refused"]
    assert cache.remove(NAMES[0], tmp_path) > 0


def test_an_entry_that_is_being_built_is_in_use_and_not_removed(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).mkdir()
    with locked(tmp_path / NAMES[0]):
        (entry,) = cache.entries(tmp_path)
        assert (entry.complete, entry.in_use) == (False, True)
        assert "unfinished, in use" in str(entry)
        with pytest.raises(StoreError, match="in use"):
            cache.remove(NAMES[0], tmp_path)
    assert cache.remove(NAMES[0], tmp_path) == 0


def test_the_cache_keeps_to_its_limit_the_oldest_use_first(tmp_path: Path) -> None:
    for days_ago, name in enumerate(NAMES[:3]):
        build_entry(tmp_path, name, days_ago=days_ago)
    size = cache.entries(tmp_path)[0].num_bytes
    assert cache.set_limit(2 * size, tmp_path) == size
    assert [entry.fingerprint for entry in cache.entries(tmp_path)] == NAMES[:2]
    rows = [{"image_url": image, "caption": ""} for image in make_images(400)]
    with InMemoryImageTextDataset(rows, image_size=(8, 6), cache_dir=tmp_path, progress=False):
        names = [entry.fingerprint for entry in cache.entries(tmp_path)]
        assert len(names) == 2
        assert names[1] == NAMES[0]
        assert cache.set_limit(1, tmp_path) == size
        assert [entry.in_use for entry in cache.entries(tmp_path)] == [True]
    assert cache.set_limit(None, tmp_path) == 0
    build_entry(tmp_path, NAMES[3])
    assert len(cache.entries(tmp_path)) == 2


def test_altered_samples_are_found_by_their_entry(tmp_path: Path) -> None:
    build_entry(tmp_path, NAMES[0])
    assert cache.verify(NAMES[0], tmp_path) == []
    with open(tmp_path / NAMES[0] / "samples.safetensors", "r+b") as file:
        file.seek(4096 + 7 * 8 * 6 * 3)
        file.write(b"\1\2\3")
    assert cache.verify(NAMES[0], tmp_path) == [7]


def test_a_damaged_entry_is_listed_and_can_be_removed(tmp_path: Path) -> None:
    build_entry(tmp_path, NAMES[0])
    (tmp_path / NAMES[0] / "manifest.json").write_text("{")
    assert [entry.what for entry in cache.entries(tmp_path)] == [""]
    with pytest.raises(StoreError, match="damaged"):
        cache.verify(NAMES[0], tmp_path)
    assert cache.remove(NAMES[0], tmp_path) > 0


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for function in (cache.verify, cache.remove):
        with pytest.raises(StoreError, match=r"has no dataset 'abc': cache\.entries"):
            function("abc", tmp_path)
    with pytest.raises(ConfigError, match="limit='much'"):
        cache.set_limit("much", tmp_path)
    with pytest.raises(ConfigError, match="cache_dir=7: expected a directory"):
        cache.entries(7)  # type: ignore[arg-type]
    (tmp_path / "limit").write_text("lots")
    with pytest.raises(StoreError, match="holds no number of bytes"):
        cache.keep_to_limit(tmp_path)


def test_true_means_the_platforms_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = [{"image_url": image, "caption": ""} for image in make_images(2)]
    with InMemoryImageTextDataset(rows, image_size=(8, 6), cache_dir=True, progress=False) as dataset:
        assert dataset.report.num_ok == 2
    (entry,) = cache.entries()
    assert entry.path.is_relative_to(tmp_path)


MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /data rw,relatime - {kind} server:/x rw,{options}
31 30 0:41 / /data/my\040disk rw - ext4 /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("nfs4", "vers=4.2,local_lock=none", None),
        ("nfs", "vers=3,local_lock=none", None),
        ("nfs", "vers=3,nolock,local_lock=all", "a nfs file system mounted with nolock"),
        ("nfs4", "local_lock=flock", "mounted with local_lock=flock"),
        ("cifs", "vers=3.1.1,nobrl", "mounted with nobrl"),
        ("cifs", "vers=3.1.1", None),
        ("lustre", "localflock", "mounted with localflock"),
        ("lustre", "flock", None),
        ("fuse.sshfs", "user_id=0", "which has no locks that all its users see"),
        ("ext4", "", None),
        ("overlay", "", None),
    ],
)
def test_network_file_systems_work_or_are_refused_with_the_reason(kind: str, options: str, reason: str | None) -> None:
    mounts = MOUNTS.format(kind=kind, options=options)
    refuse_if_locks_do_not_hold(Path("/home/me"), mounts)
    refuse_if_locks_do_not_hold(Path("/data/my disk/cache"), mounts)
    if reason is None:
        refuse_if_locks_do_not_hold(Path("/data/cache"), mounts)
    else:
        with pytest.raises(StoreError, match=f"{reason}.*cache_dir on a local disk"):
            refuse_if_locks_do_not_hold(Path("/data/cache"), mounts)


@pytest.mark.parametrize("error", [None, OSError(95, "Operation not supported")])
def test_a_file_system_whose_locks_lock_nobody_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    def flock(fd: int, operation: int) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(StoreError, match=r"take a (cache_dir|directory) on a local disk"):
        attach_or_build(tmp_path, NAMES[0], lambda directory: pytest.fail("nobody may build here"))


@pytest.mark.parametrize("num_done", [0, 1, 3])
@pytest.mark.parametrize("kind", ["images", "clips", "encoded", "mixture"])
def test_a_build_goes_on_where_another_was_broken_off(tmp_path: Path, kind: str, num_done: int) -> None:
    """And the finished store is the one of a build that was not, bit for bit."""
    encoded = kind in ("encoded", "mixture")
    spec = AUDIO_SPEC if kind == "clips" else IMAGE_SPEC
    samples = [
        np.frombuffer(bytes(range(i + 1)), np.uint8)
        if encoded
        else (make_clips([5, 30, 2, 8])[i] if kind == "clips" else make_images(4)[i])
        for i in range(4)
    ]
    rows = make_rows([(f"caption {i}",) for i in range(4)])
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole").mkdir()

    def break_off() -> None:
        with StoreWriter(spec, encoded=encoded, directory=tmp_path / "broken") as writer:
            writer.add_rows(rows)
            for slot in [2, 0, 3][:num_done]:
                writer.loaded(slot, writer.put(slot, samples[slot]))
            writer.put(1, samples[1])  # in place, and not yet in the books
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert num_journaled(tmp_path / "broken") == num_done
    assert bool(list((tmp_path / "broken").iterdir())) == (num_done > 0)
    for name in ("broken", "whole"):
        if encoded:
            num_decoded = 2 if kind == "mixture" else 0
            data = [sample.tobytes() for sample in samples]
            make_encoded_store(spec, data, num_decoded=num_decoded, directory=tmp_path / name).close()
            continue
        with StoreWriter(spec, directory=tmp_path / name) as writer:
            writer.add_rows(rows)
            assert [writer.is_done(slot) for slot in range(4)] == [
                name == "broken" and slot in [2, 0, 3][:num_done] for slot in range(4)
            ]
            for slot in range(4):
                if not writer.is_done(slot):
                    writer.loaded(slot, writer.put(slot, samples[slot]))
            with writer.finish() as store:
                assert store.verify() == []
    for file in ("manifest.json", "rows.arrow", "samples.safetensors"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert len(list((tmp_path / "broken").iterdir())) == 3


def test_only_samples_that_are_in_place_are_taken_over(tmp_path: Path) -> None:
    """A machine that loses its power may have written the journal and not the samples, or half a record."""
    rows, images = make_rows([("",)] * 3), make_images(3)

    def break_off() -> None:
        with StoreWriter(IMAGE_SPEC, directory=tmp_path) as writer:
            writer.add_rows(rows)
            for slot in range(3):
                writer.loaded(slot, writer.put(slot, images[slot]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    with open(tmp_path / "samples.safetensors.partial", "r+b") as file:
        file.seek(4096 + 8 * 6 * 3)
        file.write(bytes(10))
    with open(tmp_path / "journal", "ab") as file:
        file.write(b"half")
    with StoreWriter(IMAGE_SPEC, directory=tmp_path) as writer:
        writer.add_rows(rows)
        assert [writer.is_done(slot) for slot in range(3)] == [True, False, True]
        writer.loaded(1, writer.put(1, images[1]))
        assert num_journaled(tmp_path) == 4
        with writer.finish() as store:
            assert store.verify() == []


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_a_build_that_was_ended_while_it_declared_its_work_loses_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = AUDIO_SPEC if kind == "clips" else IMAGE_SPEC
    samples = make_clips([5, 30]) if kind == "clips" else make_images(2)

    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("in_memory_datasets.store.writer.write_manifest", end)
        with pytest.raises(KeyboardInterrupt):
            make_store(spec, samples, directory=tmp_path)
    assert (tmp_path / "samples.safetensors").exists()
    with StoreWriter(spec, directory=tmp_path) as writer:
        writer.add_rows(make_rows([("",)] * 2))
        assert [writer.is_done(slot) for slot in range(2)] == [True, True]
        with writer.finish() as store:
            np.testing.assert_array_equal(store.sample(1), samples[1])
            assert store.verify() == []
