"""A split root: a Zarr group that holds one dataset for each split, and the rule that divided the rows.

::

    d.zarr/zarr.json                the root: rule, samples and ids of all splits; written last
    d.zarr/_streamtrain/splits.json  the same without samples and ids; written first, it marks the folder as ours
    d.zarr/train, d.zarr/val, ...   the datasets
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from streamtrain.errors import Argument, DatasetError, Fix, ResourceError, UsageError, unknown_name
from streamtrain.store import zarr_metadata
from streamtrain.store.byte_ranges import RESTORE, unreadable
from streamtrain.store.manifest import Json, dump_json, load_json
from streamtrain.store.shard import read_bounded
from streamtrain.system.files import is_regular
from streamtrain.system.json_values import whole_number

How = Literal["hash", "last"]
TRAIN: Final = "train"
VAL: Final = "val"
TEST: Final = "test"
HOWS: Final[tuple[How, ...]] = ("hash", "last")
FORMAT: Final = 2
"""Format of a root: versions that know none of them refuse it by this number."""

_MARK: Final = f"{zarr_metadata.PRIVATE}/splits.json"
_MOST_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """How rows are divided: train is the rest."""

    shares: tuple[tuple[str, float], ...]
    how: How = "hash"
    by: str | None = None  # a column of a table, or a field of one number a sample; None for the row
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The splits in the order of their numbers; train is the first."""
        return (TRAIN, *(name for name, _ in self.shares))

    def as_json(self) -> Json:
        """Return the rule as the root holds it: shares in their order, which counts."""
        return {"shares": [list(pair) for pair in self.shares], "how": self.how, "by": self.by, "seed": self.seed}


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRoot:
    """A committed root: its rule, and the samples and id of each split."""

    path: Path
    rule: SplitRule
    n_samples: Mapping[str, int]
    ids: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The splits, train first."""
        return self.rule.names

    def folder(self, split: str) -> Path:
        """Return the folder of a split; refuse an unknown name."""
        if split not in self.names:
            raise unknown_name("split", split, self.names)
        return self.path / split


def mark_bytes(rule: SplitRule) -> bytes:
    """Encode the file that marks a folder as a root, finished or not."""
    return dump_json(rule.as_json())


def root_bytes(rule: SplitRule, n_samples: Mapping[str, int], ids: Mapping[str, str]) -> bytes:
    """Encode the root of finished splits, a plain Zarr group."""
    ours = {"format": FORMAT, "splits": {**rule.as_json(), "samples": dict(n_samples), "ids": dict(ids)}}
    (data,) = zarr_metadata.group("", {"streamtrain": ours}).values()
    return data


def mark_path(folder: Path) -> Path:
    """Return the file that marks a folder as a root."""
    return folder / _MARK


def is_split_root(folder: Path) -> bool:
    """Say whether a folder is a split root, finished or not."""
    try:
        return is_regular(mark_path(folder))
    except OSError as error:
        raise unreadable(folder, error) from error


def read_rule(folder: Path) -> SplitRule | None:
    """Read the rule of a root, finished or not; None where its mark is damaged."""
    try:
        return parse_rule(load_json(read_bounded(mark_path(folder), _MOST_BYTES), where=str(mark_path(folder))))
    except (DatasetError, KeyError, TypeError, ValueError, AttributeError):
        return None


def read_splits(folder: Path) -> SplitRoot | None:
    """Read a finished root; None where the folder is none, or is not finished."""
    if not is_split_root(folder):
        return None
    path = folder / zarr_metadata.ROOT
    try:
        if not is_regular(path):
            return None
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        ours = load_json(read_bounded(path, _MOST_BYTES), where=str(path))["attributes"]["streamtrain"]
        if ours["format"] != FORMAT:
            raise DatasetError(
                f"the splits have format {ours['format']!r}; this version reads format {FORMAT}",
                where=str(folder),
                fix="upgrade streamtrain (pip install -U streamtrain)",
            )
        found = ours["splits"]
        rule = parse_rule(found)
        n_samples = {name: whole_number(found["samples"][name]) for name in rule.names}
        ids = {name: str(found["ids"][name]) for name in rule.names}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError("the root of the splits is damaged", where=str(path), fix=RESTORE) from error
    return SplitRoot(path=folder, rule=rule, n_samples=n_samples, ids=ids)


def parse_rule(found: Mapping[str, Any]) -> SplitRule:
    """Parse a rule; raise the errors of Python for anything else."""
    shares = tuple((str(name), float(share)) for name, share in found["shares"])
    how: How = HOWS[HOWS.index(found["how"])]
    by = found["by"]
    if not (by is None or isinstance(by, str)) or any(Path(name).name != name for name, _ in shares):
        raise ValueError(by)
    return SplitRule(shares=shares, how=how, by=by, seed=whole_number(found["seed"]))


def split_folder(folder: Path, split: str | None) -> Path:
    """Return the dataset to open: of a root the split that is named, and any other folder itself."""
    root = read_splits(folder)
    if root is None:
        if split is not None and not is_split_root(folder):
            what = f"split is {split!r}, and the dataset has no splits"
            raise UsageError(what, where=str(folder), fix=Fix("leave ", Argument("split"), " out"))
        return folder
    if split is None:
        raise UsageError(
            f"there are {len(root.names)} datasets here: {', '.join(root.names)}",
            where=str(folder),
            fix=f"give one of them: {root.folder(TRAIN)}, say",
        )
    return root.folder(split)


def chosen_split(folder: Path, *preferred: str) -> str | None:
    """Return the first of some splits that a root has, else train; None where the folder is no root."""
    try:
        root = read_splits(folder)
    except ResourceError:
        return None  # which opening it will say
    if root is None:
        return None
    return next((name for name in preferred if name in root.names), TRAIN)
