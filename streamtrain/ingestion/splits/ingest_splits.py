"""Splits written: each a dataset of its own in one root, all or none.

::

    DEST, or .DEST.new where something is there     the root being made
        _streamtrain/journal     what it is made of; removed last
        _streamtrain/splits.json its rule
        _streamtrain/spool       rows read once, and the split of each
        train, val, ...          datasets, written one after another as any ingest writes one
        zarr.json                written when all of them are whole

The root takes its place as a dataset does. An append begins with links to the files of the splits that are there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Final

import numpy as np

from streamtrain.errors import (
    Argument,
    BudgetError,
    Fix,
    InputError,
    StreamtrainError,
    StreamtrainWarning,
    UsageError,
    printable,
)
from streamtrain.ingestion.append import in_columns_of
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.resume import (
    Say,
    check_destination,
    check_finished_ingest,
    check_outside,
    check_rereadable,
    discard_interrupted,
    is_fingerprinted,
    is_rereadable,
    missing_journal_error,
    publish_and_tidy,
    refuse_differences,
    told_differences,
)
from streamtrain.ingestion.sources.base import RowFilter, Source
from streamtrain.ingestion.sources.tables.roles.choice import missing_rule
from streamtrain.ingestion.splits.division import Division, SplitSource, check_not_empty, divide, wanted_shares
from streamtrain.ingestion.splits.rule import FEW_GROUPS
from streamtrain.ingestion.splits.spool import spooled
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.store import zarr_metadata
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.store.manifest import Json, dump_json, load_json
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.shard import DamagedShard, read_bounded
from streamtrain.store.split_root import TRAIN, SplitRoot, SplitRule, mark_bytes, mark_path, read_splits, root_bytes
from streamtrain.store.writing.journal import JOURNAL, MOST_JOURNAL_BYTES, Mode
from streamtrain.store.writing.lock import lock_path, writer_lock
from streamtrain.store.writing.staging import (
    SPOOL,
    begin_folder,
    check_names,
    check_ours,
    destination_state,
    has_journal,
    remove_dataset,
    successor,
    temporaries,
    tidy,
)
from streamtrain.system.files import Files, is_there, status_of, walk
from streamtrain.system.refusals import translate_os_errors

_N_SHOWN: Final = 5
_WARNING: Final = "warning: "
_IS_WHOLE: Final = "is_whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is written where."""

    path: Path
    folder: Path  # the destination itself, if nothing was there
    source: Source
    rule: SplitRule
    request: IngestRequest
    base: SplitRoot | None  # the root that is appended to
    learns_anew: Callable[[RowFilter], Source] | None
    header: Json
    files: Files
    say: Say
    warn: Say
    resumes: bool = False

    @property
    def spool(self) -> Path:
        """The folder for what the splits are made of."""
        return self.folder / SPOOL


def ingest_splits(
    source: Source,
    path: Path,
    request: IngestRequest,
    rule: SplitRule,
    *,
    files: Files | None = None,
    mode: Mode = "create",
    resume: bool = False,
    learns_anew: Callable[[RowFilter], Source] | None = None,
    say: Say | None = None,
) -> Dataset:
    """Write the splits of a source, as the only writer of their root; return the open dataset of train.

    ``learns_anew`` opens the source again, to learn what it learns from some of its rows.
    """
    files = files or Files()
    warn: Say = _warn if say is None else partial(_say_warning, say)
    say = say or _say_nothing
    if resume:
        check_rereadable(source)
    check_outside(path, source)
    check_names(path, [*(field.name for field in source.fields), *rule.names])
    _check_can_append(path, rule, mode)
    with writer_lock(path, files):
        tidy(path, files)
        check_destination(path, mode, resume=resume)
        base = read_splits(path) if mode == "append" else None
        if base is not None:
            check_ours(path)
            source = in_columns_of(open_dataset(path, split=TRAIN).schema, source)
        work = _Work(
            path=path,
            folder=path if destination_state(path) != "committed" else successor(path),
            source=source,
            rule=rule,
            request=request,
            base=base,
            learns_anew=learns_anew if _learns(source, request) else None,
            header=_header(source, request, rule, mode, base),
            files=files,
            say=say,
            warn=warn,
        )
        if not (resume and _resumed(work, mode)):
            discard_interrupted(path, mode, files)
            _begin(work)
            _write(work)
        return open_dataset(path, split=TRAIN)


