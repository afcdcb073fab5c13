"""What many cores could do with a load: how much of it they cannot share, and where that ends it."""

from __future__ import annotations

from typing import Any

from benchmarks.load.figures import Figures, spread
from benchmarks.load.interpreter import looking, project
from benchmarks.load.pictures import make_pictures
from benchmarks.load.plan import Plan
from benchmarks.load.rates import WEB_LATENCY_SECONDS
from benchmarks.load.running import started
from benchmarks.load.serving import serve

CORES = (1, 2, 4, 8, 16, 32, 64)
# The method has to find a loop in Python to hold the interpreter at least so long, and one that gives it up at most.
_LEAST_HELD, _MOST_FREE = 0.95, 0.05
_CHECKING_SECONDS = 3.0
_WAYS = ("decode", "bytes", "files", "web")


def measure_interpreter(plan: Plan) -> Figures:
    """Measure the share of time that the interpreter is held while one thread decodes, alone and within a load."""
    shares = {task: _share_of({"task": task, "seconds": _CHECKING_SECONDS}) for task in ("spin", "sum_up")}
    if shares["spin"] is None or shares["sum_up"] is None:
        return {"note": "this interpreter does not tell from outside whether it is held"}
    if shares["spin"] < _LEAST_HELD or shares["sum_up"] > _MOST_FREE:
        raise RuntimeError(f"the method is wrong: a loop in Python {shares['spin']:.3f}, zlib {shares['sum_up']:.3f}")
    found: dict[str, list[Figures]] = {way: [] for way in _WAYS}
    for _ in range(plan.slow_repeats):
        for way, figures in _take_turns(plan, 1, num_threads=1).items():
            found[way].append(figures)
    return {
        "num_pictures": plan.num_photos,
        "repeats": plan.slow_repeats,
        "latency_ms": 1e3 * WEB_LATENCY_SECONDS,
        "python_loop_share": shares["spin"],
        "zlib_share": shares["sum_up"],
        "rows": [_row(way, found[way], "held_seconds") for way in _WAYS],
    }


def measure_processes(plan: Plan) -> Figures:
    """Measure what the process that asked spends itself where worker processes load."""
    found: dict[str, list[Figures]] = {way: [] for way in _WAYS[1:]}
    for _ in range(plan.slow_repeats):
        for way, figures in _take_turns(plan, plan.num_processes, num_threads=plan.num_threads).items():
            if way in found:
                found[way].append(figures)
    return {
        "num_pictures": plan.num_photos,
        "repeats": plan.slow_repeats,
        "latency_ms": 1e3 * WEB_LATENCY_SECONDS,
        "num_processes": plan.num_processes,
        "rows": [_row(way, found[way], "own_seconds") for way in found],
    }


def _row(way: str, turns: list[Figures], serial: str) -> Figures:
    """Sum up one way; milliseconds are of one sample."""
    row: Figures = {
        "way": way,
        "per_s": spread(turn["num_samples"] / turn["seconds"] for turn in turns),
        "cpu_ms": spread(1e3 * turn["cpu_seconds"] / turn["num_samples"] for turn in turns),
        "serial_ms": spread(1e3 * turn[serial] / turn["num_samples"] for turn in turns),
    }
    if serial == "held_seconds":
        row["share"] = spread(turn["share"] for turn in turns)
    return row


def projection(row: Figures) -> list[tuple[int, float]]:
    """Say of a row how many samples a second so many cores would load."""
    cpu, serial = (row[name]["median"] / 1e3 for name in ("cpu_ms", "serial_ms"))
    return [(number, project(number, cpu_seconds=cpu, serial_seconds=serial)) for number in CORES]


def _take_turns(plan: Plan, num_processes: int, num_threads: int) -> dict[str, Figures]:
    """Load once each way, every one in a fresh process; ways that need no server have none beside them."""
    task: dict[str, Any] = {"num_pictures": plan.num_photos, "build": str(plan.build.resolve())}
    task |= {"num_threads": num_threads, "num_processes": num_processes, "task": "load"}
    turns = {way: _watch({**task, "source": way}) for way in ("bytes", "files")}
    if num_processes == 1:
        turns["decode"] = _watch({**task, "task": "decode"})
    pictures = make_pictures(plan.num_photos, plan.build)
    with serve(pictures.directory, latency_seconds=WEB_LATENCY_SECONDS) as server:
        turns["web"] = _watch({**task, "source": "web", "urls": server.urls(pictures.directory, pictures.names)})
    return turns


def _watch(task: dict[str, Any]) -> Figures:
    with started(task) as process:
        with looking(process.pid, process.ready["word"]) as looks:
            process.begin()
            answer = process.read()
        process.begin()
        process.read()  # the pictures are the right ones
    print(f"  {task.get('source', task['task'])}: held {looks.share:.3f} of {answer['seconds']:.1f} s", flush=True)
    held = looks.share * answer["seconds"]
    return {**answer, "num_samples": task["num_pictures"], "share": looks.share, "held_seconds": held}


def _share_of(task: dict[str, Any]) -> float | None:
    with started(task) as process:
        if process.ready["word"] is None:
            return None
        with looking(process.pid, process.ready["word"]) as looks:
            process.begin()
            process.read()
    return looks.share
