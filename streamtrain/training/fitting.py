"""The epochs of one call of fit, over streams that are open: trained, measured, looked at and saved, until a limit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

from streamtrain.optim.gradients import Learner
from streamtrain.optim.rules import UpdateRule
from streamtrain.system.signals import DeferredSignals, defer_signals
from streamtrain.training.batch_stream import BatchStream
from streamtrain.training.best.watch import EpochWatch
from streamtrain.training.loop import EpochLoop
from streamtrain.training.metrics.history import EpochSummary, History
from streamtrain.training.metrics.recorder import EpochRecorder
from streamtrain.training.metrics.running import Metrics
from streamtrain.training.progress import Counts, Totals
from streamtrain.training.run_folder import NullRunFolder, Run
from streamtrain.training.run_state import ResumePoint, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """When a call of `fit` ends, saves and tells."""

    totals: Totals
    every: int | None
    on_failure: str
    resumes: bool
    on_epoch: Callable[[EpochSummary], None] | None
    on_resume: Callable[[ResumePoint], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """A trainer's parts at work on a run."""

    loop: EpochLoop
    learner: Learner
    rule: UpdateRule
    watch: EpochWatch
    state: RunState
    run: Run
    recording: Callable[..., EpochRecorder]
    # On the validation data, if there is some.
    measure: Callable[[], Metrics] | None

    def epochs(self, stream: BatchStream, plan: FitPlan) -> History:
        """Train epoch by epoch, from where the run was if it is resumed."""
        loop, state, summaries = self.loop, self.state, list[EpochSummary]()
        with nullcontext(DeferredSignals()) if isinstance(self.run, NullRunFolder) else defer_signals() as interrupts:
            restored = state.restore(is_over=plan.totals.reached_by, tell=plan.on_resume) if plan.resumes else None
            loop.resume(stream, restored)
            resumed_from_batch = loop.counts.n_batches if plan.resumes else 0
            while not (loop.is_cut or plan.totals.reached_by(loop.counts) or self.watch.ended_by(self.rule)):
                recorder = self.recording(epoch=loop.counts.n_epochs + 1)
                batches = loop.train(stream, recorder, plan.totals)
                with recorder, closing(batches), state.name_checkpoint_on_divergence():
                    for place in batches:
                        if state.is_due(loop.counts) or interrupts.number is not None:
                            interrupts.stop_if_asked(state.save(loop.counts, place()))
                summary = recorder.summary(loop.counts, partial=loop.is_cut)
                summaries.append(self._end_epoch(summary, plan.on_epoch))
                interrupts.stop_if_asked(state.save(loop.counts, loop.inside))
            if loop.counts == Counts():
                state.save(loop.counts)
        return History(
            epochs=tuple(summaries),
            counts=loop.counts,
            resumed_from_batch=resumed_from_batch,
            checkpoint_failures=state.n_failed,
            unsaved=state.unsaved,
            reached=self.watch.stopping.reached,
            stopped_by=self.watch.ended_by(self.rule) or plan.totals.name_reached_by(loop.counts),
            best=self.watch.best,
        )

    def _end_epoch(self, summary: EpochSummary, on_epoch: Callable[[EpochSummary], None] | None) -> EpochSummary:
        """Finish an epoch: validation, the best and early stopping, the line of metrics, the caller's function."""
        if self.measure is not None:
            summary = replace(summary, val=self.measure())
        if not summary.partial:
            value = self.watch.look(summary, is_fresh=self.rule.is_fresh)
            if self.learner.schedules is not None:
                self.learner.schedules.after_epoch(value)
        self.run.log(kind="epoch", **summary.named())
        self.run.keep_scores(summary.scores())
        if on_epoch is not None and not summary.partial:
            on_epoch(summary)
        return summary