def _learns(source: Source, request: IngestRequest) -> bool:
    """Say whether means or categories of a table are learned from its rows."""
    facts = source.schema_facts
    if facts is None:
        return False
    has_names = any(category.hash_size is None for category in facts.categories)
    return has_names or (bool(facts.fills) and missing_rule(request.options.table)[0] == "mean")


def _say_nothing(text: str) -> None:
    """Say nothing."""


def _say_warning(say: Say, text: str) -> None:
    say(f"warning: {text}")


def _warn(text: str) -> None:
    warnings.warn(text, StreamtrainWarning, stacklevel=6)


def _check_can_append(path: Path, rule: SplitRule, mode: Mode) -> None:
    if mode != "append" or destination_state(path) != "committed":
        return
    base = read_splits(path)
    if base is None:
        what = "the dataset has no splits, so no rows can be appended to them"
        raise UsageError(what, where=str(path), fix="leave split out, to append to the dataset as it is")
    if base.rule != rule:
        found = told_differences(base.rule.as_json(), rule.as_json())
        raise UsageError(
            f"the splits there were made differently: {'; '.join(found[:_N_SHOWN])}",
            where=str(path),
            fix="leave split out: an append divides its rows as the others were",
        )
    if rule.how == "last":
        raise UsageError(
            "no rows can be appended to splits in order",
            where=str(path),
            why="The last rows would then be different ones, and rows would change their split",
            fix="ingest all sources again",
        )


def _header(source: Source, request: IngestRequest, rule: SplitRule, mode: Mode, base: SplitRoot | None) -> Json:
    return {
        "mode": mode,
        "version": version_of("streamtrain"),
        "splits": rule.as_json(),
        "base": None if base is None else dict(base.ids),
        "fields": {field.name: f"{field.dtype.name} {field.shape}" for field in source.fields},
        "classes": None if source.classes is None else list(source.classes),
        "sources": list(source.provenance),
        "options": request.as_json(),
    }


def _begin(work: _Work) -> None:
    def begin(fresh: Path) -> None:
        work.files.write_bytes(mark_path(fresh), mark_bytes(work.rule))
        work.files.write_bytes(fresh / JOURNAL, dump_json(work.header))

    begin_folder(work.folder, work.path, begin, work.files)


def _resumed(work: _Work, mode: Mode) -> bool:
    """Finish an interrupted ingest, or find it finished; False where there is nothing to resume."""
    if not has_journal(work.folder):
        if destination_state(work.folder) == "incomplete":
            raise missing_journal_error(work.path)
        return _is_complete(work, mode)
    there = load_json(read_bounded(work.folder / JOURNAL, MOST_JOURNAL_BYTES), where=str(work.folder / JOURNAL))
    is_whole = there.pop(_IS_WHOLE, False)
    if there.get("mode") != "append" and mode != "append":
        there["mode"] = mode  # an overwrite is resumed as what it is, too, once nothing is there
    refuse_differences(there, work.header, work.path, "was begun")
    for temporary in temporaries(work.folder):
        with translate_os_errors("remove", temporary):
            work.files.unlink(temporary)
    if is_whole:
        work.say(f"{work.path}: its splits were finished, and take their place")
        _finish(work)
    else:
        work.say(f"{work.path}: resumes")
        _write(replace(work, resumes=True))
    return True


def _is_complete(work: _Work, mode: Mode) -> bool:
    root = read_splits(work.path)
    if root is None:
        if destination_state(work.path) == "absent":
            work.say(f"{work.path}: nothing to resume; starts afresh")
            return False
        if mode == "create":
            what = "a dataset without splits exists there"
            raise UsageError(what, where=str(work.path), fix="choose another path")
        return False
    try:
        if root.rule != work.rule:
            refuse_differences(root.rule.as_json(), work.rule.as_json(), work.path, "was made")
        manifest = open_dataset(work.path, split=TRAIN).manifest
        check_finished_ingest(manifest, work.source, work.request.as_json(), work.path, mode)
    except StreamtrainError:
        if mode == "create":
            raise
        work.say(f"{work.path}: no interrupted {mode}; starts afresh")
        return False
    work.say(f"{work.path}: already complete; nothing was done")
    return True


