"""A mixture of decoded and encoded samples in memory: whether it is as fast as its parts let it be."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from benchmarks.bench_gather import Figures, alternate, loader_of, time_epoch
from benchmarks.encoded.samples import SIZE, Corpora, Rows
from in_memory_datasets import InMemoryImageTextDataset
from in_memory_datasets.build import Storage

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the samples that lie decoded
BATCH_SIZE = 32
_SLACK_BYTES = 16_384  # what a load counts besides the store is not known to the byte, and less than half a sample


def measure_mixture(corpora: Corpora, *, num_samples: int, repeats: int) -> Figures:
    """Load the same photographs with less and less memory, and take an epoch of each in turn.

    A sample of a mixture is expected to take the time of one that lies decoded or of one that lies encoded, as many
    of each as there are: the harmonic mean of both ends.
    """
    photos = corpora.photos(num_samples)
    with ExitStack() as opened:
        datasets = {
            share: opened.enter_context(
                InMemoryImageTextDataset(
                    photos, image_size=SIZE, storage="auto", memory_limit=num_bytes, progress=False
                )
            )
            for share, num_bytes in _limits(photos).items()
        }
        seconds = alternate(
            repeats,
            **{
                str(share): lambda d=dataset: time_epoch(loader_of(d, BATCH_SIZE))
                for share, dataset in datasets.items()
            },
        )
        found = {share: dataset.report.num_decoded / num_samples for share, dataset in datasets.items()}
        sizes = {share: dataset.nbytes for share, dataset in datasets.items()}
    rows = []
    for share in SHARES:
        expected = [
            found[share] * decoded + (1 - found[share]) * encoded
            for decoded, encoded in zip(seconds[str(SHARES[0])], seconds[str(SHARES[-1])], strict=True)
        ]
        ratios = sorted(one / other for one, other in zip(expected, seconds[str(share)], strict=True))
        rows.append(
            {
                "share_decoded": found[share],
                "nbytes": sizes[share],
                "per_s": num_samples / median(seconds[str(share)]),
                "expected_per_s": num_samples / median(expected),
                "ratio": median(ratios),
                "ratio_range": [ratios[0], ratios[-1]],
            }
        )
        print(rows[-1], flush=True)
    return {"num_samples": num_samples, "batch_size": BATCH_SIZE, "rows": rows}


def _limits(photos: Rows) -> dict[float, int]:
    """Give the memory in which each share lies decoded."""
    sizes = []
    forms: tuple[Storage, ...] = ("decoded", "encoded")
    for storage in forms:
        with InMemoryImageTextDataset(photos, image_size=SIZE, storage=storage, progress=False) as dataset:
            sizes.append(dataset.nbytes)
    decoded, encoded = sizes
    return {share: round(encoded + share * (decoded - encoded)) + _SLACK_BYTES for share in SHARES}
