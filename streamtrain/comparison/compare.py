"""The function `compare`: every update rule with every optimizer, one run after the other."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn
from tqdm import tqdm

from streamtrain.comparison.record import (
    ComparisonRecord,
    check_same,
    finished_run,
    read_record,
    settings_of,
    sole_comparer,
    with_lanes,
    write_path,
)
from streamtrain.comparison.report import hold_drawing_memory, write_comparison
from streamtrain.comparison.results import ComparedRun, Comparison, LearningCurvePoint
from streamtrain.comparison.run import PointCallback, train_run
from streamtrain.comparison.settings import ComparisonSettings, Rates, rates_by_name
from streamtrain.comparison.setup import ComparisonSetup
from streamtrain.comparison.surface import LossSurface, Snapshot, measure_surface
from streamtrain.errors import Argument, Fix, StreamtrainError, UsageError
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.loader.world import present_rank
from streamtrain.models.factory import n_parameters
from streamtrain.models.losses import Loss, LossFunction
from streamtrain.store.dataset import Dataset, opened
from streamtrain.store.schema.matching import matching_was_told
from streamtrain.system.arguments import check_dataset, check_functions, check_seed
from streamtrain.system.calls.public import public
from streamtrain.system.display.progress_bar import is_shown
from streamtrain.system.files import local_path
from streamtrain.system.memory import held_bytes, trim_heap
from streamtrain.system.signals import Interrupted
from streamtrain.system.units import format_bytes, format_duration
from streamtrain.system.versions import library_versions
from streamtrain.training.labels.class_weights import ClassWeight
from streamtrain.training.labels.reading import settled
from streamtrain.training.trainer import Trainer

Say = Callable[[str], None]


@public
def compare(
    model: nn.Module,
    dataset: Dataset | str | Path,
    *,
    rules: tuple[str, ...] = ("sample", "batch", "epoch"),
    optimizers: tuple[str, ...] = ("sgd", "adam"),
    lr: Rates | Sequence[float] | float | None = None,
    max_epochs: int | None = None,
    seconds: float | None = None,
    batch_size: int = 256,
    memory: str | int | None = None,
    max_memory: str | None = None,
    seed: int = 0,
    device: str = "auto",
    target_loss: float | None = None,
    grid: int | None = None,
    loss: str | LossFunction | Loss | None = None,
    task: str | None = None,
    ignore_label: int | None = None,
    val: Dataset | str | Path | None = None,
    inputs: tuple[str, ...] = ("x",),
    target: str = "y",
    normalize: Literal["auto"] | None = None,
    normalize_target: Literal["auto"] | None = None,
    class_weight: ClassWeight | None = None,
    out: str | Path | None = None,
    resume: Literal["auto"] | None = None,
    about: Mapping[str, object] | None = None,
    on_point: Callable[[ComparedRun, LearningCurvePoint], None] = lambda run, point: None,
    on_runs: Callable[[Comparison], object] = lambda found: None,
    say: Say = lambda text: None,
) -> Comparison:
    """Train copies of a model by every rule with every optimizer, and measure them in the same way.

    Each run has the same initial weights, and its data in the order of the same seed. After every epoch, a pass over
    the whole training data measures loss and score of the weights; it does not count as training time.

    Parameters
    ----------
    model : torch.nn.Module
        Every run begins at its weights; it is not changed.
    dataset : Dataset or path
        The training data.
    rules, optimizers : tuple of str
        Every rule runs with every optimizer.
    lr : float, sequence of float or mapping, optional
        One for all, or several, with a run for each; or a mapping by rule and optimizer (``"sample:sgd"``), optimizer
        (``"sgd"``) or ``"every"``, of which the first that matches counts. By default the trainer's.
    max_epochs : int, optional
        Epochs of each run.
    seconds : float, optional
        Training time of each run. It cuts an epoch short, except under the rule ``epoch``, whose step needs a whole
        pass. At least one of the two must be given; the first that is reached ends a run.
    batch_size : int
        Samples of a batch, and of each read under the other rules.
    memory : str or int, optional
        The budget of all loaders together; by default 512 MB, or what is left of ``max_memory``.
    max_memory : str, optional
        The budget of the whole process, of which the loaders get what the runs and the surface leave; ``"auto"`` is
        what the machine allows.
    seed : int
        Seed of the data's order, the same for every run.
    device : str
        As in `Trainer`.
    target_loss : float, optional
        The mean loss over the training data that each run is timed to; by default half the initial loss, or
        1.5 times it where that is negative.
    grid : int, optional
        Measure the loss at ``grid`` by ``grid`` points around the paths of the weights; by default it is not measured.
    loss : str or callable, optional
        As in `Trainer`; by default that of the task.
    task : {"classification", "multilabel", "regression"}, optional
        How labels are read; by default as `Dataset.task` says.
    ignore_label : int, optional
        A label that is no class.
    val : Dataset or path, optional
        Measured after every epoch as well.
    inputs, target : tuple of str, str
        The fields that the model takes, and the one that the loss compares with.
    normalize : None or "auto"
        As in `Trainer`: ``"auto"`` rescales the inputs by the training data's statistics.
    normalize_target, class_weight : optional
        As in `Trainer`.
    out : pathlib.Path, optional
        Folder for ``comparison.html``, ``comparison.json`` and the run folders, which are named by rule and optimizer.
        Page and JSON are written after each run, and where a signal ends the comparison.
    resume : {None, "auto"}
        None requires an empty folder; ``"auto"`` resumes the comparison in ``out``, or begins it where there is none:
        finished runs are read, and the one that was begun resumes, bit for bit.
    about : mapping, optional
        More for each run's ``config.json``: ``model``, ``input_shape`` and ``n_outputs`` as `build_model` takes them.
    on_point : callable, optional
        Called with the current run and its newest point.
    on_runs : callable, optional
        Called with the comparison before its surface is measured, which may take long or fail.
    say : callable, optional
        Called with a line of text before anything that takes long.

    Raises
    ------
    UsageError
        An argument is wrong, a rule does not work with an optimizer, or ``val`` has other columns or classes than
        ``dataset``; raised before anything is trained.
    BudgetError
        The memory is too small; raised before anything is trained.
    ResourceError
        The folder cannot be made (raised before anything is trained), or a run cannot be saved in it.
    LockedError
        Another process compares in the folder.
    CheckpointError
        The comparison to resume has other settings; every difference is named.
    Interrupted
        A `KeyboardInterrupt`: a signal came, and the comparison is saved in ``out``.

    Examples
    --------
    >>> import tempfile, numpy as np, torch, streamtrain as st
    >>> x = np.random.default_rng(0).normal(size=(64, 2))
    >>> data = st.ingest({"x": x, "y": x @ [1.0, -1.0]}, tempfile.mkdtemp() + "/d.zarr")
    >>> line = nn.Linear(2, 1, dtype=torch.float64)
    >>> found = compare(line, data, optimizers=("sgd",), max_epochs=2, batch_size=16, loss="mse")
    >>> [(run.rule, run.last.n_steps) for run in found]
    [('sample', 128), ('batch', 8), ('epoch', 2)]
    """
    _check_places(model, dataset)
    dataset, val = opened(dataset), opened(val)
    _check_datasets(dataset, *([] if val is None else [val]))
    if about is not None and not isinstance(about, Mapping):
        raise UsageError(f"about is {about!r:.80}; it must be a mapping")
    check_functions(on_point=on_point, on_runs=on_runs, say=say)
    _check_resume(resume, out)
    # ComparisonSettings takes the arguments by their names.
    setting = ComparisonSettings.of(locals() | {"lr": {} if lr is None else rates_by_name(lr)})
    check_seed(seed)
    out = None if out is None else local_path(out)
    settled_loss, settled_task = settled(dataset, target, loss, task, ignore_label=ignore_label)
    setup = ComparisonSetup(
        model=model,
        dataset=dataset,
        setting=setting,
        loss=settled_loss,
        task=settled_task,
        inputs=inputs,
        target=target,
        is_normalized=isinstance(normalize, str) and normalize == "auto",
        normalize_target=normalize_target,
        class_weight=class_weight,
        out=out,
        about={"dataset": str(dataset.path), **(about or {})},
    )
    with nullcontext() if out is None else sole_comparer(out, resumes=resume is not None):
        return _compare(setup, val, on_point, on_runs, say)


def _check_datasets(*given: object) -> None:
    n_ranks = present_rank().world_size
    if n_ranks > 1:
        raise UsageError(
            f"compare times its runs in one process, and torch.distributed has {n_ranks}",
            fix="compare in one of its own",
        )
    for each in given:
        check_dataset(each)


def _check_places(model: object, dataset: object) -> None:
    """Refuse the dataset in the place of the model, and a trainer in either place."""
    if isinstance(model, Trainer) or isinstance(dataset, Trainer):
        what = "compare makes a trainer for each run, and is given one"
        raise UsageError(what, fix="compare(trainer.model, dataset), with its loss and options as arguments")
    if isinstance(model, Dataset) or isinstance(dataset, nn.Module):
        raise UsageError("the model and the dataset are swapped", fix="compare(model, dataset)")


def _check_resume(resume: object, out: object) -> None:
    if not (resume is None or (isinstance(resume, str) and resume == "auto")):
        raise UsageError(f"resume is {resume!r:.80}", fix=Fix(Argument("resume", "auto"), ", or leave it out"))
    if resume is not None and out is None:
        raise UsageError("resume without out", fix=Fix(Argument("out", "comparisons/1"), ", say"))


def _compare(
    setup: ComparisonSetup,
    val: Dataset | None,
    on_point: PointCallback,
    on_runs: Callable[[Comparison], object],
    say: Say,
) -> Comparison:
    record = None if setup.out is None else read_record(setup.out)
    # Refuses what no run can be made of before it is described.
    setup.trainer(next(iter(setup.setting.choices())))
    settings = settings_of(setup, val)
    if record is not None and setup.out is not None:
        check_same(record, settings, setup.out)
        setup.lanes = record.lanes
    if setup.out is not None and setup.setting.max_memory is not None:
        # What drawing holds on to is there before the memory is divided.
        hold_drawing_memory()
    setup.check(val)
    if setup.out is not None:
        # And before the first run is measured, since the others come after a page.
        hold_drawing_memory()
    trim_heap()
    before_bytes = held_bytes()
    with ExitStack() as stack:
        stack.enter_context(matching_was_told())
        passes = [
            stack.enter_context(setup.ordered(data)) for data in ([setup.dataset, val] if val else [setup.dataset])
        ]
        first = setup.first(passes)
        trim_heap()
        setup.measuring_bytes = max(0, held_bytes() - before_bytes)
        compared = _Compared(setup, _begun(setup, first, settings), on_point)
        if record is not None:
            # Before anything is written: an interrupt must not lose what is not read yet.
            compared.read(record, val, say)
        with compared.written_if_interrupted():
            compared.train(passes, first, resumes=record is not None)
            if setup.setting.grid is None:
                compared.write()
                return compared.found
            on_runs(compared.found)
            whole = _with_surface(compared.found, setup, passes[0], compared.paths, setup.setting.grid, say)
            if setup.out is not None:
                write_comparison(whole, setup.out)
            return whole


def _begun(setup: ComparisonSetup, first: LearningCurvePoint, settings: Mapping[str, Any]) -> Comparison:
    loss, target = first.train.loss, setup.setting.target_loss
    return Comparison(
        runs=(),
        target_loss=loss - abs(loss) / 2 if target is None else target,
        n_samples=len(setup.dataset),
        n_weights=n_parameters(setup.model),
        about=_about(setup),
        settings=with_lanes(settings, setup),
    )


class _Compared:
    """The runs of a comparison so far, recorded in its folder as they end."""

    def __init__(self, setup: ComparisonSetup, begun: Comparison, on_point: PointCallback) -> None:
        self._setup, self._begun, self._on_point = setup, begun, on_point
        self._choices = list(setup.setting.choices())
        # By the names of their folders.
        self._runs: dict[str, ComparedRun] = {}
        self._paths: dict[str, list[Snapshot]] = {}

    @property
    def found(self) -> Comparison:
        """The comparison so far."""
        names = (choice.folder_name for choice in self._choices)
        return replace(self._begun, runs=tuple(self._runs[name] for name in names if name in self._runs))

    @property
    def paths(self) -> list[tuple[str, list[Snapshot]]]:
        """The label of each run, and the path of its weights."""
        return [(run.label, self._paths[name]) for name, run in self._runs.items()]

    def read(self, record: ComparisonRecord, val: Dataset | None, say: Say) -> None:
        """Read the runs that are finished."""
        for choice in self._choices:
            if (kept := finished_run(record, choice, self._setup, val)) is not None:
                run, self._paths[choice.folder_name] = kept
                self._runs[choice.folder_name] = run
                say(f"{run.label}: finished, and read back")
        if len(self._runs) == len(self._choices):
            say("every run is finished: nothing is trained")

    def train(self, passes: list[StreamLoader], first: LearningCurvePoint, *, resumes: bool) -> None:
        """Train the other runs."""
        if not resumes:
            self.write()
        for choice in self._choices:
            name = choice.folder_name
            if name not in self._runs:
                seen = partial(self._seen, name)
                run, path = train_run(self._setup, choice, passes, first, seen, resumes=resumes)
                if run.folder is not None:
                    write_path(run.folder, path)
                self._runs[name], self._paths[name] = run, path
                if choice is not self._choices[-1]:
                    # After the last one the whole comparison is written.
                    self.write()

    def _seen(self, name: str, run: ComparedRun, point: LearningCurvePoint) -> None:
        self._runs[name] = run
        self._on_point(run, point)

    def write(self) -> None:
        """Write page and JSON."""
        if self._setup.out is not None:
            write_comparison(self.found, self._setup.out)

    @contextmanager
    def written_if_interrupted(self) -> Iterator[None]:
        """Write the comparison as it is where a signal ends the block."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            if self._setup.out is None:
                raise
            self.write()
            number = getattr(interrupt, "number", signal.SIGINT)
            raise Interrupted(number, getattr(interrupt, "saved", None) or str(self._setup.out)) from None


