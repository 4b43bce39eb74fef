"""The task that outputs are scored as, which the loss and the shape of the targets tell."""

from __future__ import annotations

import math
from typing import Final, Literal

from streamtrain.models.losses import Loss

ScoredTask = Literal["classification", "multilabel", "regression"]

_ERRORS: Final = frozenset(
    {"mse", "l1", "huber", "poisson", "SmoothL1Loss", "PoissonNLLLoss"}
    | {"mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "poisson_nll_loss"}
)
_PROBABILITIES: Final = frozenset({"BCELoss", "binary_cross_entropy"})
SCORE_NAMES: Final[dict[ScoredTask, str]] = {"classification": "accuracy", "multilabel": "f1", "regression": "rmse"}
"""The score of each epoch."""


FEW_CLASSES: Final = 20
"""Of more, the five best are looked at as well."""


def scored_as(loss: Loss, shape: tuple[int, ...] = ()) -> ScoredTask | None:
    """Name the task of a loss on targets of some shape a sample; None of a loss that tells none.

    Marks of 0 and 1 are labels where a sample has a row of them; one a sample, or a mask, are two classes.
    """
    if loss.kind == "classes":
        return "classification"
    if loss.kind in ("logits", "labels") or loss.name in _PROBABILITIES:
        return "multilabel" if len(shape) == 1 and math.prod(shape) > 1 else "classification"
    return "regression" if loss.name in _ERRORS else None


def score_name(loss: Loss, shape: tuple[int, ...] = ()) -> str | None:
    """Return the name of the score of each epoch."""
    task = scored_as(loss, shape)
    return None if task is None else SCORE_NAMES[task]


def measured_names(loss: Loss, shape: tuple[int, ...] = (), n_classes: int | None = None) -> tuple[str, ...]:
    """List what an evaluation measures; where the number of classes is not known, all that it may be."""
    match scored_as(loss, shape):
        case "classification":
            n_classes = n_classes if loss.kind == "classes" else 2
            of_two = ("precision", "recall", "auc") if n_classes in (None, 2) else ()
            of_many = ("top5_accuracy",) if n_classes is None or n_classes > FEW_CLASSES else ()
            return ("loss", "accuracy", "f1", "balanced_accuracy", *of_two, *of_many)
        case "multilabel":
            return ("loss", "f1", "accuracy", "exact_match")
        case "regression":
            return ("loss", "rmse", "mae", "r2", "max_error")
    return ("loss",)


def threshold(loss: Loss) -> float:
    """Return the output above which a label is there."""
    return 0.5 if loss.name in _PROBABILITIES else 0.0
