"""The section of what loading costs."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.load.contestants import OURS, POOL
from benchmarks.load.cores import CORES, projection
from benchmarks.load.floors import DESCRIPTION, MINIMAL_DESCRIPTION
from benchmarks.report.charts import Bar, BarChart, Chart, Kind, Line, LineChart, Panel
from benchmarks.report.sections import Finding, Record, Section, Target, count, show, table

PICTURES = Target("Loading: pictures on this machine, of the bare loop", 0.95)
CLIPS = Target("Loading: clips on this machine, of the bare loop", 0.9)
WEB_BARE = Target("Loading over HTTP: of the bare loop", 0.8)
WEB_MINIMAL = Target("Loading over HTTP: of a minimal loader", 0.95)
FAR = Target("Loading from far away: of what server or decoder let pass", 0.9)
TIMES = Target("Loading side by side: times as many images a second", 2.0, " ×")
POOL_TIMES = Target("Loading side by side: times as many as a process pool", 9.0, " ×")
CPU = Target("Loading side by side: processor time of another, to ours", 1.0, " ×")
ABOVE = Target("Loading: memory above what is loaded", 300.0, " MB", at_most=True)
FIRST = Target("Loading a million URLs: plan and first request", 10.0, " s", at_most=True)
GROWN = Target("Loading a million URLs: memory until then", 500.0, " MB", at_most=True)
TRAINING = Target("Training while it loads: of the bound", 1.0, at_most=True)
_MILLION = 1_000_000

_WAYS = {
    "bare": "bare loop, bytes in memory",
    "minimal": "minimal loader",
    "ours": "in_memory_datasets",
    "bytes": "in_memory_datasets, from bytes",
    "files": "in_memory_datasets, from files",
}
_LOADS = {
    "decode": "the decoder alone",
    "bytes": "a load from bytes",
    "files": "a load from files",
    "web": "a load over HTTP",
}
_KINDS: dict[str, Kind] = {"ours": "ours", "library": "decoded", "code": "encoded"}
_WORDS = {"decoded": "a library", "encoded": "requests and Pillow, as people write it"}


def loading(record: Record) -> Section:
    """Write every part of what `benchmarks.load` measured."""
    parts = [write(record[key]["figures"]) for key, _, write in PARTS if key in record]
    return Section(
        [line for part in parts for line in part.lines],
        [finding for part in parts for finding in part.findings],
        [chart for part in parts for chart in part.charts],
    )


def local(figures: Record) -> Section:
    """Compare loads of what is on this machine with bare loops."""
    findings, cells = [], []
    for row in figures["rows"]:
        held = ["", ""]
        if row["way"] != "bare":
            target = {"pictures": PICTURES, "clips": CLIPS}[row["media"]]
            held = _hold(findings, target, f"{row['media']} from {row['way']}", row["to_bare"]["median"])
        distance = f"{row['distance']:.4f}"
        cells.append([row["media"], _WAYS[row["way"]], *_speed(row), _spread(row["to_bare"]), distance, *held])
    heads = ["", "", "a second (range)", "CPU, ms each", "of the bare loop (range)", "distance", "target", ""]
    return Section(
        [
            "### What is on this machine",
            "",
            f"{figures['num_pictures']:,} pictures and {figures['num_clips']:,} clips, all of them different, on "
            f"{count(figures['num_threads'], 'thread')}. {DESCRIPTION} {count(figures['repeats'], 'repeat')}, in turn; "
            "a ratio is taken within a repeat. The distance is that of the worst sample from what Pillow, or "
            "libsndfile and soxr, make of its file, a mean over it in grey levels or of full scale; beyond 6, or "
            "0.005, a contestant has no figures.",
            "",
            *table(heads, cells, num_text=2),
        ],
        findings,
    )


def web(figures: Record) -> Section:
    """Compare a load over HTTP with a bare loop and a bare loader."""
    findings, cells = [], []
    for row in figures["rows"]:
        held = ["", ""]
        if row["way"] == "ours":
            to_bare, to_minimal = row["to_bare"]["median"], row["to_minimal"]["median"]
            pair = _hold(findings, WEB_BARE, "pictures", to_bare), _hold(findings, WEB_MINIMAL, "pictures", to_minimal)
            held = [" and ".join(words) for words in zip(*pair, strict=True)]
        ratios = _spread(row["to_bare"]), _spread(row["to_minimal"])
        cells.append([_WAYS[row["way"]], *_speed(row), *ratios, f"{row['distance']:.4f}", *held])
    heads = ["", "a second (range)", "CPU, ms each", "of the bare loop (range)", "of the minimal loader (range)"]
    return Section(
        [
            f"### Over HTTP, {figures['latency_ms']:.0f} ms away",
            "",
            f"The same {figures['num_pictures']:,} pictures on {count(figures['num_threads'], 'thread')}, all our "
            f"options as they come (they took {count(figures['our_connections'], 'connection')}). "
            f"{MINIMAL_DESCRIPTION} Here it took {figures['minimal_connections']}. The server is a process of its own "
            f"on the same cores: an answer of ours costs it {_spread(figures['server_cpu_ms'])} ms of processor time. "
            f"A client that only reads, over {figures['ceiling_connections']} connections, draws "
            f"{_spread(figures['ceiling_per_s'], 0)} a second from it. {count(figures['repeats'], 'repeat')}, in turn.",
            "",
            *table([*heads, "distance", "target", ""], cells),
        ],
        findings,
    )


def far(figures: Record) -> Section:
    """Compare a load from far away with what its connections and its decoder let pass."""
    findings, cells = [], []
    for row in figures["rows"]:
        what = f"{row['num_pictures']:,} {row['what']}, {row['side']}×{row['side']}, {count(row['num_hosts'], 'host')}"
        held = _hold(findings, FAR, what, row["to_limit"]["median"])
        speeds = [_spread(row[name], 0) for name in ("ceiling_per_s", "decode_per_s", "per_s")]
        connections = f"{row['our_connections']} of {row['connections']}"
        cells.append([what, *speeds, connections, _spread(row["to_limit"]), *held])
    heads = ["", "server, a second", "decoder, a second", "ours, a second", "our connections", "of the lower (range)"]
    return Section(
        [
            f"### Far away, {figures['latency_ms']:.0f} ms",
            "",
            "Does a load hide how far away the server is? What the server lets pass is measured with a client that "
            "only reads, over as many connections as our options let us open as they come, to one host and to all; "
            "what the decoder lets pass with the bare loop over the same bytes in memory, on "
            f"{count(figures['num_threads'], 'thread')}. A repeat is held to the lower of its two. "
            f"{count(figures['repeats'], 'repeat')}, in turn.",
            "",
            *table([*heads, "target", ""], cells),
        ],
        findings,
    )


def beside(figures: Record) -> Section:
    """Compare contestants with one another."""
    rows: list[Record] = figures["rows"]
    measured = [row for row in rows if "per_s" in row]
    findings: list[Finding] = []
    cells = []
    for row in sorted(measured, key=lambda row: (row["where"] != "web", -row["per_s"]["median"])):
        times = ["-", "-", ""]
        if "ours_times" in row and row["key"] not in OURS.values():
            name, faster = row["contestant"], row["ours_times"]["median"]
            pairs = [_hold(findings, TIMES, name, faster), _hold(findings, CPU, name, row["cpu_to_ours"]["median"])]
            if row["key"] == POOL:
                pairs.append(_hold(findings, POOL_TIMES, name, faster))
            held = "; ".join(f"{target}: {verdict}" for target, verdict in pairs)
            times = [f"{_spread(row['ours_times'], 2)} ×", f"{_spread(row['cpu_to_ours'], 2)} ×", held]
        num_pictures = f"{row['num_pictures']:,}"
        own = [f"{row['peak_mb']:,.0f}", f"{row['distance']:.2f}"]
        cells.append([row["contestant"], row["where"], num_pictures, *_speed(row), *own, *times])
    heads = ["", "from", "pictures", "a second (range)", "CPU, ms each", "peak, MB", "distance"]
    heads += ["ours is faster by (range)", "takes our CPU times (range)", "targets: speed; CPU"]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    charts: list[Chart] = [_bars(measured)] if measured else []
    lines = [
        "### Side by side",
        "",
        f"{figures['num_pictures']:,} pictures to 224×224, from one server that is {figures['latency_ms']:.0f} ms away "
        "or from files, each contestant in a process of its own in every repeat. Each has loaded a few pictures before "
        "the clock starts, so that imports do not count. Speed is over the time of the load alone; processor time is "
        "user and system time of the process and all it starts, the server aside; the peak is the proportional set "
        "size of them all. Every picture was compared with what Pillow makes of its file. "
        f"{count(figures['repeats'], 'repeat')}, in turn.",
        "",
        *(line for chart in charts for line in show(chart)),
        *table(heads, cells, num_text=2),
        *(f"- {row['contestant']}: {row['error']}" for row in rows if row["error"]),
        *(
            f"- {row['contestant']}: `{row['configuration']}` ({row['source']}). {row['notes']}".rstrip()
            for row in rows
        ),
        "",
        f"Versions: {versions}.",
        "",
    ]
    return Section(lines, findings, charts)


def _bars(rows: list[Record]) -> BarChart:
    ordered = sorted(rows, key=lambda row: -row["per_s"]["median"])
    bars = [
        Bar(
            label=row["contestant"],
            median=row["per_s"]["median"],
            low=row["per_s"]["min"],
            high=row["per_s"]["max"],
            first=None,
            kind=_KINDS[row["kind"]],
        )
        for row in ordered
    ]
    alt = (
        f"Bar chart of pictures loaded in a second, the fastest on top. {bars[0].label}: {bars[0].median:,.0f}; "
        f"{bars[-1].label}: {bars[-1].median:,.0f}."
    )
    return BarChart("load", alt, "pictures loaded in a second", bars, _WORDS)


def interpreter(figures: Record) -> Section:
    """Say how long the interpreter is held, and how many cores that leaves room for."""
    if "note" in figures:
        return _left_out("### Many cores, one interpreter", figures)
    cells = []
    for row in figures["rows"]:
        share, serial = _spread(row["share"]), _spread(row["serial_ms"])
        cells.append([_LOADS[row["way"]], *_speed(row), share, serial, *_projected(row)])
    loads = [row for row in figures["rows"] if row["way"] != "decode"]
    chart = LineChart(
        "load-cores",
        "Line chart of pictures loaded in a second by one interpreter on 1 to 64 cores, projected. "
        + "; ".join(f"{_LOADS[row['way']]}: {projection(row)[-1][1]:,.0f} on {CORES[-1]}" for row in loads)
        + ".",
        [Panel("cores", "pictures a second", [Line(_LOADS[row["way"]], projection(row)) for row in loads])],
    )
    return Section(
        [
            "### Many cores, one interpreter",
            "",
            "What cores cannot share is the time that the interpreter is held (the GIL). It was measured on one decode "
            f"thread, over {figures['num_pictures']:,} pictures, over HTTP {figures['latency_ms']:.0f} ms away: from "
            "another process, the word in which CPython keeps whether it is held was read at moments that chance "
            "chose. So measured, a loop in Python holds it for "
            f"{100 * figures['python_loop_share']:.2f} % of the time and a loop of zlib's checksums for "
            f"{100 * figures['zlib_share']:.2f} %. The projection is the lower of cores by processor time of a "
            "picture, and one by the time it is held for; where the latter is the lower, more cores bring nothing. "
            f"{count(figures['repeats'], 'repeat')}.",
            "",
            *show(chart),
            *table(["", *_CORES_HEADS[:2], "held (range)", "held, ms each (range)", *_CORES_HEADS[2:]], cells),
        ],
        charts=[chart],
    )


_CORES_HEADS = ["a second (range)", "CPU, ms each", "more cores bring nothing beyond", f"a second on {CORES[-1]}"]


def processes(figures: Record) -> Section:
    """Say what the process that asked has to do itself, and how many cores that leaves room for."""
    if "note" in figures:
        return _left_out("### Many cores, worker processes", figures)
    cells = [[_LOADS[row["way"]], *_speed(row), _spread(row["serial_ms"]), *_projected(row)] for row in figures["rows"]]
    return Section(
        [
            "### Many cores, worker processes",
            "",
            "Where worker processes load, each has an interpreter of its own, and what cores cannot share is the "
            f"processor time of the process that asked. Measured with {figures['num_processes']} processes over "
            f"{figures['num_pictures']:,} pictures, over HTTP {figures['latency_ms']:.0f} ms away; what starting them "
            "takes is not counted, and is why only large loads on many cores do it. The projection is made in the same "
            f"way. {count(figures['repeats'], 'repeat')}.",
            "",
            *table(["", *_CORES_HEADS[:2], "asking process, CPU ms each", *_CORES_HEADS[2:]], cells),
        ]
    )


def _projected(row: Record) -> list[str]:
    most = row["cpu_ms"]["median"] / row["serial_ms"]["median"]
    return [f"{most:.1f} cores", f"{projection(row)[-1][1]:,.0f}"]


def memory(figures: Record) -> Section:
    """Say what a load holds beyond what it loads."""
    findings, cells = [], []
    for row in figures["rows"]:
        what = f"{_LOADS[row['source']]}, {row['concurrency']} at once"
        held = _hold(findings, ABOVE, what, row["above_mb"]["median"])
        sizes = [f"{row['payload_mb']:,.1f}", _spread(row["before_mb"], 1), _spread(row["above_mb"], 1)]
        cells.append([what, *sizes, *held])
    return Section(
        [
            "### Memory",
            "",
            f"{figures['num_pictures']:,} pictures, {figures['latency_ms']:.0f} ms away or from files, on "
            f"{count(figures['num_threads'], 'decode thread')}; `concurrency` and `per_host` as given. From outside, "
            "every 30 ms: pages of the process that are no shared memory (RssAnon and RssFile), beyond those before "
            "the load, which its libraries take; and whatever its blocks of shared memory took beyond what is kept. "
            f"{count(figures['repeats'], 'repeat')}.",
            "",
            *table(["", "loaded, MB", "before, MB (range)", "above what is loaded, MB (range)", "target", ""], cells),
        ],
        findings,
    )


def large(figures: Record) -> Section:
    """Say what a large dataset costs before its first sample."""
    findings, cells = [], []
    for row in figures["rows"]:
        what = "rows in memory" if row["in_memory"] else "rows on disk"
        held = ""
        if figures["num_rows"] >= _MILLION:
            first = _hold(findings, FIRST, what, row["first_seconds"]["median"])
            grown = _hold(findings, GROWN, what, row["grown_mb"]["median"])
            held = f"{first[0]}: {first[1]}; {grown[0]}: {grown[1]}"
        times = [_spread(row[name], 2) for name in ("plan_seconds", "first_seconds")]
        cells.append([what, *times, _spread(row["grown_mb"], 1), held])
    return Section(
        [
            f"### {figures['num_rows']:,} URLs",
            "",
            f"A `datasets.Dataset` of {figures['num_rows']:,} URLs and captions, all different: how long from `plan` "
            "to the first request that its server sees, and what memory of all kinds grew by meanwhile. Then the load "
            f"is cancelled. {count(figures['repeats'], 'repeat')}.",
            "",
            *table(["", "plan, s", "plan and first request, s", "grown by, MB", "targets"], cells),
        ],
        findings,
    )


def training(figures: Record) -> Section:
    """Say how long a load and the training over it take together."""
    if "note" in figures:
        return _left_out("### Training while it loads", figures)
    findings: list[Finding] = []
    cells = []
    for row in figures["rows"]:
        what = f"{row['sampler']}, compute of {row['share']:g} × the load"
        held = _hold(findings, TRAINING, what, row["to_bound"]["median"])
        times = [_spread(row[name], 2) for name in ("load_seconds", "compute_seconds", "total_seconds")]
        case = f"`{row['sampler']}`", f"{row['share']:g} ×"
        cells.append([*case, *times, _spread(row["bound_seconds"], 2), _spread(row["to_bound"]), *held])
    epochs = f"{figures['num_epochs']} epochs of compute, s"
    return Section(
        [
            "### Training while it loads",
            "",
            f"{figures['num_pictures']:,} pictures from the quickstart's server, {figures['latency_ms']:.0f} ms away, "
            f"with `wait=False`; {figures['num_epochs']} epochs in batches of {figures['batch_size']}, each with a "
            "`time.sleep` for what a GPU would compute, so many times as long in all as the load takes alone. The "
            "bound is 1.1 times the longer of the two, and one epoch's compute. Since the first epoch ends no sooner "
            "than the load and the others come after it, compute as long as the load cannot be within the bound, and "
            "twice as long just can. `EpochSampler` tells beforehand in which order samples will be wanted; of "
            f"`shuffle=True` the dataset hears only when they are. {count(figures['repeats'], 'repeat')}.",
            "",
            *table(
                [
                    "sampler",
                    "compute",
                    "load alone, s",
                    epochs,
                    "both at once, s",
                    "bound, s",
                    "of the bound",
                    "target",
                    "",
                ],
                cells,
                num_text=1,
            ),
        ],
        findings,
    )


# Key in the results, what the page calls it, what writes it.
PARTS: list[tuple[str, str, Callable[[Record], Section]]] = [
    ("local", "loading what is on this machine", local),
    ("web", "loading over HTTP", web),
    ("far", "loading from far away", far),
    ("beside", "loading side by side with others", beside),
    ("interpreter", "loading on many cores", interpreter),
    ("processes", "loading in worker processes", processes),
    ("memory", "memory of a load", memory),
    ("large", "a million URLs", large),
    ("training", "training while it loads", training),
]


def _hold(findings: list[Finding], target: Target, what: str, figure: float) -> list[str]:
    """Hold a figure to a target; give both in words."""
    findings.append(Finding(target, what, figure))
    return [f"{target}", findings[-1].verdict]


def _speed(row: Record) -> list[str]:
    return [_spread(row["per_s"], 0), f"{row['cpu_ms']['median']:.3f}"]


def _spread(found: Record, digits: int = 3) -> str:
    return f"{found['median']:,.{digits}f} ({found['min']:,.{digits}f}–{found['max']:,.{digits}f})"


def _left_out(title: str, figures: Record) -> Section:
    return Section([title, "", f"Not measured: {figures['note']}.", ""])
