"""Optimizers by name: those of ``torch.optim``, their arguments checked before a step is taken.

Two more need the whole dataset for a step, and so the rule ``epoch``: torch's ``lbfgs`` with its strong-Wolfe line
search, and ``cg``, `streamtrain.optim.conjugate_gradient`. ``SparseAdam`` is left out: it takes only sparse gradients.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch
from torch.optim import Optimizer

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.optim.conjugate_gradient import ConjugateGradient
from streamtrain.system.arguments import MOST_INT, is_int, is_number

Parameters = Iterable[torch.nn.Parameter]
OptimizerFactory = Callable[[Parameters], Optimizer]

_NOT_BY_GRADIENT_ALONE: Final = frozenset({"lbfgs", "sparseadam"})

FULL_BATCH: Final[dict[str, type[Optimizer]]] = {"cg": ConjugateGradient, "lbfgs": torch.optim.LBFGS}
"""The optimizers that ask for J over the whole dataset by a closure."""

_LBFGS: Final[Mapping[str, object]] = {
    # A step is one iteration, and the trainer decides where to stop: torch's tolerances are absolute.
    "max_iter": 1,
    "max_eval": 26,
    "tolerance_grad": 0.0,
    "tolerance_change": 0.0,
    "line_search_fn": "strong_wolfe",
    "history_size": 50,
}

OPTIMIZERS: Final[dict[str, type[Optimizer]]] = {
    name.lower(): item
    for name, item in sorted(vars(torch.optim).items())
    if isinstance(item, type)
    and issubclass(item, Optimizer)
    and item is not Optimizer
    and name.lower() not in _NOT_BY_GRADIENT_ALONE
}
"""The optimizers that step by a gradient."""

_COMMON: Final = ("adam", "adamw", "sgd", "lbfgs")
_KNOWN: Final[Mapping[str, type[Optimizer]]] = {
    name: (OPTIMIZERS | FULL_BATCH)[name] for name in (*_COMMON, *sorted({*OPTIMIZERS, *FULL_BATCH} - {*_COMMON}))
}
"""All of them, the most common first: where a misspelt name is as near to two, the first is suggested."""

SGD_LR: Final = 0.1
SGD_SAMPLE_LR: Final = 0.01
"""Smaller, as one sample's gradient is noisier than a batch's mean, and there are that many more steps."""


def build_optimizer(
    optimizer: str | Optimizer | OptimizerFactory,
    parameters: Parameters,
    *,
    lr: float | None = None,
    update: str = "batch",
    **options: object,
) -> Optimizer:
    """Make an optimizer over those of some parameters that need a gradient.

    It is given by name, finished, or as a factory. The update rule decides only the default of ``lr``; options that are
    None count as not given.
    """
    everything = list(parameters)
    trained = [parameter for parameter in everything if parameter.requires_grad]
    given = {name: value for name, value in {"lr": lr, **options}.items() if value is not None}
    if not trained:
        raise UsageError("the model has no parameters to train", fix="requires_grad=True on those to be trained")
    if not isinstance(optimizer, str):
        return _given_optimizer(optimizer, everything, given)
    name = optimizer.lower()
    if name not in _KNOWN:
        raise unknown_name("optimizer", optimizer, _KNOWN)
    _check_taken(name, given)
    _check_kinds(name, given)
    _check_values(given)
    if given.get("capturable") and trained[0].device.type == "cpu":
        raise UsageError(
            "capturable is True on the CPU", why="Only steps on a device can be captured", fix="leave it out"
        )
    return _make(name, trained, _defaults(name, update) | given)


def takes_closure(optimizer: Optimizer) -> bool:
    """Whether an optimizer asks for J itself, several times a step, and so needs the whole dataset for every step."""
    return isinstance(optimizer, tuple(FULL_BATCH.values()))


def _given_optimizer(
    optimizer: Optimizer | OptimizerFactory, parameters: list[torch.nn.Parameter], given: Mapping[str, object]
) -> Optimizer:
    if given:
        raise UsageError(
            f"{', '.join(given)} given together with a ready optimizer",
            why="They would have no effect",
            fix="set them where the optimizer is made, or name the optimizer as text",
        )
    is_made_here = callable(optimizer) and not isinstance(optimizer, torch.nn.Module)
    if not is_made_here and not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"optimizer is {optimizer!r:.80}", fix="a name, an optimizer, or a factory (parameters) -> optimizer"
        )
    made = optimizer if isinstance(optimizer, Optimizer) else optimizer([p for p in parameters if p.requires_grad])
    if not isinstance(made, Optimizer):
        raise UsageError(f"the optimizer factory returned {type(made).__name__}", fix="return a torch.optim.Optimizer")
    _check_same_parameters(made, parameters)
    return made


def _check_same_parameters(optimizer: Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not held <= {id(parameter) for parameter in parameters}:
        raise UsageError(
            "the optimizer holds parameters that the model does not",
            why="Its steps would not train this model",
            fix="make it from model.parameters() of the same model object",
        )


def _accepted(name: str) -> tuple[str, ...]:
    if name == "lbfgs":
        return ("lr", "history_size")
    return tuple(inspect.signature(_KNOWN[name]).parameters)[1:]


def _check_taken(name: str, given: Mapping[str, object]) -> None:
    accepted = _accepted(name)
    for argument in given:
        if argument not in accepted:
            ours = _OF_TRAINER.get(argument) if name in FULL_BATCH else None
            fix = Fix(Argument(ours, given[argument])) if ours else "leave it out"
            raise UsageError(f"{name} takes no {argument!r}", why=f"It takes {', '.join(accepted)}", fix=fix)


_OF_TRAINER: Final = {"weight_decay": "l2", "tolerance_grad": "grad_tolerance", "tolerance_change": "loss_tolerance"}
"""Options of torch's L-BFGS, and the trainer's own for a line search."""


def _defaults(name: str, update: str) -> dict[str, object]:
    if name == "lbfgs":
        return dict(_LBFGS)
    if name != "sgd":
        return {}
    return {"lr": SGD_SAMPLE_LR if update == "sample" else SGD_LR}


def default_rate(name: str, update: str) -> float:
    """Return the learning rate that an optimizer has under an update rule where none is given."""
    known = name.lower()
    if known not in _KNOWN:
        raise unknown_name("optimizer", name, _KNOWN)
    return float(str(_defaults(known, update).get("lr", usual_rate(_KNOWN[known]))))


def usual_rate(kind: type[Optimizer]) -> float:
    """Return the learning rate of a kind of optimizer by default; infinity where it has none."""
    if kind is torch.optim.SGD:
        return SGD_LR
    known = inspect.signature(kind).parameters.get("lr")
    rate = math.inf if known is None else known.default
    return float(rate) if is_number(rate) else math.inf


def _make(name: str, trained: list[torch.nn.Parameter], options: Mapping[str, object]) -> Optimizer:
    make: Callable[..., Optimizer] = _KNOWN[name]
    try:
        return make(trained, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"{name} refuses its arguments: {error}", fix="see torch.optim for what it takes") from error


def _check_kinds(name: str, given: Mapping[str, object]) -> None:
    """Refuse values of another kind than an option's default: some of them torch notices at the first step only."""
    for option, parameter in inspect.signature(_KNOWN[name]).parameters.items():
        wanted = _kind_of(option, parameter.default)
        if option in given and option not in _RANGES and not _is_of(wanted, given[option]):
            raise UsageError(f"{option} is {given[option]!r:.80}; it must be {wanted}")
    if given.get("differentiable"):
        raise UsageError("differentiable is True", why="No step is differentiated here", fix="leave it out")


