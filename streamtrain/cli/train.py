"""The work of ``streamtrain train DEST``: train a model on a dataset, within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from streamtrain.cli.compatibility import (
    check_alike,
    chosen_inputs,
    chosen_target,
    poor_shuffle,
    training_warnings,
    validation_data,
)
from streamtrain.cli.options import TrainOptions, set_threads
from streamtrain.cli.output import (
    as_command_line,
    command_line,
    emit,
    error_text,
    is_quiet,
    is_verbose,
    label_text,
    note,
    progress_text,
    seconds_so_far,
    typed_command,
    typed_words,
)
from streamtrain.cli.preparation.dry_run import dry_run
from streamtrain.cli.preparation.images import seen_as
from streamtrain.cli.preparation.raw_files import refuse_raw_file
from streamtrain.cli.preparation.run_facts import data_to_measure, model_to_name
from streamtrain.cli.preparation.threads import CoreWatch
from streamtrain.cli.ranks import device_of_rank, is_first, launch, of_first, process_group
from streamtrain.cli.results import TrainOutcome, no_better, wall_seconds
from streamtrain.diagnostics.headspace import headspace, kept_bytes
from streamtrain.errors import Lines, ResourceError, StreamtrainError, UsageError
from streamtrain.loader import shared_budget
from streamtrain.loader.plan import few_lanes
from streamtrain.loader.quarantine import telling_of_quarantine
from streamtrain.models.factory import check_model_name, make_model, n_parameters
from streamtrain.models.model_data import describe_data
from streamtrain.store.dataset import Dataset, open_preferred
from streamtrain.store.media.pillow import pillow_version
from streamtrain.store.schema.matching import matching_was_told
from streamtrain.store.schema.task import TaskName
from streamtrain.system.arguments import check_seed
from streamtrain.system.events import Reserved, publish_event
from streamtrain.system.files import numbered_folder
from streamtrain.system.memory import held_bytes, limit_heap_growth
from streamtrain.system.signals import Interrupted
from streamtrain.system.units import counted, format_bytes
from streamtrain.training.batch_stream import normalize_fields
from streamtrain.training.best.monitor import Monitor
from streamtrain.training.best.watch import make_watch
from streamtrain.training.labels.facts import label_config
from streamtrain.training.labels.from_data import n_outputs
from streamtrain.training.labels.reading import n_ignored
from streamtrain.training.metrics.baseline import short_number
from streamtrain.training.metrics.tasks import score_name
from streamtrain.training.records.history import EpochSummary, History, epoch_head, epoch_line
from streamtrain.training.run.run_description import budget_config
from streamtrain.training.run.run_folder import (
    FollowedRun,
    Run,
    RunFolder,
    check_run,
    check_writable,
    is_run,
    newest_run,
    read_config,
    write_memory,
)
from streamtrain.training.run.run_state import ResumePoint
from streamtrain.training.sized_loaders import SizedLoaders, make_loaders, sized_loaders
from streamtrain.training.trainer import Trainer


def say_resumed(out: Path, resumed: ResumePoint) -> None:
    """Print to stderr where a run resumes, and which checkpoints were damaged."""
    for skipped in resumed.skipped:
        note(f"warning: skipped a damaged checkpoint, {skipped}")
    part = f" and {counted(resumed.n_batch_samples, 'sample')} of the next" if resumed.n_batch_samples else ""
    goes_on = f"{out}: resumes after batch {resumed.n_batches:,}{part}"
    note(goes_on if resumed.n_batches or part else f"{out}: no checkpoint; starts afresh")


@contextmanager
def resume_hint(out: Path) -> Iterator[None]:
    """Add to an interrupt inside the block, where the run was saved, the command that resumes it."""
    try:
        yield
    except Interrupted as interrupt:
        if interrupt.saved is None:
            raise
        words = typed_words() or ["train"]
        command = words + ([] if _given(words, "--out") else ["--out", str(out)])
        command += [] if "--resume" in words else ["--resume"]
        raise Interrupted(interrupt.number, interrupt.saved, go_on=command_line(["streamtrain", *command])) from None


def _given(words: list[str], option: str) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)


RUNS: Final = Path("runs")
_NO_VAL: Final = (
    "there is no validation data, which shows how well the model does on data it never saw: ingest with --split val=0.1"
)


def run_train(*, as_json: bool, **given: Any) -> None:
    """Train as the command line says, and print the result."""
    options = TrainOptions.of(given)
    options = replace(options, device=device_of_rank(options.device))
    with process_group(options.device), telling_of_quarantine():
        _run_train(options, as_json=as_json)


def _run_train(options: TrainOptions, *, as_json: bool) -> None:
    if options.headspace and launch() is not None:
        raise UsageError("the headspace is measured in one process", fix="start it without torchrun, or no --headspace")
    say = progress_text(as_json)
    begun = _begin(options, say)
    if options.dry_run:
        with begun.sized() as loaders:
            found = dry_run(begun.trainer, begun.dataset, loaders, options.epochs)
        emit(as_json, found.result(), found.text())
        return
    trained = _train(begun, say)
    if options.epochs == 0 and not trained.history.counts.n_steps:
        note("hint: --epochs 0 takes no step: the run keeps the model as it was made, to be evaluated or trained on")
    emit(as_json, trained.result(), trained.text())
    lr = trained.lr
    off = {"--normalize": options.normalize, "--normalize-target": options.normalize_target, "--lr": lr}
    # Weights of classes trade accuracy, which the baseline is measured by, for the rare ones.
    if options.class_weight is None and (hint := no_better(trained.history, off)):
        note(f"hint: {hint}")
    if not as_json:
        note(Lines.of(f"{'' if i else 'next':<8}{command}" for i, command in enumerate(trained.then)))
    trained.raise_rest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A training that is checked, and about to size its loaders."""

    options: TrainOptions
    dataset: Dataset
    val: Dataset | None
    trainer: Trainer
    monitor: Monitor | None
    about: dict[str, object]
    cores: CoreWatch
    sizing: Callable[..., AbstractContextManager[SizedLoaders]]

    def sized(self) -> AbstractContextManager[SizedLoaders]:
        """Rehearse a step, and make the loaders."""
        return self.sizing(self.trainer, self.dataset, self.val, self.options.loading())


