"""Fuzz the code that reads what strangers wrote: `python -m tests.fuzz [--seconds 60] [target ...]`.

Each target runs in a process of its own, two at a time, from our seeds, what earlier runs found (tests/fuzz/corpus)
and, where they are, the damaged files in ../shared/corpora. glibc checks the heap meanwhile, since decoders that are
not ours cannot be instrumented. An input that breaks a promise is kept in build/fuzz, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.targets import CORPUS, TARGETS

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "fuzz"
CORPORA = ROOT.parent / "shared" / "corpora"
_DAMAGED = {"jpegs": "nasty_images", "pictures": "nasty_images", "clips": "nasty_audio", "rare_clips": "nasty_audio"}
_HEAP_CHECKER = "libc_malloc_debug.so.0"  # since glibc 2.34 MALLOC_CHECK_ does nothing without it
# Seconds and megabytes that one input may take: pictures of the most pixels that are decoded take 1.4 GB.
_MAX_BYTES = 8_192
_LIMITS = ("-timeout=60", "-report_slow_units=60", "-rss_limit_mb=3000", f"-max_len={_MAX_BYTES}")
# Beyond its time: to start, to read the corpus, and for the last input, on a machine that does much else.
_PATIENCE_SECONDS = 600
_KEPT_BYTES = 40_000  # of each target


def main() -> int:
    """Run the targets that the command line names, or all; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split(":")[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"one of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="how long each runs")
    parser.add_argument("--keep", action="store_true", help="start anew, and keep in tests/fuzz/corpus what is found")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one target on one input, and nothing else")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    if find_spec("atheris") is None:
        parser.error("atheris is not installed: pip install 'in-memory-datasets[fuzz]' (Linux on x86-64)")
    names = options.targets or list(TARGETS)
    if options.replay:
        statuses = [_start(name, [str(options.replay.absolute())], seconds=0).returncode for name in names]
        return 1 if any(statuses) else 0
    with ThreadPoolExecutor(2) as threads:
        passed = list(threads.map(lambda name: fuzz(name, options.seconds, only_ours=options.keep), names))
    if options.keep:
        for name in names:
            keep(name)
    return 0 if all(passed) else 1


def fuzz(name: str, seconds: int, *, only_ours: bool) -> bool:
    """Run one target; print how far it came, or what broke and how to see it again.

    Args:
        only_ours: Begin with nothing but what was made here, so that nothing else gets into what is kept.
    """
    place = OUTPUT / name
    for folder in ("corpus", "seeds") if only_ours else ():
        shutil.rmtree(place / folder, ignore_errors=True)
    for folder in ("corpus", "seeds", "crashes"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    damaged = () if only_ours or name not in _DAMAGED else sorted((CORPORA / _DAMAGED[name]).glob("*"))
    for seed in (*TARGETS[name][1](), *(file.read_bytes() for file in damaged)):
        if len(seed) <= _MAX_BYTES:
            (place / "seeds" / _name_of(seed)).write_bytes(seed)
    before = set((place / "crashes").iterdir())
    folders = [place / "corpus", place / "seeds", CORPUS / name]
    bounds = [f"-max_total_time={seconds}", *_LIMITS, f"-artifact_prefix={place / 'crashes'}/"]
    options = [*bounds, *(str(folder) for folder in folders if folder.is_dir())]
    done = _start(name, options, place / "log", seconds=seconds)
    if done.returncode < 0:  # ended by a signal
        fatal = (place / "current").read_bytes()
        (place / "crashes" / f"crash-{_name_of(fatal)}").write_bytes(fatal)
    lines = (place / "log").read_text(errors="replace").splitlines()
    if done.returncode == 0:
        print(f"{name}: {next((line for line in reversed(lines) if line.startswith('Done')), 'done')}", flush=True)
        return True
    print(f"{name}: failed with exit status {done.returncode}; {place / 'log'} ends with")
    print("\n".join(f"  {line}" for line in lines[-40:] if "\tNEW" not in line and "\tREDUCE" not in line))
    for crash in sorted(set((place / "crashes").iterdir()) - before):
        print(f"  see it again with: {sys.executable} -m tests.fuzz {name} --replay {crash.relative_to(ROOT)}")
    sys.stdout.flush()
    return False


def keep(name: str) -> None:
    """Keep the smallest inputs that together reach all that was found, beyond the seeds, and few enough of them."""
    place, merged = OUTPUT / name, OUTPUT / name / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    found = [str(folder) for folder in (place / "seeds", CORPUS / name, place / "corpus") if folder.is_dir()]
    done = _start(name, ["-merge=1", *_LIMITS, str(merged), *found], place / "merge.log", seconds=0)
    if done.returncode:
        raise SystemExit(f"{name}: the corpus could not be merged, see {place / 'merge.log'}")
    seeds = {_name_of(seed) for seed in TARGETS[name][1]()}
    shutil.rmtree(CORPUS / name, ignore_errors=True)
    (CORPUS / name).mkdir(parents=True)
    num_bytes = 0
    for file in sorted(merged.iterdir(), key=lambda file: (file.stat().st_size, file.name)):
        num_bytes += file.stat().st_size
        if file.name not in seeds and num_bytes <= _KEPT_BYTES:
            shutil.copy(file, CORPUS / name / file.name)


def _start(
    name: str, arguments: list[str], log: Path | None = None, *, seconds: int
) -> subprocess.CompletedProcess[bytes]:
    """Run libFuzzer in a process that stops at the first damage to its heap, and is ended where it hangs."""
    (OUTPUT / name).mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        "PYTHONMALLOC": "malloc",  # or small objects would lie where glibc does not look
        "MALLOC_CHECK_": "3",
        "OMP_NUM_THREADS": "1",
    }
    if _has_heap_checker():
        environment["LD_PRELOAD"] = _HEAP_CHECKER
    command = [sys.executable, "-m", "tests.fuzz.under_atheris", name, str(OUTPUT / name / "current"), *arguments]
    with open(log, "wb") if log else nullcontext() as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            status = process.wait(seconds + _PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
    return subprocess.CompletedProcess(command, process.returncode if status is None else status)


def _has_heap_checker() -> bool:
    try:
        ctypes.CDLL(_HEAP_CHECKER)
    except OSError:
        return False
    return True


def _name_of(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