def _write(work: _Work) -> None:
    """Divide the rows, write what is missing of each split, and put the root in its place."""
    try:
        work.files.ensure_dir(work.spool)
        is_known = work.resumes and is_fingerprinted(work.source)
        rows = work.source
        if work.learns_anew is not None:
            # Its rows are divided before it is known what they become: that is learned from those of train.
            division = _divided(work, rows)
            rows = work.learns_anew(lambda start, stop: division.splits_of(start, stop) == 0)
        if not rows.seekable:
            rows = spooled(rows, work.spool, work.request, work.files, may_exist=is_known)
        if work.learns_anew is None:
            division = _divided(work, rows)
        if work.base is None:
            check_not_empty(division, work.rule, work.source)
        request = work.request
        for number, name in enumerate(work.rule.names):
            part = SplitSource(rows, division, number, n_workers=request.n_workers)
            _write_split(work, name, part, request, is_known=is_known)
            if number == 0 and work.base is None:
                # The others are stored as train is.
                request = replace(request, codec=open_dataset(work.folder / name).layout.codec)
        _check_classes(work)
        work.files.write_bytes(work.folder / JOURNAL, dump_json({**work.header, _IS_WHOLE: True}))
    except BaseException as error:
        _keep_or_discard(work, error)
        raise
    _finish(work)
    root = read_splits(work.path)
    assert root is not None, "which was just written"
    is_new = work.base is None
    for line in told(root, division, is_new=is_new):
        work.say(line)
    for doubt in few_groups(root, division, is_new=is_new):
        work.warn(doubt)


def _divided(work: _Work, rows: Source) -> Division:
    first_row = 0 if work.base is None else sum(work.base.n_samples.values())
    return divide(rows, work.source, work.rule, work.spool, work.files, memory=work.request.memory, first_row=first_row)


def _write_split(work: _Work, name: str, part: SplitSource, request: IngestRequest, *, is_known: bool) -> None:
    """Write the rows of one split, unless they are all there."""
    mode: Mode = "create" if work.base is None else "append"
    target = work.folder / name
    tidy(target, work.files)
    if not is_known:
        # Nothing tells whether these are the rows of what was being made.
        for left in (target, successor(target)):
            remove_dataset(left, work.files)
    if work.base is not None:
        _link_split(work, name)
        if len(open_dataset(target)) == work.base.n_samples[name] + part.n_samples:
            return
    elif destination_state(target) == "committed" and not has_journal(target):
        return
    begun = has_journal(successor(target)) if work.base is not None else destination_state(target) != "absent"
    run_ingest(part, target, request, files=work.files, mode=mode, resume=begun, say=_of_root(work))


def _of_root(work: _Work) -> Say:
    """Say what is said of a split with the path at which it will stand."""

    def tell(text: str) -> None:
        text = text.replace(str(work.folder), str(work.path))
        if work.say is _say_nothing and text.startswith(_WARNING):
            work.warn(text.removeprefix(_WARNING))
        else:
            work.say(text)

    return tell


def _link_split(work: _Work, name: str) -> None:
    """Give the files of a split that is appended to a second name; a copy appears whole."""
    assert work.base is not None
    source, target, fresh = work.base.path / name, work.folder / name, work.spool / f"{name}.linked"
    if is_there(target):
        return
    if is_there(fresh):
        with translate_os_errors("remove", fresh):
            work.files.remove_tree(fresh)
    for parent, _, names in walk(source):
        folder = fresh / Path(parent).relative_to(source)
        work.files.ensure_dir(folder, flush_folder=False)
        for each in names:
            old = Path(parent) / each
            if not work.files.link(old, folder / each):
                work.files.copy(old, folder / each)
        work.files.flush_dir(folder)
    work.files.rename(fresh, target)


