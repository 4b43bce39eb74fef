"""The state of a run: saved to a checkpoint and restored.

A run resumes bit for bit: the state holds the weights and the optimizer's state, the loader's position counted in
consumed batches, a partial gradient sum, the schedules, the random state that dropout draws from, and the sums behind
the metrics. Inside an epoch that ranks share, each has sums and a random state of its own, which the first one saves.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from streamtrain.errors import (
    Argument,
    CheckpointError,
    DivergedError,
    Fix,
    Lines,
    ResourceError,
    StreamtrainWarning,
    UsageError,
    differences,
    first_line,
)
from streamtrain.models.normalization import NormalizedModel
from streamtrain.optim.ranks.exchange import Exchange
from streamtrain.optim.rules import UpdateRule
from streamtrain.store.schema.columns import TARGET, Schema
from streamtrain.store.schema.matching import first_difference
from streamtrain.system.arguments import check_choice, check_int
from streamtrain.system.files import local_path
from streamtrain.training.best.chosen_checkpoint import kept_best
from streamtrain.training.best.watch import EpochWatch
from streamtrain.training.labels.targets import NOT_TOLD
from streamtrain.training.progress import Counts
from streamtrain.training.run.checkpoint import (
    CHECKPOINTS,
    MODEL,
    MOST_CHECKPOINTS,
    NORMALIZE,
    Checkpoint,
    check_state,
    checkpoint_bytes,
    find_checkpoint,
    load_weights,
    normalize_states,
    normalize_tensors,
    was_saved,
)
from streamtrain.training.run.run_description import (
    FREE,
    SINCE,
    ResumableStream,
    defaults_since,
    how_to_resume,
    stream_state,
)
from streamtrain.training.run.run_folder import (
    ANOTHER,
    METRICS,
    FollowedRun,
    NullRunFolder,
    Run,
    RunFolder,
    check_room,
    read_schema,
)
from streamtrain.training.run.serialization import aligned, check_like, check_tensors, flatten_names, pack, unpack

_FROM_THE_BEST: Final = " begins either with the best weights, which are whole"
ON_CHECKPOINT_FAILURE: Final = ("error", "warn")

_TRAINING: Final = "training"
_BATCH_SAMPLES: Final = "batch_samples"
_RANKS: Final = "ranks"
"""Rule, random state and metrics of the other ranks of a training, inside an epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """Where a run resumes."""

    # Taken in as a whole; 0 where the run starts afresh.
    n_batches: int = 0
    # Newer checkpoints that are damaged, and how.
    skipped: tuple[str, ...] = ()
    # Taken in of the next batch.
    n_batch_samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MidEpochState:
    """What a run needs to resume inside an epoch, besides its weights."""

    # Of the epoch, taken in as a whole.
    n_batches: int
    # The sums behind the metrics: this process's, or those of several ranks of before, or none.
    metrics: tuple[dict[str, Any], ...]
    # None where another number of ranks draws anew.
    random: Mapping[str, torch.Tensor] | None
    # Its position before the next batch that is not taken in as a whole; None where it cannot say.
    stream: dict[str, Any] | None = None
    # Taken in of that batch; then random_before is the random state before its transform, which may draw numbers.
    n_batch_samples: int = 0
    random_before: Mapping[str, torch.Tensor] | None = None


_LIKE_THE_WEIGHT: Final = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "sum"})
"""Values that torch's optimizers keep of each weight, in its shape; all of it or none."""


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any], told: Mapping[str, Any]) -> None:
    """Refuse a state of other weights or options than the optimizer's: torch takes it, and fails at the next step.

    An option that the checkpoint's identity does not tell is None, or came with a newer torch: it is as it is here.
    """
    for own, group in zip(optimizer.param_groups, state["param_groups"], strict=False):
        for name in own.keys() - group.keys():
            if name == "params" or f"optimizer.{name}" in told:
                raise ValueError(f"the optimizer's state has no {name}")
            group[name] = own[name]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    named: set[frozenset[str]] = set()
    for place, kept in state["state"].items():
        if not isinstance(place, int) or place not in range(len(weights)) or not isinstance(kept, Mapping):
            raise ValueError(f"the optimizer's state is of no weight of this model: {place!r}")
        if not type(optimizer).__module__.startswith("torch.optim"):
            continue
        names = _LIKE_THE_WEIGHT.intersection(kept)
        named.add(names)
        for value in (kept[name] for name in names):
            if value is not None and getattr(value, "shape", None) != weights[place].shape:
                raise ValueError(f"what the optimizer keeps of weight {place} is not of its shape")
    if len(named) > 1:
        raise ValueError("the optimizer does not keep the same values of every weight")


