"""The forward pass of a model: plain, under autocast, or compiled.

Neither option changes the model: its weights keep their dtype and its ``state_dict`` the names, so a checkpoint does
not depend on them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    run: ForwardFunction = _compiled(model) if compiled else model
    return _narrowed(run, device, autocast) if autocast is not None else run


def _narrowed(run: ForwardFunction, device: torch.device, dtype: torch.dtype) -> ForwardFunction:
    def forward(*inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            output = run(*inputs)
        return output.float() if isinstance(output, Tensor) and output.dtype is dtype else output

    return forward


_OFF: Final = Argument("compile", False)


def _compiled(model: nn.Module) -> ForwardFunction:
    with _quiet():
        run = torch.compile(model)
    n_warned = 0

    def forward(*inputs: Tensor) -> Tensor:
        nonlocal n_warned
        for x in inputs:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        try:
            if n_warned == 0:
                with _quiet():
                    output: Tensor = run(*inputs)
                n_warned = 1
                return output
            output = run(*inputs)
        except torch._dynamo.exc.TorchRuntimeError as error:
            # This error names the compiler's stand-ins for tensors; the model itself raises the readable one.
            model(*inputs)
            raise ResourceError(_not_compiled(error), fix=Fix("train without it: ", _OFF)) from error
        except Exception as error:
            if not _is_of_compiler(error):
                raise
            raise ResourceError(
                _not_compiled(error),
                why="torch.compile needs a C++ compiler on the CPU (the variable CXX may name one), and Triton on CUDA",
                fix=Fix("install one, or train without it: ", _OFF),
            ) from error
        return output

    return forward


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
