"""What recompressing loses: PSNR and SSIM of the pixels that are served, against those of a decoded store."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from benchmarks.bench_gather import Figures
from benchmarks.encoded.samples import SIZE, Corpora
from benchmarks.encoded.sizes import QUALITIES
from in_memory_datasets import InMemoryImageTextDataset
from in_memory_datasets.decode.image import has_more_pixels
from in_memory_datasets.schema import ImageSpec

_PEAK = 255
_REC_601 = (0.299, 0.587, 0.114)
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03

Image = NDArray[Any]


def measure_quality(corpora: Corpora) -> Figures:
    """Compare all pictures that have more pixels than are served."""
    spec = ImageSpec(SIZE)
    rows = [row for row in corpora.pictures() if has_more_pixels(row["image_url"], spec=spec)]
    with InMemoryImageTextDataset(rows, image_size=SIZE, progress=False) as dataset:
        exact = [_pixels(dataset, i) for i in range(len(rows))]
    figures = []
    for quality in QUALITIES:
        with InMemoryImageTextDataset(
            rows, image_size=SIZE, storage="encoded", recompress=("jpeg", quality), progress=False
        ) as dataset:
            # The own bytes of some are fewer than those of a JPEG of what is served; they are kept, and lose nothing.
            changed = [i for i, row in enumerate(rows) if dataset._store.sample(i).tobytes() != row["image_url"]]
            pairs = [(exact[i], _pixels(dataset, i)) for i in changed]
        noise, likeness = (np.array([compare(*pair) for pair in pairs]) for compare in (psnr, ssim))
        figures.append(
            {
                "quality": quality,
                "num_recompressed": len(changed),
                "psnr": {"median": float(np.median(noise)), "worst_20th": float(np.percentile(noise, 5))},
                "ssim": {"median": float(np.median(likeness)), "worst_20th": float(np.percentile(likeness, 5))},
            }
        )
        print(figures[-1], flush=True)
    return {"num_pictures": len(rows), "rows": figures}


def _pixels(dataset: InMemoryImageTextDataset, i: int) -> Image:
    pixels: Image = dataset[i]["image"].permute(1, 2, 0).numpy()
    return pixels


def psnr(one: Image, other: Image) -> float:
    """Give the ratio of the peak to the noise over all three colours, in dB; infinite where they are the same.

    Args:
        one: uint8, shape (H, W, 3).
        other: Likewise.
    """
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(_PEAK**2 / error))


def ssim(one: Image, other: Image) -> float:
    """Give the mean structural similarity of the luma (Rec. 601), 1 where both are the same.

    In a Gaussian window of 11×11 with σ = 1.5, at every place where it lies within the picture.

    Args:
        one: uint8, shape (H, W, 3), 11×11 or larger.
        other: Likewise.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", IEEE Transactions on Image Processing 13 (4), 2004; equation 13.
    """
    x, y = (image.astype(np.float64) @ _REC_601 for image in (one, other))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(similarity.mean())


def _blur(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight the neighbourhood of every place with the window, where all of it lies within the picture."""
    distance = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(distance**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    rows = sliding_window_view(plane, _WINDOW, axis=0) @ weights
    blurred: NDArray[np.float64] = sliding_window_view(rows, _WINDOW, axis=1) @ weights
    return blurred