def _with_surface(
    found: Comparison,
    setup: ComparisonSetup,
    loader: StreamLoader,
    paths: list[tuple[str, list[Snapshot]]],
    grid: int,
    say: Say,
) -> Comparison:
    try:
        return replace(found, surface=_surface(setup, loader, paths, grid, say))
    except (StreamtrainError, RuntimeError) as error:
        # The finished runs must not be lost.
        text = error.text() if isinstance(error, StreamtrainError) else str(error)
        say(Fix("surface: not measured: ", text))
        return replace(found, no_surface=text)


def _about(setup: ComparisonSetup) -> dict[str, str]:
    setting = setup.setting
    given = {"epochs": setting.max_epochs, "seconds each": setting.seconds, "memory of the process": setting.max_memory}
    found = {
        "dataset": setup.about["dataset"],
        "model": setup.about.get("model", type(setup.model).__name__),
        "loss": setup.loss.name,
        **{name: value for name, value in given.items() if value is not None},
        "batch size": setting.batch_size,
        "memory": setting.memory or format_bytes(setup.memory),
        "seed": setting.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        **{name: value for name, value in setup.about.items() if name == "command"},
    }
    return {name: str(value) for name, value in found.items()}


def _surface(
    setup: ComparisonSetup, ordered: StreamLoader, paths: Sequence[tuple[str, Sequence[Snapshot]]], grid: int, say: Say
) -> LossSurface:
    if not any(kept for _, kept in paths):
        raise UsageError("the weights of no run are finite")
    seconds = grid**2 * setup.pass_seconds
    say(f"surface: {grid**2:,} passes over {len(setup.dataset):,} samples, about {format_duration(seconds)}")
    # Any rule and optimizer will do: the loss does not depend on them.
    trainer = setup.trainer(next(setup.setting.choices()))
    with tqdm(total=grid**2, desc="surface", unit=" passes", leave=False, disable=not is_shown(None)) as bar:
        done = partial(bar.update, 1)
        return measure_surface(trainer.model, lambda: trainer.evaluate(ordered).loss, paths, grid=grid, done=done)