def _kind_of(option: str, default: object) -> str | None:
    if isinstance(default, bool) or option in _FLAGS:
        return "True or False"
    if isinstance(default, tuple):
        return f"{len(default)} numbers"
    return "a finite number" if isinstance(default, int | float) else None


def _is_of(wanted: str | None, value: object) -> bool:
    match wanted:
        case None:
            return True
        case "True or False":
            return isinstance(value, bool)
        case "a finite number":
            return is_number(value)
    # Adafactor has None among its numbers.
    return isinstance(value, tuple | list) and all(part is None or is_number(part) for part in value)


_FLAGS: Final = ("foreach", "fused")
"""Flags whose default torch chooses."""


def _check_values(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if name in _RANGES:
            fits, wanted = _RANGES[name]
            if not fits(value):
                raise UsageError(f"{name} is {value!r}; it must be {wanted}")


def _is_positive(value: object) -> bool:
    return is_number(value) and value > 0


def _is_not_negative(value: object) -> bool:
    return is_number(value) and value >= 0


def _is_fraction(value: object) -> bool:
    return is_number(value) and 0 <= value < 1


def _are_betas(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_fraction, value))


_RANGES: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "lr": (_is_positive, "positive and finite"),
    "history_size": (lambda value: is_int(value, 1, MOST_INT), "an integer of at least 1"),
    "momentum": (_is_fraction, "in [0, 1)"),
    "betas": (_are_betas, "two numbers in [0, 1)"),
    "weight_decay": (_is_not_negative, "0 or positive, and finite"),
}
