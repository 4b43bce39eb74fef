"""How fast samples are taken in, and where the time goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from streamtrain.system.events import Work


class Waits(Protocol):
    """Something that knows how long its consumer has waited for it."""

    @property
    def wait_seconds(self) -> float:
        """Seconds waited so far, over its whole life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast samples were taken in, and where the time went.

    Parameters
    ----------
    n_samples : int
        Taken in.
    seconds, wait_seconds, transfer_seconds : float
        Wall time, and what of it the training waited for batches and for their copies to the device.
    work : Work
        What the loader's threads did meanwhile, in seconds of theirs; several threads do several in one of wall time.

    Examples
    --------
    >>> speed = Speed(n_samples=3000, seconds=2.0, wait_seconds=0.1)
    >>> speed.samples_per_second, speed.stall_fraction
    (1500.0, 0.05)
    """

    n_samples: int
    seconds: float
    wait_seconds: float
    transfer_seconds: float = 0.0
    work: Work = field(default_factory=Work)

    def __add__(self, other: Speed) -> Speed:
        return Speed(
            n_samples=self.n_samples + other.n_samples,
            seconds=self.seconds + other.seconds,
            wait_seconds=self.wait_seconds + other.wait_seconds,
            transfer_seconds=self.transfer_seconds + other.transfer_seconds,
            work=self.work + other.work,
        )

    @property
    def compute_seconds(self) -> float:
        """Wall time that was neither waiting nor copying: the model, the optimizer, and a transform."""
        return max(self.seconds - self.wait_seconds - self.transfer_seconds, 0.0)

    @property
    def samples_per_second(self) -> float:
        """Samples by wall time."""
        return self.n_samples / self.seconds if self.seconds > 0 else 0.0

    @property
    def stall_fraction(self) -> float:
        """The share of the wall time spent waiting for data."""
        return min(self.wait_seconds / self.seconds, 1.0) if self.seconds > 0 else 0.0

    def wall(self) -> dict[str, float]:
        """The wall time by kind: seconds that add up to it.

        Examples
        --------
        >>> Speed(n_samples=1, seconds=2.0, wait_seconds=0.5, transfer_seconds=0.25).wall()
        {'compute': 1.25, 'transfer': 0.25, 'wait': 0.5}
        """
        return {"compute": self.compute_seconds, "transfer": self.transfer_seconds, "wait": self.wait_seconds}


class Stopwatch:
    """Wall time and where it went, from the moment it is made.

    Attributes
    ----------
    transfer_seconds : float
        Whoever copies to the device adds to it.
    """

    def __init__(self, stream: Waits) -> None:
        self._stream = stream
        self._waited_before = stream.wait_seconds
        self._work_before = _work(stream)
        self.transfer_seconds = 0.0
        self._start = time.perf_counter()

    def speed(self, n_samples: int) -> Speed:
        """The speed of the samples taken in until now."""
        seconds = time.perf_counter() - self._start
        return Speed(
            n_samples=n_samples,
            seconds=seconds,
            wait_seconds=self._stream.wait_seconds - self._waited_before,
            transfer_seconds=self.transfer_seconds,
            work=_work(self._stream) - self._work_before,
        )


def _work(stream: Waits) -> Work:
    # A stream of the user's own need not know what its threads did.
    work = getattr(stream, "work", None)
    return work if isinstance(work, Work) else Work()
