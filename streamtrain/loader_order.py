"""The order of any epoch, as a loader asks for it."""

from __future__ import annotations

from collections.abc import Callable

from streamtrain.budget import Sizes
from streamtrain.layout import Layout
from streamtrain.order import EpochOrder, Shuffle, sequential_order, shuffled_order


def orders_of(layout: Layout, sizes: Sizes, *, seed: int, shuffle: bool) -> Callable[[int], EpochOrder]:
    """What gives an epoch's order by its number; it keeps nothing but its arguments alive."""
    if not shuffle:
        return lambda epoch: sequential_order(layout.n_samples, layout.block_rows)
    shape = Shuffle(n_samples=layout.n_samples, block_rows=layout.block_rows, lanes=sizes.lanes, groups=sizes.groups)
    return lambda epoch: shuffled_order(shape, seed=seed, epoch=epoch)
