"""``streamtrain plan DEST``: memory, reads and shuffle quality of a training run before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from streamtrain.cli.commands.sections import command, option
from streamtrain.cli.commands.values import DATASET, SIZE
from streamtrain.cli.output import as_command_line, emit, json_option
from streamtrain.cli.preparation.raw_files import refuse_raw_file
from streamtrain.errors import Lines
from streamtrain.system.units import counted, format_bytes, megabytes, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamtrain.loader.budget import OrderExpectation
    from streamtrain.loader.plan import Plan, RankPlan, ReadCounts
    from streamtrain.shuffle.quality import ShuffleQuality
    from streamtrain.store.dataset import Dataset


@command(
    "plan",
    context_settings={"show_default": True},
    examples=("streamtrain plan flights", "streamtrain plan flights --batch-size 1024 --memory 64MB"),
    page="concepts",
)
@click.argument("dest", type=DATASET)
@option("--batch-size", type=int, default=256, help="Samples per batch.")
@option("--memory", type=SIZE, default="512MB", help="Memory budget for the loaders.")
@option(
    "--val",
    type=DATASET,
    help="Validation data, which takes 1/4 of --memory; by default split val of DEST, if there is one.",
)
@option("--lanes", type=int, help="Streams of blocks that batches draw from; by default as many as fit in --memory.")
@option("--groups", type=int, help="Groups of lanes; by default set by batch size and blocks.")
@option("--ranks", type=int, metavar="N", help="Show what each rank holds when N ranks share the batches.")
@option("--drop-last", is_flag=True, help="Leave out the last batch if it is short.")
@option("--seed", type=int, default=0, help="Seed of the order.")
@option("--images", metavar="[CROP:]SIZE", help="Size to decode images to, as for train.")
@json_option
def plan_command(
    dest: Path,
    batch_size: int,
    memory: str,
    val: Path | None,
    lanes: int | None,
    groups: int | None,
    ranks: int | None,
    drop_last: bool,
    seed: int,
    images: str | None,
    as_json: bool,
) -> None:
    """Show what training on the dataset DEST will take and how well it will be shuffled.

    It shows memory term by term, lanes, reads and steps of an epoch, the shuffle's quality on the stored labels, and
    the memory at which batches vary no more than under a full random reshuffle. Batch variance measures how much the
    labels differ from batch to batch, drift how far an epoch's beginning strays from the whole; less is better.
    """
    from streamtrain.cli.preparation.images import seen_as
    from streamtrain.loader.budget_shares import (
        check_shared_memory,
        eval_loader_bytes,
        smallest_budget_bytes,
        smallest_shared_budget_bytes,
    )
    from streamtrain.loader.decode.image_dataset import decode_to_measure, with_images
    from streamtrain.loader.plan import plan
    from streamtrain.store.dataset import open_preferred

    refuse_raw_file(dest)
    dataset = seen_as(open_preferred(dest), images)
    order: dict[str, Any] = {"lanes": lanes, "groups": groups, "seed": seed, "ranks": ranks}
    whole = parse_bytes(memory, name="memory")
    validation = _validation(dest, val)
    if validation is not None:
        validation = with_images(validation, decode_to_measure(getattr(dataset, "decode", None)))
    measuring = _least_to_measure(validation, batch_size)
    if measuring:
        check_shared_memory(
            whole, smallest_budget_bytes(dataset.layout, batch_size, lanes=lanes, groups=groups), measuring
        )
    of_validation = eval_loader_bytes(whole) if measuring else 0
    found = plan(dataset, batch_size=batch_size, memory=whole - of_validation, drop_last=drop_last, **order)
    if found.enough is not None:
        # What is named is the budget of all loaders, as --memory has it.
        in_all = smallest_shared_budget_bytes(found.enough.memory_bytes, measuring)
        found = replace(found, enough=replace(found.enough, memory_bytes=in_all))
    result = _result(dataset, found) | {"validation_memory": of_validation}
    emit(as_json, result, _text(dataset, found, of_validation))


def _least_to_measure(val: Dataset | None, batch_size: int) -> list[int]:
    """Find the least memory of the loader that measures, if there is one."""
    from streamtrain.loader.budget_shares import smallest_budget_bytes
    from streamtrain.system.arguments import check_batch_size

    if val is None:
        return []
    check_batch_size(batch_size, batch_size, drop_last=False)
    return [smallest_budget_bytes(val.layout, min(batch_size, len(val)), shuffle=False)]


def _validation(dest: Path, val: Path | None) -> Dataset | None:
    """Open the data that training measures on: as named, else split val of the training data; None without any."""
    from streamtrain.store.dataset import open_dataset, open_preferred
    from streamtrain.store.split_root import VAL, chosen_split
    from streamtrain.system.files import local_path

    if val is None:
        return open_dataset(dest, split=VAL) if chosen_split(local_path(dest), VAL) == VAL else None
    return None if val == Path("none") else open_preferred(val, VAL)


def _result(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    from streamtrain.shuffle.order import ORDER_VERSION

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
        "ranks": _ranks(plan.ranks),
    }


def _ranks(ranks: RankPlan | None) -> dict[str, Any] | None:
    """Give the values of one rank of several."""
    if ranks is None:
        return None
    return {
        "world_size": ranks.world_size,
        "batch_size": ranks.local_batch_size,
        "last_batch": ranks.last_batch,
        "lanes": ranks.sizes.lanes,
        "groups": ranks.sizes.groups,
        "memory": {"projected": ranks.projection.total_bytes, "terms": ranks.projection.terms},
        "reads": {"first_epoch": _reads(ranks.first), "later_epochs": _reads(ranks.later)},
        "possible_world_sizes": ranks.possible,
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
        "epochs_measured": quality.n_epochs,
        "batch_variance_ratio": quality.variance,
        "prefix_drift_ratio": quality.drift,
        "block_pair_coincidence": quality.coincidence,
        "as_good_as_random": quality.is_random,
    }


_TERMS: Final = {
    "lanes": "blocks that the shuffle draws samples from",
    "prefetch": "blocks read ahead of them",
    "cache": "blocks kept for the next epoch",
    "batches": "batches gathered ahead of the training",
    "decoding": "blocks while they are decompressed",
    "order": "which block and row comes when",
    "index work": "numbers while a stretch of the order is computed",
    "checksums": "those of the stored blocks",
    "threads": "the threads that read, and their objects",
    "reserve": "for what the allocator keeps",
    "pages": "memory that is mapped in whole pages",
    "device": "blocks and batches on the device",
}
"""The contents of each term of the memory."""


def _text(dataset: Dataset, plan: Plan, of_validation: int) -> str:
    from streamtrain.loader.plan import few_lanes

    layout, sizes, expected = dataset.layout, plan.sizes, plan.projection.expected
    assert expected is not None
    steps = _steps(dataset, plan)
    stored = f"stored in {format_bytes(dataset.stored_bytes)} ({layout.codec})"
    rows = f"{counted(len(dataset), 'sample')} in {counted(layout.n_blocks, 'block')} of {layout.block_rows:,}"
    share = min(sizes.lanes / layout.n_blocks, 1)
    few = few_lanes(layout, sizes, plan.projection.budget_bytes, n_measuring=int(of_validation > 0))
    facts = [
        ("dataset", f"{dataset.path}: {rows}, {format_bytes(dataset.nbytes)}, {stored}"),
        ("memory", _memory_text(plan, of_validation)),
        *(("", line) for line in _term_lines(plan)),
        (
            "shuffle",
            f"{counted(sizes.lanes, 'lane')} in {counted(sizes.groups, 'group')}, {share:.2%} of the "
            f"blocks at a time: a batch draws its samples from all lanes; room for {sizes.prefetch:,} read ahead",
        ),
        ("reads", f"about {_reads_text(plan.first)} in the first epoch"),
        ("", f"{_later_text(plan.later)} in a later one"),
        ("lanes", few and as_command_line(few)),
        (
            "steps",
            f"{steps['batch']:,} in an epoch of batches of {sizes.batch_size:,}; {steps['sample']:,} with "
            "--update sample, 1 with --update epoch",
        ),
        ("labels", _labels_text(dataset, plan)),
        *zip(("quality", "", ""), _quality_lines(plan, expected), strict=False),
        ("random", _random_text(plan, plan.projection.budget_bytes + of_validation)),
        *zip(("ranks", *[""] * 3), _rank_lines(plan.ranks), strict=False),
    ]
    return Lines.of(f"{name:<8} {value}" for name, value in facts if value)


def _memory_text(plan: Plan, of_validation: int) -> str:
    projection = plan.projection
    total = f"{format_bytes(projection.total_bytes)} of {format_bytes(projection.budget_bytes)}"
    if not of_validation:
        return total
    return f"{total} for training, which has 3/4; validation has 1/4, {format_bytes(of_validation)}"


def _term_lines(plan: Plan) -> Iterator[str]:
    """Write each term of the memory in a line, with what is in it; of those that take nothing, none."""
    terms = {name: format_bytes(n_bytes) for name, n_bytes in plan.projection.terms.items() if n_bytes}
    for name, size in terms.items():
        text = _TERMS.get(name)
        yield f"{name:<10} {size:>9}{f'  {text}' if text else ''}"


def _rank_lines(ranks: RankPlan | None) -> list[str]:
    """Say what one rank of several has."""
    if ranks is None:
        return []
    projection, last = ranks.projection, sorted({*ranks.last_batch}, reverse=True)
    memory = f"{format_bytes(projection.total_bytes)} of {format_bytes(projection.budget_bytes)}"
    empty = "; a rank without samples takes the step as well" if 0 in last else ""
    return [
        f"each of {ranks.world_size} has {counted(ranks.local_batch_size, 'sample')} of a batch, of the last one "
        f"{' or '.join(f'{n:,}' for n in last)}{empty}",
        f"{counted(ranks.sizes.lanes, 'lane')} and {memory} each",
        f"about {_reads_text(ranks.first)} each in the first epoch, {_later_text(ranks.later)} in a later one",
        f"{', '.join(map(str, ranks.possible))} ranks can share these batches and groups",
    ]


def _reads_text(reads: ReadCounts) -> str:
    return f"{counted(reads.n_blocks, 'block')} ({reads.ratio:.3f} of those stored, {format_bytes(reads.stored_bytes)})"


def _later_text(reads: ReadCounts) -> str:
    return f"about {_reads_text(reads)}" if reads.n_blocks else "none (all of it stays in memory)"


def _labels_text(dataset: Dataset, plan: Plan) -> str:
    histogram = dataset.label_histogram
    rho = "" if dataset.rho is None else f", correlation inside blocks {round(dataset.rho, 3) + 0.0:.3f}"
    if plan.quality is None:
        return ""
    n = len(histogram.values) if histogram else 0
    if dataset.task == "classification":
        return f"{n:,} class{'es' * (n != 1)}{rho}"
    return (f"{n:,} value{'s' * (n != 1)}" if n else "numbers") + rho


def _quality_lines(plan: Plan, expected: OrderExpectation) -> list[str]:
    """Write a line for each figure of the shuffle, with what it is."""
    from streamtrain.loader.plan import ONE_BATCH

    if plan.why == ONE_BATCH:
        return [plan.why]
    quality = plan.quality
    figures: ShuffleQuality | OrderExpectation = quality or expected
    how = f"at the most (not measured: {plan.why})"
    if quality is not None:
        epochs = "epoch 0" if quality.n_epochs == 1 else f"each of {quality.n_epochs} epochs"
        how = f"over {counted(quality.n_samples, 'sample')} of {epochs}"
    variance = _against_reshuffle(figures.variance, is_random=quality is not None and quality.is_random)
    lines = [
        f"batch variance {variance}, {how}: how much labels vary from batch to batch",
        f"drift {_against_reshuffle(figures.drift)}: how far the beginning of an epoch strays from the whole",
    ]
    if quality is not None and quality.coincidence is not None:
        lines.append(f"the same blocks meet in a batch {quality.coincidence:.3g} times as often as in a full reshuffle")
    return lines


def _against_reshuffle(ratio: float, *, is_random: bool = False) -> str:
    """Compare a figure of the shuffle, of which less is better, with a full reshuffle's."""
    from streamtrain.shuffle.quality import AS_GOOD

    if ratio < AS_GOOD:
        return "as good as a full reshuffle"
    return f"{ratio:.3g} times a full reshuffle's{', which is within chance' if is_random else ''}"


def _random_text(plan: Plan, budget: int) -> str:
    """Describe the memory it takes to be as good as random."""
    if plan.quality is None or plan.most is None:
        return ""
    enough = plan.enough
    if enough is None:
        least = min(plan.most.variance, plan.quality.variance)
        return f"no memory makes batches vary as little as a full reshuffle's: at best {least:.3g} times"
    is_there = enough.memory_bytes <= budget and not plan.quality.is_random
    given = "without --lanes and --groups, " if is_there else ""
    return (
        f"{given}from --memory {megabytes(enough.memory_bytes)} on, with {counted(enough.lanes, 'lane')}, batch "
        f"variance is as good as a full reshuffle; drift is then {_against_reshuffle(enough.quality.drift)}"
    )
