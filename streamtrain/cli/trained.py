"""What came of a training run, as ``train`` prints it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from streamtrain.cli.tables import headspace_line, memory_line, time_lines
from streamtrain.diagnostics.headspace import Headspace
from streamtrain.loader.quarantine import LeftOut
from streamtrain.system.units import format_rate
from streamtrain.training.metrics import METRIC_NAMES, History
from streamtrain.training.run_folder import last_epoch

_ENDED: Final = {
    "until_loss": "by --until-loss",
    "patience": "by --patience: the loss has no longer fallen",
    "grad_tolerance": "by --grad-tolerance: the norm of the gradient is at most that",
    "loss_tolerance": "by --loss-tolerance: a step lowered J by at most that",
    "stuck": "where no step lowers J any more",
}
"""What ends a run before its total does, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a run."""

    history: History
    memory: dict[str, int]
    out: Path
    headspace: Headspace | None
    quarantined: tuple[LeftOut, ...] = ()
    val_quarantined: tuple[LeftOut, ...] = ()
    interrupt: KeyboardInterrupt | None = None
    """What came while the headspace was measured."""

    def result(self) -> dict[str, object]:
        """Everything by name, for ``--json``."""
        speed = self.history.speed
        return {
            "steps": self.history.counts.n_steps,
            "samples": self.history.counts.n_samples,
            "loss": None,
            "accuracy": None,
            **self._last(),
            "reached": self.history.reached,
            "stopped_by": self.history.stopped_by,
            "resumed_from_batch": self.history.resumed_from_batch,
            "memory": self.memory,
            "samples_per_second": speed.samples_per_second,
            "stall_fraction": speed.stall_fraction,
            "stall": {"wall_seconds": speed.wall(), "thread_seconds": speed.work.named()},
            "headspace": self.headspace.named() if self.headspace else None,
            "quarantined": [asdict(out) for out in self.quarantined],
            "val_quarantined": [asdict(out) for out in self.val_quarantined],
            "checkpoint_failures": self.history.checkpoint_failures,
            "epochs": [summary.named() for summary in self.history],
            "run": self.out,
        }

    def _last(self) -> dict[str, object]:
        """The last epoch's metrics; of a run that was complete already, from its file."""
        last = self.history.last
        if last is not None:
            return last.train.named() | {"val": last.val.named() if last.val else None}
        line = last_epoch(self.out) or {}
        val = {name.removeprefix("val_"): value for name, value in line.items() if name.startswith("val_")}
        return {name: line[name] for name in METRIC_NAMES if name in line} | {"val": val or None}

    def _ended(self) -> list[str]:
        """What ended the run, where it was not its total, or a loss to come to was not reached."""
        by, reached = self.history.stopped_by, self.history.reached
        if by not in _ENDED and reached is None:
            return []
        return [f"ended   {_ENDED.get(by, f'by {by}')}{'; --until-loss was not reached' if reached is False else ''}"]

    def text(self) -> str:
        """The lines below the table of epochs."""
        speed, n_failed = self.history.speed, self.history.checkpoint_failures
        rate = format_rate(speed.n_samples, speed.seconds, "samples")
        return "\n".join(
            [
                *self._ended(),
                memory_line(self.memory),
                f"speed   {rate}, stall fraction {speed.stall_fraction:.3f}",
                *time_lines(speed),
                *([headspace_line(self.headspace)] if self.headspace else []),
                *(f"left out {out}" for out in self.quarantined),
                *(f"left out of --val {out}" for out in self.val_quarantined),
                *([f"checkpoints that could not be saved: {n_failed}"] if n_failed else []),
                f"run     {self.out}",
            ]
        )

    def raise_rest(self) -> None:
        """Raise what ends the command though its result has been told.

        Raises
        ------
        ResourceError
            What the run came to could not be saved.
        KeyboardInterrupt
            Ctrl-C came after the run.
        """
        if self.interrupt is not None:
            raise self.interrupt
        if self.history.unsaved is not None:
            raise self.history.unsaved
