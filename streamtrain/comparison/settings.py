"""Settings of a comparison: rules, optimizers, learning rates, and the end of each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Self

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.optim.build_rule import check_rule
from streamtrain.optim.optimizers import FULL_BATCH
from streamtrain.optim.rules import EpochRule
from streamtrain.system.arguments import check_batch_size, check_names, is_int, is_number
from streamtrain.training.progress import Totals

_LEAST_GRID: Final = 2
_MOST_GRID: Final = 201
_SEPARATOR: Final = ":"
EVERY_OPTIMIZER: Final = "every"
"""In place of an optimizer's name: the learning rate of all that have none in particular."""
_FOREVER: Final = 2**31
"""Epochs of a run that only its time ends."""


Rates = Mapping[str, float | Sequence[float]]
"""Learning rates by name; each of several is a run."""


def rates_by_name(lr: Rates | Sequence[float] | float) -> Rates:
    """Give one rate, or several, to every optimizer."""
    return lr if isinstance(lr, Mapping) else {EVERY_OPTIMIZER: lr}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChoice:
    """What tells a run of a comparison from the others."""

    rule: str
    optimizer: str
    # None leaves it to the trainer.
    lr: float | None = None
    # Whether it is one of several rates of the same rule and optimizer.
    by_rate: bool = False

    @property
    def folder_name(self) -> str:
        """The name of the run's folder."""
        rate = (rate_text(self.lr),) if self.by_rate and self.lr is not None else ()
        return "-".join((self.rule, self.optimizer, *rate))


def rate_text(lr: float) -> str:
    """Write a learning rate shortly, and always so that it is read back as it is."""
    short = f"{lr:g}"
    return short if float(short) == lr else repr(lr)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSettings:
    """What is compared, and how; `streamtrain.compare` documents each field."""

    rules: tuple[str, ...] = ("sample", "batch", "epoch")
    optimizers: tuple[str, ...] = ("sgd", "adam")
    lr: Rates = field(default_factory=lambda: MappingProxyType({}))
    max_epochs: int | None = None
    seconds: float | None = None
    batch_size: int = 256
    memory: str | int | None = None
    max_memory: str | None = None
    seed: int = 0
    device: str = "auto"
    target_loss: float | None = None
    grid: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Pick the settings from other arguments, by name."""
        return cls(**{each.name: given[each.name] for each in fields(cls)})

    def __post_init__(self) -> None:
        check_names(rules=self.rules, optimizers=self.optimizers)
        for rule in self.rules:
            check_rule(rule)
        for kind, names in (("rules", self.rules), ("optimizers", self.optimizers)):
            # PyTorch's optimizers are found by name in any case.
            if not names or len({name.lower() for name in names}) < len(names):
                raise UsageError(f"{kind} are {', '.join(names) or 'none'}", fix="each one once")
        self._check_line_searches()
        self._check_lr()
        if self.max_epochs is None and self.seconds is None:
            raise UsageError("neither epochs nor seconds are given", fix=Fix(Argument("max_epochs", 3), ", say"))
        if self.max_epochs is not None:
            Totals(max_epochs=self.max_epochs)
        if self.seconds is not None and not (is_number(self.seconds) and self.seconds > 0):
            raise UsageError(f"seconds is {self.seconds!r}; it must be positive and finite")
        if self.target_loss is not None and not is_number(self.target_loss):
            raise UsageError(f"target_loss is {self.target_loss!r}; it must be finite")
        check_batch_size(self.batch_size, self.batch_size, drop_last=False)
        if self.grid is not None and not is_int(self.grid, _LEAST_GRID, _MOST_GRID):
            raise UsageError(f"the grid is {self.grid!r:.80}; it must be from {_LEAST_GRID} to {_MOST_GRID}")

    def _check_line_searches(self) -> None:
        searching = next((name for name in self.optimizers if name.lower() in FULL_BATCH), None)
        rule = next((rule for rule in self.rules if rule != EpochRule.name), None)
        if searching is not None and rule is not None:
            raise UsageError(
                f"{searching} with the rule {rule!r}",
                why="Its line search compares J over the whole dataset, one pass for each value",
                fix=Fix(Argument("rules", [EpochRule.name]), f", or leave {searching} out"),
            )

    def _check_lr(self) -> None:
        if not isinstance(self.lr, Mapping):
            raise UsageError(f"lr is {self.lr!r:.80}; it must be a number, several, or those of each optimizer")
        known = {EVERY_OPTIMIZER, *self.optimizers, *(_SEPARATOR.join(pair) for pair in self.pairs())}
        for name, given in self.lr.items():
            if name not in known:
                raise unknown_name("optimizer to give a learning rate", name, known)
            rates = _several(given)
            for lr in rates:
                if not (is_number(lr) and lr > 0):
                    raise UsageError(f"lr of {name} is {lr!r:.80}; it must be positive and finite")
            if not rates or len(set(rates)) < len(rates):
                of = "all" if name == EVERY_OPTIMIZER else name
                listed = ", ".join(map(str, rates)) or "none"
                raise UsageError(f"the learning rates of {of} are {listed}", fix="each one once")

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield every rule with every optimizer, in order."""
        return ((rule, optimizer) for optimizer in self.optimizers for rule in self.rules)

    def choices(self) -> Iterator[RunChoice]:
        """Yield the runs, in order."""
        for rule, optimizer in self.pairs():
            given = self.lr_of(rule, optimizer)
            rates = (None,) if given is None else _several(given)
            for lr in rates:
                yield RunChoice(rule=rule, optimizer=optimizer, lr=lr, by_rate=len(rates) > 1)

    def lr_of(self, rule: str, optimizer: str) -> float | Sequence[float] | None:
        """Return the learning rates of a rule and an optimizer; None leaves them to the trainer."""
        names = (f"{rule}{_SEPARATOR}{optimizer}", optimizer, EVERY_OPTIMIZER)
        return next((self.lr[name] for name in names if name in self.lr), None)

    @property
    def most_epochs(self) -> int:
        """The limit of epochs of a run that its time does not end first."""
        return _FOREVER if self.max_epochs is None else self.max_epochs


def _several(given: Any) -> tuple[float, ...]:
    return tuple(given) if isinstance(given, list | tuple) else (given,)
