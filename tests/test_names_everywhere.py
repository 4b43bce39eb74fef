"""Permutations and renamings of columns and classes through every pair of places where data meet: none is silent.

A table of three columns, each high for one of three classes, so that a model which is handed the right columns and
classes is right on every row, and one that is handed others is not. What must come of a pair is worked out here, from
the lists of names alone: taken, and then every row has its own column's values and its own class; or refused.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import named_tables
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from named_tables import COLUMNS, KINDS
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.comparison.compare import compare
from streamtrain.errors import CheckpointError, InputError, UsageError
from streamtrain.store.schema.matching import MatchedColumns

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

N_VARIANTS = 24
SIZES = ("--memory", "16MB", "--batch-size", "6")
MODEL = ("--model", "linear", "--lr", "0.1")


@dataclass(frozen=True)
class Variant:
    """The table under other names, or in another order."""

    columns: tuple[str, ...]
    named: dict[str, str]
    classes: tuple[str, ...] | None
    kinds: dict[str, str]
    format: str

    @property
    def all_classes(self) -> tuple[str, ...]:
        """The names of labels 0, 1, ... that the dataset gets."""
        return self.classes or tuple(sorted(self.kinds.values()))

    @property
    def means_the_same(self) -> bool:
        return self.columns == COLUMNS and self.has_same_classes

    @property
    def has_same_classes(self) -> bool:
        return KINDS[: len(self.all_classes)] == self.all_classes

    def write(self, path: Path) -> Path:
        columns, labels = named_tables.rows(kinds=tuple(self.kinds))
        renamed = {new: columns[old] for new, old in self.named.items()}
        labels = [self.kinds[label] for label in labels]
        if self.format == "csv":
            return named_tables.write(path.with_suffix(".csv"), renamed, labels, self.columns)
        table = {name: renamed[name] for name in self.columns} | {"kind": labels}
        pq.write_table(pa.table(table), path.with_suffix(".parquet"))
        return path.with_suffix(".parquet")

    def ingest(self, path: Path) -> st.Dataset:
        options = {} if self.classes is None else {"classes": list(self.classes)}
        return st.ingest(self.write(path), path.with_suffix(".zarr"), label_column="kind", **options)


def variants() -> Iterator[Variant]:
    """The table as it is, and seeded other ones: what is done to the columns, and what to the classes."""
    rng = np.random.default_rng(15)
    yield Variant(COLUMNS, dict(zip(COLUMNS, COLUMNS, strict=True)), None, dict(zip(KINDS, KINDS, strict=True)), "csv")
    for number in range(1, N_VARIANTS):
        named = dict(zip(COLUMNS, COLUMNS, strict=True))
        if number % 3 == 1:
            # The values stay, so that two datasets have one id and differ by a name alone.
            old = COLUMNS[rng.integers(3)]
            named = {old + "s" if name == old else name: name for name in COLUMNS}
        columns = [list(named)[place] for place in (rng.permutation(3) if number % 3 else range(3))]
        kinds = dict(zip(KINDS, KINDS, strict=True))
        classes = None
        match number % 4:
            case 0:
                classes = tuple(KINDS[place] for place in rng.permutation(3))
            case 1:
                kinds["bee"] = "wasp"
            case 2:
                del kinds[KINDS[rng.integers(3)]]
        yield Variant(tuple(columns), named, classes, kinds, ("csv", "parquet")[number % 2])


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[st.Dataset]:
    """Every variant as a dataset."""
    folder = tmp_path_factory.mktemp("stored")
    return [variant.ingest(folder / str(number)) for number, variant in enumerate(variants())]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table itself, and a run over it that is right on every row."""
    folder = tmp_path_factory.mktemp("base")
    next(variants()).ingest(folder / "base")
    assert command("train", folder / "base.zarr", *MODEL, *SIZES, "--epochs", 10, "--out", folder / "run")[0] == 0
    return folder


