"""Orders of samples as other loaders make them, from a seeded generator, and the spectrum of any order's batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
PARTS: Final = {"whole": (0.0, 1.0), "first 2 %": (0.0, 0.02), "last 2 %": (0.98, 1.0)}
"""Parts of an epoch that are looked at alone: what is wrong in few batches does not show among all."""
_MARKS_AT_ONCE: Final = 1 << 24


def permuted_blocks(rng: np.random.Generator, n_samples: int, block_rows: int) -> I64:
    """Whole blocks in random order."""
    blocks = rng.permutation(-(-n_samples // block_rows))
    samples: I64 = (blocks[:, None] * block_rows + np.arange(block_rows)).ravel()
    return samples[samples < n_samples]


def window_of_blocks(rng: np.random.Generator, n_samples: int, block_rows: int, window: int) -> I64:
    """Permute blocks; fill a window with so many, shuffle it, emit it, and so on."""
    order = permuted_blocks(rng, n_samples, block_rows)
    for start in range(0, n_samples, window * block_rows):
        rng.shuffle(order[start : start + window * block_rows])
    return order


def rolling_window(rng: np.random.Generator, n_samples: int, block_rows: int, window: int) -> I64:
    """Permute blocks; move every sample by a random distance within a window of so many."""
    order = permuted_blocks(rng, n_samples, block_rows)
    return order[np.argsort(np.arange(n_samples) + rng.random(n_samples) * window * block_rows)]


def shuffle_buffer(rng: np.random.Generator, n_samples: int, block_rows: int, size: int) -> I64:
    """Permute blocks; put each sample into a buffer in the place of a random one, which is emitted."""
    stream = permuted_blocks(rng, n_samples, block_rows)
    size = min(size, n_samples)
    buffer, out = stream[:size].tolist(), []
    places = rng.integers(0, size, n_samples - size).tolist()
    for place, sample in zip(places, stream[size:].tolist(), strict=True):
        out.append(buffer[place])
        buffer[place] = sample
    return np.array(out + rng.permutation(buffer).tolist(), np.int64)


def largest_power(orders: Sequence[I64], batch_size: int, *, part: str = "whole", most_batches: int = 4000) -> float:
    """The largest value of the spectrum of full batches, over all frequencies; 1 is a full reshuffle's expectation.

    Parameters
    ----------
    orders : sequence of (n_samples,) int64
        Epochs.
    part : str
        One of ``PARTS``.
    most_batches : int
        So many batches at the most, evenly from all there are.
    """
    n_samples = len(orders[0])
    n_full = n_samples // batch_size
    first, end = (int(share * n_full) for share in PARTS[part])
    batches = np.concatenate(
        [order[: n_full * batch_size].reshape(n_full, -1)[first : max(end, first + 1)] for order in orders]
    )
    batches = batches[np.linspace(0, len(batches) - 1, min(most_batches, len(batches))).astype(int)]
    total = np.zeros(n_samples // 2 + 1)
    for some in np.array_split(batches, max(1, len(batches) * n_samples // _MARKS_AT_ONCE)):
        marks = np.zeros((len(some), n_samples), np.float32)
        np.put_along_axis(marks, some, 1, axis=1)
        total += (np.abs(np.fft.rfft(marks, axis=1)) ** 2).sum(axis=0)
    expected = batch_size * (n_samples - batch_size) / (n_samples - 1)
    return float(total[1:].max() / len(batches) / expected)
