"""The folder of a run: what it was (``config.json``), how it went (``metrics.jsonl``), and its weights.

::

    runs/1/
        config.json
        metrics.jsonl                          a line every few batches, and one every epoch
        checkpoints/00001175/                  named by the batches taken in
            model.safetensors                  the model's own state_dict
            normalize.safetensors              what stands before it, if anything does

Nothing in it is ever executed: weights are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self, TextIO

import safetensors
import safetensors.torch
from torch import Tensor, nn

from streamtrain.errors import CheckpointError, UsageError
from streamtrain.files import Files

CONFIG: Final = "config.json"
METRICS: Final = "metrics.jsonl"
CHECKPOINTS: Final = "checkpoints"
MODEL: Final = "model.safetensors"
NORMALIZE: Final = "normalize.safetensors"

_BATCH_DIGITS: Final = 8


class RunFolder:
    """A run being written. The folder appears with the first thing put in it.

    Parameters
    ----------
    path : pathlib.Path
        Where; nothing may be there yet, or an empty folder.
    config : mapping
        What ``config.json`` is to hold.

    Raises
    ------
    UsageError
        Something is there already.
    """

    def __init__(self, path: Path, config: Mapping[str, object]) -> None:
        check_free(path)
        self.path = path
        self._config = config
        self._files = Files()
        self._metrics: TextIO | None = None

    def log(self, **values: float | str) -> None:
        """Append a line to ``metrics.jsonl``; what is not finite becomes null."""
        self._opened().write(json.dumps({name: _finite(value) for name, value in values.items()}) + "\n")

    def save(self, n_batches: int, model: nn.Module, normalize: Mapping[str, nn.Module]) -> None:
        """Save the weights as they are after some number of batches.

        Raises
        ------
        ResourceError
            The disk is full or cannot be written.
        UsageError
            The model's state holds something that is no tensor.
        """
        self._opened()
        folder = self.path / CHECKPOINTS / f"{n_batches:0{_BATCH_DIGITS}d}"
        self._files.ensure_dir(folder)
        if normalize:
            self._files.write_bytes(folder / NORMALIZE, tensor_bytes(_normalize_state(normalize)))
        # The model last: who finds it finds what it needs.
        self._files.write_bytes(folder / MODEL, tensor_bytes(model.state_dict()))

    def _opened(self) -> TextIO:
        if self._metrics is None:
            self._files.ensure_dir(self.path)
            self._files.write_bytes(self.path / CONFIG, (json.dumps(self._config, indent=2) + "\n").encode())
            # Line buffered: whoever watches the file sees whole lines, as they come.
            self._metrics = (self.path / METRICS).open("a", buffering=1, encoding="utf-8")
        return self._metrics

    def close(self) -> None:
        """Close ``metrics.jsonl``."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoRun:
    """A run that leaves nothing behind, in place of a `RunFolder`."""

    def log(self, **values: float | str) -> None:
        """Do nothing."""

    def save(self, n_batches: int, model: nn.Module, normalize: Mapping[str, nn.Module]) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


Run = RunFolder | NoRun
"""Where a trainer puts what is to be kept."""


def check_free(path: Path) -> None:
    """Refuse a place for a run where something is already.

    Raises
    ------
    UsageError
        It is a file, or a folder with something in it.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError("the run folder is taken", where=str(path), fix="another --out, or remove it")


def next_run(parent: Path) -> Path:
    """The folder of the next run: one more than the highest number in use.

    Examples
    --------
    >>> import tempfile
    >>> parent = Path(tempfile.mkdtemp())
    >>> (parent / "7").mkdir()
    >>> next_run(parent).name, next_run(parent / "none").name
    ('8', '1')
    """
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    return parent / str(1 + max((int(name) for name in names if name.isdecimal()), default=0))


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's ``config.json``.

    Raises
    ------
    CheckpointError
        There is no such run, or its configuration is damaged.
    """
    file = path / CONFIG
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"no run: {CONFIG} is missing", where=str(path), fix=_nearby_runs(path)) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(file), fix="train again") from error
    if not isinstance(config, dict):
        raise CheckpointError("is no JSON object", where=str(file), fix="train again")
    return config


def _nearby_runs(path: Path) -> str:
    parent = path.parent
    runs = sorted(str(config.parent) for config in parent.glob(f"*/{CONFIG}")) if parent.is_dir() else []
    return f"one of {', '.join(runs[:8])}" if runs else "name the folder that train --out wrote"


def newest_checkpoint(path: Path) -> Path:
    """The folder of a run's newest complete checkpoint.

    Raises
    ------
    CheckpointError
        The run has none.
    """
    saved = sorted(file.parent for file in (path / CHECKPOINTS).glob(f"*/{MODEL}") if file.parent.name.isdecimal())
    if not saved:
        raise CheckpointError(
            f"the run has no {CHECKPOINTS}/*/{MODEL}", where=str(path), why="It did not end", fix="train again"
        )
    return saved[-1]


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a model's weights from a file.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or of another model.
    """
    try:
        model.load_state_dict(read_tensors(file))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(
            f"the weights are of another model: {' '.join(lines[1:4] or lines)}",
            where=str(file),
            fix="the model that the run was trained with",
        ) from error


def load_normalize_state(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read what a checkpoint holds of the modules before the model: input name -> their state.

    Raises
    ------
    CheckpointError
        The file is damaged.
    """
    states: dict[str, dict[str, Tensor]] = {}
    if (folder / NORMALIZE).exists():
        for name, tensor in read_tensors(folder / NORMALIZE).items():
            field, _, key = name.partition(".")
            states.setdefault(field, {})[key] = tensor
    return states


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises
    ------
    CheckpointError
        The file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise CheckpointError("the checkpoint is missing", where=str(file), fix="train again") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"the checkpoint is damaged: {error}", where=str(file), fix="train again") from error


def tensor_bytes(state: Mapping[str, Any]) -> bytes:
    """Write a ``state_dict`` as safetensors.

    Raises
    ------
    UsageError
        It holds something that is no tensor.

    Examples
    --------
    >>> import torch
    >>> safetensors.torch.load(tensor_bytes({"weight": torch.ones(2)}))
    {'weight': tensor([1., 1.])}
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the model's state {name!r} is {type(value).__name__}, not a tensor", fix="a buffer of it"
            )
    return safetensors.torch.save(_unshared(state))


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory. Tied weights are saved once for each name, and loading each into
    # the tied tensor again is harmless.
    seen: set[int] = set()
    alone: dict[str, Tensor] = {}
    for name, tensor in state.items():
        on_cpu = tensor.detach().cpu().contiguous()
        memory = on_cpu.untyped_storage().data_ptr()
        alone[name] = on_cpu.clone() if memory in seen else on_cpu
        seen.add(memory)
    return alone


def _normalize_state(normalize: Mapping[str, nn.Module]) -> dict[str, Any]:
    return {f"{name}.{key}": value for name, module in normalize.items() for key, value in module.state_dict().items()}


def _finite(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
