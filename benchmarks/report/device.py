"""The section of what batches cost on an accelerator."""

from __future__ import annotations

from benchmarks.report.sections import Finding, Record, Section, Target, spread, table

GATHER = Target("On a GPU: gather of the device's own copies", 0.7)
TRANSFER = Target("On a GPU: prefetcher of bare copies over the bus", 0.9)
WAITING = Target("On a GPU: share of a step spent waiting", 1.0, " %", at_most=True)


def device(record: Record) -> Section:
    """Write what `benchmarks.bench_device` measured."""
    gather, transfer, epoch, waiting = (record[name] for name in ("gather", "transfer", "epoch", "waiting"))
    findings, copies, ways = [], [], []
    for row in gather:
        what = f"gather on the device, B = {row['batch_size']}"
        speeds = [f"{row[name]:,.1f}" for name in ("copy_gb_per_s", "gather_gb_per_s")]
        held = ["", ""]
        if row["batch_size"] >= 256:
            findings.append(Finding(GATHER, what, row["ratio"]))
            held = [f"{GATHER}", findings[-1].verdict]
        copies.append([what, *speeds, spread(row["ratio"], row["ratio_range"]), *held])
    what = f"`DevicePrefetcher`, B = {transfer['batch_size']}"
    speeds = [f"{transfer[name]:,.1f}" for name in ("bus_gb_per_s", "prefetcher_gb_per_s")]
    findings.append(Finding(TRANSFER, what, transfer["ratio"]))
    ratio = spread(transfer["ratio"], transfer["ratio_range"])
    copies.append([what, *speeds, ratio, f"{TRANSFER}", findings[-1].verdict])
    for key, name in (("on_device", "`dataset.to(device)`"), ("prefetched", "`DevicePrefetcher`")):
        share = 100 * waiting[f"{key}_waiting_share"]
        findings.append(Finding(WAITING, name, share))
        seconds = f"{epoch[f'{key}_seconds']:.3f}"
        ways.append([name, seconds, f"{share:.2f}", f"{WAITING}", findings[-1].verdict])
    return Section(
        [
            f"{record['num_images']:,} images of 224×224 on {record['machine']['device']}. The gather is compared with "
            "a copy of as many bytes within the device, both counted as read and written; the prefetcher with bare "
            "copies of one pinned batch.",
            "",
            *table(["", "bare copy, GB/s", "ours, GB/s", "ratio (range)", "target", ""], copies),
            f"Waiting is the share of {waiting['steps']} training steps of a ResNet-50 that they take longer than the "
            f"same steps on one batch that is there already, {1e3 * waiting['step_seconds']:.1f} ms each.",
            "",
            *table(["batches from", "an epoch, s", "waiting, %", "target", ""], ways),
        ],
        findings,
    )
