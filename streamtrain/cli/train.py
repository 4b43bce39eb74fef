"""``streamtrain train``: a model on a dataset, within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch

from streamtrain.allocator import keep_little
from streamtrain.arguments import ON_BAD_BLOCK, check_seed
from streamtrain.cli import shares
from streamtrain.cli.common import emit, json_option
from streamtrain.cli.data import INPUT, TARGET, check_alike, doubts, field_of, n_outputs
from streamtrain.cli.resuming import how_to_go_on, say_resumed
from streamtrain.cli.tables import epoch_head, epoch_line
from streamtrain.cli.train_options import Options, parse_betas
from streamtrain.cli.trained import Trained
from streamtrain.errors import BudgetError, StreamtrainError, UsageError
from streamtrain.events import Reserved, tell
from streamtrain.headspace import headspace, kept_bytes
from streamtrain.keeper import ON_CHECKPOINT_FAILURE
from streamtrain.loader import StreamLoader
from streamtrain.losses import default_loss, resolve_loss
from streamtrain.meter import MemoryMeter, held_bytes
from streamtrain.metrics import score_name
from streamtrain.models import build_model, n_parameters
from streamtrain.quarantine import first_rows
from streamtrain.runs import RunFolder, check_free, is_run, newest_run, next_run
from streamtrain.store import Dataset, open_dataset
from streamtrain.stream import normalize_fields
from streamtrain.trainer import Trainer
from streamtrain.units import format_bytes

RUNS: Final = Path("runs")


_path = click.Path(path_type=Path)


@click.command("train", context_settings={"show_default": True})
@click.argument("dest", type=_path)
@click.option("--model", required=True, help="linear, mlp:256,128 (hidden widths), cnn, or FILE.py:FACTORY.")
@click.option("--val", type=_path, help="A dataset to measure on after every epoch; its loader has 1/4 of --memory.")
@click.option(
    "--loss", help="cross_entropy (default for class labels), nll, bce_with_logits, mse (default for floats), l1."
)
@click.option("--update", default="batch", help="The update rule: one step per batch, sample or epoch.")
@click.option("--optimizer", default="adam", help="Any of torch.optim by name: sgd, adam, adamw, rmsprop, ...")
@click.option(
    "--lr", type=float, help="By default torch's own (adam 0.001), for sgd 0.1, or 0.01 with --update sample."
)
@click.option("--momentum", type=float, help="For optimizers that have it.")
@click.option("--betas", callback=parse_betas, metavar="B1,B2", help="For adam and its kin.")
@click.option("--eps", type=float, help="For adam and its kin.")
@click.option("--weight-decay", type=float)
@click.option("--nesterov", is_flag=True, help="For sgd with momentum.")
@click.option("--epochs", type=int, default=5)
@click.option("--max-steps", type=int, help="End at this many steps, if they come before the epochs do.")
@click.option("--batch-size", type=int, default=256, help="Samples of a batch; for other update rules, of a read.")
@click.option("--memory", help="Budget for all that the loaders own; 512MB by default, or what --max-memory leaves.")
@click.option("--max-memory", help="Budget for the whole process; auto is the control group's limit, or the RAM.")
@click.option("--lanes", type=int, help="Lanes of the shuffle; solved from --memory by default.")
@click.option("--drop-last", is_flag=True, help="Leave out a short last batch.")
@click.option("--on-bad-block", type=click.Choice(ON_BAD_BLOCK), default="error", help="End, or leave its samples out.")
@click.option("--seed", type=int, default=0, help="Of the order, the initial weights, and dropout.")
@click.option("--device", default="auto", help="auto (cuda where there is any, else cpu), cpu, cuda, cuda:1, ...")
@click.option(
    "--normalize",
    type=click.Choice(["auto", "none"]),
    default="auto",
    help="auto: (x - mean) / std from the stored statistics, per column for tables; saved with the run.",
)
@click.option("--threads", type=int, help="Threads of torch on the CPU.")
@click.option("--out", type=_path, help="The run's folder; by default runs/N, N being the next free number.")
@click.option("--checkpoint-every", type=int, metavar="BATCHES", help="Save between epochs, and every so many batches.")
@click.option(
    "--on-checkpoint-failure",
    type=click.Choice(ON_CHECKPOINT_FAILURE),
    default="error",
    help="End where a checkpoint cannot be written, or say so and try at the next; exit code 5 if the last one failed.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its newest checkpoint, if it has one.")
@click.option(
    "--log-every", type=int, default=50, metavar="BATCHES", help="Batches between two lines of metrics.jsonl."
)
@click.option("--headspace", is_flag=True, help="Measure at the end how much faster a perfect loader would be.")
@json_option
def command(as_json: bool, **given: Any) -> None:
    """Train a model on the dataset DEST.

    The table on stdout has a line for every epoch. The run's folder holds config.json, metrics.jsonl and checkpoints,
    for `streamtrain evaluate` and --resume. Ctrl-C saves the run before it ends; a second one ends it at once.
    """
    options = Options(**given)
    say: Callable[[str], None] = (lambda _: None) if as_json else click.echo
    trained = _train(options, say)
    emit(as_json, trained.result(), trained.text())
    trained.raise_rest()


def _train(options: Options, say: Callable[[str], None]) -> Trained:
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"threads is {options.threads}; it must be at least 1")
        torch.set_num_threads(options.threads)
    keep_little()
    reserved = held_bytes()
    check_seed(options.seed)
    shares.check_sizes(options.memory, options.max_memory)
    out = _out(options)
    dataset = open_dataset(options.dest)
    val = open_dataset(options.val) if options.val else None
    if val is not None:
        check_alike(dataset, val)
    trainer, about = _make_trainer(options, dataset)
    n_rows = shares.n_rehearsed(dataset, options.batch_size)
    rows = first_rows(dataset, n_rows, forgiving=options.on_bad_block != "error")
    trainer.check(rows, n_classes=dataset.n_classes)
    say(_heading(options, dataset, trainer))
    for doubt in doubts(dataset, options.batch_size):
        click.echo(f"warning: {doubt}", err=True)
    with ExitStack() as stack:
        with ExitStack() as rehearsal:
            # What a step takes is there for milliseconds.
            with MemoryMeter(interval_seconds=0.001) as step:
                rehearsal.enter_context(trainer.working_memory(rows))
            del rows
            meter = stack.enter_context(MemoryMeter())
        tell(Reserved(held_bytes=meter.before_bytes))
        taken = shares.taken(reserved, step, meter)
        options, memory = _shared_out(options, dataset, val, taken)
        loaders = [stack.enter_context(loader) for loader in _make_loaders(options, dataset, val, memory, taken)]
        config = trainer.describe(loaders[0]) | about | _solved(loaders[0], memory)
        run = stack.enter_context(RunFolder(out, config, goes_on=options.resume))
        say(epoch_head(score_name(trainer.loss), with_val=val is not None))
        with how_to_go_on(out):
            history = trainer.fit(
                loaders[0],
                max_epochs=options.epochs,
                max_steps=options.max_steps,
                val=loaders[1] if val else None,
                checkpoint=run,
                checkpoint_every=options.checkpoint_every,
                on_checkpoint_failure=options.on_checkpoint_failure,
                resume="auto" if options.resume else None,
                log_every=options.log_every,
                on_epoch=lambda summary: say(epoch_line(summary)),
                on_resume=partial(say_resumed, out),
            )
        projected = sum(loader.projection.total_bytes for loader in loaders)
    trained = Trained(
        history=history,
        memory={
            "budget": memory,
            "projected": projected,
            "measured": max(0, meter.peak_bytes - taken.step_bytes),
            "step": taken.step_bytes,
            "process": meter.before_bytes + meter.peak_bytes,
        },
        out=out,
        headspace=None,
        quarantined=loaders[0].quarantined,
        val_quarantined=loaders[1].quarantined if val else (),
    )
    return _with_headspace(trained, trainer, options, dataset, memory) if options.headspace else trained


def _shared_out(options: Options, dataset: Dataset, val: Dataset | None, taken: shares.Taken) -> tuple[Options, int]:
    """What the loaders may own, and the options with the lanes that follow from it."""
    least = 1
    if options.max_memory:
        in_order = options.update == "epoch"
        least = shares.least_bytes(dataset, options.batch_size, lanes=options.lanes, shuffle=not in_order)
        if val is not None:
            # The loader that measures has a part of what there is, and the other has the rest.
            least_val = shares.least_bytes(val, min(options.batch_size, len(val)), shuffle=False)
            least = max(-(-least * shares.VAL_SHARE // (shares.VAL_SHARE - 1)), least_val * shares.VAL_SHARE)
    memory = shares.loaders_bytes(options.memory, options.max_memory, taken, least_bytes=least)
    if options.max_memory and not (options.memory or options.lanes):
        of_training = memory - memory // shares.VAL_SHARE if val else memory
        return replace(options, lanes=shares.steady_lanes(dataset, options.batch_size, of_training)), memory
    return options, memory


def _solved(loader: StreamLoader, memory: int) -> dict[str, object]:
    return {"memory": memory, "lanes": loader.sizes.lanes, "groups": loader.sizes.groups}


def _out(options: Options) -> Path:
    """The folder of the run, which may be there already only if the run goes on."""
    if options.resume and options.out is None:
        raise UsageError("--resume without --out", fix=f"--out {newest_run(RUNS) or 'RUN'}")
    out = options.out or next_run(RUNS)
    if not (options.resume and is_run(out)):
        check_free(out)
    return out


def _with_headspace(trained: Trained, trainer: Trainer, options: Options, dataset: Dataset, memory: int) -> Trained:
    """Only after the run, whose weights are saved and whose memory is measured: the trainer goes on training."""
    tell(Reserved(held_bytes=held_bytes() + kept_bytes(dataset)))
    try:
        with next(_make_loaders(options, dataset, None, memory)) as loader:
            return replace(trained, headspace=headspace(trainer, loader))
    except StreamtrainError as error:
        # The run itself is done, and its result is not to be lost.
        click.echo(f"warning: the headspace was not measured: {error}", err=True)
        return trained
    except KeyboardInterrupt as interrupt:
        return replace(trained, interrupt=interrupt)


def _make_trainer(options: Options, dataset: Dataset) -> tuple[Trainer, dict[str, object]]:
    """The trainer, and what its run has to know to build the model again."""
    x, y = field_of(dataset, INPUT), field_of(dataset, TARGET)
    loss = resolve_loss(options.loss or default_loss(torch.from_numpy(np.empty(0, y.dtype)).dtype))
    width = n_outputs(dataset, loss, y)
    trainer = Trainer(
        build_model(options.model, input_shape=x.shape, n_outputs=width, seed=options.seed),
        loss=loss,
        optimizer=options.optimizer,
        lr=options.lr,
        update=options.update,
        # Made here, not by "auto" when training begins: the rows are checked before that.
        normalize=normalize_fields(dataset, (INPUT,)) if options.normalize == "auto" else None,
        device=options.device,
        momentum=options.momentum,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov or None,
    )
    about = {"model": options.model, "input_shape": list(x.shape), "n_outputs": width}
    return trainer, about | {
        "dataset": str(options.dest),
        "dataset_id": dataset.id,
        "max_memory": options.max_memory,
    }


def _make_loaders(
    options: Options, dataset: Dataset, val: Dataset | None, memory: int, taken: shares.Taken | None = None
) -> Iterator[StreamLoader]:
    """The loader to train from, and that to measure on; together they own what the budget allows."""
    try:
        yield from _loaders(options, dataset, val, memory)
    except BudgetError as error:
        if taken is None or options.memory or not options.max_memory:
            raise
        raise shares.of_the_process(error, taken) from error


def _loaders(options: Options, dataset: Dataset, val: Dataset | None, memory: int) -> Iterator[StreamLoader]:
    val_memory = memory // shares.VAL_SHARE if val else 0
    in_order = options.update == "epoch"
    yield StreamLoader(
        dataset,
        batch_size=options.batch_size,
        memory=memory - val_memory,
        seed=options.seed,
        shuffle=not in_order,
        drop_last=options.drop_last,
        lanes=None if in_order else options.lanes,
        device=options.device,
        on_bad_block=options.on_bad_block,
    )
    if val:
        size, on_bad_block = min(options.batch_size, len(val)), options.on_bad_block
        yield shares.make_val_loader(val, size, val_memory, options.device, on_bad_block)


def _heading(options: Options, dataset: Dataset, trainer: Trainer) -> str:
    fields = ", ".join(f"{field.name} {field.dtype.name}{list(field.shape) or ''}" for field in dataset.fields)
    size = f"{len(dataset):,} samples of {fields}, {format_bytes(dataset.nbytes)}"
    lr = trainer.optimizer.param_groups[0]["lr"]
    return (
        f"data    {options.dest}: {size}\n"
        f"model   {options.model}, {n_parameters(trainer.model):,} weights, {trainer.loss.name}\n"
        f"update  {options.update}, {options.optimizer}, lr {lr:g}, on {trainer.device}"
    )
