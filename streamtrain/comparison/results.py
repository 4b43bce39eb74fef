"""Results of a comparison, run by run and epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamtrain.comparison.surface import LossSurface
from streamtrain.training.metrics.running import Metrics


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
    # Where and how the run diverged, which ended it.
    diverged: str | None = None
    folder: Path | None = None

    @property
    def label(self) -> str:
        """Rule and optimizer in words."""
        return f"{self.rule}, {self.optimizer}"

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
            "run": self.folder,
            "epochs": [point.named() for point in self.points],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[ComparedRun, ...]
    target_loss: float
    n_samples: int
    n_weights: int
    about: dict[str, str]
    surface: LossSurface | None = None
    # Why the surface could not be measured.
    no_surface: str | None = None

    def __iter__(self) -> Iterator[ComparedRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def named(self) -> dict[str, Any]:
        """Return everything by name, as ``comparison.json`` holds it."""
        return {
            "about": self.about,
            "samples": self.n_samples,
            "weights": self.n_weights,
            "target_loss": self.target_loss,
            "runs": [run.named(self.target_loss) for run in self.runs],
            "surface": self.surface.named() if self.surface else None,
        }
