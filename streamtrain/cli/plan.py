"""``streamtrain plan DEST``: memory, reads and shuffle quality of a training run before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamtrain.cli.output import emit, json_option
from streamtrain.cli.preparation.raw_files import refuse_raw_file
from streamtrain.errors import Lines
from streamtrain.shuffle.order import ORDER_VERSION
from streamtrain.system.units import format_bytes

if TYPE_CHECKING:
    from streamtrain.loader.budget import OrderExpectation
    from streamtrain.loader.plan import Plan, ReadCounts
    from streamtrain.shuffle.quality import ShuffleQuality
    from streamtrain.store.dataset import Dataset


@click.command("plan", context_settings={"show_default": True})
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--batch-size", type=int, default=256, help="Samples of a batch.")
@click.option("--memory", default="512MB", help="Budget for all that the loader owns, with a unit.")
@click.option("--lanes", type=int, help="Lanes of the shuffle; solved from --memory by default.")
@click.option("--groups", type=int, help="Groups the lanes are dealt to; follows from batch size and blocks.")
@click.option("--drop-last", is_flag=True, help="Leave out a short last batch.")
@click.option("--seed", type=int, default=0, help="Of the order.")
@json_option
def plan_command(
    dest: Path,
    batch_size: int,
    memory: str,
    lanes: int | None,
    groups: int | None,
    drop_last: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Show what training on the dataset DEST will take and how well it will be shuffled.

    Memory term by term, lanes, reads and steps of an epoch, the shuffle's quality on the stored labels, and the memory
    at which batches would vary no more than those of a full random reshuffle. Batch variance is how much the labels of
    a batch vary from batch to batch, drift how far an epoch's beginning strays from the whole; less is better.
    """
    from streamtrain.loader.plan import plan
    from streamtrain.store.dataset import open_preferred

    refuse_raw_file(dest)
    dataset = open_preferred(dest)
    order: dict[str, Any] = {"lanes": lanes, "groups": groups, "seed": seed}
    found = plan(dataset, batch_size=batch_size, memory=memory, drop_last=drop_last, **order)
    emit(as_json, _result(dataset, found), _text(dataset, found))


