"""The function `ingest`: arguments checked, the source opened, its dataset or splits written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from streamtrain.errors import Argument, DatasetError, Fix, StreamtrainWarning, UsageError
from streamtrain.ingestion.cluster.portable import absolute, as_given, check_scheduler, one_machine
from streamtrain.ingestion.opening import Given, open_learning_from, open_requested
from streamtrain.ingestion.request import (
    IngestRequest,
    check_option_names,
    parse_request,
)
from streamtrain.ingestion.resume import (
    Say,
    check_destination,
)
from streamtrain.ingestion.sources.base import RowFilter, Source
from streamtrain.ingestion.splits.ingest_splits import ingest_splits
from streamtrain.ingestion.splits.rule import parse_split, row_words, splits_of_words, word_edges
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.store.schema.task import LabelTask
from streamtrain.store.split_root import SplitRule, chosen_split, is_split_root, read_rule, read_splits
from streamtrain.store.writing.journal import Mode
from streamtrain.store.writing.lock import check_unlocked
from streamtrain.store.writing.staging import (
    destination_state,
    has_journal,
    real_path,
    recover_interrupted_swap,
    successor,
)
from streamtrain.system.arguments import check_flags, check_optional_functions
from streamtrain.system.calls.public import public
from streamtrain.system.files import Files, local_path


@public
def ingest(
    source: object,
    dest: str | os.PathLike[str],
    *,
    labels: object = None,
    classes: int | Sequence[str] | None = None,
    task: str | None = None,
    like: str | os.PathLike[str] | Dataset | None = None,
    memory: int | str = "1GB",
    block: int | str | None = None,
    shard: int | str = "64MB",
    codec: str = "auto",
    progress: bool | None = None,
    n_workers: int | None = None,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = False,
    split: Mapping[str, float] | None = None,
    split_by: str | None = None,
    split_how: str | None = None,
    split_seed: int | None = None,
    say: Say | None = None,
    scheduler: object = None,
    **options: object,
) -> Dataset:
    """Store raw data as a dataset: read once, in bounded memory; committed whole or not at all.

    Parameters
    ----------
    source : path, list of paths, array, dict of arrays, data frame, or iterable of dicts of arrays
        Paths are of files, or of a Zarr directory. Frames are of pandas, polars or pyarrow. Also datasets and loaders
        of torch, and datasets that are stored; see `streamtrain.ingestion.sources.registry.open_source`.
    dest : path-like
        The directory to make; nothing may be there, except with ``overwrite``, ``append`` or ``resume``.
    labels : same as source, optional
        What becomes field ``y``.
    classes : int or sequence of str, optional
        How many classes field ``y`` holds, numbered from 0, or their names; other labels are refused. ``"auto"``
        makes each distinct whole number a class. By default numbers are stored as they come, and text is sorted and
        numbered.
    like : Dataset or path-like, optional
        Read the rows like those of another dataset: with its columns, by name, and its categories, fills, classes and
        task. An unknown category becomes "other"; an unknown class is refused. Nothing is learned from the rows.
    task : {"classification", "multilabel", "regression"}, optional
        How labels are read; by default that follows from what they hold, see `Dataset.task`. The stored values do not
        change with it, and a training may override it.
    memory : int or str
        The memory budget of the ingest, in bytes or as text with a unit.
    block : int or str, optional
        Decoded bytes of a block, the unit of reading and shuffling, down to one sample; by default about 512 KiB.
    shard : int or str
        Decoded bytes of a shard file of the largest field.
    codec : {"auto", "none", "lz4", "zstd"}
        The compression; ``"auto"`` compares the sizes of the first blocks.
    progress : bool, optional
        Whether to show a bar on stderr; by default where that is a terminal.
    n_workers : int, optional
        The most threads; by default one per core. The result does not depend on it.
    overwrite : bool
        Replace the dataset at ``dest``, in one step when the new one is finished. Other folders are refused.
    append : bool
        Add the rows after those of the dataset at ``dest``, which keeps its block, shard and codec. Full shards are
        shared with the old one by hard links, and the result takes its place in one step.
    resume : bool
        Resume an interrupted ingest of the same sources and options, or begin if there is none. Not for iterators.
    split : dict of str to float, optional
        The share of each split, ``{"val": 0.1, "test": 0.1}``; train is the rest. At ``dest`` there is then one
        dataset for each, and ``streamtrain.open(dest, split="val")`` opens one.
    split_by : str, optional
        A column of a table, or a field of one number per sample: rows of equal values stay in one split.
    split_how : {"hash", "last"}, optional
        ``"hash"``, the default, draws rows at random; ``"last"`` cuts off the last rows, in the order of
        ``split_by`` or of the source.
    split_seed : int, optional
        Seed of the draw; by default 0.
    say : callable, optional
        Called with a sentence on what an earlier ingest left, and on each split.
    scheduler : str or distributed.Client, optional
        Who makes the shards: by default threads of this process; ``"processes"``, ``n_workers`` of them on this
        machine, which share ``memory``; or the workers of a dask cluster, by the address of its scheduler
        (``"tcp://host:8786"``) or a client, each within ``memory``. The result does not depend on it.
    **options
        How to read it. Arrays: ``dtype``, ``shape``, ``fields``; of HDF5 and Zarr ``fields={"x": "/path"}``, ``decode``
        ("cf", or "raw": as stored) and ``sample_axis`` (0). Tables and frames: ``label_column``, ``columns`` or
        ``exclude``, ``weight_column``, ``id_column``; ``auto=True`` reads each column as what it holds, or name them:
        ``categorical`` (with ``category_min_count``, ``category_limit``, ``hash``), ``dates={"day": "days"}``
        (with ``timezone``). Missing values: ``na`` ("error", "drop", "fill=mean", "fill=0"), ``na_mask``, ``nan``,
        ``drop_unlabelled``. Delimited text: ``header`` ("first", or "none" with ``names``), ``delimiter`` ("auto", or a
        character), ``encoding`` ("utf-8"), and ``na_values``, the texts that mean missing.

    Returns
    -------
    Dataset
        The committed dataset, open; with splits, that of ``train``.

    Raises
    ------
    UsageError
        An argument is wrong, or something is at ``dest``.
    InputError
        The raw data is bad, or appended rows do not fit; nothing of it can be opened.
    DatasetError
        An interrupted ingest is at ``dest``, or the one to resume had other sources or options.
    BudgetError
        ``memory`` is too small; the message has the smallest that works.
    ResourceError
        The disk is full or cannot be written; what was done stays for ``resume``.
    LockedError
        Another process is writing ``dest``.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> rows = {"x": np.arange(20.0).reshape(10, 2), "y": np.arange(10) // 5}
    >>> dataset = ingest(rows, tempfile.mkdtemp() + "/d.zarr", codec="none")
    >>> len(dataset), dataset[3]["x"].tolist(), dataset.label_histogram.counts.tolist()
    (10, [6.0, 7.0], [5, 5])
    >>> len(ingest(rows, dataset.path, append=True))
    20
    """
    check_option_names(options, ingest)
    check_flags(overwrite=overwrite, append=append, resume=resume)
    check_optional_functions(say=say)
    request = parse_request(
        memory=memory,
        block=block,
        shard=shard,
        codec=codec,
        n_workers=n_workers,
        progress=progress,
        classes=classes,
        task=task,
        **options,
    )
    rule = parse_split(split, by=split_by, how=split_how, seed=split_seed)
    given = given_to(scheduler, request, rule, Given(source=source, labels=labels, like=like))
    mode = parse_mode(overwrite=overwrite, append=append)
    begun = begin(given, dest, request, rule, mode, resume=resume, say=say)
    request, opened, path, rule = begun.request, begun.opened, begun.path, begun.rule
    if rule is None:
        if scheduler is not None:
            as_given(opened, source, labels)
        dataset = run_ingest(opened, path, request, mode=mode, resume=resume, say=say, scheduler=scheduler)
    else:
        learns = like is None and begun.given.base is None and begun.learn_from is None
        anew = partial(open_learning_from, begun.given, request) if learns else None
        dataset = ingest_splits(opened, path, request, rule, mode=mode, resume=resume, learns_anew=anew, say=say)
    before = None if begun.given.base is None else begun.given.base.label_task()
    _tell_other_task(before, dataset, say)
    dataset.path = local_path(dest) / dataset.path.relative_to(path)  # which may be a link to it
    return dataset


def given_to(scheduler: object, request: IngestRequest, rule: SplitRule | None, given: Given) -> Given:
    """Refuse what a cluster does not do; return what is ingested, by the paths that workers know it by."""
    check_scheduler(scheduler)
    if scheduler is None:
        return given
    if rule is not None:
        raise one_machine("split", "Splits are divided while the rows are read in order")
    if request.options.table.auto or request.options.table.categorical:
        name = "auto" if request.options.table.auto else "categorical"
        raise one_machine(name, "Such columns are read in order")
    return replace(given, source=absolute(given.source), labels=absolute(given.labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunIngest:
    """An ingest whose arguments and destination are checked, and whose source is open."""

    request: IngestRequest
    opened: Source
    given: Given
    path: Path
    rule: SplitRule | None
    learn_from: RowFilter | None


def parse_mode(*, overwrite: bool, append: bool) -> Mode:
    """Return what is done with a dataset that is there."""
    if overwrite and append:
        raise UsageError("overwrite and append exclude each other", fix="choose one of them")
    return "overwrite" if overwrite else "append" if append else "create"


def begin(
    given: Given,
    dest: str | os.PathLike[str],
    request: IngestRequest,
    rule: SplitRule | None,
    mode: Mode,
    *,
    resume: bool,
    say: Say | None,
    writes: bool = True,
) -> BegunIngest:
    """Check the destination and open the source; with ``writes`` a dataset that lost its name gets it back."""
    path = real_path(local_path(dest))
    if writes:
        check_unlocked(path)
        recover_interrupted_swap(path, Files())
    check_destination(path, mode, resume=resume)
    rule = _rule_at(path, rule, mode, resume=resume)
    given = replace(given, base=_appended_to(path, mode), is_resumed=resume, scratch=path.parent)
    _check_same_task(None if given.base is None else given.base.label_task(), request, dest)
    learn_from = _train_rows(rule)
    request, opened = open_requested(given, request, mode, learn_from, say)
    return BegunIngest(request=request, opened=opened, given=given, path=path, rule=rule, learn_from=learn_from)


def _rule_at(path: Path, rule: SplitRule | None, mode: Mode, *, resume: bool) -> SplitRule | None:
    """Return the rule to divide rows by: an append follows that of the root that is there."""
    if is_split_root(path.parent):
        found = read_rule(path.parent)
        if found is not None and path.name in found.names:
            fix = Fix("give the folder above, of all splits: ", repr(str(path.parent)))
            raise UsageError("this is one of several splits, which are written together", where=str(path), fix=fix)
    if rule is None and mode == "append" and (root := read_splits(path)) is not None:
        return root.rule
    begun = path if destination_state(path) == "incomplete" else successor(path)
    if resume and has_journal(begun) and is_split_root(begun) != (rule is not None):
        there = "with splits" if is_split_root(begun) else "without splits"
        fix = Fix("give what it was begun with; or ingest from the start with ", Argument("overwrite", True))
        raise DatasetError(f"the interrupted ingest was begun {there}", where=str(path), fix=fix)
    return rule


def _train_rows(rule: SplitRule | None) -> RowFilter | None:
    """Say of each row whether it is one of train, where that follows from its number; None where it does not."""
    if rule is None or rule.how != "hash" or rule.by is not None:
        return None
    edges = word_edges(rule)
    return lambda start, stop: splits_of_words(row_words(rule, start, stop), edges) == 0


def _appended_to(path: Path, mode: Mode) -> Dataset | None:
    """Open the dataset that rows are appended to, of splits train."""
    if mode != "append" or destination_state(path) != "committed":
        return None
    return open_dataset(path, split=chosen_split(path))


def _check_same_task(before: LabelTask | None, request: IngestRequest, dest: str | os.PathLike[str]) -> None:
    """Refuse a task of rows to append that is not the dataset's: it is one for all rows."""
    if before is not None and request.task not in (None, before.name):
        what = f"task is {request.task!r}, and that of the dataset {before.name!r}"
        raise UsageError(what, where=str(dest), fix="leave it out, and give it to the training")


def _tell_other_task(before: LabelTask | None, dataset: Dataset, say: Say | None) -> None:
    """Warn where the rule says otherwise of the labels after an append."""
    now = dataset.label_task()
    if before is None or now is None or before.name == now.name:
        return
    text = f"before the append its labels were read as {before.name or 'undecided'}, now as {now.name or 'undecided'}"
    if say is None:
        warnings.warn(StreamtrainWarning(text, fix=Fix(Argument("task", before.name))), stacklevel=4)
    else:
        say(Fix(f"warning: {text}: ", Argument("task", before.name)))
