"""The function `compare`: every update rule with every optimizer, one run after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn
from tqdm import tqdm

from streamtrain.comparison.results import ComparedRun, Comparison, LearningCurvePoint
from streamtrain.comparison.run import ComparisonSetup, train_run
from streamtrain.comparison.settings import EVERY_OPTIMIZER, ComparisonSettings
from streamtrain.comparison.surface import LossSurface, Snapshot, measure_surface
from streamtrain.errors import Argument, Fix, StreamtrainError, UsageError
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.factory import n_parameters
from streamtrain.models.losses import Loss, LossFunction
from streamtrain.store.dataset import Dataset, opened
from streamtrain.store.schema.matching import matching_was_told
from streamtrain.system.arguments import check_dataset, check_functions
from streamtrain.system.calls.public import public
from streamtrain.system.display.progress_bar import is_shown
from streamtrain.system.files import local_path
from streamtrain.system.memory import held_bytes, trim_heap
from streamtrain.system.units import format_bytes, format_duration
from streamtrain.training.labels.reading import settled
from streamtrain.training.run_folder import check_run, sole_writer

Say = Callable[[str], None]


@public
def compare(
    model: nn.Module,
    dataset: Dataset | str | Path,
    *,
    rules: tuple[str, ...] = ("sample", "batch", "epoch"),
    optimizers: tuple[str, ...] = ("sgd", "adam"),
    lr: Mapping[str, float] | float | None = None,
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
    out: str | Path | None = None,
    about: Mapping[str, object] | None = None,
    on_point: Callable[[ComparedRun, LearningCurvePoint], None] = lambda run, point: None,
    on_runs: Callable[[Comparison], object] = lambda found: None,
    say: Say = lambda text: None,
) -> Comparison:
    """Train copies of a model by every rule with every optimizer, and measure them alike.

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
    lr : float or mapping of str to float, optional
        One for all, or by rule and optimizer (``"sample:sgd"``), by optimizer (``"sgd"``), or for ``"every"`` one, in
        this order of precedence; else the trainer's default.
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
        The mean loss over the training data that each run is timed to; by default half the initial loss, or where that
        is negative, lower by half its size.
    grid : int, optional
        Measure the loss on a grid of this many by this many points around the paths of the weights; by default on none.
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
    out : pathlib.Path, optional
        Folder for the run folders, which are named by rule and optimizer.
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
    dataset, val = opened(dataset), opened(val)
    check_dataset(dataset)
    if val is not None:
        check_dataset(val)
    if about is not None and not isinstance(about, Mapping):
        raise UsageError(f"about is {about!r:.80}; it must be a mapping")
    check_functions(on_point=on_point, on_runs=on_runs, say=say)
    # ComparisonSettings takes the arguments by their names.
    rates = {EVERY_OPTIMIZER: lr} if isinstance(lr, int | float) else {} if lr is None else lr
    setting = ComparisonSettings.of(locals() | {"lr": rates})
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
        out=out,
        about={"dataset": str(dataset.path), **(about or {})},
    )
    with nullcontext() if out is None else _sole_writer(out):
        return _compare(setup, val, on_point, on_runs, say)


def _compare(
    setup: ComparisonSetup,
    val: Dataset | None,
    on_point: Callable[[ComparedRun, LearningCurvePoint], None],
    on_runs: Callable[[Comparison], object],
    say: Say,
) -> Comparison:
    setting, dataset = setup.setting, setup.dataset
    setup.check(val)
    trim_heap()
    before_bytes = held_bytes()
    with ExitStack() as stack:
        stack.enter_context(matching_was_told())
        passes = [stack.enter_context(setup.ordered(data)) for data in ([dataset, val] if val else [dataset])]
        first = setup.first(passes)
        trim_heap()
        setup.measuring_bytes = max(0, held_bytes() - before_bytes)
        runs: list[ComparedRun] = []
        paths: list[tuple[str, list[Snapshot]]] = []
        for pair in setting.pairs():
            run, path = train_run(setup, pair, passes, first, on_point)
            runs.append(run)
            paths.append((run.label, path))
        loss_then = first.train.loss
        found = Comparison(
            runs=tuple(runs),
            target_loss=loss_then - abs(loss_then) / 2 if setting.target_loss is None else setting.target_loss,
            n_samples=len(dataset),
            n_weights=n_parameters(setup.model),
            about=_about(setup),
        )
        if setting.grid is None:
            return found
        on_runs(found)
        return _with_surface(found, setup, passes[0], paths, setting.grid, say)


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


@contextmanager
def _sole_writer(out: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            # Looked at first, so that nothing is made in a place that is taken.
            check_run(out)
            held.enter_context(sole_writer(out))
        except UsageError as error:
            # A comparison cannot be resumed.
            error.fix = Fix("another ", Argument("out"), ", or remove it")
            raise
        yield


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
    trainer = setup.trainer(*next(setup.setting.pairs()))
    with tqdm(total=grid**2, desc="surface", unit=" passes", leave=False, disable=not is_shown(None)) as bar:
        done = partial(bar.update, 1)
        return measure_surface(trainer.model, lambda: trainer.evaluate(ordered).loss, paths, grid=grid, done=done)
