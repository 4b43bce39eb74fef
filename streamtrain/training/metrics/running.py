"""Loss and scores over batches, by the task: those of each epoch, or all of an evaluation.

Means are over samples, never over batches, so a short last batch counts by its samples; where samples have weights,
loss and scores are weighted, and where classes have weights, the loss is. Scores are in the data's own units.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.errors import StreamtrainWarning
from streamtrain.models.alignment import align, drop_last_axis
from streamtrain.models.losses import Loss
from streamtrain.models.real_view import as_real
from streamtrain.models.target_normalization import in_units_of_data, takes_logarithms
from streamtrain.optim.gradient_sum import ExactSum
from streamtrain.optim.ranks.exchange import Exchange
from streamtrain.training.metrics.classification import AccuracyTally, ClassTally, largest
from streamtrain.training.metrics.mistakes import Mistakes
from streamtrain.training.metrics.multilabel import MarkTally
from streamtrain.training.metrics.regression import RegressionTally, by_target
from streamtrain.training.metrics.results import Metrics, ScoreTable, Scoring
from streamtrain.training.metrics.sums import Total, wide
from streamtrain.training.metrics.tasks import SCORE_NAMES, ScoredTask, score_name, scored_as, threshold
from streamtrain.training.metrics.user import computed

_AT_ONCE: Final = 2**15
"""Elements of outputs that are scored at once."""

Tally = AccuracyTally | ClassTally | MarkTally | RegressionTally


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """One rank's sums, as they are sent to the others."""

    loss_sum: ExactSum
    weight: ExactSum
    n_samples: int
    is_weighted: bool
    task: ScoredTask | None
    tally: Tally | None
    kept: list[dict[str, Any]]
    mistakes: Mistakes


def bad_rows(output: Tensor) -> npt.NDArray[np.int64]:
    """Return the places of outputs (n, ...) that are no finite numbers."""
    if not (output.is_floating_point() or output.is_complex()):
        return np.zeros(0, np.int64)
    is_finite = torch.isfinite(output)
    if bool(is_finite.all()):
        return np.zeros(0, np.int64)
    return np.flatnonzero(~is_finite.reshape(len(output), -1).all(1).cpu().numpy()).astype(np.int64)


@dataclass(slots=True, kw_only=True)
class BadRows:
    """How many rows have a prediction that is no finite number, and the first of them."""

    n: int = 0
    n_all: int = 0
    first: int | None = None

    def add(self, rows: Sequence[int] | npt.NDArray[np.int64], n_all: int) -> None:
        """Count the rows of a batch of ``n_all``, in order."""
        if len(rows) and self.first is None:
            self.first = int(rows[0])
        self.n, self.n_all = self.n + len(rows), self.n_all + n_all

    def told(self) -> str | None:
        """Say it in a sentence; None where there are none."""
        if self.first is None:
            return None
        have = "has a prediction that is" if self.n == 1 else "have predictions that are"
        first = f"row {self.first:,}" if self.n == 1 else f"the first is row {self.first:,}"
        why = "their values are NaN, or far from those that the model was trained on"
        return f"{self.n:,} of {self.n_all:,} rows {have} not finite, {first}: {why}"


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
        # The states of tallies that this one resumes from.
        self._kept: list[dict[str, Any]] = []
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
            # Not added, but put in place: a run resumes to the last bit.
            if self._kept and self._is_of(self._kept[0], self._tally):
                self._tally.load_state(self._kept.pop(0))  # type: ignore[union-attr]
            self._load_kept(self._tally)
        return self._tally

    def _load_kept(self, tally: Any) -> None:
        """Add the states of several ranks to a tally."""
        kept, self._kept = self._kept, []
        for state in kept:
            if self._is_of(state, tally):
                more = copy.deepcopy(tally)
                more.load_state(state)
                tally.merge(more)

    @staticmethod
    def _is_of(state: dict[str, Any], tally: Any) -> bool:
        # An earlier version counted hits of labels too.
        return bool(state.keys() == tally.state().keys())

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
        self._score_kept()
        self._take(other._share())

    def over(self, exchange: Exchange) -> RunningMetrics:
        """Return the sums of all ranks together; metrics of the user's own are synchronized by themselves."""
        if exchange.world_size == 1:
            return self
        whole = copy.copy(self)
        whole._loss_sum, whole._weight, whole._n_samples = ExactSum(), ExactSum(), 0
        whole._terms, whole._batches, whole._n_elements, whole._tally, whole._kept = [], [], 0, None, []
        whole.mistakes = Mistakes()
        for share in exchange.gather(self._share()):
            whole._take(share)
        return whole

    def _share(self) -> _Share:
        self._score_kept()
        return _Share(
            loss_sum=self._loss_sum,
            weight=self._weight,
            n_samples=self._n_samples,
            is_weighted=self._is_weighted,
            task=self._task,
            tally=self._tally,
            kept=self._kept,
            mistakes=self.mistakes,
        )

    def _take(self, share: _Share) -> None:
        self._loss_sum.merge(share.loss_sum)
        self._weight.merge(share.weight)
        self._n_samples += share.n_samples
        self._is_weighted |= share.is_weighted
        self.mistakes.merge(share.mistakes)
        if self._tally is None:
            self._task, self._tally = share.task or self._task, share.tally
        elif share.tally is not None:
            self._tally.merge(share.tally)  # type: ignore[arg-type]
        self._kept = [*self._kept, *share.kept]
        if self._tally is not None:
            self._load_kept(self._tally)

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
        hits, of, scores = 0.0, 0.0, self._kept[0] if self._kept else None
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

    def load_state_dict(self, *states: dict[str, Any]) -> None:
        """Restore the sums of a ``state_dict``, and add those of others, such as of ranks that are no more.

        A new rank has none of its own, and leaves out the user's metrics as the others do.
        """
        if states:
            self._load(*states)
        if self._metrics:
            names = ", ".join(self._metrics)
            text = f"{names} of this epoch: left out, since what it had seen before the run was cut short is not kept"
            warnings.warn(StreamtrainWarning(text), stacklevel=6)
            self._metrics = {}

    def _load(self, state: dict[str, Any], *others: dict[str, Any]) -> None:
        self._loss_sum, self._weight = ExactSum(*state["loss_sum"]), ExactSum(*state["weight"])
        self._terms, self._n_samples, self._kept, self._tally = [], state["n_samples"], [], None
        for each in others:
            self._loss_sum.merge(ExactSum(*each["loss_sum"]))
            self._weight.merge(ExactSum(*each["weight"]))
            self._n_samples += each["n_samples"]
        for each in (state, *others):
            is_told = "scores" in each or "batches" in each
            kept = each.get("scores") if is_told else self._of_earlier(each)
            self._kept += [] if kept is None else [kept]
            if (batches := each.get("batches")) is not None:
                self._keep(*batches)
        self._marked = (state["marked"][0], state["marked"][1])

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
