"""A step before the run that leaves no trace: does the model fit the data, and what memory does a step take.

Shapes and dtypes that do not fit are reported before the first epoch. Weights, gradients, buffers such as BatchNorm's
averages, and torch's random state stay as they were.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final, cast

import torch
from torch import Tensor, nn

from streamtrain.errors import Argument, DivergedError, Fix, Lines, StreamtrainWarning, UsageError, first_line
from streamtrain.loader.device.failures import is_device_failure, is_out_of_memory
from streamtrain.models.alignment import align, drop_last_axis, dtype_name
from streamtrain.models.losses import Loss
from streamtrain.models.normalization import NormalizedModel
from streamtrain.models.seeding import borrowed_random
from streamtrain.optim.gradients import Learner, TrainingBatch, weights_kept
from streamtrain.optim.rules import UpdateRule
from streamtrain.system.arguments import check_flags, check_names, check_optional_functions
from streamtrain.system.display.progress_bar import parse_progress
from streamtrain.training.batch_stream import SmallBatch
from streamtrain.training.step_errors import explain_device

_TOLERANCE: Final = 1e-3
_MOST_LAYERS: Final = 12


def check_fields(inputs: object, target: object, weight: object) -> tuple[str, ...]:
    """Refuse what names no fields; return the inputs, one or several."""
    check_names(inputs=inputs)
    for name, value in (("target", target), ("weight", weight)):
        if not isinstance(value, str) and not (name == "weight" and value is None):
            raise UsageError(f"{name} is {value!r:.80}; it must be the name of a field")
    # A lone name in place of a tuple is a tuple of letters to Python.
    return (inputs,) if isinstance(inputs, str) else tuple(cast("Sequence[str]", inputs))


def check_fit(
    *, resume: object, progress: bool | None, restore_best: object, on_epoch: object, on_resume: object
) -> None:
    """Refuse arguments of `Trainer.fit` that would be noticed only inside a run."""
    check_flags(restore_best=restore_best)
    if resume is not None and not (isinstance(resume, str) and resume == "auto"):
        what = f"resume is {resume!r:.80}; it must be 'auto' or None"
        raise UsageError(what, fix=Fix(Argument("resume", "auto"), ", or leave it out"))
    parse_progress(progress)
    check_optional_functions(on_epoch=on_epoch, on_resume=on_resume)


def warn_of_batch_dependent_modules(model: nn.Module, spans: str | None) -> None:
    """Warn of modules whose output for a sample depends on its batch, where a step spans several."""
    if spans is None:
        return
    norms = _names(model, nn.modules.batchnorm._BatchNorm)
    drops = _names(model, nn.modules.dropout._DropoutNd)
    why = [
        "BatchNorm takes each batch's own mean and variance, and its averages move batch by batch" if norms else "",
        "Dropout draws a mask for each batch, so the gradient is a mean over as many masks" if drops else "",
    ]
    if any(why):
        warnings.warn(
            f"{', '.join([*norms, *drops])} under {spans}: {'; '.join(filter(None, why))}; the "
            "step is not the one on all of these samples as one batch",
            StreamtrainWarning,
            stacklevel=6,
        )


def warn_of_batch_dependent_loss(loss: Loss, output: Tensor, target: Tensor, spans: str | None) -> None:
    """Warn of a custom loss that is not a mean over samples, measured on a batch and its halves."""
    if loss.each is not None or len(target) < 2 or spans is None:
        return
    half = len(target) // 2
    with torch.no_grad():
        whole = float(loss(output, target))
        parts = half * float(loss(output[:half], target[:half]))
        parts += (len(target) - half) * float(loss(output[half:], target[half:]))
    if not abs(parts / len(target) - whole) <= _TOLERANCE * (abs(whole) + _TOLERANCE):
        warnings.warn(
            f"{loss.name} under {spans}: it is not a mean over the samples of a batch "
            f"({whole:.6g} over {len(target)} samples, {parts / len(target):.6g} over their halves), so the mean over "
            "the batches depends on how they are formed",
            StreamtrainWarning,
            stacklevel=5,
        )


def warn_of_broadcast_loss(loss: Loss, output: Tensor, target: Tensor) -> None:
    """Warn of a custom loss that broadcasts (B, 1) against (B,), measured on these and on both aligned."""
    lined_up = drop_last_axis(output, target)
    if loss.kind != "custom" or len(target) < 2 or (output.shape, target.shape) == tuple(t.shape for t in lined_up):
        return
    with torch.no_grad():
        try:
            told, alike = float(loss(output, target)), float(loss(*lined_up))
        except (RuntimeError, ValueError, TypeError, IndexError):
            # The loss works only on the shapes as they are, so it handles them itself.
            return
    if not math.isclose(told, alike, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE**2):
        warnings.warn(
            f"{loss.name} of an output of shape {tuple(output.shape)} and a target of {tuple(target.shape)} is "
            f"{told:.6g}, and {alike:.6g} where the axis of 1 is left out: it seems to broadcast one against the other",
            StreamtrainWarning,
            stacklevel=5,
        )


def _names(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return sorted({type(module).__name__ for module in model.modules() if isinstance(module, kind)})


def check_model_fits(
    learner: Learner,
    batch: TrainingBatch,
    *,
    n_classes: range | None = None,
    spans: str | None = None,
    trains: bool = True,
) -> None:
    """Run a batch forward, and where it ``trains`` backward, and raise a `UsageError` that says what does not fit."""
    with _tried(learner, batch, trains=trains, n_classes=n_classes) as output:
        warn_of_broadcast_loss(learner.loss, output.detach(), batch.target)
        warn_of_batch_dependent_loss(learner.loss, output.detach(), batch.target, spans)


@contextmanager
def _tried(learner: Learner, batch: TrainingBatch, *, trains: bool, n_classes: range | None = None) -> Iterator[Tensor]:
    """Run a batch forward and backward, yield the output, and leave nothing changed after the block."""
    with preserve_training_state(learner), _room(learner, batch), torch.set_grad_enabled(trains):
        if trains:
            put_in_training_mode(learner.model)
        else:
            learner.model.eval()
        learner.optimizer.zero_grad(set_to_none=True)
        output = forward(learner.model, batch)
        check_width(learner, output, batch, n_classes)
        _backward(learner, output, batch)
        yield output


def check_small_batch(learner: Learner, batch: TrainingBatch, small: SmallBatch) -> None:
    """Refuse a model that cannot take a batch as small as this one, over which BatchNorm may have no variance."""
    try:
        with _tried(learner, batch.rows(slice(small.n_samples)), trains=small.trains):
            return
    except UsageError as misfit:
        raise too_small(misfit, small) from misfit


def too_small(misfit: UsageError, small: SmallBatch) -> UsageError:
    """Make the error for a model that takes larger batches, but not this one."""
    cause = misfit.__cause__ or misfit
    error = cause.what if isinstance(cause, UsageError) else first_line(cause)
    samples = f"{small.n_samples} sample{'s' if small.n_samples > 1 else ''}"
    cannot = f"the model cannot {'train on' if small.trains else 'be measured on'} a batch of {samples}: {error}"
    return UsageError(cannot, why=small.why, fix=Fix(small.fix, ", or a model without layers over the batch"))


def check_width(
    learner: Learner, output: Tensor, batch: TrainingBatch, n_classes: range | None, *, may_be_wider: bool = False
) -> None:
    """Refuse an output whose width is not a number of classes, or, with ``may_be_wider``, is too narrow."""
    if learner.loss.kind != "classes" or n_classes is None or output.ndim < 2 or output.shape[1] in n_classes:
        return
    if not (may_be_wider and output.shape[1] >= n_classes.stop):
        n_least = n_classes.start
        besides = f", not counting {learner.loss.ignored}, which the loss ignores" if len(n_classes) > 1 else ""
        n_outputs = output.shape[1]
        error = f"{n_outputs} output{'s' * (n_outputs != 1)} for {n_least} classes{besides}"
        raise _misfit(learner.model, batch, error, f"end the model in {n_least} outputs")


def forward(model: nn.Module, batch: TrainingBatch) -> Tensor:
    """Run a batch forward; refuse what the model does not take, or an output that is no tensor."""
    try:
        output = model(*batch.inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        if is_out_of_memory(error) or is_device_failure(error):
            raise
        passed = _layers_passed(model, batch)
        raise _misfit(model, batch, first_line(error), _input_fix(model, batch), passed) from error
    if not isinstance(output, Tensor):
        raise _misfit(model, batch, f"the model returns {type(output).__name__}", "return one tensor")
    return output


def _backward(learner: Learner, output: Tensor, batch: TrainingBatch) -> None:
    target = batch.target
    try:
        align(learner.loss, output, target)
    except UsageError as error:
        raise _misfit(learner.model, batch, error.what, error.fix or "") from error
    of_shapes = f"{learner.loss.name} of an output of shape {tuple(output.shape)} and a target of {tuple(target.shape)}"
    try:
        with _no_broadcast(of_shapes, output, target):
            mean, _ = learner.loss.objective(output, target, batch.weight)
    except UsageError as error:
        raise _misfit(learner.model, batch, error.what, error.fix or "") from error
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error) or is_device_failure(error):
            raise
        fix = f"a loss that takes an output of shape {tuple(output.shape)}, and labels in its range"
        raise _misfit(learner.model, batch, f"{of_shapes}: {first_line(error)}", fix) from error
    if not torch.is_grad_enabled():
        return
    if not isinstance(mean, Tensor) or mean.ndim or not mean.requires_grad or mean.is_complex():
        what = f"shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
        what = "a complex number" if isinstance(mean, Tensor) and mean.is_complex() and not mean.ndim else what
        error_line = f"{of_shapes} returns {what}, not a scalar with a gradient"
        raise _misfit(learner.model, batch, error_line, "return the mean over the samples, or each one's loss")
    mean.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _no_broadcast(of_shapes: str, output: Tensor, target: Tensor) -> Iterator[None]:
    """Refuse a custom loss in which torch warns of a broadcast axis."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        has_one_more = any(a is not b for a, b in zip((output, target), drop_last_axis(output, target), strict=True))
        if has_one_more and str(warning.message).startswith("Using a target size"):
            raise UsageError(f"{of_shapes} broadcasts one against the other", fix="leave the axis of 1 out in it")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def put_in_training_mode(model: nn.Module) -> None:
    """Put a model in training mode; parts that its user left in evaluation mode stay so, unless the whole model is."""
    inner = getattr(model, "model", model)
    if not (isinstance(inner, nn.Module) and inner.training):
        model.train()
    model.training = True


