"""Sections of what it costs and saves that samples lie encoded."""

from __future__ import annotations

from benchmarks.report.sections import Finding, Record, Section, Target, spread, table

ACCESS = Target("Decoding on access: throughput of the bare decode loop", 0.9)

_MEDIA = {"images": ("pictures, served at 224×224", "pictures"), "audio": ("clips", "clips")}


def access(figures: Record) -> Section:
    """Compare loaders over encoded stores with the decoders alone."""
    names = {"photos": "photographs, as fetched", "recompressed": f"photographs, recompressed at {figures['quality']}"}
    findings, cells = [], []
    for row in figures["rows"]:
        what = names.get(row["what"], f"clips of {row['what']}")
        finding = Finding(ACCESS, f"{what}, B = {row['batch_size']}", row["ratio"])
        findings.append(finding)
        speeds = [f"{row[name]:,.0f}" for name in ("bare_per_s", "loader_per_s")]
        size = f"{row['kept_bytes'] / 1000:,.1f}"
        ratio = spread(row["ratio"], row["ratio_range"])
        cells.append([what, f"{row['batch_size']}", size, *speeds, ratio, f"{ACCESS}", finding.verdict])
    heads = ["samples", "B", "kept, kB", "bare decode loop, /s", "loader, /s", "ratio (range)", "target", ""]
    return Section(
        [
            "### Decoding on access",
            "",
            "Photographs in JPEG of 500 pixels on the longer side, served at 224×224, and clips at 16 kHz, in shuffled "
            "order from a stock `DataLoader` without workers. The bare decode loop is `ThreadPoolExecutor.map` of the "
            "same decoders over the same bytes into one warm batch, and nothing else; each decodes on "
            f"{figures['num_threads']} threads.",
            "",
            *table(heads, cells),
        ],
        findings,
    )


def sizes(figures: Record) -> Section:
    """Say what a sample takes in every form."""
    lines = ["### Samples in a gigabyte", ""]
    for media, (head, noun) in _MEDIA.items():
        found = figures[media]
        seconds = f"; a clip has {found['mean_seconds']:.2f} s on average" if media == "audio" else ""
        what = f"{found['num_samples']:,} {noun} of all formats and sizes, with captions and bookkeeping{seconds}."
        lines += [what, ""]
        decoded = found["bytes_per_sample"]["decoded"]
        cells = [
            [_form(form), f"{num_bytes:,.0f}", f"{1e9 / num_bytes:,.0f}", f"{decoded / num_bytes:.2f} ×"]
            for form, num_bytes in found["bytes_per_sample"].items()
        ]
        lines += table([head, "bytes per sample", "samples per GB", "of those decoded"], cells)
    return Section(lines)


def _form(form: str) -> str:
    name, _, quality = form.partition(", ")
    return f'{name}, `recompress=("jpeg", {quality})`' if quality else name


def quality(figures: Record) -> Section:
    """Say what recompressing loses."""
    cells = [
        [
            f"{row['quality']}",
            f"{row['num_recompressed']:,}",
            *(f"{row['psnr'][which]:.1f}" for which in ("median", "worst_20th")),
            *(f"{row['ssim'][which]:.4f}" for which in ("median", "worst_20th")),
        ]
        for row in figures["rows"]
    ]
    heads = ["quality", "recompressed", "PSNR, dB", "5th percentile", "SSIM", "5th percentile"]
    return Section(
        [
            "### What recompressing loses",
            "",
            f"The {figures['num_pictures']:,} pictures that have more pixels than 224×224, against what a decoded "
            "store serves of them: PSNR over the three colours, SSIM (Wang, Bovik, Sheikh, Simoncelli 2004) of the "
            "luma; medians and 5th percentiles. A picture of which the bytes that were fetched are fewer than those of "
            "the JPEG is kept as it was and loses nothing; it is not counted, so that each quality has pictures of its "
            "own.",
            "",
            *table(heads, cells, num_text=0),
        ]
    )


def mixture(figures: Record) -> Section:
    """Compare mixtures with what their parts let expect."""
    cells = [
        [
            f"{100 * row['share_decoded']:.1f} %",
            f"{row['nbytes'] / 1e6:,.1f}",
            *(f"{row[name]:,.0f}" for name in ("expected_per_s", "per_s")),
            spread(row["ratio"], row["ratio_range"]),
        ]
        for row in figures["rows"]
    ]
    heads = ["decoded", "MB", "expected, /s", "loader, /s", "ratio (range)"]
    return Section(
        [
            "### Mixtures",
            "",
            f'{figures["num_samples"]:,} photographs with `storage="auto"` and less and less memory, in shuffled '
            f"batches of {figures['batch_size']}. Expected is that every sample takes its time in the first or in the "
            "last row, as many of each as there are.",
            "",
            *table(heads, cells, num_text=0),
        ]
    )


def disk(figures: Record) -> Section:
    """Compare a store that is larger than the memory with what its decoder and its disk let expect."""
    title = ["### A part on the disk", ""]
    if "note" in figures:
        return Section([*title, f"Not measured: {figures['note']}.", ""])
    cells = [
        [
            f"{100 * row['share_on_disk']:.1f} %",
            f"{row['share_read']:.2f}",
            *(f"{row[name]:,.0f}" for name in ("in_memory_per_s", "expected_per_s", "per_s")),
            spread(row["ratio"], row["ratio_range"]),
        ]
        for row in figures["rows"]
    ]
    around = figures["read_ahead_bytes"]
    read_ahead = "" if around is None else f" The kernel may read {around / 1e3:,.0f} kB ahead of what is asked for."
    heads = ["on disk", "read, of the store", "all in memory, /s", "expected, /s", "loader, /s", "ratio (range)"]
    return Section(
        [
            *title,
            f"{figures['num_samples']:,} photographs that lie encoded in a file of {figures['nbytes'] / 1e6:,.1f} MB, "
            f"served in shuffled batches of {figures['batch_size']} from within a control group whose memory it "
            f"exceeds. The disk alone gives {figures['reads_per_s']:,.0f} of these samples per second in random order. "
            "Expected is the time with all in memory, and that of the disk for the share that is not there when the "
            f"epoch begins. What is read in an epoch is given as a multiple of the whole store.{read_ahead}",
            "",
            *table(heads, cells, num_text=0),
        ]
    )
