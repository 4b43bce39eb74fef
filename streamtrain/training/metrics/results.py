"""Loss and scores of samples as values: `Metrics`, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from streamtrain.models.target_normalization import TargetNormalization
from streamtrain.system.display.notebook_html import clipped, html_table, html_title
from streamtrain.system.units import counted, format_cell, format_figure, format_figures
from streamtrain.training.metrics.baseline import Baseline
from streamtrain.training.metrics.classification import MOST_IN_CONFUSION
from streamtrain.training.metrics.tasks import ScoredTask
from streamtrain.training.metrics.user import UserMetric

_FEWEST_ROWS: Final = 2
"""A table of one class or target says nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """Scores of each class, label or target, and what else an evaluation knows of the task."""

    task: ScoredTask
    # A name for each row, where the data has names.
    names: tuple[str, ...] | None
    columns: Mapping[str, tuple[float, ...]]
    # Weights of the samples by true class, a row each, and predicted class; up to 1,000 classes.
    confusion: tuple[tuple[float, ...], ...] | None = None
    n_ignored: int = 0
    # Of two classes, the one whose precision and recall are among the scores.
    positive: int | None = None
    # Whether every prediction was the same.
    is_alike: bool = False
    # Of each target: the edges of bins of its errors, and the weights in them.
    errors: tuple[Mapping[str, object], ...] = ()
    # Likewise: what was predicted by what was true, see `PairHistogram`.
    pairs: tuple[Mapping[str, object], ...] = ()
    # Of two classes: points of the ROC curve.
    curve: Mapping[str, object] | None = None
    # The largest errors of scores that are not exact.
    bounds: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def name(self, row: int) -> str:
        """Name a class, label or target."""
        return str(row) if self.names is None or row >= len(self.names) else self.names[row]

    def rows(self) -> list[dict[str, object]]:
        """Return a row for each class, label or target by name."""
        kind = {"classification": "class", "multilabel": "label", "regression": "target"}[self.task]
        return [{kind: self.name(i), **{name: of[i] for name, of in self.columns.items()}} for i in range(len(self))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Mean loss and scores over ``n_samples`` samples."""

    loss: float
    # By name; the first is that of each epoch.
    scores: Mapping[str, float] = field(default_factory=dict)
    n_samples: int
    # Those of each epoch, of more that are measured.
    brief: tuple[str, ...] | None = None
    table: ScoreTable | None = None
    baseline: Baseline | None = None
    # The scores of the baseline's answer to the same samples.
    of_baseline: Mapping[str, float] = field(default_factory=dict)
    # The samples of the largest losses: row, truth, prediction, loss.
    mistakes: Sequence[Mapping[str, object]] = ()

    def __repr__(self) -> str:
        figures = format_figures(self.named(full=True))
        of = f" of {counted(self.n_samples, 'sample')}" if self.n_samples else ""
        return f"Metrics({clipped(figures, 89 - len(of))}{of})"

    def _repr_html_(self) -> str:
        """Write loss and scores for a notebook, beside those of the baseline, and the table of classes or targets."""
        baseline = self.of_baseline if self.baseline is not None else {}
        head = ["", "value", *([f"always answering {self.baseline.told}"] if self.baseline and baseline else [])]
        rows = [
            [name, format_figure(value), *([format_cell(baseline.get(name))] if baseline else [])]
            for name, value in self.named(full=True).items()
        ]
        table = [] if self.table is None or len(self.table) < _FEWEST_ROWS else self.table.rows()
        cells = [list(map(format_cell, row.values())) for row in table]
        more = html_table([[*table[0]], *cells]) if table else ""
        return f"{html_title(repr(self))}{html_table([head, *rows])}{more}"

    @property
    def score_name(self) -> str | None:
        """The name of the task's own score; None of a loss that tells no task."""
        return next(iter(self.scores), None)

    @property
    def score(self) -> float | None:
        """The task's own score: accuracy, f1 or rmse."""
        return next(iter(self.scores.values()), None)

    def named(self, prefix: str = "", *, full: bool = False) -> dict[str, float]:
        """Return loss and scores by prefixed name: those of each epoch, or all."""
        names = self.scores if full or self.brief is None else self.brief
        return {f"{prefix}loss": self.loss} | {f"{prefix}{name}": self.scores[name] for name in names}

    def facts(self) -> dict[str, object]:
        """Return loss, scores, baseline and tables by name, for machines."""
        table, baseline = self.table, self.baseline
        found: dict[str, object] = dict(self.named(full=True))
        if baseline is not None:
            found["baseline"] = {**baseline.config(), **self.of_baseline}
        if table is not None:
            kind = {"classification": "classes", "multilabel": "labels", "regression": "targets"}[table.task]
            found |= {f"{name}_bound": bound for name, bound in table.bounds.items()}
            found |= {"task": table.task, kind: table.rows() if len(table) <= MOST_IN_CONFUSION else None}
            if table.errors:
                found |= {"errors": table.errors, "pairs": table.pairs}
            if table.curve is not None:
                found["roc"] = table.curve
            if table.task == "classification":
                found |= {"confusion": table.confusion, "ignored": table.n_ignored}
        if self.mistakes:
            found["mistakes"] = self.mistakes
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How outputs are scored beside the loss."""

    normalization: TargetNormalization | None = None
    baseline: Baseline | None = None
    metrics: Mapping[str, UserMetric] = field(default_factory=dict)
    # Of classes, labels or targets.
    names: tuple[str, ...] | None = None
    # The class of two whose precision, recall and auc are measured.
    positive: int = 1
