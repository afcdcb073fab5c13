"""The section of what a dataset in the memory of a cluster costs."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.report.sections import Finding, Record, Section, Target, count, table
from benchmarks.scale.model import CORES_OF_NODE, NETWORK_BYTES_PER_S, RANKS_OF_NODE, SAMPLES_PER_S_OF_RANK

ABOVE = Target(
    "Beyond one machine: an epoch of a cluster's samples, above one without a cluster", 5.0, " %", at_most=True
)

_SOURCES = {"bytes": "pictures in the rows", "web": "over HTTP", "file": "a file of Arrow", "sequence": "a sequence"}
_SHARDS = {"shard": "what is at home at the node", "guests": "with borrowed samples"}
_FORMS = {"decoded": "decoded", "encoded": "encoded"}


def load(figures: Record) -> Section:
    """Compare clusters with one machine."""
    cells = []
    for row in figures["rows"]:
        steps = ["-"] * 3
        if row["num_nodes"]:
            steps = [_spread(row[name], 2) for name in ("actors_seconds", "rows_seconds", "load_seconds")]
        who = count(row["num_nodes"], "node") if row["num_nodes"] else "no cluster"
        cells.append([_SOURCES[row["source"]], who, _spread(row["per_s"], 0), _spread(row["to_one"], 2), *steps])
    heads = ["", "", "a second (range)", "of no cluster (range)", "actors, s", "rows, s", "load, s"]
    return Section(
        [
            "### Loading on a cluster",
            "",
            f"{figures['num_pictures']:,} pictures to 224×224, in the rows or from a server "
            f"{figures['latency_ms']:.0f} ms away. All nodes are on this machine and share its cores: what is to be "
            "seen is what a cluster adds, and more nodes bring nothing. Speed is over handing the rows over and "
            "loading; what else the start of the actors takes, a process on each node that starts while rows are "
            "handed over, is told apart, and the cluster itself runs already. "
            f"The first {figures['num_first']} pictures of an actor take it {_spread(figures['first_seconds'], 2)} s. "
            f"{count(figures['repeats'], 'repeat')}, in turn.",
            "",
            *table(heads, cells, num_text=2),
        ]
    )


def epoch(figures: Record) -> Section:
    """Compare epochs of what a node serves with those of a dataset of its own."""
    findings, cells = [], []
    for row in figures["rows"]:
        what = f"{_SHARDS[row['way']]}, B = {row['batch_size']}"
        findings.append(Finding(ABOVE, what, row["above_percent"]["median"]))
        speeds = [_spread(row[name], 0) for name in ("alone_per_s", "per_s")]
        above = [_spread(row["above_us"], 0), _spread(row["above_percent"], 1)]
        cells.append([what, *speeds, *above, f"{ABOVE}", findings[-1].verdict])
    heads = ["", "no cluster, /s", "cluster, /s", "above, µs a batch (range)", "above, % (range)", "target", ""]
    return Section(
        [
            "### Epochs of a node's samples",
            "",
            f"{figures['num_samples']:,} images of 224×224 in shuffled order from a stock `DataLoader` without "
            "workers, in one process of a node: `local_shard()` with its sampler, against an "
            "`InMemoryImageTextDataset` with `EpochSampler`. Of those with borrowed samples "
            f"{figures['borrowed_percent']:.1f} % are borrowed, and lie in a second store. To turn to an epoch of "
            f"which all is there takes {_spread(figures['turn_ms'], 1)} ms, which is not counted. "
            f"{count(figures['repeats'], 'repeat')}, in turn, batch by batch.",
            "",
            *table(heads, cells),
        ],
        findings,
    )


def exchange(figures: Record) -> Section:
    """Compare the exchange with bare copies."""
    cells, meanwhile = [], []
    for row in figures["rows"]:
        who = count(row["num_nodes"], "node")
        speeds = [_spread(row[name], 0) for name in ("mb_per_s", "bare_mb_per_s")]
        sizes = [f"{row[name]:,.1f}" for name in ("borrowed_mb", "home_mb_of_node", "borrowed_mb_of_node")]
        cells.append([who, *sizes, _spread(row["seconds"], 2), *speeds, _spread(row["to_bare"], 2)])
        rates = [_spread(row[name], 0) for name in ("before_per_s", "meanwhile_per_s")]
        others = _spread(row["meanwhile_to_before"], 2), _spread(row["request_ms"], 2)
        meanwhile.append([who, *rates, *others])
    heads = ["", "lent, MB", "at home on a node, MB", "borrowed by a node, MB", "s (range)", "MB/s (range)"]
    return Section(
        [
            "### The exchange",
            "",
            f"{figures['num_samples']:,} images at each node, all of them dealt anew (`fraction=1.0`). Bare copies are "
            "`ray.get` of as many bytes between the same nodes, in arrays of the same size "
            f"({figures['parcel_mb']:.1f} MB) and as many at once, and nothing is done with them. "
            f"{count(figures['repeats'], 'repeat')}, in turn.",
            "",
            *table([*heads, "bare copies, MB/s (range)", "of bare copies (range)"], cells),
            "What a rank of the first node reads in a second, before an exchange and during it; and what it takes to "
            "ask another node for next to nothing:",
            "",
            *table(
                [
                    "",
                    "samples a second before",
                    "meanwhile",
                    "of before (range)",
                    "a request, ms (range)",
                ],
                meanwhile,
            ),
        ]
    )


def driver(figures: Record) -> Section:
    """Say what memory the hand-over of rows takes."""
    cells = []
    for row in figures["rows"]:
        sizes = [_spread(row[name], 1) for name in ("before_mb", "own_mb", "mapped_mb", "store_mb")]
        cells.append([_SOURCES[row["source"]], f"{row['num_rows']:,}", _spread(row["per_s"], 0), *sizes])
    heads = ["rows from", "rows", "rows a second (range)", "before, MB", "own, MB (range)", "mapped files, MB (range)"]
    return Section(
        [
            "### The driver's memory",
            "",
            "A driver, in a process of its own, hands rows of about 100 bytes over to a coordinator that counts them "
            "and lets them go. Resident memory before, and what it grew by at its peak: the process's own, files that "
            "it maps, which the kernel may drop at any time, and Ray's object store, which all share. "
            f"{count(figures['repeats'], 'repeat')}.",
            "",
            *table([*heads, "object store, MB (range)"], cells, num_text=1),
        ]
    )


def recovery(figures: Record) -> Section:
    """Say how long it takes until all is there again."""
    cells = [
        [
            row["what"],
            *(_spread(row[name], 2) for name in ("noticed_seconds", "restored_seconds", "whole_seconds")),
            _spread(row["attach_ms"], 0),
        ]
        for row in figures["rows"]
    ]
    heads = ["what ended", "until it is noticed, s", "then until all is held, s", "together, s", "local_shard(), ms"]
    return Section(
        [
            "### After a loss",
            "",
            f"One of {figures['num_nodes']} nodes, with {figures['num_samples']:,} images ({figures['mb']:,.0f} MB), "
            "or its actor, is killed. Noticing is Ray's, which tells of an actor once it has started that again, and "
            f"finds out about a node by its health check, whose settings were {figures['ray_settings']}. Then the "
            "samples are attached to, where ranks have them, or loaded again from the rows; the first load made "
            f"{_spread(figures['loaded_per_s'], 0)} a second. {count(figures['repeats'], 'repeat')}.",
            "",
            *table(heads, cells),
        ]
    )


def model(figures: Record) -> Section:
    """Write the model's checks and what it says of large clusters."""
    rates = figures["rates"]
    checks = [
        [
            row["what"],
            f"{row['predicted']:,.3f}",
            f"{row['measured']:,.3f}",
            f"{row['predicted'] / row['measured']:.2f}" if row["measured"] else "-",
        ]
        for row in figures["checks"]
    ]
    cases = figures["cases"]
    heads = ["", *(f"{row['num_nodes']:,} nodes, {_FORMS[row['form']]}" for row in cases)]
    views = "; ".join(f"{row['num_nodes']:,} nodes: {_spread(row['seconds'], 2)} s" for row in figures["views"])
    return Section(
        [
            "### A model of large clusters",
            "",
            f"{figures['num_samples']:,} samples on clusters that nobody measured: formulas of measured rates and of "
            "assumptions, which stand with their reasons in `benchmarks/scale/model.py`. Measured on this machine: "
            f"{rates['decoded_per_s']:,.0f} pictures a second loaded by a core, {rates['rows_per_s']:,.0f} rows handed "
            f"over, {rates['exchange_bytes_per_s'] / 1e6:,.0f} MB borrowed by a node in a second, "
            f"{1e3 * rates['request_seconds']:.2f} ms for a request, {rates['start_seconds']:.1f} s until actors run, "
            f"{rates['first_seconds']:.1f} s until their first pictures are there, "
            f"{rates['notice_seconds']:.1f} s until a lost node is noticed. To find out what a node serves takes each "
            f"process {1e6 * rates['view_seconds']:.2f} µs a sample, measured at full size ({views}); to find out what "
            f"is left for other nodes {1e6 * rates['left_seconds']:.2f} µs "
            f"(in the repeats {_spread(figures['left_us'], 2)}).",
            "",
            "Where the same formulas speak of what was measured here:",
            "",
            *table(["", "predicted", "measured", "predicted / measured"], checks),
            f"What they say of clusters with {8 * NETWORK_BYTES_PER_S / 1e9:.0f} Gbit/s for each node, "
            f"{CORES_OF_NODE} cores and {RANKS_OF_NODE} ranks on it, each of which trains on "
            f"{SAMPLES_PER_S_OF_RANK:,} samples a second, and a tenth of the samples dealt anew in each epoch; of "
            "the times of a load the longest is the least that it takes:",
            "",
            *table(heads, [[what, *map(write, cases)] for what, write in _LINES]),
            *_limits(cases),
        ]
    )


