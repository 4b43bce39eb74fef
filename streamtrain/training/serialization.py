"""Nested state as JSON and safetensors, without pickle.

An optimizer's ``state_dict`` is dicts, lists and numbers with tensors in them. The tensors go to a safetensors file by
name, the rest to JSON, in which every value that JSON lacks is an object of one key: ``{"tensor": name}``,
``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``, and ``{"float": "inf"}`` for numbers that are not finite.

A safetensors file is a length of eight bytes, a header in JSON, and the tensors end to end (the specification is in the
README of huggingface/safetensors). It is written from the tensors as they lie in memory, without a copy, so saving a
model takes no extra memory; the library's own writer holds a file's content several times over. The library reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from streamtrain.errors import CheckpointError, UsageError
from streamtrain.system.files import FileWriter


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


def flatten_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is nested in a mapping, one level deep, by dotted names.

    Examples
    --------
    >>> flatten_names({"seed": 0, "optimizer": {"lr": 0.1}})
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


_ALIGNMENT: Final = 8
_NAMES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def check_tensors(state: Mapping[str, Any]) -> None:
    """Refuse what no such file can hold.

    Raises
    ------
    UsageError
        Something is no tensor, or is one of a kind that the format does not know.

    Examples
    --------
    >>> check_tensors({"weight": 3})
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: the model's state 'weight' is int, not a tensor. Fix: a buffer of it.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the model's state {name!r} is {type(value).__name__}, not a tensor", fix="a buffer of it"
            )
        if value.dtype not in _NAMES or value.layout != torch.strided:
            raise UsageError(
                f"the model's state {name!r} is a tensor of {value.dtype}, {value.layout}, which no checkpoint holds",
                fix="a dense tensor of floats, integers or booleans",
            )


def write_tensors(out: FileWriter, state: Mapping[str, Tensor]) -> str:
    """Write tensors that `check_tensors` has let pass, and return the SHA-256 of the file as hexadecimal digits.

    Tensors that share memory are written once for each name.

    Raises
    ------
    ResourceError
        The disk or the quota is full.

    Examples
    --------
    >>> import tempfile, pathlib, safetensors.torch
    >>> from streamtrain.system.files import Files
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> with Files().create(path) as out:
    ...     digest = write_tensors(out, {"w": torch.ones(2)})
    >>> safetensors.torch.load_file(path)
    {'w': tensor([1., 1.])}
    """
    digest = hashlib.sha256()
    for piece in _pieces(state):
        digest.update(piece)
        out.write(piece)
    return digest.hexdigest()


def _pieces(state: Mapping[str, Tensor]) -> Iterator[memoryview]:
    # Those of wide elements first, so that each begins at a multiple of its elements' size.
    ordered = sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))
    entries: dict[str, dict[str, object]] = {}
    at = 0
    for name, tensor in ordered:
        stop = at + tensor.nbytes
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, stop]}
        at = stop
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for _, tensor in ordered:
        if tensor.numel():
            # One at a time: of a device's tensors only one is on the host.
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
