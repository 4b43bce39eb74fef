"""`Trainer`: a model, a loss, an optimizer and an update rule over a stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from streamtrain.errors import UsageError
from streamtrain.loader.device.resolve import resolve_device
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.loader.world import OfOneProcess
from streamtrain.models.forward import check_autocast, check_model, is_compiled, make_forward, original_model
from streamtrain.models.losses import Loss, LossFunction, resolve_loss
from streamtrain.models.normalization import NormalizedModel
from streamtrain.optim.build_rule import check_rule, make_learner, make_rule
from streamtrain.optim.optimizers import OptimizerFactory, build_optimizer
from streamtrain.optim.sample_rule import SampleRule
from streamtrain.optim.schedules import Beta1, Schedule, ScheduleFactory
from streamtrain.optim.step_options import StepOptions
from streamtrain.store.dataset import Dataset, opened
from streamtrain.system.arguments import naming_misspelt, naming_nearest
from streamtrain.system.events import RunBegan, RunEnded, publish_around
from streamtrain.system.signals import DeferredSignals, defer_signals
from streamtrain.training.batch_stream import (
    BatchStream,
    LearnedSchema,
    Rows,
    SmallBatch,
    StreamDataset,
    check_is_stream,
    check_stream,
    every_sample,
    in_stored_order,
    normalize_fields,
    schema_of_stream,
    warn_of_waiting_device,
)
from streamtrain.training.best.watch import EpochWatch, check_same_weights, make_watch
from streamtrain.training.checkpoint import load_initial_weights
from streamtrain.training.labels.reading import AS_STORED, LabelReading, label_reading
from streamtrain.training.loop import EpochLoop, EpochRecorder
from streamtrain.training.metrics import EpochSummary, History, Metrics
from streamtrain.training.preflight import check_fields, check_fit, warn_of_batch_dependent_modules, working_memory
from streamtrain.training.progress import Counts, Totals
from streamtrain.training.run_folder import NullRunFolder, Run, RunFolder
from streamtrain.training.run_state import ResumePoint, RunState, describe_run, open_run, stream_identity
from streamtrain.training.sized_loaders import LoaderOptions, streams_of

_OF_OPTIMIZERS: Final = ("momentum", "betas", "eps", "weight_decay", "nesterov")


class Trainer(OfOneProcess):
    """Train and evaluate a model on streams of batches.

    Parameters
    ----------
    model : torch.nn.Module
        Takes the inputs, (B, ...) each, and returns one tensor (B, ...). It is moved to the device.
    loss : str or callable
        ``cross_entropy``, ``nll``, ``bce_with_logits``, ``mse``, ``l1``, or (output, target) -> mean over the samples,
        or each sample's loss (B,); see `streamtrain.models.losses.resolve_loss`.
    optimizer : str, torch.optim.Optimizer or callable
        A name of ``torch.optim``, a finished optimizer, or a factory.
    lr : float, optional
        The learning rate; by default the optimizer's own (Adam 0.001), for SGD 0.1, or 0.01 with ``update="sample"``.
    update : {"batch", "sample", "epoch"}
        The update rule.
    inputs, target : tuple of str, str
        The fields that the model takes, in order, and the one that the loss compares with.
    init : path, optional
        A run's folder or a safetensors file to start from; with ``init_partial`` only some of its weights need agree.
    weight : str, optional
        The field of the samples' weights, one number of at least 0 per sample: J and the metrics are weighted means;
        `streamtrain.optim.rules` has their effect on a step on one sample.
    normalize : None, "auto", or mapping of str to torch.nn.Module
        Normalization before the model: none, so that nothing is rescaled or cast; by the training data's stored
        statistics; or by a module for each named input.
    device : str or torch.device
        ``"auto"`` is CUDA where there is any, else the CPU.
    accumulate_grad_batches : int
        Batches of one step of the rule ``batch``; those left at an epoch's end make a step of their own.
    grad_sum_dtype : {"float64", "compensated", "float32"}
        Precision of gradient sums, by the rule ``epoch`` and over accumulated batches; see
        `streamtrain.optim.gradient_sum`.
    sample_path : {"auto", "plain", "fast"}
        How the rule ``sample`` takes its steps: by the plain loop, or several times as fast and the same to rounding
        where the model, loss and optimizer are known to `streamtrain.optim.sample_fast_path`; ``"auto"`` is fast where
        it can be. A resumed run keeps its path.
    clip_grad_norm, clip_grad_value : float, optional
        Limits of a step's gradient; see `streamtrain.optim.gradients.Clipping`.
    schedule : str, Schedule or callable, optional
        How the learning rate changes: a name of torch's schedulers, or more; see `streamtrain.optim.schedules`.
    beta1 : str or callable, optional
        How β₁ of Adam changes, a function of the step, ``"linear:LAST"`` or ``"exponential:FACTOR"``.
    autocast : str or torch.dtype, optional
        ``"bfloat16"``, or ``"bf16"``: the dtype of the operations for which `torch.autocast` deems it precise enough.
    compile : bool
        Whether `torch.compile` compiles the model.
    l2 : float
        J has l2/2 times the sum of the squared weights (not biases) as a penalty.
    on_step : callable, optional
        Called after every step, without arguments, with the new weights in place. It may change anything, for example
        step a custom scheduler, so the rule ``sample`` takes the plain path with it.
    grad_tolerance, loss_tolerance : float, optional
        End a run with ``lbfgs`` or ``cg`` when the norm of J's gradient is at most the first, or after a step that
        lowers J by at most the second, relative to J where that is above 1.
    momentum, betas, eps, weight_decay, nesterov, **optimizer_options
        Options of the named optimizer; None leaves its default.

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

    _instead = "train on, and hand over its model or its checkpoints"

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
        init: str | Path | None = None,
        init_partial: bool = False,
        weight: str | None = None,
        normalize: Literal["auto"] | Mapping[str, nn.Module] | None = None,
        device: str | torch.device = "auto",
        accumulate_grad_batches: int = 1,
        grad_sum_dtype: str = "float64",
        sample_path: str = "auto",
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        schedule: str | Schedule | ScheduleFactory | None = None,
        beta1: str | Beta1 | None = None,
        autocast: str | torch.dtype | None = None,
        compile: bool = False,
        l2: float = 0.0,
        on_step: Callable[[], None] | None = None,
        grad_tolerance: float | None = None,
        loss_tolerance: float | None = None,
        momentum: float | None = None,
        betas: tuple[float, ...] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        nesterov: bool | None = None,
        **optimizer_options: object,
    ) -> None:
        # StepOptions takes the arguments by their names.
        given = locals()
        check_rule(update)
        check_model(model)
        self._options = StepOptions.of(given | {"compile": is_compiled(model) or compile})
        self.inputs, self.target, self.weight = check_fields(inputs, target, weight), target, weight
        self.device = resolve_device(device)
        self.model = model.to(self.device)
        load_initial_weights(self.model, init, partial=init_partial)
        self.loss = resolve_loss(loss)
        of_optimizer = optimizer_options | {name: given[name] for name in _OF_OPTIMIZERS}
        with naming_misspelt(optimizer_options, type(self)):
            self.optimizer = build_optimizer(optimizer, model.parameters(), lr=lr, update=update, **of_optimizer)
        forward = make_forward(model, device=self.device, autocast=check_autocast(autocast), compiled=compile)
        # A checkpoint has the names of the model itself, compiled or not.
        self._normalized_model = NormalizedModel(original_model(model), self.inputs, forward)
        self._learner = make_learner(self._normalized_model, self.loss, self.optimizer, self._options)
        self._rule = make_rule(update, self._learner, self._options)
        self._watch: EpochWatch | None = None
        self._schema = LearnedSchema()
        self._begin_normalizing(normalize)
        self._epoch_loop = EpochLoop(
            self._learner, self._rule, device=self.device, inputs=self.inputs, target=target, weight=weight
        )

    def _begin_normalizing(self, normalize: Literal["auto"] | Mapping[str, nn.Module] | None) -> None:
        self._awaits_statistics = isinstance(normalize, str) and normalize == "auto"
        if isinstance(normalize, Mapping):
            self._normalized_model.put(normalize, self.device)
        elif normalize is not None and not self._awaits_statistics:
            raise UsageError(f"normalize is {normalize!r}", fix="None, 'auto', or a mapping of input to module")

    def __repr__(self) -> str:
        parts = type(self.model).__name__, self.loss.name, self.way, type(self.optimizer).__name__
        return f"Trainer({', '.join(parts)}, on {self.device}, {self.counts.n_steps} steps)"

    @property
    def way(self) -> str:
        """The update rule, and how it takes its steps."""
        return self._rule.way

    @property
    def reads_in_order(self) -> bool:
        """Whether passes are in stored order, since the order makes no difference to the update rule."""
        return self._rule.in_stored_order

    @property
    def counts(self) -> Counts:
        """Epochs, batches, steps and samples so far."""
        return self._epoch_loop.counts

    @naming_nearest
    def fit(
        self,
        loader: BatchStream | Dataset | str | Path,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        until_loss: float | None = None,
        monitor: str | None = None,
        monitor_mode: str | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        restore_best: bool = False,
        val: BatchStream | Dataset | str | Path | None = None,
        batch_size: int = 256,
        seed: int = 0,
        memory: str | None = None,
        max_memory: str | None = None,
        checkpoint: str | Path | RunFolder | None = None,
        checkpoint_every: int | None = None,
        on_checkpoint_failure: str = "error",
        resume: Literal["auto"] | None = None,
        log_every: int = 50,
        progress: bool | None = None,
        on_epoch: Callable[[EpochSummary], None] | None = None,
        on_resume: Callable[[ResumePoint], None] | None = None,
    ) -> History:
        """Train until a total of epochs or steps is reached, whichever comes first.

        Parameters
        ----------
        loader : StreamLoader, Dataset or path
            The training data. Its seed is also that of dropout and the like. A loader is made for a dataset.
        max_epochs, max_steps : int, optional
            Totals since the trainer was made, so that a second call continues; at least one must be given. An epoch
            that ``max_steps`` cuts short does not count: the next call continues inside it, and a run in slices has the
            result of the whole. Until it ends, schedules of epochs ignore it, and it is not the best.
        until_loss : float, optional
            End after the epoch whose loss, on ``val`` where there is one, is at most this; the history reports whether
            it was ``reached``.
        monitor, monitor_mode : str, optional
            The metric that says which epoch is best, by default ``"val_loss"`` where there is ``val``; ``"min"`` or
            ``"max"`` for a metric of your own. The best checkpoint is kept, and `History.best` names it.
        patience, min_delta : int and float, optional
            End after this many epochs in a row in which the monitor did not improve by more than ``min_delta``.
        restore_best : bool
            Whether the model ends with the weights of the best epoch, whatever ends the run, and not with the last. A
            further call needs ``resume="auto"`` then. Without a run folder a copy is kept in CPU memory.
        val : StreamLoader, Dataset or path, optional
            Measured after every epoch, and where ``max_steps`` cuts one short.
        batch_size, seed, memory : optional
            Options of loaders made for datasets; both share ``memory``, by default 512 MB or what is left.
        max_memory : str, optional
            The budget of the whole process, of which loaders made here get what training leaves; ``"auto"`` is what the
            machine allows. Given loaders are only compared with it.
        checkpoint : path, optional
            The run's folder: ``config.json``, ``metrics.jsonl`` and checkpoints, one after every epoch. Ctrl-C and
            SIGTERM then end the run after the current step, saved; a second one ends it at once.
        checkpoint_every : int, optional
            Batches between further checkpoints inside an epoch.
        on_checkpoint_failure : {"error", "warn"}
            Whether a checkpoint that cannot be written ends the run, or is warned of and counted.
        resume : {None, "auto"}
            None requires an empty folder; ``"auto"`` resumes from the newest whole checkpoint there, bit for bit, or
            starts afresh where there is none.
        log_every : int
            Batches between two lines of ``metrics.jsonl``.
        progress : bool, optional
            Whether to show a bar on stderr; by default where that is a terminal.
        on_epoch : callable, optional
            Called with the summary of every finished epoch.
        on_resume : callable, optional
            Called under ``resume`` with the resume point, before training starts.

        Raises
        ------
        UsageError
            The model does not fit the data, ``val`` has other columns or classes, or an argument is wrong.
        InputError
            A sample's weight is negative or not finite, or all of them are 0.
        DivergedError
            A loss or a gradient is not finite. Epoch, step, samples and the last checkpoint are named; no step was
            taken with it.
        DeviceError
            The device is out of memory; the message has the batch size that would fit.
        CheckpointError
            The checkpoint is of another run; every difference is named.
        ResourceError
            A checkpoint could not be written; the newest whole one is named.
        LockedError
            Another process, or another call of `fit`, trains in the checkpoint's folder.
        Interrupted
            A `KeyboardInterrupt`: a signal came, and the run is saved.
        """
        check_fit(resume=resume, progress=progress, restore_best=restore_best, on_epoch=on_epoch, on_resume=on_resume)
        totals = Totals(max_epochs=max_epochs, max_steps=max_steps)
        check_same_weights(self._watch, resumes=resume is not None)
        limits = {"until_loss": until_loss, "patience": patience, "min_delta": min_delta}
        restored = original_model(self.model) if restore_best else None
        kept: dict[str, Any] = {"restored": restored, "copies": checkpoint is None}
        watch = make_watch(self.loss, (monitor, monitor_mode), has_val=val is not None, limits=limits, **kept)
        saving = {"every": checkpoint_every, "on_failure": on_checkpoint_failure}
        options = LoaderOptions(
            batch_size=batch_size, seed=seed, memory=memory, max_memory=max_memory, device=str(self.device)
        )
        data: BatchStream | Dataset = opened(loader)
        validation: BatchStream | Dataset | None = opened(val)
        if isinstance(data, Dataset):
            self._prepare(data)
        with streams_of(self, data, validation, options, best_bytes=watch.copy_bytes) as streams:
            recording = partial(EpochRecorder, self.loss, log_every=log_every, progress=progress)
            return self._fit(*streams, totals, watch, checkpoint, resume, saving, recording, on_epoch, on_resume)

    def _fit(
        self,
        loader: BatchStream,
        val: BatchStream | None,
        totals: Totals,
        watch: EpochWatch,
        checkpoint: str | Path | RunFolder | None,
        resume: Literal["auto"] | None,
        saving: dict[str, Any],
        recording: Callable[..., EpochRecorder],
        on_epoch: Callable[[EpochSummary], None] | None,
        on_resume: Callable[[ResumePoint], None] | None,
    ) -> History:
        self._begin(loader, val, totals, watch.mode)
        summaries: list[EpochSummary] = []
        streams = (stream_identity(loader), None if val is None else stream_identity(val))
        with (
            open_run(checkpoint, self.describe(loader), resumes=resume is not None) as run,
            watch.over(streams, run, lambda: self.counts, before=self._watch),
            in_stored_order(loader) if self._rule.in_stored_order else nullcontext(loader) as stream,
            nullcontext(val) if val is None else in_stored_order(val) as measured,
            self._told(),
            nullcontext(DeferredSignals()) if isinstance(run, NullRunFolder) else defer_signals() as interrupts,
        ):
            run_state = self._run_state(run, stream, loader, watch, **saving)
            restored = run_state.restore(is_over=totals.reached_by, tell=on_resume) if resume else None
            self._epoch_loop.resume(stream, restored)
            self._watch = watch
            resumed_from_batch = self.counts.n_batches if resume else 0
            while not (self._epoch_loop.is_cut or totals.reached_by(self.counts) or watch.ended_by(self._rule)):
                recorder = recording(stream, run, epoch=self.counts.n_epochs + 1)
                batches = self._epoch_loop.train(stream, recorder, totals)
                with recorder, closing(batches), run_state.name_checkpoint_on_divergence():
                    for place in batches:
                        if run_state.is_due(self.counts) or interrupts.number is not None:
                            interrupts.stop_if_asked(run_state.save(self.counts, place()))
                summary = recorder.summary(self.counts, partial=self._epoch_loop.is_cut)
                summaries.append(self._end_epoch(summary, measured, watch, run, on_epoch))
                interrupts.stop_if_asked(run_state.save(self.counts, self._epoch_loop.inside))
            if self.counts == Counts():
                run_state.save(self.counts)
        return History(
            epochs=tuple(summaries),
            counts=self.counts,
            resumed_from_batch=resumed_from_batch,
            checkpoint_failures=run_state.n_failed,
            unsaved=run_state.unsaved,
            reached=watch.stopping.reached,
            stopped_by=watch.ended_by(self._rule) or totals.name_reached_by(self.counts),
            best=watch.best,
        )

    def _begin(self, loader: BatchStream, val: BatchStream | None, totals: Totals, best: str | None) -> None:
        """Prepare a run: check the stream, learn its schema and statistics, set up the schedules."""
        check_stream(loader, self._rule.name)
        warn_of_waiting_device(loader, self.device, self._rule.name, stacklevel=6)
        warn_of_batch_dependent_modules(self.model, self._rule.spans)
        self._schema.learn(loader, val, self._epoch_loop.fields, anew=self.counts == Counts())
        self._prepare(loader.dataset)
        self._epoch_loop.begin(loader, val, totals, best)

    def _end_epoch(
        self,
        summary: EpochSummary,
        val: BatchStream | None,
        watch: EpochWatch,
        run: Run,
        on_epoch: Callable[[EpochSummary], None] | None,
    ) -> EpochSummary:
        """Finish an epoch: validation, the best and early stopping, the line of metrics, the caller's function."""
        if val is not None:
            summary = replace(summary, val=self.evaluate(val))
        if not summary.partial:
            value = watch.look(summary, is_fresh=self._rule.is_fresh)
            if self._learner.schedules is not None:
                self._learner.schedules.after_epoch(value)
        run.log(kind="epoch", **summary.named())
        if on_epoch is not None and not summary.partial:
            on_epoch(summary)
        return summary

    def evaluate(self, loader: BatchStream | Dataset | str | Path) -> Metrics:
        """Measure loss and score over a stream, each sample once, in stored order; nothing is changed.

        This holds for any stream, also for one that drops the last batch or stands inside an epoch. Only samples in
        ``quarantined`` blocks are left out, which shows in the metrics' ``n_samples``.

        Raises
        ------
        UsageError
            The model does not fit the data, still needs the statistics of its training data, or was trained on other
            columns or classes.
        DeviceError
            The device is out of memory; the message has the batch size that would fit.
        """
        if self._awaits_statistics:
            raise UsageError(
                "normalize='auto' takes the statistics of the training data, and there was none yet",
                fix="fit first, or give the modules themselves",
            )
        data: BatchStream | Dataset = opened(loader)
        if isinstance(data, Dataset):
            with StreamLoader(data, shuffle=False, device=self.device) as whole:
                return self.evaluate(whole)
        check_is_stream(data)
        self._read_labels(data.dataset)
        self._schema.check(data, self._epoch_loop.fields)
        with every_sample(data) as stream:
            return self._epoch_loop.measure(stream)

    def check(
        self, rows: Rows, *, n_classes: int | range | None = None, small: Sequence[SmallBatch] = (), trains: bool = True
    ) -> None:
        """Run a few rows forward and backward, and refuse a model that does not fit; nothing is changed."""
        counts = range(n_classes, n_classes + 1) if isinstance(n_classes, int) else n_classes
        self._epoch_loop.check(self._epoch_loop.on_device(rows), counts, small, trains=trains)

    def working_memory(self, rows: Rows) -> AbstractContextManager[None]:
        """Hold the memory that a step on these rows takes while the block runs; nothing is changed.

        A `MemoryMeter` begun inside the block then measures memory above that.
        """
        batch = self._epoch_loop.on_device(rows)
        options = self._options
        if isinstance(self._rule, SampleRule):
            options = replace(options, sample_path=self._rule.choice.path)
        make = partial(make_rule, self._rule.name, options=options)
        # A rehearsed step is not counted, scheduled or reported.
        learner = replace(self._learner, schedules=None, on_step=None)
        return working_memory(make, learner, batch)

    def read_labels(self, reading: LabelReading) -> None:
        """Give the loss what is read of the labels in this way, in training and evaluation."""
        self._epoch_loop.reading = reading

    def begin_epoch_anew(self) -> None:
        """Forget an epoch that was cut short: the next call of `fit` starts it over, on any stream."""
        self._epoch_loop.begin_epoch_anew()

    def describe(self, loader: BatchStream) -> dict[str, object]:
        """Describe what this trainer does with a stream, as ``config.json`` holds it."""
        fields = {"inputs": list(self.inputs), "target": self.target, "weight": self.weight}
        return describe_run(
            self._rule, self._normalized_model, loader, fields | self._options.describe(self._learner.schedules)
        )

    def _prepare(self, data: StreamDataset) -> None:
        if self._awaits_statistics:
            self._normalized_model.put(normalize_fields(data, self.inputs), self.device)
            self._awaits_statistics = False
        self._read_labels(data)

    def _read_labels(self, data: StreamDataset) -> None:
        """Number classes as the data that came first does."""
        if self._epoch_loop.reading is AS_STORED:
            self._epoch_loop.reading = label_reading(data, self.target, self.loss)

    def _told(self) -> AbstractContextManager[None]:
        began = RunBegan(update=self._rule.name)
        return publish_around(began, lambda: RunEnded(n_steps=self.counts.n_steps, n_samples=self.counts.n_samples))

    def _run_state(
        self, run: Run, stream: BatchStream, loader: BatchStream, watch: EpochWatch, **when: Any
    ) -> RunState:
        parts: dict[str, Any] = {"rule": self._rule, "front": self._normalized_model, "device": self.device}
        parts |= {"watch": watch, "schema": schema_of_stream(loader)}
        return RunState(run, stream=stream, identity=self.describe(loader), **parts, **when)