def _of(name: str) -> Callable[[Record], str]:
    *first, last = name.split("/")

    def write(row: Record) -> str:
        for key in first:
            row = row[key]
        return _number(row[last]) if last in row else "-"

    return write


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


_LINES: list[tuple[str, Callable[[Record], str]]] = [
    ("load: rows through one driver, s", _of("load_seconds/rows")),
    ("load: start of the actors, s", _of("load_seconds/starting")),
    ("load: source, s", _of("load_seconds/source")),
    ("load: network, s", _of("load_seconds/network")),
    ("load: decoding, s", _of("load_seconds/decoding")),
    ("an epoch, s", _of("epoch_seconds")),
    ("lent in an epoch, TB", _of("borrowed_tb")),
    ("borrowed by a node, MB/s", _of("borrowed_mb_per_s_of_node")),
    ("of the network, %", _of("network_percent")),
    ("an exchange at the speed measured here, s", _of("exchange_seconds")),
    ("an exchange at the speed of the network, s", _of("exchange_seconds_at_network")),
    ("a node: at home, GB", _of("memory_gb_of_node/home")),
    ("a node: borrowed, two epochs, GB", _of("memory_gb_of_node/borrowed")),
    ("a node: what its processes keep, GB", _of("memory_gb_of_node/views")),
    ("calls to the coordinator, an epoch", _of("calls/to_coordinator")),
    ("calls of the coordinator, an epoch", _of("calls/from_coordinator")),
    ("the coordinator sends, MB an epoch", _of("coordinator_mb")),
    ("calls to each node, an epoch", _of("calls/to_each_node")),
    ("calls between nodes, an epoch", _of("calls/between_nodes")),
    ("a division, kB", _of("division_kb")),
    ("a state of the sampler, kB", _of("state_kb")),
    ("turning to an epoch, each process, s", _of("view_seconds")),
    ("resuming on other nodes, each process, s", _of("resume_seconds")),
    ("resuming on other nodes, each process, GB", _of("resume_gb")),
    ("a lost node: noticing, s", _of("recovery_seconds/noticing")),
    ("a lost node: loading, s", _of("recovery_seconds/loading")),
]


