"""The trainer: a model, a loss, an optimizer and an update rule, over a stream of batches.

`Trainer.fit` is the loop. What comes before it (does the model fit the data?), beside it (metrics, the run's folder,
the progress bar) and inside it (what a step is) live in rooms of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from streamtrain.checkpoint import NoRun, Run, RunFolder
from streamtrain.counts import Counts, Totals
from streamtrain.device import resolve_device, room_for_a_step
from streamtrain.errors import DivergedError, UsageError, unknown_name
from streamtrain.events import RunBegan, RunEnded, between
from streamtrain.losses import Loss, LossFunction, resolve_loss
from streamtrain.metrics import EpochSummary, History, Metrics, RunningMetrics
from streamtrain.normalize import Front
from streamtrain.optim import OptimizerFactory, build_optimizer
from streamtrain.recorder import EpochRecorder
from streamtrain.rehearsal import Batch, check_fit, check_width, same_mode, working_memory
from streamtrain.rules import RULES, Learner, check_rule
from streamtrain.seeding import seeded_random
from streamtrain.stream import Data, Stream, check_stream, fields_on, in_stored_order, normalize_fields

Rows = Mapping[str, npt.NDArray[Any]]
"""Field name -> array (n_rows, ...), as ``dataset[0:n_rows]`` gives them."""

_CHECKED_ROWS: Final = 8
_JSON: Final = (bool, int, float, str, tuple, list)


class Trainer:
    """Train and evaluate a model on streams of batches.

    Parameters
    ----------
    model : torch.nn.Module
        Takes the inputs, (B, ...) each, and returns one tensor (B, ...). It is moved to the device.
    loss : str or callable
        ``cross_entropy``, ``nll``, ``bce_with_logits``, ``mse``, ``l1``, or (output, target) -> mean over the samples.
    optimizer : str, torch.optim.Optimizer or callable
        A name of ``torch.optim``, a finished optimizer, or a factory; see `streamtrain.optim.build_optimizer`.
    lr : float, optional
        The learning rate; by default the optimizer's own (Adam 0.001), for SGD 0.1, or 0.01 with ``update="sample"``.
    update : {"batch", "sample", "epoch"}
        The update rule.
    inputs : tuple of str
        The fields that the model takes, in order.
    target : str
        The field that the loss compares with.
    normalize : None, "auto", or mapping of str to torch.nn.Module
        What stands before the model: nothing, so that nothing is rescaled or cast; the training data's stored
        statistics; or a module for an input of that name.
    device : str or torch.device
        ``"auto"`` is CUDA where there is any, else the CPU.
    **options
        What the named optimizer takes: ``momentum``, ``betas``, ``eps``, ``weight_decay``, ``nesterov``, ...

    Attributes
    ----------
    counts : Counts
        Epochs, batches, steps and samples so far.

    Raises
    ------
    UsageError
        A name is unknown, or an argument is out of its range.
    DeviceError
        The device is not there.

    Examples
    --------
    >>> trainer = Trainer(nn.Linear(4, 2), loss="cross_entropy", optimizer="sgd", momentum=0.9)
    >>> trainer.optimizer.defaults["lr"], trainer.counts.n_steps
    (0.1, 0)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str | LossFunction | Loss,
        optimizer: str | Optimizer | OptimizerFactory = "adam",
        lr: float | None = None,
        update: str = "batch",
        inputs: tuple[str, ...] | str = ("x",),
        target: str = "y",
        normalize: Literal["auto"] | Mapping[str, nn.Module] | None = None,
        device: str | torch.device = "auto",
        **options: object,
    ) -> None:
        check_rule(update)
        if not isinstance(model, nn.Module):
            raise UsageError(f"model is {model!r}, not a torch.nn.Module", fix="models.build_model makes one by name")
        # A lone name in place of a tuple is a tuple of letters to Python.
        self.inputs = tuple([inputs] if isinstance(inputs, str) else inputs)
        self.target = target
        self.device = resolve_device(device)
        self.model = model.to(self.device)
        self.loss = resolve_loss(loss)
        self.optimizer = build_optimizer(optimizer, model.parameters(), lr=lr, update=update, **options)
        self.counts = Counts()
        self._front = Front(model, self.inputs)
        self._learner = Learner(model=self._front, loss=self.loss, optimizer=self.optimizer)
        self._rule = RULES[update](self._learner)
        self._awaits_statistics = normalize == "auto"
        if isinstance(normalize, Mapping):
            self._put_before(normalize)
        elif normalize not in (None, "auto"):
            raise UsageError(f"normalize is {normalize!r}", fix="None, 'auto', or a mapping of input to module")
        self._is_checked = False

    def fit(
        self,
        loader: Stream,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        val: Stream | None = None,
        out: str | Path | RunFolder | None = None,
        log_every: int = 50,
        progress: bool | None = None,
        on_epoch: Callable[[EpochSummary], None] | None = None,
    ) -> History:
        """Train until a total of epochs or steps is reached, whichever comes first.

        Parameters
        ----------
        loader : StreamLoader
            The training data. Its seed is also that of dropout and the like.
        max_epochs, max_steps : int, optional
            Totals since the trainer was made, so that a second call goes on; at least one must be given. An epoch that
            ``max_steps`` cuts short counts as one.
        val : StreamLoader, optional
            Measured after every epoch.
        out : path, optional
            The run's folder: ``config.json``, ``metrics.jsonl`` and the final weights; nothing may be there yet.
        log_every : int
            Batches between two lines of ``metrics.jsonl``.
        progress : bool, optional
            Whether to show a bar on stderr; by default where that is a terminal.
        on_epoch : callable, optional
            Called with every epoch's summary.

        Raises
        ------
        UsageError
            The model does not fit the data, or an argument is wrong.
        DivergedError
            A loss is not finite; epoch, step and batch are named, and no step was taken on it.
        DeviceError
            The device is out of memory; the message has the batch size that would fit.
        """
        totals = Totals(max_epochs=max_epochs, max_steps=max_steps)
        check_stream(loader, self.model, self._rule.name)
        self._prepare(loader.dataset)
        summaries: list[EpochSummary] = []
        with self._run_at(out, loader) as run, self._ordered(loader) as stream, self._told():
            while not totals.reached_by(self.counts):
                recorder = EpochRecorder(
                    self.loss, stream, run, log_every=log_every, epoch=self.counts.n_epochs + 1, progress=progress
                )
                with recorder, self._located(stream):
                    self._fit_epoch(stream, recorder, totals)
                summary = recorder.summary(self.counts)
                if val is not None:
                    summary = replace(summary, val=self.evaluate(val))
                run.log(kind="epoch", **summary.named())
                summaries.append(summary)
                if on_epoch is not None:
                    on_epoch(summary)
            run.save(self.counts.n_batches, self.model, self._front.modules_by_input())
        return History(epochs=tuple(summaries), counts=self.counts)

    def _fit_epoch(self, stream: Stream, recorder: EpochRecorder, totals: Totals) -> None:
        epoch = self.counts.n_epochs
        stream.set_epoch(epoch)
        self._front.train()
        with seeded_random(stream.seed, epoch, device=self.device):
            for batch in stream:
                started = time.perf_counter()
                fields = self._on_device(batch)
                recorder.copied(time.perf_counter() - started)
                self._check_first(fields, stream.dataset.n_classes)
                learned = self._rule.learn(self._inputs_of(fields), fields[self.target], totals.max_steps)
                self.counts = self.counts.after_batch(n_steps=self._rule.n_steps, n_samples=learned.n_samples)
                recorder.add(learned, self.counts)
                if totals.steps_reached_by(self.counts):
                    break
            self._rule.end_epoch()
        self.counts = self.counts.after_epoch(n_steps=self._rule.n_steps)

    def evaluate(self, loader: Stream) -> Metrics:
        """Measure loss and score over a stream, each sample once, in stored order; nothing is changed.

        Raises
        ------
        UsageError
            The model does not fit the data, or it awaits the statistics of its training data.
        DeviceError
            The device is out of memory; the message has the batch size that would fit.
        """
        if self._awaits_statistics:
            raise UsageError(
                "normalize='auto' takes the statistics of the training data, and there was none yet",
                fix="fit first, or give the modules themselves",
            )
        running = RunningMetrics(self.loss)
        with in_stored_order(loader) as stream, same_mode(self._front), self._located(stream):
            for batch in stream:
                fields = self._on_device(batch)
                self._check_first(fields, None)
                self._front.eval()
                with torch.no_grad():
                    output = self._front(*self._inputs_of(fields))
                    check_width(self._learner, output, fields, loader.dataset.n_classes, may_be_wider=True)
                    running.add(self.loss(output, fields[self.target]).item(), output, fields[self.target])
        return running.mean()

    def check(self, rows: Rows, *, n_classes: int | None = None) -> None:
        """Run a few rows forward and backward, and say in a few lines what does not fit; nothing is changed.

        Raises
        ------
        UsageError
            The model does not fit the data.
        """
        self._check_first(self._on_device(rows), n_classes)

    def working_memory(self, rows: Rows) -> AbstractContextManager[None]:
        """Hold the memory that a step on these rows takes while the block runs; nothing is changed.

        A `MemoryMeter` begun inside the block then measures what comes on top of the model.
        """
        batch = self._on_device(rows)
        return working_memory(type(self._rule), self._learner, batch, inputs=self.inputs, target=self.target)

    def describe(self, loader: Stream) -> dict[str, object]:
        """What this trainer does with a stream, as ``config.json`` holds it."""
        defaults = {name: value for name, value in self.optimizer.defaults.items() if isinstance(value, _JSON)}
        return {
            "model": type(self.model).__name__,
            "loss": self.loss.name,
            "update": self._rule.name,
            "optimizer": {"name": type(self.optimizer).__name__, **defaults},
            "inputs": list(self.inputs),
            "target": self.target,
            "normalize": sorted(self._front.modules_by_input()),
            "batch_size": loader.batch_size,
            "drop_last": loader.drop_last,
            "seed": loader.seed,
            "n_samples": len(loader.dataset),
        }

    def _prepare(self, data: Data) -> None:
        if self._awaits_statistics:
            self._put_before(normalize_fields(data, self.inputs))
            self._awaits_statistics = False

    def _put_before(self, modules: Mapping[str, nn.Module]) -> None:
        for name in modules:
            if name not in self.inputs:
                raise unknown_name("input", name, self.inputs)
        self._front.put({name: module.to(self.device) for name, module in modules.items()})

    def _told(self) -> AbstractContextManager[None]:
        return between(
            RunBegan(update=self._rule.name),
            lambda: RunEnded(n_steps=self.counts.n_steps, n_samples=self.counts.n_samples),
        )

    def _run_at(self, out: str | Path | RunFolder | None, loader: Stream) -> Run:
        if out is None:
            return NoRun()
        return out if isinstance(out, RunFolder) else RunFolder(Path(out), self.describe(loader))

    def _ordered(self, loader: Stream) -> AbstractContextManager[Stream]:
        return in_stored_order(loader) if self._rule.in_stored_order else nullcontext(loader)

    def _on_device(self, batch: Any) -> dict[str, Tensor]:
        return fields_on(self.device, batch, (*self.inputs, self.target))

    def _inputs_of(self, fields: Batch) -> tuple[Tensor, ...]:
        return tuple(fields[name] for name in self.inputs)

    def _check_first(self, fields: Batch, n_classes: int | None) -> None:
        if not self._is_checked:
            n_rows = 1 if self._rule.name == "sample" else _CHECKED_ROWS
            few = {name: tensor[:n_rows] for name, tensor in fields.items()}
            check_fit(self._learner, few, inputs=self.inputs, target=self.target, n_classes=n_classes)
            self._is_checked = True

    @contextmanager
    def _located(self, stream: Stream) -> Iterator[None]:
        """Say where in the run an error struck, and of a device without room what would fit."""
        try:
            with room_for_a_step(self.device, batch_size=stream.batch_size, optimizer=self.optimizer):
                yield
        except DivergedError as error:
            error.where = f"epoch {self.counts.n_epochs + 1}, step {self._rule.n_steps + 1}"
            raise
