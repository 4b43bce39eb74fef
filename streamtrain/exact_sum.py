"""A sum of numbers that is exact enough that their number does not matter."""

from __future__ import annotations


class ExactSum:
    """A float64 sum that carries what its roundings left out, so that it is as good after a billion terms as after one.

    The method is A. Neumaier's, Zeitschrift fuer Angewandte Mathematik und Mechanik 54 (1974).

    Examples
    --------
    >>> total = ExactSum()
    >>> for term in (1e16, 1.0, 1.0, -1e16):
    ...     total.add(term)
    >>> total.value
    2.0
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

    def state(self) -> list[float]:
        """What makes the same sum again."""
        return [self._total, self._lost]
