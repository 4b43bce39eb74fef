"""Weights of classes in the loss: balanced by their frequencies, or told one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from streamtrain.errors import UsageError, unknown_name
from streamtrain.models.losses import Loss
from streamtrain.system.arguments import is_number

ClassWeight = str | Mapping[str, float] | Mapping[int, float]
BALANCED: Final = "balanced"


def check_class_weight(given: object, loss: Loss) -> None:
    """Refuse class weights that are no such, or have no place in a loss."""
    if given is None:
        return
    if not isinstance(given, Mapping) and not (isinstance(given, str) and given == BALANCED):
        raise UsageError(f"class_weight is {given!r:.80}", fix="'balanced', or a mapping of class to weight")
    for name, weight in given.items() if isinstance(given, Mapping) else ():
        if not is_number(weight) or weight < 0:
            raise UsageError(f"the weight of class {name} is {weight!r}; it must be 0 or positive, and finite")
    if loss.kind not in ("classes", "logits", "custom"):
        what = f"class_weight with the loss {loss.name}"
        raise UsageError(what, why="Its targets are not classes", fix="leave it out, or a loss of classes")
    inside = loss.class_weights is not None or bool(loss.element_weights)
    if inside or any(getattr(loss.mean, name, None) is not None for name in ("weight", "pos_weight")):
        why = "They would be weighed twice"
        raise UsageError(f"class_weight with a {loss.name} that has weights", why=why, fix="one of the two")


def balanced(counts: Sequence[int]) -> tuple[float, ...]:
    """Weigh each class by N / (K n), as scikit-learn does; one without samples by 0."""
    n_classes = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (n_classes * count) if count else 0.0 for count in counts)


def told(given: Mapping[Any, float], names: Sequence[str]) -> tuple[float, ...]:
    """Return the weight of each class by its number: as given by its name, else 1."""
    weights = dict.fromkeys(names, 1.0)
    for name, weight in given.items():
        if str(name) not in weights:
            raise unknown_name("class", str(name), names)
        weights[str(name)] = float(weight)
    if not any(weights.values()):
        raise UsageError("all classes weigh 0", fix="a weight above 0 for one of them")
    return tuple(weights.values())


def check_one_class_a_sample(shape: tuple[int, ...], name: str) -> None:
    """Refuse class weights of samples that have more than one class."""
    if shape not in ((), (1,)):
        raise UsageError(
            f"class_weight, and field {name} has {' × '.join(map(str, shape))} classes a sample",
            fix="loss=torch.nn.CrossEntropyLoss(weight=...), or BCEWithLogitsLoss(pos_weight=...), in Python",
        )


def weigh_classes(class_weights: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Weigh samples by their class, times their own weight; what is none of the classes weighs 1."""
    classes = target.reshape(len(target)).long()
    is_class = (classes >= 0) & (classes < len(class_weights))
    of_class = torch.where(is_class, class_weights.to(target.device)[classes.where(is_class, 0)], 1.0)
    return of_class if weight is None or weight.ndim != 1 else of_class * weight