def _begin(options: TrainOptions, say: Callable[[str], None]) -> _Begun:
    """Open, match and check all that a training takes."""
    set_threads(options.threads)
    cores = CoreWatch()
    limit_heap_growth()
    reserved = held_bytes()
    check_seed(options.seed)
    shared_budget.check_memory_options(options.memory, options.max_memory)
    of_first(lambda: _check_out(options))
    check_model_name(options.model)
    refuse_raw_file(options.dest)
    dataset = seen_as(open_preferred(options.dest), options.images, options.image_scale)
    inputs = chosen_inputs(dataset, options.inputs, options.model, options.target, options.weight)
    options = replace(options, inputs=inputs)
    val = validation_data(options.dest, options.val, dataset)
    if val is not None:
        check_alike(dataset, val, options.weight, fields=(*inputs, options.target))
    trainer, about, told, task = _make_trainer(options, dataset, inputs)
    limits = {name: getattr(options, name) for name in ("until_loss", "patience", "min_delta")}
    watched = (options.monitor, options.monitor_mode)
    of: dict[str, Any] = {"data": dataset, "target": options.target, "has_val": val is not None, "limits": limits}
    watch = make_watch(trainer.loss, watched, **of)

    def say_heading() -> None:
        say(_heading(options, dataset, trainer, told, task))
        for doubt in training_warnings(dataset, options.batch_size):
            note(f"warning: {doubt}")
        if options.val is None and val is None:
            note(f"hint: {_NO_VAL}")

    sizing = partial(sized_loaders, reserved_bytes=reserved, on_checked=say_heading)
    parts: dict[str, Any] = {"trainer": trainer, "monitor": watch.monitor, "about": about, "cores": cores}
    return _Begun(options=options, dataset=dataset, val=val, sizing=sizing, **parts)


