"""The batches of an epoch as one rank has them: how many, how large, and where they stand in its share of the order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.loader.budget import LoaderProjection, LoaderSizes, OrderExpectation, expect, shuffle_of, solve
from streamtrain.shuffle.order import EpochOrder, sequential_order, shuffled_order
from streamtrain.shuffle.share import Rank
from streamtrain.store.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """The batches of one rank. ``batch_size`` is that of all ranks together."""

    rank: Rank
    layout: Layout
    batch_size: int
    shuffle: bool
    drop_last: bool
    by_blocks: bool = False  # ranges of whole blocks of the stored order, instead of parts of every batch

    @property
    def local_batch_size(self) -> int:
        """Samples of this rank in a whole batch."""
        return self.batch_size // self.rank.world_size

    @property
    def n_batches(self) -> int:
        """Batches of an epoch, the same on all ranks unless ranges of blocks are dealt."""
        if self.by_blocks:
            return self.n_with_samples
        return (self.layout.n_samples + (0 if self.drop_last else self.batch_size - 1)) // self.batch_size

    @property
    def n_with_samples(self) -> int:
        """Batches in which this rank has samples: all, or all but the last."""
        return -(-self.n_positions // self.local_batch_size)

    @property
    def n_positions(self) -> int:
        """Samples of this rank in an epoch."""
        if self.by_blocks:
            first, end = self.rank.rows_of_blocks(self.layout.n_samples, self.layout.block_rows)
            return end - first
        n_whole, n_last = divmod(self.layout.n_samples, self.batch_size)
        last = 0 if self.drop_last else self.rank.samples_of_batch(n_last, shuffled=self.shuffle)
        return n_whole * self.local_batch_size + last

    def start(self, batch: int) -> int:
        """The position in this rank's share at which a batch begins."""
        return min(batch * self.local_batch_size, self.n_positions)

    def grad_scale(self, batch: int) -> float:
        """The factor that makes the mean over ranks of mean losses the mean over a batch: n_r W / n."""
        n_samples = min(self.batch_size, self.layout.n_samples - batch * self.batch_size)
        mine = self.rank.samples_of_batch(n_samples, shuffled=self.shuffle)
        return mine * self.rank.world_size / n_samples

    def order_of(self, sizes: LoaderSizes, seed: int, reshuffle: str) -> Callable[[int], EpochOrder]:
        """Make the function from an epoch's number to this rank's order; it keeps only its arguments alive."""
        rank, layout, batch_size = self.rank, self.layout, self.batch_size
        if self.shuffle:
            shape, anew = shuffle_of(layout, sizes), reshuffle == "epoch"
            own = {"first_group": rank.rank, "group_step": rank.world_size}
            return lambda epoch: shuffled_order(shape, seed=seed, epoch=epoch if anew else 0, **own)
        if rank.world_size == 1:
            return lambda epoch: sequential_order(layout.n_samples, layout.block_rows)
        if self.by_blocks:
            return lambda epoch: rank.of_blocks(layout.n_samples, layout.block_rows)
        return lambda epoch: rank.of_stored(layout.n_samples, layout.block_rows, batch_size)

    def check(self, sizes: LoaderSizes) -> None:
        """Refuse a world size that cannot share the batches or the groups of an order of these sizes."""
        world_size = self.rank.world_size
        if self.batch_size % world_size:
            raise UsageError(
                f"a batch of {self.batch_size} samples cannot be shared by {world_size} ranks",
                why="batch_size counts the samples of all ranks together, and each takes the same number",
                fix=Fix(Argument("batch_size", max(1, round(self.batch_size / world_size)) * world_size)),
            )
        if self.shuffle and sizes.groups % world_size:
            raise UsageError(
                f"{sizes.groups} groups of lanes cannot be shared by {world_size} ranks",
                why="Each rank takes whole groups, and the order does not depend on the number of ranks",
                fix=Fix(Argument("groups", _groups_for(self.batch_size, world_size, sizes.groups))),
            )

    def solve(
        self, sizes: LoaderSizes, whole: LoaderProjection, *, memory: int, rho: float | None
    ) -> tuple[LoaderSizes, LoaderProjection]:
        """Find this rank's own sizes: its lanes of an order of ``sizes``, and the rest of the budget for its blocks."""
        world_size = self.rank.world_size
        if world_size == 1:
            return sizes, whole
        self.check(sizes)
        order: dict[str, Any] = {"shuffle": self.shuffle}
        if self.shuffle:
            order.update(lanes=sizes.lanes // world_size, groups=sizes.groups // world_size)
        own, projection = solve(self.layout, batch_size=self.local_batch_size, memory=memory, rho=rho, **order)
        return own, replace(projection, expected=self.expect(own, rho))

    def expect(self, own: LoaderSizes, rho: float | None) -> OrderExpectation | None:
        """State what to expect of this rank's share."""
        expected = expect(self.layout, own, rho)
        return expected and replace(expected, n_blocks=-(-self.layout.n_blocks // self.rank.world_size))


def _groups_for(batch_size: int, world_size: int, wanted: int) -> int:
    """Find the divisor of the batch size that the ranks can share and that is nearest to a number."""
    possible = [n for n in range(world_size, batch_size + 1, world_size) if batch_size % n == 0]
    return min(possible, key=lambda n: (abs(n - wanted), n))
