"""The epochs of one call of fit, over streams that are open: trained, measured, looked at and saved, until a limit."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace

from torch import nn
from torch.optim import Optimizer

from streamtrain.errors import Argument, DivergedError, Fix, ResourceError, StreamtrainError, StreamtrainWarning
from streamtrain.models.factory import n_parameters
from streamtrain.models.losses import Loss
from streamtrain.optim.gradients import Learner
from streamtrain.optim.ranks.exchange import OF_OTHERS
from streamtrain.optim.rules import UpdateRule
from streamtrain.system.display.notebook_html import clipped
from streamtrain.system.display.progress_bar import RunProgress
from streamtrain.system.memory import FreedMemory
from streamtrain.system.signals import DeferredSignals, Interrupted, defer_signals
from streamtrain.system.units import counted, format_figures
from streamtrain.training.batch_stream import BatchStream, samples_per_epoch
from streamtrain.training.best.watch import EpochWatch
from streamtrain.training.loop import EpochLoop
from streamtrain.training.metrics.results import Metrics
from streamtrain.training.progress import Counts, Totals, run_length
from streamtrain.training.ranks import share_left_out
from streamtrain.training.records.history import Elapsed, EpochSummary, History, epoch_line, head_of
from streamtrain.training.records.recorder import EpochRecorder
from streamtrain.training.run.run_folder import FollowedRun, Run, RunFolder, epochs_backwards
from streamtrain.training.run.run_state import ResumePoint, RunState


def trainer_line(model: nn.Module, loss: Loss, optimizer: Optimizer, rule: str, counts: Counts) -> str:
    """Say what a trainer is in at most 100 characters."""
    name = f"{clipped(type(model).__name__, 22)}, {counted(n_parameters(model), 'weight')}, {clipped(loss.name, 16)}"
    step = f"{clipped(type(optimizer).__name__.lower(), 10)} lr {optimizer.param_groups[0]['lr']:.3g}"
    return clipped(f"Trainer({name}, {step}, {rule} rule: epoch {counts.n_epochs})", 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """When a call of `fit` ends, saves and tells."""

    totals: Totals
    every: int | None
    on_failure: str
    resumes: bool
    on_epoch: Callable[[EpochSummary], None] | None
    on_resume: Callable[[ResumePoint], None] | None
    # Without lines where a run is handed over open: whoever does so prints a table.
    progress: RunProgress

    def facts(self, watch: EpochWatch, checkpoint: object, log_every: int) -> dict[str, object]:
        """Return what several ranks must be called with alike."""
        stopping = watch.stopping
        return {
            "max_epochs": self.totals.max_epochs,
            "max_steps": self.totals.max_steps,
            "until_loss": stopping.until_loss,
            "patience": stopping.patience,
            "monitor": watch.monitor and watch.monitor.name,
            "checkpoint_every": self.every,
            "on_checkpoint_failure": self.on_failure,
            "resume": self.resumes,
            "log_every": log_every,
            "a run's folder": checkpoint is not None,
        }


class _Clock:
    """The wall time of a call of fit, and what of it went into validation and saving."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = {"validation": 0.0, "saving": 0.0}

    @contextmanager
    def during(self, kind: str, tell: Callable[[float], None] | None = None) -> Iterator[None]:
        """Count the block as work of a kind, and tell its seconds."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._seconds[kind] += seconds
        if tell is not None:
            tell(seconds)

    def elapsed(self) -> Elapsed:
        """Return the time so far."""
        return Elapsed(
            seconds=time.perf_counter() - self._began,
            validation_seconds=self._seconds["validation"],
            saving_seconds=self._seconds["saving"],
        )


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
    measure: Callable[[BatchStream], Metrics]
    # The validation data, if there is some.
    val: BatchStream | None

    def epochs(self, stream: BatchStream, plan: FitPlan) -> History:
        """Train epoch by epoch, from where the run was if it is resumed."""
        loop, state, summaries, clock = self.loop, self.state, list[EpochSummary](), _Clock()
        freed = FreedMemory()
        quiet = nullcontext(DeferredSignals())
        is_kept = isinstance(self.run, RunFolder | FollowedRun)
        with plan.progress as bar, defer_signals() if is_kept else quiet as interrupts:
            restored = state.restore(is_over=plan.totals.reached_by, tell=plan.on_resume) if plan.resumes else None
            loop.resume(stream, restored)
            self._look_back(stream, plan)
            self.rule.exchange.asked = lambda: interrupts.number
            resumed_from_batch = loop.counts.n_batches if plan.resumes else 0
            while not (loop.is_cut or plan.totals.reached_by(loop.counts) or self.watch.ended_by(self.rule)):
                self._begin_bar(stream, plan)
                recorder = self.recording(epoch=loop.counts.n_epochs + 1, progress=bar)
                batches = loop.train(stream, recorder, plan.totals)
                with recorder, self._saving_what_is_whole(), closing(batches), state.name_checkpoint_on_divergence():
                    for place in batches:
                        asked = self.rule.exchange.asked_to_stop()
                        if state.is_due(loop.counts) or asked is not None:
                            with clock.during("saving", recorder.set_aside):
                                saved = state.save(loop.agreed_counts(), place())
                                self.rule.exchange.meet()
                            interrupts.stop(asked, saved)
                summary = recorder.summary(loop.counts, partial=loop.is_cut)
                freed.give_back()
                summaries.append(self._end_epoch(stream, summary, plan, clock))
                self.rule.exchange.meet()
                asked = self.rule.exchange.asked_to_stop()
                with clock.during("saving"):
                    saved = state.save(loop.agreed_counts(), loop.inside)
                    self.rule.exchange.meet()
                interrupts.stop(asked, saved)
                freed.give_back()
            if loop.counts == Counts():
                with clock.during("saving"):
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
            run=self.run.path,
            elapsed=clock.elapsed(),
        )

    @contextmanager
    def _saving_what_is_whole(self) -> Iterator[None]:
        """Save the last whole step where another rank fails in the block, which this one alone can still do."""
        try:
            yield
        except OF_OTHERS as error:
            if (place := self.loop.before_failure) is not None and not isinstance(error, DivergedError):
                # That of the other rank is told.
                with suppress(ResourceError):
                    saved = self.state.save(self.loop.counts, place, is_alone=True)
                    if saved is not None and isinstance(error, Interrupted):
                        error.saved = str(saved)
                    elif saved is not None and isinstance(error, StreamtrainError):
                        error.fix = Fix(*([error.fix, "; "] if error.fix else []), f"the last whole step is in {saved}")
            raise

    def _look_back(self, stream: BatchStream, plan: FitPlan) -> None:
        """Read the epochs of a run that resumes; warn where a total is reached before anything is done."""
        loop, counts = self.loop, self.loop.counts
        if plan.resumes and self.run.path is not None:
            own = loop.scoring.metrics
            lines = [*epochs_backwards(self.run.path)][::-1]
            found = [EpochSummary.of_line(line, own, n_batches=len(stream)) for line in lines]
            loop.epochs = [epoch for epoch in found if epoch.number <= counts.n_epochs and not epoch.partial]
        elif counts.n_steps and plan.totals.reached_by(counts):
            warnings.warn(_reached(plan.totals, counts), stacklevel=6)

    def _of_ranks(self, summary: EpochSummary) -> dict[str, float]:
        """Say how the ranks waited in an epoch, for the reader and for one another."""
        exchange = self.rule.exchange
        if exchange.world_size == 1:
            return {}
        waits = exchange.gather((exchange.seconds, summary.speed.wait_seconds))
        exchange.seconds = 0.0
        slowest = min(range(len(waits)), key=lambda rank: waits[rank][0])
        return {
            "world_size": exchange.world_size,
            "slowest_rank": slowest,
            "wait_seconds_max": max(of_reader for _, of_reader in waits),
        }

    def _begin_bar(self, stream: BatchStream, plan: FitPlan) -> None:
        counts, of_pass = self.loop.counts, samples_per_epoch(stream)
        of_epoch = max(1, self.rule.steps_per_epoch(len(stream), of_pass))
        n_epochs = run_length(plan.totals, of_epoch).n_steps / of_epoch
        last = f"/{plan.totals.max_epochs}" if plan.totals.max_epochs is not None else ""
        label = f"epoch {counts.n_epochs + 1}{last}"
        plan.progress.begin_epoch(label, total=max(round(n_epochs * of_pass), 1), done=counts.n_samples)

    def _end_epoch(self, stream: BatchStream, summary: EpochSummary, plan: FitPlan, clock: _Clock) -> EpochSummary:
        """Finish an epoch: validation, the best and early stopping, the line of metrics, the caller's function."""
        if self.val is not None:
            with clock.during("validation"):
                summary = replace(summary, val=self.measure(self.val))
        share_left_out(self.rule.exchange, [stream, *([] if self.val is None else [self.val])])
        # All ranks go by the same figures, also where each has measured by itself.
        summary = self.rule.exchange.of_first(lambda: summary)
        if not summary.partial:
            value = self.watch.look(summary, is_fresh=self.rule.is_fresh)
            if self.learner.schedules is not None:
                summary = replace(summary, lr=self.learner.schedules.lr)
                self.learner.schedules.after_epoch(value)
        self.loop.keep(summary)
        self.run.log(kind="epoch", **summary.named(), **self._of_ranks(summary))
        self.run.keep_scores(summary.scores())
        monitor = self.watch.monitor
        plan.progress.end_epoch(head_of(summary, monitor), epoch_line(summary, monitor), _figures(summary))
        if plan.on_epoch is not None and not summary.partial:
            with plan.progress.aside():
                plan.on_epoch(summary)
        return summary


def _figures(summary: EpochSummary) -> str:
    """Write what was measured of an epoch, to stand behind the bar until the next one has figures of its own."""
    return format_figures(summary.val.named("val_") if summary.val else summary.train.named())


def _reached(totals: Totals, counts: Counts) -> StreamtrainWarning:
    """Say which total is reached already, and what would train further."""
    by_steps = totals.steps_reached_by(counts)
    name, given = ("max_steps", totals.max_steps) if by_steps else ("max_epochs", totals.max_epochs)
    n_done, unit = (counts.n_steps, "step") if by_steps else (counts.n_epochs, "epoch")
    done = f"{n_done:,} {unit} is done" if n_done == 1 else f"{n_done:,} {unit}s are done"
    fix = Fix(Argument(name, n_done + max(given or 0, 1)), ", or a new Trainer")
    return StreamtrainWarning(f"{name}={given} is a total, and {done}", fix=fix)
