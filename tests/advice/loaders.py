"""Worlds of loaders: their state, the ranks that share an epoch, random numbers for transforms."""

from __future__ import annotations

from typing import Any

import torch

import streamtrain as st
from tests.advice.training import fit, net
from tests.advice.world import World, world


@world(
    "loader/world.py:told_rank: both of them, or neither: torch.distributed is then asked when an epoch begins",
    "loader/deal.py:Deal.check: batch_size={}",
    "loader/deal.py:Deal.check: groups={}",
    "loader/stream_loader.py:StreamLoader.grad_scale: on_bad_block='error'",
    "training/ranks.py:exchange_over: torch.distributed.init_process_group() before, and a loader without rank= and "
    "world_size=; or one of all samples: rank=0, world_size=1",
)
def ranks_that_share_an_epoch(w: World) -> None:
    data = w.dataset()

    def scaled(**how: Any) -> float:
        with st.StreamLoader(data, **{"batch_size": 24, "memory": "16MB", "world_size": 2} | how) as loader:
            return loader.grad_scale

    w.refused(scaled)
    w.followed(scaled, rank=0, on_bad_block="quarantine")
    w.followed(scaled, rank=0, world_size=5)
    w.followed(scaled, rank=0, world_size=4, groups=2)
    trainer, how = st.Trainer(net(), loss="cross_entropy"), {"batch_size": 20, "memory": "16MB"}
    with st.StreamLoader(data, rank=0, world_size=2, **how) as share:
        w.refused(trainer.evaluate, share)
    with st.StreamLoader(data, rank=0, world_size=1, **how) as whole:
        trainer.fit(whole, max_epochs=1, progress=False)


@world(
    "loader/loader_state.py:checked_state: what state_dict() returned",
    "loader/loader_state.py:checked_state: make the loader as it was",
    "loader/stream_loader.py:StreamLoader.__iter__: make a new one",
    "loader/stream_loader.py:StreamLoader._check_turn: close it when no one iterates it",
    "loader/stream_loader.py:StreamLoader._check_turn: use one iterator at a time",
    "system/arguments.py:check_reading: 300, say, or None to wait forever",
)
def loaders(w: World) -> None:
    data = w.dataset()

    def loader(**how: Any) -> st.StreamLoader:
        return st.StreamLoader(data, **{"batch_size": 20, "memory": "16MB"} | how)

    with loader() as one, loader(batch_size=10) as other:
        w.refused(one.load_state_dict, 5)
        w.refused(one.load_state_dict, other.state_dict())
        one.load_state_dict(one.state_dict())
        first = iter(one)
        next(first)
        list(one)
        w.refused(next, first)
        last = iter(one)
        next(last)
    w.refused(next, last)
    w.refused(iter, one)
    with loader() as one:
        list(one)
    w.refused(loader, timeout=-1)
    loader(timeout=300).close()
    loader(timeout=None).close()


@world(
    "loader/augmentation.py:uniform: torch.float32 or torch.float64",
    "loader/augmentation.py:_words: the keys given to transform(batch, keys)",
    "loader/augmentation.py:_words: (28, 28), say",
)
def random_numbers_for_transforms(w: World) -> None:
    data = w.dataset()

    def noisy(dtype: Any, keys_of: Any = lambda keys: keys) -> Any:
        def transform(batch: Any, keys: Any) -> Any:
            return batch._replace(x=batch.x + st.uniform(keys_of(keys), (4,), dtype=dtype).float())

        return transform

    w.refused(fit, data, transform=noisy(torch.int64))
    w.refused(fit, data, transform=noisy(torch.float32, lambda keys: keys.float()))
    fit(data, transform=noisy(torch.float32))
    fit(data, transform=noisy(torch.float64))
    w.refused(st.uniform, torch.arange(3), 5)
    assert st.uniform(torch.arange(3), (28, 28)).shape == (3, 28, 28)
