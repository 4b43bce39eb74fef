"""The ranks of a training: who shares a stream, and what all of them must have alike before it begins."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamtrain.errors import Argument, BudgetError, Fix, Lines, StreamtrainWarning, UsageError
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.loader.world import present_rank
from streamtrain.optim.ranks.exchange import Exchange, RankExchange
from streamtrain.optim.rules import UpdateRule
from streamtrain.store.dataset import Dataset
from streamtrain.system.memory import memory_limit
from streamtrain.system.units import counted, format_bytes, megabytes
from streamtrain.training.batch_stream import BatchStream
from streamtrain.training.metrics.results import Scoring
from streamtrain.training.metrics.user import check_metrics
from streamtrain.training.run.serialization import flatten_names

_MOST_NAMED: Final = 5


def world_size_of(data: object) -> int:
    """Return the number of ranks that share a stream, or the loader that will be made of a dataset."""
    # A stream of the user's own, without a world size, is whatever its author made it.
    return present_rank().world_size if isinstance(data, Dataset) else getattr(data, "world_size", 1)


def shown(progress: bool | None) -> bool | None:
    """Say whether progress is shown; of several ranks the first one shows it for all."""
    return False if present_rank().rank else progress


def exchange_over(data: object, before: Exchange | None = None, device: torch.device | None = None) -> Exchange:
    """Return the exchange of the ranks that share a stream, the one before if it is theirs.

    Raises
    ------
    UsageError
        A loader was given a rank, and there is no process group of its world size.
    """
    world_size, present = world_size_of(data), present_rank()
    if before is not None and (before.rank, before.world_size) == (present.rank, world_size):
        return before
    if world_size == 1:
        return Exchange()
    if world_size != present.world_size:
        raise UsageError(
            f"the loader has a share of {world_size} ranks, and torch.distributed has {present.world_size}",
            why="A Trainer adds gradients and metrics over the ranks of the process group",
            fix="torch.distributed.init_process_group() before, and a loader without rank= and world_size=; "
            "or one of all samples: rank=0, world_size=1",
        )
    return RankExchange(device)


class HasScoring(Protocol):
    """What joining needs of an epoch's loop."""

    device: torch.device
    scoring: Scoring


def join_ranks(data: BatchStream | Dataset, rule: UpdateRule, loop: HasScoring, before: Exchange | None) -> Exchange:
    """Let a rule take part with the other ranks that share its data, if there are any, from the first one's weights."""
    exchange = exchange_over(data, before, loop.device)
    if exchange.world_size > 1 and rule.name == "sample":
        raise UsageError(
            f"update='sample' steps on one sample at a time, and {exchange.world_size} ranks share the batches",
            fix=Fix(Argument("update", "batch")),
        )
    rule.exchange = exchange
    if exchange.world_size > 1:
        check_metrics(loop.scoring.metrics)
        model = rule.learner.model
        exchange.copy_of_first([*model.state_dict().values()])
        _warn_of_batch_norm(exchange, model, getattr(data, "batch_size", None))
    return exchange


def _warn_of_batch_norm(exchange: Exchange, model: nn.Module, batch_size: int | None) -> None:
    kinds = {type(each).__name__ for each in model.modules() if isinstance(each, _BatchNorm)} - {"SyncBatchNorm"}
    if kinds and exchange.rank == 0:
        of = "" if batch_size is None else f", {batch_size // exchange.world_size} of {batch_size} samples of a batch"
        warnings.warn(
            StreamtrainWarning(
                f"{', '.join(sorted(kinds))} takes its statistics from the rows of one rank{of}",
                fix="torch.nn.SyncBatchNorm on GPUs, another normalization, or a larger batch_size",
            ),
            stacklevel=5,
        )


def check_ranks(
    exchange: Exchange,
    model: nn.Module,
    description: Mapping[str, object],
    loader: BatchStream,
    val: BatchStream | None,
    call: Mapping[str, object],
) -> None:
    """Refuse ranks that would not train the same, or whose loaders do not fit their host together."""
    if exchange.world_size == 1:
        return
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    versions = {"streamtrain": version("streamtrain"), "torch": torch.__version__, "numpy": np.__version__}
    facts = {**flatten_names(description), **call, "val": getattr(val and val.dataset, "id", None)}
    if isinstance(loader, StreamLoader):
        facts |= {"lanes": loader.sizes.lanes, "groups": loader.sizes.groups}
    own = {**versions, "shapes of the weights": str(shapes), **{name: _plain(value) for name, value in facts.items()}}
    all_ranks = exchange.gather(own)
    wrong = [
        f"{name} is {_short(first)}, and {_short(other.get(name))} on rank {rank}"
        for rank, other in enumerate(all_ranks)
        for name, first in all_ranks[0].items()
        if other.get(name) != first
    ]
    if wrong:
        raise UsageError(
            "the ranks do not train the same",
            why=Lines.of(["On rank 0", *(f"  {line}" for line in wrong[:_MOST_NAMED])]),
            fix="the same command, data and versions on every rank",
        )
    _refuse_empty_share(exchange, model, loader)
    _check_memory_together(exchange, [loader, *([] if val is None else [val])])


def _refuse_empty_share(exchange: Exchange, model: nn.Module, stream: BatchStream) -> None:
    """Refuse batches of which a rank may have no rows, where a layer of the others waits for all ranks."""
    if not any(isinstance(each, nn.SyncBatchNorm) for each in model.modules()):
        return
    why = "SyncBatchNorm adds its statistics over the ranks, and would wait for one that has no rows forever"
    n_last = len(stream.dataset) % stream.batch_size
    if 0 < n_last < exchange.world_size and not stream.drop_last:
        raise UsageError(
            f"the last batch of an epoch has {counted(n_last, 'sample')} for {exchange.world_size} ranks",
            why=why,
            fix=Fix("another ", Argument("batch_size"), ", or a loader that drops the last batch"),
        )
    if getattr(stream, "on_bad_block", "error") != "error":
        raise UsageError(
            "a batch may lose all rows of a rank to damage", why=why, fix=Fix(Argument("on_bad_block", "error"))
        )


def share_left_out(exchange: Exchange, streams: Sequence[BatchStream]) -> None:
    """Have every rank leave out, and tell of, the damaged blocks that any has found."""
    kept = [kept for stream in streams if (kept := getattr(stream, "_quarantine", None)) is not None]
    if exchange.world_size > 1 and kept:
        for found in exchange.gather([each.found for each in kept]):
            for own, others in zip(kept, found, strict=True):
                own.take(others)


def _check_memory_together(exchange: Exchange, streams: list[BatchStream]) -> None:
    """Refuse ranks whose loaders together need more memory than their host, or its control group, has free."""
    planned = sum(stream.projection.host_bytes for stream in streams if isinstance(stream, StreamLoader))
    limit = memory_limit()
    hosts: dict[str, list[tuple[int, int]]] = {}
    for host, *figures in exchange.gather((platform.node(), planned, limit.free_bytes)):
        hosts.setdefault(host, []).append((figures[0], figures[1]))
    for host, ranks in hosts.items():
        needed, free = sum(each for each, _ in ranks), min(each for _, each in ranks)
        if needed > free:
            raise BudgetError(
                f"the loaders of {len(ranks)} ranks take {format_bytes(needed)}, and {format_bytes(free)} are free",
                where=host,
                fix=Fix(Argument("memory", megabytes(free // len(ranks))), " for each rank"),
            )


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
