"""The order of any epoch, as a loader asks for it."""

from __future__ import annotations

from collections.abc import Callable

from streamtrain.budget import Sizes
from streamtrain.quarantine import Quarantine
from streamtrain.shuffle.order import I64, EpochOrder, Shuffle, sequential_order, shuffled_order
from streamtrain.shuffle.positions import samples
from streamtrain.store.layout import Layout


def orders_of(layout: Layout, sizes: Sizes, seed: int, *, shuffle: bool, reshuffle: str) -> Callable[[int], EpochOrder]:
    """What gives an epoch's order by its number; it keeps nothing but its arguments alive.

    Where ``reshuffle`` is ``"never"`` every epoch has the order of epoch 0, and so the same batches.
    """
    if not shuffle:
        return lambda epoch: sequential_order(layout.n_samples, layout.block_rows)
    shape = Shuffle(n_samples=layout.n_samples, block_rows=layout.block_rows, lanes=sizes.lanes, groups=sizes.groups)
    anew = reshuffle == "epoch"
    return lambda epoch: shuffled_order(shape, seed=seed, epoch=epoch if anew else 0)


def last_samples(order: EpochOrder, position: int, batch_size: int, quarantine: Quarantine | None) -> I64:
    """The samples of the batch that ends at a position, without those that are left out.

    Examples
    --------
    >>> last_samples(sequential_order(10, 4), 10, 4, None).tolist()
    [8, 9]
    """
    found = samples(order, max(position - 1, 0) // batch_size * batch_size, position)
    kept = quarantine.kept(found) if quarantine else None
    return found if kept is None else found[kept]
