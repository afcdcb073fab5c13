"""Sections of what one loader costs: five epochs, the copy, workers, growth, endurance."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report.charts import Line, LineChart, Panel
from benchmarks.report.sections import Finding, Record, Section, Target, count, show, spread, table

IMAGES = Target("Images: throughput of a bare copy", 0.9)
AUDIO = Target("Clips: throughput of a bare copy", 0.8)
OVERHEAD = Target("A batch of one: time above the bare copy", 30.0, " µs", at_most=True)
WORKERS = Target("Workers: times faster than the ordinary way", 3.0, " ×")
GROWTH = Target("A hundred times the images: time of each, to that before", 1.1, at_most=True)
ENDURANCE = Target("Many epochs: the last ten to the first ten", 1.03, at_most=True)
QUICK = "Five epochs: times faster than on the fly"


def five_epochs(record: Record) -> Section:
    """Write the table that the benchmark itself prints."""
    from benchmarks.bench_quick import Figures, OnTheFly, as_markdown  # takes torch along

    ways = [OnTheFly(**way) for way in record["figures"]["on_the_fly"]]
    figures = Figures(**{**record["figures"], "on_the_fly": ways})
    findings = [
        Finding(Target(QUICK, way.target, " ×"), f"against {count(way.num_workers, 'worker')}", way.ratio)
        for way in ways
    ]
    return Section([as_markdown(figures)], findings)


def images(rows: Record) -> Section:
    """Compare batches of images with bare copies of as many bytes."""
    findings, cells = [], []
    for row in rows:
        machine = "busy" if row["busy"] else "idle"
        for name, threads in (("shared", "shared by threads"), ("alone", "one thread")):
            found = row[name]
            held = ["", ""]
            if name == "shared" and not row["busy"]:  # the loader as it is; the other rows say what that is worth
                findings.append(Finding(IMAGES, f"B = {row['batch_size']}", found["ratio"]))
                held = [f"{IMAGES}", findings[-1].verdict]
            ratio = spread(found["ratio"], found["ratio_range"])
            speeds = [f"{speed:.2f}" for speed in (row["copy_gb_per_s"], found["gb_per_s"])]
            cells.append([f"{row['batch_size']}", machine, threads, *speeds, ratio, *held])
    heads = ["B", "machine", "the copy", "bare copy, GB/s", "loader, GB/s", "ratio (range)", "target", ""]
    return Section(
        [
            "### Images",
            "",
            "224×224 pixels in shuffled order, against `numpy.copyto` of consecutive rows into one warm buffer on one "
            "thread. Threads share a copy when there are several to have; a ratio above 1 is theirs. To compare: the "
            "same on one thread, and both on a machine that computes something else on all cores but one.",
            "",
            *table(heads, cells, num_text=3),
        ],
        findings,
    )


def audio(rows: Record) -> Section:
    """Compare batches of clips with bare copies of their frames."""
    findings, cells = [], []
    for row in rows:
        low, high = row["clip_seconds"]
        seconds = f"{low:g}–{high:g} s"
        for name, batches in (("shared", "at random"), ("alike", "of like length")):
            found = row[name]
            finding = Finding(AUDIO, f"{seconds}, {row['dtype']}, B = {row['batch_size']}, {batches}", found["ratio"])
            findings.append(finding)
            ratio = spread(found["ratio"], found["ratio_range"])
            speeds = [f"{speed:.2f}" for speed in (row["copy_gb_per_s"], found["gb_per_s"])]
            what = [seconds, row["dtype"], batches, f"{row['batch_size']}"]
            cells.append([*what, *speeds, ratio, f"{AUDIO}", finding.verdict])
    heads = ["clips", "at rest", "batches", "B", "bare copy, GB/s", "loader, GB/s", "ratio (range)", "target", ""]
    return Section(
        [
            "### Clips",
            "",
            "Clips of even lengths between two bounds, at 16 kHz, in shuffled order and padded to the longest of their "
            "batch. The bytes that count are those of the frames as float32: the zeros of the padding have to be "
            "written too and count for nothing, and int16 has to be converted. Batches of like length are those of "
            "`DurationBatchSampler`, of as many seconds as B clips have on average, and have next to no padding.",
            "",
            *table(heads, cells, num_text=3),
        ],
        findings,
    )


def overhead(figures: Record) -> Section:
    """Say what a batch costs however small it is."""
    finding = Finding(OVERHEAD, "B = 1, 224×224", figures["above_copy_us"])
    above = spread(figures["above_copy_us"], figures["above_copy_range"], digits=1)
    heads = ["a batch of one image", "µs", "target", ""]
    rows = [
        ["bare copy", f"{figures['copy_us']:.1f}", "", ""],
        ["loader", f"{figures['loader_us']:.1f}", "", ""],
        ["loader above the bare copy (range)", above, f"{OVERHEAD}", finding.verdict],
        ["stock `DataLoader` over nothing, for comparison", f"{figures['empty_us']:.1f}", "", ""],
    ]
    return Section(["### A batch of one", "", *table(heads, rows)], [finding])


def workers(rows: Record) -> Section:
    """Compare the two ways from a worker to its parent."""
    findings, cells = [], []
    for row in rows:
        transform = row["batch_transform"] or "none"
        what = f"`batch_transform`: {transform}, B = {row['batch_size']}, {count(row['num_workers'], 'worker')}"
        finding = Finding(WORKERS, what, row["ring_is_times_faster"])
        findings.append(finding)
        ways = [
            f"{row[way]['gb_per_s']:.2f}: {spread(row[way]['ratio'], row[way]['ratio_range'])}"
            for way in ("ring", "ordinary")
        ]
        times = f"{row['ring_is_times_faster']:.2f} ×"
        place = [transform, f"{row['batch_size']}", f"{row['num_workers']}"]
        cells.append([*place, f"{row['copy_gb_per_s']:.2f}", *ways, times, f"{WORKERS}", finding.verdict])
    heads = [
        *("`batch_transform`", "B", "workers", "bare copy, GB/s"),
        *("ring, GB/s: ratio (range)", "ordinary way, GB/s: ratio (range)", "ring is faster", "target", ""),
    ]
    return Section(
        [
            "Workers gather batches in memory that both sides map and that is used again: the ring. The ordinary way "
            "is PyTorch's own, a new shared-memory file for every batch; any collate function of your own takes it. "
            "GB/s are bytes of uint8 images served; a `batch_transform` to float makes four times as many, which count "
            "for nothing. The ratio is to the bare copy.",
            "",
            *table(heads, cells),
        ],
        findings,
    )


def growth(figures: Record) -> Section:
    """Show time per sample as something grows."""
    chart = _growth_chart(figures)
    by_size: dict[int, list[Record]] = {}
    for row in figures["num_samples"]:
        by_size.setdefault(row["image_size"], []).append(row)
    lines = ["Measured with images, no workers, batches of 256 unless they are what grows.", "", *show(chart)]
    lines += ["### Samples in the dataset", ""]
    cells = [
        [
            *(f"{row['image_size']}×{row['image_size']}", f"{row['num_samples']:,}"),
            *(f"{row['us_per_sample']:.2f}", f"{row['copy_us_per_sample']:.2f}"),
        ]
        for row in figures["num_samples"]
    ]
    lines += table(["images", "samples", "loader, µs/sample", "bare copy in random order, µs/sample"], cells)
    findings = []
    for size, rows in by_size.items():
        first, last = rows[0], rows[-1]
        loader, copy = (last[name] / first[name] for name in ("us_per_sample", "copy_us_per_sample"))
        findings.append(Finding(GROWTH, f"{size}×{size}", loader))
        lines += [
            f"From {first['num_samples']:,} to {last['num_samples']:,} images of {size}×{size} a sample costs "
            f"{loader:.2f} times as much (target: {GROWTH}; {findings[-1].verdict}), and in the bare copy {copy:.2f} "
            "times: what grows is the way to memory that is in no cache.",
            "",
        ]
    lines += ["### Batch size", ""]
    cells = [[f"{row['batch_size']:,}", f"{row['us_per_sample']:.2f}"] for row in figures["batch_size"]]
    lines += table(["B", "µs/sample"], cells, num_text=0)
    lines += ["### Image size", "", "Batches of 64.", ""]
    cells = [
        [
            f"{row['image_size']}×{row['image_size']}",
            *(f"{speed:.2f}" for speed in (row["copy_gb_per_s"], row["shared"]["gb_per_s"])),
            spread(row["shared"]["ratio"], row["shared"]["ratio_range"]),
        ]
        for row in figures["image_size"]
    ]
    lines += table(["image", "bare copy, GB/s", "loader, GB/s", "ratio (range)"], cells)
    lines += [
        "### Ranks",
        "",
        "Processes with one thread each, as under torchrun, that take an epoch of the one copy at the same time. A "
        "sample costs the time of the slowest, divided by the samples of all.",
        "",
    ]
    cells = [[f"{row['ranks']}", f"{row['us_per_sample_of_all']:.2f}"] for row in figures["ranks"]]
    lines += table(["ranks", "µs/sample of all"], cells, num_text=0)
    return Section(lines, findings, [chart])


def _growth_chart(figures: Record) -> LineChart:
    lines = []
    for size in dict.fromkeys(row["image_size"] for row in figures["num_samples"]):
        rows = [row for row in figures["num_samples"] if row["image_size"] == size]
        for name, label in (("us_per_sample", "loader"), ("copy_us_per_sample", "bare copy")):
            points = [(row["num_samples"], row[name]) for row in rows]
            lines.append(Line(f"{size}×{size}, {label}", points, reference=name == "copy_us_per_sample"))
    batches = [(row["batch_size"], row["us_per_sample"]) for row in figures["batch_size"]]
    speeds = [(row["image_size"], row["shared"]["gb_per_s"]) for row in figures["image_size"]]
    copies = [(row["image_size"], row["copy_gb_per_s"]) for row in figures["image_size"]]
    ranks = [(row["ranks"], row["us_per_sample_of_all"]) for row in figures["ranks"]]
    panels = [
        Panel("samples in the dataset", "µs per sample", lines),
        Panel("samples in a batch", "µs per sample", [Line("", batches)]),
        Panel("side of an image, pixels", "GB/s", [Line("loader", speeds), Line("bare copy", copies, reference=True)]),
        Panel("ranks", "µs per sample of all ranks", [Line("", ranks)]),
    ]
    alt = (
        f"Four line charts. Time per sample over the samples in the dataset: {_ends(lines[0].points)} µs for "
        f"{lines[0].label}. Time per sample over the batch size: {_ends(batches)} µs. Throughput over the side of an "
        f"image: {_ends(speeds)} GB/s. Time per sample of all ranks over their number: {_ends(ranks)} µs."
    )
    return LineChart("growth", alt, panels)


def _ends(points: Sequence[tuple[float, float]]) -> str:
    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    return f"{first_y:.1f} at {first_x:,.0f} and {last_y:.1f} at {last_x:,.0f}"


def order(figures: Record) -> Section:
    """Say what it costs to shuffle and to resume, and how little of a batch is padding."""
    cells = [
        [f"{row['num_samples']:,}", f"{row['us_per_index']:.3f}", f"{row['resume_us']:.1f}"]
        for row in figures["epoch_sampler"]
    ]
    clips = figures["duration_sampler"]
    return Section(
        [
            "`EpochSampler`, shuffled. Resuming is making a sampler, loading a state from the middle of the epoch and "
            "drawing the first index.",
            "",
            *table(["samples", "µs per index", "µs to resume"], cells, num_text=0),
            f"`DurationBatchSampler` plans an epoch of {clips['num_clips']:,} clips of 1 to 30 seconds, most of them "
            f"short, at {clips['us_per_clip']:.2f} µs each. In batches of 600 seconds "
            f"{100 * clips['padding_waste']:.2f} % is padding, in batches of 32 clips at random "
            f"{100 * clips['padding_waste_at_random']:.1f} %.",
            "",
        ]
    )


def endurance(figures: Record) -> Section:
    """Show that the last epochs are like the first."""
    ratio, epochs = figures["last_ten_to_first_ten"], figures["epochs"]
    finding = Finding(ENDURANCE, count(epochs, "epoch"), ratio)
    milliseconds = [(number, 1e3 * seconds) for number, seconds in enumerate(figures["seconds"], 1)]
    slowest, fastest = max(y for _, y in milliseconds), min(y for _, y in milliseconds)
    chart = LineChart(
        "endurance",
        f"Line chart of the time of {count(epochs, 'epoch')}, {fastest:.1f} to {slowest:.1f} ms: the median of the "
        f"last ten is {ratio:.3f} times that of the first ten.",
        [Panel("epoch", "ms per epoch", [Line("", milliseconds)], log_x=False)],
    )
    heads = ["epochs", "fastest, ms", "slowest, ms", "last ten to first ten", "target", "", "memory grown, bytes"]
    row = [f"{epochs:,}", f"{fastest:.1f}", f"{slowest:.1f}", f"{ratio:.3f}", f"{ENDURANCE}", finding.verdict]
    return Section(
        [
            "3,072 images in batches of 64, epoch after epoch in one process. Medians of ten epochs are compared; "
            "memory is the process's resident set, before the first epoch that counts and after the last.",
            "",
            *show(chart),
            *table(heads, [[*row, f"{figures['grown_bytes']:,}"]], num_text=0),
        ],
        [finding],
        [chart],
    )
