"""Sums of gradients and of losses over many batches, exact enough that the number of batches does not matter.

=============== ============================================ ================= ===============================
`dtype`         each sum is                                  bytes a weight    error of a sum of n gradients
=============== ============================================ ================= ===============================
``float64``     a float64 number                             8                 n / 2**53 of the magnitudes
``compensated`` two float32 numbers, the sum and what the    8                 1 / 2**24 of the sum, and
                roundings so far left out of it                                n / 2**48 of the magnitudes
``float32``     a float32 number                             4                 n / 2**24 of the magnitudes
=============== ============================================ ================= ===============================

The magnitudes are the sum of the gradients' absolute values: a plain sum loses what cancels. The pair is summed by an
error-free transformation (D. E. Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B) and brought
back to a rounded sum and its remainder after every addition (T. J. Dekker, Numerische Mathematik 18, 1971). It serves
devices that have no float64, or a slow one.

Only ``float64`` sums a float64 gradient as it is; the others round it first. A complex one is summed by its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.models.real_view import as_real
from streamtrain.optim.ranks.exchange import Exchange
from streamtrain.system.arguments import check_choice

GRAD_SUM_DTYPES: Final = ("float64", "compensated", "float32")


class GradientSum:
    """The sum of gradients, by parameter, and of their weights; a parameter that never has a gradient stays without."""

    def __init__(self, dtype: str = "float64") -> None:
        check_grad_sum_dtype(dtype)
        self._dtype = dtype
        self.clear()

    @property
    def weight(self) -> float:
        """The weight of what was added."""
        return self._weight

    def options(self) -> dict[str, object]:
        """Its options, as ``config.json`` holds them."""
        return {"grad_sum_dtype": self._dtype}

    def clear(self) -> None:
        """Begin anew."""
        self._sums: dict[int, Tensor] = {}
        self._remainders: dict[int, Tensor] = {}
        self._weight = 0.0

    def add(self, parameters: Sequence[nn.Parameter], weight: float) -> None:
        """Add each parameter's gradient, that of a weighted sum of losses, and the sum of the weights."""
        self._weight += weight
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    self._add(i, as_real(parameter.grad))

    def _add(self, i: int, gradient: Tensor) -> None:
        if i not in self._sums:
            self._begin(i, gradient)
        if self._dtype == "compensated":
            _add_exactly(self._sums[i], self._remainders[i], gradient.float())
        else:
            self._sums[i].add_(gradient)

    def _begin(self, i: int, gradient: Tensor) -> None:
        if self._dtype == "float64" and gradient.device.type == "mps":
            raise UsageError(
                "the device has no float64 to sum gradients in", fix=Fix(Argument("grad_sum_dtype", "compensated"))
            )
        kind = torch.float64 if self._dtype == "float64" else torch.float32
        self._sums[i] = torch.zeros_like(gradient, dtype=kind)
        if self._dtype == "compensated":
            self._remainders[i] = torch.zeros_like(gradient, dtype=kind)

    def add_over(self, exchange: Exchange, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the sums of all ranks, each of which then has the same."""
        if exchange.world_size == 1:
            return
        self._weight, *n_ranks = exchange.add([self._weight, *(float(i in self._sums) for i in range(len(parameters)))])
        for i in (i for i, n in enumerate(n_ranks) if n and i not in self._sums):
            self._begin(i, as_real(parameters[i]).detach())
        # What the ranks' compensated sums have to tell one another needs more digits than float32.
        sums = {i: self._total(i) if i not in self._remainders else self._wide_total(i) for i in sorted(self._sums)}
        exchange.add_tensors(list(sums.values()))
        self._sums, self._remainders = sums, {}

    def _wide_total(self, i: int) -> Tensor:
        if self._sums[i].device.type == "mps":
            return self._total(i)
        return self._sums[i].double() + self._remainders[i]

    def put(self, parameters: Sequence[nn.Parameter], divisor: float = 1.0) -> None:
        """Put each sum, divided once, in place of its parameter's gradient, and begin anew."""
        for i, parameter in enumerate(parameters):
            mean = self._total(i).div_(divisor) if i in self._sums else None
            if mean is not None and parameter.is_complex():
                mean = torch.view_as_complex(mean)
            parameter.grad = None if mean is None else mean.to(parameter.dtype)
        self.clear()

    def _total(self, i: int) -> Tensor:
        return self._sums[i] + self._remainders[i] if i in self._remainders else self._sums[i]

    def state_dict(self) -> dict[str, Any]:
        """The sums, their remainders by the parameter's number, and their weight."""
        return {"weight": self._weight, "sums": dict(self._sums), "remainders": dict(self._remainders)}

    def load_state_dict(self, parameters: Sequence[nn.Parameter], state: dict[str, Any]) -> None:
        """Resume from a ``state_dict``, each sum on its parameter's device."""
        self._weight = state["weight"]
        self._sums = _placed(parameters, state["sums"])
        self._remainders = _placed(parameters, state["remainders"])


def joined_sums(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up what several sums return as their ``state_dict``."""
    joined: dict[str, Any] = {"weight": sum(each["weight"] for each in states), "sums": {}, "remainders": {}}
    for kind in ("sums", "remainders"):
        for each in states:
            for i, tensor in each[kind].items():
                joined[kind][i] = joined[kind][i] + tensor if i in joined[kind] else tensor
    joined["weight"] = float(joined["weight"])
    return joined


def _placed(parameters: Sequence[nn.Parameter], tensors: dict[int, Tensor]) -> dict[int, Tensor]:
    known = dict(enumerate(parameters))
    for i, tensor in tensors.items():
        if i not in known or not isinstance(tensor, Tensor) or tensor.shape != known[i].shape:
            raise ValueError(f"a sum of gradients is of no weight of this model: {i}")
    return {i: tensor.to(parameters[i].device, copy=True) for i, tensor in tensors.items()}


def _add_exactly(total: Tensor, remainder: Tensor, term: Tensor) -> None:
    """Add a term to a sum and its remainder, in place, losing only what is below the remainder's last digit."""
    rounded = total + term
    of_term = rounded - total
    lost = (total - (rounded - of_term)).add_(term - of_term).add_(remainder)
    torch.add(rounded, lost, out=total)
    torch.sub(lost, total - rounded, out=remainder)


def check_grad_sum_dtype(dtype: str) -> None:
    """Refuse a name that is not a dtype of a gradient sum."""
    check_choice(dtype, "grad_sum_dtype", GRAD_SUM_DTYPES)


class ExactSum:
    """A float64 sum that carries its rounding errors, so that it is as good after a billion terms as after one.

    The method is A. Neumaier's, Zeitschrift fuer Angewandte Mathematik und Mechanik 54 (1974).
    """

    __slots__ = ("_lost", "_total")

    def __init__(self, total: float = 0.0, lost: float = 0.0) -> None:
        self._total = total
        self._lost = lost

    @property
    def value(self) -> float:
        """The sum."""
        return self._total + self._lost

    def add(self, term: float) -> None:
        """Add a term."""
        total = self._total + term
        larger, smaller = (self._total, term) if abs(self._total) >= abs(term) else (term, self._total)
        self._lost += (larger - total) + smaller
        self._total = total

    def merge(self, other: ExactSum) -> None:
        """Add the terms of another sum."""
        for term in other.state():
            self.add(term)

    def state(self) -> list[float]:
        """The two numbers from which the sum is made again."""
        return [self._total, self._lost]