def _limits(cases: Record) -> list[str]:
    """Say what is the limit first, by the figures."""
    lines = ["Where it breaks, by these figures:", ""]
    for row in cases:
        longest = max(row["load_seconds"], key=lambda step: row["load_seconds"][step])
        who = f"{row['num_nodes']:,} nodes, {_FORMS[row['form']]}"
        memory = sum(row["memory_gb_of_node"].values())
        share = row["exchange_seconds"] / row["epoch_seconds"]
        exchange = "fits into an epoch" if share <= 1 else "does **not** fit into an epoch"
        lines.append(
            f"- {who}: a load is held up by {_STEPS[longest]} ({row['load_seconds'][longest]:,.0f} s); an exchange "
            f"{exchange} ({100 * share:.0f} % of it); a node needs {memory:,.0f} GB."
        )
    most, least = max(cases, key=lambda row: row["num_nodes"]), min(cases, key=lambda row: row["num_nodes"])
    lines += [
        f"- Every node asks every other: {most['calls']['between_nodes']:,.0f} calls in an epoch of "
        f"{most['num_nodes']:,} nodes, {least['calls']['between_nodes']:,.0f} of {least['num_nodes']:,}; and what the "
        f"coordinator sends, {most['coordinator_mb']:,.0f} MB and {least['coordinator_mb']:,.0f} MB, grows with the "
        "square of the nodes too.",
        f"- To resume on other nodes each process passes over the numbers of all samples: "
        f"{most['resume_seconds']:,.0f} s and {most['resume_gb']:,.0f} GB, in every rank and worker at once.",
        f"- A state names all nodes and ranks: {most['state_kb']:,.0f} kB, and once more for each change of nodes in "
        "one epoch.",
        "",
    ]
    return lines


def _on_a_machine(write: Callable[[Record], Section]) -> Callable[[Record], Section]:
    """Say after a section how busy the machine was before it was measured."""

    def write_both(figures: Record) -> Section:
        section = write(figures)
        load = f"The machine's load average was {figures['load_before']:.2f} before that."
        return Section([*section.lines, load, ""], section.findings, section.charts)

    return write_both


_STEPS = {
    "rows": "rows that go through one driver",
    "starting": "the start of its actors",
    "source": "the source",
    "network": "the network",
    "decoding": "decoding",
}

# Key in the results, what the page calls it, what writes it.
PARTS: list[tuple[str, str, Callable[[Record], Section]]] = [
    ("load", "loading on a cluster", _on_a_machine(load)),
    ("epoch", "epochs of a node's samples", _on_a_machine(epoch)),
    ("exchange", "the exchange of samples", _on_a_machine(exchange)),
    ("driver", "the driver's memory", _on_a_machine(driver)),
    ("recovery", "after a loss", _on_a_machine(recovery)),
    ("model", "a model of large clusters", _on_a_machine(model)),
]


def _spread(found: Record, digits: int) -> str:
    return f"{found['median']:,.{digits}f} ({found['min']:,.{digits}f}–{found['max']:,.{digits}f})"
