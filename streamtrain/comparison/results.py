"""Results of a comparison, run by run and epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from streamtrain.comparison.settings import RunChoice, rate_text
from streamtrain.comparison.surface import LossSurface
from streamtrain.system.json_values import number_or_nan, objects, whole_number
from streamtrain.training.metrics.results import Metrics

_OF_POINTS: Final = ("epochs", "steps", "seconds", "update_variance", "update_window")
_VAL: Final = "val_"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningCurvePoint:
    """The state of a run between two epochs."""

    # Samples taken in ÷ samples in the data: a fraction where time ended an epoch.
    epochs: float
    n_steps: int
    # Of training alone, without measuring and saving.
    seconds: float
    # Of these weights over the whole data, by a separate pass.
    train: Metrics
    val: Metrics | None = None
    # Of the updates, over a window of n_window steps in the epoch before; see streamtrain.comparison.variance.
    variance: float | None = None
    n_window: int = 0

    def named(self) -> dict[str, Any]:
        """Return everything by name, flat."""
        return {
            "epochs": self.epochs,
            "steps": self.n_steps,
            "seconds": self.seconds,
            **self.train.named(),
            **(self.val.named("val_") if self.val else {}),
            "update_variance": self.variance,
            "update_window": self.n_window,
        }

    @classmethod
    def of(cls, named: Mapping[str, Any], *, n_samples: int, n_val: int | None) -> Self:
        """Rebuild a point from its values by name; ``n_val`` are the samples of the validation data, if any."""
        epochs, steps, seconds, variance, window = (named[name] for name in _OF_POINTS)
        scores = {name: number_or_nan(value) for name, value in named.items() if name not in _OF_POINTS}
        of_train = {name: value for name, value in scores.items() if not name.startswith(_VAL)}
        of_val = {name.removeprefix(_VAL): value for name, value in scores.items() if name.startswith(_VAL)}
        return cls(
            epochs=number_or_nan(epochs),
            n_steps=whole_number(steps),
            seconds=number_or_nan(seconds),
            train=_metrics(of_train, n_samples),
            val=None if n_val is None else _metrics(of_val, n_val),
            variance=None if variance is None else number_or_nan(variance),
            n_window=whole_number(window),
        )


def _metrics(named: dict[str, float], n_samples: int) -> Metrics:
    return Metrics(loss=named.pop("loss"), scores=named, n_samples=n_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How a run diverged, and the learning rate to try next."""

    how: str
    next_lr: float

    def named(self) -> dict[str, Any]:
        """Return everything by name."""
        return {"how": self.how, "next_lr": self.next_lr}

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Self:
        """Rebuild one from its values by name."""
        return cls(how=str(named["how"]), next_lr=number_or_nan(named["next_lr"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run of a comparison."""

    rule: str
    optimizer: str
    lr: float
    # The beginning, and the end of each epoch.
    points: tuple[LearningCurvePoint, ...]
    # Bytes: the loaders' "budget", their "projected" and "measured" memory, and the peak of the whole "process", of
    # which "above" came with the run.
    memory: dict[str, int]
    # Where and how the run diverged, which ended it: in words, and as values.
    diverged: str | None = None
    divergence: Divergence | None = None
    folder: Path | None = None
    # Whether only its learning rate tells it from other runs.
    by_rate: bool = False
    # Whether it has all its epochs, or diverged.
    is_finished: bool = True

    @property
    def rate(self) -> str | None:
        """The learning rate in words, where that tells the run from others."""
        return rate_text(self.lr) if self.by_rate else None

    @property
    def label(self) -> str:
        """Rule and optimizer in words, and the learning rate where that tells the run from others."""
        return f"{self.rule}, {self.optimizer}{f', lr {self.rate}' if self.rate else ''}"

    @property
    def has_diverged(self) -> bool:
        """Whether it ended by that, so that its last point is from before."""
        return self.diverged is not None or self.divergence is not None

    @property
    def last(self) -> LearningCurvePoint:
        """The last point."""
        return self.points[-1]

    @property
    def seconds_per_epoch(self) -> float | None:
        """Training time per epoch; None before the first."""
        return self.last.seconds / self.last.epochs if self.last.epochs else None

    def first_at(self, loss: float) -> LearningCurvePoint | None:
        """Return the first point with at most this training loss; None if there is none."""
        return next((point for point in self.points if point.train.loss <= loss), None)

    def named(self, target_loss: float) -> dict[str, Any]:
        """Return everything by name."""
        reached = self.first_at(target_loss)
        return {
            "rule": self.rule,
            "optimizer": self.optimizer,
            "lr": self.lr,
            "updates": self.last.n_steps,
            "seconds_per_epoch": self.seconds_per_epoch,
            **self.last.train.named(),
            "val": self.last.val.named() if self.last.val else None,
            "epochs_to_target": reached.epochs if reached else None,
            "seconds_to_target": reached.seconds if reached else None,
            "update_variance": self.last.variance,
            "memory": self.memory,
            "diverged": self.diverged,
            "divergence": self.divergence.named() if self.divergence else None,
            "finished": self.is_finished,
            "run": self.folder,
            "epochs": [point.named() for point in self.points],
        }

    @classmethod
    def of(cls, named: Mapping[str, Any], choice: RunChoice, *, n_samples: int, n_val: int | None) -> Self:
        """Rebuild a run from its values by name, all but its folder and the text of a divergence."""
        divergence = named.get("divergence")
        return cls(
            rule=choice.rule,
            optimizer=choice.optimizer,
            lr=number_or_nan(named["lr"]),
            points=tuple(
                LearningCurvePoint.of(each, n_samples=n_samples, n_val=n_val) for each in objects(named["epochs"])
            ),
            memory={str(name): whole_number(value) for name, value in objects([named["memory"]])[0].items()},
            divergence=None if divergence is None else Divergence.of(objects([divergence])[0]),
            by_rate=choice.by_rate,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[ComparedRun, ...]
    target_loss: float
    n_samples: int
    n_weights: int
    about: dict[str, str]
    # What a comparison that resumes must have as it was, and the lanes of its shuffle.
    settings: Mapping[str, Any] = field(default_factory=dict)
    surface: LossSurface | None = None
    # Why the surface could not be measured.
    no_surface: str | None = None

    def __iter__(self) -> Iterator[ComparedRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def has_val(self) -> bool:
        """Whether all runs were measured on validation data."""
        return all(run.last.val is not None for run in self)

    def best_first(self) -> tuple[ComparedRun, ...]:
        """Return the runs by their last loss, on validation data where there is some; those that diverged come last."""

        def rank(run: ComparedRun) -> tuple[bool, float]:
            metrics = run.last.val if self.has_val and run.last.val else run.last.train
            return run.has_diverged, math.inf if math.isnan(metrics.loss) else metrics.loss

        return tuple(sorted(self, key=rank))

    def named(self) -> dict[str, Any]:
        """Return everything by name, as ``comparison.json`` holds it."""
        return {
            "about": self.about,
            "settings": self.settings,
            "samples": self.n_samples,
            "weights": self.n_weights,
            "target_loss": self.target_loss,
            "runs": [run.named(self.target_loss) for run in self.runs],
            "surface": self.surface.named() if self.surface else None,
        }
