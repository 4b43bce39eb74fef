"""The forward pass of a model: plain, under autocast, or compiled.

Neither option changes the model: its weights keep their dtype and its ``state_dict`` the names, so a checkpoint does
not depend on them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

import torch
from torch import Tensor, nn

from streamtrain.errors import Argument, Fix, ResourceError, UsageError, first_line, unknown_name
from streamtrain.models.alignment import dtype_name

ForwardFunction = Callable[..., Tensor]
"""Inputs (B, ...) -> output (B, ...)."""

AUTOCAST: Final = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16}


def check_autocast(autocast: str | torch.dtype | None) -> torch.dtype | None:
    """Resolve the dtype of autocast; refuse any but bfloat16."""
    if autocast is None or autocast is torch.bfloat16:
        return autocast
    if dtype_name(autocast) in ("float16", "fp16", "half"):
        raise UsageError(
            "autocast to float16",
            why="Small gradients vanish in it unless the loss is scaled; bfloat16 has the range of float32",
            fix=Fix(Argument("autocast", "bfloat16")),
        )
    if not isinstance(autocast, str) or autocast not in AUTOCAST:
        raise unknown_name("autocast", dtype_name(autocast), AUTOCAST)
    return AUTOCAST[autocast]


def make_forward(
    model: nn.Module, *, device: torch.device, autocast: torch.dtype | None = None, compiled: bool = False
) -> ForwardFunction:
    """Make the function that runs a model forward.

    Under autocast the output is float32, so that the loss is measured in it. The compiled function is compiled once for
    batches of any size: a batch's result does not depend on the sizes before it.
    """
    run: ForwardFunction = model
    if is_compiled(model):
        run = _Explained(original_model(model), model)
    elif compiled:
        with _quiet():
            run = _Explained(model, torch.compile(model))
    return _narrowed(run, device, autocast) if autocast is not None else run


def _narrowed(run: ForwardFunction, device: torch.device, dtype: torch.dtype) -> ForwardFunction:
    def forward(*inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            output = run(*inputs)
        return output.float() if isinstance(output, Tensor) and output.dtype is dtype else output

    return forward


def check_model(model: object) -> None:
    """Refuse what is no module, and a module that cannot change between training and evaluation."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        what = f"model is the class {model.__name__}, and not a model made of it"
        raise UsageError(what, fix=f"model={model.__name__}(...), with its arguments")
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model is {model!r}, not a torch.nn.Module", fix=Fix(Argument("model", "mlp"), " makes one by name")
        )
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(model.training)
        for module, training in modes:  # parts that the user left in evaluation mode
            module.training = training
    except NotImplementedError as error:
        raise UsageError(
            f"the model cannot be trained: {first_line(error)}",
            why="torch.export fixes a model in training or in evaluation mode",
            fix="the model that was exported",
        ) from error


def is_compiled(model: nn.Module) -> bool:
    """Whether the user has compiled a model, or a part of it."""
    return any(_wrapped(part) is not None or part._compiled_call_impl is not None for part in model.modules())


def original_model(model: nn.Module) -> nn.Module:
    """Return the model inside those that `torch.compile` made, whose ``state_dict`` has the names of before."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    # By its name: the class lives in torch's compiler, which takes seconds to import.
    inner = getattr(model, "_orig_mod", None) if type(model).__name__ == "OptimizedModule" else None
    return inner if isinstance(inner, nn.Module) else None


_OFF: Final = Argument("compile", False)


class _Explained:
    """What was compiled of a model, with errors of the compiler in words."""

    def __init__(self, model: nn.Module, run: ForwardFunction) -> None:
        self._model, self._run = model, run
        self._is_warm = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        for x in inputs:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        try:
            with nullcontext() if self._is_warm else _quiet():
                output = self._run(*inputs)
        except torch._dynamo.exc.TorchRuntimeError as error:
            # This error names the compiler's stand-ins for tensors; the model itself raises the readable one.
            self._model.forward(*inputs)
            raise ResourceError(_not_compiled(error), fix=Fix("train without it: ", _OFF)) from error
        except Exception as error:
            if not _is_of_compiler(error):
                raise
            raise ResourceError(
                _not_compiled(error),
                why="torch.compile needs a C++ compiler on the CPU (the variable CXX may name one), and Triton on CUDA",
                fix=Fix("install one, or train without it: ", _OFF),
            ) from error
        self._is_warm = True
        return output


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    with warnings.catch_warnings():
        # torch's compiler uses what torch itself deprecates, and logs a traceback of what it raises as well.
        warnings.simplefilter("ignore")
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = before


def _not_compiled(error: Exception) -> str:
    return f"the model cannot be compiled: {first_line(error)}"


def _is_of_compiler(error: Exception) -> bool:
    module = type(error).__module__
    return module.startswith(("torch._dynamo", "torch._inductor")) or "triton" in module
