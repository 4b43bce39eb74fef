"""Loss and scores over batches, by the task: those of each epoch, or all of an evaluation.

Means are over samples, never over batches, so a short last batch counts by its samples; where samples have weights,
loss and scores are weighted, and where classes have weights, the loss is. Scores are in the data's own units.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from streamtrain.errors import StreamtrainWarning
from streamtrain.models.alignment import align, drop_last_axis
from streamtrain.models.losses import Loss
from streamtrain.models.real_view import as_real
from streamtrain.models.target_normalization import TargetNormalization, in_units_of_data, takes_logarithms
from streamtrain.optim.gradient_sum import ExactSum
from streamtrain.system.display.notebook_html import clipped, html_table, html_title
from streamtrain.system.units import format_cell, format_figure, format_figures
from streamtrain.training.metrics.baseline import Baseline
from streamtrain.training.metrics.classification import MOST_IN_CONFUSION, AccuracyTally, ClassTally, largest
from streamtrain.training.metrics.mistakes import Mistakes
from streamtrain.training.metrics.multilabel import MarkTally
from streamtrain.training.metrics.regression import RegressionTally, by_target
from streamtrain.training.metrics.sums import Total, wide
from streamtrain.training.metrics.tasks import SCORE_NAMES, ScoredTask, score_name, scored_as, threshold
from streamtrain.training.metrics.user import UserMetric, computed

_AT_ONCE: Final = 2**15
"""Elements of outputs that are scored at once."""

_FEWEST_ROWS: Final = 2
"""A table of one class or target says nothing more."""

Tally = AccuracyTally | ClassTally | MarkTally | RegressionTally


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
        of = f" of {self.n_samples:,} samples" if self.n_samples else ""
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


class RunningMetrics:
    """Sums of loss and scores over batches; ``full`` are those of an evaluation."""

    def __init__(self, loss: Loss, scoring: Scoring | None = None, *, full: bool = False) -> None:
        self._loss = loss
        self._scoring = scoring or Scoring()
        self._full = full
        self._loss_sum = ExactSum()
        self._weight = ExactSum()
        # Not summed yet: mean loss and sum of weights of batches.
        self._terms: list[tuple[float, float]] = []
        self._n_samples = 0
        self._is_weighted = False
        self._task: ScoredTask | None = None
        self._tally: Tally | None = None
        self.mistakes = Mistakes()
        self._kept: dict[str, Any] | None = None
        # Not scored yet: batches whose samples are of one shape and dtype.
        self._batches: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._n_elements = 0
        self._form: tuple[Any, ...] | None = None
        self._of_batch = 0
        self._is_at_once = False
        self._marked = (0.0, 0.0)
        # A metric of the user's own cannot resume inside an epoch.
        self._metrics = dict(self._scoring.metrics)
        for metric in self._metrics.values():
            metric.reset()

    @property
    def weight(self) -> float:
        """The sum of weights behind the mean loss."""
        self._sum_up()
        return self._weight.value

    @property
    def loss(self) -> float:
        """The mean loss so far; NaN of nothing."""
        self._sum_up()
        return self._loss_sum.value / self._weight.value if self._weight.value else math.nan

    def _sum_up(self) -> None:
        terms, self._terms = self._terms, []
        for loss, weight in terms:
            self._loss_sum.add(loss * weight)
            self._weight.add(weight)

    def add(
        self,
        loss: float,
        output: Tensor,
        target: Tensor,
        *,
        weight: float | None = None,
        sample_weights: Tensor | None = None,
    ) -> None:
        """Add a batch by its mean loss and the sum of weights in that mean, by default B; targets are as stored."""
        # Here is little to do for each batch, and the rest is done at once: a small model's step takes as long as a few
        # dozen lines of Python.
        n_samples = target.shape[0]
        self._terms.append((loss, float(n_samples) if weight is None else weight))
        self._n_samples += n_samples
        if sample_weights is not None:
            self._is_weighted = True
        if self._metrics:
            is_regression = scored_as(self._loss, tuple(target.shape[1:])) == "regression"
            predicted = self._in_units(output) if is_regression else output
            for metric in self._metrics.values():
                metric.update(predicted, target)
        self._keep(output, target, sample_weights)

    def _in_units(self, output: Tensor) -> Tensor:
        return in_units_of_data(output, self._scoring.normalization, is_log=takes_logarithms(self._loss))

    def _keep(self, output: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """Keep a batch until there is enough to score at once: a small one costs as many operations as a large."""
        form = output.shape, target.shape, output.dtype, target.dtype, weights is None
        if form != self._form:
            self._take_form(form)
        # Copies: a loader, or a compiled model, may write the next batch in the same memory.
        self._batches.append((output.clone(), target.clone(), None if weights is None else weights.clone()))
        self._n_elements += self._of_batch
        if self._n_elements >= _AT_ONCE or self._is_at_once:
            self._score_kept()

    def _take_form(self, form: tuple[Any, ...]) -> None:
        """Prepare for batches of these shapes and dtypes; those whose samples have others are scored before."""
        before, self._form = self._form, form
        output, target, *rest = form
        if before is not None and (output[1:], target[1:], *rest) != (before[0][1:], before[1][1:], *before[2:]):
            self._score_kept()
        self._of_batch = math.prod(output)
        has_weights = not form[-1]
        self._is_at_once = not output or (has_weights and not self._full and self._loss.kind == "classes")

    def _kept_batches(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        if len(self._batches) < 2:
            return self._batches[0] if self._batches else None
        # One that was restored lies in host memory.
        device = self._batches[-1][0].device
        outputs, targets, weights = zip(*self._batches, strict=True)
        output, target = (torch.cat([part.to(device) for part in parts]) for parts in (outputs, targets))
        return output, target, None if weights[0] is None else torch.cat([part.to(device) for part in weights])

    def _score_kept(self) -> None:
        self._sum_up()
        kept, self._batches, self._n_elements = self._kept_batches(), [], 0
        if kept is not None:
            self._score(*kept)

    def _score(self, output: Tensor, target: Tensor, sample_weights: Tensor | None) -> None:
        weights = None if sample_weights is None else wide(sample_weights)
        task = scored_as(self._loss, tuple(target.shape[1:]))
        self._task = self._task or task
        match task:
            case None:
                return
            case "regression":
                self._add_errors(self._in_units(output), target, weights)
            case "multilabel":
                output, target = drop_last_axis(output, target)
                tally = self._tally_of(MarkTally)
                tally.add(output > threshold(self._loss), target > 0.5, weights)
            case _:
                self._add_classes(output, target, weights)

    def _tally_of(self, kind: Any, *given: Any, **how: Any) -> Any:
        """Return the tally of the task, made with the first batch; it resumes from what was kept."""
        if self._tally is None:
            self._tally = kind(*given, **how)
            # An earlier version counted hits of labels too.
            if self._kept is not None and self._kept.keys() == self._tally.state().keys():  # type: ignore[union-attr]
                self._tally.load_state(self._kept)  # type: ignore[union-attr]
            self._kept = None
        return self._tally

    def _add_errors(self, predicted: Tensor, target: Tensor, weights: Tensor | None) -> None:
        predicted, target = drop_last_axis(predicted, target)
        if predicted.is_complex() or target.is_complex():
            wider = torch.promote_types(predicted.dtype, target.dtype)
            predicted, target = as_real(predicted.to(wider)), as_real(target.to(wider))
            predicted, target = predicted.flatten(), target.flatten()
        predicted, target = by_target(wide(predicted)), by_target(wide(target))
        tally = self._tally_of(RegressionTally, full=self._full, constant=self._constant(target.shape[1]))
        tally.add(predicted, target, _for_each(weights, len(target)))

    def _constant(self, n_targets: int) -> Tensor | None:
        baseline = self._scoring.baseline
        is_one = self._full and baseline is not None and len(baseline.answer) in (1, n_targets)
        return torch.tensor(baseline.answer, dtype=torch.float64) if is_one and baseline is not None else None

    def _add_classes(self, output: Tensor, target: Tensor, weights: Tensor | None) -> None:
        is_of_classes = self._loss.kind == "classes"
        # Labels of 0 and 1 are scored as they are stored; the loss may have been given floats.
        output, target = align(self._loss, output, target) if is_of_classes else drop_last_axis(output, target)
        if is_of_classes and target.ndim > 1:
            output, target = output.movedim(1, -1).reshape(-1, output.shape[1]), target.reshape(-1)
        elif not is_of_classes:
            output, target = (output - threshold(self._loss)).reshape(-1), (target > 0.5).reshape(-1).long()
        weights = _for_each(weights, len(target))
        # A model may predict the ignored class correctly, which does not count.
        counted = self._loss.counted(target) if is_of_classes else None
        if not self._full:
            predicted = largest(output) if is_of_classes else (output > 0).long()
            met = predicted == target
            self._tally_of(AccuracyTally).add(met if counted is None else met & counted, counted, weights)
            return
        n_classes = output.shape[1] if is_of_classes else 2
        positive = self._scoring.positive
        tally = self._tally_of(ClassTally, n_classes, positive=positive if positive < n_classes else 1)
        output, target, weights = output.cpu(), target.cpu(), None if weights is None else weights.cpu()
        if counted is not None and not bool(counted.all()):
            some = counted.cpu()
            tally.n_ignored += int((~some).sum())
            output, target, weights = output[some], target[some], None if weights is None else weights[some]
        tally.add(output, target, weights)

    def merge(self, other: RunningMetrics) -> None:
        """Add the sums over other samples, such as another process's; metrics of the user's own are not merged."""
        for each in (self, other):
            each._score_kept()
        for mine, theirs in ((self._loss_sum, other._loss_sum), (self._weight, other._weight)):
            for term in theirs.state():
                mine.add(term)
        self._n_samples += other._n_samples
        self._is_weighted |= other._is_weighted
        self.mistakes.merge(other.mistakes)
        if self._tally is None:
            self._task, self._tally = other._task, other._tally
        elif other._tally is not None:
            self._tally.merge(other._tally)  # type: ignore[arg-type]

    def mean(self) -> Metrics:
        """Return the means over everything added so far; NaN over nothing."""
        self._score_kept()
        brief = self._of_epoch() | {name: computed(name, metric) for name, metric in self._metrics.items()}
        if self._full and self._tally is not None:
            return self._evaluated(brief)
        baseline, of_baseline = self._scoring.baseline, {}
        # Where samples have weights, what is stored of the training data is not what it is measured by.
        if baseline is not None and baseline.score is not None and brief and not self._is_weighted:
            of_baseline = {next(iter(brief)): baseline.score}
        return Metrics(
            loss=self.loss, scores=brief, n_samples=self._n_samples, baseline=baseline, of_baseline=of_baseline
        )

    def _of_epoch(self) -> dict[str, float]:
        match self._tally:
            case None:
                name = SCORE_NAMES[self._task] if self._task else score_name(self._loss)
                return {} if name is None else {name: math.nan}
            case AccuracyTally():
                return {"accuracy": self._tally.accuracy()}
            case ClassTally():
                return {"accuracy": self._tally.scores()["accuracy"]}
            case MarkTally():
                return {"f1": self._tally.f1()}
            case _:
                return {"rmse": self._tally.rmse()}

    def _evaluated(self, brief: dict[str, float]) -> Metrics:
        assert self._task is not None
        baseline, tally = self._scoring.baseline, self._tally
        further: dict[str, float] = {}
        of_baseline: dict[str, float] = {}
        confusion, n_ignored, bounds = None, 0, {}
        match tally:
            case ClassTally():
                further, columns, bounds = tally.scores(), tally.by_class(), tally.bounds()
                n_ignored, matrix = tally.n_ignored, tally.confusion
                confusion = None if matrix is None else tuple(map(tuple, matrix.tolist()))
                if baseline is not None:
                    of_baseline = tally.of_constant(int(baseline.answer[0]))
            case MarkTally():
                further, columns = tally.scores(), tally.by_label()
                if baseline is not None and len(baseline.answer) == len(columns["f1"]):
                    of_baseline = tally.of_constant(torch.tensor(baseline.answer) > 0.5)
            case RegressionTally():
                columns = tally.by_target()
                further = {name: float(values.mean()) for name, values in columns.items()}
                if (constant := tally.of_constant()) is not None:
                    of_baseline = {name: float(values.mean()) for name, values in constant.items()}
            case _:
                raise AssertionError(tally)
        table = ScoreTable(
            task=self._task,
            names=self._scoring.names,
            columns={name: tuple(values.tolist()) for name, values in columns.items()},
            confusion=confusion,
            n_ignored=n_ignored,
            positive=tally.positive if isinstance(tally, ClassTally) and tally.n_classes == 2 else None,
            errors=tuple(each.facts() for each in tally.histograms) if isinstance(tally, RegressionTally) else (),
            pairs=tuple(each.facts() for each in tally.pairs) if isinstance(tally, RegressionTally) else (),
            curve=tally.curve() if isinstance(tally, ClassTally) else None,
            is_alike=tally.is_alike(),
            bounds=bounds,
        )
        return Metrics(
            loss=self.loss,
            scores=brief | further,
            n_samples=self._n_samples,
            brief=tuple(brief),
            table=table,
            baseline=baseline,
            of_baseline=of_baseline,
            mistakes=self.mistakes.facts(self._loss, self._in_units, self._scoring.names),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as numbers and tensors; of an epoch's own scores, not of an evaluation's."""
        self._sum_up()
        hits, of, scores = 0.0, 0.0, self._kept
        if self._counts_alone():
            # How counts are grouped makes no difference.
            self._score_kept()
        if isinstance(self._tally, AccuracyTally):
            hits, of, scores = self._tally.numbers()
        elif isinstance(self._tally, MarkTally | RegressionTally):
            scores = self._tally.state()
        batches = self._kept_batches()
        return {
            "loss_sum": self._loss_sum.state(),
            "weight": self._weight.state(),
            "n_samples": self._n_samples,
            "hits": hits,
            "of": of,
            "marked": list(self._marked),
            **({} if scores is None else {"scores": scores}),
            **({} if batches is None else {"batches": list(batches)}),
        }

    def _counts_alone(self) -> bool:
        """Whether the batches that are kept have classes without weights."""
        _, target, weights = self._batches[0] if self._batches else (None, torch.empty(0), None)
        return weights is None and scored_as(self._loss, tuple(target.shape[1:])) in ("classification", None)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums of a ``state_dict``."""
        self._loss_sum, self._weight = ExactSum(*state["loss_sum"]), ExactSum(*state["weight"])
        self._terms = []
        self._n_samples = state["n_samples"]
        is_told = "scores" in state or "batches" in state
        self._kept = state.get("scores") if is_told else self._of_earlier(state)
        self._tally = None
        if (batches := state.get("batches")) is not None:
            self._keep(*batches)
        self._marked = (state["marked"][0], state["marked"][1])
        if self._metrics:
            names = ", ".join(self._metrics)
            text = f"{names} of this epoch: left out, since what it had seen before the run was cut short is not kept"
            warnings.warn(StreamtrainWarning(text), stacklevel=6)
            self._metrics = {}

    def _of_earlier(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Return the scores of a state that an earlier version saved: hits, and of squared errors the loss."""
        task = scored_as(self._loss)
        if task == "classification":
            return {name: [torch.tensor(float(state[name]), dtype=torch.float64), None] for name in ("hits", "of")}
        if self._loss.name != "mse":
            return None
        sums = (Total(torch.tensor([value], dtype=torch.float64)) for value in (self.weight, self._loss_sum.value))
        weight, squares = (total.state() for total in sums)
        return {"n": self._n_samples, "weight": weight, "squares": squares}

    def loss_since_last(self) -> float:
        """Return the mean loss over the samples added since the last call."""
        self._sum_up()
        loss_sum, weight = self._marked
        self._marked = (self._loss_sum.value, self._weight.value)
        new = self._weight.value - weight
        return (self._loss_sum.value - loss_sum) / new if new else math.nan


def _for_each(weights: Tensor | None, n: int) -> Tensor | None:
    """Repeat the weight of each sample for each of its elements."""
    return None if weights is None else weights.repeat_interleave(n // max(1, len(weights)))