def command(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(tuple(map(str, words)))
    return code, out.getvalue(), err.getvalue()


def assert_right_rows(dataset: st.Dataset, renamed: dict[str, str]) -> None:
    """Every row has its class's high value in its column, whatever the class's name is."""
    assert dataset.columns is not None
    assert dataset.classes is not None
    whose = [KINDS.index({new: old for old, new in renamed.items()}.get(name, name)) for name in dataset.classes]
    places = [COLUMNS.index(name) for name in dataset.columns]
    rows = dataset[:]
    assert [places[high] for high in rows["x"].argmax(1)] == [whose[label] for label in rows["y"]]


# Places -----------------------------------------------------------------------------------------------------------

Outcome = tuple[bool, str]
"""Acceptance of a name, and the words of the answer."""


def caught(act: Callable[[], object]) -> Outcome:
    try:
        act()
    except (UsageError, InputError, CheckpointError) as error:
        return False, str(error)
    return True, ""


def of_command(code: int, err: str, refused: int) -> Outcome:
    assert code in (0, refused), err
    return code == 0, err


def append(base: Path, variant: Variant, number: int) -> Outcome:
    dest = Path(shutil.copytree(base / "base.zarr", f"append-{number}.zarr"))
    options = ("--label-column", "kind", "--append")
    code, _, err = command("ingest", variant.write(Path(f"append-{number}")), dest, *options)
    if code == 0:
        assert len(st.open(dest)) > len(st.open(base / "base.zarr"))
        assert_right_rows(st.open(dest), {})
    return of_command(code, err, 3)


def several_sources(base: Path, variant: Variant, number: int) -> Outcome:
    first = Variant(COLUMNS, dict(zip(COLUMNS, COLUMNS, strict=True)), None, dict(zip(KINDS, KINDS, strict=True)),
                    variant.format)  # fmt: skip
    sources = [first.write(Path(f"first-{number}")), variant.write(Path(f"second-{number}"))]
    taken = caught(lambda: st.ingest(sources, f"several-{number}.zarr", label_column="kind"))
    if taken[0]:
        assert_right_rows(st.open(f"several-{number}.zarr"), variant.kinds)
    return taken


def val(base: Path, other: st.Dataset, number: int) -> Outcome:
    words = (*MODEL, *SIZES, "--epochs", 10, "--out", f"run-{number}", "--json")
    code, out, err = command("train", base / "base.zarr", *words, "--val", other.path)
    if code == 0:
        assert json.loads(out)["val"]["accuracy"] == 1.0
    return of_command(code, err, 2)


def evaluate(base: Path, other: st.Dataset, number: int) -> Outcome:
    code, out, err = command("evaluate", base / "run", other.path, "--json")
    if code == 0:
        assert json.loads(out)["accuracy"] == 1.0
    return of_command(code, err, 2)


def compare_command(base: Path, other: st.Dataset, number: int) -> Outcome:
    words = ("--rules", "batch", "--optimizers", "sgd", "--epochs", 1, "--out", f"compare-{number}")
    code, _, err = command("compare", base / "base.zarr", "--model", "linear", *SIZES, *words, "--val", other.path)
    return of_command(code, err, 2)


def resume(base: Path, other: st.Dataset, number: int) -> Outcome:
    run = shutil.copytree(base / "run", f"resume-{number}")
    code, _, err = command("train", other.path, *MODEL, *SIZES, "--epochs", 11, "--out", run, "--resume")
    return of_command(code, err, 6)


def trainer() -> st.Trainer:
    torch.manual_seed(0)
    return st.Trainer(nn.Linear(3, 3), loss="cross_entropy", lr=0.1, normalize="auto", device="cpu")


def load(dataset: st.Dataset) -> st.StreamLoader:
    return st.StreamLoader(dataset, batch_size=6, memory="8MB")


def fit_val(base: Path, other: st.Dataset, number: int) -> Outcome:
    with load(st.open(base / "base.zarr")) as first, load(other) as second:
        return caught(lambda: trainer().fit(first, max_epochs=1, val=second))


@cache
def trained(base: Path) -> st.Trainer:
    learner = trainer()
    with load(st.open(base / "base.zarr")) as loader:
        learner.fit(loader, max_epochs=10)
    return learner


def trainer_evaluate(base: Path, other: st.Dataset, number: int) -> Outcome:
    with load(other) as loader:
        taken = caught(lambda: trained(base).evaluate(loader))
        assert not taken[0] or trained(base).evaluate(loader).score == 1.0
    return taken


def compare_in_python(base: Path, other: st.Dataset, number: int) -> Outcome:
    setting = {"rules": ("batch",), "optimizers": ("sgd",), "max_epochs": 1, "batch_size": 6, "memory": "16MB"}
    data = st.open(base / "base.zarr")
    return caught(lambda: compare(nn.Linear(3, 3), data, **setting, val=other, normalize="auto"))


RAW = (append, several_sources)
STORED = (val, evaluate, compare_command, fit_val, trainer_evaluate, compare_in_python)
PLACES = (*RAW, resume, *STORED)
SLOW = (compare_command, compare_in_python)
"""A comparison takes a while, so of the variants that it takes only the first is compared."""


def is_right(place: Callable[..., Outcome], variant: Variant) -> bool:
    """Whether what a pair comes to is to be taken."""
    has_names = set(variant.columns) == set(COLUMNS)
    if place is append:
        return has_names and set(variant.kinds.values()) <= set(KINDS)
    if place is several_sources:
        return has_names
    if place is resume:
        return variant.means_the_same and len(variant.kinds) == len(KINDS)
    return has_names and variant.has_same_classes


def pairs(place: Callable[..., Outcome]) -> Iterator[tuple[int, Variant]]:
    """The variants that a place is given."""
    n_right = 0
    for number, variant in enumerate(variants()):
        n_right += is_right(place, variant)
        if not (place in SLOW and is_right(place, variant) and n_right > 1):
            yield number, variant


def test_there_are_enough_pairs() -> None:
    found = list(variants())
    assert sum(len(list(pairs(place))) for place in PLACES) >= 200
    for place in PLACES:
        assert {is_right(place, variant) for variant in found} == {True, False}
    assert {variant.format for variant in found if not variant.means_the_same} == {"csv", "parquet"}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_none_is_silent_and_none_is_wrong(base: Path, stored: list[st.Dataset], place: Callable[..., Outcome]) -> None:
    for number, variant in pairs(place):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", MatchedColumns)
            taken, told = place(base, variant if place in RAW else stored[number], number)
        assert taken == is_right(place, variant), f"{variant}: {told}"
        if not taken and not variant.means_the_same:
            assert_named(variant, told)
        elif taken and place in STORED and variant.means_the_same:
            assert told == ""
        elif taken and place in (val, evaluate, compare_command):
            assert told.count("are put in the order of") == 1


def assert_named(variant: Variant, told: str) -> None:
    """A refusal names what differs: a column, a class, or both orders."""
    names = {*itertools.chain(variant.columns, COLUMNS), *itertools.chain(variant.all_classes, KINDS)}
    assert sum(repr(name) in told for name in names) >= 1, told
