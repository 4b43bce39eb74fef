"""Nested state as JSON and named tensors, and back: what a checkpoint can hold without pickle.

An optimizer's ``state_dict`` is dicts, lists and numbers with tensors in them. The tensors go to a safetensors file by
name, the rest to JSON, in which every value that JSON lacks is an object of one key: ``{"tensor": name}``,
``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``, and ``{"float": "inf"}`` for what is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from streamtrain.errors import CheckpointError, UsageError


def pack(state: object, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Take a nested state apart.

    Parameters
    ----------
    state : object
        Dicts, lists and tuples of tensors, numbers, texts and None.
    name : str
        What it is; the tensors are named after it.

    Returns
    -------
    tree : object
        For JSON.
    tensors : dict of str to torch.Tensor
        For safetensors; the tensors themselves, not copies.

    Raises
    ------
    UsageError
        There is something else in it.

    Examples
    --------
    >>> import torch
    >>> tree, tensors = pack({0: {"step": torch.tensor(3.0), "betas": (0.9, 0.999)}}, "state")
    >>> tree
    {'dict': [[0, {'dict': [['step', {'tensor': 'state.0.step'}], ['betas', {'tuple': [0.9, 0.999]}]]}]]}
    >>> unpack(tree, tensors)
    {0: {'step': tensor(3.), 'betas': (0.9, 0.999)}}
    """
    tensors: dict[str, Tensor] = {}

    def packed(value: object, path: str) -> Any:
        match value:
            case Tensor():
                # The keys "a.b" and, inside "a", "b" give the same path.
                while path in tensors:
                    path += "'"
                tensors[path] = value
                return {"tensor": path}
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": str(value)}
            case list():
                return [packed(part, f"{path}.{i}") for i, part in enumerate(value)]
            case tuple():
                return {"tuple": [packed(part, f"{path}.{i}") for i, part in enumerate(value)]}
            case Mapping() if all(isinstance(key, str | int) for key in value):
                return {"dict": [[key, packed(part, f"{path}.{key}")] for key, part in value.items()]}
        raise UsageError(
            f"{path} is {type(value).__name__}, which no checkpoint can hold",
            fix="tensors, numbers, texts, and lists and dicts of them",
        )

    return packed(state, name), tensors


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is nested in a mapping, one level deep, by dotted names.

    Examples
    --------
    >>> flat({"seed": 0, "optimizer": {"lr": 0.1}})
    {'seed': 0, 'optimizer.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= {f"{name}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put a state together again.

    Raises
    ------
    CheckpointError
        The tree names a tensor that is not there, or is no tree that `pack` makes.
    """
    match tree:
        case None | bool() | int() | float() | str():
            return tree
        case list():
            return [unpack(part, tensors) for part in tree]
        case {"tensor": str(name)} if len(tree) == 1 and name in tensors:
            return tensors[name]
        case {"tuple": list(parts)} if len(tree) == 1:
            return tuple(unpack(part, tensors) for part in parts)
        case {"float": ("inf" | "-inf" | "nan") as text} if len(tree) == 1:
            return float(text)
        case {"dict": list(pairs)} if len(tree) == 1:
            return {key: unpack(part, tensors) for key, part in pairs}
    raise CheckpointError(f"the state holds {str(tree)[:80]!r}, which is none that was written", fix="train again")
