"""Loaders for training and validation, sized by what a trainer leaves of a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from torch import nn
from torch.optim import Optimizer

from streamtrain.errors import Argument, BudgetError, Fix, UsageError
from streamtrain.loader import budget_shares, shared_budget
from streamtrain.loader.batch import tensor_bytes
from streamtrain.loader.budget_shares import smallest_budget_bytes
from streamtrain.loader.quarantine import first_rows
from streamtrain.loader.shared_budget import NonLoaderMemory
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.losses import Loss
from streamtrain.store.dataset import Dataset
from streamtrain.system.arguments import check_batch_size, check_seed
from streamtrain.system.events import Reserved, publish_event
from streamtrain.system.memory import MemoryMeter, held_bytes, memory_limit
from streamtrain.system.units import format_bytes, megabytes, parse_bytes
from streamtrain.training.batch_stream import BatchStream, class_counts
from streamtrain.training.run.checkpoint import checkpoint_bytes
from streamtrain.training.step_errors import naming_missing_values


class Rehearsing(Protocol):
    """What sizing needs of a trainer."""

    inputs: tuple[str, ...]
    target: str
    loss: Loss
    model: nn.Module
    optimizer: Optimizer

    @property
    def reads_in_order(self) -> bool: ...
    def check(self, rows: Any, *, n_classes: int | range | None = None) -> None: ...
    def working_memory(self, rows: Any) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """Options of a run's loaders, as `StreamLoader` has them, and the budget of the whole process."""

    batch_size: int = 256
    # Of all loaders together; by default 512 MB, or what max_memory leaves.
    memory: str | None = None
    # Of the whole process; "auto" is what the machine, or its control group, allows.
    max_memory: str | None = None
    seed: int = 0
    lanes: int | None = None
    groups: int | None = None
    reshuffle: str = "epoch"
    drop_last: bool = False
    on_bad_block: str = "error"
    device: str = "auto"
    shuffle: bool = True

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, self.batch_size, drop_last=self.drop_last)
        check_seed(self.seed)
        for name, size in (("memory", self.memory), ("max_memory", self.max_memory)):
            if size is not None and not (isinstance(size, str) and size == "auto"):
                parse_bytes(size, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedLoaders:
    """Loaders of a run, and the memory figures they were sized by."""

    training: StreamLoader
    validation: StreamLoader | None
    memory_bytes: int
    taken: NonLoaderMemory
    # The peak from the rehearsed step on.
    meter: MemoryMeter

    @property
    def all(self) -> list[StreamLoader]:
        """The training loader, and the validation loader if there is one."""
        return [self.training, *([self.validation] if self.validation else [])]


@contextmanager
def sized_loaders(
    trainer: Rehearsing,
    dataset: Dataset,
    val: Dataset | None,
    options: LoaderOptions,
    *,
    reserved_bytes: int,
    best_bytes: int = 0,
    on_checked: Callable[[], object] = lambda: None,
) -> Iterator[SizedLoaders]:
    """Rehearse a step, and make loaders that fit into the memory it leaves.

    ``reserved_bytes`` is what the process held before there was a model, ``best_bytes`` what a copy of its best weights
    will take; ``on_checked`` is called once the model fits.
    """
    options = replace(options, shuffle=options.shuffle and not trainer.reads_in_order)
    if options.max_memory:
        _require_rehearsal(trainer)
    n_rows = shared_budget.n_preflight_rows(dataset, options.batch_size)
    rows = first_rows(dataset, n_rows, forgiving=options.on_bad_block != "error")
    trainer.check(rows, n_classes=class_counts(dataset, trainer.target, trainer.loss))
    on_checked()
    with ExitStack() as stack:
        with ExitStack() as rehearsal:
            # A step holds its memory for milliseconds.
            names = (*trainer.inputs, trainer.target)
            with MemoryMeter(interval_seconds=0.001) as step, naming_missing_values(dataset, rows, names):
                rehearsal.enter_context(trainer.working_memory(rows))
            del rows
            meter = stack.enter_context(MemoryMeter())
        publish_event(Reserved(held_bytes=meter.before_bytes))
        of_model = model_bytes(trainer.model, trainer.optimizer)
        taken = shared_budget.non_loader_memory(reserved_bytes, step, meter, model_bytes=of_model)
        taken = replace(taken, best_bytes=best_bytes)
        options, memory = _budget(options, dataset, val, taken)
        loaders = [stack.enter_context(loader) for loader in make_loaders(options, dataset, val, memory, taken)]
        validation = loaders[1] if len(loaders) > 1 else None
        yield SizedLoaders(training=loaders[0], validation=validation, memory_bytes=memory, taken=taken, meter=meter)


def model_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """Compute what a model, its gradients and the optimizer's state take of the memory that the CPU has."""
    if any(each.device.type != "cpu" for each in model.parameters()):
        return 0
    gradients = tensor_bytes(each for each in model.parameters() if each.requires_grad)
    return checkpoint_bytes(model, optimizer) + gradients


def _require_rehearsal(trainer: Rehearsing) -> None:
    on_host = [each for each in trainer.model.parameters() if each.device.type == "cpu" and each.requires_grad]
    given = trainer.optimizer.defaults
    n_states = 2 * given.get("history_size", 1) if "betas" in given or "history_size" in given else 1
    if not given.get("momentum", 1):
        n_states = 0
    shared_budget.require_rehearsal(tensor_bytes(on_host), n_states)


def _budget(
    options: LoaderOptions, dataset: Dataset, val: Dataset | None, taken: NonLoaderMemory
) -> tuple[LoaderOptions, int]:
    """Return the loaders' budget in bytes, and the options with the lanes that follow from it."""
    least = 1
    if options.max_memory or val is not None:
        order: dict[str, Any] = {"groups": options.groups, "shuffle": options.shuffle}
        order["lanes"] = options.lanes if options.shuffle else None
        training = smallest_budget_bytes(dataset.layout, options.batch_size, **order)
        measuring = [] if val is None else [_least_to_measure(val, options.batch_size)]
        least = budget_shares.smallest_shared_budget_bytes(training, measuring) if options.max_memory else 1
    memory = shared_budget.loader_budget_bytes(
        options.memory, options.max_memory, taken, least_bytes=least, held_now=held_bytes()
    )
    if val is not None:
        budget_shares.check_shared_memory(memory, training, measuring)
    if options.max_memory and not (options.memory or options.lanes):
        of_training = budget_shares.train_loader_bytes(memory, 1 if val else 0)
        lanes = shared_budget.steady_lanes(dataset, options.batch_size, of_training, groups=options.groups)
        return replace(options, lanes=lanes), memory
    return options, memory


def _least_to_measure(val: Dataset, batch_size: int) -> int:
    return smallest_budget_bytes(val.layout, min(batch_size, len(val)), shuffle=False)


def make_loaders(
    options: LoaderOptions,
    dataset: Dataset,
    val: Dataset | None,
    memory: int,
    taken: NonLoaderMemory | None = None,
) -> Iterator[StreamLoader]:
    """Make the training and the validation loader, within the budget of both."""
    with shared_budget.in_terms_of_process(taken if options.max_memory and not options.memory else None):
        yield from _loaders(options, dataset, val, memory)


def _loaders(options: LoaderOptions, dataset: Dataset, val: Dataset | None, memory: int) -> Iterator[StreamLoader]:
    yield StreamLoader(
        dataset,
        batch_size=options.batch_size,
        memory=budget_shares.train_loader_bytes(memory, 1 if val else 0),
        seed=options.seed,
        shuffle=options.shuffle,
        reshuffle=options.reshuffle,
        drop_last=options.drop_last,
        lanes=options.lanes if options.shuffle else None,
        groups=options.groups if options.shuffle else None,
        device=options.device,
        on_bad_block=options.on_bad_block,
    )
    if val:
        size, val_memory = min(options.batch_size, len(val)), budget_shares.eval_loader_bytes(memory)
        yield shared_budget.make_val_loader(val, size, val_memory, options.device, options.on_bad_block)


@contextmanager
def streams_of(
    trainer: Rehearsing,
    data: BatchStream | Dataset,
    val: BatchStream | Dataset | None,
    options: LoaderOptions,
    *,
    best_bytes: int = 0,
) -> Iterator[tuple[BatchStream, BatchStream | None]]:
    """Make loaders of datasets for the block; given loaders are only checked against ``max_memory``."""
    given = [data] if val is None else [data, val]
    if all(isinstance(each, Dataset) for each in given):
        datasets = cast("list[Dataset]", [*given, None])
        sizing = sized_loaders(
            trainer, datasets[0], datasets[1], options, reserved_bytes=held_bytes(), best_bytes=best_bytes
        )
        with sizing as loaders:
            yield loaders.training, loaders.validation
        return
    if any(isinstance(each, Dataset) for each in given):
        kinds = ["a dataset" if isinstance(each, Dataset) else "a loader" for each in given]
        raise UsageError(f"the training data is {kinds[0]}, and val is {kinds[1]}", fix="two loaders, or two datasets")
    streams = cast("list[BatchStream]", [*given, None])
    if replace(options, max_memory=None) != LoaderOptions(shuffle=options.shuffle, device=options.device):
        raise UsageError("a loader has its own batch_size, seed and memory", fix="leave them out, or give a dataset")
    if options.max_memory is not None:
        _check_process(streams[:-1], options.max_memory, best_bytes)
    yield streams[0], streams[1]


def _check_process(streams: list[BatchStream], max_memory: str, best_bytes: int) -> None:
    """Refuse given loaders whose plan exceeds what a process's budget leaves beside what it holds."""
    planned = sum(stream.projection.host_bytes for stream in streams if isinstance(stream, StreamLoader))
    limit = memory_limit().limit_bytes if max_memory == "auto" else parse_bytes(max_memory, name="max_memory")
    held = held_bytes() + best_bytes
    if planned + held > limit:
        raise BudgetError(
            f"max_memory is {format_bytes(limit)}; the process holds {format_bytes(held)}, and the loaders are planned "
            f"for {format_bytes(planned)} more",
            fix=Fix(Argument("max_memory", megabytes(planned + held)), " or more, or a smaller ", Argument("memory")),
        )
