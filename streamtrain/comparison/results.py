"""Results of a comparison, run by run and epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamtrain.comparison.surface import LossSurface
from streamtrain.training.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningCurvePoint:
    """Where a run stands between two epochs.

    Parameters
    ----------
    epochs : float
        Samples taken in ÷ samples there are: 0 at the beginning, and a broken number where time ended an epoch.
    n_steps : int
        Updates so far.
    seconds : float
        Spent on training so far; measuring, and saving the run, are left out.
    train : Metrics
        Loss and score of these weights over the whole training data, by a pass of its own.
    val : Metrics or None
        Likewise over the validation data.
    variance : float or None
        The relative variance of the updates (`streamtrain.comparison.variance`) over the window that lies in the epoch
        before; None at the beginning, after a lone step, and where nothing moved.
    n_window : int
        The steps of that window.
    """

    epochs: float
    n_steps: int
    seconds: float
    train: Metrics
    val: Metrics | None = None
    variance: float | None = None
    n_window: int = 0

    def named(self) -> dict[str, Any]:
        """Everything by name, flat."""
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
    """One run of a comparison.

    Parameters
    ----------
    rule, optimizer : str
        By name.
    lr : float
        The learning rate.
    points : tuple of LearningCurvePoint
        The beginning, and the end of each epoch.
    memory : dict of str to int
        In bytes: the loaders' ``budget``, what they were ``projected`` to take, what was ``measured`` on top of the
        model, and the most that the whole ``process`` held.
    diverged : str or None
        Where, and how, if it did; then that ended it.
    folder : pathlib.Path or None
        Where the run was kept.
    """

    rule: str
    optimizer: str
    lr: float
    points: tuple[LearningCurvePoint, ...]
    memory: dict[str, int]
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
        """Training time by epochs; None before there was one."""
        return self.last.seconds / self.last.epochs if self.last.epochs else None

    def first_at(self, loss: float) -> LearningCurvePoint | None:
        """The first point at which the loss over the training data is no more than this; None if there is none."""
        return next((point for point in self.points if point.train.loss <= loss), None)

    def named(self, target_loss: float) -> dict[str, Any]:
        """Everything by name."""
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
    """Runs side by side.

    Parameters
    ----------
    runs : tuple of ComparedRun
        In order.
    target_loss : float
        What each was timed to.
    n_samples, n_weights : int
        Of the training data, and of the model.
    about : dict
        What was compared, in words, by name.
    surface : LossSurface or None
        The loss around the paths of the weights.
    no_surface : str or None
        Why there is none, where one was to be measured.
    """

    runs: tuple[ComparedRun, ...]
    target_loss: float
    n_samples: int
    n_weights: int
    about: dict[str, str]
    surface: LossSurface | None = None
    no_surface: str | None = None

    def __iter__(self) -> Iterator[ComparedRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def named(self) -> dict[str, Any]:
        """Everything by name, as ``comparison.json`` holds it."""
        return {
            "about": self.about,
            "samples": self.n_samples,
            "weights": self.n_weights,
            "target_loss": self.target_loss,
            "runs": [run.named(self.target_loss) for run in self.runs],
            "surface": self.surface.named() if self.surface else None,
        }
