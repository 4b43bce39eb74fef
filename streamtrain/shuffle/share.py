"""The share of an epoch's order that one rank takes: whole groups of a shuffled order, a part of each stored batch.

Rank r of W takes the positions congruent to r modulo W, which are the groups congruent to r modulo W. So it has B / W
samples of every whole batch of B, out of lanes of its own, and the batch of all ranks together is the same set for
every W. Of the stored order it takes a contiguous part of each batch, or of the whole dataset.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamtrain.shuffle.order import EpochOrder, StoredPart, sequential_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One of the processes that share an epoch."""

    rank: int = 0
    world_size: int = 1

    def cut(self, n: int) -> tuple[int, int]:
        """Cut this rank's contiguous part, [first, end), out of n things."""
        return self.rank * n // self.world_size, (self.rank + 1) * n // self.world_size

    def samples_of_batch(self, n_samples: int, *, shuffled: bool) -> int:
        """Count this rank's samples of a batch of ``n_samples``."""
        if shuffled:
            return (n_samples - self.rank + self.world_size - 1) // self.world_size
        first, end = self.cut(n_samples)
        return end - first

    def of_stored(self, n_samples: int, block_rows: int, batch_size: int) -> EpochOrder:
        """Take this rank's part of every batch of the stored order; the world size divides ``batch_size``."""
        n_whole, n_last = divmod(n_samples, batch_size)
        first, end = self.cut(batch_size)
        part = StoredPart(
            n_samples=n_whole * (end - first) + self.samples_of_batch(n_last, shuffled=False),
            n_whole=n_whole,
            batch_size=batch_size,
            first=first,
            share=end - first,
            last=n_whole * batch_size + self.cut(n_last)[0],
        )
        return sequential_order(n_samples, block_rows, part)

    def rows_of_blocks(self, n_samples: int, block_rows: int) -> tuple[int, int]:
        """Cut this rank's rows, [first, end), where whole blocks are dealt."""
        first, end = self.cut(-(-n_samples // block_rows))
        return min(first * block_rows, n_samples), min(end * block_rows, n_samples)

    def of_blocks(self, n_samples: int, block_rows: int) -> EpochOrder:
        """Take this rank's range of blocks in the stored order: each block is read by one rank."""
        first, end = self.rows_of_blocks(n_samples, block_rows)
        part = StoredPart(n_samples=end - first, n_whole=0, batch_size=1, first=0, share=1, last=first)
        return sequential_order(n_samples, block_rows, part)