class RunState:
    """Save a run, and restore it."""

    def __init__(
        self,
        run: Run,
        *,
        rule: UpdateRule,
        front: NormalizedModel,
        device: torch.device,
        stream: object,
        identity: Mapping[str, object],
        schema: Schema,
        every: int | None,
        on_failure: str = "error",
        watch: EpochWatch,
    ) -> None:
        check_choice(on_failure, "on_checkpoint_failure", ON_CHECKPOINT_FAILURE)
        if every is not None:
            check_int(every, "checkpoint_every")
        self._run = run
        self._rule = rule
        self._normalized_model = front
        self._device = device
        self._stream = stream
        # The states of the sample rule and of the stream fix path and order; the tolerances may change.
        settled = dict.fromkeys(("sample_path", "order", "grad_tolerance", "loss_tolerance"))
        self._identity = flatten_names(json.loads(json.dumps({**identity, **settled})))
        self._schema = schema
        if isinstance(run, RunFolder):
            run.schema = schema
        self._every = every
        self._warns, self.n_failed = on_failure == "warn", 0
        self.unsaved: ResourceError | None = None
        self._watch = watch
        self._last_saved: Path | None = None
        self._saved_at: Counts | None = None
        if isinstance(run, RunFolder) and not run.resumes:
            self._check_room(run)

    def _check_room(self, run: RunFolder) -> None:
        check_tensors(self._normalized_model.model.state_dict())
        n_bytes = checkpoint_bytes(self._normalized_model.model, self._rule.learner.optimizer)
        kept = MOST_CHECKPOINTS - 1 + (self._watch.monitor is not None)
        check_room(run.path, n_bytes, n_kept=kept, n_there=run.n_checkpoints, refuses=not self._warns)

    def is_due(self, counts: Counts) -> bool:
        """Whether a checkpoint is due after this batch."""
        return self._every is not None and counts.n_batches % self._every == 0

    def save(self, counts: Counts, inside: MidEpochState | None = None, *, is_alone: bool = False) -> Path | None:
        """Save the run as it stands; ``is_alone``, without what the other ranks have. Return its folder."""
        if is_alone and counts == self._saved_at:
            return self._last_saved
        own: dict[str, Any] = {
            "rule": self._rule.state_dict(),
            "random": inside.random if inside else None,
            "metrics": inside.metrics[0] if inside else None,
        }
        ranks = self._of_ranks(own) if inside and not is_alone else None
        if not isinstance(self._run, RunFolder):
            return None
        schedules = self._rule.learner.schedules
        training = {
            "rule": own["rule"],
            "optimizer": self._rule.learner.optimizer.state_dict(),
            "schedules": schedules.state_dict() if schedules else None,
            "stopping": self._watch.stopping.state_dict(),
            "random": own["random"],
            "metrics": own["metrics"],
            **({"random_before": inside.random_before} if inside and inside.random_before else {}),
            **({} if ranks is None else {_RANKS: ranks[1:]}),
        }
        tree, tensors = pack(training, _TRAINING)
        state = {
            "identity": self._identity,
            "counts": asdict(counts),
            "stream": inside.stream if inside else stream_state(self._stream),
            **({_BATCH_SAMPLES: inside.n_batch_samples} if inside and inside.n_batch_samples else {}),
            **({"best": best} if (best := self._watch.record()) else {}),
            _TRAINING: tree,
        }
        modules = normalize_tensors(self._normalized_model.modules_by_input())
        contents = {MODEL: self._normalized_model.model.state_dict(), NORMALIZE: modules, _TRAINING: tensors}
        try:
            # The state's tensors are the parameters themselves.
            with self._rule.at_last_step():
                saved = self._run.save(_begun(counts, inside), state, contents)
        except ResourceError as error:
            self._watch.not_saved()
            self.n_failed += 1
            self.unsaved = _unsaved(self._run.path, counts, error)
            if self._warns:
                # The run goes on: there is nothing to resume yet.
                warnings.warn(StreamtrainWarning(self.unsaved.told(), fix=self.unsaved.fix), stacklevel=3)
            self.unsaved.fix = Fix(self.unsaved.fix, ", then the same with ", Argument("resume", "auto"))
            if not self._warns:
                raise self.unsaved from error
            return None
        self._watch.saved()
        self.unsaved, self._last_saved, self._saved_at = None, saved, counts
        return saved

    def _of_ranks(self, own: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Gather at the first rank what each has of its own inside an epoch; None where one process trains."""
        exchange = self._rule.exchange
        is_kept = isinstance(self._run, RunFolder | FollowedRun)
        return exchange.to_first(own) if exchange.world_size > 1 and is_kept else None

    @contextmanager
    def name_checkpoint_on_divergence(self) -> Iterator[None]:
        """Add the last checkpoint to an error of divergence inside the block."""
        try:
            yield
        except DivergedError as error:
            if self._last_saved is not None:
                error.fix = Fix(error.fix, f". The last checkpoint is {self._last_saved}")
            raise

    def restore(
        self, tell: Callable[[ResumePoint], None] | None, is_over: Callable[[Counts], bool] = lambda _: False
    ) -> tuple[Counts, MidEpochState | None]:
        """Restore the run from its newest whole checkpoint, or start afresh without one.

        ``tell`` is called with the resume point; without it a warning names the damaged checkpoints. Where ``is_over``
        says that the run is over, its stream need not be able to resume. Nothing in the folder changes until the next
        write.
        """
        found, skipped = self._rule.exchange.of_first(self._found)
        n_batches = found.state["counts"]["n_batches"] if found else 0
        n_batch_samples = found.state.get(_BATCH_SAMPLES, 0) if found else 0
        resumed = ResumePoint(n_batches=n_batches, skipped=skipped, n_batch_samples=n_batch_samples)
        if tell is not None:
            tell(resumed)
        elif skipped:
            text = f"damaged checkpoints were skipped: {'; '.join(skipped)}"
            warnings.warn(text, StreamtrainWarning, stacklevel=3)
        if found is None:
            if self._rule.n_steps:
                raise UsageError(
                    f"resume finds no checkpoint in {self._run.path or 'the run'}, and the trainer has taken steps",
                    why="A run that starts afresh begins at the weights the model was made with",
                    fix="a new trainer, or no resume",
                )
            if isinstance(self._run, RunFolder):
                self._run.resume_from(None)
            return Counts(), None
        return self._put_back(found, is_over)

    def _found(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Find the checkpoint to resume from, of this run; with its tensors where other ranks are given it."""
        assert isinstance(self._run, RunFolder)
        found, skipped = self._find(self._run)
        if found is not None:
            self._check_identity(found)
            if self._rule.exchange.world_size > 1:
                found = replace(found, held={name: found.tensors(name) for name in (MODEL, NORMALIZE, _TRAINING)})
        return found, skipped

    def _find(self, run: RunFolder) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Find the newest whole checkpoint that the metrics go with, and say what is wrong with newer ones.

        A newer one without its metrics is left of a run that skipped it, resumed from an older one, and was killed.
        """
        newest, skipped = find_checkpoint(run.path)
        found: Checkpoint | None = newest
        if newest is not None:
            check_state(newest)
        while found is not None and (why := run.why_not_after(found.state["metrics_bytes"])):
            older, more = find_checkpoint(run.path, older_than=found)
            skipped = (*skipped, f"{found.path}: {METRICS} has {why}", *more)
            found = older
        if found is None and newest is not None:
            # Refused, with the reason: starting afresh would throw whole checkpoints away.
            run.rewind(newest.state["metrics_bytes"])
        if found is None and was_saved(run.path):
            # What is left of them may be all that there is of days of work; one killed while it began had none yet.
            best = kept_best(run.path)
            init = None if best is None else Argument("init", f"{best.path}/{MODEL}.safetensors")
            weights = () if init is None else ("; ", init, _FROM_THE_BEST)
            raise CheckpointError(
                "the run has no whole checkpoint to resume from",
                where=str(run.path),
                why="; ".join(skipped),
                fix=Fix(ANOTHER, f", or remove {run.path / CHECKPOINTS} to start afresh here", *weights),
            )
        return found, skipped

    def _check_identity(self, found: Checkpoint) -> None:
        # A key that an earlier version did not write may have had any value.
        untold = {name: self._identity.get(name) for name in ("shuffle", "ignore_index")}
        told = found.state["identity"]
        since = defaults_since(self._rule.learner.optimizer, told)
        before = {**untold, **SINCE, **{name: since[name] for name in since.keys() & self._identity}, **told}
        wrong = [*self._schema_difference(), *differences(before, {"ignore_index": None, **NOT_TOLD, **self._identity})]
        wrong += self._watch.differences(found.state.get("best"), found.path.parent)
        if wrong:
            raise CheckpointError(
                "the checkpoint is of another run",
                where=str(found.path),
                why=Lines.of(["It differs in", *(f"  {line}" for line in wrong), FREE]),
                fix=how_to_resume(before, self._identity),
            )

    def _schema_difference(self) -> Iterator[str]:
        assert isinstance(self._run, RunFolder)
        before = read_schema(self._run.path)
        named = {*self._schema.columns, *(field.name for field in self._schema.fields), TARGET}
        of_run = before and first_difference(before, self._schema, fields=sorted(named), of="the run's data")
        if of_run:
            yield f"{of_run.what}. {of_run.why or ''}".rstrip(". ")

    def _put_back(self, found: Checkpoint, is_over: Callable[[Counts], bool]) -> tuple[Counts, MidEpochState | None]:
        load_weights(self._normalized_model.model, found)
        try:
            self._normalized_model.put_back(normalize_states(found))
            training = unpack(found.state[_TRAINING], aligned(found.tensors(_TRAINING)))
            inside = self._inside(found, training)
            optimizer = self._rule.learner.optimizer
            own = {"rule": self._rule.state_dict(), "stopping": self._watch.stopping.state_dict()}
            check_like(training, own | {"optimizer": optimizer.state_dict()}, _TRAINING)
            check_optimizer_state(optimizer, training["optimizer"], found.state["identity"])
            optimizer.load_state_dict(training["optimizer"])
            self._rule.load_state_dict(training["rule"])
            if self._rule.learner.schedules and training.get("schedules"):
                self._rule.learner.schedules.load_state_dict(training["schedules"])
            self._watch.load(training.get("stopping"), found.state.get("best"), found.path.parent)
            if not isinstance(self._stream, ResumableStream):
                raise UsageError("the stream has no load_state_dict, so it cannot resume", fix="a StreamLoader")
            counts = Counts(**found.state["counts"])
            if not is_over(counts) and isinstance(self._run, RunFolder):
                self._check_room(self._run)
            world_size = self._rule.exchange.world_size
            _put_stream_back(self._stream, found, is_over=is_over(counts), world_size=world_size)
        except CheckpointError as error:
            error.where = str(found.path)
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"cannot resume: {first_line(error)}",
                where=str(found.path),
                fix=Fix("another ", Argument("checkpoint")),
            ) from error
        self._last_saved, self._saved_at = found.path, counts
        if isinstance(self._run, RunFolder):
            self._run.schema = None
            self._run.resume_from(found)
        if inside is None:
            self._warn_of_counted_cut(counts, found.state["stream"]["batch"])
        elif self._rule.in_stored_order and _n_ranks(found) != self._rule.exchange.world_size:
            return self._begin_pass_anew(counts, inside), None
        return counts, inside

    def _inside(self, found: Checkpoint, training: dict[str, Any]) -> MidEpochState | None:
        """Return what this process goes on with inside an epoch, and put its part of the rule's state in place."""
        if training["metrics"] is None:
            return None
        exchange, ranks = self._rule.exchange, [training, *training.get(_RANKS, ())]
        own = ranks[exchange.rank] if exchange.rank < len(ranks) else None
        if len(ranks) == exchange.world_size:
            training["rule"] = ranks[exchange.rank]["rule"]
        else:
            training["rule"] = self._rule.joined([each["rule"] for each in ranks], is_first=exchange.rank == 0)
        return MidEpochState(
            n_batches=found.state["stream"]["batch"],
            metrics=tuple(each["metrics"] for each in ranks[exchange.rank :: exchange.world_size]),
            random=own["random"] if own else None,
            stream=found.state["stream"],
            n_batch_samples=found.state.get(_BATCH_SAMPLES, 0),
            random_before=training.get("random_before"),
        )

    def _begin_pass_anew(self, counts: Counts, inside: MidEpochState) -> Counts:
        """Forget a pass in stored order, of which another number of ranks has other parts."""
        stream: Any = self._stream
        self._rule.abandon()
        stream.set_epoch(counts.n_epochs)
        of_pass = sum(each["n_samples"] for states in self._rule.exchange.gather(inside.metrics) for each in states)
        text = f"the pass of epoch {counts.n_epochs + 1} begins anew: other ranks had read other parts of it"
        warnings.warn(StreamtrainWarning(text), stacklevel=5)
        return replace(counts, n_batches=counts.n_batches - inside.n_batches, n_samples=counts.n_samples - of_pass)

    def _warn_of_counted_cut(self, counts: Counts, n_batches: int) -> None:
        """Warn of an epoch that an earlier version counted although max_steps had cut it short."""
        n_left = len(self._stream) - n_batches if isinstance(self._stream, Sized) else 0
        if n_batches and n_left > 0:
            warnings.warn(
                f"epoch {counts.n_epochs} was cut short by max_steps and counted as one, as earlier versions did: "
                f"its last {n_left} batches are not trained on",
                StreamtrainWarning,
                stacklevel=4,
            )


def _n_ranks(found: Checkpoint) -> int:
    """Return the number of ranks that saved a checkpoint inside an epoch."""
    tree = found.state[_TRAINING]
    named = dict(tree["dict"]) if isinstance(tree, dict) else {}
    return 1 + len(named.get(_RANKS, ()))


def _put_stream_back(stream: ResumableStream, found: Checkpoint, *, is_over: bool, world_size: int) -> None:
    groups, batch_size = found.state["stream"].get("groups", 1), getattr(stream, "batch_size", 1)
    shared = math.gcd(groups, batch_size)
    if not is_over and getattr(stream, "shuffle", False) and shared % world_size:
        possible = [str(n) for n in range(1, shared + 1) if shared % n == 0]
        raise CheckpointError(
            f"{world_size} ranks cannot share batches of {batch_size} samples from {groups} groups of lanes, as the "
            "run has them",
            fix=f"{', '.join(possible[:-1])} or {possible[-1]} ranks" if len(possible) > 1 else "one process",
        )
    try:
        stream.load_state_dict(found.state["stream"])
    except CheckpointError:
        if not is_over:
            raise


def _begun(counts: Counts, inside: MidEpochState | None) -> int:
    """Count the batches that a checkpoint is named by, with one that was begun: the best may be at its beginning."""
    return counts.n_batches + (inside is not None and inside.n_batch_samples > 0)


def _unsaved(run: Path, counts: Counts, error: ResourceError) -> ResourceError:
    # A disk that fails to write may fail to read as well.
    with suppress(OSError, CheckpointError):
        found, _ = find_checkpoint(run)
        kept = f"The newest whole one is {found.path}" if found else "There is none before it"
        error.why = f"{error.why}. {kept}" if error.why else kept
    return ResourceError(
        f"the checkpoint after batch {counts.n_batches:,} was not saved: {error.what}",
        where=error.where,
        why=error.why,
        fix=error.fix or "check the disk",
    )


def open_run(
    checkpoint: str | Path | Run | None, config: dict[str, object], resumes: bool, exchange: Exchange
) -> AbstractContextManager[Run]:
    """Open the run kept in a folder; without a folder, a run that keeps nothing. One that is open stays so.

    Of several ranks only the first one keeps it.
    """
    if isinstance(checkpoint, Run):
        return nullcontext(checkpoint)
    if checkpoint is not None and exchange.rank:
        return FollowedRun()
    if checkpoint is not None:
        return RunFolder(local_path(checkpoint), config, resumes=resumes)
    if resumes:
        raise UsageError(
            "resume without checkpoint", fix=Fix(Argument("checkpoint", "runs/a"), ", the folder of the run")
        )
    return NullRunFolder()
