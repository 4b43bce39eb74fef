"""``train --dry-run``: layers, memory, steps and time of a training that is not begun; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from streamtrain.errors import Lines
from streamtrain.loader.batch import Batch, tensor_bytes
from streamtrain.loader.quarantine import first_rows
from streamtrain.loader.shared_budget import NonLoaderMemory
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.store.dataset import Dataset
from streamtrain.system.units import format_bytes, format_duration
from streamtrain.training.run.checkpoint import checkpoint_bytes
from streamtrain.training.sized_loaders import SizedLoaders
from streamtrain.training.trainer import Trainer

_N_TIMED: Final = 10
_N_ROWS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of a model: its name, its kind, the shape of its output for a sample, and its weights."""

    name: str
    kind: str
    shape: tuple[int, ...] | None
    n_weights: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a training would take."""

    layers: tuple[Layer, ...]
    memory: dict[str, int]
    terms: dict[str, dict[str, int]]
    budget_bytes: int
    steps_per_epoch: int
    epochs: int
    n_timed: int
    timed_seconds: float
    # Of an epoch, without validation.
    epoch_seconds: float

    def result(self) -> dict[str, Any]:
        """Return everything by name, for ``--json``."""
        return {
            "layers": [
                {"name": each.name, "kind": each.kind, "shape": each.shape, "weights": each.n_weights}
                for each in self.layers
            ],
            "weights": sum(each.n_weights for each in self.layers),
            "memory": {**self.memory, "budget": self.budget_bytes, "terms": self.terms},
            "steps_per_epoch": self.steps_per_epoch,
            "timed_batches": self.n_timed,
            "timed_seconds": self.timed_seconds,
            "seconds_per_epoch": self.epoch_seconds,
            "seconds": self.epochs * self.epoch_seconds,
        }

    def text(self) -> str:
        """Write layers, memory, steps and time, a line a fact."""
        n_steps, sizes = self.steps_per_epoch, {name: format_bytes(value) for name, value in self.memory.items()}
        rows = [("layer", "kind", "shape", "weights"), *map(_row, self.layers)]
        loaders = [
            f"{name} {format_bytes(sum(terms.values()))}: "
            + " + ".join(f"{term} {format_bytes(n_bytes)}" for term, n_bytes in terms.items())
            for name, terms in self.terms.items()
        ]
        batches = f"{self.n_timed} batch{'es' * (self.n_timed != 1)}"
        return Lines.of(
            [
                "",
                *_aligned(rows),
                "",
                f"libraries  {sizes['libraries']}, whatever the model",
                f"model      {sizes['model']}: weights, gradients and the optimizer's state",
                f"one step   {sizes['step']} more, given back after each",
                f"allocators {sizes['allocators']} that they may keep over many steps",
                f"loaders    {format_bytes(self.budget_bytes)} at the most, of which",
                *(f"           {line}" for line in loaders),
                f"steps      {n_steps:,} an epoch, {self.epochs * n_steps:,} in {self.epochs} "
                f"epoch{'s' * (self.epochs != 1)}",
                f"time       {batches} in {format_duration(self.timed_seconds)}: about "
                f"{format_duration(self.epoch_seconds)} an epoch, {format_duration(self.epochs * self.epoch_seconds)} "
                "in all, without validation",
                "dry run: nothing was trained or written",
            ]
        )


def dry_run(trainer: Trainer, dataset: Dataset, loaders: SizedLoaders, epochs: int) -> DryRun:
    """Measure what a training would take: its layers by one forward pass, its time by ten batches."""
    loader = loaders.training
    layers, memory = _layers(trainer, dataset), _memory(trainer, loaders.taken)
    seconds = _timed(trainer, loader)
    n_timed, of_first, of_others = len(seconds), seconds[0], seconds[1:]
    each = sum(of_others) / len(of_others) if of_others else of_first
    names = ("training", "validation")
    steps = {"epoch": 1, "sample": min(len(dataset), len(loader) * loader.batch_size)}
    return DryRun(
        layers=layers,
        memory=memory,
        terms={name: one.projection.terms for name, one in zip(names, loaders.all, strict=False)},
        budget_bytes=loaders.memory_bytes,
        steps_per_epoch=steps.get(trainer.way.partition(",")[0].split()[0], len(loader)),
        epochs=epochs,
        n_timed=n_timed,
        timed_seconds=sum(seconds),
        epoch_seconds=of_first + each * (len(loader) - 1),
    )


def _memory(trainer: Trainer, taken: NonLoaderMemory) -> dict[str, int]:
    """Divide what a process holds beside its loaders; of a model on a device, what that holds."""
    gradients = tensor_bytes(each for each in trainer.model.parameters() if each.requires_grad)
    model = checkpoint_bytes(trainer.model, trainer.optimizer) + gradients
    return {
        "libraries": taken.libraries_bytes,
        "model": model,
        "step": taken.step_bytes,
        "allocators": taken.spare_bytes,
    }


class _FirstBatches:
    """The first batches of a loader, each timed until the next is asked for."""

    def __init__(self, loader: StreamLoader, n: int) -> None:
        self._loader = loader
        self._n = n
        self.seconds: list[float] = []
        self.ran_out_of_time = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        started = time.perf_counter()
        for batch in self._loader:
            yield batch
            now = time.perf_counter()
            self.seconds.append(now - started)
            started = now
            if len(self.seconds) == self._n:
                self.ran_out_of_time = True
                return


def _timed(trainer: Trainer, loader: StreamLoader) -> list[float]:
    """Time the first batches of a training that is thrown away."""
    first = _FirstBatches(loader, _N_TIMED)
    trainer.fit(first, max_epochs=1, progress=False)
    return first.seconds


def _layers(trainer: Trainer, dataset: Dataset) -> tuple[Layer, ...]:
    """List the layers of a model in the order in which a few rows go through them."""
    rows = first_rows(dataset, min(_N_ROWS, len(dataset)), forgiving=True)
    with _shapes_of(trainer.model) as shapes:
        trainer.check(rows)
    named = {module: name for name, module in trainer.model.named_modules()}
    own = [module for module in named if module in shapes or any(True for _ in module.parameters(recurse=False))]
    order = [module for module in shapes if module in own] + [module for module in own if module not in shapes]
    return tuple(
        Layer(
            name=named[module] or "model",
            kind=type(module).__name__,
            shape=shapes.get(module),
            n_weights=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        )
        for module in order
    )


@contextmanager
def _shapes_of(model: nn.Module) -> Iterator[dict[nn.Module, tuple[int, ...]]]:
    """Note the shape of a sample's output of each innermost module, in the order in which they run in the block."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note_shape(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[module] = tuple(output.shape[1:])

    innermost = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(note_shape) for module in innermost]
    try:
        yield shapes
    finally:
        for hook in hooks:
            hook.remove()


def _row(layer: Layer) -> tuple[str, ...]:
    shape = "–" if layer.shape is None else " × ".join(map(str, layer.shape)) or "1"
    return (layer.name, layer.kind, shape, f"{layer.n_weights:,}")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
