"""Orders of samples as other loaders make them, from a seeded generator: what the shuffle is held against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


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
