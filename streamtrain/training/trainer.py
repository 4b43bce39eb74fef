"""`Trainer`: a model, a loss, an optimizer and an update rule over a stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from streamtrain.loader.decode.delivery import Decode
from streamtrain.loader.decode.image_dataset import decode_to_measure, opened_with_images
from streamtrain.loader.device.resolve import resolve_device
from streamtrain.loader.quarantine import telling_of_quarantine
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.forward import check_autocast, is_compiled, make_forward, original_model
from streamtrain.models.losses import Loss, LossFunction, resolve_loss
from streamtrain.models.normalization import NormalizedModel
from streamtrain.optim.build_rule import check_rule, make_learner, make_rule
from streamtrain.optim.optimizers import OptimizerFactory, build_optimizer
from streamtrain.optim.ranks.exchange import Exchange
from streamtrain.optim.sample_rule import SampleRule
from streamtrain.optim.schedules import Beta1, Schedule, ScheduleFactory
from streamtrain.optim.step_options import StepOptions
from streamtrain.store.dataset import Dataset
from streamtrain.system.calls.public import naming_misspelt, public, public_explaining, refuse_other_names
from streamtrain.system.display.progress_bar import RunProgress
from streamtrain.system.events import RunBegan, RunEnded, publish_around
from streamtrain.training.batch_stream import (
    BatchStream,
    Rows,
    SmallBatch,
    check_stream,
    every_sample,
    in_stored_order,
    schema_of_stream,
    warn_of_waiting_device,
)
from streamtrain.training.best.watch import EpochWatch, check_same_weights, make_watch
from streamtrain.training.fitting import FitPlan, Fitting, trainer_line
from streamtrain.training.inference.given_batches import GivenBatches, arrays_given, check_can_train, is_stream
from streamtrain.training.inference.predicts import PredictsInTraining
from streamtrain.training.initial_weights import load_initial_weights
from streamtrain.training.labels.class_weights import ClassWeight
from streamtrain.training.labels.from_data import is_known
from streamtrain.training.labels.learned import LearnedData
from streamtrain.training.labels.targets import TargetOptions
from streamtrain.training.loop import EpochLoop
from streamtrain.training.metrics.results import Metrics
from streamtrain.training.metrics.user import UserMetric
from streamtrain.training.preflight import check_fields, check_fit, warn_of_batch_dependent_modules, working_memory
from streamtrain.training.progress import Counts, Totals
from streamtrain.training.ranks import check_ranks, exchange_over, join_ranks, shown
from streamtrain.training.records.history import EpochSummary, History
from streamtrain.training.records.recorder import EpochRecorder
from streamtrain.training.run.run_description import describe_run, stream_identity
from streamtrain.training.run.run_folder import Run, RunFolder
from streamtrain.training.run.run_state import ResumePoint, RunState, open_run
from streamtrain.training.sized_loaders import LoaderOptions, streams_of

_OF_OPTIMIZERS: Final = ("momentum", "betas", "eps", "weight_decay", "nesterov")


class Trainer(PredictsInTraining):
    """Train and evaluate a model on streams of batches.

    Parameters
    ----------
    model : torch.nn.Module or str
        Takes the inputs, (B, ...) each, and returns one tensor (B, ...). It is moved to the device. By a name (``mlp``,
        ``linear``, ``cnn``, ``FILE.py:NAME``) it is made when `fit` knows the data, with ``model_args``, from its seed.
    loss : str or callable, optional
        ``cross_entropy``, ``nll``, ``bce_with_logits``, ``mse``, ``l1``, or (output, target) -> mean over the samples,
        or each sample's loss (B,); see `streamtrain.models.losses.resolve_loss`. By default that of the task.
    task : {"classification", "multilabel", "regression"}, optional
        How labels are read; by default as `Dataset.task` says.
    ignore_label : int, optional
        A label that is not a class.
    optimizer : str, torch.optim.Optimizer or callable
        A name of ``torch.optim``, a finished optimizer, or a factory.
    lr : float, optional
        The learning rate; by default the optimizer's own (Adam 0.001), for SGD 0.1, or 0.01 with ``update="sample"``.
    update : {"batch", "sample", "epoch"}
        The update rule.
    inputs, target : tuple of str, str
        The fields that the model takes, in order (by default ``x``), and the one that the loss compares with.
    init : path, optional
        A run's folder or a safetensors file to start from; with ``init_partial`` only some of its weights need agree.
    weight : str, optional
        The field of the samples' weights, one number of at least 0 per sample: J and the metrics are weighted means;
        `streamtrain.optim.rules` describes their effect on a step on one sample.
    normalize : None, "auto", "imagenet", or mapping of str to torch.nn.Module
        Normalization before the model: none, so that nothing is rescaled or cast; by the training data's stored
        statistics; of images by the figures of ImageNet; or by a module for each named input.
    normalize_target : None or "auto"
        ``"auto"`` gives the losses mse, l1 and huber the targets as (y - mean) / std of the training data: J is in
        these units, every other metric in the data's own.
    class_weight : "balanced" or mapping of class to float, optional
        Weights of classes, in the loss alone: ``"balanced"`` is N / (K n) for n of N samples; one not given has 1.
    metrics : mapping of str to metric, optional
        Further metrics of each epoch: objects with ``update(prediction, target)``, ``compute()`` and ``reset()``. A
        prediction is the model's output (B, ...), of a regression in the data's units.
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
        ``"bfloat16"``, or ``"bf16"``: the dtype of the operations for which `torch.autocast` finds it precise enough.
    compile : bool
        Whether `torch.compile` compiles the model.
    l2 : float
        Adds l2/2 times the sum of the squared weights (not biases) to J.
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

    _instead = "train here, and pass its model or its checkpoints"
    _watch: EpochWatch | None = None
    _exchange: Exchange | None = None

    @public
    def __init__(
        self,
        model: nn.Module | str,
        *,
        loss: str | LossFunction | Loss | None = None,
        task: str | None = None,
        ignore_label: int | None = None,
        model_args: Mapping[str, object] | None = None,
        optimizer: str | Optimizer | OptimizerFactory = "adam",
        lr: float | None = None,
        update: str = "batch",
        inputs: tuple[str, ...] | str | None = None,
        target: str = "y",
        init: str | Path | None = None,
        init_partial: bool = False,
        weight: str | None = None,
        normalize: Literal["auto", "imagenet"] | Mapping[str, nn.Module] | None = None,
        normalize_target: Literal["auto"] | None = None,
        class_weight: ClassWeight | None = None,
        metrics: Mapping[str, UserMetric] | None = None,
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
        given = locals()
        refuse_other_names(optimizer_options, type(self))
        check_rule(update)
        self.target, self.weight, self.device = target, weight, resolve_device(device)
        fields = check_fields(("x",) if inputs is None else inputs, target, weight)
        given["inputs"] = None if inputs is None else fields
        if is_known(given):
            self._build(given)
        else:
            self._given = given

    def _build(self, given: Mapping[str, Any]) -> None:
        model, update, others = given["model"], given["update"], given["optimizer_options"]
        # StepOptions takes the arguments by their names.
        self._options = StepOptions.of({**given, "compile": is_compiled(model) or given["compile"]})
        self.inputs = ("x",) if given["inputs"] is None else given["inputs"]
        self.model = model.to(self.device)
        load_initial_weights(self.model, given["init"], partial=given["init_partial"])
        self.loss = resolve_loss(given["loss"], ignore_index=given["ignore_label"])
        of_optimizer = others | {name: given[name] for name in ("lr", "update", *_OF_OPTIMIZERS)}
        with naming_misspelt(others, type(self)):
            self.optimizer = build_optimizer(given["optimizer"], model.parameters(), **of_optimizer)
        cast = check_autocast(given["autocast"])
        forward = make_forward(model, device=self.device, autocast=cast, compiled=given["compile"])
        # A checkpoint has the names of the model itself, compiled or not.
        self._normalized_model = NormalizedModel(original_model(model), self.inputs, forward)
        self._learner = make_learner(self._normalized_model, self.loss, self.optimizer, self._options)
        self._rule = make_rule(update, self._learner, self._options)
        self._epoch_loop = EpochLoop(
            self._learner, self._rule, self.device, self.inputs, self.target, self.weight, given["metrics"]
        )
        targets = TargetOptions(self.loss, given["normalize_target"], given["class_weight"])
        self.learned = LearnedData(self._epoch_loop, self._normalized_model, self.device, given["normalize"], targets)

    def __repr__(self) -> str:
        if self._given is not None:
            return f"Trainer(built when its data is there, on {self.device})"
        return trainer_line(self.model, self.loss, self.optimizer, self._rule.name, self.counts)

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

    @property
    def history(self) -> History:
        """All epochs since the trainer was made, or since the run that it resumed began."""
        if self._given is not None:
            return History(epochs=(), counts=Counts())
        best, run = (self._watch.best, self._watch.run) if self._watch else (None, None)
        return History(epochs=tuple(self._epoch_loop.epochs), counts=self.counts, best=best, run=run)

    @public_explaining(arrays_given)
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
        decode: Decode | None = None,
        max_memory: str | None = None,
        checkpoint: str | Path | Run | None = None,
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
            result of the whole. Until it ends, schedules of epochs ignore it, and it cannot be the best.
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
        batch_size, seed, memory, decode : optional
            Options of loaders made for datasets, that for ``val`` with images cropped in the middle. Both share
            ``memory``, by default 512 MB or what is left.
        max_memory : str, optional
            The budget of the whole process, of which loaders made here get what training leaves; ``"auto"`` is what the
            machine allows. Your own loaders are only checked against it.
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
            Whether to show a bar, and a line an epoch; by default where stderr is a terminal, and in a notebook.
        on_epoch, on_resume : callable, optional
            Called with the summary of every finished epoch; under ``resume`` with the resume point, before training.

        Raises
        ------
        UsageError
            The model does not fit the data, ``val`` lacks columns or has other classes, or an argument is wrong.
        InputError
            A sample's weight is negative or not finite, or all of them are 0.
        DivergedError
            A loss or a gradient is not finite; epoch, step, samples and the last checkpoint are named.
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
        check_same_weights(self._watch, resumes=resume is not None)
        plan = FitPlan(
            totals=Totals(max_epochs=max_epochs, max_steps=max_steps),
            every=checkpoint_every,
            on_failure=on_checkpoint_failure,
            resumes=resume is not None,
            on_epoch=on_epoch,
            on_resume=on_resume,
            progress=RunProgress(show=shown(progress), has_lines=not isinstance(checkpoint, Run)),
        )
        sizes: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "memory": memory, "max_memory": max_memory}
        options = LoaderOptions(device=str(self.device), **sizes)
        data, validation = opened_with_images(loader, decode), opened_with_images(val, decode_to_measure(decode))
        self.decode = check_can_train(data, validation)
        self._build_from(data, seed)
        exchange = self._exchange = join_ranks(data, self._rule, self._epoch_loop, self._exchange)
        watch = make_watch(
            self.loss,
            (monitor, monitor_mode),
            data=data,
            target=self.target,
            own=self._epoch_loop.scoring.metrics,
            has_val=val is not None,
            limits={"until_loss": until_loss, "patience": patience, "min_delta": min_delta},
            restored=original_model(self.model) if restore_best else None,
            copies=checkpoint is None or exchange.rank > 0,
        )
        if isinstance(data, Dataset):
            self.learned.learn(data)
        streams = streams_of(self, data, validation, options, best_bytes=watch.copy_bytes)
        with telling_of_quarantine(), exchange.failing_together(), streams as (loader, val):
            return self._fit(loader, val, watch, plan, checkpoint, log_every)

    def _fit(
        self,
        loader: BatchStream,
        val: BatchStream | None,
        watch: EpochWatch,
        plan: FitPlan,
        checkpoint: str | Path | Run | None,
        log_every: int,
    ) -> History:
        self._begin(loader, val, plan.totals, watch.mode)
        description, call = self.describe(loader), plan.facts(watch, checkpoint, log_every)
        exchange = self._rule.exchange
        check_ranks(exchange, self.model, description, loader, val, call)
        before, self._watch, streams = self._watch, watch, (stream_identity(loader), val and stream_identity(val))
        with (
            open_run(checkpoint, self._config(description, loader, watch, plan), plan.resumes, exchange) as run,
            watch.over(streams, run, lambda: self.counts, before=before, exchange=exchange),
            in_stored_order(loader) if self._rule.in_stored_order else nullcontext(loader) as stream,
            nullcontext(val) if val is None else in_stored_order(val) as measured,
            self._told(),
        ):
            if self.learned.targets.baseline is not None and not (isinstance(run, RunFolder) and run.resumes):
                run.keep_baseline(self.learned.targets.baseline.config())
            recording = partial(EpochRecorder, self.loss, self._epoch_loop.scoring, stream, run, log_every=log_every)
            parts: dict[str, Any] = {"rule": self._rule, "front": self._normalized_model, "device": self.device}
            parts |= {"schema": schema_of_stream(loader), "every": plan.every, "on_failure": plan.on_failure}
            fitting = Fitting(
                loop=self._epoch_loop,
                learner=self._learner,
                rule=self._rule,
                watch=watch,
                state=RunState(run, stream=stream, identity=description, watch=watch, **parts),
                run=run,
                recording=partial(recording, exchange=exchange),
                measure=self.evaluate,
                val=measured,
            )
            return fitting.epochs(stream, plan)

    def _begin(self, loader: BatchStream, val: BatchStream | None, totals: Totals, best: str | None) -> None:
        """Prepare a run: check the stream, learn its schema and statistics, set up the schedules."""
        check_stream(loader, self._rule.name)
        warn_of_waiting_device(loader, self.device, self._rule.name, stacklevel=6)
        warn_of_batch_dependent_modules(self.model, self._rule.spans)
        self.learned.schema.learn(loader, val, self._epoch_loop.fields, anew=self.counts == Counts())
        self.learned.learn(loader.dataset)
        self._epoch_loop.begin(loader, val, totals, best)

    @public
    def evaluate(
        self, loader: BatchStream | Dataset | Iterable[Any] | str | Path, *, positive: str | int | None = None
    ) -> Metrics:
        """Measure loss and scores over a stream, each sample once, in stored order; nothing is changed.

        Your own batches, an iterable of dicts or of tuples (inputs, target), are measured as they come.
        With two classes, precision and recall are those of ``positive``, by default class 1.
        This holds also for a stream that drops the last batch or stands inside an epoch. Only samples in quarantined
        blocks are left out, which shows in the metrics' ``n_samples``.

        Raises
        ------
        UsageError
            The model does not fit the data, still needs the statistics of its training data, or was trained on columns
            that are missing or on other classes. Columns in another order are put in order.
        DeviceError
            The device is out of memory; the message has the batch size that would fit.
        """
        data: Any = opened_with_images(loader, decode_to_measure(self.decode))
        self._build_from(data, None)
        if isinstance(data, Dataset):
            with StreamLoader(data, shuffle=False, device=self.device) as whole:
                return self.evaluate(whole, positive=positive)
        data = data if is_stream(data) else GivenBatches(data, self._epoch_loop.fields)
        arrangement = self.learned.schema.arrangement(data, self._epoch_loop.fields, stacklevel=4)
        scoring = self.learned.scoring(data.dataset, positive, arrangement)
        exchange = exchange_over(data, self._exchange, self.device)
        with every_sample(data) as stream, exchange.failing_together():
            return self._epoch_loop.measure(stream, scoring, arrangement, exchange)

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
        batch, options = self._epoch_loop.on_device(rows), self._options
        if isinstance(self._rule, SampleRule):
            options = replace(options, sample_path=self._rule.choice.path)
        make = partial(make_rule, self._rule.name, options=options)
        # A rehearsed step is not counted, scheduled or reported.
        learner = replace(self._learner, schedules=None, on_step=None)
        return working_memory(make, learner, batch)

    def begin_epoch_anew(self) -> None:
        """Forget an epoch that was cut short: the next call of `fit` starts it over, on any stream."""
        self._epoch_loop.begin_epoch_anew()

    def describe(self, loader: BatchStream) -> dict[str, object]:
        """Describe what this trainer does with a stream, as ``config.json`` holds it."""
        fields = {"inputs": list(self.inputs), "target": self.target, "weight": self.weight}
        options = self._options.describe(self._learner.schedules) | self.learned.targets.config()
        return {**describe_run(self._rule, self._normalized_model, loader, fields | options), **self._about}

    def _told(self) -> AbstractContextManager[None]:
        began = RunBegan(update=self._rule.name)
        return publish_around(began, lambda: RunEnded(n_steps=self.counts.n_steps, n_samples=self.counts.n_samples))