def _train(begun: _Begun, say: Callable[[str], None]) -> TrainOutcome:
    options, dataset, val, trainer = begun.options, begun.dataset, begun.val, begun.trainer
    # The run's folder is held until its memory is written, which is known once the loaders are closed.
    with ExitStack() as of_run:
        with begun.sized() as loaders:
            training = loaders.training
            config = trainer.describe(training) | begun.about | budget_config(training, loaders.memory_bytes)
            if training.shuffle and (poor := poor_shuffle(dataset, options.batch_size, training.sizes.lanes)):
                note(f"warning: {poor}")
            out = options.out or (of_run.enter_context(numbered_folder(RUNS)) if is_first() else RUNS)
            run = _opened(of_run, out, config, resumes=options.resume)
            if expected := training.projection.expected:
                few = few_lanes(dataset.layout, training.sizes, training.memory_bytes, n_measuring=len(loaders.all) - 1)
                first, *more = str(expected).split("; ")
                shown = [*(more if is_verbose() else []), *([as_command_line(few)] if few else [])]
                say(Lines.of([f"order   {first}", *(f"        {line}" for line in shown)]))
            if is_verbose():
                say(Lines.of(f"loader  {loader.projection}" for loader in loaders.all))
            begun.cores.look()
            shape = next(field.shape for field in dataset.fields if field.name == options.target)
            head = epoch_head(score_name(trainer.loss, shape), with_val=val is not None, monitor=begun.monitor)
            start = seconds_so_far()
            with resume_hint(out), matching_was_told():
                history = _fit(begun, loaders, run, out, say, head)
            projected = sum(loader.projection.total_bytes for loader in loaders.all)
            names = ("training", "validation")
            terms = {name: loader.projection.terms for name, loader in zip(names, loaders.all, strict=False)}
        seconds = wall_seconds(history, start=start, total=seconds_so_far())
        trained = _outcome(history, seconds, loaders, projected, out, trainer.optimizer.param_groups[0]["lr"])
        trained = replace(trained, then=_next_commands(out, options))
        try:
            if is_first() and not trained.trained_nothing:
                write_memory(out, {**trained.memory, "terms": terms})
        except ResourceError as error:
            trained = replace(trained, unwritten=error)
    return _with_headspace(trained, trainer, options, dataset, loaders.memory_bytes) if options.headspace else trained


def _opened(of_run: ExitStack, out: Path, config: dict[str, object], *, resumes: bool) -> Run:
    """Open the run's folder; of several ranks the first one keeps it."""
    if is_first():
        return of_run.enter_context(RunFolder(out, config, resumes=resumes))
    return FollowedRun()


def _next_commands(out: Path, options: TrainOptions) -> tuple[str, ...]:
    """Name the commands that use the run; a model of the user's code runs only where it is named again."""
    run, data = str(out), [*data_to_measure(options.dest), *model_to_name(options.model)]
    commands = (["evaluate", run, *data], ["predict", run, *data, "--out", "predictions.csv"], ["report", run])
    return tuple(command_line(["streamtrain", *words]) for words in commands)


def _outcome(
    history: History, seconds: dict[str, float], loaders: SizedLoaders, projected: int, out: Path, lr: float
) -> TrainOutcome:
    """Put together the outcome of a run whose loaders are closed."""
    taken, meter = loaders.taken, loaders.meter
    return TrainOutcome(
        history=history,
        seconds=seconds,
        memory={
            "budget": loaders.memory_bytes,
            "projected": projected,
            "measured": max(0, meter.peak_bytes - taken.step_bytes),
            "step": taken.step_bytes,
            "process": meter.before_bytes + meter.peak_bytes,
        },
        out=out,
        lr=lr,
        headspace=None,
        quarantined=loaders.training.quarantined,
        val_quarantined=loaders.validation.quarantined if loaders.validation else (),
    )


def _fit(begun: _Begun, loaders: SizedLoaders, run: Run, out: Path, say: Callable[[str], None], head: str) -> History:
    options = begun.options
    # A run that is resumed may have all of its epochs, and no line comes below the head.
    heads = iter([head])
    if not options.resume:
        say(next(heads))

    def say_epoch(summary: EpochSummary) -> None:
        for line in heads:
            say(line)
        begun.cores.look()
        say(epoch_line(summary, begun.monitor))

    history = begun.trainer.fit(
        loaders.training,
        max_epochs=options.epochs,
        max_steps=options.max_steps,
        until_loss=options.until_loss,
        monitor=options.monitor,
        monitor_mode=options.monitor_mode,
        patience=options.patience,
        min_delta=options.min_delta,
        val=loaders.validation,
        checkpoint=run,
        checkpoint_every=options.checkpoint_every,
        on_checkpoint_failure=options.on_checkpoint_failure,
        resume="auto" if options.resume else None,
        log_every=options.log_every,
        progress=False if is_quiet() or not is_first() else None,
        on_epoch=say_epoch,
        on_resume=partial(say_resumed, out),
    )
    if history.last is not None and history.last.partial:
        for line in heads:
            say(line)
        say(epoch_line(history.last, begun.monitor))
    return history


def _check_out(options: TrainOptions) -> None:
    """Refuse a run's folder that is taken, or cannot be written, before anything is read."""
    if options.out is not None:
        check_run(options.out, resumes=options.resume)
    elif options.resume:
        raise UsageError("--resume without --out", fix=f"--out {newest_run(RUNS) or 'RUN'}")
    else:
        check_writable(RUNS)


