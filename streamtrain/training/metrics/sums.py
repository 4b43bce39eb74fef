"""Sums over batches that neither the number nor the size of the batches changes: int64 counts, compensated float64.

The compensation is that of D. E. Knuth, The Art of Computer Programming 2, section 4.2.2: the rounding error of each
addition is a number of its own, and is summed beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU where the device has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


class Total:
    """The sum of tensors of one shape, on their device: of int64 exactly, of float64 with its rounding errors."""

    __slots__ = ("_lost", "_sum")

    def __init__(self, total: Tensor | None = None, lost: Tensor | None = None) -> None:
        self._sum, self._lost = total, lost

    def add(self, term: Tensor) -> None:
        """Add a term, whose memory is not written again."""
        if self._sum is not None and self._sum.device != term.device:
            # Restored from a file, or another process's.
            self._sum = self._sum.to(term.device)
            self._lost = None if self._lost is None else self._lost.to(term.device)
        if self._sum is None:
            self._sum = term
        elif not term.dtype.is_floating_point:
            self._sum = self._sum + term
        else:
            self._sum, lost = _two_sum(self._sum, term)
            self._lost = lost if self._lost is None else self._lost + lost

    def merge(self, other: Total) -> None:
        """Add the terms of another sum."""
        for term in (other._sum, other._lost):
            if term is not None:
                self.add(term)

    @property
    def value(self) -> Tensor:
        """The sum; 0 of nothing."""
        if self._sum is None:
            return torch.zeros((), dtype=torch.int64)
        # Of infinite terms the error is not a number.
        return self._sum if self._lost is None else torch.where(self._sum.isfinite(), self._sum + self._lost, self._sum)

    @property
    def is_exact(self) -> bool:
        """Whether no rounding error is carried."""
        return self._lost is None or not bool(self._lost.any())

    def state(self) -> list[Tensor | None]:
        """Return the tensors from which the sum is made again."""
        return [self._sum, self._lost]


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sum and its rounding error."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


class Bins:
    """Counts of samples by place, 0 to n - 1, and the sums of their weights where they have some; on the CPU."""

    def __init__(self, n: int) -> None:
        self.counts = torch.zeros(n, dtype=torch.int64)
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, places: Tensor, weights: Tensor | None = None) -> None:
        """Count samples at int64 places (N,), with float64 weights (N,)."""
        self.counts.index_add_(0, places, torch.ones_like(places))
        if weights is not None:
            found, where = torch.unique(places, return_inverse=True)
            self._add_sums(found, torch.zeros(len(found), dtype=torch.float64).index_add_(0, where, weights))

    def _add_sums(self, places: Tensor | slice, terms: Tensor) -> None:
        if self._sums is None:
            self._sums = torch.zeros(len(self.counts), dtype=torch.float64), torch.zeros_like(self.counts).double()
        sums, lost = self._sums
        sums[places], more = _two_sum(sums[places], terms)
        lost[places] += more

    def merge(self, other: Bins) -> None:
        """Add the counts and weights of other samples."""
        self.counts += other.counts
        for terms in other._sums or ():
            self._add_sums(slice(None), terms)

    @property
    def value(self) -> Tensor:
        """The sums of the weights, float64; without weights the counts, int64."""
        return self.counts if self._sums is None else self._sums[0] + self._sums[1]

    def state(self) -> dict[str, Any]:
        """Return the tensors from which all of it is made again."""
        return {"counts": self.counts, "sums": None if self._sums is None else list(self._sums)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a ``state``."""
        self.counts, sums = state["counts"], state["sums"]
        self._sums = None if sums is None else (sums[0], sums[1])