def _result(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    sizes, enough, expected = plan.sizes, plan.enough, plan.projection.expected
    assert expected is not None
    return {
        "dataset": str(dataset.path),
        "id": dataset.id,
        "samples": len(dataset),
        "blocks": dataset.layout.n_blocks,
        "block_rows": dataset.layout.block_rows,
        "memory": {
            "budget": plan.projection.budget_bytes,
            "projected": plan.projection.total_bytes,
            "terms": plan.projection.terms,
        },
        "batch_size": sizes.batch_size,
        "order": ORDER_VERSION,
        "lanes": sizes.lanes,
        "groups": sizes.groups,
        "samples_of_one_block_in_a_batch": expected.same_block,
        "at_most": {"batch_variance_ratio": expected.variance, "prefix_drift_ratio": expected.drift},
        "slots": sizes.slots,
        "prefetch": sizes.prefetch,
        "reads": {"first_epoch": _reads(plan.first), "later_epochs": _reads(plan.later)},
        "steps_per_epoch": _steps(dataset, plan),
        "rho": dataset.rho,
        "quality": _quality(plan.quality),
        "quality_not_measured_because": plan.why or None,
        "as_good_as_random": {
            "memory": enough.memory_bytes,
            "lanes": enough.lanes,
            "quality": _quality(enough.quality),
        }
        if enough
        else None,
        "with_most_lanes": _quality(plan.most),
    }


def _steps(dataset: Dataset, plan: Plan) -> dict[str, int]:
    """Count the steps of an epoch under each update rule; under ``epoch`` one pass over all samples is one step."""
    in_batches = min(len(dataset), plan.n_batches * plan.sizes.batch_size)
    return {"batch": plan.n_batches, "sample": in_batches, "epoch": 1}


def _reads(reads: ReadCounts) -> dict[str, Any]:
    return {"blocks": reads.n_blocks, "bytes": reads.stored_bytes, "ratio": round(reads.ratio, 4)}


def _quality(quality: ShuffleQuality | None) -> dict[str, Any] | None:
    if quality is None:
        return None
    return {
        "samples_measured": quality.n_samples,
        "batch_variance_ratio": quality.variance,
        "prefix_drift_ratio": quality.drift,
        "block_pair_coincidence": quality.coincidence,
        "as_good_as_random": quality.is_random,
    }


def _text(dataset: Dataset, plan: Plan) -> str:
    from streamtrain.loader.plan import few_lanes

    layout, sizes, expected = dataset.layout, plan.sizes, plan.projection.expected
    assert expected is not None
    steps = _steps(dataset, plan)
    facts = {
        "dataset": f"{dataset.path}: {len(dataset):,} samples in {_blocks(layout.n_blocks)} of {layout.block_rows:,}, "
        f"{format_bytes(dataset.nbytes)}, stored in {format_bytes(dataset.stored_bytes)} ({layout.codec})",
        "memory": str(plan.projection),
        "shuffle": f"{_lanes(sizes.lanes)} in {sizes.groups} group{'s' * (sizes.groups > 1)}, "
        f"{min(sizes.lanes / layout.n_blocks, 1):.2%} of the blocks at a time; room for {sizes.prefetch:,} read ahead",
        "reads": f"about {_reads_text(plan.first)} in the first epoch, {_later_text(plan.later)} in a later one",
        "lanes": few_lanes(layout, sizes, plan.projection.budget_bytes),
        "steps": f"{steps['batch']:,} in an epoch of batches of {sizes.batch_size:,}; "
        f"{steps['sample']:,} with --update sample, 1 with --update epoch",
        "labels": _labels_text(dataset, plan),
        "quality": _quality_text(plan.quality) if plan.quality else _unmeasured_text(plan.why, expected),
        "random": _random_text(plan),
    }
    return Lines.of(f"{name:<8} {value}" for name, value in facts.items() if value)


def _lanes(lanes: int) -> str:
    return f"{lanes:,} lane{'s' * (lanes != 1)}"


def _blocks(n_blocks: int) -> str:
    return f"{n_blocks:,} block{'s' * (n_blocks != 1)}"


def _reads_text(reads: ReadCounts) -> str:
    return f"{_blocks(reads.n_blocks)} ({reads.ratio:.3f} of those stored, {format_bytes(reads.stored_bytes)})"


def _later_text(reads: ReadCounts) -> str:
    return f"about {_reads_text(reads)}" if reads.n_blocks else "none (all of it stays in memory)"


def _labels_text(dataset: Dataset, plan: Plan) -> str:
    histogram = dataset.label_histogram
    rho = "" if dataset.rho is None else f", correlation inside blocks {round(dataset.rho, 3) + 0.0:.3f}"
    if plan.quality is None:
        return ""
    return (f"{len(histogram.values):,} classes" if histogram else "numbers") + rho


def _quality_text(quality: ShuffleQuality) -> str:
    met = (
        ""
        if quality.coincidence is None
        else f", the same blocks meet in a batch {quality.coincidence:.3g} times as often"
    )
    return (
        f"batch variance {quality.variance:.3g} times a full reshuffle's, drift {quality.drift:.3g} times{met}; "
        f"over {quality.n_samples:,} samples of epoch 0"
    )


def _unmeasured_text(why: str, expected: OrderExpectation) -> str:
    from streamtrain.loader.plan import ONE_BATCH

    if why == ONE_BATCH:
        return why
    return (
        f"not measured: {why}; batch variance at most {expected.variance:.3g} times a full reshuffle's, drift at most "
        f"{expected.drift:.3g} times"
    )


def _random_text(plan: Plan) -> str:
    """Describe the memory it takes to be as good as random."""
    if plan.quality is None or plan.most is None:
        return ""
    enough = plan.enough
    if enough is None:
        return f"no memory makes batches vary as little as a full reshuffle's: at best {plan.most.variance:.3g} times"
    return (
        f"from --memory {format_bytes(enough.memory_bytes).replace(' ', '')} on, with {enough.lanes:,} lanes, batches "
        f"vary no more than a full reshuffle's; drift is {enough.quality.drift:.3g} times then"
    )