def _with_headspace(
    trained: TrainOutcome, trainer: Trainer, options: TrainOptions, dataset: Dataset, memory: int
) -> TrainOutcome:
    """Measure the headspace, after the run is saved and its memory measured: the trainer trains further here."""
    publish_event(Reserved(held_bytes=held_bytes() + kept_bytes(dataset)))
    try:
        with next(make_loaders(options.loading(), dataset, None, memory)) as loader:
            return replace(trained, headspace=headspace(trainer, loader))
    except StreamtrainError as error:
        # The run itself is done, and its result must not be lost.
        note(Lines(f"warning: the headspace was not measured: {error_text(error)}"))
        return trained
    except KeyboardInterrupt as interrupt:
        return replace(trained, interrupt=interrupt)


def _make_trainer(
    options: TrainOptions, dataset: Dataset, inputs: tuple[str, ...]
) -> tuple[Trainer, dict[str, object], str, TaskName | None]:
    """Make the trainer, the settings that rebuild its model for the run's configuration, and what to say of both."""
    y, loss, reading, task = chosen_target(dataset, options.target, options.loss, options.task, options.ignore_label)
    data = describe_data(dataset, inputs, n_outputs(dataset, loss, y), loss, task=task)
    built = make_model(options.model, data, seed=options.seed, model_args=dict(options.model_args))
    trainer = Trainer(
        built.module,
        init=options.init,
        init_partial=options.init_partial,
        loss=loss,
        optimizer=options.optimizer,
        lr=options.lr,
        update=options.update,
        inputs=inputs,
        target=options.target,
        # Made here, not by "auto" when training begins: the rows are checked before that.
        normalize=None if options.normalize == "none" else normalize_fields(dataset, inputs, options.normalize),
        normalize_target="auto" if options.normalize_target == "auto" and not _is_unscaled(options) else None,
        class_weight=options.class_weight,
        device=options.device,
        weight=options.weight,
        **{name: getattr(options, name) for name in ("momentum", "betas", "eps", "weight_decay")},
        nesterov=options.nesterov or None,
        **{each.name: getattr(options.step, each.name) for each in fields(options.step)},
    )
    trainer.read_labels(reading)
    trainer.learned.learn(dataset)
    about = {
        **built.config(),
        **data.config(),
        **label_config(dataset, options.target, loss, reading, task),
        **({"init": options.init} if options.init else {}),
        "dataset": str(dataset.path),
        "dataset_id": dataset.id,
        "max_memory": options.max_memory,
        "threads": torch.get_num_threads(),
        **({"pillow": pillow_version()} if options.images else {}),
        **typed_command(),
    }
    return trainer, about, built.told(), task


def _is_unscaled(options: TrainOptions) -> bool:
    """Whether the run to resume is of an earlier version, which gave the loss the targets as they are stored."""
    out = options.out
    if not options.resume or out is None:
        return False
    return of_first(lambda: is_run(out) and "normalize_target" not in read_config(out))


def _target_lines(options: TrainOptions, dataset: Dataset, trainer: Trainer) -> list[str]:
    """Say in which units the loss is, where these are not the data's own."""
    normalization = trainer.learned.targets.normalization
    if normalization is None:
        return []
    task = dataset.label_task(options.target)
    name = options.target if task is None else task.labels.name
    if len(normalization.mean) > 1:
        return [f"target  ({name} - mean) / std, one by one: loss is in these units, rmse and mae in the data's"]
    mean, std = normalization.mean[0], short_number(normalization.std[0])
    less = f"{name} {'+' if mean < 0 else '-'} {short_number(abs(mean))}"
    return [f"target  ({less}) / {std}: loss is in these units, rmse and mae in those of {name}"]


def _heading(options: TrainOptions, dataset: Dataset, trainer: Trainer, told: str, task: TaskName | None) -> str:
    fields = ", ".join(f"{field.name} {field.dtype.name}{list(field.shape) or ''}" for field in dataset.fields)
    size = f"{counted(len(dataset), 'sample')} of {fields}, {format_bytes(dataset.nbytes)}"
    lr = trainer.optimizer.param_groups[0]["lr"]
    n = n_ignored(dataset, options.target, trainer.loss)
    ignored = f"; {n:,} of them {trainer.loss.ignored}, which is not a class" if n else ""
    return Lines.of(
        [
            f"data    {dataset.path}: {size}",
            f"label   {label_text(dataset, options.target, task)}{ignored}",
            *_target_lines(options, dataset, trainer),
            f"model   {options.model}, {counted(n_parameters(trainer.model), 'weight')}, {trainer.loss.name}{told}",
            f"update  {trainer.way}, {options.optimizer}, lr {lr:g}, on {trainer.device}",
        ]
    )