@contextmanager
def working_memory(make: Callable[[Learner], UpdateRule], learner: Learner, batch: TrainingBatch) -> Iterator[None]:
    """Hold the memory that training takes (gradients, sums, optimizer state), so that a meter can begin above it."""
    with preserve_training_state(learner):
        with _same_weights(learner):
            put_in_training_mode(learner.model)
            with _room(learner, batch):
                held = _trained(make(learner), batch)
                later_memory = held.later_memory()
            state = learner.optimizer.state_dict()
        yield
        del held, later_memory, state


def _room(learner: Learner, batch: TrainingBatch) -> AbstractContextManager[None]:
    return explain_device(batch.target.device, batch_size=len(batch), optimizer=learner.optimizer)


def _trained(rule: UpdateRule, batch: TrainingBatch) -> UpdateRule:
    # A pass and the first step of the next: by then a rule has allocated everything that it keeps.
    rule.learn(batch, max_steps=rule.n_steps + 1)
    rule.end_epoch()
    # Divergence at the first step is left for the training itself to report.
    with suppress(DivergedError):
        rule.learn(batch, max_steps=rule.n_steps + 1)
    return rule


@contextmanager
def _same_weights(learner: Learner) -> Iterator[None]:
    state = copy.deepcopy(learner.optimizer.state_dict())
    with weights_kept(learner.model.parameters()):
        try:
            yield
        finally:
            learner.optimizer.load_state_dict(state)


