"""Optimizers by name: those of ``torch.optim``, their arguments checked before a step is taken.

Two more need the whole dataset for a step, and so the rule ``epoch``: ``lbfgs`` is torch's, with its strong-Wolfe line
search, and ``cg`` is `streamtrain.optim.conjugate_gradient`. ``SparseAdam`` is left out: it takes sparse gradients
alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch
from torch.optim import Optimizer

from streamtrain.errors import UsageError, unknown_name
from streamtrain.optim.conjugate_gradient import ConjugateGradient
from streamtrain.system.arguments import is_int, is_number

Parameters = Iterable[torch.nn.Parameter]
OptimizerFactory = Callable[[Parameters], Optimizer]
"""Parameters -> optimizer; the classes of ``torch.optim`` are such factories."""

_NOT_BY_GRADIENT_ALONE: Final = frozenset({"lbfgs", "sparseadam"})

FULL_BATCH: Final[Mapping[str, type[Optimizer]]] = {"cg": ConjugateGradient, "lbfgs": torch.optim.LBFGS}
"""Lower-case name -> class, of those that ask for J over the whole dataset by a closure."""

_LBFGS: Final[Mapping[str, object]] = {
    # A step is one iteration, and where to stop is the trainer's to say: torch's own tolerances are absolute.
    "max_iter": 1,
    "max_eval": 26,
    "tolerance_grad": 0.0,
    "tolerance_change": 0.0,
    "line_search_fn": "strong_wolfe",
    "history_size": 50,
}

OPTIMIZERS: Final[Mapping[str, type[Optimizer]]] = {
    name.lower(): item
    for name, item in sorted(vars(torch.optim).items())
    if isinstance(item, type)
    and issubclass(item, Optimizer)
    and item is not Optimizer
    and name.lower() not in _NOT_BY_GRADIENT_ALONE
}
"""Lower-case name -> class, of those that step by a gradient."""

_KNOWN: Final[Mapping[str, type[Optimizer]]] = {**OPTIMIZERS, **FULL_BATCH}

SGD_LR: Final = 0.1
SGD_SAMPLE_LR: Final = 0.01
"""One sample's gradient is noisier than a batch's mean, and there are as many more steps to make."""


def build_optimizer(
    optimizer: str | Optimizer | OptimizerFactory,
    parameters: Parameters,
    *,
    lr: float | None = None,
    update: str = "batch",
    **options: object,
) -> Optimizer:
    """Make an optimizer over some parameters.

    Parameters
    ----------
    optimizer : str, torch.optim.Optimizer or callable
        A name of ``torch.optim`` in any case (``"sgd"``, ``"adam"``, ``"adamw"``, ``"rmsprop"``, ..., ``"lbfgs"``),
        or ``"cg"``; a finished optimizer over these parameters; or a factory of one.
    parameters : iterable of torch.nn.Parameter
        What to train; those that need no gradient are left out.
    lr : float, optional
        The learning rate, positive. By default torch's own (Adam 0.001), but for SGD 0.1, or 0.01 under the rule
        ``sample``. For ``"lbfgs"`` and ``"cg"`` it is the length that a line search begins at, by default 1.
    update : {"batch", "sample", "epoch"}
        The update rule, which only the default of ``lr`` depends on.
    **options
        ``momentum``, ``betas``, ``eps``, ``weight_decay``, ``nesterov``, or anything else the named class takes; of
        ``"lbfgs"`` only ``history_size``, by default 50: two vectors of the size of the weights for each. None means
        not given.

    Raises
    ------
    UnknownName
        No optimizer has that name.
    UsageError
        An argument out of its range, or one that the optimizer does not take.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1)
    >>> build_optimizer("SGD", net.parameters(), momentum=0.9).defaults["lr"]
    0.1
    >>> build_optimizer("adam", net.parameters(), lr=-1.0)
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: lr is -1.0; it must be positive and finite
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
    _check_values(given)
    return _make(name, trained, _defaults(name, update) | given)


def takes_closure(optimizer: Optimizer) -> bool:
    """Whether an optimizer asks for J itself, again and again, and so needs the whole dataset for every step.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> takes_closure(torch.optim.LBFGS([weight])), takes_closure(torch.optim.Adam([weight]))
    (True, False)
    """
    return isinstance(optimizer, tuple(FULL_BATCH.values()))


def _given_optimizer(
    optimizer: Optimizer | OptimizerFactory, parameters: list[torch.nn.Parameter], given: Mapping[str, object]
) -> Optimizer:
    if given:
        raise UsageError(
            f"{', '.join(given)} given beside a finished optimizer",
            why="They would have no effect",
            fix="set them where the optimizer is made, or name the optimizer as text",
        )
    if not callable(optimizer) and not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"optimizer is {optimizer!r}", fix="a name, an optimizer, or a factory (parameters) -> optimizer"
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
            raise UsageError(f"{name} takes no {argument!r}", why=f"It takes {', '.join(accepted)}", fix="leave it out")


def _defaults(name: str, update: str) -> dict[str, object]:
    if name == "lbfgs":
        return dict(_LBFGS)
    if name != "sgd":
        return {}
    return {"lr": SGD_SAMPLE_LR if update == "sample" else SGD_LR}


def _make(name: str, trained: list[torch.nn.Parameter], options: Mapping[str, object]) -> Optimizer:
    make: Callable[..., Optimizer] = _KNOWN[name]
    try:
        return make(trained, **options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name} refuses its arguments: {error}", fix="see torch.optim for what it takes") from error


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
    "history_size": (lambda value: is_int(value, 1), "an integer of at least 1"),
    "momentum": (_is_fraction, "in [0, 1)"),
    "betas": (_are_betas, "two numbers in [0, 1)"),
    "weight_decay": (_is_not_negative, "0 or positive, and finite"),
}
