"""Nested state as JSON and safetensors, without pickle.

An optimizer's ``state_dict`` is dicts, lists and numbers with tensors in them. The tensors go to a safetensors file by
name, the rest to JSON, where every value that JSON lacks is an object of one key: ``{"tensor": name}``,
``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``, and ``{"float": "inf"}`` for numbers that are not finite.

A safetensors file is a length of eight bytes, a header in JSON, and the tensors end to end (the specification is in the
README of huggingface/safetensors). Tensors are written straight from memory, so saving a model takes no extra memory;
the library's own writer holds a file's content several times over. The library reads it.
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
    """Split a nested state into a tree for JSON and its tensors by name, which are not copied."""
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
    """Flatten a mapping by one level, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= {f"{name}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def unprefixed(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the values whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Rebuild a state from what `pack` returned."""
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
        case {"dict": list(pairs)} if len(tree) == 1 and all(map(_is_pair, pairs)):
            return {key: unpack(part, tensors) for key, part in pairs}
    raise CheckpointError(f"the state holds {str(tree)[:80]!r}, which is none that was written", fix="train again")


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int)


def check_like(found: object, own: object, name: str) -> None:
    """Refuse a part of a state whose values are not of the kinds that a trainer's own have.

    What is None or missing in either is not compared: it may have come, or gone, with the training or a version.
    """
    match own, found:
        case (None, _) | (_, None):
            return
        case (Mapping(), Mapping()):
            for key in own.keys() & found.keys():
                check_like(found[key], own[key], f"{name}.{key}")
            return
        case (list() | tuple(), list() | tuple()):
            for place, (one, other) in enumerate(zip(found, own, strict=False)):
                check_like(one, other, f"{name}.{place}")
            return
        case (Tensor(), Tensor()):
            if found.shape == own.shape:
                return
        case (bool(), _) | (_, bool()):
            if isinstance(own, bool) and isinstance(found, bool):
                return
        case (int() | float(), int() | float()) | (str(), str()):
            return
    raise CheckpointError(f"{name} is {str(found)[:60]!r}, where the run has {str(own)[:60]!r}", fix="train again")


_ALIGNMENT: Final = 8
_OF_TORCH: Final = 64
"""Bytes at a multiple of which torch's own tensors begin."""
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
    """Refuse a state that safetensors cannot hold."""
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


def write_tensors(out: FileWriter, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors that passed `check_tensors`; return the SHA-256 of the file in hexadecimal.

    Tensors that share memory are written once for each name.
    """
    digest = hashlib.sha256()
    for piece in _pieces(state, metadata):
        digest.update(piece)
        out.write(piece)
    return digest.hexdigest()


def _pieces(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Iterator[memoryview]:
    # Wide elements first, so that each tensor begins at a multiple of its element size.
    ordered = sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))
    entries: dict[str, dict[str, object]] = {"__metadata__": dict(metadata)} if metadata else {}
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
            # One at a time: only one of a device's tensors is on the host.
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def aligned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that lie in a file as it is packed: sums over vectors are rounded by where in memory these begin."""
    return {name: tensor if tensor.data_ptr() % _OF_TORCH == 0 else tensor.clone() for name, tensor in tensors.items()}