@contextmanager
def preserve_training_state(learner: Learner) -> Iterator[None]:
    """Restore buffers, training mode and random state after the block; gradients are dropped."""
    device = next(learner.model.parameters()).device
    with weights_kept(learner.model.buffers()), borrowed_random(device), preserve_mode(learner.model):
        try:
            yield
        finally:
            learner.optimizer.zero_grad(set_to_none=True)


@contextmanager
def preserve_mode(model: nn.Module) -> Iterator[None]:
    """Restore the mode, training or evaluation, of every module after the block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _layers_passed(model: nn.Module, batch: TrainingBatch) -> list[str]:
    """List the layers up to the one that fails, with the shapes of a sample before and after each."""
    inner, lines = getattr(model, "model", model), list[str]()

    def begin(name: str, layer: nn.Module) -> Callable[[nn.Module, tuple[object, ...]], None]:
        return lambda _, given: lines.append(f"{name} {type(layer).__name__}: {_shapes(given)}")

    def end(_: nn.Module, given: tuple[object, ...], output: object) -> None:
        lines[-1] += f" -> {_shapes((output,))}"

    leaves = [(name, layer) for name, layer in inner.named_modules() if name and not any(layer.children())]
    hooks = [layer.register_forward_pre_hook(begin(name, layer)) for name, layer in leaves]
    hooks += [layer.register_forward_hook(end) for _, layer in leaves]
    try:
        with torch.no_grad(), suppress(Exception):
            rescaled = getattr(model, "rescaled", lambda *inputs: inputs)
            inner(*rescaled(*batch.inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return lines[-_MOST_LAYERS:]


def _shapes(values: tuple[object, ...]) -> str:
    return ", ".join(str(tuple(value.shape[1:])) for value in values if isinstance(value, Tensor)) or "no tensor"


def _misfit(model: nn.Module, batch: TrainingBatch, error: str, fix: str, layers: Sequence[str] = ()) -> UsageError:
    data = ", ".join(
        f"{name} {dtype_name(value.dtype)} {tuple(value.shape[1:])}" for name, value in batch.fields.items()
    )
    lines = [
        "the model does not fit the data",
        f"  data   {data}",
        f"  model  {_describe(model)}",
        *(f"         {line}" for line in layers),
        f"  error  {error}",
    ]
    return UsageError(Lines.of(lines), fix=fix or None)


def _describe(model: nn.Module) -> str:
    inner = getattr(model, "model", model)
    dtypes = sorted({dtype_name(parameter.dtype) for parameter in inner.parameters()})
    return f"{type(inner).__name__} of {', '.join(dtypes)}"


def _input_fix(model: nn.Module, batch: TrainingBatch) -> str:
    of_model = {parameter.dtype for parameter in model.parameters()}
    rescaled = model.modules_by_input() if isinstance(model, NormalizedModel) else {}
    misfits = [
        name
        for name, x in zip(batch.names, batch.inputs, strict=False)
        if x.dtype not in of_model and name not in rescaled
    ]
    if misfits:
        casts = " and ".join(f"{name}.float()" for name in misfits)
        return Fix(Argument("normalize", "auto"), f", or a model, or a transform of the loader, that takes {casts}")
    shapes = " and ".join(str(tuple(x.shape[1:])) for x in batch.inputs)
    return f"a model that takes samples of shape {shapes}"