def _check_classes(work: _Work) -> None:
    """Refuse a class of which train has no sample: nothing can be learnt of it."""
    train = open_dataset(work.folder / TRAIN)
    known = train.label_histogram
    if known is None or (train.n_classes is None):
        return
    for name in work.rule.names[1:]:
        found = open_dataset(work.folder / name).label_histogram
        new = [] if found is None else found.values[~np.isin(found.values, known.values)].tolist()
        if new:
            names = train.manifest.classes
            listed = ", ".join(repr(names[label]) if names else str(label) for label in new[:_N_SHOWN])
            raise InputError(
                f"split {name} has classes of which train has no sample: {listed}{', ...' * (len(new) > _N_SHOWN)}",
                why="A class that training never sees cannot be predicted in validation",
                fix="leave those samples out; or give another seed or smaller shares"
                if names
                else Fix("give another seed or smaller shares; or ", Argument("task", "regression"), " of quantities"),
            )


def _keep_or_discard(work: _Work, error: BaseException) -> None:
    """After an error, keep what can be resumed, else remove it; neither opens as a dataset."""
    wrong = isinstance(error, InputError | UsageError | BudgetError | DamagedShard)
    if wrong or not is_rereadable(work.source):
        try:
            remove_dataset(work.folder, work.files)
        except (OSError, StreamtrainError) as failure:
            error.add_note(printable(f"and {work.folder} could not be removed: {failure}"))


def _finish(work: _Work) -> None:
    """Write the root over finished splits, and put it in its place; what they were made of goes before."""
    files, folder = work.files, work.folder
    if is_there(work.spool):
        with translate_os_errors("remove", work.spool):
            files.remove_tree(work.spool)
    found = {name: open_dataset(folder / name) for name in work.rule.names}
    for name in found:
        if is_there(lock := lock_path(folder / name)):
            files.remove(lock)  # of a writer that was killed
    for key, data in zarr_metadata.group(zarr_metadata.PRIVATE).items():
        files.write_bytes(folder / key, data)
    n_samples = {name: len(dataset) for name, dataset in found.items()}
    ids = {name: dataset.id for name, dataset in found.items()}
    if not status_of(folder / zarr_metadata.ROOT):
        files.write_bytes(folder / zarr_metadata.ROOT, root_bytes(work.rule, n_samples, ids))
    publish_and_tidy(folder, work.path, files, work.say)


def told(root: SplitRoot, division: Division, *, is_new: bool) -> Iterator[str]:
    """Say of each split its rows, its groups, its share wanted and got, and its labels."""
    total = sum(root.n_samples.values())
    each = zip(root.names, division.n_groups, wanted_shares(root.rule), strict=True)
    for name, n_groups, wanted in each:
        dataset = open_dataset(root.path, split=name)
        groups = f" in {'countless' if n_groups is None else f'{n_groups:,}'} groups" if root.rule.by and is_new else ""
        got = f"{len(dataset) / total:.1%} of all, {wanted:.1%} wanted"
        yield f"{name}: {len(dataset):,} rows{groups}, {got}{_labels(dataset)}"


def few_groups(root: SplitRoot, division: Division, *, is_new: bool) -> Iterator[str]:
    """Warn of splits too small to say anything."""
    by = root.rule.by
    if by is not None and not is_new:
        return  # how many of the groups were there before is not known
    for name, n_divided in zip(root.names, division.n_groups, strict=True):
        n_groups = root.n_samples[name] if by is None else n_divided
        if n_groups is not None and n_groups < FEW_GROUPS:
            kind = "rows" if by is None else f"groups of {by}"
            yield f"split {name} has {n_groups} {kind}: below {FEW_GROUPS} its figures say little"


def _labels(dataset: Dataset) -> str:
    histogram = dataset.label_histogram
    if dataset.task == "regression":
        overall = dataset.stats(TARGET).overall
        return f"; {TARGET}: mean {overall.mean:.4g}, std {overall.std:.4g}"
    if histogram is None:
        return ""
    pairs = list(zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True))
    names = dataset.manifest.classes
    shown = [f"{names[value] if names else value} {count:,}" for value, count in pairs[:10]]
    return f"; {TARGET}: {', '.join(shown)}{', ...' * (len(pairs) > 10)}"
