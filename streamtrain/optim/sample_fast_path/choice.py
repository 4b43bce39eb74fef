"""The choice between fast and plain path for the sample rule: made once, reported, and kept with the run.

Both give the same weights to rounding, but not bit for bit. So a run that resumes from a checkpoint takes the same path
as before, or refuses.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Final

from torch import Tensor

from streamtrain.errors import Argument, CheckpointError, Fix, StreamtrainWarning, UsageError
from streamtrain.optim.gradients import Learner
from streamtrain.optim.sample_fast_path.loop import FastLoop
from streamtrain.optim.sample_fast_path.supported import why_unsupported
from streamtrain.system.arguments import check_choice

SAMPLE_PATHS: Final = ("auto", "plain", "fast")


def check_sample_path(name: str) -> None:
    """Refuse a name that is not a path."""
    check_choice(name, "sample path", SAMPLE_PATHS)


class SamplePathChoice:
    """A choice between the paths for a learner, final with the first batch; ``"auto"`` is fast where supported."""

    def __init__(self, learner: Learner, asked: str) -> None:
        check_sample_path(asked)
        self._learner = learner
        self._asked = asked
        self._taken: str | None = None
        self._is_resumed = False
        self._why: str | None = None
        self._loop: FastLoop | None = None

    @property
    def taken(self) -> str | None:
        """The path taken; None before the first batch."""
        return self._taken

    @property
    def path(self) -> str:
        """The path taken, ``"fast"`` or ``"plain"``; before the first batch, the expected one."""
        if self._taken is None and self._asked != "plain":
            return "plain" if why_unsupported(self._learner) else "fast"
        return self._taken or "plain"

    @property
    def why(self) -> str | None:
        """The reason why the path is plain though that was not asked for, or None."""
        if self.path == "fast" or self._asked == "plain":
            return None
        return self._why or why_unsupported(self._learner)

    def resume(self, path: str) -> None:
        """Keep to the path that the run took before, or refuse."""
        if self._asked not in ("auto", path):
            raise CheckpointError(
                f"the run took the {path} sample path; {self._asked} is asked for",
                why="The two round differently",
                fix=Fix(Argument("sample_path", path), ", or leave it out"),
            )
        self._taken, self._is_resumed = path, True
        if path == "plain" or not (reason := why_unsupported(self._learner)):
            return
        on_step = self._learner.on_step
        if self._asked == "fast" or on_step is None or why_unsupported(replace(self._learner, on_step=None)):
            raise self._cannot_resume(reason)
        # An earlier version took the fast path in spite of a callback; such a run can still be resumed.
        text = f"the run took the fast sample path; it continues on the plain one, because {reason}"
        warnings.warn(text, StreamtrainWarning, stacklevel=2)
        self._taken, self._why = "plain", reason

    def loop_for(self, inputs: tuple[Tensor, ...]) -> FastLoop | None:
        """Return the fast path for a batch of inputs, None for the plain one; refuse if it must be fast and cannot."""
        if self._taken == "plain" or self._asked == "plain":
            self._taken = "plain"
            return None
        reason = why_unsupported(self._learner)
        if reason is None:
            if self._loop is None or not self._loop.is_current():
                self._loop = FastLoop(self._learner)
            reason = self._loop.why_unsupported_inputs(inputs[0])
        if reason is None:
            self._taken = "fast"
            return self._loop
        if self._is_resumed:
            raise self._cannot_resume(reason)
        if self._asked == "fast":
            raise UsageError(
                f"sample_path is 'fast', and {reason}",
                fix=Fix(Argument("sample_path", "auto"), ", which takes the plain loop where it has to"),
            )
        self._taken, self._why, self._loop = "plain", reason, None
        return None

    def _cannot_resume(self, reason: str) -> CheckpointError:
        return CheckpointError(
            "the run took the fast sample path, which cannot be taken here",
            why=f"{reason[0].upper()}{reason[1:]}",
            fix=Fix("train as it was trained, or another ", Argument("checkpoint")),
        )
