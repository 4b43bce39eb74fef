"""The weights that a model starts from: those of a run, or of a safetensors file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from streamtrain.errors import Argument, CheckpointError, Fix, StreamtrainWarning, UsageError
from streamtrain.models.forward import original_model
from streamtrain.system.arguments import check_flags
from streamtrain.system.files import is_folder, is_there, local_path
from streamtrain.training.best.chosen_checkpoint import checkpoint_of
from streamtrain.training.run.checkpoint import MODEL, read_tensors
from streamtrain.training.run.run_folder import read_config
from streamtrain.training.run.serialization import unprefixed

_SUFFIX: Final = ".safetensors"
_MOST_LISTED: Final = 8


def load_initial_weights(model: nn.Module, init: str | Path | None, *, partial: bool = False) -> None:
    """Start a model from the weights of a run, its best ones if it names them, or from those of a safetensors file.

    Names and shapes must agree; with ``partial`` those that do are taken, and the others are told in a warning.
    """
    check_flags(init_partial=partial)
    if init is None:
        if partial:
            raise UsageError("init_partial without init", fix=Fix(Argument("init", "runs/1"), ", say"))
        return
    if not isinstance(init, str | Path):
        raise UsageError(f"init is {init!r:.80}; it must be a path")
    path, target = local_path(init), original_model(model)
    found = _weights_at(path)
    if not found.keys() & target.state_dict().keys():  # an export has them beside their normalization
        found = unprefixed(found, f"{MODEL}.") or found
    own, there = ({name: tuple(value.shape) for name, value in of.items()} for of in (target.state_dict(), found))
    fitting = {name: value for name, value in found.items() if own.get(name) == there[name]}
    others = [
        *(f"{name} {own[name]}, there {there.get(name, 'not')}" for name in own.keys() - fitting.keys()),
        *(f"{name}, there {there[name]}, here not" for name in there.keys() - own.keys()),
    ]
    if not fitting or (others and not partial):
        raise UsageError(
            f"the weights of init are of another model: {_listed(others)}",
            where=str(path),
            fix=Fix(Argument("init_partial", True), " takes those that agree") if fitting else "weights of this model",
        )
    target.load_state_dict(fitting, strict=False)
    if others:
        text = f"{path}: {len(fitting)} of {len(own)} weights are taken; left out: {_listed(others)}"
        warnings.warn(text, StreamtrainWarning, stacklevel=3)


def _weights_at(path: Path) -> dict[str, Tensor]:
    if is_folder(path):
        read_config(path)  # which says what a folder is that is not a run's
        return checkpoint_of(path).checkpoint.tensors(MODEL)
    if path.suffix in (".pt", ".pth"):
        to = path.with_suffix(_SUFFIX)
        raise CheckpointError(
            "is a file of torch.save, whose reading may run code",
            where=str(path),
            fix=f"convert it, if you know where it is from: import torch, safetensors.torch; "
            f"safetensors.torch.save_file(torch.load({str(path)!r}, weights_only=True), {str(to)!r})",
        )
    if not is_there(path) and path.suffix != _SUFFIX:
        read_config(path)  # which names the runs nearby
    return read_tensors(path, what="the file of weights", fix="give a run, or a file that safetensors wrote")


def _listed(others: list[str]) -> str:
    more = f", and {len(others) - _MOST_LISTED} more" if len(others) > _MOST_LISTED else ""
    return "; ".join(sorted(others)[:_MOST_LISTED]) + more
